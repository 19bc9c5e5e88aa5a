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
    """The database's file and those that SQLite keeps beside it, as they are now, by absolute paths.

    Args:
        store: the store's name, for errors.
        path: the database's; there need not be a file, if the path means something to SQLite alone.
    """

    def __init__(self, store: str, path: str) -> None:
        self._store = store
        #: With links resolved, as SQLite does: the files beside it are named after this, whatever link was opened.
        self.path = Path(os.path.realpath(path))
        files = (
            _File(each, _identity(each)) for each in (self.path, Path(f"{self.path}-wal"), Path(f"{self.path}-shm"))
        )
        self._files = [each for each in files if each.identity is not None]

    def in_place(self) -> bool:
        """Whether each path still holds the file that was opened."""
        return all(_identity(file.path) == file.identity for file in self._files)

    def check_database(self) -> None:
        """Raise StoreUnavailable if the database's path no longer holds the file that was opened.

        What is written to a deleted file is gone when it is closed, whatever SQLite reports.
        """
        if self._files and _identity(self._files[0].path) != self._files[0].identity:
            problem = "its file was deleted or replaced while it was open"
            raise StoreUnavailable(self._store, problem, "Put the file back, or restart to begin with the one there.")

    def check(self, db: sqlite3.Connection) -> None:
        """Raise StoreUnavailable if a path no longer holds the file that was opened."""
        self.check_database()
        lost = next((file for file in self._files[1:] if _identity(file.path) != file.identity), None)
        if lost is None:
            return
        if _identity(lost.path) is None:
            # While the deleted file is open, SQLite still has its content: copy that into the database's file.
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
