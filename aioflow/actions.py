"""``Engine.act`` and ``Engine.open_actions``: call actions (steps that run only when called), and list the open ones.

A call first claims the run: one change takes it from waiting to running, guarded by the seq that the caller has read,
so that of two concurrent calls only one runs the step. The input is committed with the claim; the step's outcome is
the next transition.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, overload

from pydantic import JsonValue

from aioflow import interventions, telemetry
from aioflow.callers import Caller
from aioflow.client import PATIENCE
from aioflow.clock import SECOND, Clock, Micros
from aioflow.commands import UnboundAction
from aioflow.definition import WorkflowDefinition
from aioflow.emitting import Emitting
from aioflow.errors import ActionFailed, ActionNotOpen, RunNotFound, WorkflowUnknown
from aioflow.inputs import ACTION, REQUEST, RUN_ID, ActionDefinition
from aioflow.likeness import one_line
from aioflow.model import Arm, Run, check_id
from aioflow.openings import open_arms
from aioflow.parts import Parts
from aioflow.reading import read_context
from aioflow.run import WorkflowRun
from aioflow.shapes import C, P

#: The kinds of transition by which a step returns, rather than raises.
_RETURNED: Final = frozenset({"goto", "sleep", "wait", "complete", "fail"})
#: How often a call gives way to a signal that was in the run's mailbox before it, and the pause before each new try.
_MAX_TRIES: Final = 20
_PAUSE: Micros = SECOND // 100
#: Exceptions that a coroutine cannot raise unchanged.
_UNRAISABLE: Final = (StopIteration, StopAsyncIteration)


@dataclass(frozen=True, slots=True)
class OpenAction:
    """An action that can be called now.

    Attributes:
        name: the name to call it by.
        step: the step's name.
        title: a name for people, if ``@step(title=...)`` gives one.
        description: the step's docstring, if it has one.
        schema: its input, as JSON Schema.
    """

    name: str
    step: str
    title: str | None
    description: str | None
    schema: dict[str, JsonValue]


class ActionOutcome(NamedTuple):
    """The outcome of a call: the run as its step's transition left it, and the error if the step did not return."""

    run: WorkflowRun[Any]
    error: Exception | None


class Acting(Emitting):
    """The engine's calls for actions."""

    @overload
    def act(
        self, action: UnboundAction[C, P], run_id: int, /, *args: P.args, **input: P.kwargs
    ) -> Coroutine[Any, Any, WorkflowRun[C]]: ...
    @overload
    def act(self, action: str, run_id: int, /, **input: Any) -> Coroutine[Any, Any, WorkflowRun[Any]]: ...
    def act(self, action: Any, run_id: int, /, *args: Any, **input: Any) -> Any:  # noqa: A002 - public API
        """Call an action, and wait for its step's transition to commit. Of two concurrent calls, one runs the step.

        The step runs in this process if this engine has a free slot, else in whichever worker claims the run. Without
        ``@action(input=...)`` the input is the step's parameters, with it the fields of that model; keywords that are
        not declared are dropped. ``request=`` is passed to a parameter of that name; as no other process has it, the
        step then waits for a free slot of this engine.

        Args:
            action: the action, as ``Order.review``; or its name, or its step's name.
            run_id: the run's id.
            args: none; keywords only.
            input: the action's input.

        Returns:
            The run as the step's transition left it; if another process ran the step, possibly as a later one left it.

        Raises:
            ActionNotOpen: the run does not wait for this action, or another call was faster.
            ActionInputInvalid, LimitExceeded: the input does not validate, or cannot be stored.
            RunNotFound: there is no such run.
            Whatever the step raises, if it runs in this process: the run then waits as before.
            ActionFailed: the step failed in another process, or the run was cancelled meanwhile; or this process's code
                cannot read the run's stored Context, and the run waits as before.
            WorkflowUnknown: this engine does not have the workflow's code.
            TypeError: ``action`` is not an action.
            EngineClosed: the engine is not open, or was closed meanwhile; then the step may still run elsewhere.
            StoreUnavailable: the store did not answer for 15 s. It is not known whether the action was called.
        """
        if args:
            raise TypeError("act() takes the action's input as keywords: act(Order.review, run_id, approved=True).")
        return self._act(action, run_id, input)

    async def _act(self, action: object, run_id: int, given: Mapping[str, Any]) -> WorkflowRun[Any]:
        values = dict(given)
        request = values.pop(REQUEST, None)
        run, error = await self.call_action(action, run_id, values, request=request)
        if error is not None:
            raise error
        return run

    async def call_action(
        self,
        action: object,
        run_id: int,
        given: Mapping[str, Any],
        *,
        request: object = None,
        from_json: bool = False,
        known: Run | None = None,
        moved: Callable[[WorkflowRun[Any]], Awaitable[None]] | None = None,
    ) -> ActionOutcome:
        """The same as ``act``, for code that forwards calls: returns what the step raised instead of raising it.

        Args:
            action: as for ``act``.
            run_id: the run's id.
            given: the input; names that the action does not declare are dropped.
            request: the value for a parameter of this name.
            from_json: whether the input's values come from JSON, where a date is a string.
            known: the run as just read, which saves another read if an action was open on it.
            moved: called with the run before the action is called on it in another state than ``known``.

        Returns:
            The run; and if the step did not return or could not run, what it raised, or ActionFailed.

        Raises:
            As ``act``, except for that error; and what ``moved`` raises.
        """
        parts = self._open_for("act()")
        if not isinstance(action, str) and getattr(getattr(action, "__func__", action), ACTION, None) is None:
            what = getattr(action, "__qualname__", type(action).__name__)
            raise TypeError(
                f"act() takes an action, as Order.review, or its name; {what} is none. Add @action() to it."
            )
        check_id(run_id)
        was_open = known is not None and open_arms(known, parts.clock.micros())
        row = known if known is not None and was_open else await self._row(parts, run_id)
        tries = 0
        while True:
            wanted = self._wanted(row, action)
            request = request if wanted.takes_request else None
            input_ = wanted.read(given, run_id, request=request is not None, from_json=from_json)
            arm = self._open(parts, row, wanted)
            if moved is not None and (known is None or known.seq != row.seq):
                await moved(WorkflowRun[Any](self, row))
                known = row
            if (unreadable := self._unreadable(row, wanted)) is not None:
                return ActionOutcome(WorkflowRun[Any](self, row), unreadable)
            commit_id = next(parts.commit_ids)
            with parts.callers.calling(run_id, commit_id, request) as caller:
                owner = parts.slots.promise(here=request is not None)  # no other worker has the request
                claim = interventions.call(
                    row, arm, input_, request=request is not None, owner=owner, now=parts.clock.micros(), commit_id=commit_id
                )  # fmt: skip
                if tries >= _MAX_TRIES:  # this process cannot deliver that signal: claim the run all the same
                    claim = claim._replace(unless_mail=False)
                result = await parts.committer.submit(claim, PATIENCE, parts.slots, owner)
                if result.outcome == "applied":
                    return await self._outcome(parts, wanted, caller)
            if result.run is None:
                raise RunNotFound(run_id)
            row = result.run
            if result.mail:  # a signal that was sent before this call is delivered first
                tries += 1
                parts.delivery.notify((run_id,))
                await Clock().sleep(_PAUSE)
                row = await self._row(parts, run_id)

    async def _row(self, parts: Parts, run_id: int) -> Run:
        found = await parts.office.ask(lambda: parts.store.load([run_id], parts.clock.micros()), PATIENCE)
        if not found:
            raise RunNotFound(run_id)
        return found[0]

    def _wanted(self, row: Run, action: object) -> ActionDefinition:
        """The action, as the run's version of the workflow defines it."""
        definition = self.definition_of(row)
        if definition is None:
            raise WorkflowUnknown(row.workflow, (name for name, _ in self.registry.known()), row.version)
        wanted = definition.action_of(action)
        if wanted is None:
            name = action if isinstance(action, str) else getattr(action, "__name__", "?")
            raise _not_open(row, definition, name)
        return wanted

    def _open(self, parts: Parts, row: Run, wanted: ActionDefinition) -> Arm:
        """The arm of the run's wait by which the action is open."""
        definition = self.definition_of(row)
        assert definition is not None
        arm = next((arm for arm in open_arms(row, parts.clock.micros()) if arm.then == wanted.step), None)
        if arm is None:
            raise _not_open(row, definition, wanted.name)
        return arm

    def _unreadable(self, row: Run, wanted: ActionDefinition) -> ActionFailed | None:
        """The error if the action cannot be called though it is open: the code cannot read the run's Context."""
        why = read_context(row, self.definition_of(row))
        if not isinstance(why, str):
            return None
        names = {"run_id": row.id, "workflow": row.workflow, "action": wanted.name}
        telemetry.warn("action cannot be called", **names, error=why)
        return ActionFailed(row.id, row.workflow, wanted.name, why)

    async def _outcome(self, parts: Parts, action: ActionDefinition, caller: Caller) -> ActionOutcome:
        """Wait for the outcome of the step, after the call has claimed the run."""
        row, transition, raised = await caller.future
        if transition is None:  # another process has written it
            found = await parts.office.ask(
                lambda: parts.store.history(row.id, caller.seq, 1, parts.clock.micros()), PATIENCE
            )
            transition = found[0]
        run = WorkflowRun[Any](self, row)
        if transition.kind in _RETURNED:
            return ActionOutcome(run, None)
        if isinstance(raised, Exception) and not isinstance(raised, _UNRAISABLE):
            return ActionOutcome(run, raised)
        why = transition.error or "no reason was given."
        if transition.kind != "reopen":
            why = f"the run was {'cancelled' if transition.kind == 'cancel' else 'stopped'} meanwhile: {why}"
        failed = ActionFailed(row.id, row.workflow, action.name, why)
        failed.__cause__ = raised
        return ActionOutcome(run, failed)

    async def open_actions(self, run_id: int) -> list[OpenAction]:
        """What can be called on a run now.

        Args:
            run_id: the run's id.

        Returns:
            The actions that it waits for; none if it does not wait for any, or has ended.

        Raises:
            RunNotFound: there is no such run.
            WorkflowUnknown: this engine does not have the workflow's code.
            TypeError: the id is not an int.
            EngineClosed, StoreUnavailable: the store cannot be asked.
        """
        parts = self._open_for("open_actions()")
        row = await self.reread(run_id)
        arms = open_arms(row, parts.clock.micros())
        if not arms:
            return []
        definition = self.definition_of(row)
        if definition is None:
            raise WorkflowUnknown(row.workflow, (name for name, _ in self.registry.known()), row.version)
        return [shown(definition, action) for action in _of_arms(definition, arms)]


def shown(definition: WorkflowDefinition, action: ActionDefinition) -> OpenAction:
    """An action as callers see it."""
    step = definition.steps[action.step]
    return OpenAction(action.name, action.step, step.options.title, action.docstring, schema_of(action))


def schema_of(action: ActionDefinition) -> dict[str, JsonValue]:
    """An action's input as JSON Schema; ``{"type": "object"}`` if its model has none.

    The run's id is left out: a call names the run anyway.
    """
    try:
        schema = action.model.model_json_schema()
    except Exception as error:  # noqa: BLE001 - evaluating annotations, and a type's own schema, may raise anything
        telemetry.debug("an action's input has no JSON Schema", action=action.name, error=one_line(error))
        return {"type": "object"}
    schema.get("properties", {}).pop(RUN_ID, None)
    if RUN_ID in schema.get("required", ()):
        schema["required"].remove(RUN_ID)
    return schema


def _of_arms(definition: WorkflowDefinition, arms: list[Arm]) -> list[ActionDefinition]:
    """The actions that these arms lead to, each once; without those that the code no longer has."""
    steps = dict.fromkeys(arm.then for arm in arms if arm.then in definition.steps)
    return [action for name in steps if (action := definition.steps[name].action) is not None]


def _not_open(row: Run, definition: WorkflowDefinition, action: str) -> ActionNotOpen:
    open_ = [found.name for found in _of_arms(definition, open_arms(row, row.updated_at))]
    return ActionNotOpen(row.id, row.workflow, action, row.status, row.step, open_)
