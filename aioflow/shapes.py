"""The shapes of workflow classes and of filters, for type checkers. Nothing here runs.

Members are written as methods: only then do mypy and pyright match a protocol against a *class object*.
``CreatesContext`` comes before ``HasCreateContext`` in overloads: arguments that do not fit ``create_context`` must not
fall through to the Context's own, so the second overload returns a class whose name is the error message.
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Mapping
from datetime import datetime
from typing import Any, ClassVar, ParamSpec, Protocol, TypeAlias, TypedDict, TypeVar

from pydantic import BaseModel, JsonValue

P = ParamSpec("P")
C = TypeVar("C", bound=BaseModel)
C_co = TypeVar("C_co", bound=BaseModel, covariant=True)


class HasContext(Protocol[C_co]):
    """A workflow class with an inner Context."""

    def Context(self, *args: Any, **kwargs: Any) -> C_co: ...  # noqa: D102, N802


class CreatesContext(Protocol[P, C_co]):
    """A workflow class with its own create_context."""

    def create_context(self, *args: P.args, **kwargs: P.kwargs) -> C_co | Awaitable[C_co]: ...  # noqa: D102


class HasCreateContext(Protocol):
    """A workflow class with a create_context, whatever its arguments."""

    def create_context(self, *args: Any, **kwargs: Any) -> Any: ...  # noqa: D102


class BuildsContext(Protocol[P, C_co]):
    """A workflow class without create_context: the keywords are the Context's."""

    def Context(self, *args: P.args, **kwargs: P.kwargs) -> C_co: ...  # noqa: D102, N802


class ArgumentsDoNotFitCreateContext:
    """The type that a checker shows for start() with arguments that create_context does not take."""


class ADataclass(Protocol):
    """An instance of a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


#: What an event may be about.
Entity: TypeAlias = BaseModel | ADataclass | Mapping[str, Any] | None


class RunFilters(TypedDict, total=False):
    """The filters of runs, iter_runs and count, beside ``workflow``; see ``Engine.runs``. None is no filter."""

    status: str | Collection[str] | None
    step: Any
    waiting_for: str | Collection[str] | None
    waiting_signal: Any
    waiting_key: str | Collection[str] | None
    key: str | Collection[str] | None
    event_id: str | Collection[str] | None
    data: Mapping[str, JsonValue] | None
    created_after: datetime | None
    created_before: datetime | None
    updated_after: datetime | None
    updated_before: datetime | None
