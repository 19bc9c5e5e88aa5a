"""Reads a stored run with this process's code: gives its Context, or the reason why the code cannot take the run."""

from __future__ import annotations

from pydantic import BaseModel

from aioflow.definition import WorkflowDefinition
from aioflow.likeness import explain
from aioflow.model import Run


def read_context(run: Run, definition: WorkflowDefinition | None, live: BaseModel | None = None) -> BaseModel | str:
    """The run's Context, or why the code cannot take the run. ``live``: the Context, if it is in memory already."""
    if definition is None:
        return (
            f"This process knows no workflow {run.workflow!r} version {run.version!r}. "
            "Import or restore its code: the run goes on by itself."
        )
    if run.step not in definition.steps:
        return _no_step(run, definition)
    if type(live) is definition.codec.live:  # it was made by this very definition
        return live
    try:
        return definition.codec.decode(run.data)
    except BaseException as error:  # noqa: BLE001 - a validator may raise anything
        return (
            f"The Context of workflow {run.workflow!r} does not accept what run {run.id} has stored: "
            f"{explain(error)}. Give new fields a default: the run goes on by itself."
        )


def _no_step(run: Run, definition: WorkflowDefinition) -> str:
    return (
        f"Workflow {run.workflow!r} has no step {run.step!r} any more (steps: {', '.join(definition.steps)}). "
        "Restore the step: the run goes on by itself."
    )
