"""Copying the WAL back into the database when it has grown.

SQLite does so by itself, but says nothing if that fails, and syncs the same descriptor again the next time. So the
process that works the file asks for it. How long the WAL is says its file: frames of before it was last begun anew have
another salt than its header.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Sequence
from typing import Literal

import structlog

from aioflow.changes import Change, Move, Post, Start

_log = structlog.get_logger("aioflow")

#: 16 MB: a busy page is copied less often.
_PAGES = 4000
#: Bytes that are written between two looks, about. A look takes system calls, and so lets go of the GIL.
_STRIDE = 4_000_000
#: What a row takes in the WAL beside its data: pages are shared in large batches, so this is much.
_ROW = 4096


def weight(changes: Sequence[Change]) -> int:
    """How many bytes of data these hold."""
    total = 0
    for change in changes:
        if isinstance(change, Move):
            total += len(change.run.data)
            if change.also:
                total += weight(change.also)
        elif isinstance(change, Start):
            total += len(change.run.data)
        elif isinstance(change, Post):
            total += len(change.signal.payload)
    return total


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
        self._data = _STRIDE  # it may be long already
        self._unsynced = True  # by whoever worked it before
        self.lost = False

    def keep_short(self, db: sqlite3.Connection, data: int) -> None:
        """Copy it back if it has grown; no transaction is open. ``data``: bytes of it that were written just now.

        Raises:
            sqlite3.Error: it could not be copied, or not be synced.
        """
        self._data += data
        changed = db.total_changes
        # Fewer rows than before: it is another connection.
        if self._data + _ROW * abs(changed - self._looked) < _STRIDE:
            return
        self._looked, self._data = changed, 0
        if self._has_grown():
            self.copy_back(db)

    def take_over(self, db: sqlite3.Connection) -> None:
        """Copy all of it back, as far as nobody reads it, before anything is built on it; no transaction is open.

        A commit whose sync failed may stand in the WAL of a process that died: the kernel still shows it, and reports no
        error again, but the disk may never have had it. What is committed after it would be lost with it when the power
        fails. Copied back, it is written and synced anew. A process that works nothing does not do so: what it commits
        before a worker comes has that risk still.

        Raises:
            sqlite3.Error: it could not be copied, or not be synced.
        """
        self.copy_back(db, "TRUNCATE")

    def copy_back(self, db: sqlite3.Connection, how: Literal["PASSIVE", "TRUNCATE"] = "PASSIVE") -> None:
        """Copy it back, as far as nobody reads it; no transaction is open.

        Where a reader stops it halfway, SQLite takes what it copied for done without a sync: that of a later copying
        will do for both. If that one fails, the kernel may have dropped all that was not synced, and SQLite writes only
        the later part again. So after such a failure every page is put into the WAL anew, and copied from there.

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
        if frames >= 0:  # else somebody else is copying
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
