"""Authentication, and the request that permissions and steps are given."""

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
    """A request that calls an action. Its ``user`` was set by ``authenticate``, ``authorize`` or the host, or is None.

    Attributes:
        data: the validated input, with the run's id; empty before it is validated.
        run: the run that it is for, as it was loaded; None before that, and if there is no such run.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        super().__init__(scope, receive)
        scope.setdefault("user", None)  # without it Starlette's ``request.user`` raises AssertionError
        self.data: dict[str, Any] = {}
        self.run: WorkflowRun[Any] | None = None


def has_credentials(request: Request) -> bool:
    """Whether the request has credentials, valid or not."""
    return "authorization" in request.headers


class Identity:
    """Asks ``authenticate``. Without one, every client on this machine is let in, and no other.

    Args:
        authenticate: the host's function.

    The mutable state: whether it has logged that ``authenticate`` is missing.
    """

    def __init__(self, authenticate: Authenticate | None) -> None:
        self._authenticate = authenticate
        self._warned = False

    async def check(self, request: ActionRequest) -> None:
        """Set the request's user.

        Raises:
            Refusal: ``authenticate`` knows no user, or there is none and the client is on another machine.
        """
        if self._authenticate is None:
            if not self._warned:
                self._warned = True
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
