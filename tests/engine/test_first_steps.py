"""The first step gets the Context as it was stored, even if the same process has started the run."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, PrivateAttr

from aioflow import complete, get_context, step, workflow
from aioflow.commands import Command
from aioflow.model import Run, Transition
from tests.engine.conftest import MakeEngine
from tests.flows import PATIENCE


class Given(BaseModel):
    """A Context with a list and a private attribute."""

    items: list[int]
    seen: bool = False
    _hidden: str = PrivateAttr("as it begins")


@workflow("first-given")
class Takes:
    """Records what its first step gets."""

    Context = Given

    @classmethod
    def create_context(cls, items: list[int]) -> Given:
        """A Context whose private attribute is set."""
        given = Given(items=items)
        given._hidden = "set before"
        return given

    @step(start=True)
    async def take(self) -> Command:
        context = get_context(Given)
        return complete(seen=context.items is not ITEMS and context._hidden == "as it begins")


ITEMS = [1, 2]


async def test_the_first_step_gets_only_what_is_stored(make_engine: MakeEngine) -> None:
    """The first step gets neither the caller's own list nor a private attribute that ``create_context`` has set."""
    async with make_engine() as engine:
        context = await (await engine.start(Takes, items=ITEMS)).result(PATIENCE)
    assert (context.items, context.seen) == ([1, 2], True)


def version(text: str) -> Any:
    """The workflow, as an edited version of its file defines it, with this Context."""

    @workflow("first-edition")
    class Edition:
        class Context(BaseModel):
            edition: str = text
            number: int

        @step(start=True)
        async def tell(self) -> Command:
            return complete(of=type(self).__name__, same=isinstance(get_context(), self.Context), by=text)

    return Edition


class Redefines:
    """An instrument that redefines the workflow once its run is committed."""

    def committed(self, run: Run, transition: Transition) -> None:
        if transition.kind == "start":
            version("second")

    def step_started(self, run: Run) -> None:
        pass

    def step_ended(self, run: Run, error: BaseException | None) -> None:
        pass


async def test_code_that_is_defined_anew_reads_what_is_stored(make_engine: MakeEngine) -> None:
    """If the workflow is redefined once its run is committed, the first step gets a Context of the new class."""
    first = version("first")
    async with make_engine() as engine:
        engine.instruments.append(Redefines())
        run = await (await engine.start(first, number=1)).wait(PATIENCE)
    assert run.error is None
    assert {name: run.data[name] for name in ("edition", "same", "by")} == {
        "edition": "first",
        "same": True,
        "by": "second",
    }
