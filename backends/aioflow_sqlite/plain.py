"""Commits batches whose runs only start or go on, as most do under load, by one statement.

A statement that is a transaction of its own releases the GIL once, from its first row until all are on the disk: so
SQLite works while the event loop does. One statement cannot write two tables, but the triggers of a view can: the batch
is inserted into a view, whose triggers write each row to ``runs`` and ``history`` if its guard holds. If a guard does
not hold, nothing is written, and batch.py applies the batch.

Most of these rows have NULL in half of their columns, and most of the rest follows from the others. Such columns are
not bound one by one: binding holds the GIL, and is what a batch costs the event loop.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from operator import itemgetter
from typing import Any, NamedTuple

from aioflow.changes import Change, Move, Result, Start
from aioflow.model import Run, Transition, record
from aioflow_sqlite.rows import NULLABLE
from aioflow_sqlite.transactions import transaction
from aioflow_sqlite.writing import LENGTHS, NULL

#: For more bytes of data than this, what SQLite keeps to undo a statement would exceed its cache of 500 pages, and go
#: to a file in a directory for temporary files, which need not exist.
_LARGEST = 700_000
#: How many values SQLite binds to one statement at most, unless it was built otherwise.
_BINDS = 32_766
_MUTABLE = Run._fields[Run._fields.index("status") :]
#: The columns of a transition that its run does not have.
_OWN = tuple(name for name in Transition._fields if name not in ("run_id", "seq"))
#: The only columns that hold a value in a run that goes from step to step, or ends.
_BARE = tuple(name for name in Run._fields if name not in NULLABLE or name in ("owner", "ended_at"))
#: Those of them that do not follow from others in a run that starts at once, goes to a step or completes; see _is_lean.
_LEAN = ("id", "workflow", "version", "step", "seq", "fence", "owner", "visit", "hops", "data", "updated_at")
_LEAN_OWN = ("step", "attempt", "duration_micros", "commit_id")
_REST = tuple(name for name in Run._fields if name not in _BARE)
_NOTHING = (None,) * len(_REST)
#: Columns that indexes or triggers depend on: an UPDATE that names one of them works on those, too, whatever it sets.
#: (Another such column is updated_at, which always changes.)
_WATCHED = ("status", "owner", "waiting_for", "wake_at", "arms")
#: What the first column of a row says, and all columns of a row that only pads the statement. A run that stays is
#: running before and after, with the same owner.
_STARTS, _GOES_ON, _STAYS, _FILLS = 1, 2, 3, 0
#: What follows from the other columns of a lean row: of a start and a goto; of a completion.
_FOLLOWS = {
    "created_at": "NEW.updated_at", "status": "'running'", "failures": "0", "crashes": "0", "marked": "0",
    "history_at_micros": "NEW.updated_at", "history_error": "NULL",
}  # fmt: skip
_ENDS = {"status": "'completed'", "failures": "NEW.history_attempt - 1", "ended_at": "NEW.updated_at"}
_KINDS = {_STARTS: "'start'", _GOES_ON: "'complete'", _STAYS: "'goto'"}


def _pick(record: type[Run | Transition], columns: Sequence[str]) -> Callable[[Any], tuple[object, ...]]:
    return itemgetter(*map(record._fields.index, columns))


#: What a Result has beside the outcome and the run.
_UNTOLD = tuple(Result("applied"))[2:]
_rest = _pick(Run, _REST)
_GOES_TO = ("running", 0, 0, 0, None)
_followers = _pick(Run, ("status", "failures", "crashes", "marked", "ended_at"))


class _View(NamedTuple):
    """A view that takes some of a run's columns, and of its transition's.

    ``rows``: as many as one statement binds; ``lean``: whether the other columns follow from these, else they are NULL.
    """

    name: str
    columns: tuple[str, ...]
    own: tuple[str, ...]
    pick: Callable[[Any], tuple[object, ...]]
    pick_own: Callable[[Any], tuple[object, ...]]
    width: int
    rows: int
    lean: bool

    def statements(self) -> list[str]:
        """The SQL that creates it."""
        names = ["place", *self.columns, *(f"history_{column}" for column in self.own)]
        triggers = [
            f"CREATE TEMP TRIGGER {self.name}_{place} INSTEAD OF INSERT ON {self.name} WHEN NEW.place = {place} "
            f"BEGIN {self._writes(place)}; END"
            for place in (_STARTS, _GOES_ON, _STAYS)
        ]
        return [f"CREATE TEMP VIEW {self.name} AS SELECT {', '.join(f'NULL AS {name}' for name in names)}", *triggers]

    def _writes(self, place: int) -> str:
        values = dict.fromkeys(Run._fields, "NULL")
        if self.lean:
            values |= {**_FOLLOWS, "history_kind": _KINDS[place]} | (_ENDS if place == _GOES_ON else {})
        for column in self.columns:
            values[column] = _new(column, column in NULLABLE)
        for column in self.own:
            values[f"history_{column}"] = _new(f"history_{column}", column in NULLABLE)
        if place == _STARTS:
            columns = [column for column in Run._fields if values[column] != "NULL"]
            run = f"INSERT INTO runs ({', '.join(columns)}) VALUES ({', '.join(values[column] for column in columns)})"
        elif place == _GOES_ON:
            run = _update({column: values[column] for column in _MUTABLE}, "TRUE")
        else:
            same = " AND ".join(f"{column} IS {values[column]}" for column in _WATCHED)
            run = _update({column: values[column] for column in _MUTABLE if column not in _WATCHED}, same)
        line = [values["id"], values["seq"], *(values[f"history_{column}"] for column in _OWN)]
        return f"{run}; INSERT INTO history VALUES ({', '.join(line)})"


def _update(values: Mapping[str, str], condition: str) -> str:
    changed = ", ".join(f"{column} = {value}" for column, value in values.items())
    return (
        f"UPDATE runs SET {changed} WHERE id = NEW.id AND seq = NEW.seq - 1 AND fence = NEW.fence AND {condition}; "
        "SELECT RAISE(ABORT, 'a guard does not hold') WHERE changes() <> 1"
    )


def _new(column: str, nullable: bool) -> str:
    return f"nullif(NEW.{column}, char(0))" if nullable else f"NEW.{column}"


def _view(name: str, columns: tuple[str, ...], own: tuple[str, ...] = _OWN, *, lean: bool = False) -> _View:
    width = 1 + len(columns) + len(own)
    rows = max(length for length in LENGTHS if length * width <= _BINDS)
    return _View(name, columns, own, _pick(Run, columns), _pick(Transition, own), width, rows, lean)


_ALL, _BARE_ONLY = _view("plain", Run._fields), _view("bare", _BARE)
_LEAN_ONLY = _view("lean", _LEAN, _LEAN_OWN, lean=True)


def prepare(db: sqlite3.Connection) -> None:
    """Create the views, for this connection alone."""
    for view in (_ALL, _BARE_ONLY, _LEAN_ONLY):
        for statement in view.statements():
            db.execute(statement)


def apply_plain(
    db: sqlite3.Connection, changes: Sequence[Change], begins: Callable[[], None]
) -> tuple[list[Result], int] | None:
    """Write a batch of runs that start or go on, as a transaction.

    Args:
        db: on which ``prepare`` was called; no transaction is open.
        changes: the batch.
        begins: called before what does not need the GIL.

    Returns:
        The results, and how many bytes of data were written at most; None if nothing was written, as the batch has
        other changes, or a guard does not hold.
    """
    size, bare, lean = 0, True, True
    plain: list[Start | Move] = []
    results: list[Result] = []
    for change in changes:
        if type(change) is Move:
            run = change.run
            if (
                change.takes
                or change.unless_mail
                or change.also
                or run.arms is not None
                or change.seq != run.seq - 1
                or change.fence != run.fence
            ):
                return None
        elif type(change) is Start:
            run = change.run
            if run.key is not None or change.plan or run.arms is not None:
                return None
        else:
            return None
        if (rest := _rest(run)) != _NOTHING:
            bare = False
            size += sum(map(_size, rest))
        lean = lean and _is_lean(change)
        size += _size(run.data) + _size(change.transition.error)
        plain.append(change)
        results.append(record(Result, ("applied", run, *_UNTOLD)))
    view = _ALL if not bare else _LEAN_ONLY if lean else _BARE_ONLY
    if size > _LARGEST:
        return None
    parts = [_values(view, plain[first : first + view.rows]) for first in range(0, len(plain), view.rows)]
    begins()
    try:
        if len(parts) == 1:
            _insert(db, view, parts)
        else:
            transaction(db, lambda db: _insert(db, view, parts))
    except sqlite3.IntegrityError:
        return None
    return results, size


def _is_lean(change: Start | Move) -> bool:
    """Whether what a lean row leaves out follows from the rest, as in nearly all that an engine writes."""
    run, transition = change.run, change.transition
    kind, now = transition.kind, run.updated_at
    if kind == "goto":
        follows: tuple[object, ...] = _GOES_TO
    elif kind == "complete":
        follows = ("completed", transition.attempt - 1, 0, 0, now)
    elif kind == "start" and run.created_at == now:
        follows = _GOES_TO
    else:
        return False
    return (
        _followers(run) == follows
        and transition.at_micros == now
        and transition.error is None
        and (type(change) is Start) == (kind == "start")
    )


def _size(value: object) -> int:
    """How many bytes a text takes at most; other values take few."""
    if type(value) is not str:
        return 0
    return len(value) if value.isascii() else 4 * len(value)


def _values(view: _View, changes: Sequence[Start | Move]) -> list[object]:
    values: list[object] = []
    for change in changes:
        run, transition = change.run, change.transition
        if type(change) is Start:
            values.append(_STARTS)
        elif transition.kind == "goto":  # one that parks has arms, and its batch is not plain
            values.append(_STAYS)
        else:
            values.append(_GOES_ON)
        values += view.pick(run)
        values += view.pick_own(transition)
    values = [NULL if value is None else value for value in values]
    values += [_FILLS] * (view.width * (LENGTHS[bisect_left(LENGTHS, len(changes))] - len(changes)))
    return values


def _insert(db: sqlite3.Connection, view: _View, parts: Sequence[list[object]]) -> None:
    for values in parts:
        # Not execute(), which releases the GIL once more, to ask for the last rowid.
        db.executemany(_sql(view.name, view.width, len(values) // view.width), (values,))


@cache
def _sql(view: str, width: int, rows: int) -> str:
    row = f"({', '.join('?' * width)})"
    return f"INSERT INTO temp.{view} VALUES {', '.join([row] * rows)}"
