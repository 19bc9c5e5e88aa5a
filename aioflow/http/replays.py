"""``Idempotency-Key``: a call that is sent again, because its answer was lost, gets the answer that there was.

What was called is safe without it: an action that has run is not open any more. The key is for the caller, who else
could not tell his own call from somebody else's. Answers are kept in this process, and only those of calls that
succeeded: one that failed may be tried again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from aioflow.clock import SECOND, Clock, Micros
from aioflow.http.refusals import misplaced, unfit
from aioflow.model import MAX_NAME

HEADER: Final = "idempotency-key"
_KEPT: Final[Micros] = 24 * 3600 * SECOND
_MOST: Final = 10_000


class _Answer(NamedTuple):
    """An answer that was given. ``asked``: what the call was."""

    asked: bytes
    status: int
    body: bytes
    until: Micros


class Replays:
    """The answers of this process.

    The mutable state: answers by caller and key, the oldest first; and who is calling with a key now.
    """

    def __init__(self) -> None:
        self._clock = Clock()
        self._answers: OrderedDict[bytes, _Answer] = OrderedDict()
        self._calling: dict[bytes, asyncio.Event] = {}

    async def answer(self, request: Request, body: bytes, call: Callable[[], Awaitable[Response]]) -> Response:
        """The answer to a call: that of an earlier one with the same key, or a new one.

        Raises:
            Refusal: the key is of no use, or was used for another call.
            Others: what ``call`` raises.
        """
        key = request.headers.get(HEADER)
        if key is None:
            return await call()
        if not key or len(key) > MAX_NAME:
            raise unfit({"non_field_errors": [f"The Idempotency-Key must have from 1 to {MAX_NAME} characters."]})
        place = _digest(key, request.headers.get("authorization", ""), request.headers.get("cookie", ""))
        asked = _digest(request.url.path.rstrip("/"), body)
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


def _digest(*parts: str | bytes) -> bytes:
    """One value for several texts, different for different ones, that keeps no secret."""
    found = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        found.update(len(raw).to_bytes(8, "big") + raw)
    return found.digest()
