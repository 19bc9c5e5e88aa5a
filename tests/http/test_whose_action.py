"""Which action a call refers to: the one of that name in the code of its run, whose permissions are asked, too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from pydantic import BaseModel
from starlette.requests import Request

from aioflow import Engine, action, complete, step, workflow
from aioflow.commands import Command
from aioflow.http import statezero
from tests.http.conftest import Connect, invalid, parked, refused


class Nobody:
    """Denies everybody."""

    def has_permission(self, request: Request, action_name: str) -> bool:
        return False


class OnlySmall:
    """Allows amounts below 10."""

    asked: list[dict[str, Any]] = []  # noqa: RUF012 - emptied by the test

    def has_action_permission(self, request: Request, action_name: str, data: dict[str, Any]) -> bool:
        self.asked.append(data)
        return bool(data["amount"] < 10)


@workflow("whose-open")
class Open:
    """Its action ``whose_review`` has no permissions."""

    class Context(BaseModel):
        pass

    @action("whose_review")
    @step(start=True)
    async def review(self) -> Command:
        return complete()


@workflow("whose-closed")
class Closed:
    """Its step has the name of another workflow's action, and its action denies everybody."""

    class Context(BaseModel):
        pass

    @action("whose_closed", permissions=[Nobody])
    @step(start=True)
    async def whose_review(self) -> Command:
        return complete()


@workflow("whose-renamed", version="1")
class Before:
    """Its action has the name of its step."""

    class Context(BaseModel):
        pass

    @action("whose_renamed")
    @step(start=True)
    async def whose_renamed(self) -> Command:
        return complete()


@workflow("whose-renamed", version="2")
class After:
    """The same step, whose action has another name and denies everybody."""

    class Context(BaseModel):
        pass

    @action("whose_renamed_well", permissions=[Nobody])
    @step(start=True)
    async def whose_renamed(self) -> Command:
        return complete()


@workflow("whose-loose", version="1")
class Strict:
    """Its action denies everybody."""

    class Context(BaseModel):
        pass

    @action("whose_strict", permissions=[Nobody])
    @step(start=True)
    async def first_name(self) -> Command:
        return complete()


@workflow("whose-loose", version="2")
class Loose:
    """The same action, without permissions."""

    class Context(BaseModel):
        pass

    @action("whose_strict")
    @step(start=True)
    async def second_name(self) -> Command:
        return complete()


@workflow("whose-amount", version="1")
class Number:
    """Takes small integers."""

    class Context(BaseModel):
        pass

    @action("whose_amount", permissions=[OnlySmall])
    @step(start=True)
    async def number(self, amount: int) -> Command:
        return complete()


@workflow("whose-amount", version="2")
class Text:
    """Takes a string."""

    class Context(BaseModel):
        pass

    @action("whose_amount")
    @step(start=True)
    async def text(self, amount: str) -> Command:
        return complete()


FLOWS = [Open, Closed, Before, After, Strict, Loose, Number, Text]


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    """An open engine with the workflows of these tests."""
    async with Engine("memory://", workflows=FLOWS) as engine:
        yield engine


@pytest.fixture
def client(engine: Engine, connect: Connect) -> httpx.AsyncClient:
    """A client on this machine."""
    return connect(statezero(engine))


@pytest.mark.parametrize(("flow", "name"), [(Closed, "whose_review"), (After, "whose_renamed")])
async def test_an_action_is_called_by_its_name_and_not_by_a_step_s(
    engine: Engine, client: httpx.AsyncClient, flow: type, name: str
) -> None:
    """A call by an action's name does not reach a step of that name in another workflow or version."""
    run = await parked(engine, flow)
    answer = await client.post(f"/actions/{name}/", json={"workflow_run_id": run.id})
    message = f"The workflow is not waiting for action '{name}'. Current status: waiting"
    refused(answer, 400, "ValidationError", [{"message": message, "code": "validation_error"}])
    await run.refresh()
    assert run.status == "waiting"


async def test_the_permissions_of_the_run_s_own_version_are_asked(engine: Engine, client: httpx.AsyncClient) -> None:
    """The permissions of the run's own version are asked, even if the newest version allows the call."""
    for flow, status in ((Strict, 403), (Loose, 200)):
        run = await parked(engine, flow)
        answer = await client.post("/actions/whose_strict/", json={"workflow_run_id": run.id})
        assert answer.status_code == status
        if flow is Strict:
            refused(answer, 403, "PermissionDenied", "Permission denied")
        else:
            assert answer.json()["message"] == "Step second_name executed"


async def test_permissions_get_the_input_as_the_runs_version_validates_it(
    engine: Engine, client: httpx.AsyncClient
) -> None:
    """The permissions of an older version are asked about the input as that version validates it."""
    run = await parked(engine, Number)
    given = {"workflow_run_id": run.id, "amount": "12"}
    refused(await client.post("/actions/whose_amount/", json=given), 403, "PermissionDenied", "Permission denied")
    invalid(
        await client.post("/actions/whose_amount/", json={**given, "amount": "x"}),
        amount="Input should be a valid integer, unable to parse string as an integer",
    )
    answer = await client.post("/actions/whose_amount/", json={**given, "amount": "3"})
    assert (answer.status_code, answer.json()["message"]) == (200, "Step number executed")
    assert OnlySmall.asked == [{"workflow_run_id": run.id, "amount": amount} for amount in (12, 3)]
