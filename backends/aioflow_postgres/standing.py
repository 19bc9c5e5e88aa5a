"""The state that a batch's changes depend on, read under locks that keep it unchanged until the transaction ends."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from aioflow.changes import Amend, Change, Mark, Move, Post, Start
from aioflow.clock import Micros
from aioflow.model import Arm, Deadline, Run, Transition
from aioflow_postgres import mailbox
from aioflow_postgres.hearing import in_the_way
from aioflow_postgres.rows import HISTORY_COLUMNS, SELECT_RUNS, columns, unnest
from aioflow_postgres.session import Session

ROWS: Final = f"{SELECT_RUNS} WHERE id = ANY($1::bigint[])"
#: Locked in the order of their ids, as by every transaction.
_GUARDS: Final = """
SELECT id, seq, fence, status FROM aioflow.runs WHERE id = ANY($1::bigint[]) ORDER BY id FOR NO KEY UPDATE
"""
_COMMITS: Final = f"""
SELECT h.run_id, h.commit_id FROM {unnest(["run_id", "seq"], ["bigint", "bigint"], "o")}
JOIN aioflow.history AS h ON h.run_id = o.run_id AND h.seq = o.seq
"""
_AMENDED: Final = f"""
SELECT {", ".join(f"h.{name}" for name in HISTORY_COLUMNS.split(", "))}
FROM {unnest(["run_id", "commit_id"], ["bigint", "bigint"], "o")}
JOIN aioflow.history AS h ON h.run_id = o.run_id AND h.commit_id = o.commit_id
"""
#: The live runs with the key, up to two, and the two newest: one of them holds the key, whatever the batch does to
#: them. Live runs are searched for separately: the clocks of starters may differ, and very many runs may have ended.
_HOLDERS: Final = f"""
SELECT h.workflow, h.key, h.id, h.status, h.created_at
FROM {unnest(["workflow", "key"], ["text", "text"], "o")} CROSS JOIN LATERAL (
    (SELECT * FROM aioflow.runs AS r WHERE r.workflow = o.workflow AND r.key = o.key
        AND r.status IN ('running', 'waiting') ORDER BY r.created_at DESC, r.id DESC LIMIT 2)
    UNION ALL
    (SELECT * FROM aioflow.runs AS r WHERE r.workflow = o.workflow AND r.key = o.key
        ORDER BY r.created_at DESC, r.id DESC LIMIT 2)
) AS h
"""
_WAITS: Final = "SELECT id, wake_at, arms FROM aioflow.runs WHERE id = ANY($1::bigint[]) AND arms IS NOT NULL"


class Standing:
    """The state that the changes of a batch find.

    Attributes:
        guards: run -> seq, fence and status, for the runs that the changes are about.
        rows: the runs of Amends; once the batch is written, the runs that results need.
        commits: (run, commit_id) of changes that were applied before.
        amended: run -> the history row of an Amend that was applied before.
        holders: (workflow, key) -> id, status and created_at of the runs that may hold the key.
        untaken: (id, run id) of signals that can be taken.
        in_time: waiting runs that have mail that was sent by their deadline.
        to_occur: waiting run -> the first plan of an event to occur by its deadline that fits an arm.
        waits: waiting run -> its deadline and arms.
        before: what the mailbox knows of signals that are to be posted.
    """

    def __init__(self, changes: Sequence[Change], now: Micros) -> None:
        self._changes = changes
        self._now = now
        self.guards: dict[int, tuple[int, int, str]] = {}
        self.rows: dict[int, Run] = {}
        self.commits: set[tuple[int, int]] = set()
        self.amended: dict[int, Transition] = {}
        self.holders: dict[tuple[str, str], list[tuple[int, str, int]]] = {}
        self.untaken: set[tuple[int, int]] = set()
        self.in_time: set[int] = set()
        self.to_occur: dict[int, Deadline] = {}
        self.waits: dict[int, tuple[Micros | None, list[Arm]]] = {}
        self.before = mailbox.Before(frozenset(), {})

    async def read(self, session: Session) -> None:
        """Lock the runs, and read what else the changes depend on."""
        ids = {run_id for change in self._changes if (run_id := _run_of(change))}
        if ids:
            found = await session.fetch(_GUARDS, sorted(ids))
            self.guards = {row["id"]: (row["seq"], row["fence"], row["status"]) for row in found}
        amends = [change for change in self._changes if isinstance(change, Amend)]
        if amends:
            rows = await session.fetch(ROWS, [change.run_id for change in amends])
            self.rows = {run.id: run for run in map(Run._make, rows)}
            places = [(change.run_id, change.commit_id) for change in amends]
            before = map(Transition._make, await session.fetch(_AMENDED, *columns(places, 2)))
            self.amended = {transition.run_id: transition for transition in before}
        if offered := [place for change in self._changes if (place := self._offered_before(change))]:
            self.commits = {(id_, commit) for id_, commit in await session.fetch(_COMMITS, *columns(offered, 2))}
        await self._read_keys(session)
        if takes := [
            (id_, change.run.id) for change in self._changes if isinstance(change, Move) for id_ in change.takes
        ]:
            self.untaken = await mailbox.untaken(session, takes, self._now)
        if waiting := [change.run.id for change in self._changes if isinstance(change, Move) and change.unless_mail]:
            self.in_time = await mailbox.in_time(session, waiting, self._now)
            self.to_occur = await in_the_way(session, waiting, self._now)
        signals = [change.signal for change in self._changes if isinstance(change, Post)]
        if waiting and signals:  # signals that the batch itself posts may be for these runs
            waits = await session.fetch(_WAITS, waiting)
            self.waits = {id_: (wake_at, [Arm(*arm) for arm in json.loads(arms)]) for id_, wake_at, arms in waits}
        self.before = await mailbox.before(session, signals, self._now)

    async def _read_keys(self, session: Session) -> None:
        runs = [change.run for change in self._changes if isinstance(change, Start) and change.run.key is not None]
        if runs:
            keys = [(run.workflow, run.key) for run in runs]
            for workflow, key, *holder in await session.fetch(_HOLDERS, *columns(keys, 2)):
                self.holders.setdefault((workflow, key), []).append(tuple(holder))

    def _offered_before(self, change: Change) -> tuple[int, int] | None:
        """Where the history has the change's commit_id, if an earlier offer was applied; None if none can have been."""
        if isinstance(change, Start) and change.run.id in self.guards:
            return change.run.id, change.transition.seq
        if isinstance(change, Move) and self.guards.get(change.run.id, ())[:2] != (change.seq, change.fence):
            return change.run.id, change.transition.seq
        return None


def _run_of(change: Change) -> int:
    """The run whose row the change depends on."""
    if isinstance(change, Start | Move):
        return change.run.id
    if isinstance(change, Post):
        return change.signal.run_id
    return change.run_id if isinstance(change, Mark | Amend) else 0
