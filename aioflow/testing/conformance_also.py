"""Moves and what their steps started and sent: committed with them, or not at all."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aioflow.changes import Move, Post, Result, Start
from aioflow.clock import SECOND, Micros
from aioflow.errors import StoreRefused
from aioflow.model import Reuse, Run, Signal
from aioflow.store import Store
from aioflow.testing.conformance_samples import (
    NOW,
    a_run,
    a_signal,
    a_waiter,
    an_ended,
    arms,
    do,
    event_arms,
    log,
    mailbox,
    moving,
    outcomes,
    post,
    put,
    resuming,
    row,
    starting,
)

#: The wait of runs that stand for one keyed signal.
KEYED = ("paid", "k")


def _bringing(run: Run, *also: Start | Post, **columns: Any) -> Move:
    """The move of a step that started and sent something."""
    return moving(run, **columns)._replace(also=also)


class AlsoConformance:
    """What a move brings along."""

    async def test_a_move_brings_along_what_its_step_started_and_sent(self, store: Store) -> None:
        """Starts and Posts are committed with the move, and their results come in order, as of their own."""
        await put(store, a_run(1), a_waiter(2), a_waiter(3, KEYED))
        child = a_run(4, parent_id=1)
        posts = [Post(a_signal(1, 2)), Post(a_signal(2, key="k")), Post(a_signal(3, name="none"))]
        move = _bringing(a_run(1), posts[0], starting(child), posts[1], posts[2])
        also = (
            Result("applied", run_ids=(2,)),
            Result("applied", child),
            Result("applied", run_ids=(3,)),
            Result("applied"),
        )
        assert await store.apply([move], NOW) == [Result("applied", move.run, also=also)]
        assert await row(store, 4) == child
        assert await log(store, 4) == [starting(child).transition]
        assert await mailbox(store) == [(2, [1]), (3, [2])]

    async def test_a_broadcast_reaches_who_began_to_wait_before_it_in_the_batch(self, store: Store) -> None:
        """A change sees what those before it in its batch have written; what a step sent comes after its move."""
        await put(store, a_run(1), a_run(2))
        waits: dict[str, Any] = {"status": "waiting", "waiting_for": "signal", "arms": arms("paid")}
        [_, told] = await store.apply([moving(a_run(1), **waits), Post(a_signal(1))], NOW)
        assert told.run_ids == (1,)
        [moved] = await store.apply([_bringing(a_run(2), Post(a_signal(2)), **waits)], NOW)
        assert moved.also[0].run_ids == (1, 2)
        assert moved.mail
        assert await mailbox(store) == [(1, [1, 2]), (2, [2])]

    async def test_what_a_move_sent_is_told_as_the_batch_leaves_it(self, store: Store) -> None:
        """A run that goes on later in the batch is no receiver of what a step sent, and one that parks is."""
        await put(store, a_run(1), a_waiter(2), a_waiter(3, KEYED), a_run(4))
        move = _bringing(a_run(1), Post(a_signal(1, 2)), Post(a_signal(2, key="k")), Post(a_signal(3, 4)))
        parks: dict[str, Any] = {"status": "waiting", "waiting_for": "signal", "arms": arms("paid")}
        results = await store.apply(
            [move, resuming(a_waiter(2)), resuming(a_waiter(3, KEYED)), moving(a_run(4), **parks)], NOW
        )
        assert [part.run_ids for part in results[0].also] == [(), (), (4,)]

    async def test_a_signal_after_the_end_of_its_run_in_the_batch_is_stale(self, store: Store) -> None:
        """The sender is told that the run has ended, and nothing is left in the mailbox."""
        await put(store, a_run(1))
        end = moving(a_run(1), kind="complete", status="completed", ended_at=NOW)
        results = await store.apply([end, Post(a_signal(1, 1))], NOW)
        assert results[1] == Result("stale", end.run)
        assert (await store.stats(NOW)).mailbox == 0

    async def test_a_signal_before_the_end_of_its_run_in_the_batch_is_swept(self, store: Store) -> None:
        """Whether it is still kept or stale already, it does not lie there for ever."""
        await put(store, a_run(1))
        end = moving(a_run(1), kind="complete", status="completed", ended_at=NOW)
        sent, ended = await store.apply([Post(a_signal(1, 1)), end], NOW)
        assert ended == Result("applied", end.run)
        swept = [1] if sent.outcome == "applied" else []
        assert [signal.id for signal in await store.expire(9, NOW)] == swept
        assert (await store.stats(NOW)).mailbox == 0

    async def test_a_signal_before_a_timeout_in_the_batch_beats_it(self, store: Store) -> None:
        """The guard against mail sees what the batch has posted."""
        waiter = a_waiter(1, wake_at=NOW)
        await put(store, waiter)
        late = moving(waiter, kind="timeout", status="running", waiting_for=None, wake_at=None, arms=None)
        results = await store.apply([Post(a_signal(1, 1, sent_at=NOW)), late._replace(unless_mail=True)], NOW)
        assert results[1] == Result("stale", waiter, mail=True)

    @pytest.mark.parametrize(
        ("wake_at", "signal", "beaten"),
        [
            (NOW, a_signal(1, 1, sent_at=NOW), True),
            (NOW, a_signal(1, 1, sent_at=NOW + 1), False),
            (None, a_signal(1, 1), True),
            (NOW, a_signal(1, 1, sent_at=NOW, name="x"), False),
            (NOW, a_signal(1, 1, sent_at=NOW, name="sent"), True),
            (NOW, a_signal(1, 1, sent_at=NOW, name="ordered"), False),
            (NOW, a_signal(1, 2, sent_at=NOW), False),
            (NOW, a_signal(1, sent_at=NOW, key="k", name="sent"), True),
            (NOW, a_signal(1, sent_at=NOW, key="x", name="sent"), False),
            (NOW, a_signal(1, sent_at=NOW, key="k"), False),
            (NOW, a_signal(1, sent_at=NOW), True),
            (NOW, a_signal(1, sent_at=NOW, name="sent"), True),
            (NOW, a_signal(1, sent_at=NOW, name="ordered"), False),
        ],
        ids=lambda value: (
            f"{value.run_id} {value.key} {value.name} {value.sent_at}" if isinstance(value, Signal) else None
        ),
    )
    async def test_a_timeout_minds_only_what_fits_of_the_batch(
        self, store: Store, wake_at: Micros | None, signal: Signal, *, beaten: bool
    ) -> None:
        """A signal just before it in the batch, by address, name and time, as if it had been there."""
        both = [*json.loads(arms("paid", ("sent", "k"))), *json.loads(event_arms("ordered"))]
        waiter = a_waiter(1, arms=json.dumps(both), wake_at=wake_at)
        await put(store, waiter, a_waiter(2))
        results = await store.apply([Post(signal), resuming(waiter)._replace(unless_mail=True)], NOW)
        assert [result.outcome for result in results] == ["applied", "stale" if beaten else "applied"]
        assert results[1].mail == beaten

    async def test_a_key_is_held_by_the_run_as_the_batch_has_left_it(self, store: Store) -> None:
        """A start that meets a key is shown the row that was written just before."""
        await put(store, a_run(1, key="k"))
        move = moving(a_run(1, key="k"), step="two")
        results = await store.apply([move, starting(a_run(2, key="k"))], NOW)
        assert results[1] == Result("exists", move.run)

    async def test_what_exists_or_is_stale_is_left_out(self, store: Store) -> None:
        """A taken key, a known signal_id or an ended run does not hold the move or its other parts back."""
        await put(store, a_run(1), a_run(2, key="taken"), an_ended(3), a_run(4))
        await post(store, a_signal(1, key="x", signal_id="s"))
        move = _bringing(
            a_run(1),
            starting(a_run(5, key="taken")),
            Post(a_signal(2, key="x", signal_id="s")),
            Post(a_signal(3, 3)),
            Post(a_signal(4, 99)),
            starting(a_run(4), commit_id=99),
            starting(a_run(6)),
        )
        [result] = await store.apply([move], NOW)
        assert result.outcome == "applied"
        assert result.also == (
            Result("exists", a_run(2, key="taken")),
            Result("exists", mail=True),
            Result("stale", an_ended(3)),
            Result("stale"),
            Result("stale", a_run(4)),
            Result("applied", a_run(6)),
        )
        assert [run.id for run in sorted(await store.load([1, 5, 6], NOW))] == [1, 6]
        assert (await store.stats(NOW)).mailbox == 1

    @pytest.mark.parametrize(
        ("status", "reuse", "outcome"),
        [
            ("completed", "ended", "applied"),
            ("completed", "failed", "exists"),
            ("failed", "failed", "applied"),
            ("failed", "never", "exists"),
            ("waiting", "ended", "exists"),
        ],
    )
    async def test_a_key_is_looked_at_as_the_move_leaves_it(
        self, store: Store, status: str, reuse: Reuse, outcome: str
    ) -> None:
        """A run that ends may start the next one of its key, if reuse allows what it ends as."""
        await put(store, a_run(1, key="k"))
        follower = a_run(2, key="k", parent_id=1)
        move = _bringing(a_run(1, key="k"), starting(follower, reuse=reuse), status=status)
        [result] = await store.apply([move], NOW)
        run = follower if outcome == "applied" else move.run
        assert result == Result("applied", move.run, also=(Result(outcome, run),))  # type: ignore[arg-type]
        assert len(await store.load([2], NOW)) == (1 if outcome == "applied" else 0)

    @pytest.mark.parametrize(("status", "outcome"), [("failed", "applied"), ("completed", "exists")])
    async def test_a_key_that_a_move_leaves_is_its_newest_runs(self, store: Store, status: str, outcome: str) -> None:
        """When the move has ended the live run, the newest by created_at stands in the way, not the one that ended."""
        newest = an_ended(1, status, key="k", created_at=NOW + SECOND)
        await put(store, newest)
        await do(store, starting(a_run(2, key="k"), reuse="ended"))
        follower = a_run(3, key="k")
        ended = "completed" if status == "failed" else "failed"
        move = _bringing(a_run(2, key="k"), starting(follower, reuse="failed"), status=ended)
        [result] = await store.apply([move], NOW)
        assert result.also == (Result(outcome, follower if outcome == "applied" else newest),)  # type: ignore[arg-type]

    async def test_a_move_that_brings_along_may_be_offered_again(self, store: Store) -> None:
        """What it brought is there once, whatever has become of it, and the results tell what is there."""
        await put(store, a_run(1, key="k"), a_waiter(2))
        child = a_run(3, key="k", parent_id=1)
        parts = (starting(child, reuse="ended"), Post(a_signal(1, 2)), Post(a_signal(2, key="x", signal_id="s")))
        move = _bringing(a_run(1, key="k"), *parts, status="completed")
        [first] = await store.apply([move], NOW)
        assert await store.apply([move], NOW) == [first]

        await do(store, resuming(a_waiter(2), 1, 2))
        moved = await do(store, moving(child))
        [again] = await store.apply([move], NOW)
        assert [(part.outcome, part.run) for part in again.also] == [
            ("applied", moved),
            ("applied", None),
            ("applied", None),
        ]
        assert len(await log(store, 3)) == 2
        assert (await store.stats(NOW)).mailbox == 0

    async def test_an_offer_again_starts_nothing_that_was_left_out(self, store: Store) -> None:
        """What existed when the move was applied is not started or sent by a later offer, though it now could be."""
        await put(store, a_run(1), a_run(2, key="k"))
        move = _bringing(a_run(1), starting(a_run(3, key="k"), reuse="ended"), Post(a_signal(1, 4)))
        await do(store, move)
        await do(store, moving(a_run(2, key="k"), status="completed"))
        await put(store, a_waiter(4))
        [again] = await store.apply([move], NOW)
        assert again.outcome == "applied"
        assert all(part.outcome != "applied" for part in again.also)
        assert await store.load([3], NOW) == []
        assert await mailbox(store) == []

    @pytest.mark.parametrize(
        "bad",
        [Post(a_signal(8, key="x", expires_at=2**10_000)), Post(a_signal(8, 2, payload="\ud800")), starting(a_run(8, parent_id=2**10_000))],
        ids=["number", "text", "start"],
    )  # fmt: skip
    async def test_a_part_that_cannot_be_stored_undoes_the_batch(self, store: Store, bad: Start | Post) -> None:
        """Nothing of the batch is done: not the move, not what it took, not its other parts; each can be, without it."""
        await put(store, a_waiter(1), a_run(2), a_waiter(3))
        await post(store, a_signal(1, 1), a_signal(2, 3))
        good = resuming(a_waiter(1), 1)._replace(also=(Post(a_signal(5, 2)), starting(a_run(4))))
        with pytest.raises(StoreRefused):
            await store.apply([resuming(a_waiter(3), 2), good._replace(also=(*good.also, bad))], NOW)
        assert await mailbox(store) == [(1, [1]), (3, [2])]
        assert (await store.stats(NOW)).mailbox == 2
        assert sorted(await store.load([1, 3, 4, 8], NOW)) == [a_waiter(1), a_waiter(3)]
        assert await outcomes(store, resuming(a_waiter(3), 2), good) == ["applied", "applied"]
