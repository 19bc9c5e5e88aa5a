"""A service for periodic work. At SIGTERM or Ctrl-C it lets the running step end; started again, it continues.

python examples/08_service.py        (it keeps its run in service.db; delete that to begin anew)

Periodic work is one run that sleeps until the next full period; max_attempts keeps failures from ending it. Its key
makes it the only one: each start of the service finds the run with this key, or creates one if there is none or it has
ended.
"""

import asyncio
from datetime import timedelta

from pydantic import BaseModel

from aioflow import Engine, Retry, StartOptions, get_context, get_run, sleep, step, workflow

PERIOD = timedelta(seconds=0.4)


@workflow("sweep")
class Sweep:
    class Context(BaseModel):
        sweeps: int = 0

    @step(start=True, retry=Retry(max_attempts=1_000_000, max_delay=PERIOD))
    async def sweep(self):
        ctx = get_context(self.Context)
        ctx.sweeps += 1
        print(f"sweep {ctx.sweeps} begins", flush=True)
        await asyncio.sleep(0.2)  # the work
        print(f"sweep {ctx.sweeps} ends", flush=True)
        into_period = timedelta(seconds=get_run().now.timestamp() % PERIOD.total_seconds())
        return sleep(PERIOD - into_period)  # then this step again, at a full period, so that it does not drift


async def main() -> None:
    async with Engine("sqlite:///service.db", shutdown_timeout=timedelta(seconds=5)) as engine:
        run = await engine.start(Sweep, StartOptions(key="the one", reuse="ended"))
        print("service began" if run.created else f"service goes on after sweep {run.context.sweeps}", flush=True)
        await engine.run_forever()
    print("service ended", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
