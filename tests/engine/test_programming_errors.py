"""Mistakes in steps that a retry cannot help: they are not retried, and the error says what to write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel, field_serializer, field_validator

from aioflow import Retry, complete, get_context, goto, sleep, step, workflow
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, kinds_of, run_of

#: With this policy, an error that is retried takes five attempts.
FIVE = Retry(max_attempts=5, base_delay=timedelta(0))
RETURN_IT = (
    "not a command. Return what happens next: 'return goto(self.next_step)', 'return sleep(...)', "
    "'return wait.for_signal(...)', 'return complete()' or 'return fail(reason)'."
)


class Counted(BaseModel):
    """A Context."""

    how: str
    changed: bool = False
    number: int = 0


@workflow("wrong-other")
class Other:
    """Another workflow, with a step of the same name as one below."""

    Context = Counted

    @step(start=True)
    async def wrong(self) -> Command:
        return complete()


async def _forgotten() -> Command:
    return complete()


class Mine(Command):
    """A command that is not one of aioflow's."""


@workflow("wrong-steps", default_retry=FIVE)
class Wrong:
    """Makes the mistake that its Context names, in a coroutine or in a thread."""

    Context = Counted

    @step(start=True)
    async def begin(self) -> Command:
        where, _, _ = get_context(self.Context).how.partition(" ")
        return goto({"async": "wrong", "sync": "wrong_in_thread"}[where])

    @step
    async def wrong(self) -> Command:
        return self.go_wrong()

    @step
    def wrong_in_thread(self) -> Command:
        return self.go_wrong()

    @step
    async def awaits_goto(self) -> Command:
        return await goto(self.wrong)

    @step
    async def awaits_complete(self) -> Command:
        await complete()
        return complete()

    def no_step(self) -> Command:
        return complete()

    def go_wrong(self) -> Any:
        context = get_context(self.Context)
        context.changed = True
        ways: dict[str, Callable[[], Any]] = {
            "None": lambda: None,
            "coroutine": _forgotten,
            "int": lambda: 7,
            "class": lambda: goto,
            "own": Mine,
            "generator": lambda: (step for step in ()),
            "name": lambda: goto("shpi"),
            "then": lambda: sleep(timedelta(hours=1), then="shpi"),
            "other": lambda: goto(Other().wrong),
            "plain": lambda: goto(self.no_step),
            "function": lambda: goto(_forgotten),
            "extra": lambda: complete(number="many"),
            "storable": lambda: context.__dict__.update(number="many") or complete(),
            "undeclared": lambda: setattr(context, "nmuber", 1) or complete(),
        }
        return ways[context.how.partition(" ")[2]]()


STEPS = "begin, wrong, wrong_in_thread, awaits_goto, awaits_complete"
WRONG = {
    "None": f"returned None, {RETURN_IT}",
    "coroutine": f"returned a coroutine that nobody awaited, {RETURN_IT}",
    "int": f"returned an int, {RETURN_IT}",
    "class": f"returned a function, {RETURN_IT}",
    "own": f"returned a Mine that aioflow did not make, {RETURN_IT}",
    "generator": f"returned a generator, {RETURN_IT}",
    "name": f"returned goto with the target 'shpi', which is no step of it (steps: {STEPS}). "
    "goto() takes a step of the same workflow.",
    "then": f"returned sleep with the target 'shpi', which is no step of it (steps: {STEPS}). "
    "sleep() takes a step of the same workflow.",
    "other": f"returned goto with the target Other.wrong, which is no step of it (steps: {STEPS}). "
    "goto() takes a step of the same workflow.",
    "plain": f"returned goto with the target Wrong.no_step, which is no step of it (steps: {STEPS}). "
    "goto() takes a step of the same workflow.",
    "function": f"returned goto with the target _forgotten, which is no step of it (steps: {STEPS}). "
    "goto() takes a step of the same workflow.",
    "extra": "left a Context that cannot be stored: complete(...) does not fit: number: Input should be a valid "
    "integer, unable to parse string as an integer",
    "storable": "left a Context that cannot be stored: ",
    "undeclared": "assigned 'nmuber', which Counted does not declare (fields: how, changed, number). "
    "Declare the field, or mend the spelling.",
}


@pytest.mark.parametrize("where", ["async", "sync"])
async def test_programming_errors_are_not_retried(make_engine: MakeEngine, where: str) -> None:
    """Each mistake fails the run at the first attempt, with an error that says what to write, and changes nothing."""
    async with make_engine(Wrong) as engine:
        for how, text in WRONG.items():
            run = await run_of(engine, Wrong, how=f"{where} {how}")
            name = {"async": "wrong", "sync": "wrong_in_thread"}[where]
            start = f"Step {name!r} of workflow 'wrong-steps' (run {run.id}) "
            assert run.status == "failed", how
            assert run.error.startswith(start + text), how
            if how != "storable":
                assert run.error == start + text
            assert (run.attempt, run.data["changed"]) == (2, False), how
            assert await kinds_of(engine, run) == ["start", "goto", "fail"], how


@pytest.mark.parametrize("command", ["goto", "complete"])
async def test_command_that_is_awaited_is_to_be_returned(make_engine: MakeEngine, command: str) -> None:
    """The error of a step that awaits a command says to return it."""

    @workflow("wrong-awaited", default_retry=FIVE)
    class Flow:
        Context = Counted

        @step(start=True)
        async def begin(self) -> Command:
            return await (goto(self.end) if get_context(self.Context).how == "goto" else complete())

        @step
        async def end(self) -> Command:
            return complete()

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow, how=command)
        assert run.error == (
            f"Step 'begin' of workflow 'wrong-awaited' (run {run.id}) awaited {command}(...). "
            f"A command takes effect when the step returns it: write 'return {command}(...)'."
        )
        assert await kinds_of(engine, run) == ["start", "fail"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x" * (1 << 20), "The Context is beyond the limit of 1048576 bytes of JSON: it has 10"),
        ("a\0", "The Context is beyond the limit of characters that every store can hold: a NUL at note."),
        ({"k" * 201: 1}, "The Context is beyond the limit of 200 characters for a key: 201 below note."),
        (
            "\ud800",
            "The Context is beyond the limit of characters that every store can hold: a lone surrogate at note.",
        ),
        (float("nan"), "Step 'fill' of workflow 'wrong-limits' (run {id}) left a Context that cannot be stored: "),
        (float("-inf"), "Step 'fill' of workflow 'wrong-limits' (run {id}) left a Context that cannot be stored: "),
        ({1, 2}, "Step 'fill' of workflow 'wrong-limits' (run {id}) left a Context that cannot be stored: "),
        (object(), "Step 'fill' of workflow 'wrong-limits' (run {id}) left a Context that cannot be stored: "),
    ],
    ids=["large", "NUL", "key", "surrogate", "NaN", "infinity", "set", "object"],
)
async def test_context_that_no_store_can_hold_fails_its_run_alone(
    make_engine: MakeEngine, value: Any, text: str
) -> None:
    """A Context that cannot be stored, or would read back different, fails its run; other runs are not affected."""

    @workflow("wrong-limits", default_retry=FIVE)
    class Flow:
        class Context(BaseModel):
            note: Any = None

        @step(start=True)
        async def fill(self) -> Command:
            get_context(self.Context).note = value
            return complete()

    @workflow("wrong-bystander")
    class Bystander:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def end(self) -> Command:
            return complete()

    async with make_engine(Flow, Bystander) as engine:
        runs = [await engine.start(workflow) for workflow in (Bystander, Flow, Bystander)]
        for run in runs:
            await run.wait(5)
        assert [run.status for run in runs] == ["completed", "failed", "completed"]
        failed = runs[1]
        assert failed.error.startswith(text.format(id=failed.id))
        assert failed.data == {"note": None}
        assert await kinds_of(engine, failed) == ["start", "fail"]


async def test_context_deeper_than_any_store_holds_fails_its_run(make_engine: MakeEngine) -> None:
    """A Context nested deeper than 64 levels fails its run, and the error names the limit."""

    @workflow("wrong-depth", default_retry=FIVE)
    class Flow:
        class Context(BaseModel):
            depth: int
            nest: Any = None

        @step(start=True)
        async def fill(self) -> Command:
            context = get_context(self.Context)
            nest: list[Any] = []
            for _ in range(context.depth):
                nest = [nest]
            context.nest = nest
            return complete()

    async with make_engine(Flow) as engine:
        assert (await run_of(engine, Flow, depth=60)).status == "completed"
        for depth in (64, 300, 100_000):
            run = await run_of(engine, Flow, depth=depth)
            assert run.status == "failed"
            assert run.error.startswith("The Context is beyond the limit of depth 64: "), depth


@dataclass(eq=False)
class Touchy:
    """An object that cannot be compared."""

    number: int = 0

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("do not compare")

    __hash__ = None


@pytest.mark.parametrize("way", ["compare", "validate", "complete", "serialize"])
async def test_context_whose_own_code_raises_fails_its_run(make_engine: MakeEngine, way: str) -> None:
    """A validator, serializer or comparison of the Context that raises fails the run, and the step runs only once."""
    ran = []

    @workflow("wrong-own-code", default_retry=FIVE)
    class Flow:
        class Context(BaseModel):
            way: str
            touchy: Touchy | None = None
            numbers: list[int] = []

            @field_validator("numbers")
            @classmethod
            def known(cls, numbers: list[int]) -> list[int]:
                return [{1: 1}[number] for number in numbers]

            @field_serializer("touchy")
            def written(self, touchy: Touchy | None) -> Any:
                if touchy is not None and touchy.number == 7:
                    raise KeyError("do not serialize")
                return touchy

        @step(start=True)
        async def fill(self) -> Command:
            ran.append(1)
            context = get_context(self.Context)
            match context.way:
                case "compare":
                    context.touchy = Touchy()
                case "serialize":
                    context.touchy = Touchy(number=7)
                case "validate":
                    context.numbers.append(2)
                case "complete":
                    return complete(numbers=[2])
            return complete()

    async with make_engine(Flow, shutdown_timeout=timedelta(0)) as engine:
        run = await engine.start(Flow, way=way)
        await run.wait(3)
        assert run.status == "failed"
        assert f"(run {run.id}) left a Context that cannot be stored: " in run.error
        assert await kinds_of(engine, run) == ["start", "fail"]
    assert len(ran) == 1
