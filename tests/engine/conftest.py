"""Engines on every store, and a clock that tests can move."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import structlog
from pydantic import BaseModel
from structlog.testing import capture_logs
from structlog.typing import EventDict

from aioflow import Engine, WorkflowRun, complete, get_context, get_run, goto, step, workflow
from aioflow.clock import SECOND, Clock, Micros
from aioflow.commands import Command
from aioflow.store import Store
from aioflow_memory import MemoryStore
from tests.support import wait_until

#: The long-running tasks of an engine; tasks that run steps may stay for reuse, and are not listed.
LOOPS = {f"aioflow {name}" for name in ("committer", "worker", "lease", "scheduler", "planner", "delivery", "listener")}


class ShiftedClock(Clock):
    """The machine's clock plus an offset that tests change. Every wait with a timeout looks at the time again at once.

    The mutable state: the offset, and the timeouts of the current waits.
    """

    def __init__(self) -> None:
        self._offset: Micros = 0
        self._waiting: set[asyncio.Timeout] = set()

    def micros(self) -> Micros:
        return super().micros() + self._offset

    async def wait(self, event: asyncio.Event, timeout: Micros | None = None) -> bool:
        if timeout is None or timeout <= 0 or event.is_set():
            return await super().wait(event, timeout)
        limit = asyncio.timeout(timeout / SECOND)
        self._waiting.add(limit)
        try:
            async with limit:
                await event.wait()
        except TimeoutError:
            pass
        finally:
            self._waiting.discard(limit)
        return event.is_set()

    def shift(self, by: timedelta) -> datetime:
        """Move the clock by this, forward or back, and return the new time."""
        self._offset += by // timedelta(microseconds=1)
        now = asyncio.get_running_loop().time()
        for limit in self._waiting:
            if not limit.expired():
                limit.reschedule(now)
        return self.now()


#: ``make_engine(*workflows, **options)``: an engine on the test's store and clock that knows these workflows, or
#: without any, all registered ones. A second one on the same store is a restart, or another process.
MakeEngine: TypeAlias = Callable[..., Engine]


async def run_of(engine: Engine, flow: type, /, **context: Any) -> WorkflowRun[Any]:
    """Start a run; returns it once it has ended."""
    run = await engine.start(flow, **context)
    return await run.wait(10)


async def kinds_of(engine: Engine, run: WorkflowRun[Any]) -> list[str]:
    """The kinds of a run's transitions, in order."""
    return [row.kind for row in await engine.history(run.id)]


async def moved_on(run: WorkflowRun[Any]) -> None:
    """Refresh the run until it has made another transition."""
    seq = run.row.seq

    async def moved() -> bool:
        await run.refresh()
        return run.row.seq > seq

    await wait_until(moved)


class Slow:
    """A workflow of two steps, the first of which waits until the test lets it go on."""

    def __init__(self) -> None:
        self.gate = gate = asyncio.Event()
        self.seen = seen = []

        @workflow("slow")
        class Flow:
            class Context(BaseModel):
                path: list[str] = []

            @step(start=True)
            async def first(self) -> Command:
                seen.append(("first", get_run().attempt, get_run().step_key))
                get_context(self.Context).path.append("first")
                try:
                    await gate.wait()
                except asyncio.CancelledError:
                    seen.append("stopped")
                    raise
                return goto(self.second)

            @step
            async def second(self) -> Command:
                seen.append(("second", get_run().attempt, get_run().step_key))
                get_context(self.Context).path.append("second")
                return complete()

        self.workflow = Flow


async def closed(engine: Engine) -> None:
    """Wait until no task of the engine is left, and no thread of a connection."""
    assert repr(engine).startswith("<Engine closed")
    await wait_until(lambda: not [task for task in asyncio.all_tasks() if task.get_name() in LOOPS])
    await wait_until(lambda: not [one for one in threading.enumerate() if "connection" in one.name])


async def idle(engine: Engine) -> bool:
    """Whether no run executes in the engine."""
    return (await engine.stats()).running_here == 0


@pytest.fixture
def clock() -> ShiftedClock:
    """The clock of all engines of the test."""
    return ShiftedClock()


#: The test files, here and in tests/http, that also run on PostgreSQL: those about what the store decides, rather than
#: the engine. All files would take minutes, and find only what the conformance suite finds.
ON_POSTGRES = (
    "test_action_clients",
    "test_actions",
    "test_blocked_starts",
    "test_broadcasts",
    "test_cancel_races",
    "test_emit",
    "test_entities_of_events",
    "test_events",
    "test_fairness",
    "test_mailbox",
    "test_many_events",
    "test_outbox",
    "test_queries",
    "test_runs",
    "test_signal_clients",
    "test_signals",
    "test_start",
    "test_stats",
    "test_waiting",
    "test_watch",
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that needs a store in memory and on SQLite, and on PostgreSQL if its file is listed."""
    given = [mark for mark in metafunc.definition.iter_markers("parametrize") if "store_url" in mark.args[0]]
    if "store_url" in metafunc.fixturenames and not given:
        on_postgres = metafunc.module.__name__.rpartition(".")[2] in ON_POSTGRES
        stores = ["memory", "sqlite", *(["postgres"] if on_postgres else [])]
        metafunc.parametrize("store_url", stores, indirect=True)


@pytest.fixture
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str | Store:
    """The test's own store: the first argument of an Engine."""
    match request.param:
        case "memory":
            return MemoryStore()
        case "sqlite":
            return f"sqlite:///{tmp_path}/x.db"
        case _:
            url: str = request.getfixturevalue("postgres_url")
            return url


@pytest.fixture
def make_engine(store_url: str | Store, clock: ShiftedClock) -> MakeEngine:
    """Makes engines on the test's store."""

    def make(*workflows: type, **options: Any) -> Engine:
        return Engine(store_url, **{"workflows": workflows or None, "clock": clock, **options})

    return make


@pytest.fixture(autouse=True)
def log() -> Iterator[list[EventDict]]:
    """What was logged; a test in which the engine logs a bug of its own fails, whatever its assertions say."""
    configured = structlog.is_configured()
    with capture_logs() as entries:
        yield entries
    if not configured:
        structlog.reset_defaults()
    bugs = [entry for entry in entries if "bug in aioflow" in f"{entry['event']} {entry.get('error')}"]
    if bugs:
        pytest.fail("\n".join(map(str, bugs)), pytrace=False)
