"""The port in plain Python: everything in one object.

No verb awaits anything, so the event loop runs nothing else while one is under way: each is a transaction. Iteration
goes by sorted ids and never over a set, so that the same calls always have the same effects.
"""

# ruff: noqa: ARG002 - the port gives every verb ``now``; a store without a clock of its own needs it for leases alone.

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from operator import attrgetter
from typing import assert_never
from uuid import uuid4  # noqa: TID251 - simulation gives a UUID

from aioflow.clock import Micros
from aioflow.errors import StoreUnavailable
from aioflow.model import LIVE, SUSPECT_CRASHES, Deadline, Reuse, Run, Signal, Transition, WorkflowStatus
from aioflow.store import Amend, Change, Claim, IdKind, Mail, Mark, Move, Post, Result, RunQuery, Start, Stats
from aioflow_memory.matching import matches
from aioflow_memory.rows import Rows, Write


class MemoryStore:
    """A store whose data lives and dies with the object.

    Closing it keeps the data: closing and opening again is what a restart looks like. Several engines may open the
    same object; it is closed when each has closed it. Workers have leases, as on a database server.

    The mutable state is the rows, the leases, the id counters, and the counts of writes and of opens.

    Args:
        url: the address by which messages name the store; it chooses nothing else.
        uuid: the store's UUID, for what is to be repeatable; a random one if None.
    """

    def __init__(self, url: str = "memory://", *, uuid: str | None = None) -> None:
        self._name = url
        self._uuid = str(uuid4()) if uuid is None else uuid
        self._opens = 0
        self._writes = 0
        self._next_id = {"run": 1, "signal": 1, "worker": 1}
        #: worker -> end of its lease
        self._leases: dict[int, Micros] = {}
        self._rows = Rows(url)

    def __repr__(self) -> str:
        return f"<MemoryStore {self._name} with {len(self._rows.runs)} runs>"

    @property
    def name(self) -> str:
        """The URL it was made with."""
        return self._name

    @property
    def exclusive(self) -> bool:
        """False: workers share it, each with a lease."""
        return False

    async def open(self, now: Micros) -> str:
        """Count an opening and return the store's UUID."""
        self._opens += 1
        return self._uuid

    async def close(self) -> None:
        """Count a closing. The data stays, and so do the leases: a worker that closes unreleased looks dead."""
        self._opens = max(0, self._opens - 1)

    async def reserve(self, kind: IdKind, count: int, now: Micros) -> int:
        """Count on from where the last block ended."""
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
        self._rows.mailbox.begin()
        results: list[Result] = []
        done: list[Write] = []
        try:
            for change in changes:
                results.append(self._judge(change, now, done))  # noqa: PERF401 - the next one sees what it wrote
        except BaseException:  # decide() is somebody else's code
            for write in reversed(done):
                self._rows.undo(write)
            self._rows.mailbox.undo()
            raise
        self._writes += len(done) + sum(isinstance(change, Post) for change in changes)
        return [self._told(change, result, now) for change, result in zip(changes, results, strict=True)]

    async def load(self, run_ids: Collection[int], now: Micros) -> list[Run]:
        """Each run once, however often its id is given."""
        self._check_open()
        runs = self._rows.runs
        return [runs[run_id] for run_id in dict.fromkeys(run_ids) if run_id in runs]

    async def select(self, query: RunQuery, now: Micros) -> list[Run]:
        """Look at every run, then sort what matches."""
        self._check_open()

        def position(run: Run) -> tuple[int, int]:
            return (getattr(run, query.order), run.id)

        found = [run for run in self._rows.runs.values() if matches(run, query)]
        if query.after is not None and query.descending:
            found = [run for run in found if position(run) < query.after]
        elif query.after is not None:
            found = [run for run in found if position(run) > query.after]
        return sorted(found, key=position, reverse=query.descending)[: query.limit]

    async def count(self, query: RunQuery, now: Micros) -> int:
        """Look at every run."""
        self._check_open()
        return sum(matches(run, query) for run in self._rows.runs.values())

    async def history(self, run_id: int, after: int, limit: int, now: Micros) -> list[Transition]:
        """A slice: histories have no gaps."""
        self._check_open()
        return self._rows.history.get(run_id, [])[max(after, 0) :][:limit]

    async def due(
        self, after: tuple[Micros, int], until: tuple[Micros, int], limit: int, now: Micros
    ) -> list[Deadline]:
        """A slice of the sorted deadlines."""
        self._check_open()
        deadlines = self._rows.deadlines
        first = bisect_right(deadlines, after, key=_moment)
        last = bisect_right(deadlines, until, key=_moment)
        return deadlines[first : min(last, first + limit)]

    async def mail(self, run_ids: Collection[int] | None, limit: int, now: Micros) -> list[Mail]:
        """Look at every wait and every signal."""
        self._check_open()
        return self._rows.mailbox.mail(self._rows.runs, run_ids, limit, now)

    async def expire(self, limit: int, now: Micros) -> list[Signal]:
        """Look at every signal."""
        self._check_open()
        return self._rows.mailbox.expire(limit, now)

    async def claim(
        self,
        worker: int,
        *,
        lease: Micros,
        limit: int,
        known: Collection[tuple[str, str]],
        held: Collection[int] | None,
        now: Micros,
    ) -> Claim:
        """Take what nobody alive owns, lowest id first.

        A worker whose lease is over is registered again, and still has the runs that nobody took from it meanwhile.
        What it owns and does not hold is returned on top of ``limit``.
        """
        self._check_open()
        if not self._alive(worker, now):
            self._leases[worker] = now + lease
        runs: list[Run] = []
        taken = 0
        for run_id in sorted(self._rows.running):
            run = self._rows.runs[run_id]
            if run.owner == worker:
                if held is not None and run_id not in held:
                    runs.append(run)
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
        """Free the worker's runs and forget it. The fence rises: to lose an owner is a change of owner."""
        self._check_open()
        self._leases.pop(worker, None)
        for run_id in sorted(self._rows.running):
            run = self._rows.runs[run_id]
            if run.owner == worker:
                self._rows.replace(run, run._replace(owner=None, marked=0, fence=run.fence + 1))
                self._writes += 1

    async def hint(self, now: Micros) -> int:
        """How often a row was written, by whomever: those who share the object cannot be told apart."""
        self._check_open()
        return self._writes

    async def stats(self, now: Micros) -> Stats:
        """Count every run. ``bytes`` is None."""
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
        overdue = bisect_right(deadlines, now, key=attrgetter("at"))
        return Stats(
            runs={workflow: dict(counts) for workflow, counts in runs.items()},
            steps={workflow: dict(counts) for workflow, counts in steps.items()},
            waiting=dict(waiting),
            overdue=overdue,
            oldest_due=deadlines[0].at if overdue else None,
            mailbox=len(self._rows.mailbox),
            bytes=None,
        )

    # ---- judging a change: what becomes of it; what is written is noted, so that it can be undone

    def _judge(self, change: Change, now: Micros, done: list[Write]) -> Result:
        match change:
            case Start():
                return self._judge_start(change, done)
            case Post(signal):
                self._rows.check_storable(signal.run_id, signal)
                return self._rows.mailbox.post(signal, self._rows.runs.get(signal.run_id), now)
            case Move():
                return self._judge_move(change, now, done)
            case Mark(run_id=run_id, seq=seq, fence=fence):
                was = self._rows.runs.get(run_id)
                if was is None or (was.seq, was.fence) != (seq, fence):
                    return Result("stale", was)
                return self._write(Write(was, was._replace(marked=1), None), done)
            case Amend():
                return self._judge_amend(change, done)
            case _:
                assert_never(change)

    def _judge_start(self, change: Start, done: list[Write]) -> Result:
        run, transition = change.run, change.transition
        if run.id in self._rows.runs:
            return self._offered(run.id, transition)
        if run.key is not None and (ids := self._rows.keyed.get((run.workflow, run.key))):
            holders = [self._rows.runs[run_id] for run_id in ids]
            holder = max(holders, key=lambda run: (run.status in LIVE, run.created_at, run.id))
            if not _may_follow(holder, change.reuse):
                return Result("exists", holder)
        return self._write(Write(None, run, transition), done)

    def _judge_move(self, change: Move, now: Micros, done: list[Write]) -> Result:
        run, transition = change.run, change.transition
        mailbox = self._rows.mailbox
        offered = self._offered(run.id, transition)
        if offered.outcome == "applied":
            return offered._replace(also=tuple(self._offered_with_it(part) for part in change.also))
        was = offered.run
        if was is None or (was.seq, was.fence) != (change.seq, change.fence):
            return offered
        if change.unless_mail and any(
            was.wake_at is None or signal.sent_at <= was.wake_at for signal in mailbox.of(run.id, now)
        ):
            return Result("stale", was, mail=True)
        if change.takes and not mailbox.take(run.id, change.takes, now, rejects=transition.kind == "reject"):
            return Result("stale", was)
        result = self._write(Write(was, run, transition), done)
        return result._replace(also=tuple(self._judge(part, now, done) for part in change.also))

    def _judge_amend(self, change: Amend, done: list[Write]) -> Result:
        was = self._rows.runs.get(change.run_id)
        if was is None:
            return Result("stale")
        before = [row for row in self._rows.history[was.id] if row.commit_id == change.commit_id]
        if before:
            return Result("applied", was, before[0])
        decided = change.decide(was)
        if decided is None:
            return Result("stale", was)
        run, transition = decided
        return self._write(Write(was, run, transition), done)._replace(transition=transition)

    def _write(self, write: Write, done: list[Write]) -> Result:
        self._rows.write(write)
        done.append(write)
        return Result("applied", write.run)

    def _offered(self, run_id: int, transition: Transition) -> Result:
        """What became of an earlier offer of this: "stale" if there was none."""
        rows = self._rows.history.get(run_id, [])[transition.seq - 1 :][:1]
        again = any(row.commit_id == transition.commit_id for row in rows)
        return Result("applied" if again else "stale", self._rows.runs.get(run_id))

    def _offered_with_it(self, part: Start | Post) -> Result:
        if isinstance(part, Start):
            return self._offered(part.run.id, part.transition)
        return Result("applied" if self._rows.mailbox.has(part.signal) else "stale")

    def _told(self, change: Change, result: Result, now: Micros) -> Result:
        """The result, with what is known only when the whole batch is written."""
        if isinstance(change, Post) and result.outcome == "applied":
            return result._replace(run_ids=self._rows.mailbox.receivers(change.signal, now))
        if isinstance(change, Move) and result.outcome == "applied":
            also = zip(change.also, result.also, strict=True)
            mail = result.run is not None and bool(self._rows.mailbox.of(result.run.id, now))
            return result._replace(mail=mail, also=tuple(self._told(part, told, now) for part, told in also))
        return result

    # ---- conditions

    def _alive(self, worker: int | None, now: Micros) -> bool:
        return worker is not None and self._leases.get(worker, now) > now

    def _check_open(self) -> None:
        if not self._opens:
            raise StoreUnavailable(self._name, "it is not open", "Call 'await store.open(now)' first.")


def _taken(run: Run, worker: int) -> Run:
    """The run in the hands of a worker that found it without a living owner."""
    crashed = run.owner is not None and (run.crashes < SUSPECT_CRASHES or run.marked == 1)
    return run._replace(owner=worker, fence=run.fence + 1, crashes=run.crashes + crashed, marked=0)


def _may_follow(newest: Run, reuse: Reuse) -> bool:
    """Whether the key of this run, the newest that has it, may name another."""
    match reuse:
        case "never":
            return False
        case "ended":
            return WorkflowStatus(newest.status).ended
        case "failed":
            return newest.status == WorkflowStatus.FAILED
        case _:
            assert_never(reuse)


def _moment(deadline: Deadline) -> tuple[Micros, int]:
    return deadline.at, deadline.run_id
