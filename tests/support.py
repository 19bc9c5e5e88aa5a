"""Helpers that tests share. The only module of the tests that pauses."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

T = TypeVar("T")

#: Seconds between two looks: short, as most of what tests wait for is a few steps of the loop away.
PAUSE = 0.002


@overload
async def wait_until(predicate: Callable[[], Awaitable[T]], timeout: float = 5.0, what: str = "") -> T: ...
@overload
async def wait_until(predicate: Callable[[], T], timeout: float = 5.0, what: str = "") -> T: ...
async def wait_until(predicate: Callable[[], object], timeout: float = 5.0, what: str = "") -> object:
    """Call the predicate until it returns something true, and return that.

    For what happens in another process, or in real time. What the engine does is waited for with its own means
    (``run.wait``, ``flow.settle``).

    Args:
        predicate: sync or async.
        timeout: seconds, after which the test fails.
        what: what was waited for, for the failure's message; by default the predicate's source.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while True:
        found = predicate()
        value = await found if inspect.isawaitable(found) else found
        if value:
            return value
        if loop.time() >= deadline:
            raise AssertionError(f"It did not come true within {timeout:g} s: {what or _source(predicate)}")
        await asyncio.sleep(PAUSE)


def _source(predicate: Callable[[], object]) -> str:
    try:
        return inspect.getsource(predicate).strip()
    except (OSError, TypeError):
        return repr(predicate)
