"""What ``signal`` returns, how a signal_id makes it idempotent, and what it refuses."""

from __future__ import annotations

import asyncio
import math
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import (
    Engine,
    SignalReceipt,
    StartOptions,
    WorkflowRun,
    complete,
    errors,
    get_context,
    goto,
    step,
    wait,
    workflow,
)
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, ShiftedClock, kinds_of
from tests.support import wait_until

HOUR = timedelta(hours=1)


class Paid(BaseModel):
    """A message."""

    amount: int = 0


@workflow("receipts-order")
class Order:
    """Takes as many signals with amounts as its Context says."""

    class Context(BaseModel):
        amount: int = 0
        times: int = 2

    @step(start=True)
    async def ask(self) -> Command:
        return wait.for_signal("paid", timeout=100 * HOUR, on_timeout=self.end, then=self.took)

    @step
    async def took(self) -> Command:
        context = get_context(self.Context)
        context.times -= 1
        return goto(self.ask) if context.times else goto(self.end)

    @step
    async def end(self) -> Command:
        return complete()


async def parked(engine: Engine, options: StartOptions | None = None, **context: Any) -> WorkflowRun[Any]:
    """Start a run; returns it once it is parked."""
    return await (await engine.start(Order, options or StartOptions(), **context)).wait(5, until="parked")


async def test_id_makes_a_send_idempotent(make_engine: MakeEngine) -> None:
    """Sending a signal_id again, before or after its signal was taken, sends nothing and returns the known state."""
    async with make_engine(Order) as engine:
        for _ in range(2):
            assert await engine.signal("paid", {"amount": 1}, key="k", signal_id="a") == SignalReceipt("buffered")
        assert (await engine.stats()).mailbox == 1
        run = await parked(engine, StartOptions(key="k"))

        async def taken() -> bool:
            return (await engine.stats()).mailbox == 0

        await wait_until(taken)
        for _ in range(2):
            assert await engine.signal("paid", {"amount": 2}, key="k", signal_id="a") == SignalReceipt(
                "delivered", [run.id]
            )
        await run.wait(5, until="parked")
        assert (run.data["times"], run.data["amount"]) == (1, 1)
        receipts = await asyncio.gather(
            *(engine.signal("paid", {"amount": 3}, run_id=run.id, signal_id="b") for _ in range(20))
        )
        assert (await run.wait(5)).data == {"amount": 3, "times": 0}
        assert receipts[0] == SignalReceipt("delivered", [run.id])
        assert {receipt.state for receipt in receipts} <= {"delivered", "buffered"}
        # The run has ended: a known signal_id still gives its receipt, and a new signal is refused.
        assert (await engine.signal("paid", run_id=run.id, signal_id="b")).delivered == [run.id]
        with pytest.raises(
            errors.IdTaken, match=f"^signal_id 'b' is already used for a signal that run {run.id} has taken"
        ):
            await engine.signal("paid", run_id=(await parked(engine)).id, signal_id="b")
        with pytest.raises(errors.RunEnded):
            await engine.signal("paid", run_id=run.id, signal_id="c")


async def test_id_is_known_to_every_engine_for_a_week(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """The signal_id of a taken signal is known to every engine, even after a restart, for 7 days and no longer."""
    async with make_engine(Order) as engine:
        run = await parked(engine, StartOptions(key="k"))
        assert (await engine.signal("paid", key="k", signal_id="a")).state == "delivered"
    clock.shift(timedelta(days=6, hours=23))
    async with make_engine(Order, worker=False) as client:
        assert await client.signal("paid", key="k", signal_id="a") == SignalReceipt("delivered", [run.id])
    clock.shift(timedelta(hours=2))
    async with make_engine(Order) as engine:

        async def forgotten() -> bool:
            return (await engine.signal("paid", key="other", signal_id="a")).state == "buffered"

        await wait_until(forgotten)


async def test_id_of_an_expired_signal_can_be_sent_again(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A signal_id can be used again once its signal has expired, even if that has not been removed yet."""
    async with make_engine(Order, worker=False) as client:
        await client.signal("paid", {"amount": 1}, key="k", signal_id="a", ttl=HOUR)
        clock.shift(2 * HOUR)
        assert (await client.signal("paid", {"amount": 2}, key="k", signal_id="a", ttl=HOUR)).state == "buffered"
    async with make_engine(Order) as engine:
        run = await engine.start(Order, StartOptions(key="k"), times=1)
        assert (await run.wait(5)).data == {"amount": 2, "times": 0}


async def test_rejected_signal_is_not_taken_for_sent(make_engine: MakeEngine) -> None:
    """A rejected signal does not use up its signal_id: the same one is rejected again, and a corrected one is taken."""
    async with make_engine(Order) as engine:
        run = await parked(engine)
        for _ in range(2):
            receipt = await engine.signal("paid", {"amount": "x"}, run_id=run.id, signal_id="a")
            assert (receipt.state, receipt.delivered, list(receipt.rejected)) == ("rejected", [], [run.id])
        assert "signal" not in await kinds_of(engine, run)
        assert (await engine.signal("paid", {"amount": 1}, run_id=run.id, signal_id="a")).delivered == [run.id]


async def test_buffered_signal_that_does_not_fit_is_removed(make_engine: MakeEngine, log: list[Any]) -> None:
    """A buffered signal that does not validate is removed, and recorded and logged without its value."""
    async with make_engine(Order) as engine:
        for amount in ("SECRET", 1, "SECRET", 2):
            assert (await engine.signal("paid", {"amount": amount}, key="k")).state == "buffered"
        run = await engine.start(Order, StartOptions(key="k"))
        assert (await run.wait(5)).data == {"amount": 2, "times": 0}
        history = await engine.history(run.id)
        kinds = [row.kind for row in history]
        assert kinds == ["start", "wait", "reject", "signal", "goto", "wait", "reject", "signal", "goto", "complete"]
        assert str(history[2].error).startswith("Signal 'paid' was rejected: amount: ")
        assert (await engine.stats()).mailbox == 0
    told = [entry for entry in log if entry["event"] == "signal rejected"]
    assert [(entry["log_level"], entry["run_id"], entry["step"]) for entry in told] == [("warning", run.id, "ask")] * 2
    assert "SECRET" not in f"{log}{history}"


async def test_errors_about_the_run(make_engine: MakeEngine) -> None:
    """A signal to an unknown or ended run is RunNotFound or RunEnded, and is not kept."""
    async with make_engine(Order) as engine:
        run = await parked(engine, StartOptions(key="k"))
        await engine.cancel(run.id)
        sentence = f"Run {run.id} of workflow 'receipts-order' has ended (cancelled): it takes no signals."
        for address in ({"run_id": run.id}, {"workflow": Order, "key": "k"}):
            for signal_id in (None, "a"):
                with pytest.raises(errors.RunEnded) as ended:
                    await engine.signal("paid", signal_id=signal_id, **address)
                assert (str(ended.value), ended.value.run_id) == (sentence, run.id)
        for number in (run.id + 1, -1, 0, 1 << 53, 1 << 70):
            for signal_id in (None, "a"):
                with pytest.raises(errors.RunNotFound, match=f"There is no run {number} "):
                    await engine.signal("paid", run_id=number, signal_id=signal_id)
        with pytest.raises(errors.RunNotFound, match="workflow 'receipts-order' with key 'none'"):
            await engine.signal("paid", workflow=Order, key="none")
        with pytest.raises(errors.RunNotFound, match="workflow 'nonesuch' with key 'k'"):
            await engine.signal("paid", workflow="nonesuch", key="k")
        assert (await engine.stats()).mailbox == 0
        # A signal to a key alone may be for a run that starts later.
        assert (await engine.signal("paid", key="k")).state == "buffered"


async def test_workflow_and_key_mean_the_newest_run(make_engine: MakeEngine) -> None:
    """A signal to a workflow and key goes to the newest run."""
    async with make_engine(Order) as engine:
        old = await parked(engine, StartOptions(key="k"))
        await engine.cancel(old.id)
        new = await parked(engine, StartOptions(key="k", reuse="ended"))
        assert (await engine.signal("paid", workflow=Order, key="k")).delivered == [new.id]


WRONG: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    (("paid",), {"run_id": 1, "key": "k"}, TypeError, "not both"),
    (("paid",), {"run_id": 1, "workflow": Order}, TypeError, "not both"),
    (("paid",), {"workflow": Order}, TypeError, "needs key="),
    (("paid",), {"workflow": 3, "key": "k"}, TypeError, "is no workflow"),
    (("paid",), {"run_id": "1"}, TypeError, "A run's id is an int, got str"),
    (("paid",), {"run_id": True}, TypeError, "A run's id is an int, got bool"),
    ((Paid,), {}, TypeError, r"write signal\(Paid\(\.\.\.\)\)"),
    ((Paid(), {"amount": 1}), {}, TypeError, "Paid is the message itself"),
    (("paid", Paid()), {}, TypeError, r"takes a mapping, got Paid. Write signal\(Paid\(\.\.\.\)\)"),
    (("paid", [1]), {}, TypeError, "takes a mapping, got list"),
    (("paid", "x"), {}, TypeError, "takes a mapping, got str"),
    (("paid", {1: 2}), {}, TypeError, "a key of its payload takes a string, got int"),
    (("paid", {"": 2}), {}, ValueError, "must not be empty"),
    (("paid", {"a\0": 2}), {}, errors.LimitExceeded, "NUL"),
    (("paid", {"a" * 201: 2}), {}, errors.LimitExceeded, "200 characters"),
    (("paid", {"a": {"b" * 201: 2}}), {}, errors.LimitExceeded, "200 characters"),
    (("paid", {"a": "x\0y"}), {}, errors.LimitExceeded, "NUL"),
    (("paid", {"a": "\ud800"}), {}, ValueError, "paid"),
    (("paid", {"a": math.nan}), {}, errors.LimitExceeded, "the numbers that JSON has"),
    (("paid", {"a": [math.inf]}), {}, errors.LimitExceeded, "the numbers that JSON has"),
    (("paid", {"a": "x" * (1 << 20)}), {}, errors.LimitExceeded, "1048576 bytes"),
    (("paid", {"a": object()}), {}, errors.SignalInvalid, "Signal 'paid' cannot be sent"),
    ((3,), {}, TypeError, "takes a string, got int"),
    (("",), {}, ValueError, "must not be empty"),
    (("a\0",), {}, errors.LimitExceeded, "NUL"),
    (("a" * 201,), {}, errors.LimitExceeded, "200 characters"),
    (("paid",), {"key": 3}, TypeError, "takes a string, got int"),
    (("paid",), {"key": ""}, ValueError, "must not be empty"),
    (("paid",), {"key": "k" * 201}, errors.LimitExceeded, "200 characters"),
    (("paid",), {"key": "k", "signal_id": "\ud800"}, errors.LimitExceeded, "lone surrogate"),
    (("paid",), {"key": "k", "signal_id": ""}, ValueError, "must not be empty"),
    (("paid",), {"key": "k", "ttl": 3}, TypeError, "takes a timedelta, got int"),
    (("paid",), {"key": "k", "ttl": -HOUR}, ValueError, "must not be negative"),
]


@pytest.mark.parametrize(("arguments", "address", "error", "text"), WRONG, ids=map(str, range(len(WRONG))))
async def test_wrong_arguments_are_refused(
    make_engine: MakeEngine, arguments: Any, address: dict[str, Any], error: type[Exception], text: str
) -> None:
    """A wrong argument is refused with an error before anything is sent."""
    async with make_engine(Order) as engine:
        with pytest.raises(error, match=text):
            await engine.signal(*arguments, **address)
        assert (await engine.stats()).mailbox == 0


async def test_payload_may_be_as_deep_and_large_as_the_limit(make_engine: MakeEngine) -> None:
    """A payload may have 64 levels, but not 65, and is rejected if it makes the Context too large."""
    deep: Any = 0
    for _ in range(63):
        deep = [deep]
    async with make_engine(Order) as engine:
        run = await parked(engine)
        assert (await engine.signal("paid", {"deep": deep}, run_id=run.id)).state == "delivered"
        with pytest.raises(errors.LimitExceeded, match="depth 64"):
            await engine.signal("paid", {"deep": [deep]}, run_id=run.id)
        run = await parked(engine)
        half = {"one": "x" * 600_000}
        assert (await engine.signal("paid", half, run_id=run.id)).state == "delivered"
        await run.wait(5, until="parked")
        receipt = await engine.signal("paid", {"two": "x" * 600_000}, run_id=run.id)
        assert receipt.state == "rejected"
        assert "1048576 bytes" in receipt.rejected[run.id]
        assert (await engine.get(run.id)).waiting_signal == "paid"


async def test_signal_of_a_closed_engine(make_engine: MakeEngine) -> None:
    """signal() of a closed engine is EngineClosed, before it was open and after."""
    engine = make_engine(Order)
    for _ in range(2):
        with pytest.raises(errors.EngineClosed, match=r"engine\.signal\(\) needs an open engine"):
            await engine.signal("paid", key="k")
        async with engine:
            assert (await engine.signal("paid", key="k")).state == "buffered"
