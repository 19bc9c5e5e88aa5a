"""Wakes waiting runs at their deadline, in batches, never early; and blocked ones once this code can take them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial

from aioflow.changes import Occur, Result
from aioflow.clock import SECOND, Clock, Micros
from aioflow.committer import Committer
from aioflow.delivery import Delivery
from aioflow.dueloop import DueLoop
from aioflow.interventions import unblock, wake
from aioflow.model import Deadline, Run, WorkflowStatus
from aioflow.reading import read_context
from aioflow.registry import Registry
from aioflow.slots import Slots
from aioflow.store import PlanQuery, RunQuery, Store
from aioflow.timers import Timers

#: How many blocked runs are read together, and how many such pages in one look of the worker.
_PAGE = 500
_PAGES = 10
#: How long a due run is left to workers that have its code, before this one wakes it and so blocks it for lack of code.
_PATIENCE: Micros = 10 * SECOND


class Scheduler(DueLoop):
    """Wakes runs.

    Args:
        store, clock, committer: what it works with.
        slots: the worker that runs what is woken.
        registry: the workflows that this process knows.
        delivery: told of due runs for which a signal came before their deadline.
        commit_ids: makes commit ids.

    The mutable state, beside that of its loop: how far ``unblock`` has read the blocked runs.
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
        registry: Registry,
        delivery: Delivery,
    ) -> None:
        super().__init__(store, clock, timers, "run", "timers")
        self._registry = registry
        self._unblocked_to: tuple[int, int] | None = None
        self._committer = committer
        self._slots = slots
        self._delivery = delivery
        self._commit_ids = commit_ids

    @property
    def _room(self) -> int:
        return self._slots.room

    def arm(self, run: Run) -> None:
        """A run was committed as waiting: take in its deadline, if it has one."""
        if run.wake_at is not None:
            self.push((Deadline(run.wake_at, run.id, run.seq),))

    def disarm(self, run: Run) -> None:
        """A run no longer waits: drop its deadline, if it had one."""
        if run.wake_at is not None:
            self._timers.drop(Deadline(run.wake_at, run.id, run.seq))

    async def _fire(self, due: list[Deadline]) -> int:
        todo = {deadline.run_id: deadline for deadline in due if deadline.run_id not in self._firing}
        self._firing.update(todo)
        try:
            return await self._wake(await self._store.load(list(todo), self._clock.micros()))
        except BaseException:  # also if a step has cancelled this task
            for deadline in todo.values():
                self._timers.push(deadline)
            raise
        finally:
            self._firing.difference_update(todo)

    async def _wake(self, runs: list[Run]) -> int:
        """Wake those that are due, unless something else comes first; return how many. Raises once all were tried."""
        now = self._clock.micros()
        waking = []
        for run in runs:
            if not self._is_to_wake(run, now):
                continue
            owner = self._slots.promise()
            move = wake(run, owner=owner, now=now, commit_id=next(self._commit_ids))
            waking.append(self._committer.submit(move, slots=self._slots, owner=owner))
        results: list[Result] = []
        problem: Exception | None = None
        for future in waking:
            try:
                results.append(await future)
            except Exception as error:  # noqa: BLE001 - raised below, once all others are done
                problem = error
        for result in results:
            if result.outcome == "stale" and result.mail and result.run is not None:
                # If the signal expires, or another run takes it, before it is delivered, the run is woken after all.
                self._delivery.notify_or(result.run.id, partial(self.arm, result.run))
        if problem is not None:
            raise problem
        held_up = [result for result in results if result.outcome == "stale" and result.plans]
        if held_up:
            await self._let_occur({plan.run_id for result in held_up for plan in result.plans})
        for result in held_up:
            if result.run is not None:
                self.arm(result.run)
        return sum(result.outcome == "applied" for result in results)

    def _is_to_wake(self, run: Run, now: Micros) -> bool:
        """Whether the run is due and this worker is to wake it; if it is not yet, its deadline is armed again."""
        if run.status != WorkflowStatus.WAITING or run.wake_at is None:
            return False
        if run.wake_at > now:  # the clock went back, or it waits for something else: never early
            self.arm(run)
            return False
        # A run that a client wakes is executed by a worker that has its code.
        if self._store.exclusive or not self.working or now >= run.wake_at + _PATIENCE:
            return True
        if self._registry.get(run.workflow, run.version) is not None:
            return True
        self.push((Deadline(now + SECOND, run.id, run.seq),))  # another worker may have it, and be about to wake it
        return False

    async def unblock(self, *, anew: bool) -> bool:
        """Let blocked runs go on that this code can take now: of many only some, so that the lease is renewed in time.

        Args:
            anew: begin with the first blocked run, not where the last call stopped.

        Returns:
            Whether all were looked at.
        """
        if not (known := self._registry.known()):
            return True
        if anew:
            self._unblocked_to = None
        names, versions = (tuple(dict.fromkeys(column)) for column in zip(*known, strict=True))
        query = RunQuery(
            workflow=names,
            version=versions,
            waiting_for=("blocked",),
            order="id",
            descending=False,
            limit=_PAGE,
            own=True,
        )
        for _ in range(_PAGES):
            query = dataclasses.replace(query, after=self._unblocked_to)
            runs = await self._store.select(query, self._clock.micros())
            freeing = []
            for run in runs:
                definition = self._registry.get(run.workflow, run.version)
                if isinstance(read_context(run, definition), str):
                    continue
                owner = self._slots.promise()
                move = unblock(run, owner=owner, now=self._clock.micros(), commit_id=next(self._commit_ids))
                freeing.append(self._committer.submit(move, slots=self._slots, owner=owner))
            for future in freeing:
                await future
            if len(runs) < _PAGE:
                self._unblocked_to = None
                return True
            self._unblocked_to = (runs[-1].id, runs[-1].id)
        return False

    async def _let_occur(self, plans: set[int]) -> None:
        """Let these events occur: they are due, and runs that wait for them must get them before they time out."""
        planned = await self._store.select(PlanQuery(ids=tuple(sorted(plans))), self._clock.micros())
        occurring = [self._committer.submit(Occur(plan.id, event.event_id)) for plan, event in planned]
        for future in occurring:
            await future
