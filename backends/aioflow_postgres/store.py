"""``PostgresStore``: the port on a PostgreSQL database that several workers share.

It relies on READ COMMITTED and row guards, nothing more. See database.py on why each operation is a task of its own,
and batch.py on how changes are applied.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, Literal, overload

from aioflow.changes import Change, Result
from aioflow.clock import SECOND, Clock, Micros
from aioflow.errors import StoreUnavailable
from aioflow.model import Deadline, Run, Signal, Transition
from aioflow.plans import EventRecord
from aioflow.store import Claim, EventQuery, IdKind, Mail, Planned, PlanQuery, RunQuery, Stats
from aioflow_postgres import batch, mailbox, ownership, questions
from aioflow_postgres.address import parse
from aioflow_postgres.database import Database
from aioflow_postgres.ear import Ear
from aioflow_postgres.migrating import NewerSchema, migrate
from aioflow_postgres.pulse import Pulse
from aioflow_postgres.session import Session
from aioflow_postgres.timing import ServerClock

_RESERVE = """
INSERT INTO aioflow.ids AS i VALUES ($1, $2::bigint + 1)
ON CONFLICT (kind) DO UPDATE SET next = i.next + $2::bigint RETURNING next - $2::bigint
"""
#: How long ``hint`` waits for a new hint.
_PATIENCE: Micros = SECOND // 10


class PostgresStore:
    """Runs in a PostgreSQL database, in a schema of their own.

    Args:
        url: ``postgresql://user:password@host:port/database`` or ``postgres://…``. Options: ``schema`` ("aioflow"),
            ``pool_size`` (10), ``timeout`` (seconds, 15), ``listen`` (a URL for listening, if this one is a pooler's);
            all others are asyncpg's.

    Raises:
        ValueError: it is not such a URL.

    The mutable state: the connections, the ear and the pulse while it is open, the last hint that was returned, and the
    offset of the server's clock.
    """

    exclusive = False
    in_flight = 2
    pushes_hints = True

    def __init__(self, url: str) -> None:
        self._address = parse(url)
        self._database: Database | None = None
        self._ear: Ear | None = None
        self._pulse: Pulse | None = None
        self._hinted = 0
        self._clock = Clock()
        self._server_clock = ServerClock()

    def __repr__(self) -> str:
        return f"<PostgresStore {self.name}>"

    @property
    def name(self) -> str:
        """The URL without password and options."""
        return self._address.name

    @property
    def clock_offset(self) -> Micros:
        """How far the server's clock is ahead of the machine's, as measured at ``open`` and at each ``renew``."""
        return self._server_clock.ahead

    async def open(self, now: Micros) -> str:
        """See the port."""
        database = Database(self._address)
        try:
            await database.open()
            uuid = None
            while uuid is None:
                uuid = await database.transact(lambda session: migrate(session, self._address.schema), patience=20)
            await database.ask(self._server_clock.measure)
        except NewerSchema as error:
            await database.close()
            raise StoreUnavailable(self.name, str(error), "Use the aioflow that wrote it, or a newer one.") from error
        except BaseException:
            await database.close()
            raise
        self._database = database
        self._pulse = Pulse(self._address, lambda: self._server_clock.ahead)
        listen = self._address.listen or (None if database.pooled else self._address.dsn)
        if listen is not None:
            self._ear = Ear(listen, self._address.schema, self._address.timeout)
            self._ear.start()
            self._hinted = self._ear.heard
        return uuid

    async def close(self) -> None:
        """See the port."""
        ear, database, self._ear, self._database = self._ear, self._database, None, None
        pulse, self._pulse = self._pulse, None
        try:
            if pulse is not None:
                await pulse.stop()
            if ear is not None:
                await ear.close()
        finally:
            if database is not None:
                await database.close()

    async def reserve(self, kind: IdKind, count: int, now: Micros) -> int:
        """See the port."""

        async def reserve(session: Session) -> int:
            [(first,)] = await session.fetch(_RESERVE, kind, count)
            return int(first)

        return await self._open_database.say(reserve)

    async def apply(self, changes: Sequence[Change], now: Micros) -> list[Result]:
        """See the port."""
        if not changes:
            return []
        try:
            return await batch.apply(self._open_database, changes, now)
        finally:
            self._tell()

    async def load(self, run_ids: Collection[int], now: Micros) -> list[Run]:
        """See the port."""
        return await self._open_database.ask(lambda session: questions.load(session, list(run_ids)))

    @overload
    async def select(self, query: RunQuery, now: Micros) -> list[Run]: ...
    @overload
    async def select(self, query: EventQuery, now: Micros) -> list[EventRecord]: ...
    @overload
    async def select(self, query: PlanQuery, now: Micros) -> list[Planned]: ...
    async def select(self, query: RunQuery | EventQuery | PlanQuery, now: Micros) -> Any:
        """See the port."""
        database = self._open_database
        match query:
            case RunQuery():
                ask = database.ask if query.own else database.question
                return await ask(lambda session: questions.select(session, query))
            case EventQuery():
                return await database.question(lambda session: questions.events(session, query))
            case PlanQuery():
                return await database.ask(lambda session: questions.plans(session, query))

    async def count(self, query: RunQuery, now: Micros) -> int:
        """See the port."""
        return await self._open_database.question(lambda session: questions.count(session, query))

    async def history(self, run_id: int, after: int, limit: int, now: Micros) -> list[Transition]:
        """See the port."""
        return await self._open_database.ask(lambda session: questions.history(session, run_id, after, limit))

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
        return await self._open_database.ask(lambda session: due(session, after, until, limit))

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
        return await self._open_database.snapshot(find)

    async def expire(self, limit: int, now: Micros, *, forget: int | None = None) -> list[Signal]:
        """See the port."""
        return await self._open_database.transact(
            lambda session: mailbox.expire(session, limit, now, limit if forget is None else forget)
        )

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
        claim = await ownership.claim(
            self._open_database, worker, lease=lease, limit=limit, known=known, held=held, now=now, after=after,
            suspects=suspects,
        )  # fmt: skip
        if self._pulse is not None:
            self._pulse.start(worker, lease)
        return claim  # no hint is sent: a worker that has lost runs notices that by its lease

    async def renew(self, worker: int, lease: Micros, now: Micros) -> bool:
        """See the port. While the event loop is blocked a thread renews, see pulse.py."""
        database = self._open_database
        renewed = await database.say(lambda session: ownership.renew(session, worker, lease, now))
        await database.ask(self._server_clock.measure)
        return renewed

    async def release(self, worker: int, now: Micros) -> None:
        """See the port."""
        if self._pulse is not None:
            await self._pulse.stop()
        if self._database is not None:
            await self._database.settle()  # a claim whose caller was cancelled might take again what is given back
            await self._database.transact(lambda session: ownership.release(session, worker, now))
            self._tell()

    async def hint(self, now: Micros) -> int:
        """See the port: how many hints were heard. Without a listening connection, always the same."""
        if self._database is None:
            raise StoreUnavailable(self.name, "it is not open")
        if self._ear is None:
            await self._clock.sleep(_PATIENCE)
        else:
            self._hinted = await self._ear.news(self._hinted, _PATIENCE)
        return self._hinted

    async def stats(self, now: Micros) -> Stats:
        """See the port."""
        return await self._open_database.question(lambda session: questions.stats(session, now), snapshot=True)

    @property
    def _open_database(self) -> Database:
        if self._database is None:
            raise StoreUnavailable(self.name, "it is not open", "Call 'await store.open(now)' first.")
        return self._database

    def _tell(self) -> None:
        """Send a hint to other processes."""
        if self._ear is not None:
            self._ear.tell()
