"""The parts of an OpenAPI operation: parameters, body and responses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic import BaseModel

from aioflow.http.problems import KINDS, MEDIA_TYPE
from aioflow.http.schemas import Schemas, reference

Json = dict[str, Any]

#: The problems that any operation may answer with, one about a run, one with a name in its path, one with a body.
ANYWHERE: Final = ("not-local", "forbidden", "invalid", "internal", "unavailable")
ABOUT_A_RUN: Final = ("run-not-found",)
WITH_A_NAME: Final = ("not-found",)  # for a name with a line break, which no route matches
WITH_A_BODY: Final = ("malformed", "cross-origin", "body-too-large", "not-json", "limit-exceeded")

RUN_ID: Final[Json] = {
    "name": "run_id",
    "in": "path",
    "required": True,
    "schema": {"type": "integer", "minimum": 1, "maximum": (1 << 53) - 1},
}
NAME: Final[Json] = {
    "name": "name",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 1, "maxLength": 200},
}
LAST_EVENT_ID: Final[Json] = {
    "name": "Last-Event-ID",
    "in": "header",
    "schema": {"type": "string", "pattern": "^[0-9]{1,16}$"},
    "description": "The seq of the last transition that was seen, as an EventSource sends it.",
}
PROBLEM: Final[Json] = {
    "type": "object",
    "description": "A problem as defined by RFC 9457.",
    "required": ["type", "title", "status"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["code", "message"],
                "properties": {
                    "pointer": {"type": "string", "description": "The place in the body."},
                    "parameter": {"type": "string", "description": "The parameter of the path, query or headers."},
                    "code": {"type": "string"},
                    "message": {"type": "string"},
                },
            },
        },
    },
}


def operation(
    id_: str,
    summary: str,
    answers: Mapping[int, Json],
    problems: Iterable[str],
    *,
    parameters: Iterable[Json] = (),
    body: Json | None = None,
    needs_body: bool = False,
) -> Json:
    """An operation.

    Args:
        id_: unique in the document.
        summary: one line.
        answers: status -> response.
        problems: the kinds of problems that it may answer with.
        parameters: of the path, the query and the headers.
        body: the schema of the JSON body that it takes.
        needs_body: whether a body is required, as an empty object is not valid.
    """
    by_status: dict[int, list[str]] = {}
    for kind in problems:
        by_status.setdefault(KINDS[kind].status, []).append(KINDS[kind].title)
    responses = {str(status): answer for status, answer in answers.items()}
    for status in sorted(by_status):
        content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
        responses[str(status)] = {"description": ", or: ".join(by_status[status]), "content": content}
    found: Json = {"operationId": id_, "summary": summary, "responses": responses}
    if listed := list(parameters):
        found["parameters"] = listed
    if body is not None:
        found["requestBody"] = {"required": needs_body, "content": {"application/json": {"schema": body}}}
    return found


def answer(description: str, model: type[BaseModel]) -> Json:
    """A response whose body is this model."""
    return {"description": description, "content": {"application/json": {"schema": reference(model)}}}


def query_of(schemas: Schemas, model: type[BaseModel]) -> list[Json]:
    """The query parameters that a model reads."""
    schema = schemas.of(model)
    found = []
    for name, shape in schema["properties"].items():
        # A query cannot hold null: such a parameter is left out of the address instead.
        kinds = [kind for kind in shape.pop("anyOf", ()) if kind != {"type": "null"}]
        rest = {key: value for key, value in shape.items() if key not in ("title", "description", "default")}
        if shape.get("default") not in (None, []):
            rest["default"] = shape["default"]
        parameter = {"name": name, "in": "query", "schema": {**(kinds[0] if kinds else {}), **rest}}
        if "description" in shape:
            parameter["description"] = shape["description"]
        found.append(parameter)
    return found
