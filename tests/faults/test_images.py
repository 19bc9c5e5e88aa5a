"""Crashes simulated by copying database and WAL while an engine works: nothing acknowledged is lost, all runs go on."""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
import sys
import threading
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from anyio import to_thread

from aioflow import Engine
from aioflow.model import Run, Transition
from tests.faults import images, orders
from tests.faults.images import Acknowledged

IMAGES = 40
#: How many orders are processed concurrently while images are taken.
AT_ONCE = 20


class Bell(Acknowledged):
    """Wakes another thread whenever a transition is acknowledged."""

    def __init__(self) -> None:
        super().__init__()
        self.rung = threading.Event()

    def committed(self, run: Run, transition: Transition) -> None:
        """See Instrument."""
        super().committed(run, transition)
        self.rung.set()


class Camera(threading.Thread):
    """A thread that takes images one after the other: shortly after a transition, or right after the image before.

    Args:
        database: the database to copy.
        folder: the images are put into it, in a folder each.
        acknowledged: the instrument of the engine that works on it.
        rng: decides when, and which images follow a checkpoint, so that the WAL's share of the data varies.
    """

    def __init__(self, database: Path, folder: Path, acknowledged: Bell, rng: random.Random) -> None:
        super().__init__(name="camera")
        self._database = database
        self._folder = folder
        self._acknowledged = acknowledged
        self._rng = rng
        #: The images, and what had been acknowledged before each of them was begun.
        self.images: list[tuple[Path, Acknowledged]] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        """See Thread."""
        try:
            for number in range(IMAGES):
                more = len(self._acknowledged.transitions) + self._rng.choice([0, self._rng.randrange(60)])
                while len(self._acknowledged.transitions) < more:
                    self._acknowledged.rung.clear()
                    assert self._acknowledged.rung.wait(20), "the engine stands still"
                if self._rng.random() < 0.2:
                    with closing(sqlite3.connect(self._database, timeout=10)) as db:
                        db.execute("PRAGMA wal_checkpoint(PASSIVE)")
                folder = self._folder / str(number)
                folder.mkdir()
                before = self._acknowledged.so_far()
                self.images.append((images.take(self._database, folder), before))
        except BaseException as error:
            self.error = error


async def busy(engine: Engine, acknowledged: Acknowledged, camera: Camera) -> int:
    """Process orders until the camera has taken its images, and return how many."""
    numbers = iter(range(1_000_000))
    processed = 0

    async def clerk() -> None:
        nonlocal processed
        while camera.is_alive():
            number = next(numbers)
            await orders.process(engine, acknowledged, number, early=number % 2 == 0)
            processed += 1

    await asyncio.gather(*(clerk() for _ in range(AT_ONCE)))
    return processed


async def test_crash_at_any_moment_loses_nothing(tmp_path: Path, rng: random.Random) -> None:
    """Each of forty images of a busy store has all that was acknowledged before it, and its orders all complete."""
    database, acknowledged = tmp_path / "runs.db", Bell()
    engine = Engine(f"sqlite:///{database}", workflows=orders.WORKFLOWS)
    engine.instruments.append(acknowledged)
    camera = Camera(database, tmp_path, acknowledged, rng)
    async with engine:
        camera.start()
        processed = await busy(engine, acknowledged, camera)
    assert camera.error is None, camera.error
    wrong: list[str] = []
    figures: Counter[str] = Counter()
    for number, (image, before) in enumerate(camera.images):
        wrong += [f"image {number}: {problem}" for problem in await to_thread.run_sync(images.problems, image, before)]
        with closing(sqlite3.connect(image)) as db:
            (live,) = db.execute("SELECT count(*) FROM runs WHERE status IN ('running', 'waiting')").fetchone()
        figures["in the middle of work"] += live > 0
        wrong += [f"image {number}, gone on: {problem}" for problem in await orders.go_on(image)]
        shutil.rmtree(image.parent)
    growing = len({len(before.transitions) for _, before in camera.images})
    sys.stdout.write(f"{processed} orders, {len(camera.images)} images, {growing} of them new, {dict(figures)}\n")
    assert not wrong, "\n".join(wrong[:20])
    assert len(camera.images) == IMAGES
    assert growing >= IMAGES // 2
    assert figures["in the middle of work"] >= IMAGES // 2


async def test_damaged_image_is_noticed(tmp_path: Path) -> None:
    """An image without its WAL, or whose rows and histories do not match, has problems: the check above can fail."""
    database, acknowledged = tmp_path / "runs.db", Acknowledged()
    engine = Engine(f"sqlite:///{database}", workflows=orders.WORKFLOWS)
    engine.instruments.append(acknowledged)
    async with engine:
        for number in range(3):
            await orders.process(engine, acknowledged, number, early=True)
        folders = [tmp_path / name for name in ("whole", "short", "torn", "gap", "mail", "events")]
        for folder in folders:
            folder.mkdir()
        acknowledged = acknowledged.so_far()  # the runs of the last events are still committing
        whole, short, torn, gap, mail, events = (images.take(database, folder) for folder in folders)
    assert images.problems(whole, acknowledged) == []
    short.with_name("runs.db-wal").unlink()
    assert images.problems(short, acknowledged)[0].startswith("lost: ")
    for image, sql, problem in [
        (torn, "UPDATE runs SET seq = 5 WHERE id = 1", "torn: rows and histories differ"),
        (gap, "DELETE FROM history WHERE run_id = 1 AND seq = 2", "gap: the history of run 1 goes from 1 to 3"),
        (events, "DELETE FROM events", "lost: the events ['visit-0', 'visit-1', 'visit-2']"),
        (mail, "DELETE FROM signals", "lost: the signals ['payment-0', 'payment-1', 'payment-2']"),
    ]:
        with closing(sqlite3.connect(image)) as db, db:
            db.execute(sql)
        assert any(found.startswith(problem) for found in images.problems(image, acknowledged)), problem


@pytest.mark.parametrize("count", [0, 3])
async def test_image_of_a_store_that_is_closed(tmp_path: Path, count: int) -> None:
    """A closed store, which has no WAL, can be copied as well, and copying does not change it."""
    database, acknowledged = tmp_path / "runs.db", Acknowledged()
    engine = Engine(f"sqlite:///{database}", workflows=orders.WORKFLOWS)
    engine.instruments.append(acknowledged)
    async with engine:
        for number in range(count):
            await orders.process(engine, acknowledged, number)
    before = database.read_bytes()
    (tmp_path / "image").mkdir()
    image = images.take(database, tmp_path / "image")
    assert (database.read_bytes(), image.read_bytes()) == (before, before)
    assert images.problems(image, acknowledged) == []
    assert await orders.go_on(image) == []
