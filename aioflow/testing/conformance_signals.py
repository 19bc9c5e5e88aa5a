"""Moves and the mailbox: what they take, what holds them back, and waits that follow the row."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from aioflow.changes import Post, Result
from aioflow.store import Store
from aioflow.testing.conformance_samples import (
    NOW,
    SecondHandle,
    a_run,
    a_signal,
    a_waiter,
    arms,
    cancelling,
    do,
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


class SignalsConformance(SecondHandle):
    """Each signal is taken once, in the transaction of the move that it causes."""

    # ---- takes

    async def test_a_move_takes_what_is_for_its_run(self, store: Store) -> None:
        """Signals to the run, to a key, and its copy of a broadcast leave the mailbox with the move."""
        await put(store, a_waiter(1, KEYED), a_waiter(2, KEYED))
        await post(store, a_signal(1, 1), a_signal(2, key="k"), a_signal(3), a_signal(4, 2))
        move = resuming(a_waiter(1, KEYED), 1, 2, 3)
        assert await store.apply([move], NOW) == [Result("applied", move.run)]
        assert await row(store, 1) == move.run
        assert (await log(store, 1))[-1] == move.transition
        assert await mailbox(store) == [(2, [3, 4])]

    @pytest.mark.parametrize("at_once", [True, False])
    async def test_of_two_moves_one_takes_a_keyed_signal(self, store: Store, at_once: bool) -> None:
        """The other is stale and finds its row as it stands, in the same batch or in the next."""
        await put(store, a_waiter(1, KEYED), a_waiter(2, KEYED))
        await post(store, a_signal(1, key="k"))
        moves = [resuming(a_waiter(number, KEYED), 1) for number in (1, 2)]
        if at_once:
            results = await store.apply(moves, NOW)
        else:
            results = [result for move in moves for result in await store.apply([move], NOW)]
        assert results == [Result("applied", moves[0].run), Result("stale", a_waiter(2, KEYED))]
        assert await row(store, 2) == a_waiter(2, KEYED)
        assert len(await log(store, 2)) == 1

    @pytest.mark.parametrize("takes", [(2,), (3,), (99,), (1, 99), (2**53 - 1,), (4,)])
    async def test_a_move_takes_what_is_there_for_it_or_nothing(self, store: Store, takes: tuple[int, ...]) -> None:
        """What is another run's, another's copy, unknown or taken makes it stale, and the rest of it stays."""
        await put(store, a_waiter(1), a_waiter(2, "x"), a_waiter(3))
        await post(store, a_signal(1, 1), a_signal(2, 2), a_signal(3, name="x"), a_signal(4, key="k"))
        await do(store, resuming(a_waiter(3), 4))
        assert await store.apply([resuming(a_waiter(1), *takes)], NOW) == [Result("stale", a_waiter(1))]
        assert await row(store, 1) == a_waiter(1)
        assert (await store.stats(NOW)).mailbox == 3
        await do(store, resuming(a_waiter(1), 1))

    async def test_what_has_expired_cannot_be_taken(self, store: Store) -> None:
        """It is not in the mailbox any more, whether or not it was swept: the move is stale."""
        await put(store, a_waiter(1), a_waiter(2))
        await post(store, a_signal(1, 1, expires_at=NOW + 5), a_signal(2, 2, expires_at=NOW + 50))
        moves = [resuming(a_waiter(1), 1), resuming(a_waiter(2), 2)]
        assert await outcomes(store, *moves, now=NOW + 5) == ["stale", "applied"]

    async def test_a_copy_whose_wait_is_over_cannot_be_taken(self, store: Store) -> None:
        """A broadcast's copy is not for the run's next wait."""
        await put(store, a_waiter(1))
        await post(store, a_signal(1))
        running = await do(store, resuming(a_waiter(1)))
        again = await do(store, moving(running, status="waiting", waiting_for="signal", arms=arms("paid")))
        assert await outcomes(store, resuming(again, 1)) == ["stale"]

    @pytest.mark.parametrize(("seq", "fence"), [(2, 1), (0, 1), (1, 2)])
    async def test_a_stale_move_leaves_the_mailbox(self, store: Store, seq: int, fence: int) -> None:
        """A move whose seq or fence does not hold takes, sends and starts nothing."""
        await put(store, a_waiter(1))
        await post(store, a_signal(1, 1))
        also = (Post(a_signal(2, key="k")), starting(a_run(2)))
        move = resuming(a_waiter(1), 1)._replace(seq=seq, fence=fence, also=also)
        assert await store.apply([move], NOW) == [Result("stale", a_waiter(1))]
        assert await mailbox(store) == [(1, [1])]
        assert (await store.stats(NOW)).mailbox == 1
        assert await store.load([2], NOW) == []

    async def test_a_stale_move_leaves_its_signal_to_the_next(self, store: Store) -> None:
        """A signal that a refused move named is taken by another of the same batch."""
        await put(store, a_waiter(1, KEYED), a_waiter(2, KEYED))
        await post(store, a_signal(1, key="k"))
        first = resuming(a_waiter(1, KEYED), 1, 99)
        assert await outcomes(store, first, resuming(a_waiter(2, KEYED), 1)) == ["stale", "applied"]

    async def test_a_move_that_takes_may_be_offered_again(self, store: Store) -> None:
        """It is applied again, though what it takes is gone, and even when the run has moved on."""
        await put(store, a_waiter(1))
        await post(store, a_signal(1, 1), a_signal(2, 1))
        move = resuming(a_waiter(1), 1)
        assert await store.apply([move], NOW) == await store.apply([move], NOW) == [Result("applied", move.run)]
        assert (await store.stats(NOW)).mailbox == 1
        stands = await do(store, moving(move.run, status="waiting", waiting_for="signal", arms=arms("paid")))
        assert await store.apply([move], NOW) == [Result("applied", stands, mail=True)]
        assert await mailbox(store) == [(1, [2])]

    # ---- mail of a Move

    async def test_a_move_that_parks_tells_of_mail(self, store: Store) -> None:
        """It does so if anything fits the new wait, sent before or in the same batch, and only then."""
        await put(store, *(a_run(number) for number in range(1, 7)), a_waiter(7, "y"))
        await post(
            store, a_signal(1, 1), a_signal(2, key="k"), a_signal(3, 4, name="x"), a_signal(4, 5, expires_at=NOW)
        )
        wait: dict[str, Any] = {"status": "waiting", "waiting_for": "signal"}
        columns = [arms("paid"), arms(("paid", "k")), arms(("paid", "l")), arms("paid"), arms("paid"), None]
        moves = [moving(a_run(number), **wait, arms=column) for number, column in enumerate(columns, start=1)]
        posts = [Post(a_signal(5, 7, name="y"))]
        results = await store.apply([*moves, *posts, moving(a_waiter(7, "y"), kind="reject")], NOW)
        assert [result.mail for result in results] == [True, True, False, False, False, False, False, True]
        assert {result.outcome for result in results} == {"applied"}

    # ---- unless_mail

    @pytest.mark.parametrize(
        ("signals", "mail"),
        [
            ([a_signal(1, 1, sent_at=NOW + 9)], True),
            ([a_signal(1, 1, sent_at=NOW + 10)], True),
            ([a_signal(1, 1, sent_at=NOW + 11)], False),
            ([a_signal(1, key="k", sent_at=NOW + 10)], True),
            ([a_signal(1, key="k", sent_at=NOW + 11)], False),
            ([a_signal(1, sent_at=NOW + 10)], True),
            ([a_signal(1, sent_at=NOW + 11)], False),
            ([a_signal(1, 1, sent_at=NOW + 11), a_signal(2, 1, sent_at=NOW + 3)], True),
            ([a_signal(1, 1, sent_at=NOW, expires_at=NOW + 15)], False),
            ([a_signal(1, 1, sent_at=NOW, expires_at=NOW + 21)], True),
            ([a_signal(1, 1, sent_at=NOW, name="stop")], False),
            ([a_signal(1, key="l", sent_at=NOW)], False),
            ([a_signal(1, 2, sent_at=NOW)], False),
            ([], False),
        ],
    )
    async def test_a_timeout_minds_what_was_sent_in_time(self, store: Store, signals: list[Any], mail: bool) -> None:
        """With mail that was sent by wake_at, the instant itself included, the move is stale and says so."""
        waiter = a_waiter(1, KEYED, wake_at=NOW + 10)
        await put(store, waiter, a_run(2))
        await post(store, *signals)
        move = resuming(waiter)._replace(unless_mail=True, also=(starting(a_run(3)),))
        [result] = await store.apply([move], NOW + 20)
        if mail:
            assert result == Result("stale", waiter, mail=True)
            assert await row(store, 1) == waiter
            assert await store.load([3], NOW) == []
        else:
            assert result == Result("applied", move.run, also=(Result("applied", a_run(3)),))

    async def test_a_wait_without_an_end_minds_all_mail(self, store: Store) -> None:
        """Without a wake_at, mail that was sent at any time is in the way."""
        await put(store, a_waiter(1))
        await post(store, a_signal(1, 1, sent_at=NOW + 10), now=NOW + 10)
        [result] = await store.apply([resuming(a_waiter(1))._replace(unless_mail=True)], NOW + 20)
        assert result == Result("stale", a_waiter(1), mail=True)

    async def test_a_timeout_may_be_offered_again(self, store: Store) -> None:
        """Once applied it is applied, whatever is sent afterwards."""
        waiter = a_waiter(1, wake_at=NOW + 10)
        await put(store, waiter)
        move = resuming(waiter)._replace(unless_mail=True)
        assert await outcomes(store, move) == ["applied"]
        await post(store, a_signal(1, 1))
        assert await store.apply([move], NOW) == [Result("applied", move.run)]

    async def test_a_timeout_minds_no_mail_that_was_taken(self, store: Store) -> None:
        """A signal to a key that another run has taken holds no timeout back."""
        waiter = a_waiter(1, KEYED, wake_at=NOW + 10)
        await put(store, waiter, a_waiter(2, KEYED))
        await post(store, a_signal(1, key="k"))
        await do(store, resuming(a_waiter(2, KEYED), 1))
        assert await outcomes(store, resuming(waiter)._replace(unless_mail=True)) == ["applied"]

    # ---- waits follow the row

    @pytest.mark.parametrize("end", ["resume", "cancel", "other"])
    async def test_a_copy_lives_as_long_as_its_wait(self, store: Store, end: str) -> None:
        """A broadcast's copy goes when its wait ends, however that is; a signal to the run only when the run ends."""
        await put(store, a_waiter(1))
        await post(store, a_signal(1), a_signal(2, 1, name="paid"))
        match end:
            case "resume":
                on = await do(store, resuming(a_waiter(1)))
                await do(store, moving(on, status="waiting", waiting_for="signal", arms=arms("paid")))
            case "cancel":
                await do(store, cancelling(1, commit_id=77))
            case "other":
                await do(store, moving(a_waiter(1), arms=arms("paid", "stop")))
        assert await mailbox(store) == ([] if end == "cancel" else [(1, [2])])
        gone = [(signal.id, signal.run_id) for signal in await store.expire(9, NOW)]
        assert sorted(gone) == ([(1, 1), (2, 1)] if end == "cancel" else [(1, 1)])

    async def test_a_rejection_keeps_the_wait(self, store: Store) -> None:
        """A move that keeps the arms and takes what it rejects leaves copies and the age of the wait as they were."""
        await put(store, a_waiter(1, since=NOW), a_waiter(2, since=NOW + 1))
        await post(store, a_signal(1), a_signal(2, 1), a_signal(3))
        move = moving(a_waiter(1), kind="reject", updated_at=NOW + 9)._replace(takes=(1,))
        assert await store.apply([move], NOW) == [Result("applied", move.run, mail=True)]
        assert await mailbox(store) == [(1, [2, 3]), (2, [1, 3])]

    async def test_a_run_that_parks_again_waits_for_something_else(self, store: Store) -> None:
        """Mail and receivers follow the arms as they stand, from the instant at which they were written."""
        await put(store, a_waiter(1, KEYED, since=NOW), a_waiter(2, ("stop", "k"), since=NOW + 1))
        await post(store, a_signal(1, key="k"), a_signal(2, name="stop", key="k"))
        assert await mailbox(store) == [(1, [1]), (2, [2])]
        on = await do(store, resuming(a_waiter(1, KEYED)))
        assert await mailbox(store) == [(2, [2])]
        await do(store, moving(on, status="waiting", arms=arms(("stop", "k")), updated_at=NOW + 9))
        assert await mailbox(store) == [(2, [2]), (1, [2])]
        results = await post(store, a_signal(3, key="k"), a_signal(4, name="stop", key="k"))
        assert [result.run_ids for result in results] == [(), (2, 1)]

    # ---- several at once

    async def test_a_batch_may_hold_many_signals_and_moves(self, store: Store) -> None:
        """Two hundred runs take a signal each, and are sent another, in one transaction."""
        numbers = range(1, 201)
        await put(store, *(a_waiter(number) for number in numbers))
        await post(store, *(a_signal(number, number) for number in numbers))
        batch = [resuming(a_waiter(number), number) for number in numbers]
        more = [Post(a_signal(number + 5_000, number)) for number in numbers]
        assert set(await outcomes(store, *batch, *more)) == {"applied"}
        assert (await store.stats(NOW)).mailbox == 200
        assert await mailbox(store) == []

    async def test_each_of_many_is_taken_once(self, store: Store) -> None:
        """Two users deliver the same keyed signals while a third sends them; each is taken by one run, and none is lost."""
        count = 30
        await put(store, *(a_waiter(number, KEYED) for number in range(1, count + 1)))
        taken: list[int] = []

        async def send() -> None:
            for number in range(1, count + 1):
                await post(store, a_signal(number, key="k", signal_id=f"s{number}"))

        async def deliver(user: Store, commit_id: int) -> None:
            while len(taken) < count:
                commit_id += 1
                for run, signals, _ in (await user.mail(None, 5, NOW))[::-1]:
                    move = resuming(run, signals[0].id)
                    move = move._replace(transition=move.transition._replace(commit_id=commit_id))
                    if (await user.apply([move], NOW))[0].outcome == "applied":
                        taken.append(signals[0].id)
                await anyio.lowlevel.checkpoint()

        async with self.second(store) as other:
            with anyio.fail_after(60):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(send)
                    tasks.start_soon(deliver, store, 1_000)
                    tasks.start_soon(deliver, other, 900_000)

        assert sorted(taken) == list(range(1, count + 1))
        assert {run.seq for run in await store.load(range(1, count + 1), NOW)} == {2}
        offers = [Post(a_signal(number + 100, key="k", signal_id=f"s{number}")) for number in range(1, count + 1)]
        results = await store.apply(offers, NOW)
        assert sorted(result.run_ids for result in results) == [(number,) for number in range(1, count + 1)]
