"""The program of the kill test of signals: readers that wait for letters, and writers that send them.

    python -m tests.faults.letters    forks a process for each job, as program.py does

A letter is a signal with a token of its own. Its sender notes it before the call, and notes the receipt after it; a
step that gets one notes the token and its visit. Each reader follows a route of waits that its number determines.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping
from datetime import timedelta
from functools import cache
from typing import Any, NamedTuple

from pydantic import BaseModel

from aioflow import Engine, Retry, StartOptions, complete, get_context, get_run, goto, on, sleep, step, wait, workflow
from aioflow.commands import Command
from aioflow.errors import RunEnded, RunNotFound
from tests.faults import program
from tests.faults.program import pause, serve

HUBS = [f"hub-{number}" for number in range(4)]
RETRY = Retry(max_attempts=3, base_delay=timedelta(milliseconds=2))
#: What a sender notes of a letter. ``by``: the sequential sender. ``known``: whether it has a signal_id.
SHEET = ("token", "name", "to", "by", "ttl", "valid", "known")
#: How many readers each life starts at most.
READERS = 120


class Parcel(BaseModel):
    """A letter whose payload is a model."""

    token: str


class Stop(NamedTuple):
    """One wait of a route, and what is done with the letter that ends it. Times are milliseconds."""

    names: tuple[str, ...]
    #: The key that the wait names; None: the reader's own.
    hub: str | None
    timeout: int | None
    takes: int
    flaky: bool
    starts_errand: bool
    writes_to: str | None


@cache
def route(seed: int, number: int) -> list[Stop]:
    """The route of the reader with this number, the same in every process."""
    rng = random.Random(f"{seed} route {number}")
    return [
        Stop(
            names=rng.choice([("letter",), ("letter",), ("Parcel",), ("letter", "Parcel")]),
            hub=rng.choice(HUBS) if rng.random() < 0.1 else None,
            timeout=rng.choice([1, 5, 20, 60, 300]) if rng.random() < 0.5 else None,
            takes=rng.choice([0, 0, 3, 10]),
            flaky=rng.random() < 0.1,
            starts_errand=rng.random() < 0.2,
            writes_to=rng.choice(["itself", f"reader-{number + rng.randrange(-5, 6)}"]) if rng.random() < 0.2 else None,
        )
        for _ in range(rng.randint(1, 5))
    ]


def key_of(number: int) -> str | None:
    """The key of the reader with this number; every third has none."""
    return f"reader-{number}" if number % 3 else None


def visit_of_step() -> int:
    """The seq of the transition that led to the current step."""
    return int(get_run().step_key.rpartition(":")[2])


@workflow("reader", default_retry=RETRY)
class Reader:
    """Waits along its route. What it did is in its Context, and so is committed with the transition."""

    class Context(BaseModel):
        seed: int
        number: int
        token: str = ""
        hour: int = 0
        at: int = 0
        #: For each letter: its token, and the visit that took it.
        taken: list[tuple[str, int]] = []
        #: For each wait: the seq of its transition, and its place in the route.
        waits: list[tuple[int, int]] = []
        timeouts: list[int] = []
        started: list[int] = []
        wrote: list[tuple[str, str]] = []

    @step(start=True)
    async def begin(self) -> Command:
        number = get_context(self.Context).number
        return sleep(timedelta(milliseconds=number % 40), then=self.ask) if number % 4 == 0 else goto(self.ask)

    @step
    async def ask(self) -> Command:
        ctx = get_context(self.Context)
        stop = route(ctx.seed, ctx.number)[ctx.at]
        ctx.waits.append((visit_of_step() + 1, ctx.at))
        timeout = None if stop.timeout is None else timedelta(milliseconds=stop.timeout)
        late: Any = None if timeout is None else self.late
        if stop.names == ("letter",):
            return wait.for_signal("letter", key=stop.hub, timeout=timeout, on_timeout=late, then=self.read)
        arms = [on(Parcel, key=stop.hub, then=self.unpack)]
        if "letter" in stop.names:
            arms.append(on("letter", key=stop.hub, then=self.read))
        return wait.any(*arms, timeout=timeout, on_timeout=late)

    @step
    async def read(self) -> Command:
        token = get_context(self.Context).token
        stop = took(token)
        await pause(stop.takes / 1000)
        return answered(token, stop)

    @step
    def unpack(self, parcel: Parcel) -> Command:
        return answered(parcel.token, took(parcel.token))

    @step
    async def late(self) -> Command:
        ctx = get_context(self.Context)
        assert get_run().timed_out
        ctx.timeouts.append(visit_of_step())
        return go_on(ctx)


@workflow("errand", default_retry=RETRY)
class Errand:
    """A run that a reader's step starts; it sends a letter back."""

    class Context(BaseModel):
        parent: int
        visit: int
        wrote: list[tuple[str, str]] = []

    @step(start=True)
    def go(self) -> Command:
        ctx, run = get_context(self.Context), get_run()
        token = f"errand.{run.id}"
        run.signal("letter", {"token": token}, run_id=ctx.parent)
        ctx.wrote.append((token, f"run {ctx.parent}"))
        return complete()


def took(token: str) -> Stop:
    """Note that a step has got a letter, and return the stop that the reader is at."""
    assert program.world is not None
    ctx, run = get_context(Reader.Context), get_run()
    program.world.note("took", run=run.id, visit=visit_of_step(), token=token, attempt=run.attempt)
    return route(ctx.seed, ctx.number)[ctx.at]


def answered(token: str, stop: Stop) -> Command:
    """Do what the route says; all of it is committed with the step, or none of it."""
    ctx, run, visit = get_context(Reader.Context), get_run(), visit_of_step()
    if stop.starts_errand:
        run.start(
            Errand, StartOptions(key=f"errand-{run.id}-{visit}" if visit % 2 else None), parent=run.id, visit=visit
        )
        ctx.started.append(visit)
    if stop.writes_to is not None:
        written = f"step.{run.id}.{visit}"
        if stop.writes_to == "itself":
            run.signal("letter", {"token": written}, run_id=run.id)
        else:
            run.signal("letter", {"token": written}, key=stop.writes_to)
        ctx.wrote.append((written, f"run {run.id}" if stop.writes_to == "itself" else f"key {stop.writes_to}"))
    if stop.flaky and run.attempt == 1:
        raise RuntimeError("the first attempt fails, and nothing that it started or sent may be seen")
    ctx.taken.append((token, visit))
    return go_on(ctx)


def go_on(ctx: Any) -> Command:
    """Go to the next wait, or complete."""
    ctx.at += 1
    return goto("ask") if ctx.at < len(route(ctx.seed, ctx.number)) else complete()


# ---- the writers


class Writers:
    """What the writers of one life share: the readers that they know, and the number of the last one started."""

    def __init__(self, engine: Engine, seed: int, life: int) -> None:
        self.engine = engine
        self.seed = seed
        self.life = life
        self.next = life * 1000
        self.known: list[tuple[int, str | None]] = []

    async def look(self) -> None:
        """Look for readers that can be written to, mostly the newest."""
        runs = await self.engine.runs(workflow="reader", status=["running", "waiting"], limit=60)
        self.known = [(run.id, run.key) for run in runs]

    async def write(self, number: int, pace: float) -> None:
        """Start readers and send letters in an endless loop. ``pace``: seconds between two calls, at most."""
        rng = random.Random(f"{self.seed} writer {self.life} {number}")
        for count in range(1_000_000):
            if count % 15 == 0:
                await self.look()
            if rng.random() < 0.25 and self.next < self.life * 1000 + READERS:
                await self.start(rng)
            else:
                letter = self.letter(rng, f"{self.life}.{number}.{count}")
                for turn in range(rng.choice([1, 1, 3])):
                    await self.send(letter | {"token": f"{letter['token']}-{turn}"})
            await pause(rng.random() * pace)

    async def start(self, rng: random.Random) -> None:
        """Start the next reader, now and then after sending a letter to its key."""
        self.next += 1
        number, world = self.next, program.world
        assert world is not None
        if (key := key_of(number)) and rng.random() < 0.3:
            await self.send(sheet(f"first.{number}", "letter", f"key {key}", f"first {number}"))
        run = await self.engine.start(Reader, StartOptions(key=key), seed=self.seed, number=number)
        world.note("acknowledged", run=run.id, number=number)
        self.known.insert(0, (run.id, key))

    def letter(self, rng: random.Random, token: str) -> dict[str, Any]:
        """A letter to a random address."""
        name = "letter" if rng.random() < 0.7 else "Parcel"
        ways, ttl = [f"key {rng.choice(HUBS)}"], None
        if self.known:
            run_id, key = rng.choice(self.known[: rng.choice([2, 8, 60])])
            ways = [f"run {run_id}"] * 9 + [f"key {key}"] * 9 * bool(key) + [f"flow {key}"] * 3 * bool(key)
            ways += [f"key {key_of(self.next + 1) or HUBS[0]}", f"key {rng.choice(HUBS)}", "all"]
        to = rng.choice(ways)
        if to.startswith("key ") and rng.random() < 0.1:
            ttl = rng.choice([1, 40])
        by = token.rpartition(".")[0]
        return sheet(
            token, name, to, by, ttl=ttl, valid=name == "Parcel" or rng.random() > 0.03, known=rng.random() < 0.4 and to != "all"
        )  # fmt: skip

    async def send(self, letter: Mapping[str, Any]) -> None:
        """Send a letter, with a note before and after."""
        assert program.world is not None
        token = letter["token"]
        program.world.note("sending", **{fact: letter[fact] for fact in SHEET})
        way, _, whom = letter["to"].partition(" ")
        address: dict[str, Any] = {"signal_id": token if letter["known"] else None}
        match way:
            case "run":
                address["run_id"] = int(whom)
            case "flow":
                address |= {"workflow": Reader, "key": whom}
            case "key":
                address["key"] = whom
        if letter["ttl"] is not None:
            address["ttl"] = timedelta(milliseconds=letter["ttl"])
        payload = {"token": token} if letter["valid"] else {"token": token, "hour": "no number"}
        try:
            if letter["name"] == "Parcel":
                receipt = await self.engine.signal(Parcel(token=token), **address)
            else:
                receipt = await self.engine.signal("letter", payload, **address)
        except (RunEnded, RunNotFound) as error:
            program.world.note("refused", token=token, error=type(error).__name__)
        else:
            program.world.note("sent", token=token, state=receipt.state, delivered=receipt.delivered)


def sheet(
    token: str, name: str, to: str, by: str, *, ttl: int | None = None, valid: bool = True, known: bool = False
) -> dict[str, Any]:
    """A letter, with the fields of SHEET."""
    return {"token": token, "name": name, "to": to, "by": by, "ttl": ttl, "valid": valid, "known": known}


# ---- a life


async def errands(
    engine: Engine, seed: int, life: int, writers: int, pace: float, again: Iterable[Mapping[str, Any]], finish: bool
) -> None:
    """What a life does besides running steps."""
    assert program.world is not None
    program.world.note("open")
    shared = Writers(engine, seed, life)
    await asyncio.gather(*(shared.send(letter) for letter in again))
    await asyncio.gather(*(shared.write(number, pace) for number in range(writers)))
    while finish and not await settled(engine):
        await pause(0.05)
    program.world.note("settled")


async def settled(engine: Engine) -> bool:
    """Whether nothing will happen any more without a call from outside."""
    if await engine.count(status="running") or await engine.count(waiting_for=["sleep", "retry", "start", "blocked"]):
        return False
    async for run in engine.iter_runs(status="waiting"):
        if run.wake_at is not None:
            return False
    parts = engine._parts
    assert parts is not None
    return not await parts.store.mail(None, 1, parts.clock.micros())


async def live(
    folder: str,
    life: int,
    *,
    seed: int,
    worker: bool = True,
    writers: int = 0,
    pace: float = 0.01,
    again: Iterable[Mapping[str, Any]] = (),
    finish: bool = False,
    max_running: int = 1000,
) -> None:
    """Be one life until SIGTERM. ``again``: letters of which it is not known whether they were sent."""
    engine = Engine(
        f"sqlite:///{folder}/runs.db",
        worker=worker,
        max_running=max_running,
        shutdown_timeout=timedelta(seconds=1),
    )
    async with engine, asyncio.TaskGroup() as group:
        busy = group.create_task(errands(engine, seed, life, writers, pace, again, finish))
        await engine.run_forever()
        busy.cancel()


def run_job(job: dict[str, Any]) -> None:
    """Be the life that the job describes."""
    program.enter(job["folder"], job["life"])
    asyncio.run(live(**job))


if __name__ == "__main__":
    serve(run_job)
