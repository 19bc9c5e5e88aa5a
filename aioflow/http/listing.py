"""The filters and cursors of lists: what an address may ask for, read from its parameters and bound as values."""

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

#: How many runs a page may have, and transitions.
MAX_RUNS: Final = 500
MAX_TRANSITIONS: Final = 1000
#: Of all else that a request may repeat.
_MOST_VALUES: Final = 100
_LONGEST_CURSOR: Final = 200


def _clamp(most: int) -> BeforeValidator:
    """Bring a number that is asked for into its range: whoever asks for too much gets as much as there is."""

    def clamped(asked: Any) -> Any:
        text = str(asked).strip()
        if not text.removeprefix("-").isdecimal() or not text.isascii() or len(text) > 1000:
            return asked  # it is no number: pydantic says so
        return max(1, min(int(text), most))

    return BeforeValidator(clamped)


Names: TypeAlias = Annotated[list[Name], Field(max_length=_MOST_VALUES)]
RunLimit: TypeAlias = Annotated[int, Field(ge=1, le=MAX_RUNS), _clamp(MAX_RUNS)]
TransitionLimit: TypeAlias = Annotated[int, Field(ge=1, le=MAX_TRANSITIONS), _clamp(MAX_TRANSITIONS)]
Seq: TypeAlias = Annotated[int, Field(ge=0, lt=1 << 53)]
Order: TypeAlias = Literal["id", "-id", "created_at", "-created_at", "updated_at", "-updated_at"]


class Parameters(BaseModel):
    """The parameters of an address, these and no other. A list may be given several times, all else once."""

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
        Field(description="A JSON object: each key of it is in the Context, with this value."),
    ] = None
    created_after: Instant | None = None
    created_before: Instant | None = None
    updated_after: Instant | None = None
    updated_before: Instant | None = None
    order: Annotated[Order, Field(description='With "-" the latest come first.')] = "-id"
    limit: Annotated[RunLimit, Field(description="More than there may be is as many as there may be.")] = 100
    cursor: Annotated[
        str | None, Field(max_length=_LONGEST_CURSOR, description="As the page before gave it, with the same order.")
    ] = None

    def query(self) -> RunQuery:
        """What to ask the store. Raises Problem ("invalid") for a foreign cursor, and a filter beyond the limits."""
        filters = self.model_dump(exclude={"order", "limit", "cursor", "workflow"}, exclude_defaults=True)
        try:
            query = run_query("runs", filters, workflow=self.workflow or None, order=self.order, limit=self.limit)
        except (LimitExceeded, TypeError, ValueError):
            raise fault("It holds too much, or what no Context can hold.", "limit", parameter="data") from None
        if self.cursor is None:
            return query
        return dataclasses.replace(query, after=_position(self.cursor, self.order))


class HistoryParameters(Parameters):
    """Which transitions."""

    after: Annotated[Seq, Field(description="Only those with a higher seq.")] = 0
    limit: TransitionLimit = 100


def read(given: QueryParams, model: type[P]) -> P:
    """The parameters of an address. Raises Problem ("invalid")."""
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
    """Where the next page begins, in words of our own: the order, the value that it goes by, and the id."""
    column = order.removeprefix("-")
    told = [order, getattr(run.row, column), run.id]
    return urlsafe_b64encode(json.dumps(told, separators=(",", ":")).encode()).decode().rstrip("=")


def _position(cursor: str, order: str) -> tuple[int, int]:
    """What a cursor says. It need not be ours: all that it can say is where in the order to begin."""
    try:
        told = json.loads(urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError):
        told = None
    match told:
        case [str(of), int(value), int(run_id)] if of == order and abs(value) < 1 << 62 and 0 < run_id < 1 << 53:
            return value, run_id
    raise fault("It is no cursor of this order.", "cursor", parameter="cursor")
