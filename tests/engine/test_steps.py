"""What a step returns, and what that does to the run and its Context."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, PrivateAttr

from aioflow import complete, errors, fail, get_context, get_run, goto, sleep, step, workflow
from aioflow.commands import Command
from aioflow.model import bounded
from tests.engine.conftest import MakeEngine, ShiftedClock, run_of

HOUR = timedelta(hours=1)


# ---- goto


async def test_goto_goes_on_with_the_named_step(make_engine: MakeEngine) -> None:
    """Steps follow each other by method or name, and each gets the Context that the last one left."""

    @workflow("steps-goto")
    class Flow:
        class Context(BaseModel):
            path: list[str] = []

        @step(start=True)
        async def first(self) -> Command:
            get_context(self.Context).path.append("first")
            return goto(self.second)

        @step
        def second(self) -> Command:
            get_context(self.Context).path.append("second")
            return goto("third")

        @step
        async def third(self) -> Command:
            get_context(self.Context).path.append("third")
            return complete()

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow)
        assert (run.status, run.current_step) == ("completed", "third")
        assert run.data == {"path": ["first", "second", "third"]}
        assert run.ended_at == run.updated_at
        rows = await engine.history(run.id)
        assert [(row.kind, row.step) for row in rows] == [
            ("start", "first"),
            ("goto", "first"),
            ("goto", "second"),
            ("complete", "third"),
        ]


async def test_progress_is_kept_until_it_is_set_again(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A run keeps the progress of the last goto that had one."""

    @workflow("steps-progress")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def first(self) -> Command:
            return goto(self.second, progress=0.25)

        @step
        async def second(self) -> Command:
            return goto(self.third)

        @step
        async def third(self) -> Command:
            return sleep(HOUR, then=self.fourth)

        @step
        async def fourth(self) -> Command:
            return goto(self.last, progress=1)

        @step
        async def last(self) -> Command:
            return complete()

    async with make_engine(Flow) as engine:
        run = await engine.start(Flow)
        await run.wait(5, until="parked")
        assert run.progress == 0.25
        clock.shift(HOUR)
        await run.wait(5)
        assert run.progress == 1.0


async def test_engine_gives_each_step_a_new_instance(make_engine: MakeEngine) -> None:
    """Only the Context is passed on: neither attributes of the instance nor private attributes of the Context are."""

    @workflow("steps-instance")
    class Flow:
        class Context(BaseModel):
            seen: list[str] = []
            _private: str = PrivateAttr("fresh")

        note = "fresh"

        @step(start=True)
        async def first(self) -> Command:
            self.note = "stale"
            get_context(self.Context)._private = "stale"
            return goto(self.second)

        @step
        async def second(self) -> Command:
            context = get_context(self.Context)
            context.seen += [self.note, context._private]
            return complete()

    async with make_engine(Flow) as engine:
        assert (await run_of(engine, Flow)).data == {"seen": ["fresh", "fresh"]}


# ---- complete and fail


async def test_complete_merges_its_data(make_engine: MakeEngine) -> None:
    """complete(**data) is merged into the Context, including names that it does not declare."""

    @workflow("steps-complete")
    class Flow:
        class Context(BaseModel):
            number: int = 1
            kept: str = "as it was"

        @step(start=True)
        async def end(self) -> Command:
            get_context(self.Context).kept = "as the step left it"
            return complete(number=2, receipt={"id": 7})

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow)
        assert run.data == {"number": 2, "kept": "as the step left it", "receipt": {"id": 7}}
        assert run.context.receipt == {"id": 7}
        assert await run.result() == run.context


@pytest.mark.parametrize("extra", ["ignore", "forbid"])
async def test_context_decides_about_undeclared_names(make_engine: MakeEngine, extra: Any) -> None:
    """With extra="ignore" complete() drops undeclared names, and with extra="forbid" they are an error."""

    @workflow("steps-extra")
    class Flow:
        class Context(BaseModel):
            model_config = ConfigDict(extra=extra)
            number: int = 1

        @step(start=True)
        async def end(self) -> Command:
            return complete(number=2, receipt=7)

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow)
        if extra == "ignore":
            assert (run.status, run.data) == ("completed", {"number": 2})
        else:
            assert (run.status, run.data) == ("failed", {"number": 1})
            assert run.error == (
                f"Step 'end' of workflow 'steps-extra' (run {run.id}) left a Context that cannot be stored: "
                "complete(...) does not fit: receipt: Extra inputs are not permitted"
            )


@pytest.mark.parametrize(
    "reason", ["card declined", "", "ünïcode ✓\n  second line\t", "fail: ValueError('x')", "row 7 " * 9_000]
)
async def test_fail_gives_exactly_the_reason(make_engine: MakeEngine, reason: str) -> None:
    """fail(reason) fails the run with exactly that text, without a retry, and keeps the step's changes."""

    @workflow("steps-fail")
    class Flow:
        class Context(BaseModel):
            tried: int = 0
            reason: str

        @step(start=True)
        async def pay(self) -> Command:
            context = get_context(self.Context)
            context.tried += 1
            return fail(context.reason)

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow, reason=reason)
        assert (run.status, run.error, run.traceback, run.attempt) == ("failed", reason, None, 1)
        assert run.data == {"tried": 1, "reason": reason}
        assert run.ended_at == run.updated_at
        [_, failed] = await engine.history(run.id)
        assert (failed.kind, failed.error) == ("fail", bounded(reason, 2_000))


# ---- the Context, and what a step can ask about its run


async def test_next_step_starts_from_what_was_stored(make_engine: MakeEngine) -> None:
    """A step gets a Context that was read from the store, not the object that the last step changed."""
    live = []

    @workflow("steps-parsed")
    class Flow:
        class Context(BaseModel):
            at: datetime
            items: list[int] = []

        @step(start=True)
        async def first(self) -> Command:
            live.append(get_context(self.Context))
            live[0].items.append(1)
            return goto(self.second)

        @step
        async def second(self) -> Command:
            live.append(get_context())
            live[0].items.append(2)  # a change after the step has no effect
            return complete()

    at = datetime(2026, 7, 1, 12, 30, 15, 123456, tzinfo=UTC)
    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow, at=at)
        assert live[0] is not live[1]
        assert (run.context.at, run.context.items) == (at, [1])


async def test_step_can_ask_about_its_run(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """get_run() gives id, workflow, step, attempt, key, step key and the engine's time."""
    asked = []

    @workflow("steps-ask")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def first(self) -> Command:
            asked.append((get_run(), get_run().now))
            return goto(self.second)

        @step
        def second(self) -> Command:
            asked.append((get_run(), get_run().now))
            return complete()

    clock.shift(timedelta(days=1000))
    async with make_engine(Flow) as engine:
        before = clock.now()
        run = await run_of(engine, Flow)
        for (current, now), name in zip(asked, ("first", "second"), strict=True):
            assert (current.id, current.workflow, current.step) == (run.id, "steps-ask", name)
            assert (current.attempt, current.key) == (1, None)
            assert before <= now <= clock.now()
        first, second = (current.step_key for current, _ in asked)
        assert first != second
        assert first.endswith(f":{run.id}:1")
        assert second.endswith(f":{run.id}:2")


@pytest.mark.parametrize(("ask", "name"), [(get_run, "get_run"), (get_context, "get_context")])
async def test_nothing_runs_outside_a_step(ask: Any, name: str) -> None:
    """Outside a step, get_run and get_context raise UsageError, which says where they work."""
    with pytest.raises(errors.UsageError) as raised:
        ask()
    assert str(raised.value).startswith(f"{name}() works inside a step, while it runs. Nothing runs here. A thread ")


# ---- endless loops


async def test_loop_without_a_wait_is_stopped(make_engine: MakeEngine) -> None:
    """A run that goes on without a wait fails at max_transitions, and the error names the limit."""
    seen = []

    @workflow("steps-loop", max_transitions=5)
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def ping(self) -> Command:
            seen.append(1)
            return goto(self.pong)

        @step
        async def pong(self) -> Command:
            seen.append(1)
            return goto(self.ping)

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow)
        assert run.status == "failed"
        assert len(seen) == 5
        assert run.error == (
            f"Run {run.id} of workflow 'steps-loop' is beyond the limit of 5 transitions without a wait "
            "(max_transitions): it went on from step 'ping' to 'pong'. "
            "Let it sleep or wait in between, or allow it more."
        )


async def test_a_loop_with_a_wait_is_not_stopped(make_engine: MakeEngine) -> None:
    """Transitions are counted from the last wait, so a loop that sleeps is not stopped."""

    @workflow("steps-patient", max_transitions=3)
    class Flow:
        class Context(BaseModel):
            rounds: int = 0

        @step(start=True)
        async def work(self) -> Command:
            return goto(self.rest)

        @step
        async def rest(self) -> Command:
            context = get_context(self.Context)
            context.rounds += 1
            return complete() if context.rounds == 10 else sleep(timedelta(0), then=self.work)

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow)
        assert (run.status, run.data) == ("completed", {"rounds": 10})
