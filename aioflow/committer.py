"""Group commit: all changes that are waiting are committed as one transaction.

The committer has tasks of its own. A caller that waits for a commit cannot cancel it; if the caller is cancelled, it
only stops listening. There is no delay: an idle engine commits at once, a busy one finds more changes waiting each
time.

An error from the store means that the outcome is *unknown*. The same changes, with the same ids, are offered again
until the store answers; it recognises what it has already applied. A batch that the store refuses because of its data
is halved until the change that cannot be stored stands alone.

A store that takes several batches at once gets them in lanes, one batch each. A batch begins when no batch in a lane
shares one of its keys and no earlier batch is still waiting: of changes that must not share a batch, the store has one
at a time.

The mutable state of ``Committer``: ``_batches`` (what is waiting, in order), ``_open`` (the last of them, if it takes
more changes), ``_lanes`` (what the store has now), and how far it is with stopping.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from operator import attrgetter, itemgetter

from aioflow import telemetry
from aioflow.batches import Batch, Lane, Pending, addresses_of, is_impatient, keys_of, tell
from aioflow.changes import Change, Move, Result, Start, size_of
from aioflow.clock import SECOND, Clock, Micros
from aioflow.errors import InternalError, StoreError, StoreRefused, StoreUnavailable
from aioflow.slots import Promises
from aioflow.store import Store
from aioflow.tasks import TaskSet, is_assaulted

_FIRST_BACKOFF: Micros = 20_000
_LONGEST_BACKOFF: Micros = 2 * SECOND
_WATCH: Micros = SECOND // 4
_LAST_WAIT: Micros = SECOND
#: Characters of data after which a batch is full: a transaction of a thousand Contexts of 1 MiB would take seconds, in
#: which nothing else is committed, and gigabytes of memory.
MOST_DATA = 8_000_000
_OUTCOME = itemgetter(Result._fields.index("outcome"))


class _Caller:
    """A Pending that resolves the future of a caller who awaits the outcome."""

    __slots__ = ("_owner", "_slots", "answered", "change", "future", "run_id", "until")
    answered: bool
    change: Change
    run_id: int
    until: Micros | None

    def __init__(self, future: asyncio.Future[Result], slots: Promises | None, owner: int | None) -> None:
        self.future = future
        self._slots = slots
        self._owner = owner

    @property
    def listens(self) -> bool:
        """See Pending."""
        return not self.future.done()

    def told(self, outcome: Result | Exception) -> None:
        """See Pending."""
        if self._slots is not None:
            self._slots.redeem(self._owner)
        future = self.future
        if future.done():
            return
        if isinstance(outcome, Result):
            future.set_result(outcome)
        else:
            # If the caller has left, asyncio must not log it as never retrieved: the promise is redeemed already.
            future.set_exception(outcome)
            future.exception()


class Committer:
    """Commits changes in groups.

    Args:
        store: commits them.
        clock: tells the time.
        on_commit: gets the applied changes of a batch, in order, before their callers do: what memory holds follows
            from what was committed, whether or not a caller still listens. If it raises for one change, it is called
            again with those after it.
        max_batch: how many changes one transaction takes.
        in_flight: how many batches the store is given at once.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        on_commit: Callable[[Iterable[tuple[Change, Result]]], None],
        max_batch: int = 1000,
        in_flight: int = 1,
    ) -> None:
        self._store = store
        self._clock = clock
        self._on_commit = on_commit
        self._max_batch = max_batch
        self._batches: deque[Batch] = deque()
        self._open: Batch | None = None
        self._wake = asyncio.Event()
        self._stopping = False
        self._given_up = False
        self.ended = False
        self._lanes = [Lane() for _ in range(in_flight)]
        self._watching = False
        self._tasks = TaskSet()
        self._done: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop

    @property
    def idle(self) -> bool:
        """Whether no change is waiting to be committed, or being committed."""
        return not self._batches and not any(lane.parts for lane in self._lanes)

    def start(self) -> None:
        """Begin to commit, in one task for each batch that the store takes at once."""
        self._loop = asyncio.get_running_loop()
        self._done = self._loop.create_future()
        for lane in self._lanes:
            self._tasks.keep(partial(self._run, lane), name="aioflow committer")

    async def stop(self, patience: Micros) -> None:
        """Commit what is waiting, then end. Changes that the store has not taken within ``patience`` are given up."""
        self._stopping = True
        self._wake.set()
        if self._done is None:
            return
        done, _ = await asyncio.wait({self._done}, timeout=patience / SECOND)
        if not done:
            self._given_up = self.ended = True
            self._tell(StoreUnavailable(self._store.name, "it has not answered by the end of the engine"))
            # A store that does not answer at all is not waited for any longer.
            await asyncio.wait({self._done}, timeout=_LAST_WAIT / SECOND)

    def submit(
        self, change: Change, patience: Micros | None = None, slots: Promises | None = None, owner: int | None = None
    ) -> asyncio.Future[Result]:
        """Queue a change.

        Args:
            change: what to commit.
            patience: microseconds after which a store that does not answer makes the future fail; None: never.
            slots: redeem what they promised when the outcome is decided, or the change given up, whether or not the
                caller still waits; None if nothing was promised.
            owner: what ``slots.promise`` gave.

        Returns:
            A future of the result. It fails with StoreRefused if the change can never be stored, and with
            StoreUnavailable if patience or the engine ended while the outcome was unknown.
        """
        future: asyncio.Future[Result] = asyncio.Future(loop=self._loop)
        self.offer(change, _Caller(future, slots, owner), patience)
        return future

    def offer(self, change: Change, pending: Pending, patience: Micros | None = None) -> None:
        """Queue a change, as ``submit`` does, for one that is called instead of awaiting a future.

        Args:
            change: what to commit.
            pending: told of the result or the error, after ``on_commit``.
            patience: see ``submit``.
        """
        pending.change, pending.until, pending.answered = change, None, False
        if self.ended:
            tell(pending, StoreUnavailable(self._store.name, "the engine has stopped"))
            return
        # Into the last batch, or into a new one if they share a key: so changes of one run keep their order.
        batch = self._open
        if (type(change) is Move and not change.also) or (
            type(change) is Start and change.run.key is None and not change.plan
        ):
            run = change.run
            run_id, size = run.id, len(run.data) if run.input is None else size_of(change)
            if batch is None or run_id in batch.keys:
                batch = self._next_batch()
            batch.keys.add(run_id)
        else:
            (run_id, keys), size = keys_of(change), size_of(change)
            if batch is None or not batch.keys.isdisjoint(keys):
                batch = self._next_batch()
            batch.keys.update(keys)
            batch.addresses.update(addresses_of(change))
        batch.size += size
        pending.run_id = run_id
        if patience is not None:
            pending.until = self._clock.monotonic() + patience
            if not self._watching:
                self._watching = True
                self._loop.call_later(_WATCH / SECOND, self._watch)
        batch.pending.append(pending)
        if len(batch.pending) >= self._max_batch or batch.size >= MOST_DATA:
            self._open = None

    def _next_batch(self) -> Batch:
        batch = self._open = Batch()
        self._batches.append(batch)
        self._wake.set()  # for idle lanes: a busy one looks for the next batch by itself
        return batch

    async def commit(self, change: Change, patience: Micros | None = None) -> Result:
        """Queue a change and wait for its result. See ``submit``."""
        return await self.submit(change, patience)

    async def _run(self, lane: Lane) -> None:
        """Commit until ``stop``. If a step cancels this task, a new one goes on with the batch that the store had."""
        try:
            while True:
                while lane.parts or self._fill(lane):
                    await self._offer(lane)
                # A batch that still waits, for keys that another lane has, will be taken by that lane.
                if self._stopping:
                    break
                self._wake.clear()
                await self._wake.wait()
        except asyncio.CancelledError:
            if is_assaulted(asyncio.current_task()):
                raise
            self._end()  # the event loop itself is being closed: no caller may wait for ever
            raise
        lane.ended = True
        if all(lane.ended for lane in self._lanes):
            self._end()

    def _fill(self, lane: Lane) -> bool:
        """Give the lane, whose batch is done, the next one, if there is one and no other lane bars it."""
        lane.keys, lane.addresses = set(), set()
        if not self._batches:
            return False
        batch = self._batches[0]
        if any(other.bars(batch) for other in self._lanes):
            return False
        del self._batches[0]
        if batch is self._open:
            self._open = None
        if self._batches:
            self._wake.set()  # an idle lane may have been waiting because this batch was barred
        # By run id, so that all writers take their locks in the same order.
        lane.parts = [sorted(batch.pending, key=attrgetter("run_id"))]
        lane.keys, lane.addresses = batch.keys, batch.addresses
        return True

    def _end(self) -> None:
        self.ended = self._given_up = True
        self._tell(StoreUnavailable(self._store.name, "the engine has ended, the outcome is not known"))
        assert self._done is not None
        if not self._done.done():
            self._done.set_result(None)

    async def _offer(self, lane: Lane) -> None:
        """Commit the lane's first part as one, trying until the store answers or all were given up.

        It leaves the lane before it is told the outcome: who is told may offer the next change, with the same Pending.
        """
        backoff = _FIRST_BACKOFF
        failing = False
        while pending := [p for p in lane.parts[0] if not p.answered]:
            try:
                changes = [p.change for p in pending]
                results = await self._store.apply(changes, self._clock.micros())
                if len(results) != len(pending):
                    raise InternalError(f"The store gave {len(results)} results for {len(pending)} changes.")
            except StoreRefused as error:
                del lane.parts[0]
                if len(pending) == 1:
                    tell(pending[0], error)
                else:
                    middle = len(pending) // 2
                    lane.parts[:0] = [pending[:middle], pending[middle:]]
                return
            except StoreError as error:
                if not failing:
                    failing = True
                    telemetry.warn("commit failed, will offer it again", changes=len(pending), error=str(error))
                self._tell(error)
                await self._clock.sleep(backoff)
                backoff = min(2 * backoff, _LONGEST_BACKOFF)
            except Exception as error:  # noqa: BLE001 - a store that breaks its contract must not end the committer
                telemetry.fault("store broke its contract", exception=telemetry.plain_traceback(error))
                bug = InternalError(f"The store raised {type(error).__name__}.")
                broken = error if isinstance(error, InternalError) else bug
                del lane.parts[0]
                for p in pending:
                    tell(p, broken)
                return
            else:
                if failing:
                    telemetry.warn("commit works again", changes=len(pending))
                del lane.parts[0]
                self._settle(pending, changes, results)
                return
        del lane.parts[0]

    def _settle(self, pending: list[Pending], changes: list[Change], results: list[Result]) -> None:
        # Nearly always all of them: then nothing is made anew for each.
        applied: Iterator[tuple[Change, Result]] = zip(changes, results, strict=True)
        if set(map(_OUTCOME, results)) != {"applied"}:
            applied = (pair for pair in applied if pair[1].outcome == "applied")
        for first in applied:
            try:
                self._on_commit(chain((first,), applied))
            except Exception as error:  # noqa: BLE001 - the change is committed, its caller must be told so
                trace = telemetry.plain_traceback(error)
                telemetry.fault("a bug in aioflow: following a commit failed", exception=trace)
        problem: BaseException | None = None
        for p, result in zip(pending, results, strict=True):
            if not p.answered:
                p.answered = True
                try:
                    p.told(result)
                except BaseException as error:  # noqa: BLE001 - raised below, when all were told
                    problem = error
        if problem is not None:
            raise problem

    def _tell(self, error: StoreError) -> None:
        """Give up the changes whose patience is over, or all of them if the engine has given up."""
        now = self._clock.monotonic()
        for p in self._waiting():
            if self._given_up or (p.until is not None and now >= p.until and is_impatient(p)):
                tell(p, error)

    def _waiting(self) -> chain[Pending]:
        parts = chain.from_iterable(lane.parts for lane in self._lanes)
        return chain(*parts, *(batch.pending for batch in self._batches))

    def _watch(self) -> None:
        """Give up changes whose patience is over: while the store does not answer, the lanes cannot do it."""
        self._tell(StoreUnavailable(self._store.name, "it does not answer"))
        self._watching = any(map(is_impatient, self._waiting()))
        if self._watching:
            self._loop.call_later(_WATCH / SECOND, self._watch)
