"""Random Contexts of random types: what the codec writes reads back as it was, or is refused in one sentence.

Hypothesis makes a type and values for it together. A value is set in the ways that steps use: by the Context's
constructor, by assignment, or without any validation, as by ``context.items.append(...)``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, NamedTuple, Optional, Union
from uuid import UUID

import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError, create_model

from aioflow.codec import ContextCodec, Unstorable, difference
from aioflow.context import undeclared_field
from aioflow.errors import LimitExceeded
from aioflow.model import MAX_DATA, MAX_DEPTH, MAX_NAME
from tests.kinds import PLUS_2, Address, Box, Cat, Colour, Dog, Level, Page, Pair, Point, Size


class Kind(NamedTuple):
    """A type, with values for it."""

    annotation: Any
    values: st.SearchStrategy[Any]
    #: Whether its values can be members of a set, and keys of a mapping in JSON.
    hashable: bool = True


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)
    left: int
    right: str = ""


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
decimals = st.decimals(allow_nan=False, allow_infinity=False, places=6) | st.decimals(
    allow_nan=False, allow_infinity=False
)
floats = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = [
    Kind(bool, st.booleans()),
    Kind(int, st.integers()),
    Kind(float, floats),
    Kind(str, texts),
    Kind(Decimal, decimals),
    Kind(datetime, st.datetimes(timezones=st.sampled_from([None, UTC, PLUS_2]))),
    Kind(date, st.dates()),
    Kind(time, st.times()),
    Kind(timedelta, st.timedeltas(timedelta(days=-9_999), timedelta(days=9_999))),
    Kind(UUID, st.uuids()),
    Kind(Colour, st.sampled_from(Colour)),
    Kind(Size, st.sampled_from(Size)),
    Kind(Level, st.sampled_from(Level)),
    Kind(Literal["x", 3], st.sampled_from(["x", 3])),
    Kind(type(None), st.none()),
    Kind(bytes, texts.map(str.encode)),
    Kind(Frozen, st.builds(Frozen, left=st.integers(), right=texts)),
]
MODELS = [
    Kind(Cat, st.builds(Cat, lives=st.integers()), hashable=False),
    Kind(Dog, st.builds(Dog, tricks=st.lists(texts, max_size=2)), hashable=False),
    Kind(Point, st.builds(Point, x=st.integers(), y=decimals, seen=st.none() | st.dates()), hashable=False),
    Kind(Pair, st.builds(Pair, st.integers(), decimals)),
    Kind(Address, st.fixed_dictionaries({}, optional={"street": texts, "since": st.dates()}), hashable=False),
    Kind(
        JsonValue,
        st.recursive(st.none() | st.booleans() | st.integers() | texts, st.lists, max_leaves=4),
        hashable=False,
    ),
]
#: Keys of a mapping that read back from JSON keys.
KEYS = [kind for kind in SCALARS if kind.annotation in {int, str, Decimal, date, UUID, Colour, Level, Size}]


def members(inner: Kind, **sizes: int) -> list[Kind]:
    """Types made of one other type."""
    annotation, values, hashable = inner
    several = st.lists(values, max_size=3)
    made = [
        Kind(list[annotation], several, hashable=False),
        Kind(tuple[annotation, ...], several.map(tuple), hashable),
        Kind(tuple[annotation, int], st.tuples(values, st.integers()), hashable),
        Kind(Optional[annotation], st.none() | values, hashable),  # noqa: UP045 - not every type has an operator |
        Kind(Box[annotation], st.builds(Box[annotation], inside=values), hashable=False),
        Kind(Page[annotation], st.builds(Page[annotation], items=several, next=st.none() | values), hashable=False),
    ]
    if hashable:
        made.append(Kind(set[annotation], several.map(set), hashable=False))
        made.append(Kind(frozenset[annotation], several.map(frozenset)))
    return made


@st.composite
def kinds(draw: st.DrawFn, depth: int = 3) -> Kind:
    """Types made of a few parts."""
    way = draw(st.integers(0, 5))
    if depth == 0 or way <= 1:
        return draw(st.sampled_from(SCALARS + MODELS))
    inner = draw(kinds(depth - 1))
    if way == 2:
        other = draw(kinds(depth - 1))
        either = Union[inner.annotation, other.annotation]  # noqa: UP007 - not every type has an operator |
        return Kind(either, inner.values | other.values, inner.hashable and other.hashable)
    if way == 3:
        key = draw(st.sampled_from(KEYS))
        both = st.dictionaries(key.values, inner.values, max_size=3)
        return Kind(dict[key.annotation, inner.annotation], both, hashable=False)  # type: ignore[name-defined]
    return draw(st.sampled_from(members(inner)))


def context_of(kind: Kind, numbers: Literal["null", "constants", "strings"] = "null") -> type[BaseModel]:
    """A Context with one field of the type, and one of any type.

    ``numbers``: the ``ser_json_inf_nan`` of its config, for numbers that JSON does not have.
    """
    config = ConfigDict(ser_json_inf_nan=numbers)
    return create_model("Context", __config__=config, value=(kind.annotation, None), anything=(Any, None))


def live_of(context: type[BaseModel]) -> tuple[ContextCodec, Any]:
    codec = ContextCodec(context, undeclared_field)
    return codec, codec.adopt(context())


def same(left: Any, right: Any) -> bool:
    """Whether two values are equal, and of the same type at every level."""
    if type(left) is not type(right):
        return False
    if isinstance(left, BaseModel):
        return left.__dict__.keys() == right.__dict__.keys() and all(
            same(value, right.__dict__[name]) for name, value in left.__dict__.items()
        )
    if isinstance(left, dict):
        # An enum's member and its value are equal, and one may stand for the other.
        return len(left) == len(right) and all(key in right and same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def check_stored(data: str) -> None:
    """Check that what the codec writes is JSON that every store can hold."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(found)) == len(found), "a key stands there twice"
        assert all(len(key) <= MAX_NAME for key, _ in found)
        return dict(found)

    assert len(data.encode()) <= MAX_DATA
    todo = [(json.loads(data, parse_constant=refuse, object_pairs_hook=pairs), 1)]
    while todo:
        value, depth = todo.pop()
        assert "\0" not in (value if isinstance(value, str) else "")
        assert not isinstance(value, float) or math.isfinite(value)
        if isinstance(value, dict | list):
            assert depth <= MAX_DEPTH
            inner = [*value, *value.values()] if isinstance(value, dict) else value
            todo += [(item, depth + 1) for item in inner]


def stored(codec: ContextCodec, live: Any) -> Any:
    """What reads back now and later; None if it is refused, in one sentence that is not too long."""
    refused: Exception | None = None
    try:
        data, parsed = codec.encode(live)
    except (Unstorable, LimitExceeded) as error:
        refused = error
    event("stored" if refused is None else type(refused).__name__)
    if refused is not None:
        assert 10 < len(str(refused)) < 4_000
        str(refused).encode()
        return None
    check_stored(data)
    again = codec.decode(data)
    assert difference(parsed, again) is None
    assert difference(again, codec.decode(codec.encode(again)[0])) is None, "as often as it is written"
    return parsed


def profile(test: Callable[..., None]) -> list[Any]:
    """Two variants of a test: one with the same examples each time, and one with random ones."""
    fixed = settings(max_examples=200, derandomize=True, database=None)(given(st.data())(test))
    fresh = settings(max_examples=300)(given(st.data())(test))
    patient = settings(max_examples=10_000)(given(st.data())(test))
    return [
        pytest.param(fixed, id="fixed"),
        pytest.param(fresh, id="fresh"),
        pytest.param(patient, id="many", marks=pytest.mark.slow),
    ]


def _valid_values(data: st.DataObject) -> None:
    kind = data.draw(kinds(), "type")
    value = data.draw(kind.values, "value")
    try:
        context = context_of(kind)
        made = context(value=value)
    except ValidationError:
        assume(False)  # a float in an int's Literal, and the like: no value of the type
    assume(same(made.value, value))  # type: ignore[attr-defined]
    codec, live = live_of(context)
    live.value = value
    read = stored(codec, live)
    if read is None:
        return
    # Of equal values a union chooses one: a member of an IntEnum may read back as the equal int.
    assert same(read.value, value) or read.value == value, (read.value, value)


def _plain_values(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(SCALARS + MODELS), "type")
    if data.draw(st.booleans(), "in a list"):
        kind = Kind(list[kind.annotation], st.lists(kind.values, max_size=3))  # type: ignore[name-defined]
    value = data.draw(kind.values, "value")
    codec, live = live_of(context_of(kind))
    live.value = value
    read = stored(codec, live)
    assert read is not None
    assert same(read.value, value), (read.value, value)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def cyclic() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


class Sly(Enum):
    """Equal to what it is serialized as, but of another type."""

    A = "a"


#: Values that no store can hold, or that JSON would change.
HOSTILE: list[Callable[[], Any]] = [
    lambda: "x" * (2 * MAX_DATA), lambda: nested(MAX_DEPTH), lambda: nested(10_000), cyclic,
    lambda: "a\0b", lambda: "\ud800", lambda: {"\udfff": 1}, lambda: {"\0": 1}, lambda: {"k" * 201: 1},
    lambda: math.nan, lambda: math.inf, lambda: -math.inf, lambda: Decimal("NaN"), lambda: Decimal("Infinity"),
    lambda: 10**400, lambda: 10**5_000, lambda: -0.0, lambda: {1: "a", "1": "b"}, lambda: {None: 1}, lambda: {(1, 2): 3},
    lambda: {f"k{i}": i for i in range(100_000)}, lambda: (1, 2), lambda: {1, 2}, lambda: frozenset("a"), lambda: b"\xff",
    lambda: bytearray(b"a"), lambda: 1j, lambda: Sly.A, object, lambda: print, lambda: iter([1]), lambda: Frozen,
    Cat, lambda: Decimal("1.50"), lambda: datetime(2030, 1, 2, tzinfo=UTC), lambda: True, lambda: range(3),
    lambda: [math.nan], lambda: {"a": [Cat(), {"b": b"\xff"}]}, lambda: memoryview(b"a"), lambda: Exception("no"),
]  # fmt: skip


def _hostile_values(data: st.DataObject) -> None:
    kind = data.draw(kinds(depth=1), "type")
    make = data.draw(st.sampled_from(HOSTILE), "hostile value")
    codec, live = live_of(context_of(kind, data.draw(st.sampled_from(["null", "constants", "strings"]), "numbers")))
    where = data.draw(st.sampled_from(["value", "anything", "inside", "past validation"]), "where")
    value = make()
    if where == "value":
        try:
            live.value = value
        except (ValidationError, RecursionError, OverflowError):
            return
        value = live.value
    elif where == "past validation":
        live.__dict__["value"] = value
    else:
        live.anything = value = {"list": [value]} if where == "inside" else value
    read = stored(codec, live)
    if read is not None:
        found = read.value if where in {"value", "past validation"} else read.anything
        assert same(found, value) or found == value, (found, value)


@pytest.mark.parametrize("check", profile(_valid_values))
def test_values_of_random_types_come_back_or_are_refused(check: Callable[[], None]) -> None:
    """A value of its field's type reads back equal, whatever the type, or is refused, but never changed."""
    check()


@pytest.mark.parametrize("check", profile(_plain_values))
def test_values_of_plain_types_come_back(check: Callable[[], None]) -> None:
    """A value of a common type reads back equal and of its type, and is never refused."""
    check()


@pytest.mark.parametrize("check", profile(_hostile_values))
def test_hostile_values_come_back_or_are_refused(check: Callable[[], None]) -> None:
    """A value that JSON cannot hold or would change reads back equal or is refused, at any place in the Context."""
    check()
