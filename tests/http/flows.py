"""The workflows that the tests of the run API start."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from aioflow import (
    Event,
    complete,
    event_workflow,
    fail,
    get_context,
    goto,
    on,
    sleep,
    step,
    wait,
    workflow,
)
from aioflow.commands import Command

SECRET = "the password is swordfish"


class Review(BaseModel):
    """What a reviewer says."""

    approved: bool
    by: str = Field(max_length=50)


class Item(BaseModel):
    """A line of an expense."""

    what: str
    price: Decimal


@workflow("expense")
class Expense:
    """Waits for a review, or to be withdrawn."""

    class Context(BaseModel):
        amount: int
        due: date | None = None
        items: list[Item] = []
        note: str = ""

    @step(start=True)
    async def ask(self) -> Command:
        return wait.any(
            on(Review, then=self.reviewed),
            on("withdrawn", then=self.withdrawn),
            timeout=timedelta(days=3),
            on_timeout=self.withdrawn,
        )

    @step
    async def reviewed(self, review: Review) -> Command:
        return complete(approved=review.approved, by=review.by)

    @step
    async def withdrawn(self) -> Command:
        return fail("withdrawn")


@workflow("count")
class Count:
    """Takes as many turns as it is told."""

    class Context(BaseModel):
        turns: int = Field(default=1, ge=0, le=1000)

    @step(start=True)
    async def turn(self) -> Command:
        context = get_context(self.Context)
        context.turns -= 1
        return goto(self.turn) if context.turns > 0 else complete()


@workflow("nap/of the cat")
class Nap:
    """Has a name that an address has to quote."""

    class Context(BaseModel):
        hours: float = Field(default=1, ge=0, le=1000)

    @step(start=True)
    async def rest(self) -> Command:
        return sleep(timedelta(hours=get_context(self.Context).hours), then=self.rise)

    @step
    async def rise(self) -> Command:
        return complete()


@workflow("invite")
class Invite:
    """Makes its Context of parameters."""

    class Context(BaseModel):
        text: str
        day: date

    @classmethod
    def create_context(cls, name: str, day: date, *, tone: Literal["kind", "formal"] = "kind") -> Context:
        assert type(day) is date
        return cls.Context(text=f"{'Dear' if tone == 'kind' else 'To'} {name}", day=day)

    @step(start=True)
    async def send(self) -> Command:
        return complete()


@workflow("broken")
class Broken:
    """Cannot be started."""

    class Context(BaseModel):
        pass

    @classmethod
    def create_context(cls, reason: str = SECRET) -> Context:
        raise RuntimeError(reason)

    @step(start=True)
    async def never(self) -> Command:
        return complete()


@workflow("fails")
class Fails:
    """Fails in its step."""

    class Context(BaseModel):
        pass

    @step(start=True)
    async def work(self) -> Command:
        return fail("no luck")


@workflow("aliased")
class Aliased:
    """Has a field that is called something else outside, and takes whatever it is given."""

    class Context(BaseModel):
        model_config = ConfigDict(extra="allow")
        size: int = Field(default=1, alias="largeness")

    @step(start=True)
    async def work(self) -> Command:
        return complete()


@workflow("strict")
class Strict:
    """Takes nothing from Python but what is of the very type."""

    class Context(BaseModel):
        model_config = ConfigDict(strict=True)
        day: date
        price: Decimal = Decimal(0)

    @step(start=True)
    async def work(self) -> Command:
        return complete()


@workflow("peculiar")
class Peculiar:
    """Has parameters whose names no field of a model could have, and takes any other."""

    class Context(BaseModel):
        text: str

    @classmethod
    def create_context(cls, copy: int, model_id: date | None = None, _hidden: str = "", **more: object) -> Context:
        return cls.Context(text=f"{copy!r} {model_id!r} {_hidden!r} {more!r}")

    @step(start=True)
    async def work(self) -> Command:
        return complete()


@event_workflow("visit.booked")
class Visit:
    """Is started by an event."""

    class Context(BaseModel):
        entity_id: str | None
        room: str = ""

    @classmethod
    def create_context(cls, event: Event) -> Context:
        return cls.Context(entity_id=event.entity_id, room=(event.entity or {}).get("room", ""))

    @step(start=True)
    async def prepare(self) -> Command:
        return complete()


ALL = [Expense, Count, Nap, Invite, Broken, Fails, Aliased, Strict, Peculiar, Visit]
