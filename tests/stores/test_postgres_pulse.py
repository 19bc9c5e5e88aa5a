"""A worker whose event loop is blocked keeps its lease, and so its runs, for some leases."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from datetime import timedelta
from threading import Thread
from typing import Any

from pydantic import BaseModel
from structlog.testing import capture_logs

from aioflow import Engine, complete, step, workflow
from aioflow.clock import SECOND, Clock
from aioflow_postgres import PostgresStore
from tests.support import wait_until

LEASE = 2 * SECOND
OTHER = 4_000_000


def meanwhile(look: Callable[[], Awaitable[None]]) -> None:
    """Block the event loop until a coroutine has ended in another thread's loop."""
    problems: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(look())
        except BaseException as error:
            problems.append(error)

    thread = Thread(target=run)
    thread.start()
    thread.join()
    if problems:
        raise problems[0]


class Rival:
    """Another worker on the same database, in a loop of its own."""

    def __init__(self, url: str, known: tuple[str, str]) -> None:
        self._url = url
        self._known = known

    async def claims(self, *, until: Callable[[float, list[int]], bool]) -> None:
        """Claim repeatedly until ``until`` is true of the seconds that have passed and the ids of the runs it got."""
        clock, got = Clock(), list[int]()
        store = PostgresStore(self._url)
        await store.open(clock.micros())
        began = clock.monotonic()
        try:

            async def enough() -> bool:
                claim = await store.claim(
                    OTHER, lease=60 * SECOND, limit=10, known=[self._known], held=None, now=clock.micros()
                )
                got.extend(run.id for run in claim.runs)
                return until((clock.monotonic() - began) / SECOND, got)

            await wait_until(enough, what="the rival has seen enough", timeout=60)
        finally:
            await store.release(OTHER, clock.micros())
            await store.close()


@workflow("blocking")
class Blocking:
    """Its step blocks the event loop."""

    class Context(BaseModel):
        pass

    rival: Rival
    seconds: float
    got: list[int]

    @step(start=True)
    async def block(self):
        def until(seconds: float, got: list[int]) -> bool:
            Blocking.got += got
            return seconds > Blocking.seconds or bool(got)

        if not Blocking.got:
            meanwhile(lambda: Blocking.rival.claims(until=until))
        return complete()


async def blocked(url: str, seconds: float) -> tuple[str, list[str], list[dict[str, Any]]]:
    """Run the workflow, which blocks for so long or until a rival has the run: status, history, log."""
    Blocking.rival, Blocking.seconds, Blocking.got = Rival(url, ("blocking", "1")), seconds, []
    with capture_logs() as logs:
        async with Engine(url, workflows=[Blocking], lease=timedelta(microseconds=LEASE)) as engine:
            run = await engine.start(Blocking)
            await run.wait()
            done = await engine.get(run.id)
            history = [transition.kind for transition in await engine.history(run.id)]
    return done.status, history, [dict(line) for line in logs]


# These are not async: an async test that blocks its event loop fails.


def test_a_blocked_event_loop_keeps_its_runs(postgres_url: str) -> None:
    """A worker whose loop is blocked for two and a half leases keeps its run, and then commits the step."""
    status, history, logs = asyncio.run(blocked(postgres_url, 2.5 * LEASE / SECOND))
    assert Blocking.got == [], logs
    assert (status, history) == ("completed", ["start", "complete"])
    events = [line["event"] for line in logs]
    assert "event loop is blocked, the worker's lease was renewed beside it" in events
    assert "event loop did not turn" in events
    assert "worker stops its runs" not in events
    place = next(line["at"] for line in logs if line["event"].startswith("event loop is blocked"))
    assert "threading.py" in place


def test_an_event_loop_that_does_not_come_back_loses_them(postgres_url: str) -> None:
    """After four leases others take over the runs of a blocked loop, as it may be blocked for ever."""
    _, history, logs = asyncio.run(blocked(postgres_url, 30.0))
    assert len(Blocking.got) == 1
    assert history == ["start", "complete"]  # committed once, after the rival has given the run back
    [lag] = [line["seconds"] for line in logs if line["event"] == "event loop did not turn"]
    assert lag > 4 * LEASE / SECOND


async def test_no_thread_is_left(postgres_url: str) -> None:
    """The thread that renews the lease ends with the engine, and an engine without a worker has none."""
    pulses = lambda: [thread for thread in threading.enumerate() if thread.name == "aioflow pulse"]  # noqa: E731
    async with Engine(postgres_url, worker=False):
        assert not pulses()
    async with Engine(postgres_url, workflows=[Blocking]):
        assert len(pulses()) == 1
    assert not pulses()
