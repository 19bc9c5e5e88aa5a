"""SQLite's own: the URL, the file, its schema, and several processes that open it at once."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from aioflow.errors import StoreUnavailable
from aioflow.testing.conformance_samples import NOW
from aioflow_sqlite import SQLiteStore
from aioflow_sqlite.address import parse


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///orders.db", "orders.db"),
        ("sqlite:///data/my%20orders.db", "data/my orders.db"),
        ("sqlite:////var/orders.db", "/var/orders.db"),
        ("sqlite://", None),
        ("sqlite:///", None),
        ("sqlite:///:memory:", None),
    ],
)
def test_the_url_names_the_file(url: str, path: str | None) -> None:
    """Three slashes are a relative path, four an absolute one, and without a path the store is in memory."""
    assert parse(url).path == path


def test_an_unknown_option_is_refused_with_a_list_of_all() -> None:
    """An unknown option is an error that lists all options, aioflow's and SQLite's."""
    with pytest.raises(ValueError, match=r"SQLite's own cache, immutable, mode, nolock, psow, vfs[.]$"):
        parse("sqlite:///o.db?x=1")


def test_options_are_ours_or_the_drivers() -> None:
    """aioflow's options are taken off the query string, and the others are left to SQLite."""
    address = parse("sqlite:///o.db?busy_timeout=250&synchronous=extra&mode=rwc")
    assert (address.busy_timeout, address.synchronous) == (250, "EXTRA")
    assert address.uri == "file:o.db?mode=rwc"
    assert address.name == "sqlite:///o.db"


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("sqlite://host/orders.db", "A SQLite URL looks like sqlite:///relative.db (three slashes)"),
        ("sqlite:///o.db?busy_timeout=soon", "busy_timeout takes milliseconds, got 'soon'."),
        ("sqlite:///o.db?synchronous=off", "synchronous takes FULL, EXTRA, NORMAL; got 'OFF'."),
        (
            "sqlite:///o.db?busy_timout=1&mode=rw",
            "A SQLite URL has no option 'busy_timout'. There are busy_timeout and synchronous, and SQLite's",
        ),
        ("sqlite://?synchronus=NORMAL", "A SQLite URL has no option 'synchronus'."),
        (
            "sqlite:///o.db?mode=memory",
            "mode=memory makes a database of its own for each connection. A store in memory is sqlite:// without a path.",
        ),
    ],
)
def test_invalid_urls_are_refused(url: str, text: str) -> None:
    """A host, an unknown option or an invalid value is an error that says what is accepted."""
    with pytest.raises(ValueError, match=r"SQLite URL|busy_timeout|synchronous|mode=memory") as caught:
        SQLiteStore(url)
    assert str(caught.value).startswith(text)


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    """A file of a newer version is refused, and the error says what to do."""
    path = tmp_path / "new.db"
    store = SQLiteStore(f"sqlite:///{path}")
    await store.open(NOW)
    await store.close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 999")
    db.close()
    with pytest.raises(StoreUnavailable) as caught:
        await store.open(NOW)
    assert str(caught.value) == (
        f"The store sqlite:///{path} is not available: its schema is version 999, this code knows up to 6. "
        "Use the aioflow that wrote it, or a newer one."
    )


async def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    """A file that is not a database is refused, and the error says so."""
    path = tmp_path / "letter.txt"
    path.write_text("Dear reader, this is no database. " * 100)
    with pytest.raises(StoreUnavailable, match=r"not a database.*The path holds another kind of file"):
        await SQLiteStore(f"sqlite:///{path}").open(NOW)


async def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    """A path in a missing directory is an error that says what to check."""
    with pytest.raises(StoreUnavailable, match="Check that the directory exists and can be written"):
        await SQLiteStore(f"sqlite:///{tmp_path}/nowhere/o.db").open(NOW)


async def test_many_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    """Ten stores that open a new file at once migrate it once, and share its UUID and its ids."""
    stores = [SQLiteStore(f"sqlite:///{tmp_path}/o.db") for _ in range(10)]
    try:
        uuids = await asyncio.gather(*(store.open(NOW) for store in stores))
        assert len(set(uuids)) == 1
        firsts = await asyncio.gather(*(store.reserve("run", 5, NOW) for store in stores))
        assert sorted(firsts) == list(range(1, 51, 5))
    finally:
        for store in stores:
            await store.close()


async def test_what_is_committed_is_synced(tmp_path: Path) -> None:
    """The file is in WAL mode with synchronous=FULL, so that a power loss loses nothing acknowledged."""
    store = SQLiteStore(f"sqlite:///{tmp_path}/o.db")
    await store.open(NOW)
    try:
        assert store._writer is not None
        assert await store._writer.run(lambda db: db.execute("PRAGMA journal_mode").fetchone()) == ("wal",)
        assert await store._writer.run(lambda db: db.execute("PRAGMA synchronous").fetchone()) == (2,)
    finally:
        await store.close()
