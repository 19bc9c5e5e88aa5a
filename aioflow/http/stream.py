"""A run's transitions as server-sent events, for a bounded time.

A stream ends after some 20 seconds, or when the server shuts down: an EventSource reconnects by itself, tells by
``Last-Event-ID`` what it has seen, and misses nothing. Once it has seen all of a run that has ended, it is told to stop
(204).
"""

from __future__ import annotations

from contextlib import aclosing
from typing import Any, Final

from anyio import move_on_after
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from aioflow import telemetry
from aioflow.errors import AioflowError
from aioflow.http.exits import Exits
from aioflow.http.problems import fault
from aioflow.http.views import TransitionView
from aioflow.run import WorkflowRun
from aioflow.runtime import Engine

#: How many seconds a stream lasts, and after how many its client is to reconnect.
LONGEST_STREAM: Final = 20.0
RETRY: Final = 1.0
#: How many seconds sending the end may take, as the client may not read any more.
_LAST_WORDS: Final = 0.5
_DIGITS: Final = 16


class Stream(Response):
    """The streaming response.

    Args:
        engine: where the run is watched.
        exits: ends the stream.
        run: the run.
        after: only transitions with a higher seq.
    """

    media_type = "text/event-stream"

    def __init__(self, engine: Engine, exits: Exits, run: WorkflowRun[Any], after: int) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._engine = engine
        self._exits = exits
        self._run = run
        self._after = after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as an ASGI app."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            if scope["method"] != "HEAD":
                with self._exits.bounded(LONGEST_STREAM, receive):
                    await self._tell(send)
        except AioflowError as error:  # the engine closes, or the store is not available: the client reconnects
            telemetry.warn("a stream ended early", error=str(error))
        # ``send`` may wait for a client that does not read.
        with move_on_after(_LAST_WORDS):
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _tell(self, send: Send) -> None:
        await _say(send, f"retry: {RETRY * 1000:.0f}\n\n")
        async with aclosing(self._engine.watch(self._run.id, after=self._after)) as watching:
            async for transition in watching:
                if transition.kind == "fail":
                    await self._run.refresh()
                told = TransitionView.of(transition, self._run).model_dump_json()
                await _say(send, f"id: {transition.seq}\nevent: transition\ndata: {told}\n\n")
        await _say(send, "event: end\ndata: {}\n\n")


async def _say(send: Send, text: str) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})


def position(request: Request, after: int | None) -> int:
    """The seq after which a stream is to begin: ``Last-Event-ID``, else ``after``. Raises Problem ("invalid")."""
    seen = request.headers.get("last-event-id")
    if not seen:
        return after or 0
    if not (seen.isascii() and seen.isdecimal() and len(seen) <= _DIGITS):
        raise fault("It is not an id of this stream.", "last_event_id", parameter="Last-Event-ID")
    return int(seen)
