"""Events whose workflow no worker knows: their starts are blocked, and made once a worker knows it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import uuid4

import pytest
from pydantic import BaseModel
from structlog.typing import EventDict

from aioflow import Engine, complete, event_workflow, step, workflow
from aioflow.changes import Listen
from aioflow.clock import LAST_INSTANT
from aioflow.commands import Command
from aioflow.model import Deadline
from aioflow.plans import Listener
from aioflow.store import Store
from aioflow.timers import START
from tests.engine.conftest import MakeEngine, ShiftedClock
from tests.support import wait_until

HOUR = timedelta(hours=1)
#: The log event of a start whose workflow is unknown.
BLOCKED = "starts of a workflow that this worker does not know are blocked, until one comes that does"


@workflow("bs-other")
class Other:
    """The other workflow of the engine."""

    class Context(BaseModel):
        pass

    @step(start=True)
    async def begin(self) -> Command:
        return complete()


def release(name: str, event: str, begun: list[str] | None = None) -> type:
    """A release of the code that has the workflow which the event starts."""

    @event_workflow(event, name=name)
    class Greets:
        @step(start=True)
        async def begin(self) -> Command:
            if begun is not None:
                begun.append(name)
            return complete()

    return Greets


async def counts(engine: Engine) -> tuple[int, int, int]:
    """How many starts are planned, failing and blocked."""
    stats = await engine.stats()
    return stats.planned, stats.failing, stats.blocked_starts


async def all_blocked(engine: Engine, count: int) -> None:
    """Wait until this many starts are blocked, and no others are planned."""

    async def blocked() -> bool:
        return await counts(engine) == (count, 0, count)

    await wait_until(blocked, what=f"{count} blocked starts")


async def due(engine: Engine) -> list[Deadline]:
    """Every plan that the store still reports as due at some time."""
    assert engine._parts is not None
    return await engine._parts.store.due(START, (LAST_INSTANT, 1 << 62), 1_000, engine._parts.clock.micros(), "plan")


async def tell(engine: Engine, name: str, event: str) -> None:
    """Register a listener in the store, as an earlier release of the code did."""
    assert engine._parts is not None
    await engine._parts.committer.commit(Listen((name,), (Listener(name, event, "*", 0),)))


async def test_a_start_without_code_is_blocked(make_engine: MakeEngine, log: list[EventDict]) -> None:
    """The starts of an unknown workflow are blocked: counted, logged once, no longer due, and made by later code."""
    begun: list[str] = []
    flow = release("bs-gone", "bs-visit", begun)
    async with make_engine(flow):
        pass  # registers the listeners in the store
    for blocked in (2, 4):
        async with make_engine(Other) as engine:
            await engine.emit("bs-visit")
            await engine.emit("bs-visit")
            await engine.emit("bs-free")
            await all_blocked(engine, blocked)
            assert await due(engine) == []
            assert await engine.count() == 0
    lines = [entry for entry in log if entry["event"] == BLOCKED]
    assert [(line["workflow"], line["log_level"]) for line in lines] == [("bs-gone", "warning")] * 2
    assert "No workflow 'bs-gone' is known to this engine (known: bs-other)" in lines[0]["error"]
    async with make_engine(Other, flow) as engine:
        await wait_until(lambda: len(begun) == 4)
        assert await counts(engine) == (0, 0, 0)
        assert (await engine.stats()).events == {"occurred": 6}


@pytest.mark.parametrize("later", [False, True], ids=["at once", "an hour later"])
async def test_code_that_is_defined_later_makes_it_at_once(
    make_engine: MakeEngine, clock: ShiftedClock, later: bool
) -> None:
    """A blocked start is made by the same process once the workflow is defined, at once or an hour later."""
    name, begun = f"bs-{uuid4()}", []  # no engine has known it before
    async with make_engine() as engine:
        await tell(engine, name, name)
        await engine.emit(name)
        await all_blocked(engine, 1)
        if later:
            clock.shift(HOUR)
        release(name, name, begun)
        await wait_until(lambda: begun)
        assert await counts(engine) == (0, 0, 0)


async def test_workflow_defined_while_its_start_is_being_blocked(
    make_engine: MakeEngine, store_url: str | Store
) -> None:
    """A workflow that is defined while its start is being blocked, or just after, is started."""
    names = [f"bs-{uuid4()}" for _ in range(20)]
    begun: list[str] = []
    async with make_engine() as engine:
        for name in names:
            await tell(engine, name, name)
        for number, name in enumerate(names):
            await engine.emit(name)
            if number % 2:
                await all_blocked(engine, 1)
            release(name, name, begun)
            await wait_until(lambda name=name: name in begun)  # type: ignore[misc]
        assert sorted(begun) == sorted(names)


async def test_a_client_blocks_nothing(make_engine: MakeEngine) -> None:
    """process_scheduled of a client leaves the start of an unknown workflow to workers, and does not block it."""
    begun: list[str] = []
    flow = release("bs-workers", "bs-visit", begun)
    async with make_engine(flow):
        pass
    async with make_engine(Other, worker=False) as client:
        await client.emit("bs-visit")
        assert await client.process_scheduled() == 0
        assert await counts(client) == (1, 0, 0)
    async with make_engine(flow):
        await wait_until(lambda: begun)


async def test_blocked_starts_go_with_a_cancelled_or_moved_event(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """Cancelling or moving an event removes its blocked start; only the new occurrence is started later."""
    begun: list[str] = []
    flow = release("bs-moved", "bs-visit", begun)
    async with make_engine(flow):
        pass
    async with make_engine(Other) as engine:
        await engine.emit("bs-visit", event_id="cancelled")
        await engine.emit("bs-visit", event_id="moved")
        await all_blocked(engine, 2)
        await engine.cancel_event("cancelled")
        assert await counts(engine) == (1, 0, 1)
        await engine.emit("bs-visit", event_id="moved", at=clock.now() + HOUR, replace=True)
        assert await counts(engine) == (1, 0, 0)
        clock.shift(2 * HOUR)
        await all_blocked(engine, 1)
    async with make_engine(flow) as engine:
        await wait_until(lambda: begun)
        assert (await counts(engine), begun) == ((0, 0, 0), ["bs-moved"])


@pytest.mark.parametrize("store_url", ["memory", "postgres"], indirect=True)
async def test_a_worker_that_has_the_code_makes_what_another_has_blocked(make_engine: MakeEngine) -> None:
    """With two workers, starts that the one without the code sees first are made by the one that has it."""
    begun: list[str] = []
    flow = release("bs-elsewhere", "bs-visit", begun)
    async with make_engine(flow), make_engine(Other) as other:
        for _ in range(5):
            await other.emit("bs-visit")
        await wait_until(lambda: len(begun) == 5)
        assert await counts(other) == (0, 0, 0)


async def test_many_starts_are_blocked_and_made(make_engine: MakeEngine) -> None:
    """More starts than fit into one page are blocked, and each is made once later."""
    begun: list[str] = []
    flow = release("bs-many", "bs-visit", begun)
    async with make_engine(flow):
        pass
    async with make_engine(Other) as engine:
        await asyncio.gather(*(engine.emit("bs-visit", event_id=f"e{number}") for number in range(1_200)))
        await all_blocked(engine, 1_200)
    async with make_engine(flow) as engine:

        async def ended() -> bool:
            return await engine.count(status="completed") == 1_200

        await wait_until(ended)
        assert (len(begun), await counts(engine), await engine.count()) == (1_200, (0, 0, 0), 1_200)
