"""A web app in which a signup waits for days: POST /signup starts a run, the link in the mail sends it a signal.

python examples/06_signup.py                      plays one signup, in this process
uvicorn --app-dir examples 06_signup:app          serves the app, with aioflow.db

A user who does not click is reminded after a day; after three more days the signup expires, however often the server
was restarted meanwhile. tests/test_examples_signup.py tests these days in milliseconds, with the fixture `flow`.
"""

import asyncio
import hmac
import os
from datetime import timedelta
from tempfile import TemporaryDirectory
from urllib.parse import urlencode

import httpx
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from aioflow import StartOptions, complete, engine, errors, fail, get_context, step, wait, workflow

REMIND_AFTER = timedelta(days=1)
EXPIRE_AFTER = timedelta(days=3)
SECRET = os.environ.get("SIGNUP_SECRET", "change me").encode()


def token_of(email: str) -> str:
    return hmac.digest(SECRET, email.encode(), "sha256").hex()


def send_mail(email: str, text: str) -> None:
    print(f"To {email}: {text}")


@workflow("signup")
class Signup:
    class Context(BaseModel):
        email: str

    @step(start=True)
    def ask(self):  # a sync step: sending mail may block, so it runs in a thread
        email = get_context(self.Context).email
        send_mail(email, f"please confirm: /confirm?{urlencode({'email': email, 'token': token_of(email)})}")
        return wait.for_signal("confirmed", timeout=REMIND_AFTER, on_timeout=self.remind, then=self.welcome)

    @step
    def remind(self):
        send_mail(get_context(self.Context).email, "you have not confirmed yet")
        return wait.for_signal("confirmed", timeout=EXPIRE_AFTER, on_timeout=self.expire, then=self.welcome)

    @step
    def welcome(self):
        send_mail(get_context(self.Context).email, "welcome!")
        return complete()

    @step
    async def expire(self):
        return fail("not confirmed in time")


app = FastAPI(lifespan=engine.lifespan)


@app.post("/signup", status_code=202)
async def signup(form: Signup.Context) -> dict[str, object]:
    # The key makes it one run per address, however often the form is sent; a new one only after one that expired.
    run = await engine.start(Signup, StartOptions(key=form.email, reuse="failed"), email=form.email)
    return {"created": run.created, "status": run.status}


@app.get("/signup/{email}")
async def state(email: str) -> dict[str, object]:
    run = await engine.find(Signup, email)
    return {"status": run.status, "step": run.current_step, "error": run.error}


@app.get("/confirm")
async def confirm(email: str, token: str) -> dict[str, object]:
    if not hmac.compare_digest(token, token_of(email)):
        raise HTTPException(403, "not the link that we sent")
    receipt = await engine.signal("confirmed", workflow=Signup, key=email)
    return {"signal": receipt.state}


@app.exception_handler(errors.RunError)
async def no_such_run(_: Request, error: errors.RunError) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 404 if isinstance(error, errors.RunNotFound) else 410)


async def main() -> None:
    with TemporaryDirectory() as folder:
        os.environ["AIOFLOW_DATABASE_URL"] = f"sqlite:///{folder}/signup.db"
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://signup")
        async with app.router.lifespan_context(app), client:  # a server such as uvicorn does this
            email = "ann@example.com"
            print((await client.post("/signup", json={"email": email})).json())
            await (await engine.find(Signup, email)).wait(until="parked")
            print((await client.get(f"/signup/{email}")).json())
            print((await client.get("/confirm", params={"email": email, "token": token_of(email)})).json())
            await (await engine.find(Signup, email)).wait()
            print((await client.get(f"/signup/{email}")).json())


if __name__ == "__main__":
    asyncio.run(main())
