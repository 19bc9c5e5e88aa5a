"""Liveness and readiness probes, for supervisors and load balancers."""

from __future__ import annotations

from contextlib import suppress

from anyio import move_on_after
from starlette.requests import Request
from starlette.responses import Response

from aioflow.errors import RunNotFound
from aioflow.http.problems import Problem
from aioflow.http.views import HealthView
from aioflow.runtime import Engine

#: Seconds that the store may take to answer.
_PATIENCE = 2.0


class Health:
    """The endpoints. They reveal nothing else, so ``authorize`` is not asked about them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def live(self, request: Request) -> Response:
        """Whether the event loop turns."""
        return HealthView().response()

    async def ready(self, request: Request) -> Response:
        """Whether the engine is open, and the store answers in time: as runs are read, not behind what users ask."""
        with move_on_after(_PATIENCE):
            with suppress(RunNotFound):
                await self._engine.get(1)
            return HealthView().response()
        raise Problem("unavailable", "The store takes too long to answer.", headers={"retry-after": "1"})
