"""``api``: the run API as an ASGI app. It puts the parts together, and decides nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from aioflow import telemetry
from aioflow.http.access import Access, Authorize
from aioflow.http.acts import Acts
from aioflow.http.exits import Exits
from aioflow.http.guard import is_foreign, is_local, limited
from aioflow.http.health import Health
from aioflow.http.identity import ActionRequest
from aioflow.http.messages import Models
from aioflow.http.openapi import Description
from aioflow.http.problems import Problem, answer_of, on_http_exception
from aioflow.http.runs import Runs
from aioflow.http.sends import Sends
from aioflow.runtime import Engine

_Endpoint: TypeAlias = Callable[[ActionRequest], Awaitable[Response]]


def api(engine: Engine, authorize: Authorize | None = None) -> Starlette:
    """The run API: start, list, get, history, wait, a stream of transitions, signal, emit, cancel, actions.

    Serve it, or mount it: ``app.mount("/flows", api(engine, authorize))`` in FastAPI and Starlette. Served by itself it
    opens and closes the engine; mounted, it has no lifespan of its own, so the host's must do that:
    ``lifespan=engine.lifespan``. ``/openapi.json`` describes it, ``/healthz`` and ``/readyz`` tell its health.

    Args:
        engine: the engine whose runs are served.
        authorize: ``authorize(request, operation, run)``, sync or async, says whether a request is allowed: anything
            but a true value forbids it, and it may raise Starlette's HTTPException. ``operation`` is "start", "list"
            (asked first without a run, then for each run of the list), "get", "history", "wait", "watch", "signal",
            "cancel", "actions", "act", "emit" or "describe". An action's own ``permissions`` are asked after it: their
            ``request.user`` is what ``authorize`` has put into ``request.scope["user"]``.
            ``run`` is the run as it was loaded, None for what is about no single run: "start", "emit", "describe",
            "list" the first time, "signal" to a key or to all, and a run that does not exist. A run that has
            moved while the body was on its way is asked about again. ``request.path_params["name"]`` names what is
            started, emitted or sent. Who may "signal" a run that waits for a signal named by a string can set any field
            of its Context by the payload; who may "list" a run can find out its Context by the filter ``data``. Without
            ``authorize`` only clients on this machine are answered; a proxy on it that does not say for whom it asks is
            such a client.

    Returns:
        A Starlette app.
    """
    access, exits, models = Access(engine, authorize), Exits(), Models()
    runs, acts = Runs(engine, access, exits, models), Acts(engine, access, exits)
    sends, health = Sends(engine, access, models), Health(engine)
    endpoints: list[tuple[str, str, _Endpoint]] = [
        ("GET", "/healthz", health.live),
        ("GET", "/readyz", health.ready),
        ("GET", "/openapi.json", Description(engine, access, models).document),
        ("POST", "/workflows/{name:path}/runs", sends.start),
        ("GET", "/runs", runs.list),
        ("GET", "/runs/{run_id}", runs.get),
        ("GET", "/runs/{run_id}/history", runs.history),
        ("GET", "/runs/{run_id}/wait", runs.wait),
        ("GET", "/runs/{run_id}/stream", runs.stream),
        ("POST", "/runs/{run_id}/signals/{name:path}", runs.signal),
        ("POST", "/runs/{run_id}/cancel", runs.cancel),
        ("GET", "/runs/{run_id}/actions", acts.open),
        ("POST", "/runs/{run_id}/actions/{name:path}", acts.act),
        ("POST", "/signals/{name:path}", sends.signal),
        ("POST", "/events/{name:path}", sends.emit),
    ]
    app = Starlette(
        routes=[Route(path, _Answering(endpoint), methods=[method]) for method, path, endpoint in endpoints],
        middleware=[Middleware(_Guarded, local_only=authorize is None)],
        exception_handlers={HTTPException: on_http_exception},
        lifespan=engine.lifespan,
    )
    app.router.redirect_slashes = False  # a redirect would name whatever host the client has sent
    return app


class _Answering:
    """An endpoint that answers errors as problems. A class, so that Starlette takes it as an app."""

    def __init__(self, endpoint: _Endpoint) -> None:
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as an ASGI app."""
        try:
            response = await self._endpoint(ActionRequest(scope, receive))
        except Exception as error:  # noqa: BLE001 - the edge: every error is answered as a problem
            response = answer_of(error)
        await response(scope, receive, send)


class _Guarded:
    """Passes on what the guard lets in. The mutable state: whether it has logged that ``authorize`` is missing."""

    def __init__(self, app: ASGIApp, local_only: bool) -> None:
        self._app = app
        self._local_only = local_only
        self._warned = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as an ASGI app."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        if self._local_only and not self._warned:
            self._warned = True
            telemetry.warn("the run API has no authorize=: it answers only clients on this machine")
        if self._local_only and not is_local(connection):
            await Problem("not-local", "Give api() an authorize=.").response()(scope, receive, send)
        elif is_foreign(connection):
            await Problem("cross-origin").response()(scope, receive, send)
        else:
            await self._app(scope, limited(scope, receive), send)
