"""The workflows of the simulation: their steps carry out scripts (program.py)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, NamedTuple

from pydantic import BaseModel

from aioflow import (
    Event,
    GiveUp,
    RetryLater,
    StartOptions,
    action,
    complete,
    event_workflow,
    fail,
    get_context,
    get_run,
    goto,
    on,
    sleep,
    step,
    wait,
    workflow,
)
from aioflow.commands import Command, WaitArm
from aioflow.testing.simloop import SimLoop
from tests.simulation.program import (
    ACT,
    CHOOSY,
    FIRST_LISTENING,
    LATER,
    LISTENING,
    MILLI,
    RETRY,
    SHORT,
    Emission,
    Op,
    Order,
    Outcome,
    Script,
    effect,
    op_of,
    request_of,
)


class Context(BaseModel):
    """The Context of a run that follows a script."""

    number: int
    pc: int = 0
    token: str | None = None
    log: list[str] = []
    event_id: str | None = None
    event_name: str | None = None
    entity_id: str | None = None


class World(NamedTuple):
    """What steps see of the simulation: the scripts, and the first run of each."""

    scripts: Mapping[int, Script]
    runs: Any
    #: The step keys of the visits that have raised RetryLater.
    later: set[str]
    #: (event, occurrence) -> how often ``create_context`` was called for it.
    tried: Counter[tuple[str, int]]


WORLD: ContextVar[World] = ContextVar("world")


def _act_out(context: Context, event: Event | None = None, call: str | None = None) -> tuple[Op, Outcome]:
    run, world = get_run(), WORLD.get()
    script = world.scripts[context.number]
    op = op_of(script, context.pc)
    told = call if event is None else told_by(event, context)
    outcome = effect(script, context.model_dump(), run.step, run.attempt, run.timed_out, told)
    if op.later and run.step not in ("rescue", ACT) and run.step_key not in world.later:
        world.later.add(run.step_key)
        outcome = Outcome("later", {**outcome.context, "log": ["garbage"]})
    for name, value in outcome.context.items():
        setattr(context, name, value)
    if run.step != "rescue":
        for order in op.sends:
            # A failed attempt sends, too: none of that may be committed.
            token = order.token if outcome.trouble is None else f"never {order.token}"
            send(run, order, token, run.step_key.rpartition(":")[2], world)
        for emission in op.emits:
            token = emission.token if outcome.trouble is None else f"never {emission.token}"
            emit(run, emission, f"{token}@{run.id}.{run.step_key.rpartition(':')[2]}")
        if op.starts is not None:
            child = world.scripts[op.starts]
            delay = child.delay * MILLI if child.delay else None
            run.start(child.workflow, StartOptions(key=child.key, delay=delay), number=child.number)
    return op, outcome


def told_by(event: Event, context: Context) -> str:
    """The token of an event, which must be the one that the Context was made for."""
    if (event.id, event.name, event.entity_id) != (context.event_id, context.event_name, context.entity_id):
        raise RuntimeError(f"{event} is not what {context} tells of")
    return str(event.entity["token"])


def emit(run: Any, emission: Emission, token: str) -> None:
    """Emit an event from a step."""
    run.emit(
        emission.name,
        emission.entity(token),
        at=None if emission.delay is None else run.now + emission.delay * MILLI,
        namespace=emission.namespace,
        event_id=emission.event_id,
        replace=emission.replace,
    )


def send(run: Any, order: Order, token: str, visit: str, world: World) -> None:
    """Send a signal from a step, with a token that names the visit."""
    way, _, whom = order.to.partition(" ")
    payload = {"token": f"{token}@{run.id}.{visit}"}
    match way:
        case "run":
            if (run_id := world.runs(int(whom))) is not None:
                run.signal(order.name, payload, run_id=run_id)
        case "key":
            run.signal(order.name, payload, key=whom)
        case "all":
            run.signal(order.name, payload)
        case "flow":
            run.signal(order.name, payload, key=whom)


def _arm(own: _Steps, kind: str, name: str, key: str | None, then: str) -> WaitArm:
    match kind:
        case "signal":
            return on(name, key=key, then=then)
        case "event":
            return on.event(name, entity_id=key, then=then)
        case _:
            return on(own.act)


def _command(op: Op, outcome: Outcome, step: str, own: _Steps) -> Command:
    if step == "rescue":
        return goto("one")
    match outcome.trouble:
        case "error":
            raise RuntimeError("an attempt that fails")
        case "give up":
            raise GiveUp("it never will")
        case "cancel":
            raise asyncio.CancelledError
        case "later":
            raise RetryLater(LATER)
    match op.do:
        case "goto":
            return goto(op.target)
        case "sleep":
            return sleep(op.delay * MILLI, then=op.target) if op.then else sleep(op.delay * MILLI)
        case "wait":
            arms = [_arm(own, *arm) for arm in op.arms]
            if op.timeout is None:
                return wait.any(*arms)
            return wait.any(*arms, timeout=op.timeout * MILLI, on_timeout=op.late)
        case "complete":
            return complete()
        case _:
            return fail(f"it was to fail at {outcome.context['pc']}")


async def _perform(own: _Steps, event: Event | None = None, call: str | None = None) -> Command:
    context = get_context(Context)
    op, outcome = _act_out(context, event, call)
    step = get_run().step
    if op.takes and step != "rescue":
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        await loop.pause(op.takes / 1000)
    return _command(op, outcome, step, own)


class _Steps:
    Context = Context

    @step(start=True)
    async def one(self, event: Event | None = None) -> Command:
        return await _perform(self, event)

    @step
    async def two(self, event: Event | None = None) -> Command:
        return await _perform(self, event)

    @step
    def thread(self) -> Command:
        return _command(*_act_out(get_context(Context)), get_run().step, self)

    @step(timeout=timedelta(seconds=SHORT))
    async def short(self) -> Command:
        return await _perform(self)

    @step
    async def rescue(self) -> Command:
        return await _perform(self)

    @action()
    async def act(self, token: str, request: object = None) -> Command:
        if request != request_of(token):
            raise RuntimeError(f"call {token} got the request {request!r}")
        return await _perform(self, call=token)


def workflows() -> list[type]:
    """The workflows that follow scripts."""
    return [Simulated, Unrescued, Told, ToldInTheShop, ToldOfTheEnd]


@workflow("simulated", default_retry=RETRY, on_fail="rescue")
class Simulated(_Steps):
    """Goes to "rescue" the first time that a step has failed for good."""


@workflow("unrescued", default_retry=RETRY)
class Unrescued(_Steps):
    """Fails when a step has failed for good."""


_TOLD, _CHOOSY, _LAST = LISTENING


def _event(workflow: str) -> dict[str, Any]:
    """The options of an event workflow."""
    event, namespace, offsets = LISTENING[workflow]
    return {
        "event_name": event,
        "name": workflow,
        "namespace": namespace,
        "offsets": [offset * MILLI for offset in offsets],
        "default_retry": RETRY,
    }


@event_workflow(**_event(_TOLD))
class Told(_Steps):
    """Has a ``create_context`` that may take long, and may raise at first."""

    @classmethod
    async def create_context(cls, event: Event) -> Context:
        """Raise as often as the entity says."""
        entity, world, loop = event.entity, WORLD.get(), asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        await loop.pause(entity["takes"] / 1000)
        world.tried[event.id, event.occurrence] += 1
        if world.tried[event.id, event.occurrence] <= entity["trouble"]:
            raise RuntimeError("a Context that cannot be created yet")
        told = {"event_id": event.id, "event_name": event.name, "entity_id": event.entity_id}
        return Context(number=FIRST_LISTENING, **told)


class _OfTheShop(Context):
    number: int = FIRST_LISTENING + 1


@event_workflow(**_event(_CHOOSY))
class ToldInTheShop(_Steps):
    """Has a ``should_run_for_event``."""

    Context = _OfTheShop

    @classmethod
    def should_run_for_event(cls, event: Event) -> bool:
        """Return what the entity says."""
        return bool(event.entity["wanted"])


class _OfTheEnd(Context):
    number: int = FIRST_LISTENING + 2


@event_workflow(**_event(_LAST))
class ToldOfTheEnd(_Steps):
    """Has neither."""

    Context = _OfTheEnd


assert _CHOOSY == CHOOSY
