"""What an action's ``permissions`` say of a request: they belong to the action, and so hold wherever it is called."""

from __future__ import annotations

import inspect
from typing import Any, Literal, TypeAlias

from aioflow.inputs import ActionDefinition

#: The methods that permissions may have, sync or async.
Question: TypeAlias = Literal["has_permission", "has_action_permission"]


async def permits(action: ActionDefinition, question: Question, *about: Any) -> bool:
    """Whether each of an action's permissions says yes to what it can be asked.

    Args:
        action: the action.
        question: which method is asked.
        about: what it is asked about: the request, the action's name, and for the second one the input.

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
