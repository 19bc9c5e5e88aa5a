"""``POST actions/<name>/``: checks a call of an action step by step, and makes it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

from pydantic_core import from_json
from starlette.responses import Response

from aioflow import errors
from aioflow.http import refusals
from aioflow.http.bodies import is_json
from aioflow.http.chosen import chosen_by
from aioflow.http.exits import Exits
from aioflow.http.identity import ActionRequest
from aioflow.http.permissions import Question, permits
from aioflow.http.refusals import NO_FIELD, answer
from aioflow.http.replays import Replays
from aioflow.inputs import RUN_ID, ActionDefinition
from aioflow.model import WorkflowStatus
from aioflow.run import WorkflowRun
from aioflow.runtime import Engine

_NO_RUN: Final = "No WorkflowRun matches the given query."
#: An id that no run will get, validated in place of an invalid one: models may demand, say, a positive number.
_UNUSED_ID: Final = (1 << 53) - 1
_LONGEST_ID: Final = len(str(_UNUSED_ID))

_Moved: TypeAlias = Callable[[WorkflowRun[Any]], Awaitable[None]]


class _Given(NamedTuple):
    """The body of a call. ``values``: as JSON values; ``data``: as validated by the action's input model."""

    run_id: int
    values: Mapping[str, Any]
    data: dict[str, Any]


class ActionCalls:
    """Calls actions for callers that are authenticated already.

    Args:
        engine: the engine whose actions are called.
        debug: tell callers what a step raised.
    """

    def __init__(self, engine: Engine, *, debug: bool) -> None:
        self._engine = engine
        self._debug = debug
        self._replays = Replays()
        self._exits = Exits()

    async def call(self, request: ActionRequest) -> Response:
        """Call the action that the address names.

        Raises:
            Refusal: a check has failed.
            Others: what permissions raise, and what the engine raises.
        """
        name = str(request.path_params["name"])
        action = self._engine.registry.actions.get(name)
        if action is None:
            raise refusals.not_found(f"Action '{name}' not found")
        given = await self._admit(action, request)
        asked = [(action, given.data)]
        own = self._own(request.run, name)
        if own is not None and own is not action:  # another version's, which may be stricter
            given = await self._admit(own, request)
            asked.append((own, given.data))

        async def ask_again(run: WorkflowRun[Any]) -> None:
            """Ask the permissions again, about a run that has moved, as while an earlier call of the same key ran."""
            request.run = request.state.run = run
            for each, data in asked:
                request.data = data
                await _ask(each, "has_action_permission", request, each.name, data)

        call = partial(self._call, name, own, given, request, ask_again)
        return await self._replays.answer(request, await request.body(), call)

    async def _admit(self, action: ActionDefinition, request: ActionRequest) -> _Given:
        """Check the action's permissions and the body, before the run's state is looked at. Raises Refusal."""
        await _ask(action, "has_permission", request, action.name)
        given = _read(await _body_of(request), action)
        if request.run is None:
            request.run = request.state.run = await self._find(given.run_id)
        request.data = given.data
        await _ask(action, "has_action_permission", request, action.name, given.data)
        return given

    def _own(self, run: WorkflowRun[Any] | None, name: str) -> ActionDefinition | None:
        """The action of this name in the run's own version of the workflow. Names of steps are not looked at."""
        definition = None if run is None else self._engine.definition_of(run.row)
        return None if definition is None else next((each for each in definition.actions if each.name == name), None)

    async def _find(self, run_id: int) -> WorkflowRun[Any] | None:
        try:
            return await self._engine.get(run_id)
        except errors.RunNotFound:
            return None

    async def _call(
        self, name: str, action: ActionDefinition | None, given: _Given, request: ActionRequest, moved: _Moved
    ) -> Response:
        if request.run is None:
            raise refusals.not_found(_NO_RUN)
        if action is None:
            raise _misplaced(request.run, name)
        try:
            with self._exits.patient() as scope:
                run, error = await self._engine.call_action(
                    name,
                    given.run_id,
                    given.values,
                    request=request,
                    from_json=True,
                    known=request.run.row,
                    moved=moved,
                )
            if scope.cancelled_caught:  # the server shuts down; the action goes on in the next worker
                raise refusals.unavailable()
        except errors.RunNotFound:
            raise refusals.not_found(_NO_RUN) from None
        except errors.ActionNotOpen:
            raise _misplaced(await self._engine.get(given.run_id), name) from None
        if error is not None:
            if (chosen := chosen_by(error)) is not None:
                raise chosen
            if isinstance(error, errors.ActionFailed) and run.status == WorkflowStatus.CANCELLED:
                raise _misplaced(run, name)
            raise refusals.broken(str(error)) if self._debug else refusals.broken()
        told = {
            "status": "success",
            "message": f"Step {action.step} executed",
            "workflow_status": str(run.status),
            "current_step": run.current_step,
        }
        return answer(told)


def _misplaced(run: WorkflowRun[Any], name: str) -> refusals.Refusal:
    return refusals.misplaced(f"The workflow is not waiting for action '{name}'. Current status: {run.status}")


async def _ask(action: ActionDefinition, question: Question, *about: Any) -> None:
    """Raise Refusal unless the action's permissions permit it."""
    if not await permits(action, question, *about):
        raise refusals.no_permission()


async def _body_of(request: ActionRequest) -> bytes:
    """The body, if its content type is JSON. Raises Refusal; HTTPException 413 by the guard."""
    content_type = request.headers.get("content-type", "")
    if not is_json(content_type):
        raise refusals.unsupported(content_type)
    return await request.body()


def _read(body: bytes, action: ActionDefinition) -> _Given:
    """Read and validate the body. Raises Refusal."""
    try:
        values = from_json(body or b"{}", allow_inf_nan=False)
    except ValueError as error:  # the parser's own words: what it expected, and where
        raise refusals.unparsable(str(error)) from None
    if not isinstance(values, dict):
        raise refusals.unfit({NO_FIELD: [f"Invalid data. Expected a dictionary, but got {type(values).__name__}."]})
    problems: dict[str, list[str]] = {}
    run_id = _run_id(values.get(RUN_ID), problems)
    data: dict[str, Any] = {}
    try:
        made = action.validated(values, run_id, request=True, from_json=True)
        data = {RUN_ID: run_id, **made.__dict__, **(made.__pydantic_extra__ or {})}
    except errors.ActionInputInvalid as error:
        problems = {**refusals.faults_of(error), **problems}  # what we found wrong with the run's id comes first
    if problems:
        raise refusals.unfit(problems)
    return _Given(run_id, values, data)


def _run_id(value: object, problems: dict[str, list[str]]) -> int:
    """The run's id; ``_UNUSED_ID`` if it is out of range, or missing or no integer, which is added to ``problems``."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= _LONGEST_ID:
        value = int(value)
    if value is None:
        problems[RUN_ID] = ["This field is required."]
    elif isinstance(value, bool) or not isinstance(value, int):
        problems[RUN_ID] = ["A valid integer is required."]
    elif 0 < value < 1 << 53:
        return value
    return _UNUSED_ID
