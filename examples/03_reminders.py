"""Two loops that send reminders: one sleeps between them, the other stops when a signal answers it.

python examples/03_reminders.py

Three tips are sent, one a week: after a sleep() the step that returned it runs again. An invitation is repeated until
the signal comes, at most three times: the wait's on_timeout names the step that waits. (A week takes 0.2 s here.)
"""

import asyncio
from datetime import timedelta
from tempfile import TemporaryDirectory

from pydantic import BaseModel

from aioflow import Engine, complete, fail, get_context, sleep, step, wait, workflow

WEEK = timedelta(seconds=0.2)
MOST = 3


@workflow("tips")
class Tips:
    class Context(BaseModel):
        email: str
        sent: int = 0

    @step(start=True)
    async def send(self):
        ctx = get_context(self.Context)
        ctx.sent += 1
        print(f"To {ctx.email}: tip {ctx.sent}")
        return sleep(WEEK) if ctx.sent < MOST else complete()


@workflow("invitation")
class Invitation:
    class Context(BaseModel):
        email: str
        sent: int = 0
        guests: int = 0

    @step(start=True)
    async def invite(self):
        ctx = get_context(self.Context)
        if ctx.sent == MOST:
            return fail("no answer")
        ctx.sent += 1
        print(f"To {ctx.email}: invitation {ctx.sent}")
        return wait.for_signal("answer", timeout=WEEK, on_timeout=self.invite, then=self.thank)

    @step
    async def thank(self):
        ctx = get_context(self.Context)  # the signal's payload has been merged into it
        print(f"To {ctx.email}: see you, all {ctx.guests} of you!")
        return complete()


async def main() -> None:
    with TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/reminders.db") as engine:
            tips = await engine.start(Tips, email="ann")
            bob = await engine.start(Invitation, email="bob")
            eve = await engine.start(Invitation, email="eve")
            await asyncio.sleep(1.5 * WEEK.total_seconds())  # until bob has been invited twice
            await engine.signal("answer", {"guests": 2}, run_id=bob.id)
            for run in (tips, bob, eve):
                await run.wait()
                ctx = run.context
                print(f"{run.workflow} to {ctx.email}: {run.status} after {ctx.sent}, {run.error or 'thanks'}")


if __name__ == "__main__":
    asyncio.run(main())
