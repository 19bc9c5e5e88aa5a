"""A job of another service is polled until it is done; if the run's timeout comes first, the job is cancelled.

python examples/07_polling.py

@workflow(timeout=...) limits the whole run, including its sleeps and retries; its on_timeout step cleans up. The first
job is done in time, the second never is.
"""

import asyncio
from datetime import timedelta
from tempfile import TemporaryDirectory

from pydantic import BaseModel

from aioflow import Engine, complete, fail, get_context, get_run, goto, sleep, step, workflow

POLL_EVERY = timedelta(seconds=0.2)
DEADLINE = timedelta(seconds=0.7)


class OtherSide:
    """Stands for the client of another service's API. A report is done at the second poll, a backup never."""

    def __init__(self) -> None:
        self.looks = 0

    async def submit(self, name: str, idempotency_key: str) -> str:
        print(f"{name}: submitted, once for {idempotency_key[-3:]}")
        return name

    async def is_done(self, job: str) -> bool:
        self.looks += job == "report"
        done = job == "report" and self.looks == 2
        print(f"{job}: {'done' if done else 'not yet'}")
        return done

    async def cancel(self, job: str) -> None:
        print(f"{job}: called off")


other_side = OtherSide()


@workflow("job", timeout=DEADLINE, on_timeout="call_off")
class Job:
    class Context(BaseModel):
        name: str
        job: str = ""

    @step(start=True)
    async def submit(self):
        ctx = get_context(self.Context)
        ctx.job = await other_side.submit(ctx.name, idempotency_key=get_run().step_key)
        return goto(self.poll)

    @step  # retried if it raises, as any step is, within the run's timeout
    async def poll(self):
        if await other_side.is_done(get_context(self.Context).job):
            return complete()
        return sleep(POLL_EVERY)  # then this step runs again

    @step
    async def call_off(self):
        job = get_context(self.Context).job
        if job:  # the timeout may come before the job was submitted
            await other_side.cancel(job)
        return fail(f"not done within {DEADLINE.total_seconds()} s")


async def main() -> None:
    with TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/jobs.db") as engine:
            for run in [await engine.start(Job, name=name) for name in ("report", "backup")]:
                await run.wait()
                print(f"{run.context.name}: {run.status}, {run.error or 'in time'}")


if __name__ == "__main__":
    asyncio.run(main())
