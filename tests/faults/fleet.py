"""The program of workers that share a PostgreSQL store, to be killed, stopped and disconnected.

    python -m tests.faults.fleet    forks a worker for each job that it reads from standard input

The external effect of a step is a row in a table of its own, written outside of the store's transactions: the step's
key, and the pid of the worker.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from datetime import timedelta
from typing import Any

import asyncpg
import structlog
from pydantic import BaseModel

from aioflow import Engine, complete, get_context, get_run, goto, sleep, step, wait, workflow
from aioflow.clock import Clock
from tests.faults.program import serve

#: This process's connections for the external effects of steps.
outside: asyncpg.Pool[Any] | None = None
#: Whether this process stops itself by SIGSTOP in the next Held step.
stops = False


async def note() -> None:
    """Have an external effect. Try again while the server cannot be reached."""
    assert outside is not None
    while True:
        try:
            await outside.execute("INSERT INTO effects VALUES ($1, $2)", get_run().step_key, os.getpid())
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            await Clock().sleep(20_000)
        else:
            return


@workflow("fleet")
class Fleet:
    """Three steps in five transitions: start, goto, a short sleep, the wake-up, complete."""

    class Context(BaseModel):
        path: list[str] = []

    @step(start=True)
    async def first(self):
        await note()
        get_context(self.Context).path.append("first")
        return goto(self.second)

    @step
    async def second(self):
        await note()
        get_context(self.Context).path.append("second")
        return sleep(timedelta(milliseconds=50), then=self.third)

    @step
    async def third(self):
        await note()
        get_context(self.Context).path.append("third")
        return complete()


@workflow("held")
class Held:
    """Its step lasts until ``gates`` has a row for it; if ``stops`` is set, it stops its process, then completes."""

    class Context(BaseModel):
        name: str

    @step(start=True)
    async def hold(self):
        global stops  # noqa: PLW0603 - steps take no arguments
        await note()
        assert outside is not None
        if stops:
            stops = False
            os.kill(os.getpid(), signal.SIGSTOP)
            return complete()
        while not await outside.fetchval("SELECT count(*) FROM gates WHERE name = $1", get_context(self.Context).name):
            await Clock().sleep(20_000)
        return complete()


@workflow("asks")
class Asks:
    """Waits for a signal, then completes."""

    class Context(BaseModel):
        answer: int = 0

    @step(start=True)
    async def ask(self):
        return wait.for_signal("answer", then=self.done)

    @step
    async def done(self):
        await note()
        return complete()


ALL = (Fleet, Held, Asks)


async def work(job: dict[str, Any]) -> None:
    """Work until SIGTERM. ``off``: by how many seconds the machine's clock is wrong; ``stops``: see the global."""
    global outside, stops
    if stops := job.get("stops", False):
        structlog.configure()  # so that the refused commit is logged
    if off := job.get("off"):
        right = time.time_ns
        time.time_ns = lambda: right() + off * 1_000_000_000
    engine = Engine(
        job["url"],
        workflows=ALL,
        lease=timedelta(seconds=job.get("lease", 2)),
        max_running=job.get("max_running", 100),
        shutdown_timeout=timedelta(seconds=job.get("shutdown", 1)),
    )
    async with asyncpg.create_pool(job["outside"], min_size=0, max_size=4) as outside, engine:
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        await stopped.wait()


def live(job: dict[str, Any]) -> None:
    """Be one worker."""
    asyncio.run(work(job))


if __name__ == "__main__":
    serve(live)
