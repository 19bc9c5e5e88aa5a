"""Failed attempts: how often they are retried, what is recorded, and what is never retried."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import GiveUp, Retry, RetryLater, complete, get_context, get_run, goto, sleep, step, workflow
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, ShiftedClock, kinds_of, moved_on, run_of

SECOND = timedelta(seconds=1)
AT_ONCE = Retry(max_attempts=3, base_delay=timedelta(0))


class Trouble(Exception):
    """The error that steps raise here."""


async def test_attempts_of_a_visit_are_counted(make_engine: MakeEngine) -> None:
    """A step that fails twice runs three times, with attempts 1 to 3, the same step key and the same Context."""
    seen: list[tuple[int, str, list[int]]] = []

    @workflow("retries-counted", default_retry=AT_ONCE)
    class Flow:
        class Context(BaseModel):
            marks: list[int] = []

        @step(start=True)
        async def work(self) -> Command:
            run, context = get_run(), get_context(self.Context)
            seen.append((run.attempt, run.step_key, list(context.marks)))
            context.marks.append(run.attempt)
            if run.attempt < 3:
                raise Trouble(f"attempt {run.attempt}")
            return complete()

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow)
        assert (run.status, run.attempt, run.error) == ("completed", 3, None)
        assert [attempt for attempt, _, _ in seen] == [1, 2, 3]
        assert len({key for _, key, _ in seen}) == 1
        assert [marks for _, _, marks in seen] == [[], [], []]
        assert run.data == {"marks": [3]}
        assert [(row.kind, row.attempt, row.error) for row in await engine.history(run.id)] == [
            ("start", 1, None),
            ("retry", 1, "Trouble: attempt 1"),
            ("wake", 2, None),
            ("retry", 2, "Trouble: attempt 2"),
            ("wake", 3, None),
            ("complete", 3, None),
        ]


async def test_run_tells_its_attempt_while_it_waits_to_retry(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """Between two attempts the run waits for "retry" at its step, and ``attempt`` is that of the next one."""

    @workflow("retries-waiting", default_retry=Retry(max_attempts=4))
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def work(self) -> Command:
            if get_run().attempt < 4:
                raise Trouble
            return complete()

    async with make_engine(Flow) as engine:
        run = await engine.start(Flow)
        for attempt in (2, 3, 4):
            await run.wait(5, until="parked")
            assert (run.status, run.waiting_for, run.current_step) == ("waiting", "retry", "work")
            assert run.attempt == attempt
            assert run.wake_at - run.updated_at == SECOND * 2 ** (attempt - 2)
            clock.shift(run.wake_at - run.updated_at)
            await moved_on(run)
        assert (await run.wait(5)).status == "completed"


async def test_run_without_attempts_left_has_failed(make_engine: MakeEngine) -> None:
    """After the last failure the run has failed, with the error's class and text and its traceback."""

    @workflow("retries-exhausted", default_retry=AT_ONCE)
    class Flow:
        class Context(BaseModel):
            changed: bool = False

        @step(start=True)
        async def work(self) -> Command:
            get_context(self.Context).changed = True
            return self.stumble()

        def stumble(self) -> Command:
            raise Trouble("the third stone") from KeyError("foot")

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow)
        assert (run.status, run.error, run.current_step) == ("failed", "Trouble: the third stone", "work")
        assert run.data == {"changed": False}
        for part in ("Traceback (most recent call last)", "in stumble", "KeyError: 'foot'", "Trouble: the third stone"):
            assert part in run.traceback
        assert [(row.kind, row.attempt) for row in await engine.history(run.id)] == [
            ("start", 1),
            ("retry", 1),
            ("wake", 2),
            ("retry", 2),
            ("wake", 3),
            ("fail", 3),
        ]


async def test_policy_of_the_step_stands_over_that_of_the_workflow(make_engine: MakeEngine) -> None:
    """The retry= of a step replaces the workflow's policy, which holds for the other steps."""

    @workflow("retries-policies", default_retry=Retry(max_attempts=1))
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True, retry=AT_ONCE)
        async def own(self) -> Command:
            if get_run().attempt < 3:
                raise Trouble
            return goto(self.default)

        @step
        async def default(self) -> Command:
            raise Trouble

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow)
        assert (run.status, run.error, run.current_step, run.traceback is None) == (
            "failed",
            "Trouble",
            "default",
            False,
        )
        assert (await kinds_of(engine, run))[-2:] == ["goto", "fail"]


@pytest.mark.parametrize(
    "policy",
    [
        Retry(base_delay=timedelta(0), retry_on=(OSError,)),
        Retry(base_delay=timedelta(0), give_up_on=(Trouble,)),
    ],
    ids=["retry_on", "give_up_on"],
)
async def test_policy_chooses_what_is_tried_again(make_engine: MakeEngine, policy: Retry) -> None:
    """An error that retry_on does not name, or that give_up_on names, fails the run at the first attempt."""

    @workflow("retries-chosen", default_retry=policy)
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def work(self) -> Command:
            if get_run().attempt == 1:
                raise OSError("for a while")
            raise Trouble("for good")

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow)
        assert (run.status, run.error, run.attempt) == ("failed", "Trouble: for good", 3)
        assert await kinds_of(engine, run) == ["start", "retry", "wake", "fail"]


async def test_retry_later_is_no_failure(make_engine: MakeEngine) -> None:
    """RetryLater runs the step again, any number of times, without counting an attempt, and discards its changes."""
    seen = []

    @workflow("retries-later", default_retry=Retry(max_attempts=1))
    class Flow:
        class Context(BaseModel):
            polls: int = 0

        @step(start=True)
        async def poll(self) -> Command:
            run, context = get_run(), get_context(self.Context)
            seen.append((run.attempt, run.step_key))
            context.polls += 1
            if len(seen) < 5:
                raise RetryLater(timedelta(0))
            return complete()

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow)
        assert (run.status, run.attempt, run.data) == ("completed", 1, {"polls": 1})
        assert len(seen) == 5
        assert len(set(seen)) == 1
        rows = await engine.history(run.id)
        assert [row.kind for row in rows] == ["start"] + ["retry", "wake"] * 4 + ["complete"]
        assert {(row.attempt, row.error) for row in rows} == {(1, None)}


async def test_retry_later_waits_as_long_as_it_says(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """RetryLater parks the run for its own delay, whatever the policy says."""

    @workflow("retries-later-delay")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        def poll(self) -> Command:
            if not gate.is_set():
                raise RetryLater(timedelta(days=30))
            return complete()

    gate = asyncio.Event()
    async with make_engine(Flow) as engine:
        run = await engine.start(Flow)
        await run.wait(5, until="parked")
        assert (run.waiting_for, run.attempt, run.error) == ("retry", 1, None)
        assert run.wake_at == run.updated_at + timedelta(days=30)
        gate.set()
        clock.shift(timedelta(days=30))
        assert (await run.wait(5)).status == "completed"


@pytest.mark.parametrize("reason", ["no such card", "", "two\nlines"])
async def test_give_up_is_never_tried_again(make_engine: MakeEngine, reason: str) -> None:
    """GiveUp fails the run at once with exactly its reason, and the step's changes are discarded."""

    @workflow("retries-give-up", default_retry=AT_ONCE)
    class Flow:
        class Context(BaseModel):
            reason: str
            changed: bool = False

        @step(start=True)
        async def work(self) -> Command:
            context = get_context(self.Context)
            context.changed = True
            raise GiveUp(context.reason)

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow, reason=reason)
        assert (run.status, run.error, run.data["changed"]) == ("failed", reason, False)
        assert await kinds_of(engine, run) == ["start", "fail"]


async def test_each_visit_has_its_own_attempts_and_key(make_engine: MakeEngine) -> None:
    """A goto back to the step, and the end of its sleep, are new visits, with attempt 1 and another step key."""
    seen: list[tuple[int, str]] = []

    @workflow("retries-visits", default_retry=AT_ONCE)
    class Flow:
        class Context(BaseModel):
            visits: int = 0

        @step(start=True)
        async def work(self) -> Command:
            run, context = get_run(), get_context(self.Context)
            seen.append((run.attempt, run.step_key))
            if run.attempt == 1:
                raise Trouble
            context.visits += 1
            return [goto(self.work), sleep(timedelta(0)), complete()][context.visits - 1]

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow)
        assert run.status == "completed"
        assert [attempt for attempt, _ in seen] == [1, 2] * 3
        keys = [key for _, key in seen]
        assert keys[::2] == keys[1::2]
        assert len(set(keys)) == 3


class Unprintable(Exception):
    """An error whose ``__str__`` raises."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (Trouble(), "Trouble"),
        (Trouble("x" * 10_000), "Trouble: xxx"),
        (Trouble("a\0b \udc80"), "Trouble: a\\0b \\udc80"),
        (Unprintable(), "Unprintable: <its __str__ raised>"),
        (ExceptionGroup("several", [Trouble("one"), OSError("two")]), "ExceptionGroup: several (2 sub-exceptions)"),
    ],
    ids=["empty", "long", "unstorable", "unprintable", "group"],
)
async def test_any_error_can_be_recorded(make_engine: MakeEngine, error: Any, text: str) -> None:
    """An error is recorded as bounded text that every store can hold, whatever its own text is."""

    @workflow("retries-recorded", default_retry=Retry(max_attempts=1))
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def work(self) -> Command:
            raise error

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow)
        assert run.status == "failed"
        assert run.error.startswith(text)
        assert len(run.error) <= 2000
        assert 0 < len(run.traceback) <= 16_000
        [_, failed] = await engine.history(run.id)
        assert failed.error == run.error
