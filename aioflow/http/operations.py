"""The parts of an OpenAPI operation: its parameters, its body, and what it answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic import BaseModel

from aioflow.http.problems import KINDS, MEDIA_TYPE
from aioflow.http.schemas import Schemas, reference

Json = dict[str, Any]

#: What any operation may answer, one about a run, one with a name in its address, and one that takes a body.
ANYWHERE: Final = ("not-local", "forbidden", "invalid", "internal", "unavailable")
ABOUT_A_RUN: Final = ("run-not-found",)
WITH_A_NAME: Final = ("not-found",)  # no address has a name with a line break in it
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
    "description": "The seq that was seen last, as an EventSource says it.",
}
PROBLEM: Final[Json] = {
    "type": "object",
    "description": "A problem, as RFC 9457 has it.",
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
                    "pointer": {"type": "string", "description": "Where in the body."},
                    "parameter": {"type": "string", "description": "Which parameter of the address."},
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
        summary: a line.
        answers: status -> response.
        problems: the kinds of problems that it may answer with.
        parameters: of the address and the headers.
        body: the schema of the JSON that it takes.
        needs_body: whether an empty object is not enough.
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
    """A response that shows a model."""
    return {"description": description, "content": {"application/json": {"schema": reference(model)}}}


def query_of(schemas: Schemas, model: type[BaseModel]) -> list[Json]:
    """The parameters of an address, of the model that reads them."""
    schema = schemas.of(model)
    found = []
    for name, shape in schema["properties"].items():
        # Null is no value that an address could have: the parameter is left out.
        kinds = [kind for kind in shape.pop("anyOf", ()) if kind != {"type": "null"}]
        rest = {key: value for key, value in shape.items() if key not in ("title", "description", "default")}
        if shape.get("default") not in (None, []):
            rest["default"] = shape["default"]
        parameter = {"name": name, "in": "query", "schema": {**(kinds[0] if kinds else {}), **rest}}
        if "description" in shape:
            parameter["description"] = shape["description"]
        found.append(parameter)
    return found
