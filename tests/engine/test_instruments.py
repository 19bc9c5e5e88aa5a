"""Instruments: they are told of everything, and cannot disturb a run."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import Retry, complete, get_run, goto, step, workflow
from aioflow.commands import Command
from aioflow.model import Run, Transition
from tests.engine.conftest import MakeEngine, kinds_of, run_of


@workflow("instruments-order", default_retry=Retry(max_attempts=2, base_delay=timedelta(0)))
class Order:
    """A workflow whose first attempt fails."""

    class Context(BaseModel):
        secret: str = "s3cret"

    @step(start=True)
    async def pay(self) -> Command:
        if get_run().attempt == 1:
            raise ValueError("declined")
        return goto(self.ship)

    @step
    def ship(self) -> Command:
        return complete()


class Recorder:
    """An instrument that records its calls."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def committed(self, run: Run, transition: Transition) -> None:
        assert run.seq == transition.seq
        self.told.append(("committed", transition.kind, run.status))

    def step_started(self, run: Run) -> None:
        self.told.append(("started", run.step))

    def step_ended(self, run: Run, error: BaseException | None) -> None:
        self.told.append(("ended", run.step, type(error).__name__ if error else None))


class Broken(Recorder):
    """An instrument that records its calls and then raises."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error

    def committed(self, run: Run, transition: Transition) -> None:
        super().committed(run, transition)
        raise self.error

    def step_started(self, run: Run) -> None:
        super().step_started(run)
        raise self.error

    def step_ended(self, run: Run, error: BaseException | None) -> None:
        super().step_ended(run, error)
        raise self.error


TOLD = [
    ("committed", "start", "running"),
    ("started", "pay"),
    ("ended", "pay", "ValueError"),
    ("committed", "retry", "waiting"),
    ("committed", "wake", "running"),
    ("started", "pay"),
    ("ended", "pay", None),
    ("committed", "goto", "running"),
    ("started", "ship"),
    ("ended", "ship", None),
    ("committed", "complete", "completed"),
]


async def test_instruments_are_told_of_everything(make_engine: MakeEngine, log: list[Any]) -> None:
    """An instrument gets every transition and every step, in order, and the log has no values of the Context."""
    engine = make_engine(Order)
    recorder = Recorder()
    engine.instruments.append(recorder)
    async with engine:
        run = await run_of(engine, Order)
    assert recorder.told == TOLD
    warnings = [(entry["run_id"], entry["error"]) for entry in log if entry["log_level"] == "warning"]
    assert warnings == [(run.id, "ValueError: declined")]
    assert {"run started", "run completed"} <= {entry["event"] for entry in log}
    assert "s3cret" not in str(log)


@pytest.mark.parametrize("error", [RuntimeError, KeyError, asyncio.CancelledError])
async def test_instrument_that_raises_breaks_no_run(
    make_engine: MakeEngine, log: list[Any], error: type[BaseException]
) -> None:
    """If an instrument raises, runs complete, other instruments get every call, and it is logged once."""
    engine = make_engine(Order, shutdown_timeout=timedelta(0))
    broken, recorder = Broken(error), Recorder()
    engine.instruments[:0] = [broken]
    engine.instruments.append(recorder)

    async def program() -> None:
        async with engine:
            for _ in range(3):
                run = await engine.start(Order)
                assert (await run.wait(3)).status == "completed"
            assert await kinds_of(engine, run) == ["start", "retry", "wake", "goto", "complete"]

    task = asyncio.ensure_future(program())  # so that what it raises does not cancel the test itself
    await asyncio.wait([task], timeout=10)
    assert task.done()
    assert not task.cancelled()
    task.result()
    assert broken.told == recorder.told == TOLD * 3
    reports = [entry for entry in log if entry["event"].startswith("instrument raised")]
    assert [(entry["instrument"], entry["method"]) for entry in reports] == [("Broken", "committed")]


async def test_instrument_may_lack_methods(make_engine: MakeEngine) -> None:
    """An instrument without the methods does not disturb a run."""
    engine = make_engine(Order)
    engine.instruments.append(object())
    async with engine:
        assert (await run_of(engine, Order)).status == "completed"
