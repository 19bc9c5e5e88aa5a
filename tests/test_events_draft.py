"""What ``emit`` accepts, and the Event that is read from its record."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import Event, entities, entity_loader
from aioflow.clock import to_micros
from aioflow.errors import EventInvalid, LimitExceeded
from aioflow.events import draft, event_from, event_of, shown
from aioflow.plans import EventRecord, EventStatus

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
MICROS = to_micros(NOW)


class Order(BaseModel):
    """An entity."""

    id: int
    note: str = ""


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """Restore the registry of entity types after each test."""
    kept = [dict(each) for each in (entities._by_name, entities._by_class, entities._loaders)]
    yield
    for each, before in zip((entities._by_name, entities._by_class, entities._loaders), kept, strict=True):
        each.clear()  # type: ignore[attr-defined]
        each.update(before)  # type: ignore[attr-defined]


def record(*args: Any, **how: Any) -> EventRecord:
    """The record of an event that is emitted with these arguments."""
    return draft(*args, **how).record(3, 4, "made", MICROS)


def test_an_event_that_occurs_now() -> None:
    """Without ``at`` an event has occurred now, in the default namespace, under a generated id."""
    made = record("paid", Order(id=7))
    assert made == EventRecord(
        id=3,
        event_id="made",
        name="paid",
        namespace="*",
        entity_id="7",
        entity_type=f"{__name__}.Order",
        entity='{"id":7,"note":""}',
        at=MICROS,
        occurrence=1,
        status="occurred",
        mail_id=4,
        recorded_at=MICROS,
        occurred_at=MICROS,
    )


def test_an_event_that_is_to_come() -> None:
    """With ``at`` in the future, in any time zone, an event is pending, under the caller's id and namespace."""
    at = (NOW + timedelta(hours=1)).astimezone(timezone(timedelta(hours=5)))
    made = record("visit", at=at, namespace="north", event_id="v1", entity_id=5)
    assert (made.event_id, made.namespace, made.entity_id, made.entity) == ("v1", "north", "5", None)
    assert (made.at, made.status, made.occurred_at) == (MICROS + 3_600_000_000, "pending", None)
    assert record("visit", at=NOW - timedelta(days=1)).status == "occurred"


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"name": 3}, TypeError, r"emit\(name\) takes a string, got int"),
        ({"name": ""}, ValueError, r"emit\(name\) must not be empty"),
        ({"name": "x" * 201}, LimitExceeded, "200 characters"),
        ({"name": "a\0"}, LimitExceeded, "NUL"),
        ({"namespace": ""}, ValueError, "namespace"),
        ({"namespace": None}, TypeError, "namespace"),
        ({"event_id": 3}, TypeError, r"emit\(event_id=...\) takes a string"),
        ({"event_id": ""}, ValueError, "event_id"),
        ({"event_id": "x" * 201}, LimitExceeded, "event_id"),
        ({"replace": True}, TypeError, "needs event_id="),
        ({"replace": 1, "event_id": "x"}, TypeError, r"emit\(replace=...\) takes a bool, got int"),
        ({"at": 3}, TypeError, r"emit\(at=...\) takes an aware datetime, got int"),
        ({"at": timedelta(1)}, TypeError, "got timedelta"),
        ({"at": NOW.replace(tzinfo=None)}, ValueError, r"emit\(at=...\) must be aware"),
        ({"entity": "text"}, TypeError, r"emit\(entity\) takes"),
        ({"entity_id": True}, TypeError, r"emit\(entity_id=...\) takes a str, an int or a UUID, got bool"),
        ({"entity": {"x": object()}}, EventInvalid, "cannot be stored"),
    ],
)
def test_wrong_arguments_are_told(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    """An argument of a wrong type or value is refused with its own error."""
    with pytest.raises(error, match=text):
        draft(**{"name": "paid", **arguments})


def test_replace_takes_an_event_id() -> None:
    """``replace=True`` needs an event_id, and is kept with it."""
    assert draft("paid", event_id="e", replace=True).replace is True
    assert draft("paid", event_id="e").replace is False


async def test_an_event_shows_its_record() -> None:
    """An Event has the record's values, its instants as datetimes, and its entity as an object of its type."""
    made = record("paid", Order(id=7), event_id="e", namespace="n", at=NOW - timedelta(hours=1))
    event = await event_of(made._replace(occurrence=2))
    assert event == Event(
        id="e",
        name="paid",
        namespace="n",
        entity=Order(id=7),
        entity_id="7",
        at=NOW - timedelta(hours=1),
        status=EventStatus.OCCURRED,
        occurrence=2,
        recorded_at=NOW,
        occurred_at=NOW,
    )
    assert event.at.tzinfo is UTC
    assert "note" not in repr(event)
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.name = "other"  # type: ignore[misc]
    pending = await event_of(record("paid", at=NOW + timedelta(1)))
    assert (pending.status, pending.occurred_at, pending.entity) == ("pending", None, None)


async def test_what_a_run_was_told_is_the_same_event() -> None:
    """The payload that is stored with a run gives the same Event as the record, except for ``occurred_at``."""
    for entity in (Order(id=7, note='"\n'), {"a": [1.5, None, {"ü": True}]}, None):
        made = record("paid", entity, event_id="e", namespace="n", entity_id="x")
        told = await event_from(json.loads(made.payload))
        assert dataclasses.replace(told, occurred_at=NOW) == await event_of(made)
        assert type(told.entity) is type(entity)


async def test_a_loader_serves_both_ways() -> None:
    """A loader is called for an event from a record or a payload, but not for one that is only shown."""
    made = record("paid", Order(id=7))

    @entity_loader(Order)
    async def fresh(entity_id: str) -> Order:
        return Order(id=int(entity_id), note="fresh")

    assert (await event_of(made)).entity.note == "fresh"
    assert (await event_from(json.loads(made.payload))).entity.note == "fresh"
    assert shown(made).entity.note == ""


async def test_an_entity_that_fits_no_more_can_still_be_shown() -> None:
    """An entity that no longer validates raises where a run would use it, and is shown as a mapping."""
    made = record("paid", Order(id=7))._replace(entity='{"id":"x"}')
    with pytest.raises(EventInvalid, match="Event 'paid' is not usable: what is stored of its entity is no Order"):
        await event_of(made)
    with pytest.raises(EventInvalid):
        await event_from(json.loads(made.payload))
    assert shown(made).entity == {"id": "x"}
