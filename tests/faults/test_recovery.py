"""What was running or due goes on at once after a restart, with the Context and the step key that it had."""

from __future__ import annotations

import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from aioflow import Engine, WorkflowRun
from tests.faults.children import ForkServer, Sandbox
from tests.faults.program import Machine, advance
from tests.support import wait_until

#: Seconds within which what can go on after a restart has to. On an idle machine a fraction of it is enough.
AT_ONCE = 2.0


class Case(NamedTuple):
    """A run that is killed at some moment, and what it must do in its next life.

    Attributes:
        program: its program.
        dies_on: the process is killed when a transition of this kind is committed; None: while instruction ``at`` runs.
        at: the first instruction of the next life.
        attempt: the attempt of that instruction.
        same_visit: whether that visit had begun in the first life already.
        waiting_for: what the run waits for after the kill; None if it is running, "ended" if it has ended.
        delay: milliseconds of delay of its start.
    """

    program: list[str]
    dies_on: str | None = None
    at: int = 0
    attempt: int = 1
    same_visit: bool = False
    waiting_for: str | None = None
    delay: int = 0


CASES = {
    "in an async step": Case(["coroutine: hold 2, goto", "thread: complete"], same_visit=True),
    "in a thread step": Case(["coroutine: goto", "thread: hold 2, goto", "inline: complete"], at=1, same_visit=True),
    "in a step on the loop": Case(["coroutine: goto", "inline: hold 2, complete"], at=1, same_visit=True),
    "in the second attempt": Case(["coroutine: flaky 1, hold 2, complete"], attempt=2, same_visit=True),
    "in the last attempt": Case(
        ["coroutine: goto", "thread: flaky 3, hold 2, complete"], at=1, attempt=4, same_visit=True
    ),
    "in a step after a sleep": Case(["coroutine: sleep 1", "coroutine: hold 2, complete"], at=1, same_visit=True),
    "between start and step": Case(["coroutine: complete"], dies_on="start"),
    "between commit and next step": Case(["coroutine: goto", "thread: complete"], dies_on="goto", at=1),
    "waiting in retry": Case(
        ["coroutine: flaky 1, complete"], dies_on="retry", attempt=2, same_visit=True, waiting_for="retry"
    ),
    "waiting in RetryLater": Case(
        ["coroutine: goto", "thread: later 1, complete"], dies_on="retry", at=1, same_visit=True, waiting_for="retry"
    ),
    "between wake and retried step": Case(["coroutine: flaky 1, complete"], dies_on="wake", attempt=2, same_visit=True),
    "sleeping past its deadline": Case(
        ["coroutine: sleep 30", "thread: complete"], dies_on="sleep", at=1, waiting_for="sleep"
    ),
    "asleep for the same step": Case(
        ["coroutine: sleep 1", "coroutine: complete"], dies_on="sleep", at=1, waiting_for="sleep"
    ),
    "between wake and step": Case(["coroutine: sleep 1", "thread: complete"], dies_on="wake", at=1),
    "delayed start, due while down": Case(["coroutine: complete"], dies_on="start", waiting_for="start", delay=30),
    "after completion": Case(["coroutine: complete"], dies_on="complete", waiting_for="ended"),
    "after failure": Case(["coroutine: fail"], dies_on="fail", waiting_for="ended"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_goes_on_where_it_was(sandbox: Sandbox, case: Case) -> None:
    """A run whose process is killed at this moment goes on at once in the next life, where it was."""
    dead = sandbox.launch(
        starts=[[1, case.program, "the-run", case.delay]], dies_on=[case.dies_on] if case.dies_on else []
    )
    if case.dies_on:
        assert await dead.ended() == -signal.SIGKILL
    else:
        await sandbox.noted("step", at=case.at, attempt=case.attempt)
        await dead.kill()
    before = sandbox.steps(at=case.at)

    async with Engine(sandbox.url, worker=False) as engine:
        run = await engine.find(Machine, "the-run")
        ended = case.waiting_for == "ended"
        assert run.waiting_for == (None if ended else case.waiting_for)
        assert (run.status in ("completed", "failed"), run.status == "running") == (ended, case.waiting_for is None)
        kept = run.data
        assert kept["at"] == (len(case.program) if ended else case.at)
        if run.wake_at:  # no process lives until it is due
            due = run.wake_at.timestamp()
            await wait_until(lambda: time.time() > due)
        launched = time.time()
        assert await sandbox.launch(finish=True).ended() == 0
        assert sandbox.journal.notes("open", life=2)[0]["wall"] / 1e6 - launched < AT_ONCE
        await run.refresh()
        if ended:
            assert sandbox.steps(life=2) == []
            assert run.data == kept
            return
        first = sandbox.steps(life=2)[0]
        assert first["wall"] / 1e6 - launched < AT_ONCE
        assert (first["at"], first["attempt"], first["total"]) == (case.at, case.attempt, kept["total"])
        keys = {note["key"] for note in before}
        assert (first["key"] in keys) is case.same_visit
        assert (run.status, run.data["path"]) == ("completed", [words.partition(":")[0] for words in case.program])
        assert run.data["total"] == expected_total(len(case.program))
        assert [t.seq for t in await engine.history(run.id)] == list(range(1, run.row.seq + 1))


def expected_total(instructions: int) -> int:
    """The total of a program with so many instructions."""
    total = 0
    for at in range(instructions):
        total = advance(total, at)
    return total


async def test_blocked_until_its_code_is_back(sandbox: Sandbox) -> None:
    """A run whose code is gone is blocked, not failed, and the first life that has the code goes on with its visit."""
    child = sandbox.launch(starts=[[1, ["coroutine: goto", "thread: flaky 1, hold 4, complete"]]])
    (before,) = await sandbox.noted("step", at=1, attempt=2)
    await child.kill()
    async with Engine(sandbox.url, worker=False) as engine:
        (run,) = await engine.runs()
        kept = run.data
        for life in (2, 3):
            child = sandbox.launch(code=False)
            await sandbox.noted("open", life=life)
            if life == 2:
                await run.wait(10, until="parked")
            await run.refresh()
            assert (run.status, run.waiting_for, run.attempt, run.data) == ("waiting", "blocked", 2, kept)
            assert run.error is not None
            assert "knows no workflow 'machine'" in run.error
            assert (await engine.stats()).blocked == 1
            await child.kill()
        assert sandbox.steps(life=2) == sandbox.steps(life=3) == []
        assert await sandbox.launch(finish=True).ended() == 0
        (after,) = sandbox.steps(life=4)
        assert [after[name] for name in ("key", "attempt", "total")] == [
            before[name] for name in ("key", "attempt", "total")
        ]
        await run.refresh()
        assert (run.status, run.error, run.data["path"]) == ("completed", None, ["coroutine", "thread"])
        assert [t.kind for t in await engine.history(run.id)][-3:] == ["block", "unblock", "complete"]


async def test_five_hundred_interrupted_runs_resume(sandbox: Sandbox) -> None:
    """Five hundred runs whose steps a kill interrupted are in the same visits again within five seconds."""
    count = 500
    program = ["coroutine: goto", "coroutine: hold 2, goto", "thread: complete"]
    child = sandbox.launch(starts=[[number, program] for number in range(count)])
    await sandbox.noted("step", count, at=1, within=60)
    await child.kill()
    before = {note["run"]: note["key"] for note in sandbox.steps(at=1)}

    launched = time.time()
    child = sandbox.launch(finish=True)
    again = await sandbox.noted("step", count, at=1, life=2)
    opened = sandbox.journal.notes("open", life=2)[0]["wall"] / 1e6
    took = max(note["wall"] for note in again) / 1e6 - launched
    sys.stdout.write(
        f"{count} interrupted runs resumed {took:.2f} s after the launch, engine open at {opened - launched:.2f} s\n"
    )
    assert took < 5
    assert {note["run"]: note["key"] for note in again} == before
    assert await child.ended(60) == 0
    async with Engine(sandbox.url, worker=False) as engine:
        assert await engine.count(status="completed") == await engine.count() == count
    assert len(sandbox.steps(at=1)) == 2 * count
    assert len(sandbox.steps(at=0)) == len(sandbox.steps(at=2)) == count


async def test_two_thousand_timers_that_came_due_while_down_fire(sandbox: Sandbox) -> None:
    """Sleeps and delayed starts that came due while no process lived fire after the restart, each once."""
    count, hour = 1000, 3_600_000
    asleep = ["coroutine: sleep 3600000", "coroutine: complete"]
    starts: list[list[Any]] = [[number, asleep] for number in range(count)]
    starts += [[count + number, ["coroutine: complete"], None, hour] for number in range(count)]
    child = sandbox.launch(starts=starts)
    await sandbox.noted("started", within=60)
    async with Engine(sandbox.url, worker=False) as engine:
        await wait_until(lambda: has(engine, 2 * count, "waiting"), 60, "all runs wait")
        await child.kill()
        assert await engine.count(waiting_for="sleep") == await engine.count(waiting_for="start") == count
        assert len(sandbox.steps()) == count

        launched = time.time()
        child = sandbox.launch(ahead=2 * 3600)
        steps = await sandbox.noted("step", 2 * count, life=2, within=60)
        took = max(note["wall"] for note in steps) / 1e6 - launched
        sys.stdout.write(f"{2 * count} due timers fired {took:.2f} s after the process began\n")
        assert took < 20
        await wait_until(lambda: has(engine, 2 * count, "completed"), 60, "all runs have ended")
        child.send(signal.SIGTERM)
        assert await child.ended() == 0
        for note in steps[:: count // 10]:
            kinds = Counter(t.kind for t in await engine.history(note["run"]))
            assert kinds["wake"] == 1
    assert set(Counter(note["key"] for note in sandbox.steps(life=2)).values()) == {1}


async def has(engine: Engine, count: int, status: str) -> bool:
    """Whether so many runs have this status."""
    return await engine.count(status=status) == count


async def test_killed_while_it_opens_a_new_file(fork_server: ForkServer, tmp_path: Path, rng: random.Random) -> None:
    """Whenever a process is killed while it creates a store, the next one can open that store and work."""
    hit = 0
    for place in range(15):
        folder = tmp_path / str(place)
        folder.mkdir()
        sandbox = Sandbox(fork_server, folder)
        child = sandbox.launch(starts=[[1, ["coroutine: complete"]]])
        await wait_until(sandbox.database.exists)
        assert await child.ended(rng.uniform(0.0, 0.02)) is None
        await child.kill()
        hit += not sandbox.journal.notes("open")
        assert await sandbox.launch(starts=[[2, ["coroutine: complete"]]], finish=True).ended() == 0
        async with Engine(sandbox.url, worker=False) as engine:
            assert {run.status for run in await engine.runs()} == {"completed"}
            assert {run.data["number"] for run in await engine.runs()} >= {2}
        sandbox.close()
    assert hit >= 5, "too few kills came while a store was made"


async def test_a_start_that_was_acknowledged_survives_the_next_instant(sandbox: Sandbox) -> None:
    """A run whose start was acknowledged is there after an immediate kill, with its key and Context."""
    acknowledged: list[WorkflowRun] = []
    for _ in range(5):
        child = sandbox.launch(starts=[[1, ["coroutine: hold 99, complete"], "order-1"]], dies_on=["goto"])
        await sandbox.noted("acknowledged", life=child.life)
        await child.kill()
        async with Engine(sandbox.url, worker=False) as engine:
            acknowledged.append(await engine.find(Machine, "order-1"))
            assert await engine.count() == 1
    assert len({run.id for run in acknowledged}) == 1
    assert acknowledged[0].data["program"] == ["coroutine: hold 99, complete"]
    assert [note["created"] for note in sandbox.journal.notes("acknowledged")] == [True] + [False] * 4
