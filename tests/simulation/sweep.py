"""Many seeds, in one process or several, and whether they met all that they were to meet."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import count, islice
from multiprocessing import get_context
from typing import NamedTuple

from tests.simulation.world import Case, Verdict, simulate

#: Situations, and how often each has to come up in 500 seeds.
WANTED: dict[str, int] = {}
#: How many seeds one task of a process takes.
CHUNK = 20


class Sweep(NamedTuple):
    """What came of many seeds."""

    seeds: int
    failures: list[Verdict]
    figures: Counter[str]
    seconds: float

    @property
    def unmet(self) -> list[str]:
        """The situations that did not come up often enough."""
        return [
            f"{what}: {self.figures[what]}, not {least * self.seeds // 500}"
            for what, least in WANTED.items()
            if self.figures[what] < least * self.seeds // 500
        ]

    def report(self) -> Iterator[str]:
        """What to tell of it."""
        for verdict in self.failures:
            yield f"seed {verdict.case.seed} failed: {verdict.problems[0][:600]}"
            yield f"    repeat it: {verdict.case.command}"
        rate = self.seeds / self.seconds if self.seconds else 0
        yield f"{self.seeds} seeds in {self.seconds:.1f} s, {rate:.0f} a second; {len(self.failures)} failed"


def many(seeds: list[int]) -> tuple[list[Verdict], Counter[str]]:
    """Simulate these: those that failed, and the figures of all."""
    figures: Counter[str] = Counter()
    failures = []
    for seed in seeds:
        verdict = simulate(Case(seed))
        figures += verdict.figures
        if verdict.problems:
            failures.append(verdict)
    return failures, figures


def sweep(
    seeds: Iterable[int],
    *,
    least: int,
    seconds: float = 0.0,
    jobs: int = 1,
    most_failures: int = 5,
    tell: Callable[[str], None] | None = None,
) -> Sweep:
    """Simulate ``least`` of the seeds, and more for as long as ``seconds`` are not over; end after some failures."""
    began = time.monotonic()
    source = iter(seeds)
    done, failures, figures = 0, list[Verdict](), Counter[str]()

    def chunks() -> Iterator[list[int]]:
        given = 0
        while given < least or time.monotonic() - began < seconds:
            size = CHUNK if given >= least else min(CHUNK, least - given)
            chunk = list(islice(source, size))
            if not chunk:
                return
            given += len(chunk)
            yield chunk

    for chunk, (bad, found) in _carried_out(chunks(), jobs):
        done += len(chunk)
        failures += bad
        figures += found
        if tell is not None:
            tell(f"{done} seeds, {len(failures)} failed")
        if len(failures) >= most_failures:
            break
    return Sweep(done, failures, figures, time.monotonic() - began)


def _carried_out(
    chunks: Iterator[list[int]], jobs: int
) -> Iterator[tuple[list[int], tuple[list[Verdict], Counter[str]]]]:
    if jobs == 1:
        for chunk in chunks:
            yield chunk, many(chunk)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=100) as pool:
        pending = [(chunk, pool.submit(many, chunk)) for chunk in islice(chunks, 2 * jobs)]
        while pending:
            chunk, future = pending.pop(0)
            yield chunk, future.result()
            pending += [(more, pool.submit(many, more)) for more in islice(chunks, 1)]


def fresh() -> Iterator[int]:
    """Seeds that were never used, from one that is printed with each failure."""
    return count(int.from_bytes(os.urandom(6)))


def hash_in_fresh_process(seed: int, hash_seed: int) -> str:
    """The trace hash of a seed, in a process of its own, whose strings hash as ``hash_seed`` has it."""
    told = subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--seed", str(seed), "--hash"],
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
        capture_output=True,
        text=True,
        check=True,
    )
    return told.stdout.strip()
