"""The random programs: what runs do, and what users do to them. The workflows that carry them out are in scripted.py.

A run follows a script, which the seed determines: at position ``pc`` is the op that its step carries out, whichever
step that is. What an op makes of a Context is a pure function, ``effect``: the steps call it, and so does the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from random import Random
from typing import Any, Literal, NamedTuple

from aioflow import Retry

MILLI = timedelta(milliseconds=1)
#: Microseconds per millisecond.
MS = 1000

RETRY = Retry(max_attempts=3, base_delay=100 * MILLI, backoff_factor=2.0, jitter=0.5)
#: The timeout of the step "short", seconds.
SHORT = 0.3
#: How many engines a seed has at most. The first of four has the slots of the first of three.
MOST_ENGINES = 4
#: The share of seeds with events.
EVENTFUL = 0.5
#: The delay of a step that raises RetryLater.
LATER = 300 * MILLI
STEPS = ("one", "two", "thread", "short")
#: The step that is an action, and the share of seeds that use it.
ACT = "act"
ACTIVE = 0.4
#: The last character of a call's token if its step is to raise.
FAILING = "!"
#: A character of a call's token if it has a request.
REQUESTED = "+"
NAMES = ("paid", "shipped")
HUB = "hub"
#: Names and entity ids of events.
OPENED, CLOSED = "opened", "closed"
ENTITIES = ("a", "b", None)
#: The event workflows: workflow -> event name, namespace, and offsets in milliseconds. Their scripts count from
#: FIRST_LISTENING.
LISTENING = {
    "told": (OPENED, "*", (-700, 0)),
    "told in the shop": (OPENED, "shop", (300,)),
    "told of the end": (CLOSED, "*", (0,)),
}
FIRST_LISTENING = 100
#: The one that has ``should_run_for_event``.
CHOOSY = "told in the shop"

Do = Literal["goto", "sleep", "wait", "complete", "fail"]
Trouble = Literal["error", "give up", "cancel", "later"]


class Order(NamedTuple):
    """A signal that a step sends. ``to``: "run 2", "key x", "flow x" or "all"."""

    token: str
    name: str
    to: str


class Emission(NamedTuple):
    """An event to emit. ``delay``: milliseconds until it occurs, or since, if negative; None: it occurs at once."""

    token: str
    event_id: str | None
    name: str
    entity_id: str | None
    delay: int | None
    namespace: str
    replace: bool
    #: How often ``create_context`` raises, how long it takes, and what ``should_run_for_event`` returns.
    trouble: int
    takes: int
    wanted: bool

    def entity(self, token: str) -> dict[str, Any]:
        """The event's entity."""
        entity = {"token": token, "trouble": self.trouble, "takes": self.takes, "wanted": self.wanted}
        return entity if self.entity_id is None else {"id": self.entity_id, **entity}


class Op(NamedTuple):
    """What a step does. Durations are milliseconds."""

    do: Do
    #: How many attempts fail before one succeeds, and how they fail.
    fails: int
    trouble: Trouble
    takes: int
    #: The step that a goto, or a sleep with ``then``, leads to.
    target: str
    delay: int
    #: For a sleep: whether ``target`` follows, rather than the same step.
    then: bool
    #: For a wait: (kind, name, key, step) of each arm; an action has neither name nor key.
    arms: tuple[tuple[str, str, str | None, str], ...]
    timeout: int | None
    late: str
    sends: tuple[Order, ...]
    starts: int | None
    #: Whether the step raises RetryLater the first time that it runs in a visit.
    later: bool = False
    emits: tuple[Emission, ...] = ()


class Script(NamedTuple):
    """What a run does. ``at``: milliseconds until it is started; None: it is started by another run, or by events."""

    number: int
    workflow: str
    key: str | None
    at: int | None
    delay: int
    ops: tuple[Op, ...]


class Act(NamedTuple):
    """What a user does at some instant."""

    at: int
    what: Literal["signal", "cancel", "emit", "withdraw", "call"]
    token: str
    name: str
    to: str
    #: For a signal: whether it is invalid, whether it has a signal_id, and its ttl. For a withdrawal, bad: also cancel
    #: the runs.
    bad: bool
    known: bool
    ttl: int | None
    emits: Emission | None = None


class Program(NamedTuple):
    """All that is to happen, apart from the faults."""

    seed: int
    engines: int
    scripts: tuple[Script, ...]
    acts: tuple[Act, ...]
    #: For each engine: how many runs it executes at once; 0 for a client. The first engine is never a client.
    slots: tuple[int, ...]


# ---- making a program


def make(seed: int) -> Program:
    """The program of a seed."""
    rng = Random(f"{seed} program")
    runs = rng.randint(1, 6)
    scripts = [_script(rng, number, runs) for number in range(runs)]
    if rng.random() < 0.2:  # slow steps: still under way when a former owner comes back
        scripts = [_slow(rng, script) for script in scripts]
    acts = [_act(rng, index, scripts) for index in range(rng.randint(runs, 5 * runs))]
    engines = rng.choice((1, 2, 2, 3))
    slots = tuple(rng.choice((1, 2, 1000, 1000)) for _ in range(engines))
    if engines > 1 and rng.random() < 0.3:
        slots = (*slots[:-1], 0)
    if engines == 3 and Random(f"{seed} crowd").random() < 0.4:
        engines, slots = MOST_ENGINES, (slots[0], *slots)
    program = Program(seed, engines, tuple(scripts), tuple(sorted(acts, key=_at)), slots)
    rng = Random(f"{seed} events")
    if rng.random() < EVENTFUL:
        program = _with_events(rng, program)
    rng = Random(f"{seed} actions")
    return _with_actions(rng, program) if rng.random() < ACTIVE else program


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
        arms=tuple(
            ("signal", rng.choice(NAMES), rng.choice((None, None, HUB)), rng.choice(STEPS)) for _ in range(rng.choice(ways))
        ),
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


# ---- adding events


def _with_events(rng: Random, program: Program) -> Program:
    """Add events to a program: some from steps, most from users, runs that wait for them, and runs that they start."""
    ids = [f"v{number}" for number in range(rng.randint(1, 3))]
    scripts = [
        script._replace(ops=tuple(_eventful(rng, op, f"{script.number}.{pc}", ids) for pc, op in enumerate(script.ops)))
        for script in program.scripts
    ]
    runs = len(scripts)
    for number, name in enumerate(LISTENING, FIRST_LISTENING):
        ops = [_op(rng, f"{number}.{pc}", number, runs)._replace(starts=None) for pc in range(rng.choice((0, 1, 1, 2)))]
        ops = [_waits_for_event(rng, op) if rng.random() < 0.4 else op for op in ops]
        scripts.append(Script(number, name, None, None, 0, tuple(ops)))
    acts = [_happening(rng, f"e{index}", ids) for index in range(rng.randint(1, 5))]
    return program._replace(scripts=tuple(scripts), acts=tuple(sorted((*program.acts, *acts), key=_at)))


def _eventful(rng: Random, op: Op, name: str, ids: list[str]) -> Op:
    if op.do == "wait" and rng.random() < 0.5:
        op = _waits_for_event(rng, op)
    if rng.random() < 0.15:
        op = op._replace(emits=tuple(_emission(rng, f"o{name}.{index}", ids) for index in range(rng.choice((1, 1, 2)))))
    return op


def _waits_for_event(rng: Random, op: Op) -> Op:
    arm = ("event", rng.choice((OPENED, CLOSED)), rng.choice(ENTITIES), rng.choice(STEPS))
    others = op.arms if rng.random() < 0.4 else ()
    arms = (arm, *others) if rng.random() < 0.7 else (*others, arm)
    return op._replace(do="wait", arms=arms)


def _happening(rng: Random, token: str, ids: list[str]) -> Act:
    at = rng.randint(0, 6000)
    if rng.random() < 0.15:
        return Act(at, "withdraw", token, rng.choice(ids), "", rng.random() < 0.5, False, None)
    return Act(at, "emit", token, "", "", False, False, None, _emission(rng, token, ids))


def _emission(rng: Random, token: str, ids: list[str]) -> Emission:
    event_id = rng.choice((None, *ids, *ids))
    return Emission(
        token, event_id,
        name=rng.choice((OPENED, OPENED, CLOSED)),
        entity_id=rng.choice(ENTITIES),
        delay=rng.choice((None, None, -2000, 1, 400, 1200, 2500)),
        namespace=rng.choice(("*", "*", "shop", "office")),
        replace=event_id is not None and rng.random() < 0.5,
        trouble=rng.choice((0, 0, 0, 1, 2)),
        takes=rng.choice((0, 0, 0, 5, 100, 1500)),
        wanted=rng.random() < 0.7,
    )  # fmt: skip


# ---- adding calls


def _with_actions(rng: Random, program: Program) -> Program:
    """Add an action to a program: gotos, arms and timeouts may lead to it, and users call it."""
    scripts = tuple(script._replace(ops=tuple(_to_action(rng, op) for op in script.ops)) for script in program.scripts)
    acts: list[Act] = []
    for script in scripts:
        begins = script.at if script.at is not None else rng.randint(0, 3000)
        for index in range(rng.randint(2, 8)):
            requested = Random(f"{program.seed} requests {script.number}.{index}").random() < 0.4
            token = f"c{script.number}.{index}{REQUESTED * requested}{FAILING * (rng.random() < 0.2)}"
            act = Act(begins + rng.randint(0, 6000), "call", token, "", f"run {script.number}", False, False, None)
            # Now and then a user clicks twice.
            acts += [act, act._replace(token=f"d{token}")] if rng.random() < 0.3 else [act]
    return program._replace(scripts=scripts, acts=tuple(sorted((*program.acts, *acts), key=_at)))


def _to_action(rng: Random, op: Op) -> Op:
    if rng.random() < 0.2:
        return op
    arms = [*op.arms, ("action", "", None, ACT)] if rng.random() < 0.7 else list(op.arms)
    rng.shuffle(arms)
    return op._replace(
        target=rng.choice((op.target, ACT)), arms=tuple(arms), late=rng.choice((op.late, op.late, ACT)),
        takes=op.takes if rng.random() < 0.8 else rng.choice((900, 2500)),
    )  # fmt: skip


def request_of(token: str) -> str | None:
    """The request that comes with a call, if one does."""
    return f"the request of {token}" if REQUESTED in token else None


# ---- the effect of an op


class Outcome(NamedTuple):
    """The result of a step: the Context, and what to raise; without trouble, the step returns the op's command."""

    trouble: Trouble | None
    context: dict[str, Any]


def effect(
    script: Script, context: Mapping[str, Any], step: str, attempt: int, timed_out: bool, told: str | None = None
) -> Outcome:
    """What a step makes of a Context, a pure function. ``told``: the token of the event or call that it gets."""
    after = dict(context)
    op = op_of(script, context["pc"])
    if step == "rescue":
        after["log"] = [*context["log"], f"rescued {context['pc']}"]
        after["pc"] += 1
        return Outcome(None, after)
    called = step == ACT and told is not None
    if told.endswith(FAILING) if called and told is not None else attempt <= op.fails:
        after["log"] = [*context["log"], "garbage"]
        after["pc"] += 1
        return Outcome("error" if called else op.trouble, after)
    after["log"] = [*context["log"], f"{context['pc']} {step} {context['token']}{' late' * timed_out}"]
    if told is not None:
        after["log"][-1] += f" {told}"
    after["pc"] += 1
    after["token"] = None
    return Outcome(None, after)


#: What a script does at its end.
LAST = Op("complete", 0, "error", 0, "one", 0, False, (), None, "one", (), None)


def op_of(script: Script, pc: int) -> Op:
    """The op at a position of a script."""
    return script.ops[pc] if pc < len(script.ops) else LAST
