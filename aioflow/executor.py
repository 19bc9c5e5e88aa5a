"""Runs one step, on the event loop or in a thread, and gives its outcome. Nothing a step raises gets past here."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping
from contextvars import Context, Token, copy_context
from gc import get_referents
from operator import is_
from typing import Any, Final, NamedTuple

from anyio import CapacityLimiter
from pydantic import BaseModel

from aioflow.arguments import Unfillable, note_model
from aioflow.callers import Callers
from aioflow.causes import trace_of
from aioflow.changes import Emit, Post, Start
from aioflow.clock import SECOND, Clock, Micros
from aioflow.codec import Unstorable
from aioflow.commands import AwaitedCommand, Command, Complete, Fail, Goto, Sleep, Wait
from aioflow.context import CurrentRun, _current
from aioflow.definition import StepDefinition, WorkflowDefinition
from aioflow.errors import ArgumentsMissing, CommandAwaited, ContextNotStorable, NoCommand, StepTimeout
from aioflow.events import event_from
from aioflow.likeness import explain
from aioflow.model import Resumption, Run, failure_of, record
from aioflow.openings import call_of
from aioflow.outbox import Orders, Outbox
from aioflow.retry import is_a
from aioflow.telemetry import Telemetry, bind_step
from aioflow.threads import Threads
from aioflow.transitions import Outcome, Raised, Stepped

_COMMANDS = (Goto, Complete, Sleep, Wait, Fail)
_NONE: Final[Mapping[str, Any]] = {}
#: Looked up once. Python 3.11 makes a bound method for every call of a method of an imported name.
_enter, _exit = _current.set, _current.reset
REQUEST_GONE: Final = (
    "the request that called it is only in the memory of another process, which has ended or did not run the step. "
    "Call it again, from a process whose engine executes runs."
)


class Watch:
    """What the engine asks of a running step, and what the executor reports of it.

    A cancellation without ``stop`` or ``timed_out`` comes from the step itself. ``current``: what the step sees of its
    run, while it runs; ``since``: when it began, on the monotonic clock; ``clean``: whether it has left its task's
    contextvars as they were.
    """

    __slots__ = ("clean", "current", "since", "stop", "timed_out")

    def __init__(self) -> None:
        self.stop = False
        self.timed_out = False
        self.clean = True
        self.current: CurrentRun | None = None
        self.since: Micros = 0

    def may_begin(self) -> bool:
        """Whether the step's code may still begin; asked again after a wait."""
        return not self.stop

    def began(self, limit: Micros) -> None:
        """The code of a step with a timeout is about to run, and may take ``limit``."""

    def over(self) -> None:
        """The code of a step with a timeout has ended."""


class Stopped(Exception):
    """The engine stopped the step: the run stays as it was."""


class Ran(NamedTuple):
    """A step's outcome, the Context as it reads back (None if it failed), its duration, what it started and sent."""

    outcome: Outcome
    live: BaseModel | None
    duration: Micros
    also: tuple[Start | Post | Emit, ...] = ()


class Executor:
    """Runs steps.

    Args:
        clock: tells the time.
        telemetry: told of every step.
        store_id: the store's UUID, for step keys.
        threads: how many sync steps run at once.
        orders: makes changes of what steps start and send.
        callers: have the requests of the actions that run.
    """

    def __init__(
        self, clock: Clock, telemetry: Telemetry, store_id: str, threads: int, orders: Orders, callers: Callers
    ) -> None:
        self._orders = orders
        self._make_outbox = orders.outbox
        self.callers = callers
        self._clock = clock
        self.telemetry = telemetry
        self._store_id = store_id
        self._limiter = CapacityLimiter(threads)
        self._threads = Threads()

    def close(self) -> None:
        """End the threads. One whose step does not end is not waited for."""
        self._threads.close()

    async def run(self, run: Run, definition: WorkflowDefinition, live: BaseModel, watch: Watch) -> Ran:
        """Run the run's step once.

        The step runs with the calling task's contextvars. These tell of the run while its code runs and its Context is
        written; the log fields stay until the next step replaces them.

        Args:
            run: the row.
            definition: its workflow, which has the step.
            live: the Context, which the step may change.
            watch: told when the step's code runs; set by the engine before it cancels the task.

        Raises:
            Stopped: the engine stopped it.
        """
        step = definition.steps[run.step]
        watch.current = current = CurrentRun(run, live, self._store_id, self._clock, self._make_outbox)
        token = _enter(current)
        bind_step(run)
        bound = copy_context()
        limit = step.options.timeout
        error: BaseException | None = None
        returned: object = None
        instruments = self.telemetry.instruments
        watch.since = self._clock.monotonic()
        if instruments:
            self.telemetry.step_started(run)
        try:
            # Made anew for each step: nothing but the Context outlives one, as after a crash.
            make, function = definition.cls, step.function
            instance = make()
            arguments = await self._arguments(run, step, watch) if step.takes else _NONE
            if step.in_thread:
                returned = await self._in_thread(step, instance, arguments, watch)
            else:
                if limit is not None:
                    watch.began(limit)
                called: Any = function(instance, **arguments) if arguments else function(instance)
                returned = await called if step.is_async else called
        except BaseException as raised:  # noqa: BLE001 - a step may raise anything, and it is that run's failure
            error = raised
        try:
            if limit is not None and watch.current is current:
                watch.over()
            if instruments:
                self.telemetry.step_ended(run, error)
            duration = self._clock.monotonic() - watch.since
            if watch.timed_out:
                late = self.too_late(run, limit or 0)
                return Ran(Raised(late.with_traceback(trace_of(error))), None, duration)
            if error is not None:
                return Ran(Raised(_own_error(run, error, watch)), None, duration)
            try:
                ran = self._returned(run, definition, live, returned, duration)
                if (outbox := current.close()) is not None and isinstance(outbox, Outbox):
                    ran = ran._replace(also=await self._changes(outbox, watch))
            except Stopped:
                raise
            except BaseException as problem:  # noqa: BLE001 - an invalid command, Context or order fails the step
                return Ran(Raised(problem), None, duration)
            return ran
        finally:
            current.close()
            _leave(watch, current, bound, token)

    async def _changes(self, outbox: Outbox, watch: Watch) -> tuple[Start | Post | Emit, ...]:
        """What the step started and sent, as changes."""
        try:
            return await self._orders.changes(outbox)
        except asyncio.CancelledError:
            if watch.stop:
                raise Stopped from None
        # The step cancelled its own task, and returned all the same: the cancellation is raised here, once.
        return await self._orders.changes(outbox)

    def too_late(self, run: Run, limit: Micros) -> StepTimeout:
        """The error of a step that ran longer than its timeout."""
        return StepTimeout(run.workflow, run.step, limit / SECOND)

    def _returned(
        self, run: Run, definition: WorkflowDefinition, live: BaseModel, returned: object, duration: Micros
    ) -> Ran:
        if type(returned) is not Goto:  # of which nothing else is to be done here
            live = self._finished(run, definition, live, returned)
        try:
            data, parsed = definition.codec.encode(live)
        except Unstorable as error:
            raise ContextNotStorable(run.id, run.workflow, run.step, str(error)) from error
        ran: Ran = record(Ran, (record(Stepped, (returned, data)), parsed, duration, ()))
        return ran

    def _finished(self, run: Run, definition: WorkflowDefinition, live: BaseModel, returned: object) -> BaseModel:
        """The Context as the command leaves it. Raises NoCommand if it is none."""
        if not isinstance(returned, _COMMANDS):
            raise NoCommand(run.id, run.workflow, run.step, _what(returned))
        if isinstance(returned, Complete):
            if not returned.data:
                return live
            try:
                return definition.codec.merge(live, returned.data)
            except BaseException as error:  # a validator may raise anything
                problem = f"complete(...) does not fit: {explain(error)}"
                raise ContextNotStorable(run.id, run.workflow, run.step, problem) from error
        if isinstance(returned, Wait):
            for arm in returned.arms:
                if arm.model is not None:
                    note_model(arm.model)
        return live

    async def _arguments(self, run: Run, step: StepDefinition, watch: Watch) -> dict[str, Any]:
        """The arguments for the step's parameters, from what resumed the run."""
        try:
            if step.action is not None and (call := call_of(run)) is not None:
                request = self.callers.request_of(run)
                if call.request and request is None:
                    raise ArgumentsMissing(run.id, run.workflow, run.step, REQUEST_GONE)
                return step.action.fill(call.input, request)
            resumption = Resumption.of(run)
            event = None
            payload = None if resumption is None or resumption.kind != "event" else resumption.payload
            if isinstance(payload, dict) and step.parameters.takes_event:
                event = await event_from(payload)
                if not watch.may_begin():  # the entity's loader may have taken long
                    raise Stopped
            return step.parameters.fill(resumption, failure_of(run), event)
        except Unfillable as error:
            raise ArgumentsMissing(run.id, run.workflow, run.step, str(error)) from error

    async def _in_thread(
        self, step: StepDefinition, instance: object, arguments: Mapping[str, Any], watch: Watch
    ) -> object:
        # Task and thread race twice, and each time the first one writes its name (setdefault is atomic). "begin": if
        # the task is cancelled before the thread begins, the step is not called. "end": the second one releases the
        # slot, so that a thread whose task has left keeps its slot until it ends.
        first: dict[str, str] = {}
        loop = asyncio.get_running_loop()
        borrower = object()

        def call() -> object:
            if first.setdefault("begin", "thread") == "task":
                return None
            try:
                return step.function(instance, **arguments)
            finally:
                if first.setdefault("end", "thread") == "task":
                    try:
                        loop.call_soon_threadsafe(self._limiter.release_on_behalf_of, borrower)
                    except RuntimeError:  # the loop is closed
                        pass

        await self._limiter.acquire_on_behalf_of(borrower)
        if not watch.may_begin():
            self._limiter.release_on_behalf_of(borrower)
            raise Stopped
        watch.since = self._clock.monotonic()
        if step.options.timeout is not None:
            watch.began(step.options.timeout)
        try:
            good, value = await self._threads.run(call)
        finally:
            if first.setdefault("begin", "task") == "task" or first.setdefault("end", "task") == "thread":
                self._limiter.release_on_behalf_of(borrower)
        if good:
            return value
        raise value


def _own_error(run: Run, error: BaseException, watch: Watch) -> BaseException:
    """What the step raised, as it is reported. Raises Stopped if the engine stopped the step."""
    if watch.stop or is_a(error, Stopped):
        raise Stopped
    if is_a(error, AwaitedCommand):
        return CommandAwaited(run.id, run.workflow, run.step, error.command).with_traceback(trace_of(error))
    return error


def _leave(watch: Watch, current: CurrentRun, bound: Context, token: Token[CurrentRun]) -> None:
    """The step has ended: check what it left in the task's contextvars, and clear its own."""
    if watch.current is current:  # else it was abandoned, and its task is not used again
        watch.current = None
        left = copy_context()
        tables = get_referents(bound, left)  # the only thing that each refers to; shared until either changes
        watch.clean = (len(tables) == 2 and tables[0] is tables[1]) or _same(bound, left)
    # So that the step's Context is freed now, not when the transition is committed.
    try:
        _exit(token)
    except ValueError:  # the coroutine was not ended by its task, but garbage-collected after its loop
        pass


def _same(one: Context, other: Context) -> bool:
    """Whether two contexts have the identical values: one that is merely equal may hold other things."""
    return len(one) == len(other) and all(map(is_, one, other)) and all(map(is_, one.values(), other.values()))


def _what(returned: object) -> str:
    if returned is None:
        return "None"
    if inspect.iscoroutine(returned):
        returned.close()
        return "a coroutine that nobody awaited"
    if isinstance(returned, Command):
        return f"a {type(returned).__name__} that aioflow did not make"
    return f"{'an' if type(returned).__name__[:1].lower() in 'aeiou' else 'a'} {type(returned).__name__}"
