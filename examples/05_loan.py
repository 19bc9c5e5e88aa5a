"""A state machine: each state of a loan is a step, and run.current_step is the state that the loan is in.

python examples/05_loan.py

    apply ──> review ──> offer ──> repay ──> completed    A small loan is offered at once. An offer is open for a
      └──────────│─────────^ │      │ ^                   month. A month without a payment makes the loan overdue;
                 v           v      v │                   after two in a row it has failed.
               closed ──> failed <── overdue

The script runs four loans side by side and prints the states in which each of them waited. (A month takes 0.5 s.)
"""

import asyncio
from datetime import timedelta
from tempfile import TemporaryDirectory

from pydantic import BaseModel

from aioflow import Engine, complete, fail, get_context, get_run, goto, on, step, wait, workflow

MONTH = timedelta(seconds=0.5)


class Payment(BaseModel):
    amount: int


@workflow("loan")
class Loan:
    class Context(BaseModel):
        amount: int
        paid: int = 0
        missed: int = 0

    @step(start=True)
    async def apply(self):
        return goto(self.offer if get_context(self.Context).amount <= 1000 else self.review)

    @step
    async def review(self):
        return wait.any(on("approve", then=self.offer), on("refuse", then=self.closed))

    @step
    async def offer(self):
        return wait.for_signal("accept", timeout=MONTH, on_timeout=self.closed, then=self.repay)

    @step
    async def closed(self):
        return fail("the offer expired" if get_run().timed_out else "refused")

    @step
    async def repay(self):
        ctx = get_context(self.Context)
        if ctx.paid >= ctx.amount:
            return complete()
        return wait.for_signal(Payment, timeout=MONTH, on_timeout=self.overdue, then=self.book)

    @step
    async def book(self, payment: Payment):
        ctx = get_context(self.Context)
        ctx.paid, ctx.missed = ctx.paid + payment.amount, 0
        return goto(self.repay)

    @step
    async def overdue(self):
        ctx = get_context(self.Context)
        ctx.missed += 1
        return goto(self.repay) if ctx.missed < 2 else fail(f"{ctx.amount - ctx.paid} are lost")


async def play(engine: Engine, amount: int, *signals: str | Payment) -> None:
    run = await engine.start(Loan, amount=amount)
    states = []
    for signal in signals:
        await run.wait(until="parked")
        states.append(run.current_step)
        await engine.signal(signal, run_id=run.id)
    await run.wait()
    print(f"{amount}: {' > '.join([*states, run.status])}{f', {run.error}' if run.error else ''}")


async def main() -> None:
    with TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/loans.db") as engine:
            await asyncio.gather(
                play(engine, 800, "accept", Payment(amount=500), Payment(amount=300)),
                play(engine, 9000, "approve", "accept", Payment(amount=1000)),
                play(engine, 5000, "refuse"),
                play(engine, 700),
            )


if __name__ == "__main__":
    asyncio.run(main())
