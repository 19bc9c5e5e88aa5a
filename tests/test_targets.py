"""Targets written out in commands: they are read from the source, and refused when the class is defined."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import BaseModel

import aioflow
import aioflow as af
import aioflow.commands
from aioflow import Retry, complete, goto, sleep, step, workflow
from aioflow import goto as go
from aioflow.commands import Command
from aioflow.errors import DefinitionError

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


def test_unknown_targets_are_refused() -> None:
    """A target that is no step, as attribute or as name, in goto and in sleep, is refused with the list of steps."""

    class Order(Base):
        @step(start=True)
        async def first(self) -> Command:
            if Empty():
                return goto(self.shpi)
            if Path():
                return goto("done", progress=0.5)
            if DAY:
                return goto(target="late")
            if self:
                return sleep(DAY, then=self.later)
            return sleep(DAY, then="latest")

    steps = "(steps: second, first)"
    assert set(refusal(Order)) == {
        f"step 'first': goto() names 'shpi', which is no step of this class {steps}.",
        f"step 'first': goto() names 'done', which is no step of this class {steps}.",
        f"step 'first': goto() names 'late', which is no step of this class {steps}.",
        f"step 'first': sleep(then=) names 'later', which is no step of this class {steps}.",
        f"step 'first': sleep(then=) names 'latest', which is no step of this class {steps}.",
    }


def test_a_method_that_is_no_step_is_no_target() -> None:
    """A plain method as a target is refused, with the advice to make it a step."""

    class Order(Base):
        @step(start=True)
        def first(self) -> Command:
            return goto(self.helper)

    assert refusal(Order) == (
        "step 'first': goto() names 'helper', which is a method but no step (steps: second, first). Add @step.",
    )


def test_the_name_of_a_method_that_is_no_step_is_no_target() -> None:
    """A plain method's name as a target is refused."""

    class Order(Base):
        @step(start=True)
        def first(self) -> Command:
            return goto("helper")

    assert refusal(Order) == (
        "step 'first': goto() names 'helper', which is no step of this class (steps: second, first).",
    )


def test_commands_are_known_under_any_name() -> None:
    """A command is recognised under another import name, through a module, and from any enclosing scope."""
    jump = goto

    class Order(Base):
        @step(start=True)
        def first(self) -> Command:
            return go(self.a) or af.goto(self.b) or aioflow.goto(self.c) or aioflow.commands.goto(self.d)

        @step
        def other(self) -> Command:
            return jump(self.e) or then_pause(DAY, then=self.f) or af.sleep(DAY, then="g")

    expected = [("goto()", name) for name in "abcde"] + [("sleep(then=)", name) for name in "fg"]
    assert {problem.partition(",")[0].partition(": ")[2] for problem in refusal(Order)} == {
        f"{command} names {name!r}" for command, name in expected
    }


def test_self_may_have_another_name() -> None:
    """A step may name its first parameter anything."""

    class Order(Base):
        @step(start=True)
        def first(this) -> Command:  # noqa: N805
            return goto(this.missing)

    assert refusal(Order) == (
        "step 'first': goto() names 'missing', which is no step of this class (steps: second, first).",
    )


def test_a_target_in_a_nested_function_is_read() -> None:
    """The targets in a nested function or lambda that uses the step's self are checked, too."""

    class Order(Base):
        @step(start=True)
        def first(self) -> Command:
            def last() -> Command:
                return goto(self.missing)

            otherwise = lambda: goto("nowhere")  # noqa: E731
            return last() or otherwise()

    assert {problem.partition(",")[0] for problem in refusal(Order)} == {
        "step 'first': goto() names 'missing'",
        "step 'first': goto() names 'nowhere'",
    }


def test_text_at_the_left_margin_hides_nothing() -> None:
    """The targets of a step are checked even if its source holds text at the left margin."""

    class Order(Base):
        @step(start=True)
        def first(self) -> Command:
            query = """
SELECT 1
"""
            return goto(self.missing) if query else complete()

    assert refusal(Order) == (
        "step 'first': goto() names 'missing', which is no step of this class (steps: second, first).",
    )
