"""The threads of sync steps. They are daemons: a step that blocks its thread for ever does not keep the process alive.

anyio's own worker threads would, as the interpreter joins them when it exits. As in one of those, a step may call back
into the loop by ``anyio.from_thread``.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextvars import Context, copy_context
from queue import SimpleQueue
from typing import Any, TypeAlias

from anyio import CancelScope

# anyio has no public way to make a thread one of its worker threads; these names have existed since 4.0.
from anyio._core._eventloop import claim_worker_thread, get_async_backend, threadlocals

try:  # if it is installed, anyio asks it which library runs here: a step in a thread may start a loop of its own
    from sniffio import current_async_library_cvar  # type: ignore[import-not-found, unused-ignore]

    _library: Any = current_async_library_cvar
except ImportError:
    _library = None

Outcome: TypeAlias = tuple[bool, Any]
#: The scope is the one that ``anyio.from_thread`` looks at; the engine never cancels it.
_Call: TypeAlias = tuple[Context, Callable[[], Any], asyncio.Future[Outcome], CancelScope]


class Threads:
    """A pool of threads that grows as needed: its user limits how many calls are made at once.

    The mutable state, changed only on the event loop: the idle threads, and whether the pool is closed.
    """

    def __init__(self) -> None:
        self._idle: list[_Thread] = []
        self._closed = False

    async def run(self, call: Callable[[], Any]) -> Outcome:
        """Make the call in a thread, with a copy of the caller's contextvars.

        If the caller is cancelled meanwhile, the call goes on, and the thread returns to the pool when it ends.

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
        """End the idle threads, and each of the others as soon as its call ends."""
        self._closed = True
        while self._idle:
            self._idle.pop().calls.put(None)


class _Thread(threading.Thread):
    """Takes calls from its queue and makes them, until it gets None."""

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
                except BaseException as error:  # noqa: BLE001 - a step may raise anything: the caller handles it
                    outcome = False, error
                del item, context, call
                try:
                    self._loop.call_soon_threadsafe(self._came_back, self, future, outcome)
                except RuntimeError:  # the loop is closed, so nobody waits for the outcome
                    return
                del outcome, future
