"""The mailbox: signals on their way to runs. Functions of a plain sqlite3 connection, which run in its thread.

It is the tables ``signals`` and ``waits``; triggers derive the latter from ``runs.arms``. Copies of events
(``signals.event``) are stored like those of broadcasts, for arms of their own kind (``waits.kind``). A taken signal
stays as a tombstone, so that the same Post offered twice is stored once.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable
from typing import Final

from aioflow.changes import Post, Result
from aioflow.clock import SECOND, Micros
from aioflow.model import LIVE, Run, Signal
from aioflow.store import Mail
from aioflow_sqlite.rows import SELECT_RUNS, row_of

_COLUMNS: Final = ", ".join(Signal._fields)
_VALUES: Final = ", ".join("?" * len(Signal._fields))
_HOUR: Final = 3600 * SECOND
#: How long a taken signal is remembered: one with a signal_id, and one without, whose Post may only be offered again.
_MEMORY: Final = 7 * 24 * _HOUR
_SHORT_MEMORY: Final = _HOUR
#: How many signals of one run a Mail has at most: a run takes one at a time.
_FEW: Final = 8

_UNTAKEN: Final = "s.taken_at IS NULL AND (s.expires_at IS NULL OR s.expires_at > :now)"
#: The conditions that a signal fits a wait: it is addressed to the run, or to the arm's key. The ``+`` keeps the
#: planner from reading all waits of a signal's name instead of the few of its run.
_TO_RUN: Final = f"""
{_UNTAKEN} AND s.run_id <> 0 AND s.run_id = w.run_id AND s.name = +w.name AND (s.event IS NULL) = (w.kind = 'signal')
"""
_TO_KEY: Final = f"""
{_UNTAKEN} AND s.run_id = 0 AND s.name = w.name AND s.key = w.key AND w.kind = 'signal'
"""
_PAIR: Final = "SELECT w.since AS since, w.run_id AS waiter, s.rowid AS signal, s.sent_at AS sent_at, s.id AS id"
#: Pairs of a wait and a signal that fits it: all there are; or of given runs, the first few for each wait. The planner
#: is not left the order of the joins, either: the smaller side comes first.
_OF_ALL: Final = " UNION ".join(
    f"{_PAIR} FROM signals AS s CROSS JOIN waits AS w WHERE {fits}" for fits in (_TO_RUN, _TO_KEY)
)
_THESE: Final = "json_each(:ids) AS j CROSS JOIN waits AS w ON w.run_id = j.value"
_OF_THESE: Final = " UNION ".join(
    f"{_PAIR} FROM {_THESE} CROSS JOIN json_each((SELECT json_group_array(place) FROM "
    f"(SELECT s.rowid AS place FROM signals AS s WHERE {fits} ORDER BY s.sent_at, s.id LIMIT :few))) AS fit "
    "CROSS JOIN signals AS s ON s.rowid = fit.value"
    for fits in (_TO_RUN, _TO_KEY)
)
_IN_TIME: Final = "s.sent_at <= ifnull(runs.wake_at, 9223372036854775807)"


def _delete(index: str, column: str, condition: str) -> str:
    """SQL that deletes the first rows up to a time, by an index; ``rowid IN`` may be a scan, see events.py."""
    first = f"""SELECT {column}, rowid FROM signals INDEXED BY {index}
    WHERE {column} <= ? AND {condition} ORDER BY {column}, rowid LIMIT ?"""
    return f"""DELETE FROM signals INDEXED BY {index} WHERE {condition} AND ({column}, rowid) <=
    (SELECT {column}, rowid FROM ({first}) ORDER BY {column} DESC, rowid DESC LIMIT 1)"""


_FORGET: Final = _delete("signals_remembered", "taken_at", "taken_at IS NOT NULL AND signal_id IS NOT NULL")
_FORGET_UNNAMED: Final = _delete("signals_forgotten", "taken_at", "taken_at IS NOT NULL AND signal_id IS NULL")
_EXPIRE: Final = (
    f"{_delete('signals_expiring', 'expires_at', 'taken_at IS NULL AND expires_at IS NOT NULL')} RETURNING {_COLUMNS}"
)


def post(db: sqlite3.Connection, signal: Signal, now: Micros, born: Collection[int] = ()) -> Result:
    """Put a signal into the mailbox, if its guards hold. Its receivers are read when the whole batch is written.

    ``born``: runs that begin with the batch, and are not written yet.
    """
    if db.execute("SELECT 1 FROM signals WHERE id = ? LIMIT 1", (signal.id,)).fetchone():
        return Result("applied")
    if signal.signal_id is not None and (before := _sent_before(db, signal.signal_id, now)) is not None:
        return before
    if signal.run_id and signal.run_id not in born:
        run = row_of(db, signal.run_id)
        if run is None or run.status not in LIVE:
            return Result("stale", run)
    if signal.run_id or signal.key is not None:
        db.execute(f"INSERT INTO signals ({_COLUMNS}) VALUES ({_VALUES})", signal)
        return Result("applied")
    copy = signal._replace(signal_id=None, broadcast=1)
    values = ", ".join("w.run_id" if column == "run_id" else "?" for column in Signal._fields)
    given = [value for column, value in zip(Signal._fields, copy, strict=True) if column != "run_id"]
    db.execute(
        f"INSERT INTO signals ({_COLUMNS}) SELECT DISTINCT {values} FROM waits AS w "
        "WHERE w.name = ? AND w.kind = 'signal'",
        (*given, signal.name),
    )
    record = (*signal, now)  # so that it is known as sent, even if no run waited for it
    db.execute(f"INSERT INTO signals ({_COLUMNS}, taken_at) VALUES ({_VALUES}, ?)", record)
    return Result("applied")


def posted(db: sqlite3.Connection, post: Post) -> bool:
    """Whether this very signal was posted before."""
    return db.execute("SELECT 1 FROM signals WHERE id = ? LIMIT 1", (post.signal.id,)).fetchone() is not None


def receivers(db: sqlite3.Connection, signal: Signal, now: Micros) -> tuple[int, ...]:
    """Waiting runs that may take it."""
    values: tuple[object, ...] | dict[str, object]
    if signal.run_id:
        sql = "SELECT run_id FROM waits WHERE run_id = ? AND +name = ? AND kind = 'signal' LIMIT 1"
        values = (signal.run_id, signal.name)
    elif signal.key is not None:
        # As many of the oldest waits as there are signals for them, as other signals may be for the same runs.
        sql = (
            "SELECT DISTINCT run_id FROM waits WHERE name = :name AND key = :key AND kind = 'signal' "
            "ORDER BY since, run_id LIMIT "
            "(SELECT count(*) FROM (SELECT 1 FROM signals WHERE run_id = 0 AND taken_at IS NULL "
            "AND name = :name AND key = :key AND (expires_at IS NULL OR expires_at > :now) LIMIT "
            "(SELECT count(*) FROM waits WHERE name = :name AND key = :key AND kind = 'signal')))"
        )
        values = {"name": signal.name, "key": signal.key, "now": now}
    else:
        return holders(db, signal.id, now)
    return tuple(run_id for (run_id,) in db.execute(sql, values))


def holders(db: sqlite3.Connection, id_: int, now: Micros) -> tuple[int, ...]:
    """The runs that the mailbox holds a copy of this signal or event for."""
    sql = (
        "SELECT run_id FROM signals WHERE id = ? AND run_id <> 0 AND taken_at IS NULL "
        "AND (expires_at IS NULL OR expires_at > ?)"
    )
    return tuple(run_id for (run_id,) in db.execute(sql, (id_, now)))


def untaken(db: sqlite3.Connection, wanted: Iterable[tuple[int, int]], now: Micros) -> set[tuple[int, int]]:
    """The (id, run id) of the signals that can still be taken; run id 0 if it is addressed to a key.

    ``wanted``: ids, with the runs that are to take them.
    """
    places = {place for id_, run_id in wanted for place in ((id_, run_id), (id_, 0))}
    # Filtered in Python: with a condition SQLite might read all signals for a Bloom filter.
    sql = (
        "SELECT json_group_array(json_array(s.id, s.run_id, s.taken_at IS NULL AND ifnull(s.expires_at > ?, TRUE))) "
        "FROM json_each(?) AS j CROSS JOIN signals AS s "
        "ON s.id = json_extract(j.value, '$[0]') AND s.run_id = json_extract(j.value, '$[1]')"
    )
    (found,) = db.execute(sql, (now, json.dumps(list(places)))).fetchone()
    return {(id_, run_id) for id_, run_id, untaken in json.loads(found) if untaken}


def take(db: sqlite3.Connection, taken: Iterable[tuple[int, int, int | None]], now: Micros) -> None:
    """Mark as taken: (id, run id, the run that took it, or None if that rejected it)."""
    # Not UPDATE FROM, which by statistics from when there were few signals reads all of them. All these rows exist.
    sql = (
        "INSERT INTO signals (id, run_id, name, payload, message, broadcast, sent_at, taken_at, taken_by) "
        "SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), '', '', 0, 0, 0, ?, json_extract(value, '$[2]') "
        "FROM json_each(?) WHERE TRUE ON CONFLICT (id, run_id) DO UPDATE SET taken_at = excluded.taken_at, "
        "taken_by = excluded.taken_by, signal_id = iif(excluded.taken_by IS NULL, NULL, signal_id)"
    )
    db.execute(sql, (now, json.dumps(list(taken))))


def with_mail(db: sqlite3.Connection, run_ids: Collection[int], now: Micros, *, by_wake_at: bool) -> set[int]:
    """Which of these waiting runs have mail; ``by_wake_at``: only mail that was sent by their ``wake_at``."""
    joined, in_time = (" CROSS JOIN runs ON runs.id = w.run_id", f" AND {_IN_TIME}") if by_wake_at else ("", "")
    fitting = " OR ".join(f"EXISTS (SELECT 1 FROM signals AS s WHERE {fits}{in_time})" for fits in (_TO_RUN, _TO_KEY))
    sql = f"SELECT json_group_array(DISTINCT w.run_id) FROM {_THESE}{joined} WHERE {fitting}"
    (found,) = db.execute(sql, {"ids": json.dumps(list(run_ids)), "now": now}).fetchone()
    return set(json.loads(found))


def mail(
    db: sqlite3.Connection,
    run_ids: Collection[int] | None,
    limit: int,
    now: Micros,
    known: Collection[tuple[str, str]] | None = None,
    after: tuple[Micros, int] | None = None,
) -> list[Mail]:
    """Waiting runs, and the first signals that each can take."""
    fitting = _OF_ALL if run_ids is None else _OF_THESE
    if after is not None:
        fitting = f"SELECT * FROM ({fitting}) WHERE (since, waiter) > (:after_since, :after_waiter)"
    if known is not None:
        pairs = "SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(:known)"
        of_code = f"CROSS JOIN runs AS r ON r.id = f.waiter WHERE (r.workflow, r.version) IN ({pairs})"
        fitting = f"SELECT f.* FROM ({fitting}) AS f {of_code}"
    sql = f"""
    SELECT since, waiter, {", ".join(f"s.{name}" for name in Signal._fields)} FROM (
        SELECT *, row_number() OVER (PARTITION BY waiter ORDER BY sent_at, id) AS place,
            dense_rank() OVER (ORDER BY since, waiter) AS rank
        FROM ({fitting})
    ) AS found CROSS JOIN signals AS s ON s.rowid = found.signal
    WHERE place <= :few AND rank <= :limit ORDER BY rank, place
    """
    after_since, after_waiter = after or (None, None)
    values = {"now": now, "few": _FEW, "limit": limit, "after_since": after_since, "after_waiter": after_waiter}
    texts = {"ids": json.dumps(list(run_ids or ())), "known": json.dumps(list(known or ()))}
    found: dict[tuple[Micros, int], list[Signal]] = {}
    for since, waiter, *columns in db.execute(sql, values | texts):
        found.setdefault((since, waiter), []).append(Signal._make(columns))
    ids = json.dumps([waiter for _, waiter in found])
    rows = db.execute(f"{SELECT_RUNS} WHERE id IN (SELECT value FROM json_each(?))", (ids,))
    runs = {run.id: run for run in map(Run._make, rows)}
    return [Mail(runs[waiter], signals, since) for (since, waiter), signals in found.items()]


def expire(db: sqlite3.Connection, limit: int, now: Micros, forget: int | None = None) -> list[Signal]:
    """Remove and return expired signals, and delete the tombstones of those that were taken long ago."""
    room = limit if forget is None else forget
    room -= db.execute(_FORGET, (now - _MEMORY, room)).rowcount
    db.execute(_FORGET_UNNAMED, (now - _SHORT_MEMORY, room))
    return [Signal._make(row) for row in db.execute(_EXPIRE, (now, limit)).fetchall()]


def _sent_before(db: sqlite3.Connection, signal_id: str, now: Micros) -> Result | None:
    """The result of an earlier send with this signal_id, None if there is none; an expired one does not count."""
    expired = "UPDATE signals SET signal_id = NULL WHERE signal_id = ? AND taken_at IS NULL AND expires_at <= ?"
    db.execute(expired, (signal_id, now))
    sql = "SELECT id, taken_at IS NULL FROM signals WHERE signal_id = ?"
    found = db.execute(sql, (signal_id,)).fetchone()
    if found is None:
        return None
    id_, waits = found
    takers = db.execute("SELECT taken_by FROM signals WHERE id = ? AND taken_by IS NOT NULL ORDER BY 1", (id_,))
    return Result("exists", mail=bool(waits), run_ids=tuple(run_id for (run_id,) in takers))
