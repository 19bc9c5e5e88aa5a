"""Records, replaces and cancels events, lets them occur, and keeps their plans.

What a batch depends on is read first; then its changes are judged in order, in memory; then all is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, assert_never

from aioflow.changes import Change, Emit, Listen, Occur, Replan, Result, Start, Withdraw
from aioflow.clock import Micros
from aioflow.model import Deadline, Signal
from aioflow.plans import EventRecord, EventStatus, Listener, Plan
from aioflow_postgres import mailbox
from aioflow_postgres.hearing import WRITE_COPIES
from aioflow_postgres.rows import EVENT_COLUMNS, PLAN_COLUMNS, columns, named, rows_of, unnest
from aioflow_postgres.session import Session

_BY_EVENT_ID: Final = f"SELECT {EVENT_COLUMNS} FROM aioflow.events AS e WHERE e.event_id = ANY($1::text[])"
_BY_ID: Final = f"SELECT {EVENT_COLUMNS} FROM aioflow.events AS e WHERE e.id = ANY($1::bigint[])"
_PLANS: Final = f"""
SELECT {PLAN_COLUMNS} FROM aioflow.plans AS p WHERE p.id = ANY($1::bigint[]) ORDER BY p.id FOR UPDATE
"""
_LISTENERS: Final = f"SELECT {named(Listener._fields)} FROM aioflow.listeners WHERE event_name = ANY($1::text[])"
_WRITE_EVENTS: Final = f"""
INSERT INTO aioflow.events ({named(EventRecord._fields)}) SELECT * FROM {rows_of(EventRecord, "n")}
ON CONFLICT (id) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in EventRecord._fields[2:])}
"""
_WRITE_PLANS: Final = f"""
INSERT INTO aioflow.plans ({named(Plan._fields)}) SELECT * FROM {rows_of(Plan, "n")}
ON CONFLICT (id) DO UPDATE SET due = excluded.due, attempts = excluded.attempts, error = excluded.error
"""
_LISTEN: Final = f"""
INSERT INTO aioflow.listeners ({named(Listener._fields)}) SELECT * FROM {rows_of(Listener, "n")} ON CONFLICT DO NOTHING
"""
_RESERVE: Final = """
INSERT INTO aioflow.ids AS i VALUES ('plan', $1 + 1) ON CONFLICT (kind) DO UPDATE SET next = i.next + $1
RETURNING next - $1
"""
#: The runs that wait for what has occurred. The rows of their waits are locked until the copies are committed, see
#: mailbox.py.
_WAITING: Final = f"""
WITH occurred AS (SELECT * FROM {unnest(["mail_id", "name", "entity_id"], ["bigint", "text", "text"], "o")}),
found AS (
    SELECT w.run_id, w.arm FROM occurred AS o JOIN aioflow.waits AS w ON w.name = o.name AND w.key = o.entity_id
    UNION
    SELECT w.run_id, w.arm FROM occurred AS o JOIN aioflow.waits AS w ON w.name = o.name AND w.key IS NULL
),
heard AS (
    SELECT w.run_id, w.name, w.key FROM found AS f JOIN aioflow.waits AS w ON w.run_id = f.run_id AND w.arm = f.arm
    WHERE w.kind = 'event' ORDER BY w.run_id, w.arm FOR KEY SHARE OF w
)
SELECT DISTINCT o.mail_id, h.run_id FROM occurred AS o JOIN heard AS h ON h.name = o.name
WHERE (h.key IS NULL OR h.key = o.entity_id)
    AND NOT EXISTS (SELECT 1 FROM aioflow.seen AS s WHERE s.run_id = h.run_id AND s.mail_id = o.mail_id)
"""
_SEE: Final = f"""
INSERT INTO aioflow.seen SELECT * FROM {unnest(["run_id", "mail_id"], ["bigint", "bigint"], "s")} ON CONFLICT DO NOTHING
"""


class Events:
    """What a batch does to events and plans.

    The mutable state: the events, plans and listeners that the batch names, as its changes so far leave them; what is
    to be written; and which runs have mail because of it.
    """

    def __init__(self, changes: Iterable[Change], now: Micros) -> None:
        self._changes = list(changes)
        self._now = now
        #: event_id -> the event
        self._known: dict[str, EventRecord] = {}
        #: event -> the record, for the events of plans that the batch names
        self._planned: dict[int, EventRecord] = {}
        self._plans: dict[int, Plan] = {}
        self._listeners: list[Listener] = []
        self._written: dict[int, EventRecord] = {}
        #: The mail_ids in the batch that were recorded and then replaced; and those that the batch replaces.
        self._replaced: set[int] = set()
        self._replaces: list[int] = []
        self._occurred: dict[int, EventRecord] = {}
        #: event -> its new plans, without ids until they are written
        self._new: dict[int, list[Plan]] = {}
        self._replanned: list[Plan] = []
        self._gone: list[int] = []
        #: events whose plans from before the batch are deleted
        self._dropped: set[int] = set()
        self._seen: list[tuple[int, int]] = []
        self._listens: list[Listen] = []
        #: mail_id -> the runs that have a copy
        self._told: dict[int, list[int]] = {}

    @property
    def event_ids(self) -> list[str]:
        """The event_ids of the events that the batch is about: one transaction at a time decides about each."""
        ids = []
        for change in self._changes:
            match change:
                case Emit(event):
                    ids.append(event.event_id)
                case Withdraw(event_id) | Occur(_, event_id):
                    ids.append(event_id)
                case _:
                    pass
        return ids

    async def read(self, session: Session) -> None:
        """Read what the changes name, and lock the plans."""
        plans: list[int] = []
        names: set[str] = set()
        for change in self._changes:
            match change:
                case Emit(event):
                    names.add(event.name)
                case Occur(plan):
                    plans.append(plan)
                case Start(plan=plan) if plan:
                    plans.append(plan)
                case Replan(of):
                    plans.append(of.id)
                case _:
                    pass
        if event_ids := self.event_ids:
            found = map(EventRecord._make, await session.fetch(_BY_EVENT_ID, event_ids))
            self._known = {event.event_id: event for event in found}
            await self._read_replaced(session)
        if plans:
            self._plans = {plan.id: plan for plan in map(Plan._make, await session.fetch(_PLANS, plans))}
            events = [plan.event for plan in self._plans.values()]
            found = map(EventRecord._make, await session.fetch(_BY_ID, events))
            self._planned = {event.id: event for event in found}
        if names:
            found_listeners = await session.fetch(_LISTENERS, list(names))
            self._listeners = [Listener._make(row) for row in found_listeners]

    async def _read_replaced(self, session: Session) -> None:
        emitted = [change.event for change in self._changes if isinstance(change, Emit)]
        known = [(event, self._known.get(event.event_id)) for event in emitted]
        asked = [event.mail_id for event, other in known if other is not None and other.occurrence > 1]
        if asked:  # which is rare
            found = await session.fetch("SELECT mail_id FROM aioflow.replaced WHERE mail_id = ANY($1::bigint[])", asked)
            self._replaced = {mail_id for (mail_id,) in found}

    @property
    def entities(self) -> list[tuple[str, str]]:
        """(event, entity_id) of the events that may occur in the batch."""
        may_occur = [change.event for change in self._changes if isinstance(change, Emit)] + list(
            self._planned.values()
        )
        return [(event.name, event.entity_id) for event in may_occur if event.entity_id is not None]

    # ---- changes

    def judge(self, change: Emit | Occur | Withdraw | Replan | Listen) -> Result:
        """The result of a change, after those before it."""
        match change:
            case Emit():
                return self._emit(change)
            case Occur():
                return self._occurs(change)
            case Withdraw():
                return self._withdraw(change)
            case Replan():
                return self._replan(change)
            case Listen(workflows, listeners):
                kept = [listener for listener in self._listeners if listener.workflow not in workflows]
                self._listeners = [*kept, *listeners]
                self._listens.append(change)
                return Result("applied")
            case _:
                assert_never(change)

    def _emit(self, change: Emit) -> Result:
        event, known = change.event, self._known.get(change.event.event_id)
        if known is not None and self._recorded(event, known):
            return Result("applied", event=known)
        if known is not None and not (change.replace and known.name == event.name):
            return Result("exists", event=known)
        event = event._replace(occurrence=1, status=EventStatus.PENDING.value, occurred_at=None)
        if known is not None:
            event = event._replace(id=known.id, recorded_at=known.recorded_at, occurrence=known.occurrence + 1)
            self._drop(known)
            self._replaces.append(known.mail_id)
        starts = {
            (listener.workflow, listener.offset): None
            for listener in sorted(self._listeners)
            if listener.event_name == event.name and listener.namespace in ("*", event.namespace)
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

    def _recorded(self, event: EventRecord, known: EventRecord) -> bool:
        """Whether this very occurrence was recorded, even if ``known`` has replaced it since."""
        return known.mail_id == event.mail_id or event.mail_id in self._replaced

    def offered(self, change: Emit) -> Result:
        """The result of an Emit in a Move that an earlier offer has applied."""
        known = self._known.get(change.event.event_id)
        again = known is not None and self._recorded(change.event, known)
        return Result("applied" if again else "stale" if known is None else "exists", event=known)

    def _occurs(self, change: Occur) -> Result:
        plan = self._plan(change.plan)
        if plan is None or plan.workflow:
            return Result("stale")
        self._gone.append(plan.id)
        del self._plans[plan.id]
        event = self._occur(self._planned[plan.event])
        self._put(event)
        return Result("applied", event=event)

    def _withdraw(self, change: Withdraw) -> Result:
        event = self._known.get(change.event_id)
        if event is None or event.status == EventStatus.CANCELLED:
            return Result("stale", event=event)
        event = event._replace(status=EventStatus.CANCELLED.value)
        self._drop(event)
        self._put(event)
        return Result("applied", event=event)

    def _replan(self, change: Replan) -> Result:
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

    def take(self, plan_id: int) -> int | None:
        """Delete a plan for the Start that fulfils it; return its event's mail_id, or None if there is no such plan."""
        plan = self._plan(plan_id)
        if plan is None:
            return None
        self._gone.append(plan_id)
        del self._plans[plan_id]
        return self._planned[plan.event].mail_id

    def started(self, run_id: int, mail_id: int) -> None:
        """The run that a plan starts has taken this occurrence."""
        self._seen.append((run_id, mail_id))

    # ---- writing

    async def write(self, session: Session) -> None:
        """Write the effects of the changes. The rows of runs are written already, and with them their waits."""
        for workflows, listeners in self._listens:
            await session.execute("DELETE FROM aioflow.listeners WHERE workflow = ANY($1::text[])", list(workflows))
            await session.execute(_LISTEN, *columns([*dict.fromkeys(listeners)], len(Listener._fields)))
        if self._gone:
            await session.execute("DELETE FROM aioflow.plans WHERE id = ANY($1::bigint[])", self._gone)
        if self._replanned:
            await session.execute(_WRITE_PLANS, *columns(self._replanned, len(Plan._fields)))
        if self._dropped:
            await session.execute("DELETE FROM aioflow.plans WHERE event = ANY($1::bigint[])", list(self._dropped))
        if self._seen:
            await session.execute(_SEE, *columns(self._seen, 2))
        if self._replaces:
            await session.execute("INSERT INTO aioflow.replaced SELECT unnest($1::bigint[])", self._replaces)
        if self._written:
            await session.execute(_WRITE_EVENTS, *columns([*self._written.values()], len(EventRecord._fields)))
        if number := sum(map(len, self._new.values())):
            [(first,)] = await session.fetch(_RESERVE, number)
            for event, plans in self._new.items():
                self._new[event] = [plan._replace(id=first + place) for place, plan in enumerate(plans)]
                first += len(plans)
            new = [plan for plans in self._new.values() for plan in plans]
            await session.execute(_WRITE_PLANS, *columns(new, len(Plan._fields)))
        if self._occurred:
            await self._tell(session)

    async def _tell(self, session: Session) -> None:
        events = {event.mail_id: event for event in self._occurred.values()}
        occurred = [(event.mail_id, event.name, event.entity_id) for event in events.values()]
        copies = []
        for mail_id, run_id in sorted(map(tuple, await session.fetch(_WAITING, *columns(occurred, 3)))):
            self._told.setdefault(mail_id, []).append(run_id)
            copies.append(events[mail_id].copy_for(run_id))
        if copies:
            await session.execute(WRITE_COPIES, *columns(copies, len(Signal._fields)))

    async def look(self, session: Session, results: Iterable[Result]) -> None:
        """Query what ``told`` needs to know about events that an earlier offer has recorded."""
        events = [result.event for result in results if result.event is not None and result.outcome == "applied"]
        if earlier := [event.mail_id for event in events if self._written.get(event.id) is not event]:
            holders = await mailbox.holders(session, earlier, self._now)
            self._told.update((mail_id, list(runs)) for mail_id, runs in holders.items())

    def told(self, result: Result) -> Result:
        """The result of an Emit or Occur, completed with what is known once everything is committed."""
        event = result.event
        if event is None or result.outcome != "applied":
            return result
        new = self._new.get(event.id, ()) if self._written.get(event.id) is event else ()
        plans = tuple(Deadline(plan.due, plan.id, plan.attempts) for plan in new)
        return result._replace(plans=plans, run_ids=tuple(self._told.get(event.mail_id, ())))

    # ---- the batch's effects so far

    def _plan(self, plan_id: int) -> Plan | None:
        plan = self._plans.get(plan_id)
        return None if plan is None or plan.event in self._dropped else plan

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
