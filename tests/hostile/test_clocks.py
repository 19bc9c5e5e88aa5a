"""A clock that is set an hour forward or back under a working engine: nothing is early, nothing is lost."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel
from structlog.typing import EventDict

from aioflow import (
    Engine,
    Retry,
    StartOptions,
    WorkflowRun,
    complete,
    event_workflow,
    fail,
    get_context,
    get_run,
    sleep,
    step,
    wait,
    wait_for_event,
    workflow,
)
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, ShiftedClock
from tests.hostile.crowd import crowded, whole
from tests.support import wait_until

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
#: The ways to wait; the tests use each of them for half an hour, and for an hour and a half.
WAYS = ("sleep", "timeout", "retry", "delay", "sleep_until")


@workflow("hostile-clock", default_retry=Retry(max_attempts=2, base_delay=30 * MINUTE, max_delay=10 * HOUR))
class Waiting:
    """Waits in one of the ways, and records when it went on."""

    class Context(BaseModel):
        way: str
        minutes: int
        due: datetime | None = None
        woke: datetime | None = None

    @step(start=True)
    async def begin(self) -> Command:
        context, run = get_context(self.Context), get_run()
        span = context.minutes * MINUTE
        match context.way:
            case "delay":
                return complete(woke=run.now)
            case "retry" if run.attempt == 1:
                raise ValueError("once more, please")
            case "retry":
                return complete(woke=run.now)
            case "timeout":
                return wait.for_signal("never", timeout=span, on_timeout=self.end, then=self.end)
            case "sleep":
                return sleep(span, then=self.end)
            case _:
                return sleep(run.now + span, then=self.end)

    @step
    async def end(self) -> Command:
        assert get_run().timed_out == (get_context(self.Context).way == "timeout")
        return complete(woke=get_run().now)


@workflow("hostile-mail")
class Reader:
    """Sleeps for two hours, then takes three signals."""

    class Context(BaseModel):
        got: list[int] = []
        number: int = 0

    @step(start=True)
    async def rest(self) -> Command:
        return sleep(2 * HOUR, then=self.ask)

    @step
    async def ask(self) -> Command:
        return wait.for_signal("mail", then=self.read)

    @step
    async def read(self) -> Command:
        context = get_context(self.Context)
        context.got.append(context.number)
        return complete() if len(context.got) == 3 else wait.for_signal("mail", then=self.read)


async def all_waiting(engine: Engine) -> list[WorkflowRun[Any]]:
    """Start runs that wait in every way for every span."""
    runs = []
    for way in WAYS:
        for minutes in (30, 90):
            if way == "retry" and minutes != 30:
                continue
            options = StartOptions(delay=minutes * MINUTE) if way == "delay" else StartOptions()
            run = await engine.start(Waiting, options, way=way, minutes=minutes)
            runs.append(await run.wait(5, until="parked"))
    return runs


def due_at(runs: list[WorkflowRun[Any]], now: datetime) -> set[int]:
    """The ids of the runs whose wake-up is due."""
    return {run.id for run in runs if run.wake_at is not None and run.wake_at <= now}


async def gone_on(engine: Engine, runs: list[WorkflowRun[Any]]) -> set[int]:
    """The ids of the runs that have completed."""
    ids = {run.id for run in runs}
    return {run.id for run in await engine.runs(workflow=Waiting) if run.id in ids and run.status == "completed"}


STEPS = {
    "forth": [HOUR],
    "back": [-HOUR],
    "forth and back": [HOUR, -HOUR],
    "back and forth": [-HOUR, HOUR],
    "to and fro": [HOUR, -HOUR, -HOUR, HOUR, HOUR, -HOUR],
}


@pytest.mark.parametrize("restart", [False, True], ids=["working", "restarted"])
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
async def test_runs_wake_by_the_clock_however_it_was_set(
    make_engine: MakeEngine, clock: ShiftedClock, steps: list[timedelta], restart: bool
) -> None:
    """Sleeps, timeouts, retries and delays end when the clock says so, however it was set, also after a restart."""
    engine = await make_engine().__aenter__()
    try:
        runs = await all_waiting(engine)
        async with crowded(engine) as crowd:
            for by in steps:
                clock.shift(by)
                await wait_until(lambda: _caught_up(engine, runs, clock))
                await crowd.moves_on()
        assert {run.id for run in runs} - await gone_on(engine, runs), "some are to be left for the restart"
        if restart:
            await engine.__aexit__(None, None, None)
            engine = await make_engine().__aenter__()
        clock.shift(4 * HOUR)
        for run in runs:
            before = run.wake_at
            ended = await engine.wait(run.id, 5)
            assert (ended.status, ended.error) == ("completed", None)
            assert before is not None
            assert ended.context.woke >= before
            await whole(engine, ended)
            kinds = [row.kind for row in await engine.history(run.id)]
            assert sum(kind in ("wake", "timeout") for kind in kinds) == 1
        stats = await engine.stats()
        assert (stats.overdue, stats.waiting) == (0, {})
    finally:
        await engine.__aexit__(None, None, None)


async def _caught_up(engine: Engine, runs: list[WorkflowRun[Any]], clock: ShiftedClock) -> bool:
    """Whether all runs that are due have gone on, after checking that none has gone on early."""
    gone = await gone_on(engine, runs)
    for run in runs:
        if run.id in gone:
            row = await engine.get(run.id)
            assert run.wake_at is not None
            assert row.context.woke >= run.wake_at
    return due_at(runs, clock.now()) <= gone


@pytest.mark.parametrize("step_of_clock", [HOUR, -HOUR], ids=["forth", "back"])
async def test_signals_in_the_mailbox_survive_a_step_of_the_clock(
    make_engine: MakeEngine, clock: ShiftedClock, log: list[EventDict], step_of_clock: timedelta
) -> None:
    """Signals to a run are taken in the order of sending, and none expires, although the clock was set in between."""
    async with make_engine() as engine, crowded(engine) as crowd:
        run = await (await engine.start(Reader)).wait(5, until="parked")
        await engine.signal("mail", {"number": 1}, run_id=run.id)
        clock.shift(step_of_clock)
        await engine.signal("mail", {"number": 2}, run_id=run.id, ttl=24 * HOUR)
        clock.shift(-step_of_clock)
        await crowd.moves_on()
        await engine.signal("mail", {"number": 3}, run_id=run.id)
        assert (await engine.stats()).mailbox == 3
        clock.shift(3 * HOUR)
        ended = await engine.wait(run.id, 5)
        assert (ended.status, ended.data["got"]) == ("completed", [1, 2, 3])
        await whole(engine, ended)
    assert not [entry for entry in log if "expired" in entry["event"]]


async def test_signal_expires_by_the_clock_and_not_before(
    make_engine: MakeEngine, clock: ShiftedClock, log: list[EventDict]
) -> None:
    """A signal to a key is taken within its ttl, also after the clock was set back, and not once the ttl is over."""

    @workflow("hostile-keyed")
    class Keyed:
        class Context(BaseModel):
            number: int = 0

        @step(start=True)
        async def ask(self) -> Command:
            return wait.for_signal("mail", key="k", timeout=10 * HOUR, on_timeout=self.end, then=self.end)

        @step
        async def end(self) -> Command:
            return complete()

    async with make_engine() as engine, crowded(engine):
        for number, steps in enumerate(([-HOUR], [59 * MINUTE], [-HOUR, HOUR + 59 * MINUTE]), 1):
            assert (await engine.signal("mail", {"number": number}, key="k", ttl=HOUR)).state == "buffered"
            for by in steps:
                clock.shift(by)
            run = await (await engine.start(Keyed)).wait(5)
            assert run.data == {"number": number}
        assert (await engine.signal("mail", {"number": 9}, key="k", ttl=HOUR)).state == "buffered"
        clock.shift(HOUR + MINUTE)
        run = await (await engine.start(Keyed)).wait(5, until="parked")
        assert (run.waiting_for, run.data) == ("signal", {"number": 0})
        clock.shift(-2 * HOUR)  # the expired signal may be valid again, or be deleted: the run takes some signal
        await engine.signal("mail", {"number": 10}, key="k")
        assert (await run.wait(5)).data["number"] in (9, 10)


@event_workflow("hostile-visit", offsets=[-30 * MINUTE, 30 * MINUTE], name="hostile-visits")
class Visits:
    """Starts before and after the event, and records when."""

    class Context(BaseModel):
        woke: datetime | None = None

    @step(start=True)
    async def begin(self) -> Command:
        return complete(woke=get_run().now)


@workflow("hostile-expects")
class Expects:
    """Waits for the event, for an hour and a half at most."""

    class Context(BaseModel):
        woke: datetime | None = None

    @step(start=True)
    async def ask(self) -> Command:
        return wait_for_event("hostile-visit", timeout=90 * MINUTE, on_timeout=self.late, then=self.came)

    @step
    async def came(self) -> Command:
        return complete(woke=get_run().now)

    @step
    async def late(self) -> Command:
        return fail("nobody came")


@pytest.mark.parametrize("restart", [False, True], ids=["working", "restarted"])
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
async def test_events_start_runs_by_the_clock_however_it_was_set(
    make_engine: MakeEngine, clock: ShiftedClock, steps: list[timedelta], restart: bool
) -> None:
    """An event occurs and starts its runs once, when the clock says so, however it was set, also after a restart."""
    engine = await make_engine().__aenter__()
    try:
        waiting = await (await engine.start(Expects)).wait(5, until="parked")
        at = clock.now() + HOUR
        await engine.emit("hostile-visit", at=at, event_id="e")
        async with crowded(engine) as crowd:
            for by in steps:
                clock.shift(by)
                await wait_until(lambda: _all_made(engine, clock, at))
                await crowd.moves_on()
        if restart:
            await engine.__aexit__(None, None, None)
            engine = await make_engine().__aenter__()
        while clock.now() < at + 31 * MINUTE:
            clock.shift(10 * MINUTE)
            await wait_until(lambda: _all_made(engine, clock, at))
        ended = await engine.wait(waiting.id, 5)
        assert (ended.status, ended.error) == ("completed", None)
        assert ended.context.woke >= at
        before, after = [
            await engine.wait(run.id, 5) for run in await engine.runs(event_id="e", workflow=Visits, order="created_at")
        ]
        assert at - 30 * MINUTE <= before.context.woke < after.context.woke
        assert after.context.woke >= at + 30 * MINUTE
        stats = await engine.stats()
        assert (stats.planned, stats.events) == (0, {"occurred": 1})
    finally:
        await engine.__aexit__(None, None, None)


async def _all_made(engine: Engine, clock: ShiftedClock, at: datetime) -> bool:
    """Whether everything that is due has been done."""
    now = clock.now()
    due = sum(at + offset <= now for offset in (-30 * MINUTE, 30 * MINUTE))
    done = await engine.count(workflow=Visits, status="completed") >= due
    return done and (at > now or await engine.count(workflow=Expects, status="completed") == 1)
