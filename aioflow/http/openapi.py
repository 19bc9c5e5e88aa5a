"""The description of the run API, OpenAPI 3.1: its general endpoints, and those for the workflows of this engine.

Every workflow that can be started has a path of its own, whose body has the fields of its Context (or the parameters of
its ``create_context``). Every message that a wait names, event that starts a workflow, and action has one, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import Any
from urllib.parse import quote

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from aioflow.definition import WorkflowDefinition
from aioflow.http import bodies, listing, runs, views
from aioflow.http.access import Access
from aioflow.http.messages import Models, action_model, is_started
from aioflow.http.operations import (
    ABOUT_A_RUN,
    ANYWHERE,
    LAST_EVENT_ID,
    NAME,
    PROBLEM,
    RUN_ID,
    WITH_A_BODY,
    WITH_A_NAME,
    Json,
    answer,
    operation,
    query_of,
)
from aioflow.http.schemas import Schemas, word
from aioflow.inputs import RUN_ID as RUN_ID_FIELD
from aioflow.registry import Registry
from aioflow.runtime import Engine

_READS = (*ANYWHERE, *ABOUT_A_RUN)
_WRITES = (*ANYWHERE, *WITH_A_BODY, *WITH_A_NAME)
_ANSWERS = (
    views.RunView,
    views.RunPage,
    views.HistoryPage,
    views.ReceiptView,
    views.EventView,
    views.CancelView,
    views.OpenActionsView,
    views.HealthView,
    views.TransitionView,
)


class Description:
    """The endpoint that serves the description.

    The mutable state: the last document, and the registry and generation that it was made of.

    Args:
        engine: the engine whose workflows are described.
        access: asks who may read it.
        models: finds the workflows' models.
    """

    def __init__(self, engine: Engine, access: Access, models: Models) -> None:
        self._engine = engine
        self._access = access
        self._models = models
        self._made: tuple[Registry, int, Json] | None = None

    async def document(self, request: Request) -> Response:
        """The document, with the prefix of the request's address as its server."""
        await self._access.check(request, "describe")
        registry = self._engine.registry
        made = self._made
        if made is None or made[0] is not registry or made[1] != registry.generation:
            made = self._made = (registry, registry.generation, describe(registry, self._models))
        servers = [{"url": quote(request.scope.get("root_path", "")) or "/"}]
        return Response(
            to_json({**made[2], "servers": servers}, inf_nan_mode="null"),
            headers={"cache-control": "no-cache"},
            media_type="application/json",
        )


def describe(registry: Registry, models: Models) -> Json:
    """The document for these workflows, without ``servers``."""
    schemas = Schemas()
    schemas.add_answers(_ANSWERS)
    schemas.components["Problem"] = PROBLEM
    names = dict.fromkeys(name for name, _ in registry.known())
    definitions = [registry.find(name) for name in names]
    paths = {
        **dict(_general(schemas)),
        **dict(_starts(schemas, models, definitions)),
        **dict(_messages(schemas, models, definitions)),
        **dict(_events(schemas, definitions)),
        **dict(_actions(schemas, registry)),
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Workflow runs", "version": version("aioflow-engine")},
        "paths": paths,
        "components": {"schemas": schemas.components},
    }


def _general(schemas: Schemas) -> Iterator[tuple[str, Json]]:
    run = answer("The run.", views.RunView)
    stream: Json = {"text/event-stream": {}}  # 3.1 has no schema for a sequence of events
    yield "/healthz", {"get": operation("live", "Whether the process lives", {200: _ok()}, ("not-local",))}
    ready = operation("ready", "Whether the engine can work", {200: _ok()}, ("not-local", "unavailable"))
    yield "/readyz", {"get": ready}
    page = {200: answer("Runs.", views.RunPage)}
    yield (
        "/runs",
        {
            "get": operation(
                "list_runs", "List runs", page, ANYWHERE, parameters=query_of(schemas, listing.ListParameters)
            )
        },
    )
    yield "/runs/{run_id}", {"get": operation("get_run", "Get a run", {200: run}, _READS, parameters=[RUN_ID])}
    for name, summary, model, answered, more in (
        (
            "history",
            "List a run's transitions",
            listing.HistoryParameters,
            answer("Transitions.", views.HistoryPage),
            [],
        ),
        ("wait", "Wait for a run to end, or to park", runs.WaitParameters, run, []),
        (
            "stream",
            "A run's transitions as they commit, as server-sent events",
            runs.StreamParameters,
            {"description": "Events `transition`, whose data is a TransitionView, then `end`.", "content": stream},
            [LAST_EVENT_ID],
        ),
    ):
        parameters = [RUN_ID, *query_of(schemas, model), *more]
        answers = {200: answered}
        if name == "stream":
            answers[204] = {"description": "The run has ended, and all its transitions were seen."}
        yield (
            f"/runs/{{run_id}}/{name}",
            {"get": operation(f"{name}_run", summary, answers, _READS, parameters=parameters)},
        )
    cancelled = {200: answer("Whether the run was cancelled.", views.CancelView)}
    body = schemas.of(bodies.CancelBody)
    problems = (*_WRITES, *ABOUT_A_RUN)
    yield (
        "/runs/{run_id}/cancel",
        {"post": operation("cancel_run", "Cancel a run", cancelled, problems, parameters=[RUN_ID], body=body)},
    )
    yield (
        "/runs/{run_id}/actions",
        {
            "get": operation(
                "list_open_actions",
                "List the actions that are open on a run",
                {200: answer("Actions.", views.OpenActionsView)},
                (*_READS, "workflow-unknown"),
                parameters=[RUN_ID],
            )
        },
    )
    yield "/runs/{run_id}/actions/{name}", {"post": _act("act", "Call an action", schemas.of(bodies.ActBody), [NAME])}
    yield from _signals(
        "{name}", "signal", "Send a signal", schemas.of(bodies.SignalBody), schemas.of(bodies.SignalAllBody), [NAME]
    )
    yield "/events/{name}", {"post": _emit("emit", "Record an event", schemas, [NAME])}


def _ok() -> Json:
    return answer("Yes.", views.HealthView)


def _signals(
    path: str, id_: str, summary: str, to_one: Json, to_all: Json, name: list[Json]
) -> Iterator[tuple[str, Json]]:
    answers = {200: answer("What became of the signal.", views.ReceiptView)}
    problems = (*_WRITES, *ABOUT_A_RUN, "run-ended", "id-taken")
    one = operation(
        f"{id_}_to_run",
        f"{summary} to a run",
        answers,
        problems,
        parameters=[RUN_ID, *name],
        body=to_one,
        needs_body="required" in to_one,
    )
    everybody = operation(
        id_,
        f"{summary} to a key, or to all runs that wait for it",
        answers,
        _WRITES,
        parameters=name,
        body=to_all,
        needs_body="required" in to_all,
    )
    yield f"/runs/{{run_id}}/signals/{path}", {"post": one}
    yield f"/signals/{path}", {"post": everybody}


def _emit(id_: str, summary: str, schemas: Schemas, name: list[Json]) -> Json:
    answers = {200: answer("The event.", views.EventView)}
    problems = (*_WRITES, "id-taken")
    return operation(id_, summary, answers, problems, parameters=name, body=schemas.of(bodies.EmitBody))


def _starts(schemas: Schemas, models: Models, definitions: Iterable[WorkflowDefinition]) -> Iterator[tuple[str, Json]]:
    answers = {
        201: answer("The run that was started.", views.RunView),
        200: answer("The run that has the key already.", views.RunView),
    }
    for definition in definitions:
        if not is_started(definition):
            continue
        context = schemas.of(models.context(definition), f"workflow.{definition.name}")
        body = _with(schemas.of(bodies.StartBody), "context", context)
        start = operation(
            f"start_{word(definition.name)}",
            f"Start a run of {definition.name}",
            answers,
            (*_WRITES, "workflow-unknown"),
            body=body,
            needs_body="required" in body,
        )
        yield f"/workflows/{quote(definition.name)}/runs", {"post": start}


def _messages(
    schemas: Schemas, models: Models, definitions: Iterable[WorkflowDefinition]
) -> Iterator[tuple[str, Json]]:
    found: dict[str, dict[Any, Json]] = {}
    for definition in definitions:
        for name, named in models.messages(definition).items():
            for model in named:
                schema = schemas.of(model, f"message.{definition.name}", by_alias=False)
                found.setdefault(name, {}).setdefault(model, schema)
    for name, by_model in found.items():
        payload = next(iter(by_model.values())) if len(by_model) == 1 else {"anyOf": list(by_model.values())}
        to_one, to_all = (
            _with(schemas.of(body), "payload", payload) for body in (bodies.SignalBody, bodies.SignalAllBody)
        )
        yield from _signals(quote(name), f"signal_{word(name)}", f"Send {name}", to_one, to_all, [])


def _events(schemas: Schemas, definitions: Iterable[WorkflowDefinition]) -> Iterator[tuple[str, Json]]:
    heard: dict[str, list[str]] = {}
    for definition in definitions:
        if definition.event is not None:
            heard.setdefault(definition.event.event_name, []).append(definition.name)
    for name, workflows in heard.items():
        summary = f"Record {name}, which starts {', '.join(workflows)}"
        yield f"/events/{quote(name)}", {"post": _emit(f"emit_{word(name)}", summary, schemas, [])}


def _act(id_: str, summary: str, body: Json, name: list[Json]) -> Json:
    answers = {200: answer("The run, as the action's step committed it.", views.RunView)}
    problems = (
        *_WRITES,
        *ABOUT_A_RUN,
        "workflow-unknown",
        "action-unknown",
        "run-ended",
        "action-not-open",
        "action-failed",
    )
    return operation(
        id_, summary, answers, problems, parameters=[RUN_ID, *name], body=body, needs_body="required" in body
    )


def _actions(schemas: Schemas, registry: Registry) -> Iterator[tuple[str, Json]]:
    for name, action in registry.actions.items():
        model = action_model(action)
        schema: Json = {"type": "object"} if model is None else schemas.of(model, f"action.{name}")
        schema.get("properties", {}).pop(RUN_ID_FIELD, None)  # the address says which run
        if needed := [each for each in schema.pop("required", ()) if each != RUN_ID_FIELD]:
            schema["required"] = needed
        body = _with(schemas.of(bodies.ActBody), "input", schema)
        act = _act(f"act_{word(name)}", f"Call {name}", body, [])
        yield f"/runs/{{run_id}}/actions/{quote(name)}", {"post": act}


def _with(body: Json, name: str, schema: Json) -> Json:
    """A body's schema, with a more specific one for one of its members."""
    known = {**body, "properties": {**body["properties"], name: schema}}
    if schema.get("required") or "anyOf" in schema or "$ref" in schema:
        known["required"] = [*body.get("required", ()), name]
    return known
