"""Quick start, basic workflow structure: a Context, ``create_context``, one step, a run; on a real file."""

# Steps are written as in the guide, without annotations.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from aioflow import Engine, complete, get_context, step, workflow

OUTBOX: list[int] = []


@workflow("user_onboarding")
class UserOnboardingWorkflow:
    class Context(BaseModel):
        user_id: int
        email_sent: bool = False
        profile_completed: bool = False

    @classmethod
    def create_context(cls, user_id: int) -> Context:
        return cls.Context(user_id=user_id)

    @step(start=True)
    def send_welcome_email(self):
        ctx = get_context(self.Context)
        OUTBOX.append(ctx.user_id)
        ctx.email_sent = True
        return complete()


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    """An engine as an application has it, on a file of its own."""
    OUTBOX.clear()
    async with Engine(f"sqlite:///{tmp_path}/app.db") as engine:
        yield engine


async def test_started_by_name(engine: Engine) -> None:
    """A run is started by the workflow's name with create_context's arguments, sends the e-mail and completes."""
    run = await engine.start("user_onboarding", user_id=123)
    await run.wait(10)
    assert run.status == "completed"
    assert run.data == {"user_id": 123, "email_sent": True, "profile_completed": False}
    assert OUTBOX == [123]


async def test_started_by_its_class(engine: Engine) -> None:
    """A run that is started by its class has a typed result."""
    run = await engine.start(UserOnboardingWorkflow, user_id=7)
    context = await run.result(10)
    assert context == UserOnboardingWorkflow.Context(user_id=7, email_sent=True)


async def test_only_what_create_context_takes(engine: Engine) -> None:
    """An argument that create_context does not take starts nothing, though the Context declares it."""
    with pytest.raises(TypeError, match="email_sent"):
        await engine.start("user_onboarding", user_id=123, email_sent=True)
    assert await engine.count() == 0
    assert OUTBOX == []


async def test_a_run_is_still_there_after_a_restart(engine: Engine, tmp_path: Path) -> None:
    """After a restart another engine finds the run and its result in the file."""
    run = await engine.start("user_onboarding", user_id=123)
    await run.wait(10)
    async with Engine(f"sqlite:///{tmp_path}/app.db", worker=False) as other:
        again = await other.get(run.id)
    assert again == run
    assert again.status == "completed"
