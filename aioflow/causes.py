"""Errors as bounded text, for the rows that tell of them. Nothing here raises, whatever an exception does."""

from __future__ import annotations

import traceback

from aioflow.errors import AioflowError
from aioflow.model import MAX_ERROR, MAX_TRACEBACK, bounded
from aioflow.retry import GiveUp


def describe(error: BaseException) -> str:
    """One error as a bounded sentence: aioflow's own as they are, others with their class."""
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001 - an exception whose __str__ raises is still to be recorded
        text = "<its __str__ raised>"
    if not isinstance(error, AioflowError | GiveUp):
        name = type(error).__qualname__
        text = f"{name}: {text}" if text else name
    return bounded(text, MAX_ERROR)


def traceback_of(error: BaseException) -> str:
    """Its traceback."""
    try:
        lines = traceback.format_exception(error)
    except BaseException:  # noqa: BLE001 - see describe()
        lines = traceback.format_tb(error.__traceback__)
    return bounded("".join(lines), MAX_TRACEBACK)


def written(target: object) -> str:
    """A command's target as somebody may have written it."""
    if isinstance(target, str):
        return repr(target)
    try:
        return str(getattr(target, "__qualname__", None) or type(target).__name__)
    except Exception:  # noqa: BLE001 - a stranger's __getattr__
        return type(target).__name__
