"""What plain sqlite3 commits of three-step runs, in large transactions: the limit below an engine on SQLite.

A run is four transitions, as for an engine: an INSERT of the run, three UPDATEs of it, and a row of history for each. A
transaction holds one transition of each of 1 000 runs; the time of making its rows does not count. Each call writes a
new file: in one that is kept, the history becomes large, and the rate falls.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import durable_file
from three_steps import ThreeSteps

from aioflow import Engine

#: Transitions of one transaction.
GROUP = 1000
#: What each transition of a run has done, and what the run does next.
STEPS = (("reserve", "reserve"), ("reserve", "charge"), ("charge", "ship"), ("ship", None))
DATA = ThreeSteps.Context(order_id=1, paid=True, items=[1, 2]).model_dump_json()

#: Statements, and the rows of each.
Work = list[tuple[str, list[tuple[Any, ...]]]]


def in_small_tables(ids: range, seq: int, at: int) -> Work:
    """One transition of each of the runs, in the two small tables that the bare engine has."""
    done, then = STEPS[seq - 1]
    if seq == 1:
        runs = ("INSERT INTO runs VALUES (?, ?, ?, ?, ?)", [(run, then, seq, at, DATA) for run in ids])
    else:
        update = "UPDATE runs SET step = ?, seq = ?, at = ?, data = ? WHERE id = ?"
        runs = (update, [(then, seq, at, DATA, run) for run in ids])
    return [runs, ("INSERT INTO history VALUES (?, ?, ?, ?)", [(run, seq, at, done) for run in ids])]


def in_the_store(ids: range, seq: int, at: int) -> Work:
    """One transition of each of the runs, in the SQLite store's tables, with values as an engine writes them."""
    done, then = STEPS[seq - 1]
    kind = "start" if seq == 1 else "goto" if then else "complete"
    if kind == "start":
        sql = """
            INSERT INTO runs (id, workflow, version, created_at, status, step, seq, fence, owner, visit, failures, hops,
                crashes, marked, data, updated_at)
            VALUES (?, 'three-steps', '', ?, 'running', ?, 1, 1, 1, 1, 0, 0, 0, 0, ?, ?)"""
        runs = (sql, [(run, at, then, DATA, at) for run in ids])
    elif kind == "goto":
        sql = """
            UPDATE runs SET step = ?, seq = ?, visit = ?, hops = ?, data = ?, updated_at = ? WHERE id = ? AND seq = ?"""
        runs = (sql, [(then, seq, seq, seq - 1, DATA, at, run, seq - 1) for run in ids])
    else:
        sql = """
            UPDATE runs SET status = 'completed', owner = NULL, seq = ?, data = ?, updated_at = ?, ended_at = ?
            WHERE id = ? AND seq = ?"""
        runs = (sql, [(seq, DATA, at, at, run, seq - 1) for run in ids])
    sql = "INSERT INTO history VALUES (?, ?, ?, ?, 1, ?, ?, NULL, ?)"
    duration = 0 if kind == "start" else 20
    return [runs, (sql, [(run, seq, at, done, kind, duration, 4 * run + seq) for run in ids])]


async def file_of_the_store(path: Path) -> sqlite3.Connection:
    """A new file with the tables and indexes of the SQLite store, opened by plain sqlite3."""
    async with Engine(f"sqlite:///{path}", worker=False):
        pass
    return durable_file(path)


def rate(db: sqlite3.Connection, work: Callable[[range, int, int], Work], runs: int) -> float:
    """Transitions per second; closes the connection. ``runs``: rounded to full groups."""
    groups = max(runs // GROUP, 1)
    taken = 0.0
    for number in range(groups):
        ids = range(number * GROUP + 1, (number + 1) * GROUP + 1)
        for seq in range(1, len(STEPS) + 1):
            statements = work(ids, seq, time.time_ns() // 1000)
            began = time.perf_counter()
            db.execute("BEGIN IMMEDIATE")
            for sql, rows in statements:
                db.executemany(sql, rows)
            db.execute("COMMIT")
            taken += time.perf_counter() - began
    db.close()
    return groups * GROUP * len(STEPS) / taken
