"""The entity of an event that a workflow gets: of its own type, fresh from a loader, or a mapping."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from structlog.typing import EventDict

from aioflow import (
    Engine,
    Event,
    Retry,
    complete,
    entity_loader,
    entity_type,
    event_workflow,
    get_context,
    goto,
    step,
    wait_for_event,
    workflow,
)
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, ShiftedClock
from tests.support import wait_until

#: The other process: its class has the entity type "elsewhere-order" too, and it has another one of its own.
ELSEWHERE = """
import asyncio, sys
from pydantic import BaseModel
from aioflow import Engine, entity_type

@entity_type("elsewhere-order")
class TheirOrder(BaseModel):
    id: int
    total: float
    note: str = ""

class Private(BaseModel):
    id: str
    lines: list[int]

async def main():
    async with Engine(sys.argv[1], worker=False) as engine:
        print("open", flush=True)
        sys.stdin.readline()
        for number in range(20):
            await engine.emit("elsewhere-placed", TheirOrder(id=number, total=number / 4), event_id=f"order-{number}")
        await engine.emit("elsewhere-placed", Private(id="p", lines=[1, 2]), event_id="private")

asyncio.run(main())
"""


@entity_type("elsewhere-order")
class OurOrder(BaseModel):
    """The entity type in this process: with the other's fields, except one."""

    id: int
    total: float


async def test_events_of_other_processes(tmp_path: Path) -> None:
    """Each event that three other processes emit starts one run, with its entity of our type or as a mapping."""
    given: dict[str, Any] = {}
    begun: Counter[str] = Counter()

    @event_workflow("elsewhere-placed", name="elsewhere-flow")
    class Flow:
        @step(start=True)
        async def begin(self, event: Event) -> Command:
            begun[event.id] += 1
            given[event.id] = event.entity
            return complete()

    (tmp_path / "elsewhere.py").write_text(ELSEWHERE, encoding="utf-8")
    url = f"sqlite:///{tmp_path}/x.db"
    async with Engine(url, workflows=[Flow]) as engine:
        pipe = asyncio.subprocess.PIPE
        others = [
            await asyncio.create_subprocess_exec(
                sys.executable, str(tmp_path / "elsewhere.py"), url, stdin=pipe, stdout=pipe, stderr=pipe
            )
            for _ in range(3)
        ]
        try:
            for other in others:
                assert other.stdout is not None
                assert await other.stdout.readline() == b"open\n"
            said = await asyncio.gather(*(other.communicate(b"go\n") for other in others))
            assert [other.returncode for other in others] == [0] * 3, said
        finally:
            for other in others:
                if other.returncode is None:
                    other.kill()
                    await other.wait()

        async def all_ended() -> bool:
            return await engine.count(status="completed") == 21

        await wait_until(all_ended)
        assert (await engine.count(), (await engine.stats()).planned) == (21, 0)
        assert sorted(event.id for event in await engine.events()) == sorted(begun)
    assert set(begun.values()) == {1}
    assert given.pop("private") == {"id": "p", "lines": [1, 2]}
    assert given == {f"order-{number}": OurOrder(id=number, total=number / 4) for number in range(20)}


class Account(BaseModel):
    """An entity with a loader."""

    id: str
    balance: int = 0


class Loaded(BaseModel):
    """A Context with the balances of an account."""

    balance: int = -1
    again: int = -1


@pytest.mark.parametrize("later", [False, True], ids=["sync", "async"])
async def test_a_loader_gives_the_entity_as_it_is_now(make_engine: MakeEngine, later: bool) -> None:
    """create_context and each step get a fresh entity from the loader, which the engine's own calls do not use."""
    balances = iter(range(1, 99))
    threads: set[threading.Thread] = set()

    def load(account_id: str) -> Account:
        threads.add(threading.current_thread())
        return Account(id=account_id, balance=next(balances))

    async def load_later(account_id: str) -> Account:
        await asyncio.sleep(0)
        return load(account_id)

    @event_workflow("loaded-opened", name="loaded-flow")
    class Flow:
        Context = Loaded

        @classmethod
        def create_context(cls, event: Event) -> Loaded:
            return Loaded(balance=event.entity.balance)

        @step(start=True)
        async def begin(self, event: Event) -> Command:
            assert isinstance(event.entity, Account)
            get_context(Loaded).again = event.entity.balance
            return complete()

    entity_loader(Account)(load_later if later else load)
    async with make_engine(Flow) as engine:
        event = await engine.emit("loaded-opened", Account(id="a", balance=1_000))
        assert event.entity.balance == 1_000
        [run] = await _runs_of(engine, event.id, 1)
        assert (run.data["balance"], run.data["again"]) == (1, 2)
        [same] = await engine.events()
        assert same.entity.balance == 1_000
        assert (threading.main_thread() in threads) == later


@pytest.mark.parametrize("where", ["start", "step"])
async def test_a_loader_that_raises(
    make_engine: MakeEngine, clock: ShiftedClock, log: list[EventDict], where: str
) -> None:
    """If a loader raises, the start is retried with back-off, or the step by its own policy."""
    asked: list[str] = []

    def load(account_id: str) -> Account:
        asked.append(account_id)
        if len(asked) < 3:
            raise ConnectionError("the accounts are not there")
        return Account(id=account_id, balance=17)

    @event_workflow("failing-opened", name="failing-flow")
    class Starts:
        Context = Loaded

        @classmethod
        def create_context(cls, event: Event) -> Loaded:
            return Loaded(balance=event.entity.balance)

        @step(start=True)
        async def begin(self) -> Command:
            return complete()

    @workflow("failing-waits", default_retry=Retry(max_attempts=3, base_delay=timedelta(seconds=1)))
    class Waits:
        Context = Loaded

        @step(start=True)
        async def begin(self) -> Command:
            return wait_for_event("failing-told", entity_id="a", then=self.told)

        @step
        async def told(self, event: Event) -> Command:
            get_context(Loaded).balance = event.entity.balance
            return goto(self.end)

        @step
        async def end(self) -> Command:
            return complete()

    entity_loader(Account)(load)
    async with make_engine(Starts, Waits) as engine:
        run = None
        if where == "step":
            run = await (await engine.start(Waits)).wait(5, until="parked")
        event = await engine.emit("failing-opened" if where == "start" else "failing-told", Account(id="a"))
        for tries in (1, 2):
            await wait_until(lambda tries=tries: len(asked) == tries)  # type: ignore[misc]
            if where == "start":
                await wait_until(lambda: _failing(engine))
            else:
                assert run is not None
                await wait_until(lambda: _retries(engine, run.id))
            clock.shift(timedelta(seconds=tries))
        if run is None:
            [run] = await _runs_of(engine, event.id, 1)
        assert (await run.wait(5)).data["balance"] == 17
    assert asked == ["a"] * 3
    assert "the accounts are not there" in str([entry for entry in log if entry["log_level"] == "warning"])


async def test_a_start_whose_entity_no_longer_validates(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """If an entity no longer validates, its start fails and is retried until the class accepts it again."""

    def release(fields: Callable[[], type[BaseModel]]) -> type[BaseModel]:
        made = fields()
        made.__module__, made.__qualname__ = "shop", "Parcel"
        return entity_type("fits-parcel")(made)

    def first() -> type[BaseModel]:
        class Parcel(BaseModel):
            id: int

        return Parcel

    def second() -> type[BaseModel]:
        class Parcel(BaseModel):
            id: int
            weight: float

        return Parcel

    told: list[Any] = []

    @event_workflow("fits-sent", name="fits-flow")
    class Flow:
        @step(start=True)
        async def begin(self, event: Event) -> Command:
            told.append(event.entity.id)
            return complete()

    parcel = release(first)
    async with make_engine(Flow) as engine:
        at = clock.now() + timedelta(hours=1)
        event = await engine.emit("fits-sent", parcel(id=7), at=at)
        release(second)
        assert (await engine.events())[0].entity == {"id": 7}  # it is shown all the same
        clock.shift(timedelta(hours=2))
        await wait_until(lambda: _failing(engine))
        assert (await engine.events(event_id=event.id))[0].status == "occurred"
        release(first)
        clock.shift(timedelta(seconds=2))
        await wait_until(lambda: told)
        assert told == [7]


async def _failing(engine: Engine) -> bool:
    return (await engine.stats()).failing == 1


async def _retries(engine: Engine, run_id: int) -> bool:
    return (await engine.get(run_id)).waiting_for == "retry"


async def _runs_of(engine: Engine, event_id: str, count: int) -> list[Any]:
    async def ended() -> bool:
        return await engine.count(event_id=event_id, status="completed") >= count

    await wait_until(ended)
    return await engine.runs(event_id=event_id)
