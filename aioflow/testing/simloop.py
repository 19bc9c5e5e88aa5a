"""An event loop on virtual time that repeats an execution from its seed, with processes that can be killed.

Time jumps to the next timer when nothing is left to run, so an idle year takes milliseconds. The seed decides in which
order callbacks run that are ready at the same instant: task steps are shuffled; plain callbacks run before them and in
order, as asyncio and anyio rely on that. If nothing can run and there is no timer, ``Deadlock`` is raised at once; if
too many callbacks run without time passing, ``Livelock``.

The tasks that are spawned for a ``Process``, and everything they start, can be paused or killed; once killed, none of
their code runs any more, not even a ``finally`` block.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context, ContextVar, copy_context
from itertools import count
from random import Random  # noqa: TID251 - the seeded source of all chance in a simulation
from typing import Any, Final, TypeVar
from warnings import catch_warnings, simplefilter

from aioflow.clock import SECOND, Clock, Micros
from aioflow.threads import Outcome, Threads

T = TypeVar("T")

#: The longest delay in seconds until a simulated thread begins a call, and then until its caller gets the result.
THREAD_DELAY: Final = 0.005


class Deadlock(RuntimeError):
    """Nothing can run, and there is no timer: a wake-up was lost."""


class Livelock(RuntimeError):
    """Callbacks keep following each other without time passing."""


class Process:
    """A simulated process: tasks, timers and callbacks that are paused or killed together.

    The mutable state: whether it is alive, the callbacks held back while it is paused, and its tasks. They are kept as
    long as the loop lives: if the tasks of a dead process were garbage-collected, their ``finally`` blocks would run.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.held: list[asyncio.Handle] | None = None
        self.tasks: list[asyncio.Task[Any]] = []

    def __repr__(self) -> str:
        return f"<Process {self.name}>"


_PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)


class SimTask(asyncio.Task[T]):
    """A task that hashes by its number, so that sets of tasks are iterated in the same order in each execution."""

    def __init__(self, coroutine: Coroutine[Any, Any, T], number: int, **options: Any) -> None:
        self._number = number  # before super().__init__(), which puts the task into a set
        super().__init__(coroutine, **options)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class SimLoop(asyncio.BaseEventLoop):
    """The loop. It has no files, sockets or threads; its time is virtual.

    Args:
        seed: of ``rng``, which makes all random choices, such as the order of task steps.
        most: how many callbacks may run without time passing.

    The mutable state, beside asyncio's own: the instant, how many callbacks ran since it moved and in all (``steps``),
    and the dead processes.
    """

    def __init__(self, seed: object = 0, most: int = 100_000) -> None:
        super().__init__()
        self.rng = Random(str(seed))  # noqa: S311 - seeded, to be repeatable
        self.steps = 0
        self._most = most
        self._instant = 0.0
        self._still = 0
        self._numbers = count()
        self._dead: list[Process] = []
        self._ready: deque[asyncio.Handle]
        self._scheduled: list[asyncio.TimerHandle]
        self.set_task_factory(self._make_task)  # type: ignore[arg-type]

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self._instant

    async def pause(self, seconds: float) -> None:
        """Let time pass."""
        future: asyncio.Future[None] = self.create_future()
        self.call_later(seconds, _finish, future)
        await future

    # ---- processes

    def spawn(self, process: Process, coroutine: Coroutine[Any, Any, T], name: str | None = None) -> asyncio.Task[T]:
        """Start a task of a process; tasks, timers and callbacks that it creates belong to the process, too."""
        context = copy_context()
        context.run(_PROCESS.set, process)
        return self.create_task(coroutine, name=name, context=context)

    def stop_process(self, process: Process) -> None:
        """Like SIGSTOP: callbacks of the process are held back."""
        if process.held is None:
            process.held = []

    def resume_process(self, process: Process) -> None:
        """Like SIGCONT: the callbacks that were held back run."""
        held, process.held = process.held, None
        self._ready.extend(held or ())

    def kill_process(self, process: Process) -> None:
        """Like SIGKILL: none of its code runs any more."""
        process.alive = False
        process.held = None
        self._dead.append(process)

    # ---- threads

    async def in_thread(self, call: Callable[[], T]) -> T:
        """Return ``call()`` as if a thread ran it: it begins after a random delay, and its result arrives after one.

        If the caller is cancelled, the call runs nevertheless, and its result is dropped.
        """
        future: asyncio.Future[T] = self.create_future()

        def work() -> None:
            try:
                value = call()
            except BaseException as error:  # noqa: BLE001 - raised to the caller
                self.call_later(self.rng.uniform(0, THREAD_DELAY), _fail, future, error)
            else:
                self.call_later(self.rng.uniform(0, THREAD_DELAY), _finish, future, value)

        self.call_later(self.rng.uniform(0, THREAD_DELAY), work)
        return await future

    # ---- closing

    def dispose(self) -> None:
        """Close the loop, and the coroutines of all unfinished tasks; errors that they raise are suppressed."""
        ended: dict[asyncio.Task[Any], None] = {}
        asyncio._set_running_loop(self)  # noqa: SLF001 - closed coroutines may ask for it
        with catch_warnings():
            simplefilter("ignore")  # warnings that coroutines were never awaited
            while left := [
                task for task in asyncio.all_tasks(self) if task not in ended
            ]:  # closing them may start others
                for task in sorted(left, key=hash):
                    ended[task] = None
                    task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001
                    for _ in range(100):  # it may go on after GeneratorExit
                        with suppress(BaseException):
                            task.get_coro().close()
                            break
        asyncio._set_running_loop(None)  # noqa: SLF001
        self.close()

    # ---- what asyncio requires of a loop

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T], context: Context | None = None, **more: Any
    ) -> SimTask[T]:  # fmt: skip
        process = _PROCESS.get() if context is None else context.get(_PROCESS)
        task = SimTask(coroutine, next(self._numbers), loop=loop, context=context, **more)
        if process is not None:
            if len(process.tasks) > 500:
                process.tasks = [other for other in process.tasks if not other.done()]
            process.tasks.append(task)
        return task

    def _run_once(self) -> None:
        """Run the callbacks that are ready; if there are none, first let time jump to the next timer."""
        scheduled = self._scheduled
        while scheduled and scheduled[0]._cancelled:  # noqa: SLF001
            self._unschedule()
        if not self._ready and not self._stopping:  # type: ignore[attr-defined]
            if not scheduled:
                raise Deadlock(f"Nothing can run any more, at {self._instant:.6f} s.")
            # Set to the timer's instant: adding a small difference to a float may round to no change.
            self._instant = max(self._instant, scheduled[0].when())
            self._still = 0
        while scheduled and scheduled[0].when() <= self._instant:
            self._ready.append(self._unschedule())
        batch = self._in_order()
        self._still += len(batch)
        self.steps += len(batch)
        if self._still > self._most:
            raise Livelock(f"{self._still} callbacks, and time stands still at {self._instant:.6f} s.")
        for handle in batch:
            if handle._cancelled:  # noqa: SLF001
                continue
            process: Process | None = handle._context.get(_PROCESS)  # type: ignore[attr-defined]  # noqa: SLF001
            if process is not None and not process.alive:
                continue
            if process is not None and process.held is not None:
                process.held.append(handle)
                continue
            handle._run()  # noqa: SLF001

    def _unschedule(self) -> asyncio.TimerHandle:
        handle = heapq.heappop(self._scheduled)
        handle._scheduled = False  # type: ignore[attr-defined]  # noqa: SLF001
        return handle

    def _in_order(self) -> list[asyncio.Handle]:
        """The callbacks that are ready now: plain ones in their order, then task steps in random order."""
        batch = list(self._ready)
        self._ready.clear()
        if len(batch) < 2:
            return batch
        steps = [handle for handle in batch if _is_step(handle)]
        if len(steps) < 2:
            return batch
        others = [handle for handle in batch if not _is_step(handle)]
        self.rng.shuffle(steps)
        return others + steps

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Do nothing: a cancelled timer leaves the heap when it gets to its head."""

    def _process_events(self, event_list: object) -> None:
        """Do nothing: there is no I/O."""

    def _write_to_self(self) -> None:
        """Do nothing: the loop never sleeps in a selector that would have to be woken."""


class SimClock(Clock):
    """The clock of a process on a SimLoop; it may be wrong.

    Args:
        loop: the loop whose time it shows.
        epoch: the instant at which the loop's time was 0.
        skew: how far the clock is ahead; may be changed at any time.
    """

    def __init__(self, loop: SimLoop, epoch: Micros, skew: Micros = 0) -> None:
        self._loop = loop
        self._epoch = epoch
        self.skew = skew

    def micros(self) -> Micros:
        """The present instant by this clock, including its skew."""
        return self._epoch + self.monotonic() + self.skew

    def monotonic(self) -> Micros:
        """The loop's time, without the skew."""
        return round(self._loop.time() * SECOND)


@contextmanager
def inline_threads(loop: SimLoop) -> Iterator[None]:
    """In this block, steps that would run in a thread run on the loop, with the delays of ``in_thread``."""

    async def inline(_: Threads, call: Callable[[], Any]) -> Outcome:
        def outcome() -> Outcome:
            try:
                return True, call()
            except BaseException as error:  # noqa: BLE001 - a step may raise anything, as in a thread
                return False, error

        return await loop.in_thread(outcome)

    run = Threads.run
    Threads.run = inline  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Threads.run = run  # type: ignore[method-assign]


def _is_step(handle: asyncio.Handle) -> bool:
    callback: Any = handle._callback  # type: ignore[attr-defined]  # noqa: SLF001
    return (
        isinstance(getattr(callback, "__self__", None), asyncio.Task)
        or type(callback).__name__ == "TaskStepMethWrapper"
    )


def _finish(future: asyncio.Future[Any], value: Any = None) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
