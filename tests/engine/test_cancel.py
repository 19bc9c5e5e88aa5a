"""Cancelling runs: in every status, with races, and from any engine."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta

import pytest
from pydantic import BaseModel

from aioflow import Retry, RetryLater, StartOptions, complete, errors, get_context, goto, sleep, step, workflow
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, ShiftedClock, idle, kinds_of, run_of
from tests.support import wait_until

HOUR = timedelta(hours=1)


class Nothing(BaseModel):
    """A Context."""


# ---- running


async def test_step_that_runs_is_cancelled(make_engine: MakeEngine) -> None:
    """An async step of a cancelled run gets a CancelledError, and its changes are discarded; the run has the reason."""
    inside, seen = asyncio.Event(), []

    @workflow("cancel-running")
    class Flow:
        class Context(BaseModel):
            changed: int = 0

        @step(start=True)
        async def first(self) -> Command:
            get_context(self.Context).changed = 1
            return goto(self.second)

        @step
        async def second(self) -> Command:
            get_context(self.Context).changed = 2
            inside.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise
            return complete()

    async with make_engine(Flow) as engine:
        run = await engine.start(Flow)
        await inside.wait()
        assert await engine.cancel(run.id, "no longer wanted") is True
        await run.refresh()
        assert (run.status, run.error, run.current_step) == ("cancelled", "no longer wanted", "second")
        assert (run.data, run.waiting_for, run.wake_at) == ({"changed": 1}, None, None)
        assert run.ended_at == run.updated_at
        await wait_until(lambda: seen)
        await wait_until(lambda: idle(engine))
        rows = await engine.history(run.id)
        assert [row.kind for row in rows] == ["start", "goto", "cancel"]
        assert (rows[-1].error, rows[-1].step, rows[-1].seq) == ("no longer wanted", "second", 3)
        assert seen == ["cancelled"]


async def test_thread_of_a_cancelled_run_is_left_alone(make_engine: MakeEngine) -> None:
    """A sync step of a cancelled run goes on in its thread, and its result is discarded."""
    gate, path = threading.Event(), []

    @workflow("cancel-thread")
    class Flow:
        class Context(BaseModel):
            changed: bool = False

        @step(start=True)
        def work(self) -> Command:
            path.append("began")
            gate.wait(10)
            get_context(self.Context).changed = True
            path.append("ended")
            return goto(self.wrong)

        @step
        def wrong(self) -> Command:
            path.append("went on")
            return complete()

    @workflow("cancel-after")
    class After:
        Context = Nothing

        @step(start=True)
        def end(self) -> Command:
            return complete()

    async with make_engine(Flow, After) as engine:
        run = await engine.start(Flow)
        await wait_until(lambda: path)
        assert await engine.cancel(run.id)
        assert (await run.wait(1)).status == "cancelled"
        await wait_until(lambda: idle(engine))  # though the thread goes on
        assert path == ["began"]
        gate.set()
        await wait_until(lambda: len(path) > 1)
        assert (await run_of(engine, After)).status == "completed"
        await run.refresh()
        assert (run.status, run.error, run.data) == ("cancelled", None, {"changed": False})
        assert path == ["began", "ended"]
        assert await kinds_of(engine, run) == ["start", "cancel"]


async def test_run_can_cancel_itself(make_engine: MakeEngine) -> None:
    """A step may cancel its own run, and is then stopped; other runs go on."""

    @workflow("cancel-itself")
    class Flow:
        class Context(BaseModel):
            number: int

        @step(start=True)
        async def work(self) -> Command:
            if get_context(self.Context).number % 2:
                await engine.cancel(ids[get_context(self.Context).number], "by itself")
                await asyncio.Event().wait()
            return complete()

    ids: dict[int, int] = {}
    async with make_engine(Flow, max_running=1) as engine:
        gate = await engine.start(Flow, number=0)
        await gate.wait(5)
        runs = []
        for number in range(6):
            runs.append(await engine.start(Flow, StartOptions(delay=timedelta(0)), number=number))
            ids[number] = runs[-1].id
        for run in runs:
            await run.wait(5)
        assert [run.status for run in runs] == ["completed", "cancelled"] * 3


# ---- waiting


@workflow("cancel-waits", default_retry=Retry(base_delay=HOUR, max_delay=HOUR))
class Waits:
    """Waits in the way that its Context says, and fails if it goes on."""

    class Context(BaseModel):
        way: str
        gone_on: bool = False

    @step(start=True)
    async def wait(self) -> Command:
        context = get_context(self.Context)
        if context.way == "sleep":
            return sleep(HOUR, then=self.go_on)
        if context.way == "retry":
            raise ValueError("again")
        if context.way == "later":
            raise RetryLater(HOUR)
        return goto(self.go_on)

    @step
    async def go_on(self) -> Command:
        return complete(gone_on=True)


@pytest.mark.parametrize(
    ("way", "waiting_for"), [("sleep", "sleep"), ("retry", "retry"), ("later", "retry"), ("start", "start")]
)
@pytest.mark.parametrize("client", [False, True], ids=["worker", "client"])
async def test_waiting_run_is_cancelled_and_its_timer_never_fires(
    make_engine: MakeEngine, clock: ShiftedClock, way: str, waiting_for: str, client: bool
) -> None:
    """A waiting run, whatever it waits for, can be cancelled by any engine, and its timer then does nothing."""
    options = StartOptions(delay=HOUR) if way == "start" else StartOptions()
    async with make_engine(Waits) as engine, make_engine(Waits, worker=False) as other:
        run = await engine.start(Waits, options, way=way)
        await run.wait(5, until="parked")
        assert (run.status, run.waiting_for) == ("waiting", waiting_for)
        assert await (other if client else engine).cancel(run.id, "enough")
        await run.refresh()
        assert (run.status, run.error, run.waiting_for, run.wake_at) == ("cancelled", "enough", None, None)
        history = await engine.history(run.id)
        assert history[-1].kind == "cancel"
        clock.shift(2 * HOUR)
        assert await engine.process_scheduled() == 0
        assert (await run_of(engine, Waits, way="on")).status == "completed"
        assert await engine.history(run.id) == history
        assert (await engine.stats()).overdue == 0
    async with make_engine(Waits) as engine:
        assert await engine.process_scheduled() == 0
        assert await engine.history(run.id) == history


async def test_cancelled_runs_timer_does_not_hide_others(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """Of many runs due at once, cancelled ones stay cancelled, and all others wake."""
    async with make_engine(Waits) as engine:
        runs = [await engine.start(Waits, way="sleep") for _ in range(60)]
        for run in runs:
            await run.wait(5, until="parked")
        for run in runs[::2]:
            assert await engine.cancel(run.id)
        clock.shift(HOUR)
        for run in runs:
            await run.wait(5)
        assert [run.status for run in runs] == ["cancelled", "completed"] * 30


# ---- what cannot be cancelled


async def test_ended_run_is_left_alone(make_engine: MakeEngine) -> None:
    """Cancelling a run that has ended, in whatever way, returns False and changes nothing."""
    async with make_engine(Waits) as engine:
        completed = await run_of(engine, Waits, way="on")
        cancelled = await engine.start(Waits, way="sleep")
        assert await engine.cancel(cancelled.id, "first")
        for run in (completed, cancelled):
            await run.refresh()
            history = await engine.history(run.id)
            assert await engine.cancel(run.id, "second") is False
            assert await engine.get(run.id) == run
            assert await engine.history(run.id) == history
        assert cancelled.error == "first"


async def test_cancel_wants_an_id_and_a_reason(make_engine: MakeEngine) -> None:
    """Cancelling an unknown run is RunNotFound, and a reason that is no string is a TypeError."""
    async with make_engine(Waits) as engine:
        with pytest.raises(errors.RunNotFound, match=r"^There is no run 4711 in this store\."):
            await engine.cancel(4711, "gone")
        run = await engine.start(Waits, way="sleep")
        with pytest.raises(TypeError, match=r"^cancel\(reason\) takes a string, got int\.$"):
            await engine.cancel(run.id, 7)
        assert (await run.wait(5, until="parked")).status == "waiting"


@pytest.mark.parametrize(
    ("reason", "kept"), [("", ""), ("two\nlines ✓", "two\nlines ✓"), ("a\0b", "a\\0b"), ("\ud800", "\\ud800")]
)
async def test_reason_is_kept(make_engine: MakeEngine, reason: str, kept: str) -> None:
    """``run.error`` and the history have the reason, as text that every store can hold."""
    async with make_engine(Waits) as engine:
        run = await engine.start(Waits, way="sleep")
        assert await engine.cancel(run.id, reason)
        await run.refresh()
        assert run.error == kept
        assert (await engine.history(run.id))[-1].error == kept


async def test_only_one_of_many_cancels_counts(make_engine: MakeEngine) -> None:
    """Of fifty concurrent cancels of a run, from two engines, one returns True, and its reason is stored."""
    async with make_engine(Waits) as engine, make_engine(Waits, worker=False) as other:
        run = await engine.start(Waits, way="sleep")
        calls = [(engine, other)[number % 2].cancel(run.id, str(number)) for number in range(50)]
        told = await asyncio.gather(*calls)
        assert told.count(True) == 1
        await run.refresh()
        assert run.error == str(told.index(True))
        assert (await kinds_of(engine, run)).count("cancel") == 1
