"""``Idempotency-Key``: a call that is sent again, because its answer was lost, gets the first answer again.

The run is safe without it: an action that has run is not open any more. The key is for the caller, which otherwise
could not tell whether its own call or another's has run the action. Answers are kept in this process, and only those of
calls that succeeded: a call that failed may be tried again.

An answer is for its caller alone. What ``authenticate`` reads is not known, so a call has the same caller if it has the
same user, as far as the ``repr`` of that tells, and the same headers, but for those that differ from call to call. If
the same caller is not recognised, it only misses the answer.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from aioflow.clock import SECOND, Clock, Micros
from aioflow.http.refusals import misplaced, unfit
from aioflow.model import MAX_NAME

HEADER: Final = "idempotency-key"
_KEPT: Final[Micros] = 24 * 3600 * SECOND
_MOST: Final = 10_000
#: Headers that carry no credentials, and may differ when the same call is sent again.
_PASSING: Final = frozenset(
    {
        "accept", "accept-encoding", "accept-language", "baggage", "cache-control", "connection", "content-length",
        "content-type", "date", "expect", "forwarded", "host", HEADER, "origin", "pragma", "priority", "referer", "te",
        "traceparent", "tracestate", "transfer-encoding", "user-agent", "via", "x-canonical-id", "x-correlation-id",
        "x-forwarded-for", "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto", "x-operation-id", "x-real-ip",
        "x-request-id",
    }
)  # fmt: skip


class _Answer(NamedTuple):
    """An answer that was given. ``asked``: the digest of the call's path and body."""

    asked: bytes
    status: int
    body: bytes
    until: Micros


class Replays:
    """The answers that this process keeps.

    The mutable state: answers by caller and key, the oldest first; and the calls with a key that are under way.
    """

    def __init__(self) -> None:
        self._clock = Clock()
        self._answers: OrderedDict[bytes, _Answer] = OrderedDict()
        self._calling: dict[bytes, asyncio.Event] = {}

    async def answer(self, request: Request, body: bytes, call: Callable[[], Awaitable[Response]]) -> Response:
        """The answer to a call: that of an earlier one with the same key, or a new one.

        Raises:
            Refusal: the key is empty or too long, or was used for another call.
            Others: what ``call`` raises.
        """
        key = request.headers.get(HEADER)
        if key is None:
            return await call()
        if not key or len(key) > MAX_NAME:
            raise unfit({"non_field_errors": [f"The Idempotency-Key must have from 1 to {MAX_NAME} characters."]})
        place = _digest(key, *_caller(request))
        asked = _digest(request.scope["path"].rstrip("/"), body)
        while (calling := self._calling.get(place)) is not None:
            await calling.wait()
        if (known := self._known(place)) is not None:
            if known.asked != asked:
                raise misplaced("This Idempotency-Key was used for another call.")
            return Response(
                known.body, known.status, {"cache-control": "no-store", "idempotent-replayed": "true"},
                media_type="application/json",
            )  # fmt: skip
        calling = self._calling[place] = asyncio.Event()
        try:
            response = await call()
            self._answers[place] = _Answer(
                asked, response.status_code, bytes(response.body), self._clock.monotonic() + _KEPT
            )
            return response
        finally:
            del self._calling[place]
            calling.set()

    def _known(self, place: bytes) -> _Answer | None:
        now = self._clock.monotonic()
        while self._answers and (len(self._answers) >= _MOST or next(iter(self._answers.values())).until <= now):
            self._answers.popitem(last=False)
        return self._answers.get(place)


def _caller(request: Request) -> Iterator[str]:
    """What identifies the caller: the user, the query, and all headers that may hold credentials."""
    yield _user(request)
    yield request.scope["query_string"].decode("latin-1")
    for name, value in sorted(request.headers.items()):
        if name not in _PASSING and not name.startswith("sec-"):
            yield name
            yield value


def _user(request: Request) -> str:
    """The user's ``repr``, unless it is object's own, whose address later objects may have; then the client's host."""
    user = request.scope.get("user")
    if type(user).__repr__ is not object.__repr__:  # type: ignore[comparison-overlap]
        with suppress(Exception):  # the user class's __repr__ may raise anything
            return repr(user)
    return "" if request.client is None else request.client.host


def _digest(*parts: str | bytes) -> bytes:
    """A digest of several texts, different for different ones, so that no secret in them is kept."""
    found = hashlib.sha256()
    for part in parts:
        raw = part.encode(errors="surrogatepass") if isinstance(part, str) else part
        found.update(len(raw).to_bytes(8, "big") + raw)
    return found.digest()
