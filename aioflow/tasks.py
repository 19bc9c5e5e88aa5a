"""A group of tasks that need not wait for every member.

asyncio's and anyio's task groups wait for every member, for ever. A step that swallows its cancellation would then keep
the engine from closing, so the engine has its own: every task of aioflow is created by this module.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar

from anyio import CancelScope

from aioflow import telemetry
from aioflow.context import in_step

T = TypeVar("T")
#: Seconds until a kept task that has ended is started again.
_MOMENT = 0.05


class _Kept(asyncio.Task[None]):
    """A task that is to last, and knows whether a step has cancelled it (``assaulted``)."""

    assaulted = False

    def cancel(self, msg: Any | None = None) -> bool:
        """See asyncio.Task."""
        self.assaulted = self.assaulted or in_step()
        return super().cancel(msg)


def is_assaulted(task: asyncio.Task[Any] | None) -> bool:
    """Whether a step has cancelled this task, so that another is started in its place."""
    return isinstance(task, _Kept) and task.assaulted


def alone(coroutine: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
    """A task that is in no set: its caller waits for it with ``finish``, which raises its error."""
    return asyncio.get_running_loop().create_task(coroutine, name=name)


async def finish(task: asyncio.Task[T], *, cancel: bool = False) -> T:
    """Wait until a task has ended. If the caller is cancelled meanwhile, CancelledError is raised only then.

    Args:
        task: what must not be left half done.
        cancel: whether to cancel the task when the caller is cancelled: only once, so as not to cut its clean-up short.

    Returns:
        What the task returns.

    Raises:
        What the task raises; else CancelledError, once it has ended, if the caller was cancelled.
    """
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            # anyio's scopes would cancel the caller again at each turn of the loop.
            with CancelScope(shield=cancelled is not None or not cancel):
                await asyncio.shield(task)
        except asyncio.CancelledError as again:
            if cancelled is not None and task.cancelled():
                break  # this error is the task's own, not another cancellation of the caller
            if cancel and cancelled is None:
                task.cancel()
            cancelled = again
    if cancelled is None:
        return task.result()
    if not task.cancelled():
        task.result()  # its error comes first
    raise cancelled  # the very error that cancelled the caller, by which anyio's scopes recognise it


class TaskSet:
    """Tasks that are ended together.

    The mutable state: the set of those that run, and whether they are being ended. If one raises, that is logged, and
    the others go on.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ending = False

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(
        self,
        coroutine: Coroutine[Any, Any, None],
        *,
        name: str | None = None,
        context: Context | None = None,
        kind: type[asyncio.Task[None]] = asyncio.Task,
    ) -> asyncio.Task[None]:
        """Start a task in the set.

        Args:
            coroutine: what it runs.
            name: its name.
            context: its contextvars; a copy of the caller's if not given.
            kind: its class, unless the loop has a task factory, which makes all tasks but those of ``keep``.
        """
        loop = asyncio.get_running_loop()
        if kind is _Kept or (kind is not asyncio.Task and loop.get_task_factory() is None):
            task = kind(coroutine, loop=loop, name=name, context=context)
        else:
            task = loop.create_task(coroutine, name=name, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def keep(self, make: Callable[[], Coroutine[Any, Any, None]], *, name: str) -> None:
        """Start a task that lasts until ``cancel``, or until it returns.

        If it raises, or a step cancels it, as a step may that cancels every task it finds, another is started. If it is
        cancelled by anything else, the event loop is being closed.
        """
        task = self.spawn(make(), name=name, kind=_Kept)
        task.add_done_callback(lambda task: self._begin_again(task, make))

    def _begin_again(self, task: asyncio.Task[None], make: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if self._ending or not (is_assaulted(task) if task.cancelled() else task.exception()):
            return

        def begin() -> None:
            if not self._ending:
                telemetry.fault("a task of the engine ended unexpectedly, it is started again", task=name)
                self.keep(make, name=name)

        name = task.get_name()
        task.get_loop().call_later(_MOMENT, begin)

    def leave(self, task: asyncio.Task[Any]) -> None:
        """Stop waiting for this task."""
        self._tasks.discard(task)

    async def cancel(self, patience: float) -> int:
        """Cancel all tasks for good, wait up to ``patience`` seconds for them, and return how many have not ended."""
        self._ending = True
        for task in list(self._tasks):
            task.cancel()
        return await self.wait(patience)

    async def wait(self, patience: float) -> int:
        """Wait up to ``patience`` seconds for all tasks to end, and return how many have not."""
        loop = asyncio.get_running_loop()
        end = loop.time() + patience
        while self._tasks and (left := end - loop.time()) > 0:  # tasks of the set may start others
            await asyncio.wait(set(self._tasks), timeout=left)
        return len(self._tasks)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            trace = telemetry.plain_traceback(error)
            telemetry.fault("a bug in aioflow: a task ended with an error", task=task.get_name(), exception=trace)
