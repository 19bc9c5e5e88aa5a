"""What callers send: the models of the requests' bodies, and how they are read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from starlette.requests import Request

from aioflow.canon import id_text
from aioflow.http.problems import Problem, invalid
from aioflow.model import MAX_NAME, StartOptions, misfit

B = TypeVar("B", bound="Body")

#: A century: the longest duration in seconds that a request may give.
_LONGEST: Final = 100 * 366 * 24 * 3600


def _storable(text: str) -> str:
    if (character := misfit(text)) is not None:
        raise ValueError(f"it holds {character}")
    return text


def _sensible(instant: datetime) -> datetime:
    if not 1970 <= instant.year < 9999:  # in range of a datetime in every time zone
        raise ValueError("it is not between 1970 and 9998")
    return instant.astimezone(UTC)


Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME), AfterValidator(_storable)]
Text = Annotated[str, Field(max_length=2_000), AfterValidator(_storable)]
Seconds = Annotated[float, Field(ge=0, le=_LONGEST, allow_inf_nan=False)]
Instant = Annotated[AwareDatetime, AfterValidator(_sensible)]
_NAME: Final = TypeAdapter[str](Name)
Key = Annotated[Name | None, Field(description="Your own name for the run, unique per workflow.")]


class Body(BaseModel):
    """A JSON object with these members and no others."""

    model_config = ConfigDict(extra="forbid")


class StartBody(Body):
    """How a run is started."""

    context: Annotated[dict[str, JsonValue], Field(description="What the workflow's Context is made of.")] = {}
    key: Key = None
    reuse: Annotated[
        Literal["never", "ended", "failed"],
        Field(description="When a key may name a new run: after one that has ended, or only after one that failed."),
    ] = "never"
    delay: Annotated[Seconds | None, Field(description="Start so many seconds from now.")] = None
    start_at: Annotated[Instant | None, Field(description="Start at this instant.")] = None

    @model_validator(mode="after")
    def _starts_once(self) -> Self:
        if self.delay is not None and self.start_at is not None:
            raise ValueError("say delay or start_at, not both")
        return self

    def options(self) -> StartOptions:
        """The options, as ``engine.start`` takes them."""
        return StartOptions(
            key=self.key,
            reuse=self.reuse,
            delay=None if self.delay is None else timedelta(seconds=self.delay),
            start_at=self.start_at,
        )


class SignalBody(Body):
    """A signal to a run."""

    payload: Annotated[
        dict[Name, JsonValue], Field(description="What is merged into the Context, or the message.")
    ] = {}
    signal_id: Annotated[Name | None, Field(description="Makes sending it idempotent, for 7 days.")] = None
    ttl: Annotated[Seconds | None, Field(gt=0, description="How many seconds it may wait to be taken.")] = None

    def lifetime(self) -> timedelta | None:
        """The ttl, as ``engine.signal`` takes it."""
        return None if self.ttl is None else timedelta(seconds=self.ttl) or timedelta.resolution


class SignalAllBody(SignalBody):
    """A signal to a key, or to every run that waits for it now."""

    key: Annotated[
        Name | None, Field(description="The key that it is for; without one, every run that waits for it now gets it.")
    ] = None


class EmitBody(Body):
    """An event that has happened, or will."""

    entity: Annotated[dict[Name, JsonValue] | None, Field(description="What the event is about.")] = None
    entity_id: Annotated[
        Name | int | None, Field(description='The id of the entity; without it, the "id" in the entity.')
    ] = None
    at: Annotated[Instant | None, Field(description="When it occurs; now if not given.")] = None
    namespace: Name = "*"
    event_id: Annotated[Name | None, Field(description="Your own id for it: makes emitting it idempotent.")] = None
    replace: Annotated[bool, Field(description="Replace the event of this event_id and name, if there is one.")] = False

    @model_validator(mode="after")
    def _names_what_it_replaces(self) -> Self:
        if self.replace and self.event_id is None:
            raise ValueError("replace needs the event_id of what it replaces")
        return self

    @model_validator(mode="after")
    def _has_an_id_that_is_one(self) -> Self:
        id_ = (self.entity or {}).get("id") if self.entity_id is None else self.entity_id
        try:
            if id_ is not None:
                id_text("the id", id_)
        except (TypeError, ValueError):
            raise ValueError(f"an entity's id is a text of 1 to {MAX_NAME} characters, or a whole number") from None
        return self


class ActBody(Body):
    """The call of an action."""

    input: Annotated[dict[str, JsonValue], Field(description="The action's input.")] = {}


class CancelBody(Body):
    """Why a run is cancelled."""

    reason: Text | None = None


async def read(request: Request, model: type[B]) -> B:
    """The body, validated by this model; an empty one counts as an empty object.

    Raises:
        Problem: "not-json", "malformed" or "invalid".
        HTTPException: 413, by the guard.
    """
    check_json_type(request)
    try:
        return model.model_validate_json(await request.body() or b"{}")
    except ValidationError as error:
        if (
            error.error_count() == 1
            and error.errors(include_url=False, include_input=False)[0]["type"] == "json_invalid"
        ):
            raise Problem("malformed") from None
        raise invalid(error) from None


def check_json_type(request: Request) -> None:
    """Raise Problem ("not-json") unless the content type is JSON in UTF-8."""
    if not is_json(request.headers.get("content-type", "")):
        raise Problem("not-json")


def is_json(content_type: str) -> bool:
    """Whether a Content-Type header means JSON in UTF-8."""
    kind, _, parameters = content_type.partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    return kind.strip().lower() == "application/json" and charset in ("", "utf-8")


def name_in(request: Request) -> str:
    """The name at the end of the address. Raises Problem ("invalid")."""
    try:
        return _NAME.validate_python(request.path_params["name"])
    except ValidationError as error:
        raise invalid(error, at=("name",), parameters=True) from None
