"""The run API inside a FastAPI app: customers open tickets at an endpoint of the app, and follow them at aioflow's.

python examples/13_fastapi.py                        plays a customer, in this process
uvicorn --app-dir examples 13_fastapi:app            serves the app, with aioflow.db

The app's lifespan includes the engine's. Everything below /flows is aioflow's: runs, their history, long polls, a
stream, signals; /flows/openapi.json describes it. `authorize` is called for each request with the run as it is stored:
here customers see only their own tickets, and may answer and close them.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from tempfile import TemporaryDirectory
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel

from aioflow import WorkflowRun, complete, engine, get_context, on, step, wait, workflow
from aioflow.http import api

CUSTOMERS = {"Bearer token-of-ann": "ann", "Bearer token-of-bob": "bob"}  # in a real app: your sessions


class Answer(BaseModel):
    text: str


class Close(BaseModel):  # not a mere name, whose payload may set any field of the Context: the customer, say
    pass


@workflow("ticket")
class Ticket:
    class Context(BaseModel):
        customer: str
        question: str
        answers: list[str] = []

    @step(start=True)
    async def ask(self):
        return wait.any(
            on(Answer, then=self.answered),
            on(Close, then=self.close),
            timeout=timedelta(days=14),
            on_timeout=self.close,
        )

    @step
    async def answered(self, answer: Answer):
        get_context(self.Context).answers.append(answer.text)
        return await self.ask()

    @step
    async def close(self):
        return complete()


def customer_of(request: Request) -> str:
    customer = CUSTOMERS.get(request.headers.get("authorization", ""))
    if customer is None:
        raise HTTPException(401, headers={"WWW-Authenticate": "Bearer"})
    return customer


def authorize(request: Request, operation: str, run: WorkflowRun | None) -> bool:
    customer = customer_of(request)
    if run is None:
        return operation in ("describe", "list")  # no starts, no events, no signals without a run
    return run.data.get("customer") == customer


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    print("the app opens its own things", flush=True)
    async with engine.lifespan(app):
        yield
    print("the app closes its own things", flush=True)


app = FastAPI(lifespan=lifespan)
app.mount("/flows", api(engine, authorize))


class Question(BaseModel):
    question: str


@app.post("/tickets", status_code=201)
async def open_ticket(asked: Question, customer: Annotated[str, Depends(customer_of)]) -> dict[str, int]:
    run = await engine.start(Ticket, customer=customer, question=asked.question)
    return {"ticket": run.id}


async def main() -> None:
    with TemporaryDirectory() as folder:
        os.environ["AIOFLOW_DATABASE_URL"] = f"sqlite:///{folder}/tickets.db"
        transport = httpx.ASGITransport(app)
        ann, bob = (
            httpx.AsyncClient(transport=transport, base_url="http://support", headers={"authorization": token})
            for token in CUSTOMERS
        )
        async with app.router.lifespan_context(app), ann, bob:
            ticket = (await ann.post("/tickets", json={"question": "Where is my order?"})).json()["ticket"]
            url = f"/flows/runs/{ticket}"
            run = (await ann.get(f"{url}/wait", params={"until": "parked"})).json()
            print(f"ann's ticket is {run['status']} for {run['waiting_signal']}")
            print("bob gets", (await bob.get(url)).status_code)
            print("bob lists", (await bob.get("/flows/runs")).json()["runs"])
            sent = await ann.post(f"{url}/signals/Answer", json={"payload": {"text": "It was order 17."}})
            print("ann's answer is", sent.json()["state"])
            await ann.get(f"{url}/wait", params={"until": "parked"})
            await ann.post(f"{url}/signals/Close", json={})
            run = (await ann.get(f"{url}/wait")).json()
            print(f"ann's ticket is {run['status']}: {run['data']['answers']}")


if __name__ == "__main__":
    asyncio.run(main())
