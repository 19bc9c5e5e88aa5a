"""``Engine.emit``, ``cancel_event`` and ``events``: record, replace, cancel and query events of the user's domain."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from datetime import datetime
from functools import partial
from uuid import UUID

from aioflow.changes import Withdraw
from aioflow.client import PATIENCE
from aioflow.errors import EventNotFound, IdTaken
from aioflow.events import Event, draft, shown
from aioflow.model import LIVE, Run, check_name
from aioflow.parts import Parts
from aioflow.query import event_query
from aioflow.sending import Sending
from aioflow.shapes import Entity
from aioflow.store import EventQuery, RunQuery

#: How many runs are cancelled together.
_PAGE = 500


class Emitting(Sending):
    """The engine's calls for events."""

    async def emit(
        self,
        name: str,
        entity: Entity = None,
        *,
        entity_id: str | int | UUID | None = None,
        at: datetime | None = None,
        namespace: str = "*",
        event_id: str | None = None,
        replace: bool = False,
    ) -> Event:
        """Record an event. When this returns, the event is committed, with the planned starts of all its workflows.

        Each ``@event_workflow`` of its name and namespace that a worker has registered in the store gets one run for
        each of its offsets. Runs that wait for the event go on when it occurs.

        Args:
            name: the event's name; up to 200 characters.
            entity: what it is about: a pydantic model, a dataclass or a mapping, stored as JSON; or None.
            entity_id: the entity's id, as a str, int or UUID; if not given, its ``id`` (or ``["id"]``), if it has one.
            at: when it occurs, an aware datetime; now if not given. An event whose ``at`` is past occurs at once.
            namespace: "*", or one of your own: workflows of other namespaces are not started.
            event_id: your own id for the event, up to 200 characters, unique in the whole store:
                ``f"paid-{order_id}"``. It makes the call idempotent, unless ``replace`` is set: an existing event is
                left as it is.
            replace: replace the event that has the event_id, which keeps its name. Every such call makes another
                occurrence: starts that were not made yet are planned anew, those that were made are made again.

        Returns:
            The event as it is stored. No ``@entity_loader`` is called for it.

        Raises:
            TypeError, ValueError, LimitExceeded: an argument of the wrong type or out of its range, or an entity that
                is too large or too deep.
            EventInvalid: the entity cannot be stored as it is.
            IdTaken: the event_id is that of an event with another name.
            EngineClosed: the engine is not open.
            StoreUnavailable: the store did not answer for 15 s. It is not known whether the event was recorded: with an
                event_id, repeating the call tells; with ``replace``, query ``events(event_id=...)`` first, as
                repeating the call would make another occurrence.
        """
        parts = self._open_for("emit()")
        asked = draft(name, entity, entity_id=entity_id, at=at, namespace=namespace, event_id=event_id, replace=replace)
        result = await parts.committer.submit(await parts.office.emit_of(asked, PATIENCE), PATIENCE)
        event = result.event
        assert event is not None
        if result.outcome == "exists" and event.name != asked.name:
            raise IdTaken("event_id", event.event_id, f"an event {event.name!r}")
        return shown(event)

    async def cancel_event(self, event_id: str, *, runs: bool = False) -> bool:
        """Cancel an event: if it has not occurred, it does not occur, and its starts that were not made are dropped.

        Args:
            event_id: as ``Event.id`` gives it.
            runs: also cancel the runs that it has started and that have not ended.

        Returns:
            True if this call cancelled it; False if it was cancelled already.

        Raises:
            EventNotFound: there is none.
            TypeError, ValueError, LimitExceeded: an argument of the wrong type or out of its range.
            EngineClosed: the engine is not open.
            StoreUnavailable: the store did not answer for 15 s. Repeating the call completes it.
        """
        parts = self._open_for("cancel_event()")
        check_name("cancel_event(event_id)", event_id)
        if not isinstance(runs, bool):
            raise TypeError(f"cancel_event(runs=...) takes a bool, got {type(runs).__name__}.")
        result = await parts.committer.submit(Withdraw(event_id), PATIENCE)
        if result.event is None:
            raise EventNotFound(event_id)
        if runs:
            await self._cancel_runs(parts, event_id)
        return result.outcome == "applied"

    async def _cancel_runs(self, parts: Parts, event_id: str) -> None:
        """Cancel the live runs that an event has started. No new ones come: its plans are deleted."""
        live = tuple(map(str, LIVE))
        query = RunQuery(event_id=(event_id,), status=live, order="id", descending=False, limit=_PAGE, own=True)
        while True:
            ask = partial(self._page, parts, query)
            rows = await parts.office.ask(ask, PATIENCE)
            await self._cancel_all(parts, [row.id for row in rows], f"Event {event_id!r} was cancelled.")
            if len(rows) < _PAGE:
                return
            query = dataclasses.replace(query, after=(rows[-1].id, rows[-1].id))

    async def _page(self, parts: Parts, query: RunQuery) -> list[Run]:
        return await parts.store.select(query, parts.clock.micros())

    async def events(
        self,
        *,
        event_id: str | Collection[str] | None = None,
        name: str | Collection[str] | None = None,
        namespace: str | Collection[str] | None = None,
        entity_id: str | int | UUID | Collection[str | int | UUID] | None = None,
        status: str | Collection[str] | None = None,
        at_after: datetime | None = None,
        at_before: datetime | None = None,
        order: str = "-id",
        limit: int = 100,
        after: Event | str | None = None,
    ) -> list[Event]:
        """The events that match every filter; a filter takes one value or several, of which any may match.

        An empty collection (``name=[]``) matches no event; None is no filter.

        Args:
            event_id: the events' ids.
            name: their names.
            namespace: the namespaces that they were emitted with.
            entity_id: the ids of their entities.
            status: "pending", "occurred" or "cancelled".
            at_after: only those that occur later; an aware datetime, exclusive.
            at_before: only those that occur earlier.
            order: "id", in the order in which they were first emitted, or "-id" for the latest first.
            limit: how many at most, from 1 to 10 000.
            after: the last event of the page before, or its id.

        Returns:
            Events as they stand, in order, with their entities as stored: no ``@entity_loader`` is called, and an
            entity that its class no longer accepts is given as a mapping.

        Raises:
            TypeError, ValueError, LimitExceeded: a value of the wrong type or out of its range.
            EventNotFound: ``after`` is no event of this store.
            EngineClosed, StoreUnavailable: the store cannot be asked.
        """
        parts = self._open_for("events()")
        query = event_query(
            event_id=event_id,
            name=name,
            namespace=namespace,
            entity_id=entity_id,
            status=status,
            at_after=at_after,
            at_before=at_before,
            order=order,
            limit=limit,
        )
        if after is not None:
            last = check_name("events(after=...)", after.id if isinstance(after, Event) else after)
            rows = await parts.store.select(EventQuery(event_id=(last,), limit=1), parts.clock.micros())
            if not rows:
                raise EventNotFound(last)
            query = dataclasses.replace(query, after=rows[0].id)
        return [shown(row) for row in await parts.store.select(query, parts.clock.micros())]
