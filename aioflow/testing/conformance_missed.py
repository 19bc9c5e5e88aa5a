"""What a run hears of that occurred before it waited: events of an entity, and each occurrence once."""

from __future__ import annotations

from typing import Any, Final

import pytest

from aioflow.changes import Amend, Emit, Move, Occur, Result, Withdraw
from aioflow.clock import SECOND
from aioflow.model import Run
from aioflow.store import Store
from aioflow.testing.conformance_samples import (
    NOW,
    a_listener,
    a_run,
    a_waiter,
    an_event,
    an_event_waiter,
    cancelling,
    do,
    emit,
    event_arms,
    hopping,
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
_ARM: Final = ("ordered", "e1")


def _parking(run: Run, *names: str | tuple[str, str | None], **columns: Any) -> Move:
    wait: dict[str, Any] = {"status": "waiting", "waiting_for": "event", "arms": event_arms(*names or (_ARM,))}
    return moving(run, kind="wait", **{**wait, **columns})


class MissedConformance:
    """A wait for an event of an entity begins when its run did."""

    async def test_a_wait_for_an_entity_hears_what_occurred_since_the_run_began(self, store: Store) -> None:
        """The move that parks has mail: of its name and entity, since created_at, that instant included."""
        await emit(store, an_event(1), now=NOW + 1)
        await put(store, a_run(1, created_at=NOW + 2), a_run(2, created_at=NOW + 2))
        others = [an_event(3, entity_id="e2"), an_event(4, name="paid")]
        await emit(store, an_event(2, recorded_at=NOW + 2), *others, now=NOW + 2)
        await emit(store, an_event(5, at=NOW + 3), an_event(6, entity_id=None), now=NOW + 3)
        await emit(store, an_event(7, at=NOW + HOUR), now=NOW + 3)
        results = await store.apply(
            [
                _parking(a_run(1, created_at=NOW + 2)),
                _parking(a_run(2, created_at=NOW + 2), "ordered", ("ordered", "e3")),
            ],
            NOW + 9,
        )
        assert [(result.outcome, result.mail) for result in results] == [("applied", True), ("applied", False)]
        [(run, signals, _)] = await store.mail(None, 9, NOW + 9)
        assert run.id == 1
        assert [(signal.id, signal.run_id, signal.event, signal.sent_at) for signal in signals] == [
            (1002, 1, 2, NOW + 2),
            (1005, 1, 5, NOW + 3),
        ]
        assert [signal.broadcast for signal in signals] == [1, 1]

    async def test_a_run_that_begins_with_a_wait_hears_it_too(self, store: Store) -> None:
        """A Start that waits says mail, and so does what a step starts, by any of its arms, but not by one for a signal."""
        await emit(store, an_event())
        [result] = await store.apply([starting(an_event_waiter(1, _ARM))], NOW)
        assert result == Result("applied", an_event_waiter(1, _ARM), mail=True)
        await put(store, a_run(2))
        child, signalled = an_event_waiter(3, "paid", ("paid", "e2"), _ARM), a_waiter(4, _ARM)
        [moved] = await store.apply([moving(a_run(2))._replace(also=(starting(child), starting(signalled)))], NOW)
        assert moved.also == (Result("applied", child, mail=True), Result("applied", signalled))
        assert await mailbox(store) == [(1, [1001]), (3, [1001])]
        assert (await store.stats(NOW)).mailbox == 2

    async def test_what_was_cancelled_or_moved_is_not_heard(self, store: Store) -> None:
        """Only what has occurred, and only in its present occurrence."""
        await put(store, a_run(1))
        await emit(store, an_event(1), an_event(2), an_event(3))
        again = [
            Emit(an_event(event_id="event-2", at=NOW + HOUR, mail_id=5), replace=True),
            Emit(an_event(event_id="event-3", mail_id=6), replace=True),
        ]
        assert await outcomes(store, Withdraw("event-1"), *again) == ["applied"] * 3
        await do(store, _parking(a_run(1)))
        assert await mailbox(store) == [(1, [6])]

    async def test_what_has_occurred_is_heard_though_it_is_cancelled_or_replaced(self, store: Store) -> None:
        """A copy that lies there stays, beside that of the new occurrence, and can be taken."""
        waiter = an_event_waiter(1)
        await put(store, waiter)
        await emit(store, an_event(1), an_event(2))
        withdrawn, again = await store.apply([Withdraw("event-1"), Emit(an_event(2, mail_id=9), replace=True)], NOW)
        assert (withdrawn.outcome, again.run_ids) == ("applied", (1,))
        assert await mailbox(store) == [(1, [9, 1001, 1002])]
        await do(store, resuming(waiter, 1001, 1002))

    @pytest.mark.parametrize("kind", ["event", "reject"])
    async def test_what_was_taken_is_not_heard_again(self, store: Store, kind: str) -> None:
        """Taken or rejected, however long ago; a new occurrence is heard."""
        await emit(store, an_event())
        run = await do(store, starting(an_event_waiter(1, _ARM)))
        taking = resuming(run, 1001)
        run = await do(store, taking._replace(transition=taking.transition._replace(kind=kind)))  # type: ignore[arg-type]
        await store.expire(100, NOW + 30 * 24 * HOUR)
        [result] = await store.apply([_parking(run)], NOW + 30 * 24 * HOUR)
        assert (result.mail, await mailbox(store)) == (False, [])
        await store.apply([Emit(an_event(mail_id=7), replace=True)], NOW + 30 * 24 * HOUR)
        assert await mailbox(store, NOW + 30 * 24 * HOUR) == [(1, [7])]

    async def test_what_another_run_has_taken_is_heard(self, store: Store) -> None:
        """Each run hears of an event for itself."""
        await put(store, a_run(1), a_run(2))
        await emit(store, an_event())
        parked = await do(store, _parking(a_run(1)))
        await do(store, resuming(parked, 1001))
        await do(store, _parking(a_run(2)))
        assert await mailbox(store) == [(2, [1001])]

    async def test_what_is_rejected_leaves_the_wait_and_its_other_copies(self, store: Store) -> None:
        """A run that goes on to wait with the same arms still has the rest."""
        await emit(store, an_event(1), an_event(2))
        run = await do(store, starting(an_event_waiter(1, _ARM)))
        await do(store, moving(run, kind="reject")._replace(takes=(1001,)))
        assert await mailbox(store) == [(1, [1002])]

    async def test_what_lay_there_untaken_is_heard_by_the_next_wait(self, store: Store) -> None:
        """A wait that something else ended left its copy, swept or not; the next one has it again."""
        await emit(store, an_event())
        run = await do(store, starting(an_event_waiter(1, _ARM)))
        for sweep in (False, True):
            run = await do(store, resuming(run))
            assert await mailbox(store) == []
            if sweep:
                assert [signal.id for signal in await store.expire(9, NOW)] == [1001]
            [result] = await store.apply([_parking(run)], NOW)
            assert result.run is not None
            assert result.mail
            run = result.run
            assert await mailbox(store) == [(1, [1001])]
        assert await store.expire(9, NOW) == []

    async def test_a_run_does_not_hear_of_what_started_it(self, store: Store) -> None:
        """Before and after it waits; of another event and of the next occurrence it does."""
        await listen(store, a_listener(offset=-HOUR))
        await emit(store, an_event(at=NOW + 1))
        start, occurring = await plans(store)
        run = a_run(1)
        other = an_event_waiter(2, _ARM)
        await put(store, other)
        assert await outcomes(store, starting(run)._replace(plan=start.id)) == ["applied"]
        run = await do(store, _parking(run))
        [result] = await store.apply([Occur(occurring.id, "event-1")], NOW + 1)
        assert result.run_ids == (2,)
        run = await do(store, resuming(run))
        [parked] = await store.apply([_parking(run)], NOW + 1)
        assert (parked.mail, await mailbox(store)) == (False, [(2, [1001])])
        [again] = await store.apply([Emit(an_event(mail_id=9), replace=True)], NOW + 1)
        assert again.run_ids == (1, 2)

    async def test_a_start_that_exists_has_taken_nothing(self, store: Store) -> None:
        """The run that has the key was not started by this event, and hears of it."""
        await put(store, a_run(1, key="k"))
        await listen(store, a_listener())
        await emit(store, an_event())
        [plan] = await plans(store)
        assert await outcomes(store, starting(a_run(2, key="k"))._replace(plan=plan.id)) == ["exists"]
        [result] = await store.apply([_parking(a_run(1, key="k"))], NOW)
        assert result.mail

    async def test_an_event_and_a_wait_of_one_batch_find_each_other(self, store: Store) -> None:
        """In either order, and also when a step emits what it then waits for: it is in the mailbox once."""
        await put(store, a_run(1), a_run(2), a_run(3))
        before, after = _parking(a_run(1)), _parking(a_run(2))
        results = await store.apply([before, Emit(an_event(1)), after], NOW)
        assert [results[0].mail, results[2].mail] == [True, True]
        assert results[1].run_ids == (1, 2)
        assert await mailbox(store) == [(1, [1001]), (2, [1001])]
        [own] = await store.apply([_parking(a_run(3))._replace(also=(Emit(an_event(2)),))], NOW)
        assert own.mail
        assert own.also[0].run_ids == (1, 2, 3)

    async def test_events_of_a_batch_are_heard_each_for_itself(self, store: Store) -> None:
        """By its own name and entity, and not by who waits for another's; each run that waits for several hears them all."""
        waiters: list[str | tuple[str, str | None]] = [_ARM, ("ordered", "e2"), "ordered", "paid", ("paid", "e1")]
        await put(store, *(an_event_waiter(number, arm) for number, arm in enumerate(waiters, 1)))
        results = await emit(
            store,
            an_event(1),
            an_event(2, entity_id="e2"),
            an_event(3, name="paid", entity_id="e2"),
            an_event(4, entity_id=None),
        )
        assert [result.run_ids for result in results] == [(1, 3), (2, 3), (4,), (3,)]
        assert (await store.stats(NOW)).mailbox == 6

    async def test_a_park_offered_again_says_mail(self, store: Store) -> None:
        """As it did the first time, and makes no second copy."""
        await put(store, a_run(1))
        await emit(store, an_event())
        park = _parking(a_run(1))
        assert (
            await store.apply([park], NOW) == await store.apply([park], NOW) == [Result("applied", park.run, mail=True)]
        )
        assert (await store.stats(NOW)).mailbox == 1
        taken = await do(store, resuming(park.run, 1001))
        assert await store.apply([park], NOW) == [Result("applied", taken)]
        assert await mailbox(store) == []

    async def test_an_amended_wait_keeps_its_copies(self, store: Store) -> None:
        """An Amend that leaves the wait leaves what lies there; one that ends it does not."""
        await put(store, an_event_waiter(1, _ARM))
        await emit(store, an_event())
        changes: list[Amend] = [hopping(1, commit_id=7), cancelling(1, commit_id=8)]
        [hopped] = await store.apply(changes[:1], NOW)
        assert (hopped.outcome, hopped.mail, await mailbox(store)) == ("applied", False, [(1, [1001])])
        await do(store, changes[1])
        assert await mailbox(store) == []
