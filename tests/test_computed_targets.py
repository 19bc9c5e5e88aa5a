"""Targets that are computed: accepted when the class is defined, and checked when the step returns."""

from __future__ import annotations

import importlib.util
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import Engine, Retry, complete, goto, sleep, step, workflow
from aioflow.commands import Command
from aioflow.errors import DefinitionError, RunFailed
from aioflow_memory import MemoryStore

DAY = timedelta(days=1)
ONCE = Retry(max_attempts=1)
then_pause = sleep


class Empty(BaseModel):
    """A Context without fields."""


class Base:
    """The base class of the workflows of these tests."""

    Context = Empty

    @step
    def second(self) -> Command:
        return complete()

    def helper(self) -> Command:
        return goto(self.second)


def refusal(cls: type) -> tuple[str, ...]:
    """The problems for which the class is refused as a workflow."""
    with pytest.raises(DefinitionError) as caught:
        workflow("refused")(cls)
    return caught.value.problems


async def failure(cls: Any) -> str:
    """Check that the class is accepted and its run fails; returns the run's error."""
    workflow(cls.__name__, default_retry=ONCE)(cls)
    async with Engine(MemoryStore(), workflows=[cls]) as engine:
        with pytest.raises(RunFailed) as caught:
            await (await engine.start(cls)).result(10)
    return caught.value.error or ""


async def completes(cls: Any) -> None:
    """Check that the class is accepted and its run completes."""
    workflow(cls.__name__, default_retry=ONCE)(cls)
    async with Engine(MemoryStore(), workflows=[cls]) as engine:
        await (await engine.start(cls)).result(10)


async def test_computed_targets_are_decided_at_run_time() -> None:
    """A computed target is accepted when the class is defined, and if it is unknown, the run fails without a retry."""

    class Good(Base):
        @step(start=True)
        def first(self) -> Command:
            return goto(getattr(self, "sec" + "ond"))

    class Bad(Base):
        @step(start=True)
        def first(self) -> Command:
            name = "shpi"
            return goto(name)

    class Helper(Base):
        @step(start=True)
        def first(self) -> Command:
            target = self.helper
            return sleep(DAY, then=target)

    await completes(Good)
    assert await failure(Bad) == (
        "Step 'first' of workflow 'Bad' (run 1) returned goto with the target 'shpi', "
        "which is no step of it (steps: second, first). goto() takes a step of the same workflow."
    )
    assert await failure(Helper) == (
        "Step 'first' of workflow 'Helper' (run 1) returned sleep with the target Base.helper, "
        "which is no step of it (steps: second, first). sleep() takes a step of the same workflow."
    )


async def test_a_step_of_another_workflow_is_no_target() -> None:
    """A step bound to another class, or to no instance, fails the run."""

    class Other(Base):
        @step
        def second(self) -> Command:
            return complete()

    class Foreign(Base):
        @step(start=True)
        def first(self) -> Command:
            return goto(Other().second)

    class Unbound(Base):
        @step(start=True)
        def first(self) -> Command:
            return goto(Unbound.second)

    assert "returned goto with the target " in await failure(Foreign)
    assert "returned goto with the target Base.second, which is no step of it" in await failure(Unbound)


async def test_without_source_nothing_is_refused() -> None:
    """The targets of a class made by exec, whose source cannot be read, are checked when the step returns."""
    namespace: dict[str, Any] = {"Base": Base, "step": step, "goto": goto, "__name__": "nowhere"}
    exec(
        "class Order(Base):\n    @step(start=True)\n    def first(self):\n        return goto(self.missing)", namespace
    )
    assert "has no attribute 'missing'" in await failure(namespace["Order"])


async def test_a_local_name_hides_the_command() -> None:
    """A local variable or parameter called goto is not taken for the command."""

    class Local(Base):
        @step(start=True)
        def first(self) -> Command:
            goto = str
            goto("missing")
            return complete()

    class Parameter(Base):
        @step(start=True)
        def first(self, goto: Any = str) -> Command:
            goto("missing")
            return complete()

    class Assigned(Base):
        @step(start=True)
        def first(self) -> Command:
            for goto in (str,):  # noqa: F402
                goto("missing")
            return complete()

    for order in (Local, Parameter, Assigned):
        await completes(order)


async def test_a_parameter_of_a_nested_function_hides_the_command() -> None:
    """A parameter of a nested function called goto is not taken for the command."""

    class Order(Base):
        @step(start=True)
        def first(self) -> Command:
            def apply(goto: Any) -> Any:
                return goto("missing")

            apply(str)
            return complete()

    await completes(Order)


async def test_a_parameter_of_a_lambda_hides_the_command() -> None:
    """A parameter of a lambda called goto is not taken for the command."""

    class Order(Base):
        @step(start=True)
        def first(self) -> Command:
            apply = lambda goto: goto("missing")  # noqa: E731
            apply(str)
            return complete()

    await completes(Order)


async def test_a_variable_of_a_comprehension_hides_the_command() -> None:
    """A variable of a comprehension called goto is not taken for the command."""

    class Order(Base):
        @step(start=True)
        def first(self) -> Command:
            [goto("missing") for goto in (str,)]
            return complete()

    await completes(Order)


async def test_another_self_is_not_the_step_s() -> None:
    """The self of a class inside the step is not taken for the workflow."""

    class Order(Base):
        @step(start=True)
        def first(self) -> Command:
            class Other:
                def method(self) -> Command:
                    return goto(self.missing)

            Other()
            return complete()

    await completes(Order)


async def test_a_call_of_something_else_is_not_read() -> None:
    """Functions called goto from elsewhere, and methods of that name, are not taken for the command."""

    class Browser:
        def goto(self, url: str) -> None: ...

    def follow(goto: Any) -> type:
        class Order(Base):
            browser = Browser()

            @step(start=True)
            def first(self) -> Command:
                Browser().goto("https://example.org")
                self.browser.goto("missing")
                goto("missing")
                return complete()

        return Order

    await completes(follow(str))


async def test_attributes_that_init_sets_may_be_targets() -> None:
    """An attribute that ``__init__`` sets may be a target: it is checked when the step returns."""

    class Order(Base):
        def __init__(self) -> None:
            self.later = self.second

        @step(start=True)
        def first(self) -> Command:
            return goto(self.later)

    await completes(Order)


async def test_attributes_that_the_step_sets_may_be_targets() -> None:
    """An attribute that the step sets on self may be a target."""

    class Order(Base):
        @step(start=True)
        def first(self) -> Command:
            self.later = self.second
            return goto(self.later)

    await completes(Order)


async def test_attributes_of_the_class_may_be_targets() -> None:
    """A class attribute, a property, or a value from ``__getattr__`` may be a target."""

    class Named(Base):
        later = "second"

        @step(start=True)
        def first(self) -> Command:
            return goto(self.later)

    class Property(Base):
        @property
        def later(self) -> Any:
            return self.second

        @step(start=True)
        def first(self) -> Command:
            return sleep(timedelta(), then=self.later)

    class Dynamic(Base):
        def __getattr__(self, name: str) -> Any:
            return self.second

        @step(start=True)
        def first(self) -> Command:
            return goto(self.later)

    for order in (Named, Property, Dynamic):
        await completes(order)


def test_getattr_does_not_answer_for_names() -> None:
    """Even in a class with ``__getattr__``, a target written as a string has to be a step."""

    class Order(Base):
        def __getattr__(self, name: str) -> Any:
            return self.second

        @step(start=True)
        def first(self) -> Command:
            return goto("later")

    assert refusal(Order) == (
        "step 'first': goto() names 'later', which is no step of this class (steps: second, first).",
    )


async def test_arguments_that_are_unpacked_are_not_read() -> None:
    """Targets in ``goto(*args)`` and ``goto(**options)`` count as computed."""
    options = dict

    class Order(Base):
        @step(start=True)
        def first(self) -> Command:
            return goto(*[self.second])

        @step
        def second(self) -> Command:
            return goto(**options(target=self.third))

        @step
        def third(self) -> Command:
            return sleep(*[timedelta()], **options(then="last"))

        @step
        def last(self) -> Command:
            return complete()

    await completes(Order)


def imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("changing_orders", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_file_that_has_changed_is_not_read(tmp_path: Path) -> None:
    """If a file was edited after its import, its source is not used to check targets."""
    path = tmp_path / "changing_orders.py"
    head = "from aioflow import complete, goto, step\n\nclass Order:\n"
    path.write_text(f"{head}    @step(start=True)\n    def first(self):\n        return complete()\n")
    module = imported(path)
    module.Order.Context = Empty
    path.write_text(f"{head}\n    @step\n    def other(self):\n        return goto(self.missing)  # a longer file\n")
    assert workflow("accepted")(module.Order) is module.Order
