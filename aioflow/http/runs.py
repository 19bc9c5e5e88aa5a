"""The endpoints that list and read runs, and those that signal and cancel one."""

from __future__ import annotations

from contextlib import aclosing
from typing import Annotated, Final, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from aioflow.http import bodies, listing
from aioflow.http.access import Access
from aioflow.http.exits import GRACE, Exits, server_exits
from aioflow.http.messages import Models
from aioflow.http.problems import Problem
from aioflow.http.stream import Stream, position
from aioflow.http.views import (
    CancelView,
    HistoryPage,
    ReceiptView,
    RunPage,
    RunSummary,
    RunView,
    TransitionView,
)
from aioflow.runtime import Engine
from aioflow.waiters import reached

#: How many seconds a long poll may take.
LONGEST_WAIT: Final = 30.0
#: How many seconds a list may take: a filter that no index fits reads the whole store.
LONGEST_LIST: Final = 30.0
#: How many runs a list reads at once: many of them may not be shown, and each may have a Context of 1 MiB.
_READ: Final = 100
#: About how many runs a list asks at most, so that a caller that may see none cannot have the whole store read.
MOST_LOOKED = 10_000


class WaitParameters(listing.Parameters):
    """What to wait for, and how long."""

    timeout: Annotated[
        float,
        Field(
            ge=0, allow_inf_nan=False, description=f"Seconds; more than {LONGEST_WAIT:g} counts as {LONGEST_WAIT:g}."
        ),
    ] = 20.0
    until: Literal["ended", "parked"] = "ended"


class StreamParameters(listing.Parameters):
    """Where a stream begins."""

    after: Annotated[
        listing.Seq | None, Field(description="Only transitions with a higher seq; `Last-Event-ID` has precedence.")
    ] = None


class Runs:
    """The endpoints."""

    def __init__(self, engine: Engine, access: Access, exits: Exits, models: Models) -> None:
        self._engine = engine
        self._access = access
        self._exits = exits
        self._models = models

    async def list(self, request: Request) -> Response:
        """List the runs that match and that ``authorize`` allows: it is asked about each match until the page is full.

        Nothing in the answer depends on runs that are not allowed, not even whether there is a next page: another
        allowed run is looked for. After ``MOST_LOOKED`` runs the page ends with those that were found, and the next one
        goes on from there.
        """
        await self._access.check(request, "list")
        asked = listing.read(request.query_params, listing.ListParameters)
        shown: list[RunSummary] = []
        last: str | None = None  # the cursor behind the last that is shown
        after: str | None = None  # where the next page begins
        looked = 0
        await request.body()  # a list has none, but ``authorize`` may ask for it, and ``bounded`` would swallow it
        with self._exits.bounded(LONGEST_LIST, request.receive, GRACE) as scope:
            async with aclosing(self._engine.iterate(asked.query(), _READ)) as matching:
                async for run in matching:
                    looked += 1
                    if not await self._access.allows(request, "list", run):
                        if looked >= MOST_LOOKED:
                            after = listing.cursor_after(run, asked.order)
                            break
                        continue
                    if len(shown) == asked.limit:
                        after = last
                        break
                    shown.append(RunSummary.of(run))
                    last = listing.cursor_after(run, asked.order)
        if scope.cancelled_caught:
            slow = "The list takes too long. Filter by workflow or key, or ask for fewer runs."
            raise Problem("unavailable", "The server shuts down. Ask again." if server_exits() else slow)
        return RunPage(runs=shown, next=after).response()

    async def get(self, request: Request) -> Response:
        """A run as it stands now."""
        return RunView.of(await self._access.load(request, "get")).response()

    async def history(self, request: Request) -> Response:
        """List a run's transitions."""
        run = await self._access.load(request, "history")
        asked = listing.read(request.query_params, listing.HistoryParameters)
        found = await self._engine.history(run.id, after=asked.after, limit=asked.limit)
        more = len(found) == asked.limit
        if found and found[-1].seq > run.row.seq:
            await run.refresh()
        return HistoryPage(
            transitions=[TransitionView.of(each, run) for each in found], next=found[-1].seq if more else None
        ).response()

    async def wait(self, request: Request) -> Response:
        """A run, once it has ended or parked; or as it stands when the time is over, or the server shuts down."""
        run = await self._access.load(request, "wait")
        asked = listing.read(request.query_params, WaitParameters)
        if not reached(run.row, asked.until):
            with self._exits.bounded(min(asked.timeout, LONGEST_WAIT), request.receive):
                await self._engine.wait(run.id, until=asked.until)
            await run.refresh()
        return RunView.of(run).response()

    async def stream(self, request: Request) -> Response:
        """A run's transitions as they commit, for a bounded time."""
        run = await self._access.load(request, "watch")
        asked = listing.read(request.query_params, StreamParameters)
        after = position(request, asked.after)
        if run.status.ended and after >= run.row.seq:
            return Response(status_code=204)  # which tells an EventSource not to ask again
        return Stream(self._engine, self._exits, run, after)

    async def signal(self, request: Request) -> Response:
        """Send a signal to one run."""
        run = await self._access.load(request, "signal")
        asked = await bodies.read(request, bodies.SignalBody)
        name = bodies.name_in(request)
        run = await self._access.load_again(request, "signal", run)
        self._models.check_message(self._engine.definition_of(run.row), name, asked.payload)
        receipt = await self._engine.signal(
            name, asked.payload, run_id=run.id, signal_id=asked.signal_id, ttl=asked.lifetime()
        )
        return ReceiptView.of(receipt).response()

    async def cancel(self, request: Request) -> Response:
        """Cancel a run."""
        run = await self._access.load(request, "cancel")
        asked = await bodies.read(request, bodies.CancelBody)
        run = await self._access.load_again(request, "cancel", run)
        return CancelView(cancelled=await self._engine.cancel(run.id, asked.reason)).response()
