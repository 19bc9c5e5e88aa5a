"""The model of what a store does with events, written as plainly as possible; see model.py.

The store chooses the ids of plans: the machine looks them up after each batch, and passes them to ``learn``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from aioflow.changes import Change, Emit, Listen, Occur, Replan, Result, Withdraw
from aioflow.model import Arm, Deadline, Run
from aioflow.plans import BLOCKED, EventRecord, Listener, Plan
from aioflow.store import EventQuery, Planned

COLUMNS = ("event_id", "name", "namespace", "entity_id", "status")


@dataclass
class Events:
    """Everything that a store holds about events."""

    #: event_id -> the record.
    records: dict[str, EventRecord] = field(default_factory=dict)
    plans: dict[int, Plan] = field(default_factory=dict)
    #: The plans that the current batch has made, without ids.
    new: list[Plan] = field(default_factory=list)
    listeners: dict[str, list[Listener]] = field(default_factory=dict)
    #: The mail_ids of occurrences that were replaced.
    replaced: set[int] = field(default_factory=set)
    #: (run, mail_id) of the occurrences that runs have taken, or were started by.
    seen: set[tuple[int, int]] = field(default_factory=set)
    #: The events that occurred by the last change, and are to be delivered.
    occurred: list[EventRecord] = field(default_factory=list)

    # ---- apply

    def change(self, change: Change, now: int) -> Result:
        match change:
            case Emit():
                return self._emit(change, now)
            case Occur(plan_id):
                plan = self.plans.get(plan_id)
                if plan is None or plan.workflow:
                    return Result("stale")
                del self.plans[plan_id]
                return Result("applied", event=self._occur(self.by_id(plan.event), now))
            case Withdraw(event_id):
                record = self.records.get(event_id)
                if record is None or record.status == "cancelled":
                    return Result("stale", event=record)
                self.records[event_id] = record = record._replace(status="cancelled")
                self._drop(record)
                return Result("applied", event=record)
            case Replan():
                return self._replan(change)
            case Listen(workflows, listeners):
                for workflow in workflows:
                    self.listeners[workflow] = []
                for listener in listeners:
                    self.listeners[listener.workflow].append(listener)
                return Result("applied")
            case _:
                raise AssertionError(change)

    def _emit(self, change: Emit, now: int) -> Result:
        event, known = change.event, self.records.get(change.event.event_id)
        if known is not None and self.recorded(event):
            return Result("applied", event=known)
        if known is not None and not (change.replace and known.name == event.name):
            return Result("exists", event=known)
        event = event._replace(occurrence=1, status="pending", occurred_at=None)
        if known is not None:
            self._drop(known)
            self.replaced.add(known.mail_id)
            event = event._replace(id=known.id, recorded_at=known.recorded_at, occurrence=known.occurrence + 1)
        heard = {
            (listener.workflow, listener.offset)
            for listeners in self.listeners.values()
            for listener in listeners
            if listener.event_name == event.name and listener.namespace in ("*", event.namespace)
        }
        if event.at > now:
            heard.add(("", 0))
            self.records[event.event_id] = event
        else:
            event = self._occur(event, now)
        self.new += [
            Plan(0, event.at + offset, event.id, event.occurrence, name, offset, 0, None) for name, offset in heard
        ]
        return Result("applied", event=event)

    def _replan(self, change: Replan) -> Result:
        plan, due, attempts = self.plans.get(change.plan.id), change.due, change.plan.attempts + 1
        if plan is None:
            return Result("stale")
        if (plan.attempts, plan.due, plan.error) == (attempts, due, change.error):
            return Result("applied")
        if plan.attempts != change.plan.attempts:
            return Result("stale")
        if due is None:
            del self.plans[plan.id]
            return Result("applied")
        self.plans[plan.id] = plan._replace(due=due, attempts=attempts, error=change.error)
        return Result("applied", plans=(Deadline(due, plan.id, attempts),))

    def _occur(self, event: EventRecord, now: int) -> EventRecord:
        event = event._replace(status="occurred", occurred_at=now)
        self.records[event.event_id] = event
        self.occurred.append(event)
        return event

    def _drop(self, event: EventRecord) -> None:
        self.plans = {id_: plan for id_, plan in self.plans.items() if plan.event != event.id}

    def recorded(self, event: EventRecord) -> bool:
        known = self.records.get(event.event_id)
        return (known is not None and known.mail_id == event.mail_id) or event.mail_id in self.replaced

    def learn(self, planned: Iterable[Planned]) -> None:
        """Adopt the ids of the plans that the store has made, after checking that they are those of the model."""
        found = [plan for plan, _ in planned]
        assert sorted(plan._replace(id=0) for plan in found) == sorted(self.new)
        assert not self.plans.keys() & {plan.id for plan in found}
        self.plans.update({plan.id: plan for plan in found})
        self.new.clear()

    # ---- called by the model and the machine

    def by_id(self, id_: int) -> EventRecord:
        [found] = [record for record in self.records.values() if record.id == id_]
        return found

    def missed(self, run: Run, arms: list[Arm]) -> Iterator[EventRecord]:
        """The occurred events that a run with these arms must still receive, as they occurred after it was created."""
        for event in self.records.values():
            since = event.occurred_at is not None and event.occurred_at >= run.created_at
            keyed = any(hears(arm, event) and arm.key is not None for arm in arms)
            if event.status == "occurred" and since and keyed:
                yield event

    def in_the_way(self, run: Run, arms: list[Arm], now: int) -> Deadline | None:
        """The first plan of an event that is due by the end of the wait and that the run would receive."""
        if run.wake_at is None:
            return None
        due = [
            Deadline(plan.due, plan.id, plan.attempts)
            for plan in self.plans.values()
            if not plan.workflow and plan.due <= min(run.wake_at, now)
            if any(hears(arm, self.by_id(plan.event)) for arm in arms)
            if (run.id, self.by_id(plan.event).mail_id) not in self.seen
        ]
        return min(due, default=None)

    def deadlines(self) -> list[Deadline]:
        return sorted(Deadline(plan.due, plan.id, plan.attempts) for plan in self.plans.values())

    def select(self, query: EventQuery) -> list[EventRecord]:
        """All events that match, in order, without the limit."""
        found = [
            event
            for event in self.records.values()
            if all(getattr(event, name) in getattr(query, name) for name in COLUMNS if getattr(query, name))
            and (query.at_after is None or event.at > query.at_after)
            and (query.at_before is None or event.at < query.at_before)
            and (query.after is None or (event.id < query.after if query.descending else event.id > query.after))
        ]
        return sorted(found, reverse=query.descending)

    def stats(self) -> dict[str, object]:
        starts = [plan for plan in self.plans.values() if plan.workflow]
        blocked = [plan for plan in starts if plan.due == BLOCKED]
        return {
            "events": dict(Counter(event.status for event in self.records.values())),
            "planned": len(starts),
            "blocked": len(blocked),
            "failing": sum(plan.error is not None and plan.due != BLOCKED for plan in starts),
        }


def hears(arm: Arm, event: EventRecord) -> bool:
    """Whether a run that waits with this arm receives the event."""
    return arm.kind == "event" and arm.name == event.name and arm.key in (None, event.entity_id)
