"""The program that the tests kill: a workflow that does what its Context says, and a server that forks processes.

    python program.py            forks a process for each job that it reads from standard input
    python program.py '{...}'    is one such process

A *life* is one process on a store. It notes what it does in a journal beside the store, before anything can go wrong:
one write per line, which a SIGKILL leaves whole. The tests compare the journal with what the engine committed.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import select
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from aioflow import (
    Engine,
    GiveUp,
    Retry,
    RetryLater,
    StartOptions,
    Transition,
    complete,
    fail,
    get_context,
    get_run,
    goto,
    sleep,
    step,
    workflow,
)
from aioflow.clock import Clock
from aioflow.model import Run

RETRY = Retry(max_attempts=4, base_delay=timedelta(milliseconds=2), max_delay=timedelta(milliseconds=10))
LATER = timedelta(milliseconds=3)
REASON = "its program says so"


class World:
    """What is global in a life: its number, and the journal, which outlives it."""

    def __init__(self, folder: str | Path, life: int) -> None:
        self.folder = Path(folder)
        self.life = life
        self.postponed: Counter[str] = Counter()
        self._fd = os.open(self.folder / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, what: str, **facts: object) -> None:
        """Append a line to the journal."""
        facts = {"what": what, "life": self.life, "pid": os.getpid(), "wall": time.time_ns() // 1000, **facts}
        # Begin with a newline, too: if a kill ever tears a line, the next one stands on its own.
        os.write(self._fd, b"\n%s\n" % json.dumps(facts).encode())

    def leave(self) -> None:
        """Close the journal."""
        os.close(self._fd)


world: World | None = None


def enter(folder: str | Path, life: int) -> World:
    """Make this process a life."""
    global world  # noqa: PLW0603 - there is one per process, and steps take no arguments
    world = World(folder, life)
    return world


# ---- what a run does


def parse(instruction: str) -> tuple[str, list[tuple[str, int]]]:
    """Parse ``"thread: take 5, flaky 2, sleep 30"``: the step, and what it does; the last part is its command."""
    name, _, rest = instruction.partition(": ")
    words = [part.split() for part in rest.split(", ")]
    return name, [(word[0], int(word[1]) if len(word) > 1 else 0) for word in words]


def advance(total: int, at: int) -> int:
    """The total after an instruction: leaving one out, or doing one twice, leads to another result."""
    return (total * 31 + at + 1) % 1_000_003


@workflow("machine", default_retry=RETRY)
class Machine:
    """Each step does the instruction ``program[at]``, which names the step that is to do it.

    take n: takes n milliseconds. flaky n: attempts up to the n-th fail. later n: RetryLater, n times in each life. hold
    n: never ends, in lives before n. kill n, exit n: the process ends, in lives up to n. fork n: the process forks a
    child that lives on, in lives up to n. raise, giveup: fails for good. Then: goto, sleep n, complete or fail.
    """

    class Context(BaseModel):
        program: list[str]
        number: int = 0
        at: int = 0
        total: int = 0
        path: list[str] = []

    @step(start=True)
    async def coroutine(self):
        turn = Turn("coroutine")
        for word, number in turn.actions:
            if (seconds := turn.lasts(word, number)) == 0:
                continue
            try:
                await pause(seconds)
            except asyncio.CancelledError:
                turn.note("stopped")
                raise
        return turn.command()

    @step
    def thread(self):
        return Turn("thread").at_once()

    @step(thread=False)
    def inline(self):
        return Turn("inline").at_once()


class Turn:
    """One execution of a step."""

    def __init__(self, name: str) -> None:
        assert world is not None
        self.world = world
        self.run = get_run()
        self.context = ctx = get_context(Machine.Context)
        self.name, self.actions = parse(ctx.program[ctx.at])
        self._command = self.actions.pop()
        self.note("step")
        assert name == self.name == self.run.step

    def note(self, what: str) -> None:
        """Note in the journal which execution this is, and the Context that it began with."""
        run, ctx = self.run, self.context
        self.world.note(
            what, run=run.id, step=run.step, key=run.step_key, attempt=run.attempt, at=ctx.at, total=ctx.total
        )

    def at_once(self) -> Any:
        """Do the instruction in a sync step."""
        for word, number in self.actions:
            if (seconds := self.lasts(word, number)) != 0:
                threading.Event().wait(seconds)
        return self.command()

    def lasts(self, word: str, number: int) -> float | None:
        """Do what takes no time, and return for how many seconds to wait; None means for ever."""
        ctx, run, life = self.context, self.run, self.world.life
        before = ctx.total, list(ctx.path)
        ctx.total, ctx.path = -1, ["what a failed attempt leaves"]
        match word:
            case "flaky" if run.attempt <= number:
                raise RuntimeError(f"attempt {run.attempt} of {number + 1} fails")
            case "raise":
                raise RuntimeError(f"attempt {run.attempt} fails")
            case "giveup":
                raise GiveUp(REASON)
            case "later" if self.world.postponed[run.step_key] < number:
                self.world.postponed[run.step_key] += 1
                raise RetryLater(LATER)
            case "kill" if life <= number:
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit" if life <= number:
                os._exit(1)
            case "fork" if life <= number:
                fork_child(self.world)
        ctx.total, ctx.path = before
        match word:
            case "take":
                return number / 1000
            case "hold" if life < number:
                return None
        return 0

    def command(self) -> Any:
        """What the step returns."""
        ctx, (word, number) = self.context, self._command
        ctx.total = advance(ctx.total, ctx.at)
        ctx.path.append(self.name)
        ctx.at += 1
        following = parse(ctx.program[ctx.at])[0] if ctx.at < len(ctx.program) else ""
        match word:
            case "goto":
                return goto(following)
            case "sleep":
                return sleep(timedelta(milliseconds=number), then=None if following == self.name else following)
            case "fail":
                return fail(REASON)
            case _:
                return complete()


async def pause(seconds: float | None) -> None:
    """Wait for so many seconds; None means for ever."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.Event().wait()


def fork_child(world: World) -> None:
    """Fork a child that tries to take the file's lock, and lives on with all files that this process has open."""
    from aioflow_sqlite.lock import FileLock

    if os.fork():
        return
    signal.alarm(60)  # ends it even if the test does not
    with suppress(BaseException):
        world.note("forked", locked=FileLock(world.folder / "runs.db.worker").acquire())
        while True:
            signal.pause()
    os._exit(1)


# ---- random programs


class Plan(NamedTuple):
    """A run to start. ``delay``: milliseconds."""

    number: int
    program: list[str]
    key: str | None = None
    delay: int = 0


def planned(seed: int, number: int) -> Plan:
    """The plan with this number, the same in every process."""
    rng = random.Random(f"{seed} plan {number}")
    names = ["coroutine", *rng.choices(["coroutine", "thread", "inline"], [2, 1, 1], k=rng.randrange(9))]
    program = []
    for name in names:
        words = []
        if rng.random() < 0.6:
            words.append(f"take {rng.randint(1, 2 if name == 'inline' else 12)}")
        if rng.random() < 0.15:
            words.append(f"flaky {rng.randint(1, 3)}")
        if rng.random() < 0.1:
            words.append(f"later {rng.randint(1, 2)}")
        rng.shuffle(words)
        if len(program) == len(names) - 1:
            words.append(rng.choices(["complete", "fail", "raise, goto", "giveup, goto"], [80, 8, 7, 5])[0])
        else:
            words.append("goto" if rng.random() < 0.6 else f"sleep {rng.choice([0, 1, 10, 100, 400])}")
        program.append(f"{name}: {', '.join(words)}")
    key = f"order-{number}" if rng.random() < 0.25 else None
    return Plan(number, program, key, rng.choice([1, 30, 150]) if rng.random() < 0.15 else 0)


# ---- one life


class Ahead(Clock):
    """A clock that is so many seconds ahead."""

    def __init__(self, seconds: float) -> None:
        self._ahead = int(seconds * 1_000_000)

    def micros(self) -> int:
        """See Clock."""
        return super().micros() + self._ahead


class Reaper:
    """An instrument that kills the process as soon as a transition of one of these kinds is committed."""

    def __init__(self, kinds: Iterable[str]) -> None:
        self._kinds = frozenset(kinds)

    def committed(self, run: Run, transition: Transition) -> None:
        """See Instrument."""
        if transition.kind in self._kinds:
            os.kill(os.getpid(), signal.SIGKILL)

    def step_started(self, run: Run) -> None:
        """Nothing."""

    def step_ended(self, run: Run, error: BaseException | None) -> None:
        """Nothing."""


async def begin(engine: Engine, plan: Plan) -> None:
    """Start a run, and note that the start was acknowledged."""
    assert world is not None
    options = StartOptions(key=plan.key, delay=timedelta(milliseconds=plan.delay) if plan.delay else None)
    run = await engine.start(Machine, options, program=plan.program, number=plan.number)
    world.note("acknowledged", run=run.id, number=plan.number, key=plan.key, created=run.created)


async def errands(
    engine: Engine, starts: Sequence[Sequence[Any]], stream: Mapping[str, Any] | None, finish: bool
) -> None:
    """What a life does besides running steps: start the given runs or a stream of them, and wait for their ends."""
    assert world is not None
    world.note("open")
    await asyncio.gather(*(begin(engine, Plan(*start)) for start in starts))
    if starts:
        world.note("started")
    if stream:
        pace = random.Random(f"{stream['seed']} pace {world.life}")
        plans = [planned(stream["seed"], number) for number in stream["numbers"]]
        while plans:
            lot, plans = plans[: (size := pace.randint(1, 30))], plans[size:]
            await asyncio.gather(*(begin(engine, plan) for plan in lot for _ in range(2 if plan.key else 1)))
            await pause(pace.random() * 0.02)
    if finish:
        while await engine.count(status=["running", "waiting"]):
            await pause(0.02)
        os.kill(os.getpid(), signal.SIGTERM)


async def live(
    folder: str,
    *,
    bare: bool = False,
    starts: Sequence[Sequence[Any]] = (),
    stream: Mapping[str, Any] | None = None,
    finish: bool = False,
    code: bool = True,
    ahead: float = 0,
    dies_on: Sequence[str] = (),
    shutdown_timeout: float = 10,
    max_running: int = 1000,
    threads: int = 40,
) -> None:
    """Be one life until SIGTERM or SIGINT. ``code``: whether it knows the workflow. ``bare``: only run_forever()."""
    assert world is not None
    engine = Engine(
        f"sqlite:///{folder}/runs.db",
        workflows=None if code else [],
        clock=Ahead(ahead),
        shutdown_timeout=timedelta(seconds=shutdown_timeout),
        max_running=max_running,
        threads=threads,
    )
    engine.instruments.append(Reaper(dies_on))
    if bare:
        await engine.run_forever()
    else:
        async with engine, asyncio.TaskGroup() as group:
            busy = group.create_task(errands(engine, starts, stream, finish))
            await engine.run_forever()
            busy.cancel()
    world.note("closed")


def run_job(job: dict[str, Any]) -> None:
    """Be the life that the job describes."""
    enter(job["folder"], job.pop("life"))
    asyncio.run(live(**job))


def serve(run_job: Callable[[dict[str, Any]], None]) -> None:
    """Print ``ready``; fork a life for each job, a line of JSON: ``forked <pid>``, then ``ended <pid> <exit code>``."""
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker)
    os.write(1, b"ready\n")
    jobs = b""
    while True:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            with suppress(ChildProcessError):
                while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                    os.write(1, b"ended %d %d\n" % (ended[0], os.waitstatus_to_exitcode(ended[1])))
        if 0 in ready:
            if not (read := os.read(0, 1 << 16)):
                return
            *lines, jobs = (jobs + read).split(b"\n")
            for line in lines:
                if pid := os.fork():
                    os.write(1, b"forked %d\n" % pid)
                    continue
                fork_off(run_job, json.loads(line), (woken, waker))


def fork_off(run_job: Callable[[dict[str, Any]], None], job: dict[str, Any], others: Iterable[int]) -> None:
    """Do a job in a process that was just forked, and end the process."""
    code = 1
    signal.alarm(300)  # ends it even if the test does not
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(Path(job["folder"]) / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        for fd in (*others, log, nothing):
            os.close(fd)
        run_job(job)
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run_job(json.loads(sys.argv[1]))
    else:
        serve(run_job)
