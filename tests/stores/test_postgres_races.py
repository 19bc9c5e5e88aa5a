"""Two transactions about one run, in both orders: the second waits for the lock of the first, then sees what it did."""

from __future__ import annotations

import asyncio
from itertools import permutations
from typing import Any

import pytest

from aioflow.changes import Post, Result
from aioflow.testing.conformance_samples import (
    KNOWN,
    LEASE,
    NOW,
    a_run,
    a_signal,
    cancelling,
    claiming,
    ids,
    log,
    moving,
    put,
    row,
    starting,
)
from aioflow_postgres import PostgresStore
from tests.postgres import Schemas
from tests.stores.races import (
    LATER,
    RUNNER,
    Race,
    Side,
    applying,
    cancels_waiter,
    claims_after_lease,
    holding,
    posts,
    resumes,
    times_out,
)
from tests.support import wait_until

ON_WAITER: dict[str, Side] = {
    "signal": resumes,
    "timeout": times_out,
    "cancel": cancels_waiter,
    "post": posts,
}
ON_RUNNER: dict[str, Side] = {
    "commit": applying(moving(RUNNER)),
    "cancel": applying(cancelling(2, commit_id=72)),
    "claim": claims_after_lease,
}


@pytest.mark.parametrize(("first", "second"), list(permutations(ON_WAITER, 2)))
async def test_only_one_of_two_changes_ends_a_wait(
    race: Race, pair: tuple[PostgresStore, PostgresStore], first: str, second: str
) -> None:
    """Of two changes that end a wait the second is stale, but a cancel still applies, and a Post ends no wait."""
    one, two = (ON_WAITER[name] for name in (first, second))
    lock = "SELECT 1 FROM {schema}.runs WHERE id = 1 FOR UPDATE"
    told = await race.queued(lock, lambda: one(pair[0]), lambda: two(pair[1]))
    outcomes = [result.outcome for result in told]
    stands = await row(pair[0], 1)
    assert outcomes[0] == "applied"
    if "post" not in {first, second}:
        # A cancel depends only on the status: it also ends a run that the other has resumed.
        assert outcomes[1] == ("applied" if second == "cancel" else "stale")
    elif first == "cancel":
        assert outcomes[1] == "stale"
    else:
        assert outcomes[1] == "applied"
    moves = [outcome for name, outcome in zip((first, second), outcomes, strict=True) if name != "post"]
    assert stands.seq == 1 + moves.count("applied")
    assert [line.seq for line in await log(pair[0], 1)] == list(range(1, stands.seq + 1))
    if "cancel" in {first, second}:
        assert stands.status == "cancelled"


@pytest.mark.parametrize(("first", "second"), list(permutations(ON_RUNNER, 2)))
async def test_commit_cancel_and_claim_mind_each_other(
    race: Race, pair: tuple[PostgresStore, PostgresStore], first: str, second: str
) -> None:
    """Of a commit, a cancel and a claim, the second goes by the fence, status or owner that the first has left."""
    one, two = (ON_RUNNER[name] for name in (first, second))
    if "claim" in {first, second}:  # a claim skips locked rows, so there is no queue
        told = [await one(pair[0]), await two(pair[1])]
    else:
        lock = "SELECT 1 FROM {schema}.runs WHERE id = 2 FOR UPDATE"
        told = await race.queued(lock, lambda: one(pair[0]), lambda: two(pair[1]))
    stands = await row(pair[0], 2)
    match first, second:
        case "commit", "cancel":
            assert [told[0].outcome, told[1].outcome, stands.status, stands.seq] == [
                "applied",
                "applied",
                "cancelled",
                3,
            ]
        case "cancel", "commit":
            assert [told[0].outcome, told[1].outcome, stands.status, stands.seq] == ["applied", "stale", "cancelled", 2]
        case "claim", "commit":
            assert [run.id for run in told[0].runs] == [2]
            assert (told[1].outcome, stands.owner, stands.fence, stands.seq) == ("stale", 4, 3, 1)
        case "claim", "cancel":
            assert (told[1].outcome, stands.status, stands.owner) == ("applied", "cancelled", None)
        case "commit", "claim":
            assert (told[0].outcome, stands.owner, stands.seq, stands.crashes) == ("applied", 4, 2, 1)
        case _:
            assert (told[0].outcome, told[1].runs, stands.status) == ("applied", [], "cancelled")


async def test_a_claim_passes_over_a_run_that_is_being_changed(
    race: Race, pair: tuple[PostgresStore, PostgresStore], postgres_server: Schemas
) -> None:
    """A claim does not wait for a locked run but skips it, and the next claim takes it."""
    async with holding(postgres_server.url, f"SELECT 1 FROM {race.schema}.runs WHERE id = 2 FOR UPDATE"):
        assert (await claims_after_lease(pair[1])).runs == []
    assert [run.id for run in (await claims_after_lease(pair[1])).runs] == [2]


async def test_a_claim_under_way_holds_up_no_renewal(race: Race, pair: tuple[PostgresStore, PostgresStore]) -> None:
    """A worker's lease can be renewed during its own claim, as when its event loop is blocked."""
    await put(pair[0], a_run(9))
    told = await race.midway("runs", claiming(pair[0], 3, held=None), pair[1].renew(3, LEASE, LATER - 1))
    assert (told.way, ids(told.first.runs), told.second) == ("passes", [9], True)
    assert (await claims_after_lease(pair[1])).runs == []


@pytest.mark.parametrize("renewal_first", [True, False])
async def test_of_a_renewal_and_a_claim_the_first_decides(
    race: Race, pair: tuple[PostgresStore, PostgresStore], *, renewal_first: bool
) -> None:
    """A lease that is renewed first is not over, and one whose worker has lost a run first cannot be renewed."""
    renew = lambda: pair[0].renew(3, LEASE, LATER - 1)  # noqa: E731
    sides = [renew, lambda: claims_after_lease(pair[1])]
    told = await race.queued(
        "SELECT 1 FROM {schema}.workers WHERE id = 3 FOR UPDATE", *(sides if renewal_first else sides[::-1])
    )
    if renewal_first:
        assert (told[0], told[1].runs) == (True, [])
    else:
        assert ([run.id for run in told[0].runs], told[1]) == ([2], False)


async def test_a_worker_that_comes_back_keeps_its_lease(
    race: Race, pair: tuple[PostgresStore, PostgresStore], postgres_server: Schemas
) -> None:
    """If a worker comes back while another claims its last run, one of the two gets it, and its lease holds."""
    late, other = pair
    await other.claim(4, lease=1, limit=0, known=KNOWN, held=None, now=NOW)
    await put(late, a_run(8))
    await late.claim(3, lease=LEASE, limit=9, known=KNOWN, held=None, now=NOW)
    await other.claim(5, lease=LEASE, limit=1, known=KNOWN, held=None, now=LATER)
    async with holding(postgres_server.url, f"SELECT 1 FROM {race.schema}.workers WHERE id = 4 FOR UPDATE"):
        taken = asyncio.ensure_future(claims_after_lease(other))  # it has read which workers are dead
        await wait_until(race.waiting)
        back = asyncio.ensure_future(late.claim(3, lease=LEASE, limit=9, known=KNOWN, held=[], now=LATER))

        async def met() -> bool:
            return back.done() or len(await race.waiting()) == 2

        await wait_until(met)
    both = [set(ids((await claim).runs)) for claim in (taken, back)]
    assert await late.renew(3, LEASE, LATER)
    assert both in ([{8}, set()], [set(), {8}])


async def test_of_two_starts_of_a_key_the_first_has_it(race: Race, pair: tuple[PostgresStore, PostgresStore]) -> None:
    """Of two starts with one key, the second waits for the first, and finds its run."""
    one, two = (starting(a_run(number, key="k")) for number in (6, 7))
    told = await race.midway("runs", applying(one)(pair[0]), applying(two)(pair[1]))
    assert (told.way, told.first.outcome, told.second) == ("waits", "applied", Result("exists", one.run))


@pytest.mark.parametrize("place", [{"run_id": 2}, {"key": "k"}, {}], ids=["run", "key", "all"])
async def test_of_two_posts_of_a_signal_id_the_first_is_sent(
    race: Race, pair: tuple[PostgresStore, PostgresStore], place: dict[str, Any]
) -> None:
    """Of two posts with one signal_id, the second waits for the first, and finds its signal."""
    one, two = (Post(a_signal(id_, signal_id="s")._replace(**place)) for id_ in (6, 7))
    told = await race.midway("signals", applying(one)(pair[0]), applying(two)(pair[1]))
    assert (told.way, told.first.outcome, told.second) == ("waits", "applied", Result("exists", mail=bool(place)))
