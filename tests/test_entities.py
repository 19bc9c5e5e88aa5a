"""The entities of events: what can be stored, and what is read back in another process."""

from __future__ import annotations

import dataclasses
import enum
import threading
from collections.abc import Awaitable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from functools import reduce
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel, Field, RootModel, SecretStr, field_validator

from aioflow import entities, entity_loader, entity_type
from aioflow.canon import id_text
from aioflow.entities import Entity, load, rebuild, to_json
from aioflow.errors import EventInvalid, LimitExceeded


class Order(BaseModel):
    """A model."""

    id: int
    total: Decimal = Decimal(0)
    at: datetime | None = None


@dataclasses.dataclass
class Visit:
    """A dataclass that has no ``__eq__`` of its own."""

    id: UUID
    at: datetime
    order: Order | None = None

    __eq__ = object.__eq__
    __hash__ = object.__hash__


ORDER = Order(id=7, total=Decimal("1.50"), at=datetime(2030, 1, 2, tzinfo=UTC))
VISIT = Visit(UUID(int=3), datetime(2030, 1, 2, tzinfo=UTC), ORDER)


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """Restore the registry of entity types after each test."""
    kept = [dict(each) for each in (entities._by_name, entities._by_class, entities._loaders)]
    yield
    for each, before in zip((entities._by_name, entities._by_class, entities._loaders), kept, strict=True):
        each.clear()  # type: ignore[attr-defined]
        each.update(before)  # type: ignore[attr-defined]


def forget(*classes: type) -> None:
    """Unregister the classes, as in another process that has not emitted anything."""
    for cls in classes:
        known = entities._by_class.pop(cls)
        del entities._by_name[known.name]


# ---- writing and reading


@pytest.mark.parametrize("entity", [ORDER, VISIT, Order(id=0)], ids=["model", "dataclass", "defaults"])
def test_an_entity_comes_back_as_its_type(entity: Any) -> None:
    """A model and a dataclass are stored as JSON under their class's module and name, and read back equal."""
    stored = to_json("seen", entity)
    assert stored.type == f"{type(entity).__module__}.{type(entity).__qualname__}"
    again = rebuild("seen", stored.type, stored.json)
    assert type(again) is type(entity)
    assert again.__dict__ == entity.__dict__


def test_a_mapping_and_nothing_come_back_as_they_are() -> None:
    """A mapping is stored without a type, and None without type, JSON or id."""
    stored = to_json("seen", {"id": "a", "at": datetime(2030, 1, 1, tzinfo=UTC), "n": [1, {"x": None}]})
    assert (stored.type, stored.entity_id) == (None, "a")
    assert rebuild("seen", None, stored.json) == {"id": "a", "at": "2030-01-01T00:00:00Z", "n": [1, {"x": None}]}
    assert to_json("seen", None) == Entity(None, None, None)
    assert rebuild("seen", None, None) is None


def test_a_type_that_is_not_registered_is_a_mapping() -> None:
    """A process that has not registered the type reads a mapping, until the type is registered."""
    stored = to_json("seen", ORDER)
    forget(Order)
    assert rebuild("seen", stored.type, stored.json) == {"id": 7, "total": "1.50", "at": "2030-01-02T00:00:00Z"}
    assert entity_type(Order) is Order
    assert rebuild("seen", stored.type, stored.json) == ORDER


def test_no_class_is_imported_by_what_data_says() -> None:
    """A stored type that names an importable class is read as a mapping if the class was not registered."""
    assert rebuild("seen", "tests.test_entities.Visit", '{"id": 1}') == {"id": 1}
    assert rebuild("seen", "pydantic.main.BaseModel", "{}") == {}


def test_fields_are_stored_by_name() -> None:
    """An entity is stored by field names; aliases are neither written nor needed to read it."""

    class Aliased(BaseModel):
        order_id: int = Field(alias="orderId")

    stored = to_json("seen", Aliased(orderId=3))
    assert stored.json == '{"order_id":3}'
    assert rebuild("seen", stored.type, stored.json) == Aliased(orderId=3)


def test_a_subclass_is_stored_as_itself() -> None:
    """An entity is stored under its own class, not under a base class."""

    class Gift(Order):
        note: str

    stored = to_json("seen", Gift(id=1, note="n"))
    assert rebuild("seen", stored.type, stored.json) == Gift(id=1, note="n")
    assert stored.type == f"{__name__}.{Gift.__qualname__}"


# ---- what cannot be stored


class Hidden(BaseModel):
    """A model whose value is written as asterisks."""

    secret: SecretStr


class Loses(BaseModel):
    """A model that loses a field."""

    n: int = Field(default=0, exclude=True)


class Doubles(BaseModel):
    """A model that validates to another value."""

    n: int

    @field_validator("n")
    @classmethod
    def double(cls, n: int) -> int:
        return n * 2


@dataclasses.dataclass
class Derived:
    """A dataclass that changes its value when it is made."""

    n: int

    def __post_init__(self) -> None:
        self.n += 1


class Listed(RootModel[list[int]]):
    """A model without named fields."""


class Odd:
    """A class that JSON and pydantic do not know."""


@dataclasses.dataclass
class Holds:
    """A dataclass of a class that pydantic does not know."""

    odd: Odd


@pytest.mark.parametrize(
    ("entity", "why"),
    [
        (Hidden(secret=SecretStr("s")), "its entity does not survive JSON: secret "),
        (Loses(n=3), "its entity does not survive JSON: n reads back as another int"),
        (Doubles(n=3), "its entity does not survive JSON: n reads back as another int"),
        (Derived(1), "its entity does not survive JSON: n reads back as another int"),
        (Listed([1]), "a RootModel has none"),
        (Holds(Odd()), "its entity cannot be stored: PydanticSchemaGenerationError"),
        ({"odd": Odd()}, "its entity cannot be stored: PydanticSerializationError"),
        (Order.model_construct(id="seven"), "its entity cannot be stored: PydanticSerializationError"),
    ],
    ids=["secret", "excluded", "validator", "dataclass", "root", "no schema", "mapping", "unvalidated"],
)
def test_what_does_not_survive_is_refused(entity: Any, why: str) -> None:
    """An entity that cannot be written, or would read back different, is EventInvalid with the reason."""
    with pytest.raises(EventInvalid) as caught:
        to_json("seen", entity)
    assert str(caught.value).startswith("Event 'seen' is not usable: ")
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("entity", "limit"),
    [
        ({"text": "x" * (1 << 20)}, "bytes of JSON"),
        ({"text": "a\0b"}, "characters"),
        ({"x" * 201: 1}, "200 characters"),
        ({"n": float("nan")}, "numbers that JSON has"),
        ({"deep": reduce(lambda inner, _: [inner], range(70), [1])}, "depth 64"),
    ],
    ids=["size", "NUL", "key", "NaN", "depth"],
)
def test_limits_hold(entity: Any, limit: str) -> None:
    """An entity that is too large or too deep, or that no store can hold, is LimitExceeded with the limit's name."""
    with pytest.raises(LimitExceeded, match=limit):
        to_json("seen", entity)


@pytest.mark.parametrize("entity", ["text", 3, [1], (1, 2), b"x", Odd()], ids=lambda e: type(e).__name__)
def test_other_things_are_no_entities(entity: Any) -> None:
    """Only models, dataclasses, mappings and None are entities."""
    with pytest.raises(TypeError, match="takes a pydantic model, a dataclass, a mapping or None"):
        to_json("seen", entity)


def test_a_class_is_no_entity() -> None:
    """The error for a class instead of an instance says what to write."""
    with pytest.raises(TypeError, match=r"write emit\(name, Order\(...\)\)"):
        to_json("seen", Order)


def test_a_key_that_is_no_string_is_refused() -> None:
    """A mapping with a key that is not a string is refused."""
    with pytest.raises(TypeError, match="a key of its entity takes a string, got int"):
        to_json("seen", {1: 2})


def test_what_its_class_no_longer_accepts_tells_so() -> None:
    """A stored entity that no longer validates is EventInvalid, which names class and field but no value."""
    name = to_json("seen", ORDER).type
    with pytest.raises(EventInvalid, match=r"no Order as that is now: id: Input should be a valid integer") as caught:
        rebuild("seen", name, '{"id": "private"}')
    assert "private" not in str(caught.value)


# ---- ids


class Colour(str, enum.Enum):  # noqa: UP042 - one whose str() is not its value
    """An enum of strings."""

    RED = "red"


class Size(enum.IntEnum):
    """An enum of ints."""

    BIG = 9


@pytest.mark.parametrize(
    ("entity_id", "text"),
    [("a", "a"), (7, "7"), (0, "0"), (UUID(int=5), str(UUID(int=5))), (Colour.RED, "red"), (Size.BIG, "9")],
)
def test_an_id_is_a_string(entity_id: Any, text: str) -> None:
    """An entity id may be a string, int or UUID, given as argument, field or key, and is stored as a string."""
    assert id_text("it", entity_id) == text
    assert to_json("seen", None, entity_id).entity_id == text
    assert to_json("seen", {"id": entity_id}).entity_id == text
    assert to_json("seen", {"id": "other"}, entity_id).entity_id == text
    assert to_json("seen", Order(id=3), entity_id).entity_id == text


def test_the_id_of_an_entity_is_its_own() -> None:
    """Without the argument, the ``id`` of a model or dataclass is its entity id; an entity without one has none."""
    assert to_json("seen", ORDER).entity_id == "7"
    assert to_json("seen", VISIT).entity_id == str(UUID(int=3))
    assert to_json("seen", Loses()).entity_id is None
    assert to_json("seen", {"n": 1}).entity_id is None
    assert to_json("seen", {"id": None}).entity_id is None


@pytest.mark.parametrize(
    ("entity_id", "error"),
    [(True, TypeError), (1.5, TypeError), (b"x", TypeError), ("", ValueError), ("x" * 201, LimitExceeded)],
)
def test_what_is_no_id_is_refused(entity_id: Any, error: type[Exception]) -> None:
    """Bools, floats, bytes, and empty or long strings are refused as ids, both as argument and in the entity."""
    with pytest.raises(error, match="emit"):
        to_json("seen", None, entity_id)
    with pytest.raises(error, match="the id of its entity"):
        to_json("seen", {"id": entity_id})


def test_an_id_that_raises_is_told() -> None:
    """If an entity's property ``id`` raises, the EventInvalid says so."""

    @dataclasses.dataclass
    class Broken:
        n: int = 0

        @property
        def id(self) -> int:
            raise RuntimeError("no id")

    with pytest.raises(EventInvalid, match="its entity's id cannot be read: RuntimeError: no id"):
        to_json("seen", Broken())


# ---- the registry


def test_a_name_of_its_own() -> None:
    """``@entity_type("name")`` stores under that name; what was stored under the default name is still read."""
    to_json("seen", ORDER)
    assert entity_type("order")(Order) is Order
    stored = to_json("seen", ORDER)
    assert stored.type == "order"
    assert rebuild("seen", "order", stored.json) == rebuild("seen", f"{__name__}.Order", stored.json) == ORDER


def test_two_classes_cannot_share_a_name() -> None:
    """A type name that another class has is refused, but a redefined class replaces the old one."""

    def define() -> type[BaseModel]:
        class Local(BaseModel):
            n: int

        return Local

    one, two = define(), define()
    entity_type("local")(one)
    entity_type("local")(two)
    assert type(rebuild("seen", "local", '{"n": 1}')) is two
    with pytest.raises(ValueError, match=r"'local' is .*Local already"):
        entity_type("local")(Order)


def test_only_models_and_dataclasses_are_types() -> None:
    """Only models and dataclasses can be decorated as entity types."""
    for wrong in (Odd, int, dict):
        with pytest.raises(TypeError, match="is neither"):
            entity_type(wrong)
        with pytest.raises(TypeError, match="is neither"):
            entity_loader(wrong)
    with pytest.raises(TypeError, match="takes a name, got int"):
        entity_type(3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="decorates a function, got int"):
        entity_loader(Order)(3)  # type: ignore[type-var]
    with pytest.raises(ValueError, match="must not be empty"):
        entity_type("")
    with pytest.raises(TypeError, match=r"an instance of .*Order is neither"):
        entity_type("order")(ORDER)  # type: ignore[type-var]


# ---- loaders


async def test_an_async_loader_gives_the_fresh_entity() -> None:
    """An async loader is called on the event loop with the entity_id, and its result replaces what was stored."""
    stored = to_json("seen", ORDER)
    seen: list[object] = []

    @entity_loader(Order)
    async def fresh(entity_id: str) -> Order:
        seen.append((entity_id, threading.get_ident()))
        return Order(id=int(entity_id), total=Decimal(99))

    assert await load("seen", *stored) == Order(id=7, total=Decimal(99))
    assert seen == [("7", threading.get_ident())]
    assert rebuild("seen", stored.type, stored.json) == ORDER


async def test_a_sync_loader_runs_in_a_thread() -> None:
    """A sync loader runs in a thread and does not block the event loop."""
    stored = to_json("seen", ORDER)
    threads: list[int] = []

    @entity_loader(Order)
    def fresh(entity_id: str) -> Order | None:
        threads.append(threading.get_ident())
        return None

    assert await load("seen", *stored) is None
    assert threads
    assert threading.get_ident() not in threads


async def test_a_loader_may_be_any_callable() -> None:
    """An object with an async ``__call__``, and a function that returns an awaitable, work as async loaders."""

    class Loader:
        async def __call__(self, entity_id: str) -> str:
            return f"fresh {entity_id}"

    stored = to_json("seen", ORDER)
    entity_loader(Order)(Loader())
    assert await load("seen", *stored) == "fresh 7"
    loader = Loader()

    @entity_loader(Order)
    def later(entity_id: str) -> Awaitable[str]:
        return loader(f"{entity_id} later")

    assert await load("seen", *stored) == "fresh 7 later"


async def test_without_id_or_loader_what_was_stored_is_used() -> None:
    """The stored entity is used if there is no entity_id, or if its type has no loader in this process."""

    @entity_loader(Visit)
    async def fresh(entity_id: str) -> object:
        raise AssertionError(entity_id)

    assert await load("seen", *to_json("seen", ORDER)) == ORDER
    assert await load("seen", *to_json("seen", {"id": 1})) == {"id": 1}
    kind, json, _ = to_json("seen", VISIT)
    assert type(await load("seen", kind, json, None)) is Visit


async def test_a_loader_registers_its_type() -> None:
    """``@entity_loader`` registers its type, so entities that other processes emitted reach the loader."""
    stored = to_json("seen", ORDER)
    forget(Order)

    @entity_loader(Order)
    async def fresh(entity_id: str) -> str:
        return entity_id

    assert await load("seen", *stored) == "7"


async def test_what_a_loader_raises_comes_through() -> None:
    """An error raised by a loader, sync or async, reaches the caller."""
    stored = to_json("seen", ORDER)

    @entity_loader(Order)
    async def away(entity_id: str) -> Order:
        raise ConnectionError("away")

    with pytest.raises(ConnectionError, match="away"):
        await load("seen", *stored)

    @entity_loader(Order)
    def gone(entity_id: str) -> Order:
        raise KeyError(entity_id)

    with pytest.raises(KeyError):
        await load("seen", *stored)
