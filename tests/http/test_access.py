"""``authorize(request, operation, run)``: it is asked about everything, and only a true answer allows."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from typing import Any

import httpx
import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from aioflow import Engine, StartOptions, WorkflowRun
from aioflow.http import Authorize, api, runs
from aioflow.http.guard import MAX_BODY
from tests.http.conftest import Connect, problem
from tests.http.flows import Claim, Expense

Guarded = Callable[[Authorize], httpx.AsyncClient]

#: operation -> the requests that ask for it; with {run_id}, those about one run.
OPERATIONS: dict[str, list[tuple[str, str]]] = {
    "start": [("POST", "/workflows/expense/runs")],
    "get": [("GET", "/runs/{run_id}")],
    "history": [("GET", "/runs/{run_id}/history")],
    "wait": [("GET", "/runs/{run_id}/wait?until=parked")],
    "watch": [("GET", "/runs/{run_id}/stream")],
    "signal": [("POST", "/runs/{run_id}/signals/withdrawn"), ("POST", "/signals/withdrawn")],
    "cancel": [("POST", "/runs/{run_id}/cancel")],
    "actions": [("GET", "/runs/{run_id}/actions")],
    "act": [("POST", "/runs/{run_id}/actions/review_claim")],
    "emit": [("POST", "/events/visit.booked")],
    "describe": [("GET", "/openapi.json")],
}
each = pytest.mark.parametrize(
    ("operation", "method", "path"), [(name, *asked) for name, ways in OPERATIONS.items() for asked in ways]
)


async def ask(client: httpx.AsyncClient, method: str, path: str, run_id: int) -> httpx.Response:
    bodies = {"runs": {"context": {"amount": 1}}, "review_claim": {"input": {"approved": True, "amount": 1}}}
    body = bodies.get(path.rpartition("/")[2], {})
    return await client.request(method, path.format(run_id=run_id), json=None if method == "GET" else body)


async def changes(engine: Engine) -> tuple[object, ...]:
    stats = await engine.stats()
    return stats.runs, stats.mailbox, stats.events


@pytest.fixture
async def run(engine: Engine) -> WorkflowRun[Any]:
    """A waiting run."""
    run = await engine.start(Claim, StartOptions(key="ann"))
    return await run.wait(5, until="parked")


@each
async def test_authorize_is_asked_about_the_loaded_run(
    engine: Engine, guarded: Guarded, run: WorkflowRun[Any], operation: str, method: str, path: str
) -> None:
    """authorize is asked once for each request, with its operation and, if it is about a run, the run as stored."""
    asked: list[tuple[str, WorkflowRun[Any] | None]] = []

    def authorize(request: Request, operation: str, run: WorkflowRun[Any] | None) -> bool:
        assert isinstance(request, Request)
        asked.append((operation, run))
        return operation != "watch"  # whose response would not end

    answer = await ask(guarded(authorize), method, path, run.id)
    assert answer.status_code == 403 if operation == "watch" else answer.is_success, answer.text
    ((told, loaded),) = asked
    assert told == operation
    if "{run_id}" in path:
        assert loaded == run
        assert isinstance(loaded, WorkflowRun)
        assert (loaded.key, loaded.data["amount"]) == ("ann", "0")
    else:
        assert loaded is None


@each
@pytest.mark.parametrize("answer", [False, None, 0, "", []])
@pytest.mark.parametrize("is_async", [False, True])
async def test_a_forbidden_request_changes_nothing(
    engine: Engine,
    guarded: Guarded,
    run: WorkflowRun[Any],
    operation: str,
    method: str,
    path: str,
    answer: Any,
    is_async: bool,
) -> None:
    """Anything but a true answer, also None, is a 403, and nothing is changed."""

    async def later(*_: object) -> Any:
        return answer

    before = await changes(engine)
    client = guarded(later if is_async else lambda *_: answer)
    told = problem(await ask(client, method, path, run.id), 403, "forbidden")
    assert set(told) == {"type", "title", "status"}
    assert await changes(engine) == before


@each
async def test_authorize_is_asked_before_the_body_is_read(
    guarded: Guarded, run: WorkflowRun[Any], operation: str, method: str, path: str
) -> None:
    """authorize is asked before the body is read, so that a refusal does not depend on the body."""
    client = guarded(lambda *_: False)
    answer = await client.request(method, path.format(run_id=run.id), content=b"{", headers={"content-type": "x/y"})
    problem(answer, 403, "forbidden")


@pytest.mark.parametrize("path", ["signals/withdrawn", "cancel", "actions/audit"])
async def test_authorize_is_asked_again_after_a_late_body(
    engine: Engine, guarded: Guarded, run: WorkflowRun[Any], path: str
) -> None:
    """authorize is asked again once the body is there: if the run has changed and is now forbidden, nothing is done."""

    async def held_back() -> AsyncIterator[bytes]:
        await engine.act(Claim.review, run.id, approved=True, amount=Decimal(5))
        yield b"{}"

    client = guarded(lambda request, operation, run: run is not None and run.data["amount"] == "0")
    headers = {"content-type": "application/json", "x-role": "auditor"}
    answer = await client.post(f"/runs/{run.id}/{path}", content=held_back(), headers=headers)
    problem(answer, 403, "forbidden")
    seq = run.row.seq
    await run.refresh()
    assert (run.status, run.row.seq) == ("waiting", seq + 2)
    assert (await engine.stats()).mailbox == 0


async def test_a_forbidden_run_looks_like_a_missing_one(guarded: Guarded, run: WorkflowRun[Any]) -> None:
    """A run that does not exist is refused like a forbidden one, unless authorize allows the operation in general."""
    nobody = guarded(lambda *_: False)
    assert (await nobody.get(f"/runs/{run.id}")).json() == (await nobody.get("/runs/4711")).json()
    problem(await nobody.get("/runs/4711"), 403, "forbidden")
    member = guarded(lambda request, operation, run: run is None)
    problem(await member.get("/runs/4711"), 404, "run-not-found")
    problem(await member.get(f"/runs/{run.id}"), 403, "forbidden")


async def test_a_list_is_asked_about_one_by_one(engine: Engine, guarded: Guarded) -> None:
    """Runs that may not be listed are left out of the pages, and the cursors still lead to the end."""
    runs = [
        await engine.start(Expense, StartOptions(key=f"{'ann' if n % 3 else 'bob'}-{n}"), amount=n) for n in range(20)
    ]
    asked = []

    async def authorize(request: Request, operation: str, run: WorkflowRun[Any] | None) -> bool:
        asked.append((operation, run))
        return run is None or (run.key or "").startswith(request.headers["x-user"])

    client = guarded(authorize)
    pages: list[list[int]] = []
    cursor = None
    while True:
        params = {"limit": 3, **({"cursor": cursor} if cursor else {})}
        page = (await client.get("/runs", params=params, headers={"x-user": "bob"})).json()
        pages.append([run["id"] for run in page["runs"]])
        if (cursor := page["next"]) is None:
            break
    assert [len(page) for page in pages] == [3, 3, 1]
    assert {id_ for page in pages for id_ in page} == {run.id for run in runs if (run.key or "").startswith("bob")}
    assert {operation for operation, _ in asked} == {"list"}
    assert [run for _, run in asked].count(None) == len(pages)
    assert {run.id for _, run in asked if run} == {run.id for run in runs}


async def test_a_forbidden_list_is_refused(guarded: Guarded) -> None:
    """A list asks authorize without a run first, even if the store is empty, and a refusal ends the request."""
    asked: list[Any] = []

    def authorize(request: Request, operation: str, run: WorkflowRun[Any] | None) -> bool:
        asked.append((operation, run))
        return False

    problem(await guarded(authorize).get("/runs?limit=-1"), 403, "forbidden")
    assert asked == [("list", None)]


@pytest.mark.parametrize("limit", [1, 2, 500])
async def test_a_list_does_not_depend_on_hidden_runs(engine: Engine, guarded: Guarded, limit: int) -> None:
    """The bytes of a list do not depend on whether a filter matches hidden runs, nor on how many."""
    mine = await engine.start(Expense, StartOptions(key="ann"), amount=7)
    for n in range(3):
        await engine.start(Expense, StartOptions(key=f"bob-{n}"), amount=7)
    nobody = guarded(lambda request, operation, run: run is None)
    ann = guarded(lambda request, operation, run: run is None or run.key == "ann")
    for client, shown in ((nobody, []), (ann, [mine.id])):
        answers = [
            (await client.get("/runs", params={"limit": limit, "key": ["ann", key], "data": data})).content
            for key in ("ann", "bob-1", "carl")
            for data in ('{"amount": 7}', "{}")
        ]
        assert len(set(answers)) == 1
        page = json.loads(answers[0])
        assert ([run["id"] for run in page["runs"]], page["next"]) == (shown, None)


@pytest.mark.parametrize("hidden", [0, 1, 150])
async def test_the_last_page_has_no_cursor_even_if_hidden_runs_follow(
    engine: Engine, guarded: Guarded, hidden: int
) -> None:
    """A full page has a cursor if a run that may be listed follows, and none if only hidden runs follow."""
    shown = [await engine.start(Expense, amount=1) for _ in range(2)]
    for _ in range(hidden):
        await engine.start(Expense, amount=2)
    client = guarded(lambda request, operation, run: run is None or run.data["amount"] == 1)
    page = (await client.get("/runs", params={"limit": 2, "order": "id"})).json()
    assert ([run["id"] for run in page["runs"]], page["next"]) == ([run.id for run in shown], None)
    page = (await client.get("/runs", params={"limit": 1})).json()
    assert [run["id"] for run in page["runs"]] == [shown[1].id]
    page = (await client.get("/runs", params={"limit": 1, "cursor": page["next"]})).json()
    assert ([run["id"] for run in page["runs"]], page["next"]) == ([shown[0].id], None)


async def test_a_list_reads_a_limited_number_of_runs(
    engine: Engine, guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If few of very many runs may be listed, pages are cut short, and their cursors still lead to all of them."""
    monkeypatch.setattr(runs, "MOST_LOOKED", 4)
    shown = [await engine.start(Expense, amount=1 if n % 10 == 0 else 2) for n in range(21)][::10]
    client = guarded(lambda request, operation, run: run is None or run.data["amount"] == 1)
    found: list[int] = []
    pages, params = 0, {"order": "id", "limit": 2}
    while True:
        page = (await client.get("/runs", params=params)).json()
        found += [run["id"] for run in page["runs"]]
        pages += 1
        if page["next"] is None:
            break
        params["cursor"] = page["next"]
    assert found == [run.id for run in shown]
    assert pages == 6


async def test_a_key_that_is_taken_does_not_show_whose_run_it_is(guarded: Guarded, run: WorkflowRun[Any]) -> None:
    """A start with a key that is taken returns the run only if authorize allows to get that run."""
    client = guarded(lambda request, operation, run: operation == "start")
    answer = await client.post("/workflows/claim/runs", json={"key": "ann"})
    problem(answer, 403, "forbidden")
    allowed = guarded(lambda request, operation, run: operation == "start" or (operation == "get" and run is not None))
    answer = await allowed.post("/workflows/claim/runs", json={"key": "ann"})
    assert (answer.status_code, answer.json()["id"]) == (200, run.id)


async def test_an_event_that_is_there_does_not_show_its_entity(guarded: Guarded, engine: Engine) -> None:
    """An emit with an event_id that is taken returns the event without its entity."""
    await engine.emit("visit.booked", {"id": 7, "secret": "swordfish"}, event_id="v-7")
    client = guarded(lambda request, operation, run: operation == "emit")
    answer = await client.post("/events/visit.booked", json={"event_id": "v-7"})
    assert (answer.status_code, answer.json()["entity_id"]) == (200, "7")
    assert "swordfish" not in answer.text


async def test_authorize_may_choose_the_answer(guarded: Guarded, run: WorkflowRun[Any]) -> None:
    """An HTTPException that authorize raises is the response, with its status, headers and detail."""

    def authorize(request: Request, operation: str, run: object) -> bool:
        if "authorization" not in request.headers:
            raise HTTPException(401, headers={"www-authenticate": "Bearer"})
        raise HTTPException(402, "The account is empty.")

    client = guarded(authorize)
    answer = await client.get(f"/runs/{run.id}")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {"type": "about:blank", "title": "Unauthorized", "status": 401}
    answer = await client.get(f"/runs/{run.id}", headers={"authorization": "Bearer x"})
    assert answer.json() == {
        "type": "about:blank",
        "title": "Payment Required",
        "status": 402,
        "detail": "The account is empty.",
    }


async def test_health_checks_need_no_permission(guarded: Guarded) -> None:
    """Health checks are answered without asking authorize, and tell nothing else."""
    client = guarded(lambda *_: False)
    for path in ("/healthz", "/readyz"):
        answer = await client.get(path)
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_a_list_ends_when_its_client_leaves(engine: Engine, run: WorkflowRun[Any], connect: Connect) -> None:
    """A list is no longer read, nor ``authorize`` asked, once its client has disconnected."""
    asked, left = asyncio.Event(), asyncio.Event()

    async def authorize(request: Request, operation: str, run: WorkflowRun[Any] | None) -> bool:
        if run is None:
            return True
        asked.set()
        try:
            return await asyncio.Event().wait()
        finally:
            left.set()

    async def leaving(scope: Any, receive: Any, send: Any) -> None:
        sent = iter([{"type": "http.request", "body": b"", "more_body": False}])

        async def heard() -> Any:
            for message in sent:
                return message
            await asked.wait()
            return {"type": "http.disconnect"}

        await api(engine, authorize)(scope, heard, send)

    async with asyncio.timeout(10):
        assert (await connect(leaving).get("/runs")).status_code == 503
    assert left.is_set()


async def test_a_list_that_takes_too_long_ends(
    run: WorkflowRun[Any], guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list that takes longer than it may is broken off, and the client is told to filter."""
    monkeypatch.setattr(runs, "LONGEST_LIST", 0.05)

    async def authorize(request: Request, operation: str, run: WorkflowRun[Any] | None) -> bool:
        return run is None or await asyncio.Event().wait()

    told = problem(await guarded(authorize).get("/runs"), 503, "unavailable")
    assert told["detail"] == "The list takes too long. Filter by workflow or key, or ask for fewer runs."


class _Exiting:
    """What handles signals in a server that was told to end, as uvicorn does."""

    should_exit = True

    def handle_exit(self, *_: object) -> None: ...


async def test_a_list_that_the_shutdown_cuts_off_says_so(
    run: WorkflowRun[Any], guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list that has not ended soon after the server was told to end tells its client to ask again."""
    monkeypatch.setattr(runs, "GRACE", 0.01)

    async def authorize(request: Request, operation: str, run: WorkflowRun[Any] | None) -> bool:
        return run is None or await asyncio.Event().wait()

    before = signal.signal(signal.SIGTERM, _Exiting().handle_exit)
    try:
        told = problem(await guarded(authorize).get("/runs"), 503, "unavailable")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert told["detail"] == "The server shuts down. Ask again."


async def test_authorize_may_read_the_body_of_a_list(
    run: WorkflowRun[Any], guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though a list has no body of its own, ``authorize`` gets what was sent, also when it is asked about a run."""
    monkeypatch.setattr(runs, "LONGEST_LIST", 5)

    async def authorize(request: Request, operation: str, run: WorkflowRun[Any] | None) -> bool:
        await asyncio.sleep(0)
        return run is None or await request.body() == b"{}"

    answer = await guarded(authorize).request("GET", "/runs", content=b"{}")
    assert [each["id"] for each in answer.json()["runs"]] == [run.id]


async def test_a_body_of_a_list_that_is_too_large_is_refused(guarded: Guarded) -> None:
    """A list with a body that is too large is answered like any other request with one."""
    answer = await guarded(lambda *_: True).request("GET", "/runs", content=b" " * (MAX_BODY + 1))
    problem(answer, 413, "body-too-large")
