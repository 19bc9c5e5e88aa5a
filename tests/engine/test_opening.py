"""Opening and closing an engine: only once at a time, again after a close, and the errors of a closed one."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import aioflow
from aioflow import Engine, WorkflowRun, complete, errors, step, workflow
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, closed, run_of
from tests.support import wait_until


@workflow("opening-order")
class Order:
    """A workflow that ends at once."""

    class Context(BaseModel):
        number: int = 0

    @step(start=True)
    async def pay(self) -> Command:
        return complete()


async def _first(engine: Engine) -> WorkflowRun[Any]:
    return await anext(aiter(engine.iter_runs()))


#: Calls that need an open engine, and the call that the error names.
CALLS: dict[str, tuple[Callable[[Engine, WorkflowRun[Any]], Awaitable[Any]], str]] = {
    "start": (lambda engine, run: engine.start(Order), "engine.start"),
    "get": (lambda engine, run: engine.get(run.id), "engine.get"),
    "find": (lambda engine, run: engine.find(Order, "a"), "engine.find"),
    "runs": (lambda engine, run: engine.runs(), "engine.runs"),
    "iter_runs": (lambda engine, run: _first(engine), "engine.iter_runs"),
    "count": (lambda engine, run: engine.count(), "engine.count"),
    "history": (lambda engine, run: engine.history(run.id), "engine.history"),
    "cancel": (lambda engine, run: engine.cancel(run.id), "engine.cancel"),
    "wait": (lambda engine, run: engine.wait(run.id), "engine.wait"),
    "result": (lambda engine, run: engine.result(run.id), "engine.result"),
    "process_scheduled": (lambda engine, run: engine.process_scheduled(), "engine.process_scheduled"),
    "stats": (lambda engine, run: engine.stats(), "engine.stats"),
    "run.refresh": (lambda engine, run: run.refresh(), "run.refresh"),
    "run.wait": (lambda engine, run: run.wait(), "run.wait"),
    "run.result": (lambda engine, run: run.result(), "run.result"),
}


async def test_closed_engine_says_how_to_open_it(make_engine: MakeEngine) -> None:
    """Every call on a closed engine is EngineClosed, which names the call and the ways to open the engine."""
    engine = make_engine(Order)
    async with engine:
        run = await engine.start(Order)
        await run.wait(5)
    for what, (call, name) in CALLS.items():
        with pytest.raises(errors.EngineClosed) as raised:
            await call(engine, run)
        assert str(raised.value) == (
            f"{name}() needs an open engine. Write 'async with engine:' around it, use engine.lifespan in an "
            "ASGI app, or run the service with 'await engine.run_forever()'."
        ), what


async def test_what_was_read_stays_readable(make_engine: MakeEngine) -> None:
    """A run that was read while the engine was open keeps its data and typed Context after the close."""
    async with make_engine(Order) as engine:
        run = await (await engine.start(Order, number=7)).wait(5)
        context = run.context
    assert (run.status, run.data) == ("completed", {"number": 7})
    assert run.context == context


async def test_engine_that_was_never_open_is_closed(make_engine: MakeEngine) -> None:
    """A new engine is closed, and its calls raise EngineClosed."""
    engine = make_engine(Order)
    assert repr(engine) == "<Engine closed>"
    with pytest.raises(errors.EngineClosed, match=r"engine\.start\(\) needs an open engine"):
        await engine.start(Order)


async def test_engine_is_open_once(make_engine: MakeEngine) -> None:
    """Opening an open engine is refused, and it stays open."""
    engine = make_engine(Order)
    async with engine:
        with pytest.raises(errors.UsageError) as raised:
            await engine.__aenter__()
        assert str(raised.value) == (f"{engine!r} is open already. Open it once, and share it within the event loop.")
        assert repr(engine).startswith("<Engine open on ")
        assert (await (await engine.start(Order)).wait(5)).status == "completed"


async def test_engine_that_is_opened_twice_at_once_is_opened_once(make_engine: MakeEngine) -> None:
    """Of two tasks that open an engine at the same time, one succeeds and the other is refused."""
    engine = make_engine(Order)
    opened = await asyncio.gather(engine.__aenter__(), engine.__aenter__(), return_exceptions=True)
    assert opened.count(engine) == 1
    assert [type(other) for other in opened if other is not engine] == [errors.UsageError]
    await engine.__aexit__(None, None, None)


async def test_closed_engine_opens_again(make_engine: MakeEngine) -> None:
    """A closed engine can be opened again, any number of times, and its runs are still there."""
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
    """Closing a closed engine does nothing."""
    engine = make_engine(Order)
    async with engine:
        await engine.__aexit__(None, None, None)
        assert repr(engine) == "<Engine closed>"


async def test_two_that_close_at_once_close_once(make_engine: MakeEngine) -> None:
    """If several tasks close an engine at once, all return when it is closed, and other engines go on."""
    gate = asyncio.Event()

    @workflow("opening-slow")
    class Slow:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def wait(self) -> Command:
            await gate.wait()
            return complete()

    engine = make_engine(Slow)
    async with make_engine(Order, worker=False) as other:
        await engine.__aenter__()
        run = await engine.start(Slow)
        closings = [asyncio.ensure_future(engine.__aexit__(None, None, None)) for _ in range(3)]
        for _ in range(20):
            await asyncio.sleep(0)
        assert not any(closing.done() for closing in closings)
        gate.set()
        await asyncio.gather(*closings)
        assert repr(engine) == "<Engine closed>"
        assert (await other.get(run.id)).status == "completed"


async def test_engine_that_is_closing_cannot_be_opened_yet(make_engine: MakeEngine) -> None:
    """An engine cannot be opened while it closes, and works as a new one after that."""
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
    """Two engines open on one store see the same runs, and closing one does not close the other."""
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
        ({"worker": 3}, TypeError, "Engine(worker=...) takes a bool, got int."),
        ({"worker": None}, TypeError, "Engine(worker=...) takes a bool, got NoneType."),
        ({"clock": 3}, TypeError, "Engine(clock=...) takes a Clock, got int."),
        ({"lease": 30}, TypeError, "Engine(lease=...) takes a timedelta, got int."),
        ({"shutdown_timeout": 1.0}, TypeError, "Engine(shutdown_timeout=...) takes a timedelta, got float."),
        ({"workflows": [BaseModel]}, TypeError, "BaseModel is no workflow."),
        ({"workflows": Order}, TypeError, "Engine(workflows=...) takes workflow classes in a list, got <class"),
        (
            {"url_or_store": Path("app.db")},
            TypeError,
            "Engine() takes a URL as a string or a store, got PosixPath. Write",
        ),
        ({"url_or_store": 5}, TypeError, "Engine() takes a URL as a string or a store, got int."),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], error: type[Exception], text: str) -> None:
    """Wrong arguments are refused when the engine is made."""
    with pytest.raises(error) as raised:
        Engine(**{"url_or_store": "memory://", **options})
    assert str(raised.value).startswith(text)


@pytest.mark.parametrize("url", ["nosuch://host/db", "aioflow.db", "://"])
async def test_store_that_is_none_is_refused(url: str) -> None:
    """A URL that names no store is refused when the engine opens, and the engine stays closed."""
    engine = Engine(url)
    with pytest.raises((errors.BackendUnknown, ValueError)):
        await engine.__aenter__()
    assert repr(engine) == "<Engine closed>"


async def test_file_that_cannot_be_made_is_refused(tmp_path: Any) -> None:
    """A SQLite file in a missing folder is StoreUnavailable with advice, and the engine stays closed."""
    engine = Engine(f"sqlite:///{tmp_path}/missing/x.db")
    with pytest.raises(errors.StoreUnavailable, match="Check that the directory exists and can be written"):
        await engine.__aenter__()
    assert repr(engine) == "<Engine closed>"


# ---- ways to open


async def test_lifespan_opens_and_closes_the_engine(make_engine: MakeEngine) -> None:
    """``Engine.lifespan`` is an ASGI lifespan: the engine is open inside, and closed afterwards."""
    engine = make_engine(Order)
    for app in (object(), None):
        async with engine.lifespan(app) as state:
            assert state is None
            assert (await run_of(engine, Order)).status == "completed"
        await closed(engine)
    with pytest.raises(ZeroDivisionError):
        async with engine.lifespan(app):
            _ = 1 / 0
    await closed(engine)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("is_open", [False, True], ids=["closed", "open"])
async def test_run_forever_works_until_it_is_told_to_end(
    make_engine: MakeEngine, number: signal.Signals, is_open: bool
) -> None:
    """run_forever executes runs until SIGTERM or SIGINT, then closes the engine and restores the signal handlers."""
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    engine = make_engine(Order)
    if is_open:
        await engine.__aenter__()
    service = asyncio.ensure_future(engine.run_forever())
    await wait_until(lambda: signal.getsignal(number) not in handlers)
    async with make_engine(Order, worker=False) as client:
        run = await client.start(Order)
        assert (await run.wait(5)).status == "completed"
    os.kill(os.getpid(), number)
    async with asyncio.timeout(5):
        await service
    if is_open:
        assert await engine.count() == 1
        await engine.__aexit__(None, None, None)
    await closed(engine)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers


async def test_engine_without_arguments_reads_the_environment(tmp_path: Path, monkeypatch: Any) -> None:
    """Engine() reads AIOFLOW_DATABASE_URL when it is opened, not when it is made."""
    engine = Engine()
    for name in ("one", "two"):
        monkeypatch.setenv("AIOFLOW_DATABASE_URL", f"sqlite:///{tmp_path}/{name}.db")
        async with engine:
            assert repr(engine) == f"<Engine open on sqlite:///{tmp_path}/{name}.db>"
            assert await engine.count() == 0
            await engine.start(Order)
        assert (tmp_path / f"{name}.db").exists()
    monkeypatch.setenv("AIOFLOW_DATABASE_URL", "nosuch://host")
    with pytest.raises(errors.BackendUnknown, match=r"No backend is installed for nosuch:// URLs"):
        await engine.__aenter__()


async def test_engine_without_a_url_makes_a_file_here(tmp_path: Path, monkeypatch: Any) -> None:
    """Without argument and environment, the store of Engine() and of aioflow.engine is ./aioflow.db."""
    monkeypatch.delenv("AIOFLOW_DATABASE_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    async with Engine() as engine:
        run = await run_of(engine, Order)
    assert (tmp_path / "aioflow.db").exists()
    async with aioflow.engine:
        assert await aioflow.engine.get(run.id) == run


async def test_relative_path_has_three_slashes(tmp_path: Path, monkeypatch: Any) -> None:
    """A SQLite URL with three slashes is relative to the working directory, and one with four is absolute."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    async with Engine("sqlite:///data/my runs.db") as engine:
        run = await run_of(engine, Order)
    async with Engine(f"sqlite:///{tmp_path}/data/my runs.db", worker=False) as engine:
        assert await engine.get(run.id) == run
    assert (tmp_path / "data" / "my runs.db").exists()


@pytest.mark.parametrize("url", ["memory://", "sqlite://"])
async def test_store_in_memory_is_its_engines_own(url: str) -> None:
    """Every engine on memory://, or on sqlite:// without a file, has a store of its own."""
    async with Engine(url) as one, Engine(url) as other:
        assert (await run_of(one, Order)).status == "completed"
        assert (await one.count(), await other.count()) == (1, 0)
