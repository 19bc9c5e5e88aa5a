"""``run_step``: one step alone, executed as the engine would execute it."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import (
    Event,
    Failure,
    GiveUp,
    RetryLater,
    action,
    complete,
    errors,
    event_workflow,
    fail,
    get_context,
    get_run,
    goto,
    on,
    sleep,
    step,
    wait,
    workflow,
)
from aioflow.commands import Command
from aioflow.testing import StepResult, TimeMachine


class Steps:
    """Steps that two workflows share."""

    @step
    async def shared(self) -> Command:
        return complete()


@workflow("alone")
class Order(Steps):
    """Has a step for each test."""

    class Context(BaseModel):
        amount: int = 0
        seen: list[str] = []

    @step(start=True)
    async def pay(self) -> Command:
        context = get_context(self.Context)
        context.amount += 1
        context.seen.append(f"{get_run().id} {get_run().workflow} {get_run().step} {get_run().attempt} {get_run().key}")
        return goto(self.refund)

    @step
    def refund(self) -> Command:
        get_context(self.Context).seen.append(threading.current_thread().name)
        return sleep(timedelta(days=1), then=self.pay)

    @step
    async def boom(self) -> Command:
        raise ZeroDivisionError(get_context(self.Context).amount)

    @step
    def later(self) -> Command:
        raise RetryLater(timedelta(days=1))

    @step
    def never(self) -> Command:
        raise GiveUp("no use")

    @step
    async def nothing(self) -> Command:
        return None  # type: ignore[return-value]

    @step
    async def lost(self) -> Command:
        return goto("no" + "where")

    @step
    async def broken(self) -> Command:
        get_context(self.Context).seen.append(3)  # type: ignore[arg-type]
        return fail("never said")

    @step
    async def end(self) -> Command:
        return complete(amount=7, note="done")

    @step(timeout=timedelta(milliseconds=10))
    async def slow(self) -> Command:
        await asyncio.Event().wait()
        return complete()


@workflow("alone-too")
class Other(Steps):
    """Another workflow with the shared step."""

    class Context(BaseModel):
        pass

    @step(start=True)
    async def begin(self) -> Command:
        return goto(self.shared)


async def test_step_gives_its_command_and_context() -> None:
    """The result has the command, by the step's name, and the new Context; the one passed in is unchanged."""
    given = Order.Context(amount=1)
    result = await TimeMachine().run_step(Order.pay, given, key="k", attempt=3)
    assert result == StepResult(goto("refund"), Order.Context(amount=2, seen=["0 alone pay 3 k"]))
    assert isinstance(result.context, Order.Context)
    assert given == Order.Context(amount=1)


async def test_sync_step_runs_in_a_thread() -> None:
    """A sync step runs in a thread, with its Context."""
    result = await TimeMachine().run_step(Order.refund, {"amount": 5})
    assert result.command == sleep(timedelta(days=1), then="pay")
    assert result.context.amount == 5
    assert result.context.seen != [threading.current_thread().name]


async def test_context_may_be_left_out() -> None:
    """Without a Context the step gets one of defaults, and data of ``complete()`` is in the result's Context."""
    result = await TimeMachine().run_step(Order.end)
    assert result.command == complete(amount=7, note="done")
    assert (result.context.amount, result.context.note) == (7, "done")


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("boom", ZeroDivisionError, "4"),
        ("later", RetryLater, "1 day"),
        ("never", GiveUp, "no use"),
        ("nothing", errors.NoCommand, "returned None"),
        ("lost", errors.TargetUnknown, "'nowhere'"),
        ("broken", errors.ContextNotStorable, "seen"),
        ("slow", errors.StepTimeout, "0.01 s"),
    ],
)
async def test_what_a_step_raises_is_raised(name: str, error: type[Exception], text: str) -> None:
    """What the step raises, and what the engine would raise about it, is raised to the caller, without retries."""
    with pytest.raises(error, match=text):
        await TimeMachine().run_step(getattr(Order, name), Order.Context(amount=4))


@pytest.mark.parametrize(
    ("context", "error", "text"),
    [
        ({"amount": "many"}, errors.ContextInvalid, "amount: Input should be a valid integer"),
        (Order.Context.model_construct(amount="many"), errors.ContextInvalid, "amount"),
        (Order.Context(seen=["\0"]), errors.LimitExceeded, "seen"),
        (Other.Context(), TypeError, "takes a Order.Context or a mapping of its values, got Context"),
        (3, TypeError, "got int"),
    ],
)
async def test_context_is_validated(context: Any, error: type[Exception], text: str) -> None:
    """A Context that the engine could not store is refused before the step runs."""
    with pytest.raises(error, match=text):
        await TimeMachine().run_step(Order.pay, context)


async def test_inherited_step_needs_a_workflow() -> None:
    """A step of several workflows belongs to that of the Context, or of ``workflow=``; without either it is refused."""
    flow = TimeMachine()
    assert (await flow.run_step(Order.shared, Order.Context())).command == complete()
    assert (await flow.run_step(Other.shared, workflow=Other)).context == Other.Context()
    with pytest.raises(errors.UsageError, match=r"several workflows \(.*Order, Other.*\)\. Say which: workflow="):
        await flow.run_step(Steps.shared)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda flow: flow.run_step(len), errors.UsageError, "len is no step of any workflow that this engine knows"),
        (lambda flow: flow.run_step(Order.pay, workflow=Other), errors.UsageError, "Order.pay is no step of Other"),
        (lambda flow: flow.run_step("pay"), TypeError, "takes a step, as Order.refund, got str"),
        (lambda flow: flow.run_step(Order.pay, attempt=0), ValueError, "counts from 1, got 0"),
        (lambda flow: flow.run_step(Order.pay, attempt="1"), TypeError, "takes an int, got str"),
        (lambda flow: flow.run_step(Order.pay, key=""), ValueError, "must not be empty"),
        (lambda flow: flow.run_step(Order.pay, workflow=int), TypeError, "int is no workflow"),
    ],
)
async def test_wrong_calls_say_so(call: Any, error: type[Exception], text: str) -> None:
    """A call with something that is no step, or with an invalid option, is refused with an explanation."""
    with pytest.raises(error, match=text):
        await call(TimeMachine())


async def test_nothing_is_stored_and_nothing_leaks(flow: TimeMachine) -> None:
    """On an open machine ``run_step`` makes no run, and afterwards the test is not inside a step."""
    result = await flow.run_step(Order().pay, Order.Context())
    assert result.command == goto("refund")
    assert await flow.count() == 0
    with pytest.raises(errors.UsageError):
        get_run()


async def test_caller_that_is_cancelled_cancels_the_step() -> None:
    """Cancelling a call of ``run_step`` cancels the step."""
    ended = asyncio.Event()
    begun = asyncio.Event()

    @workflow("alone-endless")
    class Endless:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def wait(self) -> Command:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
            return complete()

    task = asyncio.create_task(TimeMachine().run_step(Endless.wait))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await ended.wait()


class Visit(BaseModel):
    """The entity of an event."""

    id: int


def booked(**more: Any) -> Event:
    """An event at a fixed time."""
    now = datetime(2030, 5, 1, tzinfo=UTC)
    return Event(**{"id": "e", "name": "alone-booked", "at": now, "recorded_at": now, **more})


@workflow("alone-resumed")
class Resumed:
    """Waits for an action, a signal or an event."""

    class Context(BaseModel):
        event_id: str = ""
        entity_id: str = ""
        note: str = ""

    @step(start=True)
    async def ask(self) -> Command:
        return wait.any(
            on(self.review),
            on("stop", then=self.ask),
            on.event("alone-booked", then=self.told),
            timeout=timedelta(days=1),
            on_timeout=self.ask,
        )

    @action("alone_review")
    async def review(self, approved: bool = False) -> Command:
        return complete(note=str(approved))

    @action("alone_refuse")
    async def refuse(self) -> Command:
        return complete()

    @step
    async def told(self, event: Event) -> Command:
        return complete(note=f"{event.entity!r} {event.status} {event.at:%d.%m.} {event.occurred_at}")


@event_workflow("alone-booked")
class Reminds:
    """Is started by an event."""

    @step(start=True)
    async def begin(self, event: Event, entity_id: str) -> Command:
        return wait.for_event("alone-booked", then=self.end)

    @step
    async def end(self, entity_id: str | None) -> Command:
        return complete(seen=entity_id)


async def test_a_step_is_resumed_by_an_event() -> None:
    """A step that is resumed by an event gets it as a parameter, and the Context gets its ids."""
    flow = TimeMachine()
    event = booked(entity=Visit(id=7), occurred_at=datetime(2030, 5, 2, tzinfo=UTC))
    result = await flow.run_step(Resumed.told, resumed_by=event)
    assert result.context.note == "Visit(id=7) occurred 01.05. 2030-05-02 00:00:00+00:00"
    assert (result.context.event_id, result.context.entity_id) == ("e", "7")
    about_nothing = await flow.run_step(Resumed.told, {"entity_id": "5"}, resumed_by=booked(status="pending"))
    assert about_nothing.context.note == "None pending 01.05. None"
    assert (about_nothing.context.event_id, about_nothing.context.entity_id) == ("e", "5")


async def test_the_start_step_of_an_event_workflow_is_resumed_by_its_event() -> None:
    """The start step of an event workflow gets the event but keeps its Context, and other steps get the event's ids."""
    flow, event = TimeMachine(), booked(entity={"id": 7})
    made = {"event_id": "e", "event_name": "alone-booked", "entity_id": "6"}
    begun = await flow.run_step(Reminds.begin, made, resumed_by=event)
    assert (begun.command, begun.context.model_dump()) == (wait.for_event("alone-booked", then="end"), made)
    ended = await flow.run_step(Reminds.end, made, resumed_by=event)
    assert ended.context.model_dump() == {**made, "entity_id": "7", "seen": "7"}


async def test_a_wait_for_an_action_can_be_compared() -> None:
    """A wait for an action equals one that names the same action, by the class or an instance, and no other."""
    command: Any = (await TimeMachine().run_step(Resumed.ask)).command

    def asks(action: Any) -> Command:
        return wait.any(
            on(action),
            on("stop", then="ask"),
            on.event("alone-booked", then="told"),
            timeout=timedelta(days=1),
            on_timeout="ask",
        )

    assert command == asks(Resumed().review)
    assert command == asks(Resumed.review)
    assert command != asks(Resumed.refuse)
    assert command.arms[0].then == "review"
    assert command.arms[0].then != "refuse"
    assert command.arms[0].then == Resumed.review
    assert command.arms[0].then != Resumed.refuse
    assert {command.arms[0].then: 1}["review"]


@pytest.mark.parametrize(
    ("name", "options", "error", "text"),
    [
        ("ask", {"resumed_by": 3}, TypeError, r"run_step\(resumed_by=...\) takes a message, .* got int"),
        ("ask", {"resumed_by": Visit}, TypeError, r"run_step\(resumed_by=...\) takes a message, .* got ModelMetaclass"),
        ("review", {"resumed_by": 3}, TypeError, r"run_step\(resumed_by=...\) takes a message, .* got int"),
        ("review", {"resumed_by": booked()}, TypeError, "got Event: no event leads to 'alone_review'"),
        ("ask", {"resumed_by": {"note": "x"}, "timed_out": True}, TypeError, r"timed_out=True\) .* got dict"),
        ("ask", {"resumed_by": booked(), "timed_out": True}, TypeError, r"timed_out=True\) .* got Event"),
        ("review", {"resumed_by": {}, "timed_out": True}, TypeError, r"timed_out=True\) .* got dict"),
        ("told", {"resumed_by": booked(at="now")}, TypeError, r"Event\(at=...\) takes an aware datetime, got str"),
        ("told", {"resumed_by": booked(recorded_at=None)}, TypeError, r"Event\(recorded_at=...\) .* got NoneType"),
        ("told", {"resumed_by": booked(at=datetime(2030, 1, 1))}, ValueError, r"Event\(at=...\) must be aware"),  # noqa: DTZ001 - naive
        ("told", {"resumed_by": booked(status="soon")}, ValueError, "soon"),
        ("told", {"resumed_by": booked(entity={"id": {3}, "at": object()})}, errors.EventInvalid, "alone-booked"),
        ("told", {}, errors.ArgumentsMissing, "nothing gives its parameter event"),
    ],
)
async def test_what_cannot_resume_a_step_is_refused(name: str, options: Any, error: type[Exception], text: str) -> None:
    """What cannot resume a step is refused with an explanation."""
    with pytest.raises(error, match=text):
        await TimeMachine().run_step(getattr(Resumed, name), **options)


async def test_an_event_that_does_not_fit_the_context_is_refused() -> None:
    """An event whose ids do not fit the Context is refused."""

    @workflow("alone-numbers")
    class Numbers:
        class Context(BaseModel):
            entity_id: int = 0

        @step(start=True)
        async def ask(self) -> Command:
            return wait.for_event("alone-booked", then=self.told)

        @step
        async def told(self, event: Event) -> Command:
            return complete()

    with pytest.raises(errors.EventInvalid, match="entity_id: Input should be a valid integer"):
        await TimeMachine().run_step(Numbers.told, resumed_by=booked(entity_id="many"))


async def test_a_failure_and_a_timeout_may_resume_one_step() -> None:
    """A Failure and ``timed_out=True`` can be given together, as an on_fail step may also be a timeout's."""

    @workflow("alone-late")
    class Late:
        class Context(BaseModel):
            note: str = ""

        @step(start=True)
        async def mend(self, failure: Failure | None = None) -> Command:
            return complete(note=f"{failure and failure.error} {get_run().timed_out}")

    failed = Failure("pay", "no money", 1, "gave up")
    result = await TimeMachine().run_step(Late.mend, resumed_by=failed, timed_out=True)
    assert result.context.note == "no money True"
