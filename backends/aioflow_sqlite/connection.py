"""A connection with a thread of its own, on which whole functions run: a transaction is one hop, never interleaved."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from typing import TypeVar

import aiosqlite
from anyio import CancelScope, to_thread

from aioflow_sqlite.address import Address

T = TypeVar("T")

#: Marks the file as aioflow's ("aflw").
_APPLICATION_ID = 0x61666C77


class Connection(aiosqlite.Connection):
    """An aiosqlite connection that also runs functions of the plain sqlite3 connection in its thread."""

    async def run(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run it in the connection's thread. If the caller is cancelled the function still runs to its end."""
        result: T = await self._execute(lambda: function(self._conn))  # type: ignore[no-untyped-call]
        return result

    async def thread_ended(self) -> None:
        """Wait for the thread of a connection that could not be made: it still has a word for the event loop."""
        with CancelScope(shield=True):
            await to_thread.run_sync(self._thread.join)


async def connect(address: Address, *, read_only: bool) -> Connection:
    """Open a connection and set it up."""
    connection = Connection(
        partial(
            sqlite3.connect,
            address.uri,
            uri=True,
            isolation_level=None,
            timeout=address.busy_timeout / 1000,
            cached_statements=256,
            check_same_thread=False,
        ),
        iter_chunk_size=64,
    )
    try:
        await connection
    except BaseException:
        await connection.thread_ended()
        raise
    try:
        await connection.run(partial(_set_up, address=address, read_only=read_only))
    except BaseException:
        await connection.close()
        raise
    return connection


def _set_up(db: sqlite3.Connection, address: Address, read_only: bool) -> None:
    if read_only:
        db.execute("PRAGMA query_only = 1")
        return
    db.execute("PRAGMA journal_mode = WAL")
    db.execute(f"PRAGMA synchronous = {address.synchronous}")
    # Whoever works the file checkpoints it, nobody else; see let_checkpoint.
    db.execute("PRAGMA wal_autocheckpoint = 0")
    db.execute("PRAGMA journal_size_limit = 67108864")


def let_checkpoint(db: sqlite3.Connection) -> None:
    """From now on this connection copies the WAL back when it has grown to 16 MB: a busy page is copied less often."""
    db.execute("PRAGMA wal_autocheckpoint = 4000")


def begin(db: sqlite3.Connection) -> None:
    """Begin a write transaction."""
    db.executescript("BEGIN IMMEDIATE")  # lets go of the GIL once, where execute() does three times


def transaction(db: sqlite3.Connection, function: Callable[[sqlite3.Connection], T]) -> T:
    """Run it in a write transaction: all of it is committed, or nothing."""
    begin(db)
    try:
        result = function(db)
        db.commit()  # once, too
    except BaseException:
        db.rollback()
        raise
    return result


def snapshot(db: sqlite3.Connection, function: Callable[[sqlite3.Connection], T]) -> T:
    """Run it in a read transaction: all that it reads is of one instant."""
    db.execute("BEGIN")
    try:
        return function(db)
    finally:
        db.execute("COMMIT")


class NewerSchema(Exception):
    """The file was written by a newer schema than this code knows."""


def migrate(db: sqlite3.Connection) -> str:
    """Bring the schema up to date, and give the store's UUID. Several processes may do this at once.

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
