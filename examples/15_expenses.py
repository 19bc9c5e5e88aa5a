"""Steps as actions: an expense can be reviewed by a manager for a while, then only a director can decide it.

python examples/15_expenses.py

An `@action` runs when it is called, in this process or over HTTP, with the caller's input; as an arm of a wait,
`on(self.review)`, it can be called until the wait's timeout. An exception of the step is raised to the caller, and the
run waits as before. If two callers call it at once, one runs the step. `statezero()` serves every action over HTTP.
"""

import asyncio
from datetime import timedelta
from decimal import Decimal
from tempfile import TemporaryDirectory
from typing import Annotated

import httpx
from pydantic import BaseModel, Field
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount

from aioflow import Engine, action, complete, errors, get_context, goto, on, step, wait, workflow
from aioflow.http import statezero

PATIENCE = timedelta(seconds=0.5)
USERS = {"Token of-meg": "meg, a manager", "Token of-dora": "dora, a director"}  # in a real app: your sessions


class Directors:
    """A permission: who may call an action; this one depends on the user alone."""

    def has_permission(self, request: Request, action_name: str) -> bool:
        return "director" in request.user


@workflow("travel-expense")
class Expense:
    class Context(BaseModel):
        title: str
        amount: Decimal
        verdict: str = "open"

    @step(start=True)
    async def ask(self):
        return wait.any(on(self.review), timeout=PATIENCE, on_timeout=self.escalate)

    @action("review_expense")
    async def review(self, approved: bool, note: Annotated[str, Field(max_length=200)] = ""):
        """Approve an expense, or refuse it with a note."""
        if not approved and not note:
            raise ValueError("say why")
        get_context(self.Context).verdict = f"{'approved' if approved else 'refused'}. {note}"
        return complete()

    @step
    async def escalate(self):
        return goto(self.decide)  # a goto to an action parks the run there

    @action("decide_expense", permissions=[Directors])
    async def decide(self, approved: bool, request: Request):
        """Decide an expense that nobody has reviewed."""
        get_context(self.Context).verdict = f"{'approved' if approved else 'refused'} by {request.user}"
        return complete()


async def in_process(engine: Engine) -> None:
    run = await engine.start(Expense, title="train", amount=Decimal("80.50"))
    await run.wait(until="parked")
    (review,) = await engine.open_actions(run.id)
    print(f"train: {review.name} takes {', '.join(review.schema['properties'])}")
    try:
        await engine.act(Expense.review, run.id, approved=False)
    except ValueError as error:
        await run.refresh()
        print(f"train: {error}; it is {run.status} still")
    calls = [engine.act(Expense.review, run.id, approved=True, note=f"click {n}") for n in (1, 2)]
    for told in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(told, errors.ActionNotOpen):
            print("train: the second click is too late")
        else:
            print(f"train: {told.status}, {told.context.verdict}")


async def over_http(engine: Engine) -> None:
    app = Starlette(
        routes=[Mount("/statezero", statezero(engine, authenticate=lambda r: USERS.get(r.headers["authorization"])))]
    )
    meg, dora = (
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://erp/statezero/actions",
            headers={"authorization": token},
        )
        for token in USERS
    )
    run = await engine.start(Expense, title="yacht", amount=Decimal(9000000))
    async with meg, dora:
        async for transition in engine.watch(run.id):
            if transition.step == "escalate" and transition.kind == "goto":
                break  # now the run waits for the director
        given = {"workflow_run_id": run.id, "approved": True}
        late = await meg.post("/review_expense/", json=given)
        print(f"yacht, meg reviews: {late.status_code} {late.json()['detail'][0]['message']}")
        denied = await meg.post("/decide_expense/", json=given)
        print(f"yacht, meg decides: {denied.status_code} {denied.json()['detail']}")
        done = await dora.post("/decide_expense/", json={**given, "approved": False})
        print(f"yacht, dora decides: {done.status_code} {done.json()['workflow_status']}")
    print(f"yacht: {(await run.result()).verdict}")


async def main() -> None:
    with TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/expenses.db") as engine:
            await in_process(engine)
            await over_http(engine)


if __name__ == "__main__":
    asyncio.run(main())
