"""Power loss at random moments of a store's work: what was acknowledged is there, the file is sound, all runs go on."""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from anyio import to_thread
from structlog.testing import capture_logs

from aioflow import Engine
from aioflow.errors import StoreError
from aioflow_sqlite import SQLiteStore
from tests.faults import images, orders
from tests.faults.images import Acknowledged
from tests.faults.powerloss import Disk

#: How many power losses one store has at most, and how many stores a test has.
LOSSES = 20
LIVES = 12
#: 200 power losses in CI, and 20 000 more with --slow.
LOTS = [(0, LIVES), *(pytest.param(lot, 5 * LIVES, marks=pytest.mark.slow) for lot in range(1, 21))]
ORDERS = 8


class Weather:
    """Takes images of power losses now and then, and lets syncs fail if it is asked to.

    Args:
        folder: the images are put into it.
        acknowledged: the instrument of the engine.
        rng: decides.
        failing: the chance that a sync fails, once the engine works.
    """

    def __init__(self, folder: Path, acknowledged: Acknowledged, rng: random.Random, failing: float = 0) -> None:
        self._folder = folder
        self._acknowledged = acknowledged
        self._rng = rng
        self.failing = 0.0
        self.would_fail = failing
        self.images: list[tuple[Path, Acknowledged]] = []
        self.figures: Counter[str] = Counter()
        self.disk = Disk(self.watch)

    def watch(self, operation: str, path: str) -> bool:
        """See Disk."""
        name = Path(path).name
        self.figures[f"{operation} {name}"] += 1
        # Most is at stake before a sync; after it comes the next operation, or an acknowledgement.
        if (
            self.disk.files
            and len(self.images) < LOSSES
            and self._rng.random() < (0.1 if operation == "sync" else 0.012)
        ):
            before = self._acknowledged.so_far()
            folder = self._folder / f"image {len(self.images)}"
            folder.mkdir()
            self.images.append((self.disk.lose_power(self._rng, folder), before))
            self.figures[f"lost before {operation} {name}"] += 1
        fails = operation == "sync" and self._rng.random() < self.failing
        self.figures[f"failed sync {name}"] += fails
        return fails


async def work(weather: Weather, acknowledged: Acknowledged, url: str, pragma: str) -> None:
    """Process orders in two lives on the disk, with checkpoints in between. ``pragma``: for the writer's connection."""
    for life in range(2):
        engine = Engine(f"{url}?vfs={weather.disk.name}", workflows=orders.WORKFLOWS)
        engine.instruments.append(acknowledged)
        async with engine:
            assert engine._parts is not None
            store = engine._parts.store
            assert isinstance(store, SQLiteStore)
            assert store._writer is not None
            assert store._wal is not None
            if pragma:
                await store._writer.run(lambda db: db.execute(pragma))
            weather.failing = weather.would_fail
            for lot in range(3):
                numbers = range(ORDERS * (life * 3 + lot), ORDERS * (life * 3 + lot + 1))
                await asyncio.gather(
                    *(orders.process(engine, acknowledged, number, early=number % 2 == 0) for number in numbers)
                )
                try:
                    await store._write(store._wal.copy_back)
                except StoreError:
                    weather.figures["failed checkpoint"] += 1
            weather.failing = 0


async def lives(
    folder: Path, rng: random.Random, count: int, *, pragma: str = "", failing: float = 0
) -> tuple[Counter[str], list[str]]:
    """Let so many stores lose their power many times each: counts, and what is wrong with the images."""
    figures: Counter[str] = Counter()
    wrong: list[str] = []
    for life in range(count):
        place = folder / str(life)
        place.mkdir()
        with capture_logs():  # each failed sync is logged
            acknowledged = Acknowledged()
            weather = Weather(place, acknowledged, rng, failing)
            await work(weather, acknowledged, f"sqlite:///{place}/runs.db", pragma)
            weather.disk.remove()
            for number, (image, before) in enumerate(weather.images):
                found = await examine(image, before)
                wrong += [f"store {life}, image {number}: {problem}" for problem in found]
                figures["went on"] += not found
                figures["lost"] += any(problem.startswith("lost") for problem in found)
                figures["corrupt"] += any(problem.startswith("corrupt") for problem in found)
        figures += weather.figures
        figures["power losses"] += len(weather.images)
        shutil.rmtree(place)
    return figures, wrong


def look_at(image: Path, acknowledged: Acknowledged) -> list[str]:
    """The problems of an image."""
    if not image.exists():  # the power was lost before the file was on the disk
        return ["lost: the file"] if acknowledged.transitions else []
    return images.problems(image, acknowledged)


async def examine(image: Path, acknowledged: Acknowledged) -> list[str]:
    """The problems of an image, or if there are none, what is wrong with how its orders end."""
    return await to_thread.run_sync(look_at, image, acknowledged) or await orders.go_on(image)


def tell(figures: Counter[str]) -> None:
    """Print the counts."""
    sys.stdout.write(f"{dict(sorted(figures.items()))}\n")


@pytest.mark.parametrize(("lot", "stores"), LOTS)
async def test_power_loss_loses_nothing(tmp_path: Path, rng: random.Random, lot: int, stores: int) -> None:
    """After many power losses under synchronous=FULL what was acknowledged is there, and all orders complete."""
    figures, wrong = await lives(tmp_path, rng, stores)
    tell(figures)
    assert not wrong, "\n".join(wrong[:20])
    assert figures["power losses"] >= 200 * stores // LIVES
    assert figures["went on"] >= 150 * stores // LIVES
    assert figures["lost before sync runs.db-wal"] >= LIVES
    assert figures["lost before write runs.db-wal"] >= LIVES
    assert figures["lost before write runs.db"] + figures["lost before sync runs.db"] >= LIVES


async def test_power_loss_after_failed_syncs_loses_nothing(tmp_path: Path, rng: random.Random) -> None:
    """Power losses lose nothing even if each tenth sync fails and the kernel drops what it could not write."""
    figures, wrong = await lives(tmp_path, rng, LIVES // 2, failing=0.1)
    tell(figures)
    assert not wrong, "\n".join(wrong[:20])
    assert figures["failed sync runs.db-wal"] >= LIVES
    assert figures["failed sync runs.db"] + figures["failed checkpoint"] >= 1


async def copy_all(store: SQLiteStore) -> None:
    """Copy the WAL back until it is synced: a read of the engine's may keep the first ones from copying all."""
    assert store._wal is not None
    for _ in range(100):
        await store._write(store._wal.copy_back)


@pytest.mark.parametrize("goes_on", [True, False])
async def test_pages_copied_beside_a_reader_outlive_a_sync_that_failed_later(
    tmp_path: Path, rng: random.Random, *, goes_on: bool
) -> None:
    """Pages of a checkpoint that a reader kept from syncing are not lost when the sync of the next checkpoint fails."""
    acknowledged = Acknowledged()
    failing = False

    def watch(operation: str, path: str) -> bool:
        return failing and operation == "sync" and path.endswith("runs.db")

    disk = Disk(watch)
    numbers = iter(range(100))

    async def some_orders() -> None:
        await asyncio.gather(
            *(orders.process(engine, acknowledged, next(numbers), early=number % 2 == 0) for number in range(ORDERS))
        )

    image = tmp_path / "image"
    image.mkdir()
    engine = Engine(f"sqlite:///{tmp_path}/runs.db?vfs={disk.name}", workflows=orders.WORKFLOWS)
    engine.instruments.append(acknowledged)
    with capture_logs():
        async with engine:
            assert engine._parts is not None
            store = engine._parts.store
            assert isinstance(store, SQLiteStore)
            assert store._wal is not None
            for _ in range(6):  # enough that some pages are not written again
                await some_orders()
            with closing(sqlite3.connect(f"file:{tmp_path}/runs.db?vfs={disk.name}", uri=True)) as reader:
                reader.execute("BEGIN")
                reader.execute("SELECT count(*) FROM runs").fetchone()
                await some_orders()
                await store._write(store._wal.copy_back)
                reader.execute("COMMIT")
            failing = True
            with pytest.raises(StoreError, match="I/O"):
                await copy_all(store)
            failing = False
            if goes_on:
                await store._write(store._wal.copy_back)
                await some_orders()  # they overwrite the WAL from its beginning, which was copied back
                before = acknowledged.so_far()
                disk.lose_power(rng, image)
        if not goes_on:  # the engine has closed without an error
            before = acknowledged.so_far()
            disk.lose_power(rng, image)
        disk.remove()
        found = await examine(image / "runs.db", before)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("level", "problem"), [("NORMAL", "lost"), ("OFF", "corrupt")])
async def test_what_is_not_synced_is_lost(tmp_path: Path, rng: random.Random, level: str, problem: str) -> None:
    """Power losses lose acknowledged work under NORMAL and damage files under OFF: the checks above can fail."""
    figures, wrong = await lives(tmp_path, rng, LIVES // 2, pragma=f"PRAGMA synchronous = {level}")
    tell(figures)
    assert figures[problem] >= LIVES // 2
    if level == "NORMAL":
        assert not [text for text in wrong if "lost" not in text], "it is consistent nevertheless"
