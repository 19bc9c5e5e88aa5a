"""Errors as bounded text, for the rows that record them. Nothing here raises, whatever an exception's methods do."""

from __future__ import annotations

import re
import sys
import traceback
from types import TracebackType
from typing import Final

from aioflow.errors import AioflowError, RunTimeout, StepTimeout
from aioflow.model import MAX_ERROR, MAX_TRACEBACK, bounded
from aioflow.retry import GROUPS, GiveUp, is_a, sole

#: How many exceptions of a group are described.
_MEMBERS = 3
#: The errors whose text is meant for whoever reads the run: exactly these classes, not their subclasses.
_FOR_CALLERS: Final = (GiveUp, RunTimeout, StepTimeout)
#: The first line of the traceback that is stored for such an error.
MARK: Final = "What follows was said for callers.\n"

#: The error text of a transition in which an action's step has chosen the HTTP response.
_CHOSEN: Final = re.compile(r"HTTP (\d{3}): (.*)", re.DOTALL)


def describe(error: BaseException) -> str:
    """An error as a bounded sentence: aioflow's own as it is, others with the class, a group with its first members."""
    inner = sole(error)
    if is_a(inner, (AioflowError, GiveUp)):
        return _sentence(inner)
    if type(error) not in GROUPS:
        return _sentence(error)
    members = map(sole, inner.exceptions[:_MEMBERS]) if type(inner) in GROUPS else [inner]  # type: ignore[attr-defined]
    return bounded(f"{_sentence(error)}: {'; '.join(map(_sentence, members))}", MAX_ERROR)


def _sentence(error: BaseException) -> str:
    try:
        text = str.__str__(str(error))  # a plain str, even if __str__ gives a subclass of it
    except BaseException:  # noqa: BLE001 - an exception whose __str__ raises is still to be recorded
        text = "<its __str__ raised>"
    if not is_a(error, (AioflowError, GiveUp)):
        name = _name(type(error))
        text = f"{name}: {text}" if text else name
    return bounded(text, MAX_ERROR)


def of_call(error: BaseException) -> str:
    """Why a call of an action failed; of an HTTPException its response, in the form that ``chosen_in`` reads."""
    starlette = sys.modules.get("starlette.exceptions")  # whoever has raised one has imported it
    if starlette is not None and is_a(error, starlette.HTTPException):
        try:
            detail = str.__str__(error.detail) if isinstance(error.detail, str) else ""
            return bounded(f"HTTP {error.status_code:03d}: {detail}", MAX_ERROR)
        except BaseException:  # noqa: BLE001, S110 - an odd subclass of it is described as any other error
            pass
    text = describe(error)
    return text if chosen_in(text) is None else f"{_name(type(error))}: {text}"


def chosen_in(text: str) -> tuple[int, str] | None:
    """Status and detail of the HTTP response that a step has chosen, if ``of_call`` made the text of one; else None."""
    found = _CHOSEN.fullmatch(text)
    return None if found is None else (int(found[1]), found[2])


def kept(error: BaseException) -> str:
    """An error's traceback as a run keeps it: it begins with ``MARK`` if the error's text is meant for callers."""
    inner = type(sole(error))
    if any(inner is kind for kind in _FOR_CALLERS):
        return MARK + traceback_of(error, MAX_TRACEBACK - len(MARK))
    text = traceback_of(error, MAX_TRACEBACK - 1)
    return f"\n{text}" if text.startswith(MARK) else text  # a class may have any name, MARK too


def is_told(text: str | None) -> bool:
    """Whether the traceback that a run has kept is of an error whose text is meant for callers."""
    return text is not None and text.startswith(MARK)


def trace_in(text: str | None) -> str | None:
    """The traceback that a run has kept, without ``MARK``."""
    return None if text is None else text.removeprefix(MARK)


def traceback_of(error: BaseException, limit: int = MAX_TRACEBACK) -> str:
    """An error's traceback as bounded text."""
    try:
        lines = traceback.format_exception(error)
    except BaseException:  # noqa: BLE001 - see describe()
        lines = [*traceback.format_tb(trace_of(error)), describe(error)]
    return bounded("".join(lines), limit)


def trace_of(error: BaseException | None) -> TracebackType | None:
    """An error's traceback object, even if its class overrides ``__traceback__``."""
    if error is None:
        return None
    trace: TracebackType | None = BaseException.__dict__["__traceback__"].__get__(error)
    return trace


def _name(kind: type) -> str:
    try:
        return str.__str__(kind.__qualname__)
    except BaseException:  # noqa: BLE001 - a metaclass decides what a class is called
        return "<an error whose class has no name>"


def written(target: object) -> str:
    """A command's target for an error message: a name's repr, or what the callable is called."""
    if isinstance(target, str):
        return repr(target)
    try:
        return str(getattr(target, "__qualname__", None) or type(target).__name__)
    except Exception:  # noqa: BLE001 - a user's __getattr__ may raise anything
        return type(target).__name__
