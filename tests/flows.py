"""Small workflows for tests, made of functions, and helpers that run them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from aioflow import Engine, Retry, WorkflowRun, WorkflowStatus, complete, step, workflow
from aioflow.commands import Command
from aioflow.store import Store
from aioflow_memory import MemoryStore

#: The URL of every store that needs no server, with its data in this folder.
STORES: Mapping[str, Callable[[Path], str | Store]] = {
    "memory": lambda _: MemoryStore(),
    "sqlite": lambda folder: f"sqlite:///{folder}/runs.db",
}
#: Seconds after which a run counts as hanging.
PATIENCE = 5


def flow(context: type[BaseModel], *functions: Callable[[Any], Any]) -> Any:
    """A workflow called order with these steps: it starts at the first, and retries without a delay."""
    body: dict[str, Any] = {"Context": context}
    for function in functions:
        body[function.__name__] = step(start=function is functions[0])(function)
    return workflow("order", default_retry=Retry(base_delay=timedelta(0)))(type("Order", (), body))


def done(self: object) -> Command:
    """A step that completes the run and changes nothing."""
    return complete()


async def ended(engine: Engine, order: Any, **context: Any) -> WorkflowRun[Any]:
    """Start a run of the workflow; returns it once it has ended."""
    return await (await engine.start(order, **context)).wait(PATIENCE)


async def completed(engine: Engine, order: Any, **context: Any) -> Any:
    """Run the workflow; returns the Context with which the run completed."""
    return await (await engine.start(order, **context)).result(PATIENCE)


async def failed_at_once(engine: Engine, order: Any, **context: Any) -> str:
    """Run the workflow, check that it failed at the first attempt, and return its error."""
    run = await ended(engine, order, **context)
    assert run.status == WorkflowStatus.FAILED
    assert [t.kind for t in await engine.history(run.id)] == ["start", "fail"]
    assert run.error
    return run.error


def unstorable(problem: str) -> str:
    """The error of the first run of ``flow(…)`` if its first step left a Context that cannot be stored."""
    return f"Step 'first' of workflow 'order' (run 1) left a Context that cannot be stored: {problem}"
