"""Opening and closing an engine: once at a time, again after a close, and what a closed one says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import Engine, WorkflowRun, complete, errors, step, workflow
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine


@workflow("opening-order")
class Order:
    """Ends at once."""

    class Context(BaseModel):
        number: int = 0

    @step(start=True)
    async def pay(self) -> Command:
        return complete()


async def _first(engine: Engine) -> WorkflowRun[Any]:
    return await anext(aiter(engine.iter_runs()))


#: What needs an open engine, and the call that its error names.
CALLS: dict[str, tuple[Callable[[Engine, WorkflowRun[Any]], Awaitable[Any]], str]] = {
    "start": (lambda engine, run: engine.start(Order), "start"),
    "get": (lambda engine, run: engine.get(run.id), "get"),
    "find": (lambda engine, run: engine.find(Order, "a"), "find"),
    "runs": (lambda engine, run: engine.runs(), "runs"),
    "iter_runs": (lambda engine, run: _first(engine), "iter_runs"),
    "count": (lambda engine, run: engine.count(), "count"),
    "history": (lambda engine, run: engine.history(run.id), "history"),
    "cancel": (lambda engine, run: engine.cancel(run.id), "cancel"),
    "wait": (lambda engine, run: engine.wait(run.id), "wait"),
    "result": (lambda engine, run: engine.result(run.id), "wait"),
    "process_scheduled": (lambda engine, run: engine.process_scheduled(), "process_scheduled"),
    "stats": (lambda engine, run: engine.stats(), "stats"),
    "run.refresh": (lambda engine, run: run.refresh(), "get"),
    "run.wait": (lambda engine, run: run.wait(), "wait"),
    "run.result": (lambda engine, run: run.result(), "wait"),
}


async def test_closed_engine_says_how_to_open_it(make_engine: MakeEngine) -> None:
    """Every call on an engine that is not open is an EngineClosed that names the call and the ways to open it."""
    engine = make_engine(Order)
    async with engine:
        run = await engine.start(Order)
        await run.wait(5)
    for what, (call, name) in CALLS.items():
        with pytest.raises(errors.EngineClosed) as raised:
            await call(engine, run)
        assert str(raised.value) == (
            f"engine.{name}() needs an open engine. Write 'async with engine:' around it, use engine.lifespan in an "
            "ASGI app, or run the service with 'await engine.run_forever()'."
        ), what


async def test_what_was_read_stays_readable(make_engine: MakeEngine) -> None:
    """A run that was read while the engine was open tells what it told, also its typed Context, after the close."""
    async with make_engine(Order) as engine:
        run = await (await engine.start(Order, number=7)).wait(5)
        context = run.context
    assert (run.status, run.data) == ("completed", {"number": 7})
    assert run.context == context


async def test_engine_that_was_never_open_is_closed(make_engine: MakeEngine) -> None:
    """A new engine is closed, says so, and its first call does not touch the store."""
    engine = make_engine(Order)
    assert repr(engine) == "<Engine closed>"
    with pytest.raises(errors.EngineClosed, match=r"engine\.start\(\) needs an open engine"):
        await engine.start(Order)


async def test_engine_is_open_once(make_engine: MakeEngine) -> None:
    """Opening an open engine is refused, and leaves it open."""
    engine = make_engine(Order)
    async with engine:
        with pytest.raises(errors.UsageError) as raised:
            await engine.__aenter__()
        assert str(raised.value) == (f"{engine!r} is open already. Open it once, and share it within the event loop.")
        assert repr(engine).startswith("<Engine open on ")
        assert (await (await engine.start(Order)).wait(5)).status == "completed"


async def test_engine_that_is_opened_twice_at_once_is_opened_once(make_engine: MakeEngine) -> None:
    """Of two tasks that open an engine at the same time one does, and the other is refused."""
    engine = make_engine(Order)
    opened = await asyncio.gather(engine.__aenter__(), engine.__aenter__(), return_exceptions=True)
    assert opened.count(engine) == 1
    assert [type(other) for other in opened if other is not engine] == [errors.UsageError]
    await engine.__aexit__(None, None, None)


async def test_closed_engine_opens_again(make_engine: MakeEngine) -> None:
    """An engine can be opened as often as it was closed, and finds what it left."""
    engine = make_engine(Order)
    ids = []
    for opened in range(3):
        async with engine:
            assert await engine.count() == opened
            run = await engine.start(Order, number=opened)
            assert (await run.wait(5)).status == "completed"
            ids.append(run.id)
    assert ids == sorted(set(ids))
    assert repr(engine) == "<Engine closed>"


async def test_closing_twice_is_closing_once(make_engine: MakeEngine) -> None:
    """To close a closed engine does nothing."""
    engine = make_engine(Order)
    async with engine:
        await engine.__aexit__(None, None, None)
        assert repr(engine) == "<Engine closed>"


async def test_engine_that_is_closing_cannot_be_opened_yet(make_engine: MakeEngine) -> None:
    """An opening is refused until the close is over; from then on the engine works as a new one."""
    engine = make_engine(Order)
    for _ in range(3):
        await engine.__aenter__()
        await engine.start(Order)
        closing = asyncio.ensure_future(engine.__aexit__(None, None, None))
        while True:
            try:
                await engine.__aenter__()
                break
            except errors.UsageError:
                await asyncio.sleep(0)
        await closing
        try:
            run = await engine.start(Order)
            assert (await run.wait(5)).status == "completed"
        finally:
            await engine.__aexit__(None, None, None)


async def test_engine_in_an_engine_is_another_one(make_engine: MakeEngine) -> None:
    """Two engines on one store see the same runs, and each closes by itself."""
    async with make_engine(Order) as engine:
        async with make_engine(Order, worker=False) as client:
            assert repr(client).endswith(", client only>")
            run = await client.start(Order)
            await client.wait(run.id, 5)
        assert (await engine.get(run.id)).status == "completed"


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"max_running": 0}, ValueError, "Engine(max_running=...) must be at least 1, got 0."),
        ({"max_running": "9"}, TypeError, "Engine(max_running=...) takes an int, got str."),
        ({"threads": 0}, ValueError, "Engine(threads=...) must be at least 1, got 0."),
        ({"threads": True}, TypeError, "Engine(threads=...) takes an int, got bool."),
        ({"lease": 30}, TypeError, "Engine(lease=...) takes a timedelta, got int."),
        ({"shutdown_timeout": 1.0}, TypeError, "Engine(shutdown_timeout=...) takes a timedelta, got float."),
        ({"workflows": [BaseModel]}, TypeError, "BaseModel is no workflow."),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], error: type[Exception], text: str) -> None:
    """What cannot be meant is refused when the engine is made, before anything is opened."""
    with pytest.raises(error) as raised:
        Engine("memory://", **options)
    assert str(raised.value).startswith(text)


@pytest.mark.parametrize("url", ["nosuch://host/db", "aioflow.db", "://"])
async def test_store_that_is_none_is_refused(url: str) -> None:
    """A URL that names no store is refused when the engine opens, which stays closed."""
    engine = Engine(url)
    with pytest.raises((errors.BackendUnknown, ValueError)):
        await engine.__aenter__()
    assert repr(engine) == "<Engine closed>"


async def test_file_that_cannot_be_made_is_refused(tmp_path: Any) -> None:
    """A SQLite file in a folder that does not exist is StoreUnavailable with advice, and the engine stays closed."""
    engine = Engine(f"sqlite:///{tmp_path}/missing/x.db")
    with pytest.raises(errors.StoreUnavailable, match="Check that the directory exists and can be written"):
        await engine.__aenter__()
    assert repr(engine) == "<Engine closed>"
