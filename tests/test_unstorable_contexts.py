"""Contexts that do not read back from their JSON as they are: the run fails at once, and its error names the field."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator

from aioflow import Engine, complete, get_context, step, workflow
from aioflow.commands import Command
from aioflow.errors import ContextInvalid
from tests.flows import PATIENCE, STORES, completed, done, failed_at_once, flow, unstorable


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Each store in turn, as an argument of Engine."""
    return STORES[request.param](tmp_path)


@pytest.fixture
async def engine(store: Any) -> AsyncIterator[Engine]:
    """An open engine."""
    async with Engine(store) as engine:
        yield engine


class Colour(Enum):
    RED = "red"


class Animal(BaseModel):
    name: str = ""


class Dog(Animal):
    tricks: int = 0


class Zoo(BaseModel):
    """A Context with a field for each way to be unstorable."""

    anything: Any = None
    animals: list[Animal] = []
    best: Animal | None = None
    by_name: dict[str, Animal] = {}
    weight: float | None = None
    numbers: list[int] = []
    pair: tuple[int, int] = (0, 0)
    names: set[str] = set()
    when: datetime | None = None


def appends(field: str, value: Any) -> Callable[[Zoo], None]:
    return lambda zoo: getattr(zoo, field).append(value)


def assigns(field: str, value: Any) -> Callable[[Zoo], None]:
    return lambda zoo: setattr(zoo, field, value)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (assigns("anything", (1, 2)), "anything is a tuple, but reads back as a list"),
        (assigns("anything", {"a": [(1,)]}), "anything['a'][0] is a tuple, but reads back as a list"),
        (assigns("anything", Decimal("1.50")), "anything is a Decimal, but reads back as a str"),
        (assigns("anything", {3}), "anything is a set, but reads back as a list"),
        (
            assigns("anything", {3: "x"}),
            "anything has the key 3 (int), which does not read back as it is: JSON has texts as keys",
        ),
        (assigns("anything", datetime(2030, 1, 1, tzinfo=UTC)), "anything is a datetime, but reads back as a str"),
        (assigns("anything", Colour.RED), "anything is a Colour, but reads back as a str"),
        (assigns("anything", Dog()), "anything is a Dog, but reads back as a dict"),
        (appends("animals", Dog(tricks=3)), "animals[0] is a Dog, but reads back as a Animal"),
        (assigns("best", Dog(tricks=3)), "best is a Dog, but reads back as a Animal"),
        (lambda zoo: zoo.by_name.update(rex=Dog()), "by_name['rex'] is a Dog, but reads back as a Animal"),
        (assigns("weight", float("nan")), "weight is nan, which JSON does not have"),
        (assigns("weight", float("inf")), "weight is inf, which JSON does not have"),
        (appends("numbers", "many"), "numbers"),
        (appends("numbers", "7"), "numbers"),
        (appends("numbers", None), "numbers"),
        (lambda zoo: zoo.names.add(7), "names"),
        (lambda zoo: zoo.animals.append({"name": "Rex"}), "animals"),
        (appends("animals", 7), "animals"),
    ],
)
async def test_what_does_not_read_back_is_named(engine: Engine, change: Callable[[Zoo], None], problem: str) -> None:
    """A Context that would not read back as it is fails the run at once, and the error names the field."""

    def first(self: object) -> Command:
        change(get_context(Zoo))
        return complete()

    error = await failed_at_once(engine, flow(Zoo, first))
    assert error.startswith(unstorable(""))
    assert problem in error


async def test_values_are_not_in_the_error(engine: Engine) -> None:
    """The error does not contain the value that was refused."""

    def first(self: object) -> Command:
        get_context(Zoo).numbers.append("4111 1111 1111 1111")
        return complete()

    def second(self: object) -> Command:
        return complete(weight="4111 1111 1111 1111")

    for function in (first, second):
        error = await failed_at_once(engine, flow(Zoo, function))
        assert "4111" not in error


# ---- Contexts that raise something other than ValidationError


PRICES = {1: 10}


class Priced(BaseModel):
    """Its validator raises a KeyError, which pydantic does not catch."""

    model_config = ConfigDict(validate_assignment=False)
    size: int = 1

    @field_validator("size")
    @classmethod
    def _known(cls, size: int) -> int:
        return size if PRICES[size] else 0


class Incomparable:
    """Its comparison raises, like that of a numpy array."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("the truth value is ambiguous")

    __hash__ = object.__hash__


class Odd(BaseModel):
    """A Context with a field whose values cannot be compared."""

    matrix: Any = 1

    @field_validator("matrix")
    @classmethod
    def _wrap(cls, value: Any) -> Any:
        return Incomparable() if value == 2 else value

    @field_serializer("matrix")
    def _unwrap(self, value: Any) -> Any:
        return 2 if isinstance(value, Incomparable) else value


class Unwritable(BaseModel):
    """A Context whose serializer raises."""

    value: int = Field(default=1)

    @field_serializer("value")
    def _write(self, value: int) -> int:
        return value + 0 // (value - 2)


async def test_a_validator_may_raise_anything_when_a_step_ends(engine: Engine) -> None:
    """If a validator raises anything when the step has ended, that run fails at once."""

    def first(self: object) -> Command:
        get_context(Priced).size = 2
        return complete()

    assert "KeyError" in await failed_at_once(engine, flow(Priced, first))


async def test_a_validator_may_raise_anything_at_complete(engine: Engine) -> None:
    """If a validator raises anything on the values of ``complete(**data)``, that run fails at once."""

    def first(self: object) -> Command:
        return complete(size=2)

    assert "KeyError" in await failed_at_once(engine, flow(Priced, first))


async def test_a_validator_may_raise_anything_at_start(engine: Engine) -> None:
    """If a validator raises anything at start, the caller gets ContextInvalid, and no run is started."""
    order = flow(Priced, done)
    with pytest.raises((ContextInvalid, KeyError)):
        await engine.start(order, size=2)
    assert await engine.count() == 0


async def test_a_validator_may_raise_anything_on_what_is_stored(store: Any) -> None:
    """If a validator raises anything on a stored Context, the run is blocked, and other runs go on."""

    class Before(BaseModel):
        size: int = 2

    async with Engine(store, worker=False, workflows=[flow(Before, done)]) as client:
        run_id = (await client.start("order")).id
    order = flow(Priced, done)
    async with Engine(store, workflows=[order]) as engine:
        run = await engine.wait(run_id, PATIENCE, until="parked")
        assert run.waiting_for == "blocked"
        assert "KeyError" in (run.error or "")
        with pytest.raises(ContextInvalid):
            _ = run.context
        assert await completed(engine, order) == Priced()


async def test_values_may_be_incomparable(engine: Engine) -> None:
    """A value whose comparison raises fails the run at once, or is refused by start."""

    def first(self: object) -> Command:
        get_context(Odd).matrix = 2
        return complete()

    error = await failed_at_once(engine, flow(Odd, first))
    assert "matrix" in error
    with pytest.raises(ContextInvalid, match="matrix"):
        await engine.start(flow(Odd, done), matrix=2)
    assert await engine.count() == 1


async def test_a_serializer_may_raise_anything(engine: Engine) -> None:
    """If a serializer raises anything, the run fails at once, or start is refused."""

    def first(self: object) -> Command:
        get_context(Unwritable).value = 2
        return complete()

    error = await failed_at_once(engine, flow(Unwritable, first))
    assert "ZeroDivisionError" in error
    with pytest.raises(ContextInvalid, match="ZeroDivisionError"):
        await engine.start(flow(Unwritable, done), value=2)
    assert await engine.count() == 1


class Lookalikes(BaseModel):
    """A Context whose fields may hold equal values of other classes."""

    price: Decimal = Decimal(0)
    prices: list[Decimal] = []
    by_name: dict[str, list[Decimal]] = {}
    weights: list[float] = []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda context: context.prices.append(1.5), "prices"),
        (lambda context: context.by_name.update(a=[Decimal(1), 1.5]), "by_name"),
        (lambda context: context.__dict__.update(prices=(Decimal("1.5"),)), "prices"),
    ],
)
async def test_an_equal_value_of_another_class_is_not_stored(
    engine: Engine, change: Callable[[Lookalikes], None], field: str
) -> None:
    """A value of another class is refused even if it equals one of the field's, such as 1.5 for a Decimal."""

    def first(self: object) -> Command:
        change(get_context(Lookalikes))
        return complete()

    assert field in await failed_at_once(engine, flow(Lookalikes, first))


async def test_an_int_among_floats_is_a_float_as_it_is_everywhere_in_pydantic(engine: Engine) -> None:
    """An int in a list of floats is stored as a float, as pydantic serializes it without a warning."""

    def first(self: object) -> Command:
        get_context(Lookalikes).weights.append(1)
        return complete()

    assert (await completed(engine, flow(Lookalikes, first))).weights == [1.0]


async def test_create_context_may_not_give_an_equal_value_of_another_class(engine: Engine) -> None:
    """An equal value of another class in a Context from ``create_context`` is refused by start."""

    @workflow("lookalikes")
    class Order:
        Context = Lookalikes

        @classmethod
        def create_context(cls) -> Lookalikes:
            return Lookalikes.model_construct(price=1.5)

        first = step(start=True)(done)

    with pytest.raises(ContextInvalid, match="price"):
        await engine.start(Order)
