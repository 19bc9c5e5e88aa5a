"""Code that changes while runs wait: a run that its code cannot take is blocked, and goes on once it can."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from aioflow import Engine, Retry, WorkflowRun, complete, get_context, get_run, goto, sleep, step, workflow
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, ShiftedClock, idle, kinds_of
from tests.support import wait_until

HOUR = timedelta(hours=1)
NAME = "blocked-order"


def release(body: type, version: str = "1") -> type:
    """The workflow as one release of the code defines it: with the Context and the steps of ``body``.

    All releases are defined at the same place in the source, like a real workflow.
    """

    @workflow(NAME, version=version, default_retry=Retry(base_delay=HOUR))
    class Order(body):
        pass

    return Order


class First:
    """The code with which the runs start."""

    class Context(BaseModel):
        number: int = 0

    @step(start=True)
    async def pay(self) -> Command:
        return sleep(HOUR, then=self.ship)

    @step
    async def ship(self) -> Command:
        return complete(by="first release")


class Renamed:
    """A release that has renamed a step."""

    Context = First.Context

    @step(start=True)
    async def pay(self) -> Command:
        return sleep(HOUR, then=self.deliver)

    @step
    async def deliver(self) -> Command:
        return complete()


class Changed(First):
    """A release with a field of another type, and a new field without a default."""

    class Context(BaseModel):
        number: bool = False
        size: int


class Second:
    """A release with another version."""

    class Context(BaseModel):
        size: int = 0

    @step(start=True)
    async def weigh(self) -> Command:
        return complete(by="second version")


@workflow("blocked-other")
class Other(Second):
    """Another workflow."""


UNKNOWN = f"This process knows no workflow {NAME!r} version '1'. Import or restore its code: the run goes on by itself."
GONE = (
    f"Workflow {NAME!r} has no step 'ship' any more (steps: pay, deliver). Restore the step: the run goes on by itself."
)
INVALID = (
    f"The Context of workflow {NAME!r} does not accept what run {{id}} has stored: number: Input should be a valid "
    "boolean, unable to interpret input; size: Field required. Give new fields a default: the run goes on by itself."
)


async def asleep(make_engine: MakeEngine, number: int = 7) -> WorkflowRun[Any]:
    """A run of the first release that sleeps, after its engine has closed."""
    order = release(First)
    async with make_engine(order) as engine:
        run = await engine.start(order, number=number)
        return await run.wait(5, until="parked")


async def waits_for(engine: Engine, run: WorkflowRun[Any], what: str) -> WorkflowRun[Any]:
    """Wait until the run waits for this; returns the run."""

    async def found() -> WorkflowRun[Any] | None:
        row = await engine.get(run.id)
        return row if row.waiting_for == what else None

    return await wait_until(found, timeout=3, what=f"it waits for {what}")


async def goes_on(make_engine: MakeEngine, run: WorkflowRun[Any]) -> WorkflowRun[Any]:
    """Open an engine with the first release, and check that the run completes."""
    async with make_engine(release(First)) as engine:
        run = await engine.wait(run.id, 5)
        assert (run.status, run.error, run.waiting_for) == ("completed", None, None)
        assert run.data["by"] == "first release"
        return run


# ---- blocked, and going on


@pytest.mark.parametrize(("body", "reason"), [(Renamed, GONE), (Changed, INVALID)], ids=["step", "context"])
async def test_run_that_its_code_cannot_take_is_parked(
    make_engine: MakeEngine, clock: ShiftedClock, body: type, reason: str
) -> None:
    """A run that its code cannot take is blocked with the reason, and not failed; with fitting code it goes on."""
    run = await asleep(make_engine)
    clock.shift(HOUR)
    async with make_engine(release(body)) as engine:
        run = await waits_for(engine, run, "blocked")
        assert (run.status, run.current_step, run.attempt) == ("waiting", "ship", 1)
        assert (run.wake_at, run.ended_at, run.traceback, run.row.owner) == (None, None, None, None)
        assert run.error == reason.format(id=run.id)
        assert run.data == {"number": 7}
        rows = await engine.history(run.id)
        assert [row.kind for row in rows] == ["start", "sleep", "wake", "block"]
        assert rows[-1].error == run.error
        stats = await engine.stats()
        assert (stats.blocked, stats.waiting, stats.overdue) == (1, {"blocked": 1}, 0)
        assert await engine.runs(waiting_for="blocked") == [run]
        clock.shift(100 * HOUR)
        assert await engine.process_scheduled() == 0
    async with make_engine(release(body)) as engine:  # a restart with the same code changes nothing
        assert await engine.get(run.id) == run
    run = await goes_on(make_engine, run)
    async with make_engine(worker=False) as engine:
        rows = await engine.history(run.id)
        assert [row.kind for row in rows[4:]] == ["unblock", "complete"]
        assert [row.seq for row in rows] == list(range(1, 7))


@pytest.mark.parametrize("error", [KeyError, AttributeError])
async def test_validator_may_raise_anything(
    make_engine: MakeEngine, clock: ShiftedClock, error: type[Exception]
) -> None:
    """If a validator raises anything on a stored Context, the run is blocked, and other runs go on."""

    class Broken(First):
        class Context(BaseModel):
            number: int = 0

            @field_validator("number")
            @classmethod
            def check(cls, number: int) -> int:
                if number == 7:
                    raise error("a bug in a validator")
                return number

    run = await asleep(make_engine)
    clock.shift(HOUR)
    order = release(Broken)
    async with make_engine(order) as engine:
        run = await waits_for(engine, run, "blocked")
        assert "a bug in a validator" in run.error
        assert (await (await engine.start(order, number=1)).wait(5, until="parked")).waiting_for == "sleep"
    await goes_on(make_engine, run)


async def test_engine_opens_though_a_blocked_run_trips_a_validator(
    make_engine: MakeEngine, clock: ShiftedClock
) -> None:
    """A blocked run whose Context makes a validator raise does not keep an engine from opening and working."""

    class Broken(First):
        class Context(BaseModel):
            number: int = 0

            @field_validator("number")
            @classmethod
            def check(cls, number: int) -> int:
                return {1: 1}[number]

    run = await asleep(make_engine)
    clock.shift(HOUR)
    async with make_engine(release(Renamed)) as engine:
        await waits_for(engine, run, "blocked")
    order = release(Broken)
    async with make_engine(order) as engine:
        assert (await (await engine.start(order, number=1)).wait(5, until="parked")).waiting_for == "sleep"
        assert (await engine.get(run.id)).waiting_for == "blocked"
    await goes_on(make_engine, run)


@pytest.mark.parametrize("known", [lambda: Other, lambda: release(Second, "2")], ids=["workflow", "version"])
@pytest.mark.parametrize("sleeps", [True, False], ids=["sleeping", "running"])
async def test_run_of_unknown_code_waits_for_it(
    make_engine: MakeEngine, clock: ShiftedClock, store_url: Any, known: Callable[[], type], sleeps: bool
) -> None:
    """A run whose workflow or version is unknown never fails, and goes on once it is known again."""
    if sleeps:
        run = await asleep(make_engine)
        clock.shift(HOUR)
    else:
        order = release(First)
        async with make_engine(order, worker=False) as engine:
            run = await engine.start(order, number=7)
    flow = known()
    async with make_engine(flow) as engine:
        if isinstance(store_url, str):  # only one process uses the file, so it can block the run
            run = await waits_for(engine, run, "blocked")
            assert (run.status, run.error, run.ended_at) == ("waiting", UNKNOWN, None)
            assert run.current_step == ("ship" if sleeps else "pay")
        else:  # other workers may know the workflow, so the run need not be blocked
            await engine.process_scheduled()
            assert (await (await engine.start(flow)).wait(5)).status == "completed"
            await wait_until(lambda: idle(engine))
            assert (await engine.get(run.id)).status in ("running", "waiting")
    if not sleeps:
        async with make_engine(release(First)) as engine:
            await waits_for(engine, run, "sleep")
        clock.shift(HOUR)
    run = await goes_on(make_engine, run)
    assert (run.attempt, run.data["number"]) == (1, 7)


@pytest.mark.parametrize("page", [500, 7])
async def test_all_blocked_runs_go_on(
    make_engine: MakeEngine, clock: ShiftedClock, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    """All blocked runs go on once the code is back, page by page, except those whose Context is still refused."""
    monkeypatch.setattr("aioflow.scheduler._PAGE", page)
    monkeypatch.setattr("aioflow.scheduler._PAGES", 2)
    order = release(First)
    async with make_engine(order) as engine:
        runs = [await engine.start(order, number=number) for number in range(60)]
        for run in runs:
            await run.wait(5, until="parked")
    clock.shift(HOUR)
    async with make_engine(release(Renamed)) as engine:

        async def all_blocked() -> bool:
            return (await engine.stats()).blocked == 60

        await wait_until(all_blocked)

    class Picky(First):
        class Context(BaseModel):
            number: int

            @field_validator("number")
            @classmethod
            def two_thirds(cls, number: int) -> int:
                if number % 3 == 0:
                    raise ValueError("a third of them")
                return number

    async with make_engine(release(Picky), max_running=7) as engine:
        for run in runs:
            if run.data["number"] % 3:
                assert (await engine.wait(run.id, 5)).status == "completed"
        assert (await engine.stats()).blocked == 20
    await goes_on(make_engine, runs[0])


async def test_blocked_run_can_be_cancelled(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A blocked run can be cancelled, and stays cancelled when its code is back."""
    run = await asleep(make_engine)
    clock.shift(HOUR)
    async with make_engine(release(Renamed)) as engine:
        await waits_for(engine, run, "blocked")
        assert await engine.cancel(run.id, "never mind")
        run = await engine.get(run.id)
        assert (run.status, run.error, run.waiting_for) == ("cancelled", "never mind", None)
        assert (await engine.stats()).blocked == 0
    order = release(First)
    async with make_engine(order) as engine:
        await (await engine.start(order)).wait(5, until="parked")
        assert await engine.get(run.id) == run
        assert (await kinds_of(engine, run))[-2:] == ["block", "cancel"]


# ---- the visit


@pytest.mark.parametrize("body", [Renamed, Changed], ids=["step", "context"])
async def test_blocked_visit_keeps_its_key_and_attempt(
    make_engine: MakeEngine, clock: ShiftedClock, body: type
) -> None:
    """A visit that was blocked between two attempts goes on with the same step key and the next attempt."""
    seen: list[tuple[int, str]] = []

    class Flaky(First):
        @step(start=True)
        async def pay(self) -> Command:
            return goto(self.ship)

        @step
        async def ship(self) -> Command:
            run = get_run()
            seen.append((run.attempt, run.step_key))
            if run.attempt == 1:
                raise ValueError("at first")
            return complete()

    order = release(Flaky)
    async with make_engine(order) as engine:
        run = await engine.start(order, number=7)
        await run.wait(5, until="parked")
        assert (run.waiting_for, run.attempt) == ("retry", 2)
    clock.shift(HOUR)
    async with make_engine(release(body)) as engine:
        run = await waits_for(engine, run, "blocked")
        assert (run.current_step, run.attempt) == ("ship", 2)
    async with make_engine(release(Flaky)) as engine:
        run = await engine.wait(run.id, 5)
        assert run.status == "completed"
        kinds = await kinds_of(engine, run)
        assert kinds == ["start", "goto", "retry", "wake", "block", "unblock", "complete"]
    assert [attempt for attempt, _ in seen] == [1, 2]
    assert len({key for _, key in seen}) == 1


async def test_step_that_was_interrupted_keeps_its_key(make_engine: MakeEngine) -> None:
    """A step that was stopped at shutdown, and then blocked, runs again with the same step key and attempt."""
    gate, seen = asyncio.Event(), []

    class Slow(First):
        @step(start=True)
        async def pay(self) -> Command:
            seen.append((get_run().attempt, get_run().step_key))
            await gate.wait()
            return complete()

    order = release(Slow)
    async with make_engine(order, shutdown_timeout=timedelta(0)) as engine:
        run = await engine.start(order, number=7)
        await wait_until(lambda: seen)
    async with make_engine(release(Changed)) as engine:
        run = await waits_for(engine, run, "blocked")
        assert run.current_step == "pay"
    gate.set()
    async with make_engine(release(Slow)) as engine:
        run = await engine.wait(run.id, 5)
        assert await kinds_of(engine, run) == ["start", "block", "unblock", "complete"]
    assert seen[0] == seen[1]
    assert seen[0][0] == 1


# ---- changes that block no run


async def test_old_runs_run_old_code(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """With two versions registered, each run goes on with the one it started with, and new runs get the newer one."""
    run = await asleep(make_engine)
    old, new = release(First), release(Second, "2")
    async with make_engine(old, new) as engine:
        by_name = await engine.start(NAME)
        by_class = await engine.start(new, size=3)
        still_old = await engine.start(old)
        assert [other.version for other in (run, by_name, by_class, still_old)] == ["1", "2", "2", "1"]
        assert (await by_name.wait(5)).data == {"size": 0, "by": "second version"}
        assert (await by_class.wait(5)).data == {"size": 3, "by": "second version"}
        await still_old.wait(5, until="parked")
        clock.shift(HOUR)
        for before in (run, still_old):
            after = await engine.wait(before.id, 5)
            assert (after.status, after.version, after.data["by"]) == ("completed", "1", "first release")
            assert isinstance(after.context, old.Context)
        assert (await engine.stats()).blocked == 0


async def test_fields_that_come_with_a_default_or_go_block_nobody(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A run is not blocked by a new field with a default, nor by a removed field, whose value it keeps."""
    run = await asleep(make_engine)

    class Grown(First):
        class Context(BaseModel):
            size: int = 3

        @step
        async def ship(self) -> Command:
            context: Any = get_context(self.Context)
            return complete(seen=[context.size, context.number])

    clock.shift(HOUR)
    async with make_engine(release(Grown)) as engine:
        assert (await engine.wait(run.id, 5)).data == {"size": 3, "number": 7, "seen": [3, 7]}


# ---- code that comes without a restart


async def test_code_that_comes_while_the_engine_works_is_taken_up(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """An engine that knows all registered workflows unblocks runs as soon as their code is defined."""
    run = await asleep(make_engine)
    release(Renamed)
    clock.shift(HOUR)
    async with make_engine() as engine:
        await waits_for(engine, run, "blocked")
        release(First)
        assert (await engine.wait(run.id, 5)).data["by"] == "first release"


async def test_worker_with_the_code_takes_what_one_without_it_parked(
    make_engine: MakeEngine, clock: ShiftedClock, store_url: Any
) -> None:
    """A run that is due while one worker lacks its code, as in a rolling deploy, is run by a worker that has it."""
    run = await asleep(make_engine)
    without, knowing = make_engine(Other), make_engine(release(First))
    async with without, knowing:
        clock.shift(HOUR)
        await without.process_scheduled()  # so that the one without the code sees it first
        if isinstance(store_url, str):  # only one process at a time uses a file: the other takes over
            await waits_for(without, run, "blocked")
            await without.__aexit__(None, None, None)
        assert (await knowing.wait(run.id, 4)).data["by"] == "first release"
