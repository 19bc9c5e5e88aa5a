"""Error answers to StateZero's clients, which map ``type`` to an error class, and read ``detail`` by its shape.

The text of an exception is never part of one: the words are the engine's own, or pydantic's about the caller's input.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from aioflow import errors, telemetry
from aioflow.causes import describe
from aioflow.likeness import too_many

#: The two codes that clients know.
_INVALID: Final = "validation_error"
_NOT_FOUND: Final = "not_found"
#: How many faults of one input are listed.
_MOST_FAULTS: Final = 50
_REQUIRED: Final = "This field is required."
NO_FIELD: Final = "non_field_errors"


class Refusal(Exception):
    """Raised to answer with an error.

    Args:
        status: the HTTP status.
        body: the JSON object.
        headers: further headers.
    """

    def __init__(self, status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.headers = headers

    def response(self) -> Response:
        """The refusal as a response."""
        return answer(self.body, self.status, self.headers)


def answer(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON response that is not to be cached."""
    return Response(
        to_json(body, inf_nan_mode="null"),
        status,
        {"cache-control": "no-store", **(headers or {})},
        media_type="application/json",
    )


def _typed(status: int, type_: str, detail: Any, headers: Mapping[str, str] | None = None) -> Refusal:
    return Refusal(status, {"status": status, "type": type_, "detail": detail}, headers)


def no_credentials(*, some: bool) -> Refusal:
    """The caller is not authenticated. ``some``: whether it has sent credentials at all."""
    detail = "Invalid token." if some else "Authentication credentials were not provided."
    return Refusal(401, {"detail": detail}, {"www-authenticate": "Token"})


def no_permission(detail: str = "Permission denied") -> Refusal:
    """The caller is not allowed to do this."""
    return _typed(403, "PermissionDenied", detail)


def not_found(message: str) -> Refusal:
    """There is no such thing."""
    return _typed(404, "NotFound", {"message": message, "code": _NOT_FOUND})


def no_method(method: str, allowed: str) -> Refusal:
    """The address does not take the method."""
    return Refusal(405, {"detail": f'Method "{method}" not allowed.'}, {"allow": allowed})


def unsupported(content_type: str) -> Refusal:
    """The content type is not JSON."""
    return _typed(415, "UnsupportedMediaType", f'Unsupported media type "{content_type}" in request.')


def too_large() -> Refusal:
    """The body is larger than anything that can be stored."""
    return _typed(413, "PayloadTooLarge", "The request is larger than 1 MiB.")


def unparsable(problem: str) -> Refusal:
    """The body is not JSON."""
    return _typed(400, "ParseError", f"JSON parse error - {problem}")


def unfit(fields: Mapping[str, list[str]]) -> Refusal:
    """The input does not validate: field -> messages."""
    detail = {field: [{"message": text, "code": _INVALID} for text in texts] for field, texts in fields.items()}
    return _typed(400, "ValidationError", detail)


def misplaced(message: str) -> Refusal:
    """The run does not wait for this: ``detail`` is a list, by which clients tell it from errors of fields."""
    return _typed(400, "ValidationError", [{"message": message, "code": _INVALID}])


def broken(detail: str = "Internal server error") -> Refusal:
    """The server has failed."""
    return _typed(500, "RuntimeError", detail)


def unavailable() -> Refusal:
    """The engine cannot answer now."""
    return _typed(503, "ServiceUnavailable", "Service unavailable", {"retry-after": "1"})


def faults_of(error: errors.ActionInputInvalid | errors.LimitExceeded) -> dict[str, list[str]]:
    """What is wrong with an input: field -> messages."""
    if isinstance(error, errors.LimitExceeded):
        return {NO_FIELD: [f"The input is beyond the limit of {error.limit}."]}
    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        return {NO_FIELD: ["The input is not valid."]}
    if (many := too_many(cause)) is not None:
        return {NO_FIELD: [f"{many}."]}
    found: dict[str, list[str]] = {}
    for fault in cause.errors(include_url=False, include_context=False, include_input=False)[:_MOST_FAULTS]:
        field, *rest = map(str, fault["loc"] or (NO_FIELD,))
        text = _REQUIRED if fault["type"] == "missing" else fault["msg"]
        found.setdefault(field, []).append(f"{'.'.join(rest)}: {text}" if rest else text)
    return found


def _of_http(error: HTTPException, *, credentials: bool) -> Refusal:
    """The refusal for an HTTPException; any status but 401, 403 and 413 is kept, with its text and headers."""
    match error.status_code:
        case 401:
            return no_credentials(some=credentials)
        case 403:
            return no_permission()
        case 413:
            return too_large()
        case status:
            try:
                phrase = HTTPStatus(status).phrase
            except ValueError:
                phrase = "Refused"
            detail = error.detail if isinstance(error.detail, str) else phrase
            return _typed(status, "".join(re.findall("[A-Za-z]+", phrase)), detail, error.headers)


def refusal_of(error: Exception, *, credentials: bool, debug: bool = False) -> Refusal:
    """The refusal for an error that was raised.

    Args:
        error: what was raised.
        credentials: whether the caller has sent credentials.
        debug: tell the caller what an unforeseen error was.
    """
    match error:
        case Refusal():
            return error
        case HTTPException():
            return _of_http(error, credentials=credentials)
        case ClientDisconnect():  # nobody hears this
            return unparsable("the client left in the middle of it")
        case errors.ActionInputInvalid() | errors.LimitExceeded():
            return unfit(faults_of(error))
        case errors.StoreRefused():
            return unfit({NO_FIELD: ["The input cannot be stored."]})
        case errors.StoreError() | errors.EngineClosed():
            telemetry.warn("a call could not be answered", error=str(error))
            return unavailable()
        case _:
            telemetry.fault("a call failed", exception=telemetry.plain_traceback(error))
            return broken(describe(error)) if debug else broken()
