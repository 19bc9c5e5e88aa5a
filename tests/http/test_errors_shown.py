"""What clients are told about errors: what was written for them, and never the text of an exception."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, field_validator

from aioflow import Engine, GiveUp, Retry, WorkflowRun, action, complete, fail, get_context, goto, step, workflow
from aioflow.causes import MARK, is_told, kept, trace_in, traceback_of
from aioflow.commands import Command
from aioflow.errors import EngineClosed
from aioflow.http import api
from aioflow.http.views import TransitionView
from aioflow.model import bounded
from aioflow.store import Store
from tests.engine.conftest import MakeEngine, ShiftedClock
from tests.http.conftest import Connect
from tests.http.flows import SECRET

RAISED = "An error was raised. The log of the server has more."
BLOCKED = "Its code cannot take it as it is stored. The log of the server has more."


class Secretive(Exception):
    """An exception whose text looks like the end of another exception's traceback."""

    def __init__(self) -> None:
        super().__init__(f"{SECRET}\naioflow.retry.GiveUp: {SECRET}")


class Sly(GiveUp):
    """A subclass of GiveUp, which has words of its own."""


class Posing(Exception):
    """An exception whose name begins with the mark of errors for clients, and that hides its traceback."""


Posing.__module__, Posing.__qualname__ = "builtins", MARK + SECRET


def noted() -> GiveUp:
    """A GiveUp for clients, with a note that is not."""
    error = GiveUp("It cannot be delivered.")
    error.add_note(SECRET)
    return error


def given_up(how: str) -> Exception:
    """The exception for one of these ways to give up."""
    ways: dict[str, Callable[[], Exception]] = {
        "give up slyly": lambda: Sly(SECRET),
        "give up slyly in a group": lambda: ExceptionGroup(SECRET, [Sly(SECRET)]),
        "give up among others": lambda: ExceptionGroup(SECRET, [GiveUp(SECRET), ValueError(SECRET)]),
        "give up with a note": noted,
        "give up at length": lambda: GiveUp("no " * 1_000),
        "give up at great length": lambda: GiveUp("no\n" * 20_000),
        "give up without a word": lambda: GiveUp(""),
    }
    return ways[how]()


async def give_up() -> None:
    """Give up in a task of a step."""
    raise GiveUp("It cannot be delivered.")


@workflow("shows-ends", timeout=timedelta(hours=1))
class Ends:
    """Ends in the way that its Context says."""

    class Context(BaseModel):
        how: str

    @step(start=True, retry=Retry(max_attempts=2, base_delay=timedelta(milliseconds=1), jitter=0))
    async def work(self) -> Command:
        match get_context(self.Context).how:
            case "raise":
                raise Secretive
            case "raise in the engine":
                raise EngineClosed(SECRET)
            case "give up":
                raise GiveUp("It cannot be delivered.") from ValueError(SECRET)
            case "give up in a group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(give_up())
                return complete()
            case "go on":
                return goto(self.act)
            case "fail":
                return fail("no luck")
            case how:
                raise given_up(how)

    @action("ends_act")
    async def act(self) -> Command:
        raise RuntimeError(SECRET)


@workflow("shows-rescued")
class Rescued:
    """Fails, and goes to its on_fail step."""

    class Context(BaseModel):
        pass

    @step(start=True, on_fail="rescue", retry=Retry(max_attempts=1))
    async def work(self) -> Command:
        raise RuntimeError(SECRET)

    @step
    async def rescue(self) -> Command:
        return complete()


class Rules:
    """Whether the Context of the next workflow rejects what is stored, which is the mutable state."""

    strict = False


@workflow("shows-blocked")
class Blocked:
    """Its Context may reject what it had accepted."""

    class Context(BaseModel):
        number: int = 1

        @field_validator("number")
        @classmethod
        def fits(cls, value: int) -> int:
            if Rules.strict:
                raise ValueError(SECRET)
            return value

    @step(start=True)
    async def work(self) -> Command:
        return complete()


async def shown(client: httpx.AsyncClient, run: WorkflowRun[Any]) -> tuple[str | None, list[tuple[str, str | None]]]:
    """The errors of a run and of its history, checked to be the same in all responses, and never to have the secret."""
    answers = [
        await client.get(f"/runs/{run.id}"),
        await client.get(f"/runs/{run.id}/wait?timeout=0"),
        await client.get("/runs"),
        await client.get(f"/runs/{run.id}/history"),
    ]
    assert all(SECRET not in answer.text and answer.status_code == 200 for answer in answers)
    one, waited, listed, history = (answer.json() for answer in answers)
    told = [(each["kind"], each["error"]) for each in history["transitions"]]
    assert one["error"] == waited["error"] == listed["runs"][0]["error"]
    if run.status.ended:
        stream = (await client.get(f"/runs/{run.id}/stream")).text
        assert SECRET not in stream
        data = [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: {")][:-1]
        assert [(each["kind"], each["error"]) for each in map(json.loads, data)] == told
    return one["error"], told


@pytest.fixture
async def engine(store_url: str | Store) -> AsyncIterator[Engine]:
    """An open engine with the workflows of these tests."""
    Rules.strict = False
    async with Engine(store_url, workflows=[Ends, Rescued, Blocked]) as engine:
        yield engine


@pytest.fixture
def client(engine: Engine, connect: Connect) -> httpx.AsyncClient:
    """A client on this machine."""
    return connect(api(engine))


@pytest.mark.parametrize(
    ("how", "told", "before"),
    [
        ("fail", "no luck", []),
        ("raise", RAISED, [("retry", RAISED)]),
        ("raise in the engine", RAISED, [("retry", RAISED)]),
        ("give up", "It cannot be delivered.", []),
        ("give up slyly", RAISED, []),
        ("give up in a group", "It cannot be delivered.", []),
        ("give up slyly in a group", RAISED, []),
        ("give up among others", RAISED, [("retry", RAISED)]),
        ("give up with a note", "It cannot be delivered.", []),
        ("give up at length", bounded("no " * 1_000, 2_000), []),
        ("give up at great length", bounded("no\n" * 20_000, 2_000), []),
        ("give up without a word", "", []),
    ],
)
async def test_a_failure_is_shown_without_the_text_of_an_exception(
    engine: Engine, client: httpx.AsyncClient, how: str, told: str, before: list[tuple[str, str | None]]
) -> None:
    """Clients get the reason of ``fail`` and ``GiveUp``, and of any other exception only that an error was raised."""
    run = await (await engine.start(Ends, how=how)).wait(5)
    assert run.status == "failed"
    error, history = await shown(client, run)
    assert error == told
    assert [each for each in history if each[1] is not None] == [*before, ("fail", told)]
    if how != "fail":
        assert "in work" in (run.traceback or "")
        assert MARK not in (run.traceback or "")


def test_an_exception_cannot_mark_itself_as_one_for_callers() -> None:
    """An exception cannot mark itself as one for clients, whatever its traceback begins with."""
    posing = Posing(SECRET)
    assert traceback_of(posing).startswith(MARK)
    assert not is_told(kept(posing))
    assert trace_in(kept(posing)) == "\n" + traceback_of(posing)
    assert is_told(kept(GiveUp("no")))
    assert trace_in(kept(GiveUp("no"))) == "aioflow.retry.GiveUp: no\n"
    assert not is_told(None)
    assert trace_in(None) is None


async def test_the_error_of_a_timed_out_run_is_shown(
    clock: ShiftedClock, make_engine: MakeEngine, connect: Connect
) -> None:
    """A run that has exceeded its timeout shows the engine's own text."""
    async with make_engine(Ends) as engine:
        run = await (await engine.start(Ends, how="go on")).wait(5, until="parked")
        clock.shift(timedelta(hours=2))
        await run.wait(5)
        told = f"Run {run.id} of workflow 'shows-ends' was out of time at step 'act'."
        error, history = await shown(connect(api(engine)), run)
        assert (error, history[-1]) == (told, ("fail", told))


async def test_the_reason_of_a_cancellation_is_shown(engine: Engine, client: httpx.AsyncClient) -> None:
    """A cancelled run shows the reason that was given."""
    run = await (await engine.start(Ends, how="go on")).wait(5, until="parked")
    await engine.cancel(run.id, "duplicate")
    await run.refresh()
    error, history = await shown(client, run)
    assert (error, history[-1]) == ("duplicate", ("cancel", "duplicate"))


async def test_what_an_action_raised_is_not_shown(engine: Engine, client: httpx.AsyncClient) -> None:
    """What an action has raised is not shown, nor why a signal was rejected."""
    run = await (await engine.start(Ends, how="go on")).wait(5, until="parked")
    assert (await client.post(f"/runs/{run.id}/actions/ends_act", json={})).status_code == 500
    error, history = await shown(client, run)
    assert (error, history[-2:]) == (None, [("action", None), ("reopen", RAISED)])
    last = (await engine.history(run.id))[-1]
    assert SECRET in (last.error or "")
    assert TransitionView.of(last._replace(kind="reject"), run).error == "What was sent does not fit."


async def test_what_led_to_on_fail_is_not_shown(engine: Engine, client: httpx.AsyncClient) -> None:
    """The transition to an ``on_fail`` step shows only that an error was raised."""
    run = await (await engine.start(Rescued)).wait(5)
    error, history = await shown(client, run)
    assert (error, history) == (None, [("start", None), ("on_fail", RAISED), ("complete", None)])


async def test_why_a_run_is_blocked_is_not_shown(store_url: str | Store, connect: Connect) -> None:
    """Why a run is blocked is not shown, as it may be the text of a Context's validator."""
    Rules.strict = False
    async with Engine(store_url, workflows=[Blocked], worker=False) as starter:
        run = await starter.start(Blocked)
        Rules.strict = True
        async with Engine(store_url, workflows=[Blocked]) as engine:
            run = await engine.get(run.id)
            await run.wait(5, until="parked")
            assert SECRET in (run.error or "")
            error, history = await shown(connect(api(engine)), run)
            assert (error, history) == (BLOCKED, [("start", None), ("block", BLOCKED)])


async def test_a_run_that_fails_while_it_is_watched(engine: Engine, client: httpx.AsyncClient) -> None:
    """A stream that began before the failure shows its reason, and no more."""
    run = await engine.start(Ends, how="give up")
    stream = (await client.get(f"/runs/{run.id}/stream")).text
    assert '"error":"It cannot be delivered."' in stream
    assert SECRET not in stream
