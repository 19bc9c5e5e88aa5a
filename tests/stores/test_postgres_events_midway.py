"""Two transactions about one event, in both orders: the second starts when the first has written and not committed."""

from __future__ import annotations

import pytest

from aioflow.changes import Change, Emit, Listen, Occur, Replan, Start, Withdraw
from aioflow.clock import SECOND
from aioflow.plans import Plan
from aioflow.testing.conformance_samples import (
    NOW,
    a_listener,
    a_run,
    an_event,
    an_event_waiter,
    emit,
    event_arms,
    listen,
    mailbox,
    moving,
    planned,
    plans,
    put,
    starting,
    the_event,
)
from aioflow_postgres import PostgresStore, database
from tests.stores.races import Race, Told, applying

Pair = tuple[PostgresStore, PostgresStore]

#: A step of run 5 that ends in a wait for the event with the entity "e1".
BEFORE = a_run(5, owner=3)
PARKS = moving(
    BEFORE, kind="wait", status="waiting", waiting_for="event", arms=event_arms(("ordered", "e1")), updated_at=NOW
)
#: An event that another client emits under the same event_id.
ANOTHER = an_event(2, event_id="event-1", entity='{"total":18}')
MOVED = Emit(ANOTHER._replace(at=NOW + 60 * SECOND), replace=True)


async def meeting(race: Race, pair: Pair, first: tuple[str, Change], second: tuple[str, Change]) -> Told:
    """The results of two changes, each given with the table that it writes to."""
    (table, one), (_, two) = first, second
    return await race.midway(table, applying(one)(pair[0]), applying(two)(pair[1]))


async def occurring(store: PostgresStore) -> Occur:
    """Emit an event for later, and return the change by which it occurs."""
    await emit(store, an_event(at=NOW + SECOND))
    [plan] = await plans(store)
    return Occur(plan.id, "event-1")


async def starting_it(store: PostgresStore, run_id: int = 6) -> tuple[Plan, Start]:
    """Emit an event that starts a run, and return the plan and the start."""
    if not await plans(store):
        await listen(store, a_listener())
        await emit(store, an_event())
    [plan] = await plans(store)
    return plan, starting(a_run(run_id, event_id="event-1"))._replace(plan=plan.id)


async def runs(store: PostgresStore) -> list[int]:
    """The runs of the event that exist."""
    return [run.id for run in await store.load([6, 7], NOW)]


@pytest.mark.parametrize("wait_first", [True, False], ids=["wait first", "event first"])
@pytest.mark.parametrize("by", ["emit", "occur"])
@pytest.mark.parametrize("begins", ["move", "start"])
async def test_of_a_wait_for_an_entity_and_its_event_the_second_sees_the_first(
    race: Race, pair: Pair, begins: str, by: str, *, wait_first: bool
) -> None:
    """Of a wait by entity and its event, the second sees the first, and the run has the event in its mailbox once."""
    waits: Change = starting(PARKS.run)
    if begins == "move":
        await put(pair[0], BEFORE)
        waits = PARKS
    happens: Change = Emit(an_event()) if by == "emit" else await occurring(pair[0])
    sides: list[tuple[str, Change]] = [("runs", waits), ("events", happens)]
    told = await meeting(race, pair, *(sides if wait_first else reversed(sides)))
    assert (told.first.outcome, told.second.outcome) == ("applied", "applied")
    assert (5 in told.second.run_ids) if wait_first else told.second.mail
    assert dict(await mailbox(pair[0]))[5] == [1_001]
    assert (await the_event(pair[0])).status == "occurred"


@pytest.mark.parametrize("start_first", [True, False], ids=["start first", "start second"])
@pytest.mark.parametrize("against", [Withdraw("event-1"), MOVED], ids=["withdraw", "replace"])
async def test_of_a_start_and_the_end_of_its_plan_the_first_decides(
    race: Race, pair: Pair, against: Change, *, start_first: bool
) -> None:
    """A start waits for a cancellation or move that was first, and is stale; a run that was started first stays."""
    _, start = await starting_it(pair[0])
    sides: list[tuple[str, Change]] = [("runs", start), ("events", against)]
    told = await meeting(race, pair, *(sides if start_first else reversed(sides)))
    assert (told.way, told.first.outcome) == ("waits", "applied")
    assert told.second.outcome == ("applied" if start_first else "stale")
    assert await runs(pair[0]) == ([6] if start_first else [])
    event = await the_event(pair[0])
    left = [(plan.workflow, plan.occurrence, plan.due - event.at) for plan in await plans(pair[0])]
    if against is MOVED:
        assert (event.status, event.occurrence, sorted(left)) == ("pending", 2, [("", 2, 0), ("order", 2, 0)])
    else:
        assert (event.status, left) == ("cancelled", [])


async def test_of_two_starts_of_one_plan_the_first_is_made(race: Race, pair: Pair) -> None:
    """Of two starts of one plan, the second waits for the first, and is stale."""
    _, one = await starting_it(pair[0])
    _, two = await starting_it(pair[0], 7)
    told = await meeting(race, pair, ("runs", one), ("runs", two))
    assert (told.way, told.first.outcome, told.second.outcome) == ("waits", "applied", "stale")
    assert (await runs(pair[0]), await plans(pair[0])) == ([6], [])


@pytest.mark.parametrize("start_first", [True, False], ids=["start first", "start second"])
async def test_of_a_start_and_its_replan_the_first_decides(race: Race, pair: Pair, *, start_first: bool) -> None:
    """A plan that was fulfilled first cannot be put off, and one that was put off first can still be fulfilled."""
    plan, start = await starting_it(pair[0])
    off = Replan(plan, NOW + SECOND, "not yet")
    sides: list[tuple[str, Change]] = [("runs", start), ("plans", off)]
    told = await meeting(race, pair, *(sides if start_first else reversed(sides)))
    assert (told.way, told.first.outcome) == ("waits", "applied")
    assert told.second.outcome == ("stale" if start_first else "applied")
    assert (await runs(pair[0]), await plans(pair[0])) == ([6], [])


@pytest.mark.parametrize("replace", [False, True], ids=["again", "replace"])
async def test_of_two_emits_of_one_event_the_first_is_recorded(race: Race, pair: Pair, *, replace: bool) -> None:
    """Of two emits with one event_id, the second waits for the first, and finds or replaces its event."""
    await listen(pair[0], a_listener())
    told = await meeting(race, pair, ("events", Emit(an_event())), ("events", Emit(ANOTHER, replace)))
    assert (told.way, told.first.outcome) == ("waits", "applied")
    assert told.second.outcome == ("applied" if replace else "exists")
    event = await the_event(pair[0])
    assert told.second.event == event
    assert (event.id, event.occurrence, event.mail_id) == ((1, 2, 1_002) if replace else (1, 1, 1_001))
    assert [(plan.event, plan.occurrence) for plan in await plans(pair[0])] == [(1, event.occurrence)]


@pytest.mark.parametrize("occur_first", [True, False], ids=["occur first", "occur second"])
@pytest.mark.parametrize("against", [Withdraw("event-1"), MOVED, None], ids=["withdraw", "replace", "occur"])
async def test_of_an_occurrence_and_a_withdraw_or_replace_the_first_decides(
    race: Race, pair: Pair, against: Change | None, *, occur_first: bool
) -> None:
    """An event that was cancelled or moved first does not occur, and one that has occurred does not occur again."""
    occur = await occurring(pair[0])
    sides: list[tuple[str, Change]] = [("events", occur), ("events", against or occur)]
    told = await meeting(race, pair, *(sides if occur_first else reversed(sides)))
    assert (told.way, told.first.outcome) == ("waits", "applied")
    assert told.second.outcome == ("applied" if occur_first and against else "stale")
    event = await the_event(pair[0])
    last = {"Withdraw": "cancelled", "Emit": "pending", "NoneType": "occurred"}[type(against).__name__]
    assert event.status == last
    has_occurred = against is None or (occur_first and against is not MOVED)
    assert event.occurred_at == (NOW if has_occurred else None)
    assert [plan.occurrence for plan in await plans(pair[0])] == ([2] if against is MOVED else [])


@pytest.mark.parametrize("event_first", [True, False], ids=["event first", "end first"])
async def test_an_event_leaves_nothing_behind_for_a_wait_that_is_ending(
    race: Race, pair: Pair, *, event_first: bool
) -> None:
    """Of an event and the end of a wait for it, the second waits for the first, and no copy for that wait is left."""
    await put(pair[0], BEFORE)
    [parked] = await pair[0].apply([PARKS], NOW)
    assert parked.run is not None
    ends = moving(parked.run, kind="timeout", status="running", waiting_for=None, arms=None)
    sides: list[tuple[str, Change]] = [("signals", Emit(an_event())), ("runs", ends)]
    told = await meeting(race, pair, *(sides if event_first else reversed(sides)))
    assert (told.way, told.first.outcome, told.second.outcome) == ("waits", "applied", "applied")
    happened = told.first if event_first else told.second
    assert happened.run_ids == ((5,) if event_first else ())
    anew = moving(ends.run, kind="wait", status="waiting", waiting_for="event", arms=event_arms("ordered"))
    assert [result.outcome for result in await pair[0].apply([anew], NOW)] == ["applied"]
    assert 5 not in dict(await mailbox(pair[0]))


async def test_two_events_at_once_do_not_wait_for_each_other(race: Race, pair: Pair) -> None:
    """Two concurrent events do not wait for each other, and both are delivered to the same run."""
    await put(pair[0], an_event_waiter(5))
    one, two = Emit(an_event()), Emit(an_event(2, entity_id="e2"))
    told = await meeting(race, pair, ("signals", one), ("signals", two))
    assert (told.way, told.first.run_ids, told.second.run_ids) == ("passes", (5,), (5,))
    assert dict(await mailbox(pair[0]))[5] == [1_001, 1_002]


async def test_an_event_and_ends_of_waits_do_not_deadlock(
    race: Race, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event and the ends of waits lock runs in the order of their ids, so that there is no deadlock and no retry."""
    monkeypatch.setattr(database, "_TRIES", 1)
    waiters = [an_event_waiter(5), an_event_waiter(6, since=NOW - SECOND)]
    await put(pair[0], *waiters)
    ends = [moving(run, kind="timeout", status="running", waiting_for=None, arms=None) for run in waiters]
    told = await race.midway("runs", pair[1].apply(ends, NOW), applying(Emit(an_event()))(pair[0]))
    assert (told.way, [result.outcome for result in told.first]) == ("waits", ["applied"] * 2)
    assert (told.second.outcome, told.second.run_ids) == ("applied", ())


async def test_of_two_listens_the_second_replaces_the_first(race: Race, pair: Pair) -> None:
    """Of two Listen changes, the second waits for the first and replaces it, even if nothing was there before."""
    one, two = (Listen(("order",), (a_listener(offset=offset),)) for offset in (0, SECOND))
    told = await meeting(race, pair, ("listeners", one), ("listeners", two))
    assert (told.way, told.first.outcome, told.second.outcome) == ("waits", "applied", "applied")
    await emit(pair[0], an_event())
    assert await planned(pair[0]) == [("order", SECOND)]
