"""Instants are whole microseconds and convert exactly in both directions; waits end by the event or the timeout."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioflow.clock import LAST_INSTANT, SECOND, Clock, duration_micros, to_datetime, to_micros

FIRST_INSTANT = to_micros(datetime.min.replace(tzinfo=UTC))
DAY = 24 * 60 * 60 * SECOND


@pytest.mark.parametrize(
    ("instant", "micros"),
    [
        (datetime(1970, 1, 1, tzinfo=UTC), 0),
        (datetime(1970, 1, 1, 0, 0, 1, 1, tzinfo=UTC), 1_000_001),
        (datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), -1),
        (datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC), 1_000_000_000_000_000),
        (datetime(9999, 12, 31, tzinfo=UTC), LAST_INSTANT),
        (datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), LAST_INSTANT + DAY - 1),
        (datetime(1, 1, 1, tzinfo=UTC), -62_135_596_800_000_000),
    ],
    ids=str,
)
def test_an_instant_is_microseconds_since_1970(instant: datetime, micros: int) -> None:
    """Known instants have known counts, also before the epoch and at the end of the year 9999."""
    assert to_micros(instant) == micros
    assert to_datetime(micros) == instant


@given(st.datetimes(timezones=st.just(UTC)))
def test_an_instant_survives_the_way_there_and_back(instant: datetime) -> None:
    """No datetime loses a microsecond, however far away it is."""
    assert to_datetime(to_micros(instant)) == instant


@given(st.integers(FIRST_INSTANT, LAST_INSTANT + DAY - 1))
def test_a_count_survives_the_way_there_and_back(micros: int) -> None:
    """No count loses a microsecond, and what comes back is UTC."""
    instant = to_datetime(micros)
    assert to_micros(instant) == micros
    assert instant.tzinfo is UTC


@given(st.integers(FIRST_INSTANT + DAY, LAST_INSTANT), st.integers(-1439, 1439))
def test_a_time_zone_changes_the_clock_and_not_the_instant(micros: int, minutes: int) -> None:
    """The same instant in any time zone converts to the same count."""
    assert to_micros(to_datetime(micros).astimezone(timezone(timedelta(minutes=minutes)))) == micros


def test_the_last_instant_can_be_told_in_every_time_zone() -> None:
    """LAST_INSTANT has a local time in every time zone."""
    for hours in (-23, 23):
        assert to_micros(to_datetime(LAST_INSTANT).astimezone(timezone(timedelta(hours=hours)))) == LAST_INSTANT


@pytest.mark.parametrize(
    "instant",
    [
        datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14))),
        datetime(1, 1, 1, tzinfo=timezone(timedelta(minutes=1))),
        datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone(timedelta(hours=-14))),
    ],
)
def test_an_instant_out_of_range_in_utc_is_refused(instant: datetime) -> None:
    """An aware datetime that is out of range in UTC is a ValueError that names the argument."""
    with pytest.raises(ValueError, match=r"^at= must be within the years 1 to 9999 in UTC, got .*[+-]\d\d:\d\d\.$"):
        to_micros(instant, "at=")


class Nowhere(tzinfo):
    """A time zone without an offset: a datetime with it counts as naive."""

    def utcoffset(self, _: datetime | None) -> None:
        return None

    def tzname(self, _: datetime | None) -> str:
        return "nowhere"

    def dst(self, _: datetime | None) -> None:
        return None


@pytest.mark.parametrize("zone", [None, Nowhere()], ids=["none", "no offset"])
def test_a_naive_datetime_is_refused(zone: tzinfo | None) -> None:
    """The error says which argument was naive, and how to write an aware one."""
    text = (
        "sleep(until) must be aware, 2026-01-02T03:04:05 has no time zone. "
        "Write datetime(..., tzinfo=UTC) or datetime.now(UTC)."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        to_micros(datetime(2026, 1, 2, 3, 4, 5, tzinfo=zone), "sleep(until)")
    with pytest.raises(ValueError, match="a datetime must be aware"):
        to_micros(datetime(2026, 1, 2, tzinfo=zone))


@given(st.timedeltas(min_value=timedelta(0)))
def test_a_duration_is_exact(duration: timedelta) -> None:
    """No duration loses a microsecond, not even the longest."""
    assert timedelta(microseconds=duration_micros(duration)) == duration


@pytest.mark.parametrize("duration", [timedelta(microseconds=-1), timedelta(days=-1), timedelta.min], ids=str)
def test_a_negative_duration_is_refused(duration: timedelta) -> None:
    """The error says which argument was negative, and what it was."""
    with pytest.raises(ValueError, match=re.escape(f"sleep(duration) must not be negative, got {duration}.")):
        duration_micros(duration, "sleep(duration)")
    with pytest.raises(ValueError, match="a duration must not be negative"):
        duration_micros(duration)


def test_the_present_is_read_in_microseconds() -> None:
    """``micros`` and ``now`` agree with each other and with the machine's clock."""
    clock = Clock()
    before = datetime.now(UTC)
    micros, now = clock.micros(), clock.now()
    after = datetime.now(UTC)
    slack = timedelta(microseconds=1)  # both count whole microseconds, each in its own way
    assert before - slack <= to_datetime(micros) <= now <= after + slack
    assert now.tzinfo is UTC


def test_the_monotonic_count_never_goes_back() -> None:
    """The monotonic clock never goes back."""
    clock = Clock()
    counts = [clock.monotonic() for _ in range(1000)]
    assert counts == sorted(counts)


@pytest.mark.parametrize("timeout", [None, -1, 0, 1, 1_000_000_000 * SECOND])
async def test_an_event_that_is_set_is_not_waited_for(timeout: int | None) -> None:
    """A wait for an event that is already set returns at once, whatever the timeout."""
    event = asyncio.Event()
    event.set()
    assert await Clock().wait(event, timeout) is True


@pytest.mark.parametrize("timeout", [-SECOND, -1, 0, 1, 1000])
async def test_an_event_that_stays_away_is_waited_for_until_the_timeout(timeout: int) -> None:
    """A wait for an event that is not set lasts until the timeout, and returns False."""
    clock = Clock()
    started = clock.monotonic()
    assert await clock.wait(asyncio.Event(), timeout) is False
    assert clock.monotonic() - started >= timeout - 1000  # the loop's clock may be a little coarser


@pytest.mark.parametrize("timeout", [-1, 0])
async def test_a_wait_without_time_lets_other_tasks_run(timeout: int) -> None:
    """Even a wait with a timeout of zero or less lets other tasks run once, so a loop of such waits starves none."""
    event = asyncio.Event()
    asyncio.get_running_loop().call_soon(event.set)
    assert await Clock().wait(event, timeout) is True


@pytest.mark.parametrize("timeout", [None, 1000 * SECOND])
async def test_an_event_ends_the_wait(timeout: int | None) -> None:
    """The wait ends as soon as the event is set, with or without a timeout."""
    event = asyncio.Event()
    asyncio.get_running_loop().call_later(0.001, event.set)
    assert await Clock().wait(event, timeout) is True


@pytest.mark.parametrize("timeout", [None, 1000 * SECOND])
async def test_a_wait_can_be_cancelled(timeout: int | None) -> None:
    """A cancellation is raised by the wait, and not taken for its timeout."""
    waiting = asyncio.ensure_future(Clock().wait(asyncio.Event(), timeout))
    asyncio.get_running_loop().call_soon(waiting.cancel)
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_sleep_takes_as_long_as_it_says() -> None:
    """``sleep`` takes microseconds."""
    clock = Clock()
    started = clock.monotonic()
    await clock.sleep(2000)
    assert clock.monotonic() - started >= 1000
