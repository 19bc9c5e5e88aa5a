"""The run API under uvicorn, in a process of its own: mounted, below a prefix, and shut down while clients wait."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.http.conftest import problem
from tests.http.test_stream import events
from tests.programs import read_until, running

EXAMPLES = Path(__file__).parents[2] / "examples"
ANN = {"authorization": "Bearer token-of-ann"}
#: Seconds for what should take none, on a busy machine.
PATIENCE = 30

#: A server that has only the run API, with one workflow.
ALONE = """
import asyncio
from datetime import timedelta
from pydantic import BaseModel
from aioflow import Engine, action, complete, on, step, wait, workflow
from aioflow.http import api, exits

exits.GRACE = 0.3

@workflow("order")
class Order:
    class Context(BaseModel):
        pass

    @step(start=True)
    async def ask(self):
        return wait.any(on("go", then=self.end), on(self.dawdle))

    @action("dawdle")
    async def dawdle(self):
        await asyncio.Event().wait()

    @step
    async def end(self):
        return complete()

app = api(Engine("sqlite:///orders.db", shutdown_timeout=timedelta(seconds=1)))
"""


@asynccontextmanager
async def serving(folder: Path, *arguments: str | Path) -> AsyncIterator[tuple[subprocess.Popen[str], str]]:
    """A server and its URL."""
    with running("-m", "uvicorn", "--port", "0", *arguments, folder=folder) as server:
        found = await asyncio.to_thread(read_until, server.stderr, r".*running on (http://\S+) .*")
        yield server, found[1]


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[tuple[subprocess.Popen[str], str]]:
    """A server that has only the run API, and its URL."""
    (tmp_path / "alone.py").write_text(ALONE)
    async with serving(tmp_path, "alone:app") as (server, url):
        yield server, url


@asynccontextmanager
async def connected(url: str, **options: object) -> AsyncIterator[httpx.AsyncClient]:
    """A client over real connections."""
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, trust_env=False, **options) as client:  # type: ignore[arg-type]
        yield client


async def ended(server: subprocess.Popen[str], how: signal.Signals = signal.SIGTERM) -> tuple[float, str, str]:
    """Shut down a server, and return the seconds that it took, its stdout and its stderr."""
    began = time.monotonic()
    server.send_signal(how)
    output, complaints = await asyncio.to_thread(server.communicate, timeout=PATIENCE)
    return time.monotonic() - began, output, complaints


# ---- mounted


async def test_uvicorn_serves_it_in_fastapi(tmp_path: Path) -> None:
    """The FastAPI example works as it says: the app's lifespan includes the engine's, and authorize decides."""
    async with serving(tmp_path, "--app-dir", EXAMPLES, "13_fastapi:app") as (server, url):
        await asyncio.to_thread(read_until, server.stdout, "the app opens its own things")
        async with connected(url, headers=ANN) as ann, connected(url) as stranger:
            opened = await ann.post("/tickets", json={"question": "Why?"})
            assert opened.status_code == 201
            run = f"/flows/runs/{opened.json()['ticket']}"
            waited = await ann.get(f"{run}/wait", params={"until": "parked"})
            assert waited.json()["waiting_signal"] == "Answer"
            assert (await stranger.get(run)).status_code == 401
            assert (await stranger.get(run)).headers["www-authenticate"] == "Bearer"
            assert (await ann.post("/flows/workflows/ticket/runs", json={})).status_code == 403
            described = (await ann.get("/flows/openapi.json")).json()
            assert described["servers"] == [{"url": "/flows"}]
            assert "/runs/{run_id}/signals/Answer" in described["paths"]
            payload = {"customer": "bob", "answers": ["Send it to bob."]}
            assert (await ann.post(f"{run}/signals/Close", json={"payload": payload})).json()["state"] == "delivered"
            closed = (await ann.get(f"{run}/wait")).json()
            assert (closed["status"], closed["data"]["customer"], closed["data"]["answers"]) == ("completed", "ann", [])
            told = events((await ann.get(f"{run}/stream")).text)
            assert told[-1]["event"] == "end"
        _, output, complaints = await ended(server)
    assert "the app closes its own things" in output
    assert "Application shutdown complete" in complaints
    assert "Traceback" not in complaints


async def test_uvicorn_serves_it_in_starlette(tmp_path: Path) -> None:
    """Mounted two levels deep, without authorize, the API gives right locations."""
    async with serving(tmp_path, "--app-dir", EXAMPLES, "14_starlette:app") as (server, url):
        async with connected(url) as client:
            started = await client.post("/ops/flows/workflows/report/runs", json={"context": {"month": "2030-01"}})
            assert started.status_code == 201
            assert started.headers["location"] == f"/ops/flows/runs/{started.json()['id']}"
            told = events((await client.get(f"{started.headers['location']}/stream")).text)
            assert [each["event"] for each in told if "event" in each] == ["transition"] * 6 + ["end"]
            assert (await client.get("/")).text == "1 reports\n"
            foreign = await client.get("/ops/flows/runs", headers={"host": "evil.example"})
            assert foreign.status_code == 403
        _, _, complaints = await ended(server)
    assert "Application shutdown complete" in complaints


async def test_locations_have_the_prefix_of_a_proxy(tmp_path: Path) -> None:
    """Locations and the description have the prefix of a ``root_path``, as behind a proxy that removes it."""
    (tmp_path / "alone.py").write_text(ALONE)
    async with serving(tmp_path, "--root-path", "/behind/a proxy", "alone:app") as (server, url):
        async with connected(url) as client:
            started = await client.post("/workflows/order/runs", json={})
            assert started.headers["location"] == f"/behind/a%20proxy/runs/{started.json()['id']}"
            assert (await client.get("/openapi.json")).json()["servers"] == [{"url": "/behind/a%20proxy"}]
        await ended(server)


async def test_a_server_alone_opens_and_closes_the_engine(alone: tuple[subprocess.Popen[str], str]) -> None:
    """An app that is served by itself opens and closes its engine."""
    server, url = alone
    async with connected(url) as client:
        assert (await client.get("/readyz")).json() == {"status": "ok"}
        assert (await client.post("/workflows/order/runs", json={})).status_code == 201
    took, _, complaints = await ended(server)
    assert took < 2
    assert "Application shutdown complete" in complaints
    assert "Traceback" not in complaints


# ---- the shutdown


async def streamed(client: httpx.AsyncClient, run_id: int, begun: asyncio.Semaphore) -> str:
    """Everything that a stream sends until it ends."""
    text = ""
    async with client.stream("GET", f"/runs/{run_id}/stream") as answer:
        async for part in answer.aiter_text():
            text += part
            if "id: 2" in text:
                begun.release()
    return text


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_it_ends_while_clients_stream_and_poll(
    alone: tuple[subprocess.Popen[str], str], how: signal.Signals
) -> None:
    """With twenty streams and twenty long polls open, the server ends within two seconds, and all are answered."""
    server, url = alone
    limits = httpx.Limits(max_connections=100)
    async with connected(url, limits=limits) as client:
        run_id = (await client.post("/workflows/order/runs", json={})).json()["id"]
        await client.get(f"/runs/{run_id}/wait", params={"until": "parked"})
        begun = asyncio.Semaphore(0)
        streams = [asyncio.ensure_future(streamed(client, run_id, begun)) for _ in range(20)]
        sent = asyncio.Semaphore(0)

        async def trace(event: str, _: object) -> None:
            if event == "http11.send_request_body.complete":
                sent.release()

        polling = {"trace": trace}
        polls = [asyncio.ensure_future(client.get(f"/runs/{run_id}/wait", extensions=polling)) for _ in range(20)]
        for _ in streams:
            await begun.acquire()
            await sent.acquire()
        await client.get("/healthz")  # the server has read what was sent before
        assert not any(each.done() for each in (*streams, *polls))
        took, _, complaints = await ended(server, how)
        texts = await asyncio.gather(*streams)
        answers = await asyncio.gather(*polls)
    assert took < 2
    assert "Application shutdown complete" in complaints
    assert "Traceback" not in complaints
    assert all([each["id"] for each in events(text) if "id" in each] == ["1", "2"] for text in texts)
    assert {(answer.status_code, answer.json()["status"]) for answer in answers} == {(200, "waiting")}


async def test_it_ends_while_an_action_goes_on(alone: tuple[subprocess.Popen[str], str]) -> None:
    """On shutdown an action's step gets some seconds; if it has not ended then, its caller gets a 503."""
    server, url = alone
    async with connected(url) as client:
        run_id = (await client.post("/workflows/order/runs", json={})).json()["id"]
        await client.get(f"/runs/{run_id}/wait", params={"until": "parked"})
        call = asyncio.ensure_future(client.post(f"/runs/{run_id}/actions/dawdle", json={}))
        while (await client.get(f"/runs/{run_id}")).json()["status"] != "running":
            assert not call.done()
        took, _, complaints = await ended(server)
        problem(await call, 503, "unavailable")
    assert took < 4  # including the engine's second for steps to end
    assert "Application shutdown complete" in complaints
    assert "Traceback" not in complaints


async def test_a_client_that_does_not_read_does_not_delay_the_shutdown(
    alone: tuple[subprocess.Popen[str], str],
) -> None:
    """A client that asks for a stream and never reads it does not delay the shutdown."""
    server, url = alone
    async with connected(url) as client:
        run_id = (await client.post("/workflows/order/runs", json={})).json()["id"]
    host, port = re.fullmatch(r"http://(\S+):(\d+)", url).groups()  # type: ignore[union-attr]
    _, writer = await asyncio.open_connection(host, int(port), limit=1)
    writer.write(f"GET /runs/{run_id}/stream HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
    await writer.drain()
    async with connected(url) as client:
        await client.get(f"/runs/{run_id}/wait", params={"until": "parked"})
    took, _, _ = await ended(server)
    writer.close()
    assert took < 2


async def test_a_naive_stream_would_delay_the_shutdown(tmp_path: Path) -> None:
    """A server whose stream does not check for the shutdown would indeed wait for its client."""
    (tmp_path / "naive.py").write_text(
        "import asyncio\n"
        "from starlette.applications import Starlette\n"
        "from starlette.responses import StreamingResponse\n"
        "from starlette.routing import Route\n"
        "async def forever():\n"
        "    while True:\n"
        "        yield 'id: 2\\n\\n'\n"
        "        await asyncio.sleep(0.1)\n"
        "app = Starlette(routes=[Route('/', lambda request: StreamingResponse(forever()))])\n"
    )
    async with serving(tmp_path, "naive:app") as (server, url):
        async with connected(url) as client, client.stream("GET", "/") as answer:
            parts = answer.aiter_raw()
            assert await anext(parts)
            server.send_signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                await asyncio.to_thread(server.wait, timeout=2.5)
        await asyncio.to_thread(server.communicate, timeout=PATIENCE)


# ---- bodies on the wire


@pytest.mark.parametrize(
    ("head", "body", "status"),
    [
        (b"transfer-encoding: chunked", b"100000\r\n" + b"x" * 0x100000 + b"\r\n1\r\nx\r\n0\r\n\r\n", b"413"),
        (b"content-length: 1048577", b"x" * 1048577, b"413"),
        (b"content-length: 99999999999999999999", b"{}", b"413"),
        (b"content-length: 2", b"{}" + b"x" * 2_000_000, b"201"),
        (b"content-length: -1", b"{}", b"400"),
        (b"content-length: 2\r\ntransfer-encoding: chunked", b"2\r\n{}\r\n0\r\n\r\n", b"400 or 201"),
    ],
    ids=["chunks too long", "too long", "said to be too long", "more than said", "less than nothing", "said twice"],
)
async def test_bodies_on_the_wire(
    alone: tuple[subprocess.Popen[str], str], head: bytes, body: bytes, status: bytes
) -> None:
    """A body that is too large is refused however it is sent, and one that is longer than declared is cut."""
    _, url = alone
    host, port = re.fullmatch(r"http://(\S+):(\d+)", url).groups()  # type: ignore[union-attr]
    reader, writer = await asyncio.open_connection(host, int(port))
    request = b"POST /workflows/order/runs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    writer.write(request + head + b"\r\n\r\n" + body)
    async with asyncio.timeout(PATIENCE):
        line = await reader.readline()
    writer.close()
    assert line.split()[1] in status.split()


def test_without_starlette_the_import_says_what_to_install() -> None:
    """Without Starlette the import raises an error that says what to install."""
    program = "import sys; sys.modules['starlette'] = None; import aioflow.http"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: aioflow.http needs Starlette. Try: pip install 'aioflow-engine[http]'."
    )
