"""Error answers as defined by RFC 9457: ``application/problem+json`` with a stable type.

Every answer is made of data that is known to be the caller's or the engine's own; the text of an exception is never
part of one. An unforeseen error is logged, and answered as "internal".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from pydantic import ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from aioflow import errors, telemetry
from aioflow.likeness import too_many

MEDIA_TYPE: Final = "application/problem+json"
#: How many faults of one request are listed.
_MOST_FAULTS: Final = 20


class Kind(NamedTuple):
    """A kind of problem: its HTTP status and title."""

    status: int
    title: str


#: The stable part: the last word of a type -> its status and title.
KINDS: Final[Mapping[str, Kind]] = {
    "malformed": Kind(400, "The body is not JSON"),
    "not-local": Kind(403, "This app answers only clients on its own machine"),
    "cross-origin": Kind(403, "A web page of another origin may not change anything here"),
    "forbidden": Kind(403, "This is not allowed"),
    "not-found": Kind(404, "There is nothing at this address"),
    "run-not-found": Kind(404, "There is no such run"),
    "workflow-unknown": Kind(404, "There is no such workflow"),
    "action-unknown": Kind(404, "The run's workflow has no such action"),
    "method-not-allowed": Kind(405, "This address does not take the method"),
    "run-ended": Kind(409, "The run has ended"),
    "action-not-open": Kind(409, "The run does not wait for this action"),
    "id-taken": Kind(409, "The id is already used for something else"),
    "body-too-large": Kind(413, "The body is too large"),
    "not-json": Kind(415, "The body has to be application/json"),
    "invalid": Kind(422, "The request does not validate"),
    "limit-exceeded": Kind(422, "The request is beyond a limit"),
    "internal": Kind(500, "Something unforeseen went wrong"),
    "action-failed": Kind(500, "The action's step did not come to an end"),
    "unavailable": Kind(503, "The engine cannot answer now"),
}


def type_of(kind: str) -> str:
    """The URI of a kind of problem."""
    return f"urn:aioflow:problem:{kind}"


class Problem(Exception):
    """Raised to answer with a problem.

    Args:
        kind: one of ``KINDS``.
        detail: a sentence for people.
        headers: further headers.
        more: further members of the JSON object.
    """

    def __init__(
        self, kind: str, detail: str | None = None, *, headers: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(kind)
        self.kind = kind
        self.detail = detail
        self.headers = headers
        self.more = more

    def response(self) -> Response:
        """The problem as a response."""
        status, title = KINDS[self.kind]
        return _answer(
            {"type": type_of(self.kind), "title": title, "status": status}, self.detail, self.headers, self.more
        )


def _answer(
    told: dict[str, Any], detail: str | None, headers: Mapping[str, str] | None, more: Mapping[str, Any]
) -> Response:
    if detail is not None:
        told["detail"] = detail
    return Response(
        to_json({**told, **more}),
        told["status"],
        {"cache-control": "no-store", **(headers or {})},
        media_type=MEDIA_TYPE,
    )


def invalid(error: ValidationError, *, at: Sequence[str | int] = (), parameters: bool = False) -> Problem:
    """The problem of a request that does not validate, with the place and message of each fault.

    Args:
        error: pydantic's error.
        at: the place in the body of what was validated.
        parameters: whether parameters of the address were validated, not the body.
    """
    if (many := too_many(error)) is not None:
        return fault(many, "too_many_faults", at=at, parameter="" if parameters else None)
    faults = []
    for each in error.errors(include_url=False, include_context=False, include_input=False)[:_MOST_FAULTS]:
        path = (*at, *each["loc"])
        place = {"parameter": str(path[0]) if path else ""} if parameters else {"pointer": _pointer(path)}
        faults.append({**place, "code": each["type"], "message": each["msg"]})
    return Problem("invalid", errors=faults)


def fault(message: str, code: str, *, at: Sequence[str | int] = (), parameter: str | None = None) -> Problem:
    """The problem of a request that does not validate for a reason of our own, not pydantic's."""
    place = {"pointer": _pointer(at)} if parameter is None else {"parameter": parameter}
    return Problem("invalid", errors=[{**place, "code": code, "message": message}])


def _pointer(path: Sequence[str | int]) -> str:
    return "#" + "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def answer_of(error: Exception) -> Response:
    """The response for an error that an endpoint raised."""
    match error:
        case Problem():
            return error.response()
        case HTTPException():
            return _of_http(error)
        case ClientDisconnect():  # in the middle of its body; nobody hears this
            return Problem("malformed").response()
        case errors.RunNotFound():
            return Problem("run-not-found").response()
        case errors.RunEnded(run_id=run_id, status=status):
            return Problem("run-ended", "It takes no signals any more.", run_id=run_id, run_status=status).response()
        case errors.ActionNotOpen(run_id=run_id, status=status):
            return Problem("action-not-open", run_id=run_id, run_status=status).response()
        case errors.IdTaken():
            return Problem("id-taken", "It is unique in the whole store.").response()
        case errors.WorkflowUnknown():
            return Problem("workflow-unknown").response()
        case errors.LimitExceeded(limit=limit):
            return Problem("limit-exceeded", f"The limit is {limit}.").response()
        case errors.StoreRefused():
            return Problem("limit-exceeded", "The store cannot hold this data.").response()
        case errors.StoreError() | errors.EngineClosed():
            telemetry.warn("a request could not be answered", error=str(error))
            return Problem("unavailable", headers={"retry-after": "1"}).response()
        case _:
            telemetry.fault("a request failed", exception=telemetry.plain_traceback(error))
            return Problem("internal", "The log of the server has more.").response()


#: The statuses with which Starlette's router and the guard answer.
_OF_STATUS: Final = {403: "forbidden", 404: "not-found", 405: "method-not-allowed", 413: "body-too-large"}


def _of_http(error: HTTPException) -> Response:
    """The response for an HTTPException, whose status and headers were chosen on purpose, and are kept."""
    kind = _OF_STATUS.get(error.status_code)
    if kind is not None:
        detail = error.detail if error.detail != HTTPStatus(error.status_code).phrase else None
        return Problem(kind, detail, headers=error.headers).response()
    try:
        title = HTTPStatus(error.status_code).phrase
    except ValueError:
        title = "Refused"
    told = {"type": "about:blank", "title": title, "status": error.status_code}
    detail = error.detail if isinstance(error.detail, str) and error.detail != title else None
    return _answer(told, detail, error.headers, {})


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own answers (404, 405), as problems."""
    return answer_of(error)
