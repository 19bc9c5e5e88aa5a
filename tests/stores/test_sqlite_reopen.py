"""A SQLite file is reopened after an I/O error, with the same settings, and only if it is still the same file."""

from __future__ import annotations

import random
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import deepcopy
from pathlib import Path

import pytest

from aioflow.clock import SECOND
from aioflow.errors import StoreUnavailable
from aioflow.testing.conformance_samples import NOW, a_run, ids, starting
from aioflow_sqlite import SQLiteStore
from tests.faults.powerloss import Disk

PRAGMAS = ("journal_mode", "synchronous", "wal_autocheckpoint", "journal_size_limit", "query_only")


class Syncs:
    """Lets syncs fail. ``fail``: how many more; ``opened``: how often the database was opened."""

    def __init__(self) -> None:
        self.fail = 0
        self.opened = 0
        self.disk = Disk(self.watch)

    def watch(self, operation: str, path: str) -> bool:
        """See Disk."""
        self.opened += operation == "open" and path.endswith(".db")
        if operation != "sync" or not self.fail:
            return False
        self.fail -= 1
        return True


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[tuple[SQLiteStore, Syncs]]:
    """An open store on a disk whose syncs can fail."""
    syncs = Syncs()
    store = SQLiteStore(f"{url}?vfs={syncs.disk.name}&synchronous=EXTRA&busy_timeout=70")
    await store.open(NOW)
    try:
        yield store, syncs
    finally:
        await store.close()
        syncs.disk.remove()


async def settings(store: SQLiteStore) -> list[tuple[object, ...]]:
    """The settings of the writer's connection."""
    assert store._writer is not None
    return await store._writer.run(lambda db: [db.execute(f"PRAGMA {name}").fetchone() for name in PRAGMAS])


async def failed(store: SQLiteStore, syncs: Syncs, run_id: int) -> None:
    """Write a run while a sync fails."""
    syncs.fail = 1
    with pytest.raises(StoreUnavailable) as caught:
        await store.apply([starting(a_run(run_id), commit_id=run_id)], NOW)
    assert syncs.fail == 0
    assert str(caught.value) == (
        f"The store {store.name} is not available: disk I/O error. "
        "The disk or its file system failed: look into the system's log; "
        "the file is opened anew, and work goes on when it can be written."
    )


async def test_writer_is_as_it_was(tmp_path: Path) -> None:
    """After a failed sync the writer is a new connection with the same settings, and the change was not applied."""
    async with opened(f"sqlite:///{tmp_path}/x.db") as (store, syncs):
        before = await settings(store)
        opened_before = syncs.opened
        await store.apply([starting(a_run(1), commit_id=1)], NOW)
        for run_id in (2, 3, 4):
            await failed(store, syncs, run_id)
            assert ids(await store.load([1, 2, 3, 4], NOW)) == list(range(1, run_id))
            results = await store.apply([starting(a_run(run_id), commit_id=run_id)], NOW)
            assert [result.outcome for result in results] == ["applied"]
            assert await settings(store) == before
            assert syncs.opened == opened_before + run_id - 1
        assert ids(await store.load([1, 2, 3, 4], NOW)) == [1, 2, 3, 4]


async def test_working_directory_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path still means the first file when it is reopened in another working directory."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    async with opened("sqlite:///my%20runs.db") as (store, syncs):
        await store.apply([starting(a_run(1), commit_id=1)], NOW)
        monkeypatch.chdir(elsewhere)
        await failed(store, syncs, 2)
        await store.apply([starting(a_run(2), commit_id=2)], NOW)
        assert ids(await store.load([1, 2], NOW)) == [1, 2]
    assert not list(elsewhere.iterdir())


async def test_other_file_is_not_opened(tmp_path: Path) -> None:
    """If the file is gone or was replaced it is not reopened, an error says so, and work goes on when it is back."""
    path, away = tmp_path / "x.db", tmp_path / "away.db"
    async with opened(f"sqlite:///{path}") as (store, syncs):
        await failed(store, syncs, 1)
        path.rename(away)
        for other in (None, b"", away.read_bytes()):
            if other is not None:
                path.write_bytes(other)
            with pytest.raises(StoreUnavailable, match="deleted or replaced while it was open"):
                await store.apply([starting(a_run(1), commit_id=1)], NOW)
            assert (path.read_bytes() if path.exists() else None) == other
        away.rename(path)
        await store.apply([starting(a_run(1), commit_id=1)], NOW)
        assert ids(await store.load([1], NOW)) == [1]


@pytest.mark.parametrize("fail", [1, 5])
async def test_store_closes_after_a_failed_sync(tmp_path: Path, fail: int) -> None:
    """A store that is closed right after a failed sync, while more may fail, has all that was acknowledged."""
    path = tmp_path / "x.db"
    async with opened(f"sqlite:///{path}") as (store, syncs):
        await store.apply([starting(a_run(1), commit_id=1)], NOW)
        await failed(store, syncs, 2)
        syncs.fail = fail - 1
    again = SQLiteStore(f"sqlite:///{path}")
    await again.open(NOW)
    try:
        assert (await again.load([1], NOW))[0].id == 1
    finally:
        await again.close()


async def test_unsynced_writes_of_a_dead_process_lose_no_later_commit(tmp_path: Path) -> None:
    """A commit of the next process survives a power loss, though the dead one left writes that it could not sync."""
    before, after, image = (tmp_path / name for name in ("before", "after", "image"))
    for folder in (before, after, image):
        folder.mkdir()
    async with opened(f"sqlite:///{before}/runs.db") as (store, syncs):
        await claim(store)
        await store.apply([starting(a_run(1), commit_id=1)], NOW)
        await failed(store, syncs, 2)
        disk = syncs.disk
        for name in ("runs.db", "runs.db-wal"):  # the process dies: copy what the kernel has, and what the disk has
            shutil.copy(before / name, after / name)
            disk.files[str(after / name)] = disk.entries[str(after / name)] = deepcopy(disk.files[str(before / name)])
        other = SQLiteStore(f"sqlite:///{after}/runs.db?vfs={disk.name}")
        await other.open(NOW)
        try:
            await claim(other)
            await other.apply([starting(a_run(3), commit_id=3)], NOW)
            found = ids(await other.load([1, 2, 3], NOW))
            for path in [path for path in disk.files if path.startswith(str(before))]:
                disk.entries.pop(path, None)
                del disk.files[path]
            path = disk.lose_power(random.Random(0), image)
        finally:
            await other.close()
    assert found == [1, 2, 3]
    lost = SQLiteStore(f"sqlite:///{path}")
    await lost.open(NOW)
    left = ids(await lost.load([1, 2, 3], NOW))
    await lost.close()
    assert {1, 3} <= set(left)


async def claim(store: SQLiteStore) -> None:
    """Become the worker of the file."""
    claimed = await store.claim(1, lease=SECOND, limit=0, known=[], held=None, now=NOW)
    assert claimed.working
