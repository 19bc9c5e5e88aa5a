"""Time: the only module that reads it or sleeps.

Inside aioflow an instant is a whole number of microseconds since 1970-01-01T00:00Z (``Micros``): exact, ordered,
small, and the same in every store. Datetimes appear at the public edge only, always aware, always UTC.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeAlias

#: Microseconds: since the epoch for an instant, a plain count for a duration.
Micros: TypeAlias = int

SECOND: Micros = 1_000_000
#: What ``Clock.limit`` gives for None: it need not be entered.
UNLIMITED = nullcontext()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FIRST_DATETIME: Micros = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
_LAST_DATETIME: Micros = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
#: The last instant that a datetime can express, less a day: room for every time zone.
LAST_INSTANT: Micros = (datetime(9999, 12, 31, tzinfo=UTC) - _EPOCH) // _MICROSECOND


class Clock:
    """The machine's clock, and the way to wait for it. Tests put a virtual one in its place."""

    def now(self) -> datetime:
        """The present instant, aware, UTC."""
        return to_datetime(self.micros())

    def micros(self) -> Micros:
        """The present instant in microseconds since the epoch."""
        return time.time_ns() // 1000

    def monotonic(self) -> Micros:
        """A count that never goes back, for durations."""
        return time.perf_counter_ns() // 1000

    async def wait(self, event: asyncio.Event, timeout: Micros | None = None) -> bool:
        """Wait until the event is set, at most ``timeout`` microseconds. True if it is set."""
        if timeout is None:
            await event.wait()
            return True
        if event.is_set() or timeout <= 0:
            await asyncio.sleep(0)
            return event.is_set()
        try:
            async with asyncio.timeout(timeout / SECOND):
                await event.wait()
        except TimeoutError:
            pass
        return event.is_set()

    def limit(self, seconds: float | None) -> AbstractAsyncContextManager[object]:
        """End a block that takes longer, with TimeoutError: ``async with clock.limit(5): ...``. None never ends it."""
        return UNLIMITED if seconds is None else asyncio.timeout(seconds)

    async def sleep(self, duration: Micros) -> None:
        """Wait for ``duration`` microseconds of real time: for what happens outside of the engine."""
        await asyncio.sleep(duration / SECOND)


class HasClock(Protocol):
    """A store that has a clock of its own."""

    @property
    def clock_offset(self) -> Micros:
        """How far its clock is ahead of the machine's."""
        ...


class StoreClock(Clock):
    """The clock of a store that several machines share: all of them use it, however wrong their own clocks are.

    Args:
        store: tells how far its clock is ahead of the machine's, as last measured.
    """

    def __init__(self, store: HasClock) -> None:
        self._store = store

    def micros(self) -> Micros:
        """The present instant by the store's clock."""
        return time.time_ns() // 1000 + self._store.clock_offset


def to_datetime(micros: Micros) -> datetime:
    """An instant as an aware UTC datetime."""
    return _EPOCH + timedelta(microseconds=micros)


def to_micros(instant: datetime, what: str = "a datetime") -> Micros:
    """An aware datetime as an instant.

    Raises:
        ValueError: the datetime is naive, or in UTC before the year 1 or after 9999; ``what`` names it in the message.
    """
    if instant.tzinfo is None or instant.utcoffset() is None:
        raise ValueError(
            f"{what} must be aware, {instant.isoformat()} has no time zone. "
            "Write datetime(..., tzinfo=UTC) or datetime.now(UTC)."
        )
    micros = (instant - _EPOCH) // _MICROSECOND
    if not _FIRST_DATETIME <= micros <= _LAST_DATETIME:  # no datetime could show it
        raise ValueError(f"{what} must be within the years 1 to 9999 in UTC, got {instant.isoformat()}.")
    return micros


def duration_micros(duration: timedelta, what: str = "a duration") -> Micros:
    """A duration in microseconds.

    Raises:
        ValueError: the duration is negative; ``what`` names it in the message.
    """
    micros = duration // _MICROSECOND
    if micros < 0:
        raise ValueError(f"{what} must not be negative, got {duration}.")
    return micros


def seconds_of(timeout: object) -> float | None:
    """A timeout as calls take it: seconds or a timedelta, or None for ever.

    Raises:
        TypeError, ValueError: it is neither, or negative.
    """
    if timeout is None:
        return None
    if isinstance(timeout, timedelta):
        timeout = timeout.total_seconds()
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"timeout takes seconds or a timedelta, got {type(timeout).__name__}.")
    if not timeout >= 0:
        raise ValueError(f"timeout must not be negative, got {timeout}.")
    return float(timeout)
