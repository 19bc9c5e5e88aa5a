"""The files of a database: whether they are still those that were opened."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from aioflow.errors import StoreUnavailable


class _File(NamedTuple):
    path: Path
    identity: tuple[int, int] | None


class Files:
    """The database's file and those that SQLite keeps beside it, as they are now, wherever the working directory will be.

    Args:
        store: its name, for errors.
        path: the database's; for SQLite alone it may be one of no file.
    """

    def __init__(self, store: str, path: str) -> None:
        self._store = store
        #: Links followed, as SQLite does: the files beside it have its own name, whatever name it was opened by.
        self.path = Path(os.path.realpath(path))
        files = (
            _File(each, _identity(each)) for each in (self.path, Path(f"{self.path}-wal"), Path(f"{self.path}-shm"))
        )
        self._files = [each for each in files if each.identity is not None]

    def in_place(self) -> bool:
        """Whether all of them have their names still."""
        return all(_identity(file.path) == file.identity for file in self._files)

    def check_database(self) -> None:
        """Raise StoreUnavailable if its path holds another by now.

        What is written to a file that has lost its name is gone when it is closed, whatever SQLite says.
        """
        if self._files and _identity(self._files[0].path) != self._files[0].identity:
            problem = "its file was deleted or replaced while it was open"
            raise StoreUnavailable(self._store, problem, "Put the file back, or restart to begin with the one there.")

    def check(self, db: sqlite3.Connection) -> None:
        """Raise StoreUnavailable if one of them is not in its place."""
        self.check_database()
        lost = next((file for file in self._files[1:] if _identity(file.path) != file.identity), None)
        if lost is None:
            return
        if _identity(lost.path) is None:
            # As long as it is open SQLite has what was in it: here it is brought into the file that has a name.
            with suppress(sqlite3.Error):
                db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        problem = f"{lost.path.name}, which belongs to its file, was deleted or replaced while it was open"
        raise StoreUnavailable(self._store, problem, "Restart this process, and let nobody touch that file.")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_dev, stat.st_ino
