"""Signals and events over HTTP."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import httpx
import pytest

from aioflow import Engine, StartOptions, WorkflowRun
from tests.http.conftest import problem
from tests.http.flows import Expense, Nap, Visit


@pytest.fixture
async def run(engine: Engine) -> WorkflowRun[Any]:
    """A run that waits for a review."""
    run = await engine.start(Expense, StartOptions(key="e-1"), amount=1)
    return await run.wait(5, until="parked")


async def test_a_message_goes_on_to_the_step(client: httpx.AsyncClient, run: WorkflowRun[Any]) -> None:
    """A message is sent by its model's name, and the step gets the model."""
    answer = await client.post(f"/runs/{run.id}/signals/Review", json={"payload": {"approved": True, "by": "ann"}})
    assert (answer.status_code, answer.json()) == (200, {"state": "delivered", "delivered": [run.id], "rejected": []})
    await run.wait(5)
    assert (run.status, run.data["approved"], run.data["by"]) == ("completed", True, "ann")


async def test_an_invalid_message_is_refused(client: httpx.AsyncClient, run: WorkflowRun[Any]) -> None:
    """A payload that fits no message of the run's workflow is refused, and the run waits as before."""
    answer = await client.post(f"/runs/{run.id}/signals/Review", json={"payload": {"approved": "perhaps"}})
    told = problem(answer, 422, "invalid")["errors"]
    assert {(each["pointer"], each["code"]) for each in told} == {
        ("#/payload/approved", "bool_parsing"),
        ("#/payload/by", "missing"),
    }
    await run.refresh()
    assert (run.status, run.row.seq) == ("waiting", 2)


async def test_a_payload_goes_into_the_context(client: httpx.AsyncClient, run: WorkflowRun[Any]) -> None:
    """A plain signal's payload is merged into the Context, and one that does not fit is rejected without details."""
    answer = await client.post(f"/runs/{run.id}/signals/withdrawn", json={"payload": {"amount": "much"}})
    assert answer.json() == {"state": "rejected", "delivered": [], "rejected": [run.id]}
    answer = await client.post(f"/runs/{run.id}/signals/withdrawn", json={"payload": {"note": "never mind"}})
    assert answer.json()["state"] == "delivered"
    await run.wait(5)
    assert (run.status, run.data["note"]) == ("failed", "never mind")


async def test_a_signal_that_no_run_waits_for_yet_is_buffered(client: httpx.AsyncClient, engine: Engine) -> None:
    """A signal that the run does not wait for yet is buffered, and only once with a signal_id."""
    run = await engine.start(Nap)
    for _ in range(2):
        body = {"payload": {"x": 1}, "signal_id": "once", "ttl": 3600}
        answer = await client.post(f"/runs/{run.id}/signals/later", json=body)
        assert answer.json() == {"state": "buffered", "delivered": [], "rejected": []}
    assert (await engine.stats()).mailbox == 1


async def test_a_signal_to_a_key_and_to_all(client: httpx.AsyncClient, engine: Engine, run: WorkflowRun[Any]) -> None:
    """A signal with a key goes to the run that waits with it, and one without goes to all runs that wait for it now."""
    others = [await (await engine.start(Expense, amount=2)).wait(5, until="parked") for _ in range(2)]
    answer = await client.post("/signals/Review", json={"key": "e-1", "payload": {"approved": False, "by": "bob"}})
    assert answer.json() == {"state": "delivered", "delivered": [run.id], "rejected": []}
    answer = await client.post("/signals/withdrawn", json={})
    assert sorted(answer.json()["delivered"]) == sorted(other.id for other in others)
    assert (await client.post("/signals/withdrawn", json={})).json()["state"] == "none"
    assert (await client.post("/signals/withdrawn", json={"key": "e-2"})).json()["state"] == "buffered"


async def test_a_signal_to_a_run_that_has_ended(
    client: httpx.AsyncClient, engine: Engine, run: WorkflowRun[Any]
) -> None:
    """A signal to a run that has ended is a 409 that names its status, and one to no run is a 404."""
    await engine.cancel(run.id)
    answer = await client.post(f"/runs/{run.id}/signals/withdrawn", json={})
    told = problem(answer, 409, "run-ended")
    assert (told["run_id"], told["run_status"]) == (run.id, "cancelled")
    problem(await client.post("/runs/4711/signals/withdrawn", json={}), 404, "run-not-found")


@pytest.mark.parametrize(
    ("path", "body", "pointer"),
    [
        ("/signals/x", {"ttl": 0}, "#/ttl"),
        ("/signals/x", {"ttl": -1}, "#/ttl"),
        ("/signals/x", {"ttl": 1e300}, "#/ttl"),
        ("/signals/x", {"key": ""}, "#/key"),
        ("/signals/x", {"key": "k" * 201}, "#/key"),
        ("/signals/x", {"signal_id": "\0"}, "#/signal_id"),
        ("/signals/x", {"payload": []}, "#/payload"),
        ("/signals/x", {"payload": {"": 1}}, "#/payload//[key]"),
        ("/signals/x", {"payload": {"\0": 1}}, "#/payload/\0/[key]"),
        ("/events/x", {"replace": True}, "#"),
        ("/events/x", {"at": "2030-01-01T00:00:00"}, "#/at"),
        ("/events/x", {"at": "0001-01-01T00:00:00+14:00"}, "#/at"),
        ("/events/x", {"at": "9999-12-31T23:59:59-14:00"}, "#/at"),
        ("/events/x", {"namespace": ""}, "#/namespace"),
        ("/events/x", {"entity": [1]}, "#/entity"),
        ("/events/x", {"entity": {"": 1}}, "#/entity//[key]"),
        ("/events/x", {"entity": {"id": [1]}}, "#"),
        ("/events/x", {"entity": {"id": True}}, "#"),
        ("/events/x", {"entity": {"id": ""}}, "#"),
        ("/events/x", {"entity_id": 10**300}, "#"),
        ("/events/x", {"event_id": 5}, "#/event_id"),
    ],
)
async def test_invalid_signals_and_events_are_refused(
    client: httpx.AsyncClient, engine: Engine, path: str, body: dict[str, Any], pointer: str
) -> None:
    """A signal or event that cannot be sent is a 422 that points at the faulty member, and nothing is sent."""
    told = problem(await client.post(path, json=body), 422, "invalid")
    assert told["errors"][0]["pointer"] == pointer
    stats = await engine.stats()
    assert (stats.mailbox, stats.events) == (0, {})


@pytest.mark.parametrize("path", ["/signals/{}", "/events/{}"])
async def test_a_name_may_be_anything_that_can_be_stored(client: httpx.AsyncClient, path: str) -> None:
    """A name may have any characters, quoted in the path, and up to 200 of them."""
    for name in ("a/b", "ä 🌊", "..x", "a%2Fb", "'; DROP TABLE runs; --", "x" * 200):
        answer = await client.post(
            path.format(httpx.URL("http://x").copy_with(path=f"/{name}").raw_path.decode()[1:]), json={}
        )
        assert answer.status_code == 200, (name, answer.text)
    for bad in ("x" * 201, "%00", "%ED%A0%80"):
        answer = await client.post(path.format(bad), json={})
        assert answer.status_code in (200, 422), answer.text
    assert (
        problem(await client.post(path.format("x" * 201), json={}), 422, "invalid")["errors"][0]["parameter"] == "name"
    )


async def test_an_event_starts_its_workflow(client: httpx.AsyncClient, engine: Engine) -> None:
    """An event is recorded once, however often it is emitted, and starts one run."""
    for _ in range(2):
        body = {"entity": {"id": 7, "room": "blue"}, "event_id": "v-7"}
        answer = await client.post("/events/visit.booked", json=body)
        assert answer.status_code == 200
        told = answer.json()
        assert (told["id"], told["name"], told["entity_id"], told["status"]) == ("v-7", "visit.booked", "7", "occurred")
    problem(await client.post("/events/visit.moved", json={"event_id": "v-7"}), 409, "id-taken")
    await engine.process_scheduled()
    (run,) = await engine.runs(event_id="v-7")
    assert (await run.wait(5)).data == {"entity_id": "7", "room": "blue"}
    assert run.workflow == "event:Visit" == (await engine.runs(workflow=Visit))[0].workflow


async def test_a_future_event_can_be_moved(client: httpx.AsyncClient) -> None:
    """An event in the future is pending, and ``replace`` moves it."""
    body = {"entity_id": 7, "at": "2040-01-01T00:00:00+01:00", "event_id": "v-8"}
    told = (await client.post("/events/visit.booked", json=body)).json()
    assert (told["status"], told["at"], told["occurrence"]) == ("pending", "2039-12-31T23:00:00Z", 1)
    body |= {"at": "2041-01-01T00:00:00Z", "replace": True}
    told = (await client.post("/events/visit.booked", json=body)).json()
    assert datetime.fromisoformat(told["at"]).year == 2041
    assert told["occurrence"] == 2


async def test_an_event_workflow_is_started_by_events_alone(client: httpx.AsyncClient) -> None:
    """A workflow that events start cannot be started by a request."""
    answer = await client.post("/workflows/event:Visit/runs", json={"context": {"event": {"entity": {}}}})
    assert problem(answer, 404, "workflow-unknown")["detail"] == "It is started by events."
