"""Asks an action's ``permissions`` about a request. They belong to the action, so both HTTP apps ask them."""

from __future__ import annotations

import inspect
from typing import Any, Literal, TypeAlias

from aioflow.inputs import ActionDefinition

#: The methods that permissions may have, sync or async.
Question: TypeAlias = Literal["has_permission", "has_action_permission"]


async def permits(action: ActionDefinition, question: Question, *about: Any) -> bool:
    """Whether each of an action's permissions that has this method answers it with yes.

    Args:
        action: the action.
        question: the method to call.
        about: its arguments: the request, the action's name, and for ``has_action_permission`` the input.

    Raises:
        Whatever a permission raises.
    """
    for permission in action.permissions:
        asked = permission() if isinstance(permission, type) else permission
        ask = getattr(asked, question, None)
        if ask is None:
            continue
        allowed = ask(*about)
        if not (await allowed if inspect.isawaitable(allowed) else allowed):
            return False
    return True
