"""Assignment to a live Context gives exactly the result of pydantic's own ``validate_assignment``.

A live Context skips the validator where it can tell that the value would validate unchanged.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    create_model,
    field_validator,
)

from aioflow.codec import ContextCodec
from aioflow.context import undeclared_field


class Text(str):  # noqa: SLOT000
    """A subclass of str."""


class Upper(BaseModel):
    """A model whose validator changes what is assigned."""

    value: str | None = None

    @field_validator("value", check_fields=False)
    @classmethod
    def upper(cls, value: str | None) -> str | None:
        """Converts to upper case."""
        return value.upper() if value else value


VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 10**400, 1.0, 0.5, float("inf"), float("nan"), "", "a", " A ", "1", "\ud800", "true",
    Text("a"), b"a", [], [1], {"a": 1},
]  # fmt: skip
ANNOTATIONS: list[Any] = [
    str, int, float, bool, None, str | None, None | int, float | None, int | float, float | int,
    str | int, bool | int, Any, object, list[int], Literal[1, "a"], Annotated[int, Field(gt=0)], Annotated[str, Strict()],
    Annotated[str, AfterValidator(str.upper)], Annotated[str | None, AfterValidator(repr)],
]  # fmt: skip
FIELDS: dict[str, Any] = {
    "plain": lambda: Field(None),
    "frozen": lambda: Field(None, frozen=True),
    "strict": lambda: Field(None, strict=True),
    "bounded": lambda: Field(None, max_length=2),
    "left to right": lambda: Field(None, union_mode="left_to_right"),
}
CONFIGS: dict[str, ConfigDict] = {
    "none": ConfigDict(),
    "strict": ConfigDict(strict=True),
    "stripping": ConfigDict(str_strip_whitespace=True),
    "upper": ConfigDict(str_to_upper=True),
    "short": ConfigDict(str_max_length=1),
    "numbers as text": ConfigDict(coerce_numbers_to_str=True),
    "finite": ConfigDict(allow_inf_nan=False),
    "frozen": ConfigDict(frozen=True),
    "titled": ConfigDict(title="Titled", extra="allow"),
}


def assign(context: BaseModel, value: Any) -> tuple[Any, ...]:
    """Assign the value; returns what is stored and its class, or the error, and which fields are set."""
    try:
        context.value = value
    except ValidationError as error:
        return "refused", [item["type"] for item in error.errors()], context.model_fields_set
    except TypeError as error:  # a constraint that is none of this type's
        return "refused", str(error)
    found = context.value
    return "assigned", type(found), repr(found), found is value, context.model_fields_set


def twins(context: type[BaseModel]) -> tuple[BaseModel, BaseModel]:
    """A live Context, and a Context that pydantic itself validates."""
    checked = type(
        "Checked", (context,), {"model_config": ConfigDict(validate_assignment=True), "__module__": __name__}
    )
    return ContextCodec(context, undeclared_field).live(), checked()


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("field", FIELDS)
def test_assignment_is_what_pydantic_makes_of_it(field: str, config: str) -> None:
    """For every type, value, kind of field and config, the result equals that of pydantic."""
    compared = 0
    for annotation in ANNOTATIONS:
        try:
            context = create_model("Context", __config__=CONFIGS[config], value=(annotation, FIELDS[field]()))
            live, checked = twins(context)
        except (TypeError, RuntimeError):  # pydantic has no such constraint for this type
            assert field in {"bounded", "strict", "left to right"}
            continue
        for value in VALUES:
            assert assign(live, value) == assign(checked, value), (annotation, value)
            compared += 1
    assert compared >= 3 * len(VALUES)


def test_a_validator_of_the_field_runs() -> None:
    """A field's validator runs even if the value is already of the field's class."""
    live, checked = twins(Upper)
    assert assign(live, "abc") == assign(checked, "abc")
    assert live.value == "ABC"  # type: ignore[attr-defined]


@given(st.lists(st.tuples(st.sampled_from(["value", "other"]), st.integers() | st.floats(allow_nan=False) | st.none())))
def test_successive_assignments_are_what_pydantic_makes_of_them(assigned: list[tuple[str, Any]]) -> None:
    """After each of several assignments, both fields and the set of fields are the same as with pydantic."""
    context = create_model("Context", value=(int | None, 1), other=(float, 2.0))
    live, checked = twins(context)
    for name, value in assigned:
        for each in (live, checked):
            try:
                setattr(each, name, value)
            except ValidationError:
                pass
        assert vars(live) == vars(checked)
        assert live.model_fields_set == checked.model_fields_set
