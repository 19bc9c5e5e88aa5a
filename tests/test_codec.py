"""Context -> JSON -> Context: what is written reads back equal, or is refused."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    Base64Bytes,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    computed_field,
    create_model,
)
from pydantic.alias_generators import to_camel

from aioflow import Engine, complete, get_context, goto
from aioflow.codec import ContextCodec, Unstorable
from aioflow.commands import Command
from aioflow.context import undeclared_field
from aioflow.errors import LimitExceeded
from aioflow.model import MAX_DATA, MAX_DEPTH, MAX_NAME
from tests.flows import STORES, done, ended, flow
from tests.kinds import KINDS, PLUS_2, Address, Animal, Cat, Colour, Dog, Level, Line, Page, Point, Size


@pytest.fixture(params=STORES)
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Engine]:
    """An open engine on each store in turn."""
    async with Engine(STORES[request.param](tmp_path)) as engine:
        yield engine


@pytest.mark.parametrize(
    ("annotation", "value"), KINDS, ids=[f"{number} {type(value).__name__}" for number, (_, value) in enumerate(KINDS)]
)
async def test_values_survive_steps(engine: Engine, annotation: Any, value: Any) -> None:
    """A value that ``start`` was given, and one that a step assigned, are the same in the next step and at the end."""
    context = create_model("Context", given=(annotation, ...), assigned=(list[annotation], []))

    def first(self: object) -> Command:
        context = get_context()
        context.assigned = [value]
        return goto("second")

    def second(self: object) -> Command:
        context = get_context()
        for found in (context.given, *context.assigned):
            assert found == value
            assert type(found) is type(value)
        context.assigned.append(context.given)
        return complete()

    run = await ended(engine, flow(context, first, second), given=value)
    assert (run.error, run.context) == (None, context(given=value, assigned=[value, value]))


# ---- kinds of Contexts


class Rich(BaseModel):
    """A Context with every kind of field."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)
    order_id: int
    unit_price: Decimal = Field(default=Decimal("9.99"), alias="price", gt=0)
    tags: list[str] = Field(default_factory=list)
    note: str = Field("", validation_alias="remark", serialization_alias="REMARK")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> Decimal:
        return self.unit_price * self.order_id


async def test_a_generic_context_keeps_its_types(engine: Engine) -> None:
    """A parametrised generic model is a Context whose values have its parameters."""

    def first(self: object) -> Command:
        get_context(Page[Decimal]).items.append(Decimal("2.50"))
        return goto("second")

    def second(self: object) -> Command:
        context = get_context(Page)
        return complete(next=context.items[-1])

    run = await ended(engine, flow(Page[Decimal], first, second), items=["1.5"])
    assert run.context == Page[Decimal](items=[Decimal("1.5"), Decimal("2.50")], next=Decimal("2.50"))
    assert isinstance(run.context, Page[Decimal])


async def test_aliases_and_computed_fields_stay_out_of_the_store(engine: Engine) -> None:
    """Fields are stored by their names: aliases do not matter, and computed fields are not stored."""

    def first(self: object) -> Command:
        context = get_context(Rich)
        assert context.total == Decimal("19.98")
        context.unit_price = Decimal(3)
        return goto("second")

    def second(self: object) -> Command:
        assert get_context(Rich).total == 6
        return complete()

    run = await ended(engine, flow(Rich, first, second), orderId=2, remark="hi")
    assert run.data == {"order_id": 2, "unit_price": "3", "tags": [], "note": "hi"}
    assert run.context == Rich(order_id=2, price=Decimal(3), remark="hi")
    by_name = await ended(engine, flow(Rich, first, second), order_id=2, note="hi")
    assert by_name.context == run.context


class Photo(BaseModel):
    """Its field decodes base64: the decoded value would not validate again."""

    photo: Base64Bytes
    total: int = 0


#: Base64 of base64, which could be decoded twice by mistake.
TWICE = base64.b64encode(base64.b64encode(b"\x00\xff"))


async def test_bytes_are_decoded_once(engine: Engine) -> None:
    """``start`` decodes base64 once; neither later steps nor the store decode it again."""

    def first(self: object) -> Command:
        get_context(Photo).total = 1
        return goto("second")

    def second(self: object) -> Command:
        return complete()

    run = await ended(engine, flow(Photo, first, second), photo=TWICE)
    assert (run.error, run.context.photo) == (None, base64.b64decode(TWICE))


async def test_complete_leaves_other_fields_alone(engine: Engine) -> None:
    """Fields that ``complete(**data)`` does not name are stored as the step left them, and are not validated again."""

    def first(self: object) -> Command:
        return complete(total=3)

    run = await ended(engine, flow(Photo, first), photo=TWICE)
    assert (run.error, run.context) == (None, Photo(photo=TWICE, total=3))


async def test_what_create_context_made_is_stored_as_it_is(engine: Engine) -> None:
    """The Context that ``create_context`` returns is stored as it is, and its values are not validated again."""

    def create(cls: object) -> Photo:
        return Photo(photo=TWICE)

    order = flow(Photo, done)
    order.create_context = classmethod(create)
    run = await ended(engine, order)
    assert (run.error, run.context) == (None, Photo(photo=TWICE))


async def test_defaults_are_stored(engine: Engine) -> None:
    """Defaults are evaluated once, when the run starts, and stored, so later changes of them do not reach the run."""
    made: list[int] = []

    def number() -> int:
        made.append(len(made))
        return made[-1]

    context = create_model("Context", number=(int, Field(default_factory=number)), fixed=(int, 7))

    def first(self: object) -> Command:
        return goto("second")

    def second(self: object) -> Command:
        return complete(made=len(made))

    run = await ended(engine, flow(context, first, second))
    assert run.data == {"number": 0, "fixed": 7, "made": 1}


# ---- properties


def codec_of(context: type[BaseModel]) -> ContextCodec:
    return ContextCodec(context, undeclared_field)


#: Text that every store can hold.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
decimals = st.decimals(allow_nan=False, allow_infinity=False)
zones = st.sampled_from([None, UTC, PLUS_2, timezone(-timedelta(hours=11, minutes=59))])
instants = st.datetimes(timezones=zones)
animals = st.one_of(st.builds(Cat, lives=st.integers()), st.builds(Dog, tricks=st.lists(texts, max_size=2)))
lines = st.recursive(
    st.builds(Line, sku=texts, price=decimals, children=st.just([])),
    lambda inner: st.builds(Line, sku=texts, price=decimals, children=st.lists(inner, max_size=2)),
    max_leaves=4,
)


class Everything(BaseModel):
    """A Context of many kinds of fields."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
    flag: bool
    whole: int
    number: float
    text: str
    maybe: str | None
    price: Decimal
    at: datetime
    day: date
    clock: time
    span: timedelta
    id: UUID
    colour: Colour
    level: Level
    photo: bytes
    animals: list[Animal]
    lines: list[Line]
    either: int | str
    numbers: set[int]
    days: frozenset[date]
    pair: tuple[int, Decimal]
    by_number: dict[int, Decimal]
    by_day: dict[date, list[str]]
    point: Point
    address: Address
    page: Page[Decimal]
    anything: JsonValue


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
everything = st.builds(
    Everything,
    flag=st.booleans(),
    whole=st.integers(),
    number=st.floats(allow_nan=False, allow_infinity=False),
    text=texts,
    maybe=st.none() | texts,
    price=decimals,
    at=instants,
    day=st.dates(),
    clock=st.times(),
    span=st.timedeltas(timedelta(days=-100_000), timedelta(days=100_000)),
    id=st.uuids(),
    colour=st.sampled_from(Colour),
    level=st.sampled_from(Level),
    photo=st.binary(max_size=8),
    animals=st.lists(animals, max_size=3),
    lines=st.lists(lines, max_size=2),
    either=st.integers() | texts,
    numbers=st.sets(st.integers(), max_size=3),
    days=st.frozensets(st.dates(), max_size=3),
    pair=st.tuples(st.integers(), decimals),
    by_number=st.dictionaries(st.integers(), decimals, max_size=3),
    by_day=st.dictionaries(st.dates(), st.lists(texts, max_size=2), max_size=2),
    point=st.builds(Point, x=st.integers(), y=decimals, seen=st.none() | st.dates()),
    address=st.fixed_dictionaries({}, optional={"street": texts, "since": st.dates()}),
    page=st.builds(Page[Decimal], items=st.lists(decimals, max_size=2), next=st.none() | decimals),
    anything=json_values,
)


@given(everything)
def test_a_context_comes_back_equal(original: Everything) -> None:
    """Any valid Context is written as JSON that reads back equal, as often as it is written."""
    codec = codec_of(Everything)
    data, parsed = codec.encode(codec.adopt(original))
    assert parsed == original
    assert codec.decode(data) == original
    again, _ = codec.encode(parsed)
    assert codec.decode(again) == original
    assert json.loads(data).keys() == Everything.model_fields.keys()


#: Values that a step may put into a field of any type.
hostile_text = st.text(st.characters(), max_size=5) | st.sampled_from(["\0", "a\0b", "\ud800", "k" * 201])
objects = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, Level.LOW, Colour.RED, Size.S])
    | st.floats()
    | hostile_text
    | st.binary(max_size=3)
    | st.decimals()
    | instants
    | st.uuids()
    | animals,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=2).map(tuple)
        | st.dictionaries(hostile_text | st.integers(), inner, max_size=3)
        | st.frozensets(st.integers() | st.text(max_size=2), max_size=2)
    ),
    max_leaves=10,
)


@given(objects)
def test_a_value_comes_back_equal_or_is_refused(value: Any) -> None:
    """Any value in a field of any type reads back equal from JSON that every store holds, or is refused."""

    class Loose(BaseModel):
        value: Any = None

    codec = codec_of(Loose)
    live = codec.adopt(Loose())
    live.value = value
    try:
        data, parsed = codec.encode(live)
    except (Unstorable, LimitExceeded):
        return
    assert parsed.value == value
    assert codec.decode(data).value == value
    check_storable(data)


@given(st.dictionaries(hostile_text.filter(lambda name: name not in BaseModel.__dict__), objects, max_size=3))
def test_undeclared_data_comes_back_equal_or_is_refused(data: dict[str, Any]) -> None:
    """Undeclared data reads back equal, or is refused, like the values of fields."""

    class Nothing(BaseModel):
        pass

    codec = codec_of(Nothing)
    try:
        text, parsed = codec.encode(codec.merge(codec.adopt(Nothing()), data))
    except (Unstorable, LimitExceeded, ValidationError):
        return
    assert parsed.__pydantic_extra__ == data
    check_storable(text)


@given(st.integers(0, 70), st.booleans(), st.integers(195, 205), st.integers(-3, 3))
def test_the_limits_are_exact(depth: int, lists: bool, key: int, size: int) -> None:
    """Depth, length of keys and size are accepted up to the limit, and refused beyond it."""

    class Loose(BaseModel):
        value: Any = None
        text: str = ""

    value: Any = 1
    for _ in range(depth):
        value = [value] if lists else {"a": value}
    codec = codec_of(Loose)
    live = codec.adopt(Loose(value={"k" * key: value}))
    frame = json.dumps({"value": {"k" * key: value}, "text": ""}, separators=(",", ":"))
    live.text = "x" * (MAX_DATA - len(frame) + size)
    storable = depth + 2 <= MAX_DEPTH and key <= MAX_NAME and size <= 0
    try:
        data, _ = codec.encode(live)
    except LimitExceeded:
        assert not storable
    else:
        assert storable
        assert len(data) == MAX_DATA + size


def check_storable(data: str) -> None:
    """Check that every store can hold this JSON: no NUL, no surrogate, no NaN, not too deep, no long keys."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        assert all(len(key) <= MAX_NAME and "\0" not in key for key, _ in found)
        assert len({key for key, _ in found}) == len(found)
        return dict(found)

    data.encode()
    json.loads(data, parse_constant=refuse, object_pairs_hook=pairs)
    assert "\\u0000" not in data.replace("\\\\", "")
