"""The model of events: which are recorded, which starts they have planned, and which runs must receive them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from aioflow.changes import Emit, Listen, Occur, Replan, Result, Start, Withdraw
from aioflow.model import Deadline, Run
from aioflow.plans import EventRecord, Listener, Plan
from tests.simulation.mailbox import Mailbox, arms_of
from tests.simulation.program import CHOOSY, LISTENING, MS


@dataclass
class Planned:
    """A planned start, or an event's planned occurrence. ``workflow`` is unknown until a client has read it."""

    event: EventRecord
    #: The time that it was planned for, and the time that it is due now.
    first: int
    due: int
    attempts: int = 0
    error: str | None = None
    workflow: str | None = None


#: Which events each workflow listens to, as workers must report it.
LISTENERS = {
    workflow: {(name, namespace, offset * MS) for offset in offsets}
    for workflow, (name, namespace, offsets) in LISTENING.items()
}


@dataclass
class Events:
    """All events by event_id, all plans by id, and the runs that events have started.

    ``looked``: (client, plan) -> how far the client's clock was past the plan's time when it last read the plan.
    """

    figures: Counter[str]
    mailbox: Mailbox
    records: dict[str, EventRecord] = field(default_factory=dict)
    #: mail_id -> the record of that occurrence
    occurrences: dict[int, EventRecord] = field(default_factory=dict)
    plans: dict[int, Planned] = field(default_factory=dict)
    #: (event, occurrence, workflow, offset) -> the run that was started
    started: dict[tuple[str, int, str, int], int] = field(default_factory=dict)
    listeners: dict[str, tuple[Listener, ...]] = field(default_factory=dict)
    looked: dict[tuple[Any, int], int] = field(default_factory=dict)
    #: The plans that are gone, and why.
    gone: dict[int, str] = field(default_factory=dict)
    #: event_id -> how many times it was cancelled.
    withdrawn: Counter[str] = field(default_factory=Counter)
    #: Events that a user has asked to cancel together with their runs.
    cancelled: set[str] = field(default_factory=set)
    #: What occurred in the current batch: the event, the runs that got mail of it, and the run whose step emitted it,
    #: or 0.
    occurred: list[tuple[EventRecord, tuple[int, ...], int]] = field(default_factory=list)
    #: The events that the current batch has cancelled or replaced.
    changed: set[int] = field(default_factory=set)

    # ---- changes

    def applied(
        self, client: Any, change: Emit | Occur | Withdraw | Replan | Listen, result: Result, now: int, by: int
    ) -> Iterator[str]:
        """Check a change that the store has applied; ``by`` is the run whose step made it, or 0."""
        match change:
            case Emit():
                return self.emit(change, result, now, by)
            case Occur():
                return self.occur(client, change, result, now)
            case Withdraw():
                return self.withdraw(change, result)
            case Replan():
                return self.replan(client, change, result)
            case Listen():
                return self.listen(change, result)

    def emit(self, change: Emit, result: Result, now: int, by: int) -> Iterator[str]:
        """Check an Emit; ``by`` is the run whose step emitted, or 0."""
        event, told = change.event, result.event
        known = self.records.get(event.event_id)
        if event.mail_id in self.occurrences and known is not None:
            self.figures["race: an event offered twice"] += 1
            self.figures["race: an event offered again, which was replaced since"] += known.mail_id != event.mail_id
            if result.outcome != "applied" or told != known:
                yield f"{event} was applied before, and is {result.outcome}, as {told}: it was {known}"
            return
        if known is not None and not (change.replace and known.name == event.name):
            self.figures["event was there"] += 1
            if result.outcome != "exists" or told != known:
                yield f"{event} was not there before, it is said, but {told}: it was {known}"
            return
        right = event._replace(occurrence=1, status="pending", occurred_at=None)
        if known is not None:
            self.figures[f"event replaced: {known.status}"] += 1
            right = right._replace(id=known.id, recorded_at=known.recorded_at, occurrence=known.occurrence + 1)
            self.changed.add(known.id)
            self._drop(event.event_id, "replaced")
        dues = sorted(
            {
                (listener.workflow, listener.offset): event.at + listener.offset
                for listeners in self.listeners.values()
                for listener in listeners
                if listener.event_name == event.name and listener.namespace in ("*", event.namespace)
            }.values()
        )
        self.figures["event emitted"] += 1
        if event.at > now:
            dues = sorted([*dues, event.at])
        else:
            right = right._replace(status="occurred", occurred_at=now)
            self.figures["event occurred as it was emitted"] += 1
            self.occurred.append((right, result.run_ids, by))
        if result.outcome != "applied" or told != right:
            yield f"{event} is {result.outcome}, as {told}, not {right}"
        if sorted(plan.at for plan in result.plans) != dues:
            yield f"{event} is planned for {result.plans}, not {dues}"
        for at, plan_id, attempts in result.plans:
            if attempts or plan_id in self.plans or plan_id in self.gone:
                yield f"plan {plan_id} of {event} is not new"
            self.plans[plan_id] = Planned(right, at, at)
        self.records[event.event_id] = right
        self.occurrences[event.mail_id] = right

    def occur(self, client: Any, change: Occur, result: Result, now: int) -> Iterator[str]:
        """Check an Occur: the time of an event has come."""
        plan = self.plans.get(change.plan)
        if result.outcome == "stale":
            self.figures["race: an event had occurred already, or was moved"] += 1
            if plan is not None and plan.workflow in (None, ""):
                yield f"{change} is stale, and there is {plan}"
            return
        if plan is None or plan.workflow not in (None, ""):
            yield f"{change} was applied, and was no plan: {plan}, {self.gone.get(change.plan)}"
            return
        yield from self._fired(client, change.plan, plan, "occurred")
        record = self.records[plan.event.event_id]
        right = record._replace(status="occurred", occurred_at=now)
        if record.status != "pending" or result.event != right:
            yield f"{record} has occurred as {result.event}"
        self.figures["event occurred in its time"] += 1
        self._put(right)
        self.occurred.append((right, result.run_ids, 0))

    def withdraw(self, change: Withdraw, result: Result) -> Iterator[str]:
        """Check a Withdraw: an event was cancelled."""
        record = self.records.get(change.event_id)
        right = None if record is None else record._replace(status="cancelled")
        if (result.outcome == "stale") != (record is None or record.status == "cancelled") or result.event != right:
            yield f"{change} of {record} is {result}"
        if record is None or right is None or record.status == "cancelled":
            return
        self.figures[f"event cancelled: {record.status}"] += 1
        self.withdrawn[change.event_id] += 1
        self.changed.add(record.id)
        self._drop(change.event_id, "cancelled")
        self._put(right)

    def replan(self, client: Any, change: Replan, result: Result) -> Iterator[str]:
        """Check a Replan: a start has failed, or was declined."""
        id_, plan = change.plan.id, self.plans.get(change.plan.id)
        attempts = change.plan.attempts + 1
        if plan is not None and (plan.attempts, plan.due, plan.error) == (attempts, change.due, change.error):
            right = "applied"
            self.figures["race: a start put off was offered twice"] += 1
        elif plan is None or plan.attempts != change.plan.attempts:
            right = "stale"
        else:
            right = "applied"
            wanted = json.loads(plan.event.entity or "{}")["wanted"]
            if change.due is None:
                yield from self._fired(client, id_, plan, "not wanted")
                if change.plan.workflow != CHOOSY or wanted:
                    yield f"{plan} was dropped"
                self.figures["a start was not wanted"] += 1
            else:
                yield from self._seen_due(client, id_, plan)
                if "cannot be created yet" not in (change.error or "") or change.plan.workflow == CHOOSY:
                    yield f"{plan} was put off: {change.error}"
                plan.due, plan.attempts, plan.error = change.due, attempts, change.error
                self.figures["a start was put off"] += 1
        if result.outcome != right:
            yield f"{change} of {plan} is {result.outcome}"

    def listen(self, change: Listen, result: Result) -> Iterator[str]:
        """Check a Listen: a worker has reported what its workflows listen to."""
        told: dict[str, list[Listener]] = {workflow: [] for workflow in change.workflows}
        for listener in change.listeners:
            told[listener.workflow].append(listener)
        for workflow, listeners in told.items():
            if {listener[1:] for listener in listeners} != LISTENERS.get(workflow, set()):
                yield f"{workflow} is said to listen to {listeners}"
            self.listeners[workflow] = tuple(listeners)
        if result.outcome != "applied":
            yield f"{change} is {result.outcome}"

    def start(self, client: Any, change: Start) -> Iterator[str]:
        """Check a Start that a plan has caused."""
        run, plan = change.run, self.plans.get(change.plan)
        if plan is None:
            yield f"run {run.id} was started by plan {change.plan}, which is {self.gone.get(change.plan, 'not there')}"
            return
        yield from self._fired(client, change.plan, plan, "started")
        event = self.records[plan.event.event_id]
        place = (event.event_id, event.occurrence, run.workflow, plan.first - event.at)
        if (event.name, event.namespace, event.at) != (plan.event.name, plan.event.namespace, plan.event.at):
            yield f"run {run.id} was started for {plan}, and it is {event}"
        name, namespace, offsets = LISTENING[run.workflow]
        if event.name != name or namespace not in ("*", event.namespace) or place[3] not in [o * MS for o in offsets]:
            yield f"run {run.id} of {run.workflow} was started for {event} with the offset {place[3]}"
        if plan.workflow not in (None, run.workflow):
            yield f"run {run.id} of {run.workflow} was started by {plan}"
        if (other := self.started.setdefault(place, run.id)) != run.id:
            yield f"runs {other} and {run.id} were started for {place}"
        if event.status == "cancelled":
            yield f"run {run.id} was started for {event}"
        if run.workflow == CHOOSY and not json.loads(event.entity or "{}")["wanted"]:
            yield f"run {run.id} was started, and should_run_for_event does not want it"
        kind, told_name, payload = json.loads(run.input or "[null, null, null]")
        right = json.loads(event.payload)
        told = {**(payload or {}), "status": right["status"], "occurred_at": right["occurred_at"]}
        if (run.event_id, kind, told_name, told) != (event.event_id, "event", event.name, right):
            yield f"run {run.id} of {run.event_id} was told of {payload}, and it is {right}"
        self.mailbox.seen.add((run.id, event.mail_id))
        self.figures["run started by an event"] += 1
        self.figures["run started by an event that was moved"] += event.occurrence > 1
        self.figures["run started at another time than its event"] += place[3] != 0

    def refused(self, change: Start) -> Iterator[str]:
        """Check that a Start was refused because its plan is gone."""
        self.figures["race: a start was made already, or was moved"] += 1
        if change.plan in self.plans:
            yield f"a run of {self.plans[change.plan]} was refused"

    def batch_over(self, before: dict[int, Run], rows: dict[int, Run]) -> Iterator[str]:
        """After a batch: check which runs have received the events that occurred.

        Args:
            before: the rows that the batch has replaced, as they were; for a run that is new, its row without a wait.
            rows: all rows, as they are now.
        """
        for event, told, by in self.occurred:
            yield from self._tell(event, set(told), by, before, rows)
        for run_id, was in before.items():
            row = rows[run_id]
            entities = {(name, key) for kind, name, key in arms_of(row) if kind == "event" and key is not None}
            if not entities or was.arms == row.arms:
                continue
            for event in self.occurrences.values():
                missed = event.occurred_at is not None and event.occurred_at >= row.created_at
                if not missed or (event.name, event.entity_id) not in entities:
                    continue
                if event.id in self.changed:  # either may have come first
                    self.mailbox.hear(event, run_id, sure=False)
                elif event.status == "occurred" and self.records[event.event_id].mail_id == event.mail_id:
                    self.figures["a run waits for what has occurred"] += self.mailbox.hear(event, run_id)
        self.occurred.clear()
        self.changed.clear()

    def _tell(
        self, event: EventRecord, told: set[int], by: int, before: dict[int, Run], rows: dict[int, Run]
    ) -> Iterator[str]:
        """Check which runs hear of an event; if a wait begins or ends in the batch it may miss it, unless by entity."""
        for run_id, row in rows.items():
            keys = [key for kind, name, key in arms_of(row) if kind == "event" and name == event.name]
            waits = row.status == "waiting" and (None in keys or event.entity_id in keys)
            known = (run_id, event.mail_id) in self.mailbox.seen
            if run_id in told:
                if not waits or known:
                    yield f"run {run_id} was told of {event}, and is {row}"
                self.mailbox.hear(event, run_id)
                self.figures["a run that waits was told of an event"] += 1
                continue
            # A wait that begins later in the batch looks back to the start of its run, by the clock of that start.
            since = event.occurred_at is not None and event.occurred_at >= row.created_at
            with_entity = event.entity_id is not None and event.entity_id in keys and since
            if waits and not known and (run_id not in before or with_entity or run_id == by):
                yield f"run {run_id} waits for {event}, and was not told: {row}"
            if run_id in before:
                self.mailbox.hear(event, run_id, over=True)

    # ---- reads

    def read(
        self, client: Any, ids: Sequence[int], answer: Sequence[tuple[Plan, EventRecord]], now: int
    ) -> Iterator[str]:
        """Check the plans that a client has read."""
        for plan, event in answer:
            known = self.plans.get(plan.id)
            if known is None or event != self.records[event.event_id]:
                yield f"{plan} was read, with {event}: it is {known}, {self.gone.get(plan.id)}"
                continue
            self.looked[client, plan.id] = now - plan.due
            right = (known.due, known.event.id, known.event.occurrence, known.attempts, known.error)
            if (plan.due, plan.event, plan.occurrence, plan.attempts, plan.error) != right:
                yield f"{plan} was read, and is {known}"
            if plan.due != known.first and not plan.attempts:
                yield f"{plan} was moved"
            if known.workflow not in (None, plan.workflow) or known.first != event.at + plan.offset:
                yield f"{plan} was read, and was {known}"
            known.workflow = plan.workflow
        if missing := {id_ for id_ in ids if id_ in self.plans} - {plan.id for plan, _ in answer}:
            yield f"plans {missing} were not found"

    def timed_out(self, row: Run, now: int) -> Iterator[str]:
        """Check that no event that the run waited for was due when the run timed out."""
        for event in self.records.values():
            if event.status == "pending" and event.at <= min(row.wake_at or now, now) and self._would_hear(row, event):
                yield f"run {row.id} timed out at {now}, in spite of {event}"

    def in_the_way(self, row: Run, plans: Sequence[Deadline], now: int) -> Iterator[str]:
        """Check that a run's timeout was held back only by events that it waits for and that are due."""
        for at, id_, _ in plans:
            plan = self.plans.get(id_)
            if id_ in self.gone:  # by an earlier change of the same batch
                continue
            if (
                plan is None
                or plan.due != at
                or at > min(row.wake_at or now, now)
                or not self._would_hear(row, plan.event)
            ):
                yield f"run {row.id} was held back by {plan}"

    def _would_hear(self, row: Run, event: EventRecord) -> bool:
        arms = [key for kind, name, key in arms_of(row) if kind == "event" and name == event.name]
        return (row.id, event.mail_id) not in self.mailbox.seen and any(key in (None, event.entity_id) for key in arms)

    def told_of_emit(self, token: str, event: Any) -> Iterator[str]:
        """Check the Event that an emitter got."""
        same = [record for record in self.occurrences.values() if record.event_id == event.id]
        shown = [record for record in same if record.occurrence == event.occurrence]
        if len(shown) != 1 or json.loads(shown[0].entity or "null") != event.entity:
            yield f"{event} was told of, and is none of {same}"
        if not any(json.loads(record.entity or "{}")["token"] == token for record in shown):
            self.figures["emit: told of another's event"] += 1

    def check_end(self, events: Sequence[EventRecord], stats: Any) -> Iterator[str]:
        """Check that the store has the recorded events and the plans that are left, and nothing else."""
        if sorted(events) != sorted(self.records.values()):
            yield f"the store has {sorted(events)}, not {sorted(self.records.values())}"
        starts = [plan for plan in self.plans.values() if not self._is_occurring(plan)]
        right = (Counter(event.status for event in events), len(starts), sum(plan.error is not None for plan in starts))
        if (Counter(stats.events), stats.planned, stats.failing) != right:
            yield f"the store counts {stats.events}, {stats.planned}, {stats.failing}, not {right}"

    # ---- helpers

    def _is_occurring(self, plan: Planned) -> bool:
        """Whether a plan is that of an event's occurrence: while none is known to be, the last due at its time is."""
        if plan.workflow is not None:
            return plan.workflow == ""
        event = self.records[plan.event.event_id]
        same = [p for p in self.plans.values() if p.event.id == event.id and p.first == event.at]
        if event.status != "pending" or plan.first != event.at or any(p.workflow == "" for p in same):
            return False
        return plan is [p for p in same if p.workflow is None][-1]

    def _fired(self, client: Any, id_: int, plan: Planned, why: str) -> Iterator[str]:
        del self.plans[id_]
        self.gone[id_] = why
        yield from self._seen_due(client, id_, plan)

    def _seen_due(self, client: Any, id_: int, plan: Planned) -> Iterator[str]:
        if (late := self.looked.get((client, id_), -1)) < 0:
            yield f"{plan} was fulfilled early: it was read {-late} microseconds before its time"

    def _put(self, record: EventRecord) -> None:
        self.records[record.event_id] = self.occurrences[record.mail_id] = record
        for plan in self.plans.values():
            if plan.event.mail_id == record.mail_id:
                plan.event = record

    def _drop(self, event_id: str, why: str) -> None:
        for id_, plan in list(self.plans.items()):
            if plan.event.event_id == event_id:
                self.figures[f"plan dropped, as the event was {why}"] += 1
                del self.plans[id_]
                self.gone[id_] = why
