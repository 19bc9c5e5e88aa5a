"""Every change of a run's status, decided here and nowhere else. Pure: no I/O, no clock, no await.

    status, waiting for   what happens                     becomes                      visit, failures
    -------------------   ------------------------------   --------------------------   ---------------------
    (none)                start                            running                      this seq, 0
    (none)                start with delay                 waiting, "start"             this seq, 0
    running               step returns goto(x)             running x                    this seq, 0
    running               step returns sleep(d)            waiting, "sleep"             kept, kept
    running               step returns complete()          completed
    running               step returns fail(reason)        failed, reason
    running               step raises, attempts left       waiting, "retry"             kept, + 1
    running               step raises, none left           failed, error                kept, + 1
    running               step raises RetryLater           waiting, "retry"             kept, kept
    running               its code cannot take it          waiting, "blocked"           kept, kept
    running               its sixth crash                  failed
    waiting, "start"      is due                           running                      this seq, 0
    waiting, "sleep"      is due                           running then= or same step   this seq, 0
    waiting, "retry"      is due                           running same step            kept, kept
    waiting, "blocked"    its code can take it             running same step            kept, kept
    running, waiting      cancel                           cancelled

Rules that hold for every row:

- ``seq`` rises by one and the history row bears it.
- ``fence`` rises whenever an owner comes or is taken away by somebody else: waking, unblocking, cancelling, claiming.
- ``hops`` counts transitions since the last wait; at the workflow's ``max_transitions`` the run fails.
- A transition clears ``crashes`` and ``marked``. Only a running run has an owner.
- What a failed attempt did to the Context is not in the new row. Neither is anything of a step that raised.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any, TypeAlias, assert_never

from aioflow import clock
from aioflow.clock import Micros
from aioflow.commands import AnyCommand, Complete, Fail, Goto, Sleep
from aioflow.definition import WorkflowDefinition
from aioflow.errors import AioflowError, LimitExceeded, StepError, TargetUnknown
from aioflow.model import (
    LIVE,
    MAX_ERROR,
    MAX_TRACEBACK,
    POISON_CRASHES,
    Reuse,
    Run,
    Transition,
    TransitionKind,
    WorkflowStatus,
    bounded,
)
from aioflow.retry import GiveUp, RetryLater, chance_of
from aioflow.store import Move, Start

RUNNING, WAITING = str(WorkflowStatus.RUNNING), str(WorkflowStatus.WAITING)
COMPLETED, FAILED, CANCELLED = (
    str(WorkflowStatus.COMPLETED),
    str(WorkflowStatus.FAILED),
    str(WorkflowStatus.CANCELLED),
)


@dataclass(frozen=True, slots=True)
class Stepped:
    """A step returned a command, and left a Context that can be stored (with complete()'s data merged in)."""

    command: AnyCommand
    data: str


@dataclass(frozen=True, slots=True)
class Raised:
    """A step raised, or what it returned or left is an error."""

    error: BaseException


#: What running a step came to.
Outcome: TypeAlias = Stepped | Raised


def start(
    definition: WorkflowDefinition,
    data: str,
    *,
    run_id: int,
    key: str | None,
    reuse: Reuse,
    due: Micros | None,
    owner: int | None,
    now: Micros,
    commit_id: int,
) -> Start:
    """A new run: running at its start step, or waiting for ``due``."""
    waits = due is not None and due > now
    run = Run(
        id=run_id,
        workflow=definition.name,
        version=definition.version,
        key=key,
        parent_id=None,
        event_id=None,
        created_at=now,
        status=WAITING if waits else RUNNING,
        step=definition.start,
        next_step=definition.start if waits else None,
        seq=1,
        fence=1,
        owner=None if waits else owner,
        visit=1,
        failures=0,
        hops=0,
        crashes=0,
        marked=0,
        waiting_for="start" if waits else None,
        wake_at=due if waits else None,
        progress=None,
        data=data,
        error=None,
        traceback=None,
        updated_at=now,
        ended_at=None,
    )
    return Start(run, Transition(run_id, 1, now, run.step, 1, "start", 0, None, commit_id), reuse)


def decide(
    run: Run, definition: WorkflowDefinition, outcome: Outcome, *, duration: Micros, now: Micros, commit_id: int
) -> Move:
    """What a running run becomes, now that its step has ended.

    Args:
        run: the row as the step started with it.
        definition: its workflow.
        outcome: what the step came to.
        duration: how long it ran, microseconds.
        now: the present instant.
        commit_id: for the history row.
    """
    if isinstance(outcome, Raised):
        return _raised(run, definition, outcome.error, duration, now, commit_id)
    command, data = outcome.command, outcome.data
    match command:
        case Goto(target, progress):
            step = definition.resolve(target)
            if step is None:
                return _raised(run, definition, _no_target(run, definition, "goto", target), duration, now, commit_id)
            if run.hops + 1 >= definition.max_transitions:
                endless = LimitExceeded(
                    f"Run {run.id} of workflow {run.workflow!r}",
                    f"{definition.max_transitions} transitions without a wait (max_transitions)",
                    f"it went on from step {run.step!r} to {step!r}",
                )
                return _raised(run, definition, endless, duration, now, commit_id)
            progress = run.progress if progress is None else progress
            return _move(
                run, "goto", duration, now, commit_id,
                step=step, visit=run.seq + 1, failures=0, hops=run.hops + 1, progress=progress, data=data,
            )  # fmt: skip
        case Sleep(length, until, then):
            step = run.step if then is None else definition.resolve(then)
            if step is None:
                return _raised(run, definition, _no_target(run, definition, "sleep", then), duration, now, commit_id)
            wake_at = now + (length or 0) if until is None else max(until, now)
            if wake_at > clock.LAST_INSTANT:
                beyond = LimitExceeded("sleep()", "the year 9999", f"run {run.id}, step {run.step!r}")
                return _raised(run, definition, beyond, duration, now, commit_id)
            return _move(
                run, "sleep", duration, now, commit_id,
                status=WAITING, owner=None, next_step=step, waiting_for="sleep", wake_at=wake_at, hops=0, data=data,
            )  # fmt: skip
        case Complete():
            return _move(
                run, "complete", duration, now, commit_id, status=COMPLETED, owner=None, ended_at=now, data=data
            )
        case Fail(reason):
            reason = bounded(reason, MAX_ERROR)
            return _move(
                run, "fail", duration, now, commit_id, reason,
                status=FAILED, owner=None, ended_at=now, error=reason, data=data,
            )  # fmt: skip
        case _:
            assert_never(command)


def wake(run: Run, *, owner: int | None, now: Micros, commit_id: int) -> Move:
    """A waiting run whose deadline has come goes on. ``owner`` None leaves it to whoever claims it."""
    retried = run.waiting_for == "retry"
    return _move(
        run, "wake", 0, now, commit_id,
        status=RUNNING, step=run.next_step or run.step, next_step=None, fence=run.fence + 1, owner=owner,
        waiting_for=None, wake_at=None,
        visit=run.visit if retried else run.seq + 1, failures=run.failures if retried else 0,
    )  # fmt: skip


def block(run: Run, reason: str, *, now: Micros, commit_id: int) -> Move:
    """A running run that its code cannot take is parked, with the reason, until code comes that can."""
    reason = bounded(reason, MAX_ERROR)
    return _move(
        run, "block", 0, now, commit_id, reason,
        status=WAITING, owner=None, next_step=run.step, waiting_for="blocked", error=reason, hops=0,
    )  # fmt: skip


def unblock(run: Run, *, owner: int | None, now: Micros, commit_id: int) -> Move:
    """A blocked run goes on with the visit it was at."""
    return _move(
        run, "unblock", 0, now, commit_id,
        status=RUNNING, fence=run.fence + 1, owner=owner, next_step=None, waiting_for=None, error=None,
    )  # fmt: skip


def poison(run: Run, *, now: Micros, commit_id: int) -> Move | None:
    """Fail a run that keeps killing its process; None if it is not (yet) known to."""
    if run.crashes < POISON_CRASHES:
        return None
    error = (
        f"The process died {run.crashes} times while step {run.step!r} of workflow {run.workflow!r} ran "
        f"(run {run.id}): it was stopped from trying again."
    )
    return _move(run, "fail", 0, now, commit_id, error, status=FAILED, owner=None, ended_at=now, error=error)


def cancel(run: Run, reason: str | None, *, now: Micros, commit_id: int) -> tuple[Run, Transition] | None:
    """End a run that has not ended, wherever it stands; None if it has ended."""
    if run.status not in LIVE:
        return None
    reason = None if reason is None else bounded(reason, MAX_ERROR)
    move = _move(
        run, "cancel", 0, now, commit_id, reason,
        status=CANCELLED, fence=run.fence + 1, owner=None, next_step=None, waiting_for=None, wake_at=None,
        ended_at=now, error=reason,
    )  # fmt: skip
    return move.run, move.transition


def _raised(
    run: Run, definition: WorkflowDefinition, error: BaseException, duration: Micros, now: Micros, commit_id: int
) -> Move:
    if isinstance(error, RetryLater):
        wake_at = min(now + clock.duration_micros(error.delay), clock.LAST_INSTANT)
        return _move(
            run, "retry", duration, now, commit_id,
            status=WAITING, owner=None, next_step=run.step, waiting_for="retry", wake_at=wake_at, hops=0,
        )  # fmt: skip
    failures = run.failures + 1
    text = describe(error)
    policy = definition.retry_of(run.step)
    final = isinstance(error, GiveUp | StepError | LimitExceeded)
    if not final and policy.retries(error, failures):
        wake_at = min(now + policy.delay(failures, chance_of(run.id, run.seq)), clock.LAST_INSTANT)
        return _move(
            run, "retry", duration, now, commit_id, text,
            status=WAITING, owner=None, next_step=run.step, failures=failures,
            waiting_for="retry", wake_at=wake_at, hops=0,
        )  # fmt: skip
    return _move(
        run, "fail", duration, now, commit_id, text,
        status=FAILED, owner=None, failures=failures, ended_at=now, error=text, traceback=_traceback_of(error),
    )  # fmt: skip


def _move(
    run: Run,
    kind: TransitionKind,
    duration: Micros,
    now: Micros,
    commit_id: int,
    note: str | None = None,
    **changes: Any,
) -> Move:
    """The change to a row, and its history row; ``note`` is what that tells as its error."""
    seq = run.seq + 1
    changes.update(seq=seq, crashes=0, marked=0, updated_at=now)
    new = run._replace(**changes)
    # A wake made no attempt yet: it tells the step and attempt it leads to, everything else those it ended.
    made = new if kind in ("wake", "unblock") else run
    transition = Transition(run.id, seq, now, made.step, made.failures + 1, kind, duration, note, commit_id)
    return Move(new, run.seq, run.fence, transition)


def _no_target(run: Run, definition: WorkflowDefinition, command: str, target: object) -> TargetUnknown:
    if isinstance(target, str):
        written = repr(target)
    else:
        try:
            written = str(getattr(target, "__qualname__", None) or type(target).__name__)
        except Exception:  # noqa: BLE001 - a stranger's __getattr__
            written = type(target).__name__
    return TargetUnknown(run.id, run.workflow, run.step, written, command, definition.steps)


def describe(error: BaseException) -> str:
    """One error as a bounded sentence: aioflow's own as they are, others with their class. Never raises."""
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001 - an exception whose __str__ raises is still to be recorded
        text = "<its __str__ raised>"
    if not isinstance(error, AioflowError | GiveUp):
        name = type(error).__qualname__
        text = f"{name}: {text}" if text else name
    return bounded(text, MAX_ERROR)


def _traceback_of(error: BaseException) -> str:
    try:
        lines = traceback.format_exception(error)
    except BaseException:  # noqa: BLE001 - see describe()
        lines = traceback.format_tb(error.__traceback__)
    return bounded("".join(lines), MAX_TRACEBACK)
