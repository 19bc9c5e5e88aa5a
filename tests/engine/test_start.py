"""Starting runs: what start returns, keys, delays, and what is refused."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import Engine, StartOptions, WorkflowStatus, complete, errors, fail, get_context, sleep, step, workflow
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, ShiftedClock

HOUR = timedelta(hours=1)


@workflow("start-order")
class Order:
    """A workflow that ends at once."""

    class Context(BaseModel):
        number: int
        note: str | None = None

    @step(start=True)
    async def pay(self) -> Command:
        return complete()


@workflow("start-ending")
class Ending:
    """Ends or parks as its Context says."""

    class Context(BaseModel):
        ending: str

    @step(start=True)
    async def end(self) -> Command:
        match get_context(self.Context).ending:
            case "completed":
                return complete()
            case "failed":
                return fail("as it was told")
            case "running":
                await asyncio.Event().wait()
        return sleep(HOUR)


@workflow("start-made")
class Made:
    """A workflow with a create_context."""

    class Context(BaseModel):
        total: int

    @classmethod
    async def create_context(cls, *, prices: list[int]) -> BaseModel:
        if not prices:
            raise LookupError("there are no prices")
        if sum(prices) < 0:
            return Order.Context(number=sum(prices))
        return cls.Context(total=sum(prices))

    @step(start=True)
    async def pay(self) -> Command:
        return complete()


# ---- what start returns


async def test_start_gives_a_committed_run_at_its_start_step(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """The run that start returns is committed: running, at its start step, with its Context."""
    before = clock.now()
    async with make_engine(Order, worker=False) as engine:
        run = await engine.start(Order, number=7)
        async with make_engine(Order, worker=False) as other:
            assert await other.get(run.id) == run
        assert (run.workflow, run.name, run.version) == ("start-order", "start-order", "1")
        assert run.status is WorkflowStatus.RUNNING
        assert (run.current_step, run.attempt, run.key, run.created) == ("pay", 1, None, True)
        assert run.data == {"number": 7, "note": None}
        assert isinstance(run.context, Order.Context)
        assert run.context.number == 7
        assert (run.waiting_for, run.wake_at, run.ended_at, run.error, run.progress) == (None,) * 5
        assert before <= run.created_at == run.updated_at <= clock.now()
        assert run.created_at.tzinfo is UTC
        assert 0 < run.id < 1 << 53
        [started] = await engine.history(run.id)
        assert (started.seq, started.kind, started.step, started.attempt) == (1, "start", "pay", 1)


async def test_start_returns_the_run_as_it_began(make_engine: MakeEngine) -> None:
    """Even if the engine executes the run at once, start returns it as running at its start step."""
    async with make_engine(Order) as engine:
        run = await engine.start(Order, number=1)
        assert (run.status, run.current_step) == ("running", "pay")
        assert (await run.wait(5)).status is WorkflowStatus.COMPLETED


async def test_class_and_name_start_the_same_workflow(make_engine: MakeEngine) -> None:
    """A workflow is started by its class or by its name."""
    async with make_engine(Order, worker=False) as engine:
        by_class = await engine.start(Order, number=1)
        by_name = await engine.start("start-order", number=1)
        assert (by_class.workflow, by_class.version, by_class.data) == (
            by_name.workflow,
            by_name.version,
            by_name.data,
        )
        assert by_name.id > by_class.id


async def test_create_context_makes_the_context(make_engine: MakeEngine) -> None:
    """If there is a create_context, it gets the keywords of start."""
    async with make_engine(Made, worker=False) as engine:
        run = await engine.start(Made, prices=[1, 2, 3])
        assert run.data == {"total": 6}


# ---- delays


async def test_delayed_run_waits_for_its_start(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A delayed run is stored as waiting, and begins when the delay is over, not before."""
    async with make_engine(Order) as engine:
        run = await engine.start(Order, StartOptions(delay=HOUR), number=1)
        assert (run.status, run.waiting_for, run.current_step, run.created) == ("waiting", "start", "pay", True)
        assert run.wake_at == run.created_at + HOUR
        clock.shift(HOUR - timedelta(minutes=1))
        assert (await (await engine.start(Order, number=2)).wait(5)).status == "completed"
        await run.refresh()
        assert run.status == "waiting"
        clock.shift(timedelta(minutes=1))
        assert (await run.wait(5)).status == "completed"
        assert [row.kind for row in await engine.history(run.id)] == ["start", "wake", "complete"]


@pytest.mark.parametrize(
    "options", [StartOptions(delay=timedelta(0)), StartOptions(start_at=datetime(1969, 1, 1, tzinfo=UTC))]
)
async def test_what_is_due_starts_at_once(make_engine: MakeEngine, options: StartOptions) -> None:
    """With a delay of zero, or a start_at in the past, a run starts at once."""
    async with make_engine(Order) as engine:
        run = await engine.start(Order, options, number=1)
        assert (run.status, run.waiting_for, run.wake_at) == ("running", None, None)
        assert (await run.wait(5)).status == "completed"


async def test_start_at_names_the_instant(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """With start_at in the future, a run waits until exactly that instant."""
    at = (clock.now() + timedelta(days=400)).astimezone()
    async with make_engine(Order) as engine:
        run = await engine.start(Order, StartOptions(start_at=at), number=1)
        assert (run.status, run.waiting_for, run.wake_at) == ("waiting", "start", at)
        clock.shift(timedelta(days=401))
        assert (await run.wait(5)).status == "completed"


async def test_delayed_run_outlives_a_restart(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A delayed run begins in whichever engine is open when it is due."""
    async with make_engine(Order) as engine:
        run = await engine.start(Order, StartOptions(delay=HOUR), number=1)
    clock.shift(2 * HOUR)
    async with make_engine(Order) as engine:
        assert (await engine.wait(run.id, 5)).status == "completed"


# ---- keys


async def test_same_key_gives_the_existing_run(make_engine: MakeEngine) -> None:
    """A start with a key that is taken returns the existing run unchanged, with ``created`` false."""
    async with make_engine(Order, worker=False) as engine:
        first = await engine.start(Order, StartOptions(key="a"), number=1)
        again = await engine.start(Order, StartOptions(key="a"), number=2)
        assert (first.created, again.created) == (True, False)
        assert (again.id, again.data, again.key) == (first.id, first.data, "a")
        assert await engine.count() == 1


async def test_keys_belong_to_their_workflow(make_engine: MakeEngine) -> None:
    """Runs of two workflows may have the same key."""
    async with make_engine(Order, Made, worker=False) as engine:
        order = await engine.start(Order, StartOptions(key="a"), number=1)
        made = await engine.start(Made, StartOptions(key="a"), prices=[1])
        assert made.created
        assert made.id != order.id


async def test_reuse_decides_whether_a_key_names_a_new_run(make_engine: MakeEngine) -> None:
    """A used key gives the existing run, but with reuse="ended" or "failed" a new one after an end, or a failure."""
    may = {
        "never": (),
        "ended": ("completed", "failed", "cancelled"),
        "failed": ("failed",),
    }
    statuses = ("running", "waiting", "completed", "failed", "cancelled")
    async with make_engine(Ending, shutdown_timeout=timedelta(0)) as engine:
        for status in statuses:
            for reuse in may:
                first = await engine.start(Ending, StartOptions(key=f"{status} {reuse}"), ending=status)
                if status != "running":
                    await first.wait(5, until="parked")
                if status == "cancelled":
                    await engine.cancel(first.id)
        for status in statuses:
            for reuse, ends in may.items():
                key = f"{status} {reuse}"
                first = await engine.find(Ending, key)
                assert first.status == status
                again = await engine.start(Ending, StartOptions(key=key, reuse=reuse), ending="waiting")
                assert again.created is (status in ends), key
                assert (again.id != first.id) is (status in ends), key


async def test_reused_key_is_taken_again(make_engine: MakeEngine) -> None:
    """Whether a key can be reused depends on the newest run that has it."""
    async with make_engine(Ending) as engine:
        failed = await engine.start(Ending, StartOptions(key="a"), ending="failed")
        await failed.wait(5)
        second = await engine.start(Ending, StartOptions(key="a", reuse="failed"), ending="completed")
        await second.wait(5)
        third = await engine.start(Ending, StartOptions(key="a", reuse="failed"), ending="completed")
        assert (third.id, third.created, third.status) == (second.id, False, "completed")
        assert second.id != failed.id


async def test_many_starts_of_one_key_make_one_run(make_engine: MakeEngine) -> None:
    """Fifty concurrent starts with one key, on two engines, return the same run, which exactly one has created."""
    async with make_engine(Order) as engine, make_engine(Order, worker=False) as other:
        calls = [(engine, other)[number % 2].start(Order, StartOptions(key="a"), number=number) for number in range(50)]
        runs = await asyncio.gather(*calls)
        assert len({run.id for run in runs}) == 1
        assert [run.created for run in runs].count(True) == 1
        assert await engine.count() == 1
        assert (await runs[0].wait(5)).status == "completed"
        assert [row.kind for row in await engine.history(runs[0].id)] == ["start", "complete"]


async def test_start_whose_caller_gave_up_may_have_happened(make_engine: MakeEngine) -> None:
    """A start whose caller is cancelled is committed or not, and a start with the same key tells which."""
    async with make_engine(Order) as engine:
        tasks = [asyncio.ensure_future(engine.start(Order, StartOptions(key=str(n)), number=n)) for n in range(20)]
        for turns, task in enumerate(tasks):
            for _ in range(turns % 5):
                await asyncio.sleep(0)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for n in range(20):
            run = await engine.start(Order, StartOptions(key=str(n)), number=n)
            assert (await run.wait(5)).status == "completed"
        assert await engine.count() == 20


# ---- what is refused


async def refused(engine: Engine, error: type[Exception], text: str, *args: Any, **context: Any) -> BaseException:
    """Check that start raises this error, with a text that begins so, and starts nothing."""
    with pytest.raises(error) as raised:
        await engine.start(*args, **context)
    assert str(raised.value).startswith(text)
    assert await engine.count() == 0
    return raised.value


async def test_unknown_workflows_are_refused(make_engine: MakeEngine) -> None:
    """The error for an unknown workflow names it and those that are known, and says what to do."""
    async with make_engine(Order, Ending, worker=False) as engine:
        advice = "Import the module that defines it, or add the class to Engine(workflows=[...])."
        for what, name in (("shpi", "shpi"), (Made, "start-made")):
            text = f"No workflow {name!r} is known to this engine (known: start-ending, start-order). {advice}"
            error = await refused(engine, errors.WorkflowUnknown, text, what, number=1)
            assert str(error) == text


async def test_what_is_no_workflow_is_refused(make_engine: MakeEngine) -> None:
    """A class that is no workflow, or anything else, is a TypeError that says what to pass."""
    advice = "Pass a class decorated with @workflow(...), or a workflow's name."
    async with make_engine(Order, worker=False) as engine:
        await refused(engine, TypeError, f"ShiftedClock is no workflow. {advice}", ShiftedClock)
        await refused(engine, TypeError, f"an instance of int is no workflow. {advice}", 7)
        await refused(engine, TypeError, f"an instance of Order is no workflow. {advice}", Order())


async def test_unknown_keywords_are_type_errors_that_mention_start_options(make_engine: MakeEngine) -> None:
    """An unknown keyword is a TypeError that mentions StartOptions, as users may write key= there."""
    advice = (
        "Keywords of start() fill the Context; key, reuse, delay and start_at go into StartOptions(...), before them."
    )
    async with make_engine(Order, Made, worker=False) as engine:
        text = "These keywords do not fit Order.Context: it has no field 'key' (fields: number, note). " + advice
        assert str(await refused(engine, TypeError, text, Order, number=1, key="a")) == text
        text = f"These keywords do not fit Made.create_context: got an unexpected keyword argument 'key'. {advice}"
        assert str(await refused(engine, TypeError, text, Made, prices=[1], key="a")) == text
        kind = "keyword-only " if sys.version_info >= (3, 12) else ""  # the wording of inspect
        text = f"These keywords do not fit Made.create_context: missing a required {kind}argument: 'prices'. {advice}"
        assert str(await refused(engine, TypeError, text, Made)) == text


async def test_what_stands_before_the_keywords_is_start_options(make_engine: MakeEngine) -> None:
    """Positional values other than StartOptions are refused with an example of the right call."""
    async with make_engine(Order, worker=False) as engine:
        text = "start() takes StartOptions(...) after the workflow, and the Context's values as keywords; got dict."
        await refused(engine, TypeError, text, Order, {"number": 1})
        text = "start() takes the Context's values as keywords: start(Order, order_id=1)."
        await refused(engine, TypeError, text, Order, StartOptions(), 1)


@pytest.mark.parametrize(
    ("context", "error", "text"),
    [
        ({}, errors.ContextInvalid, "number: Field required"),
        ({"number": "many"}, errors.ContextInvalid, "number: Input should be a valid integer"),
        ({"number": 1, "note": "\udc80"}, errors.LimitExceeded, "every store can hold: a lone surrogate at note."),
        ({"number": 1, "note": "a\0b"}, errors.LimitExceeded, "characters that every store can hold: a NUL at note."),
        ({"number": 1, "note": "x" * 2**20}, errors.LimitExceeded, "The Context is beyond the limit of 1048576 bytes"),
    ],
    ids=["missing", "wrong", "surrogate", "NUL", "large"],
)
async def test_bad_context_starts_nothing(
    make_engine: MakeEngine, context: dict[str, Any], error: type[Exception], text: str
) -> None:
    """Values that do not validate or cannot be stored are refused before anything is written."""
    async with make_engine(Order, worker=False) as engine:
        raised = await refused(engine, error, "", Order, **context)
        assert text in str(raised)
        if error is errors.ContextInvalid:
            assert str(raised).startswith("These arguments do not make a Context of workflow 'start-order': ")
        assert isinstance(raised, ValueError)


async def test_create_context_that_fails_starts_nothing(make_engine: MakeEngine) -> None:
    """An error in create_context is raised unchanged, and a result that is no Context is refused."""
    async with make_engine(Made, worker=False) as engine:
        with pytest.raises(Exception, match="there are no prices"):
            await engine.start(Made, prices=[])
        text = (
            "These arguments do not make a Context of workflow 'start-made': "
            "create_context returned Context, not Made.Context. Return cls.Context(...)."
        )
        await refused(engine, errors.ContextInvalid, text, Made, prices=[-1])


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"delay": HOUR, "start_at": datetime(2030, 1, 1, tzinfo=UTC)}, ValueError, "delay= or start_at=, not both."),
        ({"delay": 60}, TypeError, "StartOptions(delay=...) takes a timedelta, got int."),
        ({"delay": -HOUR}, ValueError, "StartOptions(delay=...) must not be negative"),
        ({"start_at": "now"}, TypeError, "StartOptions(start_at=...) takes a datetime, got str."),
        ({"start_at": datetime(2030, 1, 1)}, ValueError, "StartOptions(start_at=...) must be aware"),  # noqa: DTZ001
        ({"reuse": "always"}, ValueError, "takes 'never', 'ended' or 'failed', got 'always'."),
        ({"key": 1}, TypeError, "StartOptions(key=...) takes a string, got int."),
        ({"key": ""}, ValueError, "StartOptions(key=...) must not be empty."),
        ({"key": "k" * 201}, errors.LimitExceeded, "StartOptions(key=...) is beyond the limit of 200 characters"),
        ({"key": "a\0"}, errors.LimitExceeded, "it holds a NUL."),
        ({"key": "\udc80"}, errors.LimitExceeded, "it holds a lone surrogate."),
    ],
)
def test_options_are_checked(options: dict[str, Any], error: type[Exception], text: str) -> None:
    """A wrong value in StartOptions is refused when they are made."""
    with pytest.raises(error) as raised:
        StartOptions(**options)
    assert text in str(raised.value)
