"""Simulates one seed: engines on one store, users, faults, and the oracle that sees all of it."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import contextmanager
from datetime import timedelta
from random import Random
from typing import Any, Literal, NamedTuple

import structlog

from aioflow import Engine, StartOptions, WorkflowRun
from aioflow.clock import SECOND, Micros, to_datetime
from aioflow.errors import (
    ActionFailed,
    ActionNotOpen,
    EngineClosed,
    EventNotFound,
    IdTaken,
    RunEnded,
    RunNotFound,
    StoreUnavailable,
)
from aioflow.model import Run
from aioflow.store import EventQuery, RunQuery
from aioflow.testing.simloop import Deadlock, Livelock, Process, SimClock, SimLoop, inline_threads
from aioflow.timers import Timers
from aioflow_memory import MemoryStore
from tests.simulation import program, scripted
from tests.simulation.faults import CALM, LEASE, Server, Wire, now_or_never, plan
from tests.simulation.oracle import PROMPT, PROMPT_AT_A_DISTANCE, Oracle
from tests.simulation.program import ACT, MILLI, Act, Program, Script, request_of
from tests.simulation.sqlite import NOT_HERE, FileOracle, FileServer, inline_connections

#: The instant at which the simulation begins.
EPOCH: Micros = 1_750_000_000 * SECOND
#: Seconds after the last fault within which everything must be done. Slow runs and those that they start, one after
#: the other in the only slot, were seen to take 150.
PATIENCE = 600.0
#: Seconds after the end of a lease within which another worker executes its runs, and wakes what is overdue:
#: requests that were on their way at the last fault may be silent for three leases.
TAKEOVER = 4.0 + 3 * LEASE
#: A process that is killed for longer than so many seconds does not come back, if there are others.
FOR_GOOD = 4.0
#: The lease where there are no faults, seconds: a slow store must not lead to its loss.
LONG_LEASE = 5 * LEASE
#: Seconds after which a caller gives up a call.
LOST = 20.0


#: How often a user calls an action that is not open, and the seconds between two calls.
TRIES, AGAIN = 6, 0.4

Where = Literal["memory", "sqlite"]


class Case(NamedTuple):
    """A seed, its store, and what is left out: scripts, engines above a number, kinds of faults, events."""

    seed: int
    runs: frozenset[int] = frozenset()
    engines: int = program.MOST_ENGINES
    faults: frozenset[str] = frozenset()
    store: Where = "memory"
    events: bool = True

    @property
    def command(self) -> str:
        """The command that repeats the case."""
        parts = [f"python -m tests.simulation --seed {self.seed}"]
        if self.runs:
            parts.append(f"--without-runs {','.join(map(str, sorted(self.runs)))}")
        if self.engines < program.MOST_ENGINES:
            parts.append(f"--engines {self.engines}")
        if self.faults:
            parts.append(f"--without-faults '{','.join(sorted(self.faults))}'")
        if not self.events:
            parts.append("--without-events")
        if self.store != "memory":
            parts.append(f"--store {self.store}")
        return " ".join(parts)


class Verdict(NamedTuple):
    """The result of a case."""

    case: Case
    problems: list[str]
    trace: str
    figures: Counter[str]
    #: How long the loop ran, in callbacks and in virtual seconds.
    callbacks: int
    seconds: float


class StepObserver:
    """An instrument that reports the steps of one process."""

    def __init__(self, client: Wire, world: World) -> None:
        self._client = client
        self._world = world

    def committed(self, run: Run, transition: object) -> None:
        """See telemetry.Instrument."""

    def step_started(self, run: Run) -> None:
        """See telemetry.Instrument."""
        self._world.oracle.step_started(self._client, run, self._world.now())
        self._world.oracle.wrong(self._world.server.owners.step_started(self._client, run))
        self._world.trace(self._client.title, f"step {run.id} {run.seq} {run.step}")

    def step_ended(self, run: Run, error: BaseException | None) -> None:
        """See telemetry.Instrument."""
        self._world.server.owners.step_ended(self._client, run)


class Host:
    """A machine on which an engine is started, dies, and is started again.

    The mutable state: the process, its engine while that is open, its clock, whether it is to end, and whether it is
    gone for good.
    """

    def __init__(self, index: int, world: World) -> None:
        self.index = index
        self.world = world
        self.lives = 0
        self.gone = False
        self.process: Process
        self.wire: Wire
        self.engine: Engine | None = None
        self.closing: asyncio.Event
        self.clock: SimClock
        self.task: asyncio.Task[None]
        self.skew: Micros = 0

    @property
    def works(self) -> bool:
        """Whether the engine executes runs."""
        return self.world.program.slots[self.index] > 0

    def start(self) -> None:
        """Start a process."""
        world = self.world
        self.lives += 1
        self.engine = None
        self.closing = asyncio.Event()
        self.process = Process(f"e{self.index}.{self.lives}")
        self.clock = SimClock(world.loop, EPOCH, self.skew)
        self.task = world.loop.spawn(self.process, self._live(self.process, self.closing, self.clock))

    async def _live(self, process: Process, closing: asyncio.Event, clock: SimClock) -> None:
        while not closing.is_set():
            wire = self.wire = Wire(self.world.server, process)
            owners = self.world.server.owners
            owners.joined(wire, self.world.program.slots[self.index])
            engine = Engine(
                wire,  # type: ignore[arg-type]
                workflows=scripted.workflows(),
                lease=timedelta(seconds=self.world.lease),
                clock=clock,
                worker=self.works,
                max_running=self.world.program.slots[self.index] or 1,
                shutdown_timeout=timedelta(seconds=1),
            )
            engine.instruments.append(StepObserver(wire, self.world))
            try:
                async with engine:
                    self.engine = engine
                    await closing.wait()
                    self.engine = None
                self.world.oracle.wrong(owners.closed(wire))
            except StoreUnavailable:
                self.engine = None
                await self.world.loop.pause(0.1)


class World:
    """Simulates a case. The mutable state: the hosts, and the number of acts and starts that are not done yet."""

    def __init__(self, case: Case, lines: Callable[[str], None] | None = None) -> None:
        self.case = case
        self.program = _less(program.make(case.seed), case)
        self.scripts = {script.number: script for script in self.program.scripts}
        self.loop = SimLoop(f"{case.seed} loop")
        self.on_file = case.store == "sqlite"
        oracle = FileOracle if self.on_file else Oracle
        self.oracle = oracle(self.scripts)
        self.plan = plan(case.seed, self.program.engines, case.faults | (NOT_HERE if self.on_file else frozenset()))
        # Runs that a client starts or wakes wait for a worker to claim them; on a file all engines but one are clients.
        clients = self.on_file and self.program.engines > 1
        if self.plan.quiet and min(self.program.slots) > 100 and not clients:
            self.oracle.prompt = PROMPT if self.plan.distance == 1 else PROMPT_AT_A_DISTANCE
        self.lease = LONG_LEASE if self.plan.quiet else LEASE
        self._hash = hashlib.blake2b(digest_size=8)
        self._lines = lines
        self._rng = Random(f"{case.seed} users")
        self.hosts = [Host(index, self) for index in range(self.program.engines)]
        self.pending = 0
        self.server: Server

    def trace(self, who: str, what: str) -> None:
        """Add a line to the trace."""
        line = f"{self.loop.time():.6f} {who} {what}"
        self._hash.update(line.encode())
        if self._lines is not None:
            self._lines(line)

    def run(self) -> Verdict:
        """Run the simulation to its end."""
        loop, problems = self.loop, self.oracle.problems
        loop.set_exception_handler(lambda _, told: problems.append(f"the loop's handler was called: {told}"))
        with inline_threads(loop), inline_connections(), _logged(problems), _narrow(self._rng):
            try:
                loop.run_until_complete(self._main())
            except (Deadlock, Livelock) as error:
                problems.append(f"{type(error).__name__}: {error}")
            except AssertionError as error:
                problems.append(f"{error}")
            loop.dispose()
            self.server.dispose()
        return Verdict(self.case, problems, self._hash.hexdigest(), self.oracle.figures, loop.steps, loop.time())

    async def _main(self) -> None:
        loop = self.loop
        scripted.WORLD.set(scripted.World(self.oracle.scripts, self.oracle.runs_of, set(), Counter()))
        store = MemoryStore("sim://", uuid="sim")
        now_or_never(store.open(EPOCH))
        server = FileServer if self.on_file else Server
        self.server = server(loop, store, self.oracle, self.plan, self.case.seed, self.trace)
        self.server.prepare()
        self.server.owners.at_once = self.oracle.prompt is not None
        for fault in self.plan.process_faults:
            if fault.kind == "skew":
                self.hosts[fault.engine].skew = round((fault.lasts - 2) * SECOND)
                self.oracle.figures["fault: skew"] += 1
            else:
                loop.call_at(fault.at, self._strike, fault)
        self.oracle.figures["four engines"] += self.program.engines == program.MOST_ENGINES
        for host in self.hosts:
            host.start()
        for script in self.program.scripts:
            if script.at is not None:
                self._later(script.at, self._start(script))
        for act in self.program.acts:
            self._later(act.at, self._done(act))
        while loop.time() < CALM and (self.pending or self.oracle.busy(self.now())):
            await loop.pause(0.25)
        self._calm()
        end = loop.time() + PATIENCE
        while self.pending or self.oracle.busy(self.now()):
            if loop.time() > end:
                busy = self.oracle.busy(self.now())
                self.oracle.problems.append(f"not settled after {PATIENCE} s: {busy}, and {self.pending} calls")
                return
            open_ = [host.wire for host in self.hosts if host.process.alive and host.engine is not None]
            rows, patience = self.oracle.rows.values(), self.lease + TAKEOVER
            self.oracle.wrong(self.server.owners.left_alone(open_, rows, self.now(), patience))
            if self.oracle.problems:
                return
            await loop.pause(0.25)
        await self._close()

    def now(self) -> Micros:
        """The true time."""
        return EPOCH + round(self.loop.time() * SECOND)

    async def _close(self) -> None:
        for host in self.hosts:
            host.closing.set()
        tasks = [host.task for host in self.hosts if host.process.alive]
        _, left = await asyncio.wait(tasks, timeout=30)
        if left:
            self.oracle.problems.append(f"engines do not end: {left}")
        for host in self.hosts:
            if host.task.done() and not host.task.cancelled() and (error := host.task.exception()) is not None:
                self.oracle.problems.append(f"an engine ended with {error!r}")
        now, store, ids = self.now(), self.server.store, list(self.oracle.rows)
        rows = now_or_never(store.select(RunQuery(limit=10_000), now))
        histories = {id_: now_or_never(store.history(id_, 0, 10_000, now)) for id_ in ids}
        events = now_or_never(store.select(EventQuery(limit=10_000), now))
        self.oracle.check_end(rows, histories, events, now_or_never(store.stats(now)))

    # ---- faults

    def _strike(self, fault: Any) -> None:
        host, loop = self.hosts[fault.engine], self.loop
        process = host.process
        if not process.alive or process.held is not None or host.closing.is_set() or self.server.calm:
            return
        if fault.commits:
            self.server.armed[process] = lambda: self._strike(fault._replace(commits=False))
            return
        self.trace(process.name, f"meets {fault.kind}")
        self.oracle.figures[f"fault: {fault.kind}"] += 1
        match fault.kind:
            case "kill":
                self.oracle.figures["killed while it ran something"] += any(
                    row.status == "running" and row.owner == self.oracle.workers.get(host.wire)
                    for row in self.oracle.rows.values()
                )
                loop.kill_process(process)
                self.server.killed(process)
                if fault.lasts > FOR_GOOD and any(other.process.alive and other.works for other in self.hosts):
                    self.oracle.figures["killed for good"] += 1
                    host.gone = True
                else:
                    loop.call_later(fault.lasts, self._restart, host, process)
            case "pause":
                self.oracle.figures["paused past its lease"] += fault.lasts > LEASE
                loop.stop_process(process)
                self.server.hold(process, fault.lasts)
                loop.call_later(fault.lasts, self._resume, process)
            case "partition":
                self.server.partitioned.add(process)
                loop.call_later(fault.lasts, self.server.partitioned.discard, process)
            case "restart":
                host.closing.set()
                host.task.add_done_callback(lambda _: self._restart(host, process))
            case _:
                host.skew += round((fault.lasts - 3) * SECOND)
                host.clock.skew = host.skew

    def _restart(self, host: Host, process: Process) -> None:
        if host.process is process:
            host.start()

    def _resume(self, process: Process) -> None:
        if process.alive and process.held is not None:
            self.server.owners.resumed(process)
            self.loop.resume_process(process)

    def _calm(self) -> None:
        """End the faults: dead processes come back, and clocks are set right."""
        self.trace("-", "calm")
        self.server.calm = True
        for host in self.hosts:
            host.skew = host.clock.skew = 0
            self._resume(host.process)
            others = any(other.process.alive and other.works for other in self.hosts)
            if not host.process.alive and not (host.gone and others):
                host.start()

    # ---- users

    def _later(self, millis: int, coroutine: Coroutine[Any, Any, None]) -> None:
        self.pending += 1

        async def later() -> None:
            await self.loop.pause(millis / 1000)
            try:
                await coroutine
            finally:
                self.pending -= 1

        self.loop.create_task(later())

    async def _call(self, call: Callable[[Engine], Coroutine[Any, Any, Any]], token: str = "") -> Any:
        """The result of a call on some engine; None if unknown, as the process died or the store was unreachable."""
        while True:
            hosts = [host for host in self.hosts if host.engine is not None and host.process.alive]
            if hosts:
                break
            await self.loop.pause(0.05)
        host = self._rng.choice(hosts)
        engine = host.engine
        assert engine is not None
        answer: asyncio.Future[Any] = self.loop.create_future()

        async def ask() -> None:
            self.oracle.called[token].append(host.clock.micros())
            try:
                value = await call(engine)
            except (StoreUnavailable, EngineClosed):
                value = None
                self.oracle.gave_up.add(token)
            except BaseException as error:
                value = error
            if not answer.done():
                answer.set_result(value)

        self.loop.spawn(host.process, ask())
        try:
            async with asyncio.timeout(LOST):
                return await answer
        except TimeoutError:
            return None

    def _done(self, act: Act) -> Coroutine[Any, Any, None]:
        match act.what:
            case "signal":
                return self._signal(act)
            case "cancel":
                return self._cancel(act)
            case "emit":
                return self._emit(act)
            case "withdraw":
                return self._withdraw(act)
            case "call":
                return self._act(act)

    async def _start(self, script: Script) -> None:
        options = StartOptions(key=script.key, delay=script.delay * MILLI if script.delay else None)
        while True:
            run = await self._call(lambda engine: engine.start(script.workflow, options, number=script.number))
            if isinstance(run, BaseException):
                self.oracle.problems.append(f"start of {script.number}: {run!r}")
            elif run is not None and (row := self.oracle.rows.get(run.id)) is None:
                self.oracle.problems.append(f"run {run.id} is said to be started, and is not there")
            elif run is not None and row.key != script.key:
                self.oracle.problems.append(f"run {run.id} is said to be that of {script.key}")
            if run is not None or script.key is None:  # without a key a repetition might start a second run
                return
            self.oracle.figures["user: started again, as it was not known"] += 1

    async def _signal(self, act: Act) -> None:
        way, _, whom = act.to.partition(" ")
        address: dict[str, Any] = {}
        if way == "run":
            if (run_id := self.oracle.runs_of(int(whom))) is None:
                return
            address["run_id"] = run_id
        elif way != "all":
            address["key"] = whom
        if way == "flow":
            address["workflow"] = self.oracle.scripts[int(whom[1:])].workflow
        payload = {"token": [act.token] if act.bad else act.token}
        ttl = None if act.ttl is None else act.ttl * MILLI
        signal_id = act.token if act.known else None
        while True:
            told = await self._call(
                lambda engine: engine.signal(act.name, payload, signal_id=signal_id, ttl=ttl, **address), act.token
            )
            if isinstance(told, RunNotFound | RunEnded):
                self.oracle.figures[f"receipt: {type(told).__name__}"] += 1
                return
            if isinstance(told, BaseException):
                self.oracle.problems.append(f"signal {act}: {told!r}")
                return
            if told is not None:
                self.oracle.told_of_signal(act.token, told.state, told.delivered, bad=act.bad)
                return
            if not act.known:
                self.oracle.figures["user: not known whether it was sent"] += 1
                return
            self.oracle.figures["user: sent again, as it was not known"] += 1

    async def _cancel(self, act: Act) -> None:
        run_id = self.oracle.runs_of(int(act.to.partition(" ")[2]))
        if run_id is None:
            return
        self.oracle.cancelled.add(run_id)
        told = await self._call(lambda engine: engine.cancel(run_id))
        if isinstance(told, BaseException):
            self.oracle.problems.append(f"cancel of {run_id}: {told!r}")
        if told is not None:
            status = self.oracle.rows[run_id].status
            if status in ("running", "waiting") or (told and status != "cancelled"):
                self.oracle.problems.append(f"cancel of run {run_id} gave {told}, and it is {status}")

    async def _act(self, act: Act) -> None:
        run_id = self.oracle.runs_of(int(act.to.partition(" ")[2]))
        if run_id is None:
            return
        for attempt in range(TRIES):
            token = f"{attempt}.{act.token}"
            requested = {} if (request := request_of(token)) is None else {"request": request}
            told = await self._call(
                lambda engine, token=token, more=requested: engine.act(ACT, run_id, token=token, **more), token
            )
            match told:
                case None:
                    self.oracle.figures["user: not known what came of a call"] += 1
                case WorkflowRun():
                    self.oracle.told_of_call(token, "served")
                case ActionNotOpen():
                    self.oracle.told_of_call(token, "refused")
                    await self.loop.pause(AGAIN)
                    continue
                case RuntimeError() | ActionFailed():
                    self.oracle.told_of_call(token, "failed")
                case _:
                    self.oracle.problems.append(f"call {act}: {told!r}")
            return

    async def _emit(self, act: Act) -> None:
        emission = act.emits
        assert emission is not None
        at = None if emission.delay is None else to_datetime(self.now()) + emission.delay * MILLI
        entity = emission.entity(act.token)
        name, namespace, event_id = emission.name, emission.namespace, emission.event_id
        while True:
            event = await self._call(
                lambda engine: engine.emit(
                    name, entity, at=at, namespace=namespace, event_id=event_id, replace=emission.replace
                )
            )
            if isinstance(event, IdTaken) and event_id in self.oracle.events.records:
                self.oracle.figures["user: an id that means another event"] += 1
                return
            if isinstance(event, BaseException):
                self.oracle.problems.append(f"{emission}: {event!r}")
                return
            if event is not None:
                self.oracle.wrong(self.oracle.events.told_of_emit(act.token, event))
                return
            if emission.event_id is None:
                self.oracle.figures["user: not known whether it was emitted"] += 1
                return
            self.oracle.figures["user: emitted again, as it was not known"] += 1

    async def _withdraw(self, act: Act) -> None:
        events, rows = self.oracle.events, self.oracle.rows
        there, before = act.name in events.records, events.withdrawn[act.name]
        if act.bad:
            events.cancelled.add(act.name)
        live = [row.id for row in rows.values() if row.event_id == act.name]
        told = await self._call(lambda engine: engine.cancel_event(act.name, runs=act.bad))
        if isinstance(told, EventNotFound):
            if there:
                self.oracle.problems.append(f"{act.name} is there, and was not found")
        elif isinstance(told, BaseException):
            self.oracle.problems.append(f"cancel of {act.name}: {told!r}")
        elif told is not None:
            self.oracle.figures[f"cancel of an event: {told}"] += 1
            if told and events.withdrawn[act.name] == before:
                self.oracle.problems.append(f"{act.name} is said to be cancelled, and is {events.records[act.name]}")
            if act.bad and (left := [id_ for id_ in live if rows[id_].status in ("running", "waiting")]):
                self.oracle.problems.append(f"{act.name} was cancelled with its runs, and {left} are left")


def _less(whole: Program, case: Case) -> Program:
    scripts = tuple(
        script._replace(at=script.at if script.number not in case.runs else None) for script in whole.scripts
    )
    acts = tuple(act for act in whole.acts if not _of(act.to, case.runs))
    if not case.events:
        acts = tuple(act for act in acts if act.what not in ("emit", "withdraw"))
        scripts = tuple(script._replace(ops=tuple(op._replace(emits=()) for op in script.ops)) for script in scripts)
    return whole._replace(scripts=scripts, acts=acts, engines=min(whole.engines, case.engines))


def _of(address: str, runs: frozenset[int]) -> bool:
    digits = "".join(filter(str.isdigit, address))
    return bool(digits) and int(digits) in runs


@contextmanager
def _narrow(rng: Random) -> Any:
    """Let engines keep few timers in memory, so that the limit of what they hold is often met."""
    before = Timers.__init__.__defaults__
    Timers.__init__.__defaults__ = (rng.choice((SECOND, 3 * SECOND, 600 * SECOND)), rng.choice((2, 5, 100_000)))
    try:
        yield
    finally:
        Timers.__init__.__defaults__ = before


@contextmanager
def _logged(problems: list[str]) -> Any:
    """Report what the engine logs as a bug."""

    def listen(logger: object, method: str, event: Any) -> Any:
        if "bug" in event["event"] or "contract" in event["event"]:
            problems.append(f"logged: {event}")
        raise structlog.DropEvent

    before = structlog.get_config() if structlog.is_configured() else None
    structlog.configure(
        processors=[listen], wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR), cache_logger_on_first_use=False
    )  # fmt: skip
    try:
        yield
    finally:
        structlog.reset_defaults()
        if before is not None:
            structlog.configure(**before)


def simulate(case: Case, lines: Callable[[str], None] | None = None) -> Verdict:
    """Simulate a case."""
    return World(case, lines).run()
