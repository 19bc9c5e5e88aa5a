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
from tests.faults.children import Child, Sandbox
from tests.faults.program import Machine
from tests.support import wait_until

#: Seconds within which another process takes over from one that was killed.
TAKEOVER = 2.0


async def a_worker(sandbox: Sandbox, **job: object) -> Child:
    """A process that works the file."""
    child = sandbox.launch(**job)
    await sandbox.noted("open", life=child.life)
    return child


async def history_of(run: WorkflowRun, engine: Engine) -> list[tuple[str, str, int]]:
    """The run's transitions: kind, step and attempt."""
    return [(t.kind, t.step, t.attempt) for t in await engine.history(run.id)]


async def test_a_client_starts_asks_waits_and_cancels(sandbox: Sandbox) -> None:
    """While one process works the file, another can start, query, await and cancel runs, and executes no steps."""
    worker = await a_worker(sandbox)
    sandbox.enter()
    async with Engine(sandbox.url) as engine:
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
    assert {note["pid"] for note in sandbox.steps()} == {worker.pid}
    worker.send(signal.SIGTERM)
    assert await worker.ended() == 0


async def test_a_client_cancels_what_another_process_runs(sandbox: Sandbox) -> None:
    """The worker stops a step whose run a client has cancelled, and its slot is free again."""
    worker = await a_worker(sandbox, max_running=1)
    async with Engine(sandbox.url, worker=False) as engine:
        run = await engine.start(Machine, program=["coroutine: hold 9, goto", "thread: complete"])
        await sandbox.noted("step", run=run.id)
        assert await engine.cancel(run.id)
        await sandbox.noted("stopped", run=run.id, within=5)
        after = await engine.start(Machine, program=["coroutine: complete"])
        assert (await after.wait(5)).status == "completed"
        await run.refresh()
        assert run.status == "cancelled"
    assert await worker.ended(0) is None


@pytest.mark.parametrize("moment", [0.0, 0.3, 0.7])
async def test_takeover_after_a_kill(sandbox: Sandbox, moment: float) -> None:
    """When the worker is killed, another process runs its interrupted step within two seconds."""
    worker = await a_worker(sandbox)
    here = sandbox.enter()
    async with Engine(sandbox.url) as engine:
        run = await engine.start(Machine, program=[f"coroutine: hold {here}, goto", "thread: complete"])
        (before,) = await sandbox.noted("step", run=run.id)
        assert await worker.ended(moment) is None  # the other tries the lock each second; kill at any phase
        await run.refresh()
        assert (before["pid"], run.status, run.row.crashes) == (worker.pid, "running", 0)
        killed = time.time()
        await worker.kill()
        after = (await sandbox.noted("step", life=here))[0]
        took = after["wall"] / 1e6 - killed
        sys.stdout.write(f"takeover {took:.2f} s after the kill\n")
        assert 0 < took < TAKEOVER
        assert (after["key"], after["attempt"], after["pid"]) == (before["key"], 1, os.getpid())
        assert (await run.result(10)).path == ["coroutine", "thread"]
        assert await history_of(run, engine) == [
            ("start", "coroutine", 1), ("goto", "coroutine", 1), ("complete", "thread", 1),
        ]  # fmt: skip


async def test_a_kill_is_counted_and_a_clean_end_is_not(sandbox: Sandbox) -> None:
    """A run taken from a killed worker has one crash more; one that its worker gave back has not."""
    async with Engine(sandbox.url, worker=False) as engine:
        run = await engine.start(Machine, program=["coroutine: hold 9, complete"])
        for number, code, crashes in [
            (signal.SIGTERM, 0, 0),
            (signal.SIGKILL, -signal.SIGKILL, 0),
            (signal.SIGTERM, 0, 1),
        ]:
            worker = await a_worker(sandbox, shutdown_timeout=0.1)
            await sandbox.noted("step", run=run.id, life=worker.life)
            await run.refresh()
            assert run.row.crashes == crashes
            worker.send(number)
            assert await worker.ended() == code
            await run.refresh()
            assert run.status == "running"
            assert (run.row.owner is None) == (number == signal.SIGTERM)
    assert len(sandbox.steps(run=run.id)) == 3
    assert len({note["key"] for note in sandbox.steps()}) == 1


async def test_takeover_after_a_clean_end(sandbox: Sandbox) -> None:
    """When the worker ends by SIGTERM it gives back its run, with no crash counted, and another goes on with it."""
    worker = await a_worker(sandbox, shutdown_timeout=0.2)
    here = sandbox.enter()
    async with Engine(sandbox.url) as engine:
        run = await engine.start(Machine, program=[f"coroutine: hold {here}, take 1000, complete"])
        (before,) = await sandbox.noted("step", run=run.id)
        worker.send(signal.SIGTERM)
        (after,) = await sandbox.noted("step", run=run.id, life=here)
        await run.refresh()
        assert (run.status, run.row.crashes, run.row.seq) == ("running", 0, 1)
        assert (before["key"], before["attempt"]) == (after["key"], after["attempt"])
        assert (await run.wait(10)).status == "completed"
    assert await worker.ended() == 0
    assert len(sandbox.journal.notes("stopped", life=worker.life)) == 1


async def test_one_of_four_processes_works(sandbox: Sandbox) -> None:
    """Of four processes that open a new file at once and start runs, one works, and each step runs once."""
    program = ["coroutine: take 2, goto", "thread: sleep 5", "inline: complete"]
    children = [sandbox.launch(starts=[[1000 * n + i, program] for i in range(25)]) for n in range(4)]
    await asyncio.gather(*(sandbox.noted("started", life=child.life) for child in children))
    async with Engine(sandbox.url, worker=False) as engine:
        async with asyncio.timeout(20):
            async for run in engine.iter_runs():
                assert (await run.wait()).status == "completed"
        assert await engine.count() == 100
    for child in children:
        child.send(signal.SIGTERM)
    assert [await child.ended() for child in children] == [0, 0, 0, 0]
    assert len({note["pid"] for note in sandbox.steps()}) == 1
    assert len(sandbox.steps()) == 300
    assert set(Counter(note["key"] for note in sandbox.steps()).values()) == {1}


async def test_every_survivor_takes_its_turn(sandbox: Sandbox) -> None:
    """Of four processes, each worker that is killed is followed by another within two seconds, until none is left."""
    children = {child.pid: child for child in [sandbox.launch() for _ in range(4)]}
    await sandbox.noted("open", 4)
    took: list[float] = []
    killed = 0.0
    async with Engine(sandbox.url, worker=False) as engine:
        run = await engine.start(Machine, program=["coroutine: hold 9, complete"])
        for turn in range(1, 5):
            note = (await sandbox.noted("step", turn, run=run.id))[-1]
            if killed:
                took.append(note["wall"] / 1e6 - killed)
            killed = time.time()
            await children.pop(note["pid"]).kill()
        await run.refresh()
        assert (run.status, run.row.seq) == ("running", 1)
    sys.stdout.write(f"takeovers {[round(seconds, 2) for seconds in took]} s after the kills\n")
    assert len(took) == 3
    assert max(took) < TAKEOVER
    assert len({note["key"] for note in sandbox.steps()}) == 1
    assert not children


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_run_forever_drains(sandbox: Sandbox, number: signal.Signals) -> None:
    """On SIGTERM and SIGINT, steps may end and commit, those that take too long are stopped, and the exit code is 0."""
    child = sandbox.launch_interpreter(bare=True, shutdown_timeout=3.0)
    async with Engine(sandbox.url, worker=False) as engine:
        first = await engine.start(Machine, program=["coroutine: complete"])
        await first.wait(20)  # the worker is up, and handles SIGTERM
        ending = [
            await engine.start(Machine, program=["coroutine: take 1500, goto", "thread: complete"]),
            await engine.start(Machine, program=["coroutine: goto", "thread: take 1500, goto", "coroutine: complete"]),
            await engine.start(Machine, program=["coroutine: take 1500, complete"]),
        ]
        stopped = await engine.start(Machine, program=[f"coroutine: flaky 1, hold {child.life + 1}, complete"])
        await sandbox.noted("step", run=ending[0].id, at=0)
        await sandbox.noted("step", run=ending[1].id, at=1)
        await sandbox.noted("step", run=ending[2].id, at=0)
        (before,) = await sandbox.noted("step", run=stopped.id, attempt=2)
        await stopped.refresh()
        parked_at = stopped.row.seq
        sent = time.time_ns() // 1000
        child.send(number)
        assert await child.ended() == 0
        assert len(sandbox.journal.notes("closed", life=child.life)) == 1

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
        assert len(sandbox.journal.notes("stopped", key=before["key"])) == 1
        begun = len(sandbox.steps())
        assert not [note for note in sandbox.steps() if note["wall"] > sent + 100_000]

        next_life = sandbox.launch(finish=True)
        assert await next_life.ended() == 0
        (after,) = sandbox.steps(run=stopped.id, life=next_life.life)
        assert (after["key"], after["attempt"]) == (before["key"], 2)
        assert len(sandbox.steps()) == begun + 3
        assert await engine.count(status="completed") == 5


async def test_no_step_begins_while_it_drains(sandbox: Sandbox) -> None:
    """Steps that wait for a thread when the shutdown begins are not executed: their runs are given back."""
    child = sandbox.launch(threads=1, starts=[[n, ["coroutine: goto", "thread: take 400, complete"]] for n in range(3)])
    await sandbox.noted("started")
    await sandbox.noted("step", at=1)
    async with Engine(sandbox.url, worker=False) as engine:
        await wait_until(lambda: has_runs_at(engine, "thread", 3))
        child.send(signal.SIGTERM)
        assert await child.ended() == 0
        assert len(sandbox.steps(at=1)) == 1
        assert (await engine.count(status="completed"), await engine.count(status="running")) == (1, 2)


async def has_runs_at(engine: Engine, step: str, count: int) -> bool:
    """Whether so many runs are at a step."""
    return await engine.count(step=step) == count


async def test_a_thread_that_does_not_end_is_left_behind(sandbox: Sandbox) -> None:
    """A sync step that outlasts ``shutdown_timeout`` cannot be stopped: its run is given back, and resumes later."""
    child = sandbox.launch(shutdown_timeout=0.2)
    async with Engine(sandbox.url, worker=False) as engine:
        run = await engine.start(
            Machine, program=["coroutine: goto", f"thread: flaky 1, hold {child.life + 1}, complete"]
        )
        (before,) = await sandbox.noted("step", run=run.id, attempt=2)
        await sandbox.noted("open")
        child.send(signal.SIGTERM)
        await sandbox.noted("closed")
        await run.refresh()
        assert (run.status, run.row.owner, run.row.crashes, run.attempt) == ("running", None, 0, 2)
        next_life = sandbox.launch(finish=True)
        assert await next_life.ended() == 0
        (after,) = sandbox.steps(run=run.id, life=next_life.life)
        assert (after["key"], after["attempt"]) == (before["key"], 2)
        await run.refresh()
        assert (run.status, run.data["path"]) == ("completed", ["coroutine", "thread"])


async def test_a_forked_child_has_no_lock(sandbox: Sandbox) -> None:
    """A process that the worker has forked does not get the lock, nor keeps it from others once the worker is dead."""
    worker = await a_worker(sandbox)
    here = sandbox.enter()
    async with Engine(sandbox.url) as engine:
        run = await engine.start(Machine, program=[f"coroutine: fork {worker.life}, hold {here}, complete"])
        (forked,) = await sandbox.noted("forked", life=worker.life)
        try:
            assert forked["pid"] != worker.pid
            assert forked["locked"] is False
            await sandbox.noted("step", run=run.id)
            killed = time.time()
            await worker.kill()
            (after,) = await sandbox.noted("step", life=here)
            assert after["wall"] / 1e6 - killed < TAKEOVER
            os.kill(forked["pid"], 0)  # it is alive
            await run.wait(10)
        finally:
            os.kill(forked["pid"], signal.SIGKILL)
