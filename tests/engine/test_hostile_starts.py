"""Whatever the classmethods of an event workflow do: their start is retried later, and all other runs go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel
from structlog.typing import EventDict

from aioflow import Engine, Event, complete, event_workflow, step
from aioflow.changes import Change, Replan, Result
from aioflow.clock import Micros
from aioflow.commands import Command
from aioflow_memory import MemoryStore
from tests.engine.conftest import MakeEngine, ShiftedClock
from tests.support import wait_until


class Mute(Exception):
    """An exception whose ``__str__`` raises."""

    def __str__(self) -> str:
        raise ValueError("no text")


def _raises(error: Callable[[], BaseException]) -> Callable[[], Any]:
    def act() -> Any:
        raise error()

    return act


def _cancels() -> Any:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    return "note", "a Context all the same"


class Other(BaseModel):
    """The Context of another workflow."""


def _recurses() -> Any:
    return _recurses()


HOSTILE: dict[str, tuple[Callable[[], Any], str]] = {
    "ValueError": (_raises(lambda: ValueError("no")), "ValueError: no"),
    "CancelledError": (_raises(asyncio.CancelledError), "CancelledError"),
    "KeyboardInterrupt": (_raises(KeyboardInterrupt), "KeyboardInterrupt"),
    "SystemExit": (_raises(lambda: SystemExit(3)), "SystemExit: 3"),
    "GeneratorExit": (_raises(GeneratorExit), "GeneratorExit"),
    "StopIteration": (_raises(StopIteration), "StopIteration"),
    "StopAsyncIteration": (_raises(StopAsyncIteration), "StopAsyncIteration"),
    "MemoryError": (_raises(MemoryError), "MemoryError"),
    "RecursionError": (_recurses, "RecursionError"),
    "a group": (_raises(lambda: ExceptionGroup("all", [ValueError("one"), KeyError("two")])), "ExceptionGroup: all"),
    "mute": (_raises(Mute), "Mute"),
    "64 MB": (_raises(lambda: ValueError("x" * (64 << 20))), "ValueError: xxx"),
    "NUL": (_raises(lambda: ValueError("a\0\ud800")), "ValueError: a"),
    "cancels its task": (_cancels, "CancelledError: it has cancelled its own task"),
    "nothing": (lambda: None, "create_context returned NoneType, not test_a_hostile_"),
    "another Context": (Other, "create_context returned Other, not test_a_hostile_"),
    "too much": (lambda: ("note", "x" * (1 << 20)), "The Context is beyond the limit of 1048576 bytes of JSON"),
}


@pytest.mark.parametrize("later", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("what", HOSTILE)
async def test_a_hostile_create_context_is_put_off(
    make_engine: MakeEngine, clock: ShiftedClock, log: list[EventDict], what: str, later: bool
) -> None:
    """A failed start is logged, counted and retried with back-off, and another workflow of the event starts at once."""
    act, text = HOSTILE[what]
    asked: list[int] = []

    def create(cls: Any, event: Event) -> Any:
        asked.append(len(asked))
        if len(asked) > 2:
            return cls.Context()
        made = act()
        return cls.Context(note=made[1]) if isinstance(made, tuple) else made

    async def create_later(cls: Any, event: Event) -> Any:
        await asyncio.sleep(0)
        return create(cls, event)

    class Body:
        class Context(BaseModel):
            note: str = ""

        create_context = classmethod(create_later if later else create)

        @step(start=True)
        async def begin(self) -> Command:
            return complete()

    @event_workflow("hostile-told", name="hostile-start")
    class Hostile(Body):
        """Misbehaves twice."""

    @event_workflow("hostile-told", name="easy-start")
    class Easy:
        @step(start=True)
        async def begin(self) -> Command:
            return complete()

    def lines() -> list[EventDict]:
        return [entry for entry in log if entry["event"] == "run cannot be started for its event, will try again"]

    async with make_engine(Hostile, Easy) as engine:
        await engine.emit("hostile-told", event_id="e")
        await wait_until(lambda: _ended(engine, "easy-start"))
        for tries in (1, 2):
            await wait_until(lambda tries=tries: len(lines()) == tries)  # type: ignore[misc]
            await wait_until(lambda: _failing(engine))
            assert len(asked) == tries
            clock.shift(timedelta(seconds=tries))
        await wait_until(lambda: _ended(engine, "hostile-start"))
        stats = await engine.stats()
        assert (stats.planned, stats.failing, await engine.count()) == (0, 0, 2)
    assert [line["attempt"] for line in lines()] == [1, 2]
    for line in lines():
        assert text in line["error"]
        assert len(line["error"]) <= 2_000


async def test_a_create_context_that_never_ends(
    make_engine: MakeEngine, clock: ShiftedClock, log: list[EventDict], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A create_context that never ends is stopped and retried later, and even 250 of them do not block other starts."""
    monkeypatch.setattr("aioflow.planner.LONGEST_ASK", 0.05)
    ends = False

    async def create(cls: Any, event: Event) -> Any:
        if not ends:
            await asyncio.Event().wait()
        return cls.Context()

    body = {"create_context": classmethod(create)}
    flow = event_workflow("hostile-endless", name="endless-start")(
        type("Endless", (), {"begin": step(start=True)(_begin), "__module__": __name__, **body})
    )
    easy = event_workflow("hostile-told", name="easy-start")(type("Easy", (), {"begin": step(start=True)(_begin)}))
    async with make_engine(flow, easy) as engine:
        await asyncio.gather(*(engine.emit("hostile-endless") for _ in range(250)))
        await engine.emit("hostile-told", event_id="e")
        await wait_until(lambda: _ended(engine, "easy-start"))

        async def all_failing() -> bool:
            return (await engine.stats()).failing == 250

        await wait_until(all_failing)
        ends = True
        clock.shift(timedelta(minutes=10))

        async def all_ended() -> bool:
            return await engine.count(workflow="endless-start", status="completed") == 250

        await wait_until(all_ended)
    [text] = {entry["error"] for entry in log if entry["event"].startswith("run cannot be started")}
    what = "should_run_for_event, create_context and the entity's loader took longer than 0.05 s"
    assert text == f"TimeoutError: {what}"


async def test_a_start_that_cancelled_its_task_is_put_off_once(clock: ShiftedClock) -> None:
    """A start whose code cancels its own task is put off once, even if the store is slow to record it."""
    asked: list[str] = []
    noted, free = asyncio.Event(), asyncio.Event()

    class Slow(MemoryStore):
        async def apply(self, changes: Sequence[Change], now: Micros) -> list[Result]:
            if any(isinstance(change, Replan) for change in changes):
                noted.set()
                await free.wait()
            return await super().apply(changes, now)

    def create(cls: Any, event: Event) -> Any:
        asked.append(event.id)
        _cancels()
        return cls.Context()

    body = {"create_context": classmethod(create), "Context": Other}
    flow = event_workflow("hostile-told", name="cancelling-start")(
        type("Cancelling", (), {"begin": step(start=True)(_begin), "__module__": __name__, **body})
    )
    async with Engine(Slow(), workflows=[flow], clock=clock) as engine:
        await engine.emit("hostile-told", event_id="e")
        await noted.wait()
        assert engine._parts is not None
        assert not engine._parts.planner.idle  # so that it does not count as abandoned
        free.set()
        await wait_until(lambda: _failing(engine))
        assert asked == ["e"]


async def _begin(self: object) -> Command:
    return complete()


async def _failing(engine: Any) -> bool:
    return (await engine.stats()).failing == 1


async def _ended(engine: Any, workflow: str) -> bool:
    return await engine.count(workflow=workflow, status="completed") == 1
