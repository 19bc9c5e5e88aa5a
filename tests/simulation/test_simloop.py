"""The loop of the simulation: time that jumps, an order that the seed determines, processes that stop and die."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from aioflow.testing.simloop import THREAD_DELAY, Deadlock, Livelock, Process, SimClock, SimLoop, inline_threads
from aioflow.threads import Outcome, Threads

HOUR = 3600.0


@pytest.fixture
def loop() -> Iterator[SimLoop]:
    """A loop that is disposed of at the end."""
    loop = SimLoop(7)
    yield loop
    loop.dispose()


def test_time_jumps_to_the_next_timer(loop: SimLoop) -> None:
    """An idle century passes at once, and each timer fires exactly at its time."""
    seen: list[float] = []
    for hours in (876_000.0, 0.1, 24.0):
        loop.call_later(hours * HOUR, lambda: seen.append(loop.time()))
    loop.run_until_complete(loop.pause(876_001 * HOUR))
    assert seen == [0.1 * HOUR, 24 * HOUR, 876_000 * HOUR]
    assert loop.time() == 876_001 * HOUR


def order(seed: int) -> list[int]:
    """The order in which ten tasks run that are ready at once."""
    loop, seen = SimLoop(seed), list[int]()

    async def one(number: int) -> None:
        seen.append(number)
        await asyncio.sleep(0)
        seen.append(number)

    async def all_of_them() -> None:
        await asyncio.gather(*(one(number) for number in range(10)))

    loop.run_until_complete(all_of_them())
    loop.dispose()
    return seen


def test_the_seed_chooses_the_order_of_tasks() -> None:
    """The order of tasks that are ready at once is determined by the seed, and differs between seeds."""
    assert order(1) == order(1)
    assert len({tuple(order(seed)) for seed in range(20)}) > 15
    assert all(sorted(order(seed)[:10]) == list(range(10)) for seed in range(20))


def test_callbacks_keep_their_order(loop: SimLoop) -> None:
    """Plain callbacks run in the order of scheduling."""
    seen: list[int] = []
    for number in range(50):
        loop.call_soon(seen.append, number)
    loop.run_until_complete(loop.pause(0.0))
    assert seen == list(range(50))


def test_a_deadlock_is_found(loop: SimLoop) -> None:
    """A task that waits for something that cannot happen raises at once."""

    async def wait() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock, match=r"at 0\.000000 s"):
        loop.run_until_complete(wait())


def test_a_livelock_is_found() -> None:
    """A task that spins while time stands still raises."""
    loop = SimLoop(1, most=1000)

    async def spin() -> None:
        while True:  # noqa: ASYNC110 - it must spin
            await asyncio.sleep(0)

    with pytest.raises(Livelock, match="1001 callbacks"):
        loop.run_until_complete(spin())
    loop.dispose()


def test_a_killed_process_runs_no_line(loop: SimLoop) -> None:
    """Neither the tasks of a killed process nor their children go on, and no ``finally`` runs before the disposal."""
    seen: list[str] = []
    process = Process("it")

    async def child() -> None:
        await loop.pause(2)
        seen.append("child")

    async def main() -> None:
        task = asyncio.get_running_loop().create_task(child())
        try:
            seen.append("begun")
            await loop.pause(2)
            seen.append("gone on")
            await task
        finally:
            seen.append("finally")

    loop.spawn(process, main())
    loop.call_later(1, loop.kill_process, process)
    loop.run_until_complete(loop.pause(10))
    assert seen == ["begun"]
    loop.dispose()
    assert seen == ["begun", "finally"]


def test_a_stopped_process_goes_on_late(loop: SimLoop) -> None:
    """What a stopped process would have done runs when it is resumed, and other processes are not delayed."""
    seen: list[tuple[str, float]] = []
    process = Process("it")

    async def main(name: str) -> None:
        await loop.pause(2)
        seen.append((name, loop.time()))

    loop.spawn(process, main("it"))
    loop.spawn(Process("other"), main("other"))
    loop.call_later(1, loop.stop_process, process)
    loop.call_later(5, loop.resume_process, process)
    loop.run_until_complete(loop.pause(10))
    assert seen == [("other", 2.0), ("it", 5.0)]


def test_a_thread_goes_on_although_its_caller_is_cancelled(loop: SimLoop) -> None:
    """A function in a thread runs although its caller was cancelled, and the caller does not wait for it."""
    seen: list[str] = []

    async def caller() -> None:
        try:
            await Threads().run(lambda: seen.append("run"))
        except asyncio.CancelledError:
            seen.append("cancelled")

    async def main() -> None:
        task = asyncio.get_running_loop().create_task(caller())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await task
        await loop.pause(THREAD_DELAY)

    with inline_threads(loop):
        loop.run_until_complete(main())
    assert seen == ["cancelled", "run"]


def test_a_thread_gives_its_result_or_its_error(loop: SimLoop) -> None:
    """What a function in a thread returns or raises reaches its caller, after a delay."""

    async def main() -> tuple[Outcome, Outcome]:
        threads = Threads()
        return await threads.run(lambda: 17), await threads.run(lambda: 1 // 0)

    before = Threads.run
    with inline_threads(loop):
        value, (good, error) = loop.run_until_complete(main())
    assert value == (True, 17)
    assert (good, str(error)) == (False, "integer division or modulo by zero")
    assert 0 < loop.time() <= 4 * THREAD_DELAY
    assert Threads.run is before


def test_a_clock_may_be_wrong(loop: SimLoop) -> None:
    """A process's clock is wrong by its skew, but durations that it measures are right."""
    clock = SimClock(loop, epoch=1_000_000, skew=5)
    loop.run_until_complete(clock.sleep(2_000_000))
    assert (clock.micros(), clock.monotonic()) == (3_000_005, 2_000_000)
    clock.skew = -7
    assert clock.micros() == 2_999_993
