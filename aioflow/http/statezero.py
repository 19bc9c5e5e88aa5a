"""``statezero``: actions as HTTP endpoints that unmodified StateZero clients can call. It puts the parts together."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from aioflow.http import refusals
from aioflow.http.action_calls import ActionCalls
from aioflow.http.described import described, schema_answer
from aioflow.http.guard import is_foreign, limited
from aioflow.http.identity import ActionRequest, Authenticate, Identity, has_credentials
from aioflow.http.refusals import Refusal, refusal_of
from aioflow.runtime import Engine

_Endpoint: TypeAlias = Callable[[ActionRequest], Awaitable[Response]]
#: The headers that web pages may send in addition to those that CORS always allows.
_HEADERS: Final = (
    "authorization", "content-type", "idempotency-key", "x-canonical-id", "x-operation-id", "x-statezero-sync-token",
    "x-sync-token",
)  # fmt: skip
_EXPOSED: Final = ("x-statezero-schema-checksum", "x-statezero-schema-checksum-alg")
_MAX_AGE: Final = 600


def statezero(
    engine: Engine,
    authenticate: Authenticate | None = None,
    sync_token: str | None = None,
    allow_origins: Sequence[str] = (),
    debug: bool = False,
) -> Starlette:
    """Actions over HTTP, as StateZero's clients call them: ``POST actions/<name>/`` and ``GET actions-schema/``.

    Mount it: ``app.mount("/statezero", statezero(engine, authenticate))`` in FastAPI and Starlette, whose own lifespan
    opens the engine: ``lifespan=engine.lifespan``. Served by itself it opens and closes the engine.

    A call is answered with the state that the action's step committed. An action's ``permissions`` decide who may call
    it; without any, every authenticated caller may. Permissions, and a step's parameter ``request``, are given the
    request: ``request.user`` is what ``authenticate`` gave; from ``has_action_permission`` on, ``request.run`` is the
    WorkflowRun (None if there is no such run), and ``request.data`` the input.

    If a call with an ``Idempotency-Key`` has succeeded, the same caller gets the same answer when it sends the call
    again within a day to the same process; another process, or a restarted one, may answer that the run does not wait
    for the action any more.

    Args:
        engine: the engine whose actions are called.
        authenticate: ``authenticate(request)``, sync or async, gives the user, or None for nobody (401). It may raise
            Starlette's HTTPException, as permissions may. Without it only clients on this machine are answered; a proxy
            on it that does not say for whom it asks is such a client.
        sync_token: what code generators send as ``X-Sync-Token`` to read the schema, instead of being authenticated.
            Without it they must be authenticated.
        allow_origins: the origins whose web pages may call, as browsers write them: ``https://app.example.com``.
        debug: tell callers what a step raised. The log has it in any case.

    Returns:
        A Starlette app.

    Raises:
        TypeError, ValueError: an argument of the wrong type, or an empty sync_token.
    """
    if sync_token is not None and not isinstance(sync_token, str):
        raise TypeError(f"statezero(sync_token=...) takes a string, got {type(sync_token).__name__}.")
    if sync_token == "":
        raise ValueError("statezero(sync_token=...) must not be empty.")
    if isinstance(allow_origins, str):
        raise TypeError("statezero(allow_origins=...) takes a sequence of origins: allow_origins=['https://...'].")
    found = _Endpoints(engine, Identity(authenticate), sync_token, debug=debug)
    endpoints = {"/actions/{name}": found.call, "/actions-schema": found.schema, "/models": found.models}
    app = Starlette(
        routes=[
            Route(path + slash, _Answering(endpoint, debug=debug))
            for path, endpoint in endpoints.items()
            for slash in ("", "/")
        ],
        middleware=[
            Middleware(
                CORSMiddleware, allow_origins=allow_origins, allow_methods=["GET", "POST"], allow_headers=_HEADERS,
                expose_headers=_EXPOSED, max_age=_MAX_AGE,
            ),
            Middleware(_Limited, allow_origins=allow_origins),
        ],
        exception_handlers={HTTPException: _on_http_exception},
        lifespan=engine.lifespan,
    )  # fmt: skip
    app.router.redirect_slashes = False  # clients do not follow, and a redirect would name whatever host they sent
    return app


class _Endpoints:
    """The endpoints, with the checks that come first. ``sync_token``: opens the schema, in place of the identity."""

    def __init__(self, engine: Engine, identity: Identity, sync_token: str | None, *, debug: bool) -> None:
        self._engine = engine
        self._identity = identity
        self._sync_token = sync_token
        self._calls = ActionCalls(engine, debug=debug)

    async def call(self, request: ActionRequest) -> Response:
        await self._identity.check(request)
        if request.method != "POST":
            raise refusals.no_method(request.method, "POST, OPTIONS")
        return await self._calls.call(request)

    async def schema(self, request: ActionRequest) -> Response:
        await self._admit(request)
        return schema_answer(described(self._engine.registry.actions.values()))

    async def models(self, request: ActionRequest) -> Response:
        await self._admit(request)
        return schema_answer([])

    async def _admit(self, request: ActionRequest) -> None:
        if self._sync_token is None:
            await self._identity.check(request)
        else:
            _check_token(request, self._sync_token)
        if request.method not in ("GET", "HEAD"):
            raise refusals.no_method(request.method, "GET, HEAD, OPTIONS")


def _check_token(request: Request, token: str) -> None:
    sent = request.headers.get("x-sync-token") or request.headers.get("x-statezero-sync-token")
    if not sent:
        raise Refusal(403, {"detail": "Schema sync requires the header X-Sync-Token."})
    if not hmac.compare_digest(sent.encode("latin-1"), token.encode()):  # Starlette decodes headers as latin-1
        raise Refusal(409, {"detail": "Sync token mismatch: it is not the one that this server has."})


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own error answers: here, only 404."""
    return refusals.not_found("Not found.").response()


class _Answering:
    """An endpoint for every method, which answers errors, too. A class, so that Starlette takes it as an app."""

    def __init__(self, endpoint: _Endpoint, *, debug: bool) -> None:
        self._endpoint = endpoint
        self._debug = debug

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as an ASGI app."""
        response: Response
        request = ActionRequest(scope, receive)
        try:
            response = await self._endpoint(request)
        except Exception as error:  # noqa: BLE001 - the edge: every error is answered as clients expect it
            response = refusal_of(error, credentials=has_credentials(request), debug=self._debug).response()
        await response(scope, receive, send)


class _Limited:
    """Refuses bodies that are too large, and web pages of a foreign origin."""

    def __init__(self, app: ASGIApp, allow_origins: Sequence[str]) -> None:
        self._app = app
        self._allowed = allow_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as an ASGI app."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif "*" not in self._allowed and is_foreign(HTTPConnection(scope), self._allowed):
            await refusals.no_permission().response()(scope, receive, send)
        else:
            await self._app(scope, limited(scope, receive), send)
