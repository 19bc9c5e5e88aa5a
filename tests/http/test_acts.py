"""Actions over HTTP: which ones are open on a run, and calls of them."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from structlog.typing import EventDict

from aioflow import Engine, GiveUp, WorkflowRun, action, complete, on, step, wait, workflow
from aioflow.commands import Command
from aioflow.http import ActionRequest, api, statezero
from tests.engine.conftest import MakeEngine, moved_on
from tests.http.conftest import Connect, invalid, problem, refused
from tests.http.flows import SECRET, Claim

AUDITOR = {"x-role": "auditor"}


@pytest.fixture
async def run(engine: Engine) -> WorkflowRun[Any]:
    """A claim that waits for its review."""
    run = await engine.start(Claim)
    return await run.wait(5, until="parked")


async def act(client: httpx.AsyncClient, run: WorkflowRun[Any], name: str, **given: Any) -> httpx.Response:
    return await client.post(f"/runs/{run.id}/actions/{name}", json={"input": given})


async def test_open_actions_are_listed(client: httpx.AsyncClient, run: WorkflowRun[Any]) -> None:
    """A run's open actions are listed with their schemas, and none once it has ended."""
    (told,) = (await client.get(f"/runs/{run.id}/actions")).json()["actions"]
    schema = told.pop("input_schema")
    assert told == {
        "name": "review_claim",
        "step": "review",
        "title": "Review it",
        "description": "Say what is to be paid.",
    }
    assert (set(schema["properties"]), schema["required"]) == ({"approved", "amount", "day"}, ["approved", "amount"])
    assert (await act(client, run, "review_claim", approved=True, amount=5)).status_code == 200
    (told,) = (await client.get(f"/runs/{run.id}/actions")).json()["actions"]
    assert told["name"] == "audit"
    assert set(told["input_schema"]["properties"]) == {"note"}
    await client.post(f"/runs/{run.id}/cancel", json={})
    assert (await client.get(f"/runs/{run.id}/actions")).json() == {"actions": []}


async def test_a_call_returns_the_run_as_the_step_committed_it(
    client: httpx.AsyncClient, run: WorkflowRun[Any]
) -> None:
    """The step gets its input converted to its types, and the response is the run as the step committed it."""
    answer = await act(client, run, "review_claim", approved=True, amount="1.50", day="2030-05-01", more="ignored")
    assert answer.status_code == 200
    told = answer.json()
    assert (told["status"], told["current_step"], told["waiting_for"]) == ("waiting", "review", "action")
    assert told["data"] == {"amount": "1.50", "day": "2030-05-01", "notes": []}
    answer = await client.post(f"/runs/{run.id}/actions/audit", json={"input": {"note": "fine"}}, headers=AUDITOR)
    assert answer.status_code == 200, answer.text
    await run.wait(5)
    assert (run.status, run.data["notes"]) == ("completed", ["fine by auditor"])


async def test_invalid_input_is_refused(client: httpx.AsyncClient, run: WorkflowRun[Any]) -> None:
    """Invalid input is a 422 that points at each fault, and the run waits as before."""
    answer = await act(client, run, "review_claim", amount=-1, day="soon")
    told = {(each["pointer"], each["code"]) for each in problem(answer, 422, "invalid")["errors"]}
    assert told == {
        ("#/input/approved", "missing"),
        ("#/input/amount", "greater_than"),
        ("#/input/day", "date_from_datetime_parsing"),
    }
    answer = await client.post(f"/runs/{run.id}/actions/review_claim", json={"approved": True})
    assert problem(answer, 422, "invalid")["errors"][0]["pointer"] == "#/approved"
    await run.refresh()
    assert (run.status, run.row.seq) == ("waiting", 2)


async def test_an_action_that_is_not_open_is_a_conflict(client: httpx.AsyncClient, run: WorkflowRun[Any]) -> None:
    """An action that is not open is a 409, and one that the workflow does not have is a 404."""
    answer = await client.post(f"/runs/{run.id}/actions/audit", json={"input": {"note": "early"}}, headers=AUDITOR)
    told = problem(answer, 409, "action-not-open")
    assert (told["run_id"], told["run_status"]) == (run.id, "waiting")
    for name in ("begin", "pay", "Claim.review", "__init__", "nothing"):
        problem(await act(client, run, name), 404, "action-unknown")
    problem(await client.post("/runs/4711/actions/review_claim", json={}), 404, "run-not-found")


async def test_of_two_calls_one_runs_the_step(client: httpx.AsyncClient, run: WorkflowRun[Any]) -> None:
    """Of concurrent calls of an action one runs the step, and the others are conflicts."""
    calls = [act(client, run, "review_claim", approved=False, amount=1) for _ in range(5)]
    answers = await asyncio.gather(*calls)
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409, 409]
    await run.wait(5)
    assert run.error == "refused"


async def test_a_step_may_raise_its_answer(client: httpx.AsyncClient, run: WorkflowRun[Any]) -> None:
    """An HTTPException from a step is the response, with its status, headers and detail, and the run waits on."""
    answer = await act(client, run, "review_claim", approved=True, amount=409)
    assert (answer.status_code, answer.headers["x-limit"], answer.json()["detail"]) == (
        409,
        "400",
        "It is above your limit.",
    )
    assert (await act(client, run, "review_claim", approved=True, amount=14)).status_code == 200


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_steps_http_exception_is_the_response_from_any_process(
    store_url: Any, connect: Connect, elsewhere: bool, log: list[EventDict]
) -> None:
    """An HTTPException from a step, or a subclass, is the response from any process, and imitations are not."""

    class SoldOut(HTTPException):
        def __init__(self) -> None:
            super().__init__(410, "Sold out.\nFor good.")

    class Odd(HTTPException):
        def __init__(self) -> None:  # it has neither a valid status nor a detail
            self.status_code = SECRET  # type: ignore[assignment]

    class Posing(Exception):
        def __str__(self) -> str:
            return f"HTTP 409: {SECRET}"

    class Sly(GiveUp):
        """Its text is not what it was given."""

        __str__ = Posing.__str__

    answers: dict[str, tuple[Exception, int, str | None]] = {
        "class": (SoldOut(), 410, "Sold out.\nFor good."),
        "bare": (HTTPException(402), 402, None),
        "dict": (HTTPException(402, {"odd": 1}), 402, None),  # type: ignore[arg-type]
        "odd": (Odd(), 500, None),
        "posing": (Posing(), 500, None),
        "sly": (Sly("x"), 500, None),
    }

    @workflow("answers")
    class Flow:
        class Context(BaseModel):
            pass

        @action("answer_so")
        @step(start=True)
        async def answer_so(self, how: str) -> Command:
            raise answers[how][0]

    async with (
        Engine(store_url, workflows=[Flow]) as worker,
        Engine(store_url, workflows=[Flow], worker=False) as other,
    ):
        run = await (await worker.start(Flow)).wait(5, until="parked")
        client = connect(api(other if elsewhere else worker))
        for how in answers.keys() - ({"odd"} if not elsewhere else set()):  # here Starlette cannot handle it
            answer = await act(client, run, "answer_so", how=how)
            _, status, detail = answers[how]
            told = answer.json()
            assert (answer.status_code, told.get("detail") if status != 500 else None) == (status, detail), (how, told)
            assert SECRET not in answer.text
    warned = [entry for entry in log if entry["event"] == "action failed, is open again"]
    assert len(warned) == (3 if elsewhere else 2)


async def test_a_step_that_raises_is_not_quoted(
    client: httpx.AsyncClient, run: WorkflowRun[Any], log: list[EventDict]
) -> None:
    """What a step raises is in the log and not in the response, and the action can be called again."""
    answer = await act(client, run, "review_claim", approved=True, amount=13)
    assert problem(answer, 500, "action-failed")["run_id"] == run.id
    assert SECRET not in answer.text
    assert SECRET in str(log)
    assert (await act(client, run, "review_claim", approved=True, amount=14)).status_code == 200


async def test_the_actions_own_permissions_are_asked(client: httpx.AsyncClient, run: WorkflowRun[Any]) -> None:
    """The action's own permissions are asked, before the body is read and again about the validated input."""
    assert (await act(client, run, "review_claim", approved=True, amount=1)).status_code == 200
    path = f"/runs/{run.id}/actions/audit"
    problem(await client.post(path, content=b"{", headers={"content-type": "x/y"}), 403, "forbidden")
    problem(await client.post(path, json={"input": {"note": "x"}}, headers={"x-role": "clerk"}), 403, "forbidden")
    problem(await client.post(path, json={"input": {}}, headers=AUDITOR), 422, "invalid")
    problem(await client.post(path, json={"input": {"note": "hide it"}}, headers=AUDITOR), 403, "forbidden")
    assert (await client.post(path, json={"input": {"note": "x"}}, headers=AUDITOR)).status_code == 200


@pytest.mark.parametrize("user", [None, "ann"])
async def test_permissions_and_steps_can_ask_who_calls(connect: Connect, user: str | None) -> None:
    """``request.user`` is what authorize has put into the scope, and None without it."""
    seen: list[object] = []

    class Notes:
        def has_permission(self, request: Request, action_name: str) -> bool:
            seen.append(request.user)
            return True

    @workflow("asks-who-calls")
    class Flow:
        class Context(BaseModel):
            pass

        @action("tell_user", permissions=[Notes])
        @step(start=True)
        async def tell(self, request: Request) -> Command:
            seen.append(request.user)
            return complete()

    def authorize(request: Request, operation: str, run: object) -> bool:
        request.scope["user"] = user
        return True

    async with Engine("memory://", workflows=[Flow]) as engine:
        run = await (await engine.start(Flow)).wait(5, until="parked")
        client = connect(api(engine) if user is None else api(engine, authorize))
        assert (await act(client, run, "tell_user")).status_code == 200
        assert seen == [user, user]


async def test_a_client_calls_what_a_worker_runs(store_url: Any, connect: Connect) -> None:
    """A call from an engine without a worker waits for the worker's step, and returns its result, answer or failure."""
    async with (
        Engine(store_url, workflows=[Claim]) as worker,
        Engine(store_url, workflows=[Claim], worker=False) as other,
    ):
        run = await (await worker.start(Claim)).wait(5, until="parked")
        client = connect(api(other))
        problem(await act(client, run, "review_claim", approved=True, amount=13), 500, "action-failed")
        answer = await act(client, run, "review_claim", approved=True, amount=409)
        assert (answer.status_code, answer.json()["detail"]) == (409, "It is above your limit.")
        answer = await act(client, run, "review_claim", approved=False, amount=1)
        assert (answer.status_code, answer.json()["status"]) == (200, "failed")


async def test_a_run_without_its_code_has_no_actions(
    engine: Engine, run: WorkflowRun[Any], connect: Connect, store_url: Any
) -> None:
    """A process that does not know the run's workflow answers 404 about its actions."""
    async with Engine(store_url, workflows=[], worker=False) as stranger:
        client = connect(api(stranger))
        problem(await client.get(f"/runs/{run.id}/actions"), 404, "workflow-unknown")
        problem(await act(client, run, "review_claim", approved=True, amount=1), 404, "workflow-unknown")


def versions() -> tuple[Any, Any]:
    """A workflow in its old form, and with a required field that stored Contexts lack."""

    class Old(BaseModel):
        pass

    class New(BaseModel):
        name: str

    def flow(context: type[BaseModel]) -> Any:
        class Flow:
            Context = context

            @action("act_changed_http")
            @step(start=True)
            async def act(self) -> Command:
                return complete()

        return workflow("act-changed-http")(Flow)

    return flow(Old), flow(New)


async def test_a_run_that_its_code_cannot_read_fails_the_call(
    make_engine: MakeEngine, connect: Connect, log: list[EventDict]
) -> None:
    """A call fails if the code cannot read the run's Context, it is logged in a sentence, and the run waits on."""
    old, new = versions()
    async with make_engine(old) as engine:
        run = await engine.start(old)
    async with make_engine(new) as engine:
        told = problem(await act(connect(api(engine)), run, "act_changed_http"), 500, "action-failed")
        assert (told["run_id"], told["detail"]) == (run.id, "The run waits as before. The log of the server has more.")
        given = {"workflow_run_id": run.id}
        answer = await connect(statezero(engine)).post("/actions/act_changed_http/", json=given)
        refused(answer, 500, "RuntimeError", "Internal server error")
        answer = await connect(statezero(engine, debug=True)).post("/actions/act_changed_http/", json=given)
        assert "does not accept what run" in answer.json()["detail"]
        assert [row.kind for row in await engine.history(run.id)] == ["start"]
    warned = [each for each in log if each["log_level"] != "debug" and each.get("action") == "act_changed_http"]
    assert [(each["run_id"], each["workflow"]) for each in warned] == [(run.id, "act-changed-http")] * 3
    assert all("name: Field required" in each["error"] for each in warned)
    assert not [each for each in log if "exception" in each]


@workflow("act-crowded")
class Crowded:
    """Its action takes a list of numbers."""

    class Context(BaseModel):
        pass

    @action("act_crowded")
    @step(start=True)
    async def take(self, numbers: list[int]) -> Command:
        return complete()


async def test_very_many_faults_of_an_input_are_counted(make_engine: MakeEngine, connect: Connect) -> None:
    """Thousands of faults in an input are counted in one error, by both apps."""
    async with make_engine(Crowded) as engine:
        run = await engine.start(Crowded)
        numbers = ["x"] * 2_000
        told = problem(await act(connect(api(engine)), run, "act_crowded", numbers=numbers), 422, "invalid")
        message = "2000 values do not validate"
        assert told["errors"] == [{"pointer": "#/input", "code": "too_many_faults", "message": message}]
        given = {"workflow_run_id": run.id, "numbers": numbers}
        invalid(
            await connect(statezero(engine)).post("/actions/act_crowded/", json=given), non_field_errors=f"{message}."
        )


class Meddling:
    """A permission during whose first question the run goes on, and waits at the same action with another owner."""

    asked: list[str] = []  # noqa: RUF012 - emptied by the test
    move: Any = None

    async def has_action_permission(self, request: ActionRequest, action_name: str, data: dict[str, Any]) -> bool:
        assert request.run is not None
        self.asked.append(request.run.data["owner"])
        if len(self.asked) == 1:
            await self.move()
        return bool(request.run.data["owner"] == "ann")


@workflow("act-owned")
class Owned:
    """Its action is for the owner, which a signal changes."""

    class Context(BaseModel):
        owner: str

    @step(start=True)
    async def ask(self) -> Command:
        return wait.any(on(self.take), on("owner", then=self.ask))

    @action("act_owned", permissions=[Meddling])
    async def take(self) -> Command:
        return complete()


@pytest.mark.parametrize("next_owner", ["ann", "bob"])
@pytest.mark.parametrize("app", [api, statezero], ids=lambda app: app.__name__)
async def test_permissions_are_asked_again_if_the_run_has_gone_on(
    make_engine: MakeEngine, connect: Connect, app: Any, next_owner: str
) -> None:
    """If the run has gone on since its permissions were asked, they are asked again, and that answer counts."""

    async def everyone(*_: object) -> bool:
        return True

    async def move() -> None:
        await engine.signal("owner", {"owner": next_owner}, run_id=run.id)
        await moved_on(run)
        await run.wait(5, until="parked")

    async with make_engine(Owned) as engine:
        run = await (await engine.start(Owned, owner="ann")).wait(5, until="parked")
        Meddling.asked, Meddling.move = [], staticmethod(move)
        client = connect(app(engine, everyone))
        if app is api:
            answer = await act(client, run, "act_owned")
        else:
            answer = await client.post("/actions/act_owned/", json={"workflow_run_id": run.id})
        assert answer.status_code == (200 if next_owner == "ann" else 403)
        assert Meddling.asked == ["ann", next_owner]
        await run.refresh()
        assert run.status == ("completed" if next_owner == "ann" else "waiting")
