"""``@workflow`` and ``@step``: what they accept, and each error about the shape of a class."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, SecretStr

from aioflow import Engine, Retry, complete, get_context, goto, step, workflow
from aioflow.commands import Command
from aioflow.errors import DefinitionError, WorkflowUnknown
from aioflow.registry import definition_of, registry
from aioflow_memory import MemoryStore


class Empty(BaseModel):
    """A Context without fields."""


class Log(BaseModel):
    """A Context that remembers which steps ran."""

    steps: list[str] = []


def refusal(cls: Any, **options: Any) -> tuple[str, ...]:
    """The problems for which the class is refused as a workflow."""
    with pytest.raises(DefinitionError) as caught:
        workflow("refused", **options)(cls)
    assert caught.value.where == cls.__qualname__
    return caught.value.problems


def steps_of(cls: type) -> list[str]:
    return list(definition_of(cls).steps)


async def outcome(cls: type, **context: Any) -> Any:
    """The final Context of one run of the class."""
    async with Engine(MemoryStore(), workflows=[cls]) as engine:
        return await (await engine.start(cls.__aioflow_definition__.name, **context)).result(10)


# ---- decorators


def test_workflow_gives_the_class_back() -> None:
    """``@workflow`` returns the class itself, with a definition that has its name, version and start step."""

    class Plain:
        Context = Empty

        @step(start=True)
        async def first(self) -> Command:
            return complete()

    assert workflow("order", version="7", max_transitions=3)(Plain) is Plain
    definition = definition_of(Plain)
    assert (definition.name, definition.version, definition.start) == ("order", "7", "first")
    assert (definition.max_transitions, definition.default_retry) == (3, Retry())


async def test_step_is_written_with_and_without_parentheses() -> None:
    """``@step``, ``@step()`` and ``@step(...)`` all make steps, of sync and of async methods."""

    @workflow("order")
    class Order:
        Context = Log

        @step(start=True)
        async def first(self) -> Command:
            get_context(Log).steps.append("first")
            return goto(self.bare)

        @step
        async def bare(self) -> Command:
            get_context(Log).steps.append("bare")
            return goto(self.bare_sync)

        @step
        def bare_sync(self) -> Command:
            get_context(Log).steps.append("bare_sync")
            return goto("empty")

        @step()
        def empty(self) -> Command:
            get_context(Log).steps.append("empty")
            return goto(self.on_the_loop)

        @step(thread=False, title="The last one", retry=Retry(max_attempts=1), timeout=timedelta(seconds=9))
        def on_the_loop(self) -> Command:
            get_context(Log).steps.append("on_the_loop")
            return complete()

    assert steps_of(Order) == ["first", "bare", "bare_sync", "empty", "on_the_loop"]
    assert (await outcome(Order)).steps == steps_of(Order)
    found = definition_of(Order).steps
    assert [s.name for s in found.values() if s.is_async] == ["first", "bare"]
    assert [s.name for s in found.values() if s.in_thread] == ["bare_sync", "empty"]
    options = found["on_the_loop"].options
    assert (options.title, options.timeout, options.retry) == ("The last one", 9_000_000, Retry(max_attempts=1))


def test_step_leaves_the_method_callable() -> None:
    """A step remains a plain method that other code and tests can call."""

    class Order:
        @step
        def first(self) -> Command:
            return complete(x=1)

    assert Order().first() == complete(x=1)


async def test_the_context_may_be_assigned() -> None:
    """A Context may be a class defined elsewhere, and serve two workflows."""

    @workflow("one")
    class One:
        Context = Log

        @step(start=True)
        def first(self) -> Command:
            return complete(steps=["one"])

    @workflow("two")
    class Two:
        Context = Log

        @step(start=True)
        def first(self) -> Command:
            return complete(steps=["two"])

    assert (await outcome(One)).steps == ["one"]
    assert (await outcome(Two)).steps == ["two"]


# ---- what is refused: the shape of the class


def test_a_definition_error_lists_everything() -> None:
    """One DefinitionError names the class and lists every problem in it, a line each; the class is not registered."""

    class Order:
        class Context(BaseModel):
            model_config = ConfigDict(frozen=True)
            card: SecretStr
            photo: bytes

        @step(start=True)
        def pay(self) -> Command:
            return goto(self.shpi)

        @step(start=True)
        def ship(self, address: str) -> Command:
            return goto("done")

        def done(self) -> None: ...

    with pytest.raises(DefinitionError) as caught:
        workflow("order")(Order)
    name = "test_a_definition_error_lists_everything.<locals>.Order"
    assert str(caught.value) == (
        f"Workflow class {name} cannot be used:\n"
        "  - step 'ship' needs the arguments address. A start step takes self alone: read the Context.\n"
        "  - step 'pay': goto() names 'shpi', which is no step of this class (steps: pay, ship).\n"
        "  - step 'ship': goto() names 'done', which is no step of this class (steps: pay, ship).\n"
        "  - it has 2 start steps (pay, ship). Keep start=True on one.\n"
        f"  - {name}.Context is frozen: steps change their Context. Take frozen=True out of its model_config.\n"
        f"  - {name}.Context.card is a SecretStr: it would be stored as asterisks. Store a reference to the secret.\n"
        f"  - {name}.Context.photo holds raw bytes, which JSON cannot. Declare it as pydantic.Base64Bytes."
    )
    with pytest.raises(WorkflowUnknown):
        registry.find("order")


def test_a_context_is_required() -> None:
    """A class without a Context is refused."""

    class Order:
        @step(start=True)
        def first(self) -> Command:
            return complete()

    assert refusal(Order) == ("it has no Context. Add 'class Context(BaseModel): ...', or assign one.",)


@pytest.mark.parametrize("context", [int, {"total": 1}, dataclasses.make_dataclass("Context", []), Empty()])
def test_the_context_is_a_model(context: object) -> None:
    """A Context that is not a pydantic model class is refused."""

    class Order:
        Context = context

        @step(start=True)
        def first(self) -> Command:
            return complete()

    assert refusal(Order) == ("its Context is not a pydantic model. Subclass pydantic.BaseModel.",)


def test_a_start_step_is_required() -> None:
    """A class without steps, or without a start step, is refused."""

    class Bare:
        Context = Empty

    class Order:
        Context = Empty

        @step
        def first(self) -> Command:
            return complete()

    expected = ("it has no start step. Mark the first one: @step(start=True).",)
    assert refusal(Bare) == expected
    assert refusal(Order) == expected


def test_there_is_one_start_step() -> None:
    """A class with several start steps is refused; the error names them."""

    class Order:
        Context = Empty

        @step(start=True)
        def first(self) -> Command:
            return complete()

        @step(start=True)
        def second(self) -> Command:
            return complete()

        @step(start=True)
        def third(self) -> Command:
            return complete()

    assert refusal(Order) == ("it has 3 start steps (first, second, third). Keep start=True on one.",)


def test_a_step_takes_self_alone() -> None:
    """Parameters that nothing could fill are refused; those with defaults, ``*args`` and ``**kwargs`` are not."""

    class Order:
        Context = Empty

        @step(start=True)
        def first(self, amount: int, /, note: str = "", *, to: str, by: str = "") -> Command:
            return complete()

        @step
        def fine(self, note: str = "", *rest: Any, by: str = "", **more: Any) -> Command:
            return complete()

    assert refusal(Order) == (
        "step 'first' takes amount by position only. Leave out the '/'.",
        "step 'first' needs the arguments to. A start step takes self alone: read the Context.",
    )


def test_a_step_takes_self() -> None:
    """A step without a self parameter is refused."""

    class Order:
        Context = Empty

        @step(start=True)
        def first() -> Command:
            return complete()

    assert refusal(Order) == ("step 'first' takes no self. A step is a plain method.",)


@pytest.mark.parametrize("kind", [staticmethod, classmethod])
def test_a_step_is_no_static_or_class_method(kind: Any) -> None:
    """A step that is a static or class method is refused, in either order of the decorators."""

    def above(self: Any) -> Command:
        return complete()

    class Above:
        Context = Empty
        first = step(start=True)(kind(above))

    class Below:
        Context = Empty
        first = kind(step(start=True)(above))

    expected = (f"step 'first' is a {kind.__name__}. A step is a plain method.",)
    assert refusal(Above) == expected
    assert refusal(Below) == expected


def test_an_async_step_has_no_thread() -> None:
    """``thread=True`` on an async step is refused."""

    class Order:
        Context = Empty

        @step(start=True, thread=True)
        async def first(self) -> Command:
            return complete()

    assert refusal(Order) == (
        "step 'first' is async and says thread=True. An async step runs on the event loop.",
    )  # fmt: skip


def test_a_generator_is_no_step() -> None:
    """A step that is a generator or an async generator is refused."""

    class Order:
        Context = Empty

        @step(start=True)
        def first(self) -> Any:
            yield complete()

        @step
        async def second(self) -> Any:
            yield complete()

    assert refusal(Order) == (
        "step 'first' yields. A step returns its command: return it.",
        "step 'second' yields. A step returns its command: return it.",
    )


def test_the_name_of_a_step_has_a_limit() -> None:
    """A step's name may have up to 200 characters."""

    def first(self: Any) -> Command:
        return complete()

    def order(length: int) -> type:
        return type("Order", (), {"Context": Empty, "x" * length: step(start=True)(first)})

    assert steps_of(workflow("order")(order(200))) == ["x" * 200]
    assert refusal(order(201)) == (f"step {'x' * 201!r} has a name of over 200 characters.",)


def test_create_context_is_a_class_method() -> None:
    """A ``create_context`` that is an instance method is refused when the class is defined."""

    class Order:
        Context = Empty

        def create_context(self, total: int) -> Empty:
            return Empty()

        @step(start=True)
        def first(self) -> Command:
            return complete()

    (problem,) = refusal(Order)
    assert "create_context" in problem
    assert "classmethod" in problem
