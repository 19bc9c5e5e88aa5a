"""Where a run goes on when a step has failed for good, on every store."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import Failure, GiveUp, Retry, complete, fail, get_context, get_run, goto, sleep, step, wait, workflow
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, ShiftedClock, kinds_of, moved_on, run_of

HOUR = timedelta(hours=1)
AT_ONCE = Retry(max_attempts=3, base_delay=timedelta(0))
ONCE = Retry(max_attempts=1)


class Trouble(Exception):
    """The error that steps raise here."""


class Paid(BaseModel):
    """A message."""

    amount: int


async def test_step_without_attempts_left_leads_to_its_on_fail(make_engine: MakeEngine) -> None:
    """After its last attempt a step leads to its on_fail, which gets the failure and the Context before the step."""
    seen: list[Any] = []

    @workflow("on-fail-step", default_retry=AT_ONCE, on_fail="rescue")
    class Flow:
        class Context(BaseModel):
            marks: list[str] = []

        @step
        async def refund(self, failure: Failure) -> Command:
            run = get_run()
            seen.append((failure, run.failure, run.attempt, run.timed_out))
            get_context(self.Context).marks.append("refunded")
            return complete()

        @step(start=True, on_fail=refund)
        async def pay(self) -> Command:
            assert get_run().failure is None
            get_context(self.Context).marks.append("paid")
            raise Trouble(f"attempt {get_run().attempt}")

        @step
        async def rescue(self) -> Command:
            return fail("not for this step")

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow)
        failure = Failure("pay", "Trouble: attempt 3", 3, "exhausted")
        assert (run.status, run.error, run.data) == ("completed", None, {"marks": ["refunded"]})
        assert seen == [(failure, failure, 1, False)]
        rows = [(row.kind, row.step, row.attempt, row.error) for row in await engine.history(run.id)]
        assert rows[-3:] == [
            ("wake", "pay", 3, None),
            ("on_fail", "pay", 3, "Trouble: attempt 3"),
            ("complete", "refund", 1, None),
        ]


async def test_on_fail_does_not_see_what_an_attempt_did_whose_command_is_invalid(make_engine: MakeEngine) -> None:
    """If what a step returned cannot be followed, its on_fail gets the Context as it was before the step."""
    seen: list[list[str]] = []
    nowhere = "ship"

    @workflow("on-fail-command")
    class Flow:
        class Context(BaseModel):
            marks: list[str] = []

        @step(start=True, on_fail="rescue")
        async def pay(self) -> Command:
            get_context(self.Context).marks.append("paid")
            return goto(nowhere)

        @step
        async def rescue(self) -> Command:
            seen.append([*get_context(self.Context).marks])
            return complete()

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow)
        assert (run.status, run.data, seen) == ("completed", {"marks": []}, [[]])


@pytest.mark.parametrize("threaded", [True, False], ids=["thread", "loop"])
async def test_on_fail_of_the_workflow_is_for_all_others(make_engine: MakeEngine, threaded: bool) -> None:
    """A step without an on_fail leads to the workflow's, sync or async, as a new visit."""
    keys = []

    @workflow("on-fail-workflow", default_retry=ONCE, on_fail="rescue")
    class Flow:
        class Context(BaseModel):
            told: dict[str, Any] = {}

        @step(start=True)
        async def pay(self) -> Command:
            keys.append(get_run().step_key)
            raise GiveUp("the card is stolen")

        @step(thread=threaded)
        def rescue(self, why: Failure | None = None) -> Command:
            keys.append(get_run().step_key)
            assert why is not None
            return complete(told={"step": why.step, "error": why.error, "attempts": why.attempts, "kind": why.kind})

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow)
        told = {"step": "pay", "error": "the card is stolen", "attempts": 1, "kind": "gave up"}
        assert (run.status, run.data) == ("completed", {"told": told})
        assert len(set(keys)) == 2
        assert await kinds_of(engine, run) == ["start", "on_fail", "complete"]


async def test_fail_runs_no_on_fail(make_engine: MakeEngine) -> None:
    """A step that returns fail(reason) fails the run with exactly that reason, and takes no on_fail."""

    @workflow("on-fail-not", on_fail="rescue")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True, on_fail="rescue")
        async def pay(self) -> Command:
            return fail("no stock")

        @step
        async def rescue(self) -> Command:
            return complete()

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow)
        assert (run.status, run.error) == ("failed", "no stock")
        assert await kinds_of(engine, run) == ["start", "fail"]


@pytest.mark.parametrize("mistake", ["nothing", "target", "context", "field"])
async def test_programming_errors_lead_to_on_fail(make_engine: MakeEngine, mistake: str) -> None:
    """A programming error is not retried and leads to on_fail, with a failure of kind "invalid"."""

    @workflow("on-fail-invalid", default_retry=AT_ONCE, on_fail="rescue")
    class Flow:
        class Context(BaseModel):
            mistake: str
            amount: int = 0
            kind: str = ""
            error: str = ""

        @step(start=True)
        async def work(self) -> Any:
            context = get_context(self.Context)
            match context.mistake:
                case "nothing":
                    return None
                case "target":
                    return goto("no" + "where")
                case "context":
                    context.__dict__["amount"] = "three"
                    return complete()
                case _:
                    context.amuont = 3  # type: ignore[attr-defined]
                    return complete()

        @step
        async def rescue(self, failure: Failure) -> Command:
            return complete(kind=failure.kind, error=failure.error)

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow, mistake=mistake)
        assert (run.status, run.data["kind"], run.data["amount"]) == ("completed", "invalid", 0)
        assert run.context.error.startswith(f"Step 'work' of workflow 'on-fail-invalid' (run {run.id}) ")
        assert await kinds_of(engine, run) == ["start", "on_fail", "complete"]


async def test_on_fail_waits_retries_and_sleeps(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """An on_fail step may be retried, sleep and wait, and the run keeps the failure, even over a restart."""
    seen: list[Any] = []

    @workflow("on-fail-patient", default_retry=ONCE)
    class Flow:
        class Context(BaseModel):
            naps: int = 0
            amount: int = 0

        @step(start=True, on_fail="ask")
        async def pay(self) -> Command:
            raise Trouble("no cover")

        @step(retry=Retry(max_attempts=2, base_delay=HOUR))
        async def ask(self, failure: Failure) -> Command:
            seen.append((failure.error, get_run().attempt))
            context = get_context(self.Context)
            if get_run().attempt == 1 and not context.naps:
                raise Trouble("nobody there")
            if not context.naps:
                context.naps = 1
                return sleep(HOUR)
            return wait.for_signal(Paid, then=self.thank)

        @step
        async def thank(self, paid: Paid, failure: Failure | None = None) -> Command:
            assert failure is not None
            assert get_run().failure == failure
            return complete(amount=paid.amount, error=failure.error)

    async with make_engine(Flow) as engine:
        run = await engine.start(Flow)
        for waiting_for in ("retry", "sleep"):
            await run.wait(5, until="parked")
            assert (run.waiting_for, run.current_step) == (waiting_for, "ask")
            clock.shift(HOUR)
            await moved_on(run)
        await run.wait(5, until="parked")
        assert (run.waiting_for, run.waiting_signal) == ("signal", "Paid")
    async with make_engine(Flow) as engine:
        assert (await engine.signal(Paid(amount=3), run_id=run.id)).delivered == [run.id]
        ended = await engine.wait(run.id, 5)
        assert (ended.status, ended.data) == ("completed", {"naps": 1, "amount": 3, "error": "Trouble: no cover"})
        assert seen == [("Trouble: no cover", 1), ("Trouble: no cover", 2), ("Trouble: no cover", 1)]


async def test_on_fail_that_fails_leads_to_that_of_the_workflow_once(make_engine: MakeEngine) -> None:
    """If a step's on_fail fails, the workflow's is taken, and if that fails too, the run fails."""
    seen = []

    @workflow("on-fail-fails", default_retry=ONCE, on_fail="rescue")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True, on_fail="refund")
        async def pay(self) -> Command:
            raise Trouble("first")

        @step
        async def refund(self, failure: Failure) -> Command:
            seen.append((failure.step, failure.error))
            raise Trouble("second")

        @step
        async def rescue(self, failure: Failure) -> Command:
            seen.append((failure.step, failure.error))
            raise Trouble("third")

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow)
        assert (run.status, run.error, run.current_step) == ("failed", "Trouble: third", "rescue")
        assert "Trouble: third" in (run.traceback or "")
        assert seen == [("pay", "Trouble: first"), ("refund", "Trouble: second")]
        assert await kinds_of(engine, run) == ["start", "on_fail", "on_fail", "fail"]


async def test_on_fails_that_fail_into_each_other_end(make_engine: MakeEngine) -> None:
    """A workflow's on_fail that has an on_fail of its own is taken only once."""
    seen = []

    @workflow("on-fail-circle", default_retry=ONCE, on_fail="rescue", max_transitions=20)
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def pay(self) -> Command:
            raise Trouble("first")

        @step(on_fail="refund")
        async def rescue(self) -> Command:
            seen.append("rescue")
            if len(seen) > 100:
                return fail("it went round and round")
            raise Trouble("second")

        @step
        async def refund(self) -> Command:
            raise Trouble("third")

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow)
        assert (run.status, run.error, seen) == ("failed", "Trouble: third", ["rescue"])


async def test_cycle_of_on_fail_and_goto_ends_at_max_transitions(make_engine: MakeEngine) -> None:
    """A step whose on_fail goes back to it ends at max_transitions, where the workflow's on_fail is taken once."""
    seen = []

    @workflow("on-fail-loop", default_retry=ONCE, on_fail="rescue", max_transitions=9)
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True, on_fail="again")
        async def pay(self) -> Command:
            seen.append("pay")
            raise Trouble("no")

        @step
        async def again(self) -> Command:
            return goto(self.pay)

        @step
        async def rescue(self, failure: Failure) -> Command:
            seen.append("rescue")
            return complete(kind=failure.kind, step=failure.step)

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow)
        assert (run.status, seen.count("rescue")) == ("completed", 1)
        assert 4 <= seen.count("pay") <= 9
        assert len(await engine.history(run.id)) <= 9 + 2


async def test_step_that_lacks_arguments_leads_to_on_fail(make_engine: MakeEngine) -> None:
    """A step that is reached without the arguments it needs is a programming error and leads to on_fail."""

    @workflow("on-fail-arguments", default_retry=AT_ONCE, on_fail="rescue")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def first(self) -> Command:
            return goto(getattr(self, "sh" + "ip"))

        @step
        async def ship(self, address: str) -> Command:
            return complete()

        @step
        async def rescue(self, failure: Failure) -> Command:
            return complete(step=failure.step, kind=failure.kind, error=failure.error)

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow)
        assert run.data == {
            "step": "ship",
            "kind": "invalid",
            "error": f"Step 'ship' of workflow 'on-fail-arguments' (run {run.id}) cannot be called: nothing gives its "
            "parameter address. Give a default, or resume it by a signal that has it.",
        }
