"""``@event_workflow``: what it accepts, refuses and tells the store, and the Context that it makes of an event."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from aioflow import Engine, Event, Retry, complete, event_workflow, get_context, step, workflow
from aioflow.codec import Unstorable
from aioflow.commands import Command
from aioflow.definition import EventTrigger, WorkflowDefinition
from aioflow.errors import ContextInvalid, DefinitionError, LimitExceeded
from aioflow.plans import Listener
from aioflow.registry import Registry, definition_of, listeners, registry
from aioflow_memory import MemoryStore

MINUTE = 60_000_000
EVENT = Event(
    id="e1",
    name="order.placed",
    entity={"total": 5},
    entity_id="7",
    at=datetime(2030, 1, 1, tzinfo=UTC),
    recorded_at=datetime(2029, 1, 1, tzinfo=UTC),
)


def begin(self: Any) -> Command:
    return complete()


def made(body: dict[str, Any] | None = None, /, **options: Any) -> WorkflowDefinition:
    """The definition of a class with one step and this body."""
    cls = type("Flow", (), {"begin": step(start=True)(begin), **(body or {})})
    with registry.scope():
        event_workflow("order.placed", **options)(cls)
    return definition_of(cls)


def refusal(body: dict[str, Any]) -> str:
    """The problem for which the class is refused as an event workflow."""
    with pytest.raises(DefinitionError) as caught:
        made(body)
    (problem,) = caught.value.problems
    return problem


class Told(BaseModel):
    """A Context that declares two of the three names that an event fills."""

    event_id: str
    entity_id: int
    note: str = "n"


# ---- options


def test_the_defaults() -> None:
    """By default it starts at the event's time, in every namespace, and is named after the class."""
    definition = made()
    assert (definition.name, definition.version, definition.start) == ("event:Flow", "1", "begin")
    assert definition.event == EventTrigger("order.placed", "*", (0,))


def test_the_options() -> None:
    """It takes the options of ``@workflow`` as well as its own."""
    definition = made(
        name="mine", namespace="n", offset_minutes=-60, version="2", default_retry=Retry(max_attempts=7),
        timeout=timedelta(hours=1), on_timeout="begin", on_fail="begin", max_transitions=3,
    )  # fmt: skip
    assert definition.event == EventTrigger("order.placed", "n", (-60 * MINUTE,))
    assert (definition.name, definition.version, definition.default_retry.max_attempts) == ("mine", "2", 7)
    assert (definition.timeout, definition.on_timeout, definition.on_fail) == (60 * MINUTE, "begin", "begin")
    assert definition.max_transitions == 3


def test_several_offsets() -> None:
    """Offsets are stored in the given order, exact to the microsecond."""
    definition = made(offsets=[timedelta(days=-1), timedelta(0), timedelta(microseconds=1)])
    assert definition.event is not None
    assert definition.event.offsets == (-24 * 60 * MINUTE, 0, 1)
    half = made(offset_minutes=0.5).event
    assert half is not None
    assert half.offsets == (MINUTE // 2,)


def test_a_plain_workflow_has_no_event() -> None:
    """A workflow defined by ``@workflow`` has no event trigger."""
    with registry.scope():
        cls = workflow("event-definitions-plain")(
            type("Plain", (), {"Context": Told, "begin": step(start=True)(begin)})
        )
    assert definition_of(cls).event is None


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"offset_minutes": "60"}, TypeError, "offset_minutes=...\\) takes a number, got str"),
        ({"offset_minutes": True}, TypeError, "got bool"),
        ({"offset_minutes": timedelta(1)}, TypeError, "got timedelta"),
        ({"offset_minutes": float("nan")}, ValueError, "cannot be nan"),
        ({"offset_minutes": float("inf")}, ValueError, "cannot be inf"),
        ({"offset_minutes": 1e9}, ValueError, "beyond 100 years"),
        ({"offset_minutes": 1, "offsets": [timedelta(1)]}, TypeError, "not both"),
        ({"offsets": []}, ValueError, "is empty"),
        ({"offsets": "abc"}, TypeError, "a sequence of timedeltas, got str"),
        ({"offsets": timedelta(1)}, TypeError, "got timedelta"),
        ({"offsets": [1]}, TypeError, "takes timedeltas, got int"),
        ({"offsets": [timedelta(1), timedelta(hours=24)]}, ValueError, "an offset twice"),
        ({"offsets": [timedelta.max]}, ValueError, "beyond 100 years"),
        ({"name": ""}, ValueError, r"@event_workflow\(name=...\) must not be empty"),
        ({"name": "x" * 201}, LimitExceeded, "200 characters"),
        ({"namespace": 3}, TypeError, "namespace"),
        ({"version": 1}, TypeError, r"@event_workflow\(version=...\)"),
        ({"timeout": 5}, TypeError, r"@event_workflow\(timeout=...\)"),
        ({"on_timeout": "begin"}, TypeError, r"@event_workflow\(on_timeout=...\) needs timeout="),
    ],
)
def test_wrong_options_are_told(options: dict[str, Any], error: type[Exception], text: str) -> None:
    """An option of a wrong type or value is refused, by an error that names this decorator."""
    with pytest.raises(error, match=text):
        made(**options)


def test_the_event_s_name_is_checked() -> None:
    """The event's name must be a valid name, and only a class can be decorated."""
    with pytest.raises(TypeError, match=r"@event_workflow\(event_name\) takes a string, got ModelMetaclass"):
        event_workflow(Told)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="decorates a class, got function"):
        event_workflow("order.placed")(begin)  # type: ignore[type-var]
    with pytest.raises(LimitExceeded, match="the name of the workflow"):
        event_workflow("order.placed")(type("X" * 200, (), {}))


# ---- the class


def test_a_context_may_be_left_out() -> None:
    """Without a Context the class gets one with the three names, all optional."""
    context = made().codec.context
    assert {name: field.annotation for name, field in context.model_fields.items()} == dict.fromkeys(
        ("event_id", "event_name", "entity_id"), str | None
    )


@pytest.mark.parametrize("name", ["should_run_for_event", "create_context"])
def test_what_is_asked_before_there_is_a_run_is_a_classmethod(name: str) -> None:
    """should_run_for_event and create_context are refused if they are instance methods."""

    def method(self: Any, event: Event) -> Any: ...

    assert refusal({name: method}).endswith("Make it a classmethod.")


@pytest.mark.parametrize("name", ["should_run_for_event", "create_context"])
def test_it_takes_the_event(name: str) -> None:
    """A should_run_for_event or create_context that cannot be called with just the event is refused."""

    def none(cls: type) -> Any: ...

    def two(cls: type, event: Event, order: int) -> Any: ...

    for wrong in (none, two):
        assert f"its {name} does not take the event alone" in refusal({name: classmethod(wrong)})


def test_should_run_is_a_classmethod_only() -> None:
    """A should_run_for_event that is a staticmethod or a plain attribute is refused."""

    def static(event: Event) -> bool: ...

    assert "Make it a classmethod" in refusal({"should_run_for_event": staticmethod(static)})
    assert "Make it a classmethod" in refusal({"should_run_for_event": True})


def test_a_context_that_no_event_could_fill_is_refused() -> None:
    """Without create_context, a Context may require only the three names that an event fills."""

    class Needs(BaseModel):
        event_id: str
        total: int
        tax: int

    assert refusal({"Context": Needs}).startswith("its Context needs total, tax, which an event does not tell.")

    def create(cls: type, event: Event) -> Needs: ...

    assert made({"Context": Needs, "create_context": classmethod(create)}).event is not None


def test_all_problems_come_in_one_error() -> None:
    """Problems of the class as a workflow, and as an event workflow, are reported in one error."""

    class Hidden(BaseModel):
        secret: SecretStr = SecretStr("")

    def method(self: Any, event: Event) -> Any: ...

    with pytest.raises(DefinitionError) as caught:
        event_workflow("order.placed")(type("Bad", (), {"Context": Hidden, "should_run_for_event": method}))
    assert len(caught.value.problems) == 3


# ---- what it tells the store


def test_what_a_registry_listens_to() -> None:
    """There is a listener for each offset, none for plain workflows, and only the last version of a workflow counts."""
    plain = type("Plain", (), {"Context": Told, "begin": step(start=True)(begin)})
    with registry.scope():
        workflow("event-definitions-plain")(plain)
    known = Registry([
        made(name="a", offsets=[timedelta(0), timedelta(minutes=1)], namespace="n"),
        definition_of(plain),
        made(name="b", version="1"),
        made(name="b", version="2", offset_minutes=-1),
    ])  # fmt: skip
    assert listeners(known) == (
        ("a", "event-definitions-plain", "b"),
        (
            Listener("a", "order.placed", "n", 0),
            Listener("a", "order.placed", "n", MINUTE),
            Listener("b", "order.placed", "*", -MINUTE),
        ),
    )
    assert listeners(Registry()) == ((), ())


# ---- the Context that an event makes


async def test_without_create_context_the_declared_names_are_filled() -> None:
    """Without create_context, those of the three names that the Context declares are filled and validated."""
    context = await made({"Context": Told}).context_for(EVENT)
    assert context == Told(event_id="e1", entity_id=7, note="n")
    assert not hasattr(context, "event_name")
    whole = await made().context_for(EVENT)
    assert whole is not None
    assert whole.model_dump() == {"event_id": "e1", "event_name": "order.placed", "entity_id": "7"}


@pytest.mark.parametrize("is_async", [False, True])
async def test_create_context_is_called_with_the_event(is_async: bool) -> None:
    """create_context, sync or async, is called with the event and makes the Context."""

    def create(cls: Any, event: Event) -> Any:
        return cls.Context(event_id=event.id, entity_id=event.entity["total"])

    async def create_later(cls: Any, event: Event) -> Any:
        return create(cls, event)

    definition = made({"Context": Told, "create_context": classmethod(create_later if is_async else create)})
    assert await definition.context_for(EVENT) == Told(event_id="e1", entity_id=5)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("answer", [True, False])
async def test_should_run_decides(is_async: bool, answer: bool) -> None:
    """should_run_for_event, sync or async, is called before create_context, which is skipped if it returns False."""
    asked: list[object] = []

    def should_run(cls: type, event: Event) -> bool:
        asked.append(event)
        return answer

    async def should_run_later(cls: type, event: Event) -> bool:
        return should_run(cls, event)

    def create(cls: Any, event: Event) -> Any:
        asked.append("create")
        return cls.Context(event_id="x", entity_id=1)

    body = {"Context": Told, "create_context": classmethod(create)}
    body["should_run_for_event"] = classmethod(should_run_later if is_async else should_run)
    context = await made(body).context_for(EVENT)
    assert (context is not None, asked) == (answer, [EVENT, "create"] if answer else [EVENT])


async def test_what_user_code_raises_comes_through() -> None:
    """An error raised by should_run_for_event or create_context reaches the caller unchanged."""

    def away(cls: type, event: Event) -> Any:
        raise ConnectionError("away")

    for name in ("create_context", "should_run_for_event"):
        with pytest.raises(ConnectionError, match="away"):
            await made({name: classmethod(away)}).context_for(EVENT)


async def test_what_makes_no_context_is_told() -> None:
    """A Context that does not validate, is of another class, or cannot be stored is refused with the reason."""

    def wrong(cls: Any, event: Event) -> Any:
        return 3

    def hollow(cls: Any, event: Event) -> Any:
        return cls.Context.model_construct(event_id=object(), entity_id=1)

    with pytest.raises(ContextInvalid, match="entity_id: Input should be a valid integer"):
        await made({"Context": Told}).context_for(Event(id="e", name="n", at=EVENT.at, recorded_at=EVENT.at))
    with pytest.raises(ContextInvalid, match="create_context returned int, not Told"):
        await made({"Context": Told, "create_context": classmethod(wrong)}).context_for(EVENT)
    with pytest.raises(Unstorable):
        await made({"Context": Told, "create_context": classmethod(hollow)}).context_for(EVENT)


async def test_an_event_workflow_can_be_started_by_hand() -> None:
    """``engine.start`` starts an event workflow with the keywords of its Context or create_context, like any other."""

    @event_workflow("order.placed", name="event-definitions-by-hand")
    class ByHand:
        class Context(BaseModel):
            event_id: str

        @classmethod
        def create_context(cls, event: Event | None = None) -> Context:
            return cls.Context(event_id="by hand" if event is None else event.id)

        @step(start=True)
        async def begin(self) -> Command:
            return complete(seen=get_context(self.Context).event_id)

    @event_workflow("order.placed", name="event-definitions-plainly")
    class Plainly:
        @step(start=True)
        async def begin(self) -> Command:
            return complete()

    async with Engine(MemoryStore(), workflows=[ByHand, Plainly]) as engine:
        assert (await (await engine.start(ByHand)).wait(5)).data == {"event_id": "by hand", "seen": "by hand"}
        assert (await (await engine.start(ByHand, event=EVENT)).wait(5)).data["seen"] == "e1"
        run = await engine.start("event-definitions-plainly", entity_id="3")
        assert (await run.wait(5)).data == {"event_id": None, "event_name": None, "entity_id": "3"}
