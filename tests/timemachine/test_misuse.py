"""Misuse of a machine raises an error that explains it, and leaves the machine usable."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import Engine, RetryLater, complete, sleep, step, workflow
from aioflow.commands import Command
from aioflow.errors import BackendUnknown, EngineClosed, UsageError
from aioflow.testing import TimeMachine
from tests.support import wait_until
from tests.timemachine.conftest import HOUR, Sleeper


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda flow: flow.advance(), TypeError, "takes how much time is to pass, once"),
        (lambda flow: flow.advance(HOUR, hours=1), TypeError, "takes how much time is to pass, once"),
        (lambda flow: flow.advance(3600), TypeError, "takes a timedelta or an aware datetime, got int"),
        (lambda flow: flow.advance(hour=1), TypeError, "'hour'"),
        (lambda flow: flow.advance(-HOUR), ValueError, "must not be negative"),
        (lambda flow: flow.advance(hours=-1), ValueError, "must not be negative"),
        (lambda flow: flow.advance(datetime(2030, 1, 1)), ValueError, "must be aware"),  # noqa: DTZ001 - naive
        (lambda flow: flow.advance(flow.now - HOUR), ValueError, "cannot go back"),
        (lambda flow: flow.advance(timedelta.max), ValueError, "beyond the year 9999"),
        (lambda flow: flow.advance(weeks=10**12), OverflowError, "too large"),
    ],
)
async def test_impossible_advance_is_refused(flow: TimeMachine, call: Any, error: type[Exception], text: str) -> None:
    """An advance backwards, or by something that is no time, raises and does not move time."""
    start = flow.now
    with pytest.raises(error, match=text):
        await call(flow)
    assert flow.now == start
    await flow.advance(HOUR)


async def test_advance_of_no_time_settles(flow: TimeMachine) -> None:
    """An advance by zero is allowed, and settles."""
    run = await flow.start(Sleeper, times=0)
    await flow.advance(hours=0)
    await run.refresh()
    assert run.status == "completed"


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"now": datetime(2030, 1, 1)}, ValueError, r"TimeMachine\(now=...\) must be aware"),  # noqa: DTZ001 - naive
        ({"now": "2030"}, TypeError, "takes a datetime, got str"),
        ({"patience": 5}, TypeError, "takes a timedelta, got int"),
        ({"patience": -HOUR}, ValueError, "must not be negative"),
        ({"max_running": 0}, ValueError, "must be at least 1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], error: type[Exception], text: str) -> None:
    """A machine with wrong options is refused."""
    with pytest.raises(error, match=text):
        TimeMachine(**options)


async def test_unknown_store_is_refused() -> None:
    """A URL that no backend serves is refused, as by an engine."""
    with pytest.raises(BackendUnknown):
        await TimeMachine("nosuch://x").__aenter__()


async def test_closed_machine_moves_nothing() -> None:
    """A machine that is not open tells its time, and refuses to move it."""
    flow = TimeMachine(now=datetime(2030, 5, 1, tzinfo=UTC))
    assert isinstance(flow, Engine)
    assert flow.now == datetime(2030, 5, 1, tzinfo=UTC)
    for call in (flow.settle, lambda: flow.advance(hours=1)):
        with pytest.raises(EngineClosed):
            await call()


async def test_open_machine_is_not_opened_again(flow: TimeMachine) -> None:
    """Opening an open machine is refused, and leaves it open."""
    with pytest.raises(UsageError, match="is open already"):
        await flow.__aenter__()
    await (await flow.start(Sleeper)).wait()


async def test_two_advances_at_once_are_refused(flow: TimeMachine) -> None:
    """While one task advances, a second advance is refused, and ``settle`` is allowed."""
    run = await flow.start(Sleeper, minutes=60, times=5)
    start = flow.now

    async def disturb() -> None:
        await asyncio.sleep(0)
        with pytest.raises(UsageError, match="while time is advancing already"):
            await flow.advance(hours=1)

    await asyncio.gather(flow.advance(hours=10), disturb(), flow.settle())
    assert flow.now == start + 10 * HOUR
    await run.refresh()
    assert run.status == "completed"


@pytest.mark.parametrize("call", ["settle", "advance"])
async def test_steps_do_not_move_time(flow: TimeMachine, call: str) -> None:
    """``settle`` and ``advance`` in a step of the same machine, which would wait for that step, raise an error."""
    told: list[str] = []

    @workflow("misuse-inside")
    class Inside:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def move(self) -> Command:
            try:
                await (flow.settle() if call == "settle" else flow.advance(hours=1))
            except UsageError as error:
                told.append(str(error))
            return complete()

    run = await flow.start(Inside)
    await run.wait()
    (text,) = told
    assert text == (
        f"flow.{call}() is called from inside a step, which it would wait for. "
        "A step that awaits run.wait() lets time pass by itself."
    )


@pytest.mark.parametrize("how", ["sleep", "later"])
async def test_run_without_end_is_found(how: str) -> None:
    """A run that wakes endlessly without time passing raises an error that names it, so that the test does not hang."""

    @workflow("misuse-endless")
    class Endless:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def spin(self) -> Command:
            if how == "later":
                raise RetryLater(timedelta(0))
            return sleep(timedelta(0))

    async with TimeMachine() as flow:
        run = await flow.start(Endless)
        for call in (flow.settle, run.wait, lambda: flow.advance(hours=1)):
            with pytest.raises(UsageError, match=f"^Run {run.id} has woken 10000 times without any time passing"):
                await call()
        await flow.cancel(run.id)


async def test_advance_that_is_cancelled_can_be_repeated(flow: TimeMachine) -> None:
    """After an advance was cancelled, time is where it had come to, and another advance works."""
    await flow.start(Sleeper, minutes=1, times=10**6)
    start = flow.now
    task = asyncio.create_task(flow.advance(days=365))
    await wait_until(lambda: flow.now > start)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    reached = flow.now
    assert start < reached < start + 365 * 24 * HOUR
    await flow.advance(minutes=1)
    assert flow.now == reached + timedelta(minutes=1)
