"""The action endpoints under uvicorn, in a process of its own: in FastAPI, called concurrently, and shut down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aioflow.http.exits import GRACE
from tests.http.test_serving import EXAMPLES, connected, ended, serving
from tests.programs import read_until
from tests.support import wait_until

#: A server that has only actions, one of which never ends.
ALONE = """
import asyncio
from datetime import timedelta
from pydantic import BaseModel
from aioflow import Engine, action, complete, step, workflow
from aioflow.http import statezero

@workflow("endless")
class Endless:
    class Context(BaseModel):
        pass

    @action("endless_act")
    @step(start=True)
    async def act(self):
        print("acting", flush=True)
        await asyncio.Event().wait()

engine = Engine("sqlite:///acts.db", shutdown_timeout=timedelta(seconds=1))
app = statezero(engine)

async def begin(request):
    from starlette.responses import JSONResponse
    return JSONResponse((await engine.start(Endless)).id)

app.add_route("/begin", begin, methods=["POST"])
"""
RITA = {"authorization": "Token of-rita"}
CALL = "/statezero/actions/expense_submit_review/"


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """The URL of the StateZero example, whose server must shut down quickly at the end."""
    async with serving(tmp_path, "--app-dir", EXAMPLES, "16_statezero:app") as (server, url):
        yield url
        seconds, _, complaints = await ended(server)
    assert seconds < 2
    assert "Application shutdown complete" in complaints
    assert "Traceback" not in complaints


async def test_uvicorn_serves_actions_in_fastapi(url: str) -> None:
    """Of concurrent calls one runs the step, an anonymous one is a 401, and schema and preflights are served."""
    async with connected(url, headers=RITA) as rita, connected(url) as nobody:
        run_id = (await rita.post("/expenses/17")).json()["workflow_run_id"]
        given = {"workflow_run_id": run_id, "reviewer_notes": "Approved", "priority": "high"}
        assert (await nobody.post(CALL, json=given)).status_code == 401
        clicks: list[int] = []

        async def clicked() -> bool:  # the first ones may come before the run waits
            answers = await asyncio.gather(*[rita.post(CALL, json=given) for _ in range(5)])
            clicks.extend(answer.status_code for answer in answers)
            return 200 in clicks

        await wait_until(clicked)
        assert (clicks.count(200), set(clicks)) == (1, {200, 400})
        schema = await nobody.get("/statezero/actions-schema/", headers={"x-sync-token": "for-generators"})
        assert list(schema.json()["actions"]) == ["expense_submit_review"]
        preflight = {"origin": "https://app.example.com", "access-control-request-method": "POST"}
        allowed = await nobody.options(CALL, headers=preflight)
        assert allowed.headers["access-control-allow-origin"] == "https://app.example.com"


async def test_a_server_ends_while_an_action_runs(tmp_path: Path) -> None:
    """On shutdown a call gets some seconds, and then a 503."""
    (tmp_path / "endless.py").write_text(ALONE)
    async with serving(tmp_path, "endless:app") as (server, url), connected(url) as client:
        run_id = (await client.post("/begin")).json()
        call = asyncio.create_task(client.post("/actions/endless_act/", json={"workflow_run_id": run_id}))
        await asyncio.to_thread(read_until, server.stdout, "acting")
        seconds, _, complaints = await ended(server)
        answer = await call
    assert (answer.status_code, answer.json()["type"]) == (503, "ServiceUnavailable")
    assert GRACE <= seconds < GRACE + 8
    assert "Application shutdown complete" in complaints
