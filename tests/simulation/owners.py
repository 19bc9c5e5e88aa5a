"""Checks what engines do with runs: whether they may own any, how many they execute at once, and when they must stop.

The oracle knows from the store who owns which run. The engines learn of that later, and are checked here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextvars import copy_context
from typing import NamedTuple, Protocol

from aioflow.clock import Micros
from aioflow.model import SUSPECT_CRASHES, Run
from aioflow.testing.simloop import Process, SimLoop

#: Seconds within which a step that was stopped must have ended.
AT_ONCE = 0.05
#: Seconds after a pause within which an engine must have checked its lease.
AWAKE = 0.5
#: The kinds of transitions by which a waiting run is resumed.
RESUMED = ("wake", "timeout", "signal", "event", "action")


class Client(Protocol):
    """An engine, as the store knows it."""

    title: str
    process: Process


class Step(NamedTuple):
    """A step that executes, and since when."""

    run: Run
    began: float


class Owners:
    """The checks; each yields problems, or reports them later.

    Args:
        loop: has the true time.
        figures: how often each situation came up.
        stands: returns the row of a run as it is in the store.
        wrong: called with each problem that is found later.

    The mutable state: the slots of each engine (0: it is a client), the steps that it executes, its worker's number,
    which engines know that they work, until when each may believe that its lease runs, when each process went on after
    a pause, and since when each idle run has been idle.
    """

    def __init__(
        self,
        loop: SimLoop,
        figures: Counter[str],
        stands: Callable[[int], Run],
        wrong: Callable[[str], None],
        *,
        leases: bool,
    ) -> None:
        self._loop = loop
        self._figures = figures
        self._stands = stands
        self._wrong = wrong
        self._leases = leases
        self._context = copy_context()  # outside of any process
        self._slots: dict[Client, int] = {}
        self._steps: dict[Client, dict[tuple[int, int, int], Step]] = {}
        self._numbers: dict[int, Client] = {}
        self._working: set[Client] = set()
        self._until: dict[Client, float] = {}
        self._resumed: dict[Process, float] = {}
        self._gave_back: set[Client] = set()
        self._alone: dict[tuple[int, int, int], float] = {}
        #: Whether there are no faults and all have room, so that every run has an owner at once.
        self.at_once = False

    def joined(self, client: Client, slots: int) -> None:
        """Record a new engine that executes up to so many runs at once; 0: it is a client."""
        self._slots[client] = slots
        self._steps[client] = {}

    def resumed(self, process: Process) -> None:
        """Record that a paused process goes on. It must soon check whether its lease is over."""
        self._resumed[process] = self._loop.time()
        for client in self._until:
            if client.process is process:
                self._loop.call_later(2 * AWAKE, self._stops, client, context=self._context)

    # ---- requests and replies

    def claimed(self, client: Client, worker: int) -> Iterator[str]:
        """Check a claim that the store has carried out."""
        if not self._slots.get(client, 1):
            yield f"{client.title} is a client, and claims runs"
        if self._numbers.setdefault(worker, client) is not client:
            yield f"{client.title} has the number {worker}, as {self._numbers[worker].title} had"

    def renewed(self, client: Client, left: float, lease: float) -> Iterator[str]:
        """Check that a worker renews its lease while enough seconds of it are left."""
        if client in self._gave_back:  # the request was sent before the release, and arrived after it
            return
        if self.at_once and self._leases and left < lease / 2:
            yield f"{client.title} renewed its lease of {lease} s when {left} s were left, and nothing was wrong"

    def heard(self, client: Client, asked: float, lease: float | None) -> None:
        """Record that a worker's lease runs for so many seconds from when it asked; None: the lease is over."""
        self._working.add(client)
        if not self._leases:
            return
        if lease is None:
            self._until[client] = self._loop.time()
            self._stops(client)
            return
        until = self._until[client] = max(asked + lease, self._until.get(client, 0.0))
        self._loop.call_at(until, self._stops, client, context=self._context)

    def gone(self, client: Client, run_ids: set[int], asked: float) -> None:
        """A worker was told which of its runs have another owner, or have ended: it must stop their steps."""
        for step in self._steps[client].values():
            if step.run.id in run_ids and step.began < asked and self._stands(step.run.id).fence != step.run.fence:
                self._figures["a step whose run was gone"] += 1
                self._is_to_end(client, step, "its run was gone")

    def moved(self, client: Client, seqs: Mapping[int, int]) -> None:
        """An engine was told how far runs have come, by run id: it must stop steps that are behind that."""
        for step in self._steps[client].values():
            if seqs.get(step.run.id, 0) > step.run.seq:
                self._figures["a step whose run has gone on"] += 1
                self._is_to_end(client, step, "its run has gone on")

    def _stops(self, client: Client) -> None:
        """If the engine's lease is over, its steps must end."""
        if self._loop.time() < self._until[client]:
            return
        for step in self._steps[client].values():
            self._figures["a step whose lease was over"] += 1
            self._is_to_end(client, step, "its lease was over")

    def _is_to_end(self, client: Client, step: Step, why: str) -> None:
        self._loop.call_later(AT_ONCE, self._has_ended, client, step, self._loop.time(), why, context=self._context)

    def _has_ended(self, client: Client, step: Step, since: float, why: str) -> None:
        if self._steps[client].get(_place(step.run)) is step and not self._paused(client, since):
            self._wrong(f"{client.title}: step {step.run.step} of run {step.run.id} goes on, though {why}")

    def _paused(self, client: Client, since: float) -> bool:
        """Whether the engine could not act, because it was paused or killed."""
        process = client.process
        return not process.alive or process.held is not None or self._resumed.get(process, -1.0) >= since - AWAKE

    # ---- what engines do

    def committed(self, client: Client, run: Run, kind: str) -> Iterator[str]:
        """Check that a run that was started or resumed has an owner."""
        if self.at_once and client in self._working and kind in ("start", *RESUMED):
            if run.status == "running" and run.owner is None:
                yield f"run {run.id} has no owner after {kind} by {client.title}, which has room"

    def step_started(self, client: Client, run: Run) -> Iterator[str]:
        """Check a step that begins."""
        steps, now = self._steps[client], self._loop.time()
        for other in steps.values():
            if other.run.id == run.id:  # that step was stopped, and has not noticed yet
                self._is_to_end(client, other, "it has begun anew")
        steps[_place(run)] = Step(run, now)
        # Steps whose run has gone on meanwhile, or was cancelled, are being stopped, and do not count.
        runs = {id_ for id_, seq, fence in steps if (self._stands(id_).seq, self._stands(id_).fence) == (seq, fence)}
        slots = self._slots[client]
        self._figures["all slots were taken"] += len(runs) == slots
        if len(runs) > slots:
            yield f"{client.title} has {slots} slots, and runs {sorted(runs)}"
        until = self._until.get(client)
        if until is not None and until < now:
            yield f"{client.title}: a step of run {run.id} began {now - until} s after its lease was over"

    def step_ended(self, client: Client, run: Run) -> None:
        """Record that a step has ended."""
        self._steps[client].pop(_place(run), None)

    def left_alone(
        self, clients: Collection[Client], rows: Iterable[Run], instant: Micros, patience: float
    ) -> Iterator[str]:
        """Find runs that nobody has executed or woken for so long though a client has room. Called repeatedly."""
        now = self._loop.time()
        alive = self._working.intersection(clients)
        driven = {place for client in alive for place in self._steps[client]}
        idle = [
            row for row in rows
            if (row.status == "running" and row.crashes < SUSPECT_CRASHES)  # suspects execute one at a time
            or (row.status == "waiting" and row.wake_at is not None and row.wake_at <= instant)
        ]  # fmt: skip
        if all(len(self._steps[client]) >= self._slots[client] for client in alive):
            idle = []
        self._alone = {_place(row): self._alone.get(_place(row), now) for row in idle if _place(row) not in driven}
        for (run_id, seq, _), since in self._alone.items():
            if now - since > patience:
                yield f"run {run_id} at {seq} has been left alone for {now - since} s"

    def gives_back(self, client: Client) -> None:
        """Record that a worker gives its runs back."""
        self._gave_back.add(client)

    def closed(self, client: Client) -> Iterator[str]:
        """Check an engine that was closed."""
        if self._slots[client] and client not in self._gave_back:
            yield f"{client.title} was closed, and has not given its runs back"


def _place(run: Run) -> tuple[int, int, int]:
    """Identifies an execution of a step."""
    return run.id, run.seq, run.fence
