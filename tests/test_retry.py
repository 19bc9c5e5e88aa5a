"""When and how often a failed attempt is tried again."""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise, product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioflow.clock import SECOND, Micros, duration_micros
from aioflow.retry import GiveUp, Retry, RetryLater, chance_of

HOUR = timedelta(hours=1)


def seconds(*numbers: float) -> list[Micros]:
    return [int(number * SECOND) for number in numbers]


# ---- delays


@pytest.mark.parametrize(
    ("retry", "delays"),
    [
        (Retry(), seconds(1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300)),
        (Retry(base_delay=timedelta(seconds=10), backoff_factor=1), seconds(10, 10, 10)),
        (Retry(base_delay=timedelta(seconds=2), backoff_factor=3, max_delay=HOUR), seconds(2, 6, 18, 54)),
        (Retry(backoff_factor=1.5), seconds(1, 1.5, 2.25, 3.375, 5.0625)),
        (Retry(base_delay=timedelta(microseconds=1), backoff_factor=10), [1, 10, 100, 1000]),
        (Retry(base_delay=HOUR, max_delay=timedelta(seconds=7)), seconds(7, 7)),
        (Retry(base_delay=timedelta(0)), [0, 0, 0]),
        (Retry(max_delay=timedelta(0)), [0, 0, 0]),
    ],
    ids=str,
)
def test_delays_grow_by_the_factor_up_to_the_longest(retry: Retry, delays: list[Micros]) -> None:
    """The delay after the n-th failure is min(base * factor ** (n - 1), max)."""
    assert [retry.delay(n) for n in range(1, len(delays) + 1)] == delays


@pytest.mark.parametrize(("chance", "delay"), [(0.0, 6), (0.25, 8), (0.5, 10), (0.75, 12), (1.0, 14)])
def test_jitter_moves_a_delay_by_its_share(chance: float, delay: int) -> None:
    """Jitter is a share of the delay, and chance decides where the delay falls within that range."""
    retry = Retry(base_delay=timedelta(seconds=10), jitter=0.4)
    assert retry.delay(1, chance) == pytest.approx(delay * SECOND, abs=1)


def test_full_jitter_goes_from_nothing_to_twice_the_delay() -> None:
    """A jitter of 1.0 gives delays from zero to twice the delay."""
    retry = Retry(base_delay=timedelta(seconds=10), jitter=1.0)
    assert [retry.delay(1, chance) for chance in (0.0, 0.5, 1.0)] == seconds(0, 10, 20)


def test_jitter_never_goes_beyond_the_longest_delay() -> None:
    """Jitter does not raise a delay above max_delay."""
    retry = Retry(base_delay=timedelta(seconds=10), max_delay=timedelta(seconds=12), jitter=0.5)
    assert retry.delay(1, 1.0) == 12 * SECOND
    assert retry.delay(1, 0.0) == 5 * SECOND


DELAYS = st.timedeltas(min_value=timedelta(0))
POLICIES = st.builds(
    Retry,
    base_delay=DELAYS,
    max_delay=DELAYS,
    backoff_factor=st.floats(1.0, 1e300),
    jitter=st.floats(0.0, 1.0),
)


@given(POLICIES, st.integers(1, 10**15), st.floats(0.0, 1.0))
def test_a_delay_is_always_within_its_bounds(retry: Retry, failures: int, chance: float) -> None:
    """For any policy and any number of failures, the delay is an integer from zero to max_delay."""
    delay = retry.delay(failures, chance)
    assert isinstance(delay, int)
    assert 0 <= delay <= duration_micros(retry.max_delay)


@given(POLICIES, st.integers(1, 2000), st.floats(0.0, 1.0))
def test_delays_never_shrink(retry: Retry, failures: int, chance: float) -> None:
    """With the same chance, a later failure never gives a shorter delay."""
    assert retry.delay(failures, chance) <= retry.delay(failures + 1, chance)


@pytest.mark.parametrize("failures", [1024, 1025, 5000, 10**9, 10**18])
def test_a_power_beyond_all_numbers_is_the_longest_delay(failures: int) -> None:
    """If the power of the factor is too large for a float, the delay is max_delay."""
    assert Retry().delay(failures) == 300 * SECOND


@pytest.mark.parametrize("failures", [1, 1024, 1025, 5000, 10**9])
def test_no_delay_stays_no_delay(failures: int) -> None:
    """A base delay of zero stays zero after any number of failures."""
    assert Retry(base_delay=timedelta(0)).delay(failures) == 0


# ---- whether to retry


@pytest.mark.parametrize(("attempts", "failures"), list(product((1, 2, 3, 10), range(1, 12))))
def test_attempts_are_counted_with_the_first(attempts: int, failures: int) -> None:
    """max_attempts includes the first attempt."""
    assert Retry(max_attempts=attempts).retries(ValueError(), failures) is (failures < attempts)


class Declined(ConnectionError):
    """An error of an external service."""


@pytest.mark.parametrize(
    ("policy", "error", "retried"),
    [
        ({}, Exception(), True),
        ({}, Declined(), True),
        ({}, ExceptionGroup("several", [ValueError()]), True),
        ({}, asyncio.CancelledError(), False),
        ({}, KeyboardInterrupt(), False),
        ({}, SystemExit(), False),
        ({}, GeneratorExit(), False),
        ({}, BaseExceptionGroup("several", [KeyboardInterrupt()]), False),
        ({"retry_on": (BaseException,)}, KeyboardInterrupt(), True),
        ({"retry_on": (ConnectionError,)}, Declined(), True),
        ({"retry_on": (ConnectionError,)}, ValueError(), False),
        ({"retry_on": (ConnectionError, KeyError)}, KeyError(), True),
        ({"retry_on": ConnectionError}, Declined(), True),
        ({"retry_on": ConnectionError}, OSError(), False),
        ({"retry_on": ()}, ValueError(), False),
        ({"give_up_on": (Declined,)}, Declined(), False),
        ({"give_up_on": (Declined,)}, ConnectionError(), True),
        ({"give_up_on": Declined}, Declined(), False),
        ({"give_up_on": (OSError,)}, Declined(), False),
        ({"retry_on": (Declined,), "give_up_on": (OSError,)}, Declined(), False),
        ({"retry_on": (Declined,), "give_up_on": (Declined,)}, Declined(), False),
        ({"retry_on": (ConnectionError,)}, ExceptionGroup("g", [Declined()]), True),
        ({"retry_on": (ConnectionError,)}, ExceptionGroup("g", [ExceptionGroup("h", [Declined()])]), True),
        ({"retry_on": (ConnectionError,)}, ExceptionGroup("g", [Declined(), Declined()]), False),
        ({"retry_on": (ExceptionGroup,)}, ExceptionGroup("g", [ValueError()]), True),
        ({"give_up_on": (ConnectionError,)}, ExceptionGroup("g", [Declined()]), False),
        ({"give_up_on": (ExceptionGroup,)}, ExceptionGroup("g", [ValueError()]), False),
        ({}, BaseExceptionGroup("g", [KeyboardInterrupt()]), False),
    ],
    ids=str,
)
def test_the_class_of_the_error_decides(policy: dict[str, Any], error: BaseException, retried: bool) -> None:
    """An error is retried if retry_on names its class or a base, unless give_up_on does, even within a group."""
    assert Retry(**policy).retries(error, 1) is retried


# ---- wrong policies


@pytest.mark.parametrize(
    ("policy", "error", "text"),
    [
        ({"max_attempts": 0}, ValueError, "Retry(max_attempts=...) counts the first attempt, so at least 1; got 0."),
        ({"max_attempts": -3}, ValueError, "Retry(max_attempts=...) counts the first attempt, so at least 1; got -3."),
        ({"max_attempts": 2.0}, TypeError, "Retry(max_attempts=...) takes an int, got float."),
        ({"max_attempts": True}, TypeError, "Retry(max_attempts=...) takes an int, got bool."),
        ({"max_attempts": None}, TypeError, "Retry(max_attempts=...) takes an int, got NoneType."),
        ({"base_delay": 1}, TypeError, "Retry(base_delay=...) takes a timedelta, got int."),
        ({"max_delay": 5.0}, TypeError, "Retry(max_delay=...) takes a timedelta, got float."),
        (
            {"base_delay": timedelta(seconds=-1)},
            ValueError,
            "Retry(base_delay=...) must not be negative, got -1 day, 23:59:59.",
        ),
        ({"max_delay": -HOUR}, ValueError, "Retry(max_delay=...) must not be negative, got -1 day, 23:00:00."),
        (
            {"backoff_factor": 0.5},
            ValueError,
            "Retry(backoff_factor=...) must be at least 1 and finite, got 0.5.",
        ),
        ({"backoff_factor": math.inf}, ValueError, "Retry(backoff_factor=...) must be at least 1 and finite, got inf."),
        ({"backoff_factor": math.nan}, ValueError, "Retry(backoff_factor=...) must be at least 1 and finite, got nan."),
        ({"jitter": -0.1}, ValueError, "Retry(jitter=...) must be from 0.0 to 1.0, got -0.1."),
        ({"jitter": 1.1}, ValueError, "Retry(jitter=...) must be from 0.0 to 1.0, got 1.1."),
        ({"jitter": math.nan}, ValueError, "Retry(jitter=...) must be from 0.0 to 1.0, got nan."),
        ({"retry_on": "OSError"}, TypeError, "Retry(retry_on=...) takes exception classes, got ('OSError',)."),
        ({"retry_on": (OSError, int)}, TypeError, "Retry(retry_on=...) takes exception classes, got "),
        ({"retry_on": OSError()}, TypeError, "Retry(retry_on=...) takes exception classes, got (OSError(),)."),
        ({"give_up_on": (None,)}, TypeError, "Retry(give_up_on=...) takes exception classes, got (None,)."),
    ],
    ids=str,
)
def test_a_wrong_policy_is_refused(policy: dict[str, Any], error: type[Exception], text: str) -> None:
    """A wrong argument is refused with its name, its range and the value."""
    with pytest.raises(error, match=re.escape(text)):
        Retry(**policy)


@pytest.mark.parametrize("name", ["backoff_factor", "jitter"])
@pytest.mark.parametrize(("value", "found"), [("2", "str"), (None, "NoneType"), (True, "bool")])
def test_a_number_that_is_none_is_refused(name: str, value: Any, found: str) -> None:
    """An argument that is not a number is a TypeError."""
    with pytest.raises(TypeError, match=re.escape(f"Retry({name}=...) takes a number, got {found}.")):
        Retry(**{name: value})


@pytest.mark.parametrize(
    "policy",
    [
        {"max_attempts": 1},
        {"backoff_factor": 1},
        {"jitter": 0},
        {"jitter": 1},
        {"base_delay": timedelta(0), "max_delay": timedelta(0)},
        {"max_delay": timedelta.max},
    ],
    ids=str,
)
def test_the_ends_of_each_range_are_in_it(policy: dict[str, Any]) -> None:
    """The smallest and the largest allowed value of each argument are accepted."""
    Retry(**policy)


def test_a_policy_is_a_value() -> None:
    """Policies with the same values are equal and hash alike, and a policy cannot be changed."""
    assert Retry(retry_on=OSError) == Retry(retry_on=(OSError,))
    assert len({Retry(), Retry(), Retry(jitter=0.5)}) == 2
    with pytest.raises(AttributeError):
        Retry().jitter = 0.5  # type: ignore[misc]


# ---- what a step can raise


@pytest.mark.parametrize("delay", [timedelta(0), timedelta(minutes=5), timedelta.max], ids=str)
def test_retry_later_has_a_delay(delay: timedelta) -> None:
    """RetryLater has its delay, also in its text."""
    later = RetryLater(delay)
    assert later.delay == delay
    assert str(later) == f"try again in {delay}"


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: RetryLater(5), TypeError, "RetryLater() takes a timedelta, got int."),
        (lambda: RetryLater(None), TypeError, "RetryLater() takes a timedelta, got NoneType."),
        (
            lambda: RetryLater(timedelta(seconds=-1)),
            ValueError,
            "RetryLater(delay) must not be negative, got -1 day, 23:59:59.",
        ),
        (lambda: GiveUp(404), TypeError, "GiveUp() takes the reason as a string, got int."),
        (lambda: GiveUp(None), TypeError, "GiveUp() takes the reason as a string, got NoneType."),
    ],
    ids=["number", "none", "negative", "give up number", "give up none"],
)
def test_a_wrong_argument_is_refused(make: Callable[[], Exception], error: type[Exception], text: str) -> None:
    """Wrong arguments of RetryLater and GiveUp are refused with what they take."""
    with pytest.raises(error, match=re.escape(text)):
        make()


def test_give_up_has_a_reason() -> None:
    """The text of GiveUp is exactly its reason."""
    assert GiveUp("the card is stolen").reason == str(GiveUp("the card is stolen")) == "the card is stolen"


# ---- chance


@given(st.integers(0, 2**53), st.integers(0, 2**40))
def test_chance_is_a_number_below_one_and_always_the_same(run_id: int, seq: int) -> None:
    """The chance of a transition is from 0.0 to below 1.0, and always the same for that run and seq."""
    chance = chance_of(run_id, seq)
    assert 0.0 <= chance < 1.0
    assert chance_of(run_id, seq) == chance


@pytest.mark.parametrize(
    "pairs",
    [
        [(run_id, 2) for run_id in range(1, 4001)],
        [(7, seq) for seq in range(1, 4001)],
        [(run_id, run_id % 7) for run_id in range(1, 4001)],
    ],
    ids=["many runs", "many transitions", "both"],
)
def test_chance_spreads(pairs: list[tuple[int, int]]) -> None:
    """The chances of neighbouring runs and transitions are spread evenly: each tenth has 10 %, give or take 2.5 %."""
    chances = [chance_of(*pair) for pair in pairs]
    assert len(set(chances)) == len(pairs)
    tenths = Counter(int(chance * 10) for chance in chances)
    assert all(300 <= tenths[tenth] <= 500 for tenth in range(10)), tenths
    apart = sum(abs(a - b) for a, b in pairwise(chances)) / len(chances)
    assert apart == pytest.approx(1 / 3, abs=0.03)  # as for independent numbers


def test_a_group_is_not_looked_into_for_ever() -> None:
    """A group that is nested deeper than the limit counts as a group, whatever its members are."""
    error: Exception = Declined()
    for _ in range(40):
        error = ExceptionGroup("g", [error])
    assert not Retry(retry_on=ConnectionError).retries(error, 1)
    assert Retry().retries(error, 1)
