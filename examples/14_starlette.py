"""The run API inside a Starlette app, for operators on this machine, who start reports and follow them.

python examples/14_starlette.py                      plays an operator, in this process
uvicorn --app-dir examples 14_starlette:app          serves the app, with aioflow.db

Without `authorize`, aioflow answers only clients on this machine, and says so once in the log. While it is served:

url=localhost:8000/ops/flows
curl -H 'content-type: application/json' -d '{"context": {"month": "2030-01"}}' $url/workflows/report/runs
curl -N $url/runs/1/stream
"""

import asyncio
import os
from datetime import timedelta
from tempfile import TemporaryDirectory

import httpx
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from aioflow import complete, engine, get_context, goto, sleep, step, workflow
from aioflow.http import api


@workflow("report")
class Report:
    class Context(BaseModel):
        month: str
        pages: int = 0

    @step(start=True)
    async def collect(self):
        return sleep(timedelta(seconds=0.1), then=self.write)

    @step
    async def write(self):
        context = get_context(self.Context)
        context.pages += 1
        return goto(self.write, progress=context.pages / 3) if context.pages < 3 else complete()


async def home(_: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{await engine.count(workflow=Report)} reports\n")


app = Starlette(
    routes=[Route("/", home), Mount("/ops", routes=[Mount("/flows", app=api(engine))])],
    lifespan=engine.lifespan,
)


async def main() -> None:
    with TemporaryDirectory() as folder:
        os.environ["AIOFLOW_DATABASE_URL"] = f"sqlite:///{folder}/reports.db"
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")
        async with app.router.lifespan_context(app), client:
            started = await client.post("/ops/flows/workflows/report/runs", json={"context": {"month": "2030-01"}})
            url = started.headers["location"]
            print("started", url)
            for line in (await client.get(f"{url}/stream")).text.splitlines():
                if line.startswith(("id: ", "event: end")):
                    print(line)
            print((await client.get(f"{url}")).json()["data"])
            print((await client.get("/")).text, end="")
        elsewhere = httpx.ASGITransport(app, client=("203.0.113.7", 4711))
        async with httpx.AsyncClient(transport=elsewhere, base_url="http://localhost") as stranger:
            print((await stranger.get("/ops/flows/runs")).json()["title"])


if __name__ == "__main__":
    asyncio.run(main())
