"""The model of a run: what each transition must make of it, derived from its script and its history alone.

It shares nothing with the product but the terms: no timers, no stores, no code of retries.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from aioflow.model import Run, Transition
from tests.simulation.program import ACT, LATER, MS, SHORT, Op, Outcome, Script, effect, op_of, request_of

#: Microseconds before the second and the third attempt, and the share by which jitter may change them.
DELAYS = {1: 100 * MS, 2: 200 * MS}
JITTER = 0.5
ATTEMPTS = 3
#: A run whose owner has died so many times during one step is failed, as that step is taken for the cause.
DEATHS = 6

#: The kinds of waits that have arms.
ARMED = ("signal", "event", "action")
#: step -> the kind of resumption of which it gets something as a parameter.
TAKES = {"one": "event", "two": "event", ACT: "action"}

ENDING = {"complete": "completed", "fail": "failed", "cancel": "cancelled"}


@dataclass
class State:
    """A run according to the model. ``arms``: (kind, name, key, step) of each arm of its wait."""

    script: Script
    context: dict[str, Any]
    status: str = "running"
    step: str = "one"
    visit: int = 1
    failures: int = 0
    next_step: str | None = None
    waiting_for: str | None = None
    wake_at: int | None = None
    arms: list[tuple[str, str, str | None, str]] = field(default_factory=list)
    #: What has resumed it: "signal", "event", "action", "timeout", or None.
    resumed: str | None = None
    #: The token of the event, or of the call, that has resumed it.
    told: str | None = None
    #: The worker of the process in which an action was called: it has the request.
    caller: int | None = None
    #: The wait in which an action was called.
    before: dict[str, Any] = field(default_factory=dict)
    rescued: bool = False
    #: The visits whose step has raised RetryLater.
    put_off: set[int] = field(default_factory=set)


#: The fields of a wait, which an action that fails restores.
WAIT = ("status", "step", "visit", "failures", "next_step", "waiting_for", "wake_at", "arms")


def begun(script: Script, row: Run) -> tuple[State, list[str]]:
    """The state of a run that was just started."""
    context: dict[str, Any] = {"number": script.number, "pc": 0, "token": None, "log": []}
    state = State(script, {**context, "event_id": None, "event_name": None, "entity_id": None})
    if row.event_id is not None:
        _told(state, json.loads(row.input or "null")[2])
    if row.wake_at is not None:
        state.status, state.waiting_for, state.wake_at, state.next_step = "waiting", "start", row.wake_at, "one"
    return state, list(_compare(state, row, "start"))


def _told(state: State, event: Mapping[str, Any]) -> None:
    """Record that an event has resumed the run."""
    state.context = {**state.context, **{name: event[name] for name in ("event_id", "event_name", "entity_id")}}
    state.resumed, state.told = "event", event["entity"]["token"]


def follow(state: State, was: Run, row: Run, transition: Transition, taken: tuple[str, Any] | None) -> list[str]:
    """Apply a transition to the state, and return how the row differs from the result.

    Args:
        state: the run before the transition; it is changed.
        was: the row before it, which has the number of its owners' deaths.
        row: the row after it, as the product committed it.
        transition: the history row.
        taken: the name of what the run took, and a signal's token or an event's payload.
    """
    kind, before = transition.kind, state.status
    try:
        if kind == "cancel":
            _end(state, "cancelled")
        elif before == "running" and was.crashes >= DEATHS:
            _poisoned(state, transition)
        elif before == "running":
            _stepped(state, was, row, transition)
        elif before == "waiting":
            _resumed(state, row, transition, taken)
        else:
            raise Wrong(f"a run that is {before} went on by {kind}")
    except Wrong as wrong:
        return [f"run {row.id} seq {transition.seq}: {wrong}"]
    return list(_compare(state, row, kind))


class Wrong(Exception):
    """The transition cannot follow this state."""


def _compare(state: State, row: Run, kind: str) -> Iterator[str]:
    waits = state.status == "waiting"
    right: Mapping[str, Any] = {
        "status": state.status,
        "step": state.step,
        "visit": state.visit,
        "failures": state.failures,
        "next_step": state.next_step if waits else None,
        "waiting_for": state.waiting_for if waits else None,
        "wake_at": state.wake_at if waits else None,
        "crashes": 0,
        "marked": 0,
    }
    for name, value in right.items():
        if (found := getattr(row, name)) != value:
            yield f"run {row.id} seq {row.seq} ({kind}): {name} is {found!r}, not {value!r}"
    if (context := json.loads(row.data)) != state.context:
        yield f"run {row.id} seq {row.seq} ({kind}): its Context is {context}, not {state.context}"
    if row.owner is not None and state.status != "running":
        yield f"run {row.id} seq {row.seq} ({kind}): it is {state.status}, and has an owner"
    arms = [] if row.arms is None else [tuple(arm[:4]) for arm in json.loads(row.arms)]
    if arms != (state.arms if waits else []):
        yield f"run {row.id} seq {row.seq} ({kind}): its arms are {arms}, not {state.arms}"


# ---- transitions out of a step


def _poisoned(state: State, transition: Transition) -> None:
    _must_be(transition, "fail")
    if not (transition.error or "").startswith(f"The process died {DEATHS} times while step {state.step!r} "):
        raise Wrong(f"it has failed as {transition.error!r}")
    _end(state, "failed")


def is_without_request(transition: Transition) -> bool:
    """Whether an action did not run, as its request was not there."""
    return "is only in the memory of another process" in (transition.error or "")


def _stepped(state: State, was: Run, row: Run, transition: Transition) -> None:
    attempt = state.failures + 1
    if transition.attempt != attempt or transition.step != state.step:
        raise Wrong(f"attempt {transition.attempt} of {transition.step}, not {attempt} of {state.step}")
    if state.step == ACT and state.resumed != "action":
        _must_be(transition, "wait")
        _at_action(state, state.visit)
        return
    told = state.told if state.resumed is not None and TAKES.get(state.step) == state.resumed else None
    outcome = effect(state.script, state.context, state.step, attempt, state.resumed == "timeout", told)
    op = op_of(state.script, state.context["pc"])
    late = "longer than its timeout" in (transition.error or "")
    requested = state.step == ACT and request_of(state.told or "") is not None
    gone = is_without_request(transition)
    if gone and not requested:
        raise Wrong("it lacks a request, and was called without one")
    if requested and not gone and was.owner != state.caller:
        raise Wrong(f"worker {was.owner} ran it with a request that only {state.caller} has")
    would_repeat = requested and op.do == "sleep" and not op.then
    if gone or would_repeat or (state.step == ACT and outcome.trouble is not None):
        _must_be(transition, "reopen")
        for name, value in state.before.items():
            setattr(state, name, value)
        state.resumed = None
    elif op.later and state.step not in ("rescue", ACT) and transition.kind == "retry" and transition.error is None:
        if state.visit in state.put_off:
            raise Wrong("it was put off twice")
        state.put_off.add(state.visit)
        _park(state, "retry", transition.at_micros + LATER // timedelta(microseconds=1), state.step)
    elif state.step == "short" and (late or op.takes > SHORT * 1000):
        if not late:
            raise Wrong("it took too long, and was not stopped")
        _failed(state, row, transition, retried=attempt < ATTEMPTS)
    elif outcome.trouble is not None:
        _failed(state, row, transition, retried=outcome.trouble == "error" and attempt < ATTEMPTS)
    else:
        _went_well(state, row, transition, op, outcome)


def _failed(state: State, row: Run, transition: Transition, *, retried: bool) -> None:
    state.failures += 1
    if retried:
        _must_be(transition, "retry")
        middle = DELAYS[state.failures]
        delay = (row.wake_at or 0) - transition.at_micros
        if not middle * (1 - JITTER) <= delay <= middle * (1 + JITTER):
            raise Wrong(f"failure {state.failures} is retried after {delay} microseconds")
        _park(state, "retry", row.wake_at, state.step)
    elif state.script.workflow == "simulated" and not state.rescued:
        _must_be(transition, "on_fail")
        state.rescued = True
        _go(state, "rescue", transition.seq)
    else:
        _must_be(transition, "fail")
        _end(state, "failed")


def _went_well(state: State, row: Run, transition: Transition, op: Op, outcome: Outcome) -> None:
    state.context = outcome.context
    if state.step == "rescue":
        _must_be(transition, "goto")
        _go(state, "one", transition.seq)
        return
    _must_be(transition, op.do)
    now = transition.at_micros
    match op.do:
        case "goto" if op.target == ACT:
            _at_action(state, transition.seq)
        case "goto":
            _go(state, op.target, transition.seq)
        case "sleep":
            _park(state, "sleep", now + op.delay * MS, op.target if op.then else state.step)
            state.resumed = None if op.then else state.resumed
        case "wait":
            late = None if op.timeout is None else op.late
            _park(state, op.arms[0][0], None if op.timeout is None else now + op.timeout * MS, late)
            keys = [key or (row.key if kind == "signal" else None) for kind, _, key, _ in op.arms]
            state.arms = [
                _action(state) if kind == "action" else (kind, name, key, then)
                for (kind, name, _, then), key in zip(op.arms, keys, strict=True)
            ]
            state.resumed = None
        case _:
            _end(state, ENDING[op.do])


def _go(state: State, step: str, visit: int) -> None:
    state.status, state.step, state.visit, state.failures, state.resumed = "running", step, visit, 0, None


def _action(state: State) -> tuple[str, str, None, str]:
    """The arm of the workflow's action."""
    return "action", f"{state.script.workflow.replace(' ', '_')}_{ACT}", None, ACT


def _at_action(state: State, visit: int) -> None:
    """Let it wait for a call of the action, and for nothing else."""
    _go(state, ACT, visit)
    _park(state, "action", None, None)
    state.arms = [_action(state)]


def _park(state: State, what: str, wake_at: int | None, next_step: str | None) -> None:
    state.status, state.waiting_for, state.wake_at, state.next_step = "waiting", what, wake_at, next_step


def _end(state: State, status: str) -> None:
    state.status, state.resumed, state.arms = status, None, []


def _must_be(transition: Transition, kind: str) -> None:
    if transition.kind != kind:
        raise Wrong(f"it should {kind}, and did {transition.kind}: {transition.error}")


# ---- transitions out of a wait


def _called(state: State, transition: Transition, taken: tuple[str, Any] | None) -> None:
    at = transition.at_micros
    if taken is None or _action(state) not in state.arms or (state.wake_at is not None and at > state.wake_at):
        raise Wrong(f"it was called at {at}, and waits for {state.arms} until {state.wake_at}")
    state.before = {name: getattr(state, name) for name in WAIT}
    _go(state, ACT, transition.seq)
    state.resumed, state.told = "action", taken[1]


def _resumed(state: State, row: Run, transition: Transition, taken: tuple[str, Any] | None) -> None:
    kind, waiting_for, at = transition.kind, state.waiting_for, transition.at_micros
    if kind == "reject":
        if waiting_for not in ARMED:
            raise Wrong(f"it rejects a signal, and waits for {waiting_for}")
        return
    if kind in ("signal", "event"):
        if taken is None:
            raise Wrong("it took a signal that nobody sent")
        name, token = taken
        fitting = [then for what, arm, _, then in state.arms if (what, arm) == (kind, name)]
        if waiting_for not in ARMED or row.step not in fitting:
            raise Wrong(f"it took {name!r}, and waits for {state.arms}")
        _go(state, row.step, transition.seq)
        if kind == "event":
            _told(state, token)
        else:
            state.context = {**state.context, "token": token}
            state.resumed = "signal"
    elif kind == "action":
        _called(state, transition, taken)
    elif kind in ("wake", "timeout"):
        if state.wake_at is None or at < state.wake_at:
            raise Wrong(f"it was woken at {at}, before {state.wake_at}")
        if (kind == "timeout") != (waiting_for in ARMED):
            raise Wrong(f"{kind}, and it waits for {waiting_for}")
        resumed = "timeout" if kind == "timeout" else state.resumed
        visit, failures = state.visit, state.failures
        _go(state, state.next_step or state.step, transition.seq)
        state.resumed = resumed
        if waiting_for == "retry":
            state.visit, state.failures = visit, failures
    else:
        raise Wrong(f"it waits for {waiting_for}, and did {kind}")
    state.arms = []
