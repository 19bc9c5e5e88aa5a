"""Fulfils the plans of events: lets the events occur, and starts the runs of the workflows that listen to them.

A plan is a row of the store, deleted by the same transaction that fulfils it: so a run is started exactly once, however
many processes try, and if a process dies before that, another fulfils the plan. A start whose code raises is planned
again, after longer and longer delays; other starts wait neither for it nor for code that is slow. A start whose
workflow this worker does not know is blocked: it is no longer due until a worker that knows the workflow looks for it.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial

from anyio.lowlevel import checkpoint

from aioflow import telemetry
from aioflow.changes import Listen, Occur, Replan, Result, Start
from aioflow.clock import SECOND, Clock, Micros
from aioflow.committer import Committer
from aioflow.definition import WorkflowDefinition
from aioflow.dueloop import DueLoop
from aioflow.errors import EngineClosed, StoreError, WorkflowUnknown
from aioflow.events import event_of
from aioflow.interventions import start
from aioflow.likeness import one_line
from aioflow.model import MAX_ERROR, Deadline, bounded
from aioflow.outbox import Office
from aioflow.plans import BLOCKED, EventRecord, Plan
from aioflow.registry import Registry, listeners
from aioflow.slots import Slots
from aioflow.store import Planned, PlanQuery, Store
from aioflow.tasks import TaskSet
from aioflow.timers import Timers

#: How many plans may be committed together, and how many starts of one workflow be under way. A signal that comes
#: meanwhile waits for that commit: twice as many plans double its wait, and start no more runs a second.
_MOST = 100
#: How many plans may be held back or in the code of their workflow: a bound on memory.
_MOST_ASIDE = 10_000
#: How many seconds the workflow's code may take to decide whether a run starts, and to make its Context.
LONGEST_ASK = 60.0
_FIRST_BACKOFF: Micros = SECOND
_LONGEST_BACKOFF: Micros = 300 * SECOND


class Planner(DueLoop):
    """Fires plans.

    Args:
        store, clock, committer, registry: what it works with.
        slots: the worker that runs what is started.
        office: gives ids.
        commit_ids: makes commit ids.

    The mutable state, beside that of DueLoop: how many starts are under way by workflow (``_begun``), those that are
    held back because too many of their workflow are (``_held``), how many are held back or in the workflow's code
    (``_aside``), the generation of the registry that the store was last told of (``_told``), the unknown workflows that
    were logged (``_missed``), whether it is being stopped, and an event set when nothing is being fired (``_quiet``).
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        timers: Timers,
        *,
        committer: Committer,
        registry: Registry,
        slots: Slots,
        office: Office,
        commit_ids: Iterator[int],
    ) -> None:
        super().__init__(store, clock, timers, "plan", "planned events and starts")
        self._committer = committer
        self._registry = registry
        self._slots = slots
        self._office = office
        self._commit_ids = commit_ids
        self._context = contextvars.copy_context()
        self._tasks = TaskSet()
        self._places = asyncio.Semaphore(_MOST)
        self._begun: Counter[str] = Counter()
        self._held: defaultdict[str, deque[Deadline]] = defaultdict(deque)
        self._resuming: set[str] = set()
        self._aside = 0
        self._told = -1
        self._missed: set[str] = set()
        self._stopping = False
        self._quiet = asyncio.Event()

    @property
    def idle(self) -> bool:
        """Whether nothing is being fired."""
        return not self._firing

    @property
    def _room(self) -> int:
        return min(_MOST - (len(self._firing) - self._aside), _MOST_ASIDE - self._aside)

    async def listen(self, patience: Micros | None = None) -> None:
        """Tell the store which events start the workflows known here, if that has changed. See Committer.submit."""
        generation = self._registry.generation
        if self._told == generation:
            return
        names, heard = listeners(self._registry)
        if names:
            await self._committer.commit(Listen(names, heard), patience)
        self._told = generation

    async def unblock(self) -> None:
        """Make the blocked starts of workflows that are known here due again."""
        query = PlanQuery(blocked=tuple(sorted({name for name, _ in self._registry.known()})))
        self._missed.difference_update(query.blocked)
        while query.blocked:
            planned = await self._store.select(query, self._clock.micros())
            if not planned:
                return
            freed = [self._committer.submit(Replan(plan, event.at + plan.offset)) for plan, event in planned]
            for future in freed:
                await future

    async def stop(self, patience: float) -> None:
        """End the starts that are under way: their plans stay in the store."""
        self._stopping = True
        self.working = False
        self._quiet.set()
        await self._tasks.cancel(patience)

    async def fire_all(self) -> int:
        """See DueLoop. Returns once the fired plans are done."""
        fired = await super().fire_all()
        while self._firing:
            if self._stopping:
                raise EngineClosed("engine.process_scheduled()")
            self._quiet.clear()
            await self._quiet.wait()
        return fired

    def _let_go(self, ids: Iterable[int]) -> None:
        self._firing.difference_update(ids)
        if not self._firing:
            self._quiet.set()

    async def _fire(self, due: list[Deadline]) -> int:
        todo = {deadline.run_id: deadline for deadline in due if deadline.run_id not in self._firing}
        self._firing.update(todo)
        try:
            now = self._clock.micros()
            planned = await self._store.select(PlanQuery(ids=tuple(todo)), now)
        except BaseException:
            self._let_go(todo)
            self.push(todo.values())
            raise
        taken: set[int] = set()
        for each in () if self._stopping else planned:
            plan = each.plan
            if plan.due > now:  # the clock went back: never early
                self.push((Deadline(plan.due, plan.id, plan.attempts),))
                continue
            if plan.workflow and not self.working and not self._registry.knows(plan.workflow):
                continue  # a client leaves it to the workers
            taken.add(plan.id)
            if plan.workflow and self._begun[plan.workflow] >= _MOST:
                self._held[plan.workflow].append(todo[plan.id])
                self._aside += 1
                continue
            self._begun[plan.workflow] += 1
            # By a callback of the task: if a step cancels it, its coroutine may not even have begun.
            task = self._tasks.spawn(self._fulfil(each), context=self._context.copy())
            task.add_done_callback(partial(self._fulfilled, plan))
        self._let_go(todo.keys() - taken)
        return len(taken)

    async def _resume(self, workflow: str) -> None:
        """Begin starts that were held back, as far as there is room; only their ids were kept, so read them again."""
        held = self._held[workflow]
        try:
            while held and (room := _MOST - self._begun[workflow]) > 0:
                due = [held.popleft() for _ in range(min(room, len(held)))]
                self._aside -= len(due)
                self._let_go(deadline.run_id for deadline in due)
                await self._fire(due)
        except StoreError as error:
            telemetry.trouble(f"{self._what} cannot be fired, will try again", error)
        finally:
            self._resuming.discard(workflow)

    async def _fulfil(self, planned: Planned) -> None:
        plan = planned.plan
        try:
            if plan.workflow:
                await self._begin(planned)
            else:
                result = await self._commit(Occur(plan.id, planned.event.event_id))
                # If stale, it has occurred; the runs to resume were told to another process, or that reply was lost.
                if result.outcome == "stale":
                    self._slots.notice()
        except StoreError as error:
            self.push((Deadline(self._clock.micros() + SECOND, plan.id, plan.attempts),))
            telemetry.warn(
                "a plan cannot be fulfilled, will try again", event_id=planned.event.event_id, error=str(error)
            )

    def _fulfilled(self, plan: Plan, _: asyncio.Task[None]) -> None:
        self._let_go((plan.id,))
        self._begun[plan.workflow] -= 1
        if self._held[plan.workflow] and plan.workflow not in self._resuming and not self._stopping:
            self._resuming.add(plan.workflow)
            self._tasks.spawn(self._resume(plan.workflow), context=self._context.copy())
        self.made_room()

    async def _commit(self, change: Occur | Replan) -> Result:
        async with self._places:
            return await self._committer.commit(change)

    async def _begin(self, planned: Planned) -> None:
        """Start the run, or put it off, or drop it."""
        plan, event = planned
        generation = self._registry.generation
        try:
            definition = self._registry.find(plan.workflow)
        except WorkflowUnknown as error:
            await self._block(plan, error)
            if self._registry.generation != generation:  # code that came meanwhile has not seen this blocked start
                await self.unblock()
            return
        try:
            data = await self._ask(definition, event)
        except BaseException as error:  # the workflow's code may raise anything
            if isinstance(error, asyncio.CancelledError) and self._stopping:
                raise
            if self._stopping:
                return  # its plan stays in the store
            if isinstance(error, StoreError):
                raise
            await self._put_off(planned, error)
            return
        if data is None:  # should_run_for_event says no
            await self._commit(Replan(plan, None))
            return
        async with self._places:
            change = await self._start(definition, planned, data)
            await self._committer.submit(change, slots=self._slots, owner=change.run.owner)

    async def _ask(self, definition: WorkflowDefinition, event: EventRecord) -> str | None:
        self._aside += 1
        self.made_room()
        try:
            return await _asked(definition, event)
        finally:
            self._aside -= 1

    async def _start(self, definition: WorkflowDefinition, planned: Planned, data: str) -> Start:
        plan, event = planned
        run_id = await self._office.run_ids.take()
        owner = self._slots.promise()
        change = start(
            definition, data, run_id=run_id, key=None, reuse="never", due=None, owner=owner, now=self._clock.micros(),
            commit_id=next(self._commit_ids),
        )  # fmt: skip
        resumption = f'["event", {json.dumps(event.name)}, {event.payload}]'
        # However late it is made, the run counts as created when it was due, and hears of events from then on. When an
        # event was replaced is not known, only that it was before it occurred.
        now = change.run.created_at
        known = event.recorded_at if event.occurrence == 1 else event.occurred_at or now
        since = min(max(event.at + plan.offset, known), now)
        run = change.run._replace(event_id=event.event_id, input=resumption, created_at=since)
        return change._replace(run=run, plan=plan.id)

    async def _block(self, plan: Plan, error: WorkflowUnknown) -> None:
        text = bounded(one_line(error), MAX_ERROR)
        if plan.workflow not in self._missed:
            self._missed.add(plan.workflow)
            what = "starts of a workflow that this worker does not know are blocked, until one comes that does"
            telemetry.warn(what, workflow=plan.workflow, error=text)
        await self._commit(Replan(plan, BLOCKED, text))

    async def _put_off(self, planned: Planned, error: BaseException) -> None:
        """Put off a start whose code raised."""
        plan, event = planned
        text = bounded(one_line(error), MAX_ERROR)
        backoff = min(_FIRST_BACKOFF * 2 ** min(plan.attempts, 20), _LONGEST_BACKOFF)
        telemetry.warn(
            "run cannot be started for its event, will try again",
            workflow=plan.workflow,
            event_id=event.event_id,
            event_name=event.name,
            offset_s=plan.offset / SECOND,
            attempt=plan.attempts + 1,
            error=text,
            exception=telemetry.plain_traceback(error),
        )
        await self._commit(Replan(plan, self._clock.micros() + backoff, text))


async def _asked(definition: WorkflowDefinition, event: EventRecord) -> str | None:
    """The Context of the run that an event is to start, as JSON; None if the workflow's code declines to start one."""
    limit = asyncio.timeout(LONGEST_ASK)
    try:
        async with limit:
            context = await definition.context_for(await event_of(event))
            data = None if context is None else definition.codec.encode(context)[0]
    except TimeoutError as error:
        if not limit.expired():
            raise
        what = f"should_run_for_event, create_context and the entity's loader took longer than {LONGEST_ASK:g} s"
        raise TimeoutError(what) from error
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        with suppress(asyncio.CancelledError):  # it is raised at the next await, which must not be that of a commit
            await checkpoint()
        raise asyncio.CancelledError("it has cancelled its own task")
    return data
