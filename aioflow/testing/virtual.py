"""Virtual time: a clock that stands still until it is moved, and objects that tell whether anything is going on.

Virtual is what uses the engine's clock: deadlines, the timeouts of waits for runs, the pauses of the engine's loops.
Real is how long a step or a call of the store takes, and so a step's timeout.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from inspect import iscoroutinefunction
from typing import Any

from aioflow.clock import LAST_INSTANT, SECOND, Clock, Micros
from aioflow.context import run_on
from aioflow.store import Store

#: Real time.
REAL = Clock()


class Activity:
    """Counts and announces activity of the engine.

    The mutable state: the count, and the asyncio.Event that is set when it rises next.
    """

    def __init__(self) -> None:
        self.count = 0
        self._next = asyncio.Event()

    def tell(self) -> None:
        """Something happened: raise the count, and end the calls of ``wait``."""
        self.count += 1
        event, self._next = self._next, asyncio.Event()
        event.set()

    async def wait(self, timeout: Micros | None) -> bool:
        """Wait for ``tell``, at most ``timeout`` microseconds of real time. Return whether it was called."""
        return await REAL.wait(self._next, timeout)


class Parked:
    """A loop of the engine that has nothing to do until its event is set, or the instant ``until`` comes."""

    __slots__ = ("event", "limit", "until")

    def __init__(self, event: asyncio.Event, until: Micros) -> None:
        self.event = event
        self.until = until
        self.limit = asyncio.timeout(None)


class Waiter:
    """A wait for a run. ``until``: its virtual deadline, or None; ``run_id``: the run whose step waits, or None."""

    __slots__ = ("ended", "error", "limit", "run_id", "until")

    def __init__(self, until: Micros | None, run_id: int | None) -> None:
        self.until = until
        self.run_id = run_id
        self.limit = asyncio.timeout(None)
        self.error: Exception | None = None
        self.ended = False

    def end(self, error: Exception | None = None) -> None:
        """End the wait: the error, or else TimeoutError, is raised in it."""
        if not self.ended:
            self.ended = True
            self.error = error
            self.limit.reschedule(0.0)  # long past


class VirtualClock(Clock):
    """Time that only ``move`` moves.

    The mutable state: the instant, the engine's loops (task -> where it is parked, None while it works), and the waits
    for runs.

    Args:
        now: the instant at which it begins.
        activity: told when time moves, a loop parks, or a wait for a run begins or ends.
    """

    def __init__(self, now: Micros, activity: Activity) -> None:
        self._now = now
        self._activity = activity
        self._loops: dict[asyncio.Task[Any], Parked | None] = {}
        self.waiters: dict[Waiter, None] = {}

    def micros(self) -> Micros:
        """The present instant."""
        return self._now

    def move(self, to: Micros) -> None:
        """Set the present instant; loops that were parked until then continue."""
        assert to >= self._now
        self._now = to
        for parked in self._loops.values():
            if parked is not None and parked.until <= to and not parked.limit.expired():
                parked.limit.reschedule(0.0)
        self._activity.tell()

    def expire(self) -> bool:
        """End the waits that have timed out; return whether there were any."""
        over = [
            waiter
            for waiter in self.waiters
            if waiter.until is not None and waiter.until <= self._now and not waiter.ended
        ]
        for waiter in over:
            waiter.end()
        return bool(over)

    @property
    def parked(self) -> bool:
        """Whether all loops of the engine have nothing to do now."""
        for task in [task for task in self._loops if task.done()]:
            del self._loops[task]
        return all(
            parked is not None and not parked.event.is_set() and parked.until > self._now
            for parked in self._loops.values()
        )

    async def wait(self, event: asyncio.Event, timeout: Micros | None = None) -> bool:
        """Wait until the event is set, or time has moved by ``timeout``. True if it is set."""
        if timeout is None or timeout <= 0 or event.is_set():
            return await super().wait(event, timeout)
        task = asyncio.current_task()
        assert task is not None
        parked = self._loops[task] = Parked(event, self._now + timeout)
        self._activity.tell()
        try:
            async with parked.limit:
                await event.wait()
        except TimeoutError:
            pass
        finally:
            self._loops[task] = None
        return event.is_set()

    @asynccontextmanager
    async def limit(self, seconds: float | None) -> AsyncGenerator[None]:
        """Limit the block to this much virtual time; then it ends with TimeoutError. While it runs, time may jump."""
        until = None
        if seconds is not None:
            until = self._now + round(min(seconds, (LAST_INSTANT - self._now) / SECOND) * SECOND)
        waiter = Waiter(until, run_on(self))
        self.waiters[waiter] = None
        self._activity.tell()
        try:
            async with waiter.limit:
                yield
        except TimeoutError:
            if waiter.error is not None:
                raise waiter.error from None
            raise
        finally:
            del self.waiters[waiter]
            self._activity.tell()


class Counted:
    """A store that counts its calls under way: while there is one, something can still happen without time passing.

    Args:
        store: the store to which every call is passed on.
        activity: told when a call has ended.
    """

    def __init__(self, store: Store, activity: Activity) -> None:
        self.bare = store
        self._activity = activity
        self.under_way = 0

    def __getattr__(self, name: str) -> Any:
        member = getattr(self.bare, name)
        if name == "hint" or not iscoroutinefunction(member):  # hint() is polled all the time
            return member
        counted = self._count(member)
        setattr(self, name, counted)
        return counted

    def _count(self, verb: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def counted(*args: Any, **keywords: Any) -> Any:
            self.under_way += 1
            try:
                return await verb(*args, **keywords)
            finally:
                self.under_way -= 1
                self._activity.tell()

        return counted
