"""The records: a run, its history, and the limits on both. No behaviour beyond reading themselves.

``Run`` and ``Transition`` are named tuples in the order of the stores' columns: a store's row is ``Run._make(row)``,
and a ``Run`` is the row to write.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from pydantic import JsonValue

from aioflow import clock
from aioflow.clock import Micros
from aioflow.errors import LimitExceeded, RunNotFound

MAX_NAME: Final = 200
MAX_DATA: Final = 1024 * 1024
MAX_DEPTH: Final = 64
#: The limit that a text with a NUL or a lone surrogate exceeds, in the words of ``LimitExceeded``.
CHARACTERS: Final = "characters that every store can hold"
MAX_ERROR: Final = 2_000
#: The reason that user code gave is kept whole up to this.
MAX_REASON: Final = 64 * 1024
MAX_TRACEBACK: Final = 16_000
#: From this many crashes on, a run is suspected of killing the process: it runs alone, and is marked while it does.
SUSPECT_CRASHES: Final = 2
#: At this many crashes the run fails.
POISON_CRASHES: Final = 6


class WorkflowStatus(StrEnum):
    """Where a run stands."""

    RUNNING = "running"
    WAITING = "waiting"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether this is the last status a run has."""
        return self not in LIVE


LIVE: Final = frozenset({WorkflowStatus.RUNNING.value, WorkflowStatus.WAITING.value})
#: Makes a named tuple of all its fields, in half the time that its own constructor takes.
record: Final[Any] = tuple.__new__

#: What a waiting run waits for.
WaitingFor: TypeAlias = Literal["sleep", "signal", "event", "action", "retry", "start", "blocked"]

#: What a transition did. "start" enters the history of every run, with seq 1.
TransitionKind: TypeAlias = Literal[
    "start", "goto", "sleep", "wait", "retry", "wake", "signal", "event", "action", "reopen", "timeout", "reject",
    "on_fail", "complete", "fail", "cancel", "block", "unblock",
]  # fmt: skip


class Run(NamedTuple):
    """One run, as it is stored.

    The guards: ``seq`` counts committed transitions, ``fence`` rises with every change of owner. A commit names both.
    """

    id: int
    workflow: str
    version: str
    key: str | None
    parent_id: int | None
    event_id: str | None
    created_at: Micros
    # ---- the above never changes
    status: str
    #: The step that runs, that runs next, or that returned the wait.
    step: str
    #: The step that a waiting run goes on with at ``wake_at``; resolved when it parked.
    next_step: str | None
    seq: int
    fence: int
    #: The worker that runs it; None unless it is running.
    owner: int | None
    #: The seq that entered ``step``: with store and run id it makes the step key.
    visit: int
    #: Failed attempts of this visit.
    failures: int
    #: Transitions since the run last waited.
    hops: int
    #: Owners that died while they ran it, since its last transition.
    crashes: int
    #: 1 once a suspect's step is about to run (see ``SUSPECT_CRASHES``).
    marked: int
    waiting_for: WaitingFor | None
    wake_at: Micros | None
    #: The arms of a wait for signals, events or action calls: a JSON list of Arms. None unless it waits.
    arms: str | None
    #: What resumed the run: a Resumption as JSON, until the run has gone on from the step that it resumed.
    input: str | None
    #: When the whole run times out.
    deadline: Micros | None
    #: The Failure that led to an ``on_fail`` step, as JSON.
    failure: str | None
    progress: float | None
    #: The Context as JSON.
    data: str
    error: str | None
    #: As ``causes.kept`` makes it.
    traceback: str | None
    updated_at: Micros
    ended_at: Micros | None


class Transition(NamedTuple):
    """One row of a run's history: what was committed as its ``seq``-th transition."""

    run_id: int
    seq: int
    at_micros: Micros
    #: The run's step before the transition or, if that resumed the run, after it; likewise ``attempt``.
    step: str
    attempt: int
    kind: TransitionKind
    duration_micros: Micros
    error: str | None
    #: Identifies the change: tells whether it is the one that is offered again, or another writer's.
    commit_id: int

    @property
    def at(self) -> datetime:
        """When it was committed: aware, UTC."""
        return clock.to_datetime(self.at_micros)

    @property
    def duration(self) -> timedelta:
        """How long the step ran; zero where no step ran."""
        return timedelta(microseconds=self.duration_micros)


class Signal(NamedTuple):
    """One signal in the mailbox."""

    #: All copies of a broadcast have the same.
    id: int
    #: The run it is addressed to. 0: the first run that waits with the key, or without a key all that wait for the name.
    run_id: int
    name: str
    key: str | None
    #: A JSON object.
    payload: str
    #: 1 if it was sent as a model, which is passed to the step and not merged into the Context.
    message: int
    #: 1 for a broadcast's copy, which lives as long as the wait that it was made for.
    broadcast: int
    #: Makes a send idempotent.
    signal_id: str | None
    sent_at: Micros
    #: It has expired from this instant on. None: it is kept as long as the run lives.
    expires_at: Micros | None
    #: The ``EventRecord.id``, if this is the copy of an event, which lives like a broadcast's; None for a signal.
    event: int | None = None


class Arm(NamedTuple):
    """One thing that a run waits for.

    "signal": a signal of this name that is addressed to the run, to this key, or to everybody. "event": an event of this
    name; with a ``key``, only one of this entity_id. "action": a call of the action of this name, which is ``then``.
    """

    kind: Literal["signal", "event", "action"]
    name: str
    key: str | None
    #: The step that the run then goes on with.
    then: str
    #: Whether the wait named a model.
    message: bool


#: Values of ``waiting_for`` that a query looks for in every arm: ``Run.waiting_for`` is the kind of the first one.
ARM_KINDS: Final = frozenset({"signal", "event", "action"})


def told_as(arm: Arm, signal: Signal) -> Literal["signal", "message", "event"]:
    """The kind of the Resumption when this signal resumes a run by this arm."""
    return "event" if signal.event is not None else "message" if arm.message or signal.message else "signal"


def arms_of(run: Run) -> list[Arm]:
    """The arms of the run's wait; none if it waits for no signal, event or action call."""
    return [] if run.arms is None else [Arm(*arm) for arm in json.loads(run.arms)]


class Resumption(NamedTuple):
    """What resumed a run: stored with it, so that a re-execution of the step gets the same arguments.

    "signal" and "message" have the signal's name and payload; "event" has the event's name and ``EventRecord.payload``
    (also when the event started the run); "action" has the action's name and an ``openings.Call``; "timeout": the wait
    or the run timed out; "deadline": the run timed out, and has not gone to its ``on_timeout`` yet.
    """

    kind: Literal["signal", "message", "event", "action", "timeout", "deadline"]
    name: str = ""
    payload: JsonValue = None

    @classmethod
    def of(cls, run: Run) -> Resumption | None:
        """What resumed this run, if it has not gone on from the resumed step."""
        return None if run.input is None else cls(*json.loads(run.input))


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a run went to an ``on_fail`` step.

    Attributes:
        step: the step that failed.
        error: its last error, worded as in ``run.error``.
        attempts: how often the step was tried.
        kind: "exhausted" (no attempts left, or an error that is not retried), "gave up" (GiveUp), "invalid" (an error
            in the code that retrying cannot mend, or a limit), "timeout" (the whole run timed out).
    """

    step: str
    error: str
    attempts: int
    kind: Literal["exhausted", "gave up", "invalid", "timeout"]


def failure_of(run: Run) -> Failure | None:
    """The failure that led the run to an ``on_fail`` step, if one did."""
    if run.failure is None:
        return None
    told = json.loads(run.failure)
    return Failure(told["step"], told["error"], told["attempts"], told["kind"])


class Deadline(NamedTuple):
    """When a waiting run is due. It holds only while the run is still at ``seq``."""

    at: Micros
    run_id: int
    seq: int


Reuse: TypeAlias = Literal["never", "ended", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartOptions:
    """How a run is started; ``start`` takes it before the Context's keywords.

    Args:
        key: the caller's own name for the run, unique per workflow; up to 200 characters. The same key again gives
            the existing run, with ``run.created`` False.
        reuse: when a key may name a new run: "never", after one that has "ended", or only after one that "failed".
        delay: start this long from now.
        start_at: start at this aware datetime.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of its range, or both delay and start_at.
        LimitExceeded: the key is too long or holds characters that cannot be stored.
    """

    key: str | None = None
    reuse: Reuse = "never"
    delay: timedelta | None = None
    start_at: datetime | None = None

    def __post_init__(self) -> None:
        if self.key is not None:
            check_name("StartOptions(key=...)", self.key)
        if self.reuse not in ("never", "ended", "failed"):
            raise ValueError(f"StartOptions(reuse=...) takes 'never', 'ended' or 'failed', got {self.reuse!r}.")
        if self.delay is not None and self.start_at is not None:
            raise ValueError("StartOptions takes delay= or start_at=, not both.")
        if self.delay is not None:
            if not isinstance(self.delay, timedelta):
                raise TypeError(f"StartOptions(delay=...) takes a timedelta, got {type(self.delay).__name__}.")
            clock.duration_micros(self.delay, "StartOptions(delay=...)")
        if self.start_at is not None:
            if not isinstance(self.start_at, datetime):
                raise TypeError(f"StartOptions(start_at=...) takes a datetime, got {type(self.start_at).__name__}.")
            clock.to_micros(self.start_at, "StartOptions(start_at=...)")

    def due(self, now: Micros) -> Micros | None:
        """The instant at which the run is to start, or None for at once."""
        if self.start_at is not None:
            return clock.to_micros(self.start_at)
        if self.delay is not None:
            return min(now + clock.duration_micros(self.delay), clock.LAST_INSTANT)
        return None


def check_name(what: str, name: object) -> str:
    """The name, if every store can hold it.

    Raises:
        TypeError: it is not a string.
        ValueError: it is empty.
        LimitExceeded: over 200 characters, or a NUL or lone surrogate in it.
    """
    if not isinstance(name, str):
        raise TypeError(f"{what} takes a string, got {type(name).__name__}.")
    if not name:
        raise ValueError(f"{what} must not be empty.")
    if len(name) > MAX_NAME:
        raise LimitExceeded(what, f"{MAX_NAME} characters", f"it has {len(name)}")
    if (character := misfit(name)) is not None:
        raise LimitExceeded(what, CHARACTERS, f"it holds {character}")
    return name


def misfit(text: str) -> str | None:
    """The kind of character in the text that some store cannot hold; None if there is none."""
    if "\0" in text:
        return "a NUL"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "a lone surrogate"
    return None


def check_id(run_id: object) -> int:
    """The id, if it can be one. Raises TypeError; RunNotFound for numbers that no store hands out."""
    if isinstance(run_id, bool) or not isinstance(run_id, int):
        raise TypeError(f"A run's id is an int, got {type(run_id).__name__}.")
    if not 0 < run_id < 1 << 53:
        raise RunNotFound(run_id)
    return run_id


def bounded(text: str, limit: int) -> str:
    """Text that every store can hold: NULs and lone surrogates escaped, the middle cut out beyond ``limit``."""
    text = text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
    if len(text) <= limit:
        return text
    half = (limit - 40) // 2
    return f"{text[:half]} … {len(text) - 2 * half} characters left out … {text[-half:]}"
