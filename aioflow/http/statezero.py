"""``statezero``: actions as HTTP endpoints that StateZero's clients call unmodified. It puts the parts together."""

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
#: What browsers may send beside what they always may.
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

    A call is answered with the state that the action's step committed. Who may call which action, its ``permissions``
    say; without any, whoever is authenticated. They, and a step's ``request``, see ``request.user`` (what
    ``authenticate`` gave), and from ``has_action_permission`` on ``request.run`` (the WorkflowRun, or None if there is
    none) and ``request.data``.

    A call with an ``Idempotency-Key`` that is sent again by the same caller gets the answer of the one that succeeded, for
    a day, from the process that has answered it: behind several processes, or after a restart, it may be told that the
    run does not wait for the action any more.

    Args:
        engine: whose actions.
        authenticate: ``authenticate(request)``, sync or async, gives who calls, or None for nobody (401). It may raise
            Starlette's HTTPException, as permissions may. Without it only clients on this machine are answered.
        sync_token: what code generators send as ``X-Sync-Token`` to read the schema without being anybody. Without it
            they need to be authenticated.
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
    app.router.redirect_slashes = False  # clients do not follow, and a redirect would name whatever host they say
    return app


class _Endpoints:
    """What is asked first, and who answers. ``sync_token``: what opens the schema, in place of the identity."""

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
    if not hmac.compare_digest(sent.encode("latin-1"), token.encode()):  # the bytes that were sent
        raise Refusal(409, {"detail": "Sync token mismatch: it is not the one that this server has."})


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own answers, which here is only 404."""
    return refusals.not_found("Not found.").response()


class _Answering:
    """An endpoint for every method that answers, whatever happens in it. A class, so that Starlette takes it as an app."""

    def __init__(self, endpoint: _Endpoint, *, debug: bool) -> None:
        self._endpoint = endpoint
        self._debug = debug

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as ASGI has it."""
        response: Response
        request = ActionRequest(scope, receive)
        try:
            response = await self._endpoint(request)
        except Exception as error:  # noqa: BLE001 - the edge: whatever it is, it is told as clients expect it
            response = refusal_of(error, credentials=has_credentials(request), debug=self._debug).response()
        await response(scope, receive, send)


class _Limited:
    """No body that is too large, and no web page of a foreign origin."""

    def __init__(self, app: ASGIApp, allow_origins: Sequence[str]) -> None:
        self._app = app
        self._allowed = allow_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif "*" not in self._allowed and is_foreign(HTTPConnection(scope), self._allowed):
            await refusals.no_permission().response()(scope, receive, send)
        else:
            await self._app(scope, limited(scope, receive), send)
