"""Describes actions for StateZero's code generators: names, docstrings, and the properties of input and response."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from pathlib import PurePath
from types import UnionType
from typing import Annotated, Any, Final, Literal, NewType, Union, get_args, get_origin
from uuid import UUID

from pydantic import (
    AnyUrl,
    AwareDatetime,
    BaseModel,
    EmailStr,
    FutureDate,
    FutureDatetime,
    NaiveDatetime,
    PastDate,
    PastDatetime,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python
from starlette.responses import Response

from aioflow.http.messages import action_model
from aioflow.http.refusals import answer
from aioflow.inputs import RUN_ID, ActionDefinition

Json = dict[str, Any]

#: (Python type, type, format). The first that a class derives from counts, so bool comes before int.
_TYPES: Final[tuple[tuple[type, str, str | None], ...]] = (
    (bool, "boolean", None),
    (int, "integer", None),
    (float, "number", None),
    (Decimal, "string", None),
    (datetime, "string", "date-time"),
    (AwareDatetime, "string", "date-time"),
    (NaiveDatetime, "string", "date-time"),
    (PastDatetime, "string", "date-time"),
    (FutureDatetime, "string", "date-time"),
    (date, "string", "date"),
    (PastDate, "string", "date"),
    (FutureDate, "string", "date"),
    (time, "string", "time"),
    (UUID, "string", "uuid"),
    (EmailStr, "string", "email"),
    (AnyUrl, "string", "uri"),
    (str, "string", None),
    (bytes, "string", None),
    (timedelta, "string", None),
    (PurePath, "string", None),
    (IPv4Address, "string", None),
    (IPv6Address, "string", None),
    (BaseModel, "object", None),
    (Mapping, "object", None),
)
_ARRAYS: Final = (list, tuple, set, frozenset, Collection)
_RESPONSE: Final = ("status", "message", "workflow_status", "current_step")


def checked_sum(body: bytes) -> dict[str, str]:
    """The headers by which clients see whether their copy of the schema is up to date."""
    return {
        "x-statezero-schema-checksum": hashlib.sha256(body).hexdigest(),
        "x-statezero-schema-checksum-alg": "sha256",
    }


def schema_answer(body: Any) -> Response:
    """The response for a part of the schema, with its checksum."""
    response = answer(body)
    response.headers.update(checked_sum(bytes(response.body)))
    return response


def described(actions: Iterable[ActionDefinition]) -> Json:
    """The description of all actions, by name."""
    found = {action.name: _action(action) for action in actions}
    return {"actions": dict(sorted(found.items())), "count": len(found)}


def _action(action: ActionDefinition) -> Json:
    words = re.findall(r"[^\W_]+", action.name)
    return {
        "action_name": action.name,
        "app": "workflows",
        "title": " ".join(word[:1].upper() + word[1:] for word in words),
        "docstring": action.docstring,
        "class_name": "".join(word[:1].upper() + word[1:] for word in words),
        "input_properties": _inputs(action_model(action)),
        "response_properties": {name: _property(name, "string") for name in _RESPONSE},
        "relationships": {},
        "permissions": [
            each.__name__ if isinstance(each, type) else type(each).__name__ for each in action.permissions
        ],
        "display": None,
    }


def _inputs(model: type[BaseModel] | None) -> Json:
    """The input's properties, in the order of a generated function's parameters: those without a default come first."""
    known = {} if model is None else model.model_fields
    fields = [(name, field) for name, field in known.items() if name != RUN_ID]
    ordered = sorted(fields, key=lambda item: not item[1].is_required())
    return {RUN_ID: _property(RUN_ID, "integer"), **{name: _field(name, field) for name, field in ordered}}


def _property(name: str, type_: str, *, required: bool = True, **more: Any) -> Json:
    return {
        "type": type_,
        "title": name.replace("_", " ").capitalize(),
        "required": required,
        "description": None,
        "nullable": False,
        "format": None,
        "max_length": None,
        "choices": None,
        "default": None,
        "validators": [],
        "max_digits": None,
        "decimal_places": None,
        "read_only": False,
        "ref": None,
        **more,
    }


def _field(name: str, field: FieldInfo) -> Json:
    kind, metadata, nullable = _stripped(field.annotation, list(field.metadata))
    type_, format_, choices = _type_of(kind)
    more: Json = {"nullable": nullable, "format": format_, "choices": choices, "description": field.description}
    if field.title is not None:
        more["title"] = field.title
    if not field.is_required() and field.default is not PydanticUndefined:
        more["default"] = _default(field.default)
    return _property(name, type_, required=field.is_required(), **more, **_bounds(kind, type_, metadata))


def _stripped(kind: Any, metadata: list[Any]) -> tuple[Any, list[Any], bool]:
    """A type without Annotated, aliases, NewType and Optional; its metadata; and whether it may be None."""
    nullable = False
    while True:
        origin = get_origin(kind)
        if origin is Annotated:
            kind, *more = get_args(kind)
            for each in more:
                metadata += each.metadata if isinstance(each, FieldInfo) else [each]
        elif (meant := getattr(origin or kind, "__value__", None)) is not None:  # ``type A = ...``, or A[int]
            kind = meant[get_args(kind)] if origin else meant
        elif isinstance(kind, NewType):
            kind = kind.__supertype__
        elif origin in (Union, UnionType):
            members = [member for member in get_args(kind) if member is not type(None)]
            nullable = nullable or len(members) < len(get_args(kind))
            if len(members) != 1:
                return kind, metadata, nullable
            (kind,) = members
        elif origin is Literal and None in get_args(kind):
            return Literal[tuple(each for each in get_args(kind) if each is not None)], metadata, True
        else:
            return kind, metadata, nullable


def _type_of(kind: Any) -> tuple[str, str | None, dict[str, str] | None]:
    """Type, format and choices."""
    origin = get_origin(kind)
    if origin is Literal:
        return _choices(get_args(kind))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _choices([member.value for member in kind])
    if origin in (Union, UnionType):
        types = {_type_of(_stripped(member, [])[0])[:2] for member in get_args(kind) if member is not type(None)}
        names = {type_ for type_, _ in types}
        if names == {"integer", "number"}:
            return "number", None, None
        return (*(types.pop() if len(types) == 1 else ("string" if names == {"string"} else "object", None)), None)
    kind = origin or kind
    if not isinstance(kind, type):
        return "object", None, None
    for base, type_, format_ in _TYPES:
        if issubclass(kind, base):
            return type_, format_, None
    return ("array" if issubclass(kind, _ARRAYS) else "object"), None, None


def _choices(values: Iterable[Any]) -> tuple[str, str | None, dict[str, str]]:
    """Type, format and choices of an Enum or a Literal, value -> label.

    StateZero knows only strings as choices, but choices that are integers have the type "integer": for a "string" a
    client would send "1", and pydantic takes only 1.
    """
    found = list(values)
    integers = all(isinstance(value, int) and not isinstance(value, bool) for value in found)
    return "integer" if integers else "string", None, {str(value): str(value) for value in found}


def _bounds(kind: Any, type_: str, metadata: Iterable[Any]) -> Json:
    """The limits that a client can check before it calls."""
    found: Json = {}
    for each in metadata:
        for given, name, only in (
            ("max_length", "max_length", "string"),
            ("min_length", "min_length", "string"),
            ("max_digits", "max_digits", "string"),
            ("decimal_places", "decimal_places", "string"),
            ("ge", "min_value", ""),
            ("le", "max_value", ""),
        ):
            value = getattr(each, given, None)
            told = _default(float(value) if isinstance(value, Decimal) else value)
            if told is not None and only in ("", type_):
                found[name] = told
        if kind is int:  # the only type in which an exclusive bound has an inclusive equivalent
            if (above := getattr(each, "gt", None)) is not None:
                found["min_value"] = above + 1
            if (below := getattr(each, "lt", None)) is not None:
                found["max_value"] = below - 1
    return found


def _default(value: Any) -> Any:
    """A default as JSON; None where clients cannot have it: not a finite number, or a datetime without a time zone."""
    try:
        return to_jsonable_python(_told(value), inf_nan_mode="null")
    except Exception:  # noqa: BLE001 - a default that JSON cannot have is not told to clients
        return None


def _told(value: Any) -> Any:
    """The value with all its datetimes in UTC, which end in Z. Raises ValueError for one without a time zone."""
    match value:
        case datetime(tzinfo=None):
            raise ValueError("it is no instant")
        case datetime():
            return value.astimezone(UTC)
        case BaseModel():
            return _told(value.model_dump())
        case Mapping():
            return {key: _told(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_told(item) for item in value]
        case _:
            return value
