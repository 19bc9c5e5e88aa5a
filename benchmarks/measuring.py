"""What the benchmarks share: the machine, percentiles, the loop's lag, and single commits of plain sqlite3."""

from __future__ import annotations

import asyncio
import os
import platform
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

LAG_TICK: Final = 0.005


def machine() -> dict[str, object]:
    """The machine's versions, cores and load."""
    return {
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }


def percentiles(times: Iterable[float], digits: int = 3) -> dict[str, float]:
    """The p50, the p99 and the maximum."""
    found = sorted(times)
    return {
        "p50": round(found[len(found) // 2], digits),
        "p99": round(found[len(found) * 99 // 100], digits),
        "max": round(found[-1], digits),
    }


async def watch_lag(lags: list[float]) -> None:
    """Collect by how many milliseconds the loop wakes a task too late that sleeps 5 ms; until cancelled."""
    while True:
        began = time.perf_counter()
        await asyncio.sleep(LAG_TICK)
        lags.append((time.perf_counter() - began - LAG_TICK) * 1000)


def durable_file(path: Path) -> sqlite3.Connection:
    """A connection that commits as durably as a store does (WAL and FULL), and copies the WAL back as rarely."""
    # Another thread than this one may use the connection, but only one at a time.
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA wal_autocheckpoint = 4000")
    return db


def plain_file(path: Path) -> sqlite3.Connection:
    """A durable file with two small tables, runs and their history."""
    db = durable_file(path)
    db.execute(
        "CREATE TABLE IF NOT EXISTS runs (id INTEGER PRIMARY KEY, step TEXT, seq INTEGER, at INTEGER, data TEXT)"
    )
    db.execute(
        "CREATE TABLE IF NOT EXISTS history (run_id INTEGER, seq INTEGER, at INTEGER, step TEXT,"
        " PRIMARY KEY (run_id, seq)) WITHOUT ROWID"
    )
    return db


def single_commits(path: Path, commits: int) -> list[float]:
    """Milliseconds of one transition as one transaction: BEGIN IMMEDIATE, UPDATE, INSERT, COMMIT; WAL and FULL."""
    db = plain_file(path)
    data = '{"order_id": 1, "note": "something of the usual length"}'
    db.execute("INSERT INTO runs VALUES (1, 'reserve', 0, 0, ?)", (data,))
    times = []
    for seq in range(1, commits + 1):
        began = time.perf_counter()
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE runs SET step = ?, seq = ?, at = ?, data = ? WHERE id = 1", ("charge", seq, seq, data))
        db.execute("INSERT INTO history VALUES (1, ?, ?, ?)", (seq, seq, "charge"))
        db.execute("COMMIT")
        times.append((time.perf_counter() - began) * 1000)
    db.close()
    return times
