"""Actions for StateZero clients, in a FastAPI app: a reviewer's form is generated from the workflow.

python examples/16_statezero.py                      plays a reviewer, in this process
uvicorn --app-dir examples 16_statezero:app          serves the app, with aioflow.db

In a front end, `npx statezero sync-actions`, with `events: {type: "none"}` in its configuration, generates typed
functions from /statezero/actions-schema/, to be called as `expenseSubmitReview({workflow_run_id: 1, ...})`. The
generator authenticates with the sync token, users with tokens of their own.
"""

import asyncio
import os
from tempfile import TemporaryDirectory
from typing import Literal

import httpx
from fastapi import FastAPI, Request
from pydantic import BaseModel, Field

from aioflow import complete, engine, get_context, goto, statezero_action, step, workflow
from aioflow.http import statezero

SYNC_TOKEN = os.environ.get("SYNC_TOKEN", "for-generators")
REVIEWERS = {"Token of-rita": "rita"}  # in a real app: your sessions


class ReviewInput(BaseModel):
    reviewer_notes: str = Field(max_length=500)
    priority: Literal["low", "medium", "high"]


@workflow("expense_approval")
class ExpenseApproval:
    class Context(BaseModel):
        expense_id: int
        reviewer_notes: str = ""
        priority: str = "medium"
        status: str = "pending"

    @step(start=True)
    def start_review(self):
        return goto(self.await_review)

    @statezero_action(name="expense_submit_review", serializer=ReviewInput)
    @step()
    def await_review(self, reviewer_notes: str, priority: str):
        """Submit the review of an expense."""
        ctx = get_context(self.Context)
        ctx.reviewer_notes, ctx.priority, ctx.status = reviewer_notes, priority, "reviewed"
        return complete()


def authenticate(request: Request) -> str | None:
    return REVIEWERS.get(request.headers.get("authorization", ""))


app = FastAPI(lifespan=engine.lifespan)
app.mount(
    "/statezero",
    statezero(engine, authenticate, sync_token=SYNC_TOKEN, allow_origins=["https://app.example.com"]),
)


@app.post("/expenses/{expense_id}", status_code=201)
async def submit(expense_id: int) -> dict[str, int]:
    run = await engine.start(ExpenseApproval, expense_id=expense_id)
    return {"workflow_run_id": run.id}


async def main() -> None:
    with TemporaryDirectory() as folder:
        os.environ["AIOFLOW_DATABASE_URL"] = f"sqlite:///{folder}/expenses.db"
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://erp")
        async with app.router.lifespan_context(app), client:
            schema = await client.get("/statezero/actions-schema/", headers={"x-sync-token": SYNC_TOKEN})
            for name, found in schema.json()["actions"].items():
                print(f"{name}({', '.join(found['input_properties'])})")
            run_id = (await client.post("/expenses/17")).json()["workflow_run_id"]
            await engine.wait(run_id, until="parked")
            url, rita = "/statezero/actions/expense_submit_review/", {"authorization": "Token of-rita"}
            review = {"workflow_run_id": run_id, "reviewer_notes": "Approved", "priority": "urgent"}
            print("nobody:", (await client.post(url, json=review)).json()["detail"])
            wrong = await client.post(url, json=review, headers=rita)
            print("rita:", wrong.json()["type"], wrong.json()["detail"]["priority"][0]["message"])
            good = await client.post(url, json={**review, "priority": "high"}, headers=rita)
            print("rita:", good.json())
            again = await client.post(url, json={**review, "priority": "high"}, headers=rita)
            print("rita, again:", again.json()["detail"][0]["message"])
            print("the expense is", (await engine.result(run_id)).status)


if __name__ == "__main__":
    asyncio.run(main())
