"""Which workflows an engine knows, and how ``start`` makes their Contexts."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import Engine, StartOptions, complete, step, workflow
from aioflow.commands import Command
from aioflow.errors import ContextInvalid, DefinitionError, WorkflowUnknown
from aioflow.registry import Registry, definition_of, registry
from aioflow_memory import MemoryStore


class Empty(BaseModel):
    """A Context without fields."""


def order_workflow(version: str = "1", name: str = "order") -> Any:
    @workflow(name, version=version)
    class Order:
        Context = Empty

        @step(start=True)
        def first(self) -> Command:
            return complete(version=version)

    return Order


def test_a_name_and_version_belong_to_one_class() -> None:
    """A second class of the same name and version is refused, with the place of the first."""
    first = order_workflow()

    class Other:
        Context = Empty

        @step(start=True)
        def begin(self) -> Command:
            return complete()

    with pytest.raises(DefinitionError) as caught:
        workflow("order")(Other)
    assert str(caught.value) == (
        f"Workflow class {Other.__qualname__} cannot be used:\n"
        f"  - workflow 'order' version '1' is {first.__qualname__} in {__file__} already. "
        "Give one of them another name or version."
    )
    assert registry.find("order").cls is first
    assert definition_of(workflow("order", version="2")(Other)).version == "2"


async def test_a_redefinition_replaces() -> None:
    """A class of the same file and qualified name replaces the first, which is no longer known."""
    old, new = order_workflow(), order_workflow()
    assert registry.find("order").cls is new
    assert registry.find(new).cls is new
    async with Engine(MemoryStore()) as engine:
        assert (await engine.start(new)).workflow == "order"
        with pytest.raises(WorkflowUnknown):
            await engine.start(old)


async def test_a_name_means_the_version_registered_last() -> None:
    """Starting by name takes the version registered last, and starting by class takes that class."""
    first, second = order_workflow("1"), order_workflow("2")
    async with Engine(MemoryStore()) as engine:
        runs = [await engine.start(which) for which in ("order", first, second)]
        assert [run.version for run in runs] == ["2", "1", "2"]
        assert [(await run.result(10)).version for run in runs] == ["2", "1", "2"]
        assert {run.id for run in await engine.runs(workflow=first)} == {run.id for run in runs}


async def test_an_engine_may_know_some_workflows_only() -> None:
    """``Engine(workflows=[...])`` knows only these: others are unknown to it, by class and by name."""
    order, refund = order_workflow(), order_workflow(name="refund")
    async with Engine(MemoryStore(), workflows=iter([order])) as engine:
        await (await engine.start("order")).result(10)
        for other, version in ((refund, "( version '1')?"), ("refund", "")):
            with pytest.raises(WorkflowUnknown) as caught:
                await engine.start(other)
            assert re.fullmatch(
                rf"No workflow 'refund'{version} is known to this engine \(known: order\)\. "
                r"Import the module that defines it, or add the class to Engine\(workflows=\[\.\.\.\]\)\.",
                str(caught.value),
            )


async def test_an_unknown_version_of_a_known_workflow_is_named() -> None:
    """The error for an unknown version of a known workflow names the version."""
    first, second = order_workflow("1"), order_workflow("2")
    async with Engine(MemoryStore(), workflows=[second]) as engine:
        with pytest.raises(WorkflowUnknown) as caught:
            await engine.start(first)
    assert "'order' version '1'" in str(caught.value)


@pytest.mark.parametrize(
    ("workflow", "what"), [(int, "int is"), ("order", "an instance of str is"), (3, "an instance of int is")]
)
def test_an_engine_takes_workflow_classes(workflow: Any, what: str) -> None:
    """Anything but a workflow class is refused when the engine is made."""
    with pytest.raises(TypeError) as caught:
        Engine(workflows=[workflow])
    expected = f"{what} no workflow. Pass a class decorated with @workflow(...), or a workflow's name."
    assert str(caught.value) == expected


def test_a_registry_counts_its_workflows() -> None:
    """A registry's generation counts the workflows added, and ``get`` gives None for an unknown name or version."""
    known = Registry([definition_of(order_workflow("1")), definition_of(order_workflow("2"))])
    assert known.generation == 2
    assert known.known() == [("order", "1"), ("order", "2")]
    assert known.get("order", "3") is None
    assert known.get("refund", "1") is None


# ---- create_context


@pytest.fixture
def store() -> MemoryStore:
    """A store that can be inspected after the engine has used it."""
    return MemoryStore()


class Total(BaseModel):
    total: int
    note: str = ""


def created_by(create: Any) -> Any:
    """A workflow with this create_context."""

    @workflow("created")
    class Created:
        Context = Total
        create_context = create

        @step(start=True)
        def first(self) -> Command:
            return complete()

    return Created


def create_sync(cls: Any, user_id: int, *, shout: bool = False) -> Any:
    return cls.Context(total=user_id * 2, note="HEY" if shout else "hey")


async def create_async(cls: Any, user_id: int) -> Any:
    return cls.Context(total=user_id * 3)


@pytest.mark.parametrize(
    ("create", "keywords", "expected"),
    [
        (classmethod(create_sync), {"user_id": 4, "shout": True}, Total(total=8, note="HEY")),
        (classmethod(create_async), {"user_id": 4}, Total(total=12)),
        (staticmethod(lambda user_id: Total(total=user_id)), {"user_id": 4}, Total(total=4)),
    ],
)
async def test_create_context_makes_the_context(create: Any, keywords: dict[str, Any], expected: Total) -> None:
    """``create_context`` takes the keywords of ``start``, sync or async."""
    created = created_by(create)
    async with Engine(MemoryStore(), workflows=[created]) as engine:
        run = await engine.start(created, **keywords)
        assert run.context == expected
        assert await run.result(10) == expected


@pytest.mark.parametrize("returned", [None, {"total": 1}, Empty()])
async def test_create_context_returns_the_context(store: MemoryStore, returned: object) -> None:
    """If ``create_context`` returns anything but the Context, start is refused, and no run is started."""
    created = created_by(classmethod(lambda cls: returned))
    async with Engine(store, workflows=[created]) as engine:
        with pytest.raises(ContextInvalid) as caught:
            await engine.start(created)
        assert await engine.count() == 0
    assert str(caught.value) == (
        "These arguments do not make a Context of workflow 'created': "
        f"create_context returned {type(returned).__name__}, not Total. Return cls.Context(...)."
    )


ADVICE = "Keywords of start() fill the Context; key, reuse, delay and start_at go into StartOptions(...), before them."


@pytest.mark.parametrize(
    ("create", "keywords", "problem"),
    [
        (classmethod(create_sync), {"user": 4}, "missing a required argument: 'user_id'"),
        (classmethod(create_async), {"user_id": 4, "key": "k"}, "got an unexpected keyword argument 'key'"),
    ],
)
async def test_keywords_fit_create_context(
    store: MemoryStore, create: Any, keywords: dict[str, Any], problem: str
) -> None:
    """Keywords that ``create_context`` does not take are a TypeError that mentions StartOptions."""
    created = created_by(create)
    async with Engine(store, workflows=[created]) as engine:
        with pytest.raises(TypeError) as caught:
            await engine.start(created, **keywords)
        assert await engine.count() == 0
    name = f"{created.__qualname__}.create_context"
    assert str(caught.value) == f"These keywords do not fit {name}: {problem}. {ADVICE}"


async def test_keywords_fit_the_context(store: MemoryStore) -> None:
    """Without ``create_context``, keywords that are no fields are a TypeError that mentions StartOptions."""

    @workflow("total")
    class Order:
        Context = Total

        @step(start=True)
        def first(self) -> Command:
            return complete()

    async with Engine(store, workflows=[Order]) as engine:
        with pytest.raises(TypeError) as caught:
            await engine.start(Order, total=1, key="k", tota=2)
        with pytest.raises(ContextInvalid) as invalid:
            await engine.start(Order, total="many", note=None)
        with pytest.raises(ContextInvalid) as incomplete:
            await engine.start(Order, StartOptions(key="k"))
        with pytest.raises(TypeError) as positional:
            await engine.start(Order, StartOptions(), 3)
        with pytest.raises(TypeError) as no_options:
            await engine.start(Order, {"key": "k"}, total=3)
        assert await engine.count() == 0
    where = f"{Order.__qualname__}.Context"
    problem = f"it has no field 'key', 'tota' (fields: total, note). {ADVICE}"
    assert str(caught.value) == f"These keywords do not fit {where}: {problem}"
    said = "These arguments do not make a Context of workflow 'total': "
    assert str(invalid.value) == (
        f"{said}total: Input should be a valid integer, unable to parse string as an integer; "
        "note: Input should be a valid string"
    )
    assert str(incomplete.value) == f"{said}total: Field required"
    assert str(positional.value) == "start() takes the Context's values as keywords: start(Order, order_id=1)."
    assert str(no_options.value) == (
        "start() takes StartOptions(...) after the workflow, and the Context's values as keywords; got dict."
    )


async def test_an_error_in_create_context_is_its_own(store: MemoryStore) -> None:
    """A TypeError raised inside ``create_context`` is not mistaken for wrong keywords."""

    def create(cls: Any, total: str) -> Any:
        raise TypeError("total and tax do not add up")

    created = created_by(classmethod(create))
    async with Engine(store, workflows=[created]) as engine:
        with pytest.raises(Exception, match="do not add up") as caught:
            await engine.start(created, total="x")
        assert await engine.count() == 0
    assert "StartOptions" not in str(caught.value)


async def test_create_context_is_validated_once_more(store: MemoryStore) -> None:
    """A Context that ``create_context`` made without validation is validated, and refused if it does not fit."""
    created = created_by(classmethod(lambda cls: Total.model_construct(total="many")))
    async with Engine(store, workflows=[created]) as engine:
        with pytest.raises(ContextInvalid, match="total: Input should be a valid integer"):
            await engine.start(created)
        assert await engine.count() == 0


def test_scope_forgets_what_functions_define() -> None:
    """After a scope, workflows defined in functions within it are unknown, and those they replaced are back."""
    before = order_workflow()
    with registry.scope():
        within = order_workflow()
        other = order_workflow(version="2", name="other")
        assert registry.find(within).cls is within
        assert registry.find("other").cls is other
    assert registry.find(before).cls is before
    with pytest.raises(WorkflowUnknown):
        registry.find("other")


def test_scope_keeps_what_modules_define() -> None:
    """Workflows of a module that was first imported within a scope stay registered, as it is not imported again."""
    program = (
        "from pydantic import BaseModel\nfrom aioflow import complete, step, workflow\n"
        "@workflow('from-module')\nclass Flow:\n    Context = type('Context', (BaseModel,), {})\n"
        "    @step(start=True)\n    def first(self): return complete()\n"
    )
    module: dict[str, Any] = {"__name__": "some_module"}
    with registry.scope():
        exec(program, module)
    assert registry.find("from-module").cls is module["Flow"]
