"""Addressed signals are kept until a run takes them: in the order of sending, each once, until they expire."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import (
    Engine,
    Retry,
    StartOptions,
    WorkflowRun,
    complete,
    get_context,
    get_run,
    goto,
    sleep,
    step,
    wait,
    workflow,
)
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, ShiftedClock, kinds_of
from tests.support import wait_until

HOUR = timedelta(hours=1)


@workflow("mailbox-loop")
class Loop:
    """Takes as many signals as its Context says, and records their numbers."""

    class Context(BaseModel):
        wanted: int = 1
        taken: list[int] = []

    @step(start=True)
    async def ask(self) -> Command:
        return wait.for_signal("number", key="shared", then=self.took)

    @step
    async def took(self, number: int) -> Command:
        context = get_context(self.Context)
        context.taken.append(number)
        return complete() if len(context.taken) == context.wanted else goto(self.ask)


@workflow("mailbox-own")
class Own:
    """Waits with the run's own key."""

    class Context(BaseModel):
        number: int = 0

    @step(start=True)
    async def ask(self) -> Command:
        return wait.for_signal("number", then=self.end)

    @step
    async def end(self) -> Command:
        return complete()


async def parked(engine: Engine, order: Any, options: StartOptions | None = None, **context: Any) -> WorkflowRun[Any]:
    """Start a run; returns it once it is parked."""
    run: WorkflowRun[Any] = await engine.start(order, options or StartOptions(), **context)
    return await run.wait(5, until="parked")


@pytest.mark.parametrize("how", ["run", "key", "workflow and key", "name and key"])
async def test_ways_to_address_a_run(make_engine: MakeEngine, how: str) -> None:
    """A signal reaches a run by id, by the run's own key, and by workflow and key."""
    async with make_engine(Own, Loop) as engine:
        run = await parked(engine, Own, StartOptions(key="order-1"))
        other = await parked(engine, Own, StartOptions(key="order-2"))
        ways: dict[str, dict[str, Any]] = {
            "run": {"run_id": run.id},
            "key": {"key": "order-1"},
            "workflow and key": {"workflow": Own, "key": "order-1"},
            "name and key": {"workflow": "mailbox-own", "key": "order-1"},
        }
        receipt = await engine.signal("number", {"number": 3}, **ways[how])
        assert (receipt.state, receipt.delivered) == ("delivered", [run.id])
        assert (await run.wait(5)).data == {"number": 3}
        assert (await engine.get(other.id)).status == "waiting"


async def test_wait_with_a_key_is_not_reached_by_the_runs_own(make_engine: MakeEngine) -> None:
    """A wait with key= is not reached by the run's own key, but still by workflow and key, and by id."""
    async with make_engine(Loop) as engine:
        run = await parked(engine, Loop, StartOptions(key="own"), wanted=3)
        assert (await engine.signal("number", {"number": 1}, key="own")).state == "buffered"
        for number, address in enumerate(({"key": "shared"}, {"workflow": Loop, "key": "own"}, {"run_id": run.id})):
            receipt = await engine.signal("number", {"number": number}, **address)  # type: ignore[arg-type]
            assert receipt.state in ("delivered", "buffered")
        assert (await run.wait(5)).data["taken"] == [0, 1, 2]
        assert (await engine.stats()).mailbox == 1


async def test_signals_wait_for_a_run_that_is_not_there_yet(make_engine: MakeEngine) -> None:
    """A signal to a key is kept until a run waits with it, even over a restart."""
    async with make_engine(Own) as engine:
        assert (await engine.signal("number", {"number": 4}, key="order-9")).state == "buffered"
        assert (await engine.stats()).mailbox == 1
    async with make_engine(Own) as engine:
        run = await engine.start(Own, StartOptions(key="order-9"))
        assert (await run.wait(5)).data == {"number": 4}
        assert (await engine.stats()).mailbox == 0


async def test_signals_wait_for_a_run_that_does_something_else(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A run that is delayed, running, sleeping or retrying takes its signals in order once it waits."""
    gate, inside = asyncio.Event(), asyncio.Event()

    @workflow("mailbox-busy", default_retry=Retry(base_delay=HOUR))
    class Busy:
        class Context(BaseModel):
            path: list[str] = []

        @step(start=True)
        async def run(self) -> Command:
            inside.set()
            await gate.wait()
            return sleep(HOUR, then=self.fail_once)

        @step
        async def fail_once(self) -> Command:
            if get_run().attempt == 1:
                raise RuntimeError("once")
            return goto(self.ask)

        @step
        async def ask(self) -> Command:
            return wait.for_signal("said", then=self.said)

        @step
        async def said(self, word: str) -> Command:
            path = get_context(self.Context).path
            path.append(word)
            return complete() if len(path) == 4 else goto(self.ask)

    async with make_engine(Busy) as engine:
        run = await engine.start(Busy, StartOptions(delay=HOUR))

        async def say(word: str) -> None:
            assert (await engine.signal("said", {"word": word}, run_id=run.id)).state == "buffered"

        await say("start")
        clock.shift(HOUR)
        await inside.wait()
        await say("running")
        gate.set()
        for waiting_for in ("sleep", "retry"):

            async def waits(what: str = waiting_for) -> bool:
                await run.refresh()
                return run.waiting_for == what

            await wait_until(waits)
            await say(waiting_for)
            clock.shift(HOUR)
        assert (await run.wait(5)).data["path"] == ["start", "running", "sleep", "retry"]


async def test_oldest_wait_comes_first(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """Runs that wait with the same key get a signal each, in the order in which they began to wait."""
    async with make_engine(Loop) as engine:
        runs = []
        for _ in range(5):
            runs.append(await parked(engine, Loop))
            clock.shift(timedelta(seconds=1))
        for number, run in enumerate(runs):
            assert (await engine.signal("number", {"number": number}, key="shared")).delivered == [run.id]
            assert (await run.wait(5)).data["taken"] == [number]


async def test_fifty_signals_for_fifty_runs(make_engine: MakeEngine) -> None:
    """Fifty concurrent signals to a key that fifty runs wait with are taken by one run each."""
    async with make_engine(Loop) as engine:
        runs = [await parked(engine, Loop) for _ in range(50)]
        receipts = await asyncio.gather(
            *(engine.signal("number", {"number": number}, key="shared") for number in range(50))
        )
        ended = [await run.wait(10) for run in runs]
        assert sorted(run.data["taken"][0] for run in ended) == list(range(50))  # type: ignore[index, type-var]
        assert {receipt.state for receipt in receipts} <= {"delivered", "buffered"}
        told = [run_id for receipt in receipts for run_id in receipt.delivered]
        assert len(told) == len(set(told))
        assert (await engine.stats()).mailbox == 0


@pytest.mark.parametrize("address", ["run", "key"])
@pytest.mark.parametrize("engines", [1, 2])
async def test_loop_takes_all_in_order(make_engine: MakeEngine, address: str, engines: int) -> None:
    """200 concurrent signals to a run that waits again and again are all taken, once and in order."""
    async with make_engine(Loop) as engine, make_engine(Loop, worker=False) as client:
        run = await engine.start(Loop, wanted=200)
        sender = engine if engines == 1 else client
        where: dict[str, Any] = {"run_id": run.id} if address == "run" else {"key": "shared"}
        await asyncio.gather(*(sender.signal("number", {"number": number}, **where) for number in range(200)))
        assert (await run.wait(30)).data["taken"] == list(range(200))
        assert (await kinds_of(engine, run)).count("signal") == 200
        assert (await engine.stats()).mailbox == 0


@pytest.mark.parametrize("ttl", [None, HOUR])
async def test_keyed_signal_expires(
    make_engine: MakeEngine, clock: ShiftedClock, log: list[Any], ttl: timedelta | None
) -> None:
    """A signal to a key expires after its ttl, or 7 days, which is logged and counted."""
    life = ttl or timedelta(days=7)
    async with make_engine(Own) as engine:
        await engine.signal("number", {"number": 77_771}, key="early", ttl=ttl, signal_id="s")
    clock.shift(life - timedelta(minutes=1))
    async with make_engine(Own) as engine:
        run = await engine.start(Own, StartOptions(key="early"))
        assert (await run.wait(5)).status == "completed"
        await engine.signal("number", {"number": 77_772}, key="late", ttl=ttl, signal_id="t")
        assert (await engine.stats()).expired_signals == 0
    clock.shift(life)
    async with make_engine(Own) as engine:
        run = await parked(engine, Own, StartOptions(key="late"))
        stats = await engine.stats()
        assert (stats.expired_signals, stats.mailbox, run.data) == (1, 0, {"number": 0})
    told = [entry for entry in log if entry["event"] == "signal expired, nobody took it"]
    assert [(entry["log_level"], entry["signal"], entry["key"], entry["signal_id"]) for entry in told] == [
        ("warning", "number", "late", "t")
    ]
    assert "7777" not in str(log)


async def test_signal_to_a_run_lives_as_long_as_the_run(
    make_engine: MakeEngine, clock: ShiftedClock, log: list[Any]
) -> None:
    """A signal to a run without a ttl does not expire while the run lives, and expires when it ends."""

    async with make_engine(Own, Loop) as engine:
        run = await parked(engine, Own, StartOptions(key="k"))
        await engine.signal("other", run_id=run.id)
        await engine.signal("other", workflow=Own, key="k")
    clock.shift(timedelta(days=1000))
    async with make_engine(Own, Loop) as engine:
        stats = await engine.stats()
        assert (stats.mailbox, stats.expired_signals) == (2, 0)
        assert await engine.cancel(run.id)
    async with make_engine(Own, Loop) as engine:
        stats = await engine.stats()
        assert (stats.mailbox, stats.expired_signals) == (0, 2)
    told = [entry for entry in log if entry["event"] == "signal expired, nobody took it"]
    assert [(entry["run_id"], entry["signal"], entry["count"]) for entry in told] == [(run.id, "other", 2)]


async def test_many_that_expire_at_once(make_engine: MakeEngine, clock: ShiftedClock, log: list[Any]) -> None:
    """Many signals that expire at once are removed in batches of a thousand, counted, and logged by name."""
    async with make_engine(Own) as engine:
        sent = [("number", 1_100), ("other", 100)]
        keys = [(name, str(number)) for name, count in sent for number in range(count)]
        await asyncio.gather(*(engine.signal(name, key=key, ttl=HOUR) for name, key in keys))
    clock.shift(2 * HOUR)
    async with make_engine(Own) as engine:
        assert (await engine.stats()).mailbox == 0
        assert (await engine.stats()).expired_signals == 1_200
    told = [entry for entry in log if entry["event"] == "signal expired, nobody took it"]
    counts = {name: [entry["count"] for entry in told if entry["signal"] == name] for name, _ in sent}
    assert {name: sum(each) for name, each in counts.items()} == dict(sent)
    assert len(told) <= 4
    assert max(counts["number"]) <= 1_000


async def test_many_invalid_signals_do_not_hold_up_the_next(make_engine: MakeEngine) -> None:
    """A hundred signals that do not validate are removed one by one, and the one behind them is taken."""
    async with make_engine(Own) as engine:
        await asyncio.gather(*(engine.signal("number", {"number": "x"}, key="k") for _ in range(100)))
        await engine.signal("number", {"number": 3}, key="k")
        run = await engine.start(Own, StartOptions(key="k"))
        assert (await run.wait(20)).data == {"number": 3}
        assert (await kinds_of(engine, run)).count("reject") == 100
        assert (await engine.stats()).mailbox == 0


async def test_step_that_sends_by_the_engine(make_engine: MakeEngine) -> None:
    """A step may await engine.signal(), even to its own run, which takes the signal when it waits."""

    @workflow("mailbox-inner")
    class Inner:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def ask(self) -> Command:
            assert (await engine.signal("said", {"word": "a"}, run_id=get_run().id)).state == "buffered"
            return wait.for_signal("said", then=self.end)

        @step
        async def end(self) -> Command:
            return complete()

    async with make_engine(Inner) as engine:
        run = await engine.start(Inner)
        assert (await run.wait(5)).data == {"word": "a"}


async def test_order_of_sending_outlives_a_clock_set_back(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """Signals sent by one engine are taken in order, even if the machine's clock is set back in between."""
    async with make_engine(Loop) as engine:
        run = await engine.start(Loop, wanted=3)
        for number in range(3):
            await engine.signal("number", {"number": number}, key="shared")
            clock.shift(-HOUR)
        assert (await run.result(timeout=10)).taken == [0, 1, 2]


async def test_order_is_kept_in_the_mailbox_when_the_clock_is_set_back(
    make_engine: MakeEngine, clock: ShiftedClock
) -> None:
    """Signals are also taken in order if they are buffered while the clock is set back."""
    async with make_engine(Loop) as engine:
        for number in range(3):
            assert (await engine.signal("number", {"number": number}, key="shared")).state == "buffered"
            clock.shift(-HOUR)
        run = await engine.start(Loop, wanted=3)
        assert (await run.result(timeout=10)).taken == [0, 1, 2]


async def test_clock_set_back_makes_no_signal_late(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A signal sent in time resumes a wait with a timeout, even if the clock was set back after an earlier signal."""

    @workflow("mailbox-timed")
    class Timed:
        class Context(BaseModel):
            number: int = 0

        @step(start=True)
        async def ask(self) -> Command:
            return wait.for_signal("number", timeout=HOUR / 2, on_timeout=self.late, then=self.took)

        @step
        async def late(self) -> Command:
            return complete(number=-1)

        @step
        async def took(self) -> Command:
            return complete()

    async with make_engine(Timed) as engine:
        await engine.signal("other", key="nobody")
        clock.shift(-HOUR)
        for name in (None, "by way of the mailbox"):
            run = await (await engine.start(Timed)).wait(5, until="parked")
            receipt = await engine.signal("number", {"number": 3}, run_id=run.id, signal_id=name)
            assert receipt.state == "delivered"
            assert (await run.result(5)).number == 3
