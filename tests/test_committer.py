"""Group commit against a store that goes wrong: every change is applied once, and everybody hears the truth."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from contextvars import copy_context
from datetime import timedelta
from functools import partial
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
    """Keep warnings off the terminal; tests that look for them get them by name."""
    with capture_logs():
        yield
    structlog.reset_defaults()


class Desk:
    """A committer, its store and clock, and what its hook heard."""

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
        """The runs that the hook heard of."""
        return [run_id_of(change) for change, _ in self.heard]

    def submit(self, *changes: Change, patience: Micros | None = None) -> list[asyncio.Future[Result]]:
        return [self.committer.submit(change, patience) for change in changes]

    async def commit(self, *changes: Change) -> list[str]:
        """Submit all at once, and give what became of each."""
        return [(await future).outcome for future in self.submit(*changes)]

    async def busy(self) -> asyncio.Future[Result]:
        """Have a change under way, so that what is submitted next has to wait; the store must be held."""
        offers = len(self.store.offers)
        [first] = self.submit(starting(a_run(900 + offers)))
        await self.store.arrived(offers + 1)
        return first


class Listening:
    """Is told what becomes of a change."""

    listens = True

    def __init__(self, *, raises: bool = False) -> None:
        self.heard: list[object] = []
        self.raises = raises

    def told(self, outcome: Result | Exception) -> None:
        self.heard.append(outcome)
        if self.raises:
            raise ZeroDivisionError


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    """A committer that works."""
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
    """Signals share a batch unless they have one signal_id, whose second is judged after the first is committed."""
    posts = [Post(a_signal(at, key="k", signal_id=name)) for at, name in enumerate(["a", "b", "a", None, None], 1)]
    with desk.store.held():
        await desk.busy()
        told = desk.submit(*posts)
        assert not desk.committer.idle
    assert [(await future).outcome for future in told] == ["applied", "applied", "exists", "applied", "applied"]
    assert [len(offer) for offer in desk.store.offers] == [1, 2, 3]
    assert await wait_until(lambda: desk.committer.idle)


async def test_what_a_step_starts_shares_no_batch_with_its_key(desk: Desk) -> None:
    """A move that brings a start along waits for the batch after one that has a run of that key."""
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
    """A batch has one change of an event and of a plan; who listens is told of before what is emitted with it."""
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
    """The result is the store's, the instant is the clock's."""
    desk.clock.passed = 5
    assert await desk.committer.commit(starting(a_run(1))) == Result("applied", a_run(1))
    assert await row(desk.store, 1) == a_run(1)
    assert desk.store.instants == [NOW + 5]
    assert desk.clock.slept == []


@pytest.fixture
async def wide_desk() -> AsyncIterator[Desk]:
    """A committer that gives the store two batches at once."""
    desk = Desk(in_flight=2)
    await desk.store.open(NOW)
    desk.committer.start()
    yield desk
    desk.store.down = False
    await desk.committer.stop(SECOND)
    await desk.store.close()


async def test_two_batches_are_under_way_at_once(wide_desk: Desk) -> None:
    """While the store has one batch it is given another; what comes then waits, and goes together."""
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
    """Else the later batch might be committed first, and its signal taken before one that was sent before it."""
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
    """A batch that shares a run with one that the store has waits for it, and all that was queued later with it."""
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


async def test_a_lost_reply_holds_up_only_what_it_is_about(wide_desk: Desk) -> None:
    """While one batch is offered again, others are committed, but none with a run of its own."""
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
    """At the end all that is queued is committed, also what only the other lane may take."""
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
    """Changes that come one by one are committed one by one."""
    for run_id in (3, 1, 2):
        await desk.committer.commit(starting(a_run(run_id)))
    assert desk.store.batches == [[3], [1], [2]]


async def test_all_that_wait_are_one_batch(desk: Desk) -> None:
    """What comes in while a batch is under way is committed together, as soon as that is done."""
    with desk.store.held():
        first = await desk.busy()
        futures = desk.submit(*starts(*range(1, 101)))
        await asyncio.sleep(0)
        assert not first.done()
    assert [(await future).outcome for future in futures] == ["applied"] * 100
    assert desk.store.batches == [[900], list(range(1, 101))]


async def test_a_batch_is_sorted_by_run(desk: Desk) -> None:
    """Whoever came first, a batch goes to the store in order of run ids."""
    futures = desk.submit(*starts(7, 3, 9, 1))
    assert [(await future).run for future in futures] == [a_run(7), a_run(3), a_run(9), a_run(1)]
    assert desk.store.batches == [[1, 3, 7, 9]]


async def test_a_batch_has_a_largest_size() -> None:
    """What does not fit into a batch waits for the next one, in order."""
    desk = await small_desk(max_batch=3)
    assert await desk.commit(*starts(8, 7, 6, 5, 4, 3, 2)) == ["applied"] * 7
    assert desk.store.batches == [[6, 7, 8], [3, 4, 5], [2]]
    await desk.committer.stop(SECOND)


async def test_a_batch_has_a_largest_amount_of_data(desk: Desk) -> None:
    """Once its Contexts, inputs, payloads or entities have 8 million characters, what comes next is a further batch."""
    large, numbers = f'"{"x" * 1_000_000}"', range(1, 10)
    lots: list[list[Change]] = [
        [starting(a_run(number, data=large)) for number in numbers],
        [moving(a_run(number), data="{}", input=large) for number in numbers],
        [Post(a_signal(number, key="k", payload=large)) for number in numbers],
        [moving(moving(a_run(9, data="{}")).run, data="{}")._replace(also=tuple(starting(a_run(10 + n, data=large)) for n in numbers))],
        [Emit(an_event(number, entity=large)) for number in numbers],
    ]  # fmt: skip
    for lot in lots:
        assert set(await desk.commit(*lot)) == {"applied"}
    assert [len(offer) for offer in desk.store.offers] == [8, 1, 8, 1, 8, 1, 1, 8, 1]
    small = starting(a_run(30))
    desk.submit(lots[3][0])
    assert await desk.commit(small) == ["applied"]
    assert [len(offer) for offer in desk.store.offers[-2:]] == [1, 1]


async def test_a_batch_has_one_change_of_a_run(desk: Desk) -> None:
    """Changes of one run go into batches that follow each other, in the order they came."""
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
    """Starts, moves, marks and amends of one run never share a batch."""
    run = a_run(1, key="a")
    early = hopping(1, commit_id=4)
    changes = [early, starting(run), marking(run), hopping(1, commit_id=5), cancelling(1, commit_id=6), moving(run)]
    assert await desk.commit(*changes) == ["stale", "applied", "applied", "applied", "applied", "stale"]
    assert desk.store.offers == [[change] for change in changes]


async def test_a_batch_has_one_start_of_a_key(desk: Desk) -> None:
    """Two starts of one key are judged one after the other; the same key of another workflow is another key."""
    first, second = starting(a_run(1, key="a")), starting(a_run(2, key="a"))
    other, free = starting(a_run(3, key="a", workflow="refund")), starting(a_run(4))
    assert await desk.commit(first, second, other, free) == ["applied", "exists", "applied", "applied"]
    assert desk.store.batches == [[1], [2, 3, 4]]


async def test_a_later_change_does_not_overtake(desk: Desk) -> None:
    """A change that has to wait for the next batch keeps those of its run behind it."""
    run = a_run(1)
    futures = desk.submit(starting(run), moving(run), starting(a_run(2)), moving(moving(run).run), moving(a_run(2)))
    assert [(await future).outcome for future in futures] == ["applied"] * 5
    assert desk.store.batches == [[1], [1, 2], [1, 2]]


# ---- the hook


async def test_the_hook_hears_before_those_who_wait(desk: Desk) -> None:
    """Memory follows a commit before anybody who waited for it goes on, in the batch's order."""
    order: list[Any] = []
    futures = desk.submit(*starts(2, 1))
    for future in futures:
        future.add_done_callback(lambda done: order.append((done.result().run.id, list(desk.heard_of))))
    await asyncio.gather(*futures)
    assert order == [(1, [1, 2]), (2, [1, 2])]
    assert [result for _, result in desk.heard] == [Result("applied", a_run(1)), Result("applied", a_run(2))]


async def test_the_hook_hears_of_what_was_applied_alone(desk: Desk) -> None:
    """A change that is stale, or whose key is taken, has changed nothing that memory should follow."""
    await desk.commit(starting(a_run(1, key="a")))
    outcomes = await desk.commit(moving(a_run(2)), starting(a_run(3, key="a")), marking(a_run(4)), *starts(5))
    assert outcomes == ["stale", "exists", "stale", "applied"]
    assert desk.heard_of == [1, 5]


async def test_a_hook_that_raises_is_reported_and_the_result_delivered(desk: Desk) -> None:
    """What is committed is committed: whoever waits hears so, and so does the hook of the others."""
    desk.breaks = {2}
    with capture_logs() as logged:
        assert await desk.commit(*starts(1, 2, 3)) == ["applied"] * 3
    assert [(entry["log_level"], entry["event"]) for entry in logged] == [
        ("error", "a bug in aioflow: following a commit failed")
    ]
    assert logged[0]["exception"].startswith("Traceback (most recent call last):")
    assert desk.heard_of == [1, 2, 3]
    assert await desk.commit(*starts(4)) == ["applied"]


async def test_a_listener_that_raises_keeps_nobody_from_hearing(desk: Desk) -> None:
    """Everybody hears once what became of his change, the hook as well, and the committer goes on."""
    listeners = [Listening(raises=number == 2) for number in (1, 2, 3)]
    for number, listener in enumerate(listeners, 1):
        desk.committer.offer(starting(a_run(number)), listener)
    assert await desk.commit(*starts(4)) == ["applied"]
    assert [len(listener.heard) for listener in listeners] == [1, 1, 1]
    assert desk.heard_of == [1, 2, 3, 4]
    assert await desk.commit(*starts(5)) == ["applied"]


async def test_a_cancelled_caller_does_not_stop_its_change(desk: Desk) -> None:
    """Nobody listens any more, the change is committed all the same, and the hook hears of it."""
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
    """A change that is with the store when its caller leaves is not given up either, nor is its batch."""
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
    """After an error the very same changes are offered until the store answers; each is applied once."""
    run = a_run(1)
    await desk.commit(starting(run))
    desk.store.faults.extend([fault] * times)
    changes = [moving(run), *starts(2, 3), hopping(900, commit_id=9)]
    assert await desk.commit(*changes) == ["applied", "applied", "applied", "stale"]
    assert desk.store.offers[1:] == [changes] * (times + 1)
    assert [transition.commit_id for transition in await log(desk.store, 1)] == [1_000_001, 1_000_002]
    assert [len(await log(desk.store, run_id)) for run_id in (2, 3)] == [1, 1]
    assert desk.heard_of == [1, 1, 2, 3]


async def test_a_lost_reply_is_made_up_for_by_the_row(desk: Desk) -> None:
    """Every kind of change whose reply was lost is known again, as applied, with the row that it wrote."""
    await desk.commit(*starts(1, 2, 3))
    desk.store.faults.append("after")
    results = [await future for future in desk.submit(moving(a_run(1)), marking(a_run(2)), hopping(3, commit_id=9), *starts(4))]  # fmt: skip
    assert [result.outcome for result in results] == ["applied"] * 4
    rows = [moving(a_run(1)).run, a_run(2, marked=1), a_run(3, hops=1, seq=2), a_run(4)]
    assert [result.run for result in results] == rows
    assert await desk.store.load([1, 2, 3, 4], NOW) == rows
    assert len(await log(desk.store, 3)) == 2


async def test_others_wait_while_an_outcome_is_unknown(desk: Desk) -> None:
    """What comes in meanwhile is not mixed into the batch that is offered again."""
    desk.store.faults.extend(["after", "before"])
    with desk.store.held():
        first = await desk.busy()
        later = desk.submit(*starts(1, 2))
    await asyncio.gather(first, *later)
    assert desk.store.batches == [[900], [900], [900], [1, 2]]


async def test_offers_become_rarer_up_to_every_two_seconds(desk: Desk) -> None:
    """A store that is down is not hammered, and is asked often enough when it is down for long."""
    desk.store.faults.extend(["before"] * 10)
    await desk.commit(*starts(1))
    assert desk.clock.slept == [20_000 * 2**n for n in range(7)] + [2 * SECOND] * 3
    desk.store.faults.append("before")
    await desk.commit(*starts(2))
    assert desk.clock.slept[10:] == [20_000]
    assert desk.store.instants[-1] == NOW + sum(desk.clock.slept)


async def test_trouble_is_logged_when_it_begins_and_when_it_ends(desk: Desk) -> None:
    """However often a batch is offered, the log has one line for the beginning and one for the end."""
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
    """A change whose guard does not hold gets the row as it stands; its neighbours are committed."""
    await desk.commit(*starts(2))
    results = [await future for future in desk.submit(*starts(1), moving(a_run(2, fence=7)), *starts(3))]
    assert results == [Result("applied", a_run(1)), Result("stale", a_run(2)), Result("applied", a_run(3))]
    assert desk.store.batches == [[2], [1, 2, 3]]


# ---- data that cannot be stored


@pytest.mark.parametrize("sick", [{1}, {37}, {64}, {20, 21}, {1, 33, 64}, set(range(1, 65))], ids=str)
async def test_what_cannot_be_stored_is_found_among_the_others(desk: Desk, sick: set[int]) -> None:
    """Each refused change is told so alone, and every other one of the batch is committed, once."""
    desk.store.poison = sick
    futures = desk.submit(*starts(*range(1, 65)))
    done = await asyncio.gather(*futures, return_exceptions=True)
    assert {run_id for run_id, result in enumerate(done, 1) if isinstance(result, StoreRefused)} == sick
    healthy = [run_id for run_id in range(1, 65) if run_id not in sick]
    assert desk.heard_of == healthy
    assert [run.id for run in await desk.store.load(range(1, 65), NOW)] == healthy
    assert len(desk.store.offers) <= 1 + 12 * len(sick)


async def test_the_error_names_what_is_wrong(desk: Desk) -> None:
    """Whoever submitted what cannot be stored gets the store's own error."""
    desk.store.poison = {2}
    _, refused, _ = desk.submit(*starts(1, 2, 3))
    with pytest.raises(StoreRefused, match=r"^The store faulty:// cannot hold this data: run 2 is too large\.$"):
        await refused


async def test_what_the_store_itself_refuses_is_found(desk: Desk) -> None:
    """A NUL in one run's Context does not sink the others, with a store that really refuses it."""
    changes = [*starts(1, 2), starting(a_run(3, data='"\0"')), *starts(4, 5)]
    done = await asyncio.gather(*desk.submit(*changes), return_exceptions=True)
    assert [type(result) for result in done] == [Result, Result, StoreRefused, Result, Result]


async def test_a_caller_that_has_left_does_not_mind_a_refusal(desk: Desk) -> None:
    """What cannot be stored has nobody to be told, and that is all."""
    desk.store.poison = {1}
    sick, healthy = desk.submit(*starts(1, 2))
    sick.cancel()
    assert (await healthy).outcome == "applied"
    assert sick.cancelled()


async def test_trouble_in_the_middle_of_the_search_is_survived(desk: Desk) -> None:
    """While a batch is being cut in half, outcomes may be unknown as well."""
    desk.store.poison = {3}
    desk.store.faults.extend([None, "after", "before", None, "before", "after", None, "after"])
    done = await asyncio.gather(*desk.submit(*starts(1, 2, 3, 4)), return_exceptions=True)
    assert [type(result) for result in done] == [Result, Result, StoreRefused, Result]
    assert desk.heard_of == [1, 2, 4]
    assert [len(await log(desk.store, run_id)) for run_id in (1, 2, 3, 4)] == [1, 1, 0, 1]


# ---- patience


async def test_who_has_no_patience_left_is_told(desk: Desk) -> None:
    """After its patience a caller hears that the outcome is unknown; those who have more go on."""
    desk.store.faults.extend(["before"] * 5)
    hasty, calm = desk.submit(*starts(1), patience=30_000)[0], desk.submit(*starts(2))[0]
    with pytest.raises(StoreUnavailable, match="the connection was lost before the commit"):
        await hasty
    assert not calm.done()
    assert (await calm).outcome == "applied"
    assert desk.store.batches == [[1, 2], [1, 2], [1, 2], [2], [2], [2]]
    assert desk.clock.slept == [20_000, 40_000, 80_000, 160_000, 320_000]


async def test_patience_of_nothing_is_one_offer(desk: Desk) -> None:
    """Without patience the first error is told; without an error patience plays no part."""
    desk.store.faults.append("after")
    [hasty] = desk.submit(*starts(1), patience=0)
    with pytest.raises(StoreUnavailable):
        await hasty
    assert [(await future).outcome for future in desk.submit(*starts(2), patience=0)] == ["applied"]
    assert desk.store.batches == [[1], [2]]


async def test_patience_ends_while_others_are_being_offered(desk: Desk) -> None:
    """Who waits behind a batch that the store does not take is told as well when patience is over."""
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
    """A batch that was cut in half is still one for those who wait: the second half hears in time."""
    desk.store.poison = {2}
    desk.store.faults.extend([None, *["before"] * 60])
    [calm], [hasty] = desk.submit(*starts(1)), desk.submit(*starts(2), patience=SECOND)
    await desk.store.arrived(40)
    assert hasty.done()
    assert isinstance(hasty.exception(), StoreUnavailable)
    assert (await calm).outcome == "applied"


async def test_patience_ends_while_the_store_is_silent(desk: Desk) -> None:
    """A store that gives no answer at all is told about like one that gives an error."""
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


async def test_a_change_that_is_refused_after_patience_ended_was_told_of_once(desk: Desk) -> None:
    """The caller has heard that the outcome is unknown; that the store then refuses it is nobody's news."""
    desk.store.poison = {1}
    listener = Listening()
    with desk.store.held():
        desk.committer.offer(starting(a_run(1)), listener, patience=0)
        await desk.store.arrived(1)
        assert await wait_until(lambda: listener.heard)
    assert await wait_until(lambda: desk.committer.idle)
    assert [type(each) for each in listener.heard] == [StoreUnavailable]


# ---- what is decided


async def test_whoever_asked_hears_that_a_change_is_settled(desk: Desk) -> None:
    """Applied, taken, stale or refused, for a caller that has left as well: once, after the hook, before the result."""
    order: list[Any] = []
    desk.store.poison = {6}
    await desk.commit(starting(a_run(1, key="a")))
    desk.heard.clear()
    changes = [moving(a_run(1)), starting(a_run(2, key="a")), moving(a_run(3)), *starts(4, 5, 6)]
    futures = []
    for change in changes:

        def settled(run_id: int = run_id_of(change)) -> None:
            order.append((run_id, run_id in desk.heard_of))

        futures.append(desk.committer.submit(change, settled=settled))
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
async def test_what_is_given_up_is_settled(desk: Desk, fault: Any) -> None:
    """A change whose outcome nobody will learn any more is settled too."""
    order: list[int] = []
    desk.store.faults.append(fault)
    future = desk.committer.submit(starting(a_run(1)), 0, partial(order.append, 1))
    await asyncio.wait({future})
    assert order == [1]
    assert future.exception() is not None


async def test_what_comes_too_late_is_settled(desk: Desk) -> None:
    """Neither the end of the committer nor one that has ended keeps a promise waiting."""
    order: list[int] = []
    desk.store.down = True
    futures = [desk.committer.submit(starting(a_run(1)), settled=partial(order.append, 1))]
    await desk.committer.stop(1_000)
    futures.append(desk.committer.submit(starting(a_run(2)), settled=partial(order.append, 2)))
    assert order == [1, 2]
    assert all(isinstance(future.exception(), StoreUnavailable) for future in futures)


# ---- the end


async def test_stop_commits_what_waits(desk: Desk) -> None:
    """What was submitted before the end is committed, over several batches if need be."""
    run = a_run(1)
    futures = desk.submit(starting(run), moving(run), *starts(2))
    await desk.committer.stop(SECOND)
    assert [future.result().outcome for future in futures] == ["applied"] * 3


async def test_stop_waits_for_a_store_that_comes_back(desk: Desk) -> None:
    """Within the patience of the end an unknown outcome is still offered again."""
    desk.store.faults.extend(["before", "after"])
    [future] = desk.submit(*starts(1))
    await desk.committer.stop(5 * SECOND)
    assert future.result().outcome == "applied"


async def test_stop_gives_up_what_the_store_does_not_take(desk: Desk) -> None:
    """After its patience the end does not wait for the store; everybody who waits is told."""
    desk.store.down = True
    run = a_run(1)
    futures = desk.submit(starting(run), moving(run), *starts(2))
    await desk.committer.stop(10_000)
    for future in futures:
        with pytest.raises(StoreUnavailable):
            future.result()


async def test_stop_gives_up_a_store_that_is_silent() -> None:
    """The end does not wait for ever for an answer that does not come."""
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
    """A change that comes too late fails at once, and never reaches the store."""
    await desk.committer.stop(SECOND)
    with pytest.raises(StoreUnavailable, match=r"^The store faulty:// is not available: the engine has stopped\.$"):
        await desk.committer.commit(starting(a_run(1)))
    assert desk.store.offers == []


async def test_stop_may_be_said_twice(desk: Desk) -> None:
    """The second end finds nothing to do."""
    await desk.committer.stop(SECOND)
    await desk.committer.stop(SECOND)


async def test_stop_before_the_start_is_nothing() -> None:
    """A committer that never began has nothing to end."""
    await Desk().committer.stop(SECOND)


async def test_a_cancelled_task_lets_nobody_hang(desk: Desk) -> None:
    """When the loop cancels even the committer's task, all who wait are told that the outcome is unknown."""
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


async def test_both_tasks_cancelled_let_nobody_hang(wide_desk: Desk) -> None:
    """The loop cancels the task of each batch that is under way: all who wait are told, once."""
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
    """A Context."""


def cancel_as_a_step(task: asyncio.Task[Any]) -> None:
    _current.set(CurrentRun(a_run(1), Nothing(), "faulty", QuickClock(), lambda run: None))  # type: ignore[arg-type,return-value]
    task.cancel()


async def test_a_task_that_a_step_cancels_is_begun_again(desk: Desk) -> None:
    """Who cancels the committer's task, while the store has a batch or not, loses nothing, and nothing is told twice."""
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


async def test_error_that_nobody_waits_for_is_not_printed(desk: Desk) -> None:
    """A change that cannot be stored, whose sender has left, is nothing that asyncio has to print; it is settled."""
    desk.store.poison = set(range(1, 10))
    printed: list[dict[str, Any]] = []
    settled: list[int] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: printed.append(context))
    try:
        for run_id in range(1, 10):
            desk.committer.submit(starting(a_run(run_id)), settled=partial(settled.append, run_id))
        await desk.committer.stop(SECOND)
        desk.committer.submit(starting(a_run(11)), settled=partial(settled.append, 11))
        for _ in range(2):
            await asyncio.sleep(0)
            gc.collect()
    finally:
        loop.set_exception_handler(None)
    assert sorted(settled) == [*range(1, 10), 11]
    assert printed == []


# ---- a store that breaks its contract


class NotInTheContract(Exception):
    """What a driver raises, and a store should have caught."""


async def test_an_error_outside_the_contract_is_a_bug_and_not_the_end(desk: Desk) -> None:
    """Whoever waited for that batch hears of a bug; the next one is committed as ever."""
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
    """A store that does not answer for each change breaks its contract, and the committer lives."""
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
    """Sleeps for a moment."""

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
    """Whichever commit of a run is the one, it and later ones sleep, wake and complete."""
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
    """An answer that no store should give costs the engine no more than another question."""
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
    """Whatever goes wrong with whichever offer, histories have no gap, and the hook hears each change once."""
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
    """A store that takes its time to reserve, and counts how often it does."""

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
    """One question to the store gives a whole block, and the last id of it is used."""
    store = Registrar()
    await store.open(NOW)
    ids = Ids(store, QuickClock(), "run", block=3)
    assert [await ids.take() for _ in range(7)] == [1, 2, 3, 4, 5, 6, 7]
    assert store.reserved == [3, 3, 3]


async def test_run_ids_are_taken_once() -> None:
    """However many ask at once, in however many processes, no id is given twice and no block is asked for in vain."""
    store = Registrar()
    await store.open(NOW)
    makers = [Ids(store, QuickClock(), "run", block=10) for _ in range(3)]
    taken = await asyncio.gather(*(maker.take() for _ in range(40) for maker in makers))
    assert len(set(taken)) == 120
    assert store.reserved == [10] * 12
    by_maker = [set(taken[n::3]) for n in range(3)]
    assert all(len({(run_id - 1) // 10 for run_id in mine}) == 4 for mine in by_maker)


async def test_a_caller_that_leaves_does_not_hold_up_the_others() -> None:
    """Whoever is cancelled while a block is being reserved takes no id with it, and the others get theirs."""
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
    """After an error of the store the next caller asks again."""
    store = Registrar()
    ids = Ids(store, QuickClock(), "run")
    with pytest.raises(StoreUnavailable):
        await ids.take()
    await store.open(NOW)
    assert await ids.take() == 1


def test_commit_ids_are_one_workers_own() -> None:
    """No commit id of a worker is another worker's, and all fit into what a database calls a big integer."""
    workers = [1, 2, 3, 1000, 2**31 - 1]
    made = [list(islice(commit_ids(worker), 1000)) for worker in workers]
    assert len({commit_id for ids in made for commit_id in ids}) == 5000
    assert all(ids == sorted(ids) and ids[0] > 0 for ids in made)
    assert max(map(max, made)) < 2**63


# ---- those who wait for a run


ENDED = [an_ended(1, status) for status in ("completed", "failed", "cancelled")]


@pytest.mark.parametrize("until", ["ended", "parked"])
@pytest.mark.parametrize("run", ENDED, ids=lambda run: run.status)
async def test_who_waits_hears_of_the_end(run: Run, until: Until) -> None:
    """Whatever it waits for, a waiter hears when the run has ended, whatever the status."""
    waiters = Waiters()
    future = waiters.add(1, until)
    waiters.tell(run)
    waiters.tell(a_sleeper(1, NOW))
    assert await future == run


async def test_who_waits_for_a_run_to_park_hears_of_that() -> None:
    """A run that waits is enough for one who said so, and not for the others; a running one is for nobody."""
    waiters = Waiters()
    ended, parked = waiters.add(1, "ended"), waiters.add(1, "parked")
    waiters.tell(a_run(1))
    assert not parked.done()
    waiters.tell(a_sleeper(1, NOW))
    assert await parked == a_sleeper(1, NOW)
    assert not ended.done()
    waiters.tell(ENDED[0])
    assert await ended == ENDED[0]


async def test_who_waits_hears_of_its_own_run_alone() -> None:
    """What becomes of other runs is nothing to it; several who wait for one run all hear."""
    waiters = Waiters()
    futures = [waiters.add(1, "ended"), waiters.add(1, "ended"), waiters.add(2, "ended")]
    assert waiters.run_ids == [1, 2]
    waiters.tell_all([an_ended(3), an_ended(1)])
    assert [future.done() for future in futures] == [True, True, False]
    waiters.tell_all([an_ended(2)])
    assert await futures[2] == an_ended(2)


async def test_who_leaves_is_forgotten() -> None:
    """Whoever is removed leaves the others where they are, and a run that nobody waits for is not asked for."""
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


async def test_who_was_cancelled_is_passed_over() -> None:
    """One that has left and was not removed yet is not told, and hinders nobody."""
    waiters = Waiters()
    gone, stays = waiters.add(1, "ended"), waiters.add(1, "ended")
    gone.cancel()
    waiters.tell(ENDED[0])
    assert gone.cancelled()
    assert await stays == ENDED[0]


async def test_the_last_word_fails_all_who_wait() -> None:
    """When nobody will tell any more, all hear the reason, but those who know already or have left; so do late ones."""
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
