"""The mailbox: signals on their way to runs.

Tables ``signals`` and ``waits``; triggers keep the latter in step with ``runs.arms``. Copies of events
(``signals.event``) are stored like those of broadcasts, for arms of kind "event" (``waits.kind``). A taken signal stays
as a tombstone, so that the same Post offered twice is stored once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Final, NamedTuple

from aioflow.clock import SECOND, Micros
from aioflow.model import Run, Signal
from aioflow.store import Mail
from aioflow_postgres.rows import SELECT_RUNS, SIGNAL_COLUMNS, columns, named, rows_of, unnest
from aioflow_postgres.session import Session

_COLUMNS: Final = named(Signal._fields)
_HOUR: Final = 3600 * SECOND
#: How long a taken signal is remembered: if it has a signal_id; and if not, for a Post that is offered again.
_MEMORY: Final = 7 * 24 * _HOUR
_SHORT_MEMORY: Final = _HOUR
#: How many signals of one run a Mail has at most: a run takes one at a time.
_FEW: Final = 8

#: The condition that a signal can be taken. ``$1``: now.
_UNTAKEN_YET: Final = "s.taken_at IS NULL AND (s.expires_at IS NULL OR s.expires_at > $1)"
_OF_KIND: Final = "w.kind = CASE WHEN s.event IS NULL THEN 'signal' ELSE 'event' END"
_PAIR: Final = "SELECT w.since, w.run_id AS waiter, s.id, s.run_id, s.sent_at"
#: All pairs of a wait and a signal that fits it. A run has few waits, but the waits of all runs may have the same name:
#: ``|| ''`` keeps the planner from using the index on names, as it would while the tables are empty.
_OF_ALL: Final = f"""
{_PAIR} FROM aioflow.waits AS w JOIN aioflow.signals AS s ON s.run_id = w.run_id AND s.name = w.name || ''
WHERE {_UNTAKEN_YET} AND s.run_id <> 0 AND {_OF_KIND}
UNION
{_PAIR} FROM aioflow.waits AS w JOIN aioflow.signals AS s ON s.name = w.name AND s.key = w.key
WHERE {_UNTAKEN_YET} AND s.run_id = 0 AND w.kind = 'signal'
"""
#: The pairs of some runs (``$2``), the first few of each wait. ``OFFSET`` and ``LIMIT`` make the planner go from the
#: run to its waits, and from a wait to its signals: without statistics it would choose another order.
_WAITS: Final = """
unnest($2::bigint[]) AS o (run_id)
CROSS JOIN LATERAL (SELECT * FROM aioflow.waits AS w WHERE w.run_id = o.run_id OFFSET 0) AS w
"""
_FIRST: Final = f"{_UNTAKEN_YET} ORDER BY s.sent_at, s.id LIMIT {_FEW}"
_OF_THESE: Final = f"""
{_PAIR} FROM {_WAITS} CROSS JOIN LATERAL (
    SELECT * FROM aioflow.signals AS s WHERE s.run_id = w.run_id AND s.run_id <> 0 AND s.name = w.name AND {_OF_KIND}
        AND {_FIRST}
) AS s
UNION
{_PAIR} FROM {_WAITS} CROSS JOIN LATERAL (
    SELECT * FROM aioflow.signals AS s WHERE s.run_id = 0 AND s.name = w.name AND s.key = w.key AND w.kind = 'signal'
        AND {_FIRST}
) AS s
"""
#: ``OFFSET 0``: each signal is looked up by its key, where a join might go through all pairs for each signal.
_MAIL: Final = f"""
SELECT f.since, f.waiter, {SIGNAL_COLUMNS} FROM (
    SELECT *, row_number() OVER (PARTITION BY waiter ORDER BY sent_at, id) AS place,
        dense_rank() OVER (ORDER BY since, waiter) AS rank
    FROM ({{fitting}}) AS fitting
) AS f CROSS JOIN LATERAL (SELECT * FROM aioflow.signals AS s WHERE s.id = f.id AND s.run_id = f.run_id OFFSET 0) AS s
WHERE place <= {_FEW} AND rank <= {{limit}} ORDER BY rank, place
"""
_AFTER: Final = "SELECT * FROM ({fitting}) AS f WHERE (since, waiter) > (${since}::bigint, ${waiter}::bigint)"
_KNOWN: Final = """
SELECT f.* FROM ({fitting}) AS f JOIN aioflow.runs AS r ON r.id = f.waiter
WHERE (r.workflow, r.version) IN (SELECT workflow, version FROM {pairs})
"""
_IN_TIME: Final = f"""
SELECT DISTINCT f.waiter FROM ({_OF_THESE}) AS f
JOIN aioflow.runs AS r ON r.id = f.waiter AND f.sent_at <= coalesce(r.wake_at, f.sent_at)
"""
_UNTAKEN: Final = f"""
SELECT s.id, s.run_id FROM {unnest(["id", "run_id"], ["bigint"] * 2, "o", 2)}
JOIN aioflow.signals AS s ON s.id = o.id AND s.run_id = o.run_id
WHERE s.taken_at IS NULL AND (s.expires_at IS NULL OR s.expires_at > $1)
ORDER BY s.id, s.run_id FOR NO KEY UPDATE OF s
"""
#: Which events a run has taken is remembered as long as the run exists.
_TAKE: Final = f"""
WITH taken AS (
    UPDATE aioflow.signals AS s SET taken_at = $1, taken_by = t.taker,
        signal_id = CASE WHEN t.taker IS NULL THEN NULL ELSE s.signal_id END
    FROM {unnest(["id", "run_id", "taker"], ["bigint"] * 3, "t", 2)} WHERE s.id = t.id AND s.run_id = t.run_id
    RETURNING s.run_id, s.id, s.event
)
INSERT INTO aioflow.seen SELECT run_id, id FROM taken WHERE event IS NOT NULL ON CONFLICT DO NOTHING
"""
_POSTED: Final = "SELECT DISTINCT id FROM aioflow.signals WHERE id = ANY($1::bigint[])"
_SENT: Final = """
SELECT signal_id, id, taken_at IS NULL AS waits, taken_at IS NULL AND expires_at <= $2 AS expired
FROM aioflow.signals WHERE signal_id = ANY($1::text[])
"""
_TAKERS: Final = """
SELECT id, taken_by FROM aioflow.signals WHERE id = ANY($1::bigint[]) AND taken_by IS NOT NULL ORDER BY taken_by
"""
_FREE_SIGNAL_IDS: Final = """
UPDATE aioflow.signals SET signal_id = NULL WHERE signal_id = ANY($1::text[]) AND taken_at IS NULL AND expires_at <= $2
"""
#: If the signal is there already, an earlier offer put it there, which was still under way when this one looked for it.
_POST: Final = f"""
INSERT INTO aioflow.signals ({_COLUMNS}) SELECT * FROM {rows_of(Signal, "p")} ON CONFLICT (id, run_id) DO NOTHING
"""
#: The rows of the waits are locked until the copies are committed: a transaction that ends a wait then sees them.
_BROADCAST: Final = f"""
WITH heard AS (
    SELECT DISTINCT w.run_id, w.name FROM (
        SELECT run_id, name FROM aioflow.waits
        WHERE name = ANY($1::text[]) AND kind = 'signal' ORDER BY run_id, arm FOR KEY SHARE
    ) AS w
)
INSERT INTO aioflow.signals ({_COLUMNS})
SELECT {", ".join("h.run_id" if column == "run_id" else f"p.{column}" for column in Signal._fields)}
FROM {rows_of(Signal, "p", 2)} JOIN heard AS h ON h.name = p.name ON CONFLICT (id, run_id) DO NOTHING
"""
#: Remembers that a broadcast was sent, even if no run waited for it.
_RECORD: Final = f"""
INSERT INTO aioflow.signals ({_COLUMNS}, taken_at) SELECT p.*, $1::bigint FROM {rows_of(Signal, "p", 2)}
ON CONFLICT (id, run_id) DO NOTHING
"""
#: Waits are looked up by run, not by name, which the waits of all runs may have: ``OFFSET`` as above.
_ADDRESSED: Final = f"""
SELECT DISTINCT w.run_id, w.name FROM {unnest(["run_id", "name"], ["bigint", "text"], "p")}
CROSS JOIN LATERAL (SELECT * FROM aioflow.waits AS w WHERE w.run_id = p.run_id OFFSET 0) AS w
WHERE w.name = p.name AND w.kind = 'signal'
"""
#: For each name and key, as many of the oldest waits as the mailbox has signals: other signals may go to the same runs.
_KEYED: Final = f"""
SELECT p.name, p.key, w.run_id FROM {unnest(["name", "key"], ["text", "text"], "p", 2)} CROSS JOIN LATERAL (
    SELECT DISTINCT since, run_id FROM aioflow.waits
    WHERE name = p.name AND key = p.key AND kind = 'signal' ORDER BY since, run_id LIMIT (
        SELECT count(*) FROM (
            SELECT FROM aioflow.signals WHERE run_id = 0 AND taken_at IS NULL AND name = p.name AND key = p.key
                AND (expires_at IS NULL OR expires_at > $1)
            LIMIT (SELECT count(*) FROM aioflow.waits WHERE name = p.name AND key = p.key AND kind = 'signal')
        ) AS s
    )
) AS w ORDER BY w.since, w.run_id
"""
#: Copies are looked up by id, not among all untaken signals.
_HOLDERS: Final = f"""
SELECT s.id, s.run_id FROM {unnest(["id"], ["bigint"], "o")}
CROSS JOIN LATERAL (SELECT * FROM aioflow.signals AS s WHERE s.id = o.id OFFSET 0) AS s
WHERE s.run_id <> 0 AND s.taken_at IS NULL AND (s.expires_at IS NULL OR s.expires_at > $2) ORDER BY s.id, s.run_id
"""
#: The first ``$2`` rows, found by an index; their ctids stay valid, as they are locked until the transaction ends.
_FIRST_ROWS: Final = """
ctid = ANY(ARRAY(
    SELECT ctid FROM aioflow.signals WHERE {column} <= $1 AND {which} ORDER BY {column} LIMIT $2 FOR UPDATE SKIP LOCKED
))
"""
_FORGET: Final = """
WITH gone AS (DELETE FROM aioflow.signals WHERE {first} RETURNING 1) SELECT count(*) FROM gone
"""
_FORGET_NAMED, _FORGET_UNNAMED = (
    _FORGET.format(first=_FIRST_ROWS.format(column="taken_at", which=which))
    for which in ("signal_id IS NOT NULL", "signal_id IS NULL")
)
_EXPIRE: Final = f"""
DELETE FROM aioflow.signals AS s WHERE {_FIRST_ROWS.format(column="expires_at", which="taken_at IS NULL")}
RETURNING {SIGNAL_COLUMNS}
"""


class Sent(NamedTuple):
    """An earlier send with a signal_id: whether that signal still waits to be taken, and the runs that took it."""

    waits: bool
    takers: tuple[int, ...]


class Before(NamedTuple):
    """What the mailbox knows of signals that are to be posted: the ids that it has, and the signal_ids sent before."""

    ids: frozenset[int]
    sent: dict[str, Sent]


async def before(session: Session, signals: Sequence[Signal], now: Micros) -> Before:
    """Look for signals that were posted before. The signal_ids of expired ones are freed."""
    if not signals:
        return Before(frozenset(), {})
    ids = frozenset(id_ for (id_,) in await session.fetch(_POSTED, [signal.id for signal in signals]))
    wanted = [signal.signal_id for signal in signals if signal.signal_id is not None and signal.id not in ids]
    if not wanted:
        return Before(ids, {})
    found = await session.fetch(_SENT, wanted, now)
    if any(expired for _, _, _, expired in found):
        await session.execute(_FREE_SIGNAL_IDS, wanted, now)
    found = [row for row in found if not row["expired"]]
    takers: defaultdict[int, list[int]] = defaultdict(list)
    for id_, taker in await session.fetch(_TAKERS, [row["id"] for row in found]) if found else ():
        takers[id_].append(taker)
    return Before(ids, {row["signal_id"]: Sent(row["waits"], tuple(takers[row["id"]])) for row in found})


async def post(session: Session, signals: Sequence[Signal], now: Micros) -> None:
    """Put signals into the mailbox; of a broadcast, a copy for each run that waits."""
    width = len(Signal._fields)
    everybody = [signal for signal in signals if not signal.run_id and signal.key is None]
    if addressed := [signal for signal in signals if signal.run_id or signal.key is not None]:
        await session.execute(_POST, *columns(addressed, width))
    if everybody:
        copies = [signal._replace(signal_id=None, broadcast=1) for signal in everybody]
        await session.execute(_BROADCAST, [signal.name for signal in everybody], *columns(copies, width))
        await session.execute(_RECORD, now, *columns(everybody, width))


async def receivers(session: Session, signals: Iterable[Signal], now: Micros) -> dict[int, tuple[int, ...]]:
    """For each of these signals, the waiting runs that may take it."""
    addressed = {(signal.run_id, signal.name) for signal in signals if signal.run_id}
    keyed = {(signal.name, signal.key) for signal in signals if not signal.run_id and signal.key is not None}
    everybody = [signal.id for signal in signals if not signal.run_id and signal.key is None]
    waits: set[tuple[int, str]] = set()
    if addressed:
        waits = {(run_id, name) for run_id, name in await session.fetch(_ADDRESSED, *columns([*addressed], 2))}
    found: defaultdict[tuple[str, str | None], list[int]] = defaultdict(list)
    if keyed:
        for name, key, run_id in await session.fetch(_KEYED, now, *columns([*keyed], 2)):
            found[name, key].append(run_id)
    copies = await holders(session, everybody, now) if everybody else {}
    told: dict[int, tuple[int, ...]] = {}
    for signal in signals:
        if signal.run_id:
            told[signal.id] = (signal.run_id,) if (signal.run_id, signal.name) in waits else ()
        elif signal.key is not None:
            told[signal.id] = tuple(found[signal.name, signal.key])
        else:
            told[signal.id] = copies.get(signal.id, ())
    return told


async def holders(session: Session, ids: Collection[int], now: Micros) -> dict[int, tuple[int, ...]]:
    """For each of these ids, the runs for which the mailbox has a copy."""
    found: defaultdict[int, list[int]] = defaultdict(list)
    for id_, run_id in await session.fetch(_HOLDERS, list(ids), now):
        found[id_].append(run_id)
    return {id_: tuple(runs) for id_, runs in found.items()}


async def untaken(session: Session, wanted: Iterable[tuple[int, int]], now: Micros) -> set[tuple[int, int]]:
    """(id, run id) of those signals that can still be taken; locks them until the transaction ends.

    ``wanted``: (id, run that is to take it): its own copy, or the signal to a key, stored with run id 0.
    """
    places = {place for id_, run_id in wanted for place in ((id_, run_id), (id_, 0))}
    found = await session.fetch(_UNTAKEN, now, *columns([*places], 2))
    return {(id_, run_id) for id_, run_id in found}


async def take(session: Session, taken: Sequence[tuple[int, int, int | None]], now: Micros) -> None:
    """Mark signals as taken: (id, run id, the run that took it; None if it was rejected)."""
    await session.execute(_TAKE, now, *columns(taken, 3))


async def with_mail(session: Session, run_ids: Collection[int], now: Micros) -> set[int]:
    """Which of these waiting runs have mail."""
    found = await session.fetch(f"SELECT DISTINCT f.waiter FROM ({_OF_THESE}) AS f", now, list(run_ids))
    return {waiter for (waiter,) in found}


async def in_time(session: Session, run_ids: Collection[int], now: Micros) -> set[int]:
    """Which of these waiting runs have mail that was sent by their deadline."""
    return {waiter for (waiter,) in await session.fetch(_IN_TIME, now, list(run_ids))}


async def mail(
    session: Session,
    run_ids: Collection[int] | None,
    limit: int,
    now: Micros,
    known: Collection[tuple[str, str]] | None = None,
    after: tuple[Micros, int] | None = None,
) -> list[Mail]:
    """Waiting runs with the first signals that they can take."""
    fitting = _OF_ALL if run_ids is None else _OF_THESE
    values: list[object] = [now] if run_ids is None else [now, list(run_ids)]
    if after is not None:
        fitting = _AFTER.format(fitting=fitting, since=len(values) + 1, waiter=len(values) + 2)
        values += after
    if known is not None:
        pairs = unnest(["workflow", "version"], ["text", "text"], "k", len(values) + 1)
        fitting = _KNOWN.format(fitting=fitting, pairs=pairs)
        values += columns([*known], 2)
    rows = await session.fetch(_MAIL.format(fitting=fitting, limit=f"${len(values) + 1}"), *values, limit)
    mails: dict[tuple[Micros, int], list[Signal]] = {}
    for since, waiter, *of_signal in rows:
        mails.setdefault((since, waiter), []).append(Signal._make(of_signal))
    ids = [waiter for _, waiter in mails]
    found = await session.fetch(f"{SELECT_RUNS} WHERE id = ANY($1::bigint[])", ids) if ids else []
    runs = {run.id: run for run in map(Run._make, found)}
    return [Mail(runs[waiter], signals, since) for (since, waiter), signals in mails.items() if waiter in runs]


async def expire(session: Session, limit: int, now: Micros, forget: int) -> list[Signal]:
    """Take out what no run took in its time, and forget what was taken long ago."""
    [(named,)] = await session.fetch(_FORGET_NAMED, now - _MEMORY, forget)
    await session.fetch(_FORGET_UNNAMED, now - _SHORT_MEMORY, forget - named)
    return [Signal._make(row) for row in await session.fetch(_EXPIRE, now, limit)]
