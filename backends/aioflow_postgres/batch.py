"""A batch of changes as one transaction.

Most batches are *plain*: moves and starts whose guards are checked by the statement that writes them, which is then the
whole transaction. Any other batch takes its locks first, always in the same order: keys (start keys, signal_ids,
events) as advisory locks, plans, runs by id, signals by id. Then all that its changes depend on is read, and cannot
change any more; the changes are judged in memory, and their effects are written.

Which runs a signal may wake, and what a run that parks finds in the mailbox, is queried after the commit: of two
transactions that do not see each other's writes while they are under way, the one that commits second sees the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aioflow.changes import Change, Move, Result, Start
from aioflow.clock import Micros
from aioflow.model import Run
from aioflow_postgres import mailbox
from aioflow_postgres.database import Database
from aioflow_postgres.hearing import awaits_entities
from aioflow_postgres.judging import Batch, waits_in
from aioflow_postgres.locks import lock_entities, lock_keys
from aioflow_postgres.rows import SELECT_RUNS, unnest
from aioflow_postgres.session import Session
from aioflow_postgres.writing import BEGINS, Row, write

_SAME_COMMITS: Final = f"""
SELECT h.run_id, h.seq, h.commit_id FROM {unnest(["run_id", "seq"], ["bigint", "bigint"], "o")}
JOIN aioflow.history AS h ON h.run_id = o.run_id AND h.seq = o.seq
"""


async def apply(database: Database, changes: Sequence[Change], now: Micros) -> list[Result]:
    """See the port."""
    if all(map(_is_plain, changes)):
        return await _apply_plain(database, changes, now)  # type: ignore[arg-type]

    async def transact(session: Session) -> tuple[Batch, list[Result]]:
        batch = Batch(changes, now)
        await lock_keys(session, batch.keys, batch.events.event_ids)
        await batch.events.read(session)
        await lock_entities(session, batch.awaited, batch.events.entities)
        await batch.read(session)
        results = [batch.judge(change) for change in changes]
        await batch.write(session)
        return batch, results

    batch, results = await database.transact(transact)
    return await database.ask(lambda session: batch.tell(session, changes, results))


# ---- plain batches


def _is_plain(change: Change) -> bool:
    """Whether the statement that writes the change can check its guards."""
    if type(change) is Move:
        return not (change.takes or change.unless_mail or change.also or awaits_entities(change.run))
    if type(change) is Start:
        return change.run.key is None and not change.plan and not awaits_entities(change.run)
    return False


async def _apply_plain(database: Database, changes: Sequence[Start | Move], now: Micros) -> list[Result]:
    rows = [
        Row(change.run, change.seq, change.fence, change.transition)
        if isinstance(change, Move)
        else Row(change.run, BEGINS, BEGINS, change.transition)
        for change in changes
    ]
    written = await database.say(lambda session: write(session, rows))
    results = [Result("applied", change.run) for change in changes]
    if len(written) < len(changes):
        refused = [place for place, change in enumerate(changes) if change.run.id not in written]
        told = await database.ask(lambda session: _refused(session, [changes[place] for place in refused]))
        for place, result in zip(refused, told, strict=True):
            results[place] = result
    return await _with_mail(database, results, now)


async def _refused(session: Session, changes: Sequence[Start | Move]) -> list[Result]:
    """The results of changes that were not written: "applied" if an earlier offer of them was, else "stale"."""
    places = [(change.run.id, change.transition.seq) for change in changes]
    found = await session.fetch(_SAME_COMMITS, [run_id for run_id, _ in places], [seq for _, seq in places])
    commits = {(run_id, commit_id) for run_id, _, commit_id in found}
    rows = await session.fetch(f"{SELECT_RUNS} WHERE id = ANY($1::bigint[])", [run_id for run_id, _ in places])
    runs = {run.id: run for run in map(Run._make, rows)}
    return [
        Result(
            "applied" if (change.run.id, change.transition.commit_id) in commits else "stale", runs.get(change.run.id)
        )
        for change in changes
    ]


async def _with_mail(database: Database, results: list[Result], now: Micros) -> list[Result]:
    waiting = waits_in(results)
    if not waiting:
        return results
    found = await database.ask(lambda session: mailbox.with_mail(session, waiting, now))
    return [
        result._replace(mail=True) if result.run is not None and result.run.id in found else result
        for result in results
    ]
