"""The endpoints that are about no existing run: start one, signal a key or all that wait, emit an event."""

from __future__ import annotations

from urllib.parse import quote

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from aioflow.codec import Unstorable
from aioflow.errors import ContextInvalid, EventInvalid, SignalInvalid
from aioflow.http import bodies
from aioflow.http.access import Access
from aioflow.http.messages import Models
from aioflow.http.problems import Problem, invalid
from aioflow.http.views import EventView, ReceiptView, RunView
from aioflow.runtime import Engine


class Sends:
    """The endpoints."""

    def __init__(self, engine: Engine, access: Access, models: Models) -> None:
        self._engine = engine
        self._access = access
        self._models = models

    async def start(self, request: Request) -> Response:
        """Start a run: 201; or 200 with the run that has the key already, if "get" is allowed on that."""
        await self._access.check(request, "start")
        asked = await bodies.read(request, bodies.StartBody)
        definition = self._engine.registry.find(bodies.name_in(request))
        context = self._models.arguments(definition, asked.context)
        try:
            run = await self._engine.start_run(definition.name, asked.options(), context, from_json=True)
        except ContextInvalid as error:
            match error.__cause__:
                case ValidationError() as cause:
                    raise invalid(cause, at=("context",)) from None
                case Unstorable():
                    raise Problem("invalid", "The context cannot be stored as it is.") from None
            raise
        if not run.created:
            await self._access.check(request, "get", run)
        where = f"{request.scope.get('root_path', '')}/runs/{run.id}"
        return RunView.of(run).response(201 if run.created else 200, {"location": quote(where)})

    async def signal(self, request: Request) -> Response:
        """Send a signal to a key, or to every run that waits for it now."""
        await self._access.check(request, "signal")
        asked = await bodies.read(request, bodies.SignalAllBody)
        try:
            receipt = await self._engine.signal(
                bodies.name_in(request),
                asked.payload,
                key=asked.key,
                signal_id=asked.signal_id,
                ttl=asked.lifetime(),
            )
        except SignalInvalid:
            raise Problem("invalid", "The payload cannot be stored as it is.") from None
        return ReceiptView.of(receipt).response()

    async def emit(self, request: Request) -> Response:
        """Record an event."""
        await self._access.check(request, "emit")
        asked = await bodies.read(request, bodies.EmitBody)
        try:
            event = await self._engine.emit(
                bodies.name_in(request),
                asked.entity,
                entity_id=asked.entity_id,
                at=asked.at,
                namespace=asked.namespace,
                event_id=asked.event_id,
                replace=asked.replace,
            )
        except EventInvalid:
            raise Problem("invalid", "The entity cannot be stored as it is.") from None
        return EventView.of(event).response()
