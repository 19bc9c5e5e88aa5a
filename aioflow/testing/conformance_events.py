"""Emit, Occur and Withdraw: what is recorded, and which waiting runs hear of it."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from aioflow.changes import Change, Emit, Occur, Post, Result, Withdraw
from aioflow.clock import SECOND
from aioflow.errors import StoreRefused
from aioflow.model import Deadline
from aioflow.plans import EventRecord, Plan
from aioflow.store import EventQuery, RunQuery, Store
from aioflow.testing.conformance_samples import (
    NOW,
    a_listener,
    a_run,
    a_signal,
    a_waiter,
    an_event,
    an_event_waiter,
    arms,
    cancelling,
    do,
    emit,
    event_arms,
    ids,
    listen,
    mailbox,
    moving,
    outcomes,
    planned,
    plans,
    post,
    put,
    resuming,
    row,
    the_event,
)

HOUR: Final = 3600 * SECOND
_TEXT: Final = "'; DROP TABLE events; -- \"`\\ %_$1?:a[]{} \t\r\n größe ✓ 🦀 \u202e\u0301 \x01\x7f"

#: filters, ids of the events in the test that match
ASKED: Final[list[tuple[dict[str, Any], list[int]]]] = [
    ({}, [4, 3, 2, 1]),
    ({"descending": False}, [1, 2, 3, 4]),
    ({"limit": 2}, [4, 3]),
    ({"after": 3}, [2, 1]),
    ({"after": 2, "descending": False}, [3, 4]),
    ({"event_id": ("event-2", "event-4", "none")}, [4, 2]),
    ({"name": ("paid",)}, [3]),
    ({"namespace": ("shop",)}, [2]),
    ({"entity_id": ("e1",)}, [4, 1]),
    ({"entity_id": ("e1", "e2")}, [4, 2, 1]),
    ({"status": ("pending",)}, [4, 3]),
    ({"status": ("occurred", "cancelled")}, [2, 1]),
    ({"at_after": NOW}, [4, 3]),
    ({"at_before": NOW + 2 * HOUR}, [3, 2, 1]),
    ({"at_after": NOW, "at_before": NOW + 2 * HOUR, "name": ("paid", "ordered")}, [3]),
    ({"name": ("ordered' OR '1'='1",)}, []),
]


def _occurred(event: EventRecord, now: int = NOW, **columns: Any) -> EventRecord:
    return event._replace(status="occurred", occurred_at=now, **columns)


class EventsConformance:
    """What happens is recorded once, and told to those who wait for it."""

    # ---- Emit

    @pytest.mark.parametrize("ago", [0, 1, HOUR])
    async def test_an_event_that_is_past_occurs_at_once(self, store: Store, ago: int) -> None:
        """Also one at this very instant. The store says occurrence, status and when it was."""
        [result] = await emit(store, an_event(at=NOW - ago, occurrence=9, status="x", occurred_at=7))
        assert result == Result("applied", event=_occurred(an_event(at=NOW - ago)))
        assert await the_event(store) == result.event
        assert await plans(store) == []

    async def test_an_event_of_the_future_is_pending(self, store: Store) -> None:
        """Its occurring is planned, and the result tells when that is due. The store says the same of it as of others."""
        [result] = await emit(store, an_event(at=NOW + 1, occurrence=9, status="x", occurred_at=7))
        assert result.event == an_event(at=NOW + 1) == await the_event(store)
        [plan] = await plans(store)
        assert plan == Plan(plan.id, NOW + 1, 1, 1, "", 0, 0, None)
        assert result.plans == (Deadline(NOW + 1, plan.id, 0),)

    async def test_an_event_id_is_recorded_once(self, store: Store) -> None:
        """Another event of this event_id exists, with the one that there is, and plans nothing."""
        await emit(store, an_event(at=NOW + HOUR))
        await listen(store, a_listener())
        assert await store.apply([Emit(an_event(2, event_id="event-1"))], NOW) == [
            Result("exists", event=an_event(at=NOW + HOUR))
        ]
        assert await planned(store) == [("", HOUR)]
        assert len(await store.select(EventQuery(), NOW)) == 1

    @pytest.mark.parametrize("replace", [False, True])
    @pytest.mark.parametrize("at", [NOW, NOW + HOUR])
    async def test_an_emit_may_be_offered_again(self, store: Store, at: int, *, replace: bool) -> None:
        """It is applied again, tells the event and who has its mail, and changes and plans nothing."""
        await put(store, an_event_waiter(1))
        await listen(store, a_listener(offset=HOUR))
        [first] = await store.apply([Emit(an_event(at=at), replace)], NOW)
        before = await plans(store)
        [again] = await store.apply([Emit(an_event(at=at), replace)], NOW + SECOND)
        assert again == first._replace(plans=())
        assert await plans(store) == before
        assert (await store.stats(NOW)).mailbox == len(first.run_ids)

    @pytest.mark.parametrize("replace", [False, True])
    async def test_an_emit_that_was_replaced_since_may_be_offered_again(self, store: Store, *, replace: bool) -> None:
        """It was applied, which another has replaced: it is no second occurrence, by itself or with a move."""
        await put(store, a_run(5, status="running", owner=None))
        move = moving(await row(store, 5))._replace(also=(Emit(an_event(at=NOW + HOUR), replace),))
        await store.apply([move], NOW)
        later = an_event(2, event_id="event-1", namespace="shop", at=NOW + 2 * HOUR)
        [moved] = await store.apply([Emit(later, replace=True)], NOW)
        before = await plans(store)
        [again] = await store.apply([Emit(an_event(at=NOW + HOUR), replace)], NOW + SECOND)
        assert again == Result("applied", event=moved.event)
        [again] = await store.apply([move], NOW + SECOND)
        assert [part.outcome for part in again.also] == ["applied"]
        assert await the_event(store) == moved.event
        assert await plans(store) == before

    @pytest.mark.parametrize("was", ["pending", "occurred", "cancelled"])
    @pytest.mark.parametrize("at", [NOW + 5, NOW + HOUR])
    async def test_an_event_is_replaced(self, store: Store, was: str, at: int) -> None:
        """All but id, event_id and recorded_at is new, the occurrence is one higher, and old plans are gone."""
        await listen(store, a_listener(offset=HOUR))
        await emit(store, an_event(at=NOW if was == "occurred" else NOW + 9))
        if was == "cancelled":
            await store.apply([Withdraw("event-1")], NOW)
        old = await plans(store)
        new = an_event(
            7, event_id="event-1", namespace="shop", entity_id="e2", entity_type=None, entity="[]", at=at, recorded_at=NOW + 5
        )  # fmt: skip
        await listen(store, a_listener(namespace="shop"))
        [result] = await store.apply([Emit(new, replace=True)], NOW + 5)
        expected = new._replace(id=1, occurrence=2, recorded_at=NOW)
        expected = expected if at > NOW + 5 else _occurred(expected, NOW + 5)
        assert result.event == expected == await the_event(store)
        now = await plans(store)
        assert [(plan.event, plan.occurrence, plan.workflow, plan.due) for plan in now if plan.workflow] == [
            (1, 2, "order", at)
        ]
        assert [plan.due for plan in now if not plan.workflow] == ([at] if at > NOW + 5 else [])
        assert not {plan.id for plan in old} & {plan.id for plan in now}

    @pytest.mark.parametrize("was", ["pending", "occurred", "cancelled"])
    async def test_an_event_of_another_name_is_not_replaced(self, store: Store, was: str) -> None:
        """It stays as it is, with what is planned, also in one batch with it, and where the other comes with a move."""
        await listen(store, a_listener(offset=HOUR), a_listener("other", event_name="moved"))
        await put(store, a_run(5, status="running", owner=None))
        await emit(store, an_event(at=NOW if was == "occurred" else NOW + HOUR))
        if was == "cancelled":
            await store.apply([Withdraw("event-1")], NOW)
        known, old = await the_event(store), await plans(store)
        other = Emit(an_event(2, event_id="event-1", name="moved", at=NOW + 2 * HOUR), replace=True)
        assert await store.apply([other], NOW + 5) == [Result("exists", event=known)]
        [moved] = await store.apply([moving(await row(store, 5))._replace(also=(other,))], NOW + 5)
        assert moved.also == (Result("exists", event=known),)
        assert (await the_event(store), await plans(store)) == (known, old)
        one, two = an_event(3, event_id="event-3"), an_event(4, event_id="event-3", name="moved")
        assert [told.outcome for told in await store.apply([Emit(one), Emit(two, True)], NOW)] == ["applied", "exists"]

    async def test_to_replace_what_is_not_known_is_to_record_it(self, store: Store) -> None:
        """Its first occurrence."""
        assert await store.apply([Emit(an_event(), replace=True)], NOW) == [
            Result("applied", event=_occurred(an_event()))
        ]

    async def test_an_event_comes_back_as_it_was(self, store: Store) -> None:
        """Hostile text, large numbers and none at all, in every column, and in what a run is told."""
        text = an_event(
            2**53 - 1, event_id=_TEXT, name=_TEXT, namespace=_TEXT, entity_id=_TEXT, entity_type=_TEXT,
            entity=json.dumps({_TEXT: "🦀" * 1000}), at=1, mail_id=2**53 - 1,
        )  # fmt: skip
        bare = an_event(2, entity_id=None, entity_type=None, entity=None, at=2**53 - 1)
        await put(store, an_event_waiter(1, (_TEXT, _TEXT)))
        await emit(store, text, bare)
        assert await store.select(EventQuery(), NOW) == [_occurred(text), bare]
        for event in await store.select(EventQuery(), NOW):
            assert type(event) is EventRecord
        [mail] = await store.mail(None, 9, NOW)
        assert mail[:2] == (await row(store, 1), [_occurred(text).copy_for(1)])
        assert json.loads(mail.signals[0].payload)["entity"] == {_TEXT: "🦀" * 1000}

    @pytest.mark.parametrize("odd", [{"entity": "\ud800"}, {"at": 2**10_000}], ids=["text", "number"])
    async def test_an_emit_that_cannot_be_stored_undoes_its_batch(self, store: Store, odd: dict[str, Any]) -> None:
        """Nothing of the batch was done, and without that Emit it can be done."""
        await put(store, an_event_waiter(1))
        await listen(store, a_listener())
        await emit(store, an_event(at=NOW + HOUR), an_event(2, at=NOW + HOUR))
        before = await plans(store)
        occurring = next(plan.id for plan in before if plan.event == 2 and not plan.workflow)
        good: list[Change] = [
            Emit(an_event(event_id="event-1", mail_id=5), replace=True),
            Occur(occurring, "event-2"),
            Emit(an_event(3)),
        ]
        with pytest.raises(StoreRefused):
            await store.apply([*good, Emit(an_event(4, **odd))], NOW)
        assert await plans(store) == before
        assert ids(await store.select(RunQuery(), NOW)) == [1]
        assert [event.status for event in await store.select(EventQuery(), NOW)] == ["pending"] * 2
        assert await mailbox(store) == []
        assert await outcomes(store, *good) == ["applied"] * 3
        assert len((await mailbox(store))[0][1]) == 3

    async def test_a_move_emits_what_its_step_did(self, store: Store) -> None:
        """It is committed with the move, told in its place, and known when the move is offered again."""
        await put(store, a_run(1), an_event_waiter(2))
        await emit(store, an_event(5, at=NOW + HOUR))
        move = moving(a_run(1))._replace(
            also=(Post(a_signal(1, 2, name="x")), Emit(an_event()), Emit(an_event(6, event_id="event-5")))
        )
        [result] = await store.apply([move], NOW)
        assert result.also == (
            Result("applied"),
            Result("applied", event=_occurred(an_event()), run_ids=(2,)),
            Result("exists", event=an_event(5, at=NOW + HOUR)),
        )
        [again] = await store.apply([move], NOW)
        assert [(part.outcome, part.event) for part in again.also] == [
            (part.outcome, part.event) for part in result.also
        ]

    async def test_a_move_that_is_stale_emits_nothing(self, store: Store) -> None:
        """All or nothing."""
        await put(store, a_run(1))
        stale = moving(a_run(1, fence=9))._replace(also=(Emit(an_event()),))
        assert await outcomes(store, stale) == ["stale"]
        assert await store.select(EventQuery(), NOW) == []

    # ---- Occur and Withdraw

    async def test_a_planned_event_occurs(self, store: Store) -> None:
        """Its plan is gone, the others stay, and those who wait have mail."""
        await put(store, an_event_waiter(1))
        await listen(store, a_listener(offset=HOUR))
        [emitted] = await emit(store, an_event(at=NOW + 5))
        assert await mailbox(store) == []
        [plan] = [plan for plan in await plans(store) if not plan.workflow]
        event = _occurred(an_event(at=NOW + 5), NOW + 7)
        assert await store.apply([Occur(plan.id, "event-1")], NOW + 7) == [Result("applied", event=event, run_ids=(1,))]
        assert emitted.run_ids == ()
        assert await the_event(store) == event
        assert await planned(store) == [("order", HOUR + 5)]
        assert await mailbox(store) == [(1, [1001])]
        assert await store.apply([Occur(plan.id, "event-1")], NOW + 7) == [Result("stale")]

    async def test_no_plan_no_occurring(self, store: Store) -> None:
        """A plan that never was, and that of a start, is stale."""
        await listen(store, a_listener())
        await emit(store, an_event())
        [start] = await plans(store)
        assert await store.apply([Occur(start.id, "event-1"), Occur(999, "event-2")], NOW) == [Result("stale")] * 2
        assert await plans(store) == [start]

    @pytest.mark.parametrize("at", [NOW, NOW + HOUR])
    async def test_an_event_is_withdrawn(self, store: Store, at: int) -> None:
        """Whatever its status; its plans are gone, and a second time it is stale, with the event."""
        await listen(store, a_listener(offset=HOUR))
        emitted, _ = await emit(store, an_event(at=at), an_event(2))
        assert emitted.event is not None
        event = emitted.event._replace(status="cancelled")
        assert await store.apply([Withdraw("event-1")], NOW) == [Result("applied", event=event)]
        assert await the_event(store) == event
        assert [plan.event for plan in await plans(store)] == [2]
        assert await store.apply([Withdraw("event-1")], NOW) == [Result("stale", event=event)]
        assert await store.apply([Withdraw("none")], NOW) == [Result("stale")]

    # ---- what waiting runs hear

    async def test_those_hear_it_who_wait_for_it(self, store: Store) -> None:
        """By its name, for any entity or this one, in any namespace, once; no signal's arm, and no event's takes a signal."""
        await put(
            store,
            an_event_waiter(1),
            an_event_waiter(2, ("ordered", "e1")),
            an_event_waiter(3, ("ordered", "e2")),
            an_event_waiter(4, "ORDERED"),
            a_waiter(5, "ordered", ("ordered", "e1")),
            an_event_waiter(6, "paid", "ordered", ("ordered", "e1")),
            a_run(7),
        )
        [result] = await emit(store, an_event(namespace="shop"))
        assert result.run_ids == (1, 2, 6)
        assert await mailbox(store) == [(1, [1001]), (2, [1001]), (6, [1001])]
        signals = [signal for _, told, _ in await store.mail(None, 9, NOW) for signal in told]
        assert signals == [_occurred(an_event(namespace="shop")).copy_for(number) for number in (1, 2, 6)]
        assert signals[0][:5] == (1001, 1, "ordered", "e1", _occurred(an_event(namespace="shop")).payload)
        assert signals[0][6:] == (1, None, NOW, None, 1)
        assert (await store.stats(NOW)).mailbox == 3

    async def test_an_event_of_no_entity_fits_no_entitys_arm(self, store: Store) -> None:
        """Only one that asks for none."""
        await put(store, an_event_waiter(1), an_event_waiter(2, ("ordered", "e1")))
        assert (await emit(store, an_event(entity_id=None)))[0].run_ids == (1,)
        assert await mailbox(store) == [(1, [1001])]

    @pytest.mark.parametrize("place", [{"run_id": 1}, {"key": "e1"}, {}], ids=["run", "key", "all"])
    async def test_a_signal_of_an_events_name_is_none(self, store: Store, place: dict[str, Any]) -> None:
        """However it is addressed, only a signal's arm takes it."""
        await put(store, an_event_waiter(1, ("ordered", "e1"), since=NOW - 1))
        [result] = await post(store, a_signal(1, name="ordered")._replace(**place))
        assert result.run_ids == ()
        assert await mailbox(store) == []
        both = json.dumps([*json.loads(arms(("ordered", "e1"))), *json.loads(event_arms("paid"))])
        waits = await do(store, moving(an_event_waiter(1, ("ordered", "e1")), arms=both))
        [result] = await post(store, a_signal(2, name="ordered")._replace(**place))
        assert result.run_ids == (1,)
        assert (await mailbox(store))[0][1][-1] == 2
        assert waits.arms == both

    async def test_waits_for_events_are_asked_for_like_others(self, store: Store) -> None:
        """RunQuery finds an arm's name and key, whatever its kind."""
        await put(store, an_event_waiter(1, ("ordered", "e1")), an_event_waiter(2))
        assert ids(await store.select(RunQuery(waiting_signal=("ordered",)), NOW)) == [2, 1]
        assert ids(await store.select(RunQuery(waiting_signal=("ordered",), waiting_key=("e1",)), NOW)) == [1]

    async def test_a_copy_lives_as_long_as_the_wait(self, store: Store) -> None:
        """It is swept when the run went on without it, or has ended."""
        await put(store, an_event_waiter(1), an_event_waiter(2), an_event_waiter(3))
        await emit(store, an_event())
        await do(store, resuming(an_event_waiter(1)))
        await do(store, cancelling(2, commit_id=77))
        assert await mailbox(store) == [(3, [1001])]
        assert sorted(signal.run_id for signal in await store.expire(9, NOW)) == [1, 2]

    # ---- questions

    @pytest.mark.parametrize(("filters", "expected"), ASKED)
    async def test_events_are_asked_for(self, store: Store, filters: dict[str, Any], expected: list[int]) -> None:
        """Every filter, several values meaning any, in the order of ids, from a place on."""
        await emit(
            store,
            an_event(1),
            an_event(2, namespace="shop", entity_id="e2"),
            an_event(3, name="paid", entity_id=None, at=NOW + HOUR),
            an_event(4, at=NOW + 2 * HOUR),
        )
        await store.apply([Withdraw("event-2")], NOW)
        assert [event.id for event in await store.select(EventQuery(**filters), NOW)] == expected
