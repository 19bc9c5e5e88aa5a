"""Commits batches whose runs only start or go on, as most do under load, by one statement.

A statement that is a transaction of its own releases the GIL once, from its first row until all are on the disk: so
SQLite works while the event loop does. One statement cannot write two tables, but the triggers of a view can: the batch
is inserted into a view, whose triggers write each row to ``runs`` and ``history`` if its guard holds. If a guard does
not hold, nothing is written, and batch.py applies the batch.

Most of these rows have NULL in half of their columns, which then are not bound one by one: binding holds the GIL, and
is what a batch costs the event loop.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cache
from operator import itemgetter
from typing import NamedTuple

from aioflow.changes import Change, Move, Result, Start
from aioflow.model import Run, Transition
from aioflow_sqlite.rows import NULLABLE
from aioflow_sqlite.transactions import transaction
from aioflow_sqlite.writing import LENGTHS, NULL

#: For more bytes of data than this, what SQLite keeps to undo a statement would exceed its cache of 500 pages, and go
#: to a file in a directory for temporary files, which need not exist.
_LARGEST = 700_000
#: How many values SQLite binds to one statement at most, unless it was built otherwise.
_BINDS = 32_766
_MUTABLE = Run._fields[Run._fields.index("status") :]
#: The only columns that hold a value in a run that goes from step to step, or ends.
_BARE = tuple(name for name in Run._fields if name not in NULLABLE or name in ("owner", "ended_at"))
_REST = tuple(name for name in Run._fields if name not in _BARE)
#: The columns of a transition that its run does not have.
_OWN = tuple(name for name in Transition._fields if name not in ("run_id", "seq"))
_rest: Callable[[Run], tuple[object, ...]] = itemgetter(*map(Run._fields.index, _REST))
_own: Callable[[Transition], tuple[object, ...]] = itemgetter(*map(Transition._fields.index, _OWN))
_NOTHING = (None,) * len(_REST)
#: What the first column of a row says, and all columns of a row that only pads the statement.
_STARTS, _GOES_ON, _FILLS = 1, 2, 0


class _View(NamedTuple):
    """A view that takes some of a run's columns, all others being NULL. ``rows``: as many as one statement binds."""

    name: str
    columns: tuple[str, ...]
    pick: Callable[[Run], tuple[object, ...]]
    width: int
    rows: int

    def statements(self) -> list[str]:
        """The SQL that creates it."""
        names = ["place", *self.columns, *(f"history_{column}" for column in _OWN)]
        new = {column: _new(column, column in NULLABLE) for column in self.columns}
        changed = ", ".join(f"{column} = {new.get(column, 'NULL')}" for column in _MUTABLE)
        line = ", ".join([new["id"], new["seq"], *(_new(f"history_{column}", column in NULLABLE) for column in _OWN)])
        starts = f"INSERT INTO runs ({', '.join(new)}) VALUES ({', '.join(new.values())})"
        goes_on = (
            f"UPDATE runs SET {changed} WHERE id = NEW.id AND seq = NEW.seq - 1 AND fence = NEW.fence; "
            "SELECT RAISE(ABORT, 'a guard does not hold') WHERE changes() <> 1"
        )
        return [
            f"CREATE TEMP VIEW {self.name} AS SELECT {', '.join(f'NULL AS {name}' for name in names)}",
            *(
                f"CREATE TEMP TRIGGER {self.name}_{place} INSTEAD OF INSERT ON {self.name} WHEN NEW.place = {place} "
                f"BEGIN {writes}; INSERT INTO history VALUES ({line}); END"
                for place, writes in ((_STARTS, starts), (_GOES_ON, goes_on))
            ),
        ]


def _new(column: str, nullable: bool) -> str:
    return f"nullif(NEW.{column}, char(0))" if nullable else f"NEW.{column}"


def _view(name: str, columns: tuple[str, ...]) -> _View:
    width = 1 + len(columns) + len(_OWN)
    rows = max(length for length in LENGTHS if length * width <= _BINDS)
    return _View(name, columns, itemgetter(*map(Run._fields.index, columns)), width, rows)


_FULL, _BARE_ONLY = _view("plain", Run._fields), _view("bare", _BARE)


def prepare(db: sqlite3.Connection) -> None:
    """Create the views, for this connection alone."""
    for view in (_FULL, _BARE_ONLY):
        for statement in view.statements():
            db.execute(statement)


def apply_plain(db: sqlite3.Connection, changes: Sequence[Change], begins: Callable[[], None]) -> list[Result] | None:
    """Write a batch of runs that start or go on, as a transaction.

    Args:
        db: on which ``prepare`` was called; no transaction is open.
        changes: the batch.
        begins: called before what does not need the GIL.

    Returns:
        The results; None if nothing was written, as the batch has other changes, or a guard does not hold.
    """
    view, size = _BARE_ONLY, 0
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
            view = _FULL
            size += sum(map(_size, rest))
        size += _size(run.data) + _size(change.transition.error)
        plain.append(change)
        results.append(Result("applied", run))
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
    return results


def _size(value: object) -> int:
    """How many bytes a text takes at most; other values take few."""
    if type(value) is not str:
        return 0
    return len(value) if value.isascii() else 4 * len(value)


def _values(view: _View, changes: Sequence[Start | Move]) -> list[object]:
    values: list[object] = []
    for change in changes:
        values.append(_STARTS if type(change) is Start else _GOES_ON)
        values += view.pick(change.run)
        values += _own(change.transition)
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
