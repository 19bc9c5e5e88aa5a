"""Error handling and retries: the workflow's policy, a step's own, and errors that a step handles itself."""

# Steps are written as in the guide, without annotations.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import Retry, complete, get_context, get_run, goto, step, workflow
from aioflow.testing import TimeMachine


@dataclass
class Response:
    status_code: int
    body: dict[str, Any] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        return self.body


@dataclass
class Service:
    """The outside world: an endpoint that answers so many calls with an error before it works."""

    failures: dict[str, int] = field(default_factory=dict)
    called_at: dict[str, list[datetime]] = field(default_factory=dict)

    def call(self, endpoint: str) -> Response:
        called_at = self.called_at.setdefault(endpoint, [])
        called_at.append(get_run().now)
        if len(called_at) <= self.failures.get(endpoint, 0):
            return Response(503)
        return Response(200, {"from": endpoint})


service = Service()


@pytest.fixture(autouse=True)
def _new_service() -> None:
    service.failures, service.called_at = {}, {}


def make_api_call(endpoint: str) -> Response:
    return service.call(endpoint)


@workflow(
    "api_integration",
    default_retry=Retry(
        max_attempts=5,
        base_delay=timedelta(seconds=2),
        max_delay=timedelta(minutes=5),
        backoff_factor=2.0,
    ),
)
class ApiIntegrationWorkflow:
    class Context(BaseModel):
        endpoint: str
        calls: int = 0
        api_response: dict[str, Any] = {}
        processed: bool = False

    @step(start=True)
    def prepare(self):
        get_context(self.Context).calls += 1
        if make_api_call("login").status_code != 200:
            raise ConnectionError("no login")
        return goto(self.call_external_api)

    @step(retry=Retry(max_attempts=10, base_delay=timedelta(seconds=1)))
    def call_external_api(self):
        ctx = get_context(self.Context)
        response = make_api_call(ctx.endpoint)
        if response.status_code != 200:
            raise Exception(f"API call failed: {response.status_code}")
        ctx.api_response = response.json()
        return goto(self.process_response)

    @step()
    def process_response(self):
        return complete(processed=True)


def seconds_between(instants: list[datetime]) -> list[float]:
    """The seconds between calls."""
    return [(b - a).total_seconds() for a, b in pairwise(instants)]


async def test_workflow_policy_backs_off(flow: TimeMachine) -> None:
    """A step without a policy has the workflow's attempts, and each delay is twice the one before."""
    service.failures = {"login": 100}
    run = await flow.start(ApiIntegrationWorkflow, endpoint="/items")
    await run.wait()
    assert (run.status, run.current_step) == ("failed", "prepare")
    assert run.error == "ConnectionError: no login"
    assert seconds_between(service.called_at["login"]) == [2, 4, 8, 16]
    assert run.ended_at == run.created_at + timedelta(seconds=30)


async def test_changes_of_failed_attempts_are_discarded(flow: TimeMachine) -> None:
    """Each attempt begins with the Context of the first one, so that only the successful one counts."""
    service.failures = {"login": 3}
    run = await flow.start(ApiIntegrationWorkflow, endpoint="/items")
    context = await run.result()
    assert (context.calls, context.processed) == (1, True)
    assert context.api_response == {"from": "/items"}


async def test_a_run_that_will_be_retried(flow: TimeMachine) -> None:
    """Between two attempts the run waits, and shows which attempt comes when."""
    service.failures = {"login": 100}
    run = await flow.start(ApiIntegrationWorkflow, endpoint="/items")
    await flow.advance(seconds=3)
    await run.refresh()
    assert (run.status, run.waiting_for, run.attempt) == ("waiting", "retry", 3)
    assert run.wake_at == run.created_at + timedelta(seconds=6)


async def test_step_policy_overrides_the_workflows(flow: TimeMachine) -> None:
    """A step's own policy gives it ten attempts, with delays of up to five minutes."""
    service.failures = {"/items": 9}
    run = await flow.start(ApiIntegrationWorkflow, endpoint="/items")
    assert (await run.result()).processed
    assert seconds_between(service.called_at["/items"]) == [1, 2, 4, 8, 16, 32, 64, 128, 256]


async def test_step_policy_has_an_end(flow: TimeMachine) -> None:
    """After the tenth attempt the run has failed at that step, with its last error."""
    service.failures = {"/items": 10}
    run = await flow.start(ApiIntegrationWorkflow, endpoint="/items")
    await run.wait()
    assert (run.status, run.current_step) == ("failed", "call_external_api")
    assert (await flow.history(run.id))[-1].attempt == 10
    assert run.error == "Exception: API call failed: 503"
    assert run.context.api_response == {}


class SpecificException(Exception):
    """An error that the step expects."""


@workflow("risky")
class RiskyWorkflow:
    class Context(BaseModel):
        raises: str = ""
        operation_result: str = ""
        error_details: str = ""
        recovered: bool = False

    @step(start=True)
    def risky_operation(self):
        ctx = get_context(self.Context)
        try:
            ctx.operation_result = perform_operation(ctx.raises)
            return goto(self.success_step)
        except SpecificException as e:
            ctx.error_details = str(e)
            return goto(self.error_recovery_step)

    @step()
    def success_step(self):
        return complete()

    @step()
    def error_recovery_step(self):
        return complete(recovered=True)


def perform_operation(raises: str) -> str:
    if raises == "expected":
        raise SpecificException("out of paper")
    if raises:
        raise RuntimeError(raises)
    return "printed"


async def test_operation_succeeds(flow: TimeMachine) -> None:
    """Without an error the run goes the way of success."""
    run = await flow.start(RiskyWorkflow)
    context = await run.result()
    assert (context.operation_result, context.recovered) == ("printed", False)


async def test_expected_error_leads_to_recovery(flow: TimeMachine) -> None:
    """An error that the step catches is not retried: its details are kept, and another step follows."""
    run = await flow.start(RiskyWorkflow, raises="expected")
    context = await run.result()
    assert (context.error_details, context.recovered) == ("out of paper", True)
    assert [(row.kind, row.step) for row in await flow.history(run.id)] == [
        ("start", "risky_operation"),
        ("goto", "risky_operation"),
        ("complete", "error_recovery_step"),
    ]


async def test_other_errors_are_retried(flow: TimeMachine) -> None:
    """An error that the step does not catch is retried, with three attempts by default."""
    run = await flow.start(RiskyWorkflow, raises="on fire")
    await run.wait()
    assert (run.status, run.error) == ("failed", "RuntimeError: on fire")
    assert not run.context.recovered
    assert [row.kind for row in await flow.history(run.id)] == ["start", "retry", "wake", "retry", "wake", "fail"]
