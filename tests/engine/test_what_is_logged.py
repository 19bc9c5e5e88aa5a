"""What is logged: tracebacks of failed steps, but no values of a Context, and mail and orders without effect."""

from __future__ import annotations

import asyncio
import gc
import weakref
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from aioflow import Failure, GiveUp, Retry, StartOptions, complete, fail, get_context, get_run, step, wait, workflow
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, idle
from tests.flows import PATIENCE
from tests.support import wait_until

SECRET = "4111 1111 1111 1111"


class Large(Exception):
    """An exception that can be weakly referenced."""


#: Exceptions raised by ``Failing`` that should be garbage collected.
RAISED: list[weakref.ref[Large]] = []
SOON = Retry(max_attempts=2, base_delay=timedelta(0))


@workflow("logged-failing", default_retry=SOON)
class Failing:
    """Fails in the way that its Context says, at each attempt."""

    class Context(BaseModel):
        how: str

    @step(start=True, on_fail="rescue")
    async def begin(self) -> Command:
        match get_context(self.Context).how:
            case "one":
                return complete(found={}["missing"])
            case "group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(self.part("first part"))
            case "kept":
                error = Large("with its frames")
                RAISED.append(weakref.ref(error))
                raise error
            case "given up":
                raise GiveUp("there is no such card")
            case "no command":
                return None  # type: ignore[return-value]
        return fail("as it was told")

    async def part(self, name: str) -> None:
        raise ValueError(name)

    @step
    async def rescue(self, failure: Failure) -> Command:
        return complete(rescued=True)


def warnings_of(entries: list[Any], run_id: int) -> list[tuple[str, str | None]]:
    """The warnings about a run: event and traceback."""
    return [
        (entry["event"], entry.get("exception"))
        for entry in entries
        if entry.get("run_id") == run_id and entry["log_level"] == "warning"
    ]


@pytest.mark.parametrize(("how", "where"), [("one", '{}["missing"]'), ("group", "raise ValueError(name)")])
async def test_a_failed_attempt_is_logged_with_its_traceback(
    make_engine: MakeEngine, log: list[Any], how: str, where: str
) -> None:
    """Each failed attempt is logged with its traceback, even if an on_fail step then completes the run."""
    async with make_engine() as engine:
        run = await (await engine.start(Failing, how=how)).wait(PATIENCE)
    assert run.data["rescued"] is True
    told = warnings_of(log, run.id)
    assert [event for event, _ in told] == ["step failed, will be retried", "step failed, goes on with on_fail"]
    for _, trace in told:
        assert trace is not None
        assert where in trace


@pytest.mark.parametrize("how", ["given up", "no command"])
async def test_give_up_and_aioflow_errors_have_no_traceback(make_engine: MakeEngine, log: list[Any], how: str) -> None:
    """GiveUp and aioflow's own errors are logged without a traceback."""
    async with make_engine() as engine:
        run = await (await engine.start(Failing, how=how)).wait(PATIENCE)
    assert warnings_of(log, run.id) == [("step failed, goes on with on_fail", None)]


async def test_exceptions_are_freed_once_recorded(make_engine: MakeEngine) -> None:
    """An exception of a step is not referenced any more once it is recorded."""
    async with make_engine() as engine:
        RAISED.clear()
        await (await engine.start(Failing, how="kept")).wait(PATIENCE)
        gc.collect()
        assert [error() for error in RAISED] == [None, None]


@workflow("logged-assigning", default_retry=Retry(max_attempts=1))
class Assigning:
    """Assigns a secret to a number."""

    class Context(BaseModel):
        card: str
        number: int = 0

    @step(start=True)
    async def begin(self) -> Command:
        context = get_context(self.Context)
        context.number = context.card  # type: ignore[assignment]
        return complete()


async def test_a_refused_assignment_tells_no_value(make_engine: MakeEngine, log: list[Any]) -> None:
    """Neither the log nor the run's error and traceback contain the refused value."""
    async with make_engine() as engine:
        run = await (await engine.start(Assigning, card=SECRET)).wait(PATIENCE)
    assert run.error is not None
    assert "number" in run.error
    assert "valid integer" in run.error
    assert SECRET not in run.error + str(run.traceback) + str(log)


class Shows(BaseModel):
    """A Context that allows values in errors."""

    model_config = ConfigDict(hide_input_in_errors=False)
    card: str
    number: int = 0


@workflow("logged-showing", default_retry=Retry(max_attempts=1))
class Showing:
    """The same with a Context that allows values in errors."""

    Context = Shows

    @step(start=True)
    async def begin(self) -> Command:
        context = get_context(Shows)
        context.number = context.card  # type: ignore[assignment]
        return complete()


async def test_a_context_may_ask_for_its_values_in_errors(make_engine: MakeEngine) -> None:
    """With hide_input_in_errors=False in the Context's config, the run's error contains the refused value."""
    async with make_engine() as engine:
        run = await (await engine.start(Showing, card="12 34")).wait(PATIENCE)
    assert "12 34" in str(run.error)


def release(context: type[BaseModel]) -> Any:
    """The workflow as one release of the code defines it."""

    @workflow("logged-waiting")
    class Waiting:
        Context = context

        @step(start=True)
        async def begin(self) -> Command:
            return wait.for_signal("paid", then=self.done)

        @step
        async def done(self) -> Command:
            return complete()

    return Waiting


class Old(BaseModel):
    """The Context of old runs."""


class New(BaseModel):
    """A Context with a required field that old runs lack."""

    needed: int


async def test_mail_that_a_run_cannot_take_is_logged_once(make_engine: MakeEngine, log: list[Any]) -> None:
    """A signal that the code cannot deliver to its run is kept and logged once, and is taken once the code can."""
    async with make_engine() as engine:
        run = await engine.start(release(Old))
        await run.wait(PATIENCE, until="parked")
        release(New)
        for _ in range(2):
            await engine.signal("paid", run_id=run.id)
        await idle(engine)
        await wait_until(lambda: bool(kept(log)))
        await run.refresh()
        assert run.status == "waiting"
        (entry,) = kept(log)
        assert (entry["run_id"], entry["workflow"], entry["signal"]) == (run.id, "logged-waiting", "paid")
        assert "needed" in entry["error"]
        release(Old)
        await run.wait(PATIENCE)
    assert run.status == "completed"


def kept(entries: list[Any]) -> list[Any]:
    """The log entries about mail that is kept."""
    return [entry for entry in entries if entry["event"].startswith("a waiting run has mail, and keeps it")]


@workflow("logged-ordering")
class Ordering:
    """Starts, sends and emits what has no effect."""

    class Context(BaseModel):
        ended: int

    @step(start=True)
    async def begin(self) -> Command:
        run = get_run()
        run.signal("hello", run_id=10**6)
        run.signal("hello", run_id=get_context(self.Context).ended)
        run.signal("hello", key="somebody", signal_id="before")
        run.emit("seen", event_id="before")
        run.emit("heard", event_id="before-that", replace=True)
        run.emit("ordered", event_id=f"by-{run.id}")
        run.emit("heard", event_id=f"by-{run.id}", replace=True)
        run.start(Ordering, StartOptions(key="taken"), ended=0)
        return complete()


async def test_orders_without_effect_are_logged(make_engine: MakeEngine, log: list[Any]) -> None:
    """A signal to an unknown run is logged as a warning; other orders of a step without effect are logged as info."""
    async with make_engine(Ordering) as engine:
        await engine.emit("seen", event_id="before-that")
        ended = await (await engine.start(Ordering, StartOptions(key="taken"), ended=1)).wait(PATIENCE)
        await engine.signal("hello", key="nobody", signal_id="before")
        await engine.emit("seen", event_id="before")
        log.clear()
        run = await (await engine.start(Ordering, ended=ended.id)).wait(PATIENCE)
        assert run.status == "completed"
        found = [
            {name: entry[name] for name in entry if name not in ("run_id", "workflow", "step")}
            for entry in log
            if entry.get("run_id") == run.id and entry.get("step") == "begin" and "seq" not in entry
        ]
        assert found == [
            {"log_level": "warning", "event": "signal not sent, there is no such run", "signal": "hello", "to": 10**6},
            {"log_level": "info", "event": "signal not sent, its run has ended", "signal": "hello", "to": ended.id},
            {
                "log_level": "info",
                "event": "signal not sent, its signal_id is known",
                "signal": "hello",
                "signal_id": "before",
            },
            {
                "log_level": "info",
                "event": "event not emitted, its event_id is known",
                "event_name": "seen",
                "event_id": "before",
            },
            {
                "log_level": "info",
                "event": "event not emitted, its event_id is known",
                "event_name": "heard",
                "event_id": "before-that",
            },
            {
                "log_level": "info",
                "event": "run not started, its key is taken",
                "starts": "logged-ordering",
                "key": "taken",
            },
        ]
        by_runs = {(event.id, event.name) for event in await engine.events() if event.id.startswith("by-")}
        assert by_runs == {(f"by-{ended.id}", "ordered"), (f"by-{run.id}", "ordered")}
        assert [event.name for event in await engine.events(event_id="before-that")] == ["seen"]
