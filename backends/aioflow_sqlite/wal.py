"""Copies the WAL back into the database (a checkpoint) when it has grown.

SQLite would do so by itself, but does not report a failure, and syncs the same descriptor again the next time. So the
process that works the file asks for it. The length of the WAL is read from its file: frames that are left from before
it was last restarted have another salt than its header.
"""

from __future__ import annotations

import sqlite3
import struct
from typing import Literal

import structlog

_log = structlog.get_logger("aioflow")

#: Two connections that write and checkpoint at once can damage the WAL before this version.
_SAFE = (3, 51, 3)
#: How many pages the WAL has when it is copied back, 16 MB: so many that a busy page is copied less often.
_PAGES = 4000
#: About how many bytes are written between two looks at the file. A look takes system calls, which release the GIL.
_STRIDE = 4_000_000
#: How many bytes a row takes in the WAL beside its data, at most: in large batches rows share pages.
_ROW = 4096


class Wal:
    """The WAL of a database.

    Args:
        path: the database's.

    The mutable state: how many rows its connection had changed at the last look, and the data written since then;
    whether pages may have been copied that are not synced, and whether such pages are lost.
    """

    def __init__(self, path: str) -> None:
        self._path = f"{path}-wal"
        self._looked = 0
        self._data = _STRIDE  # so that the first call looks: it may be long already
        self._unsynced = True  # by a process that worked the file before
        self.lost = False

    def written(self, data: int) -> None:
        """So many bytes of data were written just now."""
        self._data += data

    def keep_short(self, db: sqlite3.Connection) -> None:
        """Copy it back if it has grown; no transaction is open.

        Raises:
            sqlite3.Error: it could not be copied, or not be synced.
        """
        changed = db.total_changes
        # Fewer rows than before: it is another connection.
        if self._data + _ROW * abs(changed - self._looked) < _STRIDE:
            return
        self._looked, self._data = changed, 0
        if self._has_grown():
            self.copy_back(db)

    def take_over(self, db: sqlite3.Connection) -> None:
        """Copy all of it back, as far as no reader needs it, before anything is added to it; no transaction is open.

        A process that died may have left a commit in the WAL whose sync failed: the kernel still shows it, and does not
        report the error again, but it may never have reached the disk. Later commits would be lost with it when the
        power fails. Copied back, it is written and synced anew. A process that does not work the file does not do so:
        what it commits before a worker comes is still at that risk.

        Raises:
            sqlite3.Error: it could not be copied, or not be synced.
        """
        self.copy_back(db, "TRUNCATE")

    def copy_back(self, db: sqlite3.Connection, how: Literal["PASSIVE", "TRUNCATE"] = "PASSIVE") -> None:
        """Copy it back, as far as no reader needs it; no transaction is open.

        Where a reader stops it halfway, SQLite counts what it has copied as done, without a sync: that of a later
        checkpoint covers both parts. If that sync fails, the kernel may have dropped all that was not synced, but
        SQLite copies only the later part again. So after such a failure every page is written to the WAL anew, and
        copied from there.

        Raises:
            sqlite3.Error: it could not be copied, or not be synced.
        """
        if self.lost:
            _log.warning(
                "a sync has failed, all pages are written anew: that takes room for the file twice", wal=self._path
            )
            db.execute("VACUUM")
            self.lost = False
        try:
            _, frames, copied = db.execute(f"PRAGMA wal_checkpoint({how})").fetchone()
        except sqlite3.OperationalError as error:
            self.lost = self._unsynced and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_IOERR
            raise
        if frames >= 0:  # else another connection is copying
            self._unsynced = copied < frames

    def _has_grown(self) -> bool:
        try:
            with open(self._path, "rb", buffering=0) as file:  # noqa: PTH123 - SQLite takes its path as text, too
                header = file.read(32)
                if len(header) < 32:
                    return False
                (page_size,) = struct.unpack(">I", header[8:12])
                file.seek(32 + (_PAGES - 1) * (24 + page_size))
                return file.read(24)[8:16] == header[16:24]
        except FileNotFoundError:
            return False


def tell_of_other(store: str) -> None:
    """Log that another process works the file, and what this needs. ``store``: its name."""
    if structlog.is_configured():  # else structlog would print it
        _log.info("another process works this file, this one is a client until that ends", store=store)
    if sqlite3.sqlite_version_info < _SAFE:
        _log.warning(
            "several processes share a SQLite file: use SQLite 3.51.3 or newer, which mends a WAL race",
            store=store,
            sqlite=sqlite3.sqlite_version,
        )
