"""The endpoints that list a run's open actions and call one."""

from __future__ import annotations

from functools import partial
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from aioflow.errors import ActionFailed, ActionInputInvalid, WorkflowUnknown
from aioflow.http import bodies
from aioflow.http.access import Access
from aioflow.http.chosen import chosen_by
from aioflow.http.exits import Exits
from aioflow.http.identity import ActionRequest
from aioflow.http.permissions import permits
from aioflow.http.problems import Problem, invalid
from aioflow.http.views import ActionView, OpenActionsView, RunView
from aioflow.inputs import RUN_ID, ActionDefinition
from aioflow.model import WorkflowStatus
from aioflow.run import WorkflowRun
from aioflow.runtime import Engine


class Acts:
    """The endpoints."""

    def __init__(self, engine: Engine, access: Access, exits: Exits) -> None:
        self._engine = engine
        self._access = access
        self._exits = exits

    async def open(self, request: Request) -> Response:
        """List the actions that are open on a run."""
        run = await self._access.load(request, "actions")
        found = await self._engine.open_actions(run.id)
        return OpenActionsView(actions=[ActionView.of(each) for each in found]).response()

    async def act(self, request: ActionRequest) -> Response:
        """Call an action; answers with the run as the action's step committed it."""
        run = await self._access.load(request, "act")
        name = bodies.name_in(request)
        definition = self._engine.definition_of(run.row)
        if definition is None:
            raise WorkflowUnknown(run.workflow, version=run.version)
        action = definition.action_of(name)
        if action is None:
            raise Problem("action-unknown")
        if not await permits(action, "has_permission", request, action.name):
            raise Problem("forbidden")
        given = (await bodies.read(request, bodies.ActBody)).input
        run = await self._access.load_again(request, "act", run)
        try:
            made = action.validated(given, run.id, request=True, from_json=True)
            request.data = {RUN_ID: run.id, **made.__dict__, **(made.__pydantic_extra__ or {})}
            await self._ask(request, action, run)
            with self._exits.patient() as scope:
                outcome = await self._engine.call_action(
                    action.name,
                    run.id,
                    given,
                    request=request,
                    from_json=True,
                    known=run.row,
                    moved=partial(self._ask_again, request, action),
                )
        except ActionInputInvalid as error:
            if isinstance(error.__cause__, ValidationError):
                raise invalid(error.__cause__, at=("input",)) from None
            raise Problem("invalid", "The input cannot be stored as it is.") from None
        if scope.cancelled_caught:
            raise Problem("unavailable", "The server shuts down; the action goes on.", headers={"retry-after": "1"})
        if outcome.error is None:
            return RunView.of(outcome.run).response()
        if (chosen := chosen_by(outcome.error)) is not None:
            raise chosen
        if isinstance(outcome.error, ActionFailed) and outcome.run.status == WorkflowStatus.CANCELLED:
            raise Problem("run-ended", "It was cancelled meanwhile.", run_id=run.id, run_status=outcome.run.status)
        raise Problem("action-failed", "The run waits as before. The log of the server has more.", run_id=run.id)

    async def _ask(self, request: ActionRequest, action: ActionDefinition, run: WorkflowRun[Any]) -> None:
        """Raise Problem ("forbidden") unless the action's permissions permit this call."""
        request.run = request.state.run = run
        if not await permits(action, "has_action_permission", request, action.name, request.data):
            raise Problem("forbidden")

    async def _ask_again(self, request: ActionRequest, action: ActionDefinition, run: WorkflowRun[Any]) -> None:
        """The same of a run that has moved since it was asked about."""
        await self._access.check(request, "act", run)
        await self._ask(request, action, run)
