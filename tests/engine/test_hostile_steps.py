"""Steps that raise or do their worst: only their own run fails, and other runs are not affected."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel
from structlog.contextvars import bind_contextvars, get_contextvars

from aioflow import Retry, complete, get_context, get_run, goto, step, workflow
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, kinds_of, run_of
from tests.support import wait_until


class Nothing(BaseModel):
    """A Context without fields."""


def _recurse() -> None:
    _recurse()


def _raise(error: BaseException) -> None:
    raise error


#: What a step may raise, and the error that is recorded.
WORST: dict[str, tuple[Callable[[], object], str]] = {
    "CancelledError": (lambda: _raise(asyncio.CancelledError("mine")), "CancelledError: mine"),
    "KeyboardInterrupt": (lambda: _raise(KeyboardInterrupt()), "KeyboardInterrupt"),
    "SystemExit": (lambda: _raise(SystemExit(3)), "SystemExit: 3"),
    "GeneratorExit": (lambda: _raise(GeneratorExit()), "GeneratorExit"),
    "StopIteration": (lambda: _raise(StopIteration(7)), "StopIteration"),
    "StopAsyncIteration": (lambda: _raise(StopAsyncIteration()), "StopAsyncIteration"),
    "RecursionError": (_recurse, "RecursionError: "),
    "MemoryError": (lambda: _raise(MemoryError()), "MemoryError"),
    "TimeoutError": (lambda: _raise(TimeoutError("mine")), "TimeoutError: mine"),
    "BaseExceptionGroup": (
        lambda: _raise(BaseExceptionGroup("worst", [KeyboardInterrupt(), asyncio.CancelledError()])),
        "BaseExceptionGroup: worst",
    ),
}


@workflow("hostile-raises", default_retry=Retry(max_attempts=1))
class Raises:
    """Raises in the step that its Context names."""

    class Context(BaseModel):
        worst: str
        where: str
        changed: bool = False

    @step(start=True)
    async def begin(self) -> Command:
        return goto(get_context(self.Context).where)

    def go_wrong(self) -> Command:
        context = get_context(self.Context)
        context.changed = True
        WORST[context.worst][0]()
        return complete()

    @step
    async def coroutine(self) -> Command:
        return self.go_wrong()

    @step
    async def awaiting(self) -> Command:
        await asyncio.sleep(0)
        return self.go_wrong()

    @step
    def thread(self) -> Command:
        return self.go_wrong()

    @step(thread=False)
    def loop(self) -> Command:
        return self.go_wrong()


@pytest.mark.parametrize("worst", WORST)
async def test_worst_that_a_step_can_raise_is_its_runs_failure(make_engine: MakeEngine, worst: str) -> None:
    """Whatever a coroutine or a sync step raises is recorded, and runs beside and after it are not affected."""
    gate = asyncio.Event()

    @workflow("hostile-sibling")
    class Sibling:
        Context = Nothing

        @step(start=True)
        async def wait(self) -> Command:
            await gate.wait()
            return goto(self.end)

        @step
        def end(self) -> Command:
            return complete()

    async with make_engine(Raises, Sibling) as engine:
        sibling = await engine.start(Sibling)
        for where in ("coroutine", "awaiting", "thread", "loop"):
            run = await run_of(engine, Raises, worst=worst, where=where)
            assert (run.status, run.current_step, run.data["changed"]) == ("failed", where, False), where
            assert WORST[worst][1] in run.error, where
            assert "in go_wrong" in run.traceback, where
            assert await kinds_of(engine, run) == ["start", "goto", "fail"], where
        await sibling.refresh()
        assert sibling.status == "running"
        gate.set()
        assert (await sibling.wait(5)).status == "completed"
        assert (await run_of(engine, Sibling)).status == "completed"


async def test_all_of_the_worst_at_once(make_engine: MakeEngine) -> None:
    """When runs raise all of these at the same time, each of them fails."""
    async with make_engine(Raises) as engine:
        places = [(worst, where) for worst in WORST for where in ("coroutine", "awaiting", "thread", "loop")]
        runs = [await engine.start(Raises, worst=worst, where=where) for worst, where in places]
        for run in runs:
            assert (await run.wait(10)).status == "failed"
        assert await engine.count(status="failed") == len(places)


@workflow("hostile-cancels", default_retry=Retry(max_attempts=1))
class Cancels:
    """Cancels the task that it runs in."""

    class Context(BaseModel):
        way: str
        note: str = ""

    @step(start=True)
    async def begin(self) -> Command:
        task, context = asyncio.current_task(), get_context(self.Context)
        assert task is not None
        context.note = "changed"
        task.cancel()
        match context.way:
            case "returns":
                return goto(self.next)
            case "awaits":
                await asyncio.sleep(0)
            case "swallows":
                try:
                    await asyncio.sleep(0)
                except asyncio.CancelledError:
                    await asyncio.sleep(0)
            case "twice":
                try:
                    await asyncio.sleep(0)
                except asyncio.CancelledError:
                    task.cancel()
            case "raises":
                raise ValueError("after all")
        return goto(self.next)

    @step
    async def next(self) -> Command:
        task = asyncio.current_task()
        assert task is not None
        await asyncio.sleep(0)
        get_context(self.Context).note += f", {task.cancelling()}"
        return complete()


@pytest.mark.parametrize(
    ("way", "status", "error"),
    [
        ("returns", "completed", None),
        ("swallows", "completed", None),
        ("twice", "completed", None),
        ("awaits", "failed", "CancelledError"),
        ("raises", "failed", "ValueError: after all"),
    ],
)
async def test_step_that_cancels_its_task_harms_only_itself(
    make_engine: MakeEngine, way: str, status: str, error: str | None
) -> None:
    """If a step cancels its own task, its command or error still counts, and the next step has a clean task."""
    async with make_engine(Cancels) as engine:
        runs = [await engine.start(Cancels, way=way) for _ in range(5)]
        for run in runs:
            await run.wait(5)
            assert (run.status, run.error) == (status, error)
            assert run.data["note"] == ("changed, 0" if status == "completed" else "")


async def test_sync_step_that_cancels_the_task_it_runs_in_harms_only_itself(make_engine: MakeEngine) -> None:
    """If a sync step on the loop cancels its task, its command still counts, and the next step has a clean task."""

    @workflow("hostile-cancels-sync", default_retry=Retry(max_attempts=1))
    class Flow:
        class Context(BaseModel):
            cancelling: int | None = None

        @step(start=True, thread=False)
        def begin(self) -> Command:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            return goto(self.next)

        @step
        async def next(self) -> Command:
            await asyncio.sleep(0)
            task = asyncio.current_task()
            assert task is not None
            return complete(cancelling=task.cancelling())

    async with make_engine(Flow) as engine:
        for _ in range(3):
            run = await run_of(engine, Flow)
            assert (run.status, run.data) == ("completed", {"cancelling": 0})


async def test_step_that_swallows_a_cancel_is_cancelled_all_the_same(make_engine: MakeEngine) -> None:
    """What a step returns after its run was cancelled is discarded."""
    inside, swallowed = asyncio.Event(), asyncio.Event()

    @workflow("hostile-swallows")
    class Flow:
        class Context(BaseModel):
            note: str = ""

        @step(start=True)
        async def work(self) -> Command:
            inside.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed.set()
            return complete(note="it went on")

    async with make_engine(Flow) as engine:
        run = await engine.start(Flow)
        await inside.wait()
        assert await engine.cancel(run.id, "enough")
        await swallowed.wait()
        assert (await run.wait(5)).status == "cancelled"
    async with make_engine(Flow, worker=False) as engine:
        again = await engine.get(run.id)
        assert (again.status, again.error, again.data) == ("cancelled", "enough", {"note": ""})
        assert await kinds_of(engine, again) == ["start", "cancel"]


async def test_step_that_never_stops_holds_its_own_slot_alone(make_engine: MakeEngine, log: list[Any]) -> None:
    """A step that ignores all cancellations keeps its slot until it ends, which is logged, and then others get it."""
    gate, inside = asyncio.Event(), asyncio.Event()

    @workflow("hostile-stays")
    class Stays:
        Context = Nothing

        @step(start=True)
        async def stay(self) -> Command:
            inside.set()
            while not gate.is_set():
                try:
                    await gate.wait()
                except asyncio.CancelledError:
                    pass
            return complete()

    @workflow("hostile-other")
    class Other:
        Context = Nothing

        @step(start=True)
        async def end(self) -> Command:
            return complete()

    async with make_engine(Stays, Other, max_running=1) as engine:
        run = await engine.start(Stays)
        await inside.wait()
        assert await engine.cancel(run.id)
        await wait_until(lambda: [entry for entry in log if "its slot is written off" in entry["event"]])
        other = await engine.start(Other)
        for _ in range(50):
            await asyncio.sleep(0)
        await other.refresh()
        assert (other.status, other.row.owner) == ("running", None)  # no slot is free for it
        gate.set()
        assert (await other.wait(5)).status == "completed"
        assert await kinds_of(engine, run) == ["start", "cancel"]


#: Set by steps, which other runs must not see.
secret: ContextVar[str] = ContextVar("secret", default="unset")


async def test_context_variables_of_a_step_stay_in_its_run(make_engine: MakeEngine) -> None:
    """ContextVars and bound log values of a step are not seen by other runs, nor are those of the caller by a run."""
    seen: list[tuple[str, Any]] = []

    @workflow("hostile-variables")
    class Flow:
        class Context(BaseModel):
            where: str

        @step(start=True)
        async def begin(self) -> Command:
            seen.append((secret.get(), get_contextvars().get("mine")))
            return goto(get_context(self.Context).where)

        def leave(self) -> Command:
            secret.set(f"of {get_run().id}")
            bind_contextvars(mine=get_run().id)
            return complete()

        @step
        async def coroutine(self) -> Command:
            return self.leave()

        @step
        def thread(self) -> Command:
            return self.leave()

        @step(thread=False)
        def loop(self) -> Command:
            return self.leave()

    async with make_engine(Flow) as engine:
        secret.set("of the caller")
        runs = []
        for where in ("coroutine", "thread", "loop") * 3:
            runs.append(await engine.start(Flow, where=where))
            await runs[-1].wait(5)
        runs += [await engine.start(Flow, where=where) for where in ("coroutine", "thread", "loop") * 3]
        for run in runs:
            assert (await run.wait(5)).status == "completed"
    assert seen == [("unset", None)] * 18


async def test_log_of_a_step_tells_its_run(make_engine: MakeEngine) -> None:
    """The log lines of a step have run_id, workflow, step and attempt, also in a thread."""
    bound: list[dict[str, Any]] = []

    @workflow("hostile-log", default_retry=Retry(max_attempts=2, base_delay=timedelta(0)))
    class Flow:
        Context = Nothing

        @step(start=True)
        async def first(self) -> Command:
            bound.append(get_contextvars())
            return goto(self.second)

        @step
        def second(self) -> Command:
            bound.append(get_contextvars())
            if get_run().attempt == 1:
                raise ValueError
            return complete()

    async with make_engine(Flow) as engine:
        run = await run_of(engine, Flow)
        places = [("first", 1), ("second", 1), ("second", 2)]
        assert bound == [
            {"run_id": run.id, "workflow": "hostile-log", "step": name, "attempt": attempt} for name, attempt in places
        ]
        assert get_contextvars() == {}
