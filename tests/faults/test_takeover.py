"""Several processes on one file: one works, the others are clients, and one of them takes over when the worker ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from datetime import timedelta

import pytest

from aioflow import Engine, WorkflowRun
from tests.faults.children import Child, House
from tests.faults.program import Machine
from tests.support import wait_until

#: Seconds within which another process takes over from one that was killed.
TAKEOVER = 2.0


async def a_worker(house: House, **job: object) -> Child:
    """A process that works the file."""
    child = house.bear(**job)
    await house.noted("open", life=child.life)
    return child


async def history_of(run: WorkflowRun, engine: Engine) -> list[tuple[str, str, int]]:
    """The run's transitions: kind, step and attempt."""
    return [(t.kind, t.step, t.attempt) for t in await engine.history(run.id)]


async def test_a_client_starts_asks_waits_and_cancels(house: House) -> None:
    """While one process works the file, another can start, query, await and cancel runs, and executes no steps."""
    worker = await a_worker(house)
    house.enter()
    async with Engine(house.url) as engine:
        run = await engine.start(Machine, program=["coroutine: take 5, sleep 20", "thread: flaky 1, complete"])
        assert (await run.result(10)).path == ["coroutine", "thread"]
        assert [kind for kind, *_ in await history_of(run, engine)] == [
            "start", "sleep", "wake", "retry", "wake", "complete",
        ]  # fmt: skip
        assert (await engine.get(run.id)).status == "completed"
        parked = await engine.start(Machine, program=["coroutine: sleep 60000", "coroutine: complete"])
        await parked.wait(10, until="parked")
        assert (await engine.runs(status="waiting"), await engine.count()) == ([parked], 2)
        assert await engine.cancel(parked.id, "not needed")
        await parked.refresh()
        assert (parked.status, parked.error) == ("cancelled", "not needed")
        assert (await engine.stats()).running_here == 0
    assert {note["pid"] for note in house.steps()} == {worker.pid}
    worker.send(signal.SIGTERM)
    assert await worker.ended() == 0


async def test_a_client_cancels_what_another_process_runs(house: House) -> None:
    """The worker stops a step whose run a client has cancelled, and its slot is free again."""
    worker = await a_worker(house, max_running=1)
    async with Engine(house.url, worker=False) as engine:
        run = await engine.start(Machine, program=["coroutine: hold 9, goto", "thread: complete"])
        await house.noted("step", run=run.id)
        assert await engine.cancel(run.id)
        await house.noted("stopped", run=run.id, within=5)
        after = await engine.start(Machine, program=["coroutine: complete"])
        assert (await after.wait(5)).status == "completed"
        await run.refresh()
        assert run.status == "cancelled"
    assert await worker.ended(0) is None


@pytest.mark.parametrize("moment", [0.0, 0.3, 0.7])
async def test_takeover_after_a_kill(house: House, moment: float) -> None:
    """When the worker is killed, another process runs its interrupted step within two seconds."""
    worker = await a_worker(house)
    here = house.enter()
    async with Engine(house.url) as engine:
        run = await engine.start(Machine, program=[f"coroutine: hold {here}, goto", "thread: complete"])
        (before,) = await house.noted("step", run=run.id)
        assert await worker.ended(moment) is None  # the other tries the lock each second; kill at any phase
        await run.refresh()
        assert (before["pid"], run.status, run.row.crashes) == (worker.pid, "running", 0)
        killed = time.time()
        await worker.kill()
        after = (await house.noted("step", life=here))[0]
        took = after["wall"] / 1e6 - killed
        sys.stdout.write(f"takeover {took:.2f} s after the kill\n")
        assert 0 < took < TAKEOVER
        assert (after["key"], after["attempt"], after["pid"]) == (before["key"], 1, os.getpid())
        assert (await run.result(10)).path == ["coroutine", "thread"]
        assert await history_of(run, engine) == [
            ("start", "coroutine", 1), ("goto", "coroutine", 1), ("complete", "thread", 1),
        ]  # fmt: skip


async def test_a_kill_is_counted_and_a_clean_end_is_not(house: House) -> None:
    """A run taken from a killed worker has one crash more; one that its worker gave back has not."""
    async with Engine(house.url, worker=False) as engine:
        run = await engine.start(Machine, program=["coroutine: hold 9, complete"])
        for number, code, crashes in [
            (signal.SIGTERM, 0, 0),
            (signal.SIGKILL, -signal.SIGKILL, 0),
            (signal.SIGTERM, 0, 1),
        ]:
            worker = await a_worker(house, shutdown_timeout=0.1)
            await house.noted("step", run=run.id, life=worker.life)
            await run.refresh()
            assert run.row.crashes == crashes
            worker.send(number)
            assert await worker.ended() == code
            await run.refresh()
            assert run.status == "running"
            assert (run.row.owner is None) == (number == signal.SIGTERM)
    assert len(house.steps(run=run.id)) == 3
    assert len({note["key"] for note in house.steps()}) == 1


async def test_takeover_after_a_clean_end(house: House) -> None:
    """When the worker ends by SIGTERM it gives back its run, with no crash counted, and another goes on with it."""
    worker = await a_worker(house, shutdown_timeout=0.2)
    here = house.enter()
    async with Engine(house.url) as engine:
        run = await engine.start(Machine, program=[f"coroutine: hold {here}, take 1000, complete"])
        (before,) = await house.noted("step", run=run.id)
        worker.send(signal.SIGTERM)
        (after,) = await house.noted("step", run=run.id, life=here)
        await run.refresh()
        assert (run.status, run.row.crashes, run.row.seq) == ("running", 0, 1)
        assert (before["key"], before["attempt"]) == (after["key"], after["attempt"])
        assert (await run.wait(10)).status == "completed"
    assert await worker.ended() == 0
    assert len(house.journal.notes("stopped", life=worker.life)) == 1


async def test_one_of_four_processes_works(house: House) -> None:
    """Of four processes that open a new file at once and start runs, one works, and each step runs once."""
    program = ["coroutine: take 2, goto", "thread: sleep 5", "inline: complete"]
    children = [house.bear(starts=[[1000 * n + i, program] for i in range(25)]) for n in range(4)]
    await asyncio.gather(*(house.noted("started", life=child.life) for child in children))
    async with Engine(house.url, worker=False) as engine:
        async with asyncio.timeout(20):
            async for run in engine.iter_runs():
                assert (await run.wait()).status == "completed"
        assert await engine.count() == 100
    for child in children:
        child.send(signal.SIGTERM)
    assert [await child.ended() for child in children] == [0, 0, 0, 0]
    assert len({note["pid"] for note in house.steps()}) == 1
    assert len(house.steps()) == 300
    assert set(Counter(note["key"] for note in house.steps()).values()) == {1}


async def test_every_survivor_takes_its_turn(house: House) -> None:
    """Of four processes, each worker that is killed is followed by another within two seconds, until none is left."""
    children = {child.pid: child for child in [house.bear() for _ in range(4)]}
    await house.noted("open", 4)
    took: list[float] = []
    killed = 0.0
    async with Engine(house.url, worker=False) as engine:
        run = await engine.start(Machine, program=["coroutine: hold 9, complete"])
        for turn in range(1, 5):
            note = (await house.noted("step", turn, run=run.id))[-1]
            if killed:
                took.append(note["wall"] / 1e6 - killed)
            killed = time.time()
            await children.pop(note["pid"]).kill()
        await run.refresh()
        assert (run.status, run.row.seq) == ("running", 1)
    sys.stdout.write(f"takeovers {[round(seconds, 2) for seconds in took]} s after the kills\n")
    assert len(took) == 3
    assert max(took) < TAKEOVER
    assert len({note["key"] for note in house.steps()}) == 1
    assert not children


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_run_forever_drains(house: House, number: signal.Signals) -> None:
    """On SIGTERM and SIGINT, steps may end and commit, those that take too long are stopped, and the exit code is 0."""
    child = house.interpret(bare=True, shutdown_timeout=3.0)
    async with Engine(house.url, worker=False) as engine:
        first = await engine.start(Machine, program=["coroutine: complete"])
        await first.wait(20)  # the worker is up, and handles SIGTERM
        ending = [
            await engine.start(Machine, program=["coroutine: take 1500, goto", "thread: complete"]),
            await engine.start(Machine, program=["coroutine: goto", "thread: take 1500, goto", "coroutine: complete"]),
            await engine.start(Machine, program=["coroutine: take 1500, complete"]),
        ]
        stopped = await engine.start(Machine, program=[f"coroutine: flaky 1, hold {child.life + 1}, complete"])
        await house.noted("step", run=ending[0].id, at=0)
        await house.noted("step", run=ending[1].id, at=1)
        await house.noted("step", run=ending[2].id, at=0)
        (before,) = await house.noted("step", run=stopped.id, attempt=2)
        await stopped.refresh()
        parked_at = stopped.row.seq
        sent = time.time_ns() // 1000
        child.send(number)
        assert await child.ended() == 0
        assert len(house.journal.notes("closed", life=child.life)) == 1

        for run, status, step, kind in zip(
            ending, ["running", "running", "completed"], ["thread", "coroutine", "coroutine"],
            ["goto", "goto", "complete"], strict=True,
        ):  # fmt: skip
            await run.refresh()
            last = (await engine.history(run.id))[-1]
            assert (run.status, run.current_step, last.kind) == (status, step, kind)
            assert last.at_micros >= sent, "the step had ended before the signal"
            assert last.duration >= timedelta(seconds=1.5)
            assert (run.row.owner, run.row.crashes) == (None, 0)
        await stopped.refresh()
        assert (stopped.status, stopped.row.seq, stopped.attempt) == ("running", parked_at, 2)
        assert (stopped.row.owner, stopped.row.crashes) == (None, 0)
        assert len(house.journal.notes("stopped", key=before["key"])) == 1
        begun = len(house.steps())
        assert not [note for note in house.steps() if note["wall"] > sent + 100_000]

        next_life = house.bear(finish=True)
        assert await next_life.ended() == 0
        (after,) = house.steps(run=stopped.id, life=next_life.life)
        assert (after["key"], after["attempt"]) == (before["key"], 2)
        assert len(house.steps()) == begun + 3
        assert await engine.count(status="completed") == 5


async def test_no_step_begins_while_it_drains(house: House) -> None:
    """Steps that wait for a thread when the shutdown begins are not executed: their runs are given back."""
    child = house.bear(threads=1, starts=[[n, ["coroutine: goto", "thread: take 400, complete"]] for n in range(3)])
    await house.noted("started")
    await house.noted("step", at=1)
    async with Engine(house.url, worker=False) as engine:
        await wait_until(lambda: has_runs_at(engine, "thread", 3))
        child.send(signal.SIGTERM)
        assert await child.ended() == 0
        assert len(house.steps(at=1)) == 1
        assert (await engine.count(status="completed"), await engine.count(status="running")) == (1, 2)


async def has_runs_at(engine: Engine, step: str, count: int) -> bool:
    """Whether so many runs are at a step."""
    return await engine.count(step=step) == count


async def test_a_thread_that_does_not_end_is_left_behind(house: House) -> None:
    """A sync step that outlasts ``shutdown_timeout`` cannot be stopped: its run is given back, and resumes later."""
    child = house.bear(shutdown_timeout=0.2)
    async with Engine(house.url, worker=False) as engine:
        run = await engine.start(
            Machine, program=["coroutine: goto", f"thread: flaky 1, hold {child.life + 1}, complete"]
        )
        (before,) = await house.noted("step", run=run.id, attempt=2)
        await house.noted("open")
        child.send(signal.SIGTERM)
        await house.noted("closed")
        await run.refresh()
        assert (run.status, run.row.owner, run.row.crashes, run.attempt) == ("running", None, 0, 2)
        next_life = house.bear(finish=True)
        assert await next_life.ended() == 0
        (after,) = house.steps(run=run.id, life=next_life.life)
        assert (after["key"], after["attempt"]) == (before["key"], 2)
        await run.refresh()
        assert (run.status, run.data["path"]) == ("completed", ["coroutine", "thread"])


async def test_a_forked_child_has_no_lock(house: House) -> None:
    """A process that the worker has forked does not get the lock, nor keeps it from others once the worker is dead."""
    worker = await a_worker(house)
    here = house.enter()
    async with Engine(house.url) as engine:
        run = await engine.start(Machine, program=[f"coroutine: fork {worker.life}, hold {here}, complete"])
        (begotten,) = await house.noted("begotten", life=worker.life)
        try:
            assert begotten["pid"] != worker.pid
            assert begotten["locked"] is False
            await house.noted("step", run=run.id)
            killed = time.time()
            await worker.kill()
            (after,) = await house.noted("step", life=here)
            assert after["wall"] / 1e6 - killed < TAKEOVER
            os.kill(begotten["pid"], 0)  # it is alive
            await run.wait(10)
        finally:
            os.kill(begotten["pid"], signal.SIGKILL)
