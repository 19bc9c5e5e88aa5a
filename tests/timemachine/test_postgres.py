"""Virtual time on PostgreSQL: timers fire in order, each at its own instant, and signals are taken."""

from __future__ import annotations

from datetime import timedelta

from pydantic import BaseModel

from aioflow import complete, get_context, get_run, sleep, step, wait, workflow
from aioflow.testing import TimeMachine


@workflow("reminded-on-postgres")
class Reminded:
    class Context(BaseModel):
        at: list[str] = []
        paid: bool = False

    @step(start=True)
    async def remind(self):
        ctx = get_context(self.Context)
        ctx.at.append(f"{get_run().now:%d %H:%M}")
        return sleep(timedelta(hours=12)) if len(ctx.at) < 3 else self.ask()

    def ask(self):
        return wait.for_signal("paid", timeout=timedelta(days=30), on_timeout=self.done, then=self.done)

    @step
    async def done(self):
        return complete()


async def test_time_is_virtual_on_postgres(postgres_url: str) -> None:
    """Days pass at once, sleeps end at their own instants, and a signal is taken."""
    async with TimeMachine(postgres_url, workflows=[Reminded]) as flow:
        began = flow.now
        run = await flow.start(Reminded)
        await flow.advance(days=2)
        await run.refresh()
        expected = [f"{began + timedelta(hours=hours):%d %H:%M}" for hours in (0, 12, 24)]
        assert run.context.at == expected
        assert run.waiting_signal == "paid"
        await flow.signal("paid", {"paid": True}, run_id=run.id)
        await flow.settle()
        await run.refresh()
        assert (run.status, run.context.paid) == ("completed", True)
        assert flow.now == began + timedelta(days=2)


async def test_time_jumps_while_a_run_is_awaited(postgres_url: str) -> None:
    """Awaiting a run lets time jump to its timeout."""
    async with TimeMachine(postgres_url, workflows=[Reminded]) as flow:
        began = flow.now
        run = await flow.start(Reminded)
        await run.wait()
        assert flow.now == began + timedelta(days=31)
        assert not run.context.paid
