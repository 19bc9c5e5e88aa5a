"""A run's transitions as server-sent events."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from aioflow import Engine
from aioflow.http import api, stream
from tests.http.conftest import problem
from tests.http.flows import Count, Expense
from tests.support import wait_until


def events(text: str) -> list[dict[str, str]]:
    """The fields of each server-sent event."""
    blocks = [block for block in text.split("\n\n") if block]
    return [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks]


class Listener:
    """A client that reads a stream as it comes, which httpx's ASGI transport does not."""

    def __init__(self, app: Any, path: str, headers: dict[str, str] | None = None) -> None:
        self.text = ""
        self.status = 0
        self.over = False
        self.gone = asyncio.Event()
        head = [(b"host", b"localhost")] + [(k.encode(), v.encode()) for k, v in (headers or {}).items()]
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "method": "GET",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": head,
            "client": ("127.0.0.1", 4711),
            "server": ("localhost", 80),
            "scheme": "http",
            "http_version": "1.1",
        }
        self.asked = False
        self.task = asyncio.ensure_future(app(scope, self.receive, self.send))

    async def receive(self) -> dict[str, Any]:
        if not self.asked:
            self.asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.text += message.get("body", b"").decode()
            self.over = not message.get("more_body", False)

    @property
    def events(self) -> list[dict[str, str]]:
        return [event for event in events(self.text) if "event" in event]


def watched(engine: Engine) -> list[int]:
    """The runs that somebody waits for."""
    assert engine._parts is not None
    return engine._parts.waiters.run_ids


async def test_a_stream_tells_all_of_a_run_that_has_ended(client: httpx.AsyncClient, engine: Engine) -> None:
    """The stream of a run that has ended has the retry delay, each transition with its seq as id, and the end."""
    run = await engine.start(Count, turns=3)
    await run.wait(5)
    answer = await client.get(f"/runs/{run.id}/stream")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert "content-length" not in answer.headers
    first, *told, last = events(answer.text)
    assert first == {"retry": "1000"}
    assert last == {"event": "end", "data": "{}"}
    assert [(each["event"], each["id"]) for each in told] == [("transition", str(n)) for n in range(1, 5)]
    history = (await client.get(f"/runs/{run.id}/history")).json()["transitions"]
    assert [json.loads(each["data"]) for each in told] == history


async def test_a_stream_is_not_followed_for_its_head(client: httpx.AsyncClient, engine: Engine) -> None:
    """A HEAD request for a stream returns at once, and leaves no waiter behind."""
    run = await engine.start(Expense, amount=1)
    async with asyncio.timeout(5):
        answer = await client.head(f"/runs/{run.id}/stream")
    assert (answer.status_code, answer.content) == (200, b"")
    assert watched(engine) == []


async def test_a_stream_tells_as_it_happens(engine: Engine) -> None:
    """Transitions are sent as they commit, until the run has ended."""
    run = await engine.start(Expense, amount=1)
    listener = Listener(api(engine), f"/runs/{run.id}/stream")
    await wait_until(lambda: [event["id"] for event in listener.events] == ["1", "2"])
    assert not listener.over
    await engine.signal("withdrawn", run_id=run.id)
    await listener.task
    assert [event.get("id") for event in listener.events] == ["1", "2", "3", "4", None]
    assert listener.over


@pytest.mark.parametrize("by_header", [True, False])
async def test_a_stream_goes_on_where_it_was(client: httpx.AsyncClient, engine: Engine, by_header: bool) -> None:
    """With Last-Event-ID or ``after`` only later transitions are sent, and a 204 if the client has seen all."""

    async def after(seq: int) -> httpx.Response:
        if by_header:
            return await client.get(f"/runs/{run.id}/stream?after=1", headers={"last-event-id": str(seq)})
        return await client.get(f"/runs/{run.id}/stream", params={"after": seq})

    run = await engine.start(Count, turns=3)
    await run.wait(5)
    for seq in range(4):
        told = [event.get("id") for event in events((await after(seq)).text) if "id" in event]
        assert told == [str(n) for n in range(seq + 1, 5)]
    for seq in (4, 5, 10**15):
        answer = await after(seq)
        assert (answer.status_code, answer.content) == (204, b"")


@pytest.mark.parametrize("seen", ["x", "-1", "1.5", "9" * 17, "٣"])
async def test_an_id_that_no_stream_gave(engine: Engine, client: httpx.AsyncClient, seen: str) -> None:
    """A Last-Event-ID that is not a seq is refused."""
    run = await engine.start(Count)
    answer = await client.get(f"/runs/{run.id}/stream", headers={"last-event-id": seen.encode()})
    assert problem(answer, 422, "invalid")["errors"][0]["parameter"] == "Last-Event-ID"


async def test_a_stream_ends_in_time(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream ends after its longest duration, and leaves no waiter behind."""
    monkeypatch.setattr(stream, "LONGEST_STREAM", 0.05)
    run = await engine.start(Expense, amount=1)
    await run.wait(5, until="parked")
    listener = Listener(api(engine), f"/runs/{run.id}/stream")
    await listener.task
    assert (listener.status, listener.over) == (200, True)
    assert [event["id"] for event in listener.events] == ["1", "2"]
    assert watched(engine) == []


@pytest.mark.parametrize("path", ["stream", "wait"])
async def test_a_client_that_leaves_is_not_waited_for(engine: Engine, path: str) -> None:
    """A stream or long poll ends when its client leaves, and leaves no waiter behind."""
    run = await engine.start(Expense, amount=1)
    await run.wait(5, until="parked")
    listener = Listener(api(engine), f"/runs/{run.id}/{path}")
    await wait_until(lambda: watched(engine) == [run.id])
    listener.gone.set()
    async with asyncio.timeout(3):
        await listener.task
    assert watched(engine) == []


async def test_many_streams_of_one_run(engine: Engine) -> None:
    """Fifty streams of one run get all its transitions."""
    run = await engine.start(Expense, amount=1)
    app = api(engine)
    listeners = [Listener(app, f"/runs/{run.id}/stream") for _ in range(50)]
    await wait_until(lambda: all(len(listener.events) == 2 for listener in listeners))
    await engine.cancel(run.id)
    await asyncio.gather(*(listener.task for listener in listeners))
    assert {len(listener.events) for listener in listeners} == {4}


async def test_a_stream_ends_with_the_engine(store_url: Any) -> None:
    """Streams end when the engine closes."""
    async with Engine(store_url, workflows=[Expense]) as engine:
        run = await engine.start(Expense, amount=1)
        listener = Listener(api(engine), f"/runs/{run.id}/stream")
        await wait_until(lambda: watched(engine) == [run.id])
    await listener.task
    assert listener.over
