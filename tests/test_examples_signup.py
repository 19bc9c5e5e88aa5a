"""examples/06_signup.py over HTTP, with its days in virtual time."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType

import httpx
import pytest

from aioflow.testing import TimeMachine

EXAMPLE = Path(__file__).parent.parent / "examples" / "06_signup.py"
ANN = "ann+news@example.com"


def load() -> ModuleType:
    """Import the example, whose file name is not a valid module name."""
    spec = importlib.util.spec_from_file_location("signup_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["signup_example"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example = load()


@pytest.fixture
async def client(flow: TimeMachine) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the example's app, served by the test's engine."""
    transport = httpx.ASGITransport(example.app)
    async with (
        example.app.router.lifespan_context(example.app),
        httpx.AsyncClient(transport=transport, base_url="http://signup") as client,
    ):
        yield client


async def sign_up(client: httpx.AsyncClient) -> dict[str, object]:
    answer = await client.post("/signup", json={"email": ANN})
    assert answer.status_code == 202
    return answer.json()


async def state(client: httpx.AsyncClient) -> dict[str, object]:
    return (await client.get(f"/signup/{ANN}")).json()


def mailed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The mails to Ann since the last call."""
    return re.findall(rf"^To {re.escape(ANN)}: (.*)$", capsys.readouterr().out, re.MULTILINE)


async def test_a_click_after_the_reminder(
    flow: TimeMachine, client: httpx.AsyncClient, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reminder is mailed after exactly a day; the link in the first mail still confirms, but only once."""
    assert await sign_up(client) == {"created": True, "status": "running"}
    await flow.advance(hours=23, minutes=59)
    (mail,) = mailed(capsys)
    await flow.advance(minutes=1)
    assert mailed(capsys) == ["you have not confirmed yet"]

    link = mail.removeprefix("please confirm: ")
    assert (await client.get(link)).json() == {"signal": "delivered"}
    await flow.settle()
    assert mailed(capsys) == ["welcome!"]
    assert await state(client) == {"status": "completed", "step": "welcome", "error": None}

    assert (await client.get(link)).status_code == 410
    assert await sign_up(client) == {"created": False, "status": "completed"}


async def test_without_a_click_the_signup_expires(
    flow: TimeMachine, client: httpx.AsyncClient, capsys: pytest.CaptureFixture[str]
) -> None:
    """After four days the signup has expired: the link no longer works, and the address may sign up again."""
    await sign_up(client)
    began = flow.now
    run = await flow.find(example.Signup, ANN)
    await run.wait()
    assert run.ended_at == flow.now == began + example.REMIND_AFTER + example.EXPIRE_AFTER
    assert await state(client) == {"status": "failed", "step": "expire", "error": "not confirmed in time"}

    link = mailed(capsys)[0].removeprefix("please confirm: ")
    late = await client.get(link)
    assert (late.status_code, late.json()["detail"]) == (
        410,
        f"Run {run.id} of workflow 'signup' has ended (failed): it takes no signals.",
    )
    assert await sign_up(client) == {"created": True, "status": "running"}
    assert (await client.get(link)).json()["signal"] in {"delivered", "buffered"}
    assert (await (await flow.find(example.Signup, ANN)).wait()).status == "completed"


async def test_the_same_address_twice_is_one_signup(
    flow: TimeMachine, client: httpx.AsyncClient, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sending the form again while the run waits mails nothing."""
    await sign_up(client)
    await flow.settle()
    assert await sign_up(client) == {"created": False, "status": "waiting"}
    await flow.settle()
    assert len(mailed(capsys)) == 1


async def test_a_link_that_was_never_sent(flow: TimeMachine, client: httpx.AsyncClient) -> None:
    """A wrong token is refused with 403; a valid one for an address that never signed up is not found."""
    assert (await client.get("/confirm", params={"email": ANN, "token": "0" * 64})).status_code == 403
    never = await client.get("/confirm", params={"email": ANN, "token": example.token_of(ANN)})
    assert never.status_code == 404
    assert (await client.get(f"/signup/{ANN}")).status_code == 404
