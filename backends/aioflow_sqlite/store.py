"""``SQLiteStore``: the store port on one file.

It has one connection that writes and two that read, each with a thread; a verb is one function that runs in one of
these. The writer runs whole transactions, so that verbs never interleave in one, and a cancelled caller leaves none
half done. Users' queries may take long, so they have a connection of their own, and end when their caller is cancelled.

One process works the file: the one that has locked ``<file>.worker``. Others start, query, and try for the lock.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, Literal, TypeVar, overload

import structlog
from anyio import CancelScope

from aioflow.changes import Change, Result
from aioflow.clock import SECOND, Clock, Micros
from aioflow.errors import StoreError, StoreRefused, StoreUnavailable
from aioflow.model import Deadline, Run, Signal, Transition
from aioflow.plans import EventRecord
from aioflow.store import Claim, EventQuery, IdKind, Mail, Planned, PlanQuery, RunQuery, Stats
from aioflow_sqlite import batch, mailbox, ownership, questions
from aioflow_sqlite.address import parse
from aioflow_sqlite.connection import Connection, NewerSchema, connect, migrate, settle, unless
from aioflow_sqlite.files import Files
from aioflow_sqlite.lock import FileLock
from aioflow_sqlite.problems import told_apart
from aioflow_sqlite.rows import SELECT_RUNS
from aioflow_sqlite.transactions import snapshot, transaction
from aioflow_sqlite.wal import Wal, tell_of_other

T = TypeVar("T")
_log = structlog.get_logger("aioflow")
#: Opening waits at least this long for locks, even if ``busy_timeout`` is shorter.
_LEAST_PATIENCE: Micros = 2 * SECOND
#: From this many changes on the event loop blocks, see Connection.run; with fewer it is more often idle anyway.
_MANY = 32


class SQLiteStore:
    """Runs in a SQLite file.

    Args:
        url: ``sqlite:///relative.db``, ``sqlite:////absolute.db``, or ``sqlite://`` for one in memory. Options:
            ``busy_timeout`` (milliseconds) and ``synchronous`` (FULL, EXTRA or NORMAL).

    Raises:
        ValueError: it is not such a URL.

    The mutable state: connections, lock, files and WAL; whether it works the file, or has logged that another does.
    """

    exclusive = True
    in_flight = 1
    pushes_hints = False
    clock_offset = 0

    def __init__(self, url: str) -> None:
        self._address = parse(url)
        self._writer: Connection | None = None
        self._reader: Connection | None = None
        self._asker: Connection | None = None
        self._lock: FileLock | None = None
        self._works = False
        self._told = False
        self._files: Files | None = None
        self._wal: Wal | None = None

    @property
    def name(self) -> str:
        """The URL without its options."""
        return self._address.name

    async def open(self, now: Micros) -> str:
        """See the port."""
        clock = Clock()
        patience = max(self._address.busy_timeout * 1000, _LEAST_PATIENCE)
        until = clock.monotonic() + patience
        while True:
            left = max(until - clock.monotonic(), 0)
            try:
                return await self._open(min(left // 1000, self._address.busy_timeout))
            except StoreError as error:
                # Others may be switching the file to WAL just now, for which SQLite does not wait.
                if "locked" not in str(error) or clock.monotonic() >= until:
                    raise
                await clock.sleep(SECOND // 20)

    async def _open(self, timeout: int) -> str:
        """Open it. ``timeout``: milliseconds to wait for each lock."""
        try:
            self._writer = await connect(self._address, timeout, read_only=False, check=self._check_file)
            uuid = await self._writer.run(migrate)
            self._files = None if self._address.path is None else Files(self.name, self._address.path)
            self._reader = self._asker = self._writer
            if self._files is not None:
                self._lock, self._wal = FileLock(Path(f"{self._files.path}.worker")), Wal(str(self._files.path))
                self._reader = await connect(self._address, timeout, read_only=True, check=self._check_file)
                self._asker = await connect(self._address, timeout, read_only=True, check=self._check_file)
            for connection in (self._writer, self._reader, self._asker):
                await connection.run(partial(settle, milliseconds=self._address.busy_timeout))
        except BaseException as error:
            with CancelScope(shield=True):  # else a cancelled scope would leave connections open
                await self.close()
            if isinstance(error, NewerSchema):
                advice = "Use the aioflow that wrote it, or a newer one."
                raise StoreUnavailable(self.name, str(error), advice) from error
            if isinstance(error, sqlite3.Error):
                raise told_apart(self.name, error) from error
            raise
        return uuid

    async def close(self) -> None:
        """See the port."""
        found = dict.fromkeys((self._writer, self._reader, self._asker))  # in memory they are one
        self._asker = self._reader = self._writer = None
        try:
            async with AsyncExitStack() as closing:  # in reverse order, each even if another fails
                for connection in filter(None, found):
                    closing.push_async_callback(connection.close)
        finally:
            self._works = False
            if self._lock is not None:
                self._lock.release()

    async def reserve(self, kind: IdKind, count: int, now: Micros) -> int:
        """See the port."""
        sql = (
            "INSERT INTO ids VALUES (?, ?) ON CONFLICT DO UPDATE SET next = next + excluded.next - 1 RETURNING next - ?"
        )

        def reserve(db: sqlite3.Connection) -> int:
            (first,) = db.execute(sql, (kind, count + 1, count)).fetchone()
            return int(first)

        return await self._write(lambda db: transaction(db, reserve))

    async def apply(self, changes: Sequence[Change], now: Micros) -> list[Result]:
        """See the port."""
        loan = Event() if len(changes) >= _MANY else None
        begins = (lambda: None) if loan is None else loan.set

        def commit(db: sqlite3.Connection) -> list[Result]:
            results, data = batch.commit(db, changes, now, begins)
            if self._wal is not None:
                self._wal.written(data)
            return results

        return await self._write(commit, loan)

    async def load(self, run_ids: Collection[int], now: Micros) -> list[Run]:
        """See the port."""
        sql = f"{SELECT_RUNS} WHERE id IN (SELECT value FROM json_each(?))"
        ids = json.dumps(list(run_ids))
        return await self._read(lambda db: [Run._make(row) for row in db.execute(sql, (ids,))])

    @overload
    async def select(self, query: RunQuery, now: Micros) -> list[Run]: ...
    @overload
    async def select(self, query: EventQuery, now: Micros) -> list[EventRecord]: ...
    @overload
    async def select(self, query: PlanQuery, now: Micros) -> list[Planned]: ...
    async def select(self, query: RunQuery | EventQuery | PlanQuery, now: Micros) -> Any:
        """See the port."""
        match query:
            case RunQuery():
                ask = self._read if query.own else self._ask
                return await ask(lambda db: questions.select(db, query))
            case EventQuery():
                return await self._ask(lambda db: questions.events(db, query))
            case PlanQuery():
                return await self._read(lambda db: questions.plans(db, query))

    async def count(self, query: RunQuery, now: Micros) -> int:
        """See the port."""
        return await self._ask(lambda db: questions.count(db, query))

    async def history(self, run_id: int, after: int, limit: int, now: Micros) -> list[Transition]:
        """See the port."""
        sql = "SELECT * FROM history WHERE run_id = ? AND seq > ? ORDER BY seq LIMIT ?"
        return await self._ask(lambda db: [Transition._make(row) for row in db.execute(sql, (run_id, after, limit))])

    async def due(
        self,
        after: tuple[Micros, int],
        until: tuple[Micros, int],
        limit: int,
        now: Micros,
        of: Literal["run", "plan"] = "run",
    ) -> list[Deadline]:
        """See the port."""
        due = questions.due if of == "run" else questions.due_plans
        return await self._read(lambda db: due(db, after, until, limit))

    async def mail(
        self,
        run_ids: Collection[int] | None,
        limit: int,
        now: Micros,
        *,
        known: Collection[tuple[str, str]] | None = None,
        after: tuple[Micros, int] | None = None,
    ) -> list[Mail]:
        """See the port."""
        find = partial(mailbox.mail, run_ids=run_ids, limit=limit, now=now, known=known, after=after)
        return await self._read(lambda db: snapshot(db, find))

    async def expire(self, limit: int, now: Micros, *, forget: int | None = None) -> list[Signal]:
        """See the port."""
        return await self._write(lambda db: transaction(db, lambda db: mailbox.expire(db, limit, now, forget)))

    async def claim(
        self,
        worker: int,
        *,
        lease: Micros,
        limit: int,
        known: Collection[tuple[str, str]],
        held: Collection[int] | None,
        now: Micros,
        after: tuple[Micros, int] | None = None,
        suspects: bool = True,
    ) -> Claim:
        """See the port."""
        held = None if held is None else frozenset(held)

        def claim(db: sqlite3.Connection) -> Claim:
            if self._lock is not None and not self._lock.acquire():
                self._works = False
                return Claim(working=False)
            if not self._works:
                if self._wal is not None:
                    self._wal.take_over(db)
                ownership.disown_dead(db, worker)
                self._works = True
            return ownership.take(db, worker, limit, held, after, suspects=suspects)

        claimed = await self._write(claim)
        if not claimed.working and not self._told:
            self._told = True
            tell_of_other(self.name)
        return claimed

    async def renew(self, worker: int, lease: Micros, now: Micros) -> bool:
        """See the port: the lock is the lease, and it does not run out."""
        return self._works

    async def release(self, worker: int, now: Micros) -> None:
        """See the port."""
        if self._works:
            await self._write(lambda db: ownership.give_back(db, worker))
            await self._mend()
        self._works = False
        if self._lock is not None:
            self._lock.release()

    async def hint(self, now: Micros) -> int:
        """See the port: what other connections than the writer have committed."""

        def hint(db: sqlite3.Connection) -> int:
            if self._works and self._lock is not None:
                self._works = self._lock.acquire()  # if its file was deleted, this creates and locks a new one
            return int(db.execute("PRAGMA data_version").fetchone()[0])

        return await self._write(hint)

    async def stats(self, now: Micros) -> Stats:
        """See the port."""
        return await self._ask(lambda db: questions.stats(db, now))

    async def _write(self, function: Callable[[sqlite3.Connection], T], loan: Event | None = None) -> T:
        """Run a function on the writer. ``loan``: see Connection.run."""
        writer, files = self._writer, self._files
        # On the event loop: these system calls read no disk, but in the writer's thread each would release the GIL, and
        # a busy event loop gives it back only after milliseconds.
        if files is not None and not files.in_place():
            await self._run(writer, files.check)

        def write(db: sqlite3.Connection) -> T:
            result = function(db)
            if self._works and self._wal is not None and writer is not None:
                self._keep_short(self._wal, writer, db)
            return result

        return await self._run(writer, write, loan)

    async def _mend(self) -> None:
        """Write what a failed sync has lost again, before the last connection closes: then SQLite deletes the WAL."""
        wal, writer = self._wal, self._writer
        if wal is None or writer is None or not wal.lost:
            return
        try:
            await writer.run(wal.copy_back)
        except (sqlite3.Error, StoreError) as error:
            _log.error("pages that could not be synced cannot be written anew", store=self.name, error=str(error))

    def _keep_short(self, wal: Wal, writer: Connection, db: sqlite3.Connection) -> None:
        """Copy the WAL back if it has grown. An error is only logged: what was written before is committed."""
        try:
            wal.keep_short(db)
        except (sqlite3.Error, OSError) as error:
            if isinstance(error, sqlite3.Error):
                writer.heed(error)
            _log.warning("the WAL cannot be copied back, will try again", store=self.name, error=str(error))

    def _check_file(self) -> None:
        if self._files is not None:
            self._files.check_database()

    async def _read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        return await self._run(self._reader, function)

    async def _ask(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run a user's query. If its caller is cancelled, it is not begun any more, or ended."""
        left = Event()
        try:
            return await self._run(self._asker, partial(unless, left, function))
        finally:
            left.set()

    async def _run(
        self, connection: Connection | None, function: Callable[[sqlite3.Connection], T], loan: Event | None = None
    ) -> T:
        if connection is None:
            raise StoreUnavailable(self.name, "it is not open")
        try:
            return await connection.run(function, loan)
        except sqlite3.Error as error:
            raise told_apart(self.name, error) from error
        except (OverflowError, UnicodeEncodeError) as error:
            raise StoreRefused(self.name, str(error)) from error
        except OSError as error:  # the lock file
            raise StoreUnavailable(self.name, str(error)) from error
        except ValueError as error:  # aiosqlite: closed meanwhile
            raise StoreUnavailable(self.name, str(error)) from error
