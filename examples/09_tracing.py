"""Structured logs: your own log lines carry run_id, workflow, step and attempt, also those from threads and libraries.

python examples/09_tracing.py                                            one JSON object per line
python examples/09_tracing.py | jq -c 'select(.run_id == 2)'             what happened to one run
python examples/09_tracing.py | jq -c 'select(.level != "debug")'        without a line for each transition

aioflow logs through structlog, and binds these four as structlog's contextvars around each step; the processor
merge_contextvars adds them to each line. aioflow never logs values of a Context.
"""

import asyncio
import logging
from datetime import timedelta
from tempfile import TemporaryDirectory

import structlog
from pydantic import BaseModel

from aioflow import Engine, Retry, StartOptions, complete, get_context, get_run, goto, step, workflow

structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.JSONRenderer(),
    ],
    wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),  # INFO omits the transitions
)
log = structlog.get_logger()


def weigh(grams: int) -> None:
    log.info("weighed", grams=grams)  # a function that knows nothing of workflows


@workflow("parcel", default_retry=Retry(base_delay=timedelta(milliseconds=100)))
class Parcel:
    class Context(BaseModel):
        grams: int

    @step(start=True)
    def pack(self):  # a sync step runs in a thread
        weigh(get_context(self.Context).grams)
        return goto(self.ship)

    @step
    async def ship(self):
        if get_run().attempt == 1:
            raise ConnectionError("no van")
        log.info("shipped", van=7)
        return complete()


async def main() -> None:
    with TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/parcels.db") as engine:
            runs = [await engine.start(Parcel, StartOptions(key=f"p-{grams}"), grams=grams) for grams in (120, 900)]
            for run in runs:
                await run.wait()


if __name__ == "__main__":
    asyncio.run(main())
