"""Applies a batch of changes as one transaction. Functions of a plain sqlite3 connection, which run in its thread.

The thread and the event loop share the GIL. sqlite3 releases it for every row that it steps through, and getting it
back from a busy loop takes up to a switch interval of 5 ms. So a batch is a handful of statements that each step
once: all rows of a kind in one VALUES list. The guards are read first, as one JSON value; plain.py reads none.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from typing import assert_never

from aioflow.changes import (
    Amend,
    Change,
    Decide,
    Emit,
    Listen,
    Mark,
    Move,
    Occur,
    Post,
    Replan,
    Result,
    Start,
    Withdraw,
    size_of,
)
from aioflow.clock import Micros
from aioflow.model import LIVE, Run, Signal, Transition, WorkflowStatus
from aioflow_sqlite import mailbox
from aioflow_sqlite.events import EventBatch, catch_up, in_the_way
from aioflow_sqlite.plain import apply_plain
from aioflow_sqlite.rows import NULLABLE, RUN_COLUMNS, SELECT_RUNS, WRITE_HISTORY, row_of
from aioflow_sqlite.transactions import transaction
from aioflow_sqlite.writing import placeholders, write

_MUTABLE = ", ".join(f"{name} = excluded.{name}" for name in Run._fields[Run._fields.index("status") :])
_WRITE_RUNS = (
    f"INSERT INTO runs ({RUN_COLUMNS}) VALUES ",
    placeholders(Run._fields, NULLABLE),
    f" ON CONFLICT (id) DO UPDATE SET {_MUTABLE}",
)
_GUARDS = "SELECT json_group_array(json_array(id, seq, fence)) FROM runs WHERE id IN (SELECT value FROM json_each(?))"
_SAME_COMMIT = "SELECT * FROM history WHERE run_id = ? AND commit_id = ?"
_AT_ITS_PLACE = "SELECT 1 FROM history WHERE run_id = ? AND seq = ? AND commit_id = ?"
_MARK_RUN = "UPDATE runs SET marked = 1 WHERE id = ?"
#: A live run first, whatever the clocks of the processes that started the runs said.
_HOLDER_OF_KEY = f"""{SELECT_RUNS} WHERE workflow = ? AND key = ?
ORDER BY iif(id = ?, ?, status IN ('running', 'waiting')) DESC, created_at DESC, id DESC LIMIT 1"""


def commit(
    db: sqlite3.Connection, changes: Sequence[Change], now: Micros, begins: Callable[[], None]
) -> tuple[list[Result], int]:
    """Check each change's guards and write the changes whose guards hold, as one transaction.

    Args:
        db: no transaction is open.
        changes: what to write.
        now: the time, in microseconds.
        begins: called when most of what needs the GIL is done, which may be at the end.

    Returns:
        A result for each, and about how many bytes of data were written.
    """
    try:
        if (done := apply_plain(db, changes, begins)) is not None:
            return done
        return transaction(db, partial(apply, changes=changes, now=now)), sum(map(size_of, changes))
    finally:
        begins()


def apply(db: sqlite3.Connection, changes: Sequence[Change], now: Micros) -> list[Result]:
    """Check each change's guards and write the changes whose guards hold, in the open transaction."""
    batch = _Batch(db, changes, now)
    results = [batch.add(change) for change in changes]
    batch.write()
    if batch.has_more_to_tell:
        return [batch.told(change, result) for change, result in zip(changes, results, strict=True)]
    return results


class _Batch:
    """Collects the rows to write, so that one statement writes all of a kind.

    The mutable state: the guards (run id -> (seq, fence)); the signals that can be taken; the runs that ``unless_mail``
    makes stale, as they have mail, or an event has to occur first; whether some results are completed last; the changes
    to events, if any; the rows that are not written yet, with their run ids and start keys; which of the new rows wait,
    and which have mail once they are written; the runs that begin with the batch; whether it has posted a signal.
    """

    def __init__(self, db: sqlite3.Connection, changes: Sequence[Change], now: Micros) -> None:
        self._db = db
        self._now = now
        ids: list[int] = []
        takes: list[tuple[int, int]] = []
        waiting: list[int] = []
        events: list[Change] = []
        self._tells = False
        for change in changes:
            if isinstance(change, Start):
                ids.append(change.run.id)
                if change.plan:
                    events.append(change)
            elif isinstance(change, Move):
                ids.append(change.run.id)
                takes += [(id_, change.run.id) for id_ in change.takes]
                if change.unless_mail:
                    waiting.append(change.run.id)
                if change.also:
                    ids += [part.run.id for part in change.also if isinstance(part, Start)]
                    events += [part for part in change.also if isinstance(part, Emit | Start)]
                    self._tells = True
            elif isinstance(change, Post):
                self._tells = True
            elif isinstance(change, Mark | Amend):
                ids.append(change.run_id)
            else:
                self._tells = True
                events.append(change)
        (found,) = db.execute(_GUARDS, (json.dumps(ids),)).fetchone()
        self._guards = {id_: (seq, fence) for id_, seq, fence in json.loads(found)}
        self._untaken = mailbox.untaken(db, takes, now) if takes else set()
        self._in_time = mailbox.with_mail(db, waiting, now, by_wake_at=True) if waiting else set()
        self._in_the_way = in_the_way(db, waiting, now) if waiting else {}
        self._events = EventBatch(db, events, now) if events else None
        self._runs: list[Run] = []
        self._marked: list[tuple[int]] = []
        self._transitions: list[Transition] = []
        self._taken: list[tuple[int, int, int | None]] = []
        self._with_mail: set[int] = set()
        self._born: set[int] = set()
        self._waiting: list[Run] = []
        self._posted = False
        self._moved: set[int] = set()
        self._keys: set[tuple[str, str]] = set()

    def add(self, change: Change) -> Result:
        """Check a change's guards, and collect what it writes."""
        match change:
            case Move():
                run, transition = change.run, change.transition
                if self._guards.get(run.id) != (change.seq, change.fence):
                    return self._refused(change)
                if change.takes or change.unless_mail or change.also:
                    return self._full_move(change)
                return self._move(run, transition, Result("applied", run))
            case Start():
                return self._start(change)
            case Post(signal):
                return self._post(signal)
            case Mark(run_id, seq, fence):
                row = row_of(self._db, run_id)
                if row is None or (row.seq, row.fence) != (seq, fence):
                    return Result("stale", row)
                self._marked.append((run_id,))
                return Result("applied", row._replace(marked=1))
            case Amend(run_id, decide, commit_id):
                return self._amend(run_id, decide, commit_id)
            case _:
                return self._event(change)

    def write(self) -> None:
        """Write what was collected."""
        self._write_rows()
        if self._marked:
            self._db.executemany(_MARK_RUN, self._marked)
        if self._events is not None:
            self._events.write()
        if self._waiting:
            catch_up(self._db, self._waiting)
            waiting = [run.id for run in self._waiting]
            self._with_mail |= mailbox.with_mail(self._db, waiting, self._now, by_wake_at=False)

    def _write_rows(self) -> None:
        if self._taken:  # before the rows: the end of a wait removes those of its copies that were not taken
            mailbox.take(self._db, self._taken, self._now)
        if self._runs:
            write(self._db, _WRITE_RUNS, self._runs)
            write(self._db, WRITE_HISTORY, self._transitions)
        self._waiting += [run for run in self._runs if run.arms is not None]
        self._taken, self._runs, self._transitions = [], [], []
        self._moved.clear()
        self._keys.clear()

    @property
    def has_more_to_tell(self) -> bool:
        """Whether some result is complete only when everything is written."""
        return self._tells or bool(self._with_mail)

    def told(self, change: Change, result: Result) -> Result:
        """The result, completed with what is known only when everything is written."""
        if result.outcome == "applied" and isinstance(change, Post):
            return result._replace(run_ids=mailbox.receivers(self._db, change.signal, self._now))
        if isinstance(change, Emit | Occur) and self._events is not None:
            return self._events.told(result)
        if result.also:
            also = zip(change.also, result.also, strict=True)  # type: ignore[union-attr]
            result = result._replace(also=tuple(self.told(part, told) for part, told in also))
        if isinstance(change, Start | Move) and result.run is not None and result.run.id in self._with_mail:
            return result._replace(mail=True) if result.outcome == "applied" else result
        return result

    def _full_move(self, move: Move) -> Result:
        """A move that takes signals, has the guard ``unless_mail``, or brings along what its step started and sent."""
        run = move.run
        if move.unless_mail and self._posted:  # the batch itself may have sent it mail
            self._in_time |= mailbox.with_mail(self._db, [run.id], self._now, by_wake_at=True)
        if run.id in self._in_time:
            return Result("stale", row_of(self._db, run.id), mail=True)
        if run.id in self._in_the_way:  # has only runs of moves with ``unless_mail``
            return Result("stale", row_of(self._db, run.id), plans=(self._in_the_way[run.id],))
        found = [place for id_ in move.takes for place in ((id_, run.id), (id_, 0)) if place in self._untaken]
        if len(found) != len(move.takes):
            return Result("stale", row_of(self._db, run.id))
        self._untaken.difference_update(found)
        taker = None if move.transition.kind == "reject" else run.id
        self._taken += [(*place, taker) for place in found]
        result = self._move(run, move.transition, Result("applied", run))
        also = tuple(self._start(part, run) if isinstance(part, Start) else self.add(part) for part in move.also)
        return result._replace(also=also)

    def _post(self, signal: Signal) -> Result:
        """Put a signal into the mailbox. Its receivers are read from the rows, so earlier changes are written first."""
        everybody = not signal.run_id and signal.key is None
        if everybody or (signal.run_id not in self._born and signal.run_id in self._moved):
            self._write_rows()
        self._posted = True
        return mailbox.post(self._db, signal, self._now, self._born)

    def _move(self, run: Run, transition: Transition, result: Result) -> Result:
        self._runs.append(run)
        self._moved.add(run.id)
        if run.key is not None:
            self._keys.add((run.workflow, run.key))
        self._transitions.append(transition)
        return result

    def _start(self, start: Start, moved: Run | None = None) -> Result:
        run, mail_id = start.run, None
        if run.id in self._guards:
            return self._offered(run.id, start.transition)
        if start.plan and self._events is not None:
            mail_id = self._events.take(start.plan)
            if mail_id is None:
                return Result("stale")
        if run.key is not None and (run.workflow, run.key) in self._keys:
            self._write_rows()  # so that the holder of the key is read as it is now
        other = _in_the_way(self._db, run, start.reuse, moved)
        if other is not None:
            return Result("exists", other)
        if mail_id is not None and self._events is not None:
            self._events.started(run.id, mail_id)
        self._born.add(run.id)
        return self._move(run, start.transition, Result("applied", run))

    def _event(self, change: Emit | Occur | Withdraw | Replan | Listen) -> Result:
        assert self._events is not None
        match change:
            case Emit():
                return self._events.emit(change)
            case Occur():
                return self._events.occur(change)
            case Withdraw():
                return self._events.withdraw(change)
            case Replan():
                return self._events.replan(change)
            case Listen():
                return self._events.listen(change)
            case _:
                assert_never(change)

    def _amend(self, run_id: int, decide: Decide, commit_id: int) -> Result:
        row = row_of(self._db, run_id)
        if row is None:
            return Result("stale")
        before = self._db.execute(_SAME_COMMIT, (run_id, commit_id)).fetchone()
        if before is not None:
            return Result("applied", row, Transition._make(before))
        amended = decide(row)
        if amended is None:
            return Result("stale", row)
        return self._move(*amended, Result("applied", *amended))

    def _refused(self, move: Move) -> Result:
        """The run has changed since: an earlier offer of this very move was applied, or another change was."""
        result = self._offered(move.run.id, move.transition)
        if result.outcome == "stale":
            return result
        return result._replace(also=tuple(self._offered_with_it(part) for part in move.also))

    def _offered(self, run_id: int, transition: Transition) -> Result:
        place = (run_id, transition.seq, transition.commit_id)
        applied = self._db.execute(_AT_ITS_PLACE, place).fetchone() is not None
        row = row_of(self._db, run_id)
        if applied and row is not None and row.arms is not None:
            self._with_mail |= mailbox.with_mail(self._db, [run_id], self._now, by_wake_at=False)
        return Result("applied" if applied else "stale", row)

    def _offered_with_it(self, part: Start | Post | Emit) -> Result:
        if isinstance(part, Post):
            return Result("applied" if mailbox.posted(self._db, part) else "stale")
        if isinstance(part, Emit):
            assert self._events is not None
            return self._events.offered(part)
        return self._offered(part.run.id, part.transition)


def _in_the_way(db: sqlite3.Connection, run: Run, reuse: str, moved: Run | None) -> Run | None:
    """The run that has the key, if that bars the start. ``moved``: a row that is about to be written."""
    if run.key is None:
        return None
    stands = (0, 0) if moved is None else (moved.id, int(moved.status in LIVE))
    found = db.execute(_HOLDER_OF_KEY, (run.workflow, run.key, *stands)).fetchone()
    if found is None:
        return None
    other = Run._make(found)
    if moved is not None and moved.id == other.id:
        other = moved
    free = (reuse == "ended" and other.status not in LIVE) or (
        reuse == "failed" and other.status == WorkflowStatus.FAILED
    )
    return None if free else other
