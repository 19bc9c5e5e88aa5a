"""Listeners and plans: which workflows an event starts, when, and that it starts them once."""

from __future__ import annotations

from typing import Any, Final

import pytest

from aioflow.changes import Change, Emit, Listen, Replan, Result, Start, Withdraw
from aioflow.clock import SECOND
from aioflow.errors import StoreRefused
from aioflow.model import Deadline
from aioflow.plans import BLOCKED, EventRecord, Plan
from aioflow.store import Planned, PlanQuery, Store
from aioflow.testing.conformance_samples import (
    NOW,
    a_listener,
    a_run,
    an_event,
    do,
    emit,
    ids,
    listen,
    log,
    moving,
    outcomes,
    planned,
    plans,
    put,
    row,
    starting,
    the_event,
)

HOUR: Final = 3600 * SECOND


def _by_plan(plan: Plan, run_id: int = 1, **columns: Any) -> Start:
    return starting(a_run(run_id, **columns))._replace(plan=plan.id)


class PlansConformance:
    """What is planned because of events."""

    # ---- Listen, and what an Emit plans

    @pytest.mark.parametrize("at", [NOW, NOW - HOUR, NOW + 2 * HOUR])
    async def test_an_event_plans_the_starts_of_those_who_listen(self, store: Store, at: int) -> None:
        """A plan for each listener, due at the event's own time plus the offset, be that past; the result tells them."""
        await listen(
            store, a_listener(), a_listener("remind", -HOUR), a_listener("remind", -2 * HOUR), a_listener("x", 5)
        )
        [result] = await emit(store, an_event(at=at))
        found = await plans(store)
        expected = [("remind", -2 * HOUR), ("remind", -HOUR), ("order", 0), ("x", 5)]
        starts = [plan for plan in found if plan.workflow]
        assert starts == [
            Plan(plan.id, at + offset, 1, 1, workflow, offset, 0, None)
            for plan, (workflow, offset) in zip(starts, expected, strict=True)
        ]
        assert len(found) - len(starts) == (at > NOW)
        assert sorted(result.plans) == [Deadline(plan.due, plan.id, 0) for plan in found]
        assert all(type(deadline) is Deadline for deadline in result.plans)

    async def test_who_listens_to_a_namespace_hears_no_other(self, store: Store) -> None:
        """Those who listen to all hear all; an event in "*" is in no other namespace."""
        await listen(
            store,
            a_listener("all"),
            a_listener("shop", namespace="shop"),
            a_listener("other", namespace="Shop"),
            a_listener("name", event_name="Ordered"),
        )
        await emit(store, an_event(1, namespace="shop"))
        assert sorted(await planned(store)) == [("all", 0), ("shop", 0)]
        await emit(store, an_event(2))
        assert sorted(await planned(store)) == [("all", 0), ("all", 0), ("shop", 0)]

    async def test_who_listens_twice_starts_once(self, store: Store) -> None:
        """One plan for an event, a workflow and an offset, by however many namespaces it fits."""
        await listen(store, a_listener(), a_listener(namespace="shop"), a_listener(offset=5, namespace="shop"))
        await emit(store, an_event(namespace="shop"))
        assert await planned(store) == [("order", 0), ("order", 5)]

    async def test_what_is_said_again_replaces_what_was_said(self, store: Store) -> None:
        """Of the workflows that are named, and of no other; their plans stay."""
        await listen(store, a_listener("a"), a_listener("a", 1), a_listener("b"), a_listener("c"))
        await emit(store, an_event(1))
        again = Listen(("a", "b"), (a_listener("a", 2),))
        assert await store.apply([again], NOW) == await store.apply([again], NOW) == [Result("applied")]
        assert await planned(store) == [("a", 0), ("b", 0), ("c", 0), ("a", 1)]
        await emit(store, an_event(2))
        assert sorted(await planned(store)) == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("c", 0), ("c", 0)]

    async def test_changes_of_a_batch_are_one_after_the_other(self, store: Store) -> None:
        """An Emit plans what is listened to before it in the batch, not what is after it."""
        changes: list[Change] = [
            Listen(("a",), (a_listener("a"),)),
            Emit(an_event(1)),
            Listen(("a", "b"), (a_listener("b"),)),
            Emit(an_event(2)),
        ]
        assert await outcomes(store, *changes) == ["applied"] * 4
        assert [(plan.event, plan.workflow) for plan in await plans(store)] == [(1, "a"), (2, "b")]

    async def test_events_of_a_batch_start_each_what_listens_to_it(self, store: Store) -> None:
        """By their own names and namespaces, whatever else the batch is about."""
        await listen(store, a_listener("a"), a_listener("b", event_name="paid"), a_listener("c", namespace="shop"))
        await emit(store, an_event(1), an_event(2, name="paid", namespace="shop"), an_event(3, namespace="shop"))
        found = sorted((plan.event, plan.workflow) for plan in await plans(store))
        assert found == [(1, "a"), (2, "b"), (3, "a"), (3, "c")]

    async def test_a_refused_batch_leaves_what_was_said(self, store: Store) -> None:
        """A Listen is undone with its neighbours."""
        await listen(store, a_listener("a"))
        with pytest.raises(StoreRefused):
            await store.apply([Listen(("a",), ()), Emit(an_event(at=2**10_000))], NOW)
        await emit(store, an_event())
        assert await planned(store) == [("a", 0)]

    # ---- Start

    async def test_a_start_takes_its_plan_away(self, store: Store) -> None:
        """In the same transaction; a second start of the plan is stale, and the same start again was applied."""
        await listen(store, a_listener(), a_listener("other"))
        await emit(store, an_event())
        mine, other = await plans(store)
        start = _by_plan(mine, event_id="event-1")
        assert await store.apply([start], NOW) == [Result("applied", start.run)]
        assert await plans(store) == [other]
        assert await store.apply([_by_plan(mine, 2)], NOW) == [Result("stale")]
        assert await store.apply([start], NOW) == [Result("applied", start.run)]
        assert ids(await store.load([1, 2], NOW)) == [1]
        moved = await do(store, moving(start.run))
        assert await store.apply([start], NOW) == [Result("applied", moved)]

    async def test_two_starts_of_a_plan_in_different_batches_give_one_run(self, store: Store) -> None:
        """Whatever else is in their batches."""
        await listen(store, a_listener(), a_listener("other"))
        await emit(store, an_event())
        mine, other = await plans(store)
        assert await outcomes(store, _by_plan(mine, 1), starting(a_run(8))) == ["applied"] * 2
        assert await outcomes(store, _by_plan(mine, 2), _by_plan(other, 3), starting(a_run(9))) == [
            "stale",
            "applied",
            "applied",
        ]
        assert await plans(store) == []
        assert len(await log(store, 3)) == 1

    async def test_a_start_whose_key_is_taken_takes_its_plan_away_too(self, store: Store) -> None:
        """It exists, and is not tried again."""
        await put(store, a_run(1, key="k"))
        await listen(store, a_listener())
        await emit(store, an_event())
        [plan] = await plans(store)
        assert await store.apply([_by_plan(plan, 2, key="k")], NOW) == [Result("exists", a_run(1, key="k"))]
        assert await plans(store) == []
        assert await store.apply([_by_plan(plan, 2, key="k")], NOW) == [Result("stale")]

    async def test_a_refused_batch_leaves_the_plan(self, store: Store) -> None:
        """A start that is undone has taken nothing."""
        await listen(store, a_listener())
        await emit(store, an_event())
        [plan] = await plans(store)
        with pytest.raises(StoreRefused):
            await store.apply([_by_plan(plan), starting(a_run(2, hops=2**10_000))], NOW)
        assert await plans(store) == [plan]
        assert await outcomes(store, _by_plan(plan)) == ["applied"]

    @pytest.mark.parametrize("how", ["withdrawn", "replaced"])
    @pytest.mark.parametrize("together", [False, True])
    async def test_what_is_cancelled_or_moved_starts_nothing(self, store: Store, how: str, *, together: bool) -> None:
        """The old plans are stale, be it in the same batch; those of the new occurrence are others."""
        await listen(store, a_listener())
        await emit(store, an_event(at=NOW + HOUR))
        old = [plan for plan in await plans(store) if plan.workflow]
        moved = Emit(an_event(event_id="event-1", at=NOW + 2 * HOUR, mail_id=5), replace=True)
        change: Change = Withdraw("event-1") if how == "withdrawn" else moved
        start = _by_plan(old[0])
        batches: list[list[Change]] = [[change, start]] if together else [[change], [start]]
        results = [result for batch in batches for result in await store.apply(batch, NOW)]
        assert [result.outcome for result in results] == ["applied", "stale"]
        left = [plan for plan in await plans(store) if plan.workflow]
        assert [plan.occurrence for plan in left] == ([] if how == "withdrawn" else [2])
        assert await store.load([1], NOW) == []
        assert (await the_event(store)).status == ("cancelled" if how == "withdrawn" else "pending")

    async def test_a_start_before_the_move_is_made(self, store: Store) -> None:
        """In the order of the batch: what has started stays, and the new occurrence is planned anew."""
        await listen(store, a_listener())
        await emit(store, an_event(at=NOW + HOUR))
        [old] = [plan for plan in await plans(store) if plan.workflow]
        again = Emit(an_event(event_id="event-1", at=NOW + 2 * HOUR, mail_id=5), replace=True)
        assert await outcomes(store, _by_plan(old), again) == ["applied"] * 2
        assert await row(store, 1) == a_run(1)
        assert sorted(await planned(store)) == [("", 2 * HOUR), ("order", 2 * HOUR)]

    async def test_the_id_of_a_plan_is_never_anothers(self, store: Store) -> None:
        """A start that comes late finds no plan of a later event, though its own was the last."""
        await listen(store, a_listener())
        await emit(store, an_event(1))
        [old] = await plans(store)
        await do(store, _by_plan(old))
        await emit(store, an_event(2))
        assert await outcomes(store, _by_plan(old, 2)) == ["stale"]
        assert [plan.event for plan in await plans(store)] == [2]

    # ---- Replan

    async def test_a_start_that_failed_is_planned_anew(self, store: Store) -> None:
        """Due later, one attempt more, with its error; its deadline moves, and stats() tells that it fails."""
        await listen(store, a_listener(), a_listener("other"))
        await emit(store, an_event())
        plan, other = await plans(store)
        again = Replan(plan, NOW + HOUR, "ValueError: no")
        deadline = Deadline(NOW + HOUR, plan.id, 1)
        assert await store.apply([again], NOW) == [Result("applied", plans=(deadline,))]
        new = plan._replace(due=NOW + HOUR, attempts=1, error="ValueError: no")
        assert await plans(store) == [other, new]
        stats = await store.stats(NOW)
        assert (stats.planned, stats.failing) == (2, 1)
        assert await store.apply([again], NOW) == [Result("applied")]
        for due, error in [(NOW, "x"), (NOW, again.error), (again.due, "x"), (again.due, None)]:
            assert await store.apply([Replan(plan, due, error)], NOW) == [Result("stale")]
        assert await plans(store) == [other, new]
        [same] = await store.apply([Replan(new, new.due, new.error)], NOW)
        assert same.plans == (Deadline(new.due, new.id, 2),)
        new = new._replace(attempts=2)
        assert await plans(store) == [other, new]
        assert await outcomes(store, Replan(new, NOW + 1)) == ["applied"]
        assert (await plans(store))[1] == plan._replace(due=NOW + 1, attempts=3, error=None)

    async def test_a_start_is_blocked(self, store: Store) -> None:
        """It is due at no instant, counted apart, found by its workflow, and due again when it is planned anew."""
        await listen(store, a_listener(), a_listener("other"), a_listener("third", 9))
        await emit(store, an_event(1), an_event(2))
        mine = [plan for plan in await plans(store) if plan.workflow in ("order", "other")]
        assert await outcomes(store, *(Replan(plan, BLOCKED, "gone") for plan in mine)) == ["applied"] * 4
        assert {plan.workflow for plan in await plans(store)} == {"third"}
        stats = await store.stats(NOW)
        assert (stats.planned, stats.failing, stats.blocked) == (6, 0, 4)
        for workflows, expected in [
            (("order",), [1, 2]),
            (("other", "order", "third", "order"), [1, 1, 2, 2]),
            (("third", "", "no"), []),
            ((), []),
        ]:
            found = await store.select(PlanQuery(blocked=workflows), NOW)
            assert sorted(plan.event for plan, _ in found) == expected
            assert all(plan.due == BLOCKED and event.id == plan.event for plan, event in found)
        assert len(await store.select(PlanQuery(blocked=("other", "order"), limit=3), NOW)) == 3
        first, second = sorted(await store.select(PlanQuery(blocked=("order",)), NOW))
        [result] = await store.apply([Replan(first.plan, NOW)], NOW)
        assert result.plans == (Deadline(NOW, first.plan.id, 2),)
        stats = await store.stats(NOW)
        assert (stats.planned, stats.failing, stats.blocked) == (6, 0, 3)
        assert (
            await outcomes(store, _by_plan(first.plan), _by_plan(second.plan, 2), Withdraw("event-1"))
            == ["applied"] * 3
        )
        stats = await store.stats(NOW)
        assert (stats.planned, stats.failing, stats.blocked) == (2, 0, 1)

    async def test_a_plan_is_given_up(self, store: Store) -> None:
        """Without a due it is taken away, unless it was tried since; what is gone is stale."""
        await listen(store, a_listener())
        await emit(store, an_event())
        [plan] = await plans(store)
        assert await outcomes(store, Replan(plan._replace(attempts=3), None)) == ["stale"]
        assert await store.apply([Replan(plan, None)], NOW) == [Result("applied")]
        assert await plans(store) == []
        assert await outcomes(store, Replan(plan, None)) == ["stale"]
        assert await outcomes(store, Replan(plan, NOW)) == ["stale"]
        assert await outcomes(store, _by_plan(plan)) == ["stale"]

    # ---- questions

    async def test_plans_are_due_in_order(self, store: Store) -> None:
        """Earliest first, after one place and up to another, of those only ``limit``; of runs they are no part."""
        await listen(store, a_listener("a", 20), a_listener("b", 10), a_listener("c", 20))
        await emit(store, an_event())
        b, a, c = await plans(store)
        assert (a.workflow, b.workflow, c.workflow) == ("a", "b", "c") or (a.workflow, c.workflow) == ("c", "a")
        every = [Deadline(plan.due, plan.id, 0) for plan in (b, a, c)]
        start, end = (0, 0), (NOW + HOUR, 0)
        assert await store.due(start, end, 9, NOW, "plan") == every
        assert await store.due(start, end, 2, NOW, of="plan") == every[:2]
        assert await store.due((b.due, b.id), end, 9, NOW, "plan") == every[1:]
        assert await store.due((a.due, a.id), (c.due, c.id), 9, NOW, "plan") == every[2:]
        assert await store.due(start, (c.due, c.id - 1), 9, NOW, "plan") == every[:2]
        assert await store.due(start, end, 9, NOW) == []
        assert all(type(deadline) is Deadline for deadline in await store.due(start, end, 9, NOW, "plan"))

    async def test_plans_are_told_with_their_events(self, store: Store) -> None:
        """Those of the ids that there are, each once; ``limit`` is for the blocked alone."""
        await listen(store, a_listener())
        results = await emit(store, an_event(1), an_event(2, at=NOW + HOUR))
        found = await plans(store)
        wanted = tuple(plan.id for plan in found)
        told = await store.select(PlanQuery(ids=(*wanted, 999, wanted[0])), NOW)
        events = {result.event.id: result.event for result in results if result.event is not None}
        assert sorted(told) == sorted(Planned(plan, events[plan.event]) for plan in found)
        assert len(told) == 3
        assert sorted(await store.select(PlanQuery(ids=wanted, limit=1), NOW)) == sorted(told)
        for one in told:
            assert (type(one), type(one.plan), type(one.event)) == (Planned, Plan, EventRecord)
        assert await store.select(PlanQuery(ids=()), NOW) == []

    async def test_events_are_counted(self, store: Store) -> None:
        """By status; planned are starts alone, not the events' own occurring."""
        stats = await store.stats(NOW)
        assert (stats.events, stats.planned, stats.failing) == ({}, 0, 0)
        await listen(store, a_listener(), a_listener("other"))
        await emit(store, an_event(1), an_event(2, at=NOW + HOUR), an_event(3), an_event(4, at=NOW + HOUR))
        await store.apply([Withdraw("event-4")], NOW)
        stats = await store.stats(NOW)
        assert stats.events == {"occurred": 2, "pending": 1, "cancelled": 1}
        assert (stats.planned, stats.failing) == (6, 0)

    async def test_ids_of_events_are_reserved(self, store: Store) -> None:
        """Blocks of their own, from 1."""
        assert [await store.reserve("event", count, NOW) for count in (3, 1, 2)] == [1, 4, 5]
        assert await store.reserve("signal", 1, NOW) == 1
