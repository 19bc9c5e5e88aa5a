"""Whether two Contexts are alike, where they differ, and what is wrong with one, described without its values."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin
from uuid import UUID

from pydantic import BaseModel, ValidationError

#: The value in pydantic's message about one that it cannot serialize: it must not be stored or logged with the error.
_VALUE = re.compile(r"input_value=.*, (?=input_type=)")
#: pydantic makes records of all faults or of none, some microseconds each: a mebibyte of JSON may have 300 000.
_MANY: Final = 1_000


#: Classes whose values hold no others.
_PLAIN = frozenset([str, int, float, bool, type(None), datetime, date, time, timedelta, Decimal, UUID, bytes])
#: Classes whose values validate unchanged in a field without constraints.
_SIMPLE = frozenset([str, int, float, bool, type(None)])
#: Settings of a Context that do not affect the validation of such values.
_HARMLESS = frozenset(["extra", "title", "from_attributes", "arbitrary_types_allowed", "populate_by_name", "validate_by_name",
    "validate_by_alias", "json_schema_extra", "use_attribute_docstrings"])  # fmt: skip


def difference(left: Any, right: Any) -> str | None:
    """The first place where two models or dataclasses differ in what is stored of them, and how; None if none."""
    return next(_differences(left, right, ""), None)


def _differences(left: Any, right: Any, path: str) -> Iterator[str]:
    """Where two values differ. Models, and at the top dataclasses, are compared by what is stored: their fields."""
    if isinstance(left, BaseModel) and isinstance(right, BaseModel) and (not path or _same_model(left, right)):
        yield from _model_differences(left, right, f"{path}." if path else "")
    elif not path and dataclasses.is_dataclass(left) and type(left) is type(right):
        for each in dataclasses.fields(left):
            yield from _differences(getattr(left, each.name), getattr(right, each.name), each.name)
    elif (equal := _compare(left, right)) is not False:
        if equal is not True:
            yield f"{path} cannot be compared with what reads back: {equal}"
    elif isinstance(left, list | tuple) and type(left) is type(right) and len(left) == len(right):
        for i, (a, b) in enumerate(zip(left, right, strict=True)):
            yield from _differences(a, b, f"{path}[{i}]")
    elif isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
        for key in left:
            yield from _differences(left[key], right[key], f"{path}[{key!r:.50}]")
    elif isinstance(left, dict) and isinstance(right, dict) and (lost := [key for key in left if key not in right]):
        why = "" if isinstance(lost[0], str) else ": JSON has texts as keys"
        yield f"{path} has the key {lost[0]!r:.50} ({type(lost[0]).__name__}), which does not read back as it is{why}"
    else:
        yield f"{path} {_unlike(left, right)}"


def _unlike(left: Any, right: Any) -> str:
    """How two values that are not equal differ."""
    if right is None and isinstance(left, float) and not math.isfinite(left):
        return f"is {left}, which JSON does not have"
    if type(left) is not type(right):
        return f"is a {type(left).__name__}, but reads back as a {type(right).__name__}"
    return f"reads back as another {type(left).__name__} than was written"


def _same_model(left: BaseModel, right: BaseModel) -> bool:
    """Whether they are of one class, or the left one's is the live class of the right one's, which has its name."""
    kind, other = type(left), type(right)
    return kind is other or (issubclass(kind, other) and kind.__qualname__ == other.__qualname__)


def _model_differences(left: BaseModel, right: BaseModel, prefix: str) -> Iterator[str]:
    # Not by getattr, which warns about a deprecated field, and raises for one that model_construct() was not given.
    for name in type(right).model_fields:
        if name not in left.__dict__ or name not in right.__dict__:
            if name in left.__dict__ or name in right.__dict__:
                yield f"{prefix}{name} would be {'lost' if name in left.__dict__ else 'added'}"
        else:
            yield from _differences(left.__dict__[name], right.__dict__[name], prefix + name)
    extra, other = left.__pydantic_extra__ or {}, right.__pydantic_extra__ or {}
    for name in {**extra, **other}:
        if (name in extra) != (name in other):
            yield f"{prefix}{name} would be {'lost' if name in extra else 'added'}"
        else:
            yield from _differences(extra[name], other[name], prefix + name)


def _compare(left: Any, right: Any) -> bool | str:
    """Whether they are equal, or what their comparison raises."""
    try:
        return bool(left == right)
    except Exception as error:  # noqa: BLE001 - values may be of any class
        return one_line(error)


def too_many(error: ValidationError) -> str | None:
    """How many faults there are, where they are not to be told one by one; None if they are."""
    count = error.error_count()
    return f"{count} values do not validate" if count > _MANY else None


def explain(error: BaseException, whole: str = "Context") -> str:
    """Which fields do not validate and why, without their values; or what a Context's own code raised.

    ``whole``: names the place of an error that is not about a field; "" for no name.
    """
    if not isinstance(error, ValidationError):
        return one_line(error)
    if (many := too_many(error)) is not None:
        return f"{whole}: {many}" if whole else many
    parts = [
        ": ".join(filter(None, (".".join(map(str, item["loc"])) or whole, item["msg"])))
        for item in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    return "; ".join(parts[:10]) + (f"; and {len(parts) - 10} more" if len(parts) > 10 else "")


def one_line(error: BaseException) -> str:
    """The error's class and text on one line, without the values that pydantic's messages show."""
    try:
        text = _VALUE.sub("", " ".join(str(error).split()))
    except BaseException:  # noqa: BLE001 - an exception whose __str__ raises
        text = "<its __str__ raised>"
    return f"{type(error).__name__}: {text}"[:500]


def loose_fields(context: type[BaseModel], *, checked: bool) -> tuple[str, ...]:
    """The fields whose values may read back as another class; ``checked``: each assignment is validated."""
    decorators = context.__pydantic_decorators__
    if not checked or decorators.field_validators or decorators.validators:
        return tuple(context.model_fields)
    return tuple(
        name
        for name, field in context.model_fields.items()
        if field.metadata or not _PLAIN.issuperset(_members(field.annotation))
    )


def unchanged_fields(context: type[BaseModel]) -> dict[str, frozenset[type]]:
    """By field: the classes whose direct instances validate unchanged, whatever their value."""
    decorators = context.__pydantic_decorators__
    if decorators.field_validators or decorators.validators or not _HARMLESS.issuperset(context.model_config):
        return {}
    found: dict[str, frozenset[type]] = {}
    for name, field in context.model_fields.items():
        members = frozenset(_members(field.annotation))
        if not field.metadata and not field.frozen and len(members - {type(None)}) == 1 and _SIMPLE.issuperset(members):
            found[name] = members
    return found


def _members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; anything else is its only one."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def alike(one: Any, other: Any) -> bool:
    """Whether two equal values are of the same classes, too, also inside lists and the like. False if in doubt."""
    if one is other:
        return True
    kind = type(one)
    if kind is not type(other):
        return False
    if kind is list or kind is tuple:
        classes = [*map(type, one)]  # long lists of plain values are compared at once
        return classes == [*map(type, other)] and (_PLAIN.issuperset(classes) or all(map(alike, one, other)))
    if kind in _PLAIN:
        return True
    if kind is dict:
        return not one or (all(map(alike, one, other)) and all(map(alike, one.values(), other.values())))
    return isinstance(one, BaseModel) and all(map(alike, one.__dict__.values(), other.__dict__.values()))
