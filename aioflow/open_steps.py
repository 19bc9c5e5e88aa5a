"""``@action``: steps that a person or a program calls from outside the run."""

from __future__ import annotations

import keyword
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, overload

from pydantic import BaseModel

from aioflow.commands import Action, Returned
from aioflow.decorators import MARK, step
from aioflow.inputs import ACTION, ActionOptions
from aioflow.model import check_name

P = ParamSpec("P")


@overload
def action(function: Callable[Concatenate[Any, P], Returned], /) -> Action[P]: ...
@overload
def action(
    name: str | None = None, *, input: Callable[P, BaseModel], permissions: Sequence[Any] = ()
) -> Callable[[Callable[..., Returned]], Action[P]]: ...
@overload
def action(
    name: str | None = None, *, permissions: Sequence[Any] = ()
) -> Callable[[Callable[Concatenate[Any, P], Returned]], Action[P]]: ...
def action(name: Any = None, *, input: Any = None, permissions: Sequence[Any] = ()) -> Any:  # noqa: A002 - public API
    """Make a step an action, which runs when it is called, with the caller's input. It may stand above ``@step``.

    A ``goto`` to an action, and a wait that has it as an arm (``wait.any(on(self.review), ...)``), park the run until
    ``engine.act`` or an HTTP request calls it. What the step raises goes to the caller, and the run waits as before.

    Args:
        name: its name over HTTP, an identifier, unique among all workflows; made of the workflow's name and the
            step's if not given.
        input: the pydantic model of its input: the model's fields are the step's parameters, or one parameter of this
            type is given the whole model. Without it the step's parameters are its input. A parameter ``request`` is
            given the request that called the action; as that is not stored, the step can sleep only with ``then=``.
        permissions: who may call it over HTTP: classes, or instances, with ``has_permission(request, action_name)``
            and ``has_action_permission(request, action_name, data)``, or one of them, sync or async.

    Returns:
        The method, marked.

    Raises:
        TypeError, ValueError, LimitExceeded: an option of the wrong type or out of its range.
    """
    if callable(name):
        return action()(name)
    return _marking("@action", name, input, permissions)


@overload
def statezero_action(
    name: str | None = None, *, input: Callable[P, BaseModel], permissions: Sequence[Any] = ()
) -> Callable[[Callable[..., Returned]], Action[P]]: ...
@overload
def statezero_action(
    name: str | None = None, *, serializer: Callable[P, BaseModel], permissions: Sequence[Any] = ()
) -> Callable[[Callable[..., Returned]], Action[P]]: ...
@overload
def statezero_action(
    name: str | None = None, *, permissions: Sequence[Any] = ()
) -> Callable[[Callable[Concatenate[Any, P], Returned]], Action[P]]: ...
def statezero_action(
    name: str | None = None,
    *,
    input: Any = None,  # noqa: A002 - public API
    serializer: Any = None,
    permissions: Sequence[Any] = (),
) -> Any:
    """The same as ``@action``, under the name that workflows written for StateZero use.

    Args:
        name: as for ``@action``.
        input: as for ``@action``.
        serializer: the same as ``input``.
        permissions: as for ``@action``.

    Returns:
        A decorator that gives the method back, marked.

    Raises:
        TypeError, ValueError, LimitExceeded: an option of the wrong type or out of its range; both input and serializer.
    """
    if serializer is not None and input is not None:
        raise TypeError("@statezero_action takes input= or serializer=, not both: they are the same.")
    if serializer is not None:
        return _marking("@statezero_action", name, serializer, permissions, given="serializer")
    return _marking("@statezero_action", name, input, permissions)


def _marking(
    decorator: str, name: object, model: object, permissions: object, *, given: str = "input"
) -> Callable[[Any], Any]:
    if name is not None:
        check_name(f"{decorator}(name)", name)
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
            raise ValueError(
                f"{decorator}(name) must be an identifier, for clients make a function of it; got {name!r}."
            )
    if model is not None and not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise TypeError(f"{decorator}({given}=...) takes a pydantic model, got {_shown(model)}.")
    if isinstance(permissions, str) or not isinstance(permissions, Sequence):
        raise TypeError(f"{decorator}(permissions=...) takes a sequence of classes, got {_shown(permissions)}.")
    for permission in permissions:
        if not any(callable(getattr(permission, asked, None)) for asked in ("has_permission", "has_action_permission")):
            raise TypeError(
                f"{decorator}(permissions=...): {_shown(permission)} has neither has_permission(request, action_name) "
                "nor has_action_permission(request, action_name, data)."
            )
    options = ActionOptions(name=name, input=model, permissions=tuple(permissions))

    def mark(method: Any) -> Any:
        if getattr(method, MARK, None) is None:
            method = step()(method)
        setattr(method, ACTION, options)
        return method

    return mark


def _shown(value: object) -> str:
    return value.__qualname__ if isinstance(value, type) else f"a {type(value).__name__}"
