"""The heap of deadlines against a simple model of its store: no deadline is lost, and none fires early."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioflow.clock import Micros
from aioflow.model import Deadline
from aioflow.timers import START, Timers

LAST_ID = 1 << 62
HORIZON = 20
LIMIT = 4


def at(*instants: Micros, first: int = 1) -> list[Deadline]:
    """Deadlines at these instants, each of another run."""
    return [Deadline(instant, run_id, 1) for run_id, instant in enumerate(instants, first)]


def filled(stored: Iterable[Deadline] = (), now: Micros = 0, limit: int = LIMIT) -> Timers:
    """Timers after their first refill from a store with these deadlines."""
    timers = Timers(HORIZON, limit)
    refill(timers, stored, now)
    return timers


def due(stored: Iterable[Deadline], old: tuple[Micros, int], new: tuple[Micros, int], limit: int) -> list[Deadline]:
    """The result of the store's ``due``."""
    return sorted(deadline for deadline in stored if old < deadline[:2] <= new)[:limit]


def refill(timers: Timers, stored: Iterable[Deadline], now: Micros) -> None:
    """A complete refill: raise the edge, read, take in."""
    old, new = timers.raise_edge(now)
    timers.refill(due(stored, old, new, timers.limit))


def drain(timers: Timers, now: Micros) -> list[Deadline]:
    """Pop everything that is due, one at a time."""
    found = []
    while popped := timers.pop(now, 1):
        found += popped
    return found


# ---- the edge


def test_nothing_is_taken_in_before_the_first_refill() -> None:
    """Before the first refill nothing is pushed, as the refill will read everything."""
    timers = Timers(HORIZON, LIMIT)
    assert timers.edge == START
    assert timers.needs_refill(0)
    assert timers.next_at() < 0
    assert not timers.push(Deadline(0, 1, 1))
    assert len(timers) == 0
    assert timers.pop(1000, 10) == []


def test_the_edge_is_the_horizon_ahead() -> None:
    """The first refill asks for everything up to the horizon, up to the largest run id."""
    timers = Timers(HORIZON, LIMIT)
    assert timers.raise_edge(100) == (START, (120, LAST_ID))
    timers.refill([])
    assert timers.edge == (120, LAST_ID)
    assert timers.raise_edge(110) == ((120, LAST_ID), (130, LAST_ID))


def test_the_edge_never_goes_back_with_the_clock() -> None:
    """If the clock was set back, a refill leaves the edge where it is, and asks for nothing."""
    timers = filled(now=100)
    assert timers.raise_edge(50) == ((120, LAST_ID), (120, LAST_ID))


def test_what_is_within_the_edge_is_taken_in() -> None:
    """A deadline at the edge is taken in, and one just beyond it is not."""
    timers = filled(now=0)
    assert timers.push(Deadline(20, 1, 1))
    assert not timers.push(Deadline(21, 2, 1))
    assert len(timers) == 1


def test_an_edge_within_an_instant_parts_it_by_run() -> None:
    """If the edge lies among deadlines of one instant, those up to the edge's run id are held."""
    timers = filled([Deadline(5, run_id, 1) for run_id in range(1, 10)])
    assert timers.edge == (5, 4)
    assert not timers.push(Deadline(5, 10, 1))
    timers.push(Deadline(5, 2, 1))
    assert [deadline.run_id for deadline in drain(timers, 5)] == [1, 2, 3, 4]
    assert timers.needs_refill(5)
    assert timers.raise_edge(5) == ((5, 4), (25, LAST_ID))


def test_push_tells_whether_it_is_the_earliest() -> None:
    """``push`` returns whether the deadline is now the earliest."""
    timers = filled()
    found = [timers.push(deadline) for deadline in at(10, 12, 8, 9, 8, 1)]
    assert found == [True, False, True, False, False, True]


def test_a_deadline_of_the_past_is_taken_in() -> None:
    """A deadline in the past is due at once."""
    timers = filled(now=1000)
    assert timers.push(Deadline(3, 1, 1))
    assert timers.pop(1000, 10) == [Deadline(3, 1, 1)]


# ---- popping


def test_pop_gives_what_is_due_in_order() -> None:
    """Deadlines are popped earliest first, by run id if they are equal, and none before it is due."""
    timers = filled()
    for deadline in at(7, 3, 9, 3, 7, 11):
        timers.push(deadline)
    assert timers.pop(2, 10) == []
    assert [deadline.run_id for deadline in timers.pop(7, 10)] == [2, 4, 1, 5]
    assert [deadline.run_id for deadline in timers.pop(10, 10)] == [3]
    assert len(timers) == 1


def test_pop_gives_no_more_than_it_is_asked_for() -> None:
    """``pop`` gives at most as many as asked for, and leaves the rest in order."""
    timers = filled()
    for deadline in at(5, 4, 3, 2, 1):
        timers.push(deadline)
    assert timers.pop(10, 0) == []
    assert [deadline.at for deadline in timers.pop(10, 2)] == [1, 2]
    assert [deadline.at for deadline in timers.pop(10, 9)] == [3, 4, 5]


def test_what_comes_twice_is_given_once() -> None:
    """A deadline that was pushed and read is popped once, even if ``pop`` may give only one."""
    timers = filled()
    [deadline] = at(5)
    for _ in range(3):
        timers.push(deadline)
    timers.refill([deadline, deadline])
    assert timers.pop(5, 1) == [deadline]
    assert timers.pop(5, 1) == []
    assert len(timers) == 0


def test_another_wait_of_the_same_run_is_another_deadline() -> None:
    """Two deadlines of one run at the same instant are told apart by seq."""
    timers = filled()
    timers.push(Deadline(5, 1, 2))
    timers.push(Deadline(5, 1, 4))
    assert timers.pop(5, 10) == [Deadline(5, 1, 2), Deadline(5, 1, 4)]


def test_a_popped_deadline_can_be_pushed_again() -> None:
    """A popped deadline can be pushed again, and is then due again."""
    timers = filled()
    [deadline] = at(5)
    timers.push(deadline)
    assert timers.pop(5, 1) == [deadline]
    assert timers.push(deadline)
    assert timers.pop(5, 1) == [deadline]


# ---- dropping


def test_what_is_dropped_is_not_given() -> None:
    """A dropped deadline is not popped, and does not count against the number that ``pop`` may give."""
    timers = filled()
    one, two, three = at(1, 2, 3)
    for deadline in (one, two, three):
        timers.push(deadline)
    timers.drop(one)
    timers.drop(two)
    assert len(timers) == 1
    assert timers.pop(10, 1) == [three]
    assert timers.pop(10, 1) == []


def test_what_is_dropped_and_comes_twice_is_not_given() -> None:
    """Dropping a deadline drops all its copies."""
    timers = filled()
    [deadline] = at(5)
    timers.push(deadline)
    timers.push(deadline)
    timers.drop(deadline)
    assert timers.pop(5, 10) == []


def test_what_is_dropped_and_taken_in_again_is_given() -> None:
    """A deadline that is pushed again after it was dropped is popped."""
    timers = filled()
    [deadline] = at(5)
    timers.push(deadline)
    timers.drop(deadline)
    timers.push(deadline)
    assert timers.pop(5, 10) == [deadline]


def test_what_is_dropped_before_it_is_read_is_not_given() -> None:
    """A deadline dropped while a refill reads is not taken in with the refill's result."""
    timers = Timers(HORIZON, LIMIT)
    [deadline] = at(5)
    timers.raise_edge(0)
    timers.drop(deadline)
    timers.refill([deadline])
    assert timers.pop(5, 10) == []


def test_what_lies_beyond_the_edge_need_not_be_dropped() -> None:
    """A drop of a deadline beyond the edge is not remembered."""
    timers = filled()
    timers.drop(Deadline(21, 1, 1))
    assert len(timers) == 0
    refill(timers, [Deadline(21, 1, 1)], 10)
    assert timers.pop(21, 1) == [Deadline(21, 1, 1)]


def test_a_drop_of_what_is_not_held_does_no_harm() -> None:
    """Dropping a deadline twice, or after it was popped, does not affect the others."""
    timers = filled()
    one, two = at(1, 2)
    timers.push(one)
    timers.push(two)
    assert timers.pop(1, 1) == [one]
    timers.drop(one)
    timers.drop(one)
    assert len(timers) >= 0
    assert timers.pop(2, 10) == [two]


def test_dropped_deadlines_free_their_memory() -> None:
    """A heap of which most was dropped shrinks, and still gives the rest."""
    timers = filled(limit=100_000)
    deadlines = at(*range(5, 20), *[20] * 4_000)
    for deadline in deadlines:
        timers.push(deadline)
    for deadline in deadlines[:-100]:
        timers.drop(deadline)
    assert len(timers) == 100
    assert len(timers._heap) < 2_200
    assert drain(timers, 20) == deadlines[-100:]


def test_dropping_what_is_not_there_takes_no_room() -> None:
    """Drops of deadlines that are not held take up bounded memory."""
    timers = filled(limit=100_000)
    for deadline in at(*[5] * 3_000):
        timers.drop(deadline)
    assert len(timers._stale) <= 1_000
    assert len(timers) == 0


# ---- when to look again


def test_next_at_is_the_earliest_deadline() -> None:
    """``next_at`` is the earliest deadline, if it comes before the next refill."""
    timers = filled()
    for deadline in at(7, 3, 9):
        timers.push(deadline)
    assert timers.next_at() == 3
    timers.pop(3, 1)
    assert timers.next_at() == 7


def test_next_at_is_the_next_refill() -> None:
    """Without an earlier deadline, ``next_at`` is half a horizon ahead, when a refill is due."""
    timers = filled(now=100)
    timers.push(Deadline(115, 1, 1))
    assert timers.next_at() == 110
    assert not timers.needs_refill(109)
    assert timers.needs_refill(110)


def test_next_at_is_the_edge_that_was_pulled_in() -> None:
    """If the edge was pulled in, ``next_at`` is at the latest the edge, where a refill is due."""
    timers = filled(at(*range(5, 15)))
    assert timers.edge == (8, 4)
    assert [timers.pop(instant, 1)[0].at for instant in (5, 6, 7, 8)] == [5, 6, 7, 8]
    assert timers.next_at() == 8
    assert timers.needs_refill(8)


@pytest.mark.parametrize(("held", "needs"), [(4, False), (3, False), (2, True), (1, True), (0, True)])
def test_a_full_heap_is_refilled_when_half_is_gone(held: int, needs: bool) -> None:
    """A heap whose edge was pulled in needs a refill once half of it is gone."""
    timers = filled(at(5, 6, 7, 8, 9, 10))
    timers.pop(8, 4 - held)
    assert len(timers) == held
    assert timers.needs_refill(4) is needs


# ---- refill


def test_a_wait_committed_during_a_refill_is_held() -> None:
    """A deadline committed while a refill reads is held and popped once, whether the store's answer has it or not."""
    for answer_has_it in (True, False):
        timers = Timers(HORIZON, LIMIT)
        timers.raise_edge(0)
        [deadline] = at(7)
        assert timers.push(deadline)
        timers.refill([deadline] if answer_has_it else [])
        assert timers.pop(7, 10) == [deadline]
        assert timers.pop(7, 10) == []


def test_a_refill_in_the_wrong_order_loses_a_wait() -> None:
    """A refill that reads before it raises the edge loses what is committed in between."""
    timers = Timers(HORIZON, LIMIT)
    answer = due([], START, (HORIZON, LAST_ID), LIMIT)
    [deadline] = at(7)
    assert not timers.push(deadline)  # the edge is still the old one
    timers.raise_edge(0)
    timers.refill(answer)
    assert timers.pop(1000, 10) == []


def test_a_refill_after_a_failed_one_reads_from_the_old_edge() -> None:
    """After a failed read, the next refill starts from the old edge at once, and what was pushed is still held."""
    timers = filled(now=0)
    old, _ = timers.raise_edge(12)
    stored = at(25, 30)
    timers.push(stored[0])
    timers.restore_edge(old)
    assert timers.needs_refill(12)
    assert timers.raise_edge(12) == (old, (32, LAST_ID))
    timers.refill(stored)
    assert timers.pop(40, 10) == stored


def test_more_than_the_heap_takes_is_read_in_parts() -> None:
    """More deadlines than the limit are read in several refills, in order, and few are held at once."""
    stored = at(*[instant // 3 for instant in range(60)])
    timers = Timers(HORIZON, LIMIT)
    found = []
    for _ in stored:
        if timers.needs_refill(1000):
            refill(timers, stored, 1000)
        assert len(timers) <= 2 * LIMIT
        found += timers.pop(1000, 1)
    assert found == stored


def test_a_heap_that_nobody_empties_does_not_grow() -> None:
    """With more due than are popped, further refills do not let the heap grow."""
    stored = at(*range(1000))
    timers = Timers(HORIZON, LIMIT)
    for _ in range(20):
        if timers.needs_refill(2000):
            refill(timers, stored, 2000)
    assert len(timers) <= 2 * LIMIT
    assert [deadline.at for deadline in drain(timers, 2000)[:LIMIT]] == [0, 1, 2, 3]


def test_too_many_pushes_pull_the_edge_in() -> None:
    """Once more than twice the limit are pushed, the nearest are kept, and the edge is pulled in."""
    timers = filled()
    for deadline in at(19, 1, 18, 2, 17, 3, 16, 4):
        timers.push(deadline)
    assert timers.edge == (HORIZON, LAST_ID)
    timers.push(Deadline(15, 9, 1))
    assert timers.edge == (4, 8)
    assert len(timers) == LIMIT
    assert not timers.push(Deadline(5, 10, 1))
    assert timers.push(Deadline(0, 11, 1))


def test_a_heap_whose_edge_was_pulled_in_is_filled_up_again() -> None:
    """After pushes have pulled the edge in, a refill is needed once half of the kept deadlines is gone."""
    timers = filled()
    deadlines = at(*range(12, 21))
    for deadline in deadlines:
        timers.push(deadline)
    assert timers.edge == (15, 4)
    assert not timers.needs_refill(1)
    for deadline in deadlines[:2]:
        timers.drop(deadline)
    assert timers.needs_refill(1)


def test_a_failed_refill_of_a_full_heap_is_due_again() -> None:
    """If the refill of a heap whose edge was pulled in fails, it is needed again at once."""
    stored = at(15, 16, 17, 18, 19, 20)
    timers = filled(stored)
    for deadline in stored[:2]:
        timers.drop(deadline)
    assert timers.needs_refill(1)
    old, _ = timers.raise_edge(1)
    timers.restore_edge(old)
    assert timers.needs_refill(1)


def test_copies_and_dropped_ones_do_not_pull_the_edge_in() -> None:
    """Copies and dropped deadlines are removed first, and the edge is pulled in only if that does not suffice."""
    timers = filled()
    [one, two] = at(1, 2)
    timers.push(two)
    timers.drop(two)
    for _ in range(2 * LIMIT):
        timers.push(one)
    assert timers.edge == (HORIZON, LAST_ID)
    assert len(timers) == 1
    assert timers.pop(20, 10) == [one]


# ---- an edge that is pulled in while a refill is under way


def everything(timers: Timers, stored: Iterable[Deadline], now: Micros) -> list[Deadline]:
    """All deadlines that the timers give at this time, with refills whenever they need one."""
    found: set[Deadline] = set()
    for _ in range(100):
        if timers.needs_refill(now):
            refill(timers, stored, now)
        found.update(timers.pop(now, 3))
    return sorted(found)


NEAR = at(2, 4, 6, 8)
CROWD = at(10, 12, 14, 16, 18, first=5)


def crowded() -> tuple[Timers, tuple[Micros, int]]:
    """Timers whose edge was pulled in by deadlines committed while a refill reads, and the old edge."""
    timers = filled(NEAR)
    refill(timers, [], 0)  # up to the horizon
    old, new = timers.raise_edge(12)
    assert (old, new) == ((20, LAST_ID), (32, LAST_ID))
    for deadline in CROWD:
        timers.push(deadline)
    assert timers.edge == (8, 4)
    return timers, old


def test_a_full_answer_does_not_push_the_edge_out_again() -> None:
    """Deadlines left to the store during a refill are read later, even if the refill's answer is full."""
    timers, _ = crowded()
    answer = at(21, 22, 23, 24, first=10)
    timers.refill(answer)
    assert everything(timers, [*NEAR, *CROWD, *answer], 1000) == [*NEAR, *CROWD, *answer]


def test_a_failed_read_does_not_push_the_edge_out_again() -> None:
    """Deadlines left to the store during a refill that failed are read later."""
    timers, old = crowded()
    timers.restore_edge(old)
    assert everything(timers, [*NEAR, *CROWD], 1000) == [*NEAR, *CROWD]


def test_what_lies_beyond_the_edge_does_not_push_it_out() -> None:
    """A deadline pushed during a refill, beyond the end of its answer, does not hide those in between."""
    stored = at(1, 2, 3, 4, 5, 6, 7)
    timers = Timers(HORIZON, LIMIT)
    old, new = timers.raise_edge(0)
    answer = due(stored, old, new, LIMIT)
    later = at(*range(11, 19), first=11)
    for deadline in later:
        timers.push(deadline)
    timers.refill(answer)
    assert timers.edge == (4, 4)
    assert timers.pop(3, 3) == stored[:3]
    again = Deadline(4, 1, 3)
    timers.push(again)
    assert everything(timers, [*stored[3:], *later, again], 1000) == [again, *stored[3:], *later]


def test_what_a_failed_read_left_behind_does_not_push_the_edge_out() -> None:
    """Deadlines pushed during a failed refill do not hide those before them."""
    timers = filled()
    unread = at(21, 22, 23, 24)
    old, _ = timers.raise_edge(12)
    pushed = at(*range(25, 33), first=5)
    for deadline in pushed:
        timers.push(deadline)
    timers.restore_edge(old)
    near = Deadline(19, 13, 1)
    timers.push(near)
    assert everything(timers, [near, *unread, *pushed], 1000) == [near, *unread, *pushed]


# ---- every moment of a refill


class World:
    """A store, timers that are filled from it, and time; fires what is due, as the scheduler does.

    A commit is in the store first and is pushed later, in order, and anything may happen in between.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.now = 0
        self.timers = Timers(HORIZON, limit)
        self.stored: set[Deadline] = set()
        self.heard: deque[tuple[str, Deadline]] = deque()
        self.fired: list[Deadline] = []
        self.committed = 0
        self.refilling: tuple[tuple[Micros, int], tuple[Micros, int]] | None = None
        self.answer: list[Deadline] | None = None

    # what can happen at any time

    def commit(self, *delays: Micros) -> None:
        for delay in delays:
            self.committed += 1
            deadline = Deadline(self.now + delay, self.committed, 1)
            self.stored.add(deadline)
            self.heard.append(("push", deadline))

    def cancel(self, which: int) -> None:
        if self.stored:
            deadline = sorted(self.stored)[which % len(self.stored)]
            self.stored.remove(deadline)
            self.heard.append(("drop", deadline))

    def hear(self, count: int) -> None:
        for _ in range(min(count, len(self.heard))):
            what, deadline = self.heard.popleft()
            if what == "drop":
                self.timers.drop(deadline)
            else:
                first = self.timers.push(deadline)
                assert not first or self.timers.next_at() <= deadline.at

    def scan(self, ahead: Micros) -> None:
        """Push the waits of other processes, as the worker's scan does."""
        for deadline in due(self.stored, START, (self.now + ahead, LAST_ID), LIMIT):
            self.timers.push(deadline)

    def advance(self, time: Micros) -> None:
        self.now += time

    # the steps of a refill, in the right order, and firing between refills

    def turn(self, room: int) -> None:
        if self.refilling is None and self.timers.needs_refill(self.now):
            self.refilling = self.timers.raise_edge(self.now)
        elif self.refilling is not None and self.answer is None:
            self.answer = due(self.stored, *self.refilling, self.timers.limit)
        elif self.refilling is not None and self.answer is not None:
            self.timers.refill(self.answer)
            self.refilling = self.answer = None
        else:
            self.fire(room)

    def break_off(self) -> None:
        if self.refilling is not None:
            self.timers.restore_edge(self.refilling[0])
            self.refilling = self.answer = None

    def fire(self, room: int, works: bool = True) -> bool:
        popped = self.timers.pop(self.now, room)
        assert len(popped) <= room
        assert len(set(popped)) == len(popped)
        assert popped == sorted(popped)
        for deadline in popped:
            assert deadline.at <= self.now, "early"
            if not works:
                self.timers.push(deadline)
            elif deadline in self.stored:
                self.stored.remove(deadline)
                self.fired.append(deadline)
        return bool(popped)

    # rest

    def settle(self) -> None:
        """Push everything and turn until there is nothing to do; then nothing that is due may be left."""
        self.hear(len(self.heard))
        for _ in range(300):
            self.turn(room=3)
            if self.refilling is None and not self.timers.needs_refill(self.now) and self.timers.next_at() > self.now:
                break
        else:
            raise AssertionError("it never comes to rest")
        late = [deadline for deadline in self.stored if deadline.at <= self.now]
        assert not late, "lost"
        if self.stored:
            assert self.timers.next_at() <= min(self.stored).at, "would oversleep"

    def finish(self) -> None:
        """Advance time until everything has fired."""
        self.settle()
        for _ in range(300):
            if not self.stored:
                break
            self.advance(self.timers.next_at() - self.now)  # never beyond next_at
            self.settle()
        assert not self.stored
        assert len(set(self.fired)) == len(self.fired)


DELAYS = st.integers(0, 3 * HORIZON)
MOMENTS = st.one_of(
    st.tuples(st.just("commit"), DELAYS, DELAYS, DELAYS),
    st.tuples(st.just("commit"), *[st.integers(0, HORIZON)] * 6),
    st.tuples(st.just("commit"), DELAYS),
    st.tuples(st.just("hear"), st.integers(1, 20)),
    st.tuples(st.just("hear"), st.just(1000)),
    st.tuples(st.just("turn"), st.integers(0, 5)),
    st.tuples(st.just("turn"), st.integers(0, 5)),
    st.tuples(st.just("turn"), st.integers(0, 5)),
    st.tuples(st.just("advance"), st.integers(0, HORIZON)),
    st.tuples(st.just("cancel"), st.integers(0, 1000)),
    st.tuples(st.just("scan"), st.integers(-5, 5)),
    st.tuples(st.just("break_off")),
    st.tuples(st.just("settle")),
)


@settings(max_examples=400)
@given(st.lists(st.lists(MOMENTS, max_size=15), max_size=8), st.sampled_from([1, 2, LIMIT, 1000]))
def test_nothing_is_lost_and_nothing_early(days: list[list[tuple[Any, ...]]], limit: int) -> None:
    """Whatever is committed, cancelled or pushed at any point of a refill, each deadline fires once and in time."""
    world = World(limit)
    for moments in days:
        for what, *details in moments:
            getattr(world, what)(*details)
    world.finish()
