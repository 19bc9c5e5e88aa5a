"""Tasks that run steps, one after another: a task is kept for other runs' steps as long as it is clean.

To make a task, a context and three handles of the loop for every run costs more than a small step does. So jobs that
are ready queue up, and a task works through the queue; if a step has to wait, another task goes on with the rest. A
task begins at most ``_TURN`` steps in one turn of the loop, so that the loop's other callbacks get their turn.

A task is clean if the step left its contextvars as they were and no cancel scope open, and if nobody has cancelled it,
waits for its end, or holds a reference to it: to cancel it later, as a dictionary key, or in a traceback that the
garbage collector has not reached. A task that is not clean ends, and with it all that the step has left there. If
something that a step left behind, such as a timer, cancels a task that no longer serves that step, the task refuses the
cancellation: it was not meant for the run that the task serves now.

The mutable state of ``Pool``: the queue, the idle tasks, and whether a task has been called to the queue (``_called``).
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any, Final, Protocol

# anyio tells nobody which scopes a task is in; to find out by entering one more would cost as much as a small step.
from anyio._backends._asyncio import _task_states

from aioflow.context import CurrentRun, current_run
from aioflow.tasks import TaskSet

_state_of: Final = _task_states.get
#: How many steps a task begins in one turn of the loop.
_TURN: Final = 32
#: How many idle tasks are kept.
_SPARE: Final = 4
#: The number of references to an object; always 0 where Python does not count them.
_references: Final[Callable[[object], int]] = getattr(sys, "getrefcount", lambda _: 0)


class Job(Protocol):
    """What a task works at."""

    #: What ``get_run()`` gives its step, while that runs.
    current: CurrentRun | None

    async def advance(self, task: asyncio.Task[None]) -> bool:
        """Execute the next step, and return whether the task is as clean as before. Never raises an Exception."""
        ...


class PoolTask(asyncio.Task[None]):
    """A task that is kept for further jobs.

    ``job``: what it works at; ``left``: the step that it was left behind with; ``touched``: it must not be kept.
    """

    __slots__ = ("job", "left", "touched")

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.job: Job | None = None
        self.left: CurrentRun | None = None
        self.touched = False
        super().__init__(*arguments, **options)

    def cancel(self, msg: Any | None = None) -> bool:
        """See asyncio.Task. Refused to what was left behind by a step that this task does not serve."""
        by = current_run()
        serves = self.left if self.job is None else self.job.current
        if by is not None and by is not serves and by.closed:
            return False
        return self.interrupt(msg)

    def add_done_callback(self, fn: Any, /, *, context: Context | None = None) -> None:
        """See asyncio.Task. A task whose end is waited for while it runs a step is not kept, so that it does end."""
        self.touched = self.touched or self.job is not None
        super().add_done_callback(fn, context=context)

    def interrupt(self, msg: Any | None = None) -> bool:
        """Cancel it, whatever code asks for it."""
        self.touched = True
        return super().cancel(msg)


def interrupt(task: asyncio.Task[None]) -> None:
    """Cancel a task on the engine's behalf, in whatever context that is called."""
    if isinstance(task, PoolTask):
        task.interrupt()
    else:
        task.cancel()


class Pool:
    """Runs jobs.

    Args:
        tasks: the set that its tasks belong to.
        context: the contextvars of which each task gets a copy.
        closed: tells whether the event loop is being closed, so that no task is to be started any more.
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
        """Queue a job: its next step runs as soon as possible."""
        self._queue.append(job)
        if not self._called:
            self._call()

    def close(self) -> None:
        """Let the tasks end once the queue is empty."""
        self._ending = True
        for idle in self._idle:
            if not idle.done():
                idle.set_result(None)

    def leave(self, task: asyncio.Task[None]) -> None:
        """Stop waiting for this task, whose step does not stop."""
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
        except BaseException:  # the loop's task factory has failed: let the next job ask for a task again
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
                if kept is None:  # made by the loop's own task factory: what a step leaves on it cannot be known
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
        """A task has ended, maybe before it began: if jobs are still queued, call another."""
        if task.cancelled():
            self._called = False
        if self._queue and not self._called and not self._closed():
            self._call()


def _in_scope(task: asyncio.Task[None]) -> bool:
    """Whether a cancel scope was entered in the task and not left."""
    state = _state_of(task)
    return state is not None and state.cancel_scope is not None
