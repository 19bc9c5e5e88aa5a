"""Awaiting a run lets time jump; timeouts of waits are virtual, too."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import anyio.from_thread
import pytest
from pydantic import BaseModel

from aioflow import complete, engine, errors, get_context, get_run, goto, step, workflow
from aioflow.commands import Command
from aioflow.errors import TimeStandsStill
from aioflow.testing import TimeMachine
from tests.engine.conftest import Slow
from tests.timemachine.conftest import DAY, HOUR, Sleeper, hours_after


@pytest.fixture(autouse=True)
def _ready(flow: TimeMachine) -> Iterator[None]:
    """Let steps use the machine as applications do, as ``aioflow.engine``."""
    with engine.replaced_by(flow):
        yield


@workflow("waiting-parent")
class Parent:
    """Starts a child for each number of minutes, and awaits all of them."""

    class Context(BaseModel):
        minutes: list[float]
        patience: float | None = None
        ended_after: list[float] = []
        late: bool = False

    @step(start=True)
    async def wait(self) -> Command:
        context, begun = get_context(self.Context), get_run().now
        children = [await engine.start(Sleeper, minutes=minutes) for minutes in context.minutes]
        try:
            for child in await asyncio.gather(*(child.wait(context.patience) for child in children)):
                assert child.ended_at
                context.ended_after.append((child.ended_at - begun) / timedelta(minutes=1))
        except TimeoutError:
            context.late = True
        return complete()


@workflow("waiting-deadlock")
class Deadlock:
    """Awaits itself."""

    class Context(BaseModel):
        pass

    @step(start=True)
    async def wait(self) -> Command:
        await engine.wait(get_run().id)
        return complete()


async def test_wait_lets_time_jump(flow: TimeMachine) -> None:
    """A test that awaits a run that sleeps for a year gets it ended, at the right virtual time."""
    run = await flow.start(Sleeper, minutes=24 * 60, times=365)
    assert await run.wait() is run
    assert run.status == "completed"
    assert run.ended_at == flow.now == run.created_at + 365 * DAY


async def test_watch_lets_time_jump(flow: TimeMachine) -> None:
    """A test that watches a run gets all its transitions, each at its own virtual time."""
    run = await flow.start(Sleeper, minutes=24 * 60, times=30)
    seen = [transition async for transition in flow.watch(run.id)]
    assert [transition.kind for transition in seen] == ["start", *["sleep", "wake"] * 30, "complete"]
    assert [transition.at - run.created_at for transition in seen[2::2]] == [DAY * n for n in range(1, 31)]
    assert flow.now == run.created_at + 30 * DAY


async def test_watch_lets_time_jump_no_further_than_it_is_asked(flow: TimeMachine) -> None:
    """Leaving a watch leaves time where it is."""
    run = await flow.start(Sleeper, minutes=60, times=3)
    async for transition in flow.watch(run.id):
        if transition.kind == "wake":
            break
    await flow.settle()
    assert flow.now == run.created_at + HOUR


async def test_watch_of_a_run_that_cannot_end_raises(flow: TimeMachine) -> None:
    """Watching a run that awaits itself raises TimeStandsStill, like awaiting it."""
    run = await flow.start(Deadlock)
    with pytest.raises(TimeStandsStill, match="This wait cannot end"):
        async for _ in flow.watch(run.id):
            pass


async def test_result_lets_time_jump(flow: TimeMachine) -> None:
    """``run.result()`` lets time jump like ``run.wait()``."""
    run = await flow.start(Sleeper)
    assert len((await run.result()).ran_at) == 2


async def test_time_jumps_no_further_than_it_has_to(flow: TimeMachine) -> None:
    """A wait lets time jump only to what ends it, and not at all if the run has ended or parked."""
    short, long = await flow.start(Sleeper, minutes=5), await flow.start(Sleeper, minutes=50)
    await long.wait(until="parked")
    assert flow.now == long.created_at
    await short.wait()
    assert flow.now == short.ended_at == short.created_at + timedelta(minutes=5)
    await short.wait()
    await flow.settle()
    assert flow.now == short.ended_at
    assert (await flow.get(long.id)).status == "waiting"


async def test_handler_that_waits_answers(flow: TimeMachine) -> None:
    """Handlers that await runs in tasks of their own return while the test awaits only the handlers."""

    async def handler() -> float:
        run = await flow.start(Sleeper, minutes=90)
        return float((await run.result()).ran_at[-1])

    start = flow.now.timestamp()
    answers = await asyncio.gather(*(handler() for _ in range(3)))
    assert [answer - start for answer in answers] == [90 * 60] * 3


async def test_step_that_waits_lets_time_jump(flow: TimeMachine) -> None:
    """A step that awaits other runs counts as waiting: time jumps until they have ended."""
    run = await flow.start(Parent, minutes=[30, 10, 20])
    assert (await run.result()).ended_after == [30, 10, 20]
    assert run.created_at + timedelta(minutes=30) == flow.now


async def test_steps_that_wait_for_steps_that_wait(flow: TimeMachine) -> None:
    """Steps that await runs whose steps await runs let time jump, too."""

    @workflow("waiting-nested")
    class Nested:
        class Context(BaseModel):
            depth: int

        @step(start=True)
        async def descend(self) -> Command:
            depth = get_context(self.Context).depth
            child = await flow.start(Nested, depth=depth - 1) if depth else await flow.start(Sleeper)
            await child.result()
            return complete()

    run = await flow.start(Nested, depth=5)
    await run.result()
    assert flow.now == run.created_at + HOUR


async def test_steps_that_wait_do_not_hold_up_an_advance(flow: TimeMachine) -> None:
    """An advance ends at its instant, though a step awaits something later."""
    run = await flow.start(Parent, minutes=[90])
    start = flow.now
    await flow.advance(hours=1)
    assert flow.now == start + HOUR
    await flow.advance(hours=1)
    await run.refresh()
    assert run.status == "completed"
    assert run.ended_at == start + timedelta(minutes=90)


@pytest.mark.parametrize("timeout", [3600.0, HOUR])
async def test_timeouts_are_virtual(flow: TimeMachine, timeout: Any) -> None:
    """A wait whose timeout is over before the run ends raises at exactly that virtual instant."""
    run = await flow.start(Sleeper, minutes=61)
    start = flow.now
    with pytest.raises(TimeoutError, match=rf"^Run {run.id} has not ended within 3600 s\.$"):
        await run.wait(timeout)
    assert flow.now == start + HOUR
    await run.wait(60)
    assert run.status == "completed"


async def test_run_that_ends_with_the_timeout_is_in_time(flow: TimeMachine) -> None:
    """A run that ends exactly at the deadline of a wait is in time."""
    run = await flow.start(Sleeper, minutes=60)
    await run.wait(3600)
    assert run.status == "completed"


async def test_timeout_without_any_timer(flow: TimeMachine) -> None:
    """Time moves to the deadline of a wait, even if nothing else is ever due."""
    run = await flow.start(Deadlock)
    with pytest.raises(TimeoutError, match="has not ended within 86400 s"):
        await run.wait(DAY)
    assert flow.now == run.created_at + DAY


async def test_waits_are_over_in_order(flow: TimeMachine) -> None:
    """Concurrent waits time out in the order of their deadlines, each at its own instant."""
    run = await flow.start(Sleeper, minutes=60, times=10)
    seen: list[tuple[int, timedelta]] = []

    async def give_up_after(hours: int) -> None:
        with pytest.raises(TimeoutError):
            await run.wait(hours * HOUR + timedelta(minutes=1))
        seen.append((hours, flow.now - run.created_at))

    await asyncio.gather(*(give_up_after(hours) for hours in (3, 1, 2)))
    assert seen == [(hours, hours * HOUR + timedelta(minutes=1)) for hours in (1, 2, 3)]


async def test_steps_may_run_out_of_patience(flow: TimeMachine) -> None:
    """The timeout of a step's own wait is virtual, too, both in a wait and in an advance of the test."""
    for end in (lambda run: run.wait(), lambda run: flow.advance(hours=2)):
        run = await flow.start(Parent, minutes=[120], patience=600)
        await end(run)
        await run.refresh()
        assert run.context.late
        assert run.ended_at == run.created_at + timedelta(minutes=10)


async def test_real_work_holds_time_up(flow: TimeMachine) -> None:
    """While a step executes time does not jump, even if the test awaits another run."""
    slow = Slow()
    busy = await flow.start(slow.workflow)
    run = await flow.start(Sleeper)
    start = flow.now

    async def let_go() -> None:
        for _ in range(100):
            await asyncio.sleep(0)
        assert flow.now == start
        slow.gate.set()

    await asyncio.gather(run.wait(), let_go())
    await busy.refresh()
    assert (busy.ended_at, run.ended_at) == (start, start + HOUR)


async def test_wait_that_cannot_end_says_why(flow: TimeMachine) -> None:
    """A wait that cannot end raises after the machine's patience, and its error says what each run is doing."""
    run = await flow.start(Deadlock)
    with pytest.raises(TimeStandsStill) as caught:
        await run.wait()
    assert caught.value.stuck == (
        f"run {run.id} of workflow 'waiting-deadlock' is in step 'wait', which waits for a run itself",
    )
    assert isinstance(caught.value, AssertionError)
    await flow.cancel(run.id)


async def test_wait_that_another_task_ends(flow: TimeMachine) -> None:
    """A wait that no timer can end does not raise if another task of the test ends it within the patience."""
    run = await flow.start(Deadlock)

    async def cancel() -> None:
        for _ in range(100):
            await asyncio.sleep(0)
        await flow.cancel(run.id)

    await asyncio.gather(run.wait(), cancel())
    assert run.status == "cancelled"


async def test_other_tasks_have_their_turn_before_time_jumps(flow: TimeMachine) -> None:
    """Other tasks of the test that use the engine run before time jumps."""
    run = await flow.start(Sleeper)
    start = flow.now

    async def cancel() -> None:
        assert (await flow.get(run.id)).status != "completed"
        assert await flow.cancel(run.id)

    await asyncio.gather(run.wait(), cancel())
    assert (run.status, flow.now) == ("cancelled", start)


async def test_step_that_waits_can_be_cancelled(flow: TimeMachine) -> None:
    """Cancelling a run whose step awaits another run does not affect that other run."""
    run = await flow.start(Parent, minutes=[60])
    await flow.settle()
    assert await flow.cancel(run.id)
    (child,) = await flow.runs(workflow=Sleeper)
    await child.wait()
    assert (child.status, (await flow.get(run.id)).status) == ("completed", "cancelled")


async def test_wait_in_a_thread(flow: TimeMachine) -> None:
    """A sync step may await a run through anyio, and lets time jump as well."""

    @workflow("waiting-thread")
    class Threaded:
        class Context(BaseModel):
            pass

        @step(start=True)
        def ask(self) -> Command:
            child = anyio.from_thread.run(flow.start, Sleeper)
            anyio.from_thread.run(child.wait)
            return goto(self.end)

        @step
        def end(self) -> Command:
            return complete()

    run = await flow.start(Threaded)
    await run.result()
    assert flow.now == run.created_at + HOUR


async def test_unknown_run_is_not_waited_for(flow: TimeMachine) -> None:
    """Awaiting an unknown run raises at once, and moves no time."""
    await flow.start(Sleeper)
    start = flow.now
    with pytest.raises(errors.RunNotFound):
        await flow.wait(10**9)
    assert flow.now == start


async def test_a_stuck_wait_raises_after_waits_with_a_timeout(flow: TimeMachine) -> None:
    """A stuck wait without a timeout raises only after a concurrent wait with a timeout has timed out."""
    run = await flow.start(Deadlock)

    async def patient() -> None:
        with pytest.raises(TimeStandsStill):
            await run.wait()
        assert flow.now == run.created_at + HOUR

    async def impatient() -> None:
        with pytest.raises(TimeoutError):
            await run.wait(HOUR)

    await asyncio.gather(patient(), impatient())


async def test_time_never_goes_back(flow: TimeMachine) -> None:
    """Advances beside a wait that lets time jump never move time back, and each adds at least its span."""
    run = await flow.start(Sleeper, minutes=60, times=100)
    waiting = asyncio.create_task(run.wait())
    for _ in range(10):
        before = flow.now
        await flow.advance(minutes=90)
        assert flow.now >= before + timedelta(minutes=90)
    await waiting
    assert hours_after(run.created_at.timestamp(), run.context.ran_at) == list(range(101))
