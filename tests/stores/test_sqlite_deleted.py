"""A SQLite file that is deleted or replaced while it is open: nothing is acknowledged that would be lost."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import timedelta
from pathlib import Path

import anyio
import pytest
from pydantic import BaseModel
from structlog.testing import capture_logs

from aioflow import Engine, complete, errors, step, wait, workflow
from aioflow.commands import Command
from aioflow_sqlite import SQLiteStore
from tests.support import wait_until


@workflow("deleted-file")
class Flow:
    """Waits for a signal."""

    class Context(BaseModel):
        pass

    @step(start=True)
    async def ask(self) -> Command:
        return wait.for_signal("go", then=self.end)

    @step
    async def end(self) -> Command:
        return complete()


async def test_work_waits_until_the_file_is_back(tmp_path: Path) -> None:
    """What is to be committed while the file is away is committed when the file is back, and not before."""
    path, away = tmp_path / "x.db", tmp_path / "away.db"
    with capture_logs() as log:
        async with Engine(f"sqlite:///{path}", workflows=[Flow]) as engine:
            run = await (await engine.start(Flow)).wait(5, until="parked")
            await engine.signal("go", key="nobody")  # reserves a block of ids
            path.rename(away)
            sending = asyncio.ensure_future(engine.signal("go", run_id=run.id))
            starting = asyncio.ensure_future(engine.start(Flow))
            await wait_until(lambda: any("commit failed" in line["event"] for line in log))
            assert not sending.done()
            assert not starting.done()
            away.rename(path)
            assert (await sending).delivered == [run.id]
            assert (await run.wait(10)).status == "completed"
            other = await starting
    assert any("its file was deleted or replaced while it was open." in line.get("error", "") for line in log)
    async with Engine(f"sqlite:///{path}", workflows=[Flow]) as engine:
        assert [(await engine.get(each)).status for each in (run.id, other.id)] == ["completed", "waiting"]


@pytest.mark.parametrize("replaced", [False, True], ids=["deleted", "replaced"])
async def test_a_write_to_a_missing_file_is_an_error(tmp_path: Path, replaced: bool) -> None:
    """A write to a file that was deleted or replaced is an error with advice, and the new file is left alone."""
    path = tmp_path / "x.db"
    store = SQLiteStore(f"sqlite:///{path}")
    await store.open(0)
    try:
        path.unlink()
        if replaced:
            path.write_text("another program's")
        with pytest.raises(errors.StoreUnavailable) as caught:
            await store.reserve("run", 1, 0)
        assert str(caught.value) == (
            f"The store sqlite:///{path} is not available: its file was deleted or replaced while it was open. "
            "Put the file back, or restart to begin with the one there."
        )
    finally:
        await store.close()
    assert not replaced or path.read_text() == "another program's"


async def test_a_relative_path_is_that_of_the_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path still means the same file after the working directory has changed."""
    monkeypatch.chdir(tmp_path)
    store = SQLiteStore("sqlite:///x.db")
    await store.open(0)
    try:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert await store.reserve("run", 1, 0) >= 1
    finally:
        await store.close()


# ---- the files that SQLite keeps beside it

BESIDE = pytest.mark.parametrize("gone", [("-wal",), ("-shm",), ("-wal", "-shm")], ids="+".join)


def take_away(path: Path, names: tuple[str, ...], *, replace: bool = False) -> None:
    """Delete files, or put empty ones in their place."""
    for name in names:
        file = Path(f"{path}{name}")
        file.unlink()
        if replace:
            file.touch()


@BESIDE
@pytest.mark.parametrize("replaced", [False, True], ids=["deleted", "replaced"])
async def test_a_write_without_the_wal_is_an_error(tmp_path: Path, gone: tuple[str, ...], replaced: bool) -> None:
    """Once the WAL or its index is gone, writes fail, reads work, and reopening finds all that was written."""
    path = tmp_path / "x.db"
    store = SQLiteStore(f"sqlite:///{path}")
    await store.open(0)
    try:
        first = await store.reserve("run", 10, 0)
        take_away(path, gone, replace=replaced)
        for _ in range(2):
            with pytest.raises(errors.StoreUnavailable) as caught:
                await store.reserve("run", 10, 0)
            assert str(caught.value) == (
                f"The store sqlite:///{path} is not available: x.db{gone[0]}, which belongs to its file, was deleted or "
                "replaced while it was open. Restart this process, and let nobody touch that file."
            )
        assert (await store.stats(0)).runs == {}
    finally:
        await store.close()
    await store.open(0)
    assert await store.reserve("run", 1, 0) == first + 10
    await store.close()


@BESIDE
async def test_what_was_acknowledged_outlives_the_wal(tmp_path: Path, gone: tuple[str, ...]) -> None:
    """What only a deleted WAL held is soon copied into the file, so that a crash after that loses nothing."""
    path, copy = tmp_path / "x.db", tmp_path / "copy.db"

    def runs_after_a_crash() -> int:
        shutil.copy(path, copy)
        try:
            with closing(sqlite3.connect(copy)) as db:
                (number,) = db.execute("SELECT count(*) FROM runs").fetchone()
        except sqlite3.DatabaseError:  # it was copied during a write
            return 0
        return int(number)

    with capture_logs():
        async with Engine(
            f"sqlite:///{path}", workflows=[Flow], shutdown_timeout=timedelta(milliseconds=100)
        ) as engine:
            runs = [await engine.start(Flow) for _ in range(5)]
            assert runs_after_a_crash() < 5  # not all that is acknowledged is in the file itself
            take_away(path, gone)
            await wait_until(lambda: runs_after_a_crash() == 5)
            assert len(await engine.runs()) == 5
            stopping = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - stopping < 10
    async with Engine(f"sqlite:///{path}", workflows=[Flow]) as engine:
        for run in runs:
            await engine.wait(run.id, 5, until="parked")
            await engine.signal("go", run_id=run.id)
            assert (await engine.wait(run.id, 5)).status == "completed"


# ---- the lock of the working process

THIEF = """
import os, sys, time
from pathlib import Path
from aioflow_sqlite.lock import FileLock

path = Path(sys.argv[1])
lock = FileLock(path)
while not (has := lock.acquire()) and sys.argv[2] == "steal":
    path.unlink(missing_ok=True)
print(has, flush=True)
sys.stdin.read()
"""


@asynccontextmanager
async def thief(path: Path, way: str) -> AsyncIterator[bool]:
    """Another process that tries to take the lock and holds it; with ``way`` "steal" it deletes the lock's file."""
    command = [sys.executable, "-c", THIEF, f"{path}.worker", way]
    async with await anyio.open_process(command, stderr=None) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield (await process.stdout.receive()).strip() == b"True"  # the process may have ended by itself
        await process.stdin.aclose()


async def test_lock_that_was_deleted_is_there_again(tmp_path: Path) -> None:
    """The working engine makes its deleted lock file anew, so that no other process gets the lock, and work goes on."""
    path = tmp_path / "x.db"
    lock = Path(f"{path}.worker")
    async with Engine(f"sqlite:///{path}", workflows=[Flow]) as engine:
        run = await (await engine.start(Flow)).wait(5, until="parked")
        for _ in range(3):
            take_away(path, (".worker",))
            await wait_until(lock.exists)
        async with thief(path, "ask") as has:
            assert not has
            await engine.signal("go", run_id=run.id)
            assert (await run.wait(5)).status == "completed"


async def test_engine_whose_lock_was_stolen_stops_its_runs(tmp_path: Path) -> None:
    """An engine whose lock another process has taken stops its runs, and works again when the lock is free."""
    path = tmp_path / "x.db"
    begun, stopped = [], []

    @workflow("deleted-lock")
    class Long:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def begin(self) -> Command:
            begun.append(1)
            try:
                if len(begun) == 1:
                    await asyncio.Event().wait()
            except asyncio.CancelledError:
                stopped.append(1)
                raise
            return complete()

    with capture_logs() as log:
        async with Engine(f"sqlite:///{path}", workflows=[Long]) as engine:
            run = await engine.start(Long)
            await wait_until(lambda: begun)
            async with thief(path, "steal") as has:
                assert has
                await wait_until(lambda: stopped)
                assert any(line.get("why") == "another process works the store" for line in log)
                assert (await engine.stats()).running_here == 0
                await run.refresh()
                assert (run.status, begun) == ("running", [1])
            assert (await run.wait(10)).status == "completed"
    assert begun == [1, 1]


# ---- opening


async def test_opening_a_locked_file_ends_in_time(tmp_path: Path) -> None:
    """Opening a file that another process keeps locked fails after about ``busy_timeout``, not a multiple of it."""
    path = tmp_path / "x.db"
    async with Engine(f"sqlite:///{path}", workflows=[Flow]):
        pass
    for statement in ("BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"):
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            if statement == "BEGIN EXCLUSIVE":
                db.execute("PRAGMA journal_mode = DELETE")
            db.execute(statement)
            store = SQLiteStore(f"sqlite:///{path}?busy_timeout=2500")
            began = time.monotonic()
            with pytest.raises(errors.StoreUnavailable) as caught:
                await store.open(0)
            assert 2.4 < time.monotonic() - began < 6
            assert str(caught.value) == (
                f"The store sqlite:///{path} is not available: database is locked. "
                "Another process holds the file's write lock: end its long transaction."
            )
            db.execute("ROLLBACK")
        await store.open(0)
        await store.close()
