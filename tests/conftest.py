"""Fixtures and checks for every test: asyncio as the one backend, no blocked loop, no leaks, and a seed to repeat it.

Async tests need no mark (``anyio_mode`` in pyproject.toml). The checks run around each test's own fixtures, so that
what a fixture opens and closes is checked as well; a failed check shows as an error at the test's teardown.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING

import pytest
import structlog
from hypothesis import settings

if TYPE_CHECKING:
    from tests.postgres import Schemas

#: Seconds for which a loop may be blocked by one call. A blocking call that matters takes longer.
LONGEST_BLOCK = 2.0
#: The beginnings of paths of files that take minutes.
LONG = (
    "tests/simulation",
    "tests/faults",
    "tests/http",
    "tests/hostile",
    "tests/test_examples",
    "tests/test_pytest_plugin",
)
#: Threads that pools keep on purpose, to be used again or to end with their loop.
POOLED_THREADS = ("AnyIO worker thread", "asyncio_", "ThreadPoolExecutor-")

SEED = pytest.StashKey[int]()

pytest.register_assert_rewrite("aioflow.testing.conformance_samples")  # whichever test imports it first

# No deadline: on a busy machine it would fail tests that are correct.
settings.register_profile("aioflow", deadline=None, print_blob=True)
#: The same few examples each time, for tests/test_coverage.py, which runs the suite only to measure coverage.
settings.register_profile("few", deadline=None, derandomize=True, database=None, max_examples=10)
settings.load_profile("aioflow")

#: The SQLite connections that the current test has opened.
OPENED: list[sqlite3.Connection] = []


def _note_connections(event: str, arguments: tuple[object, ...]) -> None:
    if event == "sqlite3.connect/handle" and isinstance(arguments[0], sqlite3.Connection):
        OPENED.append(arguments[0])


sys.addaudithook(_note_connections)  # before 3.13 no warning is given for one that was dropped unclosed


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """The number of workers for ``-n auto``: twice the processors, as tests wait for I/O about half of their time."""
    return 2 * len(os.sched_getaffinity(0))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --slow and --seed."""
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")
    parser.addoption("--seed", type=int, help="repeat the choices of the `rng` fixture")


def pytest_configure(config: pytest.Config) -> None:
    """Choose the session's seed: that of --seed, or a random one."""
    seed = config.getoption("--seed")
    config.stash[SEED] = random.SystemRandom().randrange(2**32) if seed is None else seed


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run files that take minutes first, so that no worker is left with one at the end; skip slow tests by default."""
    items.sort(key=lambda item: not str(item.path.relative_to(config.rootpath)).startswith(LONG))
    if config.getoption("--slow"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: runs with --slow"))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run async tests and fixtures of every scope on asyncio."""
    return "asyncio"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Schemas]:
    """A PostgreSQL server: that of AIOFLOW_TEST_POSTGRES, or one that the session starts."""
    from tests.postgres import PostgresServer, Schemas

    if url := os.environ.get("AIOFLOW_TEST_POSTGRES"):
        schemas = Schemas(url)
        yield schemas
        schemas.drop()
        return
    # Durability after a power loss is not tested here, and waiting for the disk would take minutes.
    server = PostgresServer("fsync=off", "max_connections=200", "autovacuum=off")
    yield Schemas(server.url, server.socket)
    server.close()


@pytest.fixture
def postgres_url(postgres_server: Schemas) -> str:
    """The address of a PostgreSQL store without any data."""
    return postgres_server.fresh()


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """Forget after each test the workflows that it has registered."""
    from aioflow.registry import registry

    before = {name: dict(versions) for name, versions in registry._by_name.items()}
    try:
        yield
    finally:
        registry._by_name = before


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """The source of a test's random choices; the report of a failure says how to repeat them."""
    seed = request.config.stash[SEED]
    request.node.add_report_section("setup", "seed", f"repeat its random choices with --seed={seed}")
    return random.Random(f"{seed} {request.node.nodeid}")


@pytest.fixture(autouse=True)
def _logs_nothing() -> Iterator[None]:
    """Leave structlog unconfigured, as it was found: capturing logs configures it, and then the engine prints."""
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def _no_thread_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a thread running: above all that of an aiosqlite connection which was not closed."""
    before = set(threading.enumerate())
    yield
    left = [thread for thread in threading.enumerate() if thread not in before and _still_runs(thread)]
    if left:
        pytest.fail(f"{request.node.nodeid} left threads running: {left}", pytrace=False)


def _still_runs(thread: threading.Thread) -> bool:
    if thread.name.startswith(POOLED_THREADS):
        return False
    thread.join(timeout=1.0)  # a closed connection's thread is on its way out
    return thread.is_alive()


@pytest.fixture(autouse=True)
def _no_connection_left(request: pytest.FixtureRequest, _no_thread_left: None) -> Iterator[None]:
    """Fail a test that leaves a SQLite connection open, or drops one unclosed."""
    OPENED.clear()
    yield
    left = [connection for connection in OPENED if _is_open(connection)]
    OPENED.clear()
    if left:
        pytest.fail(f"{request.node.nodeid} left connections open: {left}", pytrace=False)


def _is_open(connection: sqlite3.Connection) -> bool:
    try:
        return connection.total_changes >= 0  # the one property that any thread may read
    except sqlite3.ProgrammingError:
        return False


@pytest.fixture(autouse=True)
def _watched(request: pytest.FixtureRequest, _no_connection_left: None) -> Iterator[None]:
    """Fail an async test that blocks its event loop, or leaves tasks running in it."""
    if "anyio_backend" not in request.fixturenames:
        yield
        return
    loop = request.getfixturevalue("_loop")
    before = asyncio.all_tasks(loop)
    watchdog = Watchdog(loop)
    yield
    blocked_at = watchdog.stop()
    left = asyncio.all_tasks(loop) - before
    if left:  # one that ends by itself may do so
        _, left = loop.run_until_complete(asyncio.wait(left, timeout=0.5))
    tasks = "\n".join(map(repr, left))
    for task in left:
        task.cancel()
    test = request.node.nodeid
    if blocked_at:
        pytest.fail(f"{test} blocked the event loop for {LONGEST_BLOCK:g} s, here:\n{blocked_at}", pytrace=False)
    if left:
        pytest.fail(f"{test} left tasks running:\n{tasks}", pytrace=False)


@pytest.fixture
async def _loop() -> AsyncIterator[asyncio.AbstractEventLoop]:
    """The test's event loop, kept open for all of the test's fixtures."""
    yield asyncio.get_running_loop()  # noqa: PT022 - an async generator keeps the loop open until its end


class Watchdog:
    """A thread that notices when a running loop is blocked, and records where.

    Only time in which the loop runs counts, at most two ticks for each look: neither the pauses between a fixture and
    its test nor a suspended machine look like a blocked loop. Neither does a busy machine: while the loop's thread
    computes, only its processor time counts. If it uses hardly any, it is blocked in a call, and elapsed time counts.
    """

    TICK = 0.1

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.thread_id = threading.get_ident()
        self.worked = _work_of(self.thread_id)
        self.beats = 0
        self.blocked_at = ""
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="loop watchdog", daemon=True)
        self._beat()
        self.thread.start()

    def _beat(self) -> None:
        self.beats += 1
        self.timer = self.loop.call_later(self.TICK, self._beat)

    def _watch(self) -> None:
        seen, blocked, looked, worked = 0, 0.0, time.monotonic(), self.worked()
        while not self.stopped.wait(self.TICK):
            elapsed, looked = time.monotonic() - looked, time.monotonic()
            work, worked = (now_worked := self.worked()) - worked, now_worked
            if self.beats != seen or not self.loop.is_running():
                seen, blocked = self.beats, 0.0
                continue
            blocked += work if work > elapsed / 20 else min(elapsed, 2 * self.TICK)
            if blocked >= LONGEST_BLOCK and not self.blocked_at:
                frame = sys._current_frames().get(self.thread_id)
                self.blocked_at = "".join(traceback.format_stack(frame, limit=6)) or "unknown"

    def stop(self) -> str:
        """Stop watching; returns the stack where the loop was blocked, or an empty string."""
        self.timer.cancel()
        self.stopped.set()
        self.thread.join()
        return self.blocked_at


def _work_of(thread_id: int) -> Callable[[], float]:
    """A function that returns a thread's processor time in seconds; always 0 where the system does not tell."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return lambda: 0.0
    clock = time.pthread_getcpuclockid(thread_id)
    return lambda: time.clock_gettime(clock)
