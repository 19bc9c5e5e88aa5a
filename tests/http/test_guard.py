"""Which requests are let in: only local ones without authorize, none of foreign pages, only JSON up to 1 MiB."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from starlette.requests import HTTPConnection
from structlog.typing import EventDict

from aioflow import Engine
from aioflow.http import Authorize, api, statezero
from aioflow.http.guard import MAX_BODY, is_foreign
from tests.http.conftest import Connect, problem
from tests.http.flows import SECRET, Claim, Expense

JSON = {"content-type": "application/json"}
#: Each write, with the smallest body that it accepts.
WRITES = [
    ("/workflows/expense/runs", b'{"context": {"amount": 1}}'),
    ("/runs/{run_id}/signals/hello", b"{}"),
    ("/runs/{run_id}/cancel", b"{}"),
    ("/runs/{run_id}/actions/review_claim", b'{"input": {"approved": true, "amount": 1}}'),
    ("/signals/hello", b"{}"),
    ("/events/hello", b"{}"),
]
writes = pytest.mark.parametrize(("path", "body"), WRITES)


async def everyone(*_: object) -> bool:
    return True


@pytest.fixture
async def run_id(engine: Engine) -> int:
    """A run to write to."""
    run = await engine.start(Claim)
    await run.wait(5, until="parked")
    return run.id


async def count_of(engine: Engine) -> tuple[int, int, int]:
    """What a write would change."""
    stats = await engine.stats()
    return await engine.count(), stats.mailbox, sum(stats.events.values())


# ---- without authorize: only this machine


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"])
async def test_this_machine_is_answered(engine: Engine, connect: Connect, host: str) -> None:
    """Clients on any loopback address are answered."""
    assert (await connect(api(engine), host).get("/runs")).status_code == 200


@pytest.mark.parametrize(
    "host", ["10.0.0.1", "192.168.1.5", "8.8.8.8", "2001:db8::1", "::ffff:10.0.0.1", "0.0.0.0", "testclient", ""]
)
@pytest.mark.parametrize("path", ["/runs", "/openapi.json", "/healthz", "/readyz", "/nothing"])
async def test_other_machines_are_refused(engine: Engine, connect: Connect, host: str, path: str) -> None:
    """Clients on other machines get a 403, whatever they ask for."""
    problem(await connect(api(engine), host).get(path), 403, "not-local")


@pytest.mark.parametrize("header", ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip"])
async def test_a_client_behind_a_proxy_is_not_local(client: httpx.AsyncClient, header: str) -> None:
    """A request with a proxy's header is refused, as its client may be on another machine."""
    problem(await client.get("/runs", headers={header: "127.0.0.1"}), 403, "not-local")


async def test_a_unix_socket_may_lead_anywhere(engine: Engine, connect: Connect) -> None:
    """A request without a client address, as from a Unix socket, is refused."""
    app = api(engine)

    async def nameless(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "client": None}, receive, send)

    problem(await connect(nameless).get("/runs"), 403, "not-local")


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("localhost", True),
        ("LOCALHOST:8000", True),
        ("app.localhost:8000", True),
        ("127.0.0.1", True),
        ("127.1.2.3:80", True),
        ("[::1]:8000", True),
        ("test", True),
        ("testserver:80", True),
        ("test.example", False),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("10.0.0.1:8000", False),
        ("evillocalhost", False),
        ("localhost@evil.example", False),
        ("[::1", False),
        ("", False),
    ],
)
async def test_a_foreign_name_of_this_machine_is_refused(client: httpx.AsyncClient, name: str, here: bool) -> None:
    """A web page whose own name resolves to this machine is no client of it (DNS rebinding)."""
    answer = await client.get("/runs", headers={"host": name})
    if here:
        assert answer.status_code == 200
    else:
        problem(answer, 403, "not-local")


async def test_a_missing_authorize_is_logged_once(engine: Engine, connect: Connect, log: list[EventDict]) -> None:
    """The log warns once about the missing authorize, at the first request, and not if there is one."""
    app = api(engine)
    for host in ("127.0.0.1", "10.0.0.1", "127.0.0.1"):
        await connect(app, host).get("/healthz")
    said = [entry["event"] for entry in log if "authorize" in entry["event"]]
    assert said == ["the run API has no authorize=: it answers only clients on this machine"]
    log.clear()
    await connect(api(engine, everyone)).get("/healthz")
    assert log == []


async def test_with_authorize_it_decides_for_all_machines(engine: Engine, connect: Connect) -> None:
    """With authorize, neither the client's address nor the host name matters."""
    client = connect(api(engine, everyone), "8.8.8.8", "http://flows.example.com")
    assert (await client.get("/runs", headers={"x-forwarded-for": "9.9.9.9"})).status_code == 200


# ---- web pages


@writes
@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "origin": "http://localhost"},
        {"sec-fetch-site": ""},
        {"origin": "https://evil.example"},
        {"origin": "http://localhost.evil.example"},
        {"origin": "http://localhost:81"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://[::1"},
    ],
)
@pytest.mark.parametrize("authorized", [False, True])
async def test_a_foreign_page_changes_nothing(
    engine: Engine, connect: Connect, run_id: int, path: str, body: bytes, headers: dict[str, str], authorized: bool
) -> None:
    """A write by a web page of another origin is refused before anything is read."""
    client = connect(api(engine, everyone if authorized else None))
    before = await count_of(engine)
    answer = await client.post(path.format(run_id=run_id), content=body, headers={**JSON, **headers})
    problem(answer, 403, "cross-origin")
    assert await count_of(engine) == before


@writes
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://localhost"},
        {"origin": "https://LOCALHOST"},
        {"sec-fetch-site": "same-origin", "origin": "https://behind.a.proxy"},
        {"sec-fetch-site": "none"},
    ],
)
async def test_own_pages_and_programs_may_write(
    client: httpx.AsyncClient, run_id: int, path: str, body: bytes, headers: dict[str, str]
) -> None:
    """Writes by programs, by pages of the same origin, and by typed addresses are let in."""
    answer = await client.post(path.format(run_id=run_id), content=body, headers={**JSON, **headers})
    assert answer.is_success, answer.text


async def test_a_foreign_page_may_read_nothing(client: httpx.AsyncClient) -> None:
    """No response allows a page of another origin to read it."""
    answer = await client.get("/runs", headers={"origin": "https://evil.example", "sec-fetch-site": "cross-site"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_an_origin_can_be_allowed() -> None:
    """A list of origins allows exactly these, as browsers write them."""

    def foreign(origin: str, site: str = "cross-site") -> bool:
        headers = [(b"origin", origin.encode()), (b"sec-fetch-site", site.encode()), (b"host", b"api.example.com")]
        return is_foreign(
            HTTPConnection({"type": "http", "method": "POST", "headers": headers}), ("https://app.example.com",)
        )

    assert not foreign("https://app.example.com")
    assert foreign("http://app.example.com")
    assert foreign("https://app.example.com.evil.example")
    assert foreign("https://app.example.com:444")


# ---- every write is a POST


@writes
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE"])
async def test_every_write_is_a_post(
    client: httpx.AsyncClient, engine: Engine, run_id: int, path: str, body: bytes, method: str
) -> None:
    """A write by any other method is a 405 that names POST, and changes nothing."""
    before = await count_of(engine)
    answer = await client.request(method, path.format(run_id=run_id), content=body, headers=JSON)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    if method != "HEAD":
        problem(answer, 405, "method-not-allowed")
    assert await count_of(engine) == before


# ---- bodies


def chunks(size: int) -> Callable[[], AsyncIterator[bytes]]:
    """A body of this size, sent without its length."""

    async def body() -> AsyncIterator[bytes]:
        yield b'{"context": {"amount": 1, "note": "'
        for _ in range(size // 1024):
            yield b"x" * 1024
        yield b'"}}'

    return body


@writes
async def test_a_body_that_is_too_large_is_refused(
    client: httpx.AsyncClient, engine: Engine, run_id: int, path: str, body: bytes
) -> None:
    """A body of more than 1 MiB is a 413, whether its length is declared, missing, or declared too small."""
    before = await count_of(engine)
    path = path.format(run_id=run_id)
    large = b'{"x": "' + b"x" * MAX_BODY + b'"}'
    problem(await client.post(path, content=large, headers=JSON), 413, "body-too-large")
    problem(await client.post(path, content=chunks(MAX_BODY)(), headers=JSON), 413, "body-too-large")
    answer = await client.post(path, content=chunks(MAX_BODY)(), headers={**JSON, "content-length": "10"})
    problem(answer, 413, "body-too-large")
    answer = await client.post(path, content=body, headers={**JSON, "content-length": "9" * 30})
    problem(answer, 413, "body-too-large")
    assert await count_of(engine) == before


async def test_a_body_of_a_mebibyte_is_read(client: httpx.AsyncClient) -> None:
    """A body of exactly 1 MiB is read, and one byte more is refused."""
    body = b'{"context": {"amount": 1}}'.ljust(MAX_BODY)
    assert len(body) == MAX_BODY
    answer = await client.post("/workflows/expense/runs", content=body, headers=JSON)
    assert answer.status_code == 201
    problem(await client.post("/workflows/expense/runs", content=body + b" ", headers=JSON), 413, "body-too-large")


async def test_authorize_cannot_be_made_to_read_too_much(engine: Engine, connect: Connect) -> None:
    """The limit also holds if authorize reads the body first, and the endpoint still gets the whole body."""
    seen = []

    async def reads(request: Any, operation: str, run: object) -> bool:
        seen.append(await request.body())
        return True

    client = connect(api(engine, reads))
    answer = await client.post("/workflows/expense/runs", content=chunks(MAX_BODY)(), headers=JSON)
    problem(answer, 413, "body-too-large")
    answer = await client.post("/workflows/expense/runs", json={"context": {"amount": 7}})
    assert (answer.status_code, answer.json()["data"]["amount"]) == (201, 7)
    assert len(seen) == 1


@writes
@pytest.mark.parametrize(
    "kind",
    [
        None,
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/json",
        "application/jsonp",
        "application/json; charset=utf-16",
        "application/json, text/plain",
    ],
)
async def test_nothing_but_json_is_read(
    client: httpx.AsyncClient, engine: Engine, run_id: int, path: str, body: bytes, kind: str | None
) -> None:
    """A content type that a web form could send is a 415, also without a body."""
    before = await count_of(engine)
    headers = {} if kind is None else {"content-type": kind}
    for content in (body, b""):
        problem(await client.post(path.format(run_id=run_id), content=content, headers=headers), 415, "not-json")
    assert await count_of(engine) == before


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=utf-8", 'application/json;charset="UTF-8"']
)
async def test_json_may_say_that_it_is_utf_8(client: httpx.AsyncClient, kind: str) -> None:
    """A content type may name UTF-8, the only encoding of JSON."""
    answer = await client.post("/signals/hello", content=b"{}", headers={"content-type": kind})
    assert answer.status_code == 200


@writes
@pytest.mark.parametrize(
    ("content", "status", "kind"),
    [
        (b"{", 400, "malformed"),
        (b"nonsense", 400, "malformed"),
        (b"\xff\xfe", 400, "malformed"),
        (b"[" * 100_000, 400, "malformed"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, 400, "malformed"),
        (b"[]", 422, "invalid"),
        (b"null", 422, "invalid"),
        (b'"text"', 422, "invalid"),
        (b'{"unheard": 1}', 422, "invalid"),
        (b'{"__class__": "os.system"}', 422, "invalid"),
    ],
)
async def test_invalid_bodies_are_refused(
    client: httpx.AsyncClient, run_id: int, path: str, body: bytes, content: bytes, status: int, kind: str
) -> None:
    """Malformed JSON is a 400, and JSON that does not validate is a 422."""
    problem(await client.post(path.format(run_id=run_id), content=content, headers=JSON), status, kind)


@pytest.mark.parametrize(
    ("context", "status"),
    [
        (b'{"amount": 1, "note": "\\u0000"}', 422),
        (b'{"amount": 1, "note": "\\ud800"}', 400),
        (b'{"amount": NaN}', 422),
        (b'{"amount": 1e400}', 422),
        (b'{"amount": 1' + b"0" * 4000 + b"}", 201),
        (b'{"amount": 1' + b"0" * 5000 + b"}", 400),
        (b'{"amount": 1, "amount": 2}', 201),
        (b'{"largeness": 1, "deep": ' + b'{"a":' * 80 + b"1" + b"}" * 81, 422),
        (b'{"' + b"k" * 201 + b'": 1, "amount": 1}', 422),
    ],
)
async def test_hostile_contexts_are_no_server_errors(client: httpx.AsyncClient, context: bytes, status: int) -> None:
    """A Context that no store can hold is refused, one that can be stored is accepted, and neither is a 5xx."""
    workflow = "aliased" if b"largeness" in context else "expense"
    answer = await client.post(f"/workflows/{workflow}/runs", content=b'{"context": %b}' % context, headers=JSON)
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize(
    ("path", "body", "pointer", "count"),
    [
        ("/workflows/expense/runs", b"{%b}", "#", 2_000),
        ("/workflows/expense/runs", b'{"context": {"amount": 1, "items": [%b]}}', "#/context", 4_000),
        ("/signals/hello", b'{"payload": {%b}}', "#", 2_000),
    ],
)
async def test_very_many_faults_are_counted(
    client: httpx.AsyncClient, path: str, body: bytes, pointer: str, count: int
) -> None:
    """Thousands of faults in a body are counted in one error, as listing them would block the event loop."""
    name = b"k" * 201 if path == "/signals/hello" else b""
    members = b",".join(b"{}" if b"[%b]" in body else b'"%b%d": 1' % (name, number) for number in range(2_000))
    told = problem(await client.post(path, content=body % members, headers=JSON), 422, "invalid")["errors"]
    assert told == [{"pointer": pointer, "code": "too_many_faults", "message": f"{count} values do not validate"}]


# ---- what is never told


async def test_the_text_of_an_exception_is_never_shown(client: httpx.AsyncClient, log: list[EventDict]) -> None:
    """What user code raises is logged with its text, and the response only says that something went wrong."""
    answer = await client.post("/workflows/broken/runs", json={})
    problem(answer, 500, "internal")
    assert SECRET not in answer.text
    assert "RuntimeError" not in answer.text
    (entry,) = [entry for entry in log if entry["event"] == "a request failed"]
    assert SECRET in entry["exception"]


async def test_the_text_of_an_exception_of_authorize_is_not_shown(
    guarded: Callable[[Authorize], httpx.AsyncClient],
) -> None:
    """What authorize raises is a 500 that does not quote it."""

    def breaks(*_: object) -> bool:
        raise RuntimeError(SECRET)

    client = guarded(breaks)
    for answer in (await client.get("/runs/1"), await client.post("/workflows/expense/runs", json={})):
        problem(answer, 500, "internal")
        assert SECRET not in answer.text


async def test_a_closed_engine_is_unavailable(connect: Connect, tmp_path: Any) -> None:
    """Requests to an engine that is not open are a 503 that does not tell where its store is."""
    engine = Engine(f"sqlite:///{tmp_path}/private-place.db", workflows=[Expense])
    client = connect(api(engine))
    for answer in (
        await client.get("/readyz"),
        await client.get("/runs"),
        await client.get("/runs/1"),
        await client.post("/workflows/expense/runs", json={"context": {"amount": 1}}),
        await client.post("/signals/x", json={}),
        await client.post("/events/x", json={}),
    ):
        problem(answer, 503, "unavailable")
        assert answer.headers["retry-after"] == "1"
        assert "private" not in answer.text
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    assert (await client.get("/openapi.json")).status_code == 200


async def test_an_answer_is_not_kept(client: httpx.AsyncClient, run_id: int) -> None:
    """No response about a run, nor a problem, may be cached."""
    for path in ("/runs", f"/runs/{run_id}", f"/runs/{run_id}/history", "/runs/4711", "/nothing"):
        assert (await client.get(path)).headers["cache-control"] == "no-store"


@pytest.mark.parametrize("app", [api, statezero], ids=lambda app: app.__name__)
async def test_a_client_that_leaves_in_the_middle_of_its_body_is_not_logged(
    engine: Engine, connect: Connect, run_id: int, log: list[EventDict], app: Callable[..., Any]
) -> None:
    """A client that leaves in the middle of its body changes nothing, and leads to no warning in the log."""
    said = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

    async def leaving(scope: Any, receive: Any, send: Any) -> None:
        async def heard() -> Any:
            return next(said)

        await app(engine, everyone)(scope, heard, send)

    path = f"/runs/{run_id}/cancel" if app is api else "/actions/review_claim"
    before, steps = await count_of(engine), len(await engine.history(run_id))
    assert (await connect(leaving).post(path, headers=JSON)).status_code == 400
    assert (await count_of(engine), len(await engine.history(run_id))) == (before, steps)
    assert [entry for entry in log if entry["log_level"] in ("warning", "error")] == []
