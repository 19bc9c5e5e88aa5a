"""Fixtures and assertions: the run API on an engine, on every store, and clients of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import httpx
import pytest
from starlette.types import ASGIApp

from aioflow import Engine, WorkflowRun
from aioflow.http import Authorize, api
from aioflow.store import Store
from tests.engine.conftest import (  # noqa: F401 - fixtures, and what runs tests on every store
    clock,
    log,
    make_engine,
    pytest_generate_tests,
    store_url,
)
from tests.http.flows import ALL

#: ``connect(app)``: a client of an app, on this machine unless another host is given.
Connect: TypeAlias = Callable[..., httpx.AsyncClient]


@pytest.fixture
async def engine(store_url: str | Store) -> AsyncIterator[Engine]:  # noqa: F811
    """An open engine with the workflows of these tests."""
    async with Engine(store_url, workflows=ALL) as engine:
        yield engine


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Makes clients, and closes them."""
    clients: list[httpx.AsyncClient] = []

    def make(app: ASGIApp, host: str = "127.0.0.1", url: str = "http://localhost", **options: Any) -> Any:
        transport = httpx.ASGITransport(app, client=(host, 4711), **options)
        client = httpx.AsyncClient(transport=transport, base_url=url, timeout=30)
        clients.append(client)
        return client

    yield make
    for client in clients:
        await client.aclose()


@pytest.fixture
def client(engine: Engine, connect: Connect) -> httpx.AsyncClient:
    """A client of the engine's run API, which has no authorize."""
    return connect(api(engine))


@pytest.fixture
def guarded(engine: Engine, connect: Connect) -> Callable[[Authorize], httpx.AsyncClient]:
    """Makes clients of a run API with this authorize."""
    return lambda authorize: connect(api(engine, authorize))


def problem(answer: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """Check that a response is a problem of this status and kind, and return its body."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    told: dict[str, Any] = answer.json()
    assert (told["type"], told["status"]) == (f"urn:aioflow:problem:{kind}", status)
    assert told["title"]
    return told


async def parked(engine: Engine, flow: Any) -> WorkflowRun[Any]:
    """A new run, once it waits."""
    run: WorkflowRun[Any] = await engine.start(flow)
    return await run.wait(5, until="parked")


def refused(answer: httpx.Response, status: int, type_: str, detail: Any) -> None:
    """Check that a response is exactly this refusal."""
    says(answer, status, {"status": status, "type": type_, "detail": detail})


def bare(answer: httpx.Response, status: int, detail: str) -> None:
    """Check that a response is exactly this refusal, whose body has neither status nor type."""
    says(answer, status, {"detail": detail})


def says(answer: httpx.Response, status: int, body: dict[str, Any]) -> None:
    """Check a response's status and JSON body, and that it must not be cached."""
    assert (answer.status_code, answer.json()) == (status, body)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"


def invalid(answer: httpx.Response, **fields: str) -> None:
    """Check that a response has exactly these field errors."""
    detail = {name: [{"message": text, "code": "validation_error"}] for name, text in fields.items()}
    refused(answer, 400, "ValidationError", detail)
