"""Events and their plans: record, replace, cancel, let occur. Functions of a plain sqlite3 connection.

As in batch.py, the rows to write are collected, and one statement writes all of a kind.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from typing import Final

from aioflow.changes import Change, Emit, Listen, Occur, Replan, Result, Start, Withdraw
from aioflow.clock import Micros
from aioflow.model import Deadline, Run, Signal
from aioflow.plans import EventRecord, EventStatus, Listener, Plan
from aioflow_sqlite import mailbox
from aioflow_sqlite.rows import EVENT_COLUMNS, PLAN_COLUMNS, named
from aioflow_sqlite.writing import placeholders, write

# Each gives one JSON value: the GIL would be released for every single row. CROSS JOIN fixes the order of the joins:
# by statistics from when the file was small SQLite would read the whole table.
_BY_EVENT_ID: Final = f"""SELECT json_group_array(json_array({EVENT_COLUMNS})) FROM json_each(?) AS j
CROSS JOIN events AS e ON e.event_id = j.value"""
_BY_PLAN: Final = f"""SELECT json_group_array(json_array({EVENT_COLUMNS})) FROM json_each(?) AS j
CROSS JOIN plans AS p ON p.id = j.value CROSS JOIN events AS e ON e.id = p.event"""
_PLANS: Final = f"""SELECT json_group_array(json_array(e.mail_id, {PLAN_COLUMNS})) FROM json_each(?) AS j
CROSS JOIN plans AS p ON p.id = j.value CROSS JOIN events AS e ON e.id = p.event"""
_LISTENERS: Final = (
    'SELECT json_group_array(json_array(workflow, event_name, namespace, "offset")) FROM listeners WHERE event_name = ?'
)
_WRITE_EVENTS: Final = (
    f"INSERT INTO events ({named(EventRecord._fields)}) VALUES ",
    placeholders(EventRecord._fields, frozenset({"entity_id", "entity_type", "entity", "occurred_at"})),
    " ON CONFLICT (id) DO UPDATE SET " + ", ".join(f"{name} = excluded.{name}" for name in EventRecord._fields[2:]),
)
_WRITE_PLANS: Final = (
    f"INSERT INTO plans ({named(Plan._fields)}) VALUES ",
    placeholders(Plan._fields, frozenset({"error"})),
    " ON CONFLICT (id) DO UPDATE SET due = excluded.due, attempts = excluded.attempts, error = excluded.error",
)
#: A copy that was made for an earlier wait of the run, and not taken, becomes valid again.
_WRITE_COPIES: Final = (
    f"INSERT INTO signals ({named(Signal._fields)}) VALUES ",
    placeholders(Signal._fields, frozenset({"key", "signal_id", "expires_at", "event"})),
    " ON CONFLICT (id, run_id) DO UPDATE SET expires_at = NULL WHERE taken_at IS NULL",
)
_RESERVE: Final = (
    "INSERT INTO ids VALUES ('plan', :count + 1) ON CONFLICT DO UPDATE SET next = next + :count RETURNING next - :count"
)
#: The runs that wait for events that have occurred: from [mail id, name, entity_id] to (mail id, run id).
_WAITING: Final = """
SELECT json_group_array(json_array(mail, run)) FROM (
    SELECT json_extract(o.value, '$[0]') AS mail, w.run_id AS run FROM json_each(:occurred) AS o CROSS JOIN waits AS w
    WHERE w.name = json_extract(o.value, '$[1]') AND w.key IS NULL AND w.kind = 'event'
    UNION
    SELECT json_extract(o.value, '$[0]'), w.run_id FROM json_each(:occurred) AS o CROSS JOIN waits AS w
    WHERE w.name = json_extract(o.value, '$[1]') AND w.key = json_extract(o.value, '$[2]') AND w.kind = 'event'
) WHERE NOT EXISTS (SELECT 1 FROM seen WHERE seen.run_id = run AND seen.mail_id = mail)
"""
#: The events that runs which wait for an event of an entity have missed: from [run id, created_at] to [run id, events]
#: for each arm. The events are read by a subquery: in a join SQLite may read all of them for a Bloom filter.
_MISSED: Final = f"""
SELECT json_group_array(json_array(w.run_id, json((
    SELECT json_group_array(json_array({EVENT_COLUMNS})) FROM events AS e INDEXED BY events_entity
    WHERE e.name = w.name AND e.entity_id = w.key AND e.occurred_at >= json_extract(r.value, '$[1]')
        AND +e.status = 'occurred'
        AND NOT EXISTS (SELECT 1 FROM seen WHERE seen.run_id = w.run_id AND seen.mail_id = e.mail_id)
)))) FROM json_each(?) AS r
CROSS JOIN waits AS w ON w.run_id = json_extract(r.value, '$[0]') AND w.kind = 'event' AND w.key IS NOT NULL
"""
#: The first plan of an event to occur that bars the end of a wait: (run id, due, id, attempts). An arm with a key
#: searches the few events of its entity, one without a key the first pending events of its name.
_IN_THE_WAY: Final = """
SELECT json_group_array(json_array(run_id, due, id, attempts)) FROM (
    SELECT found.run_id, p.due, p.id, p.attempts,
        row_number() OVER (PARTITION BY found.run_id ORDER BY p.due, p.id) AS place
    FROM (
        SELECT runs.id AS run_id, iif(w.key IS NULL,
            (SELECT e.id FROM events AS e WHERE e.status = 'pending' AND e.name = w.name
                AND e.at <= min(runs.wake_at, :now)
                AND NOT EXISTS (SELECT 1 FROM seen WHERE seen.run_id = runs.id AND seen.mail_id = e.mail_id)
                ORDER BY e.at, e.id LIMIT 1),
            (SELECT e.id FROM events AS e WHERE +e.status = 'pending' AND e.name = w.name AND e.entity_id = w.key
                AND +e.at <= min(runs.wake_at, :now)
                AND NOT EXISTS (SELECT 1 FROM seen WHERE seen.run_id = runs.id AND seen.mail_id = e.mail_id)
                ORDER BY +e.at, e.id LIMIT 1)
            ) AS event
        FROM json_each(:ids) AS j CROSS JOIN runs ON runs.id = j.value
        CROSS JOIN waits AS w ON w.run_id = runs.id AND w.kind = 'event'
    ) AS found
    CROSS JOIN plans AS p ON p.event = found.event AND p.workflow = ''
) WHERE place = 1
"""


def in_the_way(db: sqlite3.Connection, run_ids: Iterable[int], now: Micros) -> dict[int, Deadline]:
    """By run: the first plan of an event that it waits for, due by the end of its wait and by now."""
    (found,) = db.execute(_IN_THE_WAY, {"ids": json.dumps(list(run_ids)), "now": now}).fetchone()
    return {run_id: Deadline._make(plan) for run_id, *plan in json.loads(found)}


def catch_up(db: sqlite3.Connection, runs: Iterable[Run]) -> None:
    """Give the runs that now wait for an event of an entity copies of those that they have missed."""
    waiting = [(run.id, run.created_at) for run in runs if run.arms is not None and '"event"' in run.arms]
    if waiting:
        (found,) = db.execute(_MISSED, (json.dumps(waiting),)).fetchone()
        missed = [
            EventRecord._make(columns).copy_for(run_id) for run_id, events in json.loads(found) for columns in events
        ]
        write(db, _WRITE_COPIES, missed)


class EventBatch:
    """What a batch does to events and plans.

    The mutable state: the events and plans that the batch names, as its changes so far leave them; listeners by event
    name, as far as they were read; what is to be written; and which runs have got copies of what occurred.
    """

    def __init__(self, db: sqlite3.Connection, changes: Iterable[Change], now: Micros) -> None:
        self._db = db
        self._now = now
        #: event_id -> the event
        self._known: dict[str, EventRecord] = {}
        #: plan id -> its event's mail_id, and the plan
        self._plans: dict[int, tuple[int, Plan]] = {}
        #: event -> its record, for the plans that an Occur names
        self._planned: dict[int, EventRecord] = {}
        self._listeners: dict[str, list[Listener]] = {}
        self._written: dict[int, EventRecord] = {}
        self._occurred: dict[int, EventRecord] = {}
        #: event -> its new plans, without ids until they are written
        self._new: dict[int, list[Plan]] = {}
        self._replanned: list[Plan] = []
        self._gone: list[int] = []
        #: events whose plans from before the batch are deleted
        self._dropped: set[int] = set()
        self._seen: list[tuple[int, int]] = []
        #: mail_id -> the runs that have a copy
        self._told: dict[int, list[int]] = {}
        self._read(changes)

    def _read(self, changes: Iterable[Change]) -> None:
        """Read what the changes name."""
        event_ids: list[str] = []
        plans: list[int] = []
        occurring: list[int] = []
        for change in changes:
            match change:
                case Emit(event):
                    event_ids.append(event.event_id)
                case Withdraw(event_id):
                    event_ids.append(event_id)
                case Occur(plan):
                    occurring.append(plan)
                case Start(plan=plan) if plan:
                    plans.append(plan)
                case Replan(of):
                    plans.append(of.id)
                case _:
                    pass
        if event_ids:
            (found,) = self._db.execute(_BY_EVENT_ID, (json.dumps(event_ids),)).fetchone()
            self._known = {event.event_id: event for event in map(EventRecord._make, json.loads(found))}
        if plans or occurring:
            (found,) = self._db.execute(_PLANS, (json.dumps(plans + occurring),)).fetchone()
            self._plans = {columns[0]: (mail_id, Plan._make(columns)) for mail_id, *columns in json.loads(found)}
        if occurring:
            (found,) = self._db.execute(_BY_PLAN, (json.dumps(occurring),)).fetchone()
            self._planned = {event.id: event for event in map(EventRecord._make, json.loads(found))}

    # ---- changes

    def emit(self, change: Emit) -> Result:
        """See Emit."""
        event, known = change.event, self._known.get(change.event.event_id)
        if known is not None and self._recorded(event, known):
            return Result("applied", event=known)
        if known is not None and not (change.replace and known.name == event.name):
            return Result("exists", event=known)
        event = event._replace(occurrence=1, status=EventStatus.PENDING.value, occurred_at=None)
        if known is not None:
            event = event._replace(id=known.id, recorded_at=known.recorded_at, occurrence=known.occurrence + 1)
            self._drop(known)
            self._db.execute("INSERT INTO replaced VALUES (?)", (known.mail_id,))
        starts = {
            (listener.workflow, listener.offset): None
            for listener in self._listening(event.name)
            if listener.namespace in ("*", event.namespace)
        }
        if event.at <= self._now:
            event = self._occur(event)
        else:
            starts["", 0] = None
        self._new[event.id] = [
            Plan(0, event.at + offset, event.id, event.occurrence, workflow, offset, 0, None)
            for workflow, offset in starts
        ]
        self._put(event)
        return Result("applied", event=event)

    def offered(self, change: Emit) -> Result:
        """The result of an Emit whose move was applied by an earlier offer."""
        known = self._known.get(change.event.event_id)
        again = known is not None and self._recorded(change.event, known)
        return Result("applied" if again else "stale" if known is None else "exists", event=known)

    def occur(self, change: Occur) -> Result:
        """See Occur."""
        plan = self._plan(change.plan)
        if plan is None or plan.workflow:
            return Result("stale")
        self._gone.append(plan.id)
        del self._plans[plan.id]
        event = self._occur(self._planned[plan.event])
        self._put(event)
        return Result("applied", event=event)

    def withdraw(self, change: Withdraw) -> Result:
        """See Withdraw."""
        event = self._known.get(change.event_id)
        if event is None or event.status == EventStatus.CANCELLED:
            return Result("stale", event=event)
        event = event._replace(status=EventStatus.CANCELLED.value)
        self._drop(event)
        self._put(event)
        return Result("applied", event=event)

    def replan(self, change: Replan) -> Result:
        """See Replan."""
        plan, due = self._plan(change.plan.id), change.due
        if plan is None:
            return Result("stale")
        attempts = change.plan.attempts + 1
        if (plan.attempts, plan.due, plan.error) == (attempts, due, change.error):
            return Result("applied")
        if plan.attempts != change.plan.attempts:
            return Result("stale")
        del self._plans[plan.id]
        if due is None:
            self._gone.append(plan.id)
            return Result("applied")
        self._replanned.append(plan._replace(due=due, attempts=attempts, error=change.error))
        return Result("applied", plans=(Deadline(due, plan.id, attempts),))

    def listen(self, change: Listen) -> Result:
        """See Listen. Written at once, so that it holds for events of the same batch."""
        sql = "DELETE FROM listeners WHERE workflow IN (SELECT value FROM json_each(?))"
        self._db.execute(sql, (json.dumps(change.workflows),))
        self._db.executemany("INSERT OR IGNORE INTO listeners VALUES (?, ?, ?, ?)", change.listeners)
        self._listeners.clear()
        return Result("applied")

    def take(self, plan_id: int) -> int | None:
        """Delete the plan of a Start. Returns the mail_id of its event, None if there is no such plan."""
        if self._plan(plan_id) is None:
            return None
        self._gone.append(plan_id)
        return self._plans.pop(plan_id)[0]

    def started(self, run_id: int, mail_id: int) -> None:
        """The run that a plan starts has taken this occurrence."""
        self._seen.append((run_id, mail_id))

    # ---- writing

    def write(self) -> None:
        """Write what was collected. The rows of runs, and with them their waits, are written already."""
        if self._gone:
            sql = "DELETE FROM plans WHERE id IN (SELECT value FROM json_each(?))"
            self._db.execute(sql, (json.dumps(self._gone),))
        if self._replanned:
            write(self._db, _WRITE_PLANS, self._replanned)
        if self._dropped:
            sql = "DELETE FROM plans WHERE event IN (SELECT value FROM json_each(?))"
            self._db.execute(sql, (json.dumps(list(self._dropped)),))
        if self._seen:
            sql = "INSERT OR IGNORE INTO seen SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?)"
            self._db.execute(sql, (json.dumps(self._seen),))
        if self._written:
            write(self._db, _WRITE_EVENTS, list(self._written.values()))
        if count := sum(map(len, self._new.values())):
            (first,) = self._db.execute(_RESERVE, {"count": count}).fetchone()
            for event, plans in self._new.items():
                self._new[event] = [plan._replace(id=first + place) for place, plan in enumerate(plans)]
                first += len(plans)
            write(self._db, _WRITE_PLANS, [plan for plans in self._new.values() for plan in plans])
        if self._occurred:
            self._tell()

    def told(self, result: Result) -> Result:
        """The result of an Emit or Occur, completed with what is known when everything is written."""
        event = result.event
        if event is None or result.outcome != "applied":
            return result
        if self._written.get(event.id) is not event:  # it was applied by an earlier offer
            return result._replace(run_ids=mailbox.holders(self._db, event.mail_id, self._now))
        plans = tuple(Deadline(plan.due, plan.id, plan.attempts) for plan in self._new.get(event.id, ()))
        return result._replace(plans=plans, run_ids=tuple(sorted(self._told.get(event.mail_id, ()))))

    def _tell(self) -> None:
        events = {event.mail_id: event for event in self._occurred.values()}
        occurred = json.dumps([(event.mail_id, event.name, event.entity_id) for event in events.values()])
        (found,) = self._db.execute(_WAITING, {"occurred": occurred}).fetchone()
        copies = []
        for mail_id, run_id in json.loads(found):
            self._told.setdefault(mail_id, []).append(run_id)
            copies.append(events[mail_id].copy_for(run_id))
        write(self._db, _WRITE_COPIES, copies)

    # ---- the state as the batch has left it so far

    def _plan(self, plan_id: int) -> Plan | None:
        _, plan = self._plans.get(plan_id, (0, None))
        return None if plan is None or plan.event in self._dropped else plan

    def _recorded(self, event: EventRecord, known: EventRecord) -> bool:
        """Whether this very event was recorded before, even if ``known`` has replaced it since."""
        if known.mail_id == event.mail_id:
            return True
        if known.occurrence == 1:  # as it nearly always is
            return False
        found = self._db.execute("SELECT 1 FROM replaced WHERE mail_id = ?", (event.mail_id,))
        return found.fetchone() is not None

    def _occur(self, event: EventRecord) -> EventRecord:
        event = event._replace(status=EventStatus.OCCURRED.value, occurred_at=self._now)
        self._occurred[event.id] = event
        return event

    def _drop(self, event: EventRecord) -> None:
        self._dropped.add(event.id)
        self._new.pop(event.id, None)
        self._occurred.pop(event.id, None)

    def _put(self, event: EventRecord) -> None:
        self._written[event.id] = event
        self._known[event.event_id] = event

    def _listening(self, name: str) -> list[Listener]:
        if name not in self._listeners:
            (found,) = self._db.execute(_LISTENERS, (name,)).fetchone()
            self._listeners[name] = sorted(map(Listener._make, json.loads(found)))
        return self._listeners[name]
