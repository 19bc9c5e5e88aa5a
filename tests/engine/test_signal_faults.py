"""Lost replies, closing engines and cancelled callers: a signal is taken once, or kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, field_validator

from aioflow import Engine, SignalReceipt, WorkflowRun, complete, errors, get_context, goto, step, wait, workflow
from aioflow.changes import Change, Move, Post, Result
from aioflow.clock import Micros
from aioflow.commands import Command
from aioflow.store import PlanQuery, RunQuery
from aioflow_memory import MemoryStore
from tests.engine.conftest import MakeEngine, kinds_of
from tests.faulty import lost
from tests.support import wait_until


@workflow("faults-order")
class Order:
    """Takes as many signals as its Context says."""

    class Context(BaseModel):
        model_config = ConfigDict(extra="forbid")
        wanted: int = 1
        number: int = 0
        taken: list[int] = []

    @step(start=True)
    async def ask(self) -> Command:
        return wait.for_signal("number", then=self.took)

    @step
    async def took(self, number: int) -> Command:
        context = get_context(self.Context)
        context.taken.append(number)
        return complete() if len(context.taken) == context.wanted else goto(self.ask)


@workflow("faults-keyed")
class Keyed:
    """Takes one signal with a key."""

    class Context(BaseModel):
        pass

    @step(start=True)
    async def ask(self) -> Command:
        return wait.for_signal("go", key="k", then=self.end)

    @step
    async def end(self) -> Command:
        return complete()


def is_post(change: Change) -> bool:
    """Whether the change puts a signal into the mailbox."""
    return isinstance(change, Post)


def is_delivery(change: Change) -> bool:
    """Whether the change takes a signal from the mailbox, or rejects it."""
    return isinstance(change, Move) and bool(change.takes)


def is_straight(change: Change) -> bool:
    """Whether the change gives a signal to a waiting run without the mailbox."""
    return isinstance(change, Move) and change.transition.kind == "signal" and not change.takes


#: Which change is hit, and whether the signal must go through the mailbox, as one with a signal_id always does.
WAYS = pytest.mark.parametrize(
    ("bad", "posted"),
    [(is_post, True), (is_delivery, True), (is_straight, False)],
    ids=["post", "delivery", "straight"],
)


def named(posted: bool, name: object) -> dict[str, Any]:
    """The keyword that makes a signal go through the mailbox, if it must."""
    return {"signal_id": f"signal-{name}"} if posted else {}


class Losing(MemoryStore):
    """A store that loses the connection around batches that contain a certain change.

    Attributes:
        bad: whether it is such a change.
        when: "before" the commit or "after" it.
        times: how often it will happen.
        lost: how often it has happened.
    """

    def __init__(self, bad: Callable[[Change], bool], when: str, times: int) -> None:
        super().__init__()
        self.bad, self.when, self.times, self.lost = bad, when, times, 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.arrived = asyncio.Event()

    async def apply(self, changes: Sequence[Change], now: Micros) -> list[Result]:
        bad = any(map(self.bad, changes))
        if bad:
            self.arrived.set()
            await self.gate.wait()
        if not (bad and self.times):
            return await super().apply(changes, now)
        self.times -= 1
        self.lost += 1
        if self.when == "after":
            await super().apply(changes, now)
        raise lost(self.when)


async def moved_on_to_wait(run: WorkflowRun[Any]) -> None:
    """Wait until the run is parked."""
    await run.wait(5, until="parked")


async def parked(engine: Engine, **context: Any) -> WorkflowRun[Any]:
    """Start a run; returns it once it is parked."""
    return await (await engine.start(Order, **context)).wait(5, until="parked")


@WAYS
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("times", [1, 3])
async def test_lost_replies(bad: Callable[[Change], bool], posted: bool, when: str, times: int) -> None:
    """Whichever change loses its connection, each signal is taken once and in order, and its receipt is correct."""
    store = Losing(bad, when, times)
    async with Engine(store, workflows=[Order]) as engine:
        run = await parked(engine, wanted=5)
        receipts = []
        for number in range(5):
            await moved_on_to_wait(run)
            receipts.append(await engine.signal("number", {"number": number}, run_id=run.id, **named(posted, number)))
        assert (await run.wait(10)).data["taken"] == [0, 1, 2, 3, 4]
        assert (await kinds_of(engine, run)).count("signal") == 5
        assert {receipt.state for receipt in receipts} <= {"delivered", "buffered"}
        assert (store.lost, (await engine.stats()).mailbox) == (times, 0)


@WAYS
async def test_lost_replies_of_many(bad: Callable[[Change], bool], posted: bool) -> None:
    """With lost replies, 40 concurrent signals to four runs are each taken once."""
    store = Losing(bad, "after", 4)
    async with Engine(store, workflows=[Order]) as engine:
        runs = [await parked(engine, wanted=10) for _ in range(4)]
        await asyncio.gather(
            *(
                engine.signal("number", {"number": number}, run_id=run.id, **named(posted, (run.id, number)))
                for number in range(10)
                for run in runs
            )
        )
        for run in runs:
            taken = (await run.wait(10)).data["taken"]
            assert taken == list(range(10)) if posted else sorted(taken) == list(range(10))
        assert store.lost == (4 if posted else store.lost)
        assert store.lost >= 1


async def test_lost_reply_of_a_rejection() -> None:
    """A rejection whose reply is lost is recorded once, and the run waits on."""
    store = Losing(is_delivery, "after", 2)
    async with Engine(store, workflows=[Order]) as engine:
        run = await parked(engine)
        receipt = await engine.signal("number", {"number": "x"})
        assert (receipt.state, list(receipt.rejected)) == ("rejected", [run.id])
        assert await kinds_of(engine, run) == ["start", "wait", "reject"]
        assert (await engine.signal("number", {"number": 1}, run_id=run.id)).state == "delivered"


@pytest.mark.parametrize("bad", [is_post, is_delivery])
async def test_engine_that_dies_after_the_post(bad: Callable[[Change], bool]) -> None:
    """A signal whose acknowledgement was lost with its engine is taken once by the next engine."""
    store = Losing(bad, "after", 10_000)
    async with Engine(store, workflows=[Order], shutdown_timeout=timedelta(0)) as engine:
        run = await parked(engine)
        sending = asyncio.ensure_future(engine.signal("number", {"number": 7}, run_id=run.id, signal_id="a"))
        await store.arrived.wait()
    outcome = (await asyncio.gather(sending, return_exceptions=True))[0]
    assert isinstance(outcome, errors.StoreUnavailable) or "buffered" in str(outcome)
    store.times = 0
    async with Engine(store, workflows=[Order]) as engine:
        receipt = await engine.signal("number", {"number": 7}, run_id=run.id, signal_id="a")
        assert receipt.state in ("buffered", "delivered")
        assert (await engine.wait(run.id, 10)).data["taken"] == [7]
        assert (await engine.stats()).mailbox == 0


@WAYS
async def test_caller_that_gives_up(bad: Callable[[Change], bool], posted: bool) -> None:
    """A signal whose caller is cancelled is still taken, once, and so are others."""
    store = Losing(bad, "before", 0)
    async with Engine(store, workflows=[Order]) as engine:
        run = await parked(engine, wanted=2)
        store.gate.clear()
        sending = asyncio.ensure_future(engine.signal("number", {"number": 1}, run_id=run.id, **named(posted, 1)))
        await store.arrived.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        store.gate.set()
        await engine.signal("number", {"number": 2}, run_id=run.id)
        assert (await run.wait(5)).data["taken"] == [1, 2]


async def test_engine_closed_while_signal_waits() -> None:
    """signal() that waits for its delivery returns when the engine closes, and the next engine delivers the signal."""
    store = Losing(is_delivery, "before", 10_000)
    engine = Engine(store, workflows=[Order], shutdown_timeout=timedelta(0))
    async with engine:
        run = await parked(engine)
        sending = asyncio.ensure_future(engine.signal("number", {"number": 7}, run_id=run.id, signal_id="a"))
        await store.arrived.wait()
        assert not sending.done()
    receipt = await asyncio.wait_for(sending, 5)
    assert receipt.state in ("buffered", "delivered")
    store.times = 0
    async with engine:
        assert (await engine.wait(run.id, 10)).data["taken"] == [7]


class Gated(MemoryStore):
    """A store that answers only when the test lets it, if ``waits`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.asking, self.writing = asyncio.Event(), asyncio.Event()
        self.let_ask, self.let_write = asyncio.Event(), asyncio.Event()
        self.waits = False

    async def select(self, query: RunQuery | PlanQuery, now: Micros) -> Any:
        if self.waits:
            self.asking.set()
            await self.let_ask.wait()
        return await super().select(query, now)

    async def apply(self, changes: Sequence[Change], now: Micros) -> list[Result]:
        if self.waits:
            self.writing.set()
            await self.let_write.wait()
        return await super().apply(changes, now)


async def refuses(engine: Engine) -> bool:
    """Whether the engine refuses calls, as it is closing."""
    try:
        await engine.count()
    except errors.EngineClosed:
        return True
    return False


async def test_signal_that_is_posted_while_its_engine_closes() -> None:
    """A signal that is posted while its engine closes is buffered, and its sender gets the receipt at once."""
    store = Gated()
    async with Engine(store) as engine:
        runs = [await engine.start(Keyed) for _ in range(2)]
        for run in runs:
            await run.wait(5, until="parked")
        store.waits = True
        starting = asyncio.create_task(engine.start(Keyed))
        sending = [asyncio.create_task(engine.signal("go", key="k")) for _ in range(2)]
        await asyncio.gather(store.asking.wait(), store.writing.wait())
        closing = asyncio.create_task(engine.__aexit__(None, None, None))
        await wait_until(lambda: refuses(engine))
        store.let_ask.set()
        for _ in range(50):  # turns of the loop, in which the calls queue their changes
            await asyncio.sleep(0)
        store.let_write.set()
        await closing
        told = await asyncio.wait_for(asyncio.gather(*sending, return_exceptions=True), 5)
        assert told[0] == SignalReceipt("buffered")
        assert isinstance(told[1], SignalReceipt | errors.StoreError)
        await starting


async def test_merge_that_the_context_forbids(make_engine: MakeEngine) -> None:
    """If the Context raises anything when a payload is merged, the signal is rejected, and engine and run go on."""

    class Hostile(BaseModel):
        number: int = 0

        @field_validator("number")
        @classmethod
        def _check(cls, number: int) -> int:
            if number == 13:
                raise ZeroDivisionError("by my own code")
            return number

    @workflow("faults-hostile")
    class Flow:
        Context = Hostile

        @step(start=True)
        async def ask(self) -> Command:
            return wait.for_signal("number", then=self.end)

        @step
        async def end(self) -> Command:
            return complete()

    async with make_engine(Flow) as engine:
        run = await (await engine.start(Flow)).wait(5, until="parked")
        for address in ({"run_id": run.id}, {}):
            receipt = await engine.signal("number", {"number": 13}, **address)  # type: ignore[arg-type]
            assert (receipt.state, list(receipt.rejected)) == ("rejected", [run.id])
            assert "ZeroDivisionError: by my own code" in receipt.rejected[run.id]
        assert (await engine.signal("number", {"number": 12}, run_id=run.id)).delivered == [run.id]
        assert (await run.wait(5)).data["number"] == 12


@pytest.mark.parametrize("name", ["__class__", "model_config", "copy", "_private", "self", "model_fields", "__dict__"])
async def test_odd_names_in_a_payload(make_engine: MakeEngine, name: str) -> None:
    """Payload keys that mean something to Python or pydantic are stored like any others."""

    @workflow("faults-odd")
    class Flow:
        class Context(BaseModel):
            number: int = 0

        @step(start=True)
        async def ask(self) -> Command:
            return wait.for_signal("number", then=self.took)

        @step
        async def took(self, **rest: Any) -> Command:
            get_context(self.Context).number += 1
            return goto(self.end)

        @step
        async def end(self) -> Command:
            return complete()

    async with make_engine(Flow) as engine:
        run = await (await engine.start(Flow)).wait(5, until="parked")
        assert (await engine.signal("number", {name: [1]}, run_id=run.id)).state == "delivered"
        await run.wait(5)
        assert (run.status, run.data) == ("completed", {"number": 1, name: [1]}), run.error
