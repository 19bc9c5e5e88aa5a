"""The records of events, of what is planned because of them, and of the workflows that they start."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Final, NamedTuple

from aioflow.clock import Micros
from aioflow.model import Signal

#: The fields of an event that the Context of a run gets which it resumes.
ABOUT_EVENT: Final = ("event_id", "event_name", "entity_id")


class EventRecord(NamedTuple):
    """One event, as it is stored."""

    id: int
    #: The caller's own name for it, or a generated one: unique in the store.
    event_id: str
    name: str
    namespace: str
    entity_id: str | None
    #: The name of the entity's type in the registry of entity types; None for a mapping, or for no entity.
    entity_type: str | None
    #: The entity as JSON.
    entity: str | None
    #: When it occurs, or has occurred.
    at: Micros
    #: From 1: rises whenever the event is replaced.
    occurrence: int
    status: str
    #: The signal id of its copies in the mailbox: a new one for each occurrence.
    mail_id: int
    recorded_at: Micros
    #: When this occurrence was committed as having occurred.
    occurred_at: Micros | None

    @property
    def payload(self) -> str:
        """The payload of its copies in the mailbox, and of the Resumption: a JSON object."""
        told = {
            "event_id": self.event_id,
            "event_name": self.name,
            "entity_id": self.entity_id,
            "namespace": self.namespace,
            "at": self.at,
            "occurrence": self.occurrence,
            "recorded_at": self.recorded_at,
            "status": self.status,
            "occurred_at": self.occurred_at,
            "entity_type": self.entity_type,
        }
        return f'{json.dumps(told)[:-1]}, "entity": {self.entity or "null"}}}'

    @property
    def arrived_at(self) -> Micros:
        """The instant that decides whether it is in time for a wait, however late its occurring was committed."""
        return max(self.at, self.recorded_at)

    def copy_for(self, run_id: int) -> Signal:
        """Its copy in the mailbox, once it has occurred, for a run that waits for it."""
        return Signal(
            id=self.mail_id,
            run_id=run_id,
            name=self.name,
            key=self.entity_id,
            payload=self.payload,
            message=0,
            broadcast=1,
            signal_id=None,
            sent_at=self.arrived_at,
            expires_at=None,
            event=self.id,
        )


class EventStatus(StrEnum):
    """Where an event stands."""

    PENDING = "pending"
    OCCURRED = "occurred"
    CANCELLED = "cancelled"


#: The ``due`` of a start that is blocked because its workflow is unknown: later than every instant.
BLOCKED: Final[Micros] = 1 << 62


class Plan(NamedTuple):
    """What is to happen at an instant because of an event: the event occurs, or a run starts."""

    #: Given by the store.
    id: int
    #: When; or ``BLOCKED``.
    due: Micros
    #: The ``EventRecord.id``.
    event: int
    occurrence: int
    #: The workflow to start; "" for the event's own occurring.
    workflow: str
    #: Of a start: how long after the event's ``at`` it is planned; negative: before.
    offset: Micros
    #: How often ``due`` was changed: because the start failed, was blocked, or was unblocked.
    attempts: int
    #: Why, the last time; None once it was unblocked.
    error: str | None


class Listener(NamedTuple):
    """One event and offset that starts a workflow, as workers tell the store."""

    workflow: str
    event_name: str
    #: "*" takes every namespace, any other only its own.
    namespace: str
    offset: Micros
