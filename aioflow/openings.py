"""The actions that are open on a waiting run, and the call that resumed a running one. Pure.

A call claims the run: one change takes it from waiting to running. The wait is stored with the call, so that an action
that raises leaves the run waiting as before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from pydantic import JsonValue

from aioflow.clock import Micros
from aioflow.model import Arm, Run, WorkflowStatus, arms_of

#: The columns of the wait, which a call stores and "reopen" restores.
_WAIT: Final = ("step", "next_step", "visit", "failures", "waiting_for", "wake_at", "arms")
_PREFIX: Final = '["action", '


class Call(NamedTuple):
    """The call that resumed a run, as it is stored in ``Run.input``."""

    #: The id of the commit that claimed the run: no other call has it.
    id: int
    #: What the action was given, as JSON values.
    input: JsonValue
    #: Whether the action takes the HTTP request, too, which only the memory of one process holds.
    request: bool
    #: The columns of the wait in which it was open.
    wait: Mapping[str, Any]


def called(action: str, input_: str, request: bool, run: Run, commit_id: int) -> str:
    """The ``Run.input`` for a call of an action that is open on the run. ``input_``: a JSON object."""
    wait = {name: getattr(run, name) for name in _WAIT}
    told = json.dumps({"id": commit_id, "request": request, "wait": wait})
    return f'{_PREFIX}{json.dumps(action)}, {told[:-1]}, "input": {input_}}}]'


def call_of(run: Run) -> Call | None:
    """The call that resumed a run; None if something else led to its step."""
    if run.input is None or not run.input.startswith(_PREFIX):
        return None
    return Call(**json.loads(run.input)[2])


def opening(action: str, step: str) -> str:
    """The ``Run.arms`` of a run that waits only for a call of this action."""
    return json.dumps([Arm("action", action, None, step, False)])


def open_arms(run: Run, now: Micros) -> list[Arm]:
    """The arms of the actions that are open on a run: none once its wait has timed out."""
    if run.status != WorkflowStatus.WAITING or (run.wake_at is not None and now > run.wake_at):
        return []
    return [arm for arm in arms_of(run) if arm.kind == "action"]
