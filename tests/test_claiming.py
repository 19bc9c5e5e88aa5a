"""Whose turn it is among the runs that wait in the store."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aioflow.claiming import Claiming
from aioflow.model import Run
from aioflow.testing.conformance_samples import a_run


def created(id_: int) -> int:
    """When a run was created: ids come in blocks, one for each process, so the higher one is not always the later."""
    return (id_ % 1_000) * 10 + id_ // 1_000


def claim(claiming: Claiming, waiting: set[int], limit: int, now: int) -> list[int]:
    """Claim as a store does; returns the ids of the runs."""
    taken = sorted((created(id_), id_) for id_ in waiting if (created(id_), id_) > claiming.after)[:limit]
    waiting.difference_update(id_ for _, id_ in taken)
    claiming.claimed([a_run(id_, created_at=at) for at, id_ in taken], limit, now)
    return [id_ for _, id_ in taken]


def back(_: int, taken: list[int]) -> list[int]:
    """Runs that want a slot again at once."""
    return taken


def new(count: int, _: list[int]) -> list[int]:
    """New runs of four processes, more than are claimed."""
    return [block + 20 + count for block in (0, 1_000, 2_000, 3_000)]


def both(count: int, taken: list[int]) -> list[int]:
    """Some of each."""
    return [*taken, *new(count, taken)]


@pytest.mark.parametrize("limit", [1, 3])
@pytest.mark.parametrize("coming", [back, new, both])
@pytest.mark.parametrize("run", [0, 5, 3_015, 4_039])
def test_each_run_has_its_turn(limit: int, coming: Callable[[int, list[int]], list[int]], run: int) -> None:
    """Whichever runs keep coming, older or newer ones, a run that waits is claimed."""
    claiming, waiting = Claiming(1, lambda: 9), set(range(6, 12))
    for count in range(300):
        if count == 20:
            waiting.add(run)
        taken = claim(claiming, waiting, limit, created(20 + count))
        if run in taken:
            return
        waiting.update(coming(count, taken))
    pytest.fail("it was never claimed")


def test_a_round_is_over_once_nothing_is_left() -> None:
    """There is a backlog until a claim from the first run on has got fewer than it had room for."""
    claiming, waiting = Claiming(1, lambda: 9), {2, 3}
    claiming.claimed([], 0, 99)
    assert claiming.backlog  # not even looked at
    seen = []
    for _ in range(5):
        claiming.backlog = False
        seen.append((claim(claiming, waiting, 1, 99), claiming.backlog))
        waiting.update({1} if 3 in seen[-1][0] else ())
    assert seen == [([2], True), ([3], True), ([], True), ([1], True), ([], True)]
    claiming.backlog = False
    assert claim(claiming, waiting, 1, 99) == []
    assert not claiming.backlog


def test_only_runs_without_owner_are_a_backlog() -> None:
    """A run that another worker owns is no reason to claim."""
    claiming = Claiming(1, lambda: 9)
    run: Run = a_run(1, owner=7)
    claiming.left(run)
    assert not claiming.backlog
    claiming.left(run._replace(owner=None))
    assert claiming.backlog
