"""A service: it works until SIGTERM or Ctrl-C, lets the step that runs end, and goes on where it was when started again.

python examples/08_service.py        (it keeps service.db; delete that to begin anew)

Periodic work is a run that sleeps until the next full period, and never gives up. Its key makes it the only one: every
start of the service asks for it, and creates it if there is none that lives.
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
        return sleep(PERIOD - into_period)  # then this step again, at a full period: it does not drift


async def main() -> None:
    async with Engine("sqlite:///service.db", shutdown_timeout=timedelta(seconds=5)) as engine:
        run = await engine.start(Sweep, StartOptions(key="the one", reuse="ended"))
        print("service began" if run.created else f"service goes on after sweep {run.context.sweeps}", flush=True)
        await engine.run_forever()
    print("service ended", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
