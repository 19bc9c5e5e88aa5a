"""The end of the server: streams and long polls are to end when it begins, for the server waits for them.

ASGI tells an app of the end only after all requests have ended. uvicorn, which catches the signals itself, says it
before: its handler of SIGTERM is a method of the server, whose ``should_exit`` is set. Under a server that shows
nothing of the kind, what is bounded in time ends in its time.
"""

from __future__ import annotations

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


def server_exits() -> bool:
    """Whether the server that runs this app has been told to end."""
    for number in (signal.SIGTERM, signal.SIGINT):
        server = getattr(signal.getsignal(number), "__self__", None)
        if getattr(server, "should_exit", False) is True:
            return True
    return False


class Exits:
    """Ends what waits when its time is over, its client has gone, or the server ends.

    The mutable state: the scopes of those who wait now, the task that looks at the server while there are any, and a
    task for each that listens to its client.
    """

    def __init__(self) -> None:
        self._clock = Clock()
        self._scopes: dict[CancelScope, None] = {}
        self._looking = TaskSet()
        self._listening = TaskSet()

    @contextmanager
    def bounded(self, seconds: float, receive: Receive) -> Generator[CancelScope]:
        """A block that ends early, and quietly, for one of these reasons.

        Args:
            seconds: how long it may take.
            receive: where the client is heard; whose body has been read, as far as it matters.
        """
        with move_on_after(seconds) as scope:
            self._scopes[scope] = None
            if not len(self._looking):
                self._looking.spawn(self._look(), name="aioflow http exit")
            listener = self._listening.spawn(self._listen(receive, scope), name="aioflow http client")
            try:
                yield scope
            finally:
                self._scopes.pop(scope, None)
                listener.cancel()

    async def _look(self) -> None:
        while self._scopes:
            if server_exits():
                for scope in list(self._scopes):
                    scope.cancel()
            await self._clock.sleep(_LOOK)

    async def _listen(self, receive: Receive, scope: CancelScope) -> None:
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        except HTTPException:  # it sends more than it may, into the void
            pass
        scope.cancel()
