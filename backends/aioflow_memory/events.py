"""Events, the plans that they have made, and the listeners of workflows."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Final

from aioflow.changes import Emit, Listen, Occur, Replan, Result, Withdraw
from aioflow.clock import Micros
from aioflow.model import Deadline, Run, arms_of
from aioflow.plans import BLOCKED, EventRecord, EventStatus, Listener, Plan
from aioflow.store import EventQuery, Planned, PlanQuery
from aioflow_memory.mailbox import Mailbox, hears

#: The filters that are columns of the same name.
_COLUMNS: Final = ("event_id", "name", "namespace", "entity_id", "status")


class Events:
    """All events and plans.

    The mutable state is the events, the plans, which occurrences were replaced, the listeners of each workflow, the
    counter of plans' ids, and how to undo the present batch; the other attributes are indexes of events and plans.

    Args:
        mailbox: gets the copies of events that occur.
        check: raises for a row that a database could not hold.
    """

    def __init__(self, mailbox: Mailbox, check: Callable[[int, EventRecord | Plan | Listener], None]) -> None:
        self._mailbox = mailbox
        self._check = check
        self._events: dict[int, EventRecord] = {}
        self._by_event_id: dict[str, int] = {}
        #: (name, entity_id) -> ids of events
        self._by_entity: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        #: The mail_ids of occurrences that were replaced.
        self._replaced: set[int] = set()
        self._plans: dict[int, Plan] = {}
        self._plans_of: defaultdict[int, list[int]] = defaultdict(list)
        self._due: list[Deadline] = []
        self._listeners: dict[str, tuple[Listener, ...]] = {}
        self._next_plan = 1
        self._undo: list[Callable[[], None]] = []

    # ---- changes

    def emit(self, change: Emit, now: Micros) -> Result:
        """See Emit."""
        event, known = change.event, self.known(change.event.event_id)
        if known is not None and self.recorded(event):
            return Result("applied", event=known)
        if known is not None and not (change.replace and known.name == event.name):
            return Result("exists", event=known)
        event = event._replace(occurrence=1, status=EventStatus.PENDING.value, occurred_at=None)
        if known is not None:
            event = event._replace(id=known.id, recorded_at=known.recorded_at, occurrence=known.occurrence + 1)
            self._drop_plans(known.id)
            self._put_replaced(known.mail_id)
        self._check(event.id, event)
        self._put_event(event.id, event)
        starts = {
            (listener.workflow, listener.offset): None
            for listener in sorted(listener for listeners in self._listeners.values() for listener in listeners)
            if listener.event_name == event.name and listener.namespace in ("*", event.namespace)
        }
        if event.at > now:
            starts["", 0] = None
        else:
            event = self._occur(event, now)
        plans = [self._plan(event, workflow, offset) for workflow, offset in starts]
        return Result("applied", event=event, plans=tuple(map(_deadline, plans)))

    def occur(self, change: Occur, now: Micros) -> Result:
        """See Occur."""
        plan = self._plans.get(change.plan)
        if plan is None or plan.workflow:
            return Result("stale")
        self._put_plan(plan.id, None)
        return Result("applied", event=self._occur(self._events[plan.event], now))

    def withdraw(self, change: Withdraw) -> Result:
        """See Withdraw."""
        event = self.known(change.event_id)
        if event is None or event.status == EventStatus.CANCELLED:
            return Result("stale", event=event)
        event = event._replace(status=EventStatus.CANCELLED.value)
        self._put_event(event.id, event)
        self._drop_plans(event.id)
        return Result("applied", event=event)

    def replan(self, change: Replan) -> Result:
        """See Replan."""
        plan, due = self._plans.get(change.plan.id), change.due
        if plan is None:
            return Result("stale")
        attempts = change.plan.attempts + 1
        if (plan.attempts, plan.due, plan.error) == (attempts, due, change.error):
            return Result("applied")
        if plan.attempts != change.plan.attempts:
            return Result("stale")
        if due is None:
            self._put_plan(plan.id, None)
            return Result("applied")
        plan = plan._replace(due=due, attempts=attempts, error=change.error)
        self._check(plan.event, plan)
        self._put_plan(plan.id, plan)
        return Result("applied", plans=(_deadline(plan),))

    def listen(self, change: Listen) -> Result:
        """See Listen."""
        before = dict(self._listeners)
        self._undo.append(lambda: self._set_listeners(before))
        said: dict[str, list[Listener]] = {workflow: [] for workflow in change.workflows}
        for listener in change.listeners:
            self._check(0, listener)
            said.setdefault(listener.workflow, []).append(listener)
        for workflow, listeners in said.items():
            kept = () if workflow in change.workflows else self._listeners.get(workflow, ())
            self._listeners[workflow] = (*kept, *listeners)
        return Result("applied")

    def plan(self, plan_id: int) -> Planned | None:
        """A plan and its event."""
        plan = self._plans.get(plan_id)
        return None if plan is None else Planned(plan, self._events[plan.event])

    def take(self, plan_id: int) -> None:
        """Delete a plan, for a Start that fulfils it."""
        self._put_plan(plan_id, None)

    def missed(self, run: Run) -> Iterator[EventRecord]:
        """The events that have occurred since the run's ``created_at`` and that its arms with an entity_id wait for."""
        for arm in arms_of(run):
            if arm.kind == "event" and arm.key is not None:
                for id_ in self._by_entity.get((arm.name, arm.key), ()):
                    event = self._events[id_]
                    since = event.occurred_at is not None and event.occurred_at >= run.created_at
                    if since and event.status == EventStatus.OCCURRED:
                        yield event

    def in_the_way(self, run: Run, now: Micros) -> Deadline | None:
        """The first plan of an event to occur that is due by the end of the run's wait, and by now, and fits an arm."""
        waits = [arm for arm in arms_of(run) if arm.kind == "event"]
        if run.wake_at is None or not waits:
            return None
        for deadline in self._due:
            if deadline.at > min(run.wake_at, now):
                return None
            plan = self._plans[deadline.run_id]
            event = self._events[plan.event]
            heard = not plan.workflow and any(hears(arm, event) for arm in waits)
            if heard and not self._mailbox.has_seen(run.id, event.mail_id):
                return deadline
        return None

    def begin(self) -> None:
        """A batch begins: ``undo`` goes back to here."""
        self._undo.clear()

    def undo(self) -> None:
        """Put everything back as it was when the batch began."""
        for back in reversed(list(self._undo)):
            back()
        self._undo.clear()

    # ---- questions

    def known(self, event_id: str) -> EventRecord | None:
        """The event of this event_id."""
        id_ = self._by_event_id.get(event_id)
        return None if id_ is None else self._events[id_]

    def recorded(self, event: EventRecord) -> bool:
        """Whether this very occurrence was recorded, even if another has replaced it since."""
        known = self.known(event.event_id)
        return (known is not None and known.mail_id == event.mail_id) or event.mail_id in self._replaced

    def select(self, query: EventQuery) -> list[EventRecord]:
        """The events that match; looks at every event."""
        found = [
            event
            for event in self._events.values()
            if all(getattr(event, name) in getattr(query, name) for name in _COLUMNS if getattr(query, name))
            and (query.at_after is None or event.at > query.at_after)
            and (query.at_before is None or event.at < query.at_before)
            and (query.after is None or (event.id != query.after and (event.id < query.after) is query.descending))
        ]
        return sorted(found, key=lambda event: event.id, reverse=query.descending)[: query.limit]

    def planned(self, query: PlanQuery) -> list[Planned]:
        """The plans that match, each once."""
        ids = dict.fromkeys(query.ids)
        if query.blocked:
            first = bisect_left(self._due, (BLOCKED, 0), key=_moment)
            workflows = ((deadline.run_id, self._plans[deadline.run_id].workflow) for deadline in self._due[first:])
            ids.update(dict.fromkeys([id_ for id_, name in workflows if name in query.blocked][: query.limit]))
        return [planned for id_ in ids if (planned := self.plan(id_)) is not None]

    def due(self, after: tuple[Micros, int], until: tuple[Micros, int], limit: int) -> list[Deadline]:
        """A slice of the sorted deadlines."""
        first = bisect_right(self._due, after, key=_moment)
        last = bisect_right(self._due, until, key=_moment)
        return self._due[first : min(last, first + limit)]

    def count(self) -> tuple[dict[str, int], int, int, int]:
        """Events by status, planned starts, those that have failed, and those that are blocked."""
        starts = [plan for plan in self._plans.values() if plan.workflow]
        events = Counter(event.status for event in self._events.values())
        blocked = sum(plan.due == BLOCKED for plan in starts)
        failing = sum(plan.error is not None and plan.due != BLOCKED for plan in starts)
        return dict(events), len(starts), failing, blocked

    # ---- rows, and their indexes

    def _occur(self, event: EventRecord, now: Micros) -> EventRecord:
        event = event._replace(status=EventStatus.OCCURRED.value, occurred_at=now)
        self._put_event(event.id, event)
        self._mailbox.tell(event)
        return event

    def _plan(self, event: EventRecord, workflow: str, offset: Micros) -> Plan:
        plan = Plan(self._next_plan, event.at + offset, event.id, event.occurrence, workflow, offset, 0, None)
        self._next_plan += 1
        self._check(event.id, plan)
        self._put_plan(plan.id, plan)
        return plan

    def _drop_plans(self, event: int) -> None:
        for plan_id in list(self._plans_of.get(event, ())):
            self._put_plan(plan_id, None)

    def _set_listeners(self, listeners: dict[str, tuple[Listener, ...]]) -> None:
        self._listeners = listeners

    def _put_event(self, id_: int, event: EventRecord | None) -> None:
        was = self._events.pop(id_, None)
        self._undo.append(lambda: self._put_event(id_, was))
        if was is not None:
            del self._by_event_id[was.event_id]
            if was.entity_id is not None:
                self._by_entity[was.name, was.entity_id].remove(id_)
        if event is not None:
            self._events[id_] = event
            self._by_event_id[event.event_id] = id_
            if event.entity_id is not None:
                self._by_entity[event.name, event.entity_id].append(id_)

    def _put_replaced(self, mail_id: int) -> None:
        self._replaced.add(mail_id)
        self._undo.append(lambda: self._replaced.discard(mail_id))

    def _put_plan(self, id_: int, plan: Plan | None) -> None:
        was = self._plans.pop(id_, None)
        self._undo.append(lambda: self._put_plan(id_, was))
        if was is not None:
            self._plans_of[was.event].remove(id_)
            del self._due[bisect_left(self._due, _deadline(was))]
        if plan is not None:
            self._plans[id_] = plan
            self._plans_of[plan.event].append(id_)
            insort(self._due, _deadline(plan))


def _deadline(plan: Plan) -> Deadline:
    return Deadline(plan.due, plan.id, plan.attempts)


def _moment(deadline: Deadline) -> tuple[Micros, int]:
    return deadline.at, deadline.run_id
