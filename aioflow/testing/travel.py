"""How virtual time moves: to the next instant at which something is due, once nothing more can happen before it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from aioflow.clock import LAST_INSTANT, SECOND, Micros
from aioflow.errors import EngineClosed, StoreError, TimeStandsStill, UsageError
from aioflow.model import Run, WorkflowStatus, arms_of
from aioflow.parts import Parts
from aioflow.telemetry import trouble
from aioflow.testing.virtual import REAL, Activity, Counted, VirtualClock
from aioflow.worker import Worker

_LAST_ID = 1 << 62
#: How long to wait for activity before looking again, in case the activity ended without a ``tell``.
_LOOK: Micros = SECOND // 50
#: Consecutive quiet turns of the event loop after which nothing goes on: each task that was ready has had its turn.
_TURNS = 5
#: Wake-ups of one run without any time passing after which it is taken to do so for ever.
_ENDLESS = 10_000


class Travel:
    """Moves the time of an open engine.

    Args:
        clock: the engine's.
        activity: told of all that goes on.
        store: the engine's.
        parts, worker: the engine's.
        patience: the real time after which a wait that no timer can end fails.

    The mutable state: a lock for moving time, and whether ``advance`` moves it; how often each run woke at the present
    instant, and the one that woke too often; the registry's generation when blocked runs were last looked at; how many
    changes were committed; and what patience depends on (``_stood``), and since when it has not changed.
    """

    def __init__(
        self,
        clock: VirtualClock,
        activity: Activity,
        store: Counted,
        parts: Parts,
        worker: Worker,
        *,
        patience: Micros,
    ) -> None:
        self._clock = clock
        self._activity = activity
        self._store = store
        self._parts = parts
        self._worker = worker
        self._patience = patience
        self._moving = asyncio.Lock()
        self._advancing = False
        self._wakes: Counter[int] = Counter()
        self._endless: int | None = None
        self._generation = -1
        self._commits = 0
        self._stood: tuple[object, ...] | None = None
        self._since: Micros = 0

    def committed(self) -> None:
        """A change was committed."""
        self._commits += 1

    def woke(self, run_id: int) -> None:
        """The run has woken at the present instant."""
        self._wakes[run_id] += 1
        if self._wakes[run_id] >= _ENDLESS:
            self._endless = run_id

    async def settle(self, call: str) -> None:
        """Wait until nothing more can happen without time passing. Raises EngineClosed for ``call``, UsageError."""
        async with self._moving:
            self._worker.notice()
            await self._settle(call)

    async def advance(self, target: Callable[[], Micros], call: str) -> None:
        """Move to an instant, stopping wherever something is due. Raises what ``settle`` or ``target`` raises."""
        if self._advancing:
            raise UsageError(f"{call} is called while time is advancing already: await one after the other.")
        self._advancing = True
        try:
            async with self._moving:
                to = target()  # only now, as time may have moved while this waited for the lock
                self._worker.notice()
                while (at := await self._outlook(call)) is not None and at <= to:
                    self._move(at)
                self._move(to)
                await self._settle(call)
        finally:
            self._advancing = False

    async def drive(self) -> None:
        """Let time jump whenever a run is waited for and nothing else can happen; until cancelled."""
        while True:
            try:
                await self._jump()
            except EngineClosed:  # time no longer moves: steps that wait for a run would delay the shutdown
                for waiter in list(self._clock.waiters):
                    if waiter.run_id is not None:
                        self._worker.halt(waiter.run_id)
                await self._activity.wait(_LOOK)
            except UsageError as error:
                self._fail(error)
                await self._activity.wait(_LOOK)
            except Exception as error:  # noqa: BLE001 - no error may end this loop
                if not isinstance(error, StoreError):
                    trouble("time cannot be moved, will try again", error)
                await self._activity.wait(_LOOK)

    async def _jump(self) -> None:
        if not self._clock.waiters:
            await self._activity.wait(None)
            return
        async with self._moving:
            at = await self._outlook("engine.wait()")
            if not self._clock.waiters:
                return
            # If this engine does not work, another process executes the runs, on its own time.
            if at is not None and self._worker.working:
                self._move(at)
                return
        if at is None and not self._outsiders:
            await self._activity.wait(None)
        elif not await self._activity.wait(self._left()):
            if at is None:
                self._fail(TimeStandsStill(await self._why()))
            else:
                self._move(at)

    def _left(self) -> Micros:
        """What is left of the patience. It starts anew with a commit, a move of time or a change of the waiters.

        Reads of the store, which the engine does each second, do not count.
        """
        stands = (self._commits, self._clock.micros(), *self._clock.waiters)
        if stands != self._stood:
            self._stood, self._since = stands, REAL.monotonic()
        return max(self._since + self._patience - REAL.monotonic(), 0)

    @property
    def _outsiders(self) -> bool:
        """Whether a waiter is not a step."""
        return any(waiter.run_id is None for waiter in self._clock.waiters)

    def _fail(self, error: UsageError) -> None:
        """Raise the error to the waiters that are not steps; a step's run is waited for by one of them."""
        for waiter in list(self._clock.waiters):
            if waiter.run_id is None:
                waiter.end(error)

    def _move(self, to: Micros) -> None:
        self._wakes.clear()
        self._endless = None
        self._clock.move(to)
        self._worker.notice()  # what other processes have made due is not in this engine's timers

    async def _outlook(self, call: str) -> Micros | None:
        """Wait until nothing more can happen now; return the next instant at which something is due, None if never."""
        while True:
            await self._settle(call)
            seen = self._activity.count
            now = self._clock.micros()
            instants = [waiter.until for waiter in self._clock.waiters if waiter.until is not None]
            if self._worker.working:
                until = (LAST_INSTANT, _LAST_ID)
                for of in ("run", "plan"):
                    instants += [each.at for each in await self._store.bare.due((now, _LAST_ID), until, 1, now, of)]
            await self._still(call)
            if self._activity.count == seen:
                return min(instants, default=None)

    async def _settle(self, call: str) -> None:
        await self._still(call)
        while self._clock.expire():
            await self._still(call)

    async def _still(self, call: str) -> None:
        """Wait until nothing goes on."""
        if self._generation != self._parts.registry.generation:  # the code of blocked runs may have been registered
            self._generation = self._parts.registry.generation
            self._worker.notice()
        turns, seen = 0, self._activity.count
        while turns < _TURNS:
            if self._worker.draining:
                raise EngineClosed(call)
            if self._endless is not None:
                raise UsageError(
                    f"Run {self._endless} has woken {_ENDLESS} times without any time passing, and so would for ever. "
                    "Give its sleep, or its RetryLater, a length."
                )
            if not self._quiet():
                turns = 0
                await self._activity.wait(_LOOK)
                continue
            turns = turns + 1 if self._activity.count == seen else 0
            seen = self._activity.count
            await REAL.sleep(0)

    def _quiet(self) -> bool:
        if (
            self._store.under_way
            or not self._parts.committer.idle
            or not self._parts.delivery.idle
            or not self._parts.planner.idle
            or not self._clock.parked
        ):
            return False
        held = self._worker.held
        if not held:
            return True
        waiting = {waiter.run_id for waiter in self._clock.waiters}
        return len(held) <= len(waiting) and all(run_id in waiting for run_id in held)

    async def _why(self) -> list[str]:
        rows = await self._store.bare.load(self._parts.waiters.run_ids, self._clock.micros())
        clauses = [self._clause(row) for row in sorted(rows)]
        if not self._worker.working:
            clauses.append("another process works this store, in its own time; this machine is a client")
        return clauses

    def _clause(self, run: Run) -> str:
        which = f"run {run.id} of workflow {run.workflow!r}"
        if run.id in self._worker.held:
            return f"{which} is in step {run.step!r}, which waits for a run itself"
        if run.status == WorkflowStatus.RUNNING:
            return f"{which} is running, at step {run.step!r}, but not here"
        if run.waiting_for == "blocked":
            return f"{which} is blocked: {run.error}"
        name = next((arm.name for arm in arms_of(run) if arm.kind == run.waiting_for), None)
        return f"{which} waits for {run.waiting_for}{f' {name!r}' if name else ''}, at step {run.step!r}"
