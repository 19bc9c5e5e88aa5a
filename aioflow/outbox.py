"""What a step starts, sends and emits by ``get_run()``: collected until it returns, committed with its transition."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, TypeVar

from pydantic import BaseModel

from aioflow import interventions
from aioflow.changes import Emit, Post, Start
from aioflow.clock import SECOND, Clock, Micros
from aioflow.codec import Unstorable
from aioflow.definition import WorkflowDefinition
from aioflow.errors import (
    ContextInvalid,
    LimitExceeded,
    RunNotFound,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    UsageError,
)
from aioflow.events import EventDraft
from aioflow.events import draft as event_draft
from aioflow.ids import Ids
from aioflow.model import Run, StartOptions
from aioflow.registry import Registry, workflow_name
from aioflow.signals import Draft, draft
from aioflow.store import RunQuery, Store

T = TypeVar("T")

#: How many starts, signals and events one step may order.
MOST: Final = 1_000
_FIRST_PAUSE: Micros = 20_000
_LONGEST_PAUSE: Micros = SECOND


class StartOrder(NamedTuple):
    """An order to start a run."""

    definition: WorkflowDefinition
    options: StartOptions
    keywords: Mapping[str, Any]


#: What a step orders through its outbox.
Order: TypeAlias = Draft | StartOrder | EventDraft


class Outbox:
    """The orders of one attempt of a step: what it starts, sends and emits.

    The mutable state: the orders, and whether the step has returned (``closed``).
    """

    def __init__(self, registry: Registry, run: Run) -> None:
        self._registry = registry
        self.run = run
        self.orders: list[Order] = []
        self.closed = False

    def start(self, workflow: object, options: StartOptions, keywords: Mapping[str, Any]) -> None:
        """Order the start of a run."""
        if not isinstance(options, StartOptions):
            raise TypeError(
                "get_run().start() takes StartOptions(...) after the workflow, and the Context's values as keywords; "
                f"got {type(options).__name__}."
            )
        definition = self._registry.find(workflow)
        definition.check_keywords(keywords)
        self._add(StartOrder(definition, options, {name: _as_it_is(value) for name, value in keywords.items()}))

    def signal(self, name_or_message: object, payload: object, **address: Any) -> None:
        """Order a signal to be sent."""
        asked = draft(name_or_message, payload, **address)
        if asked.workflow is not None:
            workflow_name(asked.workflow)
        self._add(asked)

    def emit(self, name: object, entity: object, **how: Any) -> None:
        """Order an event to be emitted."""
        self._add(event_draft(name, entity, **how))

    def _add(self, order: Order) -> None:
        if self.closed:
            raise UsageError(
                f"Step {self.run.step!r} of run {self.run.id} has returned: what it starts and sends is committed with "
                "it. Call get_run().start(), .signal() and .emit() before that."
            )
        if len(self.orders) >= MOST:
            what = f"Step {self.run.step!r} of run {self.run.id}"
            raise LimitExceeded(what, f"{MOST} starts, signals and events", "one more; leave the rest to further steps")
        self.orders.append(order)


class Orders(Protocol):
    """Gives steps their outboxes, and turns the orders in them into changes."""

    def outbox(self, run: Run) -> Outbox:
        """A new outbox for an attempt of the run's step."""
        ...

    async def changes(self, outbox: Outbox) -> tuple[Start | Post | Emit, ...]:
        """The changes to commit with the step's transition. Raises an error for an order that cannot be carried out."""
        ...


class Office:
    """Makes the changes that start runs, send signals and emit events, for callers and for steps.

    The mutable state: the instant of the last signal, and ``closed``: then a failed question to the store is not
    repeated. ``listen``, set in workers only, tells the store which events this process's workflows start from.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        registry: Registry,
        run_ids: Ids,
        signal_ids: Ids,
        commit_ids: Iterator[int],
        *,
        store_id: str,
    ) -> None:
        self.store = store
        self.store_id = store_id
        self.clock = clock
        self.registry = registry
        self.run_ids = run_ids
        self.signal_ids = signal_ids
        self.event_ids = Ids(store, clock, "event", block=500)
        self.commit_ids = commit_ids
        self.listen: Callable[[Micros | None], Awaitable[None]] | None = None
        self._last_sent: Micros = 0
        self.closed = False

    async def ask(self, question: Callable[[], Awaitable[T]], patience: Micros | None) -> T:
        """Ask the store, again and again while it is not available.

        Args:
            question: must be harmless when it is asked twice.
            patience: microseconds of real time after which that is an error; None: never.

        Raises:
            StoreUnavailable: the patience has run out.
        """
        until = None if patience is None else self.clock.monotonic() + patience
        pause = _FIRST_PAUSE
        while True:
            limit = asyncio.timeout(None if until is None else max(until - self.clock.monotonic(), 0) / SECOND)
            try:
                async with limit:
                    return await question()
            except TimeoutError as error:
                if not limit.expired():
                    raise
                raise StoreUnavailable(self.store.name, "it does not answer") from error
            except StoreRefused:
                raise
            except StoreError:
                if self.closed or (until is not None and self.clock.monotonic() + pause >= until):
                    raise
            await self.clock.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def start_of(
        self,
        definition: WorkflowDefinition,
        options: StartOptions,
        keywords: Mapping[str, Any],
        *,
        parent: Run | None = None,
        from_json: bool = False,
        patience: Micros | None = None,
        promise: Callable[[], int | None] | None = None,
    ) -> Start:
        """The change that starts a run.

        Args:
            definition: its workflow.
            options: how it is started.
            keywords: what its Context is made of.
            parent: the run whose step starts it.
            from_json: see ``WorkflowDefinition.new_context``.
            patience: see ``ask``.
            promise: ``Slots.promise``: gives the owner if the run begins at once; without it the run has no owner.

        Raises:
            TypeError, ContextInvalid, LimitExceeded: the keywords make no Context that can be stored.
        """
        try:
            context = definition.new_context(keywords, from_json=from_json)
            data, live = definition.codec.encode(context if isinstance(context, BaseModel) else await context)
        except Unstorable as error:
            raise ContextInvalid(definition.name, f"it cannot be stored: {error}") from error
        run_id = self.run_ids.at_hand() or await self.ask(self.run_ids.take, patience)
        now = self.clock.micros()
        due = options.due(now)
        return interventions.start(
            definition,
            data,
            run_id=run_id,
            key=options.key,
            reuse=options.reuse,
            due=due,
            parent_id=None if parent is None else parent.id,
            owner=promise() if promise is not None and interventions.begins(definition, due, now) else None,
            now=now,
            commit_id=next(self.commit_ids),
            live=live,
        )

    async def post_of(self, asked: Draft, patience: Micros | None = None) -> Post:
        """The change that sends a signal. ``patience``: see ``ask``.

        Raises:
            RunNotFound: it is addressed to a workflow and key, and there is no such run.
        """
        run_id = asked.run_id
        if asked.workflow is not None:
            name = workflow_name(asked.workflow)
            key = asked.key or ""
            query = RunQuery(workflow=(name,), key=(key,), order="created_at", limit=1, own=True)
            rows = await self.ask(lambda: self.store.select(query, self.clock.micros()), patience)
            if not rows:
                raise RunNotFound(workflow=name, key=key)
            run_id = rows[0].id
        id_ = self.signal_ids.at_hand() or await self.ask(self.signal_ids.take, patience)
        self._last_sent = max(self._last_sent, self.clock.micros())  # keeps the order when the clock is set back
        return Post(asked.signal(id_, run_id, self._last_sent))

    async def emit_of(self, asked: EventDraft, patience: Micros | None = None) -> Emit:
        """The change that emits an event. ``patience``: see ``ask``."""
        if self.listen is not None:  # workflows that were defined just now are to hear this event already
            await self.listen(patience)
        id_ = self.event_ids.at_hand() or await self.ask(self.event_ids.take, patience)
        mail_id = self.signal_ids.at_hand() or await self.ask(self.signal_ids.take, patience)
        # Of an id that is unique in the store, and of the store's own id: no caller gives the same by accident.
        event_id = f"{self.store_id}:event:{id_}"
        return Emit(asked.record(id_, mail_id, event_id, self.clock.micros()), asked.replace)

    def outbox(self, run: Run) -> Outbox:
        """See Orders."""
        return Outbox(self.registry, run)

    async def changes(self, outbox: Outbox) -> tuple[Start | Post | Emit, ...]:
        """See Orders."""
        changes: list[Start | Post | Emit] = []
        given: set[tuple[str, ...]] = set()
        for order in _once(outbox.orders):
            if (name := _name_of(order)) is not None:
                given.add(name)
            if isinstance(order, EventDraft):
                changes.append(await self.emit_of(order))
            elif isinstance(order, Draft):
                if order.workflow is not None and ("run", workflow_name(order.workflow), order.key or "") in given:
                    order = order._replace(workflow=None)  # noqa: PLW2901 - its run starts in this commit: by key
                changes.append(await self.post_of(order))
            else:
                changes.append(await self.start_of(*order, parent=outbox.run))
        return tuple(changes)


def _as_it_is(value: Any) -> Any:
    """A copy, which the step cannot change afterwards."""
    try:
        return _copy(value)
    except Exception:  # noqa: BLE001 - too deep, or cannot be copied: the start finds out whether it can be stored
        return value


def _copy(value: Any) -> Any:
    # Only containers and models are copied: any other object is the user's own, and is passed on as it is.
    kind = type(value)
    if kind in (list, tuple, set, frozenset):
        return kind(map(_copy, value))
    if kind is dict:
        return {key: _copy(item) for key, item in value.items()}
    return value.model_copy(deep=True) if isinstance(value, BaseModel) else value


def _once(orders: Iterable[Order]) -> list[Order]:
    """The orders without duplicates: a batch has one Start per key, one Post per signal_id and one Emit per event_id.

    As if they were committed one by one, the first counts, or the last event that replaces it.
    """
    found: dict[object, Order] = {}
    for number, order in enumerate(orders):
        name = _name_of(order) or number
        first = found.setdefault(name, order)
        if (
            isinstance(order, EventDraft)
            and order.replace
            and isinstance(first, EventDraft)
            and order.name == first.name
        ):
            found[name] = order
    return list(found.values())


def _name_of(order: Order) -> tuple[str, ...] | None:
    """What must be unique in a batch: the workflow and key of a run, a signal_id, or an event_id."""
    if isinstance(order, Draft):
        return None if order.signal_id is None else ("signal", order.signal_id)
    if isinstance(order, EventDraft):
        return None if order.event_id is None else ("event", order.event_id)
    return None if order.options.key is None else ("run", order.definition.name, order.options.key)
