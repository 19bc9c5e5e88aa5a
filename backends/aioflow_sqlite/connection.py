"""A connection with its own thread, in which whole functions run: a transaction is one hop to it, never interleaved."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from importlib.resources import files
from threading import Event
from typing import TypeVar

import aiosqlite
from anyio import CancelScope, to_thread

from aioflow.errors import StoreError
from aioflow_sqlite.address import Address
from aioflow_sqlite.plain import prepare
from aioflow_sqlite.transactions import transaction

T = TypeVar("T")

#: Seconds. If the function has not set its loan by then, the thread is busy with something else.
_LONGEST_LOAN = 0.005

#: After how many instructions of SQLite, some milliseconds, a query checks whether its caller still waits.
_CHECK_EVERY = 100_000

#: Marks the file as aioflow's ("aflw").
_APPLICATION_ID = 0x61666C77


class Connection(aiosqlite.Connection):
    """An aiosqlite connection that also runs functions of the plain sqlite3 connection in its thread.

    After an I/O error the file is opened anew before anything else is done with it. A sync that failed must not be
    tried again on its descriptor: the kernel may have dropped what it could not write, and would then report success.

    Args:
        address: what to open.
        timeout: how many milliseconds it waits for each lock at first.
        read_only: whether it is not to write.
        check: raises if the path of the open database holds another file by now.

    The mutable state: what was opened first, and whether an I/O error has happened since the file was opened.
    """

    def __init__(self, address: Address, timeout: int, *, read_only: bool, check: Callable[[], None]) -> None:
        super().__init__(self._first, iter_chunk_size=64)
        self._opened: sqlite3.Connection | None = None
        self._address = address
        self._timeout = timeout
        self._read_only = read_only
        self._check = check
        self._failed = False

    def _first(self) -> sqlite3.Connection:
        self._opened = _open(self._address.uri, self._timeout)
        return self._opened

    async def run(self, function: Callable[[sqlite3.Connection], T], loan: Event | None = None) -> T:
        """Run a function in the connection's thread. If the caller is cancelled the function still runs to its end.

        Args:
            function: what to run.
            loan: the event loop blocks until the function sets this, or for some milliseconds. The function needs the
                GIL for a moment before SQLite can work beside the loop. A busy loop would not give it: it releases the
                GIL too briefly for another thread to wake up, which then waits another switch interval of 5 ms.
        """
        future = self._send(lambda: self._use(function))
        if loan is not None:
            loan.wait(_LONGEST_LOAN)
        return await future

    def _send(self, function: Callable[[], T]) -> Awaitable[T]:
        """Pass a function to the thread at once: aiosqlite does so only when its coroutine is awaited."""
        if not self._running or not self._connection:
            raise ValueError("Connection closed")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._tx.put_nowait((future, function))
        return future

    async def set_up(self) -> None:
        """Configure the connection as the writer, or as a reader."""
        await self.run(self._set_up)

    async def close(self) -> None:
        """Close it. aiosqlite closes the connection that it has when it is called, so a due reopening comes first."""
        try:
            if self._failed:
                await self.run(lambda _: None)
        except (sqlite3.Error, StoreError):
            pass  # close the old one, then: what was acknowledged is in the WAL
        finally:
            await super().close()

    async def thread_ended(self) -> None:
        """Wait for the thread of a connection whose opening failed or was cancelled, and close the connection.

        The thread still reports to the event loop.
        """
        with CancelScope(shield=True):
            await to_thread.run_sync(self._thread.join)
        if self._opened is not None:
            self._opened.close()

    def _use(self, function: Callable[[sqlite3.Connection], T]) -> T:
        if self._failed:
            self._reopen()
        try:
            return function(self._conn)
        except sqlite3.Error as error:
            self.heed(error)
            raise

    def heed(self, error: sqlite3.Error) -> None:
        """Note an I/O error of the connection, in its thread: the file will be opened anew."""
        code = getattr(error, "sqlite_errorcode", 0)
        if code & 0xFF == sqlite3.SQLITE_IOERR and self._address.path is not None:
            self._failed = True

    def _reopen(self) -> None:
        """Open the file anew, then close the old connection: SQLite would reuse a descriptor that was closed before.

        The store's other connections stay open, and keep the index of the WAL. This does not list what a failed commit
        has left in the WAL, so that the next commit overwrites it. Recovery would find it, and take it for durable.
        """
        old = self._conn
        _, _, path = old.execute("PRAGMA database_list").fetchone()
        self._check()
        new = _open(self._address.existing(path), self._address.busy_timeout)
        try:
            self._set_up(new)
            self._check()
        except BaseException:
            new.close()
            raise
        self._connection, self._failed = new, False
        old.close()

    def _set_up(self, db: sqlite3.Connection) -> None:
        _set_up(db, self._address, self._read_only)


async def connect(address: Address, timeout: int, *, read_only: bool, check: Callable[[], None]) -> Connection:
    """Open a connection and configure it. ``timeout``: milliseconds that it waits for each lock; see Connection."""
    connection = Connection(address, timeout, read_only=read_only, check=check)
    try:
        await connection
    except BaseException:
        await connection.thread_ended()
        raise
    try:
        await connection.set_up()
    except BaseException:
        with CancelScope(shield=True):
            await connection.close()
        raise
    return connection


def _open(uri: str, timeout: int) -> sqlite3.Connection:
    return sqlite3.connect(
        uri,
        uri=True,
        isolation_level=None,
        timeout=timeout / 1000,
        cached_statements=256,
        check_same_thread=False,
    )


def _set_up(db: sqlite3.Connection, address: Address, read_only: bool) -> None:
    if read_only:
        db.execute("PRAGMA query_only = 1")
        return
    (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode not in ("wal", "memory"):  # some errors only show by the mode, which does not change
        raise sqlite3.OperationalError(f"its journal stays in the mode {mode}, and cannot be switched to WAL")
    db.execute(f"PRAGMA synchronous = {address.synchronous}")
    # Only the process that works the file checkpoints it; see wal.py.
    db.execute("PRAGMA wal_autocheckpoint = 0")
    db.execute("PRAGMA journal_size_limit = 67108864")
    prepare(db)


def unless(left: Event, function: Callable[[sqlite3.Connection], T], db: sqlite3.Connection) -> T:
    """Run it until ``left`` is set. ``interrupt()`` would miss it between two statements, or hit the next function."""
    if left.is_set():
        raise sqlite3.OperationalError("nobody waits for it any more")
    db.set_progress_handler(left.is_set, _CHECK_EVERY)
    try:
        return function(db)
    finally:
        db.set_progress_handler(None, 0)


def settle(db: sqlite3.Connection, milliseconds: int) -> None:
    """Set how long it waits for a lock from now on, and open all its files, so that it creates no deleted one."""
    db.execute(f"PRAGMA busy_timeout = {milliseconds}").fetchall()
    db.execute("SELECT 1 FROM store").fetchall()


class NewerSchema(Exception):
    """The file was written by a newer schema than this code knows."""


def migrate(db: sqlite3.Connection) -> str:
    """Bring the schema up to date, and return the store's UUID. Several processes may do this at once.

    Raises:
        NewerSchema: this code is too old for the file, or the file belongs to another program.
    """
    scripts = sorted(
        (file.name, file.read_text(encoding="utf-8"))
        for file in (files("aioflow_sqlite") / "migrations").iterdir()
        if file.name.endswith(".sql")
    )

    def upgrade(db: sqlite3.Connection) -> str:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (application,) = db.execute("PRAGMA application_id").fetchone()
        if version > len(scripts) or (version and application != _APPLICATION_ID):
            raise NewerSchema(f"its schema is version {version}, this code knows up to {len(scripts)}")
        for _, script in scripts[version:]:
            for statement in _statements(script):
                db.execute(statement)
        if version < len(scripts):
            db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {len(scripts)}")
        (uuid,) = db.execute("SELECT uuid FROM store").fetchone()
        return str(uuid)

    return transaction(db, upgrade)


def _statements(script: str) -> list[str]:
    """The script's statements: executescript would commit in between."""
    statements, current = [], ""
    for line in script.splitlines(keepends=True):
        current += line
        if sqlite3.complete_statement(current):
            statements.append(current)
            current = ""
    return statements
