"""Actions across processes: called through engines that execute nothing, and resumed after an engine has closed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel
from structlog.typing import EventDict

from aioflow import (
    Engine,
    WorkflowRun,
    action,
    complete,
    errors,
    get_context,
    get_run,
    goto,
    on,
    sleep,
    step,
    wait,
    workflow,
)
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, kinds_of
from tests.support import wait_until

SHORT = timedelta(milliseconds=50)


class Gates:
    """The events that steps wait for, and what steps have recorded; reset for each test."""

    begun = asyncio.Event()
    gate = asyncio.Event()
    seen: list[Any] = []  # noqa: RUF012 - emptied for each test


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    Gates.begun, Gates.gate, Gates.seen = asyncio.Event(), asyncio.Event(), []
    yield
    Gates.seen.clear()


@workflow("act-far")
class Far:
    """Actions that record what they get, and that may fail or block."""

    class Context(BaseModel):
        by: str = ""

    @step(start=True)
    async def ask(self) -> Command:
        return wait.any(on(self.act), on(self.with_request), on("stop", then=self.stop))

    @action()
    async def act(self, how: str) -> Command:
        Gates.seen.append((how, get_run().step_key))
        get_context(self.Context).by = how
        Gates.begun.set()
        if how == "wait":
            await Gates.gate.wait()
        if how == "raise":
            raise ValueError("not like this")
        return complete() if how != "again" else goto(self.ask)

    @action()
    async def with_request(self, how: str, request: Any = None) -> Command:
        Gates.seen.append((how, request))
        Gates.begun.set()
        if how == "wait":
            await Gates.gate.wait()
        return complete(by=f"{request}") if how != "again" else sleep(timedelta(0))

    @step
    async def stop(self) -> Command:
        return complete(by="stop")


async def parked(engine: Engine) -> WorkflowRun[Far.Context]:
    """Start a run; returns it once it is parked."""
    return await (await engine.start(Far)).wait(5, until="parked")


async def test_a_client_calls_where_an_engine_works(make_engine: MakeEngine) -> None:
    """A client's call runs in a worker: the caller gets the run, or ActionFailed if the step raises."""
    async with make_engine(Far) as engine, make_engine(Far, worker=False) as client:
        run = await parked(engine)
        with pytest.raises(errors.ActionFailed) as caught:
            await client.act(Far.act, run.id, how="raise")
        assert str(caught.value) == (
            f"Action 'act_far_act' of workflow 'act-far' failed on run {run.id}: ValueError: not like this"
        )
        assert (caught.value.action, caught.value.error) == ("act_far_act", "ValueError: not like this")
        assert [found.name for found in await client.open_actions(run.id)] == ["act_far_act", "act_far_with_request"]
        done = await client.act(Far.act, run.id, how="well")
        assert (done.status, done.data["by"]) == ("completed", "well")


async def test_a_client_s_call_waits_for_an_engine_that_works(make_engine: MakeEngine) -> None:
    """A call made while no worker is open is committed, and is executed once a worker opens."""
    async with make_engine(Far) as engine:
        run = await parked(engine)
    async with make_engine(Far, worker=False) as client:
        call = asyncio.create_task(client.act(Far.act, run.id, how="well"))
        await wait_until(lambda: claimed(client, run))
        assert not call.done()
        with pytest.raises(errors.ActionNotOpen, match="which is running at step 'act'"):
            await client.act(Far.act, run.id, how="too late")
        async with make_engine(Far):
            assert (await call).status == "completed"


async def claimed(engine: Engine, run: WorkflowRun[Any]) -> bool:
    """Whether an action of the run was called and has not ended yet."""
    return (await kinds_of(engine, run))[-1] == "action"


async def test_an_interrupted_action_runs_again_as_it_was_called(make_engine: MakeEngine) -> None:
    """If the engine closes during an action, the next engine runs the step again with the same input and step key."""
    async with make_engine(Far, shutdown_timeout=SHORT) as engine:
        run = await parked(engine)
        call = asyncio.create_task(engine.act(Far.act, run.id, how="wait"))
        await Gates.begun.wait()
    with pytest.raises(errors.EngineClosed, match=r"engine\.act\(\)"):
        await call
    Gates.gate.set()
    async with make_engine(Far) as engine:
        found = await engine.wait(run.id, 10)
        assert (found.status, found.data["by"]) == ("completed", "wait")
        assert await kinds_of(engine, run) == ["start", "wait", "action", "complete"]
    assert len(Gates.seen) == 2
    assert Gates.seen[0] == Gates.seen[1]


async def test_an_interrupted_action_that_raises_is_open_again(make_engine: MakeEngine, log: list[EventDict]) -> None:
    """If an interrupted action then raises, the error is in log and history, and the run waits as before the call."""
    async with make_engine(Far, shutdown_timeout=SHORT) as engine:
        run = await parked(engine)
        call = asyncio.create_task(engine.act(Far.act, run.id, how="wait"))
        await Gates.begun.wait()
    await asyncio.wait([call])
    assert isinstance(call.exception(), errors.EngineClosed)
    Gates.gate = None  # type: ignore[assignment] - the step raises now
    async with make_engine(Far) as engine:
        found = await engine.wait(run.id, 10, until="parked")
        assert (found.waiting_for, found.data["by"]) == ("action", "")
        rows = await engine.history(run.id)
        assert [row.kind for row in rows] == ["start", "wait", "action", "reopen"]
        assert (rows[-1].error or "").startswith("AttributeError")
        assert (await engine.signal("stop", run_id=run.id)).delivered == [run.id]
    assert [entry["run_id"] for entry in log if entry["event"] == "action failed, is open again"] == [run.id]


async def test_an_interrupted_action_with_a_request_goes_back(make_engine: MakeEngine) -> None:
    """An interrupted action that was called with a request is not run again, but open again, as the request is lost."""
    async with make_engine(Far, shutdown_timeout=SHORT) as engine:
        run = await parked(engine)
        call = asyncio.create_task(engine.act(Far.with_request, run.id, how="wait", request="the request"))
        await Gates.begun.wait()
    await asyncio.wait([call])
    assert isinstance(call.exception(), errors.EngineClosed)
    async with make_engine(Far) as engine:
        await engine.wait(run.id, 10, until="parked")
        rows = await engine.history(run.id)
        assert [row.kind for row in rows] == ["start", "wait", "action", "reopen"]
        assert "the request that called it is only in the memory of another process" in (rows[-1].error or "")
        done = await engine.act(Far.with_request, run.id, how="well", request="another")
        assert done.data["by"] == "another"
    assert Gates.seen == [("wait", "the request"), ("well", "another")]


async def test_an_interrupted_action_without_the_request_it_could_take_runs_again(make_engine: MakeEngine) -> None:
    """An interrupted action that was called without a request runs again, even if it could take one."""
    async with make_engine(Far, shutdown_timeout=SHORT) as engine:
        run = await parked(engine)
        call = asyncio.create_task(engine.act(Far.with_request, run.id, how="wait"))
        await Gates.begun.wait()
    await asyncio.wait([call])
    assert isinstance(call.exception(), errors.EngineClosed)
    Gates.gate.set()
    async with make_engine(Far) as engine:
        assert (await engine.wait(run.id, 10)).data["by"] == "None"


async def test_a_request_does_not_leave_its_process(make_engine: MakeEngine) -> None:
    """A call with a request through a client is ActionFailed, and one without a request succeeds."""
    async with make_engine(Far) as engine, make_engine(Far, worker=False) as client:
        run = await parked(engine)
        with pytest.raises(errors.ActionFailed, match="which has ended or did not run the step"):
            await client.act(Far.with_request, run.id, how="well", request="a request")
        assert Gates.seen == []
        assert (await client.act(Far.with_request, run.id, how="well")).data["by"] == "None"


async def test_a_call_with_a_request_does_not_run_again_after_a_sleep(make_engine: MakeEngine) -> None:
    """An action that was called with a request, and sleeps without then=, fails at once, as the request is not stored."""
    async with make_engine(Far) as engine:
        run = await parked(engine)
        with pytest.raises(errors.ActionFailed, match=r"Say then="):
            await engine.act(Far.with_request, run.id, how="again", request="a request")
        assert [row.kind for row in await engine.history(run.id)] == ["start", "wait", "action", "reopen"]
        done = await engine.act(Far.with_request, run.id, how="well", request="another")
        assert done.data["by"] == "another"


async def test_a_call_waits_for_room(make_engine: MakeEngine) -> None:
    """With all slots taken, a call is committed, and its step runs with its request once a slot is free."""
    async with make_engine(Far, max_running=1) as engine:
        busy, run = await parked(engine), await parked(engine)
        first = asyncio.create_task(engine.act(Far.act, busy.id, how="wait"))
        await Gates.begun.wait()
        second = asyncio.create_task(engine.act(Far.with_request, run.id, how="well", request="kept"))
        await wait_until(lambda: claimed(engine, run))
        assert not second.done()
        Gates.gate.set()
        assert (await first).status == "completed"
        assert (await second).data["by"] == "kept"


async def test_a_step_may_call_an_action_of_another_run(make_engine: MakeEngine) -> None:
    """A step may call an action of another run, but not of its own, which is running."""

    @workflow("act-caller")
    class Caller:
        class Context(BaseModel):
            other: int
            told: str = ""

        @action()
        @step(start=True)
        async def call(self, engine_id: int) -> Command:
            context = get_context(self.Context)
            with pytest.raises(errors.ActionNotOpen):
                await Gates.seen[0].act(Caller.call, get_run().id, engine_id=1)
            context.told = str((await Gates.seen[0].act(Far.act, context.other, how="again")).current_step)
            return complete()

    async with make_engine(Far, Caller) as engine:
        Gates.seen.append(engine)
        other = await parked(engine)
        run = await engine.start(Caller, other=other.id)
        done = await engine.act(Caller.call, run.id, engine_id=1)
        assert (done.status, done.data["told"]) == ("completed", "ask")


async def test_an_action_of_an_unknown_workflow(make_engine: MakeEngine) -> None:
    """act and open_actions of a run whose workflow this engine does not know are WorkflowUnknown."""

    @workflow("act-unknown")
    class Unknown:
        class Context(BaseModel):
            pass

        @action("act_unknown")
        @step(start=True)
        async def act(self) -> Command:
            return complete()

    async with make_engine(Unknown) as engine, make_engine(Far, worker=False) as client:
        run = await engine.start(Unknown)
        for call in (client.act("act_unknown", run.id), client.open_actions(run.id)):
            with pytest.raises(
                errors.WorkflowUnknown, match=r"No workflow 'act-unknown' version '1' is known .*act-far"
            ):
                await call
        assert (await engine.act("act_unknown", run.id)).status == "completed"


async def test_a_run_that_its_code_cannot_take_is_not_called(make_engine: MakeEngine) -> None:
    """A call of a run whose Context no longer validates is refused, and nothing is written."""

    def flow(context: type[BaseModel]) -> Any:
        class Flow:
            Context = context

            @action("act_changed")
            @step(start=True)
            async def act(self) -> Command:
                return complete()

        return workflow("act-changed")(Flow)

    class Old(BaseModel):
        total: int = 0

    class New(BaseModel):
        total: int = 0
        name: str

    old = flow(Old)
    async with make_engine(old) as engine:
        run = await engine.start(old)
    new = flow(New)
    async with make_engine(new) as engine:
        with pytest.raises(errors.ActionFailed, match=r"does not accept what run .* has stored: name: Field required"):
            await engine.act("act_changed", run.id)
        assert await kinds_of(engine, run) == ["start"]


async def test_an_action_that_the_code_no_longer_has(make_engine: MakeEngine) -> None:
    """An action that the code no longer has is not open, and is open again once the code is back."""

    def flow(*, acts: bool) -> Any:
        class Flow:
            Context = Far.Context

            @step(start=True)
            async def ask(self) -> Command:
                return goto("act")

            @step
            async def act(self) -> Command:
                return complete(by="act")

        if acts:
            Flow.act = action("act_gone")(Flow.act)  # type: ignore[method-assign, assignment, type-var]
        return workflow("act-gone")(Flow)

    with_action = flow(acts=True)
    async with make_engine(with_action) as engine:
        run = await (await engine.start(with_action)).wait(5, until="parked")
    without = flow(acts=False)
    async with make_engine(without) as engine:
        with pytest.raises(errors.ActionNotOpen, match="open actions: none"):
            await engine.act("act_gone", run.id)
        assert await engine.open_actions(run.id) == []
    again = flow(acts=True)
    async with make_engine(again) as engine:
        assert (await engine.act("act_gone", run.id)).data["by"] == "act"
