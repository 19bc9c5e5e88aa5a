"""The end of a wait for events, against what occurs by then: ``Move.unless_mail``."""

from __future__ import annotations

from typing import Any, Final

import pytest

from aioflow.changes import Emit, Move, Occur, Withdraw
from aioflow.clock import SECOND
from aioflow.model import Deadline
from aioflow.store import Store
from aioflow.testing.conformance_samples import (
    NOW,
    a_listener,
    a_waiter,
    an_event,
    an_event_waiter,
    do,
    emit,
    listen,
    mailbox,
    moving,
    outcomes,
    plans,
    put,
    resuming,
    starting,
)

HOUR: Final = 3600 * SECOND


class InTimeConformance:
    """A wait is over only when all that was to occur by then has."""

    async def test_a_wait_is_over_in_time_unless_it_occurred_before(self, store: Store) -> None:
        """``unless_mail`` holds for events: what occurred by wake_at is in the way, what occurred later is not."""
        await put(store, an_event_waiter(1, wake_at=NOW), an_event_waiter(2, wake_at=NOW - 1))
        await emit(store, an_event())
        moves: list[Move] = [
            resuming(an_event_waiter(1, wake_at=NOW))._replace(unless_mail=True),
            resuming(an_event_waiter(2, wake_at=NOW - 1))._replace(unless_mail=True),
        ]
        results = await store.apply(moves, NOW + 1)
        assert [(result.outcome, result.mail) for result in results] == [("stale", True), ("applied", False)]

    async def test_a_wait_is_not_over_while_something_is_to_occur_by_then(self, store: Store) -> None:
        """``unless_mail`` is stale, with the first plan that is in the way; when that has occurred, there is mail."""
        waiters = [
            an_event_waiter(1, wake_at=NOW + 5),
            an_event_waiter(2, ("ordered", "e1"), wake_at=NOW + 5),
            an_event_waiter(3, ("ordered", "e2"), wake_at=NOW + 5),
            an_event_waiter(4, "paid", wake_at=NOW + 5),
            an_event_waiter(5, wake_at=NOW + 4),
            an_event_waiter(6, "paid", ("ordered", "e1"), wake_at=NOW + 9),
            a_waiter(7, "ordered", wake_at=NOW + 5),
        ]
        await put(store, *waiters)
        await emit(store, an_event(1, at=NOW + 7), an_event(2, at=NOW + 5), an_event(3, at=NOW + 5, entity_id="e3"))
        first = next(plan for plan in await plans(store) if plan.event == 2)
        moves = [resuming(run)._replace(unless_mail=True) for run in waiters]
        results = await store.apply(moves, NOW + 9)
        assert [result.outcome for result in results] == [
            "stale" if run.id in (1, 2, 6) else "applied" for run in waiters
        ]
        assert {result.plans for result in results} == {(), (Deadline(NOW + 5, first.id, 0),)}
        assert not any(result.mail for result in results)
        await store.apply([Occur(first.id, "event-2")], NOW + 10)
        results = await store.apply([moves[0], moves[1], moves[5]], NOW + 11)
        assert [(result.outcome, result.mail, result.plans) for result in results] == [("stale", True, ())] * 3
        assert await mailbox(store) == [(1, [1002]), (2, [1002]), (6, [1002])]

    @pytest.mark.parametrize("how", ["withdrawn", "replaced", "taken", "endless"])
    async def test_what_will_not_be_heard_is_not_in_the_way(self, store: Store, how: str) -> None:
        """An event that was cancelled or moved, or that has started the run itself; nor any, of a wait without an end."""
        await listen(store, a_listener(offset=-HOUR))
        await emit(store, an_event(at=NOW + 5))
        start = next(plan for plan in await plans(store) if plan.workflow)
        run = an_event_waiter(1, wake_at=None if how == "endless" else NOW + 5)
        await do(store, starting(run)._replace(plan=start.id if how == "taken" else 0))
        if how == "withdrawn":
            await store.apply([Withdraw("event-1")], NOW)
        elif how == "replaced":
            await store.apply([Emit(an_event(at=NOW + 6, mail_id=5), replace=True)], NOW)
        assert await outcomes(store, resuming(run)._replace(unless_mail=True), now=NOW + 5) == ["applied"]

    async def test_the_next_occurrence_of_what_was_taken_is_in_the_way(self, store: Store) -> None:
        """A run that has taken an event hears of it again when it was replaced, and so waits for that."""
        waiter = an_event_waiter(1, wake_at=NOW + 5)
        await put(store, waiter)
        await emit(store, an_event())
        run = await do(store, resuming(waiter, 1001))
        [moved] = await store.apply([Emit(an_event(at=NOW + 3, mail_id=9), replace=True)], NOW)
        wait: dict[str, Any] = {"status": "waiting", "waiting_for": "event", "arms": waiter.arms, "wake_at": NOW + 5}
        run = await do(store, moving(run, kind="wait", **wait))
        [late] = await store.apply([resuming(run)._replace(unless_mail=True)], NOW + 5)
        assert (late.outcome, late.plans) == ("stale", moved.plans)
        assert len(late.plans) == 1

    @pytest.mark.parametrize("arm", ["ordered", ("ordered", "e1")], ids=["all", "entity"])
    async def test_the_first_that_is_due_and_heard_is_in_the_way(
        self, store: Store, arm: str | tuple[str, str | None]
    ) -> None:
        """Of several arms, too; what has occurred, has started the run, or is due after its wait or later does not hide it."""
        await listen(store, a_listener(offset=-HOUR))
        await emit(store, an_event(1, at=NOW - 9), now=NOW - 9)
        events = [an_event(2, at=NOW + 4), an_event(3, at=NOW + 3), an_event(4, at=NOW + 2, name="paid")]
        await emit(store, *events, an_event(5, at=NOW + 6))
        occurring = {plan.event: Deadline(plan.due, plan.id, 0) for plan in await plans(store) if not plan.workflow}
        start = next(plan for plan in await plans(store) if plan.workflow and plan.event == 3)
        early, late, both, started, run = (
            an_event_waiter(1, arm, wake_at=NOW + 5),
            an_event_waiter(2, arm, wake_at=NOW + 2),
            an_event_waiter(3, arm, "paid", wake_at=NOW + 5),
            an_event_waiter(4, arm, wake_at=NOW + 5),
            an_event_waiter(5, arm, wake_at=NOW + 5),
        )
        await put(store, early, late, both, run)
        await do(store, starting(started)._replace(plan=start.id))
        assert await outcomes(store, resuming(early)._replace(unless_mail=True), now=NOW + 2) == ["applied"]
        moves = [resuming(waiter)._replace(unless_mail=True) for waiter in (late, both, started, run)]
        results = await store.apply(moves, NOW + 9)
        assert [result.plans for result in results] == [(), (occurring[4],), (occurring[2],), (occurring[3],)]
        assert [result.outcome for result in results] == ["applied", "stale", "stale", "stale"]

    async def test_what_occurs_late_was_sent_at_its_time(self, store: Store) -> None:
        """In the order of their times, whatever that of their occurring; but none before it was recorded."""
        waiter = an_event_waiter(1, ("ordered", "e1"), wake_at=NOW + 3)
        await put(store, waiter)
        await emit(store, an_event(1, at=NOW + 3), an_event(2, at=NOW + 2))
        for plan in sorted(await plans(store), key=lambda plan: plan.event):
            await store.apply([Occur(plan.id, f"event-{plan.event}")], NOW + 9)
        await emit(store, an_event(3, at=NOW - HOUR, recorded_at=NOW + 4))
        [(_, signals, _)] = await store.mail(None, 9, NOW + 9)
        assert [(signal.id, signal.sent_at) for signal in signals] == [
            (1002, NOW + 2),
            (1001, NOW + 3),
            (1003, NOW + 4),
        ]
        assert await outcomes(store, resuming(waiter)._replace(unless_mail=True)) == ["stale"]
        parked = await do(store, resuming(waiter))
        await do(store, moving(parked, kind="wait", status="waiting", waiting_for="event", arms=waiter.arms))
        [(_, signals, _)] = await store.mail(None, 9, NOW + 9)
        assert [signal.sent_at for signal in signals] == [NOW + 2, NOW + 3, NOW + 4]
