"""How late timers are: 10 000 sleeps that end within 10 seconds.

    python benchmarks/timers.py [--timers 10000] [--seconds 10] [--lead 20] [--rounds 3]

The public Engine with everything on, `synchronous=FULL`. Runs sleep until instants that are spread evenly over
`--seconds`; all of them are parked before the first is due (`--lead` seconds after the first start, checked). Lateness
is `get_run().now` in the step after the sleep, minus the instant: it includes the commit of the wake-up. Each run
commits twice while the timers fire: its wake-up, and its end. Also measured: how many timers were early, and by how
much the loop wakes a task too late that sleeps 5 ms, while they fire. Medians of the rounds, as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from measuring import machine, percentiles, watch_lag
from pydantic import AwareDatetime, BaseModel

from aioflow import Engine, complete, get_context, get_run, sleep, step, workflow
from aioflow.commands import Command

AT_ONCE = 500
late: list[float] = []
due: set[int] = set()
over = asyncio.Event()


@workflow("sleeper")
class Sleeper:
    class Context(BaseModel):
        until: AwareDatetime

    @step(start=True)
    async def doze(self) -> Command:
        return sleep(get_context(self.Context).until, then=self.rise)

    @step
    async def rise(self) -> Command:
        late.append((get_run().now - get_context(self.Context).until) / timedelta(milliseconds=1))
        due.discard(get_run().id)
        if not due:
            over.set()
        return complete()


async def one_round(url: str, options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Milliseconds: lateness of the timers, and of the loop."""
    late.clear()
    over.clear()
    lags: list[float] = []
    async with Engine(url) as engine:
        first = datetime.now(UTC) + timedelta(seconds=options.lead)
        numbers = iter(range(options.timers))

        async def some() -> None:
            for number in numbers:
                until = first + timedelta(seconds=options.seconds) * number / options.timers
                run = await engine.start(Sleeper, until=until)
                due.add(run.id)
                await run.wait(until="parked")

        await asyncio.gather(*(some() for _ in range(AT_ONCE)))
        left = (first - datetime.now(UTC)).total_seconds()
        if left < 0.5:
            raise SystemExit(f"Starting took {options.lead - left:.1f} s: give it a longer --lead.")
        await asyncio.sleep(left - 0.25)
        watch = asyncio.create_task(watch_lag(lags))
        await over.wait()
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch
    return list(late), lags


def medians(rounds: list[list[float]]) -> dict[str, float]:
    """The medians of the rounds' percentiles."""
    found = [percentiles(times, 2) for times in rounds]
    return {name: round(statistics.median(one[name] for one in found), 2) for name in found[0]}


async def measure(options: argparse.Namespace) -> dict[str, object]:
    lateness, lags = [], []
    with tempfile.TemporaryDirectory() as directory:
        for number in range(options.rounds):
            times, lag = await one_round(f"sqlite:///{directory}/{number}.db", options)
            lateness.append(times)
            lags.append(lag)
    return {
        **machine(),
        "timers": options.timers,
        "seconds": options.seconds,
        "late_ms": medians(lateness),
        "early": sum(time < 0 for times in lateness for time in times),
        "loop_lag_ms": medians(lags),
        "rounds_late_ms": [percentiles(times, 2) for times in lateness],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--timers", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--lead", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    json.dump(asyncio.run(measure(parser.parse_args())), sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
