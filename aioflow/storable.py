"""What a Context class may not declare, because it would be lost or refused when a run is stored and read again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import (
    BaseModel,
    FutureDate,
    FutureDatetime,
    PlainSerializer,
    RootModel,
    Secret,
    SecretBytes,
    SecretStr,
    WrapSerializer,
)
from pydantic.types import EncodedBytes, PathType


def problems_of(context: type[BaseModel]) -> list[str]:
    """The reasons why this class cannot be a Context, as sentences; none if it can."""
    name = context.__qualname__
    if issubclass(context, RootModel):
        return [f"{name} is a RootModel: a Context has named fields. Subclass BaseModel."]
    problems = []
    if context.model_config.get("frozen"):
        problems.append(f"{name} is frozen: steps change their Context. Take frozen=True out of its model_config.")
    problems += _field_problems(context, name, set())
    return problems


_SECRETS = (SecretStr, SecretBytes, Secret)
#: Their values are valid only for a time, but a run is read as long as it lives.
_PASSING = (FutureDate, FutureDatetime)


def _field_problems(model: type[BaseModel], path: str, seen: set[object]) -> Iterator[str]:
    if model in seen:
        return
    seen.add(model)
    config = model.model_config
    bytes_as_text = config.get("ser_json_bytes", "utf8") == config.get("val_json_bytes", "utf8") != "utf8"
    for name, field in model.model_fields.items():
        where = f"{path}.{name}"
        if field.exclude:
            yield f"{where} has exclude=True: it would be lost at every step. Take it out of the Context."
            continue
        yield from _type_problems(field.annotation, tuple(field.metadata), where, bytes_as_text, seen)


def _type_problems(
    annotation: Any, metadata: Sequence[object], where: str, bytes_as_text: bool, seen: set[object]
) -> Iterator[str]:
    if hasattr(annotation, "__value__"):  # a type alias, which may name itself
        if annotation in seen:
            return
        seen.add(annotation)
        annotation = annotation.__value__
    if hasattr(annotation, "__supertype__"):  # a NewType
        annotation = annotation.__supertype__
    encoded = any(isinstance(m, EncodedBytes | PlainSerializer | WrapSerializer) for m in metadata)
    if hasattr(annotation, "__metadata__"):  # Annotated
        yield from _type_problems(annotation.__origin__, annotation.__metadata__, where, bytes_as_text, seen)
        return
    yield from _passing_problems(annotation, metadata, where)
    kind = get_origin(annotation) or annotation
    if isinstance(kind, type) and issubclass(kind, _SECRETS):
        yield f"{where} is a {kind.__name__}: it would be stored as asterisks. Store a reference to the secret."
    elif isinstance(annotation, type) and issubclass(annotation, bytes | bytearray):
        if not encoded and not bytes_as_text:
            yield f"{where} holds raw bytes, which JSON cannot. Declare it as pydantic.Base64Bytes."
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from _field_problems(annotation, where, seen)
    elif dataclasses.is_dataclass(annotation) or hasattr(annotation, "__total__") or hasattr(annotation, "_fields"):
        # a dataclass, a TypedDict of typing or typing_extensions, a NamedTuple
        yield from _member_problems(annotation, where, bytes_as_text, seen)
    for argument in get_args(annotation):
        yield from _type_problems(argument, (), where, bytes_as_text, seen)


def _passing_problems(annotation: Any, metadata: Sequence[object], where: str) -> Iterator[str]:
    """Problems with values that are valid now, but may not be when the run is read again."""
    if any(isinstance(m, PathType) for m in metadata):
        yield f"{where} is a path that has to be there, or not: a run could not be read once that changes. Declare a Path."
    if isinstance(annotation, type) and issubclass(annotation, _PASSING):
        name = annotation.__name__
        instead = name.removeprefix("Future").lower()
        yield (
            f"{where} is a {name}: a run could not be read once that is past. Declare a {instead}, and check it in "
            "create_context."
        )


def _member_problems(annotation: Any, where: str, bytes_as_text: bool, seen: set[object]) -> Iterator[str]:
    if annotation in seen:
        return
    seen.add(annotation)
    try:
        hints = get_type_hints(annotation, include_extras=True)
    except Exception:  # noqa: BLE001 - an unresolvable annotation: pydantic itself has decided about it
        return
    for name, hint in hints.items():
        yield from _type_problems(hint, (), f"{where}.{name}", bytes_as_text, seen)
