"""Leases of workers, and claims of running runs without a living owner."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from aioflow.clock import SECOND, Micros
from aioflow.model import SUSPECT_CRASHES, Run
from aioflow.store import Claim
from aioflow_postgres.database import Database
from aioflow_postgres.rows import SELECT_RUNS, named
from aioflow_postgres.session import Session

_RENEW: Final = "UPDATE aioflow.workers SET until = $2 WHERE id = $1 AND until > $3 RETURNING id"
#: The owners of running runs whose lease is over, or that are unknown: one step through the index for each owner,
#: however many runs it has; then, if ``$3``, the worker's own running runs.
_LOOK: Final = """
WITH RECURSIVE owners (owner) AS (
    (SELECT owner FROM aioflow.runs WHERE status = 'running' AND owner IS NOT NULL ORDER BY owner LIMIT 1)
    UNION ALL
    SELECT (
        SELECT r.owner FROM aioflow.runs AS r WHERE r.status = 'running' AND r.owner > o.owner ORDER BY r.owner LIMIT 1
    ) FROM owners AS o WHERE o.owner IS NOT NULL
) SELECT o.owner, false FROM owners AS o LEFT JOIN aioflow.workers AS w ON w.id = o.owner
WHERE o.owner IS NOT NULL AND o.owner <> $1 AND (w.id IS NULL OR w.until <= $2)
UNION ALL SELECT id, true FROM aioflow.runs WHERE $3 AND status = 'running' AND owner = $1
"""
#: Checks again under the lock: a worker that has just renewed its lease, or is back, lives. The lease of a dead one is
#: set to 0, its row locked until its runs are taken: it cannot renew afterwards, whatever its clock says, as it has
#: lost runs. The worker ``$1`` itself, if its lease is over, is registered here, so that all take these locks in one
#: order.
_BURY: Final = """
INSERT INTO aioflow.workers AS w (id, until)
SELECT u.id, CASE u.id WHEN $1::bigint THEN $4::bigint ELSE 0 END FROM unnest($2::bigint[]) AS u (id)
WHERE NOT EXISTS (SELECT FROM aioflow.workers AS o WHERE o.id = u.id AND o.until > $3) ORDER BY u.id
ON CONFLICT (id) DO UPDATE SET until = excluded.until WHERE w.until <= $3
RETURNING id
"""
#: ``OFFSET 0``: evaluated row by row, so that no more rows are read than are needed.
_IS_KNOWN: Final = """
EXISTS (
    SELECT FROM unnest($3::text[], $4::text[]) AS k (workflow, version)
    WHERE k.workflow = r.workflow AND k.version = r.version OFFSET 0
)
"""
_IS_WANTED: Final = f"($10::boolean OR r.crashes < {SUSPECT_CRASHES})"
#: A lease that is not over is left as it is, and its row unlocked: pulse.py renews it while the event loop is blocked,
#: perhaps in the middle of this. Runs of dead owners come before those without one. The latter are read in the order of
#: the index, which skips what others have taken: a bitmap scan would read all of that each time, until a vacuum.
_CLAIM: Final = f"""
WITH registered AS (
    INSERT INTO aioflow.workers AS w (id, until) SELECT $1, $6
    WHERE NOT EXISTS (SELECT FROM aioflow.workers WHERE id = $1 AND until > $7)
    ON CONFLICT (id) DO UPDATE SET until = excluded.until WHERE w.until <= $7
),
orphaned AS (
    SELECT r.id FROM aioflow.runs AS r WHERE r.status = 'running' AND r.owner = ANY($2::bigint[]) AND {_IS_WANTED} AND {_IS_KNOWN}
    ORDER BY r.id LIMIT $5 FOR NO KEY UPDATE SKIP LOCKED
),
unowned AS (
    SELECT r.id FROM aioflow.runs AS r WHERE r.status = 'running' AND r.owner IS NULL AND (r.created_at, r.id) > ($8, $9)
        AND {_IS_WANTED} AND {_IS_KNOWN}
    ORDER BY r.owner, r.created_at, r.id LIMIT $5 - (SELECT count(*) FROM orphaned) FOR NO KEY UPDATE SKIP LOCKED
),
free AS (SELECT id FROM orphaned UNION ALL SELECT id FROM unowned)
UPDATE aioflow.runs AS r SET owner = $1, fence = r.fence + 1, marked = 0,
    crashes = r.crashes + (r.owner IS NOT NULL AND (r.crashes < {SUSPECT_CRASHES} OR r.marked = 1))::int
FROM free WHERE r.id = free.id RETURNING {named(Run._fields, "r.")}
"""
#: Before all runs.
_FIRST: Final = (-(2**63), 0)
_FREE: Final = """
UPDATE aioflow.runs SET owner = NULL, fence = fence + 1, marked = 0 WHERE status = 'running' AND owner = $1
"""
#: Workers whose lease has been over for ``_MEMORY`` are forgotten.
_FORGET: Final = "DELETE FROM aioflow.workers WHERE until < $1"
_MEMORY: Final[Micros] = 24 * 3600 * SECOND


async def claim(
    database: Database,
    worker: int,
    *,
    lease: Micros,
    limit: int,
    known: Collection[tuple[str, str]],
    held: Collection[int] | None,
    now: Micros,
    after: tuple[Micros, int] | None = None,
    suspects: bool = True,
) -> Claim:
    """See the port. Only two statements, without a transaction, if no owner is dead, as every hint leads to a claim."""
    seen = await database.ask(lambda session: session.fetch(_LOOK, worker, now, held is not None))
    mine = {run_id for run_id, is_run in seen if is_run}
    dead = [owner for owner, is_run in seen if not is_run] if limit > 0 and known else []
    workflows, versions = zip(*known, strict=True) if known else ((), ())

    async def take(session: Session) -> list[Run]:
        entered = await session.fetch(_BURY, worker, [*dead, worker], now, now + lease) if dead else []
        buried = [owner for (owner,) in entered if owner != worker]
        values = (worker, buried, workflows, versions, max(limit, 0), now + lease, now, *(after or _FIRST), suspects)
        return sorted(Run._make(row) for row in await session.fetch(_CLAIM, *values))

    runs = await (database.transact(take) if dead else database.say(take))
    if held is None:
        return Claim(True, runs)
    held = set(held)
    if lost := mine.difference(held, (run.id for run in runs)):
        sql = f"{SELECT_RUNS} WHERE id = ANY($1::bigint[]) AND owner = $2 AND status = 'running'"
        rows = await database.ask(lambda session: session.fetch(sql, sorted(lost), worker))
        runs += [Run._make(row) for row in rows]
    return Claim(True, runs, held.difference(mine, (run.id for run in runs)))


async def renew(session: Session, worker: int, lease: Micros, now: Micros) -> bool:
    """See the port."""
    return bool(await session.fetch(_RENEW, worker, now + lease, now))


async def release(session: Session, worker: int, now: Micros) -> None:
    """See the port."""
    await session.execute(_FORGET, now - _MEMORY)
    await session.execute("DELETE FROM aioflow.workers WHERE id = $1", worker)
    await session.execute(_FREE, worker)
