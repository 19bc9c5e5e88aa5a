"""Event workflows whose create_context is slow: only their own starts wait for it."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from anyio import to_thread
from pydantic import BaseModel

from aioflow import (
    Engine,
    Event,
    complete,
    entity_loader,
    event_workflow,
    get_context,
    goto,
    on,
    step,
    wait,
    wait_for_event,
    workflow,
)
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, ShiftedClock
from tests.support import wait_until

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
#: More starts than a scan reads at once.
MANY = 700


class Gated:
    """A workflow whose create_context waits for ``gate``; counts the current and all calls for each event."""

    def __init__(self) -> None:
        self.gate = gate = asyncio.Event()
        self.asking: set[str] = set()
        self.asked: Counter[str] = Counter()
        asking, asked = self.asking, self.asked

        @event_workflow("slow-made", name="slow-start")
        class Flow:
            class Context(BaseModel):
                pass

            @classmethod
            async def create_context(cls, event: Event) -> Any:
                asked[event.id] += 1
                asking.add(event.id)
                try:
                    await gate.wait()
                finally:
                    asking.discard(event.id)
                return cls.Context()

            @step(start=True)
            async def begin(self) -> Command:
                return complete()

        self.workflow = Flow


@event_workflow("slow-easy", name="slow-easy")
class Easy:
    """Completes at once."""

    @step(start=True)
    async def begin(self) -> Command:
        return complete()


@workflow("slow-waits")
class Waits:
    """Waits for an event."""

    class Context(BaseModel):
        pass

    @step(start=True)
    async def ask(self) -> Command:
        return wait_for_event("slow-told", then=self.end)

    @step
    async def end(self) -> Command:
        return complete()


async def ended(engine: Engine, flow: type, count: int) -> None:
    """Wait until this many runs have completed."""

    async def all_ended() -> bool:
        return await engine.count(workflow=flow, status="completed") == count

    await wait_until(all_ended, 20, what=f"{count} runs of {flow.__name__}")


async def test_other_starts_do_not_wait_for_slow_ones(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """Other starts and waits for events go on beside many starts that hang, and those are made once the gate opens."""
    slow = Gated()
    flows = (slow.workflow, Easy, Waits)
    async with make_engine(*flows) as engine, make_engine(*flows, worker=False) as client:
        run = await (await engine.start(Waits)).wait(5, until="parked")
        await asyncio.gather(*(engine.emit("slow-made") for _ in range(MANY)))
        await engine.emit("slow-told", at=clock.now() + HOUR)
        await wait_until(lambda: slow.asking)
        await engine.emit("slow-easy")
        await ended(engine, Easy, 1)
        await client.emit("slow-easy")
        await ended(engine, Easy, 2)
        clock.shift(HOUR)
        assert (await run.wait(5)).status == "completed"
        assert len(slow.asking) == 100
        slow.gate.set()
        await ended(engine, slow.workflow, MANY)
        assert (await engine.stats()).planned == 0
    assert set(slow.asked.values()) == {1}


async def test_closing_does_not_wait_for_slow_starts(make_engine: MakeEngine) -> None:
    """An engine that closes does not wait for slow starts, and the next engine makes them."""
    slow = Gated()
    async with make_engine(slow.workflow) as engine:
        await asyncio.gather(*(engine.emit("slow-made") for _ in range(250)))
        await wait_until(lambda: len(slow.asking) == 100)
    assert not slow.asking
    slow.gate.set()
    async with make_engine(slow.workflow) as engine:
        await ended(engine, slow.workflow, 250)
        assert await engine.count() == 250


async def test_process_scheduled_waits_for_slow_starts(make_engine: MakeEngine) -> None:
    """process_scheduled of a client returns only when every due start is made."""
    slow = Gated()
    async with make_engine(slow.workflow):
        pass
    async with make_engine(slow.workflow, worker=False) as client:
        await asyncio.gather(*(client.emit("slow-made") for _ in range(250)))
        doing = asyncio.create_task(client.process_scheduled())
        await wait_until(lambda: len(slow.asking) == 100)
        slow.gate.set()
        assert await doing == 250
        assert (await client.count(), (await client.stats()).planned) == (250, 0)


@pytest.mark.parametrize("offset", [0, 60])
async def test_a_run_started_late_misses_no_event(make_engine: MakeEngine, clock: ShiftedClock, offset: int) -> None:
    """A run that is started late gets all events for its entity since it was due, but none before, nor its own."""
    gate, asked = asyncio.Event(), asyncio.Event()

    class Heard(BaseModel):
        heard: list[str] = []

    @event_workflow("slow-booked", name="slow-misses-nothing", offset_minutes=offset)
    class Flow:
        Context = Heard

        @classmethod
        async def create_context(cls, event: Event) -> Heard:
            asked.set()
            await gate.wait()
            return Heard()

        @step(start=True)
        async def ask(self) -> Command:
            arms = [on.event(name, entity_id=7, then=self.hear) for name in ("slow-booked", "slow-paid")]
            return wait.any(*arms, on("end", then=self.end))

        @step
        async def hear(self, event: Event) -> Command:
            get_context(Heard).heard.append(event.id)
            return goto(self.ask)

        @step
        async def end(self) -> Command:
            return complete()

    async with make_engine(Flow) as engine:
        await engine.emit("slow-booked", {"id": 7}, at=clock.now() + (60 - offset) * MINUTE, event_id="booked")
        await engine.emit("slow-paid", entity_id=7, event_id="too soon")
        clock.shift(HOUR)
        await asyncio.wait_for(asked.wait(), 5)
        for event_id in ("first", "second"):
            await engine.emit("slow-paid", entity_id=7, event_id=event_id)
            clock.shift(MINUTE)
        gate.set()

        async def heard() -> bool:
            return [run.data["heard"] for run in await engine.runs(event_id="booked")] == [["first", "second"]]

        await wait_until(heard)
        await engine.signal("end", run_id=(await engine.runs(event_id="booked"))[0].id)
        await ended(engine, Flow, 1)
        assert await heard()


class Hung(BaseModel):
    """An entity whose loader hangs."""

    id: int


class Loaded(BaseModel):
    """An entity whose loader returns at once."""

    id: int


@pytest.fixture
def held() -> Iterator[threading.Event]:
    """The event for which the loader of Hung waits."""
    event = threading.Event()

    @entity_loader(Hung)
    def load_slowly(entity_id: str) -> Hung:
        event.wait()
        return Hung(id=int(entity_id))

    @entity_loader(Loaded)
    def load(entity_id: str) -> Loaded:
        return Loaded(id=int(entity_id))

    yield event
    event.set()


async def test_a_loader_that_hangs_in_its_thread(
    make_engine: MakeEngine, clock: ShiftedClock, held: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loader that hangs in its thread is given up and retried, and blocks neither other loaders nor other threads."""
    loaded: list[Any] = []

    @event_workflow("slow-hung", name="slow-hung")
    class Hangs:
        @step(start=True)
        async def begin(self, event: Event) -> Command:
            return complete()

    @event_workflow("slow-loaded", name="slow-loaded")
    class Loads:
        @step(start=True)
        async def begin(self, event: Event) -> Command:
            loaded.append(event.entity)
            return complete()

    async with make_engine(Hangs, Loads) as engine:
        await asyncio.gather(*(engine.emit("slow-hung", Hung(id=number)) for number in range(50)))
        await engine.emit("slow-loaded", Loaded(id=7))
        await ended(engine, Loads, 1)
        assert loaded == [Loaded(id=7)]
        assert await asyncio.wait_for(to_thread.run_sync(int, "7"), 5) == 7
    monkeypatch.setattr("aioflow.planner.LONGEST_ASK", 0.05)
    async with make_engine(Hangs, Loads) as engine:

        async def failing() -> bool:
            return (await engine.stats()).failing == 50

        await wait_until(failing)
        held.set()
        clock.shift(HOUR)
        await ended(engine, Hangs, 50)
