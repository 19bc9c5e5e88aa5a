"""How long the WAL of a SQLite file grows."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from pydantic import BaseModel

from aioflow import Engine, complete, goto, step, workflow
from aioflow.commands import Command
from aioflow.model import Run, Transition
from aioflow_sqlite.wal import Wal
from tests.support import wait_until

MB = 1_000_000


@workflow("wal-writer")
class Writer:
    """Writes its Context three times."""

    class Context(BaseModel):
        load: str

    @step(start=True)
    async def first(self) -> Command:
        return goto(self.second)

    @step
    async def second(self) -> Command:
        return complete()


class Gauge:
    """An instrument that measures the WAL at every transition."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.longest = 0

    def committed(self, run: Run, transition: Transition) -> None:
        """See Instrument."""
        self.longest = max(self.longest, self._path.stat().st_size)

    def step_started(self, run: Run) -> None:
        """Nothing."""

    def step_ended(self, run: Run, error: BaseException | None) -> None:
        """Nothing."""


async def write(engine: Engine, runs: int, load: int) -> None:
    """Complete so many runs with so large a Context, ten at a time."""
    for _ in range(runs // 10):
        started = await asyncio.gather(*(engine.start(Writer, load="x" * load) for _ in range(10)))
        for run in started:
            assert (await run.wait(10)).status == "completed"


async def test_wal_is_copied_back_at_16_megabytes(tmp_path: Path) -> None:
    """The WAL is copied back at 16 MB, whether few large rows or many small ones are written."""
    path = tmp_path / "x.db"
    for runs, load in ((100, 200_000), (3000, 10)):
        engine = Engine(f"sqlite:///{path}", workflows=[Writer])
        gauge = Gauge(path.with_name("x.db-wal"))
        engine.instruments.append(gauge)
        async with engine:
            await write(engine, runs, load)
        sys.stdout.write(f"{runs} runs with {load} bytes: up to {gauge.longest / MB:.1f} MB\n")
        assert 16 * MB < gauge.longest < 26 * MB


async def test_wal_that_somebody_reads_is_copied_back_later(tmp_path: Path) -> None:
    """The WAL grows while another process reads, and is restarted after that."""
    path = tmp_path / "x.db"
    wal = path.with_name("x.db-wal")
    async with Engine(f"sqlite:///{path}", workflows=[Writer]) as engine:
        await write(engine, 10, 10)
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM runs").fetchone()
            await write(engine, 60, 200_000)
            grown = wal.stat().st_size
            assert grown > 30 * MB
            reader.execute("COMMIT")
        await write(engine, 40, 200_000)
        assert wal.stat().st_size < grown + 10 * MB

        async def begun_anew() -> bool:
            await write(engine, 10, 200_000)
            return not Wal(str(path))._has_grown()

        await wait_until(begun_anew)
