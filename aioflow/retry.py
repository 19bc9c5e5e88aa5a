"""When a failed attempt is tried again. Pure: no clock, no chance, no I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeGuard, TypeVar

from aioflow.clock import Micros, duration_micros

E = TypeVar("E", bound=BaseException)
#: Python's own groups: a subclass might compute its members, and is not looked into.
GROUPS = (ExceptionGroup, BaseExceptionGroup)
#: How many nested groups are looked into.
_DEEPEST = 32


def is_a(error: BaseException, kinds: type[E] | tuple[type[E], ...]) -> TypeGuard[E]:
    """Whether ``except kinds`` would catch the error: like that, it looks at its class alone, never at the object."""
    return issubclass(type(error), kinds)


def sole(error: BaseException) -> BaseException:
    """The only error in a group, as ``asyncio.TaskGroup`` raises it if one task failed; else the error itself."""
    for _ in range(_DEEPEST):
        if type(error) not in GROUPS:
            break
        members = error.exceptions  # type: ignore[attr-defined]
        if len(members) != 1:
            break
        error = members[0]
    return error


class RetryLater(Exception):
    """Raise it in a step to run the step again after ``delay``. It does not count as a failed attempt.

    Args:
        delay: how long to wait, not negative.

    Raises:
        TypeError: delay is not a timedelta.
        ValueError: delay is negative.
    """

    def __init__(self, delay: timedelta) -> None:
        if not isinstance(delay, timedelta):
            raise TypeError(f"RetryLater() takes a timedelta, got {type(delay).__name__}.")
        duration_micros(delay, "RetryLater(delay)")
        self.delay = delay
        super().__init__(f"try again in {delay}")


class GiveUp(Exception):
    """Raise it in a step that can never succeed: no more retries.

    Args:
        reason: the sentence that ``run.error`` will hold.

    Raises:
        TypeError: the reason is not a string.
    """

    def __init__(self, reason: str) -> None:
        if not isinstance(reason, str):
            raise TypeError(f"GiveUp() takes the reason as a string, got {type(reason).__name__}.")
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Retry:
    """How often, and after what delays, a failing step is tried again.

    The delay before attempt n+1 is ``min(base_delay * backoff_factor ** (n - 1), max_delay)``, then moved by up to
    ``jitter`` of itself either way, never beyond ``max_delay``.

    Args:
        max_attempts: attempts in all, the first included; 1 means no retry.
        base_delay: the delay after the first failure.
        max_delay: no delay is longer, not even the first: give this as well with a longer ``base_delay``.
        backoff_factor: each delay is this many times the last; at least 1.
        jitter: from 0.0 (none) to 1.0 (between nothing and twice the delay).
        retry_on: exception classes that are retried; others fail at once. In a group of one exception, as
            ``asyncio.TaskGroup`` raises it, the class of that exception counts as well.
        give_up_on: exception classes that are never retried, even if ``retry_on`` names a base class of theirs.

    Raises:
        TypeError, ValueError: an argument of the wrong type, or out of its range.
    """

    max_attempts: int = 3
    base_delay: timedelta = timedelta(seconds=1)
    max_delay: timedelta = timedelta(minutes=5)
    backoff_factor: float = 2.0
    jitter: float = 0.0
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    give_up_on: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.max_attempts, bool) or not isinstance(self.max_attempts, int):
            raise TypeError(f"Retry(max_attempts=...) takes an int, got {type(self.max_attempts).__name__}.")
        if self.max_attempts < 1:
            raise ValueError(
                f"Retry(max_attempts=...) counts the first attempt, so at least 1; got {self.max_attempts}."
            )
        for name in ("base_delay", "max_delay"):
            value = getattr(self, name)
            if not isinstance(value, timedelta):
                raise TypeError(f"Retry({name}=...) takes a timedelta, got {type(value).__name__}.")
            duration_micros(value, f"Retry({name}=...)")
        for name in ("backoff_factor", "jitter"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"Retry({name}=...) takes a number, got {type(value).__name__}.")
        if not 1 <= self.backoff_factor < math.inf:
            raise ValueError(f"Retry(backoff_factor=...) must be at least 1 and finite, got {self.backoff_factor}.")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"Retry(jitter=...) must be from 0.0 to 1.0, got {self.jitter}.")
        for name in ("retry_on", "give_up_on"):
            classes = getattr(self, name)
            classes = classes if isinstance(classes, tuple) else (classes,)
            if not all(isinstance(c, type) and issubclass(c, BaseException) for c in classes):
                raise TypeError(f"Retry({name}=...) takes exception classes, got {classes!r}.")
            object.__setattr__(self, name, classes)

    def retries(self, error: BaseException, failures: int) -> bool:
        """Whether a visit that has now failed ``failures`` times, this time with ``error``, is tried again."""
        if failures >= self.max_attempts:
            return False
        inner = sole(error)
        if not is_a(error, self.retry_on) and not is_a(inner, self.retry_on):
            return False
        return not (self.give_up_on and (is_a(error, self.give_up_on) or is_a(inner, self.give_up_on)))

    def delay(self, failures: int, chance: float = 0.5) -> Micros:
        """The delay after the ``failures``-th failure, in microseconds.

        Args:
            failures: failed attempts so far, at least 1.
            chance: from 0.0 to 1.0, where in the jitter's range the delay falls; 0.5 is its middle.
        """
        longest = duration_micros(self.max_delay)
        base = duration_micros(self.base_delay)
        if not base:
            return 0
        try:
            delay = min(base * self.backoff_factor ** (failures - 1), longest)
        except OverflowError:
            delay = longest
        return min(int(delay * (1 + self.jitter * (2 * chance - 1))), longest)


def chance_of(run_id: int, seq: int) -> float:
    """A number from 0.0 to 1.0 that looks random and is the same each time for one transition of one run.

    SplitMix64's finaliser (Steele, Lea, Flood 2014), so that jitter needs no source of randomness.
    """
    mask = (1 << 64) - 1
    z = (run_id * 0x9E3779B97F4A7C15 + seq * 0xD1B54A32D192ED03) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return ((z ^ (z >> 31)) >> 11) / (1 << 53)
