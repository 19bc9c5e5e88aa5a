"""What an engine may do with runs: whether it may have any, how many at once, and when it has to stop.

The oracle knows who owns which run, as the store has it. This holds the engines against it, which hear of it later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextvars import copy_context
from typing import NamedTuple, Protocol

from aioflow.clock import Micros
from aioflow.model import SUSPECT_CRASHES, Run
from aioflow.testing.simloop import Process, SimLoop

#: Seconds within which a step has ended that was stopped.
AT_ONCE = 0.05
#: Seconds after a pause within which an engine has looked at its lease.
AWAKE = 0.5
#: Kinds of transitions by which a run that waits goes on.
RESUMED = ("wake", "timeout", "signal", "event", "action")


class Client(Protocol):
    """An engine, as it is known to the store."""

    title: str
    process: Process


class Step(NamedTuple):
    """A step that runs, and since when."""

    run: Run
    began: float


class Owners:
    """The checks; each gives what is wrong.

    Args:
        loop: tells the true time.
        figures: how often each situation came up.
        stands: the row of a run, as the store has it.
        wrong: told of what is found later.

    The mutable state: the slots of each engine (0: it is a client), what it runs now, the number of its worker, which of
    them have heard that they work, until when each may believe that its lease runs, when each went on after a pause, and
    since when which runs are left alone.
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
        self._context = copy_context()  # nobody's process
        self._slots: dict[Client, int] = {}
        self._steps: dict[Client, dict[tuple[int, int, int], Step]] = {}
        self._numbers: dict[int, Client] = {}
        self._working: set[Client] = set()
        self._until: dict[Client, float] = {}
        self._resumed: dict[Process, float] = {}
        self._gave_back: set[Client] = set()
        self._alone: dict[tuple[int, int, int], float] = {}
        #: Whether nothing goes wrong and all have room, so that every run has an owner at once.
        self.at_once = False

    def joined(self, client: Client, slots: int) -> None:
        """An engine was made, that runs so many at once; 0: none."""
        self._slots[client] = slots
        self._steps[client] = {}

    def resumed(self, process: Process) -> None:
        """A process that was paused goes on: soon it knows whether its lease was over meanwhile."""
        self._resumed[process] = self._loop.time()
        for client in self._until:
            if client.process is process:
                self._loop.call_later(2 * AWAKE, self._stops, client, context=self._context)

    # ---- what it asks of the store, and hears

    def claimed(self, client: Client, worker: int) -> Iterator[str]:
        """The store has carried out a claim."""
        if not self._slots.get(client, 1):
            yield f"{client.title} is a client, and claims runs"
        if self._numbers.setdefault(worker, client) is not client:
            yield f"{client.title} has the number {worker}, as {self._numbers[worker].title} had"

    def renewed(self, client: Client, left: float, lease: float) -> Iterator[str]:
        """A worker has asked for more, when so many seconds of its lease were left."""
        if client in self._gave_back:  # it was asked before, and came later
            return
        if self.at_once and self._leases and left < lease / 2:
            yield f"{client.title} renewed its lease of {lease} s when {left} s were left, and nothing was wrong"

    def heard(self, client: Client, asked: float, lease: float | None) -> None:
        """A worker hears that its lease of so many seconds runs from when it asked; None: that it is over."""
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
        """A worker hears which of its runs are somebody else's, or have ended."""
        for step in self._steps[client].values():
            if step.run.id in run_ids and step.began < asked and self._stands(step.run.id).fence != step.run.fence:
                self._figures["a step whose run was gone"] += 1
                self._is_to_end(client, step, "its run was gone")

    def moved(self, client: Client, seqs: Mapping[int, int]) -> None:
        """An engine hears how far these have come, by run id: what it is not told of, it cannot know."""
        for step in self._steps[client].values():
            if seqs.get(step.run.id, 0) > step.run.seq:
                self._figures["a step whose run has gone on"] += 1
                self._is_to_end(client, step, "its run has gone on")

    def _stops(self, client: Client) -> None:
        """Its lease may be over: if so, it has to have stopped."""
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
        """Whether it could not do anything, for it was paused or killed."""
        process = client.process
        return not process.alive or process.held is not None or self._resumed.get(process, -1.0) >= since - AWAKE

    # ---- what it does

    def committed(self, client: Client, run: Run, kind: str) -> Iterator[str]:
        """A run was started or goes on."""
        if self.at_once and client in self._working and kind in ("start", *RESUMED):
            if run.status == "running" and run.owner is None:
                yield f"run {run.id} has no owner after {kind} by {client.title}, which has room"

    def step_started(self, client: Client, run: Run) -> Iterator[str]:
        """A step begins."""
        steps, now = self._steps[client], self._loop.time()
        for other in steps.values():
            if other.run.id == run.id:  # it was stopped, and has not had its turn since
                self._is_to_end(client, other, "it has begun anew")
        steps[_place(run)] = Step(run, now)
        # Those whose run has gone on meanwhile, or was cancelled, are being stopped.
        runs = {id_ for id_, seq, fence in steps if (self._stands(id_).seq, self._stands(id_).fence) == (seq, fence)}
        slots = self._slots[client]
        self._figures["all slots were taken"] += len(runs) == slots
        if len(runs) > slots:
            yield f"{client.title} has {slots} slots, and runs {sorted(runs)}"
        until = self._until.get(client)
        if until is not None and until < now:
            yield f"{client.title}: a step of run {run.id} began {now - until} s after its lease was over"

    def step_ended(self, client: Client, run: Run) -> None:
        """A step has ended."""
        self._steps[client].pop(_place(run), None)

    def left_alone(
        self, clients: Collection[Client], rows: Iterable[Run], instant: Micros, patience: float
    ) -> Iterator[str]:
        """Runs that nobody has executed or woken for so many seconds, though one of these has room. Asked again and again."""
        now = self._loop.time()
        alive = self._working.intersection(clients)
        driven = {place for client in alive for place in self._steps[client]}
        idle = [
            row for row in rows
            if (row.status == "running" and row.crashes < SUSPECT_CRASHES)  # suspects wait for each other
            or (row.status == "waiting" and row.wake_at is not None and row.wake_at <= instant)
        ]  # fmt: skip
        if all(len(self._steps[client]) >= self._slots[client] for client in alive):
            idle = []
        self._alone = {_place(row): self._alone.get(_place(row), now) for row in idle if _place(row) not in driven}
        for (run_id, seq, _), since in self._alone.items():
            if now - since > patience:
                yield f"run {run_id} at {seq} has been left alone for {now - since} s"

    def gives_back(self, client: Client) -> None:
        """A worker gives its runs back."""
        self._gave_back.add(client)

    def closed(self, client: Client) -> Iterator[str]:
        """An engine was closed."""
        if self._slots[client] and client not in self._gave_back:
            yield f"{client.title} was closed, and has not given its runs back"


def _place(run: Run) -> tuple[int, int, int]:
    """Names a step that runs."""
    return run.id, run.seq, run.fence
