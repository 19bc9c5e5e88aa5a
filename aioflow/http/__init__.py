"""Workflows over HTTP: ASGI apps to serve, or to mount in FastAPI and Starlette. Needs the extra ``http``.

``api(engine, authorize=...)`` is the run API, with OpenAPI. ``statezero(engine, authenticate=...)`` serves actions
alone, for StateZero's clients.
"""

try:
    from aioflow.http.access import Authorize
    from aioflow.http.app import api
    from aioflow.http.identity import ActionRequest, Authenticate
    from aioflow.http.statezero import statezero
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "starlette":
        raise
    raise ModuleNotFoundError(
        "aioflow.http needs Starlette. Try: pip install 'aioflow-engine[http]'.", name=error.name
    ) from None

__all__ = ["ActionRequest", "Authenticate", "Authorize", "api", "statezero"]
