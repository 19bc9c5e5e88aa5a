"""A SQLite file that is taken away while it is open: nothing is acknowledged that would be lost with it."""

from __future__ import annotations

import asyncio
from pathlib import Path

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
    """What is to be committed while the file is away is committed when it is back, and not before."""
    path, away = tmp_path / "x.db", tmp_path / "away.db"
    with capture_logs() as log:
        async with Engine(f"sqlite:///{path}", workflows=[Flow]) as engine:
            run = await (await engine.start(Flow)).wait(5, until="parked")
            await engine.signal("go", key="nobody")  # ids are reserved in blocks: there are some now
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
async def test_a_file_that_is_gone_is_told_of(tmp_path: Path, replaced: bool) -> None:
    """Every verb that writes says what has happened and what to do; what is there instead is left alone."""
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
    """A change of the working directory does not look like a deleted file."""
    monkeypatch.chdir(tmp_path)
    store = SQLiteStore("sqlite:///x.db")
    await store.open(0)
    try:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert await store.reserve("run", 1, 0) >= 1
    finally:
        await store.close()
