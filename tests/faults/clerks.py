"""The program of the kill test of actions: counters whose only action is called from outside, by concurrent clerks.

    python -m tests.faults.clerks    forks a process for each job, as program.py does

Each call has a token of its own. The clerk notes it before the call, and notes the outcome after it; the step notes it
when it runs. When two clerks call one counter at once, one of them is served. A process that is no worker calls through
the one that is.
"""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from aioflow import Engine, action, complete, get_context, get_run, goto, on, step, wait, workflow
from aioflow.commands import Command
from aioflow.errors import ActionFailed, ActionNotOpen, AioflowError
from tests.faults import program
from tests.faults.program import pause, serve

#: How many calls complete a counter.
CALLS = 6
#: How many counters that it finds a process starts with.
COUNTERS = 6


@workflow("kill-counter")
class Counter:
    """Waits for calls of its action, alternately on its own and as an arm of a wait that times out now and then."""

    class Context(BaseModel):
        done: list[str] = []

    @step(start=True)
    async def begin(self) -> Command:
        return goto(self.count)

    @action("kill_count")
    async def count(self, token: str, takes: int) -> Command:
        assert program.world is not None
        program.world.note("ran", run=get_run().id, token=token)
        done = get_context(self.Context).done
        done.append(token)
        await pause(takes / 1000)
        if token.endswith("!"):
            raise ValueError("this call fails, and nothing of it may be seen")
        if len(done) >= CALLS:
            return complete()
        return goto(self.count) if len(done) % 2 else self.armed()

    @step
    async def again(self) -> Command:
        return self.armed()

    def armed(self) -> Command:
        return wait.any(on(self.count), timeout=timedelta(milliseconds=40), on_timeout=self.again)


async def call(engine: Engine, clerk: str, rng: random.Random, counters: list[int]) -> None:
    """Call actions in an endless loop, on the counters of this process and on those that it found."""
    assert program.world is not None
    note = program.world.note
    for number in range(1_000_000):
        if rng.random() < 0.05 or not counters:
            counters.append((await engine.start(Counter)).id)
        run_id = rng.choice(counters)
        token = f"{clerk}.{number}{'!' if rng.random() < 0.1 else ''}"
        note("calling", token=token, run=run_id)
        try:
            run = await engine.act(Counter.count, run_id, token=token, takes=rng.choice([0, 0, 2, 10]))
        except ActionNotOpen:
            note("refused", token=token)
        except (ValueError, ActionFailed) as error:
            note("failed", token=token, error=str(error))
        except AioflowError as error:  # this process is shutting down
            note("unknown", token=token, error=str(error))
        else:
            note("served", token=token, run=run.id)
            if run.status.ended:
                counters.remove(run_id)
        await pause(rng.random() / 200)


async def errands(engine: Engine, seed: int, life: int, clerks: int) -> None:
    """What a process does besides running steps."""
    assert program.world is not None
    program.world.note("open")
    rng = random.Random(f"{seed} clerks {life}")
    counters = [run.id for run in await engine.runs(workflow=Counter, waiting_for="action", limit=COUNTERS)]
    await asyncio.gather(
        *(call(engine, f"{life}.{number}", random.Random(rng.random()), counters) for number in range(clerks))
    )
    while await engine.count(status="running"):
        await pause(0.02)
    program.world.note("settled")


async def live(folder: str, life: int, *, seed: int, clerks: int, worker: bool = True) -> None:
    """Be one life until SIGTERM; without clerks, note when no run is running any more."""
    engine = Engine(f"sqlite:///{folder}/runs.db", worker=worker, shutdown_timeout=timedelta(seconds=1))
    async with engine, asyncio.TaskGroup() as group:
        busy = group.create_task(errands(engine, seed, life, clerks))
        await engine.run_forever()
        busy.cancel()


def run_job(job: dict[str, Any]) -> None:
    """Be the life that the job describes."""
    program.enter(job["folder"], job["life"])
    asyncio.run(live(**job))


if __name__ == "__main__":
    serve(run_job)
