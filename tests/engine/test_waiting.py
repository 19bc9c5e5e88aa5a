"""Waiting for runs until they end or park, in the engine that executes them and in others."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import Engine, StartOptions, WorkflowRun, complete, errors, fail, get_context, goto, sleep, step, workflow
from aioflow.clock import Micros
from aioflow.commands import Command
from aioflow.model import Run
from aioflow_memory import MemoryStore
from tests.engine.conftest import MakeEngine, ShiftedClock, moved_on, run_of
from tests.support import wait_until

HOUR = timedelta(hours=1)


@workflow("waiting-order")
class Order:
    """Ends or parks as its Context says."""

    class Context(BaseModel):
        way: str = "complete"
        total: int = 0

    @step(start=True)
    async def pay(self) -> Command:
        context = get_context(self.Context)
        context.total += 1
        match context.way:
            case "fail":
                return fail("declined")
            case "sleep":
                return sleep(HOUR, then=self.end)
            case "long":
                await asyncio.Event().wait()
        return goto(self.end)

    @step
    async def end(self) -> Command:
        return complete(total=42)


class Gated:
    """A workflow whose step waits for a gate."""

    def __init__(self, name: str) -> None:
        self.gate = gate = asyncio.Event()

        @workflow(f"waiting-{name}")
        class Flow:
            class Context(BaseModel):
                pass

            @step(start=True)
            async def wait(self) -> Command:
                await gate.wait()
                return complete(done=True)

        self.workflow = Flow


def waiting(engine: Engine) -> int:
    """How many runs have waiters in this engine."""
    assert engine._parts is not None
    return len(engine._parts.waiters.run_ids)


# ---- until the run has ended


@pytest.mark.parametrize(("way", "status"), [("complete", "completed"), ("fail", "failed")])
async def test_wait_gives_the_run_as_it_ended(make_engine: MakeEngine, way: str, status: str) -> None:
    """wait() returns the run whatever its status, and run.wait() updates the object itself and returns it."""
    async with make_engine(Order) as engine:
        run = await engine.start(Order, way=way)
        assert run.status == "running"
        found = await engine.wait(run.id, 5)
        assert (found.status, run.status) == (status, "running")
        assert await run.wait(5) is run
        assert (run.status, run) == (status, found)
        assert run.ended_at is not None


async def test_run_that_has_ended_is_given_at_once(make_engine: MakeEngine) -> None:
    """wait() for a run that has ended returns at once, even with a timeout of zero and after a restart."""
    async with make_engine(Order) as engine:
        run = await run_of(engine, Order)
        for timeout in (None, 5, 0, 0.0, timedelta(0)):
            assert await engine.wait(run.id, timeout) == run
        assert (await run.result(0)).total == 42
    async with make_engine(Order, worker=False) as engine:
        assert await engine.wait(run.id, 0) == run
        assert await engine.wait(run.id) == run


async def test_wait_until_parked_is_over_when_the_run_waits(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """wait(until="parked") returns when the run sleeps or waits for its start, and also when it has ended."""
    async with make_engine(Order) as engine:
        run = await engine.start(Order, way="sleep")
        assert (await engine.wait(run.id, 5, until="parked")).waiting_for == "sleep"
        assert (await run.wait(0, until="parked")).waiting_for == "sleep"
        delayed = await engine.start(Order, StartOptions(delay=HOUR))
        assert (await delayed.wait(5, until="parked")).waiting_for == "start"
        clock.shift(HOUR)
        await moved_on(run)
        assert (await run.wait(5, until="parked")).status == "completed"
        assert (await delayed.wait(5)).status == "completed"


async def test_wait_is_over_at_the_end_not_before(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """wait() does not return before the run has ended, through sleeps and steps."""
    async with make_engine(Order) as engine:
        run = await engine.start(Order, way="sleep")
        waiter = asyncio.ensure_future(engine.wait(run.id))
        await run.wait(5, until="parked")
        for _ in range(20):
            await asyncio.sleep(0)
        assert not waiter.done()
        clock.shift(HOUR)
        async with asyncio.timeout(5):
            assert (await waiter).status == "completed"


# ---- timeouts and arguments


@pytest.mark.parametrize(("timeout", "text"), [(0.02, "0.02"), (timedelta(milliseconds=20), "0.02"), (0, "0")])
@pytest.mark.parametrize("until", ["ended", "parked"])
async def test_wait_that_takes_too_long_is_a_timeout(
    make_engine: MakeEngine, timeout: Any, text: str, until: Any
) -> None:
    """The TimeoutError names the run, what was waited for, and the seconds; the run goes on."""
    gated = Gated("slow")
    async with make_engine(gated.workflow) as engine:
        run = await engine.start(gated.workflow)
        for call in (lambda: engine.wait(run.id, timeout, until=until), lambda: run.wait(timeout, until=until)):
            with pytest.raises(TimeoutError) as raised:
                await call()
            assert str(raised.value) == f"Run {run.id} has not {until} within {text} s."
        assert run.status == "running"
        await wait_until(lambda: not waiting(engine))
        gated.gate.set()
        assert (await run.wait(5)).status == "completed"


async def test_result_can_time_out(make_engine: MakeEngine) -> None:
    """result() takes the same timeout as wait()."""
    gated = Gated("result")
    async with make_engine(gated.workflow) as engine:
        run = await engine.start(gated.workflow)
        with pytest.raises(TimeoutError, match=f"^Run {run.id} has not ended within 0.01 s.$"):
            await run.result(timedelta(milliseconds=10))
        gated.gate.set()
        assert (await run.result(5)).done is True


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"timeout": "5"}, TypeError, "timeout takes seconds or a timedelta, got str."),
        ({"timeout": True}, TypeError, "timeout takes seconds or a timedelta, got bool."),
        ({"timeout": -1}, ValueError, "timeout must not be negative, got -1."),
        ({"timeout": timedelta(seconds=-1)}, ValueError, "timeout must not be negative, got -1.0."),
        ({"timeout": float("nan")}, ValueError, "timeout must not be negative, got nan."),
        ({"until": "done"}, ValueError, "wait(until=...) takes 'ended' or 'parked', got 'done'."),
    ],
)
async def test_arguments_of_wait_are_checked(
    make_engine: MakeEngine, arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    """A wrong argument is refused with an error, and no waiter is left."""
    async with make_engine(Order, worker=False) as engine:
        run = await engine.start(Order)
        with pytest.raises(error) as raised:
            await engine.wait(run.id, **arguments)
        assert str(raised.value) == text
        assert waiting(engine) == 0


@pytest.mark.parametrize("timeout", [float("inf"), timedelta.max, 10**9])
async def test_timeout_may_be_very_long(make_engine: MakeEngine, timeout: Any) -> None:
    """A very long timeout counts as none."""
    async with make_engine(Order) as engine:
        run = await engine.start(Order)
        assert (await run.wait(timeout)).status == "completed"


# ---- result


async def test_result_is_the_final_context(make_engine: MakeEngine) -> None:
    """result() returns the typed Context of a completed run, with the data of complete()."""
    async with make_engine(Order) as engine:
        run = await engine.start(Order)
        result = await run.result(5)
        assert isinstance(result, Order.Context)
        assert (result.way, result.total) == ("complete", 42)
        assert await engine.result(run.id) == result


async def test_result_of_a_failed_run_raises(make_engine: MakeEngine) -> None:
    """result() of a failed run is RunFailed, with the run, workflow, step and the recorded error."""
    async with make_engine(Order) as engine:
        run = await engine.start(Order, way="fail")
        for call in (lambda: engine.result(run.id, 5), run.result):
            with pytest.raises(errors.RunFailed) as raised:
                await call()
            failed = raised.value
            assert str(failed) == f"Run {run.id} of workflow 'waiting-order' failed in step 'pay': declined"
            assert (failed.run_id, failed.workflow, failed.step, failed.error) == (
                run.id,
                "waiting-order",
                "pay",
                "declined",
            )


@pytest.mark.parametrize("reason", ["no longer wanted", None])
async def test_result_of_a_cancelled_run_raises(make_engine: MakeEngine, reason: str | None) -> None:
    """result() of a cancelled run is RunCancelled, with the run, the step, and the reason if there is one."""
    async with make_engine(Order) as engine:
        run = await engine.start(Order, way="long")
        waiter = asyncio.ensure_future(run.result(5))
        await asyncio.sleep(0)
        assert await engine.cancel(run.id, reason)
        with pytest.raises(errors.RunCancelled) as raised:
            await waiter
        said = ": no longer wanted" if reason else "."
        assert str(raised.value) == f"Run {run.id} of workflow 'waiting-order' was cancelled at step 'pay'{said}"
        assert (raised.value.run_id, raised.value.reason) == (run.id, reason)


# ---- several waiters


async def test_many_wait_for_one_run(make_engine: MakeEngine) -> None:
    """All who wait for one run are told, and no waiter is left."""
    gated = Gated("many")
    async with make_engine(gated.workflow) as engine, make_engine(gated.workflow, worker=False) as client:
        run = await engine.start(gated.workflow)
        waiters = [asyncio.ensure_future(who.wait(run.id, 10)) for who in (engine, client) for _ in range(100)]
        await wait_until(lambda: waiting(engine) == waiting(client) == 1)
        gated.gate.set()
        found = await asyncio.gather(*waiters)
        assert {other.status for other in found} == {"completed"}
        await wait_until(lambda: waiting(engine) == waiting(client) == 0)


async def test_waiter_that_gives_up_leaves_nothing_behind(make_engine: MakeEngine) -> None:
    """Some waiters for a run may be cancelled; the others are told, and no waiter is left."""
    gated = Gated("gives-up")
    async with make_engine(gated.workflow) as engine:
        run = await engine.start(gated.workflow)
        waiters = [asyncio.ensure_future(engine.wait(run.id)) for _ in range(20)]
        for turns, waiter in enumerate(waiters[:10]):
            for _ in range(turns):
                await asyncio.sleep(0)
            waiter.cancel()
        gave_up = await asyncio.gather(*waiters[:10], return_exceptions=True)
        assert {type(one) for one in gave_up} == {asyncio.CancelledError}
        assert waiting(engine) == 1
        gated.gate.set()
        assert {(await waiter).status for waiter in waiters[10:]} == {"completed"}
        await wait_until(lambda: waiting(engine) == 0)


async def test_refresh_reads_the_run_again_in_place(make_engine: MakeEngine) -> None:
    """refresh() updates the object and returns None; other objects of the same run do not change."""
    gated = Gated("refresh")
    async with make_engine(gated.workflow) as engine:
        run = await engine.start(gated.workflow)
        other = await engine.get(run.id)
        assert run == other
        assert hash(run) == hash(other)
        gated.gate.set()
        await engine.wait(run.id, 5)
        assert run.status == "running"
        assert await run.refresh() is None
        assert (run.status, run.data, other.status) == ("completed", {"done": True}, "running")
        assert run != other
        assert hash(run) == hash(other)


# ---- closing the engine


async def test_engine_that_closes_tells_those_who_wait(make_engine: MakeEngine) -> None:
    """All who wait while the engine closes get EngineClosed, even if they begin to wait only then."""
    gated = Gated("closes")
    engine = make_engine(gated.workflow, shutdown_timeout=timedelta(0))
    async with engine:
        run = await engine.start(gated.workflow)

        async def stubborn() -> list[BaseException]:
            raised: list[BaseException] = []
            while len(raised) < 3:
                try:
                    await engine.wait(run.id)
                except errors.EngineClosed as error:
                    raised.append(error)
            return raised

        waiters = [asyncio.ensure_future(engine.wait(run.id)) for _ in range(3)]
        again = asyncio.ensure_future(stubborn())
        await wait_until(lambda: waiting(engine))
    for waiter in waiters:
        with pytest.raises(errors.EngineClosed, match=r"^engine\.wait\(\) needs an open engine\."):
            await waiter
    try:
        async with asyncio.timeout(3):
            assert len(await again) == 3
    finally:
        again.cancel()


# ---- from another engine


async def test_client_waits_for_what_a_worker_executes(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A run that a client starts is executed by a worker, and the client's wait returns."""
    async with make_engine(Order) as worker, make_engine(Order, worker=False) as client:
        run = await client.start(Order)
        assert (await run.wait(5)).status == "completed"
        assert run.data["total"] == 42
        assert (await worker.get(run.id)) == run
        sleeping = await client.start(Order, way="sleep")
        assert (await sleeping.wait(5, until="parked")).waiting_for == "sleep"
        clock.shift(HOUR)
        assert (await sleeping.result(5)).total == 42


async def test_client_that_comes_first_waits_for_the_worker(make_engine: MakeEngine) -> None:
    """A run that a client starts stays in the store until a worker opens and executes it."""
    async with make_engine(Order, worker=False) as client:
        run = await client.start(Order)
        waiter = asyncio.ensure_future(run.wait(10))
        await asyncio.sleep(0)
        assert run.row.owner is None
        async with make_engine(Order):
            assert (await waiter).status == "completed"


async def test_client_need_not_know_the_workflow(make_engine: MakeEngine) -> None:
    """A client without the code can wait for a run and read its data, but not get its typed Context."""
    async with make_engine(Order) as worker, make_engine(worker=False, workflows=[]) as client:
        run = await worker.start(Order)
        found: WorkflowRun[Any] = await client.wait(run.id, 5)
        assert (found.status, found.data["total"]) == ("completed", 42)
        for call in (lambda: client.result(run.id), found.result):
            with pytest.raises(errors.WorkflowUnknown, match="No workflow 'waiting-order' version '1' is known"):
                await call()


async def test_wait_ends_when_another_worker_ends_the_run(make_engine: MakeEngine) -> None:
    """wait() in a client returns when a second worker ends the run that the first has given back."""
    gated = Gated("taken-over")
    async with make_engine(gated.workflow, worker=False) as client:
        async with make_engine(gated.workflow, shutdown_timeout=timedelta(0)) as first:
            run = await first.start(gated.workflow)
            waiter = asyncio.ensure_future(client.wait(run.id, 10))
            await wait_until(lambda: waiting(client))
        assert not waiter.done()
        gated.gate.set()
        async with make_engine(gated.workflow):
            assert (await waiter).status == "completed"


class Asked(MemoryStore):
    """A store that reads runs only when the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()

    async def load(self, ids: Collection[int], now: Micros) -> list[Run]:
        await self.gate.wait()
        return await super().load(ids, now)


async def test_timeout_counts_what_the_store_takes() -> None:
    """The timeout of wait() includes the time that the store takes, but a timeout of zero still reads the run."""
    store = Asked()
    async with Engine(store, workflows=[Order]) as engine:
        run = await engine.start(Order, way="sleep")
        await run.wait(5, until="parked")
        store.gate.clear()
        with pytest.raises(TimeoutError, match=r"within 0\.01 s"):
            await asyncio.wait_for(run.wait(0.01), 5)
        at_once = asyncio.create_task(run.wait(0, until="parked"))
        await asyncio.wait({at_once}, timeout=0.01)
        assert not at_once.done()
        store.gate.set()
        assert (await asyncio.wait_for(at_once, 5)).status == "waiting"
