"""Signals as callers see them: what may be sent, what became of it, and whether it fits the run that it reaches."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Literal, NamedTuple

from pydantic import BaseModel, JsonValue
from pydantic_core import from_json, to_json

from aioflow import clock
from aioflow.arguments import Unfillable, note_model
from aioflow.canon import beyond, check_json, doubled
from aioflow.clock import SECOND, Micros
from aioflow.codec import Unstorable
from aioflow.definition import WorkflowDefinition
from aioflow.errors import LimitExceeded, SignalInvalid
from aioflow.likeness import difference, explain
from aioflow.model import Arm, Resumption, Run, Signal, arms_of, check_id, check_name, failure_of, told_as
from aioflow.plans import ABOUT_EVENT
from aioflow.store import Mail

_SCALARS = (str, int, float, bool, type(None))
#: How long a signal to a key is kept for a run to take it, if no ttl is given.
KEYED_TTL: Final[Micros] = 7 * 24 * 3600 * SECOND


@dataclass(frozen=True, slots=True)
class SignalReceipt:
    """What became of a signal.

    Attributes:
        state: "delivered": one or several runs took it; "buffered": it is stored until its addressee takes it;
            "rejected": it is invalid for the runs that wait for it, and none took it; "none": a broadcast for which no
            run was waiting.
        delivered: the ids of the runs that took it.
        rejected: run id -> why it is invalid for that run, which goes on waiting.
    """

    state: Literal["delivered", "buffered", "rejected", "none"]
    delivered: list[int] = field(default_factory=list)
    rejected: dict[int, str] = field(default_factory=dict)


class Draft(NamedTuple):
    """The arguments of a ``signal`` call, checked."""

    name: str
    payload: str
    message: bool
    run_id: int | None
    key: str | None
    workflow: object
    signal_id: str | None
    ttl: Micros | None

    def signal(self, id_: int, run_id: int | None, now: Micros) -> Signal:
        """The signal to post. ``run_id``: the run that it is for, if that is known."""
        ttl = self.ttl
        if ttl is None and run_id is None and self.key is not None:
            ttl = KEYED_TTL
        return Signal(
            id=id_,
            run_id=run_id or 0,
            name=self.name,
            key=self.key if run_id is None else None,
            payload=self.payload,
            message=int(self.message),
            broadcast=0,
            signal_id=self.signal_id,
            sent_at=now,
            expires_at=None if ttl is None else min(now + ttl, clock.LAST_INSTANT),
        )


def draft(
    name_or_message: object,
    payload: object,
    *,
    run_id: int | None = None,
    key: str | None = None,
    workflow: object = None,
    signal_id: str | None = None,
    ttl: timedelta | None = None,
) -> Draft:
    """Check the arguments of ``signal``.

    Raises:
        TypeError, ValueError, LimitExceeded: an argument of the wrong type or out of its range.
        SignalInvalid: the payload or message cannot be stored.
    """
    if run_id is not None:
        check_id(run_id)
    if run_id is not None and (key is not None or workflow is not None):
        raise TypeError("signal() takes run_id=, or key= (and workflow=), not both.")
    if workflow is not None and key is None:
        raise TypeError("signal(workflow=...) needs key=: it means the run of that workflow and key.")
    if key is not None:
        check_name("signal(key=...)", key)
    if signal_id is not None:
        check_name("signal(signal_id=...)", signal_id)
    micros = None
    if ttl is not None:
        if not isinstance(ttl, timedelta):
            raise TypeError(f"signal(ttl=...) takes a timedelta, got {type(ttl).__name__}.")
        micros = clock.duration_micros(ttl, "signal(ttl=...)")
        if micros == 0:
            raise ValueError("signal(ttl=...) must be longer than zero.")
    if isinstance(name_or_message, BaseModel):
        name = check_name("signal(message)", type(name_or_message).__name__)
        if payload is not None:
            raise TypeError(f"signal() takes a message or a name with a payload: {name} is the message itself.")
        return Draft(name, _message(name, name_or_message), True, run_id, key, workflow, signal_id, micros)
    if isinstance(name_or_message, type):
        raise TypeError(f"signal() takes a message, not its class: write signal({name_or_message.__name__}(...)).")
    name = check_name("signal(name)", name_or_message)
    return Draft(name, _payload(name, payload), False, run_id, key, workflow, signal_id, micros)


def _message(name: str, message: BaseModel) -> str:
    note_model(type(message))
    try:
        raw = message.__pydantic_serializer__.to_json(message, by_alias=False, round_trip=True, warnings="error")
        check_json(raw, f"Signal {name!r}")
        again = type(message).__pydantic_validator__.validate_json(raw, by_alias=False, by_name=True)
    except LimitExceeded:
        raise
    except Exception as error:  # serializers and validators may raise anything
        raise _cannot(name, message.__dict__, error) from error
    if not raw.startswith(b"{"):
        raise SignalInvalid(name, "a message is a model with fields; a RootModel has none.")
    if (problem := difference(message, again)) is not None:
        raise SignalInvalid(name, f"it does not survive JSON: {problem}")
    return raw.decode()


def _payload(name: str, payload: object) -> str:
    if payload is None:
        return "{}"
    if not isinstance(payload, Mapping):
        advice = (
            f" Write signal({type(payload).__name__}(...)) for a message." if isinstance(payload, BaseModel) else ""
        )
        raise TypeError(f"signal(payload) takes a mapping, got {type(payload).__name__}.{advice}")
    for field_ in payload:
        check_name(f"Signal {name!r}: a key of its payload", field_)
    try:
        raw = to_json(dict(payload), inf_nan_mode="constants")
    except Exception as error:  # serializers may raise anything
        raise _cannot(name, payload, error) from error
    check_json(raw, f"Signal {name!r}")
    if not all(isinstance(value, _SCALARS) for value in payload.values()) and (key := doubled(raw)) is not None:
        problem = f"its payload has a mapping with the key {key!r} twice, once it is JSON, where all keys are text"
        raise SignalInvalid(name, f"{problem}: a value would be lost. Use text for keys.")
    return raw.decode()


def _cannot(name: str, values: Mapping[str, Any], error: Exception) -> Exception:
    """The error to raise for a payload or message that could not be serialized."""
    try:
        limit = beyond(values, f"Signal {name!r}")
    except Exception:  # noqa: BLE001 - raised by the user's own mapping class: explain the first error instead
        limit = None
    return limit or SignalInvalid(name, explain(error))


def arm_for(run: Run, signal: Signal, now: Micros) -> Arm | None:
    """The first arm of a waiting run that a signal fits; none if the signal came after the wait had timed out.

    For an event, arms that name its entity come first: only they take what occurred before the wait.
    """
    if run.wake_at is not None and min(signal.sent_at, now) > run.wake_at:  # a clock may have been set back since
        return None
    kind = "signal" if signal.event is None else "event"
    arms = [arm for arm in arms_of(run) if arm.kind == kind and arm.name == signal.name]
    if kind == "event":
        fitting = [arm for key in (signal.key, None) for arm in arms if arm.key == key]
    else:
        fitting = [arm for arm in arms if signal.run_id == run.id or (not signal.run_id and arm.key == signal.key)]
    return fitting[0] if fitting else None


class Misfit(ValueError):
    """The signal is invalid for the run that waits for it; the message says why."""


def fit(run: Run, definition: WorkflowDefinition, arm: Arm, signal: Signal) -> str | None:
    """The run's Context with the signal's payload merged in, if that is merged.

    Returns:
        JSON; None if the code cannot read the run's stored Context, so that the signal cannot be judged.

    Raises:
        Misfit: the payload or message is invalid for the run.
    """
    payload: JsonValue = from_json(signal.payload)
    kind = told_as(arm, signal)
    try:
        definition.codec.decode(run.data)
    except BaseException:  # noqa: BLE001 - a validator may raise anything
        return None
    data = run.data
    if kind == "event" and isinstance(payload, dict):
        data = with_event(run, definition, payload)
    elif kind == "signal" and isinstance(payload, dict) and payload:
        data = laid_over(run, definition, payload)
    step = definition.steps.get(arm.then)
    # An action gets nothing from the signal: the run parks there until the action is called.
    if step is not None and step.action is None and (step.parameters or kind == "message"):
        resumption: Any = Resumption(kind, signal.name, payload)
        try:
            step.parameters.fill(resumption, failure_of(run), payload)
        except Unfillable as error:
            raise Misfit(f"step {arm.then!r} does not take it: {error}") from error
    return data


def with_event(run: Run, definition: WorkflowDefinition, told: Mapping[str, JsonValue]) -> str:
    """The run's Context with the fields of an event, as JSON. ``told``: ``EventRecord.payload``. Raises Misfit."""
    codec = definition.codec
    # Fields that the Context forbids are left out: an event has no sender who could be told of the error.
    added = {name: told[name] for name in ABOUT_EVENT if name in codec.declared or codec.takes_more}
    if not added:
        return run.data
    try:
        return laid_over(run, definition, added)
    except Misfit:
        if added.pop("entity_id", "") is not None:
            raise
        return laid_over(run, definition, added)  # no entity: this Context's entity_id cannot be None, and stays


def laid_over(run: Run, definition: WorkflowDefinition, added: Mapping[str, JsonValue]) -> str:
    """The run's Context with these values laid over it, as JSON. Raises Misfit."""
    try:
        # Validated as JSON: from Python values, a strict Context takes no str for a date.
        whole: dict[str, JsonValue] = {**from_json(run.data), **added}
        return definition.codec.encode(definition.codec.decode(to_json(whole)))[0]
    except (Unstorable, LimitExceeded) as error:
        raise Misfit(str(error)) from error
    except BaseException as error:  # a validator may raise anything
        raise Misfit(explain(error)) from error


def runs_within(size: int, mails: Collection[Mail], runs: int) -> int:
    """How many runs' mail has about ``size`` characters, Contexts included, judging by that of so many; at least 1."""
    read = sum(len(mail.run.data) + sum(len(signal.payload) for signal in mail.signals) for mail in mails)
    return max(size * runs // (read + 1), 1)
