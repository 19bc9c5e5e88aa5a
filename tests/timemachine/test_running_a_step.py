"""``run_step``: one step alone, as the engine would run it."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import GiveUp, RetryLater, complete, errors, fail, get_context, get_run, goto, sleep, step, workflow
from aioflow.commands import Command
from aioflow.testing import StepResult, TimeMachine


class Steps:
    """Steps that two workflows share."""

    @step
    async def shared(self) -> Command:
        return complete()


@workflow("alone")
class Order(Steps):
    """Does with the Context what each test asks for."""

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
    """Has a step of another's."""

    class Context(BaseModel):
        pass

    @step(start=True)
    async def begin(self) -> Command:
        return goto(self.shared)


async def test_step_gives_its_command_and_context() -> None:
    """The command names steps by name, the Context is as the step left it, and the one passed in is as it was."""
    given = Order.Context(amount=1)
    result = await TimeMachine().run_step(Order.pay, given, key="k", attempt=3)
    assert result == StepResult(goto("refund"), Order.Context(amount=2, seen=["0 alone pay 3 k"]))
    assert isinstance(result.context, Order.Context)
    assert given == Order.Context(amount=1)


async def test_sync_step_runs_in_a_thread() -> None:
    """A sync step runs where the engine would run it, with its Context."""
    result = await TimeMachine().run_step(Order.refund, {"amount": 5})
    assert result.command == sleep(timedelta(days=1), then="pay")
    assert result.context.amount == 5
    assert result.context.seen != [threading.current_thread().name]


async def test_context_may_be_left_out() -> None:
    """Without a Context the step finds one of defaults; what complete() adds is in the one given back."""
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
    """A step's own exception comes through, and so does what the engine would find wrong; nothing is retried."""
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


async def test_inherited_step_is_told_apart() -> None:
    """A step of several workflows is that of the Context given, or of the workflow named; else it is refused."""
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
    """What is no step, or no possible option, is refused with a sentence."""
    with pytest.raises(error, match=text):
        await call(TimeMachine())


async def test_nothing_is_stored_and_nothing_leaks(flow: TimeMachine) -> None:
    """On an open machine no run comes of it, and the test is inside no step afterwards."""
    result = await flow.run_step(Order().pay, Order.Context())
    assert result.command == goto("refund")
    assert await flow.count() == 0
    with pytest.raises(errors.UsageError):
        get_run()


async def test_caller_that_is_cancelled_cancels_the_step() -> None:
    """A step that runs alone ends with the call that runs it."""
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
