"""The engine warns if the event loop was blocked: then no run goes on and no lease is renewed."""

from __future__ import annotations

import threading
from datetime import timedelta

from pydantic import BaseModel
from structlog.testing import capture_logs

from aioflow import Engine, complete, get_context, step, workflow
from tests.support import wait_until


@workflow("holds-the-loop-up")
class HoldsUp:
    """Its step blocks the event loop."""

    class Context(BaseModel):
        seconds: float

    @step(start=True)
    async def hold(self):
        threading.Event().wait(get_context(self.Context).seconds)
        return complete()


async def test_a_blocked_loop_is_logged_with_its_duration() -> None:
    """If the loop was blocked for most of a lease, one warning with the seconds is logged."""
    with capture_logs() as logs:
        async with Engine("memory://", workflows=[HoldsUp], lease=timedelta(seconds=1)) as engine:
            await (await engine.start(HoldsUp, seconds=0.9)).wait()
            told = lambda: [line for line in logs if line["event"] == "event loop did not turn"]  # noqa: E731
            await wait_until(told, what="the block is told")
    assert [line["log_level"] for line in told()] == ["warning"]
    assert 0.5 <= told()[0]["seconds"] <= 5
