"""Group commit against a store that fails: each change is applied once, and each caller gets its true outcome."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from contextvars import copy_context
from datetime import timedelta
from itertools import islice
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from structlog.testing import capture_logs

from aioflow import Engine, StartOptions, complete, sleep, step, workflow
from aioflow.changes import Change, Emit, Listen, Move, Occur, Post, Replan, Result, Start, Withdraw
from aioflow.clock import SECOND, Micros
from aioflow.commands import Command
from aioflow.committer import Committer
from aioflow.context import CurrentRun, _current
from aioflow.errors import EngineClosed, InternalError, StoreRefused, StoreUnavailable
from aioflow.ids import Ids, commit_ids
from aioflow.model import Run
from aioflow.plans import Plan
from aioflow.testing.conformance_samples import (
    a_listener,
    a_run,
    a_signal,
    a_sleeper,
    an_ended,
    an_event,
    cancelling,
    hopping,
    log,
    marking,
    moving,
    plans,
    row,
    starting,
)
from aioflow.waiters import Until, Waiters
from aioflow_memory import MemoryStore
from tests.faulty import NOW, FaultyStore, QuickClock, lost, run_id_of
from tests.support import wait_until

pytestmark = pytest.mark.usefixtures("_silent")


@pytest.fixture
def _silent() -> Any:
    """Capture warnings instead of printing them; tests that check them capture them themselves."""
    with capture_logs():
        yield
    structlog.reset_defaults()


class Desk:
    """A committer, its store and clock, and the changes that its hook was called with."""

    def __init__(self, max_batch: int = 1000, in_flight: int = 1) -> None:
        self.store = FaultyStore()
        self.clock = QuickClock()
        self.heard: list[tuple[Change, Result]] = []
        self.committer = Committer(self.store, self.clock, self.hear, max_batch, in_flight)
        self.max_batch = max_batch
        self.breaks: set[int] = set()

    def hear(self, applied: Iterable[tuple[Change, Result]]) -> None:
        for change, result in applied:
            self.heard.append((change, result))
            if run_id_of(change) in self.breaks:
                raise ZeroDivisionError

    @property
    def heard_of(self) -> list[int]:
        """The run ids of the changes that the hook was called with."""
        return [run_id_of(change) for change, _ in self.heard]

    def submit(self, *changes: Change, patience: Micros | None = None) -> list[asyncio.Future[Result]]:
        return [self.committer.submit(change, patience) for change in changes]

    async def commit(self, *changes: Change) -> list[str]:
        """Submit all at once; returns the outcome of each."""
        return [(await future).outcome for future in self.submit(*changes)]

    async def busy(self) -> asyncio.Future[Result]:
        """Submit a change and wait until it is in flight, so that later ones queue up; the store must be held."""
        offers = len(self.store.offers)
        [first] = self.submit(starting(a_run(900 + offers)))
        await self.store.arrived(offers + 1)
        return first


class Listening:
    """A Pending that records the outcomes of its change."""

    answered: bool
    change: Change
    run_id: int
    until: int | None
    listens = True

    def __init__(self, *, raises: bool = False) -> None:
        self.heard: list[object] = []
        self.raises = raises

    def told(self, outcome: Result | Exception) -> None:
        self.heard.append(outcome)
        if self.raises:
            raise ZeroDivisionError


class Promised:
    """Slots that record what is redeemed."""

    def __init__(self) -> None:
        self.redeemed: list[int | None] = []

    def redeem(self, owner: int | None) -> None:
        self.redeemed.append(owner)


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    """A running committer."""
    desk = Desk()
    await desk.store.open(NOW)
    desk.committer.start()
    yield desk
    desk.store.down = False
    await desk.committer.stop(SECOND)
    await desk.store.close()


async def small_desk(max_batch: int) -> Desk:
    desk = Desk(max_batch)
    await desk.store.open(NOW)
    desk.committer.start()
    return desk


def starts(*run_ids: int) -> list[Start]:
    return [starting(a_run(run_id)) for run_id in run_ids]


# ---- batches


async def test_signals_are_batched_by_their_id(desk: Desk) -> None:
    """Signals share a batch, except two with one signal_id: the second is judged after the first is committed."""
    posts = [Post(a_signal(at, key="k", signal_id=name)) for at, name in enumerate(["a", "b", "a", None, None], 1)]
    with desk.store.held():
        await desk.busy()
        told = desk.submit(*posts)
        assert not desk.committer.idle
    assert [(await future).outcome for future in told] == ["applied", "applied", "exists", "applied", "applied"]
    assert [len(offer) for offer in desk.store.offers] == [1, 2, 3]
    assert await wait_until(lambda: desk.committer.idle)


async def test_a_start_by_a_step_shares_no_batch_with_its_key(desk: Desk) -> None:
    """A move whose step starts a run with a key waits until the batch with another start of that key is committed."""
    await desk.commit(*starts(1, 2))
    named = [starting(a_run(run_id, key="a")) for run_id in (3, 4, 5)]
    with desk.store.held():
        await desk.busy()
        told = desk.submit(
            named[0], moving(a_run(1))._replace(also=(named[1],)), moving(a_run(2))._replace(also=(named[2],))
        )
    results = [await future for future in told]
    assert [result.outcome for result in results] == ["applied"] * 3
    assert [[part.outcome for part in result.also] for result in results] == [[], ["exists"], ["exists"]]
    assert desk.store.batches[-3:] == [[3], [1], [2]]


async def test_events_are_batched_by_their_id(desk: Desk) -> None:
    """A batch has at most one change of an event and one of a plan, and Listen comes before Emit."""
    later = an_event(1, at=NOW + SECOND)
    with desk.store.held():
        await desk.busy()
        told = desk.submit(
            Emit(later), Listen(("order",), (a_listener(),)), Withdraw(later.event_id), Emit(an_event(2)),
            Replan(Plan(77, NOW, 2, 1, "order", 0, 0, None), None), Occur(77, "event-2"), starting(a_run(1)),
        )  # fmt: skip
    assert [(await future).outcome for future in told] == ["applied"] * 4 + ["stale", "stale", "applied"]
    kinds = [[type(change) for change in offer] for offer in desk.store.offers]
    assert kinds == [[Start], [Listen, Emit], [Withdraw, Emit, Replan], [Occur, Start]]
    assert [plan.workflow for plan in await plans(desk.store)] == ["order"]


async def test_a_change_is_committed(desk: Desk) -> None:
    """A commit gives the store's result, and the store gets the clock's time."""
    desk.clock.passed = 5
    assert await desk.committer.commit(starting(a_run(1))) == Result("applied", a_run(1))
    assert await row(desk.store, 1) == a_run(1)
    assert desk.store.instants == [NOW + 5]
    assert desk.clock.slept == []


@pytest.fixture
async def wide_desk() -> AsyncIterator[Desk]:
    """A committer that may have two batches in flight."""
    desk = Desk(in_flight=2)
    await desk.store.open(NOW)
    desk.committer.start()
    yield desk
    desk.store.down = False
    await desk.committer.stop(SECOND)
    await desk.store.close()


async def test_two_batches_are_under_way_at_once(wide_desk: Desk) -> None:
    """While one batch is in flight a second one is sent; what is submitted after that waits, and forms one batch."""
    with wide_desk.store.held():
        first = wide_desk.submit(starting(a_run(1)))
        await wide_desk.store.arrived(1)
        second = wide_desk.submit(starting(a_run(2)))
        await wide_desk.store.arrived(2)
        rest = wide_desk.submit(starting(a_run(3)), starting(a_run(4)))
        assert wide_desk.store.batches == [[1], [2]]
        assert not wide_desk.committer.idle
    assert {(await future).outcome for future in first + second + rest} == {"applied"}
    assert wide_desk.store.batches == [[1], [2], [3, 4]]


@pytest.mark.parametrize(
    ("later", "way"),
    [
        (Post(a_signal(3, 1)), "waits"),
        (moving(a_run(9))._replace(also=(Post(a_signal(3, 1)),)), "waits"),
        (Post(a_signal(3, 9)), "passes"),
    ],
)
async def test_signals_to_one_address_are_never_under_way_in_two_batches(
    wide_desk: Desk, later: Change, way: str
) -> None:
    """A signal waits while an earlier one to the same address is in flight, so that they are committed in order."""
    for started in wide_desk.submit(starting(a_run(1)), starting(a_run(9))):
        await started
    with wide_desk.store.held():
        futures = wide_desk.submit(Post(a_signal(2, 1)))
        await wide_desk.store.arrived(2)
        futures += wide_desk.submit(later)
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(wide_desk.store.offers) == (2 if way == "waits" else 3)
    assert {(await future).outcome for future in futures} == {"applied"}


async def test_changes_of_one_run_are_never_under_way_together(wide_desk: Desk) -> None:
    """A batch waits for one in flight that has a run in common, and so does everything that was queued after it."""
    with wide_desk.store.held():
        futures = wide_desk.submit(starting(a_run(1)), starting(a_run(5)))
        await wide_desk.store.arrived(1)
        futures += wide_desk.submit(moving(a_run(1)), moving(a_run(5)), starting(a_run(2)))
        futures += wide_desk.submit(moving(moving(a_run(1)).run))
        for _ in range(5):
            await asyncio.sleep(0)
        assert wide_desk.store.batches == [[1, 5]]
    assert [(await future).outcome for future in futures] == ["applied"] * 6
    assert wide_desk.store.batches == [[1, 5], [1, 2, 5], [1]]
    assert (await row(wide_desk.store, 1)).seq == 3


async def test_a_lost_reply_holds_up_only_its_own_runs(wide_desk: Desk) -> None:
    """While a batch is offered again, other batches are committed, but no change of its runs is."""
    wide_desk.store.faults.extend(["after"])
    with wide_desk.store.held():
        futures = wide_desk.submit(starting(a_run(1)))
        await wide_desk.store.arrived(1)
        futures += wide_desk.submit(starting(a_run(2)))
        await wide_desk.store.arrived(2)
        futures += wide_desk.submit(moving(a_run(1)))
    assert [(await future).outcome for future in futures] == ["applied"] * 3
    assert sorted(wide_desk.store.batches[:3]) == [[1], [1], [2]]
    assert wide_desk.store.batches[3:] == [[1]]


@pytest.mark.parametrize("held", [True, False])
async def test_stopping_commits_what_waits_for_the_other_batch(wide_desk: Desk, held: bool) -> None:
    """stop() commits everything that is queued, including changes that wait for a batch in flight."""
    with wide_desk.store.held():
        futures = wide_desk.submit(starting(a_run(1)))
        if held:
            await wide_desk.store.arrived(1)
        futures += wide_desk.submit(moving(a_run(1)), starting(a_run(2)))
        stopping = asyncio.create_task(wide_desk.committer.stop(5 * SECOND))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not stopping.done()
    await stopping
    assert wide_desk.committer.ended
    assert [(await future).outcome for future in futures] == ["applied"] * 3


async def test_an_idle_committer_commits_at_once(desk: Desk) -> None:
    """Changes that are committed one after another get a batch each, at once."""
    for run_id in (3, 1, 2):
        await desk.committer.commit(starting(a_run(run_id)))
    assert desk.store.batches == [[3], [1], [2]]


async def test_all_that_wait_are_one_batch(desk: Desk) -> None:
    """Changes submitted while a batch is in flight are committed together once it is done."""
    with desk.store.held():
        first = await desk.busy()
        futures = desk.submit(*starts(*range(1, 101)))
        await asyncio.sleep(0)
        assert not first.done()
    assert [(await future).outcome for future in futures] == ["applied"] * 100
    assert desk.store.batches == [[900], list(range(1, 101))]


async def test_a_batch_is_sorted_by_run(desk: Desk) -> None:
    """The changes of a batch are sorted by run id, whatever the order of their submission."""
    futures = desk.submit(*starts(7, 3, 9, 1))
    assert [(await future).run for future in futures] == [a_run(7), a_run(3), a_run(9), a_run(1)]
    assert desk.store.batches == [[1, 3, 7, 9]]


async def test_a_batch_has_a_largest_size() -> None:
    """Changes beyond max_batch wait for the next batch, in order."""
    desk = await small_desk(max_batch=3)
    assert await desk.commit(*starts(8, 7, 6, 5, 4, 3, 2)) == ["applied"] * 7
    assert desk.store.batches == [[6, 7, 8], [3, 4, 5], [2]]
    await desk.committer.stop(SECOND)


async def test_a_batch_has_a_largest_amount_of_data(desk: Desk) -> None:
    """Once its Contexts, inputs, payloads or entities have 8 million characters, what comes next is a further batch."""
    large, numbers = f'"{"x" * 1_000_000}"', range(1, 10)
    lots: list[list[Change]] = [
        [starting(a_run(number, data=large)) for number in numbers],
        [starting(a_run(20 + number, data="{}", input=large)) for number in numbers],
        [moving(a_run(number), data="{}", input=large) for number in numbers],
        [Post(a_signal(number, key="k", payload=large)) for number in numbers],
        [moving(moving(a_run(9, data="{}")).run, data="{}")._replace(also=tuple(starting(a_run(10 + n, data=large)) for n in numbers))],
        [Emit(an_event(number, entity=large)) for number in numbers],
    ]  # fmt: skip
    for lot in lots:
        assert set(await desk.commit(*lot)) == {"applied"}
    assert [len(offer) for offer in desk.store.offers] == [8, 1, 8, 1, 8, 1, 8, 1, 1, 8, 1]
    small = starting(a_run(30))
    desk.submit(lots[4][0])
    assert await desk.commit(small) == ["applied"]
    assert [len(offer) for offer in desk.store.offers[-2:]] == [1, 1]


async def test_a_batch_has_one_change_of_a_run(desk: Desk) -> None:
    """Changes of one run go into successive batches, in order of submission."""
    first, second = a_run(1), moving(a_run(1)).run
    assert (
        await desk.commit(
            starting(first), starting(a_run(2)), moving(first), starting(a_run(3)), moving(second), starting(a_run(4))
        )
        == ["applied"] * 6
    )
    assert desk.store.batches == [[1, 2], [1, 3], [1, 4]]
    assert [transition.seq for transition in await log(desk.store, 1)] == [1, 2, 3]


async def test_every_kind_of_change_counts_for_its_run(desk: Desk) -> None:
    """A start, moves, a mark and amends of one run never share a batch."""
    run = a_run(1, key="a")
    early = hopping(1, commit_id=4)
    changes = [early, starting(run), marking(run), hopping(1, commit_id=5), cancelling(1, commit_id=6), moving(run)]
    assert await desk.commit(*changes) == ["stale", "applied", "applied", "applied", "applied", "stale"]
    assert desk.store.offers == [[change] for change in changes]


async def test_a_batch_has_one_start_of_a_key(desk: Desk) -> None:
    """Two starts of one key go into successive batches; the same key of another workflow is a different key."""
    first, second = starting(a_run(1, key="a")), starting(a_run(2, key="a"))
    other, free = starting(a_run(3, key="a", workflow="refund")), starting(a_run(4))
    assert await desk.commit(first, second, other, free) == ["applied", "exists", "applied", "applied"]
    assert desk.store.batches == [[1], [2, 3, 4]]


async def test_a_later_change_does_not_overtake(desk: Desk) -> None:
    """A change that waits for a later batch holds back all later changes of its run."""
    run = a_run(1)
    futures = desk.submit(starting(run), moving(run), starting(a_run(2)), moving(moving(run).run), moving(a_run(2)))
    assert [(await future).outcome for future in futures] == ["applied"] * 5
    assert desk.store.batches == [[1], [1, 2], [1, 2]]


# ---- the hook


async def test_the_hook_is_called_before_futures_are_resolved(desk: Desk) -> None:
    """The hook is called with a whole batch, in its order, before any future of the batch is resolved."""
    order: list[Any] = []
    futures = desk.submit(*starts(2, 1))
    for future in futures:
        future.add_done_callback(lambda done: order.append((done.result().run.id, list(desk.heard_of))))
    await asyncio.gather(*futures)
    assert order == [(1, [1, 2]), (2, [1, 2])]
    assert [result for _, result in desk.heard] == [Result("applied", a_run(1)), Result("applied", a_run(2))]


async def test_the_hook_gets_only_applied_changes(desk: Desk) -> None:
    """The hook is not called for stale changes, nor for starts whose key is taken."""
    await desk.commit(starting(a_run(1, key="a")))
    outcomes = await desk.commit(moving(a_run(2)), starting(a_run(3, key="a")), marking(a_run(4)), *starts(5))
    assert outcomes == ["stale", "exists", "stale", "applied"]
    assert desk.heard_of == [1, 5]


async def test_a_hook_that_raises_is_reported_and_the_result_delivered(desk: Desk) -> None:
    """If the hook raises, an error is logged, callers get their results, and the hook gets the other changes."""
    desk.breaks = {2}
    with capture_logs() as logged:
        assert await desk.commit(*starts(1, 2, 3)) == ["applied"] * 3
    assert [(entry["log_level"], entry["event"]) for entry in logged] == [
        ("error", "a bug in aioflow: following a commit failed")
    ]
    assert logged[0]["exception"].startswith("Traceback (most recent call last):")
    assert desk.heard_of == [1, 2, 3]
    assert await desk.commit(*starts(4)) == ["applied"]


async def test_a_listener_that_raises_does_not_affect_others(desk: Desk) -> None:
    """If a listener raises, every other listener and the hook are still told once, and the committer goes on."""
    listeners = [Listening(raises=number == 2) for number in (1, 2, 3)]
    for number, listener in enumerate(listeners, 1):
        desk.committer.offer(starting(a_run(number)), listener)
    assert await desk.commit(*starts(4)) == ["applied"]
    assert [len(listener.heard) for listener in listeners] == [1, 1, 1]
    assert desk.heard_of == [1, 2, 3, 4]
    assert await desk.commit(*starts(5)) == ["applied"]


async def test_a_cancelled_caller_does_not_stop_its_change(desk: Desk) -> None:
    """A queued change whose caller is cancelled is committed all the same, and the hook is called with it."""
    with desk.store.held():
        await desk.busy()
        caller = asyncio.ensure_future(desk.committer.commit(starting(a_run(1))))
        others = desk.submit(*starts(2))
        await asyncio.sleep(0)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
    assert (await others[0]).outcome == "applied"
    assert await row(desk.store, 1) == a_run(1)
    assert desk.heard_of == [900, 1, 2]


async def test_a_caller_that_is_cancelled_under_way_does_not_stop_its_change(desk: Desk) -> None:
    """A change in flight whose caller is cancelled is committed all the same."""
    with desk.store.held():
        caller = asyncio.ensure_future(desk.committer.commit(starting(a_run(1))))
        await desk.store.arrived(1)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        [other] = desk.submit(*starts(2))
    await other
    assert desk.heard_of == [1, 2]


# ---- unknown outcomes


@pytest.mark.parametrize("times", [1, 2, 5])
@pytest.mark.parametrize("fault", ["before", "after"])
async def test_an_unknown_outcome_is_offered_again(desk: Desk, fault: Any, times: int) -> None:
    """After an error the same batch is offered until the store answers, and each of its changes is applied once."""
    run = a_run(1)
    await desk.commit(starting(run))
    desk.store.faults.extend([fault] * times)
    changes = [moving(run), *starts(2, 3), hopping(900, commit_id=9)]
    assert await desk.commit(*changes) == ["applied", "applied", "applied", "stale"]
    assert desk.store.offers[1:] == [changes] * (times + 1)
    assert [transition.commit_id for transition in await log(desk.store, 1)] == [1_000_001, 1_000_002]
    assert [len(await log(desk.store, run_id)) for run_id in (2, 3)] == [1, 1]
    assert desk.heard_of == [1, 1, 2, 3]


async def test_changes_whose_reply_was_lost_are_recognised(desk: Desk) -> None:
    """If the reply is lost, every kind of change is recognised when offered again: applied, with the row it wrote."""
    await desk.commit(*starts(1, 2, 3))
    desk.store.faults.append("after")
    results = [await future for future in desk.submit(moving(a_run(1)), marking(a_run(2)), hopping(3, commit_id=9), *starts(4))]  # fmt: skip
    assert [result.outcome for result in results] == ["applied"] * 4
    rows = [moving(a_run(1)).run, a_run(2, marked=1), a_run(3, hops=1, seq=2), a_run(4)]
    assert [result.run for result in results] == rows
    assert await desk.store.load([1, 2, 3, 4], NOW) == rows
    assert len(await log(desk.store, 3)) == 2


async def test_new_changes_wait_while_an_outcome_is_unknown(desk: Desk) -> None:
    """A batch is offered again unchanged: changes submitted meanwhile wait for the next one."""
    desk.store.faults.extend(["after", "before"])
    with desk.store.held():
        first = await desk.busy()
        later = desk.submit(*starts(1, 2))
    await asyncio.gather(first, *later)
    assert desk.store.batches == [[900], [900], [900], [1, 2]]


async def test_delays_between_offers_grow_up_to_two_seconds(desk: Desk) -> None:
    """The delays between offers double from 20 ms up to two seconds, and start again at 20 ms for the next failure."""
    desk.store.faults.extend(["before"] * 10)
    await desk.commit(*starts(1))
    assert desk.clock.slept == [20_000 * 2**n for n in range(7)] + [2 * SECOND] * 3
    desk.store.faults.append("before")
    await desk.commit(*starts(2))
    assert desk.clock.slept[10:] == [20_000]
    assert desk.store.instants[-1] == NOW + sum(desk.clock.slept)


async def test_failing_commits_are_logged_at_begin_and_end(desk: Desk) -> None:
    """However often a batch is offered, one warning is logged when commits begin to fail, and one when they succeed."""
    desk.store.faults.extend(["before", "after", "before"])
    with capture_logs() as logged:
        await desk.commit(*starts(1, 2))
    assert logged == [
        {
            "event": "commit failed, will offer it again",
            "log_level": "warning",
            "changes": 2,
            "error": str(lost("before")),
        },
        {"event": "commit works again", "log_level": "warning", "changes": 2},
    ]


async def test_a_stale_change_is_reported_alone(desk: Desk) -> None:
    """A change whose guard does not hold gets "stale" and the stored row; the others of its batch are committed."""
    await desk.commit(*starts(2))
    results = [await future for future in desk.submit(*starts(1), moving(a_run(2, fence=7)), *starts(3))]
    assert results == [Result("applied", a_run(1)), Result("stale", a_run(2)), Result("applied", a_run(3))]
    assert desk.store.batches == [[2], [1, 2, 3]]


# ---- data that cannot be stored


@pytest.mark.parametrize("sick", [{1}, {37}, {64}, {20, 21}, {1, 33, 64}, set(range(1, 65))], ids=str)
async def test_what_cannot_be_stored_is_found_among_the_others(desk: Desk, sick: set[int]) -> None:
    """Exactly the changes that the store refuses get StoreRefused; all others of the batch are committed, once."""
    desk.store.poison = sick
    futures = desk.submit(*starts(*range(1, 65)))
    done = await asyncio.gather(*futures, return_exceptions=True)
    assert {run_id for run_id, result in enumerate(done, 1) if isinstance(result, StoreRefused)} == sick
    healthy = [run_id for run_id in range(1, 65) if run_id not in sick]
    assert desk.heard_of == healthy
    assert [run.id for run in await desk.store.load(range(1, 65), NOW)] == healthy
    assert len(desk.store.offers) <= 1 + 12 * len(sick)


async def test_the_error_names_what_is_wrong(desk: Desk) -> None:
    """A refused change gets the store's own error."""
    desk.store.poison = {2}
    _, refused, _ = desk.submit(*starts(1, 2, 3))
    with pytest.raises(StoreRefused, match=r"^The store faulty:// cannot hold this data: run 2 is too large\.$"):
        await refused


async def test_what_the_store_itself_refuses_is_found(desk: Desk) -> None:
    """A store that refuses a NUL in one run's Context still commits the other changes of the batch."""
    changes = [*starts(1, 2), starting(a_run(3, data='"\0"')), *starts(4, 5)]
    done = await asyncio.gather(*desk.submit(*changes), return_exceptions=True)
    assert [type(result) for result in done] == [Result, Result, StoreRefused, Result, Result]


async def test_a_caller_that_has_left_does_not_mind_a_refusal(desk: Desk) -> None:
    """A refused change whose caller was cancelled does not disturb the others of its batch."""
    desk.store.poison = {1}
    sick, healthy = desk.submit(*starts(1, 2))
    sick.cancel()
    assert (await healthy).outcome == "applied"
    assert sick.cancelled()


async def test_unknown_outcomes_while_a_batch_is_split_are_handled(desk: Desk) -> None:
    """Unknown outcomes while a refused batch is split are handled: each valid change is applied once."""
    desk.store.poison = {3}
    desk.store.faults.extend([None, "after", "before", None, "before", "after", None, "after"])
    done = await asyncio.gather(*desk.submit(*starts(1, 2, 3, 4)), return_exceptions=True)
    assert [type(result) for result in done] == [Result, Result, StoreRefused, Result]
    assert desk.heard_of == [1, 2, 4]
    assert [len(await log(desk.store, run_id)) for run_id in (1, 2, 3, 4)] == [1, 1, 0, 1]


# ---- patience


async def test_a_caller_whose_patience_is_over_gets_an_error(desk: Desk) -> None:
    """A caller whose patience is over gets StoreUnavailable, while more patient ones of the same batch go on."""
    desk.store.faults.extend(["before"] * 5)
    hasty, calm = desk.submit(*starts(1), patience=30_000)[0], desk.submit(*starts(2))[0]
    with pytest.raises(StoreUnavailable, match="the connection was lost before the commit"):
        await hasty
    assert not calm.done()
    assert (await calm).outcome == "applied"
    assert desk.store.batches == [[1, 2], [1, 2], [1, 2], [2], [2], [2]]
    assert desk.clock.slept == [20_000, 40_000, 80_000, 160_000, 320_000]


async def test_without_patience_there_is_one_offer(desk: Desk) -> None:
    """With patience=0 the first error is raised, and a successful commit is not affected."""
    desk.store.faults.append("after")
    [hasty] = desk.submit(*starts(1), patience=0)
    with pytest.raises(StoreUnavailable):
        await hasty
    assert [(await future).outcome for future in desk.submit(*starts(2), patience=0)] == ["applied"]
    assert desk.store.batches == [[1], [2]]


async def test_patience_ends_while_others_are_being_offered(desk: Desk) -> None:
    """The patience of a caller that is queued behind a batch that keeps failing ends in time."""
    desk.store.down = True
    [first] = desk.submit(*starts(1))
    await desk.store.arrived(1)
    [hasty], [calm] = desk.submit(*starts(2), patience=SECOND), desk.submit(*starts(3))
    await desk.store.arrived(40)
    assert hasty.done()
    assert isinstance(hasty.exception(), StoreUnavailable)
    desk.store.down = False
    assert [(await future).outcome for future in (first, calm)] == ["applied"] * 2
    assert await desk.store.load([2], NOW) == []


async def test_patience_ends_while_the_other_half_is_being_offered(desk: Desk) -> None:
    """When a refused batch was split, the patience of a caller in the second half ends while the first is offered."""
    desk.store.poison = {2}
    desk.store.faults.extend([None, *["before"] * 60])
    [calm], [hasty] = desk.submit(*starts(1)), desk.submit(*starts(2), patience=SECOND)
    await desk.store.arrived(40)
    assert hasty.done()
    assert isinstance(hasty.exception(), StoreUnavailable)
    assert (await calm).outcome == "applied"


async def test_patience_ends_while_the_store_is_silent(desk: Desk) -> None:
    """The patience of a caller ends in time even if the store never answers, and not before."""
    with desk.store.held():
        hasty = asyncio.ensure_future(desk.committer.commit(starting(a_run(1)), patience=1_000))
        await desk.store.arrived(1)
        early, _ = await asyncio.wait({hasty}, timeout=0.5)
        desk.clock.passed += SECOND
        done, _ = await asyncio.wait({hasty}, timeout=2)
    await asyncio.wait({hasty})
    assert not early, "patience was not over yet"
    assert done, "patience was over, and nobody told"
    assert isinstance(hasty.exception(), StoreUnavailable)


async def test_a_refusal_after_patience_is_over_is_not_reported_again(desk: Desk) -> None:
    """A listener that was told that the outcome is unknown is not told again when the store then refuses the change."""
    desk.store.poison = {1}
    listener = Listening()
    with desk.store.held():
        desk.committer.offer(starting(a_run(1)), listener, patience=0)
        await desk.store.arrived(1)
        assert await wait_until(lambda: listener.heard)
    assert await wait_until(lambda: desk.committer.idle)
    assert [type(each) for each in listener.heard] == [StoreUnavailable]


# ---- promises


async def test_a_promise_is_redeemed_once_whatever_the_outcome(desk: Desk) -> None:
    """The promise of a change is redeemed once, whatever its outcome, after the hook and before the future."""
    order: list[Any] = []

    class Ordered(Promised):
        def redeem(self, owner: int | None) -> None:
            order.append((owner, owner in desk.heard_of))

    desk.store.poison = {6}
    await desk.commit(starting(a_run(1, key="a")))
    desk.heard.clear()
    changes = [moving(a_run(1)), starting(a_run(2, key="a")), moving(a_run(3)), *starts(4, 5, 6)]
    futures = []
    for change in changes:
        futures.append(desk.committer.submit(change, slots=Ordered(), owner=run_id_of(change)))
        futures[-1].add_done_callback(order.append)
    futures[3].cancel()
    desk.store.faults.append("after")
    await asyncio.wait(futures)
    done = [entry for entry in order if isinstance(entry, asyncio.Future)]
    assert set(done) == set(futures)
    told = [entry for entry in order if entry not in done]
    assert told == [(1, True), (2, False), (3, False), (4, True), (5, True), (6, False)]
    for future, entry in zip(futures, told, strict=True):
        assert future.cancelled() or order.index(entry) < order.index(future)


@pytest.mark.parametrize("fault", ["before", NotImplementedError()], ids=["patience", "contract"])
async def test_promises_of_changes_that_are_given_up_are_redeemed(desk: Desk, fault: Any) -> None:
    """The promise of a change that was given up is redeemed: patience was over, or the store raised a bug."""
    slots = Promised()
    desk.store.faults.append(fault)
    future = desk.committer.submit(starting(a_run(1)), 0, slots, 1)
    await asyncio.wait({future})
    assert slots.redeemed == [1]
    assert future.exception() is not None


async def test_promises_of_changes_given_up_by_stop_or_later_are_redeemed(desk: Desk) -> None:
    """The promises of changes that stop() gives up, and of those submitted afterwards, are redeemed."""
    slots = Promised()
    desk.store.down = True
    futures = [desk.committer.submit(starting(a_run(1)), slots=slots, owner=1)]
    await desk.committer.stop(1_000)
    futures.append(desk.committer.submit(starting(a_run(2)), slots=slots, owner=2))
    assert slots.redeemed == [1, 2]
    assert all(isinstance(future.exception(), StoreUnavailable) for future in futures)


# ---- the end


async def test_stop_commits_what_waits(desk: Desk) -> None:
    """stop() commits what was submitted before it, in several batches if need be."""
    run = a_run(1)
    futures = desk.submit(starting(run), moving(run), *starts(2))
    await desk.committer.stop(SECOND)
    assert [future.result().outcome for future in futures] == ["applied"] * 3


async def test_stop_waits_for_a_store_that_comes_back(desk: Desk) -> None:
    """stop() goes on offering a batch whose outcome is unknown, until its patience is over."""
    desk.store.faults.extend(["before", "after"])
    [future] = desk.submit(*starts(1))
    await desk.committer.stop(5 * SECOND)
    assert future.result().outcome == "applied"


async def test_stop_gives_up_what_the_store_does_not_take(desk: Desk) -> None:
    """When stop()'s patience is over, every change that the store has not taken gets StoreUnavailable."""
    desk.store.down = True
    run = a_run(1)
    futures = desk.submit(starting(run), moving(run), *starts(2))
    await desk.committer.stop(10_000)
    for future in futures:
        with pytest.raises(StoreUnavailable):
            future.result()


async def test_stop_gives_up_a_store_that_is_silent() -> None:
    """stop() ends when its patience is over even if the store never answers, and later changes fail at once."""
    desk = await small_desk(max_batch=10)
    with desk.store.held():
        [future] = desk.submit(*starts(1))
        await desk.store.arrived(1)
        stopping = asyncio.ensure_future(desk.committer.stop(1_000))
        done, _ = await asyncio.wait({stopping}, timeout=2)
        [late] = desk.submit(*starts(2))
        told = late.done()
    await asyncio.wait({stopping, future, late})
    assert done, "stop() hangs"
    assert isinstance(future.exception(), StoreUnavailable)
    assert told, "what came after the end would wait for ever"
    assert isinstance(late.exception(), StoreUnavailable)


async def test_nothing_is_taken_in_after_the_end(desk: Desk) -> None:
    """A change submitted after stop() fails at once and never reaches the store."""
    await desk.committer.stop(SECOND)
    with pytest.raises(StoreUnavailable, match=r"^The store faulty:// is not available: the engine has stopped\.$"):
        await desk.committer.commit(starting(a_run(1)))
    assert desk.store.offers == []


async def test_a_second_stop_does_nothing(desk: Desk) -> None:
    """A second stop() does nothing."""
    await desk.committer.stop(SECOND)
    await desk.committer.stop(SECOND)


async def test_stop_before_start_does_nothing() -> None:
    """stop() of a committer that was never started does nothing."""
    await Desk().committer.stop(SECOND)


async def test_a_cancelled_task_fails_all_pending_changes(desk: Desk) -> None:
    """If the committer's task is cancelled, every pending change gets StoreUnavailable, and so do later ones."""
    run = a_run(1)
    with desk.store.held():
        first = await desk.busy()
        futures = [first, *desk.submit(starting(run), moving(run), *starts(2))]
        futures[2].cancel()
        [task] = [task for task in asyncio.all_tasks() if task.get_name() == "aioflow committer"]
        task.cancel()
        await asyncio.wait({task})
    for future in (*futures[:2], futures[3]):
        with pytest.raises(StoreUnavailable, match="the engine has ended, the outcome is not known"):
            future.result()
    with pytest.raises(StoreUnavailable):
        await desk.committer.commit(starting(a_run(3)))
    await desk.committer.stop(SECOND)


async def test_two_cancelled_tasks_fail_all_pending_changes(wide_desk: Desk) -> None:
    """If the tasks of both batches in flight are cancelled, every pending change gets StoreUnavailable."""
    with wide_desk.store.held():
        futures = [await wide_desk.busy(), await wide_desk.busy(), *wide_desk.submit(*starts(1, 2))]
        tasks = [task for task in asyncio.all_tasks() if task.get_name() == "aioflow committer"]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    assert len(tasks) == 2
    for future in futures:
        with pytest.raises(StoreUnavailable, match="the engine has ended, the outcome is not known"):
            future.result()
    await wide_desk.committer.stop(SECOND)


class Nothing(BaseModel):
    """A Context without fields."""


def cancel_as_a_step(task: asyncio.Task[Any]) -> None:
    _current.set(CurrentRun(a_run(1), Nothing(), "faulty", QuickClock(), lambda run: None))  # type: ignore[arg-type,return-value]
    task.cancel()


async def test_a_task_that_a_step_cancels_is_restarted(desk: Desk) -> None:
    """If a step cancels the committer's task, it is started again; each change is applied, and reported once."""
    told = 0
    with capture_logs() as logged:
        for ended in range(3):
            with desk.store.held():
                futures = [await desk.busy(), *desk.submit(*starts(10 + ended, 20 + ended))]
                [task] = [task for task in asyncio.all_tasks() if task.get_name() == "aioflow committer"]
                copy_context().run(cancel_as_a_step, task)
                await asyncio.wait({task})
                assert task.cancelled()
                assert not any(future.done() for future in futures)
            await asyncio.wait(futures)
            assert [future.result().outcome for future in futures] == ["applied"] * 3
            told += 3
            assert len(desk.heard) == told
    assert [(entry["log_level"], entry["event"]) for entry in logged] == [
        ("error", "a task of the engine ended unexpectedly, it is started again")
    ] * 3


async def test_what_goes_on_while_its_batch_is_halved_is_in_a_batch_of_its_own(desk: Desk) -> None:
    """If the task is restarted while the rest of a refused batch is committed, what has gone on since is no part of it."""
    offered = asyncio.Event()

    class GoingOn(Listening):
        def told(self, outcome: Result | Exception) -> None:
            super().told(outcome)
            if len(self.heard) == 1:
                desk.store._open.clear()
                desk.committer.offer(moving(a_run(1, seq=2)), self)
                offered.set()

    await desk.commit(*starts(1))
    desk.store.poison = {60}
    going_on = GoingOn()
    with capture_logs(), desk.store.held():
        await desk.busy()
        desk.committer.offer(moving(a_run(1)), going_on)
        rest = desk.submit(*starts(50, 60))
        desk.store._open.set()
        await offered.wait()
        await desk.store.arrived(5)
        [task] = [task for task in asyncio.all_tasks() if task.get_name() == "aioflow committer"]
        copy_context().run(cancel_as_a_step, task)
        await asyncio.wait({task})
    await asyncio.wait(rest)
    assert await wait_until(lambda: desk.committer.idle)
    assert desk.store.batches[2:] == [[1, 50, 60], [1], [50, 60], [50, 60], [50], [60], [1]]
    assert [getattr(outcome, "outcome", None) for outcome in going_on.heard] == ["applied"] * 2


async def test_an_error_without_a_waiter_is_not_printed(desk: Desk) -> None:
    """If the caller of a failed change has gone, asyncio prints nothing about it, and its promise is redeemed."""
    desk.store.poison = set(range(1, 10))
    printed: list[dict[str, Any]] = []
    slots = Promised()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: printed.append(context))
    try:
        for run_id in range(1, 10):
            desk.committer.submit(starting(a_run(run_id)), slots=slots, owner=run_id)
        await desk.committer.stop(SECOND)
        desk.committer.submit(starting(a_run(11)), slots=slots, owner=11)
        for _ in range(2):
            await asyncio.sleep(0)
            gc.collect()
    finally:
        loop.set_exception_handler(None)
    assert sorted(slots.redeemed) == [*range(1, 10), 11]
    assert printed == []


# ---- a store that breaks its contract


class NotInTheContract(Exception):
    """An error of a driver that the store should have caught."""


async def test_an_error_outside_the_contract_is_a_bug_and_not_the_end(desk: Desk) -> None:
    """If the store raises an error outside its contract, the batch gets InternalError and the next is committed."""
    desk.store.faults.append(NotInTheContract("secret"))
    with capture_logs() as logged:
        broken = await asyncio.gather(*desk.submit(*starts(1, 2)), return_exceptions=True)
    assert [str(error) for error in broken] == [
        "The store raised NotInTheContract. This is a bug in aioflow: please report it."
    ] * 2
    assert all(isinstance(error, InternalError) for error in broken)
    assert [(entry["log_level"], entry["event"]) for entry in logged] == [("error", "store broke its contract")]
    assert "NotInTheContract" in logged[0]["exception"]
    assert await desk.commit(*starts(1, 3)) == ["applied"] * 2


@pytest.mark.parametrize(
    "mangle", [lambda results: results[:-1], lambda results: results * 2, lambda _: None], ids=["few", "many", "none"]
)
async def test_too_few_or_too_many_results_are_a_bug_and_not_the_end(mangle: Any) -> None:
    """A wrong number of results is an InternalError, and the committer goes on."""
    desk = await small_desk(max_batch=10)
    desk.store.mangle = mangle
    futures = desk.submit(*starts(1, 2))
    done, pending = await asyncio.wait(futures, timeout=1)
    assert not pending
    assert InternalError in {type(future.exception()) for future in done}
    desk.store.mangle = lambda results: results
    assert await desk.commit(*starts(3)) == ["applied"]
    await desk.committer.stop(SECOND)


@workflow("committer.sleeper")
class Sleeper:
    """A workflow that sleeps for a moment."""

    class Context(BaseModel):
        total: int = 0

    @step(start=True)
    async def rest(self) -> Command:
        return sleep(timedelta(milliseconds=1), then=self.rise)

    @step
    async def rise(self) -> Command:
        return complete()


@pytest.mark.parametrize("offer", [0, 1, 2, 3])
async def test_an_engine_outlives_a_store_that_breaks_its_contract(offer: int) -> None:
    """Whichever commit raises an error outside the contract, that run and later ones still complete."""
    store = FaultyStore()
    async with Engine(store, workflows=[Sleeper]) as engine:
        store.faults.extend([*[None] * offer, NotInTheContract()])
        with suppress(InternalError):
            await engine.start(Sleeper)
        await wait_until(lambda: not store.faults)
        run = await engine.start(Sleeper)
        assert (await run.wait(3)).status == "completed"
        for earlier in await engine.runs():
            assert (await earlier.wait(3)).status == "completed"


@pytest.mark.parametrize("verb", ["due", "load", "claim", "hint"])
async def test_an_engine_outlives_a_question_that_breaks_the_contract(
    monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """If a read by the engine raises an error outside the contract, runs still complete."""
    store = FaultyStore()
    answer, asked = getattr(store, verb), []
    first = 2 if verb == "due" else 1  # what is asked to open it: of runs, and of plans

    async def broken(*arguments: Any, **options: Any) -> Any:
        asked.append(verb)
        if len(asked) == first + 1:  # the engine is open, and asks by itself
            raise NotInTheContract
        return await answer(*arguments, **options)

    monkeypatch.setattr(store, verb, broken)
    async with Engine(store, workflows=[Sleeper]) as engine:
        for _ in range(3):
            run = await engine.start(Sleeper, StartOptions(delay=timedelta(milliseconds=1)))
            with suppress(NotInTheContract):
                await run.wait(5)
        await wait_until(lambda: len(asked) > 3)
        async with asyncio.timeout(5):
            async for run in engine.iter_runs():
                assert (await run.wait(5)).status == "completed"


# ---- anything at all

FAULTS = st.lists(st.sampled_from([None, None, "before", "after"]), max_size=30)
#: How many moves each of a few runs makes, and in which order they are submitted.
PLANS = st.lists(st.integers(1, 5), max_size=30)


@given(FAULTS, PLANS, st.integers(1, 4), st.sets(st.integers(1, 5), max_size=1))
@settings(max_examples=150)
async def test_every_change_is_applied_once_and_in_order(
    faults: list[Any], plan: list[int], max_batch: int, sick: set[int]
) -> None:
    """Whatever offers fail, each run's history has no gap, and the hook is called once for each change, in order."""
    with capture_logs():
        desk = await small_desk(max_batch)
        desk.store.faults.extend(faults)
        desk.store.poison = sick
        rows: dict[int, Run] = {}
        futures = []
        for run_id in plan:
            change: Start | Move = moving(rows[run_id]) if run_id in rows else starting(a_run(run_id))
            rows[run_id] = change.run
            futures += desk.submit(change)
        done = await asyncio.gather(*futures, return_exceptions=True)
        await desk.committer.stop(SECOND)
    for run_id, result in zip(plan, done, strict=True):
        if run_id in sick:
            assert isinstance(result, StoreRefused)
        else:
            assert isinstance(result, Result)
            assert result.outcome == "applied"
    made = Counter(run_id for run_id in plan if run_id not in sick)
    assert Counter(desk.heard_of) == made
    heard: dict[int, list[int]] = defaultdict(list)
    for change, _ in desk.heard:
        assert isinstance(change, Start | Move)
        heard[change.run.id].append(change.run.seq)
    for run_id, count in made.items():
        assert heard[run_id] == list(range(1, count + 1))
        assert [transition.seq for transition in await log(desk.store, run_id)] == list(range(1, count + 1))
        assert await row(desk.store, run_id) == rows[run_id]
    assert all(len(set(batch)) == len(batch) <= max_batch for batch in desk.store.batches)
    assert all(batch == sorted(batch) for batch in desk.store.batches)


# ---- ids


class Registrar(MemoryStore):
    """A store whose reserve() takes a few turns of the loop, and that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.reserved: list[int] = []

    async def reserve(self, kind: Any, count: int, now: Micros) -> int:
        self.reserved.append(count)
        await asyncio.sleep(0)
        first = await super().reserve(kind, count, now)
        await asyncio.sleep(0)
        return first


async def test_run_ids_are_reserved_in_blocks() -> None:
    """Each call of reserve() gives a whole block, of which every id is used before the next call."""
    store = Registrar()
    await store.open(NOW)
    ids = Ids(store, QuickClock(), "run", block=3)
    assert [await ids.take() for _ in range(7)] == [1, 2, 3, 4, 5, 6, 7]
    assert store.reserved == [3, 3, 3]


async def test_run_ids_are_taken_once() -> None:
    """With many concurrent callers in several processes, no id is given twice, and no block is reserved needlessly."""
    store = Registrar()
    await store.open(NOW)
    makers = [Ids(store, QuickClock(), "run", block=10) for _ in range(3)]
    taken = await asyncio.gather(*(maker.take() for _ in range(40) for maker in makers))
    assert len(set(taken)) == 120
    assert store.reserved == [10] * 12
    by_maker = [set(taken[n::3]) for n in range(3)]
    assert all(len({(run_id - 1) // 10 for run_id in mine}) == 4 for mine in by_maker)


async def test_a_caller_that_leaves_does_not_hold_up_the_others() -> None:
    """If a caller is cancelled while a block is being reserved, the others still get ids of their own."""
    store = Registrar()
    await store.open(NOW)
    ids = Ids(store, QuickClock(), "run", block=5)
    takers = [asyncio.ensure_future(ids.take()) for _ in range(4)]
    await asyncio.sleep(0)
    takers[0].cancel()
    done = await asyncio.gather(*takers, return_exceptions=True)
    assert isinstance(done[0], asyncio.CancelledError)
    assert len({taken for taken in done[1:] if isinstance(taken, int)}) == 3


async def test_a_block_that_could_not_be_reserved_is_asked_for_again() -> None:
    """After an error of reserve() the next caller tries again."""
    store = Registrar()
    ids = Ids(store, QuickClock(), "run")
    with pytest.raises(StoreUnavailable):
        await ids.take()
    await store.open(NOW)
    assert await ids.take() == 1


def test_commit_ids_are_one_workers_own() -> None:
    """Commit ids of different workers differ, rise, and fit into a signed 64-bit integer."""
    workers = [1, 2, 3, 1000, 2**31 - 1]
    made = [list(islice(commit_ids(worker), 1000)) for worker in workers]
    assert len({commit_id for ids in made for commit_id in ids}) == 5000
    assert all(ids == sorted(ids) and ids[0] > 0 for ids in made)
    assert max(map(max, made)) < 2**63


# ---- waiters


ENDED = [an_ended(1, status) for status in ("completed", "failed", "cancelled")]


@pytest.mark.parametrize("until", ["ended", "parked"])
@pytest.mark.parametrize("run", ENDED, ids=lambda run: run.status)
async def test_waiters_are_resolved_by_the_end(run: Run, until: Until) -> None:
    """Every waiter gets the run when it has ended, with any status, and later rows do not change that."""
    waiters = Waiters()
    future = waiters.add(1, until)
    waiters.tell(run)
    waiters.tell(a_sleeper(1, NOW))
    assert await future == run


async def test_parked_waiters_are_resolved_by_a_parked_run() -> None:
    """A run that parks resolves waiters for "parked" alone; a running one resolves none."""
    waiters = Waiters()
    ended, parked = waiters.add(1, "ended"), waiters.add(1, "parked")
    waiters.tell(a_run(1))
    assert not parked.done()
    waiters.tell(a_sleeper(1, NOW))
    assert await parked == a_sleeper(1, NOW)
    assert not ended.done()
    waiters.tell(ENDED[0])
    assert await ended == ENDED[0]


async def test_waiters_are_resolved_by_their_own_run_only() -> None:
    """All waiters for a run are resolved by its end, and by no other run's."""
    waiters = Waiters()
    futures = [waiters.add(1, "ended"), waiters.add(1, "ended"), waiters.add(2, "ended")]
    assert waiters.run_ids == [1, 2]
    waiters.tell_all([an_ended(3), an_ended(1)])
    assert [future.done() for future in futures] == [True, True, False]
    waiters.tell_all([an_ended(2)])
    assert await futures[2] == an_ended(2)


async def test_removed_waiters_are_forgotten() -> None:
    """Removing a waiter, even twice, leaves the others alone, and a run without waiters is no longer listed."""
    waiters = Waiters()
    gone, stays = waiters.add(1, "ended"), waiters.add(1, "ended")
    gone.cancel()
    waiters.tell(a_run(1))
    waiters.remove(1, gone)
    waiters.remove(1, gone)
    assert waiters.run_ids == [1]
    waiters.tell(ENDED[0])
    assert await stays == ENDED[0]
    waiters.remove(1, stays)
    waiters.remove(2, stays)
    assert waiters.run_ids == []
    waiters.tell(ENDED[0])


async def test_cancelled_waiters_are_skipped() -> None:
    """A cancelled waiter that was not removed yet is skipped."""
    waiters = Waiters()
    gone, stays = waiters.add(1, "ended"), waiters.add(1, "ended")
    gone.cancel()
    waiters.tell(ENDED[0])
    assert gone.cancelled()
    assert await stays == ENDED[0]


async def test_fail_fails_all_pending_waiters() -> None:
    """fail() raises in all pending waiters but not in resolved or cancelled ones, and no new waiter can be added."""
    waiters = Waiters()
    told, gone, *others = [waiters.add(run_id, "ended") for run_id in (1, 2, 2, 3)]
    waiters.tell(ENDED[0])
    gone.cancel()
    waiters.fail(EngineClosed("engine.wait()"))
    for future in others:
        with pytest.raises(EngineClosed):
            await future
    assert told.result() == ENDED[0]
    assert gone.cancelled()
    with pytest.raises(EngineClosed):
        waiters.add(4, "ended")
