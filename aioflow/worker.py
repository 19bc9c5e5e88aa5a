"""A worker: owns running runs, drives each through its steps, claims, renews, drains.

Memory follows the store. ``follow`` is told of every change that this process committed, and derives from the row alone
what memory must hold: an activation for a running run that this worker owns, a timer for a waiting one, nothing for one
that ended. So it does not matter which task committed the change, or whether that still runs.

The mutable state of ``Worker``: the activations by run id, those that wait for a slot or their turn, how far claims have
come, the number of slots promised to runs that are being committed and of tasks left behind, the seq of each run
committed since the last claim (``_heard``), when it began to work, whether the store is being asked (``_asking``),
whether more is to be looked for and unblocked (``_foreign``, ``_unblocking``), and the flags ``working``, ``draining``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import suppress

from pydantic import BaseModel

from aioflow import telemetry
from aioflow.activation import GRACE, Activation, Tools
from aioflow.claiming import Claiming
from aioflow.clock import SECOND, Clock, Micros
from aioflow.committer import Committer
from aioflow.delivery import Delivery
from aioflow.executor import Executor
from aioflow.lease import Lease
from aioflow.model import Run, WorkflowStatus
from aioflow.planner import Planner
from aioflow.registry import Registry
from aioflow.scheduler import Scheduler
from aioflow.slotqueue import SlotQueue
from aioflow.store import Claim, Store

RUNNING, WAITING = WorkflowStatus.RUNNING.value, WorkflowStatus.WAITING.value
_PAGE = 500


class Worker:
    """Executes runs; see the module's docstring. The arguments are those of Engine, and its parts."""

    def __init__(
        self, store: Store, clock: Clock, registry: Registry, committer: Committer, executor: Executor,
        commit_ids: Iterator[int], *, number: int, max_running: int, lease: Micros,
    ) -> None:  # fmt: skip
        self._store = store
        self._clock = clock
        self._registry = registry
        self._committer = committer
        self._commit_ids = commit_ids
        self._number = number
        self._max_running = max_running
        self._length = lease
        self._lease = Lease(store, clock, number, lease)
        self._activations: dict[int, Activation] = {}
        self._few = max(1, max_running // 8)
        self._claims = Claiming(self._few, lambda: self.room)
        self._waiting = SlotQueue(self._few)
        self._heard: dict[int, int] = {}
        self._promised = 0
        self._foreign = self._unblocking = False
        self._next_compare: Micros = 0
        self._since: Micros = 0
        self._left_behind = 0
        self._asking = True  # as it opens
        self._known_generation = -1
        self._idle = asyncio.Event()
        self._tools = Tools(clock, registry, committer, executor, commit_ids, self)
        self.scheduler: Scheduler
        self.planner: Planner
        self.delivery: Delivery
        self.working = self.draining = False

    # ---- slots

    @property
    def room(self) -> int:
        """How many more runs may be begun now."""
        if not self.working or self.draining:
            return 0
        queue = self._waiting
        taken = len(self._activations) - len(queue.calls) - len(queue.line) + self._promised + self._left_behind
        return self._max_running + queue.open_to - taken

    def may_begin(self) -> bool:
        """See activation.Home."""
        # After a pause of the process others may own its runs: ask the store before a step begins.
        if self._lease.shared and self._lease.is_over:
            self.notice()
            return False
        return not self.draining

    @property
    def running(self) -> int:
        """How many runs execute here."""
        return len(self._activations) - len(self._waiting)

    @property
    def held(self) -> Collection[int]:
        """The runs that execute here."""
        return self._activations.keys()

    def drives(self, run_id: int) -> bool:
        """See Slots."""
        return run_id in self._activations

    def promise(self, *, here: bool = False) -> int | None:
        """See Slots."""
        if self.room > 0 or (here and self.working and not self.draining):
            self._promised += 1
            return self._number
        self._claims.backlog = True
        return None

    def redeem(self, owner: int | None) -> None:
        """See Slots."""
        if owner is not None:
            self._promised -= 1
            self._made_room()
        elif self.room + self._promised > 0:  # all runs of a batch have begun before its first promise is redeemed
            self._claims.now.set()

    def _made_room(self) -> None:
        if not self._activations:
            self._idle.set()
        if self.draining:
            return
        self._waiting.advance()
        while self._waiting.activations and self._has_slot():
            self._waiting.take().begin()
        self._claims.made_room(idle=not self._activations)
        self.scheduler.made_room()

    def _has_slot(self) -> bool:
        return self.running + self._promised + self._left_behind < self._max_running

    # ---- memory follows the store

    def follow(self, run: Run, live: BaseModel | None = None) -> None:
        """A transition was committed; ``run`` is the row after it, ``live`` its Context, if that is in memory."""
        run_id, seq, status = run.id, run.seq, run.status
        activation = self._activations.get(run_id)
        if activation is not None and activation.leads_to == seq and status == RUNNING and run.owner == self._number:
            self._heard[run_id] = seq  # nearly always: it goes on from the transition that it has offered
            return
        if activation is not None and activation.run.seq > seq:  # the run was claimed after this commit, told late
            return
        self._heard[run_id] = seq
        gone_on = activation is not None and activation.leads_to < seq
        if activation is not None and (gone_on or status != RUNNING):
            self.ended(activation)
            if gone_on or status == WorkflowStatus.CANCELLED:
                activation.halt()
        if status == WAITING:
            self.scheduler.arm(run)
        elif status == RUNNING and run.owner != self._number:
            self._claims.left(run)
        elif status == RUNNING and activation is None and run.updated_at < self._since:
            self.notice()  # committed before this worker lost its lease: others may own the run, ask the store
        elif status == RUNNING and (activation is None or gone_on):
            self._begin(run, None if gone_on else live)

    def _begin(self, run: Run, live: BaseModel | None = None) -> None:
        if self.draining or not self.working:
            return
        # If so, until its own promise is redeemed, which comes next; or it was promised without room, or a reply was lost.
        waits = not self._has_slot()
        activation = self._activations[run.id] = Activation(run, self._tools, live)
        self._idle.clear()
        if activation.suspect and not self._waiting.ask_turn(activation):
            return
        if waits:
            self._waiting.add(activation)
        else:
            activation.begin()

    def ended(self, activation: Activation) -> None:
        """See activation.Home."""
        run_id = activation.run.id
        if self._activations.get(run_id) is activation:
            del self._activations[run_id]
            self._waiting.drop(run_id)
            self._made_room()

    def turn_over(self, activation: Activation) -> None:
        """See activation.Home."""
        self._waiting.turn_over(activation)
        self._claims.backlog = self._claims.backlog or len(self._waiting.line) < self._few  # others may be in the store
        self._made_room()

    def left_behind(self, task: asyncio.Task[None]) -> None:
        """See activation.Home."""
        self._left_behind += 1
        task.add_done_callback(self._came_back)

    def _came_back(self, _: asyncio.Task[None]) -> None:
        self._left_behind -= 1
        self._made_room()

    def adrift(self) -> None:
        """See activation.Home."""
        self._claims.now.set()

    # ---- claiming

    def notice(self) -> None:
        """See Slots. Others have written to the store: look at it at once."""
        self._foreign = True
        self._claims.now.set()

    async def run(self) -> None:
        """Claim what has no owner, look for what was missed, renew the lease; until cancelled."""
        self._foreign = True  # if a step cancelled the task before this one, what that was about to look for
        # Staggered, as workers may have been opened together; and short enough to renew a short lease in time.
        pause = min(SECOND + self._number % 8 * SECOND // 16, self._length // 6)
        while True:
            await self._clock.wait(self._claims.now, pause)
            self._claims.now.clear()
            self._asking, foreign = True, self._foreign
            try:
                if self.working and self._lease.is_due and not await self._lease.renew():
                    self._lose("its lease was over")
                await self.look()
                self._asking = False  # while it is True, ``watch`` checks the lease
            except Exception as error:  # noqa: BLE001 - no error may end the claiming
                telemetry.trouble("store cannot be queried for work, will try again", error)
                self._foreign = self._foreign or foreign  # what others wrote is still to be looked at
                self._check_lease()
                await self._clock.sleep(SECOND // 2)

    async def look(self) -> None:
        """Look at the store once, for runs to claim and all else that is to be done: that is all of recovery."""
        now = self._clock.micros()
        # Claims follow each other as room is made: compare what is held only once a second, or if others have written.
        foreign, self._foreign = self._foreign, False
        compare = foreign or self._clock.monotonic() >= self._next_compare
        if compare:
            self._next_compare = self._clock.monotonic() + SECOND
        held = dict(self._activations)
        self._heard.clear()
        self._claims.backlog = False
        limit = min(self._claims.share(starved=self.scheduler.starved), _PAGE)
        claim = await self._store.claim(
            self._number, lease=self._length, limit=limit, after=self._claims.after, known=self._registry.known(),
            held=list(held) if compare else None, now=now, suspects=len(self._waiting.line) < self._few,
        )  # fmt: skip
        began = claim.working and not self.working
        if began and not self._store.exclusive:
            # A claim does not extend a lease that still runs, and its reply may be late: a renewal tells when it ends.
            self._foreign = True
            if not await self._lease.renew() or self._lease.ends:
                return
        if self.working and not claim.working:
            self._lose("another process works the store")
        self.working = self.scheduler.working = self.planner.working = claim.working
        if not claim.working:
            return
        self._take_in(claim, held)
        self._claims.claimed(claim.runs, limit, now)
        if self._claims.backlog and self.room > 0:
            self._claims.now.set()
        if began:
            self._since = now
            telemetry.info("worker works", worker=self._number, store=self._store.name)
            self.scheduler.poke()
            self.planner.poke()
        learnt = self._known_generation != (generation := self._registry.generation)  # new code may take blocked runs
        if compare or learnt:
            # Waits that others have committed are not in the heap: look for those that are due in the next seconds.
            until = now + 2 * SECOND if foreign else now - SECOND
            await self.scheduler.scan(until)
            await self.planner.listen()
            await self.planner.scan(until)
            await self.delivery.look(scan=began or foreign or learnt or not self._store.exclusive)
        # Other workers may have blocked runs that this worker's code can take.
        if self._unblocking or began or learnt or (compare and not self._store.exclusive):
            self._unblocking = not await self.scheduler.unblock(anew=began or learnt)
            await self.planner.unblock()
            self._known_generation = generation
            if self._unblocking:
                self._claims.now.set()

    def _take_in(self, claim: Claim, held: dict[int, Activation]) -> None:
        for run in claim.runs:
            # What was committed here since the store was asked may be newer than its answer.
            if run.id not in self._activations and run.seq >= self._heard.get(run.id, 0):
                self._begin(run)
        for run_id in claim.gone:
            if self._activations.get(run_id) is held[run_id]:  # cancelled, or taken over by another worker
                self.ended(held[run_id])
                held[run_id].halt()

    async def watch(self) -> None:
        """Watch the event loop's lag, and the lease while a silent store holds up ``run``; until cancelled."""
        pause = self._length // 10
        while True:
            before = self._clock.monotonic()
            await self._clock.sleep(pause)
            lag = self._clock.monotonic() - before - pause
            if lag > self._length // 3:  # the task that renews the lease has not had its turn either
                telemetry.warn("event loop did not turn", worker=self._number, seconds=round(lag / SECOND, 1))
            elif self._asking:
                self._check_lease()

    def _check_lease(self) -> None:
        """Stop all steps if the lease could not be renewed, before other workers take the runs over."""
        if self.working and self._lease.ends:
            self._lose("its lease could not be renewed")

    def _lose(self, why: str) -> None:
        telemetry.fault("worker stops its runs", worker=self._number, why=why, runs=len(self._activations))
        self.working = self.scheduler.working = self.planner.working = False
        for activation in list(self._activations.values()):
            self.ended(activation)
            activation.halt()

    # ---- the end

    def halt(self, run_id: int) -> None:
        """Stop the run's step; the run stays as it is in the store."""
        if (activation := self._activations.get(run_id)) is not None:
            self.ended(activation)
            activation.halt()

    async def drain(self, patience: Micros) -> None:
        """Let running steps end and commit; stop those that take longer than ``patience``; give all runs back.

        The patience is real time, whatever the engine's clock.
        """
        self.draining = True
        self.scheduler.working = False
        await self.planner.stop(GRACE)
        for activation in self._waiting.all():  # they end at once, as no step may begin any more
            activation.begin()
        if self._activations:
            self._idle.clear()
            # If a step, or the end of the loop, cancels this task, go on: the rest has to be closed as well.
            with suppress(asyncio.CancelledError):
                await Clock().wait(self._idle, patience)
        for activation in list(self._activations.values()):
            activation.halt()
        self._tools.pool.close()
        if left := await self._tools.tasks.wait(GRACE + 0.5):
            telemetry.fault("steps do not stop, the engine ends without them", steps=left)
        self._tools.executor.close()

    async def release(self) -> None:
        """Give the remaining runs back, without adding a crash."""
        await self._store.release(self._number, self._clock.micros())
