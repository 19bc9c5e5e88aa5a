"""Kinds of values that a Context may hold."""

from __future__ import annotations

import dataclasses
from collections import deque
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, IntEnum, StrEnum
from ipaddress import IPv4Address, IPv6Network
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar
from uuid import UUID

from pydantic import (
    AwareDatetime,
    BaseModel,
    ByteSize,
    Discriminator,
    Field,
    JsonValue,
    Tag,
)
from typing_extensions import TypedDict

T = TypeVar("T")


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Size(StrEnum):
    S = "s"
    L = "l"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Right(Flag):
    READ = 1
    WRITE = 2


class Line(BaseModel):
    sku: str
    price: Decimal
    children: list[Line] = []


class Box(BaseModel, Generic[T]):
    inside: T


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    tricks: list[str] = []


def shape_of(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, dict) else value.kind
    return "feline" if kind == "cat" else "canine"


class Page(BaseModel, Generic[T]):
    """A generic Context."""

    items: list[T]
    next: T | None = None


@dataclasses.dataclass
class Point:
    x: int
    y: Decimal = Decimal(0)
    seen: date | None = None


class Address(TypedDict, total=False):
    street: str
    since: date


class Pair(NamedTuple):
    left: int
    right: Decimal


Animal = Annotated[Cat | Dog, Field(discriminator="kind")]
Shape = Annotated[Annotated[Cat, Tag("feline")] | Annotated[Dog, Tag("canine")], Discriminator(shape_of)]
PLUS_2 = timezone(timedelta(hours=2, minutes=30))

#: annotation, value
KINDS: list[tuple[Any, Any]] = [
    (bool, True),
    (int, -(2**63)),
    (int, 10**400),
    (float, 0.1 + 0.2),
    (float, 5e-324),
    (float, 1.7976931348623157e308),
    (float, 1e16),
    (str, ""),
    (str, "ä🌊 \u2028\u202e\x01\x7f\ufffd \\ \" ' </script> \\u0041"),
    (str | None, None),
    (Decimal, Decimal("1.50")),
    (Decimal, Decimal("1E+30")),
    (Decimal, Decimal("0.1234567890123456789012345678901234567890")),
    (datetime, datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)),
    (datetime, datetime(2030, 1, 2, 3, 4, 5, tzinfo=PLUS_2)),
    (datetime, datetime(2030, 1, 2, 3, 4, 5, 1)),  # noqa: DTZ001 - a Context may hold naive ones
    (AwareDatetime, datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)),
    (date, date(1, 1, 1)),
    (time, time(23, 59, 59, 999999)),
    (timedelta, timedelta(days=3, microseconds=1)),
    (timedelta, -timedelta(days=400, seconds=1)),
    (UUID, UUID(int=7)),
    (Path, Path("a/b")),
    (PurePosixPath, PurePosixPath("/a")),
    (IPv4Address, IPv4Address("10.0.0.1")),
    (IPv6Network, IPv6Network("fe80::/10")),
    (ByteSize, ByteSize(3 * 1024**4)),
    (complex, 1 - 2j),
    (Literal["a", 1] | None, 1),
    (Colour, Colour.BLUE),
    (Size, Size.L),
    (Level, Level.HIGH),
    (Right, Right.READ | Right.WRITE),
    (dict[Colour, Size], {Colour.RED: Size.S}),
    (list[int | str], [1, "1", "x"]),
    (list[int | float | bool], [1, 1.0, True]),
    (int | datetime | None, 5),
    (Line | Point | None, Point(1, Decimal("2.5"), date(2030, 1, 1))),
    (Line, Line(sku="a", price=Decimal("1.10"), children=[Line(sku="b", price=Decimal(0))])),
    (Box[Decimal], Box[Decimal](inside=Decimal("1.5"))),
    (Box[list[Box[date]]], Box[list[Box[date]]](inside=[Box[date](inside=date(2030, 1, 1))])),
    (list[Animal], [Cat(lives=3), Dog(tricks=["sit"])]),
    (list[Shape], [Dog(), Cat()]),
    (Cat | Dog, Dog(tricks=["roll"])),
    (set[int], {3, 1, 2}),
    (frozenset[Decimal], frozenset({Decimal("1.5"), Decimal(2)})),
    (set[Colour], {Colour.RED, Colour.BLUE}),
    (tuple[int, str, date], (1, "x", date(2030, 1, 1))),
    (tuple[Decimal, ...], (Decimal("1.5"), Decimal(2))),
    (deque[int], deque([1, 2])),
    (dict[int, str], {1: "a", -2: "b"}),
    (dict[date, Decimal], {date(2030, 1, 1): Decimal("1.5")}),
    (dict[UUID, set[int]], {UUID(int=7): {1}}),
    (dict[str, dict[str, list[int]]], {"a": {"b": [1]}, "": {}}),
    (Point, Point(1, Decimal("2.50"))),
    (list[Address], [{"street": "x", "since": date(2030, 1, 1)}, {}]),
    (Pair, Pair(1, Decimal("2.5"))),
    (JsonValue, {"a": [1, 2.5, None, True, "x", {}]}),
    (Any, {"a": [1, 2.5, None, True, "x", {}], "b": 10**30}),
]
