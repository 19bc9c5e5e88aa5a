"""The codec alone, on unusual Contexts: how they are assigned to, merged, compared, and explained in errors."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date
from typing import Any

import pytest
from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    create_model,
    field_serializer,
    model_serializer,
    model_validator,
)

from aioflow.codec import ContextCodec, Unstorable, difference, explain
from aioflow.context import undeclared_field
from aioflow.errors import LimitExceeded


def codec_of(context: type[BaseModel]) -> ContextCodec:
    return ContextCodec(context, undeclared_field)


class Total(BaseModel):
    total: int = 0


class Open(Total):
    """A Context that allows undeclared names."""

    model_config = ConfigDict(extra="allow")


class Closed(Total):
    """A Context that forbids them."""

    model_config = ConfigDict(extra="forbid")


class Range(BaseModel):
    """A Context whose validator checks two fields together."""

    low: int = 0
    high: int = 5

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low > self.high:
            raise ValueError("low is over high")
        return self


class Memo(BaseModel):
    """A model with what is not stored: a private attribute, which pydantic compares, and a property."""

    text: str = ""
    _seen: int = PrivateAttr(0)

    @property
    def seen(self) -> int:
        return self._seen

    @seen.setter
    def seen(self, seen: int) -> None:
        self._seen = seen


class Incomparable:
    """An object whose comparison raises, like that of a numpy array."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("ambiguous")

    __hash__ = object.__hash__


class Mute(Exception):
    """An exception whose ``__str__`` raises."""

    def __str__(self) -> str:
        raise RuntimeError


class Writing(BaseModel):
    """A model whose serializer raises or returns what a test demands."""

    value: Any = 0
    other: int = 0

    @field_serializer("value")
    def _write(self, value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value


class Together(BaseModel):
    """A model that can be serialized field by field, but not as a whole."""

    left: int = 1
    right: int = 2

    @model_serializer(mode="wrap")
    def _write(self, write: SerializerFunctionWrapHandler, info: SerializationInfo) -> Any:
        parts = write(self)
        if len(parts) > 1:
            raise KeyError("too much")
        return parts


@pytest.mark.parametrize(("context", "takes"), [(Total, False), (Open, True), (Closed, False)])
def test_only_a_context_that_asks_takes_any_keyword(context: type[BaseModel], takes: bool) -> None:
    """Only a Context with ``extra="allow"`` takes any keyword, although its live class is more permissive."""
    assert codec_of(context).takes_any_keyword is takes


# ---- merge


def test_fields_that_are_checked_together_are_merged_together() -> None:
    """A merge validates all new values at once, together with the old ones, so a validator sees them all."""
    codec = codec_of(Range)
    merged = codec.merge(codec.adopt(Range()), {"low": 7, "high": 9})
    assert (merged.low, merged.high) == (7, 9)  # type: ignore[attr-defined]
    with pytest.raises(ValidationError, match="low is over high"):
        codec.merge(merged, {"low": 10})


@pytest.mark.parametrize(
    ("context", "kept"), [(Total, {"note": "x"}), (Open, {"note": "x"}), (Closed, None)], ids=["free", "open", "closed"]
)
def test_undeclared_names_are_kept_unless_forbidden(context: type[BaseModel], kept: dict[str, str] | None) -> None:
    """Undeclared names are merged and kept, but a Context that forbids them refuses them by name."""
    codec = codec_of(context)
    live = codec.adopt(context())
    if kept is None:
        with pytest.raises(ValidationError) as refused:
            codec.merge(live, {"note": "x", "total": 3})
        assert explain(refused.value) == "note: Extra inputs are not permitted"
    else:
        merged = codec.merge(live, {"note": "x", "total": "3"})
        assert (merged.total, merged.__pydantic_extra__) == (3, kept)  # type: ignore[attr-defined]
    assert live == context()


def test_undeclared_names_may_be_ignored() -> None:
    """A merge into a Context with ``extra="ignore"`` drops undeclared names."""

    class Ignoring(Total):
        model_config = ConfigDict(extra="ignore")

    codec = codec_of(Ignoring)
    merged = codec.merge(codec.adopt(Ignoring()), {"note": "x", "total": 3})
    assert codec.encode(merged)[0] == '{"total":3}'


def test_all_invalid_values_are_reported() -> None:
    """A merge reports every value that does not validate in one error, even if a message contains braces."""

    class Two(BaseModel):
        model_config = ConfigDict(extra="forbid")
        left: int = 0
        right: int = 0

    codec = codec_of(Two)
    with pytest.raises(ValidationError) as refused:
        codec.merge(codec.adopt(Two()), {"left": "{x}", "right": None, "up": 1})
    assert [problem["loc"] for problem in refused.value.errors()] == [("left",), ("right",), ("up",)]


# ---- assignments


def test_what_is_not_stored_can_be_assigned() -> None:
    """Private attributes and properties of a live Context can be assigned, and are not stored."""
    codec = codec_of(Memo)
    live = codec.adopt(Memo(text="a"))
    live.seen = 3  # type: ignore[attr-defined]
    live._seen += 1  # type: ignore[attr-defined]
    assert live.seen == 4  # type: ignore[attr-defined]
    assert codec.encode(live)[0] == '{"text":"a"}'


def test_an_undeclared_name_that_is_there_can_be_assigned() -> None:
    """An undeclared name that was merged can be assigned again; a new one is an error."""
    codec = codec_of(Total)
    live = codec.merge(codec.adopt(Total()), {"note": "x"})
    live.note = "y"  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="nose"):
        live.nose = "y"  # type: ignore[attr-defined]
    assert codec.encode(live)[0] == '{"total":0,"note":"y"}'


# ---- comparing


def test_a_live_context_equals_its_kind_alone() -> None:
    """A live Context equals an instance of the user's class with the same values, and no object of another type."""
    live = codec_of(Total).adopt(Total(total=3))
    assert live == Total(total=3)
    assert live != Total(total=4)
    assert live != {"total": 3}
    assert live != 3


@pytest.mark.parametrize(
    ("annotation", "hold"),
    [
        (list[Memo], lambda memo: [memo]),
        (tuple[Memo], lambda memo: (memo,)),
        (dict[str, Memo], lambda memo: {"k": memo}),
    ],
    ids=["list", "tuple", "dict"],
)
def test_what_is_not_stored_makes_no_difference(annotation: Any, hold: Callable[[Memo], Any]) -> None:
    """Models in lists, tuples and mappings are compared only by what is stored of them."""
    Holding = create_model("Holding", memos=(annotation, ...))  # noqa: N806 - a class
    codec = codec_of(Holding)
    memo = Memo(text="a")
    live = codec.adopt(Holding(memos=hold(memo)))
    memo._seen = 7
    live.memos = hold(memo)  # type: ignore[attr-defined]
    _, parsed = codec.encode(live)
    assert live.memos != parsed.memos  # type: ignore[attr-defined]
    assert difference(live, parsed) is None


def test_undeclared_names_make_a_difference() -> None:
    """A name that only one of two models has, and a name with two values, are reported as differences."""
    left, right = Open.model_validate({"a": 1, "c": 1}), Open.model_validate({"b": 1, "c": 2})
    assert difference(left, right) == "a would be lost"
    assert difference(right, left) == "b would be lost"
    assert difference(Open(), left) == "a would be added"
    assert difference(Open.model_validate({"c": 1}), Open.model_validate({"c": 2})) == (
        "c reads back as another int than was written"
    )


def test_what_cannot_be_compared_is_not_stored() -> None:
    """A value whose comparison raises is refused, and the error names what it raised."""

    class Odd(BaseModel):
        value: Any = 0

        @field_serializer("value")
        def _write(self, value: Any) -> int:
            return 2

    codec = codec_of(Odd)
    live = codec.adopt(Odd(value=Incomparable()))
    with pytest.raises(Unstorable, match=r"^value cannot be compared with what reads back: ValueError: ambiguous$"):
        codec.encode(live)


# ---- explaining


@pytest.mark.parametrize(
    ("context", "value", "error", "text"),
    [
        (Writing, ValueError("no"), Unstorable, "Error calling function `_write`: ValueError: no"),
        (Writing, "a\udc00", LimitExceeded, "a lone surrogate at value"),
        (Writing, {"\udc00": 1}, LimitExceeded, "a lone surrogate in a key below value"),
        (Writing, [Writing(value=["\udc00"])], LimitExceeded, "a lone surrogate at value[0].value[0]"),
        (Together, None, Unstorable, "PydanticSerializationError: Error calling function `_write`: KeyError: 'too much'"),
    ],
    ids=["raises", "text", "key", "deep", "whole"],
)  # fmt: skip
def test_why_a_context_cannot_be_written(
    context: type[BaseModel], value: Any, error: type[Exception], text: str
) -> None:
    """The error names the field that cannot be written, the limit that it exceeds, or what the serializer raised."""
    codec = codec_of(context)

    def write() -> None:
        live = codec.adopt(context())
        if value is not None:
            live.__dict__["value"] = value
        codec.encode(live)

    with pytest.raises(error, match=re.escape(text)):
        write()


def test_an_error_whose_text_raises_is_named() -> None:
    """An error whose ``__str__`` raises is reported by its class."""
    assert explain(Mute()) == "Mute: <its __str__ raised>"


def test_very_many_faults_are_counted() -> None:
    """If thousands of values do not validate, the error has only their number."""
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(list[int]).validate_python(["x"] * 2_000)
    assert explain(refused.value) == "Context: 2000 values do not validate"
    assert explain(refused.value, "") == "2000 values do not validate"


class Named(BaseModel):
    """A model whose fields have aliases."""

    total: int = Field(0, validation_alias=AliasChoices("sum", AliasPath("bill", "sum"), AliasPath("t")), alias="Total")
    tags: list[str] = []


def test_the_names_of_keywords_are_fields_and_aliases() -> None:
    """A keyword is declared if it is a field, its alias, one of its alias choices, or the start of an alias path."""
    codec = codec_of(Named)
    assert codec.declared == {"total", "Total", "sum", "bill", "t", "tags"}
    for keywords in ({"total": 3}, {"sum": 3}, {"bill": {"sum": 3}}):
        assert codec.encode(codec.build(keywords))[0] == '{"total":3,"tags":[]}'


def test_a_value_of_a_wrong_type_does_not_read_back() -> None:
    """A value of the wrong type is refused with its field and the reason, but without the value."""
    codec = codec_of(Named)
    live = codec.adopt(Named())
    live.tags.append(17)  # type: ignore[attr-defined]
    with pytest.raises(Unstorable) as refused:
        codec.encode(live)
    assert str(refused.value) == "it does not read back: tags.0: Input should be a valid string"


def test_what_does_not_read_back_is_told() -> None:
    """A Context that can be written but does not validate when read is refused with the validator's message."""
    codec = codec_of(Range)
    live = codec.adopt(Range())
    live.low = 7  # type: ignore[attr-defined]
    with pytest.raises(Unstorable, match=r"^it does not read back: Context: Value error, low is over high$"):
        codec.encode(live)


def test_a_value_that_reads_back_as_another_type_is_refused() -> None:
    """A value in a field of any type that would read back as another type is refused."""
    codec = codec_of(Open)
    with pytest.raises(Unstorable, match=r"^when is a date, but reads back as a str$"):
        codec.encode(codec.merge(codec.adopt(Open()), {"when": date(2030, 1, 2)}))


def test_a_model_with_a_post_init_is_adopted_with_it() -> None:
    """A live Context made from an instance runs ``model_post_init`` of the user's class."""

    class Counting(Total):
        _twice: int = PrivateAttr(0)

        def model_post_init(self, context: Any, /) -> None:
            self._twice = self.total * 2

    assert codec_of(Counting).adopt(Counting(total=4))._twice == 8  # type: ignore[attr-defined]


def test_an_unvalidated_context_is_refused_with_the_validators_message() -> None:
    """A Context made without validation is refused with the validator's message, not with the serializer's."""
    codec = codec_of(Total)
    with pytest.raises(Unstorable, match="it does not read back: total: Input should be a valid integer"):
        codec.adopt(Total.model_construct(total="many"))


@pytest.mark.parametrize(("extra", "more"), [("allow", True), ("ignore", True), ("forbid", False), (None, True)])
def test_which_contexts_take_undeclared_names(extra: Any, more: bool) -> None:
    """Undeclared names may be merged into every Context but one that forbids them."""
    config = ConfigDict() if extra is None else ConfigDict(extra=extra)
    assert codec_of(type("Told", (BaseModel,), {"model_config": config})).takes_more is more


def test_keywords_that_come_from_json() -> None:
    """A strict Context takes a date as text only from JSON, by name or alias, and refuses what does not validate."""

    class Strict(BaseModel):
        model_config = ConfigDict(strict=True)
        day: date = Field(alias="onDay")

    codec = codec_of(Strict)
    for name in ("day", "onDay"):
        built = codec.build({name: "2030-01-01"}, from_json=True)
        assert built == codec.build({name: date(2030, 1, 1)})
        with pytest.raises(ValidationError):
            codec.build({name: "2030-01-01"})
    with pytest.raises(ValidationError):
        codec.build({"day": "tomorrow"}, from_json=True)
