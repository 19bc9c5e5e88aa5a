"""The faults of a seed, and the way of requests to the one store, on which they happen."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextvars import copy_context
from random import Random
from typing import Any, NamedTuple

from aioflow.changes import Amend, Change, Mark, Move, Result, Start
from aioflow.clock import SECOND
from aioflow.errors import StoreUnavailable
from aioflow.store import PlanQuery
from aioflow.testing.simloop import Process, SimLoop
from tests.simulation.oracle import Oracle
from tests.simulation.owners import Owners

LEASE = 2.0
#: After so many seconds no fault happens any more.
CALM = 12.0

#: The faults that hit single requests, and the highest rate of each.
ON_REQUESTS = {
    "error before": 0.05,
    "error after": 0.05,
    "applied after the error": 0.04,
    "slow": 0.05,
    "silent": 0.01,
    "hint lost": 0.9,
}
#: The faults that hit a process or its clock, and how often each happens at most.
ON_PROCESSES = {"kill": 2, "pause": 2, "partition": 2, "restart": 1, "clock step": 2, "skew": 1}
#: What faults may prefer to hit, and how many times as often.
FOCUS = ("", "Start", "Post", "Move", "Emit", "Occur", "goto", "signal", "claim", "renew", "load")
PREFERENCE = 6
#: The share of seeds in which an engine has two batches under way at once, as it may with PostgreSQL.
TWO_LANES = 0.4
#: The share of seeds without faults.
QUIET = 0.3
KINDS = (*ON_REQUESTS, *ON_PROCESSES)


class ProcessFault(NamedTuple):
    """A fault that hits a process. ``at``, ``lasts``: seconds; ``commits``: wait for its first commit after ``at``."""

    at: float
    kind: str
    engine: int
    lasts: float
    commits: bool


class Plan(NamedTuple):
    """The faults of a seed.

    ``rates``: kind -> the share of requests that it hits; ``distance``: how many times as long requests take;
    ``focus``: a verb or kind of change that is hit several times as often; ``lanes``: how many batches of an engine may
    be under way at once.
    """

    rates: dict[str, float]
    process_faults: tuple[ProcessFault, ...]
    distance: int
    focus: str
    lanes: int

    @property
    def quiet(self) -> bool:
        """Whether there are no faults, so that everything must happen promptly."""
        return not self.rates and not self.process_faults


def plan(seed: int, engines: int, without: frozenset[str]) -> Plan:
    """The faults of a seed. Each kind has its own random source, so that leaving one out does not change the others."""
    rates, process_faults = {}, []
    distance = Random(f"{seed} distance").choice((1, 1, 1, 10))
    lanes = 2 if Random(f"{seed} lanes").random() < TWO_LANES else 1
    if Random(f"{seed} quiet").random() < QUIET:
        return Plan({}, (), distance, "", lanes)
    for kind, most in ON_REQUESTS.items():
        rng = Random(f"{seed} {kind}")
        if rng.random() < 0.5 and kind not in without:
            rates[kind] = rng.uniform(0, most)
    for kind, times in ON_PROCESSES.items():
        rng = Random(f"{seed} {kind}")
        for _ in range(rng.randint(0, times)):
            # Half of them last about a lease, so that another worker has just taken over, or is about to.
            lasts = rng.uniform(0.6 * LEASE, 1.6 * LEASE) if rng.random() < 0.5 else rng.uniform(0.1, 3.2 * LEASE)
            commits = rng.random() < 0.6 and kind in ("kill", "pause", "partition", "restart")
            fault = ProcessFault(rng.uniform(0.05, CALM - 2), kind, rng.randrange(3), lasts, commits)
            if engines > 3 and Random(f"{seed} {kind} {fault.at}").random() < 0.25:
                fault = fault._replace(engine=3)
            if kind not in without and fault.engine < engines:
                process_faults.append(fault)
    return Plan(rates, tuple(sorted(process_faults)), distance, Random(f"{seed} focus").choice(FOCUS), lanes)


class Request:
    """A request on its way. ``asked``: when it was sent; ``left``: seconds left of the sender's lease on arrival."""

    __slots__ = ("arguments", "asked", "client", "fault", "keywords", "left", "reply", "timer", "verb")

    def __init__(self, client: Wire, verb: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self.client = client
        self.verb = verb
        self.arguments = arguments
        self.keywords = keywords
        self.fault = ""
        self.asked = 0.0
        self.left = 0.0
        self.reply: asyncio.Future[Any]
        self.timer: asyncio.TimerHandle | None = None


#: Verbs that may write.
WRITES = frozenset({"apply", "claim", "renew", "release", "reserve", "expire"})


class Server:
    """The store as a server: it holds the data, and answers over a wire that may lose requests and replies.

    The mutable state: the requests that are on their way to it, and whether faults still happen.
    """

    exclusive = False

    def __init__(
        self,
        loop: SimLoop,
        store: Any,
        oracle: Oracle,
        plan: Plan,
        seed: int,
        trace: Callable[[str, str], None],
    ) -> None:
        self.loop = loop
        self.store = store
        self.oracle = oracle
        self.owners = Owners(
            loop, oracle.figures, oracle.rows.__getitem__, oracle.problems.append, leases=not self.exclusive
        )
        self.plan = plan
        self.trace = trace
        self.calm = False
        self._rng = Random(f"{seed} requests")
        self._under_way: dict[Request, None] = {}
        self._asked: dict[Wire, list[Request]] = {}
        #: What hits a process shortly after it sends its next batch.
        self.armed: dict[Process, Callable[[], None]] = {}
        #: Processes that are partitioned: their requests or replies are lost.
        self.partitioned: set[Process] = set()
        self._writes: Counter[Wire] = Counter()
        self._context = copy_context()  # outside of any process

    def _fault(self, client: Wire, verb: str, arguments: tuple[Any, ...]) -> str:
        if self.calm:
            return ""
        if client.process in self.partitioned:
            return self._rng.choice(("error before", "error after", "applied after the error", "silent"))
        if self.plan.rates:
            chance = self._rng.random()
            if self.plan.focus in _names(verb, arguments):
                chance /= PREFERENCE
            for kind, rate in self.plan.rates.items():
                if kind == "hint lost":
                    continue
                chance -= rate
                if chance < 0:
                    return kind
        return ""

    async def ask(self, client: Wire, verb: str, *arguments: Any, **keywords: Any) -> Any:
        """Send a request and wait for the reply."""
        request = Request(client, verb, arguments, keywords)
        request.asked = self.loop.time()
        request.fault = self._fault(client, verb, arguments)
        if request.fault in ("error after", "applied after the error") and verb not in WRITES:
            request.fault = "error before"
        request.reply = self.loop.create_future()
        if request.fault:
            self.oracle.figures[f"fault: {request.fault}"] += 1
            self.trace(client.title, f"{verb} meets {request.fault}")
        if verb == "release":
            self.owners.gives_back(client)
        if verb == "apply":
            self.oracle.offered(client, arguments[0])
            self._check_lanes(request)
            if (strike := self.armed.pop(client.process, None)) is not None:
                self.loop.call_later(self._rng.uniform(0, 0.004), strike, context=self._context)
        self._under_way[request] = None
        if request.fault == "applied after the error":
            self._later(request, self._rng.uniform(0.001, 1.5 * LEASE))
            self.loop.call_later(self._latency(), self._fail, request, context=self._context)
        else:
            self._later(request, self._latency() * (50 if request.fault == "slow" else 1))
        return await request.reply

    def _check_lanes(self, request: Request) -> None:
        """An engine has two changes of one run under way only if it was told that the first reply is lost."""
        asked = self._asked.setdefault(request.client, [])
        asked[:] = [other for other in asked if not other.reply.done()]
        for other in asked:
            both = _runs_of(other) & _runs_of(request)
            if both:
                self.oracle.problems.append(
                    f"{request.client.title} has two changes of {sorted(both)} under way at once"
                )
        self.oracle.figures["two batches under way"] += bool(asked)
        asked.append(request)

    def _latency(self) -> float:
        return self.loop.rng.uniform(0.0002, 0.004) * self.plan.distance

    def _later(self, request: Request, seconds: float) -> None:
        request.timer = self.loop.call_later(seconds, self._arrive, request, context=self._context)

    def _arrive(self, request: Request) -> None:
        """A request has arrived: carry it out, unless a fault prevents it."""
        del self._under_way[request]
        if not request.client.process.alive:
            if self._rng.random() < 0.5:
                self.oracle.figures["fault: request lost with its sender"] += 1
                return
            self.oracle.figures["fault: request applied after its sender's death"] += request.verb in WRITES
        if request.fault == "error before":
            self._reply(request, self._fail, self._latency())
            return
        try:
            value = self._do(request)
        except StoreUnavailable:  # closed by its last user
            self._reply(request, self._fail, self._latency())
            return
        if request.fault == "applied after the error":
            return
        if request.fault == "error after":
            self._reply(request, self._fail, self._latency())
        elif request.fault == "silent":
            self._reply(request, self._fail, self._rng.uniform(1, 3 * LEASE))
        else:
            self._reply(request, self._answer, self._latency() * (50 if request.fault == "slow" else 1), value)

    def _reply(self, request: Request, how: Callable[..., None], seconds: float, *value: Any) -> None:
        self.loop.call_later(seconds, how, request, *value, context=self._context)

    def _answer(self, request: Request, value: Any) -> None:
        if request.reply.done() or not request.client.process.alive:
            return
        request.reply.set_result(value)
        client, owners = request.client, self.owners
        match request.verb:
            case "apply":
                self.oracle.answered(client, request.arguments[0], value)
                owners.moved(client, {r.run.id: r.run.seq for r in value if r.outcome == "applied" and r.run})
            case "renew":
                owners.heard(client, request.asked, request.left if value else None)
            case "claim" if value.working:
                owners.heard(client, request.asked, request.left)
                owners.gone(client, set(value.gone), request.asked)

    def _fail(self, request: Request) -> None:
        if not request.reply.done():
            request.reply.set_exception(StoreUnavailable("sim://", "the connection was lost"))

    def _do(self, request: Request) -> Any:
        """Carry out a request, in no time, and report it to the oracle."""
        verb, arguments, keywords, oracle = request.verb, request.arguments, request.keywords, self.oracle
        client, owners = request.client, self.owners
        value = now_or_never(getattr(self.store_of(client), verb)(*arguments, **keywords))
        match verb:
            case "apply":
                self._applied(client, *arguments, value)
            case "claim":
                now, lease, held = keywords["now"], keywords["lease"], keywords["held"]
                oracle.claimed(client, arguments[0], value, now, lease=lease, held=held)
                oracle.wrong(owners.claimed(client, arguments[0]))
                request.left = min(oracle.leases.get(arguments[0], now) - now, lease) / SECOND
                self._writes[client] += bool(value.runs)
                if value.runs or value.gone:
                    self.trace(client.title, f"claim {[run.id for run in value.runs]} {sorted(value.gone)}")
            case "renew":
                worker, lease, now = arguments
                left = oracle.leases.get(worker, now) - now
                oracle.renewed(worker, lease, now, well=value)
                oracle.wrong(owners.renewed(client, left / SECOND, lease / SECOND))
                request.left = lease / SECOND
                self.trace(client.title, f"renew {value}")
            case "release":
                oracle.released(arguments[0])
                self._writes[client] += 1
                self.trace(client.title, "release")
            case "expire":
                oracle.wrong(oracle.mailbox.expire(value, arguments[1]))
            case "mail":
                run_ids, _, now = arguments
                for mail in value if run_ids is not None else ():  # a query for all only finds whose mail to read
                    oracle.looked[client, mail.run.id] = now
                self.trace(client.title, verb)
            case "reserve":
                self.trace(client.title, f"reserve {value}")
            case "select" if isinstance(arguments[0], PlanQuery):
                oracle.wrong(oracle.events.read(client, arguments[0].ids, value, arguments[1]))
                self.trace(client.title, f"plans {[(plan.id, plan.workflow) for plan, _ in value]}")
            case _:
                self.trace(client.title, verb)
        return value

    def _applied(self, client: Wire, changes: Sequence[Change], now: int, results: Sequence[Result]) -> None:
        self._writes[client] += any(result.outcome == "applied" for result in results)
        self.oracle.applied(client, changes, results, now)
        for change, result in _in_all(changes, results):
            if isinstance(change, Start | Move) and result.outcome == "applied":
                self.oracle.wrong(self.owners.committed(client, change.run, change.transition.kind))
        told = [
            (type(c).__name__, r.run and (r.run.id, r.run.seq), r.outcome)
            for c, r in zip(changes, results, strict=True)
        ]
        self.trace(client.title, f"apply {told}")

    # ---- called by Wire

    def store_of(self, client: Wire) -> Any:
        """The store that carries out a process's requests."""
        return self.store

    async def open(self, client: Wire, now: int) -> str:
        """Open the store for a process."""
        return str(await self.store.open(now))

    async def close(self, client: Wire) -> None:
        """Close the store for a process; the data stays."""
        await self.store.close()

    async def hear(self, client: Wire, now: int) -> int:
        """How many writes of other processes there were."""
        await self.store.hint(now)
        return self._writes.total() - self._writes[client]

    def prepare(self) -> None:
        """Called before everything else."""

    def dispose(self) -> None:
        """Called after everything else."""

    def killed(self, process: Process) -> None:
        """A process was killed; what it had sent is still on its way."""

    # ---- what happens to the senders

    def hold(self, process: Process, seconds: float) -> None:
        """A process is paused: half of what it has sent is held back until it goes on, other writes get no reply."""
        for request in list(self._under_way):
            if request.client.process is process and request.timer is not None and self._rng.random() < 0.5:
                request.timer.cancel()
                self.oracle.figures["fault: request left after a pause"] += 1
                self._later(request, seconds + self._rng.uniform(0, 0.01))
            elif request.client.process is process and not request.fault and request.verb in WRITES:
                self.oracle.figures["fault: reply lost in a pause"] += 1
                request.fault = "error after"


def _names(verb: str, arguments: tuple[Any, ...]) -> set[str]:
    """The names by which FOCUS may refer to a request."""
    names = {verb}
    if verb == "apply":
        names |= {type(change).__name__ for change in arguments[0]}
        names |= {change.transition.kind for change in arguments[0] if isinstance(change, Move)}
    return names


def _in_all(changes: Sequence[Change], results: Sequence[Result]) -> Iterator[tuple[Change, Result]]:
    """The changes of a batch, and those that are part of a Move."""
    for change, result in zip(changes, results, strict=True):
        yield change, result
        if isinstance(change, Move):
            yield from zip(change.also, result.also, strict=False)


def _runs_of(request: Request) -> set[int]:
    """The runs that a batch starts, moves, marks or amends."""
    return {
        change.run.id if isinstance(change, Start | Move) else change.run_id
        for change in request.arguments[0]
        if isinstance(change, Start | Move | Mark | Amend)
    }


def now_or_never(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that must not suspend."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("the store waited for something")


class Wire:
    """The store as one process sees it.

    The mutable state: the last hint that it returned, and whether it is open.
    """

    name = "sim://"
    pushes_hints = False
    clock_offset = 0

    def __init__(self, server: Server, process: Process) -> None:
        self._server = server
        self.process = process
        self.exclusive = server.exclusive
        self.in_flight = 1 if server.exclusive else server.plan.lanes
        self.title = process.name
        self._hint = 0
        self._open = False

    def __getattr__(self, verb: str) -> Callable[..., Awaitable[Any]]:
        async def ask(*arguments: Any, **keywords: Any) -> Any:
            return await self._server.ask(self, verb, *arguments, **keywords)

        setattr(self, verb, ask)
        return ask

    async def open(self, now: int) -> str:
        """Open the store, which may be unreachable."""
        await self._server.ask(self, "hint", now)
        self._open = True
        return await self._server.open(self, now)

    async def close(self) -> None:
        """Close the store; the data stays."""
        if self._open:
            self._open = False
            await self._server.close(self)

    async def hint(self, now: int) -> int:
        """The store's hint, or the previous one where a fault loses the new one."""
        server = self._server
        lost = 1.0 if self.process in server.partitioned else server.plan.rates.get("hint lost", 0.0)
        hint = await server.hear(self, now)
        if hint != self._hint and not server.calm and lost and server._rng.random() < lost:
            server.oracle.figures["fault: hint lost"] += 1
            return self._hint
        self._hint = hint
        return hint


__all__ = ["CALM", "KINDS", "LEASE", "SECOND", "Plan", "ProcessFault", "Request", "Server", "Wire", "plan"]
