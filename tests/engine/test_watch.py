"""Watching runs: each transition once, in order, as it is committed, in the engine that executes and in others."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import aclosing
from datetime import timedelta
from typing import Any, cast

import pytest
from pydantic import BaseModel

from aioflow import (
    Engine,
    StartOptions,
    Transition,
    complete,
    errors,
    fail,
    get_context,
    goto,
    sleep,
    step,
    wait,
    workflow,
)
from aioflow.clock import Micros
from aioflow.commands import Command
from aioflow.discovery import find_store
from aioflow.model import Run
from aioflow.store import Store
from tests.engine.conftest import MakeEngine, ShiftedClock, run_of
from tests.support import wait_until

HOUR = timedelta(hours=1)


@workflow("watch-loop", max_transitions=10_000)
class Loop:
    """Makes as many transitions as its Context says, and then completes or fails."""

    class Context(BaseModel):
        turns: int = 0
        ends: bool = True

    @step(start=True)
    async def turn(self) -> Command:
        context = get_context(self.Context)
        context.turns -= 1
        if context.turns > 0:
            return goto(self.turn)
        return complete() if context.ends else fail("as it was told")


@workflow("watch-patient")
class Patient:
    """Waits for a signal, sleeps and completes."""

    class Context(BaseModel):
        by: str = ""

    @step(start=True)
    async def ask(self) -> Command:
        return wait.for_signal("go", then=self.rest)

    @step
    async def rest(self) -> Command:
        return sleep(HOUR, then=self.end)

    @step
    async def end(self) -> Command:
        return complete()


class Observed:
    """A store that counts its loads, and that may be down."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.loads: list[int] = []
        self.down = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    async def load(self, run_ids: Collection[int], now: Micros) -> list[Run]:
        self.loads.append(len(run_ids))
        return await self.store.load(run_ids, now)

    async def history(self, run_id: int, after: int, limit: int, now: Micros) -> list[Transition]:
        if self.down:
            raise errors.StoreUnavailable("test", "it is down")
        return await self.store.history(run_id, after, limit, now)


class Watcher:
    """Watches a run in a task of its own, and records what it gets."""

    def __init__(self, engine: Engine, run_id: int, after: int = 0) -> None:
        self.seen: list[Transition] = []
        self.watching = engine.watch(run_id, after=after)
        self.task = asyncio.ensure_future(self._watch())

    @property
    def kinds(self) -> list[str]:
        return [transition.kind for transition in self.seen]

    async def _watch(self) -> list[Transition]:
        async for transition in self.watching:
            self.seen.append(transition)
        return self.seen


def waiting(engine: Engine) -> list[int]:
    """The runs that have waiters in this engine."""
    assert engine._parts is not None
    return engine._parts.waiters.run_ids


@pytest.mark.parametrize("ends", [True, False])
async def test_watch_gives_what_history_gives(make_engine: MakeEngine, ends: bool) -> None:
    """watch() gives the same as history(), from the first transition to the last, even if the run has ended before."""
    async with make_engine(Loop) as engine:
        run = await engine.start(Loop, turns=700, ends=ends)  # more than one page
        seen = [transition async for transition in engine.watch(run.id)]
        assert seen == await engine.history(run.id)
        assert [transition.seq for transition in seen] == list(range(1, 702))
        assert seen[-1].kind == ("complete" if ends else "fail")
        assert [transition async for transition in engine.watch(run.id)] == seen
        await wait_until(lambda: not waiting(engine))


async def test_watch_is_told_as_it_happens(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A transition by a signal, a timer or a step is seen once it is committed, and not before."""
    async with make_engine(Patient) as engine:
        run = await engine.start(Patient)
        watcher = Watcher(engine, run.id)
        await wait_until(lambda: watcher.kinds == ["start", "wait"])
        await wait_until(lambda: waiting(engine) == [run.id])
        await engine.signal("go", run_id=run.id)
        await wait_until(lambda: watcher.kinds == ["start", "wait", "signal", "sleep"])
        clock.shift(HOUR)
        assert await watcher.task == await engine.history(run.id)
        assert watcher.kinds[4:] == ["wake", "complete"]
        assert waiting(engine) == []


async def test_watch_ends_when_the_run_is_cancelled(make_engine: MakeEngine) -> None:
    """A cancel is the last transition that a watcher gets."""
    async with make_engine(Patient) as engine:
        run = await engine.start(Patient)
        watcher = Watcher(engine, run.id)
        await wait_until(lambda: len(watcher.seen) == 2)
        await engine.cancel(run.id, "enough")
        assert [transition.error for transition in await watcher.task] == [None, None, "enough"]
        assert watcher.kinds == ["start", "wait", "cancel"]


async def test_watch_goes_on_after_what_was_seen(make_engine: MakeEngine) -> None:
    """With after=, watching starts behind that seq, and ends at once if the run ended before it."""
    async with make_engine(Loop) as engine:
        run = await run_of(engine, Loop, turns=5)
        for after in range(6):
            seen = [transition.seq async for transition in engine.watch(run.id, after=after)]
            assert seen == list(range(after + 1, 7))
        assert [transition async for transition in engine.watch(run.id, after=1000)] == []


async def test_watch_behind_the_last_waits_for_the_next(make_engine: MakeEngine) -> None:
    """A watcher that starts after the last transition gets only those that follow."""
    async with make_engine(Patient) as engine:
        run = await engine.start(Patient)
        await run.wait(5, until="parked")
        watcher = Watcher(engine, run.id, after=2)
        await wait_until(lambda: waiting(engine) == [run.id])
        await engine.signal("go", run_id=run.id)
        await wait_until(lambda: watcher.kinds == ["signal", "sleep"])
        await engine.cancel(run.id)
        assert [transition.seq for transition in await watcher.task] == [3, 4, 5]


async def test_client_watches_what_another_engine_executes(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A client that knows no workflow gets every transition of a run that a worker executes."""
    async with make_engine(Patient, Loop) as worker, make_engine(worker=False, workflows=[]) as client:
        run = await worker.start(Patient)
        watcher = Watcher(client, run.id)
        await wait_until(lambda: watcher.kinds == ["start", "wait"])
        await worker.signal("go", run_id=run.id)
        await wait_until(lambda: watcher.kinds == ["start", "wait", "signal", "sleep"])
        clock.shift(HOUR)
        assert await watcher.task == await worker.history(run.id)
        looped = await worker.start(Loop, turns=300)
        assert [transition.seq async for transition in client.watch(looped.id)] == list(range(1, 302))


async def test_watch_of_a_run_that_nobody_executes_yet(make_engine: MakeEngine) -> None:
    """A watcher that starts before any worker is open gets the start, and later the rest."""
    async with make_engine(Loop, worker=False) as client:
        run = await client.start(Loop, turns=2)
        watcher = Watcher(client, run.id)
        await wait_until(lambda: watcher.kinds == ["start"])
        async with make_engine(Loop):
            await watcher.task
        assert watcher.kinds == ["start", "goto", "complete"]


async def test_many_watch_one_run(make_engine: MakeEngine) -> None:
    """All watchers of a run get the same, and when some are cancelled, no waiter is left."""
    async with make_engine(Loop, Patient) as engine, make_engine(Patient, worker=False) as client:
        run = await engine.start(Patient)
        watchers = [Watcher(who, run.id) for who in (engine, client) for _ in range(20)]
        await wait_until(lambda: all(len(watcher.seen) == 2 for watcher in watchers))
        for watcher in watchers[::2]:
            watcher.task.cancel()
        await engine.signal("go", run_id=run.id)
        await wait_until(lambda: all(len(watcher.seen) == 4 for watcher in watchers[1::2]))
        await engine.cancel(run.id)
        seen = await asyncio.gather(*(watcher.task for watcher in watchers[1::2]))
        assert all(each == seen[0] for each in seen)
        assert [transition.kind for transition in seen[0]] == ["start", "wait", "signal", "sleep", "cancel"]
        await wait_until(lambda: waiting(engine) == waiting(client) == [])


async def test_watcher_that_leaves_holds_nothing(make_engine: MakeEngine) -> None:
    """Between two transitions a watcher is not registered, so its loop may be left by break."""
    async with make_engine(Loop) as engine:
        run = await run_of(engine, Loop, turns=3)
        async with aclosing(engine.watch(run.id)) as watching:
            async for transition in watching:
                assert transition.kind == "start"
                assert waiting(engine) == []
                break
        assert waiting(engine) == []


async def test_watchers_of_many_runs_share_a_query(
    make_engine: MakeEngine, store_url: str | Store, clock: ShiftedClock
) -> None:
    """Transitions made by other processes are found by one query for all watched runs, whatever their watchers."""

    async with make_engine(Patient) as worker:
        runs = [await worker.start(Patient, StartOptions(key=str(number))) for number in range(10)]
        for run in runs:
            await run.wait(5, until="parked")
        counting = Observed(find_store(store_url))
        async with Engine(cast("Store", counting), workflows=[Patient], worker=False, clock=clock) as client:
            watchers = [Watcher(client, run.id) for run in runs for _ in range(5)]
            await wait_until(lambda: all(len(watcher.seen) == 2 for watcher in watchers))
            await wait_until(lambda: len(waiting(client)) == 10)
            # Each watcher has looked once by itself; after that only the shared query runs, as nothing happens.
            await wait_until(lambda: counting.loads[-3:] == [10, 10, 10], timeout=10)
            assert counting.loads.count(1) == 50
            for run in runs:
                await worker.cancel(run.id)
            await asyncio.gather(*(watcher.task for watcher in watchers))
            assert {tuple(watcher.kinds) for watcher in watchers} == {("start", "wait", "cancel")}


# ---- errors


async def test_watch_of_no_run(make_engine: MakeEngine) -> None:
    """Watching an unknown run is RunNotFound, and no waiter is left."""
    async with make_engine(Loop) as engine:
        with pytest.raises(errors.RunNotFound, match=r"^There is no run 4711 in this store"):
            await anext(engine.watch(4711))
        with pytest.raises(errors.RunNotFound):
            await anext(engine.watch(0))
        assert waiting(engine) == []


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("1",), TypeError, "A run's id is an int, got str."),
        ((1, "2"), TypeError, "watch(after=...) takes a seq as an int, got str."),
        ((1, True), TypeError, "watch(after=...) takes a seq as an int, got bool."),
        ((1, -1), ValueError, "watch(after=...) takes a seq, which is never negative, got -1."),
    ],
)
async def test_arguments_of_watch_are_checked_at_once(
    make_engine: MakeEngine, arguments: tuple[Any, ...], error: type[Exception], text: str
) -> None:
    """A wrong argument is refused by the call itself, not by the first iteration."""
    async with make_engine(Loop, worker=False) as engine:
        with pytest.raises(error) as raised:
            engine.watch(arguments[0], **dict(zip(("after",), arguments[1:], strict=False)))
        assert str(raised.value) == text


async def test_watch_needs_an_open_engine(make_engine: MakeEngine) -> None:
    """watch() of a closed engine raises at once, and all watchers get EngineClosed when the engine closes."""
    engine = make_engine(Patient)
    with pytest.raises(errors.EngineClosed, match=r"^engine\.watch\(\) needs an open engine\."):
        engine.watch(1)
    async with engine:
        run = await engine.start(Patient)
        watcher = Watcher(engine, run.id)
        await wait_until(lambda: len(watcher.seen) == 2)
        await wait_until(lambda: waiting(engine))
    with pytest.raises(errors.EngineClosed, match=r"^engine\.watch\(\) needs an open engine\."):
        await watcher.task


async def test_watch_of_a_store_that_is_down_can_be_taken_up_again(
    make_engine: MakeEngine, store_url: str | Store
) -> None:
    """If the store is down, watching raises StoreUnavailable, and can be resumed after the last seq seen."""

    failing = Observed(find_store(store_url))
    async with Engine(cast("Store", failing), workflows=[Patient]) as engine:
        run = await engine.start(Patient)
        watching = engine.watch(run.id)
        seen = [await anext(watching), await anext(watching)]
        failing.down = True
        with pytest.raises(errors.StoreUnavailable):
            await anext(watching)
        assert waiting(engine) == []
        failing.down = False
        await engine.cancel(run.id)
        seen += [transition async for transition in engine.watch(run.id, after=seen[-1].seq)]
        assert seen == await engine.history(run.id)


async def test_watch_tells_of_a_transition_while_the_run_goes_on(make_engine: MakeEngine) -> None:
    """A watcher gets each transition of a run that goes from step to step at once, not only when it parks or ends."""
    gates = [asyncio.Event(), asyncio.Event()]

    @workflow("watch-busy")
    class Busy:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def first(self) -> Command:
            await gates[0].wait()
            return goto(self.second)

        @step
        async def second(self) -> Command:
            await gates[1].wait()
            return complete()

    async with make_engine(Busy) as engine:
        run = await engine.start(Busy)
        async with aclosing(engine.watch(run.id)) as watching:
            assert (await anext(watching)).kind == "start"
            gates[0].set()
            assert (await asyncio.wait_for(anext(watching), 5)).kind == "goto"
            gates[1].set()
            assert (await asyncio.wait_for(anext(watching), 5)).kind == "complete"
