"""``@action``: what it accepts, each error with which it refuses a class, and the input model made of a signature."""

from __future__ import annotations

import json
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict, Field, RootModel, SecretStr

from aioflow import (
    Event,
    Failure,
    Retry,
    action,
    complete,
    errors,
    get_context,
    goto,
    on,
    statezero_action,
    step,
    wait,
    workflow,
)
from aioflow.actions import schema_of
from aioflow.arguments import Unfillable
from aioflow.commands import Command
from aioflow.errors import DefinitionError
from aioflow.inputs import ActionDefinition
from aioflow.registry import Registry, definition_of

if TYPE_CHECKING:
    from starlette.requests import Request


class Empty(BaseModel):
    """A Context without fields."""


class Review(BaseModel):
    """A reviewer's input."""

    notes: str = Field(max_length=5)
    priority: Literal["low", "high"] = "low"


class MayAct:
    """A permission class."""

    def has_permission(self, request: object, action_name: str) -> bool:
        return True


def refusal(cls: Any, name: str = "refused") -> tuple[str, ...]:
    """The problems for which the class is refused as a workflow."""
    with pytest.raises(DefinitionError) as caught:
        workflow(name)(cls)
    return caught.value.problems


def made(function: Any, /, **options: Any) -> ActionDefinition:
    """The definition of the action that this function becomes, as the start step of a workflow."""
    method = action(**options)(step(start=True)(function))
    cls = type("Made", (), {"Context": Empty, "only": method, "__module__": __name__})
    workflow("made-action")(cls)
    (found,) = definition_of(cls).actions
    return found


# ---- the decorator


def test_an_action_is_the_method_itself() -> None:
    """``@action`` makes a method a step, with or without ``@step``, whose options it keeps, and leaves it callable."""

    @workflow("marked")
    class Flow:
        Context = Empty

        @action("marked_first")
        @step(start=True, title="First")
        def first(self) -> Command:
            return complete()

        @action
        def second(self) -> Command:
            return complete()

        @action()
        async def third(self) -> Command:
            return complete()

    steps = definition_of(Flow).steps
    assert [each.action and each.action.name for each in steps.values()] == [
        "marked_first",
        "marked_second",
        "marked_third",
    ]
    assert (steps["first"].options.title, steps["first"].function) == ("First", vars(Flow)["first"])
    assert repr(steps["second"].action) == "<action 'marked_second', step 'second'>"
    assert isinstance(Flow().first(), Command)


@pytest.mark.parametrize(
    ("workflow_name", "called"),
    [("order", "order_only"), ("event:Paid", "event_Paid_only"), ("24 h", "action_24_h_only"), ("x" * 198, "x" * 198 + "_o")],
    ids=["plain", "colon", "digit", "long"],
)  # fmt: skip
def test_an_action_without_a_name_is_called_by_workflow_and_step(workflow_name: str, called: str) -> None:
    """The default name is made of workflow and step, and is an identifier whatever the workflow is called."""

    class Flow:
        Context = Empty

        @action()
        @step(start=True)
        def only(self) -> Command:
            return complete()

    workflow(workflow_name)(Flow)
    (found,) = definition_of(Flow).actions
    assert found.name == called
    assert found.name.isidentifier()


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: action("not one"), ValueError, "@action(name) must be an identifier, for clients make a function of it"),
        (lambda: action("class"), ValueError, "must be an identifier"),
        (lambda: action("x" * 201), errors.LimitExceeded, "@action(name) is beyond the limit of 200 characters"),
        (lambda: action(3), TypeError, "@action(name) takes a string, got int."),
        (lambda: action(input=Review(notes="x")), TypeError, "@action(input=...) takes a pydantic model, got a Review."),
        (lambda: statezero_action(serializer=dict), TypeError, "@statezero_action(serializer=...) takes a pydantic model, got dict."),
        (lambda: statezero_action(input=dict), TypeError, "@statezero_action(input=...) takes a pydantic model, got dict."),
        (lambda: action(input=dict), TypeError, "@action(input=...) takes a pydantic model, got dict."),
        (lambda: action(permissions=MayAct), TypeError, "@action(permissions=...) takes a sequence of classes, got MayAct"),
        (lambda: action(permissions="all"), TypeError, "takes a sequence of classes, got a str."),
        (lambda: action(permissions=[Review]), TypeError, "Review has neither has_permission(request, action_name) nor"),
        (lambda: statezero_action("a b"), ValueError, "@statezero_action(name) must be an identifier"),
        (lambda: statezero_action(input=Review, serializer=Review), TypeError, "takes input= or serializer=, not both"),
        (lambda: action()(3), TypeError, "@step decorates a method, got int."),
    ],
)  # fmt: skip
def test_wrong_options_are_refused(make: Any, kind: type[Exception], text: str) -> None:
    """An option of the wrong type or out of range is refused by the decorator."""
    with pytest.raises(kind) as caught:
        make()
    assert text in str(caught.value)


def test_permissions_are_kept() -> None:
    """Permissions may be given as classes and as instances, and keep their order."""
    asked = MayAct()
    assert made(lambda self: complete(), permissions=[MayAct, asked]).permissions == (MayAct, asked)


# ---- what a class is refused for


def test_an_action_is_not_retried() -> None:
    """An action with a retry policy or an on_fail of its own is refused."""

    class Flow:
        Context = Empty

        @action()
        @step(start=True, on_fail="second")
        def first(self) -> Command:
            return complete()

        @step()
        def second(self) -> Command:
            return complete()

        @action()
        @step(retry=Retry())
        def third(self) -> Command:
            return complete()

    why = "What an action raises goes to its caller, and the run waits as before: leave it out."
    assert refusal(Flow) == (
        f"step 'first' is an action, and has on_fail= {why}",
        f"step 'third' is an action, and has retry= {why}",
    )


def test_parameters_that_the_input_lacks_are_refused() -> None:
    """A parameter that the input cannot fill is refused: an unknown field, an Event, or a type without a schema."""

    class Flow:
        Context = Empty

        @action("needs_model", input=Review)
        @step(start=True)
        def first(self, notes: str, other: int, more: int = 3) -> Command:
            return complete()

        @action("needs_event")
        def second(self, event: Event) -> Command:
            return complete()

        @action("needs_root", input=RootModel[int])
        def third(self, value: int) -> Command:
            return complete()

        @action("needs_type")
        def fourth(self, thing: MayAct) -> Command:
            return complete()

    found = refusal(Flow)
    advice = "Add a field, or give the parameter a default."
    lacks = "which its input does not have"
    assert found[:3] == (
        f"action 'needs_model' (step 'first') needs other, {lacks} (fields: notes, priority). {advice}",
        f"action 'needs_event' (step 'second') needs event, {lacks} (fields: none). {advice}",
        "action 'needs_root' (step 'third') says input=RootModel[int], which has no fields. Give it a model with fields.",
    )
    assert len(found) == 4
    assert found[3].startswith("action 'needs_type' (step 'fourth') has a signature that no input can be made of: ")


def test_a_static_or_class_method_is_refused_once() -> None:
    """An action that is a static or class method is refused for that reason alone."""

    class Flow:
        Context = Empty

        @step(start=True)
        def first(self) -> Command:
            return complete()

        @action()
        @staticmethod
        def second() -> Command:
            return complete()

    assert refusal(Flow) == ("step 'second' is a staticmethod. A step is a plain method.",)


def test_commands_may_name_an_action_whatever_it_takes() -> None:
    """goto, sleep, on_timeout, on_fail and on may name an action that needs arguments, which its caller will give."""

    @workflow("leads", timeout=date.max - date.min, on_timeout="act", on_fail="act")
    class Flow:
        Context = Empty

        @step(start=True, on_fail="act")
        def first(self) -> Command:
            return goto(self.act)

        @step
        def second(self) -> Command:
            return wait.any(on("x", then=self.act), on(self.act), timeout=date.max - date.min, on_timeout=self.act)

        @action()
        def act(self, needed: int) -> Command:
            return complete()

    assert [found.step for found in definition_of(Flow).actions] == ["act"]


def test_arms_name_actions() -> None:
    """``on()`` of a step that is no action, and a wait that would give an action its message, are refused."""

    class Flow:
        Context = Empty

        @step(start=True)
        def first(self) -> Command:
            return wait.any(on(self.second))  # type: ignore[call-overload]

        @step
        def second(self) -> Command:
            return wait.for_signal(Review, then=self.act)

        @step
        def third(self) -> Command:
            return wait.any(on(self.missing))  # type: ignore[attr-defined]

        @action()
        def act(self, review: Review) -> Command:
            return complete()

    assert refusal(Flow) == (
        "step 'first': on(self.second) names a step that is no action. Add @action() to 'second'.",
        (
            "step 'second': wait.for_signal(then=) names 'act', an action, which is given what its caller gives: the "
            "Review would be lost."
        ),
        "step 'third': on() names 'missing', which is no step of this class (steps: first, second, third, act).",
    )


@pytest.mark.parametrize("arms", [{"key": "k"}, {"then": "x"}])
def test_an_action_as_an_arm_takes_nothing_else(arms: Any) -> None:
    """``on(self.action)`` refuses ``key=`` and ``then=``."""
    with pytest.raises(TypeError, match=r"on\(self\.action\) takes nothing else"):
        on(complete, **arms)  # type: ignore[call-overload]


# ---- names


def flow_with(name: str, version: str = "1", *, steps: tuple[str, ...] = ("only",)) -> type:
    """A class whose steps are all actions of this name."""
    methods: dict[str, Any] = {}
    for place, each in enumerate(steps):
        methods[each] = action(name)(step(start=not place)(lambda self: complete()))
    return type(f"Named{version}", (), {"Context": Empty, "__qualname__": f"Named.{name}.{version}", **methods})


def test_an_action_has_a_name_of_its_own() -> None:
    """A name used by an action of another workflow, or by two steps of one, is refused at import, with both places."""
    workflow("names-one")(flow_with("named_alike"))
    problem = "action 'named_alike' is one of workflow 'names-one' already, Named.named_alike.1 in "
    (found,) = refusal(type("Other", (flow_with("named_alike"),), {}), "names-two")
    assert found.startswith(problem)
    assert found.endswith("An action is called by its name alone: say @action(name=...).")
    assert refusal(flow_with("named_twice", steps=("a", "b"))) == (
        "steps 'a' and 'b' are both the action 'named_twice'. Rename one.",
    )


def test_versions_of_a_workflow_share_their_actions() -> None:
    """Two versions of a workflow may have an action of the same name, and a redefined class may reuse its own name."""
    registry = Registry()
    first, second = flow_with("named_again"), flow_with("named_again", "2")
    for version, cls in (("1", first), ("2", second), ("2", second)):
        registry.add(definition_of(workflow("names-versions", version=version)(cls)))
    assert registry.actions["named_again"] is definition_of(second).actions[0]


def test_a_subclass_overrides_an_action() -> None:
    """A base class's action means the overriding action of the subclass, or none if an ordinary step overrides it."""

    @workflow("overridden")
    class Base:
        Context = Empty

        @action("overridden_act")
        @step(start=True)
        def act(self) -> Command:
            return complete()

    class Same(Base):
        @action("overriding_act")
        @step(start=True)
        def act(self) -> Command:
            return complete()

    class Plain(Base):
        @step(start=True)
        def act(self) -> Command:
            return complete()

    same, plain = (definition_of(workflow(cls.__name__)(cls)) for cls in (Same, Plain))
    assert same.action_of(Base.act) is same.action_of("overriding_act") is same.action_of("act") is same.actions[0]
    assert (plain.action_of(Base.act), plain.actions, plain.action_of("act")) == (None, [], None)
    assert (same.action_of(len), same.action_of("nothing"), same.action_of(3)) == (None, None, None)


# ---- inputs


class Colour(Enum):
    RED = "red"


def read(found: ActionDefinition, **given: Any) -> Any:
    """The arguments of the step for this input, after a round trip through the stored JSON."""
    return found.fill(json.loads(found.read(given, 7, request=False)), None)


def test_a_signature_makes_a_model() -> None:
    """Parameters become fields with their types, bounds and defaults; a default of None makes the field optional."""

    def only(
        self: Any, a: int, b: Annotated[str, Field(max_length=3)], c: Decimal = Decimal("1.5"), *,
        d: date = None, e: Colour = Colour.RED, model_id: int = 3, copy: bool = False, f: Any = None,  # noqa: RUF013
        g: list[UUID] = [], h=4,  # noqa: B006
    ) -> Command:  # fmt: skip
        return complete()

    found = made(only)
    schema: Any = schema_of(found)
    assert schema["required"] == ["a", "b"]
    assert list(schema["properties"]) == ["a", "b", "c", "d", "e", "model_id", "copy", "f", "g", "h"]
    given = read(found, a="1", b="abc", d="2030-01-01", g=[UUID(int=7)])
    assert given == {
        "a": 1, "b": "abc", "c": Decimal("1.5"), "d": date(2030, 1, 1), "e": Colour.RED, "model_id": 3, "copy": False,
        "f": None, "g": [UUID(int=7)], "h": 4,
    }  # fmt: skip
    with pytest.raises(errors.ActionInputInvalid, match="b: String should have at most 3 characters"):
        read(found, a=1, b="abcd")


def test_a_step_that_takes_everything_is_given_everything() -> None:
    """A step with ``**rest`` gets the fields of the input that are no parameters of its own."""

    def only(self: Any, a: int, **rest: Any) -> Command:
        return complete()

    assert read(made(only), a=1, other="x") == {"a": 1, "other": "x"}


def test_the_run_s_id_may_be_asked_for() -> None:
    """A parameter or field ``workflow_run_id`` gets the run's id, whatever the caller sends; the schema lacks it."""

    def only(self: Any, workflow_run_id: int, note: str = "") -> Command:
        return complete()

    found = made(only)
    assert read(found, workflow_run_id=99) == {"workflow_run_id": 7, "note": ""}
    schema: Any = schema_of(found)
    assert (list(schema["properties"]), schema["required"]) == (["note"], [])


def test_a_given_model_goes_by_its_own_configuration() -> None:
    """A given input model keeps its config: it takes aliases and names, and its own error refuses what it forbids."""

    class Given(BaseModel):
        model_config = ConfigDict(extra="forbid")
        notes: str = Field(alias="reviewerNotes")

    def only(self: Any, notes: str) -> Command:
        return complete()

    found = made(only, input=Given)
    assert read(found, reviewerNotes="x") == read(found, notes="x") == {"notes": "x"}
    with pytest.raises(errors.ActionInputInvalid, match="other: Extra inputs are not permitted"):
        read(found, notes="x", other=1)


def test_a_given_model_may_be_one_parameter_of_several() -> None:
    """A parameter of the input model's type, even if optional and beside others with defaults, gets the whole input."""

    def only(self: Any, said: Review | None, more: int = 3) -> Command:
        return complete()

    assert read(made(only, input=Review), notes="x") == {"said": Review(notes="x")}


def test_what_json_cannot_hold_is_refused() -> None:
    """An input that does not read back equal from JSON is refused before the run is touched."""

    class Secret(BaseModel):
        password: SecretStr

    class Odd(BaseModel):
        when: datetime

        def model_post_init(self, context: Any) -> None:
            raise LookupError("odd")

    def only(self: Any, **rest: Any) -> Command:
        return complete()

    with pytest.raises(errors.ActionInputInvalid, match="does not survive JSON: password"):
        read(made(only, input=Secret), password="x")
    with pytest.raises(errors.ActionInputInvalid, match="LookupError: odd"):
        read(made(only, input=Odd), when="2030-01-01T00:00:00Z")
    with pytest.raises(errors.LimitExceeded, match="The input of action 'made_action_only' is beyond the limit"):
        read(made(only), text="x" * (1 << 20))
    with pytest.raises(errors.LimitExceeded, match="a lone surrogate"):
        read(made(only), text="\ud800")
    with pytest.raises(errors.ActionInputInvalid, match="object"):
        read(made(only), text=object())


def test_types_may_be_defined_later() -> None:
    """An annotation that cannot be evaluated at import is evaluated at each call, which is refused until it can be."""

    def only(self: Any, later: Later) -> Command:  # type: ignore[name-defined]  # noqa: F821
        return complete()

    found = made(only)
    with pytest.raises(errors.ActionInputInvalid, match="the type of later, Later, is not known"):
        read(found, later={"x": 1})
    globals()["Later"] = Review
    try:
        assert read(found, later={"notes": "x"}) == {"later": Review(notes="x")}
    finally:
        del globals()["Later"]


def test_a_request_need_not_be_evaluated() -> None:
    """The type of ``request`` need not exist at run time, nor that of the parameter for the given input model."""

    def only(self: Any, request: Request, review: Review) -> Command:
        return complete()

    def hidden(self: Any, request: Request, review: Hidden) -> Command:  # type: ignore[name-defined]  # noqa: F821
        return complete()

    found = made(only)
    assert found.takes_request
    request = object()
    assert found.fill({"review": {"notes": "x"}}, request) == {"review": Review(notes="x"), "request": request}
    assert made(hidden, input=Review).fill({"notes": "x"}, request) == {"review": Review(notes="x"), "request": request}
    with pytest.raises(Unfillable, match="its input has nothing for request"):
        found.fill({"review": {"notes": "x"}}, None)


def test_code_that_has_changed_does_not_take_an_old_input() -> None:
    """A stored input that no longer validates after a change of the code is reported, without its values."""

    def only(self: Any, a: int, failure: Failure | None = None) -> Command:
        get_context()
        return complete()

    with pytest.raises(Unfillable, match="a: Input should be a valid integer"):
        made(only).fill({"a": "secret"}, None)
    assert made(only).fill({"a": 1, "gone": 2}, None) == {"a": 1}
