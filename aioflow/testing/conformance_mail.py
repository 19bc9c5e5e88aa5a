"""mail() and expire(), and the questions about what waits."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from aioflow.changes import Move, Post, Result
from aioflow.clock import SECOND
from aioflow.model import Arm, Signal
from aioflow.store import RunQuery, Store
from aioflow.testing.conformance_samples import (
    NOW,
    a_run,
    a_signal,
    a_sleeper,
    a_waiter,
    an_event,
    an_event_waiter,
    cancelling,
    do,
    emit,
    ids,
    mailbox,
    moving,
    outcomes,
    post,
    put,
    resuming,
)

HOUR: Final = 3600 * SECOND
WEEK: Final = 7 * 24 * HOUR
_TEXT: Final = "'; DROP TABLE signals; -- \"`\\ %_$1?:a[]{} \t\r\n größe ✓ 🦀 \u202e\u0301 \x01\x7f"

#: filters, ids of the runs in the test that match
WAITING: Final[list[tuple[dict[str, Any], list[int]]]] = [
    ({"waiting_signal": ("paid",)}, [1, 2, 3]),
    ({"waiting_signal": ("paid", "stop")}, [1, 2, 3, 4]),
    ({"waiting_signal": ("Paid",)}, []),
    ({"waiting_key": ("k1",)}, [2, 3]),
    ({"waiting_key": ("k1", "k2")}, [2, 3, 4]),
    ({"waiting_signal": ("paid",), "waiting_key": ("k1",)}, [2]),
    ({"waiting_signal": ("paid",), "waiting_key": ("k2",)}, [3]),
    ({"waiting_signal": ("stop",), "waiting_key": ("k1", "k2")}, [3, 4]),
    ({"waiting_signal": ("paid", "stop"), "waiting_key": ("k3",)}, []),
    ({"waiting_signal": ("paid",), "step": ("check",)}, [3]),
    ({"waiting_signal": ("paid' OR '1'='1",)}, []),
]


class MailConformance:
    """What was sent is there until it is taken, or its time is over."""

    # ---- mail

    async def test_mail_is_in_order_of_waits_and_of_sending(self, store: Store) -> None:
        """The oldest wait comes first, by run id at one instant; signals in order of sending, then of id."""
        await put(
            store,
            a_waiter(3, ("paid", "k"), since=NOW + 1),
            a_waiter(2, since=NOW + 2),
            a_waiter(1, since=NOW + 2),
            a_waiter(4, since=NOW),
        )
        late = a_signal(1, 3, sent_at=NOW + 9)
        tied = [a_signal(number, 3, sent_at=NOW + 5) for number in (3, 2)]
        await post(store, late, *tied, a_signal(5, key="k", sent_at=NOW + 7), a_signal(6, 1), a_signal(7, 2))
        assert await mailbox(store) == [(3, [2, 3, 5, 1]), (1, [6]), (2, [7])]

    async def test_an_action_takes_nothing_that_is_sent(self, store: Store) -> None:
        """Of arms of one name, that of an action is for calls alone: signals and events of this name are not for it."""
        action = json.dumps([Arm("action", "paid", None, "ship", message=False)])
        waiter = a_waiter(1, arms=action, waiting_for="action")
        event_waiter = an_event_waiter(2, "paid")
        both = json.dumps([*json.loads(action), *json.loads(event_waiter.arms or "[]")])
        await put(store, waiter, event_waiter._replace(arms=both, waiting_for="action"))
        sent = [Post(signal) for signal in (a_signal(1, 1), a_signal(2, 2), a_signal(3, key="k"), a_signal(4))]
        assert [result.run_ids for result in await store.apply(sent, NOW)] == [(), (), (), ()]
        assert [result.run_ids for result in await emit(store, an_event(5, name="paid"))] == [(2,)]
        (mail,) = await store.mail(None, 9, NOW)
        assert (mail.run.id, [signal.event for signal in mail.signals]) == (2, [5])
        (moved,) = await store.apply([resuming(waiter)._replace(unless_mail=True)], NOW)
        assert (moved.outcome, moved.mail) == ("applied", False)

    async def test_mail_is_limited_and_asked_for_by_run(self, store: Store) -> None:
        """At most ``limit`` Mails, of these runs or of all; other ids are passed over."""
        await put(store, *(a_waiter(number, since=NOW - number) for number in range(1, 6)), a_run(6))
        await put(store, a_waiter(7, since=NOW - 5))
        await post(store, a_signal(1), a_signal(2), a_signal(3, 6))
        assert [mail.run.id for mail in await store.mail(None, 1, NOW)] == [5]
        assert [mail.run.id for mail in await store.mail(None, 3, NOW)] == [5, 7, 4]
        for given in ([1, 3, 6, 99, 3], (1, 3), {1, 3}, frozenset({3, 1})):
            mails = await store.mail(given, 9, NOW)
            assert [(mail.run, [signal.id for signal in mail.signals]) for mail in mails] == [
                (a_waiter(3, since=NOW - 3), [1, 2]),
                (a_waiter(1, since=NOW - 1), [1, 2]),
            ]
        assert [mail.run.id for mail in await store.mail([1, 2, 3], 1, NOW)] == [3]
        assert await store.mail([], 9, NOW) == []
        assert len(await store.mail(range(70_000), 9, NOW)) == 6

    async def test_mail_is_asked_for_by_code_and_in_parts(self, store: Store) -> None:
        """``known`` leaves out other workflows and versions, ``after`` what comes before in the order, alone and together."""
        others = {1: {"workflow": "other"}, 3: {"version": "2"}}
        waiters = [a_waiter(id_, ("paid", "k"), since=NOW - id_ // 2, **others.get(id_, {})) for id_ in range(1, 6)]
        await put(store, *waiters)
        await post(store, *(a_signal(id_, id_) for id_ in range(1, 6)), a_signal(6, key="k"))

        async def told(run_ids: list[int] | None = None, limit: int = 9, **which: Any) -> list[int]:
            return [mail.run.id for mail in await store.mail(run_ids, limit, NOW, **which)]

        order, other = ("order", "1"), ("other", "1")
        assert [(mail.run.id, mail.since - NOW) for mail in await store.mail(None, 9, NOW)] == [
            (4, -2),
            (5, -2),
            (2, -1),
            (3, -1),
            (1, 0),
        ]
        assert await told(known=[order]) == [4, 5, 2]
        assert await told(known={order, other, ("order", "3")}) == [4, 5, 2, 1]
        assert await told(known=[]) == []
        assert await told(known=[("other", "2"), ("Order", "1"), ("' OR '1'='1", "")]) == []
        assert await told(limit=1, known=[other]) == [1]
        assert await told(after=(NOW - 2, 4)) == [5, 2, 3, 1]
        assert await told(limit=2, after=(NOW - 2, 99)) == [2, 3]
        assert await told(after=(NOW, 1)) == []
        assert await told(limit=1, known=[order], after=(NOW - 2, 5)) == [2]
        assert await told([1, 3, 4, 5], known=[order, other], after=(NOW - 2, 4)) == [5, 1]

    async def test_since_when_a_run_waits_is_since_its_arms_are_what_they_are(self, store: Store) -> None:
        """A change of the row that leaves the arms as they are leaves its place in the order, too."""
        waiter = a_waiter(1)
        await put(store, waiter)
        await post(store, a_signal(1, 1))
        await do(store, moving(waiter, status="waiting", arms=waiter.arms, waiting_for="signal", updated_at=NOW + 9))
        [mail] = await store.mail(None, 9, NOW)
        assert (mail.run.updated_at, mail.since) == (NOW + 9, NOW)

    async def test_a_mail_begins_with_what_was_sent_first(self, store: Store) -> None:
        """However much lies there for a run, what it is shown is the oldest of it."""
        await put(store, a_waiter(1))
        await post(store, *(a_signal(number, 1, sent_at=NOW - number) for number in range(1, 51)))
        [(_, shown)] = await mailbox(store)
        assert shown
        assert shown == list(range(50, 50 - len(shown), -1))

    async def test_mail_fits_an_arm_by_name_and_address(self, store: Store) -> None:
        """A signal to a key fits each wait for the name by that key, one to a run the run's, once however many arms."""
        one, two = (
            a_waiter(1, ("paid", "k"), ("stop", "l"), ("stop", "k"), key="own"),
            a_waiter(2, ("paid", "k"), "stop"),
        )
        await put(store, one, two)
        await post(
            store,
            a_signal(1, key="k"),
            a_signal(2, key="l"),
            a_signal(3, name="stop", key="l"),
            a_signal(4, 1, name="stop"),
            a_signal(5, 1, name="other"),
            a_signal(6, 2, name="stop", key="z"),
            a_signal(7, 2, name="stop", key="l"),
            a_signal(8, key="own"),
        )
        assert await mailbox(store) == [(1, [1, 3, 4]), (2, [1, 6, 7])]

    async def test_a_signal_to_a_key_is_not_for_a_wait_for_an_event(self, store: Store) -> None:
        """Of the same name and key, it is in no mail of such a run, does not wake it, and does not hold up its timeout."""
        waiter = an_event_waiter(1, ("paid", "k"))
        await put(store, waiter)
        (told,) = await post(store, a_signal(1, key="k"))
        assert told.run_ids == ()
        assert await mailbox(store) == []
        assert await outcomes(store, resuming(waiter)._replace(unless_mail=True)) == ["applied"]

    @pytest.mark.parametrize("address", [{"run_id": 1}, {"key": "k"}, {}], ids=["run", "key", "all"])
    async def test_what_has_expired_is_in_no_mail(self, store: Store, address: dict[str, Any]) -> None:
        """Until its time is over mail has it and expire leaves it; from that instant on it is the other way round."""
        await put(store, a_waiter(1, ("paid", "k")))
        await post(store, a_signal(1, expires_at=NOW + 10)._replace(**address))
        assert await mailbox(store, NOW + 9) == [(1, [1])]
        assert await store.expire(9, NOW + 9) == []
        assert await mailbox(store, NOW + 10) == []
        assert len(await store.expire(9, NOW + 10)) == 1

    async def test_mail_and_waits_outlive_a_restart(self, store: Store) -> None:
        """Signals, waits and what was taken are there after closing and opening."""
        await put(store, a_waiter(1), a_waiter(2, ("paid", "k"), since=NOW + 1), a_waiter(3))
        await post(store, a_signal(1), a_signal(2, key="k"), a_signal(3, 3, signal_id="s"))
        await do(store, resuming(a_waiter(3), 3))
        await store.close()
        await store.open(NOW)
        assert await mailbox(store) == [(1, [1]), (2, [1, 2])]
        assert await store.apply([Post(a_signal(4, 3, signal_id="s"))], NOW) == [Result("exists", run_ids=(3,))]
        assert await store.reserve("signal", 1, NOW) >= 1

    # ---- expire

    async def test_expire_returns_what_nobody_took_in_its_time(self, store: Store) -> None:
        """Expired ones, copies whose wait is over and what is addressed to ended runs; each once, and no others."""
        await put(store, *(a_waiter(number, "x") for number in (1, 2)), a_run(3), a_waiter(4))
        await post(
            store,
            a_signal(1, key="k", expires_at=NOW + 1),
            a_signal(2, key="k", expires_at=NOW + 100),
            a_signal(3, key="k"),
            a_signal(4, name="x"),
            a_signal(5, 3, payload='{"a":1}', signal_id="s"),
            a_signal(6, 1),
            a_signal(7, 4),
        )
        await store.apply([cancelling(3, commit_id=77), resuming(a_waiter(1, "x")), resuming(a_waiter(4), 7)], NOW)
        gone = sorted(await store.expire(100, NOW + 2))
        assert [(signal.id, signal.run_id) for signal in gone] == [(1, 0), (4, 1), (5, 3)]
        assert gone[0] == a_signal(1, key="k", expires_at=NOW + 1)
        assert gone[1]._replace(expires_at=None) == a_signal(4, 1, name="x", broadcast=1)
        assert gone[2]._replace(expires_at=None) == a_signal(5, 3, payload='{"a":1}', signal_id="s")
        assert {type(signal) for signal in gone} == {Signal}
        assert await store.expire(100, NOW + 2) == []
        assert (await store.stats(NOW)).mailbox == 4

    async def test_expire_is_limited(self, store: Store) -> None:
        """At most ``limit`` are returned, and the rest the next time."""
        await post(store, *(a_signal(number, key="k", expires_at=NOW + number) for number in range(1, 8)))
        parts = [[signal.id for signal in await store.expire(3, NOW + 99)] for _ in range(4)]
        assert [len(part) for part in parts] == [3, 3, 1, 0]
        assert sorted(id_ for part in parts for id_ in part) == list(range(1, 8))

    async def test_expire_forgets_a_limited_number(self, store: Store) -> None:
        """What was taken is forgotten ``limit`` at a time."""
        waiters = [a_waiter(number) for number in range(1, 6)]
        await put(store, *waiters)
        await post(store, *(a_signal(number, number, signal_id=f"s{number}") for number in range(1, 6)))
        await store.apply([resuming(waiter, waiter.id) for waiter in waiters], NOW)
        offers = [Post(a_signal(number + 10, key="k", signal_id=f"s{number}")) for number in range(1, 6)]
        assert await store.expire(9, NOW + WEEK + 1, forget=0) == []
        assert await store.expire(2, NOW + WEEK + 1) == []
        assert await store.expire(0, NOW + WEEK + 1, forget=1) == []
        assert sorted(await outcomes(store, *offers)) == ["applied"] * 3 + ["exists"] * 2

    async def test_what_was_taken_is_known_for_an_hour(self, store: Store) -> None:
        """Within the hour a Post that is offered again, though taken and swept, delivers nothing; then it is forgotten."""
        await put(store, a_waiter(1))
        await post(store, a_signal(1, 1))
        await do(store, resuming(a_waiter(1), 1))
        assert await store.expire(9, NOW + HOUR - 1) == []
        await post(store, a_signal(1, 1))
        assert (await store.stats(NOW)).mailbox == 0
        assert await store.expire(9, NOW + HOUR + 1) == []
        await post(store, a_signal(1, 1))
        assert (await store.stats(NOW)).mailbox == 1

    # ---- questions

    @pytest.mark.parametrize(("filters", "expected"), WAITING, ids=str)
    async def test_runs_are_found_by_one_arm(self, store: Store, filters: dict[str, Any], expected: list[int]) -> None:
        """waiting_signal and waiting_key match any arm of a waiting run, both the same one; count agrees."""
        await put(
            store,
            a_waiter(1),
            a_waiter(2, ("paid", "k1")),
            a_waiter(3, ("stop", "k1"), ("paid", "k2"), step="check"),
            a_waiter(4, ("stop", "k2"), ("stop", "k2")),
            a_sleeper(5, NOW, key="k1"),
            a_waiter(6, ("paid", "k1")),
        )
        await do(store, resuming(a_waiter(6, ("paid", "k1"))))
        assert sorted(ids(await store.select(RunQuery(**filters), NOW))) == expected
        assert await store.count(RunQuery(**filters), NOW) == len(expected)

    @pytest.mark.parametrize(
        ("wanted", "expected"),
        [
            (("signal",), [1, 2]),
            (("action",), [2, 3]),
            (("event",), [2]),
            (("action", "sleep"), [2, 3, 4]),
            (("event", "action"), [2, 3]),
            (("sleep",), [4]),
        ],
    )
    async def test_runs_are_found_by_what_any_arm_is_for(
        self, store: Store, wanted: tuple[str, ...], expected: list[int]
    ) -> None:
        """waiting_for matches the kind of any arm of a waiting run, and of none that has gone on."""
        several = [("signal", "paid"), ("action", "review"), ("event", "late")]
        arms = json.dumps([Arm(kind, name, None, "ship", message=False) for kind, name in several])  # type: ignore[arg-type]
        action = json.dumps([Arm("action", "review", None, "ship", message=False)])
        gone = a_waiter(5, arms=action, waiting_for="action")
        await put(
            store,
            a_waiter(1),
            a_waiter(2, arms=arms),
            a_waiter(3, arms=action, waiting_for="action"),
            a_sleeper(4, NOW),
            gone,
        )
        await do(store, resuming(gone))
        query = RunQuery(waiting_for=wanted)
        assert sorted(ids(await store.select(query, NOW))) == expected
        assert await store.count(query, NOW) == len(expected)

    async def test_stats_count_the_mailbox(self, store: Store) -> None:
        """Signals count from sending to taking, each copy for itself."""
        assert (await store.stats(NOW)).mailbox == 0
        await put(store, a_waiter(1), a_waiter(2))
        await post(store, a_signal(1, 1), a_signal(2, key="k"), a_signal(3))
        assert (await store.stats(NOW)).mailbox == 4
        move: Move = resuming(a_waiter(1), 1, 2, 3)
        await do(store, move)
        assert (await store.stats(NOW)).mailbox == 1
        await do(store, resuming(a_waiter(2), 3))
        assert (await store.stats(NOW)).mailbox == 0
