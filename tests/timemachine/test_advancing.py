"""``advance`` and ``settle``: what is due happens in order, each at its own instant, or time stands still."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel

from aioflow import Retry, RetryLater, StartOptions, complete, get_context, get_run, sleep, step, workflow
from aioflow.commands import Command
from aioflow.testing import TimeMachine
from tests.support import wait_until
from tests.timemachine.conftest import DAY, HOUR, Sleeper, hours_after


async def test_time_stands_still_by_itself(flow: TimeMachine) -> None:
    """Virtual time begins at a fixed instant, and does not pass while real time does."""
    assert flow.now == datetime(2029, 1, 1, tzinfo=UTC)
    run = await flow.start(Sleeper, minutes=0.001)
    await flow.settle()
    loop = asyncio.get_running_loop()
    began = loop.time()
    await wait_until(lambda: loop.time() > began + 0.01)
    await flow.settle()
    await run.refresh()
    assert (run.status, flow.now) == ("waiting", datetime(2029, 1, 1, tzinfo=UTC))


async def test_timers_fire_in_order_each_at_its_own_instant(flow: TimeMachine) -> None:
    """Runs wake in the order of their deadlines, and each sees its own deadline as the present."""
    woken: list[tuple[int, datetime]] = []

    @workflow("advance-order")
    class Order:
        class Context(BaseModel):
            hours: int

        @step(start=True)
        async def wake(self) -> Command:
            woken.append((get_context(self.Context).hours, get_run().now))
            return complete()

    start = flow.now
    for hours in (5, 1, 4, 2, 3, 7):
        await flow.start(Order, StartOptions(delay=hours * HOUR), hours=hours)
    await flow.advance(hours=6)
    assert woken == [(hours, start + hours * HOUR) for hours in (1, 2, 3, 4, 5)]
    assert flow.now == start + 6 * HOUR


async def test_run_that_sleeps_again_wakes_to_the_instant(flow: TimeMachine) -> None:
    """A run that sleeps three times for an hour wakes exactly every hour, in one advance."""
    start = flow.now
    run = await flow.start(Sleeper, minutes=60, times=3)
    await flow.advance(hours=10)
    await run.refresh()
    assert run.status == "completed"
    assert hours_after(start.timestamp(), run.context.ran_at) == [0, 1, 2, 3]
    assert [row.at for row in await flow.history(run.id) if row.kind == "wake"] == [start + n * HOUR for n in (1, 2, 3)]
    assert run.ended_at == start + 3 * HOUR
    assert flow.now == start + 10 * HOUR


async def test_nothing_wakes_before_its_deadline(flow: TimeMachine) -> None:
    """A run still sleeps a microsecond before its deadline, and wakes at the deadline."""
    run = await flow.start(Sleeper)
    await flow.advance(minutes=59, seconds=59, milliseconds=999, microseconds=999)
    await run.refresh()
    assert run.status == "waiting"
    await flow.advance(microseconds=1)
    await run.refresh()
    assert run.status == "completed"
    assert run.ended_at == flow.now == run.created_at + HOUR


async def test_advance_settles_first(flow: TimeMachine) -> None:
    """An advance settles first, so that a run that was just started sleeps from the instant before it."""
    run = await flow.start(Sleeper)
    await flow.advance(HOUR)
    await run.refresh()
    assert run.status == "completed"


async def test_advance_takes_an_instant(flow: TimeMachine) -> None:
    """``advance`` takes an instant, such as a run's ``wake_at``, or the present one."""
    run = await flow.start(Sleeper)
    await flow.settle()
    await run.refresh()
    assert run.wake_at is not None
    await flow.advance(run.wake_at)
    await flow.advance(flow.now)
    assert flow.now == run.wake_at
    await run.refresh()
    assert run.status == "completed"


async def test_month_of_reminders_takes_no_time(flow: TimeMachine) -> None:
    """A run that sleeps a day thirty times completes in one advance, in little real time."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    run = await flow.start(Sleeper, minutes=24 * 60, times=30)
    await flow.advance(days=30)
    await run.refresh()
    assert run.status == "completed"
    assert hours_after(run.created_at.timestamp(), run.context.ran_at) == [24 * day for day in range(31)]
    assert loop.time() - began < 5


async def test_retries_wait_as_their_policy_says(flow: TimeMachine) -> None:
    """The delays of retries and of RetryLater pass in virtual time, and are exact: 10 s, 20 s, 40 s, and an hour."""
    tried: list[timedelta] = []
    start = flow.now

    @workflow("advance-retries", default_retry=Retry(max_attempts=4, base_delay=timedelta(seconds=10)))
    class Failing:
        class Context(BaseModel):
            pass

        @step(start=True)
        def attempt(self) -> Command:
            tried.append(get_run().now - start)
            if len(tried) == 1:
                raise RetryLater(HOUR)
            raise ValueError("again")

    run = await flow.start(Failing)
    await flow.advance(minutes=59)
    assert tried == [timedelta(0)]
    await flow.advance(DAY)
    assert tried == [timedelta(0), *(HOUR + timedelta(seconds=seconds) for seconds in (0, 10, 30, 70))]
    await run.refresh()
    assert run.status == "failed"


async def test_delayed_starts_begin_when_they_are_due(flow: TimeMachine) -> None:
    """``delay`` and ``start_at`` of a start count in virtual time."""
    late = await flow.start(Sleeper, StartOptions(delay=DAY), times=0)
    later = await flow.start(Sleeper, StartOptions(start_at=flow.now + 2 * DAY), times=0)
    await flow.advance(days=1)
    await late.refresh()
    await later.refresh()
    assert (late.status, later.waiting_for) == ("completed", "start")
    await flow.advance(days=1)
    await later.refresh()
    assert later.ended_at == flow.now


async def test_ten_thousand_sleepers_wake_at_their_instants(flow: TimeMachine) -> None:
    """Ten thousand runs that sleep beyond the heap's horizon wake at a hundred instants, all on time."""
    start = flow.now
    woken: list[tuple[int, timedelta]] = []

    @workflow("advance-thousands")
    class Patient:
        class Context(BaseModel):
            hours: int

        @step(start=True)
        async def rest(self) -> Command:
            return sleep(get_context(self.Context).hours * HOUR, then=self.wake)

        @step
        async def wake(self) -> Command:
            woken.append((get_context(self.Context).hours, get_run().now - start))
            return complete()

    for _ in range(10):
        await asyncio.gather(*(flow.start(Patient, hours=1 + n % 100) for n in range(1000)))
    await flow.advance(hours=50)
    assert len(woken) == 5000
    await flow.advance(days=10)
    assert woken == [(hours, hours * HOUR) for hours in range(1, 101) for _ in range(100)]
    assert await flow.count(status="completed") == 10_000


async def test_due_runs_beyond_max_running_all_wake_at_the_instant(url: str) -> None:
    """If more runs are due than may execute at once, they take turns without any time passing."""
    async with TimeMachine(url, max_running=3) as flow:
        await asyncio.gather(*(flow.start(Sleeper) for _ in range(100)))
        await flow.advance(HOUR)
        runs = await flow.runs(workflow=Sleeper)
        assert {(run.status, run.ended_at) for run in runs} == {("completed", flow.now)}


async def test_threads_are_waited_for(flow: TimeMachine) -> None:
    """A sync step in its thread counts as executing: time does not advance past it."""
    go_on, begun = threading.Event(), threading.Event()

    @workflow("advance-thread")
    class Blocking:
        class Context(BaseModel):
            pass

        @step(start=True)
        def block(self) -> Command:
            begun.set()
            go_on.wait(10)
            return sleep(HOUR, then=self.end)

        @step
        def end(self) -> Command:
            return complete()

    run = await flow.start(Blocking)
    start = flow.now
    await wait_until(begun.is_set)

    async def let_go() -> None:
        for _ in range(100):
            await asyncio.sleep(0)
        assert (await flow.get(run.id)).status == "running"
        assert flow.now == start
        go_on.set()

    await asyncio.gather(flow.advance(hours=1), let_go())
    await run.refresh()
    assert run.ended_at == start + HOUR


async def test_steps_that_wait_for_the_world_are_waited_for(flow: TimeMachine) -> None:
    """``settle`` waits for a step that awaits something in real time."""
    loop = asyncio.get_running_loop()

    @workflow("advance-world")
    class Asking:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def ask(self) -> Command:
            answer = loop.create_future()
            loop.call_later(0.05, answer.set_result, None)
            await answer
            return complete()

    run = await flow.start(Asking)
    await flow.settle()
    await run.refresh()
    assert run.status == "completed"
    assert run.ended_at == run.created_at


async def test_cancelled_run_wakes_no_more(flow: TimeMachine) -> None:
    """A run that was cancelled does not wake at its deadline."""
    run = await flow.start(Sleeper)
    await flow.advance(minutes=30)
    assert await flow.cancel(run.id, "enough")
    await flow.advance(days=1)
    await run.refresh()
    assert (run.status, len(run.context.ran_at)) == ("cancelled", 1)


async def test_process_scheduled_fires_nothing_that_is_not_due(flow: TimeMachine) -> None:
    """``process_scheduled()`` finds nothing to do, as nothing is overdue on virtual time."""
    await flow.start(Sleeper)
    await flow.advance(minutes=59)
    assert await flow.process_scheduled() == 0
