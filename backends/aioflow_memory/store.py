"""The port in plain Python: everything in one object.

No verb awaits anything, so the event loop runs nothing else while one is under way: each is a transaction. Iteration
goes by sorted ids and never over a set, so that the same calls always have the same effects.
"""

# ruff: noqa: ARG002 - the port gives every verb ``now``, which not every verb here needs

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from operator import attrgetter
from typing import Any, Literal, overload
from uuid import uuid4  # noqa: TID251 - simulation gives a UUID

from aioflow.changes import Amend, Change, Mark, Move, Result, Start
from aioflow.clock import Micros
from aioflow.errors import StoreUnavailable
from aioflow.model import SUSPECT_CRASHES, Deadline, Run, Signal, Transition, WorkflowStatus
from aioflow.plans import EventRecord
from aioflow.store import Claim, EventQuery, IdKind, Mail, Planned, PlanQuery, RunQuery, Stats
from aioflow_memory.judge import Judge
from aioflow_memory.matching import matches
from aioflow_memory.rows import Rows


class MemoryStore:
    """A store whose data lives as long as the object.

    Closing it keeps the data, so that closing and opening it again simulates a restart. Several engines may open the
    same object; it is closed when each has closed it. Workers have leases, as on a database server.

    The mutable state is the rows, the leases, the id counters, and the counts of writes and of opens.

    Args:
        url: the address by which messages name the store; it has no other effect.
        uuid: the store's UUID, where that is to be repeatable; a random one if None.
    """

    def __init__(self, url: str = "memory://", *, uuid: str | None = None) -> None:
        self._name = url
        self._uuid = str(uuid4()) if uuid is None else uuid
        self._opens = 0
        self._writes = 0
        self._next_id = {"run": 1, "signal": 1, "event": 1, "worker": 1}
        #: worker -> end of its lease
        self._leases: dict[int, Micros] = {}
        self._rows = Rows(url)

    def __repr__(self) -> str:
        return f"<MemoryStore {self._name} with {len(self._rows.runs)} runs>"

    @property
    def name(self) -> str:
        """The URL that it was made with."""
        return self._name

    @property
    def exclusive(self) -> bool:
        """False: workers share it, each with a lease."""
        return False

    @property
    def in_flight(self) -> int:
        """One: ``apply`` never waits, so batches cannot overlap."""
        return 1

    @property
    def pushes_hints(self) -> bool:
        """False: ``hint`` answers at once, and is polled."""
        return False

    @property
    def clock_offset(self) -> Micros:
        """Zero: it has no clock of its own."""
        return 0

    async def open(self, now: Micros) -> str:
        """Add one to the openings, and return the store's UUID."""
        self._opens += 1
        return self._uuid

    async def close(self) -> None:
        """Take one from the openings. Data and leases stay: a worker that has not released its runs looks dead."""
        self._opens = max(0, self._opens - 1)

    async def reserve(self, kind: IdKind, count: int, now: Micros) -> int:
        """Ids that follow those of the last block."""
        self._check_open()
        first = self._next_id[kind]
        self._next_id[kind] += count
        return first

    async def apply(self, changes: Sequence[Change], now: Micros) -> list[Result]:
        """Judge and write the changes one after the other; whatever is raised undoes them all.

        Raises:
            StoreRefused: a row that a database could not hold, or a history row that does not follow the last one.
        """
        self._check_open()
        judge = Judge(self._rows, now)
        results: list[Result] = []
        try:
            for change in changes:
                results.append(judge.judge(change))  # noqa: PERF401 - the next one sees what it wrote
        except BaseException:  # ``decide`` is the caller's code, and may raise anything
            judge.undo()
            raise
        self._writes += judge.writes + sum(not isinstance(change, Start | Move | Mark | Amend) for change in changes)
        return [judge.told(change, result) for change, result in zip(changes, results, strict=True)]

    async def load(self, run_ids: Collection[int], now: Micros) -> list[Run]:
        """Each run once, however often its id is given."""
        self._check_open()
        runs = self._rows.runs
        return [runs[run_id] for run_id in dict.fromkeys(run_ids) if run_id in runs]

    @overload
    async def select(self, query: RunQuery, now: Micros) -> list[Run]: ...
    @overload
    async def select(self, query: EventQuery, now: Micros) -> list[EventRecord]: ...
    @overload
    async def select(self, query: PlanQuery, now: Micros) -> list[Planned]: ...
    async def select(self, query: RunQuery | EventQuery | PlanQuery, now: Micros) -> Any:
        """See the port. Looks at every run or event, then sorts those that match."""
        self._check_open()
        if isinstance(query, EventQuery):
            return self._rows.events.select(query)
        if isinstance(query, PlanQuery):
            return self._rows.events.planned(query)

        def position(run: Run) -> tuple[int, int]:
            return (getattr(run, query.order), run.id)

        found = [run for run in self._rows.runs.values() if matches(run, query)]
        if query.after is not None and query.descending:
            found = [run for run in found if position(run) < query.after]
        elif query.after is not None:
            found = [run for run in found if position(run) > query.after]
        return sorted(found, key=position, reverse=query.descending)[: query.limit]

    async def count(self, query: RunQuery, now: Micros) -> int:
        """See the port. Looks at every run."""
        self._check_open()
        return sum(matches(run, query) for run in self._rows.runs.values())

    async def history(self, run_id: int, after: int, limit: int, now: Micros) -> list[Transition]:
        """A slice, as histories have no gaps."""
        self._check_open()
        return self._rows.history.get(run_id, [])[max(after, 0) :][:limit]

    async def due(
        self,
        after: tuple[Micros, int],
        until: tuple[Micros, int],
        limit: int,
        now: Micros,
        of: Literal["run", "plan"] = "run",
    ) -> list[Deadline]:
        """A slice of the sorted deadlines."""
        self._check_open()
        if of == "plan":
            return self._rows.events.due(after, until, limit)
        deadlines = self._rows.deadlines
        first = bisect_right(deadlines, after, key=_moment)
        last = bisect_right(deadlines, until, key=_moment)
        return deadlines[first : min(last, first + limit)]

    async def mail(
        self,
        run_ids: Collection[int] | None,
        limit: int,
        now: Micros,
        *,
        known: Collection[tuple[str, str]] | None = None,
        after: tuple[Micros, int] | None = None,
    ) -> list[Mail]:
        """See the port. Looks at every wait and every signal."""
        self._check_open()
        runs = self._rows.runs
        if known is not None:
            runs = {id_: run for id_, run in runs.items() if (run.workflow, run.version) in known}
        return self._rows.mailbox.mail(runs, run_ids, limit, now, after)

    async def expire(self, limit: int, now: Micros, *, forget: int | None = None) -> list[Signal]:
        """See the port. Looks at every signal."""
        self._check_open()
        return self._rows.mailbox.expire(limit, now, limit if forget is None else forget)

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
        """Take running runs without a living owner, those that were created first first.

        A worker whose lease is over is registered again, and keeps the runs that no other took meanwhile. Runs that it
        owns and does not hold are returned beyond ``limit``.
        """
        self._check_open()
        if not self._alive(worker, now):
            self._leases[worker] = now + lease
        runs: list[Run] = []
        taken = 0
        for run in sorted(map(self._rows.runs.__getitem__, self._rows.running), key=_age):
            if run.owner == worker:
                if held is not None and run.id not in held:
                    runs.append(run)
            elif (run.owner is None and after is not None and _age(run) <= after) or (
                run.crashes >= SUSPECT_CRASHES and not suspects
            ):
                continue
            elif taken < limit and (run.workflow, run.version) in known and not self._alive(run.owner, now):
                mine = _taken(run, worker)
                self._rows.replace(run, mine)
                runs.append(mine)
                taken += 1
        self._writes += taken
        owned = {run_id for run_id in self._rows.running if self._rows.runs[run_id].owner == worker}
        return Claim(working=True, runs=runs, gone=() if held is None else set(held) - owned)

    async def renew(self, worker: int, lease: Micros, now: Micros) -> bool:
        """Extend a lease that is not over; one that is over stays over until the worker claims again."""
        self._check_open()
        if not self._alive(worker, now):
            return False
        self._leases[worker] = now + lease
        return True

    async def release(self, worker: int, now: Micros) -> None:
        """Free the worker's runs and forget it. The fence rises, as losing the owner is a change of owner."""
        self._check_open()
        self._leases.pop(worker, None)
        for run_id in sorted(self._rows.running):
            run = self._rows.runs[run_id]
            if run.owner == worker:
                self._rows.replace(run, run._replace(owner=None, marked=0, fence=run.fence + 1))
                self._writes += 1

    async def hint(self, now: Micros) -> int:
        """How often rows were written, by any engine: those that share the object cannot be told apart."""
        self._check_open()
        return self._writes

    async def stats(self, now: Micros) -> Stats:
        """See the port. ``bytes`` is None."""
        self._check_open()
        runs: defaultdict[str, Counter[str]] = defaultdict(Counter)
        steps: defaultdict[str, Counter[str]] = defaultdict(Counter)
        waiting: Counter[str] = Counter()
        for run in self._rows.runs.values():
            runs[run.workflow][run.status] += 1
            if not WorkflowStatus(run.status).ended:
                steps[run.workflow][run.step] += 1
            if run.status == WorkflowStatus.WAITING and run.waiting_for is not None:
                waiting[run.waiting_for] += 1
        deadlines = self._rows.deadlines
        events, planned, failing, blocked = self._rows.events.count()
        overdue = bisect_right(deadlines, now, key=attrgetter("at"))
        return Stats(
            runs={workflow: dict(counts) for workflow, counts in runs.items()},
            steps={workflow: dict(counts) for workflow, counts in steps.items()},
            waiting=dict(waiting),
            overdue=overdue,
            oldest_due=deadlines[0].at if overdue else None,
            mailbox=len(self._rows.mailbox),
            bytes=None,
            events=events,
            planned=planned,
            failing=failing,
            blocked=blocked,
        )

    # ---- conditions

    def _alive(self, worker: int | None, now: Micros) -> bool:
        return worker is not None and self._leases.get(worker, now) > now

    def _check_open(self) -> None:
        if not self._opens:
            raise StoreUnavailable(self._name, "it is not open", "Call 'await store.open(now)' first.")


def _taken(run: Run, worker: int) -> Run:
    """The row of a run without a living owner, once the worker has taken it."""
    crashed = run.owner is not None and (run.crashes < SUSPECT_CRASHES or run.marked == 1)
    return run._replace(owner=worker, fence=run.fence + 1, crashes=run.crashes + crashed, marked=0)


def _age(run: Run) -> tuple[Micros, int]:
    return run.created_at, run.id


def _moment(deadline: Deadline) -> tuple[Micros, int]:
    return deadline.at, deadline.run_id
