"""The answer that the step of an action has chosen, by raising Starlette's HTTPException."""

from __future__ import annotations

from starlette.exceptions import HTTPException

from aioflow.causes import chosen_in
from aioflow.errors import ActionFailed


def chosen_by(error: Exception) -> HTTPException | None:
    """The answer that is in what a call of an action came to; from another process it comes without its headers."""
    if isinstance(error, HTTPException):
        return error
    found = chosen_in(error.error) if isinstance(error, ActionFailed) else None
    return None if found is None else HTTPException(found[0], found[1] or None)
