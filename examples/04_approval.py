"""An expense waits for one of several signals, and is escalated to the next level at each timeout.

python examples/04_approval.py

The wait has two arms: a message (a pydantic model, passed to the next step) and a signal named by a string; the first
to come wins. The clerk does not answer for the train, so the manager is asked, and refuses; the hotel is withdrawn;
nobody decides on the yacht.
"""

import asyncio
from datetime import timedelta
from tempfile import TemporaryDirectory

from pydantic import BaseModel

from aioflow import Engine, StartOptions, complete, fail, get_context, goto, on, step, wait, workflow

PATIENCE = timedelta(seconds=0.3)
LEVELS = ["clerk", "manager", "director"]


class Decision(BaseModel):
    approved: bool
    by: str


@workflow("expense")
class Expense:
    class Context(BaseModel):
        title: str
        level: int = 0
        reason: str = ""

    @step(start=True)
    async def ask(self):
        ctx = get_context(self.Context)
        print(f"{ctx.title}: to be approved by the {LEVELS[ctx.level]}")
        return wait.any(
            on(Decision, then=self.decided),
            on("withdraw", then=self.withdrawn),
            timeout=PATIENCE,
            on_timeout=self.escalate,
        )

    @step
    async def escalate(self):
        ctx = get_context(self.Context)
        ctx.level += 1
        return goto(self.ask) if ctx.level < len(LEVELS) else fail("nobody decided")

    @step
    async def decided(self, decision: Decision):
        return complete(approved=decision.approved, by=decision.by)

    @step
    async def withdrawn(self):
        return fail(f"withdrawn: {get_context(self.Context).reason}")  # its payload was merged into the Context


async def main() -> None:
    with TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/expenses.db") as engine:
            runs = [
                await engine.start(Expense, StartOptions(key=key), title=key) for key in ("train", "hotel", "yacht")
            ]
            receipt = await engine.signal("withdraw", {"reason": "booked twice"}, key="hotel")
            print(f"hotel: the withdrawal is {receipt.state}")
            await asyncio.sleep(1.5 * PATIENCE.total_seconds())  # until the managers have been asked
            await engine.signal(Decision(approved=False, by="meg"), key="train")
            for run in runs:
                await run.wait()
                print(f"{run.key}: {run.status}, {run.error or run.data}")


if __name__ == "__main__":
    asyncio.run(main())
