"""Runs over HTTP: start, get, history, wait, cancel and list."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from aioflow import Engine, StartOptions
from aioflow.http import listing, runs
from tests.http.conftest import problem
from tests.http.flows import Count, Expense, Fails, Nap


async def start(client: httpx.AsyncClient, workflow: str = "expense", **body: Any) -> dict[str, Any]:
    """Start a run, and return the response's body."""
    answer = await client.post(f"/workflows/{quote(workflow)}/runs", json=body)
    assert answer.status_code == 201, answer.text
    told: dict[str, Any] = answer.json()
    return told


# ---- start


async def test_start_answers_the_run(client: httpx.AsyncClient, engine: Engine) -> None:
    """A start is committed when the response comes, which shows the run and its location."""
    answer = await client.post(
        "/workflows/expense/runs",
        json={"context": {"amount": "12", "due": "2030-01-31", "items": [{"what": "tea", "price": "1.50"}]}},
    )
    assert answer.status_code == 201
    told = answer.json()
    assert answer.headers["location"] == f"/runs/{told['id']}"
    assert answer.headers["cache-control"] == "no-store"
    run = await engine.get(told["id"])
    assert (
        told["data"]
        == run.data
        == {
            "amount": 12,
            "due": "2030-01-31",
            "items": [{"what": "tea", "price": "1.50"}],
            "note": "",
        }
    )
    assert (told["workflow"], told["version"], told["key"], told["status"]) == ("expense", "1", None, "running")
    assert told["created_at"].endswith("Z")
    assert datetime.fromisoformat(told["created_at"]) == run.created_at


async def test_start_with_a_key_is_idempotent(client: httpx.AsyncClient) -> None:
    """A start with a key that is taken returns its run with a 200, and with ``reuse`` it starts a new one."""
    first = await start(client, "fails", key="a")
    await client.get(f"/runs/{first['id']}/wait")
    again = await client.post("/workflows/fails/runs", json={"key": "a"})
    assert (again.status_code, again.json()["id"], again.json()["status"]) == (200, first["id"], "failed")
    assert again.headers["location"] == f"/runs/{first['id']}"
    fresh = await client.post("/workflows/fails/runs", json={"key": "a", "reuse": "failed"})
    assert (fresh.status_code, fresh.json()["id"] == first["id"]) == (201, False)


async def test_start_can_be_put_off(client: httpx.AsyncClient) -> None:
    """A delay in seconds, or an instant, parks the run until then; both together are refused."""
    run = await start(client, context={"amount": 1}, delay=3600)
    assert (run["status"], run["waiting_for"]) == ("waiting", "start")
    waits = datetime.fromisoformat(run["wake_at"]) - datetime.fromisoformat(run["created_at"])
    assert waits == timedelta(hours=1)
    run = await start(client, context={"amount": 1}, start_at="2040-01-01T02:00:00+02:00")
    assert run["wake_at"] == "2040-01-01T00:00:00Z"
    answer = await client.post("/workflows/count/runs", json={"delay": 1, "start_at": "2040-01-01T00:00:00Z"})
    assert problem(answer, 422, "invalid")["errors"][0]["message"] == "Value error, say delay or start_at, not both"


async def test_start_by_the_parameters_of_create_context(client: httpx.AsyncClient) -> None:
    """A start converts each parameter of create_context to its type, and points at each one that is invalid."""
    run = await start(client, "invite", context={"name": "Ann", "day": "2030-05-01", "tone": "formal"})
    assert run["data"] == {"text": "To Ann", "day": "2030-05-01"}
    run = await start(client, "invite", context={"name": "Bob", "day": "2030-05-01"})
    assert run["data"]["text"] == "Dear Bob"
    answer = await client.post("/workflows/invite/runs", json={"context": {"day": "soon", "tone": "rude", "cls": "x"}})
    told = {(each["pointer"], each["code"]) for each in problem(answer, 422, "invalid")["errors"]}
    assert told == {
        ("#/context/name", "missing"),
        ("#/context/day", "date_from_datetime_parsing"),
        ("#/context/tone", "literal_error"),
        ("#/context/cls", "extra_forbidden"),
    }


async def test_start_with_names_of_the_context_alone(client: httpx.AsyncClient) -> None:
    """A field that the Context does not declare is refused, unless extra ones are allowed; aliases work like names."""
    answer = await client.post("/workflows/count/runs", json={"context": {"turns": 1, "turn": 2}})
    assert problem(answer, 422, "invalid")["errors"] == [
        {"pointer": "#/context/turn", "code": "extra_forbidden", "message": "Extra inputs are not permitted"}
    ]
    assert (await start(client, "aliased", context={"largeness": 5, "more": [1]}))["data"] == {"size": 5, "more": [1]}
    assert (await start(client, "aliased", context={"size": 6}))["data"] == {"size": 6}


async def test_start_with_a_strict_context(client: httpx.AsyncClient) -> None:
    """A strict Context is validated as JSON, in which dates and decimals are strings."""
    run = await start(client, "strict", context={"day": "2030-05-01", "price": "1.50"})
    assert run["data"] == {"day": "2030-05-01", "price": "1.50"}
    answer = await client.post("/workflows/strict/runs", json={"context": {"day": 5}})
    assert problem(answer, 422, "invalid")["errors"][0]["pointer"] == "#/context/day"


async def test_start_by_parameters_of_any_name(client: httpx.AsyncClient) -> None:
    """Parameters may have names that a model's field may not have, and ``**more`` takes the rest."""
    run = await start(client, "peculiar", context={"copy": "7", "model_id": "2030-05-01", "_hidden": "x", "y": [1]})
    assert run["data"]["text"] == "7 datetime.date(2030, 5, 1) 'x' {'y': [1]}"
    answer = await client.post("/workflows/peculiar/runs", json={"context": {"copy": "x"}})
    assert problem(answer, 422, "invalid")["errors"][0]["pointer"] == "#/context/copy"


async def test_start_does_not_name_the_class(client: httpx.AsyncClient) -> None:
    """The class parameter of create_context cannot be given, not even by way of ``**more``."""
    answer = await client.post("/workflows/peculiar/runs", json={"context": {"copy": 1, "cls": 1}})
    (told,) = problem(answer, 422, "invalid")["errors"]
    assert (told["pointer"], told["code"]) == ("#/context/cls", "extra_forbidden")
    run = await start(client, "peculiar", context={"copy": 1, "self": 2})
    assert run["data"]["text"] == "1 None '' {'self': 2}"


async def test_start_of_what_has_a_name_with_slashes(client: httpx.AsyncClient) -> None:
    """A workflow's name may have slashes, which the path quotes."""
    assert (await start(client, "nap/of the cat"))["workflow"] == "nap/of the cat"


@pytest.mark.parametrize("workflow", ["nothing", "Expense", "tests.http.flows.Expense", "event:Visit", "%2e%2e", "%00"])
async def test_start_of_what_cannot_be_started(client: httpx.AsyncClient, engine: Engine, workflow: str) -> None:
    """Neither a class name nor a path names a workflow, and one that events start cannot be started."""
    answer = await client.post(f"/workflows/{workflow}/runs", json={})
    assert answer.status_code in (404, 422), answer.text
    assert await engine.count() == 0


# ---- get, history, wait, cancel


async def test_get_shows_the_run_as_it_stands(client: httpx.AsyncClient, engine: Engine) -> None:
    """A run is shown with all its public attributes, and with what it waits for."""
    run = await engine.start(Expense, StartOptions(key="e-1"), amount=3)
    await run.wait(5, until="parked")
    told = (await client.get(f"/runs/{run.id}")).json()
    assert {name: told[name] for name in ("key", "status", "current_step", "waiting_for", "waiting_signal")} == {
        "key": "e-1",
        "status": "waiting",
        "current_step": "ask",
        "waiting_for": "signal",
        "waiting_signal": "Review",
    }
    assert (told["waiting_key"], told["on_timeout"], told["attempt"]) == ("e-1", "withdrawn", 1)
    assert run.wake_at is not None
    assert datetime.fromisoformat(told["wake_at"]) == run.wake_at
    assert (told["ended_at"], told["error"], told["parent_id"], told["event_id"], told["progress"]) == (None,) * 5
    assert "traceback" not in told


@pytest.mark.parametrize(
    "run_id", ["0", "4711", "-1", "x", "1.0", "1e3", "٣", str(1 << 53), "9" * 16, "9" * 6000, "%00"]
)
@pytest.mark.parametrize("rest", ["", "/history", "/wait", "/stream"])
async def test_an_unknown_run_is_not_found(client: httpx.AsyncClient, run_id: str, rest: str) -> None:
    """Whatever is in the place of a run's id, the response is a 404 if there is no such run."""
    problem(await client.get(f"/runs/{run_id}{rest}"), 404, "run-not-found")


async def test_history_is_read_in_pages(client: httpx.AsyncClient, engine: Engine) -> None:
    """Each page of a history but the last says where the next begins, and limits are brought into range."""
    run = await engine.start(Count, turns=250)
    await run.wait(10)
    whole = await engine.history(run.id)
    seen: list[dict[str, Any]] = []
    after: int | None = 0
    sizes = []
    while after is not None:
        page = (await client.get(f"/runs/{run.id}/history", params={"after": after})).json()
        sizes.append(len(page["transitions"]))
        seen += page["transitions"]
        after = page["next"]
    assert sizes == [100, 100, 51]
    assert [each["seq"] for each in seen] == [each.seq for each in whole] == list(range(1, 252))
    assert (seen[0]["kind"], seen[1]["kind"], seen[-1]["kind"]) == ("start", "goto", "complete")
    assert seen[1]["duration"] == whole[1].duration.total_seconds()
    for limit, size in (("999999999999999999999", 251), ("-5", 1), ("0", 1), ("1", 1)):
        page = (await client.get(f"/runs/{run.id}/history", params={"limit": limit})).json()
        assert len(page["transitions"]) == size


async def test_wait_answers_when_the_run_has_ended(client: httpx.AsyncClient, engine: Engine) -> None:
    """A long poll returns as soon as the run has ended, and at once if it had."""
    run = await engine.start(Expense, amount=3)
    polling = asyncio.ensure_future(client.get(f"/runs/{run.id}/wait", params={"timeout": 25}))
    parked = (await client.get(f"/runs/{run.id}/wait", params={"until": "parked"})).json()
    assert parked["status"] == "waiting"
    await engine.cancel(run.id, "enough")
    told = (await polling).json()
    assert (told["status"], told["error"]) == ("cancelled", "enough")
    assert (await client.get(f"/runs/{run.id}/wait")).json() == told


async def test_wait_returns_at_its_timeout(client: httpx.AsyncClient, engine: Engine) -> None:
    """A long poll that times out returns the run as it is, and leaves no waiter behind."""
    run = await engine.start(Expense, amount=3)
    for timeout in ("0", "0.01"):
        answer = await client.get(f"/runs/{run.id}/wait", params={"timeout": timeout})
        assert (answer.status_code, answer.json()["ended_at"]) == (200, None)
    assert engine._parts is not None
    assert engine._parts.waiters.run_ids == []


@pytest.mark.parametrize("timeout", ["nan", "inf", "-1", "soon", ""])
async def test_wait_with_an_invalid_timeout_is_refused(client: httpx.AsyncClient, engine: Engine, timeout: str) -> None:
    """A timeout that is not a valid number of seconds is refused."""
    run = await engine.start(Expense, amount=3)
    answer = await client.get(f"/runs/{run.id}/wait", params={"timeout": timeout})
    assert problem(answer, 422, "invalid")["errors"][0]["parameter"] == "timeout"


async def test_cancel_ends_the_run_once(client: httpx.AsyncClient, engine: Engine) -> None:
    """A cancellation keeps its reason, and a second one changes nothing and says so."""
    run = await engine.start(Expense, amount=3)
    answer = await client.post(f"/runs/{run.id}/cancel", json={"reason": "not wanted"})
    assert (answer.status_code, answer.json()) == (200, {"cancelled": True})
    answer = await client.post(f"/runs/{run.id}/cancel", json={})
    assert answer.json() == {"cancelled": False}
    await run.refresh()
    assert (run.status, run.error) == ("cancelled", "not wanted")


# ---- list


async def test_list_filters(client: httpx.AsyncClient, engine: Engine) -> None:
    """Each filter of ``engine.runs`` is a query parameter, repeated for several values."""
    expense = await engine.start(Expense, StartOptions(key="e-1"), amount=3, note="a")
    other = await engine.start(Expense, amount=4)
    nap = await engine.start(Nap, StartOptions(key="n-1"))
    failed = await engine.start(Fails)
    for run in (expense, other, nap, failed):
        await run.wait(5, until="parked")

    async def ids(**params: Any) -> list[int]:
        answer = await client.get("/runs", params=params)
        assert answer.status_code == 200, answer.text
        return sorted(run["id"] for run in answer.json()["runs"])

    everything = sorted(run.id for run in (expense, other, nap, failed))
    waiting = sorted([expense.id, other.id, nap.id])
    assert await ids() == everything
    assert await ids(workflow="expense") == sorted([expense.id, other.id])
    assert await ids(workflow=["expense", "fails"]) == sorted([expense.id, other.id, failed.id])
    assert await ids(status="waiting") == waiting
    assert await ids(status=["failed", "completed"]) == [failed.id]
    assert await ids(step="rest") == [nap.id]
    assert await ids(waiting_for="sleep") == [nap.id]
    assert await ids(waiting_signal="withdrawn") == sorted([expense.id, other.id])
    assert await ids(waiting_key="e-1") == [expense.id]
    assert await ids(key=["e-1", "n-1"]) == sorted([expense.id, nap.id])
    assert await ids(event_id="nothing") == []
    assert await ids(data=json.dumps({"amount": 4})) == [other.id]
    assert await ids(data=json.dumps({"amount": 3, "note": "a"}), workflow="expense") == [expense.id]
    assert await ids(created_after=datetime.now(UTC).isoformat()) == []
    assert await ids(created_before=datetime.now(UTC).isoformat(), updated_after="2020-01-01T00:00:00Z") == everything
    assert await ids(updated_before="2020-01-01T00:00:00Z") == []


@pytest.mark.parametrize("order", ["id", "-id", "created_at", "-created_at", "updated_at", "-updated_at"])
async def test_list_pages_by_an_opaque_cursor(client: httpx.AsyncClient, engine: Engine, order: str) -> None:
    """The pages of a list give each run once, in order, although other runs start meanwhile."""
    runs = [
        await engine.start(Fails if number % 2 else Expense, **({} if number % 2 else {"amount": number}))
        for number in range(23)
    ]
    for run in runs:
        await run.wait(5, until="parked")
    expected = [run.id for run in await engine.runs(order=order)]
    seen, cursor, pages = [], None, 0
    while True:
        params = {"order": order, "limit": 5, **({"cursor": cursor} if cursor else {})}
        page = (await client.get("/runs", params=params)).json()
        seen += [run["id"] for run in page["runs"]]
        pages += 1
        cursor = page["next"]
        if cursor is None:
            break
        late = await engine.start(Nap)
        await late.wait(5, until="parked")
    ours = [run_id for run_id in seen if run_id in set(expected)]
    assert ours == expected
    assert len(seen) == len(set(seen))
    assert pages >= 5


async def test_list_does_not_hold_all_contexts(
    client: httpx.AsyncClient, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page needs memory for the Contexts of one read from the store, not for those of all its runs."""
    monkeypatch.setattr(runs, "_READ", 5)
    for _ in range(40):
        await engine.start(Expense, amount=1, note="x" * 100_000)
    tracemalloc.start()
    try:
        page = (await client.get("/runs", params={"limit": 40})).json()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (len(page["runs"]), page["next"]) == (40, None)
    assert peak < 2_500_000


async def test_list_does_not_show_contexts(client: httpx.AsyncClient, engine: Engine) -> None:
    """A list does not include Contexts, so that a page stays small."""
    await engine.start(Expense, amount=1, note="x" * 100_000)
    answer = await client.get("/runs")
    assert "data" not in answer.json()["runs"][0]
    assert len(answer.content) < 1000


@pytest.mark.parametrize(
    ("params", "parameter"),
    [
        ({"statu": "failed"}, "statu"),
        ({"status": "done"}, "status"),
        ({"waiting_for": "timer"}, "waiting_for"),
        ({"order": "key"}, "order"),
        ({"order": "id; DROP TABLE runs"}, "order"),
        ({"limit": "many"}, "limit"),
        ({"limit": ["1", "2"]}, "limit"),
        ({"created_after": "yesterday"}, "created_after"),
        ({"created_after": "2030-01-01T00:00:00"}, "created_after"),
        ({"created_after": "0001-01-01T00:00:00+14:00"}, "created_after"),
        ({"data": "{"}, "data"),
        ({"data": "[1]"}, "data"),
        ({"data": '{"a": NaN}'}, "data"),
        ({"data": json.dumps({"a": 10**400})}, "data"),
        ({"data": json.dumps({f"k{n}": 1 for n in range(1000)})}, "data"),
        ({"data": '{"a":' * 50 + "1" + "}" * 50}, "data"),
        ({"data": "[" * 20_000}, "data"),
        ({"key": "k" * 201}, "key"),
        ({"key": "\0"}, "key"),
        ({"key": [str(n) for n in range(101)]}, "key"),
        ({"cursor": "x"}, "cursor"),
        ({"cursor": "W10"}, "cursor"),
        ({"cursor": "ü"}, "cursor"),
        ({"cursor": "x" * 1000}, "cursor"),
    ],
)
async def test_list_refuses_invalid_filters(client: httpx.AsyncClient, params: Any, parameter: str) -> None:
    """Unknown filters, and values of a wrong type or size, are refused, and the problem names the parameter."""
    told = problem(await client.get("/runs", params=params), 422, "invalid")
    assert told["errors"][0]["parameter"] == parameter


@pytest.mark.parametrize("key", ["a') OR 1=1 --", "$.amount", 'x"]', "%", "_", "a.b[0]", ""])
async def test_filters_are_bound_as_values(client: httpx.AsyncClient, engine: Engine, key: str) -> None:
    """A key or value with a meaning in SQL or JSON paths is only compared."""
    await engine.start(Expense, amount=3)
    answer = await client.get("/runs", params={"data": json.dumps({key: 3})})
    assert (answer.status_code, answer.json()["runs"]) == (200, [])
    answer = await client.get("/runs", params={"data": json.dumps({"amount": key})})
    assert (answer.status_code, answer.json()["runs"]) == (200, [])
    if key:
        answer = await client.get("/runs", params={"workflow": key, "step": key})
        assert (answer.status_code, answer.json()["runs"]) == (200, [])


@pytest.mark.parametrize(("limit", "size"), [("0", 1), ("-5", 1), ("1", 1), ("501", 3), ("9" * 20, 3)])
async def test_a_limit_is_brought_into_its_range(
    client: httpx.AsyncClient, engine: Engine, limit: str, size: int
) -> None:
    """A limit that is too large or too small is brought into its range."""
    for _ in range(3):
        await engine.start(Fails)
    answer = await client.get("/runs", params={"limit": limit})
    assert (answer.status_code, len(answer.json()["runs"])) == (200, size)
    assert listing.ListParameters(limit=limit).limit == min(max(int(limit), 1), listing.MAX_RUNS)  # type: ignore[arg-type]


async def test_a_cursor_of_another_order_is_refused(client: httpx.AsyncClient, engine: Engine) -> None:
    """A cursor of another order is refused, as it would skip runs."""
    for _ in range(2):
        await engine.start(Fails)
    cursor = (await client.get("/runs", params={"limit": 1})).json()["next"]
    answer = await client.get("/runs", params={"limit": 1, "order": "created_at", "cursor": cursor})
    assert problem(answer, 422, "invalid")["errors"][0]["code"] == "cursor"
