"""``get_context`` and ``get_run``: what they give a step, and where they can be called."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from aioflow import Engine, RetryLater, StartOptions, complete, get_context, get_run, goto, sleep
from aioflow.commands import Command
from aioflow.context import CurrentRun
from aioflow.errors import UsageError
from tests.flows import PATIENCE, STORES, completed, done, ended, flow


class Base(BaseModel):
    """A Context's base class."""

    total: int = 0


class Total(Base):
    """The Context of the tests here."""

    seen: list[str] = []


class Other(BaseModel):
    """The Context of another workflow."""


@pytest.fixture(params=STORES)
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Engine]:
    """An open engine on each store in turn."""
    async with Engine(STORES[request.param](tmp_path)) as engine:
        yield engine


async def test_the_context_is_one_object(engine: Engine) -> None:
    """Without an argument, and with the Context's class or a base class, ``get_context`` gives the same object."""

    def first(self: Any) -> Command:
        context = get_context()
        assert context is get_context(self.Context)
        assert context is get_context(Total)
        assert context is get_context(Base)
        assert context is get_context(BaseModel)
        assert isinstance(context, Total)
        return complete(total=1)

    assert await completed(engine, flow(Total, first)) == Total(total=1)


async def test_the_context_has_the_class_that_is_asked_for(engine: Engine) -> None:
    """Asking ``get_context`` for another class is a TypeError that names the class of the run's Context."""

    def first(self: object) -> Command:
        with pytest.raises(TypeError) as caught:
            get_context(Other)
        return complete(seen=[str(caught.value)])

    assert (await completed(engine, flow(Total, first))).seen == [
        "get_context(Other): run 1 of workflow 'order' has a Total. Write get_context(self.Context)."
    ]


async def test_tasks_of_a_step_belong_to_its_run(engine: Engine) -> None:
    """Tasks and threads that a step starts and awaits see the step's Context."""

    async def add(what: str) -> None:
        get_context(Total).seen.append(what)

    async def first(self: object) -> Command:
        await asyncio.gather(add("a"), add("b"))
        await asyncio.to_thread(lambda: get_context(Total).seen.append("c"))
        return complete()

    assert (await completed(engine, flow(Total, first))).seen == ["a", "b", "c"]


async def test_outside_a_step_there_is_no_run(engine: Engine) -> None:
    """Outside a step ``get_context`` and ``get_run`` raise UsageError, even in a program that waits for a run."""
    await completed(engine, flow(Total, done))
    for ask in (get_context, lambda: get_context(Total)):
        with pytest.raises(UsageError) as caught:
            ask()
        assert str(caught.value).startswith(
            "get_context() works inside a step, while it runs. Nothing runs here. A thread "
        )
    with pytest.raises(UsageError) as caught:
        get_run()
    assert str(caught.value).startswith("get_run() works inside a step, while it runs. Nothing runs here. A thread ")


async def test_create_context_is_outside_a_step(engine: Engine) -> None:
    """``create_context`` runs in the caller of ``start``, where ``get_run`` raises UsageError."""

    def create(cls: object) -> Total:
        with pytest.raises(UsageError):
            get_run()
        return Total(total=4)

    order = flow(Total, done)
    order.create_context = classmethod(create)
    assert (await completed(engine, order)).total == 4


async def test_get_run_tells_about_the_run(engine: Engine) -> None:
    """``get_run`` gives id, workflow, step, attempt, key, step key and time, in threads and on the loop."""
    seen: list[CurrentRun] = []

    async def first(self: object) -> Command:
        seen.append(get_run())
        return goto("second")

    def second(self: object) -> Command:
        seen.append(get_run())
        return complete()

    order = flow(Total, first, second)
    before = datetime.now(UTC)
    keyed = await (await engine.start(order, StartOptions(key="order-1"))).wait(PATIENCE)
    plain = await ended(engine, order)
    assert [(r.id, r.workflow, r.step, r.attempt, r.key) for r in seen] == [
        (keyed.id, "order", "first", 1, "order-1"),
        (keyed.id, "order", "second", 1, "order-1"),
        (plain.id, "order", "first", 1, None),
        (plain.id, "order", "second", 1, None),
    ]
    assert all(before <= run.now <= datetime.now(UTC) for run in seen)
    assert all(run.now.tzinfo is UTC for run in seen)
    parts = [run.step_key.split(":") for run in seen]
    assert len({UUID(store) for store, _, _ in parts}) == 1
    assert [(int(run_id), int(visit)) for _, run_id, visit in parts] == [
        (keyed.id, 1),
        (keyed.id, 2),
        (plain.id, 1),
        (plain.id, 2),
    ]


async def test_what_get_run_gives_cannot_be_changed(engine: Engine) -> None:
    """The object that ``get_run`` gives is read-only."""

    def first(self: object) -> Command:
        with pytest.raises(AttributeError):
            get_run().step = "second"
        return complete(seen=[get_run().step])

    assert (await completed(engine, flow(Total, first))).seen == ["first"]


async def test_a_step_key_belongs_to_a_visit(engine: Engine) -> None:
    """Retries of a visit keep its step key; a goto back, and waking from a sleep, are new visits with new keys."""
    seen: list[tuple[str, int]] = []

    def first(self: object) -> Command:
        seen.append((get_run().step_key, get_run().attempt))
        match len(seen):
            case 1:
                raise OSError("a failed attempt")
            case 2:
                raise RetryLater(timedelta(0))
            case 3:
                return goto("first")
            case 4:
                return sleep(timedelta(0))
            case _:
                return complete()

    await completed(engine, flow(Total, first))
    keys, attempts = zip(*seen, strict=True)
    assert attempts == (1, 2, 2, 1, 1)
    assert keys[0] == keys[1] == keys[2]
    assert len({*keys}) == 3


async def test_two_stores_have_different_step_keys(tmp_path: Path) -> None:
    """The same run id in two stores has different step keys."""
    keys: list[str] = []

    def first(self: object) -> Command:
        keys.append(get_run().step_key)
        return complete()

    for number, make in enumerate([*STORES.values()] * 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        async with Engine(make(folder)) as engine:
            await completed(engine, flow(Total, first))
    assert len({*keys}) == 4


async def test_a_step_that_asks_for_a_wrong_class_fails(engine: Engine) -> None:
    """The TypeError of ``get_context`` with a wrong class is retried, and recorded as the run's error."""

    def first(self: object) -> Command:
        get_context(Other)
        return complete()

    run = await ended(engine, flow(Total, first))
    assert (run.error or "").startswith("TypeError: get_context(Other): run 1 of workflow 'order' has a Total.")
