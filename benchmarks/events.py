"""What events cost: emitting them, starts that are planned for one instant, and a million future events.

    python benchmarks/events.py [--events 10000] [--rounds 3] [--lead 20] [--future 100000] [--slow]

The public Engine with everything on, `synchronous=FULL`.

- events/s: `--events` events are emitted, with 2 000 calls outstanding; each starts one run of one step. The time is
  from the first call until all events are recorded, and until all runs have ended. An event takes three commits: the
  event, the start of its run, the run's end.
- lateness: `--events` events that are all due at one instant are emitted before it (`--lead` seconds, checked). The
  lateness of a start is `get_run().now` in the first step minus that instant: it includes a read and the commit of the
  start, while the events themselves occur. The same is measured for events that are due one after the other within
  10 s. Meanwhile, every 50 ms a run is sent a signal, timed from the call until that run has ended, and it is measured
  by how much the loop wakes a task too late that sleeps 5 ms.
- memory: a file with `--future` events (default 100 000; `--slow`: 1 000 000 as well), filled by the store's own
  `apply`, due in 30 days or within the horizon of the timers. A fresh process opens it, starts a run and waits for its
  end. Measured is resident memory two seconds later, less that of a process on a file without events, as in waiting.py.

Medians of the rounds, as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from measuring import machine, percentiles, watch_lag
from pydantic import BaseModel
from waiting import BATCH, DAY, SECOND, observe

from aioflow import Engine, Event, WorkflowRun, complete, event_workflow, get_run, step, wait, workflow
from aioflow.changes import Emit, Listen
from aioflow.clock import to_datetime
from aioflow.commands import Command
from aioflow.events import draft
from aioflow.registry import listeners, registry
from aioflow_sqlite import SQLiteStore

AT_ONCE = 2_000
PAUSE = 0.05
SPAN = timedelta(seconds=10)
HORIZONS = ("in 30 days", "within the horizon")
late: list[float] = []
left = 0
over = asyncio.Event()


@event_workflow("placed")
class Placed:
    class Context(BaseModel):
        entity_id: str

    @step(start=True)
    async def work(self, event: Event) -> Command:
        global left  # noqa: PLW0603 - the count of the program
        late.append((get_run().now - event.at) / timedelta(milliseconds=1))
        left -= 1
        if not left:
            over.set()
        return complete()


@workflow("signalled")
class Signalled:
    class Context(BaseModel):
        order_id: int

    @step(start=True)
    async def ask(self) -> Command:
        return wait.for_signal("paid", then=self.end)

    @step
    async def end(self) -> Command:
        return complete()


def expect(events: int) -> None:
    """Reset the counters for a measurement."""
    global left, over
    left, over = events, asyncio.Event()
    late.clear()


async def emit(engine: Engine, events: int, at: datetime | None = None, span: timedelta = timedelta(0)) -> None:
    """Emit so many events, due now, at an instant, or spread over a span that begins there."""
    numbers = iter(range(events))

    async def some() -> None:
        for number in numbers:
            due = None if at is None else at + span * number / events
            await engine.emit("placed", {"id": number, "customer": "somebody"}, at=due)

    await asyncio.gather(*(some() for _ in range(min(events, AT_ONCE))))


async def emitted(url: str, events: int) -> tuple[float, float]:
    """Events per second: recorded, and with their runs ended."""
    expect(events)
    async with Engine(url) as engine:
        began = time.perf_counter()
        await emit(engine, events)
        recorded = time.perf_counter() - began
        await over.wait()
        while await engine.count(workflow=Placed, status="completed") < events:  # noqa: ASYNC110 - to the last commit
            await asyncio.sleep(0.005)
        return events / recorded, events / (time.perf_counter() - began)


# ---- one instant


async def signal_each(engine: Engine, runs: list[WorkflowRun], times: list[float]) -> None:
    """Signal one run after the other, every 50 ms, until cancelled."""
    for run in runs:
        began = time.perf_counter()
        await engine.signal("paid", run_id=run.id)
        await run.wait()
        times.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(max(0.0, PAUSE - (time.perf_counter() - began)))
    raise SystemExit("There were too few runs to signal.")


async def planned(
    url: str, options: argparse.Namespace, span: timedelta = timedelta(0)
) -> tuple[list[float], list[float], list[float]]:
    """Milliseconds: lateness of starts due at one instant or within a span, time of signals, lag of the loop."""
    expect(options.events)
    signals: list[float] = []
    lags: list[float] = []
    async with Engine(url) as engine:
        runs = [await engine.start(Signalled, order_id=number) for number in range(2_000)]
        for run in runs:
            await run.wait(until="parked")
        at = datetime.now(UTC) + timedelta(seconds=options.lead)
        await emit(engine, options.events, at, span)
        spare = (at - datetime.now(UTC)).total_seconds()
        if spare < 0.5:
            raise SystemExit(f"Emitting took {options.lead - spare:.1f} s: give it a longer --lead.")
        await asyncio.sleep(spare - 0.1)
        beside = [asyncio.create_task(signal_each(engine, runs, signals)), asyncio.create_task(watch_lag(lags))]
        await over.wait()
        for task in beside:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
    return list(late), signals, lags


# ---- memory


async def fill(path: str, horizon: str, events: int) -> None:
    """Apply so many future events to the store, each with the planned start of a run."""
    store = SQLiteStore(f"sqlite:///{path}")
    began = time.time_ns() // 1000
    await store.open(began)
    names, heard = listeners(registry)
    await store.apply([Listen(names, heard)], began)
    first = await store.reserve("event", events, began)
    mail = await store.reserve("signal", events, began)
    for begin in range(0, events, BATCH):
        now = time.time_ns() // 1000
        changes = []
        for number in range(begin, min(begin + BATCH, events)):
            due = began + (30 * DAY if horizon == HORIZONS[0] else (240 + 240 * number // events) * SECOND)
            asked = draft("placed", {"id": number, "customer": "somebody"}, at=to_datetime(due))
            changes.append(Emit(asked.record(first + number, mail + number, f"event-{number}", now)))
        results = await store.apply(changes, now)
        assert all(result.outcome == "applied" for result in results)
    await store.close()


def in_a_fresh_process(path: Path) -> dict[str, float]:
    """Measure in a process that has done nothing but open the file."""
    ran = subprocess.run([sys.executable, __file__, "--observe", path], check=True, stdout=subprocess.PIPE)
    found: dict[str, float] = json.loads(ran.stdout)
    return found


def future(directory: Path, rounds: int, counts: list[int]) -> list[dict[str, object]]:
    """What future events cost an open engine."""
    (directory / "idle").mkdir()
    idle = [in_a_fresh_process(directory / "idle" / "runs.db") for _ in range(rounds + 1)][1:]  # the first makes it
    nothing = {name: statistics.median(one[name] for one in idle) for name in idle[0]}
    figures: list[dict[str, object]] = []
    for horizon in HORIZONS:
        for events in counts:
            path = directory / f"{events}-{HORIZONS.index(horizon)}" / "runs.db"
            path.parent.mkdir()
            asyncio.run(fill(str(path), horizon, events))
            opened = [in_a_fresh_process(path) for _ in range(rounds)]
            found = {name: statistics.median(one[name] for one in opened) for name in nothing}
            figures.append(
                {
                    "due": horizon,
                    "events": events,
                    "bytes_per_event": round((found["bytes"] - nothing["bytes"]) / events, 1),
                    "more_mb": round((found["bytes"] - nothing["bytes"]) / 1e6, 2),
                    "start_up_s": round(found["start_up_s"], 3),
                    "file_bytes_per_event": round((found["file"] - nothing["file"]) / events),
                }
            )
    return figures


# ---- all of it


def medians(rounds: list[list[float]]) -> dict[str, float]:
    """The medians of the rounds' percentiles."""
    found = [percentiles(times, 2) for times in rounds]
    return {name: round(statistics.median(one[name] for one in found), 2) for name in found[0]}


def measure(options: argparse.Namespace) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        rates = [asyncio.run(emitted(f"sqlite:///{folder}/e{n}.db", options.events)) for n in range(options.rounds)]
        instants = [asyncio.run(planned(f"sqlite:///{folder}/i{n}.db", options)) for n in range(options.rounds)]
        spreads = [asyncio.run(planned(f"sqlite:///{folder}/s{n}.db", options, SPAN)) for n in range(options.rounds)]
        events = options.future or [100_000, *([1_000_000] if options.slow else [])]
        to_come = future(Path(folder), options.rounds, events)
    return {
        **machine(),
        "events": options.events,
        "recorded_per_s": round(statistics.median(rate for rate, _ in rates)),
        "events_per_s": round(statistics.median(rate for _, rate in rates)),
        "rounds_events_per_s": [round(rate) for _, rate in rates],
        "late_ms": medians([times for times, _, _ in instants]),
        "early": sum(time < 0 for times, _, _ in instants + spreads for time in times),
        "signal_to_completed_meanwhile_ms": medians([signals for _, signals, _ in instants]),
        "signals": [len(signals) for _, signals, _ in instants],
        "late_one_after_the_other_ms": medians([times for times, _, _ in spreads]),
        "signal_to_completed_beside_these_ms": medians([signals for _, signals, _ in spreads]),
        "loop_lag_ms": medians([lags for _, _, lags in instants]),
        "to_come": to_come,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--lead", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--future", type=int, nargs="+", help="numbers of future events, instead of 100 000")
    parser.add_argument("--slow", action="store_true", help="1 000 000 future events as well")
    parser.add_argument("--observe", metavar="FILE", help="internal: open the file and measure this process")
    options = parser.parse_args()
    found = asyncio.run(observe(options.observe)) if options.observe else measure(options)
    json.dump(found, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
