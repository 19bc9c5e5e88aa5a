"""The program of workers that share a PostgreSQL store, to be killed, stopped and cut off.

    python -m tests.faults.fleet    forks a worker for each job that it reads from standard input

What a step does to the outside world it notes in a table of its own, outside of any transaction of the store: its key,
and the worker that did it.
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

#: This process's connection for what steps do to the outside world.
outside: asyncpg.Pool[Any] | None = None
#: Whether this process stops itself in the middle of its first step that is held.
stops = False


async def note() -> None:
    """Do something to the outside world, which may be out of reach for a moment."""
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
    """Four transitions: it goes on at once, sleeps a little, and ends."""

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
    """Its step lasts until the outside world has a row that says so, or ends with the stop of a process that stops."""

    class Context(BaseModel):
        name: str

    @step(start=True)
    async def hold(self):
        global stops  # noqa: PLW0603 - steps can be given nothing
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
    """It waits for a signal."""

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
    """Work until SIGTERM. ``off``: by how many seconds the machine's clock is wrong; ``stops``: see above."""
    global outside, stops
    if stops := job.get("stops", False):
        structlog.configure()  # the log is to have what became of the commit
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
    """One worker."""
    asyncio.run(work(job))


if __name__ == "__main__":
    serve(live)
