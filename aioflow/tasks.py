"""A group of tasks that can leave a member behind.

asyncio's and anyio's task groups wait for every member, for ever. A step that swallows its cancellation would keep
an engine from ending, so the engine's tasks live here: every task of aioflow is created by this module.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from typing import Any

from aioflow import telemetry


class TaskSet:
    """Tasks that are started together and ended together.

    The mutable state: the set of those that run. A task that raises is reported, it does not end the others.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(
        self, coroutine: Coroutine[Any, Any, None], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[None]:
        """Start a task in the set. ``context``: its contextvars; a copy of the caller's if not given."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def leave(self, task: asyncio.Task[Any]) -> None:
        """The set waits for this one no more."""
        self._tasks.discard(task)

    async def cancel(self, patience: float) -> int:
        """Cancel all, wait up to ``patience`` seconds for them to end, leave the rest: how many that were."""
        for task in list(self._tasks):
            task.cancel()
        return await self.wait(patience)

    async def wait(self, patience: float) -> int:
        """Wait up to ``patience`` seconds for all to end: how many have not."""
        loop = asyncio.get_running_loop()
        end = loop.time() + patience
        while self._tasks and (left := end - loop.time()) > 0:  # members may start others
            await asyncio.wait(set(self._tasks), timeout=left)
        return len(self._tasks)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            trace = telemetry.plain_traceback(error)
            telemetry.fault("a bug in aioflow: a task ended with an error", task=task.get_name(), exception=trace)
