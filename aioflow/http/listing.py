"""The query parameters of lists: filters, limits and cursors."""

from __future__ import annotations

import binascii
import dataclasses
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Json, JsonValue, ValidationError
from starlette.datastructures import QueryParams

from aioflow.errors import LimitExceeded
from aioflow.http.bodies import Instant, Name
from aioflow.http.problems import fault, invalid
from aioflow.model import WaitingFor, WorkflowStatus
from aioflow.query import run_query
from aioflow.run import WorkflowRun
from aioflow.store import RunQuery

P = TypeVar("P", bound="Parameters")

#: How many runs, or transitions, a page may have.
MAX_RUNS: Final = 500
MAX_TRANSITIONS: Final = 1000
#: How many values a repeated parameter may have.
_MOST_VALUES: Final = 100
_LONGEST_CURSOR: Final = 200


def _clamp(most: int) -> BeforeValidator:
    """A validator that brings a number into the range from 1 to ``most``, rather than refuse it."""

    def clamped(asked: Any) -> Any:
        text = str(asked).strip()
        if not text.removeprefix("-").isdecimal() or not text.isascii() or len(text) > 1000:
            return asked  # not a number: leave the error to pydantic
        return max(1, min(int(text), most))

    return BeforeValidator(clamped)


Names: TypeAlias = Annotated[list[Name], Field(max_length=_MOST_VALUES)]
RunLimit: TypeAlias = Annotated[int, Field(ge=1, le=MAX_RUNS), _clamp(MAX_RUNS)]
TransitionLimit: TypeAlias = Annotated[int, Field(ge=1, le=MAX_TRANSITIONS), _clamp(MAX_TRANSITIONS)]
Seq: TypeAlias = Annotated[int, Field(ge=0, lt=1 << 53)]
Order: TypeAlias = Literal["id", "-id", "created_at", "-created_at", "updated_at", "-updated_at"]


class Parameters(BaseModel):
    """Query parameters, these and no others. A list may be given several times, any other once."""

    model_config = ConfigDict(extra="forbid")


class ListParameters(Parameters):
    """Which runs, in which order."""

    workflow: Names = []
    status: Annotated[list[WorkflowStatus], Field(max_length=_MOST_VALUES)] = []
    step: Names = []
    waiting_for: Annotated[list[WaitingFor], Field(max_length=_MOST_VALUES)] = []
    waiting_signal: Names = []
    waiting_key: Names = []
    key: Names = []
    event_id: Names = []
    data: Annotated[
        Json[dict[str, JsonValue]] | None,
        Field(description="A JSON object: the Context has each of its keys, with the same value."),
    ] = None
    created_after: Instant | None = None
    created_before: Instant | None = None
    updated_after: Instant | None = None
    updated_before: Instant | None = None
    order: Annotated[Order, Field(description='With "-" the latest come first.')] = "-id"
    limit: Annotated[RunLimit, Field(description="A number that is out of range becomes the nearest in it.")] = 100
    cursor: Annotated[
        str | None, Field(max_length=_LONGEST_CURSOR, description="`next` of the page before, with the same order.")
    ] = None

    def query(self) -> RunQuery:
        """The query for the store. Raises Problem ("invalid") for an invalid cursor, or a filter beyond the limits."""
        filters = self.model_dump(exclude={"order", "limit", "cursor", "workflow"}, exclude_defaults=True)
        try:
            query = run_query("runs", filters, workflow=self.workflow or None, order=self.order, limit=self.limit)
        except (LimitExceeded, TypeError, ValueError):
            raise fault("It is too large, or holds what no Context can hold.", "limit", parameter="data") from None
        if self.cursor is None:
            return query
        return dataclasses.replace(query, after=_position(self.cursor, self.order))


class HistoryParameters(Parameters):
    """Which transitions."""

    after: Annotated[Seq, Field(description="Only those with a higher seq.")] = 0
    limit: TransitionLimit = 100


def read(given: QueryParams, model: type[P]) -> P:
    """The query parameters, validated. Raises Problem ("invalid")."""
    values: dict[str, Any] = {}
    for name, value in given.multi_items():
        field = model.model_fields.get(name)
        if field is not None and isinstance(field.default, list):
            values.setdefault(name, []).append(value)
        elif name in values:
            raise fault("It is given more than once.", "repeated", parameter=name[:_LONGEST_CURSOR])
        else:
            values[name] = value
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise invalid(error, parameters=True) from None


def cursor_after(run: WorkflowRun[Any], order: str) -> str:
    """The cursor of the page that follows this run: encodes the order, the run's value in that order, and its id."""
    column = order.removeprefix("-")
    told = [order, getattr(run.row, column), run.id]
    return urlsafe_b64encode(json.dumps(told, separators=(",", ":")).encode()).decode().rstrip("=")


def _position(cursor: str, order: str) -> tuple[int, int]:
    """The position that a cursor encodes. A forged one is harmless: it can only say where in the order to begin."""
    try:
        told = json.loads(urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError):
        told = None
    match told:
        case [str(of), int(value), int(run_id)] if of == order and abs(value) < 1 << 62 and 0 < run_id < 1 << 53:
            return value, run_id
    raise fault("It is not a cursor of this order.", "cursor", parameter="cursor")
