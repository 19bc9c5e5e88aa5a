"""The random programs: what runs do, what users do to them, and the workflows that do it.

A run follows a script, which the seed made: at position ``pc`` stands the op that its step carries out, whichever step
that is. What an op makes of a Context is a pure function, ``effect``: the steps call it, and so does the model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import timedelta
from random import Random
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel

from aioflow import (
    GiveUp,
    Retry,
    RetryLater,
    StartOptions,
    complete,
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
from aioflow.commands import Command
from aioflow.testing.simloop import SimLoop

MILLI = timedelta(milliseconds=1)
#: Microseconds of a millisecond.
MS = 1000

RETRY = Retry(max_attempts=3, base_delay=100 * MILLI, backoff_factor=2.0, jitter=0.5)
#: Seconds that the step "short" may take.
SHORT = 0.3
#: How long a step puts itself off.
LATER = 300 * MILLI
STEPS = ("one", "two", "thread", "short")
NAMES = ("paid", "shipped")
HUB = "hub"

Do = Literal["goto", "sleep", "wait", "complete", "fail"]
Trouble = Literal["error", "give up", "cancel", "later"]


class Order(NamedTuple):
    """A signal that a step sends, or a run that it starts. ``to``: "run 2", "key x", "flow x", "all"."""

    token: str
    name: str
    to: str


class Op(NamedTuple):
    """What a step does. Durations are milliseconds."""

    do: Do
    #: How many attempts fail before one succeeds, and how.
    fails: int
    trouble: Trouble
    takes: int
    #: Where it goes on.
    target: str
    delay: int
    #: Of a sleep: whether another step goes on.
    then: bool
    #: Of a wait: (name, key, step) of each arm.
    arms: tuple[tuple[str, str | None, str], ...]
    timeout: int | None
    late: str
    sends: tuple[Order, ...]
    starts: int | None
    #: Whether it puts itself off, the first time that it runs in a visit.
    later: bool = False


class Script(NamedTuple):
    """What a run does. ``at``: when it is started, milliseconds; None: by another run."""

    number: int
    workflow: str
    key: str | None
    at: int | None
    delay: int
    ops: tuple[Op, ...]


class Act(NamedTuple):
    """What a user does at an instant."""

    at: int
    what: Literal["signal", "cancel"]
    token: str
    name: str
    to: str
    bad: bool
    known: bool
    ttl: int | None


class Program(NamedTuple):
    """All that is to happen but for the faults."""

    seed: int
    engines: int
    scripts: tuple[Script, ...]
    acts: tuple[Act, ...]
    #: Of each engine: how many runs it executes at once; 0 for a client, that executes none. The first is none.
    slots: tuple[int, ...]


# ---- making one


def make(seed: int) -> Program:
    """The program of a seed."""
    rng = Random(f"{seed} program")
    runs = rng.randint(1, 6)
    scripts = [_script(rng, number, runs) for number in range(runs)]
    if rng.random() < 0.2:  # some are slow, so that whoever takes a run over is still at it when the other comes back
        scripts = [_slow(rng, script) for script in scripts]
    acts = [_act(rng, index, scripts) for index in range(rng.randint(runs, 5 * runs))]
    engines = rng.choice((1, 2, 2, 3))
    slots = tuple(rng.choice((1, 2, 1000, 1000)) for _ in range(engines))
    if engines > 1 and rng.random() < 0.3:
        slots = (*slots[:-1], 0)
    return Program(seed, engines, tuple(scripts), tuple(sorted(acts, key=_at)), slots)


def _at(act: Act) -> int:
    return act.at


def _script(rng: Random, number: int, runs: int) -> Script:
    child = number > 0 and rng.random() < 0.15
    ops = [_op(rng, f"{number}.{pc}", number, runs) for pc in range(rng.randint(1, 8))]
    if rng.random() < 0.2:
        ops.append(LAST._replace(do="fail"))
    return Script(
        number,
        rng.choice(("simulated", "unrescued")),
        f"k{number}" if child or rng.random() < 0.7 else None,
        None if child else rng.randint(0, 5000),
        rng.choice((0, 0, 0, 1, 500)),
        tuple(ops),
    )


def _slow(rng: Random, script: Script) -> Script:
    ops = [
        op._replace(do=rng.choice((op.do, "goto")), target=rng.choice(("one", "two")), takes=rng.choice((0, 900, 2500)))
        for op in script.ops
    ]
    return script._replace(ops=tuple(ops))


def _op(rng: Random, name: str, number: int, runs: int) -> Op:
    ways = (1, 1, 2)
    return Op(
        do=rng.choice(("goto", "goto", "sleep", "sleep", "wait", "wait", "wait")),
        fails=rng.choice((0, 0, 0, 0, 0, 0, 1, 1, 2, 3)),
        trouble=rng.choice(("error", "error", "error", "error", "give up", "cancel")),
        takes=rng.choice((0, 0, 1, 5, 100, 200, 250)) if rng.random() < 0.9 else rng.choice((400, 1500)),
        target=rng.choice(STEPS),
        delay=rng.choice((0, 1, 50, 700, 1500)),
        then=rng.random() < 0.5,
        arms=tuple((rng.choice(NAMES), rng.choice((None, None, HUB)), rng.choice(STEPS)) for _ in range(rng.choice(ways))),
        timeout=rng.choice((None, None, 0, 1, 20, 500, 1500, 3000)),
        late=rng.choice(STEPS),
        sends=tuple(Order(f"s{name}.{index}", rng.choice(NAMES), _address(rng, runs)) for index in range(_few(rng))),
        starts=rng.randrange(number + 1, runs) if number + 1 < runs and rng.random() < 0.2 else None,
        later=rng.random() < 0.08,
    )  # fmt: skip


def _few(rng: Random) -> int:
    return rng.choice((0, 0, 0, 1, 2))


def _address(rng: Random, runs: int) -> str:
    number = rng.randrange(runs)
    return rng.choice((f"run {number}", f"run {number}", f"key k{number}", f"key {HUB}", f"flow k{number}", "all"))


def _act(rng: Random, index: int, scripts: list[Script]) -> Act:
    cancels = rng.random() < 0.05
    script = rng.choice(scripts)
    to = f"run {script.number}"
    return Act(
        at=(script.at or 0) + rng.randint(0, 4000),
        what="cancel" if cancels else "signal",
        token=f"u{index}",
        name=rng.choice(NAMES),
        to=to if cancels or rng.random() < 0.4 else _address(rng, len(scripts)),
        bad=rng.random() < 0.12,
        known=rng.random() < 0.4,
        ttl=rng.choice((None, None, None, 50, 2000)),
    )


# ---- carrying it out


class Outcome(NamedTuple):
    """What a step comes to: a trouble that it raises, or the Context and the op to return."""

    trouble: Trouble | None
    context: dict[str, Any]


def effect(script: Script, context: Mapping[str, Any], step: str, attempt: int, timed_out: bool) -> Outcome:
    """What a step makes of a Context. Pure."""
    after = dict(context)
    op = op_of(script, context["pc"])
    if step == "rescue":
        after["log"] = [*context["log"], f"rescued {context['pc']}"]
        after["pc"] += 1
        return Outcome(None, after)
    if attempt <= op.fails:
        after["log"] = [*context["log"], "garbage"]
        after["pc"] += 1
        return Outcome(op.trouble, after)
    after["log"] = [*context["log"], f"{context['pc']} {step} {context['token']}{' late' * timed_out}"]
    after["pc"] += 1
    after["token"] = None
    return Outcome(None, after)


#: What a script does when it is at its end.
LAST = Op("complete", 0, "error", 0, "one", 0, False, (), None, "one", (), None)


def op_of(script: Script, pc: int) -> Op:
    """The op at a position."""
    return script.ops[pc] if pc < len(script.ops) else LAST


class Context(BaseModel):
    """What a run of a script knows."""

    number: int
    pc: int = 0
    token: str | None = None
    log: list[str] = []


class World(NamedTuple):
    """What steps can see of the simulation: the scripts, and which runs there are of each."""

    scripts: Mapping[int, Script]
    runs: Any
    #: The visits that have put themselves off, as the outside world remembers it.
    later: set[str]


WORLD: ContextVar[World] = ContextVar("world")


def _act_out(context: Context) -> tuple[Op, Outcome]:
    run, world = get_run(), WORLD.get()
    script = world.scripts[context.number]
    op = op_of(script, context.pc)
    outcome = effect(script, context.model_dump(), run.step, run.attempt, run.timed_out)
    if op.later and run.step != "rescue" and run.step_key not in world.later:
        world.later.add(run.step_key)
        outcome = Outcome("later", {**outcome.context, "log": ["garbage"]})
    for name, value in outcome.context.items():
        setattr(context, name, value)
    if run.step != "rescue":
        for order in op.sends:
            # A failed attempt orders, too: nothing of it may be sent.
            token = order.token if outcome.trouble is None else f"never {order.token}"
            send(run, order, token, run.step_key.rpartition(":")[2], world)
        if op.starts is not None:
            child = world.scripts[op.starts]
            delay = child.delay * MILLI if child.delay else None
            run.start(child.workflow, StartOptions(key=child.key, delay=delay), number=child.number)
    return op, outcome


def send(run: Any, order: Order, token: str, visit: str, world: World) -> None:
    """Send a signal from a step; the token tells of which visit."""
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


def _command(op: Op, outcome: Outcome, step: str) -> Command:
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
            arms = [on(name, key=key, then=then) for name, key, then in op.arms]
            if op.timeout is None:
                return wait.any(*arms)
            return wait.any(*arms, timeout=op.timeout * MILLI, on_timeout=op.late)
        case "complete":
            return complete()
        case _:
            return fail(f"it was to fail at {outcome.context['pc']}")


async def _perform() -> Command:
    context = get_context(Context)
    op, outcome = _act_out(context)
    step = get_run().step
    if op.takes and step != "rescue":
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        await loop.pause(op.takes / 1000)
    return _command(op, outcome, step)


class _Steps:
    Context = Context

    @step(start=True)
    async def one(self) -> Command:
        return await _perform()

    @step
    async def two(self) -> Command:
        return await _perform()

    @step
    def thread(self) -> Command:
        return _command(*_act_out(get_context(Context)), get_run().step)

    @step(timeout=timedelta(seconds=SHORT))
    async def short(self) -> Command:
        return await _perform()

    @step
    async def rescue(self) -> Command:
        return await _perform()


def workflows() -> list[type]:
    """The workflows that follow scripts."""
    return [Simulated, Unrescued]


@workflow("simulated", default_retry=RETRY, on_fail="rescue")
class Simulated(_Steps):
    """Goes to "rescue" once when all attempts have failed."""


@workflow("unrescued", default_retry=RETRY)
class Unrescued(_Steps):
    """Fails when all attempts have failed."""
