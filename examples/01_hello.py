"""A workflow that sleeps between its steps. Press Ctrl-C while it sleeps; started again, it continues where it stopped.

python examples/01_hello.py        (it keeps its run in hello.db)
"""

import asyncio
from contextlib import suppress
from datetime import timedelta

from pydantic import BaseModel

from aioflow import Engine, StartOptions, complete, get_context, goto, sleep, step, workflow


@workflow("hello")
class Hello:
    class Context(BaseModel):
        name: str
        greetings: int = 0

    @step(start=True)
    async def greet(self):
        ctx = get_context(self.Context)
        ctx.greetings += 1
        print(f"{ctx.greetings}. Hello {ctx.name}!")
        if ctx.greetings < 3:
            return sleep(timedelta(seconds=1))  # then this step runs again
        return goto(self.part)

    @step
    def part(self):  # a sync step runs in a thread
        print("Goodbye.")
        return complete()


async def main() -> None:
    async with Engine("sqlite:///hello.db") as engine:
        # The key finds the run that was interrupted; after a run that has ended, reuse="ended" starts a new one.
        run = await engine.start(Hello, StartOptions(key="world", reuse="ended"), name="world")
        if not run.created:
            print("Found the run that was interrupted.")
        print(await run.result())


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main())
