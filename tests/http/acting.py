"""Workflows whose actions the tests of ``statezero`` call, and their permissions."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AnyUrl, BaseModel, Field, PositiveInt
from starlette.exceptions import HTTPException
from starlette.requests import Request

from aioflow import action, complete, fail, get_context, goto, on, sleep, statezero_action, step, wait, workflow
from aioflow.commands import Command

#: What no response may contain.
SECRET = "a secret that only the log may tell"


class ReviewInput(BaseModel):
    """The input of a review, with the field for the run's id, as StateZero expects it."""

    workflow_run_id: int
    reviewer_notes: str = Field(max_length=500)
    priority: Literal["low", "medium", "high"]
    note: str


@workflow("sz-expense")
class Expense:
    """An expense that is reviewed and paid."""

    class Context(BaseModel):
        reviewer_notes: str = ""
        priority: str = "medium"
        amount: Decimal = Decimal(0)
        due: datetime | None = None
        by: str = ""

    @step(start=True)
    async def start_review(self) -> Command:
        return goto(self.await_review)

    @statezero_action(name="expense_file_review", serializer=ReviewInput)
    @step()
    async def await_review(self, reviewer_notes: str, priority: str) -> Command:
        """Step callable as StateZero action."""
        context = get_context(self.Context)
        context.reviewer_notes, context.priority = reviewer_notes, priority
        if reviewer_notes == "raise":
            context.by = "nobody"
            raise LookupError(SECRET)
        if reviewer_notes == "conflict":
            raise HTTPException(409, "It is above your limit.", {"x-limit": "400"})
        return goto(self.pay) if priority != "low" else fail("not worth it")

    @action("expense_pay")
    def pay(self, amount: Decimal, due: datetime, note: str = "") -> Command:
        context = get_context(self.Context)
        context.amount, context.due = amount, due
        return complete()


@workflow("sz-other")
class Other:
    """Its actions are arms of a wait with a timeout; one of them takes the request."""

    class Context(BaseModel):
        by: str = ""

    @step(start=True)
    async def ask(self) -> Command:
        return wait.any(on(self.decide), on(self.slow), timeout=timedelta(hours=1), on_timeout=self.end)

    @action("other_decide")
    async def decide(self, request: Request, yes: bool = True) -> Command:
        return complete(by=f"{request.user} {yes}")

    @action("other_slow")
    async def slow(self) -> Command:
        Gates.begun.set()
        await Gates.gate.wait()
        return sleep(timedelta(hours=1), then=self.end)

    @step
    async def end(self) -> Command:
        return complete(by="time")


class Gates:
    """Keeps the slow action from ending. The mutable state: the events, which are made anew for each test."""

    begun = asyncio.Event()
    gate = asyncio.Event()

    @classmethod
    def close(cls) -> None:
        cls.begun, cls.gate = asyncio.Event(), asyncio.Event()


class Asked:
    """What permissions were asked, and how they answer. The mutable state: that, and an exception to raise."""

    questions: list[tuple[Any, ...]] = []  # noqa: RUF012 - emptied for each test
    general = True
    particular = True
    raised: Exception | None = None


class MayAct:
    """A sync permission that is asked about the action."""

    def has_permission(self, request: Request, action_name: str) -> bool:
        Asked.questions.append(("general", request.user, action_name, request.run, request.data))  # type: ignore[attr-defined]
        return Asked.general


class MayActOn:
    """An async permission that is asked about the action, and about its input."""

    async def has_permission(self, request: Request, action_name: str) -> bool:
        if Asked.raised is not None:
            raise Asked.raised
        return True

    async def has_action_permission(self, request: Any, action_name: str, data: dict[str, Any]) -> bool:
        run = request.run
        assert request.state.run is run
        assert request.data is data
        Asked.questions.append(("particular", request.user, action_name, run and run.id, data))
        return Asked.particular


@workflow("sz-guarded")
class Guarded:
    """Its action has permissions."""

    class Context(BaseModel):
        amount: int = 0

    @action("guarded_act", permissions=[MayAct, MayActOn()])
    @step(start=True)
    async def act(self, amount: int) -> Command:
        return complete(amount=amount)


class PickyInput(BaseModel):
    """Declares the field for the run's id itself."""

    workflow_run_id: PositiveInt
    note: str


class PickierInput(BaseModel):
    """Limits the run's id."""

    workflow_run_id: int = Field(lt=100)


@workflow("sz-picky")
class Picky:
    """Its actions have models that declare the run's id."""

    class Context(BaseModel):
        pass

    @action("picky_act", input=PickyInput)
    @step(start=True)
    async def act(self, note: str) -> Command:
        return complete()

    @action("pickier_act", input=PickierInput)
    async def act_again(self) -> Command:
        return complete()


class Colour(Enum):
    """An enum."""

    RED = "red"
    BLUE = "blue"


class Line(BaseModel):
    """A nested model."""

    sku: str


class Everything(BaseModel):
    """A field of every kind."""

    optional_first: str = "x"
    a_bool: bool
    an_int: int = Field(ge=1, le=9)
    a_float: float = Field(gt=0, description="How much", title="The float")
    a_text: Annotated[str, Field(min_length=1, max_length=9)]
    a_choice: Literal["a", "b"] | None
    a_level: Literal[1, 2] = 1
    a_colour: Colour = Colour.BLUE
    a_decimal: Decimal = Field(default=Decimal("1.50"), max_digits=6, decimal_places=2, ge=Decimal("0.5"))
    a_datetime: datetime = datetime(2030, 1, 1, 2, tzinfo=UTC)
    a_date: date = date(2030, 1, 1)
    a_time: time | None = None
    a_url: AnyUrl | None = None
    a_uuid: UUID | None = None
    a_list: list[int] = []
    a_dict: dict[str, int] = Field(default_factory=dict)
    anything: Any = None
    a_line: Line | None = None
    a_number: int | float = 1
    either: int | str = 1
    above: int = Field(default=3, gt=1, lt=9)


@workflow("sz-described")
class Described:
    """Its action takes a field of every kind."""

    class Context(BaseModel):
        pass

    @action("described_act", input=Everything, permissions=[MayActOn()])
    @step(start=True)
    async def act(self, everything: Everything) -> Command:
        return complete()


ACTING = [Expense, Other, Guarded, Picky, Described]
