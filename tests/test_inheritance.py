"""Steps inherited from base classes, and steps wrapped by other decorators."""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import Engine, complete, get_context, goto, sleep, step, workflow
from aioflow.commands import Command
from aioflow.errors import DefinitionError
from aioflow.registry import definition_of
from aioflow_memory import MemoryStore


class Log(BaseModel):
    """A Context that remembers which steps ran."""

    steps: list[str] = []


def refusal(cls: type) -> tuple[str, ...]:
    """The problems for which the class is refused as a workflow."""
    with pytest.raises(DefinitionError) as caught:
        workflow("refused")(cls)
    return caught.value.problems


def steps_of(cls: type) -> list[str]:
    return list(definition_of(cls).steps)


async def outcome(cls: Any) -> Any:
    """The final Context of one run of the class."""
    async with Engine(MemoryStore(), workflows=[cls]) as engine:
        return await (await engine.start(cls)).result(10)


class First:
    """A mixin with a step."""

    @step(start=True)
    async def first(self) -> Command:
        get_context(Log).steps.append("First.first")
        return goto(self.last)

    @step
    async def middle(self) -> Command:
        return complete()


class Last:
    """A mixin without a start step."""

    @step
    def last(self) -> Command:
        get_context(Log).steps.append("Last.last")
        return complete()


async def test_steps_are_inherited_base_classes_first() -> None:
    """Steps of bases come first, in the order of the bases; overrides keep their place, and new steps come last."""

    @workflow("order")
    class Order(Last, First):
        Context = Log

        @step
        def own(self) -> Command:
            return complete()

        @step
        async def middle(self) -> Command:
            return sleep(timedelta(days=1), then=self.own)

    assert steps_of(Order) == ["first", "middle", "last", "own"]
    assert definition_of(Order).steps["middle"].function is vars(Order)["middle"]
    assert (await outcome(Order)).steps == ["First.first", "Last.last"]


async def test_an_override_may_call_what_it_overrides() -> None:
    """``super()`` works in steps, and a target ``super().name`` means the step of that name."""

    @workflow("order")
    class Order(First, Last):
        Context = Log

        @step(start=True)
        async def first(self) -> Command:
            get_context(Log).steps.append("Order.first")
            return await super().first()

        @step
        def last(self) -> Command:
            log = get_context(Log).steps
            log.append("Order.last")
            return super().last() if len(log) > 3 else goto(super().last)

    final = await outcome(Order)
    assert final.steps == ["Order.first", "First.first", "Order.last", "Order.last", "Last.last"]


def test_a_subclass_of_a_workflow_is_a_workflow_of_its_own() -> None:
    """A subclass of a workflow inherits steps and Context, but is a workflow only if it is decorated."""

    @workflow("order")
    class Order(First, Last):
        Context = Log

    class Undecorated(Order):
        pass

    @workflow("gift")
    class Gift(Order):
        @step
        def wrap(self) -> Command:
            return complete()

    assert steps_of(Gift) == ["last", "first", "middle", "wrap"]
    assert definition_of(Gift).codec.context is Log
    with pytest.raises(TypeError) as caught:
        definition_of(Undecorated)
    assert str(caught.value) == (
        f"{Undecorated.__qualname__} is no workflow. Pass a class decorated with @workflow(...), or a workflow's name."
    )


def test_a_step_is_overridden_by_a_step() -> None:
    """An override of a step without ``@step`` is refused, as it is unclear whether it was meant."""

    class Order(First, Last):
        Context = Log

        def middle(self) -> Command:
            return complete()

    assert refusal(Order) == (f"{Order.__qualname__}.middle overrides a step without being one. Add @step to it.",)


def test_a_step_can_be_taken_away() -> None:
    """``name = None`` in a subclass removes an inherited step."""

    @workflow("order")
    class Order(First, Last):
        Context = Log
        middle = None

    assert steps_of(Order) == ["last", "first"]


def test_targets_of_inherited_steps_are_checked_on_the_subclass() -> None:
    """A mixin may name a step that only its subclasses have; a subclass without that step is refused."""

    class Order(First):
        Context = Log

    assert refusal(Order) == (
        "step 'first': goto() names 'last', which is no step of this class (steps: first, middle).",
    )


# ---- decorators below @step


def counted(function: Callable[..., Any]) -> Callable[..., Any]:
    """A sync wrapper, which is also used around async functions."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        get_context(Log).steps.append(f"counted {function.__name__}")
        return function(*args, **kwargs)

    return wrapper


def awaited(function: Callable[..., Any]) -> Callable[..., Any]:
    """An async wrapper around async functions."""

    @functools.wraps(function)
    async def wrapper(self: object) -> Any:
        get_context(Log).steps.append(f"awaited {function.__name__}")
        return await function(self)

    return wrapper


def with_session(function: Callable[..., Any]) -> Callable[..., Any]:
    """A wrapper that adds an argument."""

    @functools.wraps(function)
    def wrapper(self: object) -> Any:
        return function(self, "session")

    return wrapper


def unnamed(function: Callable[..., Any]) -> Callable[[Any], Any]:
    """A wrapper without functools.wraps."""

    def wrapper(self: object) -> Any:
        return function(self)

    return wrapper


async def test_steps_may_be_wrapped() -> None:
    """Decorators that use functools.wraps work above and below ``@step``, sync and async."""

    @workflow("order")
    class Order:
        Context = Log

        @step(start=True)
        @counted
        async def first(self) -> Command:
            return goto(self.second)

        @counted
        @step
        def second(self) -> Command:
            return goto(self.third)

        @awaited
        @step
        async def third(self) -> Command:
            return goto(self.fourth)

        @step
        @awaited
        @counted
        async def fourth(self) -> Command:
            return complete()

    found = definition_of(Order).steps
    assert [s.name for s in found.values() if s.is_async] == ["first", "third", "fourth"]
    assert (await outcome(Order)).steps == [
        "counted first",
        "counted second",
        "awaited third",
        "awaited fourth",
        "counted fourth",
    ]


def test_targets_are_read_below_wrappers() -> None:
    """An unknown target in a wrapped function is found."""

    class Order:
        Context = Log

        @step(start=True)
        @counted
        def first(self) -> Command:
            return goto(self.missing)

    assert refusal(Order) == ("step 'first': goto() names 'missing', which is no step of this class (steps: first).",)


async def test_a_wrapper_may_give_arguments() -> None:
    """A step may have parameters that its wrapper fills: only those of the outermost function are checked."""

    @workflow("order")
    class Order:
        Context = Log

        @step(start=True)
        @with_session
        def first(self, session: str) -> Command:
            return complete(steps=[session])

    assert (await outcome(Order)).steps == ["session"]


async def test_a_step_is_known_by_the_name_it_has_in_the_class() -> None:
    """A wrapped step whose function has another name, and a lambda, are steps under their names in the class."""

    @workflow("order")
    class Order:
        Context = Log

        @step(start=True)
        def first(self) -> Command:
            return goto(self.second)

        @step
        @unnamed
        def second(self) -> Command:
            return goto(self.third)

        third = step(lambda self: complete(steps=["third"]))

    assert (await outcome(Order)).steps == ["third"]
