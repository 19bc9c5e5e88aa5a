"""Workflows over HTTP: ASGI apps to serve, or to mount in FastAPI and Starlette. Needs the extra ``http``.

``api(engine, authorize=...)`` is the run API, with OpenAPI.
"""

from aioflow.http.access import Authorize
from aioflow.http.app import api

__all__ = ["Authorize", "api"]
