"""Whose turn it is among the runs that wait in the store."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aioflow.claiming import Claiming
from aioflow.model import Run
from aioflow.testing.conformance_samples import a_run


def claim(claiming: Claiming, waiting: set[int], limit: int) -> list[int]:
    """Claim as a store does; returns the ids of the runs."""
    taken = sorted(id_ for id_ in waiting if id_ > claiming.after)[:limit]
    waiting.difference_update(taken)
    claiming.claimed(map(a_run, taken), limit)
    return taken


def back(_: int, taken: list[int]) -> list[int]:
    """Runs that want a slot again at once."""
    return taken


def new(count: int, _: list[int]) -> list[int]:
    """New runs, more than are claimed."""
    return [1_000 + 4 * count + more for more in range(4)]


def both(count: int, taken: list[int]) -> list[int]:
    """Some of each."""
    return [*taken, *new(count, taken)]


@pytest.mark.parametrize("limit", [1, 3])
@pytest.mark.parametrize("coming", [back, new, both])
@pytest.mark.parametrize("run", [0, 5, 20])
def test_each_run_has_its_turn(limit: int, coming: Callable[[int, list[int]], list[int]], run: int) -> None:
    """Whichever runs keep coming, lower ones or higher ones, a run that waits is claimed."""
    claiming, waiting = Claiming(1, lambda: 9), set(range(1, 10))
    for count in range(200):
        if count == 20:
            waiting.add(run or 500)
        taken = claim(claiming, waiting, limit)
        if count >= 20 and (run or 500) in taken:
            return
        for id_ in (ids := coming(count, taken)):
            claiming.left(a_run(id_))
        waiting.update(ids)
    pytest.fail("it was never claimed")


def test_a_round_is_over_once_nothing_is_left() -> None:
    """There is a backlog until a claim from the first run on has got fewer than it had room for."""
    claiming, waiting = Claiming(1, lambda: 9), {2, 3}
    claiming.claimed([], 0)
    assert claiming.backlog  # not even looked at
    seen = []
    for _ in range(3):
        claiming.backlog = False
        seen.append((claim(claiming, waiting, 1), claiming.backlog))
        waiting.update({1} if 2 in seen[-1][0] else ())
    assert seen == [([2], True), ([1], True), ([3], True)]
    claiming.backlog = False
    assert claim(claiming, waiting, 1) == []
    while claiming.backlog:
        claiming.backlog = False
        assert claim(claiming, waiting, 1) == []


def test_only_runs_without_owner_are_a_backlog() -> None:
    """A run that another worker owns is no reason to claim."""
    claiming = Claiming(1, lambda: 9)
    run: Run = a_run(1, owner=7)
    claiming.left(run)
    assert not claiming.backlog
    claiming.left(run._replace(owner=None))
    assert claiming.backlog
