"""Files that are locked, read-only, full or damaged: errors say so, nothing is lost, and work resumes when it can."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from pydantic import BaseModel
from structlog.typing import EventDict

from aioflow import Engine, Event, WorkflowRun, complete, event_workflow, get_context, sleep, step, wait, workflow
from aioflow.commands import Command
from aioflow.errors import StoreUnavailable
from aioflow_sqlite import SQLiteStore
from tests.engine.conftest import ShiftedClock
from tests.hostile.conftest import Disk
from tests.hostile.crowd import crowded, whole
from tests.support import wait_until

HOUR = timedelta(hours=1)
LOCKED = "database is locked. Another process holds the file's write lock: end its long transaction."
READ_ONLY = "attempt to write a readonly database. Check the permissions of the file and of its directory."
FULL = "database or disk is full. Make room on the disk: work goes on by itself."
DAMAGED = "database disk image is malformed. The file is damaged: restore a backup."
NO_DATABASE = (
    "file is not a database. The path holds another kind of file, or the file is damaged: then restore a backup."
)
IO_ERROR = (
    "disk I/O error. The disk or its file system failed: look into the system's log; "
    "the file is opened anew, and work goes on when it can be written."
)
CANNOT_OPEN = "unable to open database file. Check that the directory exists and can be written."


@workflow("hostile-disk")
class Order:
    """Waits for a signal, then sleeps an hour."""

    class Context(BaseModel):
        number: int
        paid: int = 0
        padding: str = ""

    @step(start=True)
    async def ask(self) -> Command:
        return wait.for_signal("paid", then=self.rest)

    @step
    async def rest(self) -> Command:
        get_context(self.Context).padding = "x" * 2_000
        return sleep(HOUR, then=self.end)

    @step
    async def end(self) -> Command:
        return complete()


@event_workflow("hostile-delivery", name="hostile-disk-delivery")
class Delivery:
    """Starts when a delivery occurs."""

    @step(start=True)
    async def unpack(self, event: Event) -> Command:
        return complete()


def url_of(folder: Path) -> str:
    """The URL of a file in this folder, with a short busy_timeout."""
    return f"sqlite:///{folder}/x.db?busy_timeout=50"


def unavailable(folder: Path, problem: str, file: str = "x.db") -> str:
    """The text of an error about the file."""
    return f"The store sqlite:///{folder}/{file} is not available: {problem}"


def engine_on(folder: Path, clock: ShiftedClock | None = None, **options: Any) -> Engine:
    """An engine on the file in this folder."""
    return Engine(url_of(folder), clock=clock, **options)


def store_of(engine: Engine) -> SQLiteStore:
    """The store of an open engine."""
    assert engine._parts is not None
    store = engine._parts.store
    assert isinstance(store, SQLiteStore)
    return store


async def execute(engine: Engine, *statements: str) -> None:
    """Execute statements on all connections of the engine's store."""
    store = store_of(engine)
    for connection in (store._writer, store._reader, store._asker):
        assert connection is not None
        for sql in statements:
            await connection.run(lambda db, sql=sql: db.execute(sql).fetchall())  # type: ignore[misc]


async def parked(engine: Engine, number: int, until: str = "signal") -> WorkflowRun[Any]:
    """A run that waits for its signal, or sleeps."""
    run = await (await engine.start(Order, number=number)).wait(5, until="parked")
    if until == "sleep":
        assert (await engine.signal("paid", {"paid": number}, run_id=run.id)).state == "delivered"
        await asleep(run)
    return run


async def asleep(run: WorkflowRun[Any]) -> None:
    """Wait until the run sleeps."""

    async def sleeps() -> bool:
        await run.refresh()
        return run.waiting_for == "sleep"

    await wait_until(sleeps)


async def ended(engine: Engine, run: WorkflowRun[Any]) -> WorkflowRun[Any]:
    """Wait until the run has completed, check it, and return it."""
    run = await engine.wait(run.id, 10)
    assert (run.status, run.error) == ("completed", None)
    await whole(engine, run)
    return run


# ---- while the engine works


@asynccontextmanager
async def locked(engine: Engine, folder: Path) -> AsyncIterator[None]:
    """Another connection has begun a write transaction, and does not end it."""
    with sqlite3.connect(folder / "x.db", isolation_level=None, timeout=10) as db:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("ROLLBACK")
    db.close()


@asynccontextmanager
async def read_only(engine: Engine, folder: Path) -> AsyncIterator[None]:
    """SQLite must not write: this works for root, too, whom no file mode would stop."""
    await execute(engine, "PRAGMA query_only = 1")
    yield
    writer = store_of(engine)._writer
    assert writer is not None
    await writer.run(lambda db: db.execute("PRAGMA query_only = 0"))


@asynccontextmanager
async def full_file(engine: Engine, folder: Path) -> AsyncIterator[None]:
    """The file must not grow."""
    await execute(engine, "PRAGMA max_page_count = 1")
    yield
    await execute(engine, "PRAGMA max_page_count = 1000000")


@asynccontextmanager
async def full_disk(engine: Engine, folder: Path) -> AsyncIterator[None]:
    """The disk is full."""
    disk = Disk(folder)
    disk.fill()
    yield
    disk.make_room()


@asynccontextmanager
async def failing_disk(engine: Engine, folder: Path) -> AsyncIterator[None]:
    """The system refuses every write, with an error that SQLite does not know."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


Fault: TypeAlias = Callable[[Engine, Path], AbstractAsyncContextManager[None]]
FAULTS: list[tuple[Fault, str]] = [
    (locked, LOCKED),
    (read_only, READ_ONLY),
    (full_file, FULL),
    (full_disk, FULL),
    (failing_disk, IO_ERROR),
]


def told(log: list[EventDict], event: str) -> list[EventDict]:
    """The log entries of an event."""
    return [entry for entry in log if entry["event"] == event]


@pytest.mark.parametrize(("fault", "problem"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
async def test_work_goes_on_when_the_file_can_be_written_again(
    disk: Disk, clock: ShiftedClock, log: list[EventDict], fault: Fault, problem: str
) -> None:
    """While the file cannot be written all work waits and the log says why; afterwards everything is done, once."""
    async with engine_on(disk.folder, clock) as engine:
        sleeper, asker = await parked(engine, 1, "sleep"), await parked(engine, 2)
        await engine.emit("hostile-delivery", at=clock.now() + HOUR, event_id="due")
        async with crowded(engine) as crowd:
            async with fault(engine, disk.folder):
                await wait_until(lambda: told(log, "commit failed, will offer it again"))
                clock.shift(2 * HOUR)  # the sleeper is due now
                starts = [asyncio.create_task(engine.start(Order, number=number)) for number in range(10, 20)]
                signal = asyncio.create_task(engine.signal("paid", {"paid": 7}, run_id=asker.id))
                emits = [
                    asyncio.create_task(engine.emit("hostile-delivery", event_id=f"delivery-{number % 5}"))
                    for number in range(10)
                ]
                await asyncio.wait([*starts, *emits, signal], timeout=0.1)
                assert not any(task.done() for task in [*starts, *emits, signal])
                stuck = crowd.steps
                assert (await engine.get(sleeper.id)).waiting_for == "sleep"  # what is stored can still be read
                assert (await engine.get(asker.id)).waiting_for == "signal"
            await crowd.moves_on()
            (entry,) = told(log, "commit failed, will offer it again")
            assert entry["error"] == unavailable(disk.folder, problem)
            assert told(log, "commit works again")
            assert crowd.steps > stuck
            assert (await ended(engine, sleeper)).data["paid"] == 1
            assert (await signal).delivered == [asker.id]
            assert Counter([(await emit).id for emit in emits]) == {f"delivery-{number}": 2 for number in range(5)}
            await wait_until(lambda: _delivered(engine), 10)
            runs = [await task for task in starts]
            for run in runs:
                await run.wait(5, until="parked")
                assert (await engine.signal("paid", {"paid": 1}, run_id=run.id)).state == "delivered"
            for run in [*runs, asker]:
                await asleep(run)
            clock.shift(2 * HOUR)
            for run in [*runs, asker]:
                await ended(engine, run)
        assert (await engine.get(asker.id)).data["paid"] == 7
        assert await engine.count(workflow=Order) == 12
        assert await engine.count(workflow=Delivery) == 6


async def _delivered(engine: Engine) -> bool:
    """Whether each of the six events has occurred, and its run has completed."""
    stats = await engine.stats()
    done = await engine.count(workflow=Delivery, status="completed")
    return (stats.events, stats.planned, done) == ({"occurred": 6}, 0, 6)


async def test_engine_that_closes_on_a_full_disk_loses_nothing(disk: Disk, clock: ShiftedClock) -> None:
    """An engine that closes on a full disk loses nothing acknowledged, and the start that failed has left no run."""
    options: dict[str, Any] = {"shutdown_timeout": timedelta(seconds=0.1)}
    async with engine_on(disk.folder, clock, **options) as engine:
        sleepers = [await parked(engine, 1, "sleep")]
        async with full_disk(engine, disk.folder):
            clock.shift(2 * HOUR)
            start = asyncio.create_task(engine.start(Order, number=99))
            await asyncio.wait([start], timeout=0.1)
            await engine.__aexit__(None, None, None)
            with pytest.raises(StoreUnavailable) as caught:
                await start
            assert str(caught.value) in (
                unavailable(disk.folder, FULL),
                unavailable(disk.folder, "it has not answered by the end of the engine."),
                unavailable(disk.folder, "the engine has ended, the outcome is not known."),
            )
    async with engine_on(disk.folder, clock) as engine:
        for number, run in enumerate(sleepers, 1):
            assert (await ended(engine, run)).data["paid"] == number
        assert await engine.count(workflow=Order) == len(sleepers)


# ---- damaged


SCRIBBLE = "import os, sys; f = open(sys.argv[1], 'r+b'); f.seek(int(sys.argv[2])); f.write(sys.stdin.buffer.read())"


def scribble(path: Path, at: int, data: bytes) -> None:
    """Write into a file from another process, as closing it in this one would release SQLite's locks."""
    subprocess.run([sys.executable, "-c", SCRIBBLE, str(path), str(at)], input=data, check=True, timeout=20)


def content(path: Path) -> bytes:
    """The content of a file, read by another process."""
    return subprocess.run(["cat", str(path)], check=True, capture_output=True, timeout=20).stdout


async def test_file_that_is_damaged_while_it_is_open_can_be_repaired(
    tmp_path: Path, clock: ShiftedClock, log: list[EventDict]
) -> None:
    """While an open file is damaged, timers, commits and queries report that, and they work once it is repaired."""
    path = tmp_path / "x.db"
    text = unavailable(tmp_path, DAMAGED)
    async with engine_on(tmp_path, clock) as engine:
        runs = [await parked(engine, number, "sleep") for number in range(50)]
        await execute(engine, "PRAGMA wal_checkpoint(TRUNCATE)")
        good = content(path)
        scribble(path, 4096, os.urandom(len(good) - 4096))
        await execute(engine, "PRAGMA shrink_memory")
        clock.shift(2 * HOUR)
        await wait_until(lambda: told(log, "timers cannot be fired, will try again"))
        assert told(log, "timers cannot be fired, will try again")[0]["error"] == text
        with pytest.raises(StoreUnavailable) as caught:
            await engine.runs()
        assert str(caught.value) == text
        start = asyncio.create_task(engine.start(Order, number=99))
        await wait_until(lambda: told(log, "commit failed, will offer it again"))
        assert told(log, "commit failed, will offer it again")[0]["error"] == text
        scribble(path, 0, good)
        await execute(engine, "PRAGMA shrink_memory")
        assert (await (await start).wait(5, until="parked")).waiting_for == "signal"
        for number, run in enumerate(runs):
            assert (await ended(engine, run)).data["paid"] == number


@pytest.mark.parametrize(
    ("at", "length", "problem"),
    [(0, 100, NO_DATABASE), (4096, 5 * 4096, DAMAGED), (100, 2000, DAMAGED)],
    ids=["header", "pages", "schema"],
)
async def test_file_that_was_damaged_is_refused_and_left_alone(
    tmp_path: Path, clock: ShiftedClock, at: int, length: int, problem: str
) -> None:
    """A damaged file is refused with the reason and left unchanged, and its run goes on after a backup is restored."""
    path = tmp_path / "x.db"
    async with engine_on(tmp_path, clock) as engine:
        run = await parked(engine, 3, "sleep")
    good = path.read_bytes()
    bad = good[:at] + b"\x5a" * length + good[at + length :]
    path.write_bytes(bad)
    for _ in range(2):
        with pytest.raises(StoreUnavailable) as caught:
            await engine_on(tmp_path, clock).__aenter__()
        assert str(caught.value).startswith(unavailable(tmp_path, problem))
        assert path.read_bytes() == bad
    path.write_bytes(good)
    clock.shift(2 * HOUR)
    async with engine_on(tmp_path, clock) as engine:
        assert (await ended(engine, run)).data["paid"] == 3


async def test_file_with_one_damaged_table_opens(tmp_path: Path, clock: ShiftedClock, log: list[EventDict]) -> None:
    """Damage that opening does not find is reported by what reads it, the rest can be read, and the engine closes."""
    path, text = tmp_path / "x.db", unavailable(tmp_path, DAMAGED)
    async with engine_on(tmp_path, clock) as engine:
        run = await parked(engine, 7, "sleep")
    with sqlite3.connect(path) as db:
        query = "SELECT rootpage, (SELECT page_size FROM pragma_page_size()) FROM sqlite_master WHERE name = 'history'"
        page, size = db.execute(query).fetchone()
    db.close()
    scribble(path, (page - 1) * size, b"\x5a" * size)
    async with engine_on(tmp_path, clock, shutdown_timeout=timedelta(seconds=0.1)) as engine:
        with pytest.raises(StoreUnavailable) as caught:
            await engine.history(run.id)
        assert str(caught.value) == text
        assert [found.data["number"] for found in await engine.runs()] == [7]
        clock.shift(2 * HOUR)
        await wait_until(lambda: told(log, "commit failed, will offer it again"))
        assert told(log, "commit failed, will offer it again")[0]["error"] == text
        assert (await engine.get(run.id)).waiting_for == "sleep"


# ---- opening


async def test_new_file_on_a_full_disk_is_an_error(disk: Disk) -> None:
    """A new file that cannot be created on a full disk is an error that says so, and is created once there is room."""
    disk.fill()
    with pytest.raises(StoreUnavailable) as caught:
        await engine_on(disk.folder).__aenter__()
    assert str(caught.value) == unavailable(disk.folder, FULL)
    disk.make_room()
    async with engine_on(disk.folder) as engine, crowded(engine):
        await parked(engine, 1)


async def test_file_on_a_read_only_disk_is_refused(disk: Disk, clock: ShiftedClock) -> None:
    """A file on a read-only disk is refused with advice, and its run goes on once the disk can be written."""
    async with engine_on(disk.folder, clock) as engine:
        run = await parked(engine, 5, "sleep")
    disk.remount("ro")
    clock.shift(2 * HOUR)
    with pytest.raises(StoreUnavailable) as caught:
        await engine_on(disk.folder, clock).__aenter__()
    assert str(caught.value) == unavailable(disk.folder, CANNOT_OPEN)
    disk.remount("rw")
    async with engine_on(disk.folder, clock) as engine:
        assert (await ended(engine, run)).data["paid"] == 5


async def test_opening_waits_for_a_lock(tmp_path: Path, clock: ShiftedClock) -> None:
    """Opening a file that another connection is writing waits until that has ended."""
    async with engine_on(tmp_path, clock) as engine:
        run = await parked(engine, 5, "sleep")
        async with locked(engine, tmp_path):
            second = engine_on(tmp_path, clock)
            opening = asyncio.create_task(second.__aenter__())
            await asyncio.wait([opening], timeout=0.3)
            assert not opening.done()
        await opening
        await second.__aexit__(None, None, None)
        clock.shift(2 * HOUR)
        await ended(engine, run)


def test_every_sentence_gives_advice() -> None:
    """Each of this file's error texts says what happened and then what to do."""
    for text in (LOCKED, READ_ONLY, FULL, DAMAGED, NO_DATABASE, CANNOT_OPEN, IO_ERROR):
        assert re.fullmatch(r"[a-zIO/ ]+\. [A-Z][^.]+\.", text), text
