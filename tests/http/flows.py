"""Workflows for the tests of the run API."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request

from aioflow import (
    Event,
    action,
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
from aioflow.http import ActionRequest

SECRET = "the password is swordfish"


class Review(BaseModel):
    """A message: the decision of a reviewer."""

    approved: bool
    by: str = Field(max_length=50)


class Item(BaseModel):
    """An item of an expense."""

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
    """Makes as many transitions as its Context says."""

    class Context(BaseModel):
        turns: int = Field(default=1, ge=0, le=1000)

    @step(start=True)
    async def turn(self) -> Command:
        context = get_context(self.Context)
        context.turns -= 1
        return goto(self.turn) if context.turns > 0 else complete()


@workflow("nap/of the cat")
class Nap:
    """Has a name that must be quoted in a path."""

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
    """Has a create_context with parameters."""

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
    """Its create_context raises."""

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
    """Its step returns ``fail``."""

    class Context(BaseModel):
        pass

    @step(start=True)
    async def work(self) -> Command:
        return fail("no luck")


@workflow("aliased")
class Aliased:
    """Its Context has an alias, and accepts further fields."""

    class Context(BaseModel):
        model_config = ConfigDict(extra="allow")
        size: int = Field(default=1, alias="largeness")

    @step(start=True)
    async def work(self) -> Command:
        return complete()


@workflow("strict")
class Strict:
    """Its Context is strict: it converts no types."""

    class Context(BaseModel):
        model_config = ConfigDict(strict=True)
        day: date
        price: Decimal = Decimal(0)

    @step(start=True)
    async def work(self) -> Command:
        return complete()


@workflow("peculiar")
class Peculiar:
    """Its create_context has parameter names that no model's field may have, and ``**more``."""

    class Context(BaseModel):
        text: str

    @classmethod
    def create_context(cls, copy: int, model_id: date | None = None, _hidden: str = "", **more: object) -> Context:
        return cls.Context(text=f"{copy!r} {model_id!r} {_hidden!r} {more!r}")

    @step(start=True)
    async def work(self) -> Command:
        return complete()


class Auditors:
    """The permission to audit: for auditors, and only for notes that hide nothing."""

    def has_permission(self, request: Request, action_name: str) -> bool:
        assert action_name == "audit"
        return request.headers.get("x-role") == "auditor"

    async def has_action_permission(self, request: ActionRequest, action_name: str, data: dict[str, Any]) -> bool:
        assert request.run is not None
        assert (request.run.id, request.run.workflow, request.data) == (data["workflow_run_id"], "claim", data)
        return data["note"] != "hide it"


@workflow("claim")
class Claim:
    """Is reviewed, and perhaps audited, by actions."""

    class Context(BaseModel):
        amount: Decimal = Decimal(0)
        day: date | None = None
        notes: list[str] = []

    @step(start=True)
    async def begin(self) -> Command:
        return goto(self.review)

    @action("review_claim")
    @step(title="Review it")
    async def review(self, approved: bool, amount: Annotated[Decimal, Field(gt=0)], day: date | None = None) -> Command:
        """Say what is to be paid."""
        if amount == 13:
            raise RuntimeError(SECRET)
        if amount == 409:
            raise HTTPException(409, "It is above your limit.", {"x-limit": "400"})
        context = get_context(self.Context)
        context.amount, context.day = amount, day
        if not approved:
            return fail("refused")
        return wait.any(on(self.audit), on("pay", then=self.pay), timeout=timedelta(days=1), on_timeout=self.pay)

    @action("audit", permissions=[Auditors])
    async def audit(self, note: str, request: Request) -> Command:
        get_context(self.Context).notes.append(f"{note} by {request.headers['x-role']}")
        return goto(self.pay)

    @step
    async def pay(self) -> Command:
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


ALL = [Expense, Count, Nap, Invite, Broken, Fails, Aliased, Strict, Peculiar, Claim, Visit]
