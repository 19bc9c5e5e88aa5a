"""Every change of a run's status is decided here or in interventions.py, and only there. Pure: no I/O, clock or await.

Here: what a step's outcome makes of its run. There: what happens to a run from outside. The table covers both.

    status, waiting for   what happens                     becomes                      visit, failures
    -------------------   ------------------------------   --------------------------   ---------------------
    (none)                start                            running                      this seq, 0
    (none)                start with delay                 waiting, "start"             this seq, 0
    (none)                start, at an action              waiting, "action"            this seq, 0
    running               step returns goto(x)             running x                    this seq, 0
    running               goto(x), x is an action          waiting, "action"            this seq, 0
    running               step returns sleep(d)            waiting, "sleep"             kept, kept
    running               step returns wait...             waiting, as its first arm    kept, kept
    running               step returns complete()          completed
    running               step returns fail(reason)        failed, reason
    running               step raises, attempts left       waiting, "retry"             kept, + 1
    running               step raises, none left           running on_fail, or failed   this seq, 0; kept, + 1
    running               step raises RetryLater           waiting, "retry"             kept, kept
    running               an action raises, of any kind    waiting, as it was called    as it was called
    running               at an action, without a call     waiting, "action"            kept, 0
    running               its code cannot take it          waiting, "blocked"           kept, kept
    running               its sixth crash                  failed
    waiting, "start"      is due                           running                      this seq, 0
    waiting, "sleep"      is due                           running then= or same step   this seq, 0
    waiting, the same     a signal or event that fits      running the arm's then=      this seq, 0
    waiting, the same     an action of it is called        running the action           this seq, 0
    waiting, the same     is due, none came by then        running on_timeout           this seq, 0
    waiting, the same     one that does not validate       waiting, the same            kept, kept
    waiting, "retry"      is due                           running same step            kept, kept
    waiting, "blocked"    its code can take it             running same step            kept, kept
    waiting, any          the whole run times out          running, to be sent on       this seq, kept
    running               the whole run times out          running on_timeout, failed   this seq, 0
    running, waiting      cancel                           cancelled

Rules that hold for every row:

- ``seq`` rises by one and the history row bears it.
- ``fence`` rises when a run gets an owner, or loses it from outside: waking, unblocking, cancelling, claiming.
- ``hops`` counts transitions since the last wait; at the workflow's ``max_transitions`` the run fails.
- A transition clears ``crashes`` and ``marked``. Only a running run has an owner.
- ``input``, what resumed a run, is kept until the run has gone on from the step that it resumed.
- An action runs only when it is called, and gets only what the call gives it. It is not retried, nor repeated after a
  sleep if the call has a request, which is not stored.
- A parked run is woken at the run's deadline (``@workflow(timeout=)``), if that comes first; a run times out only once.
  The deadline of a running run is checked before each step; a step that a signal resumed in time still runs.
- An error that is not retried leads to the step's ``on_fail``, else to the workflow's, but only once; else to failed.
- What a failed attempt did to the Context is not in the new row, nor is anything else that it did.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, Literal, NamedTuple, TypeAlias, assert_never

from aioflow import clock
from aioflow.causes import describe, kept, of_call, written
from aioflow.changes import Move
from aioflow.clock import Micros
from aioflow.commands import AnyCommand, Complete, Fail, Goto, Sleep, Wait, WaitArm
from aioflow.definition import WorkflowDefinition
from aioflow.errors import LimitExceeded, NoNextStep, NotAnAction, RequestNotKept, StepError, TargetUnknown
from aioflow.model import (
    MAX_ERROR,
    MAX_REASON,
    Arm,
    Failure,
    Run,
    Transition,
    TransitionKind,
    WorkflowStatus,
    bounded,
    record,
)
from aioflow.openings import call_of, opening
from aioflow.retry import GiveUp, RetryLater, chance_of, is_a, sole

RUNNING, WAITING, COMPLETED = WorkflowStatus.RUNNING.value, WorkflowStatus.WAITING.value, WorkflowStatus.COMPLETED.value
FAILED, CANCELLED = WorkflowStatus.FAILED.value, WorkflowStatus.CANCELLED.value


class Stepped(NamedTuple):
    """A step returned a command, and left a Context that can be stored (with complete()'s data merged in)."""

    command: AnyCommand
    data: str


class Raised(NamedTuple):
    """A step raised, or what it returned or left is an error."""

    error: BaseException


FailureKind: TypeAlias = Literal["exhausted", "gave up", "invalid", "timeout"]
#: Transitions that lead to a step rather than end one.
_RESUMING = frozenset(["wake", "unblock", "signal", "event", "action", "timeout"])

#: column -> its index in a row.
_PLACE = {name: place for place, name in enumerate(Run._fields)}
_ID, _SEQ, _CRASHES, _MARKED, _UPDATED_AT = map(_PLACE.__getitem__, ("id", "seq", "crashes", "marked", "updated_at"))
#: The columns that a goto, the most frequent transition, changes.
_STEP, _VISIT, _FAILURES, _HOPS, _INPUT, _PROGRESS, _DATA = map(
    _PLACE.__getitem__, ("step", "visit", "failures", "hops", "input", "progress", "data")
)

#: The outcome of running a step.
Outcome: TypeAlias = Stepped | Raised


def decide(
    run: Run, definition: WorkflowDefinition, outcome: Outcome, duration: Micros, now: Micros, commit_id: int
) -> Move:
    """The transition of a running run whose step has ended.

    Args:
        run: the row as it was when the step started.
        definition: its workflow.
        outcome: how the step ended.
        duration: how long it ran, microseconds.
        now: the present instant.
        commit_id: for the history row.
    """
    if not isinstance(outcome, Stepped):
        return _raised(run, definition, outcome.error, duration, now, commit_id)
    command, data = outcome
    try:
        match command:
            case Goto():
                step = _resolve(run, definition, "goto", command.target)
                if (action := definition.steps[step].action) is not None:
                    return move(
                        run, "goto", duration, now, commit_id, status=WAITING, owner=None, step=step, visit=run.seq + 1,
                        failures=0, waiting_for="action", wake_at=by_deadline(run, None),
                        arms=opening(action.name, step), hops=0, input=None, data=data,
                        progress=run.progress if command.progress is None else command.progress,
                    )  # fmt: skip
                row: list[Any] = [*run]
                hops = row[_HOPS] + 1
                if hops >= definition.max_transitions:
                    raise _endless(run, definition, step)
                # Two at once: for four a tuple would be made.
                row[_STEP], row[_VISIT] = step, row[_SEQ] + 1
                row[_FAILURES], row[_HOPS] = 0, hops
                row[_INPUT], row[_DATA] = None, data
                if command.progress is not None:
                    row[_PROGRESS] = command.progress
                return _moved(run, row, "goto", duration, now, commit_id)
            case Sleep(length, until, then):
                step = _itself(run) if then is None else _resolve(run, definition, "sleep", then)
                wakes = _instant(run, "sleep", length, until, now)
                return move(
                    run, "sleep", duration, now, commit_id, status=WAITING, owner=None, next_step=step,
                    waiting_for="sleep", wake_at=by_deadline(run, wakes), hops=0,
                    input=run.input if then is None else None, data=data,
                )  # fmt: skip
            case Wait(arms, length, until, on_timeout):
                late = None if on_timeout is None else _resolve(run, definition, "wait", on_timeout)
                wake_at = None if on_timeout is None else _instant(run, "wait", length, until, now)
                return move(
                    run, "wait", duration, now, commit_id, status=WAITING, owner=None, next_step=late,
                    waiting_for=arms[0].kind, wake_at=by_deadline(run, wake_at), arms=_arms(run, definition, arms, late), hops=0,
                    input=None, data=data,
                )  # fmt: skip
            case Complete():
                return move(
                    run, "complete", duration, now, commit_id,
                    status=COMPLETED, owner=None, ended_at=now, input=None, data=data,
                )  # fmt: skip
            case Fail(reason):
                return move(
                    run, "fail", duration, now, commit_id, bounded(reason, MAX_ERROR), status=FAILED, owner=None,
                    ended_at=now, input=None, error=bounded(reason, MAX_REASON), data=data,
                )  # fmt: skip
            case _:
                assert_never(command)
    except (StepError, LimitExceeded) as error:
        return _raised(run, definition, error, duration, now, commit_id)


def _raised(
    run: Run, definition: WorkflowDefinition, error: BaseException, duration: Micros, now: Micros, commit_id: int
) -> Move:
    if (call := call_of(run)) is not None:
        return move(
            run, "reopen", duration, now, commit_id, of_call(error),
            status=WAITING, owner=None, hops=0, input=None, **call.wait,
        )  # fmt: skip
    inner = sole(error)
    if is_a(inner, RetryLater) and (delay := _delay_of(inner)) is not None:
        wake_at = min(now + delay, clock.LAST_INSTANT)
        return move(
            run, "retry", duration, now, commit_id, status=WAITING, owner=None, next_step=run.step,
            waiting_for="retry", wake_at=by_deadline(run, wake_at), hops=0,
        )  # fmt: skip
    failures = run.failures + 1
    policy = definition.retry_of(run.step)
    final = is_a(inner, (GiveUp, StepError, LimitExceeded))
    if not final and policy.retries(error, failures):
        wake_at = min(now + policy.delay(failures, chance_of(run.id, run.seq)), clock.LAST_INSTANT)
        return move(
            run, "retry", duration, now, commit_id, describe(error),
            status=WAITING, owner=None, next_step=run.step, failures=failures,
            waiting_for="retry", wake_at=by_deadline(run, wake_at), hops=0,
        )  # fmt: skip
    kind: FailureKind = "exhausted" if not final else "gave up" if is_a(inner, GiveUp) else "invalid"
    return failed(run, definition, error, failures, kind, duration=duration, now=now, commit_id=commit_id)


def _delay_of(error: RetryLater) -> Micros | None:
    """Its delay; None if a subclass has no valid one: then it counts as an ordinary error."""
    try:
        return clock.duration_micros(error.delay)
    except Exception:  # noqa: BLE001 - not set, or overwritten with anything
        return None


def failed(
    run: Run,
    definition: WorkflowDefinition,
    error: BaseException,
    failures: int,
    kind: FailureKind,
    *,
    duration: Micros,
    now: Micros,
    commit_id: int,
) -> Move:
    """The transition of a run whose step has failed for good: to an ``on_fail`` step if one is left, else to failed."""
    text = describe(error)
    past = {} if run.failure is None else json.loads(run.failure)
    # The steps that failed one after the other by way of on_fail, with no successful step in between.
    chain = [*(past["chain"] if past.get("visit") == run.visit else ()), run.step]
    rescued = past.get("rescued", False)
    step = definition.on_fail_of(run.step)
    if step in chain or kind == "timeout" or run.hops + 1 >= definition.max_transitions:
        step = None  # it has failed in this chain itself, the run timed out, or a loop goes by way of its on_fail
    hops = run.hops + 1
    if step is None and not rescued and definition.on_fail not in chain:
        step, rescued, hops = definition.on_fail, True, 0
    if step is None:
        return move(
            run, "fail", duration, now, commit_id, text, status=FAILED, owner=None, failures=failures, input=None,
            ended_at=now, error=text, traceback=kept(error),
        )  # fmt: skip
    visit = run.seq + 1
    failure = {**asdict(Failure(run.step, text, failures, kind)), "visit": visit, "chain": chain, "rescued": rescued}
    return move(
        run, "on_fail", duration, now, commit_id, text, step=step, visit=visit, failures=0, hops=hops, input=None,
        failure=json.dumps(failure),
    )  # fmt: skip


def move(
    run: Run,
    kind: TransitionKind,
    duration: Micros,
    now: Micros,
    commit_id: int,
    note: str | None = None,
    **changes: Any,
) -> Move:
    """A Move that changes these columns of a row, with its history row, whose error is ``note``."""
    row: list[Any] = [*run]  # as _replace does it, in a third of the time
    for name, value in changes.items():
        row[_PLACE[name]] = value
    return _moved(run, row, kind, duration, now, commit_id, note)


def _moved(  # noqa: PLR0917 - keywords cost as much as all the rest
    run: Run,
    row: list[Any],
    kind: TransitionKind,
    duration: Micros,
    now: Micros,
    commit_id: int,
    note: str | None = None,
) -> Move:
    """A Move to ``row``, in which the columns that every transition changes are still to be set."""
    seq = row[_SEQ]
    row[_SEQ], row[_UPDATED_AT] = seq + 1, now
    row[_CRASHES], row[_MARKED] = 0, 0
    # A transition that resumes a run tells the step and attempt that it leads to, any other those that it ended.
    told: Any = row if kind in _RESUMING else run
    line = (row[_ID], seq + 1, now, told[_STEP], told[_FAILURES] + 1, kind, duration, note, commit_id)
    moved: Move = record(Move, (record(Run, row), seq, run.fence, record(Transition, line), (), False, ()))
    return moved


def _resolve(run: Run, definition: WorkflowDefinition, command: str, target: object) -> str:
    """The step that a command names. Raises TargetUnknown."""
    step = definition.resolve(target)
    if step is None:
        raise TargetUnknown(run.id, run.workflow, run.step, written(target), command, definition.steps)
    return step


def _arms(run: Run, definition: WorkflowDefinition, arms: tuple[WaitArm, ...], on_timeout: str | None) -> str:
    return json.dumps([_arm(run, definition, arm, on_timeout) for arm in arms])


def _arm(run: Run, definition: WorkflowDefinition, arm: WaitArm, on_timeout: str | None) -> Arm:
    """An arm as it is stored. Raises TargetUnknown, NoNextStep or NotAnAction."""
    then = arm.then
    step = _next(run, definition, on_timeout) if then is None else _resolve(run, definition, "wait", then)
    if arm.kind == "action":
        action = definition.steps[step].action
        if action is None:
            raise NotAnAction(run.id, run.workflow, run.step, written(then))
        return Arm("action", action.name, None, step, False)
    key = arm.key or run.key if arm.kind == "signal" else arm.key
    return Arm(arm.kind, arm.name, key, step, arm.model is not None)


def _itself(run: Run) -> str:
    """The step, which is to run again. Raises RequestNotKept."""
    if (call := call_of(run)) is not None and call.request:
        raise RequestNotKept(run.id, run.workflow, run.step)
    return run.step


def _next(run: Run, definition: WorkflowDefinition, on_timeout: str | None) -> str:
    """The step that a wait without ``then=`` goes on with. Raises NoNextStep."""
    step = definition.falls_to(run.step, on_timeout)
    if step is None:
        raise NoNextStep(run.id, run.workflow, run.step)
    return step


def _instant(run: Run, command: str, length: Micros | None, until: Micros | None, now: Micros) -> Micros:
    """When a sleep or a wait is over. Raises LimitExceeded."""
    instant = now + (length or 0) if until is None else max(until, now)
    if instant > clock.LAST_INSTANT:
        raise LimitExceeded(f"{command}()", "the year 9999", f"run {run.id}, step {run.step!r}")
    return instant


def by_deadline(run: Run, wake_at: Micros | None) -> Micros | None:
    """When a run that parks is to be woken: at the run's own deadline at the latest."""
    if run.deadline is None:
        return wake_at
    return run.deadline if wake_at is None else min(wake_at, run.deadline)


def _endless(run: Run, definition: WorkflowDefinition, step: str) -> LimitExceeded:
    return LimitExceeded(
        f"Run {run.id} of workflow {run.workflow!r}",
        f"{definition.max_transitions} transitions without a wait (max_transitions)",
        f"it went on from step {run.step!r} to {step!r}. Let it sleep or wait in between, or allow it more",
    )
