"""What ``import aioflow`` exports, and what it does not import."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import pytest

import aioflow

#: The public API. A name is added when it is implemented, documented and tested.
PUBLIC = {
    "Command",
    "Engine",
    "Event",
    "Failure",
    "GiveUp",
    "Retry",
    "RetryLater",
    "SignalReceipt",
    "StartOptions",
    "Transition",
    "WorkflowRun",
    "WorkflowStatus",
    "action",
    "complete",
    "engine",
    "entity_loader",
    "entity_type",
    "errors",
    "event_workflow",
    "fail",
    "get_context",
    "get_run",
    "goto",
    "on",
    "sleep",
    "statezero_action",
    "step",
    "wait",
    "wait_for_event",
    "workflow",
}

#: Imported only by the modules that need them, when these are used.
UNWANTED = {
    "aioflow.testing",
    "aioflow_memory",
    "aioflow_sqlite",
    "aiosqlite",
    "asyncpg",
    "fastapi",
    "httpx",
    "hypothesis",
    "pytest",
    "sqlite3",
    "starlette",
}


def test_the_public_names_are_these() -> None:
    """``aioflow.__all__`` has exactly the public names, each once."""
    assert sorted(aioflow.__all__) == sorted(PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_name_is_there_and_described(name: str) -> None:
    """Each public name can be imported and has a docstring."""
    value = getattr(aioflow, name)
    described = value if inspect.isclass(value) or inspect.ismodule(value) or callable(value) else type(value)
    assert inspect.getdoc(described)


def test_nothing_else_looks_public() -> None:
    """Every other name in aioflow without an underscore is a module."""
    others = {name for name in vars(aioflow) if not name.startswith("_")} - PUBLIC
    assert {name for name in others if not inspect.ismodule(getattr(aioflow, name))} == set()


def test_import_brings_no_driver() -> None:
    """``import aioflow`` imports no store, no database driver, no web framework and no test tool."""
    program = "import sys, json, aioflow; print(json.dumps(sorted(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(json.loads(ran.stdout)) & UNWANTED == set()
