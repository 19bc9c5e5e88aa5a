"""Events as users see them: what may be emitted, and what a workflow is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from pydantic_core import to_json

from aioflow import entities
from aioflow.clock import Micros, to_datetime, to_micros
from aioflow.errors import EventInvalid
from aioflow.model import check_name
from aioflow.plans import EventRecord, EventStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened, or will.

    Attributes:
        id: the event_id that it was emitted with, or a generated one.
        name: its name.
        namespace: its namespace, "*" if it was given none.
        entity: what it is about: an instance of its type, or a mapping.
        entity_id: the entity's id, as a string.
        at: when it occurs, or occurred; aware, UTC, as all datetimes here.
        status: "pending", "occurred" or "cancelled".
        occurrence: from 1; rises by one whenever the event is replaced.
        recorded_at: when it was first emitted.
        occurred_at: when it was committed that it has occurred; None before that.
    """

    id: str
    name: str
    namespace: str = "*"
    entity: Any = field(default=None, repr=False)
    entity_id: str | None = None
    at: datetime
    status: EventStatus | str = EventStatus.OCCURRED
    occurrence: int = 1
    recorded_at: datetime
    occurred_at: datetime | None = None


def shown(record: EventRecord) -> Event:
    """A record as an Event, with the stored entity: no loader is called, and an invalid entity becomes a mapping."""
    try:
        entity = entities.rebuild(record.name, record.entity_type, record.entity)
    except EventInvalid:
        entity = entities.rebuild(record.name, None, record.entity)
    return _event(record, entity)


async def event_of(record: EventRecord) -> Event:
    """A record as the Event that a workflow is given: its entity rebuilt, or loaded.

    Raises:
        EventInvalid: the entity's class, as it is now, does not accept what is stored.
        Others: what the loader of the entity's type raises.
    """
    return _event(record, await entities.load(record.name, record.entity_type, record.entity, record.entity_id))


async def event_from(payload: Mapping[str, Any]) -> Event:
    """The Event from the parsed ``EventRecord.payload`` that is stored with a run. Raises as ``event_of``."""
    stored = payload["entity"]
    name, entity_id = payload["event_name"], payload["entity_id"]
    json = None if stored is None else to_json(stored).decode()
    occurred_at = payload.get("occurred_at")
    return Event(
        id=payload["event_id"],
        name=name,
        namespace=payload["namespace"],
        entity=await entities.load(name, payload["entity_type"], json, entity_id),
        entity_id=entity_id,
        at=to_datetime(payload["at"]),
        status=EventStatus(payload.get("status", EventStatus.OCCURRED)),
        occurrence=payload["occurrence"],
        recorded_at=to_datetime(payload["recorded_at"]),
        occurred_at=None if occurred_at is None else to_datetime(occurred_at),
    )


def record_of(event: Event) -> EventRecord:
    """An Event as it would be stored, except for the store's own ids.

    Raises:
        TypeError, ValueError, LimitExceeded, EventInvalid: it could not be stored.
    """
    entity = entities.to_json(check_name("Event(name=...)", event.name), event.entity, event.entity_id)
    return EventRecord(
        id=0,
        event_id=event.id,
        name=event.name,
        namespace=event.namespace,
        entity_id=entity.entity_id,
        entity_type=entity.type,
        entity=entity.json,
        at=_micros("at", event.at),
        occurrence=event.occurrence,
        status=EventStatus(event.status),
        mail_id=0,
        recorded_at=_micros("recorded_at", event.recorded_at),
        occurred_at=None if event.occurred_at is None else _micros("occurred_at", event.occurred_at),
    )


def _micros(field_: str, instant: object) -> Micros:
    if not isinstance(instant, datetime):
        raise TypeError(f"Event({field_}=...) takes an aware datetime, got {type(instant).__name__}.")
    return to_micros(instant, f"Event({field_}=...)")


def _event(record: EventRecord, entity: Any) -> Event:
    return Event(
        id=record.event_id,
        name=record.name,
        namespace=record.namespace,
        entity=entity,
        entity_id=record.entity_id,
        at=to_datetime(record.at),
        status=EventStatus(record.status),
        occurrence=record.occurrence,
        recorded_at=to_datetime(record.recorded_at),
        occurred_at=None if record.occurred_at is None else to_datetime(record.occurred_at),
    )


class EventDraft(NamedTuple):
    """An event to emit, with checked values."""

    name: str
    namespace: str
    entity: entities.Entity
    at: Micros | None
    event_id: str | None
    replace: bool

    def record(self, id_: int, mail_id: int, event_id: str, now: Micros) -> EventRecord:
        """The record to store. ``event_id``: its id, if the sender gave none."""
        at = now if self.at is None else self.at
        return EventRecord(
            id=id_,
            event_id=self.event_id or event_id,
            name=self.name,
            namespace=self.namespace,
            entity_id=self.entity.entity_id,
            entity_type=self.entity.type,
            entity=self.entity.json,
            at=at,
            occurrence=1,
            status=EventStatus.PENDING if at > now else EventStatus.OCCURRED,
            mail_id=mail_id,
            recorded_at=now,
            occurred_at=None if at > now else now,
        )


def draft(
    name: object,
    entity: object = None,
    *,
    entity_id: object = None,
    at: datetime | None = None,
    namespace: str = "*",
    event_id: str | None = None,
    replace: bool = False,
) -> EventDraft:
    """Check what ``emit`` was given.

    Raises:
        TypeError, ValueError, LimitExceeded: an argument of the wrong type or out of its range.
        EventInvalid: the entity cannot be stored.
    """
    checked = check_name("emit(name)", name)
    check_name("emit(namespace=...)", namespace)
    if event_id is not None:
        check_name("emit(event_id=...)", event_id)
    if not isinstance(replace, bool):
        raise TypeError(f"emit(replace=...) takes a bool, got {type(replace).__name__}.")
    if replace and event_id is None:
        raise TypeError("emit(replace=True) needs event_id=: it replaces the event of that id.")
    if at is not None and not isinstance(at, datetime):
        raise TypeError(f"emit(at=...) takes an aware datetime, got {type(at).__name__}.")
    micros = None if at is None else to_micros(at, "emit(at=...)")
    return EventDraft(checked, namespace, entities.to_json(checked, entity, entity_id), micros, event_id, replace)
