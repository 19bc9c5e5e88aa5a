"""Time: near and far deadlines, clocks that are set back, and many runs due at once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from pydantic import BaseModel

from aioflow import StartOptions, complete, get_context, get_run, sleep, step, workflow
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, ShiftedClock, kinds_of, run_of

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


@workflow("time-sleeper")
class Sleeper:
    """Sleeps for as many minutes as its Context says, and records when it went on."""

    class Context(BaseModel):
        minutes: float
        woke_at: datetime | None = None

    @step(start=True)
    async def rest(self) -> Command:
        return sleep(get_context(self.Context).minutes * MINUTE, then=self.end)

    @step
    async def end(self) -> Command:
        return complete(woke_at=get_run().now)


async def test_runs_wake_when_they_are_due_and_not_before(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """Runs with deadlines from minutes to a century ahead each wake at their own, across many restarts."""
    minutes = [1, 5, 9, 10, 11, 30, 60, 60, 24 * 60, 365 * 24 * 60, 100 * 365 * 24 * 60]
    async with make_engine(Sleeper) as engine:
        runs = [await engine.start(Sleeper, minutes=each) for each in minutes]
        for run in runs:
            await run.wait(5, until="parked")
    begun = max(run.wake_at - each * MINUTE for run, each in zip(runs, minutes, strict=True))
    for upto in sorted(set(minutes)):
        async with make_engine(Sleeper) as engine:
            clock.shift(begun + (upto - 0.5) * MINUTE - clock.now())
            assert await engine.process_scheduled() == 0
            clock.shift(MINUTE / 2 + timedelta(seconds=1))
            for run, each in zip(runs, minutes, strict=True):
                if each == upto:
                    woke = (await engine.wait(run.id, 5)).context.woke_at
                    assert run.wake_at <= woke <= run.wake_at + 5 * MINUTE
                elif each > upto:
                    assert (await engine.get(run.id)).waiting_for == "sleep"


async def test_clock_that_is_set_back_wakes_no_run_early(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A run does not wake before its instant, however the clock is set back and forth."""
    async with make_engine(Sleeper) as engine:
        run = await engine.start(Sleeper, minutes=60)
        await run.wait(5, until="parked")
        for by in (59 * MINUTE, -3 * HOUR, 2 * HOUR, -HOUR, HOUR, 1 * MINUTE):
            clock.shift(by)
            assert await engine.process_scheduled() == 0
            assert (await run_of(engine, Sleeper, minutes=0)).status == "completed"
            await run.refresh()
            assert run.status == "waiting"
        clock.shift(61 * MINUTE)
        await run.wait(5)
        assert run.context.woke_at >= run.created_at + HOUR
        assert await kinds_of(engine, run) == ["start", "sleep", "wake", "complete"]


async def test_clock_that_is_set_back_holds_up_no_run(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """After the clock was set back, runs start, sleep and end as usual, and histories stay in order."""
    clock.shift(timedelta(days=1000))
    async with make_engine(Sleeper) as engine:
        before = await engine.start(Sleeper, minutes=60)
        await before.wait(5, until="parked")
        clock.shift(-timedelta(days=1000))
        after = await engine.start(Sleeper, minutes=60)
        await after.wait(5, until="parked")
        assert after.wake_at < before.wake_at
        clock.shift(HOUR)
        assert (await after.wait(5)).status == "completed"
        await before.refresh()
        assert before.status == "waiting"
        assert await engine.cancel(before.id)
        rows = await engine.history(before.id)
        assert [row.seq for row in rows] == [1, 2, 3]


async def test_hundreds_that_are_due_at_once_all_wake_once(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """More runs than a batch holds, due at one instant, each wake once."""
    at = clock.now().astimezone(UTC) + HOUR
    async with make_engine(Sleeper, worker=False) as engine:
        runs = [await engine.start(Sleeper, StartOptions(start_at=at), minutes=0) for _ in range(700)]
    async with make_engine(Sleeper) as engine:
        clock.shift(HOUR)
        for run in runs:
            assert (await engine.wait(run.id, 10)).status == "completed"
        for run in runs[::50]:
            assert await kinds_of(engine, run) == ["start", "wake", "sleep", "wake", "complete"]


async def test_sleep_beyond_the_calendar_fails_with_its_limit(make_engine: MakeEngine) -> None:
    """A sleep beyond the year 9999 fails the run, and the error names the limit."""

    @workflow("time-eternity")
    class Eternity:
        class Context(BaseModel):
            until: bool

        @step(start=True)
        async def rest(self) -> Command:
            last = datetime.max.replace(tzinfo=UTC)
            return sleep(last if get_context(self.Context).until else timedelta.max)

    async with make_engine(Eternity) as engine:
        for until in (True, False):
            run = await run_of(engine, Eternity, until=until)
            assert run.status == "failed"
            assert run.error == f"sleep() is beyond the limit of the year 9999: run {run.id}, step 'rest'."
        far = await engine.start(Eternity, StartOptions(delay=timedelta.max), until=True)
        assert far.wake_at.year == 9999
