"""Several workers on one PostgreSQL store, their steps' effects, and how long a dead worker's runs stay with it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg

from tests.faults.children import PATIENCE, Child, ForkServer
from tests.postgres import with_options

#: Seconds of a worker's lease, and seconds after it within which another worker must have taken its runs.
LEASE, GRACE = 2, 2
#: Seconds between two looks.
_PAUSE = 0.2


class Cluster:
    """A store, its workers, and the external effects of their steps."""

    def __init__(self, worker_server: ForkServer, server: str, url: str, folder: Path) -> None:
        self.server = server
        self.url = url
        self.schema = url.rpartition("schema=")[2].partition("&")[0]
        self._fork_server = worker_server
        self._folder = folder
        self.workers: list[Child] = []
        self._number = 0

    def launch(self, **job: Any) -> Child:
        """Start a worker."""
        self._number += 1
        job = {"url": self.url, "outside": with_options(self.server, options=f"-csearch_path%3D{self.schema}"), **job}
        child = Child(self._fork_server, self._number, self._fork_server.fork({**job, "folder": str(self._folder)}))
        self.workers.append(child)
        return child

    def close(self) -> None:
        """Kill all workers that are still alive."""
        for child in self.workers:
            if child.exit_code() is None:
                os.kill(child.pid, signal.SIGCONT)
                os.kill(child.pid, signal.SIGKILL)
                child.exit_code(PATIENCE)

    async def ask(self, sql: str, *values: object) -> Any:
        """Query one value of the store's tables."""
        connection = await asyncpg.connect(self.server)
        try:
            await connection.execute(f"SET search_path TO {self.schema}")
            return await connection.fetchval(sql, *values)
        finally:
            await connection.close()

    async def rows(self, sql: str) -> list[Any]:
        """Query rows of the store's tables."""
        connection = await asyncpg.connect(self.server)
        try:
            await connection.execute(f"SET search_path TO {self.schema}")
            return list(await connection.fetch(sql))
        finally:
            await connection.close()

    async def prepare(self) -> None:
        """Create the tables for the steps' effects, and for the gates that hold steps."""
        await self.ask("CREATE TABLE effects (step_key text, pid int)")
        await self.ask("CREATE TABLE gates (name text)")

    def has(self, workers: int) -> Callable[[], Awaitable[Any]]:
        """A condition that holds while so many workers are registered."""
        return lambda: self.ask("SELECT count(*) = $1 FROM workers WHERE until > 0", workers)

    async def live(self) -> int:
        """How many runs have not ended."""
        return int(await self.ask("SELECT count(*) FROM runs WHERE status IN ('running', 'waiting')"))

    async def ended(self) -> bool:
        """Whether all runs have ended."""
        return await self.live() == 0

    async def check(self, runs: int, transitions: int) -> None:
        """Check that every run has completed once, with a history without gaps and with exactly so many transitions."""
        assert await self.ask("SELECT count(*) FROM runs WHERE status = 'completed'") == runs
        assert await self.ask("SELECT count(*) FROM history WHERE kind = 'complete'") == runs
        gaps = "SELECT count(*) FROM (SELECT run_id FROM history GROUP BY 1 HAVING max(seq) <> count(*)) AS gaps"
        assert await self.ask(gaps) == 0
        committed = await self.ask("SELECT count(*) FROM history")
        errors = await self.ask("SELECT string_agg(error, ' ') FROM history")
        assert errors is None, errors
        retried = await self.ask("SELECT count(*) FROM history WHERE kind = 'retry'")
        wakes = await self.ask("SELECT count(*) FROM history WHERE kind = 'wake'")
        assert (committed, retried, wakes) == (runs * transitions, 0, runs)
        assert (
            await self.ask("SELECT count(*) FROM history AS h JOIN runs AS r ON r.id = h.run_id WHERE h.seq > r.seq")
            == 0
        )


class Lookout:
    """Polls the store for runs whose owner's lease is over.

    The mutable state: when each owner's lease ends, as last seen; which owners were seen with runs; for how many
    seconds after its lease an owner still had runs, at most; how many runs had not ended; and by how many seconds a
    look was late, at most, as everything is on an overloaded machine.

    Args:
        cluster: its runs are watched.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._harbour = cluster
        self._until: dict[int, float] = {}
        self._next_look = time.monotonic()
        self.owners: set[int] = set()
        self.longest = 0.0
        self.live = 0
        self.lag = 0.0

    async def look(self) -> None:
        """Look, unless the last look was just a moment ago."""
        if time.monotonic() < self._next_look:
            return
        seen = await self._harbour.rows(
            "SELECT coalesce(w.id, r.owner) AS id, w.until / 1000000.0 AS until, coalesce(r.runs, 0) AS runs, "
            "extract(epoch FROM clock_timestamp()) AS now, "
            "(SELECT count(*) FROM runs WHERE status IN ('running', 'waiting')) AS live FROM workers AS w FULL JOIN "
            "(SELECT owner, count(*) AS runs FROM runs WHERE status = 'running' AND owner IS NOT NULL GROUP BY 1) AS r "
            "ON r.owner = w.id"
        )
        for owner, until, runs, now, live in seen:
            self.live = live
            if until:  # the worker that takes a dead one's runs sets its lease's end to 0
                self._until[owner] = float(until)
            late = float(now) - self._until.setdefault(owner, float(now))
            if runs:
                self.owners.add(owner)
                self.longest = max(self.longest, late)
        self.lag = max(self.lag, time.monotonic() - self._next_look)
        self._next_look = time.monotonic() + _PAUSE
