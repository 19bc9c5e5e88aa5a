"""Workflows over HTTP: ASGI apps to serve, or to mount in FastAPI and Starlette. Needs the extra ``http``.

``api(engine, authorize=...)`` is the run API, with OpenAPI. ``statezero(engine, authenticate=...)`` is actions alone, as
StateZero's clients call them.
"""

try:
    import starlette  # noqa: F401 - asked for first, to say what is missing
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "aioflow.http needs Starlette. Try: pip install 'aioflow-engine[http]'.", name=error.name
    ) from None

from aioflow.http.access import Authorize
from aioflow.http.app import api
from aioflow.http.identity import ActionRequest, Authenticate
from aioflow.http.statezero import statezero

__all__ = ["ActionRequest", "Authenticate", "Authorize", "api", "statezero"]
