"""The Context between steps: what is passed on, and what is discarded."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from datetime import UTC, timedelta
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest
from pydantic import (
    BaseModel,
    PrivateAttr,
    computed_field,
)

from aioflow import Engine, RetryLater, complete, get_context, goto, step, workflow
from aioflow.commands import Command
from tests.flows import PATIENCE, STORES, completed, done, ended, flow


class Total(BaseModel):
    """The Context of most tests here."""

    total: int = 0
    items: list[str] = []


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Each store in turn, as an argument of Engine."""
    return STORES[request.param](tmp_path)


@pytest.fixture
async def engine(store: Any) -> AsyncIterator[Engine]:
    """An open engine."""
    async with Engine(store) as engine:
        yield engine


class Memory(Total):
    """A Context with a private attribute, a cached property and a computed field."""

    _seen: int = PrivateAttr(default=0)

    @functools.cached_property
    def size(self) -> int:
        return len(self.items)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> int:
        return self.total * 2


async def test_private_attributes_do_not_outlive_a_step(engine: Engine) -> None:
    """Private attributes and cached properties are not stored, and not passed to the next step."""

    def first(self: object) -> Command:
        context = get_context(Memory)
        context._seen = 5
        context._undeclared = 6
        assert (context._seen, context.size) == (5, 0)
        context.items.append("a")
        return goto("second")

    def second(self: object) -> Command:
        context = get_context(Memory)
        assert not hasattr(context, "_undeclared")
        return complete(items=[f"{context._seen} {context.size}"])

    run = await ended(engine, flow(Memory, first, second), total=1)
    assert run.data == {"total": 1, "items": ["0 1"]}
    assert run.context.double == 2


async def test_complete_stores_fields_alone(engine: Engine) -> None:
    """``complete(**data)`` does not store a cached property or private attribute of the last step."""

    def first(self: object) -> Command:
        context = get_context(Memory)
        context._seen = 5
        context._undeclared = 6
        assert context.size == 1
        return complete(total=2)

    run = await ended(engine, flow(Memory, first), items=["a"])
    assert run.data == {"total": 2, "items": ["a"]}


async def test_create_context_stores_fields_alone(engine: Engine) -> None:
    """A cached property that ``create_context`` has read is not stored."""

    def create(cls: Any) -> Memory:
        context = Memory(items=["a"])
        assert context.size == 1
        return context

    order = flow(Memory, done)
    order.create_context = classmethod(create)
    assert (await ended(engine, order)).data == {"total": 0, "items": ["a"]}


async def test_the_changes_of_a_failed_attempt_are_discarded(engine: Engine) -> None:
    """Each attempt starts with the stored Context, even if the one before has changed it in place."""
    seen: list[Total] = []

    def first(self: object) -> Command:
        context = get_context(Total)
        seen.append(context.model_copy(deep=True))
        context.total += 1
        context.items.append("x")
        if len(seen) == 1:
            raise OSError("try again")
        if len(seen) == 2:
            raise RetryLater(timedelta(0))
        return complete()

    run = await ended(engine, flow(Total, first), items=["a"])
    assert run.context == Total(total=1, items=["a", "x"])
    assert seen == [Total(items=["a"])] * 3
    assert [t.kind for t in await engine.history(run.id)] == ["start", *["retry", "wake"] * 2, "complete"]


async def test_a_failed_run_keeps_the_context_of_its_last_transition(engine: Engine) -> None:
    """The changes that a failing step made to the Context are not stored."""

    def first(self: object) -> Command:
        get_context(Total).total = 1
        return goto("second")

    def second(self: object) -> Command:
        get_context(Total).total = 2
        raise OSError("no")

    assert (await ended(engine, flow(Total, first, second))).context == Total(total=1)


class Colour(IntEnum):
    RED = 1


async def test_the_next_step_starts_with_what_was_stored(engine: Engine) -> None:
    """The next step gets the Context parsed from the store's text, as it would after a crash."""

    class Loose(Total):
        anything: Any = None

    seen: list[Any] = []

    def first(self: object) -> Command:
        context = get_context(Loose)
        context.anything = Colour.RED
        seen.extend((context, context.items))
        return goto("second")

    def second(self: object) -> Command:
        context = get_context(Loose)
        assert type(context.anything) is int
        assert context == seen[0]
        assert context is not seen[0]
        assert context.items is not seen[1]
        assert context is get_context()
        seen[1].append("too late")
        return complete()

    assert (await completed(engine, flow(Loose, first, second))).items == []


async def test_steps_may_be_sync_or_async(engine: Engine) -> None:
    """An async step, a sync one in a thread, and a sync one on the loop all see the Context of their own run."""

    async def first(self: object) -> Command:
        get_context(Total).items.append("async")
        return goto("second")

    def second(self: object) -> Command:
        get_context(Total).items.append("thread")
        return goto("third")

    third = step(thread=False)(lambda self: complete(items=[*get_context(Total).items, "loop"]))
    order = type("Order", (), {"Context": Total, "first": step(start=True)(first), "second": step(second)})
    order.third = third
    runs = [await engine.start(workflow("order")(order), total=n) for n in range(5)]
    for n, run in enumerate(runs):
        assert await run.result(PATIENCE) == Total(total=n, items=["async", "thread", "loop"])


async def test_the_context_equals_what_the_user_would_make(engine: Engine) -> None:
    """``run.context`` equals an instance of the user's class with the same values, in both directions, and no other."""

    class Other(BaseModel):
        total: int = 0
        items: list[str] = []

    run = await ended(engine, flow(Memory, done), total=3, items=["a"])
    same, other = Memory(total=3, items=["a"]), Memory(total=4, items=["a"])
    assert run.context == same
    assert same == run.context
    assert run.context != other
    assert other != run.context
    assert run.context != Other(total=3, items=["a"])
    assert run.context == (await engine.get(run.id)).context
    assert same.size == 1
    assert run.context == same
    assert isinstance(run.context, Memory)
    assert repr(run.context) == repr(same)
    assert run.created_at.tzinfo is UTC
