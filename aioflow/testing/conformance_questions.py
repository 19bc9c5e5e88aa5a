"""load(), history(), due() and stats(): what is in the store, told exactly."""

from __future__ import annotations

from typing import Any, Final

import pytest

from aioflow.clock import SECOND, Micros
from aioflow.model import Deadline, Transition
from aioflow.store import Store
from aioflow.testing.conformance_samples import (
    ENDED,
    NOW,
    a_run,
    a_sleeper,
    an_ended,
    claiming,
    do,
    ids,
    log,
    moving,
    put,
    row,
)

EVER: Final[Micros] = 2**62
START: Final = (0, 0)
END: Final = (EVER, 0)


class QuestionsConformance:
    """Questions by id and by deadline, and the count of everything."""

    # ---- load

    async def test_load_gives_the_runs_that_exist(self, store: Store) -> None:
        """Ids without a run are passed over, and each run is given once."""
        await put(store, a_run(1), a_run(2), a_run(3))
        assert sorted(await store.load([3, 1, 99, 3], NOW)) == [a_run(1), a_run(3)]

    async def test_load_of_nothing_is_nothing(self, store: Store) -> None:
        """No ids, no runs, whatever there is."""
        await put(store, a_run(1))
        assert await store.load([], NOW) == []

    @pytest.mark.parametrize("collection", [list, tuple, set, frozenset, dict.fromkeys])
    async def test_load_takes_any_collection(self, store: Store, collection: type[set[int]]) -> None:
        """Any collection of ids will do."""
        await put(store, a_run(1), a_run(2))
        assert sorted(await store.load(collection([1, 2]), NOW)) == [a_run(1), a_run(2)]

    async def test_load_takes_many_ids(self, store: Store) -> None:
        """No number of ids is too many for a statement."""
        await put(store, a_run(1), a_run(70_000))
        assert sorted(ids(await store.load(range(1, 70_001), NOW))) == [1, 70_000]

    # ---- history

    async def test_history_is_told_oldest_first(self, store: Store) -> None:
        """A history is in the order of its transitions, and each is as it was written."""
        written = [await self._walk(store, run_id=1, steps=12), await self._walk(store, run_id=2, steps=3)]
        assert await store.history(1, 0, 1_000, NOW) == written[0]
        assert await store.history(2, 0, 1_000, NOW) == written[1]

    async def test_history_goes_on_where_a_page_ended(self, store: Store) -> None:
        """Pages of a history, each after the last one's seq, are the history."""
        written = await self._walk(store, run_id=1, steps=12)
        paged: list[Transition] = []
        while page := await store.history(1, paged[-1].seq if paged else 0, 5, NOW):
            assert len(page) <= 5
            paged += page
            assert len(paged) <= len(written)
        assert paged == written

    async def test_history_has_an_end(self, store: Store) -> None:
        """After the last transition comes nothing; nor before the first of a run that is not there."""
        await self._walk(store, run_id=1, steps=3)
        assert await store.history(1, 3, 10, NOW) == []
        assert await store.history(1, 99, 10, NOW) == []
        assert await store.history(2, 0, 10, NOW) == []

    async def _walk(self, store: Store, run_id: int, steps: int) -> list[Transition]:
        run = a_run(run_id)
        await put(store, run)
        written = await log(store, run_id)
        for _ in range(steps - 1):
            change = moving(run)
            run = await do(store, change)
            written.append(change.transition)
        return written

    # ---- due

    async def test_due_tells_deadlines_earliest_first(self, store: Store) -> None:
        """Deadlines come in order of time, and of run id where they are at one instant."""
        await put(store, a_sleeper(4, 20), a_sleeper(1, 30), a_sleeper(3, 10), a_sleeper(2, 20))
        assert await store.due(START, END, 10, NOW) == [
            Deadline(10, 3, 1),
            Deadline(20, 2, 1),
            Deadline(20, 4, 1),
            Deadline(30, 1, 1),
        ]

    @pytest.mark.parametrize(
        ("after", "until", "expected"),
        [
            ((10, 1), (20, 3), [2, 3]),
            ((10, 0), (20, 2), [1, 2]),
            ((10, 1), (20, 1), []),
            ((9, 99), (10, 1), [1]),
            ((20, 2), (20, 4), [3, 4]),
            ((20, 3), (20, 3), []),
            ((20, 4), (30, 4), []),
            ((20, 99), (30, 5), [5]),
            ((30, 5), (20, 1), []),
            ((-1, 0), (EVER, EVER), [1, 2, 3, 4, 5]),
        ],
    )
    async def test_due_looks_after_one_moment_until_another(
        self, store: Store, after: tuple[Micros, int], until: tuple[Micros, int], expected: list[int]
    ) -> None:
        """The first bound is exclusive, the second inclusive, and both are an instant and a run id."""
        await put(store, a_sleeper(1, 10), a_sleeper(2, 20), a_sleeper(3, 20), a_sleeper(4, 20), a_sleeper(5, 30))
        assert [deadline.run_id for deadline in await store.due(after, until, 10, NOW)] == expected

    async def test_due_gives_limited_pages(self, store: Store) -> None:
        """Pages of deadlines, each after the last one's moment, are all deadlines."""
        await put(store, *(a_sleeper(number, 10 * (number % 3)) for number in range(1, 20)))
        everything = await store.due((-1, 0), END, 100, NOW)
        paged: list[Deadline] = []
        while page := await store.due((paged[-1].at, paged[-1].run_id) if paged else (-1, 0), END, 4, NOW):
            assert len(page) <= 4
            paged += page
            assert len(paged) <= len(everything)
        assert paged == everything
        assert len(everything) == 19

    async def test_due_tells_of_waiting_runs_with_a_deadline(self, store: Store) -> None:
        """Whatever a run waits for, it is due at its deadline, and never without one."""
        await put(
            store,
            a_run(1),
            *(an_ended(number, status) for number, status in enumerate(ENDED, start=2)),
            a_sleeper(5, None, waiting_for="blocked"),
            a_sleeper(6, 10, waiting_for="start"),
            a_sleeper(7, 10, waiting_for="retry"),
            a_sleeper(8, 10, waiting_for="sleep"),
            a_sleeper(9, 10, waiting_for="blocked"),
        )
        assert [deadline.run_id for deadline in await store.due(START, END, 10, NOW)] == [6, 7, 8, 9]

    async def test_a_run_that_does_not_wait_has_no_deadline(self, store: Store) -> None:
        """Running and ended runs are neither due nor overdue nor waiting, whatever their columns say."""
        await put(
            store,
            a_run(1, wake_at=10, waiting_for="sleep"),
            *(
                an_ended(number, status, wake_at=10, waiting_for="sleep")
                for number, status in enumerate(ENDED, start=2)
            ),
            a_sleeper(5, 20),
        )
        assert await store.due(START, END, 10, NOW) == [Deadline(20, 5, 1)]
        stats = await store.stats(NOW)
        assert (stats.overdue, stats.oldest_due, stats.waiting) == (1, 20, {"sleep": 1})

    async def test_due_follows_the_run(self, store: Store) -> None:
        """A deadline goes when the run wakes, and is another when it sleeps again."""
        await put(store, a_sleeper(1, 10))
        woken = await do(store, moving(await row(store, 1), kind="wake", status="running", wake_at=None))
        assert await store.due(START, END, 10, NOW) == []

        asleep = await do(store, moving(woken, kind="sleep", status="waiting", waiting_for="sleep", wake_at=50))
        assert await store.due(START, END, 10, NOW) == [Deadline(50, 1, 3)]

        later = await do(store, moving(asleep, kind="sleep", wake_at=60))
        assert await store.due(START, END, 10, NOW) == [Deadline(60, 1, 4)]

        await do(store, moving(later, kind="cancel", status="cancelled", waiting_for=None, wake_at=None))
        assert await store.due(START, END, 10, NOW) == []

    # ---- stats

    async def test_stats_of_an_empty_store(self, store: Store) -> None:
        """Where nothing is, nothing is counted."""
        stats = await store.stats(NOW)
        assert (stats.runs, stats.steps, stats.waiting) == ({}, {}, {})
        assert (stats.overdue, stats.oldest_due) == (0, None)
        assert stats.bytes is None or stats.bytes >= 0

    async def test_stats_count_what_is_there(self, store: Store) -> None:
        """Runs by workflow and status, live runs by step, waiting runs by what for, and what is overdue."""
        await put(
            store,
            a_run(1),
            a_run(2, step="ship"),
            a_sleeper(3, NOW - 5 * SECOND),
            a_sleeper(4, NOW + 5 * SECOND, waiting_for="retry"),
            a_sleeper(5, None, waiting_for="blocked"),
            *(an_ended(number, status) for number, status in enumerate(ENDED, start=6)),
            an_ended(9),
            a_run(10, workflow="refund", step="check"),
            a_sleeper(11, NOW - 7 * SECOND, workflow="refund", step="check"),
            an_ended(12, "failed", workflow="report"),
        )
        stats = await store.stats(NOW)

        assert stats.runs == {
            "order": {"running": 2, "waiting": 3, "completed": 2, "failed": 1, "cancelled": 1},
            "refund": {"running": 1, "waiting": 1},
            "report": {"failed": 1},
        }
        assert stats.steps == {"order": {"pay": 4, "ship": 1}, "refund": {"check": 2}}
        assert stats.waiting == {"sleep": 2, "retry": 1, "blocked": 1}
        assert (stats.overdue, stats.oldest_due) == (2, NOW - 7 * SECOND)
        assert stats.bytes is None or stats.bytes > 0

    async def test_stats_follow_the_runs_and_the_time(self, store: Store) -> None:
        """A run is counted where it stands; what is overdue depends on ``now`` alone, from the deadline itself on."""
        await put(store, a_sleeper(1, NOW + 5 * SECOND), a_sleeper(2, NOW + 9 * SECOND))
        assert (await store.stats(NOW)).oldest_due is None
        assert (await store.stats(NOW + 5 * SECOND - 1)).overdue == 0
        assert (await store.stats(NOW + 5 * SECOND)).overdue == 1
        assert (await store.stats(NOW + 7 * SECOND)).overdue == 1

        gone: dict[str, Any] = {"status": "cancelled", "waiting_for": None, "wake_at": None}
        await do(store, moving(await row(store, 1), kind="cancel", **gone))
        stats = await store.stats(NOW + 10 * SECOND)
        assert stats.runs == {"order": {"waiting": 1, "cancelled": 1}}
        assert stats.steps == {"order": {"pay": 1}}
        assert (stats.overdue, stats.oldest_due) == (1, NOW + 9 * SECOND)

    async def test_questions_see_a_claim(self, store: Store) -> None:
        """What claim changed is what every question tells."""
        await put(store, a_run(1))
        [claimed] = (await claiming(store, 3)).runs
        assert claimed.owner == 3
        assert await store.load([1], NOW) == [claimed]
