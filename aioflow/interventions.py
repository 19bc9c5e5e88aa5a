"""Transitions from outside of a run's steps: it is started, woken, answered, called, cancelled. Pure.

The table of states at the head of transitions.py holds for these, too.
"""

from __future__ import annotations

import json

from pydantic import BaseModel

from aioflow import clock
from aioflow.changes import Move, Start
from aioflow.clock import Micros
from aioflow.definition import WorkflowDefinition
from aioflow.errors import RunTimeout
from aioflow.model import (
    LIVE,
    MAX_ERROR,
    MAX_REASON,
    POISON_CRASHES,
    Arm,
    Resumption,
    Reuse,
    Run,
    Signal,
    Transition,
    TransitionKind,
    WaitingFor,
    arms_of,
    bounded,
    record,
    told_as,
)
from aioflow.openings import call_of, called, opening
from aioflow.transitions import CANCELLED, FAILED, RUNNING, WAITING, by_deadline, failed, move


def begins(definition: WorkflowDefinition, due: Micros | None, now: Micros) -> bool:
    """Whether a new run begins to run at once, so that it may have an owner."""
    return (due is None or due <= now) and definition.steps[definition.start].action is None


def start(
    definition: WorkflowDefinition,
    data: str,
    *,
    run_id: int,
    key: str | None,
    reuse: Reuse,
    due: Micros | None,
    parent_id: int | None = None,
    owner: int | None,
    now: Micros,
    commit_id: int,
    live: BaseModel | None = None,
) -> Start:
    """A new run: running at its start step; waiting until ``due``; or waiting for a call if that step is an action.

    The workflow's timeout counts from ``due``, if that is later than ``now``. ``live``: see Start.
    """
    begun, timeout = now, definition.timeout
    waiting_for: WaitingFor | None = None
    wake_at = arms = None
    if due is not None and due > now:
        waiting_for, begun, wake_at = "start", due, due
    deadline = None if timeout is None else min(begun + timeout, clock.LAST_INSTANT)
    if waiting_for is None and (action := definition.steps[definition.start].action) is not None:
        waiting_for, wake_at, arms = "action", deadline, opening(action.name, definition.start)
    step, status, next_step = definition.start, RUNNING, None
    if waiting_for is not None:
        status, next_step, owner = WAITING, step if waiting_for == "start" else None, None
    row = (
        run_id, definition.name, definition.version, key, parent_id, None, now, status, step, next_step,
        1, 1, owner,  # seq, fence
        1, 0, 0, 0, 0,  # visit, failures, hops, crashes, marked
        waiting_for, wake_at, arms, None, deadline,
        None, None, data, None, None,  # failure and progress, error and traceback
        now, None,
    )  # fmt: skip
    line = (run_id, 1, now, step, 1, "start", 0, None, commit_id)
    made: Start = record(Start, (record(Run, row), record(Transition, line), reuse, 0, live))
    return made


def wake(run: Run, *, owner: int | None, now: Micros, commit_id: int) -> Move:
    """A waiting run whose deadline has come goes on. With ``owner`` None any worker may claim it.

    A run that waits for a signal, an event or a call is woken only if no signal or event came by then.
    """
    kind: TransitionKind = "wake"
    step, visit, failures, input_ = run.next_step or run.step, run.seq + 1, 0, run.input
    if run.deadline is not None and run.deadline <= now:
        step, input_, failures = run.step, _written(Resumption("deadline")), run.failures
    elif run.waiting_for == "retry":
        visit, failures = run.visit, run.failures
    elif run.waiting_for in ("signal", "event", "action"):
        kind, input_ = "timeout", _written(Resumption("timeout"))
    change = move(
        run, kind, 0, now, commit_id, status=RUNNING, step=step, next_step=None, fence=run.fence + 1, owner=owner,
        waiting_for=None, wake_at=None, arms=None, input=input_, visit=visit, failures=failures,
    )  # fmt: skip
    return change._replace(unless_mail=run.arms is not None)


def answer(run: Run, arm: Arm, signal: Signal, data: str, *, owner: int | None, now: Micros, commit_id: int) -> Move:
    """A run that waits for a signal or an event gets one, and goes on. ``data``: its Context, with what that adds."""
    kind = told_as(arm, signal)
    resumption = f"[{json.dumps(kind)}, {json.dumps(signal.name)}, {signal.payload}]"
    change = move(
        run, "event" if kind == "event" else "signal", 0, now, commit_id, status=RUNNING, step=arm.then, next_step=None, fence=run.fence + 1,
        owner=owner, waiting_for=None, wake_at=None, arms=None, input=resumption, visit=run.seq + 1, failures=0,
        data=data,
    )  # fmt: skip
    return change._replace(takes=(signal.id,))


def call(run: Run, arm: Arm, input_: str, *, request: bool, owner: int | None, now: Micros, commit_id: int) -> Move:
    """An action that is open on a waiting run is called: the run goes on with it.

    Args:
        run: the run.
        arm: the arm by which the action is open.
        input_: the input, a JSON object.
        request: whether the call has a request.
        owner: the worker that runs it; None lets any worker claim it.
        now: the present instant.
        commit_id: also the id of the call.
    """
    change = move(
        run, "action", 0, now, commit_id, status=RUNNING, step=arm.then, next_step=None, fence=run.fence + 1, owner=owner,
        waiting_for=None, wake_at=None, arms=None, input=called(arm.name, input_, request, run, commit_id),
        visit=run.seq + 1, failures=0,
    )  # fmt: skip
    # A signal that came first ends the wait; and a broadcast's copy, made for this wait alone, would be lost if the
    # action raised.
    return change._replace(unless_mail=len(arms_of(run)) > 1)


def uncalled(run: Run, definition: WorkflowDefinition) -> str | None:
    """The action that a running run has come to without a call; None if its step may run."""
    action = definition.steps[run.step].action
    return None if action is None or call_of(run) is not None else action.name


def park(run: Run, action: str, *, now: Micros, commit_id: int) -> Move:
    """A running run that has come to an action without a call is parked: it waits for a call."""
    return move(
        run, "wait", 0, now, commit_id, status=WAITING, owner=None, failures=0, waiting_for="action",
        wake_at=by_deadline(run, None), arms=opening(action, run.step), hops=0, input=None,
    )  # fmt: skip


def reject(run: Run, signal: Signal, why: str, *, now: Micros, commit_id: int) -> Move:
    """A signal that does not fit is taken out of the mailbox, and the history records that; the run waits on."""
    what = "Signal" if signal.event is None else "Event"
    note = bounded(f"{what} {signal.name!r} was rejected: {why}", MAX_ERROR)
    return move(run, "reject", 0, now, commit_id, note)._replace(takes=(signal.id,))


def overrun(run: Run, definition: WorkflowDefinition, *, now: Micros, commit_id: int) -> Move | None:
    """A running run whose timeout is over goes to the workflow's ``on_timeout``, or fails; None if it may run on."""
    if run.deadline is None:
        return None
    resumption = Resumption.of(run)
    kind = None if resumption is None else resumption.kind
    if kind != "deadline" and (run.deadline > now or kind in ("signal", "message", "event", "action")):
        return None
    if definition.on_timeout is None:
        late = RunTimeout(run.id, run.workflow, run.step)
        run = run._replace(deadline=None)
        return failed(run, definition, late, run.failures, "timeout", duration=0, now=now, commit_id=commit_id)
    return move(
        run, "timeout", 0, now, commit_id, step=definition.on_timeout, visit=run.seq + 1, failures=0, deadline=None,
        hops=run.hops + 1, input=_written(Resumption("timeout")),
    )  # fmt: skip


def block(run: Run, reason: str, *, now: Micros, commit_id: int) -> Move:
    """A running run that its code cannot take is parked as blocked, with the reason, until there is code that can."""
    reason = bounded(reason, MAX_ERROR)
    return move(
        run, "block", 0, now, commit_id, reason,
        status=WAITING, owner=None, next_step=run.step, waiting_for="blocked", error=reason, hops=0,
    )  # fmt: skip


def unblock(run: Run, *, owner: int | None, now: Micros, commit_id: int) -> Move:
    """A blocked run goes on, with the same visit of its step."""
    return move(
        run, "unblock", 0, now, commit_id,
        status=RUNNING, fence=run.fence + 1, owner=owner, next_step=None, waiting_for=None, error=None,
    )  # fmt: skip


def poison(run: Run, *, now: Micros, commit_id: int) -> Move | None:
    """Fail a run that keeps killing its process; None if it has not crashed often enough for that."""
    if run.crashes < POISON_CRASHES:
        return None
    error = (
        f"The process died {run.crashes} times while step {run.step!r} of workflow {run.workflow!r} ran "
        f"(run {run.id}): it was stopped from trying again."
    )
    return move(run, "fail", 0, now, commit_id, error, status=FAILED, owner=None, input=None, ended_at=now, error=error)


def cancel(run: Run, reason: str | None, *, now: Micros, commit_id: int) -> tuple[Run, Transition] | None:
    """Cancel a run, running or waiting; None if it has ended."""
    if run.status not in LIVE:
        return None
    note, reason = (None, None) if reason is None else (bounded(reason, MAX_ERROR), bounded(reason, MAX_REASON))
    change = move(
        run, "cancel", 0, now, commit_id, note,
        status=CANCELLED, fence=run.fence + 1, owner=None, next_step=None, waiting_for=None, wake_at=None,
        arms=None, input=None, ended_at=now, error=reason,
    )  # fmt: skip
    return change.run, change.transition


def _written(resumption: Resumption) -> str:
    return json.dumps(resumption)
