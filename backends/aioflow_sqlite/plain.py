"""Batches of runs that start or go on and nothing else, as most are under load.

Their guards stand in the statements that write the runs, which tell how many of them held. If one did not, nothing is
written, and the batch is done as any other. Most of these rows have nothing in half of their columns, which then are not
bound one by one: binding holds the GIL, and is what a batch costs the event loop.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import NamedTuple

from aioflow.changes import Change, Move, Result, Start
from aioflow.model import Run, Transition
from aioflow_sqlite.connection import begin
from aioflow_sqlite.rows import NULLABLE, WRITE_HISTORY
from aioflow_sqlite.writing import placeholders, write

_Values = tuple[object, ...]
_MUTABLE = Run._fields[Run._fields.index("status") :]


class _Shape(NamedTuple):
    """Some of a run's columns: how they are picked from a row, and the statements that write them; all others are NULL."""

    starting: Callable[[Run], _Values]
    going_on: Callable[[Run], _Values]
    insert: tuple[str, str, str]
    update: tuple[str, str, str]


def _shape(columns: Sequence[str]) -> _Shape:
    moving = ["id", *(name for name in columns if name in _MUTABLE)]
    place = {name: f"v.column{number}" for number, name in enumerate(moving, 1)}
    changed = ", ".join(f"{name} = {place.get(name, 'NULL')}" for name in _MUTABLE)
    return _Shape(
        itemgetter(*map(Run._fields.index, columns)),
        itemgetter(*map(Run._fields.index, moving)),
        (
            f"INSERT INTO runs ({', '.join(columns)}) VALUES ",
            placeholders(columns, NULLABLE),
            " ON CONFLICT DO NOTHING",
        ),
        (
            f"UPDATE runs SET {changed} FROM (VALUES ",
            placeholders(moving, NULLABLE),
            f") AS v WHERE runs.id = v.column1 AND runs.seq = {place['seq']} - 1 AND runs.fence = {place['fence']}",
        ),
    )


#: A run that goes from step to step, or ends, has nothing but these.
_BARE = tuple(name for name in Run._fields if name not in NULLABLE or name in ("owner", "ended_at"))
_REST = tuple(name for name in Run._fields if name not in _BARE)
#: By whether it has nothing else.
_SHAPES = (_shape(Run._fields), _shape(_BARE))
_rest: Callable[[Run], _Values] = itemgetter(*map(Run._fields.index, _REST))
_NOTHING = (None,) * len(_REST)


def apply_plain(db: sqlite3.Connection, changes: Sequence[Change]) -> list[Result] | None:
    """Write a batch of runs that start or go on, in the transaction that has been begun.

    Returns:
        The results; None if it is no such batch, or if a guard does not hold: then a transaction has been begun in which
        nothing is written.
    """
    starts: tuple[list[_Values], list[_Values]] = ([], [])
    moves: tuple[list[_Values], list[_Values]] = ([], [])
    transitions: list[Transition] = []
    results: list[Result] = []
    for change in changes:
        if type(change) is Move:
            run = change.run
            if (
                change.takes
                or change.unless_mail
                or change.also
                or run.arms is not None
                or (change.seq, change.fence) != (run.seq - 1, run.fence)
            ):
                return None
            bare = _rest(run) == _NOTHING
            moves[bare].append(_SHAPES[bare].going_on(run))
        elif type(change) is Start:
            run = change.run
            if run.key is not None or change.plan or run.arms is not None:
                return None
            bare = _rest(run) == _NOTHING
            starts[bare].append(_SHAPES[bare].starting(run))
        else:
            return None
        transitions.append(change.transition)
        results.append(Result("applied", run))
    written = 0
    for shape, begun, moved in zip(_SHAPES, starts, moves, strict=True):
        written += write(db, shape.insert, begun) + write(db, shape.update, moved)
    if written != len(changes):
        db.rollback()
        begin(db)
        return None
    write(db, WRITE_HISTORY, transitions)
    return results
