"""The checks that conftest.py runs around every test find what they should."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import wait_until

HERE = Path(__file__).parent

TESTS = """
import asyncio, random, sqlite3, threading, time, warnings
import aiosqlite, pytest

async def test_good():
    await asyncio.sleep(0)

async def test_blocks():
    time.sleep(2.8)

async def test_works_too_long():
    began = time.thread_time()
    while time.thread_time() - began < 2.8:
        pass

async def test_is_given_little_time():
    for _ in range(30):
        began = time.thread_time()
        while time.thread_time() - began < 0.01:
            pass
        time.sleep(0.04)  # as to the watchdog it looks while others have the processor

@pytest.fixture
def slow_elsewhere():
    time.sleep(2.8)

async def test_blocks_while_no_loop_runs(slow_elsewhere): pass

async def test_leaves_a_task():
    global kept
    kept = asyncio.create_task(asyncio.Event().wait())

@pytest.fixture
async def tidy():
    task = asyncio.create_task(asyncio.Event().wait())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

async def test_cleans_up_in_a_fixture(tidy):
    await asyncio.sleep(0)

async def test_leaves_a_connection():
    global connection
    connection = await aiosqlite.connect(":memory:")

async def test_closes_a_connection():
    connection.stop()
    async with aiosqlite.connect(":memory:") as mine:
        await mine.execute("select 1")
    await asyncio.to_thread(time.time)

def test_leaves_a_bare_connection():
    global bare
    bare = sqlite3.connect(":memory:")

def test_closes_a_bare_connection():
    bare.close()
    mine = sqlite3.connect(":memory:")
    mine.close()

def test_drops_a_bare_connection():
    sqlite3.connect(":memory:")

def test_forgets_a_file():
    open(__file__)

def test_leaves_a_thread():
    global release
    release = threading.Event()
    threading.Thread(target=release.wait, name="stuck", daemon=True).start()

def test_warns():
    release.set()
    warnings.warn("careless")

async def test_loses_an_exception():
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    await asyncio.sleep(0.01)

def test_chooses(rng):
    assert rng.random() == "?"

@pytest.mark.slow
def test_slow(): pass

@pytest.fixture(scope="session")
async def kept_for_all():
    task = asyncio.create_task(asyncio.Event().wait())
    yield asyncio.get_running_loop()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

async def test_uses_a_session_fixture(kept_for_all):
    assert asyncio.get_running_loop() is kept_for_all
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The output of pytest for TESTS, run with this folder's conftest.py."""
    folder = tmp_path_factory.mktemp("checked")
    shutil.copy(HERE / "conftest.py", folder)
    (folder / "test_it.py").write_text(TESTS)
    config = ["-c", str(HERE.parent / "pyproject.toml"), "--rootdir", str(folder), "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *config, "-rA", "--seed=7", "."]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    return ran.stdout


def outcomes(report: str, test: str) -> set[str]:
    """The outcomes that the report's summary lists for a test."""
    return set(re.findall(rf"^(PASSED|FAILED|ERROR|SKIPPED) .*::{test}\b", report, re.MULTILINE))


@pytest.mark.parametrize(
    ("test", "sentence"),
    [
        ("test_blocks", "test_blocks blocked the event loop for 2 s, here:"),
        ("test_works_too_long", "test_works_too_long blocked the event loop for 2 s, here:"),
        ("test_leaves_a_task", "test_leaves_a_task left tasks running:"),
        ("test_leaves_a_connection", "test_leaves_a_connection left threads running:"),
        ("test_leaves_a_bare_connection", "test_leaves_a_bare_connection left connections open:"),
        ("test_drops_a_bare_connection", "test_drops_a_bare_connection left connections open:"),
        ("test_leaves_a_thread", "test_leaves_a_thread left threads running:"),
    ],
)
def test_what_is_found_at_teardown_names_its_test(report: str, test: str, sentence: str) -> None:
    """A blocked loop and leaked tasks, threads and connections are errors at teardown that name the test."""
    assert outcomes(report, test) == {"PASSED", "ERROR"}
    assert sentence in report


def test_a_blocked_loop_is_shown_where_it_stands(report: str) -> None:
    """The report of a blocked loop ends in the line that blocked it."""
    assert re.search(r"in test_blocks\n +time\.sleep\(2\.8\)", report)


@pytest.mark.parametrize("test", ["test_warns", "test_forgets_a_file", "test_loses_an_exception", "test_chooses"])
def test_what_is_found_at_once_fails(report: str, test: str) -> None:
    """A warning, an exception in a callback and a false assertion fail the test."""
    assert outcomes(report, test) == {"FAILED"}


@pytest.mark.parametrize(
    "test",
    [
        "test_good",
        "test_blocks_while_no_loop_runs",
        "test_cleans_up_in_a_fixture",
        "test_closes_a_connection",
        "test_closes_a_bare_connection",
        "test_is_given_little_time",
        "test_uses_a_session_fixture",
    ],
)
def test_what_is_right_passes(report: str, test: str) -> None:
    """Pauses outside the loop, tasks of fixtures, closed connections and pooled threads are not reported."""
    assert outcomes(report, test) == {"PASSED"}


def test_the_seed_is_in_the_report(report: str) -> None:
    """The report of a failed test that uses ``rng`` says how to repeat its choices."""
    assert "repeat its random choices with --seed=7" in report


def test_slow_tests_are_left_out(report: str) -> None:
    """A test marked slow is skipped unless --slow is given."""
    assert "slow: runs with --slow" in report
    assert outcomes(report, "test_slow") == set()


async def test_wait_until_gives_what_came_true() -> None:
    """``wait_until`` calls the predicate, sync or async, until it returns something true, and returns that."""
    looks = iter([0, None, "", "there"])

    async def later() -> str | None:
        return "late"

    assert await wait_until(lambda: next(looks)) == "there"
    assert await wait_until(later) == "late"


async def test_wait_until_says_what_did_not_come_true() -> None:
    """When ``wait_until`` times out, its error has the predicate's source, or the words that it was given."""
    with pytest.raises(AssertionError, match=r"within 0\.01 s: .*lambda: False"):
        await wait_until(lambda: False, timeout=0.01)
    with pytest.raises(AssertionError, match=r"^It did not come true within 0\.01 s: the parcel arrives$"):
        await wait_until(lambda: False, timeout=0.01, what="the parcel arrives")
