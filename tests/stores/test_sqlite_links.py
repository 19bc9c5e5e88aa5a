"""A SQLite file that is opened through a symlink: it is the same file, with one lock and one WAL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from aioflow import Engine
from aioflow.store import RunQuery
from aioflow.testing.conformance_samples import NOW, a_run, claiming, put
from aioflow_sqlite import SQLiteStore
from tests.stores.test_sqlite_wal import Gauge, Writer, write

MB = 1_000_000


def _link(here: Path) -> Path:
    (here / "link.db").symlink_to(here / "data" / "x.db")
    return here / "link.db"


def _relative_link(here: Path) -> Path:
    (here / "link.db").symlink_to("data/x.db")
    return here / "link.db"


def _link_to_the_directory(here: Path) -> Path:
    (here / "linked").symlink_to(here / "data")
    return here / "linked" / "x.db"


def _chain(here: Path) -> Path:
    (here / "second.db").symlink_to(_link_to_the_directory(here))
    (here / "first.db").symlink_to("second.db")
    return here / "first.db"


def _beside(here: Path) -> list[Path]:
    return [path for path in here.iterdir() if path.name.endswith((".worker", "-wal", "-shm"))]


LINKS: list[Callable[[Path], Path]] = [_link, _relative_link, _link_to_the_directory, _chain]


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """The path of the file itself."""
    (tmp_path / "data").mkdir()
    return tmp_path / "data" / "x.db"


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("link_first", [False, True])
async def test_one_process_works_a_file_under_any_name(
    tmp_path: Path, real: Path, link: Callable[[Path], Path], link_first: bool
) -> None:
    """Of a path and a link to it, one store works the file, the other takes over, and no file is beside the link."""
    paths = [real, link(tmp_path)]
    first, second = (SQLiteStore(f"sqlite:///{path}") for path in (reversed(paths) if link_first else paths))
    await first.open(NOW)
    await second.open(NOW)
    try:
        assert (await claiming(first, 1)).working
        assert not (await claiming(second, 2)).working
        await put(second, a_run(1))
        assert await first.count(RunQuery(), NOW) == 1
        await first.close()
        assert (await claiming(second, 2)).working
    finally:
        await first.close()
        await second.close()
    assert _beside(tmp_path) == []


async def test_the_wal_of_a_linked_file_is_copied_back(tmp_path: Path, real: Path) -> None:
    """The WAL of a linked file stays as short as that of any other."""
    async with Engine(f"sqlite:///{_link(tmp_path)}", workflows=[Writer]) as engine:
        gauge = Gauge(real.with_name("x.db-wal"))
        engine.instruments.append(gauge)
        await write(engine, 100, 200_000)
    assert 16 * MB < gauge.longest < 26 * MB


async def test_a_link_is_read_when_the_file_is_opened(
    tmp_path: Path, real: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link that is made after the store object, and a relative path, are resolved on opening, to one lock."""
    later, relative = SQLiteStore(f"sqlite:///{tmp_path}/link.db"), SQLiteStore("sqlite:///x.db")
    _link(tmp_path)
    monkeypatch.chdir(real.parent)
    await later.open(NOW)
    await relative.open(NOW)
    try:
        assert (await claiming(later, 1)).working
        assert not (await claiming(relative, 2)).working
    finally:
        await later.close()
        await relative.close()
