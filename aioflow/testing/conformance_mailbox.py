"""Post: what is sent, to whom it goes, and that it is sent once."""

from __future__ import annotations

from typing import Any, Final

import pytest

from aioflow.changes import Change, Post, Result
from aioflow.clock import SECOND
from aioflow.errors import StoreRefused
from aioflow.model import MAX_DATA, MAX_NAME, Signal
from aioflow.store import Mail, RunQuery, Store
from aioflow.testing.conformance_samples import (
    ENDED,
    NOW,
    a_run,
    a_signal,
    a_waiter,
    an_ended,
    an_event_waiter,
    arms,
    do,
    ids,
    mailbox,
    moving,
    outcomes,
    post,
    put,
    resuming,
    row,
    starting,
)

HOUR: Final = 3600 * SECOND
WEEK: Final = 7 * 24 * HOUR
_TEXT: Final = "'; DROP TABLE signals; -- \"`\\ %_$1?:a[]{} \t\r\n größe ✓ 🦀 \u202e\u0301 \x01\x7f"


class MailboxConformance:
    """What is sent is there until it is taken, or its time is over."""

    # ---- Post

    @pytest.mark.parametrize("status", ["running", "waiting"])
    async def test_a_signal_to_a_live_run_is_kept(self, store: Store, status: str) -> None:
        """A signal that is addressed to a live run is applied, and tells the run if it waits for it."""
        await put(store, a_waiter(1) if status == "waiting" else a_run(1))
        receivers = (1,) if status == "waiting" else ()
        assert await post(store, a_signal(1, 1)) == [Result("applied", run_ids=receivers)]
        assert (await store.stats(NOW)).mailbox == 1

    @pytest.mark.parametrize("status", ENDED)
    async def test_a_signal_to_an_ended_run_is_stale(self, store: Store, status: str) -> None:
        """The result has the run as it ended, and the mailbox has nothing, also if the signal has a key."""
        await put(store, an_ended(1, status))
        for signal in (a_signal(1, 1), a_signal(2, 1, key="k")):
            assert await store.apply([Post(signal)], NOW) == [Result("stale", an_ended(1, status))]
        assert (await store.stats(NOW)).mailbox == 0

    async def test_a_signal_to_no_run_is_stale(self, store: Store) -> None:
        """The result has no run, and the mailbox nothing that a later run of this id would get."""
        assert await store.apply([Post(a_signal(1, 1))], NOW) == [Result("stale", None)]
        await put(store, a_waiter(1))
        assert await mailbox(store) == []

    async def test_an_addressed_signal_wakes_only_who_waits_for_its_name(self, store: Store) -> None:
        """A run that waits for another name is not told; the key of an addressed signal does not matter."""
        await put(store, a_waiter(1, ("stop", "k")), a_waiter(2, ("paid", "k")))
        results = await post(store, a_signal(1, 1), a_signal(2, 2, key="other"))
        assert [result.run_ids for result in results] == [(), (2,)]
        assert await mailbox(store) == [(2, [2])]

    async def test_a_keyed_signal_is_for_the_oldest_waits(self, store: Store) -> None:
        """Its receivers are the oldest waits of its name and key, as many as there are signals."""
        await put(
            store,
            a_waiter(1, ("paid", "k"), since=NOW + 3),
            a_waiter(2, ("paid", "k"), ("paid", "k"), since=NOW + 1),
            a_waiter(3, ("paid", "other"), since=NOW),
            a_waiter(4, ("paid", "k"), since=NOW + 2),
            a_waiter(5, ("stop", "k"), since=NOW),
            a_waiter(6, "paid", since=NOW),
        )
        told = [(await post(store, a_signal(number, key="k")))[0].run_ids for number in (1, 2, 3, 4)]
        assert told == [(2,), (2, 4), (2, 4, 1), (2, 4, 1)]
        [other] = await post(store, a_signal(5, key="other"))
        assert other.run_ids == (3,)

    async def test_a_keyed_signal_wakes_nobody_for_what_is_not_there(self, store: Store) -> None:
        """Signals that were taken, have expired, are addressed to a run or have another name are no more receivers."""
        waiters = [a_waiter(number, ("paid", "k"), since=NOW + number) for number in range(1, 5)]
        await put(store, *waiters)
        await post(store, a_signal(1, key="k"), a_signal(2, key="k", expires_at=NOW + 5), a_signal(3, 3, key="k"))
        await post(store, a_signal(5, key="k", name="stop"), a_signal(6, key="other"))
        await do(store, resuming(waiters[0], 1))
        [told] = await post(store, a_signal(4, key="k"), now=NOW + 9)
        assert told.run_ids == (2,)

    async def test_a_keyed_signal_waits_for_a_run(self, store: Store) -> None:
        """Nobody is told, and whoever waits for the key later has mail."""
        assert await post(store, a_signal(1, key="k")) == [Result("applied")]
        await put(store, a_waiter(1, ("paid", "K")), a_waiter(2, ("paid", "k")))
        assert await mailbox(store) == [(2, [1])]

    async def test_a_broadcast_is_copied_to_all_who_wait(self, store: Store) -> None:
        """Each run that waits for the name, by whatever key and however many arms, has one copy, without the signal_id."""
        await put(
            store,
            a_waiter(1),
            a_waiter(2, ("paid", "k"), "paid", ("paid", "other")),
            a_waiter(3, "stop"),
            a_run(4),
            a_waiter(5, "stop", "paid"),
            an_event_waiter(6, "paid"),
        )
        [result] = await post(store, a_signal(7, signal_id="s"))
        assert sorted(result.run_ids) == [1, 2, 5]
        copies = [signal for _, signals, _ in await store.mail(None, 9, NOW) for signal in signals]
        assert copies == [a_signal(7, number, broadcast=1) for number in (1, 2, 5)]
        assert (await store.stats(NOW)).mailbox == 3

    async def test_a_broadcast_that_nobody_waits_for_is_gone(self, store: Store) -> None:
        """A run that begins to wait later does not hear it, with or without a signal_id."""
        assert await post(store, a_signal(1), a_signal(2, signal_id="s")) == [Result("applied")] * 2
        await put(store, a_waiter(1))
        assert await mailbox(store) == []
        assert (await store.stats(NOW)).mailbox == 0

    async def test_a_copy_taken_leaves_the_others(self, store: Store) -> None:
        """The copies of a broadcast are taken one by one."""
        await put(store, a_waiter(1), a_waiter(2))
        await post(store, a_signal(7))
        await do(store, resuming(a_waiter(1), 7))
        assert await mailbox(store) == [(2, [7])]

    @pytest.mark.parametrize("signal", [a_signal(1, 1), a_signal(1, key="k"), a_signal(1)], ids=["run", "key", "all"])
    async def test_a_post_may_be_offered_again(self, store: Store, signal: Signal) -> None:
        """The same id again is applied again, before and after it was taken, and there is no second signal."""
        await put(store, a_waiter(1, ("paid", "k")))
        for _ in range(3):
            assert (await post(store, signal))[0].run_ids == (1,)
        assert (await store.stats(NOW)).mailbox == 1
        resumed = await do(store, resuming(a_waiter(1, ("paid", "k")), 1))
        await do(store, moving(resumed, status="waiting", waiting_for="signal", arms=arms(("paid", "k"))))
        await put(store, a_waiter(2, ("paid", "k")))

        for _ in range(3):
            await post(store, signal)
        assert await mailbox(store) == []
        assert (await store.stats(NOW)).mailbox == 0

    async def test_a_broadcast_offered_again_reaches_nobody_new(self, store: Store) -> None:
        """Who began to wait after the first offer does not hear it by the second, though nobody heard the first."""
        await post(store, a_signal(1))
        await put(store, a_waiter(1))
        await post(store, a_signal(2))
        await do(store, resuming(a_waiter(1), 2))
        await put(store, a_waiter(2))
        await store.expire(100, NOW)
        await post(store, a_signal(1), a_signal(2))
        assert await mailbox(store) == []

    async def test_a_broadcast_offered_again_tells_who_has_not_taken_it(self, store: Store) -> None:
        """Its receivers are the runs that a copy still lies there for."""
        await put(store, a_waiter(1), a_waiter(2))
        assert [result.run_ids for result in await post(store, a_signal(1))] == [(1, 2)]
        await do(store, resuming(a_waiter(1), 1))
        assert [result.run_ids for result in await post(store, a_signal(1))] == [(2,)]

    async def test_what_was_rejected_may_be_sent_again(self, store: Store) -> None:
        """A signal_id of what nobody took is free, and the new signal is delivered; the old one, offered again, is not."""
        await put(store, a_waiter(1))
        await post(store, a_signal(1, 1, signal_id="s"))
        await do(store, moving(a_waiter(1), kind="reject")._replace(takes=(1,)))
        await post(store, a_signal(1, 1, signal_id="s"))
        assert await mailbox(store) == []
        await post(store, a_signal(2, 1, signal_id="s"))
        assert await mailbox(store) == [(1, [2])]

    @pytest.mark.parametrize("place", [{"run_id": 1}, {"key": "k"}], ids=["run", "key"])
    async def test_a_signal_id_that_was_taken_does_not_expire(self, store: Store, place: dict[str, Any]) -> None:
        """What was taken in its time is not sent once more when that is over."""
        waiter = a_waiter(1, ("paid", "k"))
        await put(store, waiter)
        await post(store, a_signal(1, signal_id="s", expires_at=NOW + 5)._replace(**place))
        await do(store, resuming(waiter, 1))
        again = Post(a_signal(2, signal_id="s")._replace(**place))
        assert await store.apply([again], NOW + 9) == [Result("exists", run_ids=(1,))]

    async def test_a_signal_id_that_expires_frees_no_other(self, store: Store) -> None:
        """Of two that are sent again in one batch, what lies there still stays known."""
        await post(
            store, a_signal(1, key="k", signal_id="old", expires_at=NOW + 5), a_signal(2, key="k", signal_id="s")
        )
        again = [Post(a_signal(3, key="k", signal_id="old")), Post(a_signal(4, key="k", signal_id="s"))]
        assert await outcomes(store, again[0], now=NOW + 4) == ["exists"]
        assert await outcomes(store, *again, now=NOW + 5) == ["applied", "exists"]
        assert await outcomes(store, Post(a_signal(5, key="k", signal_id="s")), now=NOW + 9) == ["exists"]

    @pytest.mark.parametrize("place", [{"run_id": 1}, {"key": "k"}], ids=["run", "key"])
    async def test_a_signal_id_is_sent_once(self, store: Store, place: dict[str, Any]) -> None:
        """Another Post of a signal_id exists, whatever it says: it tells if it lies there, then who took it, for 7 days."""
        await put(store, a_waiter(1, ("paid", "k")))
        await post(store, a_signal(1, signal_id="s")._replace(**place))
        again = Post(a_signal(2, signal_id="s")._replace(**place))
        assert await store.apply([again, Post(a_signal(3, key="x", signal_id="S"))], NOW) == [
            Result("exists", mail=True),
            Result("applied"),
        ]
        other = Post(a_signal(4, name="stop", key="other", signal_id="s"))
        assert await store.apply([other], NOW) == [Result("exists", mail=True)]
        await do(store, resuming(a_waiter(1, ("paid", "k")), 1))
        for post_ in (again, other):
            assert await store.apply([post_], NOW) == [Result("exists", run_ids=(1,))]

        await store.expire(100, NOW + WEEK - 1)
        assert await store.apply([again], NOW) == [Result("exists", run_ids=(1,))]
        await store.expire(100, NOW + WEEK + 1)
        assert await outcomes(store, again) == ["applied"]

    async def test_a_signal_id_outlives_its_run(self, store: Store) -> None:
        """What was sent and taken exists, though the run that it was sent to has ended."""
        await put(store, a_waiter(1))
        await post(store, a_signal(1, 1, signal_id="s"))
        await do(store, resuming(a_waiter(1), 1, status="completed"))
        assert await store.apply([Post(a_signal(2, 1, signal_id="s"))], NOW) == [Result("exists", run_ids=(1,))]

    async def test_a_broadcasts_signal_id_is_sent_once(self, store: Store) -> None:
        """It exists whoever was there to hear it, tells who took a copy, and makes no copies for later waits."""
        await put(store, a_waiter(1), a_waiter(2))
        await post(store, a_signal(1, signal_id="s"), a_signal(2, name="stop", signal_id="t"))
        await do(store, resuming(a_waiter(2), 1))
        await put(store, a_waiter(3, "paid", "stop"))
        results = await store.apply([Post(a_signal(3, signal_id="s")), Post(a_signal(4, signal_id="t"))], NOW)
        assert results == [Result("exists", run_ids=(2,)), Result("exists")]
        assert await mailbox(store) == [(1, [1])]

        await store.expire(100, NOW + WEEK + 1)
        assert await outcomes(store, Post(a_signal(3, signal_id="s"))) == ["applied"]

    async def test_receivers_wait_when_the_batch_is_done(self, store: Store) -> None:
        """A run whose wait ends in the same batch is no receiver, wherever in the batch it does."""
        waiters = [a_waiter(number, ("paid", "k")) for number in (1, 2, 3, 4)]
        await put(store, *waiters)
        first, second = resuming(waiters[0]), resuming(waiters[1])
        results = await store.apply([first, Post(a_signal(1)), Post(a_signal(2, key="k")), second], NOW)
        assert sorted(results[1].run_ids) == [3, 4]
        assert results[2].run_ids == (3,)
        assert await mailbox(store) == [(3, [1, 2]), (4, [1, 2])]

    async def test_what_is_sent_comes_back_as_it_was(self, store: Store) -> None:
        """Hostile text, names of 200 characters and a payload of 1 MiB are told exactly, and fit exactly."""
        large = '{"text":"' + "🦀" * ((MAX_DATA - 11) // 4) + '"}'
        signals = [
            a_signal(2**53 - 1, 1, name=_TEXT, payload=large, message=1, signal_id=_TEXT, sent_at=1, expires_at=2**53),
            a_signal(1, name="🦀" * MAX_NAME, key="'" * MAX_NAME, payload="{}", sent_at=2),
            a_signal(2, name=_TEXT, key=_TEXT, payload='{"größe ✓":"\\u0001"}', sent_at=3, signal_id="0"),
        ]
        await put(store, a_waiter(1, (_TEXT, _TEXT), ("🦀" * MAX_NAME, "'" * MAX_NAME)))
        assert [result.run_ids for result in await post(store, *signals)] == [(1,)] * 3

        [mail] = await store.mail([1], 9, NOW)
        assert mail[:2] == (await row(store, 1), signals)
        assert type(mail) is Mail
        for found, sent in zip(mail.signals, signals, strict=True):
            assert [type(value) for value in found] == [type(value) for value in sent]
        assert ids(await store.select(RunQuery(waiting_signal=(_TEXT,), waiting_key=(_TEXT,)), NOW)) == [1]

    @pytest.mark.parametrize("odd", [{"payload": "\ud800"}, {"expires_at": 2**10_000}], ids=["text", "number"])
    async def test_a_post_that_cannot_be_stored_undoes_its_batch(self, store: Store, odd: dict[str, Any]) -> None:
        """Nothing of the batch was done, and without that Post it can be done."""
        await put(store, a_waiter(1), a_run(2))
        await post(store, a_signal(1, 1))
        good: list[Change] = [
            Post(a_signal(2, key="k", signal_id="s")),
            Post(a_signal(3)),
            resuming(a_waiter(1), 1),
            starting(a_run(3)),
        ]
        with pytest.raises(StoreRefused):
            await store.apply([*good, Post(a_signal(4, 2)._replace(payload="\ud800", expires_at=2**10_000))], NOW)
        assert await mailbox(store) == [(1, [1])]
        assert (await store.stats(NOW)).mailbox == 1
        assert await store.load([1, 3], NOW) == [a_waiter(1)]
        with pytest.raises(StoreRefused):
            await store.apply([Post(a_signal(4, 2)._replace(**odd))], NOW)
        assert await outcomes(store, *good) == ["applied"] * 4

    async def test_an_undone_batch_leaves_the_order_of_waits(self, store: Store) -> None:
        """A wait that a refused batch would have ended is as old as it was, whatever became of its row meanwhile."""
        await put(store, a_waiter(1, since=NOW), a_waiter(2, since=NOW + 1))
        rejected = await do(store, moving(a_waiter(1), kind="reject", updated_at=NOW + 5))
        await post(store, a_signal(1))
        with pytest.raises(StoreRefused):
            await store.apply([resuming(rejected), starting(a_run(3, parent_id=2**10_000))], NOW)
        assert await mailbox(store) == [(1, [1]), (2, [1])]
