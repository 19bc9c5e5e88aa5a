"""The JSON that every store can hold: checked before it is queued, so that no run's data makes a whole batch fail."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeAlias
from uuid import UUID

from pydantic import BaseModel
from pydantic_core import from_json, to_json

from aioflow.errors import LimitExceeded
from aioflow.model import CHARACTERS, MAX_DATA, MAX_DEPTH, MAX_NAME, check_name

#: Python's own limit on the digits of a number that is parsed, which the JSON parser has, too.
_MAX_DIGITS = 4300
#: Up to this many characters, JSON can neither be too deep nor have a key that is too long.
_SHORT = min(2 * MAX_DEPTH, MAX_NAME)
NUMBERS = "the numbers that JSON has"

#: Where a value is: what it is in, and its key or index there; None is the top. It is written out for errors alone: a path
#: of 64 long keys before each of many values would take gigabytes.
_Place: TypeAlias = "tuple[_Place, str | int] | None"


def check_json(raw: bytes, what: str) -> str:
    """Refuse JSON that some store could not hold. The cheap checks come first: nearly all JSON passes them.

    Args:
        raw: JSON text, in UTF-8.
        what: names it in the error.

    Returns:
        The text.

    Raises:
        LimitExceeded: over 1 MiB, deeper than 64, a key over 200 characters, a NUL, a number that JSON does not have,
            or one with too many digits to be read.
    """
    if len(raw) > MAX_DATA:
        raise LimitExceeded(what, f"{MAX_DATA} bytes of JSON", f"it has {len(raw)}")
    text = raw.decode()
    # A search for one character is several times as fast as one for a word, and in a str as in bytes.
    if (
        ("\\" in text and "\\u0000" in text)
        or ("N" in text and "NaN" in text)
        or ("I" in text and "Infinity" in text)
        or (len(text) > _SHORT and _is_suspect(text))
    ):
        _walk_json(raw, what)
    return text


def _is_suspect(text: str) -> bool:
    """Whether it may be too deep, or have a key that is too long."""
    return text.count("{") + text.count("[") > MAX_DEPTH or (
        len(text) > MAX_NAME and ('\\"' in text or len(max(text.split('"'), key=len)) > MAX_NAME)
    )


def _walk_json(raw: bytes, what: str) -> None:
    try:
        root = from_json(raw)
    except ValueError as error:  # it has just been written, so it is valid, but exceeds a limit of the parser
        if "number" in str(error):
            raise LimitExceeded(what, f"{_MAX_DIGITS} digits for a number", "a number has more") from None
        raise LimitExceeded(what, f"depth {MAX_DEPTH}", "it is nested deeper") from None
    _check_scalar(root, None, what)
    todo: list[tuple[_Place, Any, int]] = [(None, root, 1)] if isinstance(root, dict | list) else []
    while todo:
        place, value, depth = todo.pop()
        if depth > MAX_DEPTH:
            raise LimitExceeded(what, f"depth {MAX_DEPTH}", f"deeper at {_written(place)[:MAX_NAME]}")
        for part, item in enumerate(value) if isinstance(value, list) else value.items():
            if isinstance(part, str):
                _check_key(part, place, what)
            if isinstance(item, dict | list):
                todo.append(((place, part), item, depth + 1))
            elif isinstance(item, str | float):
                _check_scalar(item, (place, part), what)


def _check_key(key: str, place: _Place, what: str) -> None:
    if len(key) > MAX_NAME:
        limit = f"{MAX_NAME} characters for a key"
        raise LimitExceeded(what, limit, f"{len(key)} below {_written(place) or 'its top'}")
    if "\0" in key:
        raise LimitExceeded(what, CHARACTERS, f"a NUL in a key below {_written(place) or 'its top'}")


def _check_scalar(value: object, place: _Place, what: str) -> None:
    if isinstance(value, str) and "\0" in value:
        raise LimitExceeded(what, CHARACTERS, f"a NUL at {_written(place) or 'its top'}")
    if isinstance(value, float) and not math.isfinite(value):
        raise LimitExceeded(what, NUMBERS, f"{value} at {_written(place) or 'its top'}")


def _written(place: _Place) -> str:
    """A place, as a path."""
    parts: list[str] = []
    while place is not None:
        place, part = place
        parts.append(f"[{part}]" if isinstance(part, int) else f".{part}")
    return "".join(reversed(parts)).removeprefix(".")


def doubled(raw: bytes) -> str | None:
    """A key that an object in this JSON has twice, as of a mapping with the keys ``1`` and ``"1"``; else None."""
    if len(to_json(from_json(raw), inf_nan_mode="constants")) == len(raw):
        return None
    found: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                found.append(key)
            seen.add(key)

    json.loads(raw, object_pairs_hook=look)
    return found[0] if found else None


def beyond(values: Mapping[str, Any], what: str, *, unread: bool = False) -> LimitExceeded | None:
    """The error for values that could not be written, if they exceed one of our limits. ``what``: their owner, for it.

    ``unread``: the values could be written, but do not read back, as a NaN that was written as null.
    """
    todo: list[tuple[_Place, Any, int]] = [((None, name), value, 2) for name, value in values.items()]
    while todo:
        place, value, depth = todo.pop()
        if isinstance(value, str) and not _encodes(value):
            return LimitExceeded(what, CHARACTERS, f"a lone surrogate at {_written(place)[:MAX_NAME]}")
        if unread and isinstance(value, float) and not math.isfinite(value):
            return LimitExceeded(what, NUMBERS, f"{value} at {_written(place)[:MAX_NAME]}")
        members: Iterable[tuple[str | int, Any]] = ()
        if isinstance(value, BaseModel):
            members = value
        elif is_dataclass(value) and not isinstance(value, type):
            members = ((field.name, getattr(value, field.name, None)) for field in fields(value))
        elif isinstance(value, Mapping):
            if any(isinstance(key, str) and not _encodes(key) for key in value):
                below = _written(place)[:MAX_NAME]
                return LimitExceeded(what, CHARACTERS, f"a lone surrogate in a key below {below}")
            members = ((f"{key}", item) for key, item in value.items())
        elif isinstance(value, list | tuple | set | frozenset):
            members = enumerate(value)
        else:
            continue
        if depth > MAX_DEPTH:
            return LimitExceeded(what, f"depth {MAX_DEPTH}", f"deeper at {_written(place)[:MAX_NAME]}")
        todo.extend(((place, part), item, depth + 1) for part, item in members)
    return None


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def id_text(what: str, entity_id: object) -> str:
    """An entity's id as a string, as events and waits hold it.

    Raises:
        TypeError, ValueError, LimitExceeded: it is not a str, int or UUID, or cannot be stored; ``what`` names it.
    """
    if isinstance(entity_id, bool) or not isinstance(entity_id, str | int | UUID):
        raise TypeError(f"{what} takes a str, an int or a UUID, got {type(entity_id).__name__}.")
    if isinstance(entity_id, str):
        return check_name(what, str.__str__(entity_id))  # the value of an enum's member, not its name
    return check_name(what, int.__repr__(entity_id) if isinstance(entity_id, int) else str(entity_id))
