"""The HTTP answer that an action's step has chosen by raising Starlette's HTTPException."""

from __future__ import annotations

from starlette.exceptions import HTTPException

from aioflow.causes import chosen_in
from aioflow.errors import ActionFailed


def chosen_by(error: Exception) -> HTTPException | None:
    """The answer that the step chose, if this error of a call has one; from another process it lacks its headers."""
    if isinstance(error, HTTPException):
        return error
    found = chosen_in(error.error) if isinstance(error, ActionFailed) else None
    return None if found is None else HTTPException(found[0], found[1] or None)
