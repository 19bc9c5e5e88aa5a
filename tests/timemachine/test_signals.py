"""Signals on virtual time, and ``run_step`` with what resumes a step."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import BaseModel

from aioflow import (
    Failure,
    StartOptions,
    complete,
    errors,
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
from aioflow.testing import TimeMachine


class Paid(BaseModel):
    """A message."""

    amount: int


@workflow("tm-signals", timeout=timedelta(days=30), on_timeout="close")
class Order:
    """Waits for a payment for three days, reminds, and waits again."""

    class Context(BaseModel):
        paid: int = 0
        reminders: int = 0
        note: str = ""
        closed: bool = False

    @step(start=True)
    async def ask(self) -> Command:
        return wait.any(
            on(Paid, then=self.paid),
            on("cancelled", then=self.stopped),
            timeout=timedelta(days=3),
            on_timeout=self.remind,
        )

    @step
    def remind(self) -> Command:
        get_context(self.Context).reminders += 1
        return goto(self.ask)

    @step(on_fail="mend")
    async def paid(self, message: Paid) -> Command:
        get_context(self.Context).paid = message.amount
        get_run().start(Order, StartOptions(key="next"))
        get_run().signal("thanks", {"amount": message.amount}, key="customer")
        return sleep(timedelta(days=1), then=self.close)

    @step
    async def stopped(self, note: str = "") -> Command:
        return complete(note=note or "stopped")

    @step
    async def mend(self, failure: Failure) -> Command:
        return complete(note=failure.error)

    @step
    async def close(self) -> Command:
        get_context(self.Context).closed = get_run().timed_out
        return complete()


@pytest.fixture(params=["memory", "sqlite"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> TimeMachine:
    """A machine on each store."""
    return TimeMachine("memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/x.db")


async def test_a_wait_is_answered_in_time(machine: TimeMachine) -> None:
    """A signal resumes a run at the present instant, and the wait's timeout does not fire."""
    async with machine as flow:
        run = await flow.start(Order)
        await flow.advance(days=7)
        assert (await flow.signal(Paid(amount=3), run_id=run.id)).state == "delivered"
        await flow.settle()
        await run.refresh()
        assert (run.waiting_for, run.wake_at) == ("sleep", flow.now + timedelta(days=1))
        order = await run.result()
        assert (order.paid, order.reminders, order.closed) == (3, 2, False)
        assert run.ended_at is not None
        assert run.ended_at - run.created_at == timedelta(days=8)


async def test_the_whole_run_is_out_of_time(machine: TimeMachine) -> None:
    """Awaiting a run that nobody answers ends exactly at the timeout of the whole run."""
    async with machine as flow:
        run = await flow.start(Order)
        order = await run.result()
        assert (order.reminders, order.closed) == (9, True)
        assert run.ended_at is not None
        assert run.ended_at - run.created_at == timedelta(days=30)


async def test_time_does_not_jump_while_a_signal_is_on_its_way(machine: TimeMachine) -> None:
    """A signal that was sent before the run waited is taken before any time passes."""
    async with machine as flow:
        await flow.signal("cancelled", {"note": "early"}, key="k")
        run = await flow.start(Order, StartOptions(key="k"))
        began = flow.now
        assert (await run.result()).note == "early"
        assert flow.now == began


@pytest.mark.parametrize("patience", [0.1, 2.0])
async def test_a_wait_without_a_timeout_stands_still(patience: float) -> None:
    """Awaiting a run that only a signal can resume raises, although the engine scans its store every second."""

    @workflow("tm-for-ever")
    class Forever:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def ask(self) -> Command:
            return wait.for_signal("never", then=self.end)

        @step
        async def end(self) -> Command:
            return complete()

    async with TimeMachine(patience=timedelta(seconds=patience)) as flow:
        run = await flow.start(Forever)
        with (
            anyio.fail_after(10),
            pytest.raises(errors.TimeStandsStill, match=r"waits for signal 'never', at step 'ask'"),
        ):
            await run.wait()


async def test_a_step_alone_takes_a_message(machine: TimeMachine) -> None:
    """``run_step`` fills the message parameter, and reports what the step started and sent without doing it."""
    result = await machine.run_step(Order.paid, Order.Context(), resumed_by=Paid(amount=7))
    assert result.command == sleep(timedelta(days=1), then="close")
    assert result.context.paid == 7
    assert result.started == (("tm-signals", StartOptions(key="next"), {}),)
    assert result.sent == (("thanks", {"amount": 7}, None, "customer"),)
    async with machine as flow:
        assert await flow.count() == 0


async def test_a_step_alone_emits(machine: TimeMachine) -> None:
    """``run_step`` reports the events that a step emits, as they would be stored, and stores none."""

    @workflow("tm-emits")
    class Emits:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def begin(self) -> Command:
            get_run().emit("paid", Paid(amount=7), entity_id=1, event_id="e")
            get_run().emit("visit", at=get_run().now + timedelta(days=1))
            return complete()

    result = await machine.run_step(Emits.begin, {}, workflow=Emits)
    paid, visit = result.emitted
    assert (paid.id, paid.name, paid.entity, paid.entity_id) == ("e", "paid", Paid(amount=7), "1")
    assert (paid.status, visit.status, visit.id, visit.entity) == ("occurred", "pending", "", None)
    async with machine as flow:
        assert await flow.events() == []
        assert visit.at - paid.at == timedelta(days=1)


@pytest.mark.parametrize(
    ("name", "resumed", "note"),
    [
        ("stopped", {"note": "why"}, "why"),
        ("stopped", None, "stopped"),
        ("mend", Failure("paid", "no money", 3, "exhausted"), "no money"),
    ],
    ids=["payload", "nothing", "failure"],
)
async def test_a_step_alone_takes_what_resumes_it(machine: TimeMachine, name: str, resumed: Any, note: str) -> None:
    """``run_step`` passes the keys of a payload, or a Failure, to the step's parameters."""
    result = await machine.run_step(getattr(Order, name), resumed_by=resumed)
    assert result.context.note == note


async def test_a_step_alone_finds_the_payload_in_its_context(machine: TimeMachine) -> None:
    """A payload is merged into the Context before the step, and must fit it, as in a run."""

    @workflow("tm-payload")
    class Asks:
        class Context(BaseModel):
            n: int = 0

        @step(start=True)
        async def ask(self) -> Command:
            return wait.for_signal("told", then=self.count)

        @step
        async def count(self) -> Command:
            return complete(n=get_context(self.Context).n + 1)

    assert (await machine.run_step(Asks.count, resumed_by={"n": 5, "who": "ann"})).context.n == 6
    with pytest.raises(errors.SignalInvalid, match="n: Input should be a valid integer"):
        await machine.run_step(Asks.count, resumed_by={"n": "many"})


async def test_a_signal_expires_as_time_passes(flow: TimeMachine) -> None:
    """A signal that nobody took within its ttl is removed and counted, in virtual time."""
    await flow.signal("paid", {"amount": 1}, key="nobody", ttl=timedelta(hours=1))
    await flow.advance(minutes=59)
    assert ((await flow.stats()).mailbox, (await flow.stats()).expired_signals) == (1, 0)
    await flow.advance(minutes=2)
    assert ((await flow.stats()).mailbox, (await flow.stats()).expired_signals) == (0, 1)


async def test_a_step_alone_may_be_late(machine: TimeMachine) -> None:
    """``timed_out=True`` is what ``get_run().timed_out`` returns."""
    assert (await machine.run_step(Order.close, timed_out=True)).context.closed
    assert not (await machine.run_step(Order.close)).context.closed


async def test_a_step_alone_without_its_message(machine: TimeMachine) -> None:
    """A parameter that nothing fills is an error."""
    with pytest.raises(errors.ArgumentsMissing, match="nothing gives its parameter message"):
        await machine.run_step(Order.paid, Order.Context())
