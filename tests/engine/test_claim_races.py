"""Races between a worker and what the store tells it of its runs: claims, commits and leases that are late."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from aioflow import Engine, get_run, goto, sleep, wait
from aioflow.changes import Change, Move, Result
from aioflow.clock import SECOND, Micros
from aioflow.commands import Command
from aioflow.errors import StoreUnavailable
from aioflow.store import Claim
from aioflow_memory import MemoryStore
from tests.engine.conftest import ShiftedClock
from tests.flows import PATIENCE, done, ended, flow
from tests.support import wait_until


class SlowClaims(MemoryStore):
    """A store whose next claim, when ``slow`` is set, waits before it looks and before it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = False
        self.claims = 0
        self.answers: list[list[int]] = []
        self.asked, self.look, self.looked, self.answer = (asyncio.Event() for _ in range(4))

    async def claim(self, worker: int, **arguments: Any) -> Claim:
        self.claims += 1
        if not self.slow or arguments["held"] is None:
            return await super().claim(worker, **arguments)
        self.slow = False
        self.asked.set()
        await self.look.wait()
        claim = await super().claim(worker, **arguments)
        self.answers.append([run.id for run in claim.runs])
        self.looked.set()
        await self.answer.wait()
        return claim


class LosingRuns(MemoryStore):
    """A store that loses the reply to a goto, and by then has given the run to another worker."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[int] = []
        self.again: list[str] = []

    async def apply(self, changes: Sequence[Change], now: Micros) -> list[Result]:
        results = await super().apply(changes, now)
        if not any(isinstance(change, Move) and change.transition.kind == "goto" for change in changes):
            return results
        if self.taken:
            self.again += [
                result.outcome for change, result in zip(changes, results, strict=True) if isinstance(change, Move)
            ]
            return results
        later = now + 3600 * SECOND
        known = [(run.workflow, run.version) for run in await self.load(range(10), now)]
        claim = await super().claim(99, lease=SECOND, limit=9, known=known, held=None, now=later)
        self.taken = [run.id for run in claim.runs]
        raise StoreUnavailable(self.name, "the connection was lost")


class LosingLeases(MemoryStore):
    """A store that makes ``engine`` lose its lease, once, when a transition of this kind is being committed."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.engine: Engine | None = None
        self.lost, self.go_on = asyncio.Event(), asyncio.Event()

    def is_lost_by(self, changes: Sequence[Change]) -> bool:
        """Whether the lease was lost just now, as these changes were being committed."""
        concerns = any(isinstance(change, Move) and change.transition.kind == self.kind for change in changes)
        if not concerns or self.engine is None or self.lost.is_set():
            return False
        assert self.engine._worker is not None
        self.engine._worker._lose("its lease was over")
        self.lost.set()
        return True

    async def apply(self, changes: Sequence[Change], now: Micros) -> list[Result]:
        self.is_lost_by(changes)
        return await super().apply(changes, now)


class LateCommits(LosingLeases):
    """Then commits the transition only when the test lets it."""

    async def apply(self, changes: Sequence[Change], now: Micros) -> list[Result]:
        if self.is_lost_by(changes):
            await self.go_on.wait()
        return await super().apply(changes, now)


class LateAnswers(LosingLeases):
    """Then commits the transition at once, but answers only when the test lets it."""

    async def apply(self, changes: Sequence[Change], now: Micros) -> list[Result]:
        lost = self.is_lost_by(changes)
        results = await super().apply(changes, now)
        if lost:
            await self.go_on.wait()
        return results


class TakenOver(LateAnswers):
    """And another worker has claimed the run by then."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.taken: list[int] = []

    async def claim(self, worker: int, **arguments: Any) -> Claim:
        if self.lost.is_set() and not self.taken:
            later = {"lease": SECOND, "limit": 9, "held": None, "now": arguments["now"] + 3600 * SECOND}
            self.taken = [run.id for run in (await super().claim(99, **{**arguments, **later})).runs]
        return await super().claim(worker, **arguments)


class LateAndTaken(LosingLeases):
    """Then commits late, and another worker has the run by the answer; later claims fail."""

    async def claim(self, worker: int, **arguments: Any) -> Claim:
        if self.go_on.is_set():
            raise StoreUnavailable(self.name, "the connection was lost")
        self.asked = arguments
        return await super().claim(worker, **arguments)

    async def apply(self, changes: Sequence[Change], now: Micros) -> list[Result]:
        if not self.is_lost_by(changes):
            return await super().apply(changes, now)
        await self.go_on.wait()
        results = await super().apply(changes, now)
        later = {"lease": SECOND, "limit": 9, "held": None, "now": now + 3600 * SECOND}
        taken = {run.id: run for run in (await super().claim(99, **{**self.asked, **later})).runs}
        return [result._replace(run=taken.get(result.run.id) if result.run else None) for result in results]


class Calls(BaseModel):
    """A Context without fields."""


async def test_a_claim_that_comes_late_does_not_repeat_a_step() -> None:
    """A run that started and parked between a claim's read and its answer is not started again by that claim."""
    calls: list[object] = []
    go_on = asyncio.Event()

    async def first(self: object) -> Command:
        calls.append(self)
        await go_on.wait()
        return sleep(timedelta(hours=1))

    store = SlowClaims()
    async with Engine(store) as engine:
        store.slow = True
        await asyncio.wait_for(store.asked.wait(), PATIENCE)
        run = await engine.start(flow(Calls, first))
        await wait_until(lambda: calls)
        store.look.set()
        await asyncio.wait_for(store.looked.wait(), PATIENCE)
        go_on.set()
        await run.wait(PATIENCE, until="parked")
        claims = store.claims
        store.answer.set()
        await wait_until(lambda: store.claims > claims)
        assert store.answers == [[run.id]]
        assert len(calls) == 1


async def test_a_run_that_was_taken_over_is_not_gone_on_with() -> None:
    """If the reply to a commit is lost and another worker has the run by then, the first does not go on with it."""
    calls: list[object] = []

    async def first(self: object) -> Command:
        return goto("second")

    async def second(self: object) -> Command:
        calls.append(self)
        return done(self)

    store = LosingRuns()
    async with Engine(store) as engine:
        run = await engine.start(flow(Calls, first, second))
        await wait_until(lambda: store.again)
        await ended(engine, flow(Calls, done))  # by now it would have gone on
    assert (store.taken, store.again) == ([run.id], ["applied"])
    assert not calls
    await store.open(0)
    [row] = await store.load([run.id], 0)
    assert (row.seq, row.step, row.owner) == (2, "second", 99)


async def test_a_worker_without_its_lease_begins_no_step() -> None:
    """A worker that loses its lease during a commit goes on with the run only once it has a lease again."""
    working: list[bool] = []

    async def first(self: object) -> Command:
        return goto("second")

    async def second(self: object) -> Command:
        assert store.engine is not None
        assert store.engine._worker is not None
        working.append(store.engine._worker.working)
        return done(self)

    store = LosingLeases("goto")
    async with Engine(store) as engine:
        store.engine = engine
        run = await engine.start(flow(Calls, first, second))
        assert (await run.wait(PATIENCE)).status == "completed"
    assert store.lost.is_set()
    assert working == [True]


async def test_a_claim_that_comes_late_gets_no_slot_that_was_promised_since() -> None:
    """With one slot, a claimed run and one started before the claim was answered execute one after the other."""
    inside: list[object] = []
    most: list[int] = []
    gate = asyncio.Event()

    async def first(self: object) -> Command:
        inside.append(self)
        most.append(len(inside))
        await gate.wait()
        inside.remove(self)
        return done(self)

    store = SlowClaims()
    order = flow(Calls, first)
    async with Engine(store, max_running=1) as engine, Engine(store, worker=False) as client:
        store.slow = True
        await asyncio.wait_for(store.asked.wait(), PATIENCE)
        claimed = await client.start(order)
        store.look.set()
        await asyncio.wait_for(store.looked.wait(), PATIENCE)
        started = await engine.start(order)
        await wait_until(lambda: inside)
        claims = store.claims
        store.answer.set()
        await wait_until(lambda: store.claims > claims)
        assert store.answers == [[claimed.id]]
        assert (await engine.stats()).running_here == 1
        gate.set()
        for run in (claimed, started):
            assert (await run.wait(PATIENCE)).status == "completed"
    assert most == [1, 1]


async def test_a_claimed_run_without_a_slot_is_given_back_at_close() -> None:
    """A claimed run that has no slot when the engine closes is given back, and the next engine runs it."""
    begun: list[int] = []
    gate = asyncio.Event()

    async def first(self: object) -> Command:
        begun.append(get_run().id)
        await gate.wait()
        return done(self)

    store = SlowClaims()
    order = flow(Calls, first)
    async with Engine(store, worker=False) as client:
        async with Engine(store, max_running=1) as engine:
            store.slow = True
            await asyncio.wait_for(store.asked.wait(), PATIENCE)
            claimed = await client.start(order)
            store.look.set()
            await asyncio.wait_for(store.looked.wait(), PATIENCE)
            started = await engine.start(order)
            await wait_until(lambda: begun)
            claims = store.claims
            store.answer.set()
            await wait_until(lambda: store.claims > claims)
            asyncio.get_running_loop().call_soon(gate.set)
        assert begun == [started.id]
        await claimed.refresh()
        assert claimed.row.owner is None
        async with Engine(store):
            assert (await client.wait(claimed.id, PATIENCE)).status == "completed"


async def test_a_worker_that_opens_has_a_whole_lease(clock: ShiftedClock) -> None:
    """A worker that has just opened holds its whole lease, even if the store took most of it to answer."""
    begun = asyncio.Event()

    async def first(self: object) -> Command:
        begun.set()
        return await asyncio.Future()

    store = SlowClaims()
    store.slow = True
    lease = 30 * SECOND

    async def answer_late() -> None:
        store.look.set()
        await store.looked.wait()
        clock.shift(timedelta(microseconds=lease * 9 // 10))
        store.answer.set()

    late = asyncio.ensure_future(answer_late())
    shortly = timedelta(0)
    async with Engine(store, clock=clock, lease=timedelta(microseconds=lease), shutdown_timeout=shortly) as engine:
        await late
        run = await engine.start(flow(Calls, first))
        await asyncio.wait_for(begun.wait(), PATIENCE)
        known = [(run.row.workflow, run.row.version)]
        later = clock.micros() + lease // 2
        claim = await store.claim(99, lease=lease, limit=9, known=known, held=None, now=later)
        assert claim.runs == []


async def test_a_step_whose_run_has_gone_on_is_stopped() -> None:
    """A step begun a second time, as its transition was not known to be committed, is stopped once that is known."""
    calls: list[str] = []

    async def first(self: object) -> Command:
        calls.append("begun")
        if len(calls) == 1:
            return done(self)
        if len(calls) == 2:
            return sleep(timedelta(hours=1))
        try:
            return await asyncio.Future()
        except asyncio.CancelledError:
            calls.append("stopped")
            raise

    store, order = LateCommits("sleep"), flow(Calls, first)
    async with Engine(store) as engine:
        await ended(engine, order)  # so that nothing else is committed when it loses its lease
        store.engine = engine
        run = await engine.start(order)
        await wait_until(lambda: len(calls) == 3)
        store.go_on.set()
        await run.wait(PATIENCE, until="parked")
        await wait_until(lambda: len(calls) == 4)
        await run.refresh()
        assert run.status == "waiting"
    assert calls == ["begun", "begun", "begun", "stopped"]


def in_vain(calls: list[str]) -> Callable[[Any], Any]:
    """A step that completes the first run, sends the second one on, and blocks the third time, until it is stopped."""

    async def first(self: object) -> Command:
        calls.append("first")
        if len(calls) == 1:
            return done(self)
        if len(calls) == 2:
            return goto("second")
        try:
            return await asyncio.Future()
        finally:
            calls.append("stopped")

    return first


async def test_a_run_that_was_begun_anew_goes_on_from_where_it_has_come_to() -> None:
    """A step begun a second time is stopped once its goto is known, and the run goes on with the next step, once."""
    calls: list[str] = []

    async def second(self: object) -> Command:
        calls.append("second")
        return done(self)

    store, order = LateCommits("goto"), flow(Calls, in_vain(calls), second)
    async with Engine(store) as engine:
        await ended(engine, order)
        store.engine = engine
        run = await engine.start(order)
        await wait_until(lambda: len(calls) == 3)
        store.go_on.set()
        await run.wait(PATIENCE)
        assert [each.kind for each in await engine.history(run.id)] == ["start", "goto", "complete"]
    assert sorted(calls) == ["first", "first", "first", "second", "stopped"]


async def test_a_step_whose_run_has_gone_on_elsewhere_is_stopped() -> None:
    """A step begun a second time is also stopped if the run is by then at its next step in another worker."""
    calls: list[str] = []

    async def second(self: object) -> Command:
        raise AssertionError("it is another's")

    store, order = LateAndTaken("goto"), flow(Calls, in_vain(calls), second)
    async with Engine(store) as engine:
        await ended(engine, order)
        store.engine = engine
        await engine.start(order)
        await wait_until(lambda: len(calls) == 3)
        store.go_on.set()
        await wait_until(lambda: len(calls) == 4)
    assert calls == ["first", "first", "first", "stopped"]


async def test_an_answer_that_outlives_the_lease_begins_nothing() -> None:
    """If a worker has lost its lease before a goto's answer comes, it does not begin the next step."""
    calls: list[str] = []

    async def first(self: object) -> Command:
        calls.append("first")
        return done(self) if len(calls) == 1 else goto("second")

    async def second(self: object) -> Command:
        calls.append("second")
        return done(self)

    store, order = TakenOver("goto"), flow(Calls, first, second)
    async with Engine(store) as engine:
        await ended(engine, order)  # so that nothing else is committed meanwhile
        store.engine = engine
        run = await engine.start(order)
        await wait_until(lambda: store.taken and engine._worker is not None and engine._worker.working)
        store.go_on.set()
        await engine.signal("go", run_id=run.id)  # which is committed after the goto is known
        assert (await engine.stats()).running_here == 0
    assert store.taken == [run.id]
    assert calls == ["first", "first"]


async def test_old_news_of_a_run_stops_no_step() -> None:
    """A late answer about a wait does not stop the step to which that wait has led in the meantime."""
    calls: list[str] = []
    gate = asyncio.Event()

    async def first(self: object) -> Command:
        calls.append("first")
        return done(self) if len(calls) == 1 else wait.for_signal("go", then="second")

    async def second(self: object) -> Command:
        calls.append("second")
        await gate.wait()
        return done(self)

    store, order = LateAnswers("wait"), flow(Calls, first, second)
    async with Engine(store) as engine, Engine(store, worker=False) as client:
        store.engine = engine
        await ended(engine, order)  # so that nothing else is committed meanwhile
        run = await engine.start(order)
        await asyncio.wait_for(store.lost.wait(), PATIENCE)
        await client.signal("go", run_id=run.id)
        await wait_until(lambda: calls[-1] == "second")
        store.go_on.set()
        await engine.signal("go", run_id=run.id)  # which is committed after the wait is known
        assert (await engine.stats()).running_here == 1
        gate.set()
        assert (await run.wait(PATIENCE)).status == "completed"
    assert calls == ["first", "first", "second"]
