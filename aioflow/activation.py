"""An activation: drives one run in this process, from when it begins to run until it parks, ends or changes owner.

Between steps it has no task: when a step's transition is committed, it queues up in the worker's pool, and a task of
the pool runs its next step. A step that does not stop is abandoned together with its task; the run does not wait for
it.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Iterator
from typing import Protocol

from pydantic import BaseModel

from aioflow import telemetry
from aioflow.changes import Change, Emit, Mark, Move, Post, Result, Start
from aioflow.clock import SECOND, Clock, Micros
from aioflow.commands import Fail
from aioflow.committer import Committer
from aioflow.definition import WorkflowDefinition
from aioflow.errors import ContextNotStorable, InternalError, StoreError, StoreRefused
from aioflow.executor import Executor, Ran, Stopped, Watch
from aioflow.interventions import block, overrun, park, poison, uncalled
from aioflow.model import POISON_CRASHES, SUSPECT_CRASHES, Run, Transition, WorkflowStatus
from aioflow.pool import Pool, interrupt
from aioflow.reading import read_context
from aioflow.registry import Registry
from aioflow.slots import Slots
from aioflow.tasks import TaskSet
from aioflow.transitions import Outcome, Raised, Stepped, decide

#: Seconds that a cancelled step may take to stop before it is abandoned.
GRACE = 1.0
RUNNING = WorkflowStatus.RUNNING.value


class Home(Slots, Protocol):
    """What an activation asks and tells its worker."""

    def may_begin(self) -> bool:
        """Whether another step may begin now; if not, its run is claimed again, or given back."""
        ...

    def ended(self, activation: Activation) -> None:
        """The activation no longer drives its run."""
        ...

    def turn_over(self, activation: Activation) -> None:
        """Another suspect may run: this one is none any more, or has ended."""
        ...

    def left_behind(self, task: asyncio.Task[None]) -> None:
        """A step does not stop: its slot stays occupied until this task ends."""
        ...

    def adrift(self) -> None:
        """A run may have status running although no activation drives it."""
        ...


class Tools:
    """What the activations of a worker share."""

    def __init__(
        self,
        clock: Clock,
        registry: Registry,
        committer: Committer,
        executor: Executor,
        commit_ids: Iterator[int],
        home: Home,
    ) -> None:
        self.clock = clock
        self.registry = registry
        self.committer = committer
        self.executor = executor
        self.commit_ids = commit_ids
        self.home = home
        self.tasks = TaskSet()
        # Its tasks start with copies of the worker's contextvars: no step sees what another one has set.
        self.pool = Pool(self.tasks, contextvars.copy_context(), lambda: committer.ended)


class Activation(Watch):
    """Drives one run.

    The mutable state: ``run`` (the row as last committed), ``leads_to`` (the seq of the row that it has offered to the
    committer, else of ``run``), the Context, the workflow definition and the registry generation it is from, the task
    that runs the step, the timer of a step with a timeout, the move that is being committed (with the owners promised
    to the runs that it starts, and whether the step raised), or was last, and whether it is a suspect, see SlotQueue.

    A committed row with a seq above ``leads_to`` is not from this activation: the run was begun again while the outcome
    of an earlier activation's transition was still unknown.
    """

    __slots__ = (
        "_alarm", "_definition", "_generation", "_had_raised", "_live", "_owners", "_task", "_tools", "answered",
        "change", "leads_to", "run", "run_id", "suspect", "until",
    )  # fmt: skip
    answered: bool  # this and what follows is that of a Pending, see batches.py
    change: Change
    run_id: int
    until: Micros | None
    listens = True

    def __init__(self, run: Run, tools: Tools, live: BaseModel | None = None) -> None:
        super().__init__()
        self.run = run
        self.leads_to = run.seq
        self._tools = tools
        self._live = live
        self._definition: WorkflowDefinition | None = None
        self._generation = -1
        self._task: asyncio.Task[None] | None = None
        self._owners: list[int | None] | None = None
        self._had_raised = False
        self.suspect = SUSPECT_CRASHES <= run.crashes < POISON_CRASHES  # from there on it fails, and does not run
        self._alarm: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Queue the run's next step in the pool."""
        self._tools.pool.put(self)

    def halt(self) -> None:
        """Stop the step that runs; the run stays as it is in the store."""
        self.stop = True
        task = self._task
        if task is not None and not task.done():
            interrupt(task)
            asyncio.get_running_loop().call_later(GRACE, self._leave, task, None)

    def _leave(self, task: asyncio.Task[None], ran: Ran | None) -> None:
        """If the task still runs ``GRACE`` seconds after it was cancelled, abandon it; commit ``ran`` if given."""
        if task.done() or self._task is not task:
            return
        tools, run = self._tools, self.run
        telemetry.fault(
            "step does not stop, its slot is written off", run_id=run.id, workflow=run.workflow, step=run.step
        )
        tools.pool.leave(task)
        tools.home.left_behind(task)
        self._task = self.current = None
        if ran is not None:
            self._commit(ran)
        else:
            self._end()

    def _end(self) -> None:
        if self.suspect:
            self._cleared()
        self._tools.home.ended(self)

    async def advance(self, task: asyncio.Task[None]) -> bool:
        """See pool.Job."""
        tools = self._tools
        self._task = task
        self.clean = True
        ran: Ran | None = None
        try:
            if (not self.stop and tools.home.may_begin()) and (
                (self._live is not None and self._generation == tools.registry.generation)
                or (await self._prepare() and self.may_begin())
            ):
                assert self._live is not None
                assert self._definition is not None
                self.timed_out = False
                ran = await tools.executor.run(self.run, self._definition, self._live, self)
        except Stopped:
            pass
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - no error may make the run vanish
            self._adrift(error)
        if self._task is not task:
            return False  # it was abandoned, and the run has gone on without it
        self._task = None
        if ran is not None:
            self._commit(ran)
        else:
            self._end()
        return self.clean

    def _adrift(self, error: BaseException) -> None:
        """This activation cannot go on with the run, whose status stays running: the worker has to claim it again."""
        run_id = self.run.id
        if isinstance(error, asyncio.CancelledError):
            if self.stop:
                return
            telemetry.warn("run left as it is", run_id=run_id, error="its task was cancelled, not by the engine")
        elif isinstance(error, StoreError | InternalError):
            telemetry.warn("run left as it is", run_id=run_id, error=str(error))
        else:
            trace = telemetry.plain_traceback(error)
            telemetry.fault("a bug in aioflow: run left as it is", run_id=run_id, exception=trace)
        self._tools.home.adrift()

    async def _prepare(self) -> bool:
        """Whether the step can run: there is code that can take the run. If not, the run is parked, or ends."""
        tools, run = self._tools, self.run
        if run.crashes and (move := poison(run, now=tools.clock.micros(), commit_id=next(tools.commit_ids))):
            await self._submit(move)
            return False
        # If that stays, the next step, which this definition names, needs no preparation: unless a deadline may be over.
        self._generation = tools.registry.generation if run.deadline is None else -1
        definition = self._definition = tools.registry.get(run.workflow, run.version)
        if definition is not None and run.deadline is not None:
            now, commit_id = tools.clock.micros(), next(tools.commit_ids)
            if move := overrun(run, definition, now=now, commit_id=commit_id):
                return await self._prepare_late(move)
        # In a copy of the contextvars, which ends with what a validator sets in it.
        read = contextvars.copy_context().run(read_context, run, definition, self._live)
        if isinstance(read, str):
            move = block(run, read, now=tools.clock.micros(), commit_id=next(tools.commit_ids))
        elif definition is not None and (action := uncalled(run, definition)) is not None:
            move = park(run, action, now=tools.clock.micros(), commit_id=next(tools.commit_ids))
        else:
            self._live = read
            return run.crashes < SUSPECT_CRASHES or await self._mark()
        await self._submit(move)
        return False

    async def _prepare_late(self, move: Move) -> bool:
        """The workflow's timeout is over: the run goes to its ``on_timeout`` or ``on_fail`` step, or fails."""
        if (run := (await self._submit(move)).left_by(move)) is None or run.status != RUNNING:
            return False
        self.run = run
        if self.suspect:
            self._cleared()
        return await self._prepare()

    async def _submit(self, move: Move) -> Result:
        self.leads_to = move.run.seq
        return await self._tools.committer.submit(move)

    async def _mark(self) -> bool:
        """Mark the suspect while it runs: if the process dies, it was this one. False if it was cancelled or taken over."""
        run = self.run
        return (await self._tools.committer.submit(Mark(run.id, run.seq, run.fence))).outcome == "applied"

    def may_begin(self) -> bool:
        """See executor.Watch."""
        return not self.stop and self._tools.home.may_begin()

    def began(self, limit: Micros) -> None:
        """See executor.Watch."""
        self._alarm = asyncio.get_running_loop().call_later(limit / SECOND, self._time_out, limit)

    def over(self) -> None:
        """See executor.Watch."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _cleared(self) -> None:
        self.suspect = False
        self._tools.home.turn_over(self)

    def _time_out(self, limit: Micros) -> None:
        task = self._task
        if task is None or task.done() or self.stop:
            return
        self.timed_out = True
        interrupt(task)
        late = Ran(Raised(self._tools.executor.too_late(self.run, limit)), None, limit)
        asyncio.get_running_loop().call_later(GRACE, self._leave, task, late)

    def _commit(self, ran: Ran) -> None:
        """Commit the step's transition."""
        tools, run, definition = self._tools, self.run, self._definition
        assert definition is not None
        outcome, self._live, duration, also = ran
        raised = not isinstance(outcome, Stepped)
        now, commit_id = tools.clock.micros(), next(tools.commit_ids)
        try:
            move = decide(run, definition, outcome, duration, now, commit_id)
        except Exception as problem:  # noqa: BLE001 - an altered command, or a bug: the step fails, once
            if raised:
                self._adrift(problem)
                self._end()
                return
            trace = telemetry.plain_traceback(problem)
            telemetry.fault("what a step returned cannot be followed", run_id=run.id, step=run.step, exception=trace)
            self._commit(Ran(Raised(problem), None, duration))
            return
        if (transition := move.transition).error is not None:
            self._live = None  # it has what the failed attempt did, if what that returned is the error
            self._tell_error(outcome, transition)
        owners: list[int | None] | None = None
        if also and not _has_failed(ran, move):
            owners = []
            move = self._owning(move, also, owners)
        self.leads_to = run.seq + 1
        self._owners, self._had_raised = owners, raised
        tools.committer.offer(move, self)

    def told(self, outcome: Result | Exception) -> None:
        """See Pending. Go on with the committed row, unless the run no longer belongs to this worker."""
        move = self.change
        assert type(move) is Move
        if move.also:  # else it is kept until the next one: see "Garbage" in benchmarks/README.md
            del self.change
        if self._had_raised:
            self._tools.executor.telemetry.forget(move.transition)
        if self._owners is not None:
            for owner in self._owners:
                self._tools.home.redeem(owner)
        was = self.run
        if isinstance(outcome, Result) and (run := outcome.left_by(move)) is not None:
            if run.status == RUNNING:
                if self.suspect:
                    self._cleared()
                self.run = run
                self._tools.pool.put(self)
                return
        elif isinstance(outcome, Result):
            telemetry.info("transition refused, the run was cancelled or taken over", run_id=was.id, seq=move.run.seq)
        elif isinstance(outcome, StoreRefused) and not self._had_raised:
            error = ContextNotStorable(was.id, was.workflow, was.step, str(outcome))
            error.__cause__ = outcome
            self._commit(Ran(Raised(error), None, move.transition.duration_micros))
            return
        else:
            self._adrift(outcome)
        self._end()

    def _tell_error(self, outcome: Outcome, transition: Transition) -> None:
        """Have what the step raised logged. An action's error also goes to its caller, which may have left."""
        raised, executor = outcome.error if isinstance(outcome, Raised) else None, self._tools.executor
        if raised is not None:
            executor.telemetry.raised(transition, raised)
        if transition.kind == "reopen":
            if raised is not None:
                executor.callers.raised(self.run, raised)
            telemetry.reopened(self.run, transition, raised)

    def _owning(self, move: Move, also: tuple[Start | Post | Emit, ...], owners: list[int | None]) -> Move:
        return move._replace(also=tuple(self._owned(part, owners) for part in also))

    def _owned(self, part: Start | Post | Emit, owners: list[int | None]) -> Start | Post | Emit:
        """The change, with this worker as the owner of a run that the step starts, if there is room."""
        if not isinstance(part, Start) or part.run.status != RUNNING:
            return part
        owners.append(self._tools.home.promise())
        return part._replace(run=part.run._replace(owner=owners[-1]))


def _has_failed(ran: Ran, move: Move) -> bool:
    """Whether the attempt failed although the step returned: its command could not be followed."""
    meant = isinstance(ran.outcome, Stepped) and isinstance(ran.outcome.command, Fail)
    return not meant and move.transition.kind in ("retry", "fail", "on_fail", "reopen")
