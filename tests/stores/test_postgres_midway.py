"""Two transactions about one run, in both orders: the second starts when the first has written and not committed."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import pytest

from aioflow.changes import Post, Result
from aioflow.model import Run
from aioflow.testing.conformance_samples import (
    KNOWN,
    LEASE,
    NOW,
    a_run,
    a_signal,
    arms,
    cancelling,
    claiming,
    log,
    mailbox,
    moving,
    post,
    put,
    resuming,
    row,
    starting,
)
from aioflow_postgres import PostgresStore
from tests.stores.races import (
    LATER,
    RUNNER,
    Race,
    Side,
    applying,
    cancels_waiter,
    claims_after_lease,
    posts,
    resumes,
    times_out,
)

Pair = tuple[PostgresStore, PostgresStore]


def renews(store: PostgresStore) -> Any:
    """Worker 3 renews its lease just before the end."""
    return store.renew(3, LEASE, LATER - 1)


#: Each side, and the table that it writes to; the number in the name is that of the run.
SIDES: dict[str, tuple[Side, str]] = {
    "signal 1": (resumes, "runs"),
    "timeout 1": (times_out, "runs"),
    "cancel 1": (cancels_waiter, "runs"),
    "post 1": (posts, "signals"),
    "commit 2": (applying(moving(RUNNER)), "runs"),
    "cancel 2": (applying(cancelling(2, commit_id=72)), "runs"),
    "post 2": (applying(Post(a_signal(3, 2))), "signals"),
}
#: The run's status, seq, fence and owner after a side was applied by itself.
ALONE = {
    "signal 1": ("running", 2, 1, 3),
    "timeout 1": ("running", 2, 1, 3),
    "cancel 1": ("cancelled", 2, 2, None),
    "post 1": ("waiting", 1, 1, 3),
    "commit 2": ("running", 2, 2, 3),
    "cancel 2": ("cancelled", 2, 3, None),
    "post 2": ("running", 1, 2, 3),
}


def standing(run: Run) -> tuple[str, int, int, int | None]:
    """Status, seq, fence and owner of a row."""
    return run.status, run.seq, run.fence, run.owner


async def whole(store: PostgresStore, run_id: int) -> Run:
    """The run, after checking that its history has no gap."""
    run = await row(store, run_id)
    assert [line.seq for line in await log(store, run_id)] == list(range(1, run.seq + 1))
    return run


class Late(NamedTuple):
    """A side that starts while worker 4's claim is under way, and what is expected then."""

    side: str
    way: str
    outcome: str
    claimed: list[int]
    stands: tuple[str, int, int, int | None]
    #: The runs that the next claim gets.
    later: list[int]


#: The claim has locked and taken run 2; it has read run 1, which waited.
WHILE_RUN_IS_TAKEN = [
    Late("signal 1", "passes", "applied", [2], ("running", 2, 1, 3), [1]),
    Late("timeout 1", "passes", "applied", [2], ("running", 2, 1, 3), [1]),
    Late("cancel 1", "passes", "applied", [2], ("cancelled", 2, 2, None), []),
    Late("post 1", "passes", "applied", [2], ("waiting", 1, 1, 3), []),
    Late("commit 2", "waits", "stale", [2], ("running", 1, 3, 4), []),
    Late("cancel 2", "waits", "applied", [2], ("cancelled", 2, 4, None), []),
    Late("post 2", "waits", "applied", [2], ("running", 1, 3, 4), []),
]
#: The claim has found worker 3 dead, and has taken nothing yet: it takes what the other side leaves.
WHILE_WORKER_IS_EXPIRED = [
    Late("signal 1", "passes", "applied", [1, 2], ("running", 2, 2, 4), []),
    Late("timeout 1", "passes", "applied", [1, 2], ("running", 2, 2, 4), []),
    Late("cancel 1", "passes", "applied", [2], ("cancelled", 2, 2, None), []),
    Late("post 1", "passes", "applied", [2], ("waiting", 1, 1, 3), []),
    Late("commit 2", "passes", "applied", [2], ("running", 2, 3, 4), []),
    Late("cancel 2", "passes", "applied", [], ("cancelled", 2, 3, None), []),
    Late("post 2", "passes", "applied", [2], ("running", 1, 3, 4), []),
]


@pytest.mark.parametrize(
    ("table", "late"),
    [("runs", late) for late in WHILE_RUN_IS_TAKEN] + [("workers", late) for late in WHILE_WORKER_IS_EXPIRED],
    ids=lambda value: value if isinstance(value, str) else value.side,
)
async def test_a_change_that_meets_a_claim_under_way(race: Race, pair: Pair, table: str, late: Late) -> None:
    """A change waits for a claim that has taken its run, and obeys the new fence; else it passes."""
    await claiming(pair[1], 4, now=NOW + 1)
    side, _ = SIDES[late.side]
    told = await race.midway(table, claims_after_lease(pair[1]), side(pair[0]))
    assert (told.way, told.second.outcome) == (late.way, late.outcome)
    assert [run.id for run in told.first.runs] == late.claimed
    run = await whole(pair[0], int(late.side[-1]))
    assert standing(run) == late.stands
    assert standing(told.second.run or run) == late.stands or late.outcome == "applied"
    assert [run.id for run in (await claims_after_lease(pair[1])).runs] == late.later


#: side -> the runs of a claim that starts while the side is under way, and those of the next claim.
PASSED = {
    "signal 1": ([2], [1]),
    "timeout 1": ([2], [1]),
    "cancel 1": ([2], []),
    "post 1": ([2], []),
    "commit 2": ([], [2]),
    "cancel 2": ([], []),
    "post 2": ([], [2]),
}


@pytest.mark.parametrize("name", SIDES)
async def test_a_claim_that_meets_a_change_under_way(race: Race, pair: Pair, name: str) -> None:
    """A claim never waits: it skips a run that is being changed, and the next claim takes it as it is then."""
    side, table = SIDES[name]
    told = await race.midway(table, side(pair[0]), claims_after_lease(pair[1]))
    got, later = PASSED[name]
    assert (told.way, told.first.outcome) == ("passes", "applied")
    assert [run.id for run in told.second.runs] == got
    assert standing(await whole(pair[0], int(name[-1]))) == ALONE[name]
    again = await claims_after_lease(pair[1])
    assert [run.id for run in again.runs] == later
    for run in again.runs:
        status, seq, fence, _ = ALONE[name]
        assert standing(run) == (status, seq, fence + 1, 4)
        assert await whole(pair[0], run.id) == run


@pytest.mark.parametrize("renewal_first", [True, False], ids=["renewal first", "change first"])
@pytest.mark.parametrize("name", SIDES)
async def test_a_renewal_and_a_change_do_not_wait_for_each_other(
    race: Race, pair: Pair, name: str, *, renewal_first: bool
) -> None:
    """A renewal and a change do not wait for each other, and the lease holds: nobody takes the runs."""
    side, table = SIDES[name]
    if renewal_first:
        told = await race.midway("workers", renews(pair[1]), side(pair[0]))
        renewed, changed = told.first, told.second
    else:
        told = await race.midway(table, side(pair[0]), renews(pair[1]))
        changed, renewed = told.first, told.second
    assert (told.way, renewed, changed.outcome) == ("passes", True, "applied")
    assert standing(await whole(pair[0], int(name[-1]))) == ALONE[name]
    assert (await claims_after_lease(pair[1])).runs == []


# ---- the commit by which a run begins to wait

#: A step of run 5 that ends in a wait; signal 51 is in its mailbox, and was sent after the wait's deadline.
BEFORE = a_run(5, owner=3)
PARKS = moving(
    BEFORE, kind="wait", status="waiting", waiting_for="signal", arms=arms(("paid", "k")), wake_at=NOW, owner=3
)
parks = applying(PARKS)
ENDS: dict[str, Side] = {
    "signal": applying(resuming(PARKS.run, 51)),
    "timeout": applying(
        moving(PARKS.run, kind="timeout", status="running", waiting_for=None, wake_at=None, arms=None)._replace(
            unless_mail=True
        )
    ),
    "cancel": applying(cancelling(5, commit_id=75)),
}


@pytest.mark.parametrize("name", ENDS)
async def test_the_end_of_a_wait_follows_its_commit(race: Race, pair: Pair, name: str) -> None:
    """A change that ends a wait which is being committed waits for that commit, and then ends the wait."""
    await put(pair[0], BEFORE)
    await post(pair[0], a_signal(51, 5))
    told = await race.midway("runs", parks(pair[0]), ENDS[name](pair[1]))
    assert (told.way, told.first.outcome, told.second.outcome) == ("waits", "applied", "applied")
    run = await whole(pair[0], 5)
    ended = {"signal": ("running", 3, 1, 3), "timeout": ("running", 3, 1, 3), "cancel": ("cancelled", 3, 2, None)}
    assert standing(run) == standing(told.second.run) == ended[name]
    assert [line.kind for line in await log(pair[0], 5)] == ["start", "wait", name]
    assert await mailbox(pair[0]) == [(1, [1])]


@pytest.mark.parametrize("again", [True, False], ids=["again", "another"])
@pytest.mark.parametrize("name", ENDS)
async def test_a_commit_that_comes_while_its_wait_is_being_ended(
    race: Race, pair: Pair, name: str, *, again: bool
) -> None:
    """While its wait is being ended, a commit that is offered again was applied, and another commit is stale."""
    await put(pair[0], BEFORE)
    await post(pair[0], a_signal(51, 5))
    await parks(pair[0])
    commit = parks if again else applying(moving(BEFORE, commit_id=76))
    told = await race.midway("runs", ENDS[name](pair[1]), commit(pair[0]))
    assert (told.way, told.first.outcome) == ("passes", "applied")
    assert told.second.outcome == ("applied" if again else "stale")
    assert await whole(pair[0], 5) == told.first.run
    assert [line.kind for line in await log(pair[0], 5)] == ["start", "wait", name]


# ---- the mailbox

#: The ways to address a signal.
LETTERS = {
    "to the run": a_signal(52, 5),
    "to its key": a_signal(52, key="k"),
    "to everybody": a_signal(52),
}


@pytest.mark.parametrize("to", LETTERS)
async def test_of_a_wait_and_a_signal_the_second_sees_the_first(race: Race, pair: Pair, to: str) -> None:
    """A signal that is sent while a wait is being committed is seen by one of the two, unless it is a broadcast."""
    await put(pair[0], BEFORE)
    told = await race.midway("runs", parks(pair[0]), applying(Post(LETTERS[to]))(pair[1]))
    assert (told.first.outcome, told.second.outcome) == ("applied", "applied")
    match to:
        case "to the run":
            assert (told.way, told.second.run_ids) == ("waits", (5,))
        case "to its key":
            assert (told.way, told.second.run_ids, told.first.mail) == ("passes", (), True)
        case _:
            assert (told.way, told.second.run_ids, told.first.mail) == ("passes", (1,), False)
    assert (5, [52]) in await mailbox(pair[0]) or to == "to everybody"
    assert standing(await whole(pair[0], 5)) == ("waiting", 2, 1, 3)


@pytest.mark.parametrize("to", LETTERS)
async def test_of_a_signal_and_a_wait_the_second_sees_the_first(race: Race, pair: Pair, to: str) -> None:
    """A wait that is committed while a signal is being sent is seen by one of the two, unless that is a broadcast."""
    await put(pair[0], BEFORE)
    told = await race.midway("signals", applying(Post(LETTERS[to]))(pair[1]), parks(pair[0]))
    assert (told.first.outcome, told.second.outcome) == ("applied", "applied")
    match to:
        case "to the run":
            assert (told.way, told.second.mail) == ("waits", True)
        case "to its key":
            assert (told.way, told.second.mail, told.first.run_ids) == ("passes", False, (5,))
        case _:
            assert (told.way, told.second.mail, told.first.run_ids) == ("passes", False, (1,))
    assert (5, [52]) in await mailbox(pair[0]) or to == "to everybody"
    assert standing(await whole(pair[0], 5)) == ("waiting", 2, 1, 3)


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("broadcast_first", [True, False], ids=["broadcast first", "end first"])
async def test_a_broadcast_leaves_nothing_behind_for_a_wait_that_is_ending(
    race: Race, pair: Pair, name: str, *, broadcast_first: bool
) -> None:
    """Of a broadcast and the end of a wait for it, the second waits for the first, and no copy is left."""
    await put(pair[0], BEFORE)
    await post(pair[0], a_signal(51, 5))
    await parks(pair[0])
    everybody, end = applying(Post(a_signal(52))), ENDS[name]
    if broadcast_first:
        told = await race.midway("signals", everybody(pair[1]), end(pair[0]))
    else:
        told = await race.midway("runs", end(pair[0]), everybody(pair[1]))
        assert told.second.run_ids == (1,)
    assert (told.way, told.first.outcome, told.second.outcome) == ("waits", "applied", "applied")
    run = await whole(pair[0], 5)
    assert run.seq == 3
    if run.status == "running":
        await applying(moving(run, kind="wait", status="waiting", waiting_for="signal", arms=arms("paid")))(pair[0])
    assert not [ids for run_id, ids in await mailbox(pair[0]) if run_id == 5 and 52 in ids]


# ---- offered again

FIRST_OFFERS: dict[str, tuple[Side, str]] = {
    **SIDES,
    "post to a key": (applying(Post(a_signal(4, key="k"))), "signals"),
    "start 6": (applying(starting(a_run(6))), "runs"),
    "start with a key 6": (applying(starting(a_run(6, key="k"))), "runs"),
}


@pytest.mark.parametrize("name", FIRST_OFFERS)
async def test_what_is_offered_again_while_its_first_offer_is_under_way(race: Race, pair: Pair, name: str) -> None:
    """A change that is offered again during its first offer waits for that, and is applied once."""
    side, table = FIRST_OFFERS[name]
    told = await race.midway(table, side(pair[0]), side(pair[1]))
    first, second = told.first, told.second
    assert isinstance(first, Result)
    assert (told.way, first.outcome, second.outcome, first.run) == ("waits", "applied", "applied", second.run)
    if name in ALONE:
        assert standing(await whole(pair[0], int(name[-1]))) == ALONE[name]
    elif name.startswith("start"):
        assert await whole(pair[0], 6) == first.run
    else:
        assert (await pair[0].stats(NOW)).mailbox == 2


async def test_a_worker_that_claims_while_its_runs_are_taken_is_registered_again(race: Race, pair: Pair) -> None:
    """A worker that claims while another takes its runs is registered again, and what it gets stays its own."""
    await claiming(pair[1], 4, now=NOW + 1)
    await put(pair[0], a_run(8))
    told = await race.midway(
        "workers",
        claims_after_lease(pair[1]),
        pair[0].claim(3, lease=LEASE, limit=10, known=KNOWN, held=None, now=LATER),
    )
    got = {run.id for run in told.second.runs}
    assert got <= {8}
    assert await pair[0].renew(3, LEASE, LATER)
    assert got.isdisjoint(run.id for run in (await claims_after_lease(pair[1])).runs)


async def test_a_release_gives_back_the_runs_of_a_cancelled_claim(pair: Pair) -> None:
    """A claim whose caller was cancelled still runs on the server, and a later release gives its runs back."""
    store = pair[0]
    for number in range(8, 28):
        await put(store, a_run(number))
        claim = asyncio.ensure_future(store.claim(3, lease=LEASE, limit=100, known=KNOWN, held=None, now=NOW + 1))
        seen: set[object] = set()
        while len(seen) < 2 and not claim.done():  # until its second statement is under way
            seen |= store._open_database._tasks
            await asyncio.sleep(0)
        claim.cancel()
        await store.release(3, NOW + 1)
        await asyncio.gather(claim, return_exceptions=True)
        assert (await row(store, number)).owner is None
