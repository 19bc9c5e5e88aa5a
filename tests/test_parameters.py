"""Which parameters of a step get what from the signal, message or failure that its run goes on with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import pytest
from pydantic import BaseModel, Field, JsonValue, create_model, field_validator

from aioflow import Failure, arguments
from aioflow.arguments import Parameters, Unfillable, note_model
from aioflow.model import Resumption

if TYPE_CHECKING:

    class Unseen(BaseModel):
        """A class that type checkers see and this process does not."""

        amount: int

    Elsewhere = Unseen

FAILURE = Failure("pay", "ValueError: no", 3, "exhausted")


class Paid(BaseModel):
    """A message."""

    amount: Decimal = Field(gt=0)
    note: str = Field(default="", alias="remark")


class Refunded(Paid):
    """A message that is a subclass of Paid."""


class Picky(BaseModel):
    """A message whose validator raises RuntimeError."""

    amount: int

    @field_validator("amount")
    @classmethod
    def check(cls, value: int) -> int:
        if value < 0:
            raise RuntimeError("negative")
        return value


@pytest.fixture(autouse=True)
def _unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget all models that waits or messages have named, as in a new process."""
    monkeypatch.setattr(arguments, "_seen", {})


def signal(**payload: JsonValue) -> Resumption:
    return Resumption("signal", "paid", payload)


def message(name: str = "Paid", **fields: JsonValue) -> Resumption:
    return Resumption("message", name, fields or {"amount": "1.50", "note": "thanks"})


PAID = Paid(amount=Decimal("1.50"), remark="thanks")


def fill(
    function: Callable[..., Any], resumption: Resumption | None = None, failure: Failure | None = None
) -> dict[str, Any]:
    return Parameters(function).fill(resumption, failure)


def refusal(function: Callable[..., Any], resumption: Resumption | None = None, failure: Failure | None = None) -> str:
    with pytest.raises(Unfillable) as caught:
        fill(function, resumption, failure)
    return str(caught.value)


# ---- nothing to pass


@pytest.mark.parametrize(
    "resumption", [None, Resumption("timeout"), Resumption("deadline"), signal(), message("X", a=1)]
)
def test_a_step_without_parameters_gets_none(resumption: Resumption | None) -> None:
    """A step that takes only self gets no arguments, whatever resumed the run."""

    def ship(self: object) -> None: ...

    assert fill(ship, resumption, FAILURE) == {}
    assert not Parameters(ship)
    assert Parameters(ship).bound


@pytest.mark.parametrize("resumption", [None, Resumption("timeout"), signal(other=1), message("X", a=1)])
def test_parameters_with_defaults_may_be_left_out(resumption: Resumption | None) -> None:
    """A parameter that has a default is left out if nothing fills it."""

    def ship(self: object, amount: int = 3, *rest: int, note: str = "") -> None: ...

    assert fill(ship, resumption) == {}


@pytest.mark.parametrize("resumption", [None, Resumption("timeout"), signal(other=1)])
def test_parameters_without_defaults_must_be_filled(resumption: Resumption | None) -> None:
    """A parameter without a default that nothing fills is an error, which names it and says what to do."""

    def ship(self: object, amount: int, *, note: str, by: str = "") -> None: ...

    assert refusal(ship, resumption) == (
        "nothing gives its parameters amount, note. Give a default, or resume it by a signal that has it."
    )
    assert refusal(ship, signal(amount=3)).startswith("nothing gives its parameter note. ")
    assert Parameters(ship).needed == ["amount", "note"]


def test_positional_only_parameters_are_told() -> None:
    """Positional-only parameters without a default are listed as such, except self."""

    def ship(self: object, amount: int, note: str = "", /, *, by: str) -> None: ...

    assert Parameters(ship).positional == ["amount"]
    assert Parameters(ship).needed == ["by"]


def test_what_is_no_function_has_no_parameters() -> None:
    """An object without a signature has no parameters."""
    for odd in (type, property(), 3):
        found = Parameters(odd)  # type: ignore[arg-type]
        assert (found.needed, found.positional) == ([], [])
    assert not Parameters(lambda: None).bound


# ---- signals


def test_a_payload_goes_to_the_parameters_of_its_keys() -> None:
    """Keys of the payload that are parameters are passed and validated; the others are left to the Context."""

    def ship(self: object, amount: Decimal, on: date, *, tags: set[str], untyped, raw: Any = None) -> None: ...  # type: ignore[no-untyped-def]

    payload = signal(amount="1.5", on="2030-01-02", tags=["a", "a"], untyped={"x": [1]}, raw=[None], other=3)
    assert fill(ship, payload) == {
        "amount": Decimal("1.5"),
        "on": date(2030, 1, 2),
        "tags": {"a"},
        "untyped": {"x": [1]},
        "raw": [None],
    }


@pytest.mark.parametrize(
    ("annotation", "value", "given"),
    [
        (int | None, None, None),
        (int | None, 3, 3),
        (Optional[Decimal], "1.5", Decimal("1.5")),  # noqa: UP045 - users write it so
        (Annotated[int, Field(gt=0)], 3, 3),
        (Literal["a", "b"], "b", "b"),
        (Paid, {"amount": 2, "remark": "x"}, Paid(amount=Decimal(2), remark="x")),
        (list[Paid], [{"amount": 2}], [Paid(amount=Decimal(2))]),
        (dict[str, int], {"x": 1}, {"x": 1}),
        (Any, {"x": 1}, {"x": 1}),
        (None, None, None),
    ],
    ids=str,
)
def test_a_value_is_validated_by_its_type(annotation: Any, value: JsonValue, given: object) -> None:
    """A value is validated by its parameter's annotation, which may be any type that pydantic knows."""

    def ship(self: object, amount: Any) -> None: ...

    ship.__annotations__["amount"] = annotation
    assert fill(ship, signal(amount=value)) == {"amount": given}


def test_a_value_that_does_not_validate_is_refused() -> None:
    """A value that does not validate is refused, and the error names the parameter and the reason."""

    def ship(self: object, amount: int, note: Annotated[str, Field(max_length=3)] = "") -> None: ...

    assert refusal(ship, signal(amount="x")).startswith("amount: ")
    assert "valid integer" in refusal(ship, signal(amount="x"))
    assert refusal(ship, signal(amount=1, note="long")).startswith("note: ")
    assert refusal(ship, signal(amount=None)).startswith("amount: ")


class Opaque:
    """A class that pydantic cannot make from JSON."""


def test_a_type_that_nothing_can_be_made_of_is_refused() -> None:
    """A value for a parameter of a type that pydantic does not know is refused."""

    def ship(self: object, thing: Opaque) -> None: ...

    assert refusal(ship, signal(thing={})).startswith("thing: ")


def test_a_step_that_takes_any_keyword_gets_the_whole_payload() -> None:
    """A step with ``**rest`` also gets the keys that are no parameters, as they were sent."""

    def ship(self: object, amount: int, **rest: Any) -> None: ...

    assert fill(ship, signal(amount="3", note="x", more=[1])) == {"amount": 3, "note": "x", "more": [1]}
    assert Parameters(ship)


@pytest.mark.parametrize("name", ["self", "this"])
def test_a_payload_never_takes_the_place_of_self(name: str) -> None:
    """A payload key with the name of the step's first parameter is not passed, whatever that name is."""
    scope: dict[str, Any] = {}
    exec(f"def ship({name}, **rest): return rest", scope)
    given = fill(scope["ship"], signal(self=1, this=2, x=3))
    assert given["x"] == 3
    assert name not in given
    scope["ship"](object(), **given)


# ---- messages


def test_a_message_goes_to_the_parameter_of_its_type() -> None:
    """A message goes to the parameter annotated with its class, whatever its name and place."""

    def ship(self: object, note: str = "", *, receipt: Paid, other: Picky | None = None) -> None: ...

    assert fill(ship, message()) == {"receipt": PAID}


def test_a_message_goes_through_unions_and_annotations() -> None:
    """Optional, unions and Annotated are searched for the message's class."""

    def optional(self: object, paid: Paid | None = None) -> None: ...
    def old(self: object, paid: Optional[Paid]) -> None: ...  # noqa: UP045 - users write it so
    def union(self: object, paid: Picky | Paid) -> None: ...
    def annotated(self: object, paid: Annotated[Paid, "the receipt"]) -> None: ...
    def both(self: object, paid: Annotated[Paid | None, "the receipt"]) -> None: ...

    for ship in (optional, old, union, annotated, both):
        assert fill(ship, message()) == {"paid": PAID}


def test_a_quoted_annotation_is_an_annotation() -> None:
    """A quoted annotation, also within another one, is resolved."""

    def quoted(self: object, paid: "Paid") -> None: ...  # noqa: UP037 - users write it so
    def within(self: object, paid: Optional["Paid"] = None) -> None: ...  # noqa: UP037, UP045 - users write it so

    for ship in (quoted, within):
        assert fill(ship, message()) == {"paid": PAID}
        assert fill(ship, signal(paid={"amount": 2})) == {"paid": Paid(amount=Decimal(2))}


def test_a_message_goes_to_the_parameter_of_a_base() -> None:
    """A parameter annotated with a base class gets the message, as its own class if this process knows that."""

    def ship(self: object, paid: Paid) -> None: ...

    note_model(Refunded)
    given = fill(ship, message("Refunded"))["paid"]
    assert type(given) is Refunded


def test_a_message_goes_to_its_own_type_before_a_base() -> None:
    """If there are parameters for the message's class and for a base, the one for its own class gets it."""

    def ship(self: object, base: Paid | None = None, *, refunded: Refunded) -> None: ...

    note_model(Refunded)
    assert list(fill(ship, message("Refunded"))) == ["refunded"]


def test_a_message_goes_to_the_only_parameter_without_a_type() -> None:
    """A single parameter without an annotation gets the message, as a model if this process knows its class."""

    def ship(self, paid, note=""): ...  # type: ignore[no-untyped-def]

    note_model(Paid)
    assert fill(ship, message()) == {"paid": PAID}


def test_a_message_is_not_given_to_one_of_several_untyped_parameters() -> None:
    """Of two parameters without an annotation, neither gets the message, and both are reported as missing."""

    def ship(self, one, other): ...  # type: ignore[no-untyped-def]

    note_model(Paid)
    assert refusal(ship, message()).startswith("nothing gives its parameters one, other. ")


def test_a_message_does_not_go_to_a_parameter_of_another_type() -> None:
    """A parameter of another model, or of a type that is no model, does not get the message."""

    def other(self: object, picky: Picky) -> None: ...
    def plain(self: object, amount: int) -> None: ...

    for ship in (other, plain):
        assert "nothing gives its parameter " in refusal(ship, message())


def test_a_message_that_does_not_validate_is_refused() -> None:
    """A message that does not validate is refused with the reason, even if its validator raises something else."""

    def ship(self: object, paid: Paid | None = None, picky: Picky | None = None) -> None: ...

    assert "amount" in refusal(ship, message(amount=-1))
    assert "amount" in refusal(ship, message(note="x"))
    assert "negative" in refusal(ship, message("Picky", amount=-1))


def test_a_message_is_read_by_the_step_s_class_not_by_its_name() -> None:
    """The message is read as the class in the step's annotation, even if another class of that name was seen."""

    class Other(BaseModel):
        amount: str

    Other.__name__ = "Paid"
    note_model(Other)

    def ship(self: object, paid: Paid) -> None: ...

    assert type(fill(ship, message())["paid"]) is Paid


# ---- annotations that are hard to resolve


def test_a_class_of_the_enclosing_function_is_found() -> None:
    """A name in an annotation is also looked up in the step's closure."""

    class Local(BaseModel):
        amount: int

    def ship(self: object, local: Local) -> object:
        return Local

    assert fill(ship, message("Local", amount=3)) == {"local": Local(amount=3)}


def test_a_class_that_only_type_checkers_see_is_one_that_was_seen() -> None:
    """An annotation that cannot be evaluated gets the message whose class it names, once that class was seen."""

    def ship(self: object, paid: Elsewhere | None = None, unseen: Unseen | None = None) -> None: ...

    seen = create_model("Unseen", amount=(int, ...))
    note_model(seen)
    assert fill(ship, message("Unseen", amount=3)) == {"unseen": seen(amount=3)}


def test_an_annotation_may_name_what_is_defined_later() -> None:
    """An annotation that could not be resolved is tried again at the next call."""
    scope: dict[str, Any] = {"BaseModel": BaseModel}
    exec("from __future__ import annotations\ndef ship(self, later: Later): ...", scope)
    parameters = Parameters(scope["ship"])
    with pytest.raises(Unfillable):
        parameters.fill(signal(), None)
    exec("class Later(BaseModel):\n    amount: int", scope)
    later = scope["Later"]
    assert parameters.fill(message("Later", amount=3), None) == {"later": later(amount=3)}


def test_a_value_of_an_unknown_type_is_given_as_it_was_sent() -> None:
    """A value for a parameter whose annotation cannot be evaluated is passed as it was sent."""

    def ship(self: object, unseen: Unseen) -> None: ...

    assert fill(ship, signal(unseen={"x": 1})) == {"unseen": {"x": 1}}


def test_a_wrapped_step_has_the_parameters_of_its_wrapper() -> None:
    """If a wrapper takes other parameters than the step it wraps, the wrapper's count."""

    def inner(self: object, amount: int, secret: str) -> None: ...

    @functools.wraps(inner)
    def ship(self: object, amount: int) -> None: ...

    assert fill(ship, signal(amount="3", secret="x")) == {"amount": 3}


def test_a_wrapper_that_takes_anything_has_the_parameters_of_the_step() -> None:
    """A wrapper that passes on ``*args, **kwargs`` has the parameters of the wrapped step."""

    def through(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    @through
    def ship(self: object, paid: Paid) -> Any:
        return paid

    @through
    def mend(self: object, failure: Failure) -> Any:
        return failure

    @through
    def count(self: object, amount: int) -> Any:
        return amount

    assert ship(None, **fill(ship, message())) == PAID
    assert mend(None, **fill(mend, None, FAILURE)) == FAILURE
    assert count(None, **fill(count, signal(amount="3", other=1))) == 3


# ---- failures


def test_a_failure_goes_to_the_parameter_of_its_type_or_name() -> None:
    """A failure goes to the parameter annotated with Failure, or else to the one called ``failure``."""

    def typed(self: object, why: Failure) -> None: ...
    def optional(self: object, why: Failure | None = None) -> None: ...
    def named(self, failure): ...  # type: ignore[no-untyped-def]
    def both(self: object, why: Failure, failure: str = "") -> None: ...

    assert fill(typed, None, FAILURE) == {"why": FAILURE}
    assert fill(optional, None, FAILURE) == {"why": FAILURE}
    assert fill(named, None, FAILURE) == {"failure": FAILURE}
    assert fill(both, None, FAILURE) == {"why": FAILURE}
    for mends in (typed, optional, named, both):
        assert Parameters(mends).failure_only()


def test_a_step_that_takes_no_failure_gets_none() -> None:
    """An on_fail step need not have a parameter for the failure."""

    def mend(self: object, note: str = "") -> None: ...

    assert fill(mend, None, FAILURE) == {}
    assert Parameters(mend).failure_only()


def test_without_a_failure_there_is_none_to_give() -> None:
    """A step that needs a failure and is reached without one is refused with an error that says so."""

    def mend(self: object, failure: Failure) -> None: ...

    assert "nothing gives its parameter failure." in refusal(mend)
    assert "nothing gives its parameter failure." in refusal(mend, Resumption("timeout"))


def test_a_failure_stays_while_its_path_waits() -> None:
    """A step that a signal resumes after an on_fail gets both the failure and the payload."""

    def mend(self: object, failure: Failure, amount: int) -> None: ...
    def thank(self: object, failure: Failure, paid: Paid) -> None: ...

    assert fill(mend, signal(amount=3), FAILURE) == {"failure": FAILURE, "amount": 3}
    assert fill(thank, message(), FAILURE) == {"failure": FAILURE, "paid": PAID}
    assert not Parameters(mend).failure_only()


def test_a_payload_cannot_replace_the_failure() -> None:
    """A payload key ``failure`` does not replace the run's failure."""

    def mend(self: object, failure: Failure) -> None: ...

    lie: JsonValue = {"step": "pay", "error": "all is well", "attempts": 0, "kind": "exhausted"}
    assert fill(mend, signal(failure=lie), FAILURE) == {"failure": FAILURE}


# ---- what is checked at import


@pytest.mark.parametrize("model", [Paid, Picky], ids=lambda model: model.__name__)
def test_whether_a_message_is_all_that_is_needed(model: type[BaseModel]) -> None:
    """``takes_model`` is true if the model fills every parameter that the step needs."""

    def one(self: object, paid: Paid, picky: Picky | None = None) -> None: ...
    def none(self: object, note: str = "") -> None: ...
    def more(self: object, paid: Paid, picky: Picky) -> None: ...
    def untyped(self, message): ...  # type: ignore[no-untyped-def]

    assert Parameters(one).takes_model(model) == (model is Paid)
    assert Parameters(none).takes_model(model)
    assert not Parameters(more).takes_model(model)
    assert Parameters(untyped).takes_model(model)
