"""A bare engine, as the upper limit that asyncio, pydantic and a driver set: the least that commits the steps of a run.

It has a task for each run that may be outstanding, and one future for each batch. Its store is a file that a thread
writes (sqlite3), or a server that gets two batches at once, each as one statement (asyncpg). It inserts a run; then for
each step it reads the Context, awaits the step, writes the Context, updates the row and inserts a row of history: four
transitions for a run of three steps. It has no leases, fences, retries, limits, tracing, waits, queries or checks of
its own, and does not handle a step that raises. Its rate tells how fast the machine is at the work that every engine
must do.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, Self

import asyncpg
from measuring import plain_file
from pydantic import BaseModel

#: Rows of one INSERT into the history: sqlite3 releases the GIL once for each statement.
ROWS = 500
#: Transitions of one batch: while it is committed, the next one is made.
MOST = 500


Rows = list[tuple[Any, ...]]
_SETUP = """
DROP TABLE IF EXISTS bare_runs, bare_history;
CREATE TABLE bare_runs (id bigint PRIMARY KEY, step text, seq bigint, at bigint, data jsonb) WITH (fillfactor = 70);
CREATE TABLE bare_history (run_id bigint, seq bigint, at bigint, step text, PRIMARY KEY (run_id, seq));
"""
_WRITE = """
WITH begun AS (INSERT INTO bare_runs
    SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::bigint[], $5::text[]::jsonb[])),
moved AS (UPDATE bare_runs AS r SET step = u.step, seq = u.seq, at = u.at, data = u.data
    FROM unnest($6::text[], $7::bigint[], $8::bigint[], $9::text[]::jsonb[], $10::bigint[]) AS u (step, seq, at, data, id)
    WHERE r.id = u.id)
INSERT INTO bare_history SELECT * FROM unnest($11::bigint[], $12::bigint[], $13::bigint[], $14::text[])
"""


class BareStore(Protocol):
    """Commits batches. ``in_flight``: how many at once."""

    in_flight: int

    async def open(self) -> None:
        """Make its tables."""
        ...

    async def write(self, inserts: Rows, updates: Rows, history: Rows) -> None:
        """Commit a batch: new runs, changed runs, rows of history."""
        ...

    async def close(self) -> None:
        """Let go of it."""
        ...


class BareFile:
    """A SQLite file, WAL and FULL, that one thread writes."""

    in_flight = 1

    def __init__(self, path: Path) -> None:
        self._path = path

    async def open(self) -> None:
        """See BareStore."""
        self._thread = ThreadPoolExecutor(1)
        self._db = plain_file(self._path)

    async def write(self, inserts: Rows, updates: Rows, history: Rows) -> None:
        """See BareStore."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._write, inserts, updates, history)

    async def close(self) -> None:
        """See BareStore."""
        self._thread.shutdown()
        self._db.close()

    def _write(self, inserts: Rows, updates: Rows, history: Rows) -> None:
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        db.executemany("INSERT INTO runs VALUES (?, ?, ?, ?, ?)", inserts)
        db.executemany("UPDATE runs SET step = ?, seq = ?, at = ?, data = ? WHERE id = ?", updates)
        for first in range(0, len(history), ROWS):
            rows = history[first : first + ROWS]
            values = ", ".join(["(?, ?, ?, ?)"] * len(rows))
            db.execute(f"INSERT INTO history VALUES {values}", [value for row in rows for value in row])
        db.execute("COMMIT")


class BareServer:
    """A PostgreSQL server, with two connections. Its tables are made anew."""

    in_flight = 2

    def __init__(self, url: str) -> None:
        self._url = url

    async def open(self) -> None:
        """See BareStore."""
        # Without them the planner may hash the whole table for a batch.
        plain = {"enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off"}
        self._connections = [await asyncpg.connect(self._url, server_settings=plain) for _ in range(self.in_flight)]
        await self._connections[0].execute(_SETUP)

    async def write(self, inserts: Rows, updates: Rows, history: Rows) -> None:
        """See BareStore."""
        connection = self._connections.pop()
        columns = [*_columns(inserts, 5), *_columns(updates, 5), *_columns(history, 4)]
        await connection.execute(_WRITE, *columns)
        self._connections.append(connection)

    async def close(self) -> None:
        """See BareStore."""
        for connection in self._connections:
            await connection.close()


def _columns(rows: Rows, number: int) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(number)]


class BareRun:
    """A run in memory: its columns, and the future of its end."""

    __slots__ = ("data", "done", "id", "seq", "step")

    def __init__(self, number: int, step: str, data: str, done: asyncio.Future[None]) -> None:
        self.id, self.step, self.seq, self.data, self.done = number, step, 1, data, done


class BareEngine:
    """Runs steps of one workflow: functions that change a Context and return the next step's name, or "" to end."""

    def __init__(
        self,
        store: BareStore,
        context: type[BaseModel],
        steps: dict[str, Callable[[Any], Awaitable[str]]],
        outstanding: int,
    ) -> None:
        self._store, self._steps, self._outstanding = store, steps, outstanding
        self._first = next(iter(steps))
        self._validator, self._serializer = context.__pydantic_validator__, context.__pydantic_serializer__
        self._ids = iter(range(1, 1 << 62))
        self._ready: deque[BareRun] = deque()
        self._idle: deque[asyncio.Future[BareRun]] = deque()
        self._wake = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        await self._store.open()
        self._full: deque[tuple[asyncio.Future[None], Rows, Rows, Rows]] = deque()
        self._next_batch()
        self._tasks = [asyncio.create_task(self._work()) for _ in range(self._outstanding)]
        self._tasks += [asyncio.create_task(self._commit()) for _ in range(self._store.in_flight)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        await self._store.close()

    async def start(self, **keywords: object) -> BareRun:
        """Start a run; return once it is committed."""
        context = self._validator.validate_python(keywords)
        run = BareRun(
            next(self._ids), self._first, self._serializer.to_json(context).decode(), self._loop.create_future()
        )
        self._inserts.append((run.id, run.step, 1, time.time_ns(), run.data))
        await self._committed(run, "start")
        if self._idle:
            self._idle.popleft().set_result(run)
        else:
            self._ready.append(run)
        return run

    def _next_batch(self) -> None:
        self._inserts: Rows = []
        self._updates: Rows = []
        self._history: Rows = []
        self._batch: asyncio.Future[None] = self._loop.create_future()

    def _committed(self, run: BareRun, step: str) -> asyncio.Future[None]:
        self._history.append((run.id, run.seq, time.time_ns(), step))
        told = self._batch
        if len(self._history) == MOST:
            self._end_batch()
        self._wake.set()
        return told

    def _end_batch(self) -> None:
        self._full.append((self._batch, self._inserts, self._updates, self._history))
        self._next_batch()

    async def _work(self) -> None:
        """Execute one run after the other, each to its end."""
        while True:
            if self._ready:
                run = self._ready.popleft()
            else:
                coming: asyncio.Future[BareRun] = self._loop.create_future()
                self._idle.append(coming)
                run = await coming
            while step := run.step:
                context = self._validator.validate_json(run.data)
                run.step = await self._steps[step](context)
                run.data = self._serializer.to_json(context).decode()
                run.seq += 1
                self._updates.append((run.step, run.seq, time.time_ns(), run.data, run.id))
                await self._committed(run, step)
            run.done.set_result(None)

    async def _commit(self) -> None:
        while True:
            while not self._full and not self._history:
                self._wake.clear()
                await self._wake.wait()
            if not self._full:
                self._end_batch()
            told, *rows = self._full.popleft()
            await self._store.write(*rows)
            told.set_result(None)
