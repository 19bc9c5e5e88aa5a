"""A store whose commits fail as a test demands, and a clock on which sleeping takes no real time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from aioflow.changes import Amend, Change, Mark, Move, Post, Result, Start
from aioflow.clock import Clock, Micros
from aioflow.errors import StoreRefused, StoreUnavailable
from aioflow.model import Deadline, Run, Signal, Transition
from aioflow.store import Claim, IdKind, Mail, RunQuery, Stats
from aioflow_memory import MemoryStore

#: The time of a new QuickClock.
NOW: Micros = 1_750_000_000_000_000


class QuickClock(Clock):
    """A clock whose time passes only by sleeping, at once; each sleep lets other tasks run once."""

    def __init__(self) -> None:
        self.passed: Micros = 0
        #: The length of each sleep.
        self.slept: list[Micros] = []

    def micros(self) -> Micros:
        return NOW + self.passed

    def monotonic(self) -> Micros:
        return self.passed

    async def sleep(self, duration: Micros) -> None:
        self.slept.append(duration)
        self.passed += duration
        await asyncio.sleep(0)


#: How an offer fails: with StoreUnavailable before or after everything was applied, or with this exception.
Fault = Literal["before", "after"] | BaseException | None


def lost(when: str) -> StoreUnavailable:
    """The error of a store whose connection was lost, so that the outcome is unknown."""
    return StoreUnavailable("faulty://", f"the connection was lost {when} the commit")


def run_id_of(change: Change) -> int:
    """The run that a change is about, 0 if it is about none."""
    if isinstance(change, Post):
        return change.signal.run_id
    if isinstance(change, Start | Move):
        return change.run.id
    return change.run_id if isinstance(change, Mark | Amend) else 0


class FaultyStore:
    """Wraps a MemoryStore and passes every verb on; ``apply`` can be held up and made to fail.

    Attributes:
        faults: how each of the next offers fails; None is a success, and so are all offers after the last.
        down: while it is set, nothing is applied.
        poison: a batch with a change of one of these runs is refused.
        mangle: a function through which the results are passed.
        offers: the changes of each offer; ``instants`` has the time of each.
    """

    def __init__(self) -> None:
        self.store = MemoryStore("faulty://", uuid="faulty")
        self.faults: deque[Fault] = deque()
        self.down = False
        self.poison: set[int] = set()
        self.mangle: Callable[[list[Result]], Any] = lambda results: results
        self.offers: list[list[Change]] = []
        self.instants: list[Micros] = []
        self._open = asyncio.Event()
        self._open.set()
        self._arrived = asyncio.Event()

    @property
    def batches(self) -> list[list[int]]:
        """The run ids of each offer."""
        return [[run_id_of(change) for change in offer] for offer in self.offers]

    @contextmanager
    def held(self) -> Any:
        """Keep offers waiting while the ``with`` block runs."""
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()

    async def arrived(self, offers: int) -> None:
        """Wait until this many offers were made."""
        while len(self.offers) < offers:
            self._arrived.clear()
            await self._arrived.wait()

    async def apply(self, changes: Sequence[Change], now: Micros) -> list[Result]:
        self.offers.append(list(changes))
        self.instants.append(now)
        self._arrived.set()
        await self._open.wait()
        fault = self.faults.popleft() if self.faults else None
        if self.down or fault == "before":
            raise lost("before")
        if isinstance(fault, BaseException):
            raise fault
        sick = self.poison & {run_id_of(change) for change in changes}
        if sick:
            raise StoreRefused(self.name, f"run {min(sick)} is too large")
        results = await self.store.apply(changes, now)
        if fault == "after":
            raise lost("after")
        mangled: list[Result] = self.mangle(results)
        return mangled

    # ---- the rest of the port, passed on unchanged

    @property
    def name(self) -> str:
        return self.store.name

    @property
    def exclusive(self) -> bool:
        return self.store.exclusive

    @property
    def in_flight(self) -> int:
        return self.store.in_flight

    @property
    def pushes_hints(self) -> bool:
        return self.store.pushes_hints

    @property
    def clock_offset(self) -> Micros:
        return self.store.clock_offset

    async def open(self, now: Micros) -> str:
        return await self.store.open(now)

    async def close(self) -> None:
        await self.store.close()

    async def reserve(self, kind: IdKind, count: int, now: Micros) -> int:
        return await self.store.reserve(kind, count, now)

    async def load(self, run_ids: Collection[int], now: Micros) -> list[Run]:
        return await self.store.load(run_ids, now)

    async def select(self, query: RunQuery, now: Micros) -> list[Run]:
        return await self.store.select(query, now)

    async def count(self, query: RunQuery, now: Micros) -> int:
        return await self.store.count(query, now)

    async def history(self, run_id: int, after: int, limit: int, now: Micros) -> list[Transition]:
        return await self.store.history(run_id, after, limit, now)

    async def due(
        self,
        after: tuple[Micros, int],
        until: tuple[Micros, int],
        limit: int,
        now: Micros,
        of: Literal["run", "plan"] = "run",
    ) -> list[Deadline]:
        return await self.store.due(after, until, limit, now, of)

    async def mail(self, run_ids: Collection[int] | None, limit: int, now: Micros, **which: Any) -> list[Mail]:
        return await self.store.mail(run_ids, limit, now, **which)

    async def expire(self, limit: int, now: Micros, *, forget: int | None = None) -> list[Signal]:
        return await self.store.expire(limit, now, forget=forget)

    async def claim(self, worker: int, **arguments: Any) -> Claim:
        return await self.store.claim(worker, **arguments)

    async def renew(self, worker: int, lease: Micros, now: Micros) -> bool:
        return await self.store.renew(worker, lease, now)

    async def release(self, worker: int, now: Micros) -> None:
        await self.store.release(worker, now)

    async def hint(self, now: Micros) -> int:
        return await self.store.hint(now)

    async def stats(self, now: Micros) -> Stats:
        return await self.store.stats(now)
