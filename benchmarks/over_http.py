"""Action calls over HTTP, beside an endpoint that does nothing but one commit.

    python benchmarks/over_http.py [--calls 2000] [--rounds 5] [--connections 50]

Two servers, each in a uvicorn process of its own, on SQLite with `synchronous=FULL`: `aioflow.http.api`, and a bare
Starlette app whose only endpoint writes one transition with plain sqlite3 (an UPDATE and an INSERT, one COMMIT, in a
thread). This program is the client: HTTP/1.1 over connections that stay open, written by hand, so that the client costs
little. A call of an action is a read and two commits, one after the other: the call, which claims the run, and the
transition of its step, which runs in between. A start is one commit. Each round measures calls on one connection
(latency; a quarter of `--calls`), then on many (calls/s); the runs whose action is called are started before. cpu_ms is
the CPU time of the server's process for one call. Medians of the rounds, as JSON.

(The file is not called http.py because a module of that name beside a program would hide Python's own.)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from measuring import machine, percentiles
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from aioflow import Engine, action, complete, goto, step, workflow
from aioflow.commands import Command
from aioflow.http import api

WARM_UP = 50


@workflow("expense")
class Expense:
    class Context(BaseModel):
        amount: int
        note: str = ""

    @step(start=True)
    async def ask(self) -> Command:
        return goto(self.review)

    @action("review")
    async def review(self, approved: bool, note: str = "") -> Command:
        return complete(approved=approved, note=note)


def flows_app() -> Starlette:
    """The run API."""
    return api(Engine(f"sqlite:///{os.environ['BENCHMARK_FILE']}"))


def bare_app() -> Starlette:
    """An app with one endpoint that does one commit."""
    db = sqlite3.connect(os.environ["BENCHMARK_FILE"], isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE runs (id INTEGER PRIMARY KEY, step TEXT, seq INTEGER, data TEXT)")
    db.execute("CREATE TABLE history (seq INTEGER PRIMARY KEY, step TEXT)")
    db.execute("INSERT INTO runs VALUES (1, 'ask', 0, '')")
    lock = asyncio.Lock()

    def write(body: bytes) -> int:
        db.execute("BEGIN IMMEDIATE")
        (seq,) = db.execute("UPDATE runs SET seq = seq + 1, data = ? WHERE id = 1 RETURNING seq", (body,)).fetchone()
        db.execute("INSERT INTO history VALUES (?, 'review')", (seq,))
        db.execute("COMMIT")
        return int(seq)

    async def commit(request: Request) -> JSONResponse:
        body = json.dumps(await request.json()).encode()
        async with lock:
            return JSONResponse({"seq": await asyncio.to_thread(write, body)})

    return Starlette(routes=[Route("/commit", commit, methods=["POST"])])


class Server(NamedTuple):
    """The port and the process of a server."""

    port: int
    pid: int

    def cpu(self) -> float:
        """Milliseconds of CPU time that the process has used, from Linux' /proc, in the resolution of system ticks."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(factory: str, file: Path) -> Iterator[Server]:
    """Serve one of the apps of this program in a process of its own, on the file."""
    command = ["--factory", f"over_http:{factory}", "--app-dir", str(Path(__file__).parent), "--port", "0"]
    server = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", *command, "--no-access-log"],
        env={**os.environ, "BENCHMARK_FILE": str(file)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    with server:
        try:
            for line in server.stderr:
                if found := re.search(r"running on http://127\.0\.0\.1:(\d+)", line):
                    yield Server(int(found[1]), server.pid)
                    return
            raise SystemExit(f"{factory}: the server did not start")
        finally:
            server.terminate()


class Connection:
    """An HTTP/1.1 connection that stays open."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def to(cls, port: int) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def post(self, path: str, body: bytes) -> dict[str, Any]:
        head = (
            f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        )
        self.writer.write(f"{head}\r\n\r\n".encode() + body)
        answer = await self.reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", answer)
        assert length is not None
        told: dict[str, Any] = json.loads(await self.reader.readexactly(int(length[1])))
        assert answer.split(b" ", 2)[1] in (b"200", b"201"), told
        return told


Call = tuple[str, bytes]


async def ask(port: int, calls: list[Call], connections: int) -> tuple[float, list[float]]:
    """Make all calls; return calls/s, and the milliseconds of each call."""
    todo = iter(calls)
    times: list[float] = []
    open_ = [await Connection.to(port) for _ in range(connections)]

    async def some(connection: Connection) -> None:
        for path, body in todo:
            began = time.perf_counter()
            await connection.post(path, body)
            times.append((time.perf_counter() - began) * 1000)

    began = time.perf_counter()
    await asyncio.gather(*map(some, open_))
    rate = len(calls) / (time.perf_counter() - began)
    for connection in open_:
        connection.writer.close()
    return rate, times


async def parked(port: int, count: int) -> list[Call]:
    """Start so many runs, which wait for their action; return the calls of it."""
    connection = await Connection.to(port)
    ids = []
    for number in range(count):
        body = json.dumps({"context": {"amount": number}}).encode()
        ids.append((await connection.post("/workflows/expense/runs", body))["id"])
    connection.writer.close()
    return [(f"/runs/{run_id}/actions/review", b'{"input": {"approved": true, "note": "fine"}}') for run_id in ids]


def starts(count: int) -> list[Call]:
    return [("/workflows/expense/runs", b'{"context": {"amount": 1}}')] * count


def commits(count: int) -> list[Call]:
    return [("/commit", b'{"input": {"approved": true, "note": "fine"}}')] * count


async def measure(options: argparse.Namespace, flows: Server, bare: Server) -> dict[str, object]:
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for name, server in (("bare_commit", bare), ("start", flows), ("action", flows)):
            figures: dict[str, float] = {}
            for connections in (1, options.connections):
                count = options.calls if connections > 1 else options.calls // 4
                match name:
                    case "action":
                        calls = await parked(server.port, WARM_UP + count)
                    case "start":
                        calls = starts(WARM_UP + count)
                    case _:
                        calls = commits(WARM_UP + count)
                await ask(server.port, calls[:WARM_UP], connections)
                before = server.cpu()
                rate, times = await ask(server.port, calls[WARM_UP:], connections)
                figures[f"per_s_{connections}"] = round(rate)
                figures[f"cpu_ms_{connections}"] = round((server.cpu() - before) / count, 2)
                figures |= {f"{which}_ms_{connections}": took for which, took in percentiles(times, 2).items()}
            found.setdefault(name, []).append(figures)
    medians = {
        name: {key: round(statistics.median(each[key] for each in rounds), 2) for key in rounds[0]}
        for name, rounds in found.items()
    }
    many = options.connections
    rates = {name: [each[f"per_s_{many}"] for each in rounds] for name, rounds in found.items()}
    return {**machine(), "connections": many, **medians, "rounds_per_s": rates}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        flows_file, bare_file = Path(folder) / "flows.db", Path(folder) / "bare.db"
        with serving("flows_app", flows_file) as flows, serving("bare_app", bare_file) as bare:
            json.dump(asyncio.run(measure(options, flows, bare)), sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
