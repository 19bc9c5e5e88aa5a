"""Fire what is due: wakes waiting runs when their deadline has come, in batches, never early.

The mutable state of ``Scheduler``: the timer heap, the runs whose wake-up is being committed, whether it
lacks room to wake more, and whether it works at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial

from aioflow import telemetry
from aioflow.clock import SECOND, Clock, Micros
from aioflow.committer import Committer
from aioflow.delivery import Delivery
from aioflow.interventions import wake
from aioflow.model import Deadline, Run, WorkflowStatus
from aioflow.slots import Slots
from aioflow.store import Store
from aioflow.timers import START, Timers

#: Sleep no longer than this: a step of the machine's clock is noticed that soon.
_LONGEST_SLEEP: Micros = 2 * SECOND
_BATCH = 500
_LAST_ID = 1 << 62


class Scheduler:
    """Wakes runs.

    Args:
        store, clock, committer: what it works with.
        slots: who runs what is woken.
        delivery: told of runs that a signal has reached before their deadline did.
        commit_ids: makes commit ids.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        committer: Committer,
        slots: Slots,
        commit_ids: Iterator[int],
        timers: Timers,
        *,
        delivery: Delivery,
    ) -> None:
        self._store = store
        self._clock = clock
        self._committer = committer
        self._slots = slots
        self._delivery = delivery
        self._commit_ids = commit_ids
        self._timers = timers
        self._firing: set[int] = set()
        self._again = asyncio.Event()
        self._starved = False
        self.working = False

    def arm(self, run: Run) -> None:
        """A run was committed that waits for an instant."""
        if run.wake_at is not None and self._timers.push(Deadline(run.wake_at, run.id, run.seq)):
            self._again.set()

    def disarm(self, run: Run) -> None:
        """A run that waited for an instant does so no more."""
        if run.wake_at is not None:
            self._timers.drop(Deadline(run.wake_at, run.id, run.seq))

    def poke(self) -> None:
        """Work has begun: look."""
        self._again.set()

    def made_room(self) -> None:
        """There is room for a run again."""
        if self._starved:
            self._again.set()

    async def run(self) -> None:
        """Fire what is due, until cancelled."""
        while True:
            self._again.clear()
            try:
                pause = await self._turn()
            except Exception as error:  # noqa: BLE001 - nothing may end the timers
                telemetry.trouble("timers cannot be fired, will try again", error)
                await self._clock.sleep(SECOND // 2)
                continue
            if pause > 0:
                await self._clock.wait(self._again, pause)

    async def _turn(self) -> Micros:
        if not self.working:
            return _LONGEST_SLEEP
        now = self._clock.micros()
        if self._timers.needs_refill(now):
            await self._refill(now)
        room = min(self._slots.room, _BATCH)
        self._starved = room <= 0
        if self._starved:
            return _LONGEST_SLEEP  # ended as soon as there is room
        due = self._timers.pop(now, room)
        if due:
            await self._fire(due)
            return 0
        return min(self._timers.next_at() - self._clock.micros(), _LONGEST_SLEEP)

    async def _refill(self, now: Micros) -> None:
        old, new = self._timers.raise_edge(now)
        try:
            self._timers.refill(await self._store.due(old, new, self._timers.limit, now))
        except BaseException:
            self._timers.restore_edge(old)
            raise

    async def scan(self, until: Micros) -> None:
        """Take in what the store says is due by ``until``, whoever committed it."""
        room = self._slots.room
        if not self.working or room <= 0:
            return
        found = await self._store.due(START, (until, _LAST_ID), max(room, _BATCH), self._clock.micros())
        new = [deadline for deadline in found if deadline.run_id not in self._firing]
        for deadline in new:
            self._timers.push(deadline)
        if new:
            self._again.set()

    async def fire_all(self) -> int:
        """Wake every run that is due now, whoever is to run it. How many that were."""
        fired = 0
        after = START
        until = (self._clock.micros(), _LAST_ID)
        while True:
            due = await self._store.due(after, until, _BATCH, self._clock.micros())
            fired += await self._fire(due)
            if len(due) < _BATCH:
                return fired
            after = due[-1][:2]

    async def _fire(self, due: list[Deadline]) -> int:
        """Wake these if they still wait for it; what could not be tried is put back."""
        todo = {deadline.run_id: deadline for deadline in due if deadline.run_id not in self._firing}
        self._firing.update(todo)
        fired = 0
        try:
            now = self._clock.micros()
            runs = await self._store.load(list(todo), now)
            waking = []
            for run in runs:
                if run.status != WorkflowStatus.WAITING or run.wake_at is None:
                    continue
                if run.wake_at > now:  # the clock went back, or it waits for something else: never early
                    self.arm(run)
                    continue
                owner = self._slots.promise()
                move = wake(run, owner=owner, now=now, commit_id=next(self._commit_ids))
                waking.append(self._committer.submit(move, settled=partial(self._slots.redeem, owner)))
            problem: Exception | None = None
            for future in waking:
                try:
                    result = await future
                    fired += result.outcome == "applied"
                    if result.outcome == "stale" and result.mail and result.run is not None:
                        # The signal may expire, or go to somebody else, before it gets there: then the time is over.
                        self._delivery.notify_or(result.run.id, partial(self.arm, result.run))
                except Exception as error:  # noqa: BLE001 - raised below, when all others are through
                    problem = error
            if problem is not None:
                raise problem
        except BaseException:  # also when a step has cancelled this task
            for deadline in todo.values():
                self._timers.push(deadline)
            raise
        finally:
            self._firing.difference_update(todo)
        return fired
