"""What of a waiting run can be called, and the call that a running one goes on with. Pure.

A call claims the run: one change takes it from waiting to running. What it waited for is kept with the call, so that an
action that raises leaves the run where it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from pydantic import JsonValue

from aioflow.clock import Micros
from aioflow.model import Arm, Run, WorkflowStatus, arms_of

#: The columns of a wait that a call takes it from, and may give it back to.
_WAIT: Final = ("step", "next_step", "visit", "failures", "waiting_for", "wake_at", "arms")
_PREFIX: Final = '["action", '


class Call(NamedTuple):
    """The call that a run goes on with, as it is kept in ``Run.input``."""

    #: The id of the commit that claimed the run: no other call has it.
    id: int
    #: What the action was given, as JSON values.
    input: JsonValue
    #: Whether it was given the request, too, which nothing but the memory of one process holds.
    request: bool
    #: The columns of the wait that it was open in.
    wait: Mapping[str, Any]


def called(action: str, input_: str, request: bool, run: Run, commit_id: int) -> str:
    """A call of an action that is open on the run: what ``Run.input`` is to be. ``input_``: a JSON object."""
    wait = {name: getattr(run, name) for name in _WAIT}
    told = json.dumps({"id": commit_id, "request": request, "wait": wait})
    return f'{_PREFIX}{json.dumps(action)}, {told[:-1]}, "input": {input_}}}]'


def call_of(run: Run) -> Call | None:
    """The call that a run goes on with; None if something else led to its step."""
    if run.input is None or not run.input.startswith(_PREFIX):
        return None
    return Call(**json.loads(run.input)[2])


def opening(action: str, step: str) -> str:
    """What ``Run.arms`` is while a run waits for nothing but the call of an action."""
    return json.dumps([Arm("action", action, None, step, False)])


def open_arms(run: Run, now: Micros) -> list[Arm]:
    """The actions that are open on a run: none once the time of its wait is over."""
    if run.status != WorkflowStatus.WAITING or (run.wake_at is not None and now > run.wake_at):
        return []
    return [arm for arm in arms_of(run) if arm.kind == "action"]
