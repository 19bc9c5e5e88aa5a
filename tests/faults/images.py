"""Images of a SQLite store as a crash would leave it, and the checks that they must pass.

``take`` copies a live store at any moment. ``Acknowledged`` is an instrument that records what an engine has reported
as committed; ``problems`` compares an image with that.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

from aioflow.model import Run, Transition

#: The files that a crash leaves. The index of the WAL (-shm) is not one of them: it is rebuilt from the WAL.
SUFFIXES = ("", "-wal", "-journal")


def take(database: Path, folder: Path) -> Path:
    """Copy a store into an empty folder as a crash would leave it now, and return the path of the copy.

    May be called from any thread, also in the middle of a transaction or checkpoint. Everything that was acknowledged
    before the call is in the image; what is committed during the call may be. No other process may have the store open:
    closing a file releases the locks that SQLite in this process has on it.
    """
    with ExitStack() as stack:
        # An open read transaction keeps the WAL from being restarted before both files are copied.
        reader = stack.enter_context(closing(sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True)))
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        # The database first: what a checkpoint copies into it meanwhile is still in the WAL.
        for suffix in SUFFIXES:
            path = Path(f"{database}{suffix}")
            if path.exists():
                source = stack.enter_context(path.open("rb"))
                with (folder / path.name).open("wb") as target:
                    shutil.copyfileobj(source, target)
    return folder / database.name


class Acknowledged:
    """An instrument that keeps what was acknowledged: (run, seq) -> commit_id, signals in the mailbox, and events."""

    def __init__(self) -> None:
        self.transitions: dict[tuple[int, int], int] = {}
        self.signals: set[str] = set()
        self.events: set[str] = set()

    def committed(self, run: Run, transition: Transition) -> None:
        """See Instrument."""
        self.transitions[run.id, transition.seq] = transition.commit_id

    def emitted(self, event_id: str) -> None:
        """Record an acknowledged event."""
        self.events.add(event_id)

    def step_started(self, run: Run) -> None:
        """Nothing."""

    def step_ended(self, run: Run, error: BaseException | None) -> None:
        """Nothing."""

    def so_far(self) -> Acknowledged:
        """A snapshot of what has been acknowledged, which does not change any more."""
        snapshot = Acknowledged()
        # Each copy is one operation, as the engine may go on in another thread.
        snapshot.transitions, snapshot.signals = self.transitions.copy(), self.signals.copy()
        snapshot.events = self.events.copy()
        return snapshot


def problems(database: Path, acknowledged: Acknowledged) -> list[str]:
    """The problems of an image. Opening it recovers it."""
    try:
        with closing(sqlite3.connect(database)) as db:
            broken = [text for (text,) in db.execute("PRAGMA integrity_check") if text != "ok"]
            if broken:
                return [f"corrupt: {broken[:3]}"]
            return list(_problems(db, acknowledged))
    except sqlite3.DatabaseError as error:
        return [f"corrupt: {error}"]


def _problems(db: sqlite3.Connection, acknowledged: Acknowledged) -> Iterator[str]:
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if not tables >= {"runs", "history", "signals"}:
        if acknowledged.transitions or tables & {"runs", "history"}:
            yield f"lost: the schema, there is {sorted(tables)}"
        return
    history = {(run, seq): commit for run, seq, commit in db.execute("SELECT run_id, seq, commit_id FROM history")}
    for place, commit in acknowledged.transitions.items():
        if history.get(place) != commit:
            yield f"lost: transition {place} of commit {commit}, there is {history.get(place)}"
    signals = {signal_id for (signal_id,) in db.execute("SELECT signal_id FROM signals")}
    if lost := acknowledged.signals - signals:
        yield f"lost: the signals {sorted(lost)}"
    events = {event_id for (event_id,) in db.execute("SELECT event_id FROM events")}
    if lost := acknowledged.events - events:
        yield f"lost: the events {sorted(lost)}"
    last: dict[int, int] = {}
    for (run, seq), (following, next_seq) in pairwise([*sorted(history), (0, 0)]):
        last[run] = seq
        if run == following and next_seq != seq + 1:
            yield f"gap: the history of run {run} goes from {seq} to {next_seq}"
    firsts = db.execute("SELECT run_id FROM history GROUP BY run_id HAVING min(seq) <> 1").fetchall()
    if firsts:
        yield f"gap: the histories of {firsts} do not begin with 1"
    rows = dict(db.execute("SELECT id, seq FROM runs"))
    if rows != last:
        yield f"torn: rows and histories differ, {sorted(rows.items() ^ last.items())[:6]}"
    ends = "SELECT kind FROM history WHERE run_id = runs.id AND seq = runs.seq"
    wrong = db.execute(f"SELECT id FROM runs WHERE status = 'completed' AND ({ends}) <> 'complete'").fetchall()
    if wrong:
        yield f"torn: {wrong} are completed, but not by their last transitions"
