"""A bare engine, as the upper limit that asyncio, pydantic and sqlite3 set: the least that commits the steps of a run.

It has a task for each run that may be outstanding, a thread that writes, and one future for each batch. It inserts a
run; then for each step it reads the Context, awaits the step, writes the Context, updates the row and inserts a row of
history: four transitions for a run of three steps. It has no leases, fences, retries, limits, tracing, waits, queries
or checks of its own, and does not handle a step that raises. Its rate tells how fast the machine is at the work that
every engine must do.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from measuring import plain_file
from pydantic import BaseModel

#: Rows of one INSERT into the history: sqlite3 releases the GIL once for each statement.
ROWS = 500


class BareRun:
    """A run in memory: its columns, and the future of its end."""

    __slots__ = ("data", "done", "id", "seq", "step")

    def __init__(self, number: int, step: str, data: str, done: asyncio.Future[None]) -> None:
        self.id, self.step, self.seq, self.data, self.done = number, step, 1, data, done


class BareEngine:
    """Runs steps of one workflow: functions that change a Context and return the next step's name, or "" to end."""

    def __init__(
        self,
        path: Path,
        context: type[BaseModel],
        steps: dict[str, Callable[[Any], Awaitable[str]]],
        outstanding: int,
    ) -> None:
        self._path, self._steps, self._outstanding = path, steps, outstanding
        self._first = next(iter(steps))
        self._validator, self._serializer = context.__pydantic_validator__, context.__pydantic_serializer__
        self._thread = ThreadPoolExecutor(1)
        self._ids = iter(range(1, 1 << 62))
        self._ready: deque[BareRun] = deque()
        self._idle: deque[asyncio.Future[BareRun]] = deque()
        self._wake = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._db = plain_file(self._path)
        self._next_batch()
        self._tasks = [asyncio.create_task(self._work()) for _ in range(self._outstanding)]
        self._tasks.append(asyncio.create_task(self._commit()))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        self._thread.shutdown()
        self._db.close()

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
        self._inserts: list[tuple[object, ...]] = []
        self._updates: list[tuple[object, ...]] = []
        self._history: list[tuple[object, ...]] = []
        self._batch: asyncio.Future[None] = self._loop.create_future()

    def _committed(self, run: BareRun, step: str) -> asyncio.Future[None]:
        self._history.append((run.id, run.seq, time.time_ns(), step))
        self._wake.set()
        return self._batch

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
            if not self._history:
                self._wake.clear()
                await self._wake.wait()
            told, rows = self._batch, (self._inserts, self._updates, self._history)
            self._next_batch()
            await self._loop.run_in_executor(self._thread, self._write, *rows)
            told.set_result(None)

    def _write(self, inserts: list[Any], updates: list[Any], history: list[Any]) -> None:
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        db.executemany("INSERT INTO runs VALUES (?, ?, ?, ?, ?)", inserts)
        db.executemany("UPDATE runs SET step = ?, seq = ?, at = ?, data = ? WHERE id = ?", updates)
        for first in range(0, len(history), ROWS):
            rows = history[first : first + ROWS]
            values = ", ".join(["(?, ?, ?, ?)"] * len(rows))
            db.execute(f"INSERT INTO history VALUES {values}", [value for row in rows for value in row])
        db.execute("COMMIT")
