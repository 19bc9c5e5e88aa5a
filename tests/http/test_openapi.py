"""The OpenAPI description: the endpoints of every engine, and those for the workflows of this one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema_rs
import pytest
from pydantic import BaseModel, create_model

from aioflow import Engine, complete, on, step, wait, workflow
from aioflow.commands import Command
from aioflow.http import api
from aioflow.http.messages import Models
from aioflow.http.openapi import describe
from aioflow.http.problems import KINDS
from aioflow.registry import Registry, definition_of
from tests.http.conftest import Connect
from tests.http.flows import ALL


@pytest.fixture
def document() -> dict[str, Any]:
    """The description of the workflows of these tests."""
    return describe(Registry(map(definition_of, ALL)), Models())


def resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """A schema, with references followed."""
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].removeprefix("#/components/schemas/")]
    return schema


def body_of(document: dict[str, Any], path: str) -> dict[str, Any]:
    """The schema of a path's request body."""
    body: dict[str, Any] = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return body


def members(part: Any) -> Iterator[dict[str, Any]]:
    """Every object in a document."""
    if isinstance(part, dict):
        yield part
        for inner in part.values():
            yield from members(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from members(inner)


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every operation, with its path and method."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


async def test_it_is_served(client: httpx.AsyncClient, document: dict[str, Any]) -> None:
    """The app serves the description of its engine's workflows, with itself as the server."""
    answer = await client.get("/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {**document, "servers": [{"url": "/"}]}


async def test_it_knows_what_is_defined_later(connect: Connect) -> None:
    """A workflow that is defined after the first request is in the next description."""
    client = connect(api(Engine("memory://")))
    assert "/workflows/late-comer/runs" not in (await client.get("/openapi.json")).json()["paths"]

    @workflow("late-comer")
    class Late:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def work(self) -> Command:
            return complete()

    assert "/workflows/late-comer/runs" in (await client.get("/openapi.json")).json()["paths"]


def test_it_describes_what_every_engine_has() -> None:
    """An engine without workflows has exactly these operations."""
    found = {(method, path) for path, method, _ in operations(describe(Registry(), Models()))}
    assert found == {
        ("get", "/healthz"),
        ("get", "/readyz"),
        ("get", "/runs"),
        ("get", "/runs/{run_id}"),
        ("get", "/runs/{run_id}/history"),
        ("get", "/runs/{run_id}/wait"),
        ("get", "/runs/{run_id}/stream"),
        ("post", "/runs/{run_id}/cancel"),
        ("get", "/runs/{run_id}/actions"),
        ("post", "/runs/{run_id}/actions/{name}"),
        ("post", "/runs/{run_id}/signals/{name}"),
        ("post", "/signals/{name}"),
        ("post", "/events/{name}"),
    }


def test_it_describes_the_workflows(document: dict[str, Any]) -> None:
    """Each workflow that can be started, message, action, and event that starts a workflow has its own path."""
    general = describe(Registry(), Models())["paths"]
    assert set(document["paths"]) - set(general) == {
        "/workflows/expense/runs",
        "/workflows/count/runs",
        "/workflows/nap/of%20the%20cat/runs",
        "/workflows/invite/runs",
        "/workflows/broken/runs",
        "/workflows/fails/runs",
        "/workflows/aliased/runs",
        "/workflows/strict/runs",
        "/workflows/peculiar/runs",
        "/workflows/claim/runs",
        "/runs/{run_id}/signals/Review",
        "/signals/Review",
        "/runs/{run_id}/actions/review_claim",
        "/runs/{run_id}/actions/audit",
        "/events/visit.booked",
    }


def test_a_start_is_described_by_the_context(document: dict[str, Any]) -> None:
    """A start takes the fields of the workflow's Context, with the models that they refer to."""
    body = body_of(document, "/workflows/expense/runs")
    assert set(body["properties"]) == {"context", "key", "reuse", "delay", "start_at"}
    context = resolved(document, body["properties"]["context"])
    assert set(context["properties"]) == {"amount", "due", "items", "note"}
    assert context["required"] == ["amount"]
    assert body["required"] == ["context"]
    item = resolved(document, context["properties"]["items"]["items"])
    assert set(item["properties"]) == {"what", "price"}
    assert "required" not in body_of(document, "/workflows/count/runs")


def test_a_start_is_described_by_the_parameters_of_create_context(document: dict[str, Any]) -> None:
    """A start takes the parameters of create_context, if the workflow has one."""
    context = resolved(document, body_of(document, "/workflows/invite/runs")["properties"]["context"])
    assert set(context["properties"]) == {"name", "day", "tone"}
    assert context["required"] == ["name", "day"]
    assert context["properties"]["day"]["format"] == "date"
    assert context["properties"]["tone"]["enum"] == ["kind", "formal"]
    assert context["additionalProperties"] is False


def test_a_message_is_described_by_its_model(document: dict[str, Any]) -> None:
    """The payload of a message is described by its model, both to a run and to others."""
    for path in ("/runs/{run_id}/signals/Review", "/signals/Review"):
        body = body_of(document, path)
        payload = resolved(document, body["properties"]["payload"])
        assert set(payload["properties"]) == {"approved", "by"}
        assert body["required"] == ["payload"]


def test_an_action_is_described_by_its_input(document: dict[str, Any]) -> None:
    """An action is described by its input, without a ``request`` parameter."""
    body = body_of(document, "/runs/{run_id}/actions/review_claim")
    given = resolved(document, body["properties"]["input"])
    assert (set(given["properties"]), given["required"]) == ({"approved", "amount", "day"}, ["approved", "amount"])
    assert body["required"] == ["input"]
    given = resolved(document, body_of(document, "/runs/{run_id}/actions/audit")["properties"]["input"])
    assert set(given["properties"]) == {"note"}


def test_messages_of_one_name_are_alternatives() -> None:
    """Messages of the same name and of different shapes are described as alternatives."""

    def flow(name: str, **fields: Any) -> type:
        Go = create_model("Go", **fields)  # noqa: N806 - a class

        @workflow(name)
        class Flow:
            class Context(BaseModel):
                pass

            @step(start=True)
            async def ask(self) -> Command:
                return wait.any(on(Go, then=self.end))

            @step
            async def end(self, go: Go) -> Command:
                return complete()

        return Flow

    document = describe(Registry(map(definition_of, (flow("one", a=int), flow("two", b=str)))), Models())
    payload = body_of(document, "/signals/Go")["properties"]["payload"]
    assert [set(resolved(document, each)["properties"]) for each in payload["anyOf"]] == [{"a"}, {"b"}]


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    """Every reference resolves, and component names have only characters that OpenAPI allows."""
    schemas = document["components"]["schemas"]
    references = {member["$ref"] for member in members(document) if isinstance(member.get("$ref"), str)}
    assert references
    assert {reference.removeprefix("#/components/schemas/") for reference in references} <= set(schemas)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in schemas)


def test_every_schema_is_one(document: dict[str, Any]) -> None:
    """Each component is a valid schema of the JSON Schema dialect of OpenAPI 3.1."""
    for name, schema in document["components"]["schemas"].items():
        assert jsonschema_rs.meta.is_valid({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}), name


def test_operations_are_called_by_different_names(document: dict[str, Any]) -> None:
    """Each operationId is unique, and has only letters, digits, hyphens and underscores, as generators need."""
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", each) for each in ids)


def test_every_problem_is_described(document: dict[str, Any]) -> None:
    """Errors are described as problems, and every status that a problem may have is described somewhere."""
    told = set()
    for _, _, operation in operations(document):
        for status, answer in operation["responses"].items():
            if status.startswith(("4", "5")):
                told.add(int(status))
                assert list(answer["content"]) == ["application/problem+json"]
    assert told == {kind.status for kind in KINDS.values()} - {405}  # not for the methods that are described


def test_it_tells_no_path_of_a_class(document: dict[str, Any]) -> None:
    """No module or function name appears in the description."""
    for word in ("tests", "http.flows", "http__flows", "locals", "__main"):
        assert word not in str(document)


def test_a_context_without_a_schema_is_an_object() -> None:
    """A field that JSON Schema cannot describe makes its Context a plain object, and nothing else fails."""

    @workflow("indescribable")
    class Indescribable:
        class Context(BaseModel):
            pass

        @classmethod
        def create_context(cls, thing: Registry, other: "Nowhere" = None) -> Context:  # type: ignore[name-defined] # noqa: F821, UP037
            return cls.Context()

        @step(start=True)
        async def work(self) -> Command:
            return complete()

    document = describe(Registry([definition_of(Indescribable)]), Models())
    assert body_of(document, "/workflows/indescribable/runs")["properties"]["context"] == {"type": "object"}
