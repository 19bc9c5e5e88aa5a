"""Who calls, and what permissions and steps can ask of the request."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from starlette.requests import Request
from starlette.types import Receive, Scope

from aioflow import telemetry
from aioflow.http.guard import is_local
from aioflow.http.refusals import no_credentials, no_permission
from aioflow.run import WorkflowRun

#: ``authenticate(request)``, sync or async: who calls, or None for nobody.
Authenticate: TypeAlias = Callable[[Request], Any | Awaitable[Any]]


class ActionRequest(Request):
    """A request that calls an action; ``user`` is what ``authenticate`` gave, or ``authorize`` or the host left, or None.

    Attributes:
        data: what it calls it with, validated, once that is known.
        run: the run that it is for, as it was loaded; None before that, and if there is none.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        super().__init__(scope, receive)
        scope.setdefault("user", None)  # without it Starlette takes asking for a mistake
        self.data: dict[str, Any] = {}
        self.run: WorkflowRun[Any] | None = None


def has_credentials(request: Request) -> bool:
    """Whether the caller says who he is, truly or not."""
    return "authorization" in request.headers


class Identity:
    """Asks ``authenticate``. Without one, this machine is everybody that there is.

    Args:
        authenticate: the host's.

    The mutable state: whether it has said that it answers nobody else.
    """

    def __init__(self, authenticate: Authenticate | None) -> None:
        self._authenticate = authenticate
        self._said = False

    async def check(self, request: ActionRequest) -> None:
        """Know who calls.

        Raises:
            Refusal: nobody, or somebody on another machine where nobody can be told from anybody.
        """
        if self._authenticate is None:
            if not self._said:
                self._said = True
                telemetry.warn("statezero() has no authenticate=: it answers only clients on this machine")
            if not is_local(request):
                raise no_permission()
            request.scope["user"] = None
            return
        user = self._authenticate(request)
        if inspect.isawaitable(user):
            user = await user
        if user is None:
            raise no_credentials(some=has_credentials(request))
        request.scope["user"] = user
