"""The action endpoints, case by case as StateZero's clients know them: status, headers and body."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from pydantic_core import from_json
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Mount
from structlog.typing import EventDict

from aioflow import Engine, StartOptions
from aioflow.http import statezero
from aioflow.http.guard import MAX_BODY
from aioflow.store import Store
from tests.engine.conftest import MakeEngine, kinds_of
from tests.http.acting import ACTING, SECRET, Asked, Expense, Gates, Guarded, Other, Picky
from tests.http.conftest import Connect, bare, invalid, parked, refused

REVIEW = "/actions/expense_file_review/"
GOOD = {"reviewer_notes": "ok", "priority": "high", "note": "n"}
TOKEN = {"authorization": "Token right"}


async def who(request: Any) -> str | None:
    """The user that a token belongs to."""
    return "ann" if request.headers.get("authorization") == "Token right" else None


@pytest.fixture
async def engine(store_url: str | Store) -> AsyncIterator[Engine]:
    """An open engine with the workflows of these tests."""
    async with Engine(store_url, workflows=ACTING) as engine:
        yield engine


@pytest.fixture
def client(engine: Engine, connect: Connect) -> httpx.AsyncClient:
    """A client on this machine, of an app without authenticate."""
    return connect(statezero(engine))


@pytest.fixture
def named(engine: Engine, connect: Connect) -> httpx.AsyncClient:
    """A client on another machine, of an app with authenticate."""
    return connect(statezero(engine, who), "203.0.113.5", "https://flows.example.com")


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Close the gates, and reset what permissions were asked."""
    Gates.close()
    Asked.questions, Asked.general, Asked.particular, Asked.raised = [], True, True, None


# ---- 200


@pytest.mark.parametrize("path", [REVIEW, REVIEW.rstrip("/")])
async def test_a_call_shows_what_its_step_committed(engine: Engine, client: httpx.AsyncClient, path: str) -> None:
    """With and without the trailing slash the action runs, and the response has the state that its step committed."""
    run = await parked(engine, Expense)
    answer = await client.post(path, json={"workflow_run_id": run.id, **GOOD, "unknown": 3})
    assert (answer.status_code, answer.json()) == (
        200,
        {
            "status": "success",
            "message": "Step await_review executed",
            "workflow_status": "waiting",
            "current_step": "pay",
        },
    )
    assert answer.headers["content-type"] == "application/json"
    await run.refresh()
    assert (run.data["reviewer_notes"], run.data["priority"]) == ("ok", "high")


async def test_decimals_and_datetimes_travel_as_text(engine: Engine, client: httpx.AsyncClient) -> None:
    """Decimals and datetimes are read from strings, and after completion current_step is the last step."""
    run = await parked(engine, Expense)
    await client.post(REVIEW, json={"workflow_run_id": run.id, **GOOD})
    paid = {"workflow_run_id": run.id, "amount": "12.50", "due": "2026-01-01T00:00:00Z"}
    answer = await client.post("/actions/expense_pay/", json=paid)
    assert (answer.json()["workflow_status"], answer.json()["current_step"]) == ("completed", "pay")
    await run.refresh()
    assert (run.data["amount"], run.data["due"]) == ("12.50", "2026-01-01T00:00:00Z")


async def test_a_step_that_fails_its_run_was_called_well(engine: Engine, client: httpx.AsyncClient) -> None:
    """A step that returns ``fail`` is a successful call on a workflow that has failed."""
    run = await parked(engine, Expense)
    answer = await client.post(REVIEW, json={"workflow_run_id": str(run.id), **GOOD, "priority": "low"})
    assert (answer.status_code, answer.json()["workflow_status"]) == (200, "failed")
    assert answer.json()["current_step"] == "await_review"


async def test_an_action_with_a_timeout_is_called(engine: Engine, named: httpx.AsyncClient) -> None:
    """An action that is an arm of a wait is called like any other, and its step gets the request with the user."""
    run = await parked(engine, Other)
    answer = await named.post("/actions/other_decide/", json={"workflow_run_id": run.id, "yes": False}, headers=TOKEN)
    assert answer.json()["message"] == "Step decide executed"
    assert (await engine.get(run.id)).data["by"] == "ann False"


# ---- errors, in the order of the checks


@pytest.mark.parametrize(
    ("headers", "detail"),
    [
        ({}, "Authentication credentials were not provided."),
        ({"authorization": "Token wrong"}, "Invalid token."),
        ({"authorization": ""}, "Invalid token."),
    ],
)
@pytest.mark.parametrize("path", [REVIEW, "/actions/nope/", "/actions-schema/", "/models/"])
async def test_without_credentials_everything_is_refused(
    named: httpx.AsyncClient, headers: dict[str, str], detail: str, path: str
) -> None:
    """Without valid credentials everything is a 401 that names the scheme, with neither status nor type."""
    answer = await named.request("GET" if path.count("/") == 2 else "POST", path, headers=headers)
    bare(answer, 401, detail)
    assert answer.headers["www-authenticate"] == "Token"


async def test_an_authenticate_may_be_sync(engine: Engine, connect: Connect) -> None:
    """authenticate may be a sync function, and a falsy user other than None is a user."""
    run = await parked(engine, Guarded)
    client = connect(statezero(engine, lambda request: ""), "203.0.113.5")
    answer = await client.post("/actions/guarded_act/", json={"workflow_run_id": run.id, "amount": 3})
    assert answer.status_code == 200
    assert Asked.questions[0][1] == ""


@pytest.mark.parametrize("path", [REVIEW, "/models/"])
async def test_an_authenticate_may_raise_its_answer(engine: Engine, connect: Connect, path: str) -> None:
    """If authenticate raises an HTTPException, 401 and 403 have the usual bodies, and others are passed on."""

    def authenticate(request: Request) -> None:
        raise HTTPException(int(request.headers["x-status"]), headers={"retry-after": "3"})

    client = connect(statezero(engine, authenticate), "203.0.113.5")

    async def ask(status: int, **headers: str) -> httpx.Response:
        return await client.request(
            "POST" if path == REVIEW else "GET", path, headers={"x-status": str(status), **headers}
        )

    for headers, detail in (
        ({}, "Authentication credentials were not provided."),
        ({"authorization": "Token x"}, "Invalid token."),
    ):
        answer = await ask(401, **headers)
        bare(answer, 401, detail)
        assert answer.headers["www-authenticate"] == "Token"
    refused(await ask(403), 403, "PermissionDenied", "Permission denied")
    answer = await ask(429)
    refused(answer, 429, "TooManyRequests", "Too Many Requests")
    assert answer.headers["retry-after"] == "3"


async def test_a_permission_may_raise_its_answer(engine: Engine, client: httpx.AsyncClient) -> None:
    """If a permission raises an HTTPException, its status and detail are the response, and the step does not run."""
    run = await parked(engine, Guarded)
    for raised, status, type_, detail in (
        (HTTPException(429, "Later."), 429, "TooManyRequests", "Later."),
        (HTTPException(402, {"odd": 1}), 402, "PaymentRequired", "Payment Required"),  # type: ignore[arg-type]
        (HTTPException(499, "Gone."), 499, "Refused", "Gone."),
        (HTTPException(403, "No."), 403, "PermissionDenied", "Permission denied"),
    ):
        Asked.raised = raised
        answer = await client.post("/actions/guarded_act/", json={"workflow_run_id": run.id, "amount": 3})
        refused(answer, status, type_, detail)
    assert (await engine.get(run.id)).status == "waiting"


async def test_an_unknown_action_is_not_found(client: httpx.AsyncClient) -> None:
    """An unknown action is a 404, whatever the body is."""
    detail = {"message": "Action 'nope' not found", "code": "not_found"}
    refused(await client.post("/actions/nope/", content=b"{"), 404, "NotFound", detail)
    refused(
        await client.post("/actions/await_review/"),
        404,
        "NotFound",
        {**detail, "message": "Action 'await_review' not found"},
    )


async def test_no_such_run(client: httpx.AsyncClient) -> None:
    """With valid input, a run that does not or cannot exist is a 404."""
    for run_id in (99, 2**60, -3, 0, str(2**53), 10**30):
        answer = await client.post(REVIEW, json={"workflow_run_id": run_id, **GOOD})
        refused(answer, 404, "NotFound", {"message": "No WorkflowRun matches the given query.", "code": "not_found"})


async def test_field_errors_are_told_by_field(engine: Engine, client: httpx.AsyncClient) -> None:
    """Each invalid or missing field, also the run's id, has a list of messages with the constant code."""
    answer = await client.post(REVIEW, json={"priority": "none", "reviewer_notes": "x" * 501})
    invalid(
        answer,
        workflow_run_id="This field is required.",
        reviewer_notes="String should have at most 500 characters",
        priority="Input should be 'low', 'medium' or 'high'",
        note="This field is required.",
    )
    run = await parked(engine, Expense)
    assert await kinds_of(engine, run) == ["start", "goto"]


@pytest.mark.parametrize("run_id", [True, "one", 1.5, [1], {}])
async def test_the_run_s_id_is_a_number(client: httpx.AsyncClient, run_id: Any) -> None:
    """A run's id that is not an integer is an error of that field."""
    invalid(
        await client.post(REVIEW, json={"workflow_run_id": run_id, **GOOD}),
        workflow_run_id="A valid integer is required.",
    )


async def test_a_model_s_own_run_id_says_nothing_else(engine: Engine, client: httpx.AsyncClient) -> None:
    """If the model declares the run's id itself, its constraints do not change the errors about that id."""
    for run_id in (2**60, 0, -3):
        answer = await client.post("/actions/picky_act/", json={"workflow_run_id": run_id, "note": "n"})
        refused(answer, 404, "NotFound", {"message": "No WorkflowRun matches the given query.", "code": "not_found"})
    missing = "This field is required."
    invalid(await client.post("/actions/picky_act/", json={"note": "n"}), workflow_run_id=missing)
    invalid(await client.post("/actions/picky_act/", json={}), workflow_run_id=missing, note=missing)
    answer = await client.post("/actions/picky_act/", json={"workflow_run_id": "x", "note": "n"})
    invalid(answer, workflow_run_id="A valid integer is required.")
    answer = await client.post("/actions/pickier_act/", json={"workflow_run_id": "x"})
    invalid(answer, workflow_run_id="A valid integer is required.")
    run = await parked(engine, Picky)
    answer = await client.post("/actions/picky_act/", json={"workflow_run_id": str(run.id), "note": "n"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("body", "kind"), [("[1]", "list"), ("3", "int"), ('"x"', "str"), ("null", "NoneType"), ("true", "bool")]
)
async def test_a_body_that_is_no_object(client: httpx.AsyncClient, body: str, kind: str) -> None:
    """A body that is not an object is an error that names the type of what was sent."""
    answer = await client.post(REVIEW, content=body, headers={"content-type": "application/json"})
    invalid(answer, non_field_errors=f"Invalid data. Expected a dictionary, but got {kind}.")


@pytest.mark.parametrize("body", [b"{", b'{"a": NaN}', b"\xff", b'{"a": "\\ud800"}', b"[" * 5000, b"{'a': 1}"])
async def test_malformed_json(client: httpx.AsyncClient, body: bytes) -> None:
    """Malformed JSON is a ParseError that says what the parser expected, and where."""
    with pytest.raises(ValueError, match=r" at line 1 column \d+$") as expected:
        from_json(body, allow_inf_nan=False)
    answer = await client.post(REVIEW, content=body, headers={"content-type": "application/json"})
    refused(answer, 400, "ParseError", f"JSON parse error - {expected.value}")


async def test_an_empty_body_is_an_empty_object(client: httpx.AsyncClient) -> None:
    """An empty body is treated as ``{}``, so that missing fields are named."""
    answer = await client.post("/actions/other_slow/", headers={"content-type": "application/json"})
    invalid(answer, workflow_run_id="This field is required.")


async def test_what_cannot_be_stored_is_refused(engine: Engine, client: httpx.AsyncClient) -> None:
    """Input with a NUL character is refused, and changes nothing."""
    run = await parked(engine, Expense)
    await client.post(REVIEW, json={"workflow_run_id": run.id, **GOOD})
    given = {"workflow_run_id": run.id, "amount": "1", "due": "2026-01-01T00:00:00Z", "note": "a\0b"}
    answer = await client.post("/actions/expense_pay/", json=given)
    invalid(answer, non_field_errors="The input is beyond the limit of characters that every store can hold.")
    assert (await engine.get(run.id)).current_step == "pay"


@pytest.mark.parametrize("state", ["elsewhere", "another workflow", "delayed", "completed", "cancelled"])
async def test_a_run_that_is_not_at_the_action(engine: Engine, client: httpx.AsyncClient, state: str) -> None:
    """A call of an action that the run is not at has a list as detail, which names the run's status."""
    status = {"completed": "completed", "cancelled": "cancelled"}.get(state, "waiting")
    run = await parked(engine, Other if state == "another workflow" else Expense)
    if state == "elsewhere":
        await client.post(REVIEW, json={"workflow_run_id": run.id, **GOOD})
    elif state == "delayed":
        run = await engine.start(Expense, StartOptions(delay=timedelta(hours=1)))
    elif state == "completed":
        await client.post(REVIEW, json={"workflow_run_id": run.id, **GOOD})
        await client.post("/actions/expense_pay/", json={"workflow_run_id": run.id, "amount": 1, "due": 0})
    elif state == "cancelled":
        await engine.cancel(run.id)
    before = await kinds_of(engine, run)
    answer = await client.post(REVIEW, json={"workflow_run_id": run.id, **GOOD})
    message = f"The workflow is not waiting for action 'expense_file_review'. Current status: {status}"
    refused(answer, 400, "ValidationError", [{"message": message, "code": "validation_error"}])
    assert await kinds_of(engine, run) == before


async def test_a_double_click_runs_once(engine: Engine, client: httpx.AsyncClient) -> None:
    """Of concurrent calls one gets a 200 and the others a 400, and the step runs once."""
    run = await parked(engine, Expense)
    body = {"workflow_run_id": run.id, **GOOD}
    answers = await asyncio.gather(*[client.post(REVIEW, json=body) for _ in range(4)])
    assert sorted(answer.status_code for answer in answers) == [200, 400, 400, 400]
    for lost in (answer for answer in answers if answer.status_code == 400):
        told = lost.json()["detail"][0]["message"]
        status = told.removeprefix("The workflow is not waiting for action 'expense_file_review'. Current status: ")
        assert status in {"running", "waiting"}  # the winner's step runs, or waits for the next action already
        refused(lost, 400, "ValidationError", [{"message": told, "code": "validation_error"}])
    assert await kinds_of(engine, run) == ["start", "goto", "action", "goto"]


async def test_the_text_of_a_steps_exception_is_not_in_the_response(
    engine: Engine, client: httpx.AsyncClient, log: list[EventDict]
) -> None:
    """What a step raises is in the log and not in the response, and the run waits as before and can be called again."""
    run = await parked(engine, Expense)
    before = (await engine.get(run.id)).data
    answer = await client.post(REVIEW, json={"workflow_run_id": run.id, **GOOD, "reviewer_notes": "raise"})
    refused(answer, 500, "RuntimeError", "Internal server error")
    assert SECRET not in f"{answer.text}{answer.headers}"
    assert SECRET in str(log)
    await run.refresh()
    assert (run.status, run.current_step, run.data) == ("waiting", "await_review", before)
    assert (await client.post(REVIEW, json={"workflow_run_id": run.id, **GOOD})).status_code == 200


async def test_a_step_may_raise_its_answer(engine: Engine, client: httpx.AsyncClient) -> None:
    """An HTTPException from a step is the response, with its status, headers and detail, and the run waits on."""
    run = await parked(engine, Expense)
    answer = await client.post(REVIEW, json={"workflow_run_id": run.id, **GOOD, "reviewer_notes": "conflict"})
    refused(answer, 409, "Conflict", "It is above your limit.")
    assert answer.headers["x-limit"] == "400"
    assert (await client.post(REVIEW, json={"workflow_run_id": run.id, **GOOD})).status_code == 200


async def test_debug_shows_what_the_step_raised(engine: Engine, connect: Connect) -> None:
    """With ``debug=True`` the response has the text of what the step raised."""
    run = await parked(engine, Expense)
    client = connect(statezero(engine, debug=True))
    answer = await client.post(REVIEW, json={"workflow_run_id": run.id, **GOOD, "reviewer_notes": "raise"})
    refused(answer, 500, "RuntimeError", SECRET)


async def test_a_run_that_is_cancelled_meanwhile(engine: Engine, client: httpx.AsyncClient) -> None:
    """A caller whose run is cancelled during the step gets the same response as one who was too late."""
    run = await parked(engine, Other)
    call = asyncio.create_task(client.post("/actions/other_slow/", json={"workflow_run_id": run.id}))
    await Gates.begun.wait()
    await engine.cancel(run.id)
    message = "The workflow is not waiting for action 'other_slow'. Current status: cancelled"
    refused(await call, 400, "ValidationError", [{"message": message, "code": "validation_error"}])


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/json; charset=latin-1"]
)
async def test_anything_but_json_is_unsupported(client: httpx.AsyncClient, kind: str) -> None:
    """A content type other than JSON is a 415 that names it."""
    answer = await client.post(REVIEW, content=b"{}", headers={"content-type": kind})
    refused(answer, 415, "UnsupportedMediaType", f'Unsupported media type "{kind}" in request.')


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_an_action_takes_post_alone(client: httpx.AsyncClient, method: str) -> None:
    """Methods other than POST are a 405."""
    answer = await client.request(method, REVIEW)
    bare(answer, 405, f'Method "{method}" not allowed.')
    assert answer.headers["allow"] == "POST, OPTIONS"


async def test_a_body_that_is_too_large(client: httpx.AsyncClient) -> None:
    """A body of more than 1 MiB is a 413, whether its length is declared or not."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(17):
            yield b" " * (MAX_BODY // 16)

    headers = {"content-type": "application/json"}
    for content in (b" " * (MAX_BODY + 1), chunks()):
        answer = await client.post(REVIEW, content=content, headers=headers)
        refused(answer, 413, "PayloadTooLarge", "The request is larger than 1 MiB.")


async def test_other_addresses_are_not_found(client: httpx.AsyncClient) -> None:
    """Other paths, also below and beside an action, are a 404."""
    for path in ("/", "/actions", "/actions/", "/actions/a/b/", "/nothing"):
        refused(await client.post(path), 404, "NotFound", {"message": "Not found.", "code": "not_found"})


async def test_a_closed_engine_is_unavailable(make_engine: MakeEngine, connect: Connect) -> None:
    """A closed engine is a 503 that gives no reason, with a Retry-After."""
    answer = await connect(statezero(make_engine(*ACTING))).post(REVIEW, json={"workflow_run_id": 1, **GOOD})
    refused(answer, 503, "ServiceUnavailable", "Service unavailable")
    assert answer.headers["retry-after"] == "1"


def anything(rng: random.Random, depth: int = 0) -> Any:
    """A random JSON value, some of them odd."""
    kind = rng.randrange(8 if depth < 3 else 6)
    if kind < 6:
        odd = [2**70, -1, "", "a\0", "\U0001f30a", "1e400", 1e308, 0.1, "2030-01-01T00:00:00+02:00", "low", "x" * 700]
        return [None, rng.random() < 0.5, rng.choice(odd), rng.choice(odd), rng.randrange(10), str(rng.random())][kind]
    items = [anything(rng, depth + 1) for _ in range(rng.randrange(4))]
    return items if kind == 6 else {rng.choice(["a", "", "priority", "workflow_run_id", "\0"]): item for item in items}


async def test_random_requests_get_no_server_error(
    engine: Engine, client: httpx.AsyncClient, rng: random.Random
) -> None:
    """Whatever the body, headers and path are, the response is one that clients understand, and never a 5xx."""
    run = await parked(engine, Expense)
    fields = ["workflow_run_id", "reviewer_notes", "priority", "note", "amount", "due", "yes", "other", "everything"]
    for _ in range(400):
        name = rng.choice(["expense_file_review", "expense_pay", "guarded_act", "described_act", "other_slow", "nope"])
        body = {field: anything(rng) for field in fields if rng.random() < 0.6}
        if rng.random() < 0.5:
            body["workflow_run_id"] = rng.choice([run.id, str(run.id), run.id + 1])
        content = json.dumps(rng.choice([body, body, anything(rng)])).encode()
        if rng.random() < 0.2:
            content = content[: rng.randrange(len(content) + 1)] + rng.randbytes(3)
        headers = {"content-type": "application/json", "idempotency-key": str(rng.randrange(50))}
        answer = await client.post(f"/actions/{name}", content=content, headers=headers)
        assert answer.status_code in {200, 400, 404}, (content, answer.text)
        assert isinstance(answer.json(), dict)


# ---- permissions


async def test_permissions_are_asked_before_and_after_the_body(engine: Engine, named: httpx.AsyncClient) -> None:
    """has_permission is asked before the body is read, has_action_permission about the validated input and the run."""
    run = await parked(engine, Guarded)
    given = {"workflow_run_id": run.id, "amount": "3", "other": 1}
    answer = await named.post("/actions/guarded_act/", json=given, headers=TOKEN)
    assert answer.status_code == 200
    data = {"workflow_run_id": run.id, "amount": 3}
    assert Asked.questions == [
        ("general", "ann", "guarded_act", None, {}),
        ("particular", "ann", "guarded_act", run.id, data),
    ]


async def test_has_permission_denies_before_the_body_is_read(named: httpx.AsyncClient) -> None:
    """If has_permission denies, the response is a 403, whatever the body is."""
    Asked.general = False
    answer = await named.post("/actions/guarded_act/", content=b"{", headers=TOKEN)
    refused(answer, 403, "PermissionDenied", "Permission denied")


async def test_has_action_permission_denies_also_for_a_missing_run(engine: Engine, named: httpx.AsyncClient) -> None:
    """If has_action_permission denies valid input it is a 403, also if there is no such run, which it gets as None."""
    Asked.particular = False
    run = await parked(engine, Guarded)
    bad = await named.post("/actions/guarded_act/", json={"workflow_run_id": run.id}, headers=TOKEN)
    invalid(bad, amount="This field is required.")
    for run_id, seen in ((run.id, run.id), (99, None)):
        given = {"workflow_run_id": run_id, "amount": 3}
        answer = await named.post("/actions/guarded_act/", json=given, headers=TOKEN)
        refused(answer, 403, "PermissionDenied", "Permission denied")
        assert Asked.questions[-1][3] == seen
    Asked.particular = True
    answer = await named.post("/actions/guarded_act/", json={"workflow_run_id": 99, "amount": 3}, headers=TOKEN)
    assert answer.status_code == 404


async def test_a_permission_that_raises_denies(
    engine: Engine, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, log: list[EventDict]
) -> None:
    """A permission that raises denies, and its text is only in the log."""
    run = await parked(engine, Guarded)
    monkeypatch.setattr(Asked, "questions", None)
    answer = await client.post("/actions/guarded_act/", json={"workflow_run_id": run.id, "amount": 3})
    refused(answer, 500, "RuntimeError", "Internal server error")
    assert "NoneType" in str(log)
    assert (await engine.get(run.id)).status == "waiting"


# ---- who gets in


@pytest.mark.parametrize("path", [REVIEW, "/actions-schema/", "/models/"])
@pytest.mark.parametrize("host", ["10.0.0.1", "8.8.8.8", "2001:db8::1"])
async def test_without_authenticate_other_machines_are_refused(
    engine: Engine, connect: Connect, path: str, host: str, log: list[EventDict]
) -> None:
    """Without authenticate other machines get a 403, and the log says so once."""
    client = connect(statezero(engine), host)
    for _ in range(2):
        answer = await client.request("POST" if "review" in path else "GET", path)
        refused(answer, 403, "PermissionDenied", "Permission denied")
    said = [entry for entry in log if entry["event"].startswith("statezero() has no authenticate=")]
    assert len(said) == 1


async def test_a_foreign_page_may_not_call(engine: Engine, client: httpx.AsyncClient, connect: Connect) -> None:
    """A call by a page of another origin is refused, unless that origin is allowed."""
    run = await parked(engine, Expense)
    body = {"workflow_run_id": run.id, **GOOD}
    for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
        refused(await client.post(REVIEW, json=body, headers=headers), 403, "PermissionDenied", "Permission denied")
    allowed = connect(statezero(engine, allow_origins=["https://app.example.com"]))
    headers = {"origin": "https://app.example.com", "sec-fetch-site": "cross-site"}
    answer = await allowed.post(REVIEW, json=body, headers=headers)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://app.example.com")


@pytest.mark.parametrize("origins", [["https://app.example.com"], ["*"]])
async def test_a_preflight_allows_what_clients_send(engine: Engine, connect: Connect, origins: list[str]) -> None:
    """A preflight of an allowed origin, from any machine and without credentials, allows all of clients' headers."""
    client = connect(statezero(engine, who, allow_origins=origins), "203.0.113.5")
    wanted = "authorization, content-type, x-operation-id, x-canonical-id, x-sync-token, x-statezero-sync-token"
    asked = {
        "origin": "https://app.example.com",
        "access-control-request-method": "POST",
        "access-control-request-headers": wanted,
    }
    answer = await client.options(REVIEW, headers=asked)
    assert answer.status_code == 200
    allowed = {name.strip().lower() for name in answer.headers["access-control-allow-headers"].split(",")}
    assert set(wanted.split(", ")) | {"idempotency-key"} <= allowed
    assert answer.headers["access-control-allow-origin"] in {"*", "https://app.example.com"}
    assert "access-control-allow-credentials" not in answer.headers


async def test_no_origin_is_allowed_by_default(engine: Engine, named: httpx.AsyncClient, connect: Connect) -> None:
    """A preflight is refused without ``allow_origins``, and for an origin that it does not name."""
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    other = connect(statezero(engine, who, allow_origins=["https://app.example.com"]), "203.0.113.5")
    for client in (named, other):
        answer = await client.options(REVIEW, headers=asked)
        assert answer.status_code == 400
        assert "access-control-allow-origin" not in answer.headers


async def test_errors_can_be_read_by_an_allowed_page(engine: Engine, connect: Connect) -> None:
    """Refusals, too, have the header that lets a page of an allowed origin read them."""
    client = connect(statezero(engine, who, allow_origins=["https://app.example.com"]), "203.0.113.5")
    answer = await client.post(REVIEW, json={}, headers={"origin": "https://app.example.com"})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, "https://app.example.com")


# ---- Idempotency-Key


async def test_a_call_that_is_sent_again_has_its_answer(engine: Engine, client: httpx.AsyncClient) -> None:
    """Calls with the same Idempotency-Key, also concurrent ones, get the same response, and the step runs once."""
    run = await parked(engine, Expense)
    body = {"workflow_run_id": run.id, **GOOD}
    headers = {"idempotency-key": "click-1"}
    answers = await asyncio.gather(*[client.post(REVIEW, json=body, headers=headers) for _ in range(3)])
    answers.append(await client.post(REVIEW.rstrip("/"), json=body, headers=headers))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert len({answer.text for answer in answers}) == 1
    assert [answer.headers.get("idempotent-replayed") for answer in answers].count("true") == 3
    assert await kinds_of(engine, run) == ["start", "goto", "action", "goto"]


async def test_a_key_belongs_to_one_call_of_one_caller(engine: Engine, connect: Connect) -> None:
    """A key is refused for another body, does not hold for another caller, and may be used again after a failure."""
    client = connect(statezero(engine, lambda request: "somebody"), "203.0.113.5")
    run = await parked(engine, Expense)
    body = {"workflow_run_id": run.id, **GOOD}
    key = {"idempotency-key": "click-1", "authorization": "Token a"}
    failed = await client.post(REVIEW, json={**body, "reviewer_notes": "raise"}, headers=key)
    assert failed.status_code == 500
    assert (await client.post(REVIEW, json=body, headers=key)).status_code == 200
    other = await client.post(REVIEW, json={**body, "note": "m"}, headers=key)
    message = "This Idempotency-Key was used for another call."
    refused(other, 400, "ValidationError", [{"message": message, "code": "validation_error"}])
    foreign = await client.post(REVIEW, json=body, headers={**key, "authorization": "Token b"})
    assert "Current status: waiting" in foreign.json()["detail"][0]["message"]


class Somebody:
    """A user without any readable attribute."""


class Unreadable:
    """A user whose repr raises."""

    def __repr__(self) -> str:
        raise RuntimeError(SECRET)


def by_name(request: Request) -> str | None:
    return request.headers.get("x-api-key") or request.query_params.get("token")


@pytest.mark.parametrize("authenticate", [by_name, lambda _: Somebody(), lambda _: Unreadable(), lambda _: "both"])
@pytest.mark.parametrize("where", ["header", "query"])
async def test_a_key_belongs_to_the_authenticated_user(
    engine: Engine, connect: Connect, authenticate: Any, where: str
) -> None:
    """However callers are authenticated, a key replays a response only to the same caller, also in another trace."""
    client = connect(statezero(engine, authenticate), "203.0.113.5")
    run = await parked(engine, Expense)
    body = {"workflow_run_id": run.id, **GOOD}

    async def call(name: str, operation: str) -> httpx.Response:
        headers = {"idempotency-key": "1", "x-operation-id": operation, "traceparent": operation}
        if where == "header":
            return await client.post(REVIEW, json=body, headers={**headers, "x-api-key": name})
        return await client.post(f"{REVIEW}?token={name}", json=body, headers=headers)

    first = await call("ann", "1")
    again = await call("ann", "2")
    assert (again.status_code, again.content, again.headers["idempotent-replayed"]) == (200, first.content, "true")
    foreign = await call("bob", "3")
    assert "idempotent-replayed" not in foreign.headers
    message = "The workflow is not waiting for action 'expense_file_review'. Current status: waiting"
    refused(foreign, 400, "ValidationError", [{"message": message, "code": "validation_error"}])


async def test_a_key_belongs_to_the_machine_of_an_unreadable_user(engine: Engine, connect: Connect) -> None:
    """Callers whose users cannot be told apart are told apart by their machine."""
    app = statezero(engine, lambda request: request.client and Somebody())
    named_ = statezero(engine, lambda request: request.client and request.client.host)
    for where in (app, named_):
        run = await parked(engine, Expense)
        given = {"json": {"workflow_run_id": run.id, **GOOD}, "headers": {"idempotency-key": "1"}}
        ann, bob = connect(where, "203.0.113.5"), connect(where, "203.0.113.6")
        statuses = [(await client.post(REVIEW, **given)).status_code for client in (ann, ann, bob)]  # type: ignore[arg-type]
        assert statuses == [200, 200, 400]


@pytest.mark.parametrize("key", ["", "x" * 201])
async def test_a_key_has_a_length(engine: Engine, client: httpx.AsyncClient, key: str) -> None:
    """A key that is empty or longer than 200 characters is refused."""
    run = await parked(engine, Expense)
    answer = await client.post(REVIEW, json={"workflow_run_id": run.id, **GOOD}, headers={"idempotency-key": key})
    invalid(answer, non_field_errors="The Idempotency-Key must have from 1 to 200 characters.")


# ---- where it is served


async def test_it_is_served_below_a_prefix(engine: Engine, connect: Connect) -> None:
    """Mounted below a prefix, the app serves the same paths there."""
    run = await parked(engine, Expense)
    client = connect(Starlette(routes=[Mount("/statezero", statezero(engine))]))
    answer = await client.post(f"/statezero{REVIEW}", json={"workflow_run_id": run.id, **GOOD})
    assert answer.status_code == 200
    assert (await client.get("/statezero/models/")).json() == []


async def test_a_client_engine_calls_where_one_works(make_engine: MakeEngine, connect: Connect) -> None:
    """An app on an engine without a worker hands calls to the worker, and returns the worker's response."""
    async with make_engine(*ACTING) as engine, make_engine(*ACTING, worker=False) as other:
        run = await parked(engine, Expense)
        client = connect(statezero(other))
        failed = await client.post(REVIEW, json={"workflow_run_id": run.id, **GOOD, "reviewer_notes": "raise"})
        refused(failed, 500, "RuntimeError", "Internal server error")
        chosen = await client.post(REVIEW, json={"workflow_run_id": run.id, **GOOD, "reviewer_notes": "conflict"})
        refused(chosen, 409, "Conflict", "It is above your limit.")
        answer = await client.post(REVIEW, json={"workflow_run_id": run.id, **GOOD})
        assert (answer.status_code, answer.json()["current_step"]) == (200, "pay")


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"sync_token": ""}, ValueError, "sync_token=...) must not be empty"),
        ({"sync_token": 3}, TypeError, "takes a string, got int"),
        ({"allow_origins": "https://a.example"}, TypeError, "takes a sequence of origins"),
    ],
)
def test_wrong_options_are_refused(options: Any, kind: type[Exception], text: str) -> None:
    """Invalid options are refused when the app is made."""
    with pytest.raises(kind) as caught:
        statezero(Engine("memory://"), **options)
    assert text in str(caught.value)
