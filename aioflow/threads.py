"""The threads of sync steps. They are daemons: a step that blocks its thread for ever keeps no process from ending.

anyio's own worker threads are joined when the interpreter ends, so there it would hang. A step may still call back into
the loop by ``anyio.from_thread``, as in one of those.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextvars import Context, copy_context
from queue import SimpleQueue
from typing import Any, TypeAlias

from anyio import CancelScope

# anyio has no public way to make a thread one of its own; these have been so since 4.0.
from anyio._core._eventloop import claim_worker_thread, get_async_backend, threadlocals

try:  # anyio asks it, if it is there, which library runs here: a step in a thread may start a loop of its own
    from sniffio import current_async_library_cvar  # type: ignore[import-not-found, unused-ignore]

    _library: Any = current_async_library_cvar
except ImportError:
    _library = None

Outcome: TypeAlias = tuple[bool, Any]
#: The scope is for what a step does by from_thread; the engine never cancels it.
_Call: TypeAlias = tuple[Context, Callable[[], Any], asyncio.Future[Outcome], CancelScope]


class Threads:
    """A pool that grows as needed: whoever uses it bounds how many calls it makes at once.

    The mutable state, of the loop alone: the threads that have nothing to do, and whether it is closed.
    """

    def __init__(self) -> None:
        self._idle: list[_Thread] = []
        self._closed = False

    async def run(self, call: Callable[[], Any]) -> Outcome:
        """Call it in a thread, with a copy of the caller's contextvars.

        Whoever is cancelled while he waits leaves the thread alone; it comes back to the pool when the call ends.

        Returns:
            (True, what it returned) or (False, what it raised): a future cannot hold every class of error.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()
        context = copy_context()
        if _library is not None:
            context.run(_library.set, None)
        if self._idle:
            thread = self._idle.pop()
        else:
            thread = _Thread(loop, self._came_back)
            thread.start()
        thread.calls.put((context, call, future, CancelScope()))
        return await future

    def _came_back(self, thread: _Thread, future: asyncio.Future[Outcome], outcome: Outcome) -> None:
        if self._closed:
            thread.calls.put(None)
        else:
            self._idle.append(thread)
        if not future.done():
            future.set_result(outcome)

    def close(self) -> None:
        """End the threads that have nothing to do, and each of the others as soon as its call ends."""
        self._closed = True
        while self._idle:
            self._idle.pop().calls.put(None)


class _Thread(threading.Thread):
    """Makes one call after the other, until it gets None instead of one."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        came_back: Callable[[_Thread, asyncio.Future[Outcome], Outcome], None],
    ) -> None:
        super().__init__(name="aioflow step", daemon=True)
        self.calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._loop = loop
        self._backend = get_async_backend("asyncio")
        self._came_back = came_back

    def run(self) -> None:
        """See threading.Thread."""
        with claim_worker_thread(self._backend, self._loop):
            while (item := self.calls.get()) is not None:
                context, call, future, threadlocals.current_cancel_scope = item
                try:
                    outcome = True, context.run(call)
                except BaseException as error:  # noqa: BLE001 - a step may raise anything, it is the caller's to judge
                    outcome = False, error
                del item, context, call
                try:
                    self._loop.call_soon_threadsafe(self._came_back, self, future, outcome)
                except RuntimeError:  # the loop is closed, nobody waits any more
                    return
                del outcome, future
