"""Tasks that run steps, one after another: a task is kept for other runs' steps as long as it is clean.

To make a task, a context and three handles of the loop for every run costs more than a small step does. So what is
ready to go on queues up, and a task works it off; should a step have to wait, another task goes on with the rest. At
most ``_TURN`` steps are begun in one turn of the loop, so that everybody else comes to his.

A task is clean if the step left its contextvars as they were and no cancel scope open, and if nobody cancelled it, waits
for its end, or has kept it: to cancel it later, as the key of what belongs to it, or in a traceback that the collector
has yet to come to. One that is not ends, and with it all that the step has left there. A cancellation that comes from what a step has left behind, a timer say, is refused by all
tasks but its own: it was not meant for the run that they serve now.

The mutable state of ``Pool``: the queue, the tasks that have nothing to do, and whether one of them is on its way.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any, Final, Protocol

# What scopes a task is in, anyio tells nobody; to find out by entering one more would cost as much as a small step.
from anyio._backends._asyncio import _task_states

from aioflow.context import CurrentRun, current_run
from aioflow.tasks import TaskSet

#: How many steps are begun in one turn of the loop.
_TURN: Final = 32
#: How many tasks may have nothing to do.
_SPARE: Final = 4
#: How many references there are to an object, where Python counts them.
_references: Final[Callable[[object], int]] = getattr(sys, "getrefcount", lambda _: 0)


class Job(Protocol):
    """What a task works at."""

    #: What its step is told of its run, while it runs.
    current: CurrentRun | None

    async def advance(self, task: asyncio.Task[None]) -> bool:
        """Go on by one step. Never raises an Exception. Whether it leaves the task as clean as it was."""
        ...


class PoolTask(asyncio.Task[None]):
    """A task that is kept for others.

    ``job``: what it works at; ``left``: the step that it was left behind with; ``touched``: whether it is not to be kept.
    """

    job: Job | None = None
    left: CurrentRun | None = None
    touched = False

    def cancel(self, msg: Any | None = None) -> bool:
        """See asyncio.Task. Refused to what a step has left behind that this task does not serve."""
        by = current_run()
        serves = self.left if self.job is None else self.job.current
        if by is not None and by is not serves and by.closed:
            return False
        return self.interrupt(msg)

    def add_done_callback(self, fn: Any, /, *, context: Context | None = None) -> None:
        """See asyncio.Task. What waits for the end of the task that runs a step is to hear of it."""
        self.touched = self.touched or self.job is not None
        super().add_done_callback(fn, context=context)

    def interrupt(self, msg: Any | None = None) -> bool:
        """Cancel it, whatever code asks for that."""
        self.touched = True
        return super().cancel(msg)


def interrupt(task: asyncio.Task[None]) -> None:
    """Cancel a task of a pool: the engine does, in the context of whatever code has led to that."""
    if isinstance(task, PoolTask):
        task.interrupt()
    else:
        task.cancel()


class Pool:
    """Runs jobs.

    Args:
        tasks: the set that its tasks belong to.
        context: the contextvars that each task begins with a copy of.
        closed: whether nothing is to be begun any more, as the event loop is being closed.
    """

    def __init__(self, tasks: TaskSet, context: Context, closed: Callable[[], bool]) -> None:
        self._tasks = tasks
        self._context = context
        self._closed = closed
        self._queue: deque[Job] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._called = False
        self._ending = False

    def put(self, job: Job) -> None:
        """Go on with this one as soon as may be."""
        self._queue.append(job)
        if not self._called:
            self._call()

    def close(self) -> None:
        """Let the tasks end when nothing is left to do."""
        self._ending = True
        for idle in self._idle:
            if not idle.done():
                idle.set_result(None)

    def leave(self, task: asyncio.Task[None]) -> None:
        """Wait for this task no more: its step does not stop."""
        self._tasks.leave(task)
        if isinstance(task, PoolTask) and task.job is not None:
            task.left, task.job = task.job.current, None

    def _call(self) -> None:
        """Let a task look at the queue in the next turn of the loop."""
        self._called = True
        while self._idle:
            idle = self._idle.pop()
            if not idle.done():
                idle.set_result(None)
                return
        try:
            task = self._tasks.spawn(self._work(), name="aioflow steps", context=self._context.copy(), kind=PoolTask)
        except BaseException:  # whoever makes this loop's tasks has failed: the next one is to be asked for
            self._called = False
            raise
        task.add_done_callback(self._ended)

    async def _work(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        kept = task if isinstance(task, PoolTask) else None
        queue, ours = self._queue, _references(task)
        while True:
            self._called = False
            for _ in range(_TURN):
                if not queue:
                    break
                job = queue.popleft()
                if queue and not self._called:
                    self._call()
                if kept is None:  # somebody else makes this loop's tasks: what is left on one cannot be known
                    await job.advance(task)
                    return
                kept.job = job
                clean = await job.advance(task)
                kept.job = None
                del job
                if kept.touched or not clean or _references(task) > ours or _in_scope(task):
                    return
            if self._ending or len(self._idle) >= _SPARE:
                return
            idle = task.get_loop().create_future()
            self._idle.append(idle)
            await idle

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Somebody has to go on with the rest, also if the task was ended before it began."""
        if task.cancelled():
            self._called = False
        if self._queue and not self._called and not self._closed():
            self._call()


def _in_scope(task: asyncio.Task[None]) -> bool:
    """Whether a cancel scope was entered in the task and not left."""
    state = _task_states.get(task)
    return state is not None and state.cancel_scope is not None
