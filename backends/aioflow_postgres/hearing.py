"""Runs that wait for events: the copies of those that occurred before the wait, and those due before it times out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from aioflow.clock import Micros
from aioflow.model import Deadline, Run, Signal, arms_of
from aioflow.plans import EventRecord
from aioflow_postgres.rows import EVENT_COLUMNS, columns, named, rows_of, unnest
from aioflow_postgres.session import Session

#: A copy that has expired with an earlier wait of the run becomes valid again.
WRITE_COPIES: Final = f"""
INSERT INTO aioflow.signals ({named(Signal._fields)}) SELECT * FROM {rows_of(Signal, "n")}
ON CONFLICT (id, run_id) DO UPDATE SET expires_at = NULL WHERE signals.taken_at IS NULL
"""
#: What runs that wait for an event of an entity have missed. ``OFFSET 0`` makes the planner go from the run to its
#: waits, and from a wait to the events of its entity: while the tables are empty it would choose another order.
_MISSED: Final = f"""
SELECT w.run_id, {EVENT_COLUMNS} FROM {unnest(["run_id", "since"], ["bigint", "bigint"], "r")}
CROSS JOIN LATERAL (
    SELECT * FROM aioflow.waits AS w WHERE w.run_id = r.run_id AND w.kind = 'event' AND w.key IS NOT NULL OFFSET 0
) AS w
CROSS JOIN LATERAL (
    SELECT * FROM aioflow.events AS e WHERE e.name = w.name AND e.entity_id = w.key AND e.occurred_at >= r.since OFFSET 0
) AS e
WHERE e.status = 'occurred'
    AND NOT EXISTS (SELECT 1 FROM aioflow.seen AS s WHERE s.run_id = w.run_id AND s.mail_id = e.mail_id)
"""
#: Of each run, the first plan of an event to occur that is due before its wait times out. An arm with a key looks at
#: the few events of its entity, one without a key at the first pending event of its name.
_IN_THE_WAY: Final = """
SELECT DISTINCT ON (r.id) r.id, p.due, p.id, p.attempts FROM aioflow.runs AS r
JOIN aioflow.waits AS w ON w.run_id = r.id AND w.kind = 'event'
CROSS JOIN LATERAL (
    (SELECT e.id FROM aioflow.events AS e
    WHERE w.key IS NULL AND e.status = 'pending' AND e.name = w.name AND e.at <= least(r.wake_at, $2)
        AND NOT EXISTS (SELECT 1 FROM aioflow.seen AS s WHERE s.run_id = r.id AND s.mail_id = e.mail_id)
    ORDER BY e.at, e.id LIMIT 1)
    UNION ALL
    (SELECT e.id FROM aioflow.events AS e
    WHERE e.status = 'pending' AND e.name = w.name AND e.entity_id = w.key AND e.at <= least(r.wake_at, $2)
        AND NOT EXISTS (SELECT 1 FROM aioflow.seen AS s WHERE s.run_id = r.id AND s.mail_id = e.mail_id)
    ORDER BY e.at, e.id LIMIT 1)
) AS e
JOIN aioflow.plans AS p ON p.event = e.id AND p.workflow = ''
WHERE r.id = ANY($1::bigint[]) AND r.wake_at IS NOT NULL ORDER BY r.id, p.due, p.id
"""


async def in_the_way(session: Session, run_ids: list[int], now: Micros) -> dict[int, Deadline]:
    """Run -> the first plan of an event to occur that is due by the end of its wait, and by now, and fits an arm."""
    found = await session.fetch(_IN_THE_WAY, run_ids, now)
    return {run_id: Deadline._make(plan) for run_id, *plan in found}


def awaits_entities(run: Run) -> bool:
    """Whether the run waits for an event of an entity, and so gets also what has occurred before."""
    return bool(entities_of(run))


def entities_of(run: Run) -> list[tuple[str, str]]:
    """The (event, entity_id) pairs that the run waits for."""
    if run.arms is None or '"event"' not in run.arms:
        return []
    return [(arm.name, arm.key) for arm in arms_of(run) if arm.kind == "event" and arm.key is not None]


async def catch_up(session: Session, runs: Iterable[Run]) -> None:
    """Give runs that now wait for an event of an entity the copies of what they have missed."""
    if waiting := [(run.id, run.created_at) for run in runs if awaits_entities(run)]:
        found = await session.fetch(_MISSED, *columns(waiting, 2))
        copies = {(row[0], row["mail_id"]): EventRecord._make(list(row)[1:]).copy_for(row[0]) for row in found}
        if copies:
            await session.execute(WRITE_COPIES, *columns([*copies.values()], len(Signal._fields)))
