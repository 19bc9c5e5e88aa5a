"""Transactions of a plain sqlite3 connection."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def transaction(db: sqlite3.Connection, function: Callable[[sqlite3.Connection], T]) -> T:
    """Run a function in a write transaction: all of it is committed, or nothing."""
    db.executescript("BEGIN IMMEDIATE")  # releases the GIL once, where execute() does so three times
    try:
        result = function(db)
        db.commit()  # once, too
    except BaseException:
        db.rollback()
        raise
    return result


def snapshot(db: sqlite3.Connection, function: Callable[[sqlite3.Connection], T]) -> T:
    """Run a function in a read transaction: all that it reads is of one instant."""
    db.execute("BEGIN")
    try:
        return function(db)
    finally:
        db.execute("COMMIT")
