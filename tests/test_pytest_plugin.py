"""The fixture ``flow`` in users' projects: each test runs pytest in a process and a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: An application without any support for tests.
APP = """
from datetime import timedelta
from pydantic import BaseModel
from aioflow import complete, engine, sleep, step, workflow

@workflow("reminder")
class Reminder:
    class Context(BaseModel):
        sent: int = 0

    @step(start=True)
    async def wait(self):
        return sleep(timedelta(days=30), then=self.send)

    @step
    def send(self):
        return complete(sent=1)

async def handler():
    async with engine:
        run = await engine.start(Reminder)
        return (await run.result()).sent
"""

#: Tests of it, each twice, to find state that one leaves to the next.
TESTS = """
import pytest
from datetime import datetime, timedelta, UTC
from pydantic import BaseModel
import aioflow
from aioflow import Engine, complete, engine, errors, sleep, step, workflow
{imports}

{fixture}
async def started(flow):
    from app import Reminder
    yield await engine.start(Reminder)
    assert (await flow.count()) >= 1

{mark}
@pytest.mark.parametrize("again", [1, 2])
async def test_handler(flow, again):
    from app import handler
    assert await flow.count() == 0
    assert await handler() == 1
    assert flow.now == datetime(2029, 1, 31, tzinfo=UTC)
    assert await aioflow.engine.count() == 1

{mark}
async def test_other_fixtures_may_use_it(started, flow):
    await flow.advance(days=29)
    await started.refresh()
    assert started.status == "waiting"
    await flow.advance(days=1)
    await started.refresh()
    assert started.status == "completed"

{mark}
@pytest.mark.parametrize("again", [1, 2])
async def test_workflow_in_the_test(flow, again):
    @workflow("local")
    class Local:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def go(self):
            return complete()

    run = await flow.start(Local)
    assert (await run.wait()).status == "completed"

{mark}
async def test_workflow_of_another_test_is_unknown(flow):
    with pytest.raises(errors.WorkflowUnknown):
        await flow.start("local")

    @workflow("local")
    class Another:
        class Context(BaseModel):
            pass

        @step(start=True)
        def go(self):
            return complete()

    assert (await (await engine.start("local")).wait()).status == "completed"

def test_engine_is_closed_without_it():
    assert repr(engine) == "<Engine closed>"
"""

ANYIO = {
    "imports": "",
    "fixture": "@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n\n@pytest.fixture",
    "mark": "",
}
ASYNCIO = {"imports": "import pytest_asyncio", "fixture": "@pytest_asyncio.fixture", "mark": "@pytest.mark.asyncio"}

needs_pytest_asyncio = pytest.mark.skipif(
    find_spec("pytest_asyncio") is None, reason="pytest-asyncio is not installed: pip install -e '.[dev]'"
)


def run_pytest(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the folder's tests with warnings as errors, and with our plugin even if it is not installed."""
    settings = ["[pytest]", "filterwarnings = error"]
    if "-pno:asyncio" not in options:  # without it pytest-asyncio warns
        settings.append("asyncio_default_fixture_loop_scope = function")
    (folder / "pytest.ini").write_text("\n".join(settings))
    (folder / "app.py").write_text(APP)
    paths = [str(ROOT), str(ROOT / "backends"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": ""}
    command = [sys.executable, "-m", "pytest", "-p", "aioflow_pytest", "-p", "no:cacheprovider", *options]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def check(folder: Path, settings: dict[str, str], *options: str) -> None:
    """Write the tests for one way of running async tests, run them, and check that all pass."""
    (folder / "test_app.py").write_text(TESTS.format(**settings))
    done = run_pytest(folder, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 passed" in done.stdout


def test_under_anyio_with_marks(tmp_path: Path) -> None:
    """The fixture works in tests marked for anyio's plugin, with pytest-asyncio disabled."""
    check(tmp_path, {**ANYIO, "mark": "@pytest.mark.anyio"}, "-pno:asyncio")


def test_under_anyio_auto(tmp_path: Path) -> None:
    """The fixture works where anyio's plugin runs all async tests."""
    check(tmp_path, ANYIO, "-pno:asyncio", "-oanyio_mode=auto")


@needs_pytest_asyncio
def test_under_anyio_beside_pytest_asyncio(tmp_path: Path) -> None:
    """The fixture works in tests marked for anyio's plugin, while pytest-asyncio is active too."""
    check(tmp_path, {**ANYIO, "mark": "@pytest.mark.anyio"}, "-oasyncio_mode=strict")


@needs_pytest_asyncio
def test_under_pytest_asyncio_strict(tmp_path: Path) -> None:
    """The fixture works in tests marked for pytest-asyncio."""
    check(tmp_path, ASYNCIO, "-oasyncio_mode=strict")


@needs_pytest_asyncio
def test_under_pytest_asyncio_auto(tmp_path: Path) -> None:
    """The fixture works where pytest-asyncio runs all async tests and fixtures."""
    check(tmp_path, {"imports": "", "fixture": "@pytest.fixture", "mark": ""}, "-oasyncio_mode=auto")


@needs_pytest_asyncio
def test_in_an_event_loop_of_the_module(tmp_path: Path) -> None:
    """The fixture uses the test's event loop, whatever the loop's scope."""
    settings = {**ASYNCIO, "fixture": "@pytest_asyncio.fixture(loop_scope='module')"}
    check(tmp_path, {**settings, "mark": "@pytest.mark.asyncio(loop_scope='module')"}, "-oasyncio_mode=strict")


def refused(folder: Path, test: str, *options: str) -> str:
    """Run one test that cannot have the fixture; returns pytest's output."""
    (folder / "test_app.py").write_text(test)
    done = run_pytest(folder, *options)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def test_sync_test_is_refused(tmp_path: Path) -> None:
    """A sync test gets an error that says that the fixture needs an event loop."""
    said = refused(tmp_path, "def test_sync(flow): pass", "-pno:asyncio")
    assert "The fixture 'flow' needs the event loop of an async test, and test_sync has none." in said


def test_other_event_loops_are_refused(tmp_path: Path) -> None:
    """A test on trio gets an error that says how to run it on asyncio."""
    test = "import pytest\n@pytest.fixture\ndef anyio_backend(): return 'trio', {}\nasync def test_trio(flow): pass"
    said = refused(tmp_path, test, "-pno:asyncio", "-oanyio_mode=auto")
    assert "aioflow runs on asyncio, and test_trio on trio." in said


@needs_pytest_asyncio
def test_two_plugins_at_once_are_refused(tmp_path: Path) -> None:
    """A test that both plugins would run gets an error, and does not hang between two loops."""
    test = "import pytest\n@pytest.mark.anyio\nasync def test_both(flow): pass"
    said = refused(tmp_path, test, "-oasyncio_mode=auto")
    assert "is a test of anyio's plugin and of pytest-asyncio at once" in said


@needs_pytest_asyncio
def test_older_pytest_asyncio_is_refused_where_flow_is_used(tmp_path: Path) -> None:
    """With pytest-asyncio before 0.24, only tests that use ``flow`` get an error, which says what is needed."""
    (tmp_path / "older.py").write_text(
        "import pytest_asyncio\n"
        "newer = pytest_asyncio.fixture\n"
        "def fixture(function=None, *, scope='function', params=None, autouse=False, ids=None, name=None):\n"
        "    return newer(function, scope=scope, params=params, autouse=autouse, ids=ids, name=name)\n"
        "pytest_asyncio.fixture = fixture\n"
    )
    test = "import pytest\n@pytest.mark.asyncio\nasync def test_it(flow): pass\ndef test_without(): pass"
    said = refused(tmp_path, test, "-p", "older", "-oasyncio_mode=strict")
    assert "The fixture 'flow' needs pytest-asyncio 0.24 or newer, to open in the event loop of test_it." in said
    assert "1 passed, 1 error" in said


def test_plugin_imports_nothing() -> None:
    """Importing the plugin, which every session does, imports neither aioflow nor pydantic."""
    program = "import sys, aioflow_pytest; assert 'aioflow' not in sys.modules and 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_plugin_is_installed_under_its_own_name() -> None:
    """The entry point has the module's name, so that ``-p aioflow_pytest`` does not load the plugin twice."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"aioflow_pytest": "aioflow_pytest"}
