"""Notices that the server shuts down, to end streams and long polls, for which the server waits.

ASGI tells an app of the shutdown only after all requests have ended. uvicorn, which handles SIGTERM itself, can be
asked before: its signal handler is a method of the server, whose ``should_exit`` is then set. Under a server without
such a handler, streams and long polls end when their time is over.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from anyio import CancelScope, move_on_after
from starlette.exceptions import HTTPException
from starlette.types import Receive

from aioflow.clock import SECOND, Clock, Micros
from aioflow.tasks import TaskSet

_LOOK: Final[Micros] = SECOND // 10
#: How many seconds calls that should not be broken off may still take once the server was told to end.
GRACE = 5.0


def server_exits() -> bool:
    """Whether the server that runs this app has been told to end."""
    for number in (signal.SIGTERM, signal.SIGINT):
        server = getattr(signal.getsignal(number), "__self__", None)
        if getattr(server, "should_exit", False) is True:
            return True
    return False


class Exits:
    """Ends waiting requests when their time is over, their client has gone, or the server shuts down.

    The mutable state: the scopes of the requests that wait now, each with how many seconds it has once the server was
    told to end (None once these have begun); the task that watches the server while there are any; and for each bounded
    request a task that listens for its client's disconnect.
    """

    def __init__(self) -> None:
        self._clock = Clock()
        self._scopes: dict[CancelScope, float | None] = {}
        self._looker: asyncio.Task[None] | None = None
        self._tasks = TaskSet()

    @contextmanager
    def bounded(self, seconds: float, receive: Receive, grace: float = 0) -> Generator[CancelScope]:
        """A block that is cancelled, without an error, for one of these reasons.

        Args:
            seconds: how long it may take.
            receive: the request's; its body, if it matters, must have been read.
            grace: how many seconds it may still take once the server was told to end.
        """
        with move_on_after(seconds) as scope, self._watched(scope, grace):
            listener = self._tasks.spawn(self._listen(receive, scope), name="aioflow http client")
            try:
                yield scope
            finally:
                listener.cancel()

    @contextmanager
    def patient(self) -> Generator[CancelScope]:
        """A block that is cancelled only ``GRACE`` seconds after the server was told to end."""
        with CancelScope() as scope, self._watched(scope, GRACE):
            yield scope

    @contextmanager
    def _watched(self, scope: CancelScope, grace: float) -> Generator[None]:
        self._scopes[scope] = grace
        if self._looker is None or self._looker.done():
            self._looker = self._tasks.spawn(self._look(), name="aioflow http exit")
        try:
            yield
        finally:
            self._scopes.pop(scope, None)

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        while self._scopes:
            if server_exits():
                for scope, grace in list(self._scopes.items()):
                    if grace is not None:
                        self._scopes[scope] = None
                        loop.call_later(grace, self._end, scope)
            await self._clock.sleep(_LOOK)

    def _end(self, scope: CancelScope) -> None:
        if scope in self._scopes:
            scope.cancel()

    async def _listen(self, receive: Receive, scope: CancelScope) -> None:
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        except HTTPException:  # the client sends a body that is too large, which nobody reads
            pass
        scope.cancel()
