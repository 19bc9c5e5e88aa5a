"""Many rows in one statement: one step through sqlite3, whatever their number. See batch.py on the GIL."""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import Final

#: Binding None makes sqlite3 look for an adapter, in vain and in two places, which costs more than all other values of
#: a row together. So NULL is bound as a text that no row can hold.
NULL: Final = "\0"
#: Lengths of VALUES lists: few enough that every statement stays prepared. A list is padded to the next length with
#: its last row, which is then written again.
LENGTHS: Final = sorted([1 << n for n in range(11)] + [3 << n for n in range(9)])


def placeholders(columns: Sequence[str], nullable: frozenset[str]) -> str:
    """The placeholders of one row."""
    return f"({', '.join('nullif(?, char(0))' if column in nullable else '?' for column in columns)})"


def write(db: sqlite3.Connection, statement: tuple[str, str, str], rows: Sequence[tuple[object, ...]]) -> None:
    """Write the rows. ``statement``: what stands before the VALUES list, one row's placeholders, and what follows it.

    Writing a row twice must be harmless for the statement.
    """
    for start in range(0, len(rows), LENGTHS[-1]):
        part = rows[start : start + LENGTHS[-1]]
        length = LENGTHS[bisect_left(LENGTHS, len(part))]
        values = [NULL if value is None else value for value in chain.from_iterable(part)]
        values += values[-len(part[-1]) :] * (length - len(part))
        # Not execute(), which releases the GIL once more, to ask for the last rowid.
        db.executemany(_sql(statement, length), (values,))


@cache
def _sql(statement: tuple[str, str, str], length: int) -> str:
    head, row, tail = statement
    return head + ", ".join([row] * length) + tail
