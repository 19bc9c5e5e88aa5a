"""``aioflow.engine``: the ready engine, and what it does while another engine replaces it."""

from __future__ import annotations

import asyncio
import os
import signal
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import BaseModel

import aioflow
from aioflow import Engine, complete, engine, sleep, step, workflow
from aioflow.commands import Command
from aioflow.errors import EngineClosed
from aioflow.testing import TimeMachine
from tests.support import wait_until


@workflow("ready-nap")
class Nap:
    """A workflow that sleeps for an hour."""

    class Context(BaseModel):
        pass

    @step(start=True)
    async def rest(self) -> Command:
        return sleep(timedelta(hours=1), then=self.end)

    @step
    async def end(self) -> Command:
        return complete()


async def test_calls_go_to_the_stand_in() -> None:
    """While it is replaced, calls of the ready engine and of its runs reach the replacement, in virtual time."""
    async with TimeMachine() as flow:
        with engine.replaced_by(flow):
            run = await aioflow.engine.start(Nap)
            await run.wait()
            assert run.ended_at == flow.now
            assert isinstance(run.context, BaseModel)
            assert [found.id for found in await engine.runs(workflow=Nap)] == [run.id]
            assert await engine.count() == await flow.count() == 1
            assert (await engine.get(run.id)).data == {}
            assert [row.kind for row in await engine.history(run.id)] == ["start", "sleep", "wake", "complete"]
            assert engine.instruments is flow.instruments
            assert repr(engine) == repr(flow)
        assert engine.instruments is not flow.instruments
        with pytest.raises(EngineClosed):
            await engine.count()
        with pytest.raises(EngineClosed):
            await run.refresh()


async def test_opening_it_does_nothing_while_it_is_replaced() -> None:
    """``async with engine`` and ``engine.lifespan`` neither open nor close the replacement."""
    async with TimeMachine() as flow:
        with engine.replaced_by(flow):
            async with engine as opened, engine.lifespan():
                assert opened is engine
                await (await engine.start(Nap)).wait()
            assert await engine.count() == 1


async def test_it_knows_what_its_stand_in_knows() -> None:
    """While it is replaced, the ready engine has the replacement's registry, and afterwards its own."""
    flow = TimeMachine(workflows=[Nap])
    before = engine.registry
    with engine.replaced_by(flow):
        assert engine.registry is flow.registry
        assert engine.registry.known() == [("ready-nap", "1")]
    assert engine.registry is before


async def test_stand_ins_nest() -> None:
    """Replacements nest: the inner one takes the calls, and the outer one is back afterwards, even after an error."""
    async with TimeMachine() as one, TimeMachine() as other:
        with engine.replaced_by(one):
            try:
                with engine.replaced_by(other):
                    await engine.start(Nap)
                    raise ZeroDivisionError
            except ZeroDivisionError:
                pass
            assert await engine.count() == 0
            assert await other.count() == 1


async def test_an_engine_that_is_open_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the ready engine was open before it was replaced, it can be closed while it is, and its state comes back."""
    monkeypatch.setenv("AIOFLOW_DATABASE_URL", f"sqlite:///{tmp_path}/ready.db")
    async with TimeMachine() as flow:
        async with engine:
            with engine.replaced_by(flow):
                assert await engine.count() == 0
            await engine.start(Nap)
            assert await engine.count() == 1
            standing_in = engine.replaced_by(flow)
            standing_in.__enter__()
        assert await engine.count() == 0
        standing_in.__exit__(None, None, None)
        assert repr(engine) == "<Engine closed>"


async def test_run_forever_waits_for_the_signal_only() -> None:
    """``run_forever`` of a replaced engine waits for SIGTERM, and neither opens nor closes the replacement."""
    async with TimeMachine() as flow:
        with engine.replaced_by(flow):
            service = asyncio.create_task(engine.run_forever())
            await wait_until(lambda: signal.getsignal(signal.SIGTERM) != signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
            await service
            assert await engine.count() == 0


def test_it_is_an_engine() -> None:
    """``aioflow.engine`` is an instance of Engine."""
    assert isinstance(engine, Engine)
