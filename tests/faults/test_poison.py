"""Runs that kill their process: they are failed after the sixth death, and the runs beside them are not."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import pytest

from aioflow import Engine, WorkflowRun
from aioflow.model import POISON_CRASHES, SUSPECT_CRASHES
from tests.faults.children import PATIENCE, Sandbox
from tests.faults.program import Machine

KILLED, EXITED = -signal.SIGKILL, 1
#: More lives than any run gets.
LIVES = 20


class Poison(NamedTuple):
    """A step that ends its process, and the exit code that it leads to."""

    instruction: str
    code: int


POISONS = {
    "async-kill": Poison("coroutine: take 60, kill 99, complete", KILLED),
    "async-exit": Poison("coroutine: take 60, exit 99, complete", EXITED),
    "thread-kill": Poison("thread: take 60, kill 99, complete", KILLED),
    "thread-exit": Poison("thread: take 60, exit 99, complete", EXITED),
    "inline-kill": Poison("inline: kill 99, complete", KILLED),
}
#: Long enough to be interrupted by the poison beside it.
BYSTANDER = ["coroutine: goto", "thread: take 250, goto", "coroutine: take 250, complete"]


def poisoned(poison: Poison) -> list[str]:
    """A program that reaches its poison by a goto."""
    return ["coroutine: goto", poison.instruction]


async def lives(sandbox: Sandbox, starts: Sequence[Sequence[object]] = ()) -> list[int]:
    """Start one life after the other until one ends by itself, and return all exit codes."""
    codes: list[int] = []
    while len(codes) < LIVES:
        child = sandbox.launch(starts=starts if not codes else [], finish=True)
        code = await child.ended(PATIENCE)
        assert code is not None
        codes.append(code)
        if code == 0:
            return codes
    raise AssertionError(f"no end to it: {codes}")


def executed(sandbox: Sandbox, run: WorkflowRun, at: int) -> list[int]:
    """The lives in which an instruction of a run was begun."""
    return [note["life"] for note in sandbox.steps(run=run.id, at=at)]


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
async def test_a_run_that_kills_its_process_is_failed(sandbox: Sandbox, poison: Poison) -> None:
    """After the sixth death the run is failed, and its error names the step and the number of deaths."""
    assert await lives(sandbox, [[1, poisoned(poison)]]) == [poison.code] * 6 + [0]
    async with Engine(sandbox.url, worker=False) as engine:
        (run,) = await engine.runs()
        step = poison.instruction.partition(":")[0]
        assert run.status == "failed"
        assert run.error == (
            f"The process died 6 times while step '{step}' of workflow 'machine' ran (run {run.id}): "
            "it was stopped from trying again."
        )
        assert executed(sandbox, run, at=1) == [1, 2, 3, 4, 5, 6]
        assert len({(note["key"], note["attempt"]) for note in sandbox.steps(at=1)}) == 1
        assert [(t.kind, t.step) for t in await engine.history(run.id)] == [
            ("start", "coroutine"), ("goto", "coroutine"), ("fail", step),
        ]  # fmt: skip
        assert (await engine.history(run.id))[-1].error == run.error


@pytest.mark.parametrize("first", ["poison", "bystander"])
@pytest.mark.parametrize("poison", [POISONS["async-kill"], POISONS["thread-exit"]], ids=["async-kill", "thread-exit"])
async def test_a_bystander_is_innocent(sandbox: Sandbox, poison: Poison, first: str) -> None:
    """A run that is hit by the poison's deaths until both runs are suspects completes, whichever of them runs first."""
    starts = [[1, poisoned(poison)], [2, BYSTANDER]]
    codes = await lives(sandbox, starts if first == "poison" else starts[::-1])
    assert codes == [poison.code] * 6 + [0]
    async with Engine(sandbox.url, worker=False) as engine:
        poison_run, bystander = sorted(await engine.runs(), key=lambda run: run.data["number"])
        assert (poison_run.status, bystander.status) == ("failed", "completed")
        assert bystander.data["path"] == ["coroutine", "thread", "coroutine"]
        # It was hit by the two deaths that count for every run which executes then ...
        interrupted = executed(sandbox, bystander, at=1)
        assert interrupted[:SUSPECT_CRASHES] == [1, 2]
        # ... and then the suspects run one at a time: an execution of one ends before one of the other begins.
        assert executed(sandbox, poison_run, at=1) == [1, 2, 3, 4, 5, 6]
        assert Counter(interrupted) <= Counter([1, 2, 3 if first == "bystander" else 7])


async def test_new_runs_beside_a_poison_complete(sandbox: Sandbox) -> None:
    """Runs that are started in each life beside a poison complete, though six lives are killed."""
    codes = []
    for life in range(1, 9):
        program = poisoned(POISONS["async-kill"]) if life == 1 else BYSTANDER
        child = sandbox.launch(starts=[[life, program], [life + 100, BYSTANDER]], finish=True)
        codes.append(await child.ended(PATIENCE))
    assert codes == [KILLED] * 6 + [0, 0]
    async with Engine(sandbox.url, worker=False) as engine:
        runs = {run.data["number"]: run.status for run in await engine.runs()}
        assert runs == {number: "failed" if number == 1 else "completed" for number in runs}
        assert len(runs) == 16
    deaths = Counter(note["life"] for note in sandbox.steps() if note["life"] <= 6)
    assert set(deaths) == {1, 2, 3, 4, 5, 6}


async def test_suspects_run_one_at_a_time(sandbox: Sandbox) -> None:
    """Of runs that executed at two deaths of their process, no two execute at once in the next life."""
    suspects = 5
    program = ["coroutine: hold 3, take 30, goto", "thread: complete"]
    async with Engine(sandbox.url, worker=False) as engine:
        for life in (1, 2):
            child = sandbox.launch(starts=[[number, program] for number in range(suspects)] if life == 1 else [])
            await sandbox.noted("step", suspects, life=life, at=0)
            await child.kill()
        assert await sandbox.launch(finish=True).ended() == 0
        begun = sorted(sandbox.steps(life=3, at=0), key=lambda note: note["wall"])
        assert len(begun) == suspects
        ended = {}
        for run in await engine.runs():
            assert run.status == "completed"
            ended[run.id] = (await engine.history(run.id))[1].at_micros
        for before, after in pairwise(begun):
            assert ended[before["run"]] <= after["wall"], "two suspects at once"


async def test_only_marked_deaths_count(sandbox: Sandbox) -> None:
    """Suspects that wait for their turn while another one kills the process again and again are not counted for it."""
    async with Engine(sandbox.url, worker=False) as engine:
        child = sandbox.launch(starts=[[number, ["coroutine: hold 9, complete"]] for number in (1, 2)])
        for life in (1, 2):
            await sandbox.noted("step", 2, life=life, at=0)
            await child.kill()
            child = sandbox.launch()
        seen = {}
        for life in (3, 4, 5):  # the one whose turn it is is marked, and held until the next kill
            (held,) = await sandbox.noted("step", life=life, at=0)
            runs = {run.id: run.row for run in await engine.runs()}
            assert len(runs) == 2
            seen[life] = (held["run"], {run_id: (row.crashes, row.marked) for run_id, row in runs.items()})
            await child.kill()
            child = sandbox.launch()
        first = seen[3][0]
        other = 3 - first
        for caught, life in enumerate((3, 4, 5), SUSPECT_CRASHES):
            assert seen[life] == (first, {first: (caught, 1), other: (SUSPECT_CRASHES, 0)})
        await child.kill()


async def test_suspects_that_wait_do_not_begin_while_it_drains(sandbox: Sandbox) -> None:
    """On SIGTERM the suspect that executes may end; those that wait for their turn are given back unchanged."""
    program = ["coroutine: hold 3, take 400, goto", "thread: complete"]
    async with Engine(sandbox.url, worker=False) as engine:
        for life in (1, 2):
            child = sandbox.launch(starts=[[number, program] for number in range(3)] if life == 1 else [])
            await sandbox.noted("step", 3, life=life, at=0)
            await child.kill()
        child = sandbox.launch()
        await sandbox.noted("open", life=3)
        (running,) = await sandbox.noted("step", life=3)
        child.send(signal.SIGTERM)
        assert await child.ended() == 0
        assert sandbox.steps(life=3) == [running]
        for run in await engine.runs():
            went_on = run.id == running["run"]
            assert (run.status, run.current_step) == ("running", "thread" if went_on else "coroutine")
            assert (run.row.crashes, run.row.marked, run.row.owner) == (0 if went_on else SUSPECT_CRASHES, 0, None)


async def test_a_suspect_that_is_cancelled_does_not_begin(sandbox: Sandbox) -> None:
    """A run that a client cancels while it waits for its turn is not executed when its turn comes."""
    program = ["coroutine: hold 3, take 1000, goto", "thread: complete"]
    async with Engine(sandbox.url, worker=False) as engine:
        for life in (1, 2):
            child = sandbox.launch(starts=[[number, program] for number in range(3)] if life == 1 else [])
            await sandbox.noted("step", 3, life=life, at=0)
            await child.kill()
        child = sandbox.launch(finish=True)
        (running,) = await sandbox.noted("step", life=3)
        cancelled = [run for run in await engine.runs() if run.id != running["run"]]
        assert [await engine.cancel(run.id) for run in cancelled] == [True, True]
        assert await child.ended() == 0
        assert {note["run"] for note in sandbox.steps(life=3)} == {running["run"]}
        assert await engine.count(status="cancelled") == 2


async def test_a_clean_shutdown_counts_nothing(sandbox: Sandbox) -> None:
    """Ten lives that end by SIGTERM in the middle of a step leave the run unchanged, and a suspect keeps its count."""
    async with Engine(sandbox.url, worker=False) as engine:
        run = await engine.start(Machine, program=["coroutine: hold 99, complete"])

        async def life_ends_by(number: int, crashes: int, marked: int) -> None:
            child = sandbox.launch(shutdown_timeout=0.05)
            await sandbox.noted("open", life=child.life)
            await sandbox.noted("step", run=run.id, life=child.life)
            await run.refresh()
            assert (run.row.crashes, run.row.marked, run.row.owner is None) == (crashes, marked, False)
            child.send(number)
            assert await child.ended() == (0 if number == signal.SIGTERM else -number)
            await run.refresh()
            assert run.status == "running"
            if number == signal.SIGTERM:
                assert (run.row.crashes, run.row.marked, run.row.owner) == (crashes, 0, None)

        for _ in range(10):
            await life_ends_by(signal.SIGTERM, crashes=0, marked=0)
        await life_ends_by(signal.SIGKILL, crashes=0, marked=0)
        await life_ends_by(signal.SIGKILL, crashes=1, marked=0)
        for _ in range(5):
            await life_ends_by(signal.SIGTERM, crashes=2, marked=1)
        await life_ends_by(signal.SIGKILL, crashes=2, marked=1)
        await life_ends_by(signal.SIGTERM, crashes=3, marked=1)
        assert len({note["key"] for note in sandbox.steps(run=run.id)}) == 1
        assert len(sandbox.steps(run=run.id)) == 19
        assert run.row.seq == 1


async def test_a_commit_clears_the_count(sandbox: Sandbox) -> None:
    """Five deaths in each of three steps do not add up to six in one: the run completes."""
    program = ["coroutine: kill 5, goto", "thread: kill 10, goto", "inline: kill 15, complete"]
    codes = await lives(sandbox, [[1, program]])
    assert codes == [KILLED] * 15 + [0]
    async with Engine(sandbox.url, worker=False) as engine:
        (run,) = await engine.runs()
        assert (run.status, run.data["path"]) == ("completed", ["coroutine", "thread", "inline"])
        assert executed(sandbox, run, at=0) == [1, 2, 3, 4, 5, 6]
        assert executed(sandbox, run, at=1) == [6, 7, 8, 9, 10, 11]
        assert executed(sandbox, run, at=2) == [11, 12, 13, 14, 15, 16]
        assert (run.row.crashes, run.row.marked) == (0, 0)


@pytest.mark.parametrize("deaths", range(1, POISON_CRASHES + 1))
async def test_the_sixth_death_is_the_last(sandbox: Sandbox, deaths: int) -> None:
    """A step that kills fewer than six processes completes its run, and the sixth death fails it."""
    codes = await lives(sandbox, [[1, [f"coroutine: kill {deaths}, complete"]]])
    assert codes == [KILLED] * deaths + [0]
    async with Engine(sandbox.url, worker=False) as engine:
        (run,) = await engine.runs()
        assert run.status == ("failed" if deaths == POISON_CRASHES else "completed")
        assert len(sandbox.steps(run=run.id)) == (deaths if deaths == POISON_CRASHES else deaths + 1)


async def test_a_failure_and_a_wake_clear_the_count(sandbox: Sandbox) -> None:
    """A failed attempt and a sleep are committed transitions: deaths before and after them do not add up."""
    program = ["coroutine: kill 5, flaky 1, kill 10, sleep 1", "coroutine: kill 15, complete"]
    codes = await lives(sandbox, [[1, program]])
    assert codes == [KILLED] * 15 + [0]
    async with Engine(sandbox.url, worker=False) as engine:
        (run,) = await engine.runs()
        assert run.status == "completed"
        assert [t.kind for t in await engine.history(run.id)] == [
            "start", "retry", "wake", "sleep", "wake", "complete",
        ]  # fmt: skip
        assert [note["attempt"] for note in sandbox.steps(at=0)] == [1] * 6 + [2] * 6
        assert executed(sandbox, run, at=1) == [11, 12, 13, 14, 15, 16]
