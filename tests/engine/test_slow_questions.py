"""Slow queries of users on a SQLite file: runs do not wait for them, and they end when nobody waits for them."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from aioflow import Engine, StartOptions, complete, sleep, step, wait, workflow
from aioflow.commands import Command
from aioflow.http import api
from aioflow_sqlite import SQLiteStore
from aioflow_sqlite.connection import Connection
from tests.support import wait_until

ENDLESS = "CREATE TEMP VIEW runs AS WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n) SELECT id FROM n"


@workflow("asked-order")
class Order:
    """Waits for a signal, then for a moment."""

    class Context(BaseModel):
        pass

    @step(start=True)
    async def ask(self) -> Command:
        return wait.for_signal("paid", key="k", then=self.rest)

    @step
    async def rest(self) -> Command:
        return sleep(timedelta(milliseconds=1), then=self.end)

    @step
    async def end(self) -> Command:
        return complete()


@pytest.fixture
def store(tmp_path: Path) -> SQLiteStore:
    return SQLiteStore(f"sqlite:///{tmp_path}/asked.db")


def readers(store: SQLiteStore) -> list[Connection]:
    """The connections of an open store except the writer."""
    found = (value for value in vars(store).values() if isinstance(value, Connection))
    return [connection for connection in found if connection is not store._writer]


async def everywhere(store: SQLiteStore, do: Callable[[sqlite3.Connection], object]) -> None:
    """Call this with each of these connections."""
    for connection in readers(store):
        await connection.run(do)


QUESTIONS: dict[str, tuple[str, Callable[[Engine, int], Awaitable[object]]]] = {
    "count": ("count(*) FROM runs", lambda engine, _: engine.count(data={"a": 1})),
    "runs": ("ORDER BY updated_at DESC", lambda engine, _: engine.runs(order="-updated_at")),
    "events": ("FROM events", lambda engine, _: engine.events()),
    "stats": ("GROUP BY 1, 2", lambda engine, _: engine.stats()),
    "history": ("FROM history", lambda engine, run_id: engine.history(run_id)),
}


@pytest.mark.parametrize("question", QUESTIONS)
async def test_runs_go_on_beside_a_slow_question(store: SQLiteStore, question: str) -> None:
    """While a user's query is held up, a run starts, takes a signal, sleeps and ends; the query is answered later."""
    text, ask = QUESTIONS[question]
    begun, gate = Event(), Event()

    def hold(sql: str) -> None:
        if text in sql:
            begun.set()
            gate.wait(60)

    async with Engine(store, workflows=[Order]) as engine:
        first = await (await engine.start(Order)).wait(5, until="parked")
        await everywhere(store, lambda db: db.set_trace_callback(hold))
        asked = asyncio.ensure_future(ask(engine, first.id))
        try:
            await wait_until(begun.is_set)
            await engine.start(Order, StartOptions(key="second"))
            await engine.signal("paid", key="k")
            assert (await first.wait(5)).status == "completed"
            await engine.signal("paid", workflow=Order, key="second")
            assert not asked.done()
        finally:
            gate.set()
        assert await asked is not None
        await everywhere(store, lambda db: db.set_trace_callback(None))


async def test_a_slow_question_does_not_make_the_process_unready(store: SQLiteStore) -> None:
    """While a user's query is held up, /readyz still answers that the process is ready."""
    begun, gate = Event(), Event()

    def hold(_: sqlite3.Connection) -> None:
        begun.set()
        gate.wait(60)

    async with Engine(store, workflows=[Order]) as engine:
        assert store._asker is not None
        asked = asyncio.ensure_future(store._asker.run(hold))
        try:
            await wait_until(begun.is_set)
            client = httpx.AsyncClient(transport=httpx.ASGITransport(api(engine)), base_url="http://localhost")
            async with client:
                assert (await client.get("/readyz")).json() == {"status": "ok"}
        finally:
            gate.set()
        await asked


async def test_a_question_that_nobody_waits_for_ends(store: SQLiteStore) -> None:
    """Of cancelled queries, the running one is interrupted and the others never begin; the next query is answered."""
    begun = Event()
    asked: list[str] = []

    def endless(db: sqlite3.Connection) -> None:
        db.execute("PRAGMA query_only = 0")
        db.execute(ENDLESS)
        db.set_trace_callback(lambda sql: (asked.append(sql), begun.set()))

    def ended(db: sqlite3.Connection) -> None:
        db.set_trace_callback(None)
        db.execute("DROP VIEW temp.runs")

    async with Engine(store, workflows=[Order]) as engine:
        await engine.start(Order)
        assert store._asker is not None
        await store._asker.run(endless)
        questions = [asyncio.ensure_future(engine.count()) for _ in range(5)]
        await wait_until(begun.is_set)
        for question in questions:
            question.cancel()
        await asyncio.wait(questions)
        assert all(question.cancelled() for question in questions)
        await store._asker.run(ended)
        assert len([sql for sql in asked if "count(*)" in sql]) == 1
        assert await engine.count() == 1


async def test_closing_waits_for_a_question(store: SQLiteStore) -> None:
    """A query that runs when the store is closed is answered first."""
    begun, gate = Event(), Event()
    await store.open(0)

    def hold(sql: str) -> None:
        begun.set()
        gate.wait(60)

    assert store._asker is not None
    await store._asker.run(lambda db: db.set_trace_callback(hold))
    asked: asyncio.Future[Any] = asyncio.ensure_future(store.stats(0))
    await wait_until(begun.is_set)
    closing = asyncio.ensure_future(store.close())
    gate.set()
    assert (await asked).runs == {}
    await closing
