"""A worker: owns running runs, drives each through its steps, claims, renews, drains.

Memory follows the store. ``follow`` hears of every change that was committed here, and from the row alone decides
what must be: a task for a running run that this worker owns, a timer for a waiting one, nothing for one that ended.
So it does not matter who committed it, or whether that somebody still lives.

One task serves one *activation*: from the moment a run begins to run here until it parks or ends.

The mutable state of ``Worker``: the activations by run id, slots promised to runs that are being committed, tasks
that were left behind, and the flags ``working`` and ``draining``.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Iterator

from pydantic import BaseModel, ValidationError

from aioflow import telemetry
from aioflow.clock import SECOND, Clock, Micros
from aioflow.codec import explain
from aioflow.committer import Committer
from aioflow.definition import Registry, WorkflowDefinition
from aioflow.errors import ContextNotStorable, StoreError, StoreRefused
from aioflow.executor import Executor, Ran, StopFlag, Stopped
from aioflow.model import SUSPECT_CRASHES, Run, WorkflowStatus
from aioflow.scheduler import Scheduler
from aioflow.store import Change, Mark, Result, RunQuery, Store
from aioflow.tasks import TaskSet
from aioflow.transitions import Raised, block, decide, poison, unblock

RUNNING, WAITING = str(WorkflowStatus.RUNNING), str(WorkflowStatus.WAITING)
#: How long a step that was cancelled may take to stop, before it is left behind.
_GRACE = 1.0
_PAGE = 500


class Activation(StopFlag):
    """A run that runs here. The mutable state: the row as last committed, and the task that drives it."""

    __slots__ = ("alone", "live", "run", "task")

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        self.live: BaseModel | None = None
        self.task: asyncio.Task[None] | None = None
        self.alone = False


class Worker:
    """Executes runs. See the module's text; the arguments are those of Engine, and its parts."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        registry: Registry,
        committer: Committer,
        executor: Executor,
        commit_ids: Iterator[int],
        *,
        number: int,
        max_running: int,
        lease: Micros,
    ) -> None:
        self._store = store
        self._clock = clock
        self._registry = registry
        self._committer = committer
        self._executor = executor
        self._commit_ids = commit_ids
        self._number = number
        self._max_running = max_running
        self._lease = lease
        self._activations: dict[int, Activation] = {}
        self._promised = 0
        self._backlog = False
        self._foreign = False
        self._renewed: Micros = 0
        self._left_behind = 0
        self._known_generation = -1
        self._alone = asyncio.Lock()
        self._claim_now = asyncio.Event()
        self._idle = asyncio.Event()
        self._tasks = TaskSet()
        self._context = contextvars.copy_context()
        self.scheduler: Scheduler
        self.working = False
        self.draining = False

    # ---- slots

    @property
    def room(self) -> int:
        """How many more runs may be begun now."""
        if not self.working or self.draining:
            return 0
        return self._max_running - len(self._activations) - self._promised - self._left_behind

    @property
    def running(self) -> int:
        """How many runs execute here."""
        return len(self._activations)

    def promise(self) -> int | None:
        """See scheduler.Slots."""
        if self.room > 0:
            self._promised += 1
            return self._number
        self._backlog = True
        return None

    def redeem(self, owner: int | None) -> None:
        """See scheduler.Slots."""
        if owner is not None:
            self._promised -= 1
            self._made_room()
        elif self.room > 0:
            self._claim_now.set()

    def _made_room(self) -> None:
        if not self._activations:
            self._idle.set()
        if self.draining:
            return
        # In batches: each claim is a transaction.
        if self._backlog and (self.room >= max(1, self._max_running // 8) or not self._activations):
            self._claim_now.set()
        self.scheduler.poke()

    # ---- memory follows the store

    def follow(self, change: Change, result: Result) -> None:
        """A change was committed."""
        run = result.run
        if run is None or isinstance(change, Mark):
            return
        activation = self._activations.get(run.id)
        if run.status == RUNNING:
            if run.owner != self._number:
                self._backlog = self._backlog or run.owner is None
            elif activation is None:
                self._begin(run)
            return
        if activation is not None:
            self._end(activation)
            if run.status == WorkflowStatus.CANCELLED:
                self._stop(activation)
        if run.status == WAITING:
            self.scheduler.arm(run)

    def _begin(self, run: Run) -> None:
        if self.draining:
            return
        activation = Activation(run)
        self._activations[run.id] = activation
        self._idle.clear()
        self._drive(activation, None)

    def _end(self, activation: Activation) -> None:
        if self._activations.get(activation.run.id) is activation:
            del self._activations[activation.run.id]
            self._made_room()

    def _drive(self, activation: Activation, ran: Ran | None) -> None:
        # A copy of the worker's own contextvars: what a step leaves behind, no other run can see.
        activation.task = self._tasks.spawn(self._activate(activation, ran), context=self._context.copy())

    def _stop(self, activation: Activation) -> None:
        activation.stop = True
        task = activation.task
        if task is not None and not task.done():
            task.cancel()
            asyncio.get_running_loop().call_later(_GRACE, self._leave_behind, activation, task, None)

    def _leave_behind(self, activation: Activation, task: asyncio.Task[None], ran: Ran | None) -> None:
        """A step does not stop: its slot is written off until it does."""
        if task.done() or activation.task is not task:
            return
        telemetry.fault(
            "step does not stop, its slot is written off",
            run_id=activation.run.id,
            workflow=activation.run.workflow,
            step=activation.run.step,
        )
        self._tasks.leave(task)
        self._left_behind += 1
        task.add_done_callback(self._came_back)
        activation.task = None
        if ran is not None:
            self._drive(activation, ran)
        else:
            self._not_alone(activation)
            self._end(activation)

    def _came_back(self, _: asyncio.Task[None]) -> None:
        self._left_behind -= 1
        self._made_room()

    # ---- one activation

    async def _activate(self, activation: Activation, ran: Ran | None) -> None:
        """Drive a run until it parks, ends, or is not this worker's any more. ``ran``: a step that ended elsewhere."""
        task = asyncio.current_task()
        assert task is not None
        try:
            while not self.draining or ran is not None:
                definition = self._registry.get(activation.run.workflow, activation.run.version)
                if ran is None:
                    if (definition := await self._prepare(activation, definition)) is None:
                        return
                    ran = await self._step(activation, definition)
                    if activation.task is not task:
                        return  # left behind: somebody else has gone on
                    if task.cancelling():
                        # Whoever cancelled this task is not to be trusted to have done so once: go on in a clean one.
                        self._drive(activation, ran)
                        return
                assert definition is not None
                run = await self._commit(activation, definition, ran)
                self._not_alone(activation)
                if run is None or run.status != RUNNING:
                    return
                activation.run, activation.live, ran = run, ran.live, None
        except Stopped:
            pass
        except asyncio.CancelledError:
            if not activation.stop:
                self._claim_now.set()  # not the engine's doing: the run is taken up again by the next claim
        except StoreError as error:
            telemetry.warn("run left as it is", run_id=activation.run.id, error=str(error))
        finally:
            if activation.task is task:
                self._not_alone(activation)
                self._end(activation)

    async def _prepare(
        self, activation: Activation, definition: WorkflowDefinition | None
    ) -> WorkflowDefinition | None:
        """Whether the code can take the run; if not it is parked, with the reason."""
        run = activation.run
        if (move := poison(run, now=self._clock.micros(), commit_id=next(self._commit_ids))) is not None:
            await self._committer.commit(move)
            return None
        read = _read(run, definition) if activation.live is None else activation.live
        if definition is not None and run.step not in definition.steps:  # a class was redefined meanwhile
            read = _no_step(run, definition)
        if not isinstance(read, str):
            activation.live = read
            return definition
        move = block(run, read, now=self._clock.micros(), commit_id=next(self._commit_ids))
        await self._committer.commit(move)
        return None

    async def _step(self, activation: Activation, definition: WorkflowDefinition) -> Ran:
        run, live = activation.run, activation.live
        assert live is not None
        if run.crashes < SUSPECT_CRASHES:
            return await self._timed(activation, definition, live)
        # A suspect runs alone until its transition is committed: if the process dies meanwhile, it was this run.
        await self._alone.acquire()
        activation.alone = True
        await self._committer.commit(Mark(run.id, run.seq, run.fence))
        return await self._timed(activation, definition, live)

    def _not_alone(self, activation: Activation) -> None:
        if activation.alone:
            activation.alone = False
            self._alone.release()

    async def _timed(self, activation: Activation, definition: WorkflowDefinition, live: BaseModel) -> Ran:
        limit = definition.steps[activation.run.step].options.timeout
        if limit is None:
            return await self._executor.run(activation.run, definition, live, activation)
        activation.timed_out = False
        loop = asyncio.get_running_loop()
        alarm = loop.call_later(limit / SECOND, self._time_out, activation, limit)
        try:
            return await self._executor.run(activation.run, definition, live, activation)
        finally:
            alarm.cancel()

    def _time_out(self, activation: Activation, limit: Micros) -> None:
        task = activation.task
        if task is None or task.done() or activation.stop:
            return
        activation.timed_out = True
        task.cancel()
        run = activation.run
        late = Ran(Raised(self._executor.too_late(run, limit)), None, limit)
        asyncio.get_running_loop().call_later(_GRACE, self._leave_if_same, activation, task, run.seq, late)

    def _leave_if_same(self, activation: Activation, task: asyncio.Task[None], seq: int, late: Ran) -> None:
        if activation.run.seq == seq and activation.timed_out:
            self._leave_behind(activation, task, late)

    async def _commit(self, activation: Activation, definition: WorkflowDefinition, ran: Ran) -> Run | None:
        """Commit the step's transition: the row after it, or None if the run is not this worker's any more."""
        run = activation.run
        now = self._clock.micros()
        move = decide(run, definition, ran.outcome, duration=ran.duration, now=now, commit_id=next(self._commit_ids))
        try:
            result = await self._committer.commit(move)
        except StoreRefused as refused:
            error = ContextNotStorable(run.id, run.workflow, run.step, str(refused))
            error.__cause__ = refused
            move = decide(
                run, definition, Raised(error), duration=ran.duration, now=now, commit_id=next(self._commit_ids)
            )
            result = await self._committer.commit(move)
        if result.outcome == "applied" and result.run is not None and result.run.seq == move.run.seq:
            return result.run
        telemetry.info("transition refused, the run was cancelled or taken over", run_id=run.id, seq=move.run.seq)
        return None

    # ---- claiming

    def notice(self) -> None:
        """Somebody else has written to the store."""
        self._foreign = True
        self._claim_now.set()

    async def run(self) -> None:
        """Claim what has no owner, look for what was missed, renew the lease; until cancelled."""
        next_renewal = self._clock.monotonic() + self._lease // 3
        while True:
            await self._clock.wait(self._claim_now, SECOND)
            self._claim_now.clear()
            try:
                if self._clock.monotonic() >= next_renewal:
                    next_renewal = self._clock.monotonic() + self._lease // 3
                    await self._renew()
                await self.look()
            except StoreError as error:
                telemetry.warn("store does not answer, will try again", error=str(error))
                self._check_lease()
                await self._clock.sleep(SECOND // 2)

    async def look(self) -> None:
        """One look at the store: that is all of recovery."""
        now = self._clock.micros()
        foreign, self._foreign = self._foreign, False
        self._backlog = False
        limit = min(self.room, _PAGE)
        claim = await self._store.claim(
            self._number,
            lease=self._lease,
            limit=limit,
            known=self._registry.known(),
            held=self._activations.keys(),
            now=now,
        )
        began = claim.working and not self.working
        self.working = self.scheduler.working = claim.working
        if not claim.working:
            return
        for run in claim.runs:
            if run.id not in self._activations:
                self._begin(run)
        self._backlog = self._backlog or began or len(claim.runs) >= limit
        if self._backlog and self.room > 0:
            self._claim_now.set()
        if began:
            telemetry.info("worker works", worker=self._number, store=self._store.name)
            self._renewed = self._clock.monotonic()
            self.scheduler.poke()
        # Somebody else's waits are not in the heap: those of the next seconds are looked for.
        await self.scheduler.scan(now + 2 * SECOND if foreign else now - SECOND)
        if began or self._known_generation != self._registry.generation:
            self._known_generation = self._registry.generation
            await self._unblock()

    async def _unblock(self) -> None:
        """Let blocked runs go on that the code can take now."""
        after = None
        while True:
            query = RunQuery(waiting_for=("blocked",), order="id", descending=False, limit=_PAGE, after=after)
            runs = await self._store.select(query, self._clock.micros())
            for run in runs:
                definition = self._registry.get(run.workflow, run.version)
                if isinstance(_read(run, definition), str):
                    continue
                owner = self.promise()
                try:
                    await self._committer.commit(
                        unblock(run, owner=owner, now=self._clock.micros(), commit_id=next(self._commit_ids))
                    )
                finally:
                    self.redeem(owner)
            if len(runs) < _PAGE:
                return
            after = (runs[-1].id, runs[-1].id)

    async def _renew(self) -> None:
        if not self.working:
            return
        started = self._clock.monotonic()
        if await self._store.renew(self._number, self._lease, self._clock.micros()):
            self._renewed = started
        else:
            self._lose("its lease was over")

    def _check_lease(self) -> None:
        """Stop before others take over: what could not be renewed may soon be theirs."""
        late = self._clock.monotonic() - self._renewed > self._lease * 2 // 3
        if self.working and not self._store.exclusive and late:
            self._lose("its lease could not be renewed")

    def _lose(self, why: str) -> None:
        telemetry.fault("worker stops its runs", worker=self._number, why=why, runs=len(self._activations))
        self.working = self.scheduler.working = False
        for activation in list(self._activations.values()):
            self._end(activation)
            self._stop(activation)

    # ---- the end

    async def drain(self, patience: Micros) -> None:
        """Let the steps that run end and commit; stop those that take longer than ``patience``; give all runs back."""
        self.draining = True
        self.scheduler.working = False
        if self._activations:
            self._idle.clear()
            await self._clock.wait(self._idle, patience)
        for activation in list(self._activations.values()):
            self._stop(activation)
        if left := await self._tasks.wait(_GRACE + 0.5):
            telemetry.fault("steps do not stop, the engine ends without them", steps=left)

    async def release(self) -> None:
        """Give back what is left, uncounted."""
        await self._store.release(self._number, self._clock.micros())


def _read(run: Run, definition: WorkflowDefinition | None) -> BaseModel | str:
    """The run's Context, or why the code cannot take the run."""
    if definition is None:
        return (
            f"This process knows no workflow {run.workflow!r} version {run.version!r}. "
            "Import or restore its code: the run goes on by itself."
        )
    if run.step not in definition.steps:
        return _no_step(run, definition)
    try:
        return definition.codec.decode(run.data)
    except ValidationError as error:
        return (
            f"The Context of workflow {run.workflow!r} does not accept what run {run.id} has stored: "
            f"{explain(error)}. Give new fields a default: the run goes on by itself."
        )


def _no_step(run: Run, definition: WorkflowDefinition) -> str:
    return (
        f"Workflow {run.workflow!r} has no step {run.step!r} any more (steps: {', '.join(definition.steps)}). "
        "Restore the step: the run goes on by itself."
    )
