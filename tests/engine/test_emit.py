"""Events: how callers emit, find and cancel them, on every store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from aioflow import (
    Engine,
    Event,
    Retry,
    StartOptions,
    complete,
    errors,
    event_workflow,
    fail,
    get_run,
    goto,
    sleep,
    step,
    wait,
    workflow,
)
from aioflow.changes import Change, Emit, Listen, Result
from aioflow.clock import Micros
from aioflow.commands import Command
from aioflow.outbox import MOST
from aioflow.plans import Listener
from aioflow.store import EventQuery
from aioflow_memory import MemoryStore
from tests.engine.conftest import MakeEngine, ShiftedClock, run_of
from tests.faulty import lost
from tests.flows import flow


class Order(BaseModel):
    """An entity."""

    id: int
    note: str = ""


class Empty(BaseModel):
    """A Context without fields."""


@workflow("emit-waits")
class Waits:
    """Waits until it is cancelled."""

    Context = Empty

    @step(start=True)
    async def begin(self) -> Command:
        return wait.for_signal("go", then=self.end)

    @step
    async def end(self) -> Command:
        return complete()


def order_of(first: Any) -> Any:
    """A workflow with this first step, and a second one that completes the run."""

    def second(self: Any) -> Command:
        return complete()

    first.__name__ = "first"
    return flow(Empty, first, second)


def parts_of(engine: Engine) -> Any:
    """The parts of the open engine."""
    return engine._open_for("a test")


async def planned(engine: Engine) -> int:
    """How many starts are planned in the store."""
    parts = parts_of(engine)
    return int((await parts.store.stats(parts.clock.micros())).planned)


async def listen(engine: Engine, *offsets: timedelta) -> None:
    """Register a listener to "visit" with these offsets in the store, as a worker would."""
    found = tuple(Listener("visitor", "visit", "*", offset // timedelta(microseconds=1)) for offset in offsets)
    await parts_of(engine).committer.commit(Listen(("visitor",), found))


def ids(events: list[Event]) -> list[str]:
    """The ids of the events, in order."""
    return [event.id for event in events]


# ---- emit


async def test_an_event_is_recorded(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """``emit`` returns the event as every process reads it: typed entity, instants in UTC, occurred now."""
    before = clock.now()
    async with make_engine(Waits) as engine:
        event = await engine.emit("paid", Order(id=7, note="n"), event_id="e1", namespace="north")
        assert (event.id, event.name, event.namespace, event.entity_id) == ("e1", "paid", "north", "7")
        assert event.entity == Order(id=7, note="n")
        assert (event.status, event.occurrence) == ("occurred", 1)
        assert before <= event.at == event.recorded_at <= (event.occurred_at or before) <= clock.now()
        async with make_engine(Waits, worker=False) as client:
            assert await client.events() == [event]


async def test_what_is_to_come_is_pending(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """With ``at`` in the future an event is pending, exact to the microsecond; with a past one it has occurred."""
    at = clock.now() + timedelta(days=3, microseconds=1)
    async with make_engine(Waits) as engine:
        event = await engine.emit("visit", at=at)
        assert (event.at, event.status, event.occurred_at, event.entity) == (at, "pending", None, None)
        past = await engine.emit("visit", at=datetime(1969, 1, 1, tzinfo=UTC))
        assert (past.status, past.at.year) == ("occurred", 1969)


async def test_ids_are_made_where_none_is_given(make_engine: MakeEngine) -> None:
    """An event without an event_id gets a unique one, by which it is found, even after a restart."""
    made: list[str] = []
    for _ in range(2):
        async with make_engine(Waits) as engine:
            made += ids(await asyncio.gather(*(engine.emit("paid", {"n": n}) for n in range(20))))
    assert len(set(made)) == 40
    async with make_engine(Waits) as engine:
        assert ids(await engine.events(event_id=made[3])) == [made[3]]


@pytest.mark.parametrize("entity_id", ["a", 7, UUID(int=7)], ids=lambda each: type(each).__name__)
async def test_the_id_of_what_it_is_about(make_engine: MakeEngine, entity_id: Any) -> None:
    """entity_id is stored as a string, and the event is found by the original value and by the string."""
    async with make_engine(Waits) as engine:
        event = await engine.emit("paid", {"id": entity_id})
        assert event.entity_id == str(entity_id)
        assert await engine.events(entity_id=entity_id) == await engine.events(entity_id=str(entity_id)) == [event]


async def test_a_second_emit_returns_the_first_event(make_engine: MakeEngine) -> None:
    """A second emit with the same event_id returns the first event unchanged, and one with another name is IdTaken."""
    async with make_engine(Waits) as engine, make_engine(Waits, worker=False) as other:
        first = await engine.emit("paid", Order(id=1), event_id="e")
        assert await engine.emit("paid", Order(id=2), event_id="e", namespace="n") == first
        assert await other.emit("paid", event_id="e") == first
        with pytest.raises(
            errors.IdTaken, match=r"^event_id 'e' is already used for an event 'paid'\. It must be unique in the whole"
        ):
            await other.emit("refunded", Order(id=2), event_id="e")
        for one in (engine, other):
            with pytest.raises(errors.IdTaken, match=r"^event_id 'e' is already used for an event 'paid'\."):
                await one.emit("refunded", Order(id=2), event_id="e", replace=True)
        assert await engine.events() == [first]


async def test_many_at_once_are_one(make_engine: MakeEngine) -> None:
    """Many concurrent emits of one event_id, from two engines, all return the same event."""
    async with make_engine(Waits) as engine, make_engine(Waits, worker=False) as other:
        events = await asyncio.gather(
            *(one.emit("paid", {"n": n}, event_id="e") for n in range(50) for one in (engine, other))
        )
        assert len(events) == 100
        assert [event for event in events if event != events[0]] == []
        assert await engine.events() == [events[0]]


async def test_replace_moves_an_event(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """``replace=True`` changes everything but the id and when the event was first recorded, and is a new occurrence."""
    at = clock.now() + timedelta(days=1)
    async with make_engine(Waits) as engine:
        first = await engine.emit("visit", Order(id=1), event_id="e", at=at)
        clock.shift(timedelta(minutes=1))
        moved = await engine.emit("visit", Order(id=2), event_id="e", at=at + timedelta(1), replace=True)
        assert (moved.id, moved.recorded_at, moved.occurrence) == ("e", first.recorded_at, 2)
        assert (moved.entity, moved.entity_id, moved.at) == (Order(id=2), "2", at + timedelta(1))
        assert await engine.events() == [moved]
        new = await engine.emit("visit", event_id="new", replace=True)
        assert (new.occurrence, new.status) == (1, "occurred")


async def test_a_lost_reply_emits_once(clock: ShiftedClock) -> None:
    """If the reply to an emit's commit is lost, the event is offered again and recorded once."""
    faults: list[str] = []

    class Losing(MemoryStore):
        async def apply(self, changes: Sequence[Change], now: Micros) -> list[Result]:
            results = await super().apply(changes, now)
            if any(isinstance(change, Emit) for change in changes) and len(faults) < 2:
                faults.append("lost")
                raise lost("after")
            return results

    async with Engine(Losing(), workflows=[Waits], clock=clock) as engine:
        event = await engine.emit("paid", Order(id=1), event_id="e", replace=True)
        assert faults == ["lost", "lost"]
        assert event.occurrence == 1
        assert await engine.events() == [event]


# ---- plans


async def test_emitting_plans_the_starts(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """An emit plans a start for each listener and offset; a replacement plans them anew, and a cancel drops them."""
    at = clock.now() + timedelta(days=3)
    async with make_engine(Waits, worker=False) as engine:
        await listen(engine, timedelta(0), timedelta(hours=-1))
        await engine.emit("visit", event_id="e", at=at)
        await engine.emit("visit", event_id="e", at=at)
        await engine.emit("paid", event_id="other", at=at)
        assert await planned(engine) == 2
        await engine.emit("visit", event_id="e", at=at + timedelta(1), replace=True)
        assert await planned(engine) == 2
        assert await engine.cancel_event("e") is True
        assert await planned(engine) == 0


async def test_a_workflow_defined_while_the_engine_works(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """An event emitted right after its workflow was defined is planned for it at once."""
    async with make_engine() as engine:

        @event_workflow("emit.defined-late", name="emit-defined-late")
        class Late:
            @step(start=True)
            async def begin(self) -> Command:
                return complete()

        await engine.emit("emit.defined-late", at=clock.now() + timedelta(days=1))
        assert await planned(engine) == 1


# ---- cancel_event


async def test_cancelling_an_event(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """cancel_event returns True the first time and False the next; for an unknown event it is EventNotFound."""
    async with make_engine(Waits) as engine:
        event = await engine.emit("visit", Order(id=3), event_id="e", at=clock.now() + timedelta(1))
        assert await engine.cancel_event("e") is True
        assert await engine.cancel_event(event.id) is False
        (cancelled,) = await engine.events()
        assert (cancelled.status, cancelled.entity) == ("cancelled", Order(id=3))
        with pytest.raises(errors.EventNotFound) as caught:
            await engine.cancel_event("f")
        assert caught.value.event_id == "f"


async def started_by(engine: Engine, event_id: str, count: int) -> list[int]:
    """This many waiting runs with this event_id."""
    parts = parts_of(engine)
    runs = []
    for _ in range(count):
        start = await parts.office.start_of(
            parts.registry.find(Waits), StartOptions(delay=timedelta(days=1)), {}, patience=None
        )
        runs.append(parts.committer.submit(start._replace(run=start.run._replace(event_id=event_id))))
    return [result.run.id for result in await asyncio.gather(*runs)]


@pytest.mark.parametrize("again", [False, True])
async def test_cancelling_an_event_with_its_runs(make_engine: MakeEngine, again: bool) -> None:
    """``runs=True`` cancels all live runs of this event alone, even if the event was cancelled before."""
    async with make_engine(Waits) as engine:
        await engine.emit("visit", event_id="e")
        mine = await started_by(engine, "e", 1_100)
        others = await started_by(engine, "f", 2) + [(await engine.start(Waits)).id]
        if again:
            await engine.cancel_event("e")
            assert await engine.count(status="cancelled") == 0
        assert await engine.cancel_event("e", runs=True) is not again
        assert await engine.count(status="cancelled", event_id="e") == len(mine) == 1_100
        assert await engine.count(status="cancelled") == len(mine)
        run = await engine.get(mine[0])
        assert (run.error, run.event_id) == ("Event 'e' was cancelled.", "e")
        for other in others:
            assert not (await engine.get(other)).status.ended


async def test_cancelling_an_event_alone_leaves_its_runs(make_engine: MakeEngine) -> None:
    """Without ``runs=True`` the runs that the event has started go on."""
    async with make_engine(Waits) as engine:
        await engine.emit("visit", event_id="e")
        (run_id,) = await started_by(engine, "e", 1)
        assert await engine.cancel_event("e") is True
        assert (await engine.get(run_id)).status == "waiting"


# ---- events


async def test_filters(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A filter takes one value or several; filters are combined with "and"; instants are exclusive bounds."""
    now = clock.now() + timedelta(hours=1)
    hours = [now + timedelta(hours=n) for n in range(4)]
    async with make_engine(Waits) as engine:
        await engine.emit("a", {"id": 1}, event_id="1", at=hours[0])
        await engine.emit("b", {"id": 1}, event_id="2", at=hours[1], namespace="n")
        await engine.emit("a", {"id": 2}, event_id="3", at=hours[2], namespace="m")
        await engine.emit("c", event_id="4", at=hours[3])
        await engine.cancel_event("4")
        await engine.emit("a", event_id="5")
        cases: list[tuple[dict[str, Any], str]] = [
            ({}, "54321"),
            ({"order": "id"}, "12345"),
            ({"name": "a"}, "531"),
            ({"name": ["b", "c"]}, "42"),
            ({"namespace": "n"}, "2"),
            ({"namespace": ("n", "m"), "order": "id"}, "23"),
            ({"entity_id": 1}, "21"),
            ({"entity_id": ["1", 2]}, "321"),
            ({"event_id": ["1", "5", "9"]}, "51"),
            ({"status": "pending"}, "321"),
            ({"status": ["cancelled", "occurred"]}, "54"),
            ({"at_after": hours[1]}, "43"),
            ({"at_before": hours[1]}, "51"),
            ({"at_after": hours[0], "at_before": hours[3]}, "32"),
            ({"name": "a", "entity_id": 1}, "1"),
            ({"name": []}, ""),
            ({"entity_id": (), "name": "a"}, ""),
            ({"status": set()}, ""),
            ({"name": None, "status": None}, "54321"),
            ({"limit": 2}, "54"),
        ]
        for filters, expected in cases:
            assert "".join(ids(await engine.events(**filters))) == expected, filters


@pytest.mark.parametrize("order", ["id", "-id"])
async def test_pages(make_engine: MakeEngine, order: str) -> None:
    """Pages after an event or its id give every event once, even if one is replaced meanwhile."""
    async with make_engine(Waits) as engine:
        for n in range(7):
            await engine.emit("a", {"n": n}, event_id=f"e{n}")
        found = await engine.events(order=order, limit=3)
        await engine.emit("a", event_id=found[-1].id, replace=True)
        found += await engine.events(order=order, limit=3, after=found[-1])
        found += await engine.events(order=order, limit=3, after=found[-1].id)
        assert await engine.events(order=order, limit=3, after=found[-1]) == []
        expected = [f"e{n}" for n in range(7)]
        assert ids(found) == (expected if order == "id" else expected[::-1])


# ---- events emitted by steps


@pytest.mark.parametrize("sync", [False, True])
async def test_a_step_emits(make_engine: MakeEngine, clock: ShiftedClock, sync: bool) -> None:
    """Sync and async steps emit, and the events are there when the run goes on."""
    at = clock.now() + timedelta(days=1)

    def orders() -> Command:
        me = get_run()
        me.emit("paid", Order(id=1), event_id="e1")
        me.emit("visit", entity_id=5, at=at, namespace="n")
        return goto("second")

    def in_thread(self: Any) -> Command:
        return orders()

    async def on_loop(self: Any) -> Command:
        return orders()

    order = order_of(in_thread if sync else on_loop)
    async with make_engine(order) as engine:
        assert (await run_of(engine, order)).status == "completed"
        paid, visit = await engine.events(order="id")
        assert (paid.id, paid.entity, paid.status) == ("e1", Order(id=1), "occurred")
        assert (visit.entity_id, visit.at, visit.namespace, visit.status) == ("5", at, "n", "pending")


async def test_an_attempt_that_fails_emits_nothing(make_engine: MakeEngine) -> None:
    """What a failed attempt emitted is discarded, and what the successful one emitted is recorded once."""

    async def first(self: Any) -> Command:
        get_run().emit("paid", {"attempt": get_run().attempt})
        if get_run().attempt < 3:
            raise RuntimeError("again")
        return fail("on purpose")

    order = order_of(first)
    async with make_engine(order) as engine:
        assert (await run_of(engine, order)).status == "failed"
        assert [event.entity for event in await engine.events()] == [{"attempt": 3}]


async def test_several_emits_of_one_event_id_in_a_step(make_engine: MakeEngine) -> None:
    """Of several emits of one event_id in a step, the first counts, or the last with replace=True; old events stay."""

    async def first(self: Any) -> Command:
        emit = get_run().emit
        emit("a", {"n": 1}, event_id="first")
        emit("a", {"n": 2}, event_id="first")
        emit("a", {"n": 1}, event_id="last")
        emit("a", {"n": 2}, event_id="last", replace=True)
        emit("a", {"n": 3}, event_id="last")
        emit("a", {"n": 9}, event_id="there")
        emit("a", {"n": 9}, event_id="moved", replace=True)
        emit("a", {"n": 1})
        emit("a", {"n": 2})
        return goto("second")

    order = order_of(first)
    async with make_engine(order) as engine:
        for event_id in ("there", "moved"):
            await engine.emit("a", {"n": 0}, event_id=event_id)
        assert (await run_of(engine, order)).status == "completed"
        found = {event.id: (event.entity["n"], event.occurrence) for event in await engine.events()}
        assert len(found) == 6
        assert found["first"] == (1, 1)
        assert found["last"][0] == 2
        assert (found["there"], found["moved"]) == ((0, 1), (9, 2))


async def test_events_beside_starts_and_signals(make_engine: MakeEngine) -> None:
    """A key, a signal_id and an event_id with the same text do not interfere."""

    async def first(self: Any) -> Command:
        me = get_run()
        me.start(Waits, StartOptions(key="x"))
        me.signal("go", key="y", signal_id="x")
        me.emit("paid", event_id="x")
        return goto("second")

    order = order_of(first)
    async with make_engine(order, Waits) as engine:
        assert (await run_of(engine, order)).status == "completed"
        assert (await engine.find(Waits, "x")).key == "x"
        assert ids(await engine.events()) == ["x"]
        assert (await engine.stats()).mailbox == 1


async def test_what_a_step_cannot_emit(make_engine: MakeEngine) -> None:
    """emit with a wrong argument, beyond the limit of orders, or after the step has returned raises at that line."""
    problems: list[Exception] = []
    kept: list[Any] = []

    async def first(self: Any) -> Command:
        me = get_run()
        kept.append(me)
        for wrong in ({"entity": [1]}, {"entity": {"x": object()}}, {"replace": True}):
            try:
                me.emit("paid", **wrong)
            except (TypeError, errors.EventInvalid) as problem:
                problems.append(problem)
        for n in range(MOST):
            me.emit("paid", {"n": n})
        try:
            me.emit("paid")
        except errors.LimitExceeded as problem:
            problems.append(problem)
        return goto("second")

    order = order_of(first)
    async with make_engine(order) as engine:
        assert (await run_of(engine, order)).status == "completed"
        kinds = [TypeError, errors.EventInvalid, TypeError, errors.LimitExceeded]
        assert [type(problem) for problem in problems] == kinds
        assert [event.entity["n"] for event in await engine.events(order="id", limit=2_000)] == list(range(MOST))
        with pytest.raises(errors.UsageError, match="has returned"):
            kept[0].emit("late")


async def test_a_step_that_repeats_emits_each_time(make_engine: MakeEngine) -> None:
    """Each visit of a step that emits without an event_id emits an event of its own."""

    @workflow("order", default_retry=Retry(max_attempts=1))
    class Twice:
        class Context(BaseModel):
            n: int = 0

        @step(start=True)
        async def begin(self) -> Command:
            get_run().emit("tick")
            return sleep(timedelta(0), then=self.again)

        @step
        async def again(self) -> Command:
            get_run().emit("tick")
            return complete()

    async with make_engine(Twice) as engine:
        assert (await run_of(engine, Twice)).status == "completed"
        assert len(set(ids(await engine.events(name="tick")))) == 2


async def test_the_mail_ids_are_the_signals_own(make_engine: MakeEngine) -> None:
    """An event's mail_id is taken from the ids of signals, so none of its copies can be mistaken for a signal."""
    async with make_engine(Waits) as engine:
        await engine.signal("one", key="k")
        await engine.emit("paid", event_id="e")
        await engine.signal("two", key="k")
        parts = parts_of(engine)
        (row,) = await parts.store.select(EventQuery(event_id=("e",)), parts.clock.micros())
        assert row.mail_id == (await parts.signal_ids.take()) - 2
