"""Simulates many seeds, in one process or several, and checks that each situation came up often enough."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from itertools import count, islice
from multiprocessing import get_context
from typing import NamedTuple

from tests.simulation.world import Case, Verdict, Where, simulate

#: Situations, and how often each has to come up in 500 seeds: less than half of how often it does, and less than once
#: if
#: it is rare and comes in clusters, so that 500 fresh seeds need not meet it, but 100 000 must.
WANTED: dict[str, float] = {
    "fault: applied after the error": 200,
    "fault: clock step": 100,
    "fault: error after": 200,
    "fault: error before": 1000,
    "fault: hint lost": 2000,
    "fault: kill": 80,
    "fault: partition": 80,
    "fault: pause": 80,
    "fault: reply lost in a pause": 8,
    "fault: request applied after its sender's death": 15,
    "fault: request left after a pause": 20,
    "fault: request lost with its sender": 20,
    "fault: restart": 30,
    "fault: silent": 100,
    "fault: skew": 50,
    "fault: slow": 500,
    "a lease was over before it was renewed": 60,
    "a step of a stale owner": 2,
    "two batches under way": 300,
    "a step put itself off": 50,
    "a step whose lease was over": 40,
    "a step whose run has gone on": 8,
    "a step whose run was gone": 15,
    "all slots were taken": 1000,
    "a run that waits was told of an event": 25,
    "a run waits for what has occurred": 15,
    "a start was not wanted": 15,
    "a start was put off": 100,
    "cancel of an event: True": 15,
    "call: failed": 40,
    "call: refused": 5000,
    "call: served": 150,
    "call: without its request": 12,
    "cancelled while running": 10,
    "cancelled while waiting": 20,
    "event cancelled: occurred": 10,
    "event cancelled: pending": 1,
    "event occurred as it was emitted": 200,
    "event occurred in its time": 120,
    "event replaced: cancelled": 4,
    "event replaced: occurred": 60,
    "event replaced: pending": 10,
    "event taken from the mailbox": 40,
    "event was there": 80,
    "looked whether it was in time": 300,
    "four engines": 20,
    "killed for good": 8,
    "killed while it ran something": 15,
    "paused past its lease": 60,
    "race: a claim's reply was lost, and made good": 80,
    "race: a move offered twice": 100,
    "race: a signal offered twice": 15,
    "race: a signal was there before the timeout": 40,
    "race: a start offered twice": 40,
    "race: a start put off was offered twice": 0.5,
    "race: a start was made already, or was moved": 150,
    "race: an event had occurred already, or was moved": 40,
    "race: an event offered twice": 5,
    "race: a cancellation offered twice": 1,
    "race: action came too late": 60,
    "race: an event offered again, which was replaced since": 0.2,
    "race: an event was due before the timeout": 0.1,
    "race: refused under an old fence": 8,
    "race: event came too late": 0.3,
    "race: retry came too late": 3,
    "race: sent twice under one signal_id": 0.4,
    "race: signal came too late": 5,
    "race: sleep came too late": 0.5,
    "race: somebody else took the signal": 0.5,
    "race: started twice under one key": 100,
    "race: timeout came too late": 50,
    "race: wait came too late": 0.5,
    "race: wake came too late": 150,
    "receipt: RunEnded": 300,
    "receipt: RunNotFound": 60,
    "receipt: buffered": 600,
    "receipt: delivered": 70,
    "receipt: none": 120,
    "receipt: rejected": 8,
    "run started at another time than its event": 200,
    "run started by an event": 450,
    "run started by an event that was moved": 100,
    "signal expired": 300,
    "signal given past the mailbox": 20,
    "signal rejected": 15,
    "signal taken from the mailbox": 300,
    "taken for what they died of": 0.01,
    "taken from the dead": 50,
    "taken without owner": 100,
    "transition: on_fail": 150,
    "transition: reopen": 40,
    "transition: timeout": 200,
    "user: emitted again, as it was not known": 2,
    "user: not known what came of a call": 15,
    "user: not known whether it was emitted": 0.3,
    "user: not known whether it was sent": 12,
    "user: sent again, as it was not known": 10,
    "user: started again, as it was not known": 4,
}
#: The same for 500 seeds on SQLite.
WANTED_OF_SQLITE = {
    "a run that waits was told of an event": 15,
    "crash": 100,
    "crash: after a commit": 3,
    "crash: before a commit": 3,
    "crash: between transactions": 40,
    "crash: the WAL was torn": 3,
    "crash: within a commit": 6,
    "a run of a dead process was freed": 15,
    "another works the file": 2000,
    "event taken from the mailbox": 20,
    "killed while it ran something": 15,
    "run started by an event": 250,
    "takeover": 40,
}
#: One of so many seeds of a sweep on the memory store is run on SQLite, too.
EVERY = 10
#: The prefix of SQLite's figures.
ON_SQLITE = "sqlite: "
#: The figure that counts seconds of virtual time.
VIRTUAL = "seconds of virtual time"
#: How many seeds one task of a worker process takes.
CHUNK = 20


class Sweep(NamedTuple):
    """The results of many seeds."""

    seeds: int
    failures: list[Verdict]
    figures: Counter[str]
    seconds: float

    @property
    def unmet(self) -> list[str]:
        """The situations that did not come up often enough."""
        wanted = [(what, int(least * self.figures["seeds"] / 500)) for what, least in WANTED.items()]
        on_sqlite = self.figures[f"{ON_SQLITE}seeds"]
        wanted += [(f"{ON_SQLITE}{what}", least * on_sqlite // 500) for what, least in WANTED_OF_SQLITE.items()]
        return [f"{what}: {self.figures[what]}, not {least}" for what, least in wanted if self.figures[what] < least]

    def report(self) -> Iterator[str]:
        """A summary, line by line."""
        for verdict in self.failures:
            yield f"seed {verdict.case.seed} failed: {verdict.problems[0][:600]}"
            yield f"    repeat it: {verdict.case.command}"
        rate = self.seeds / self.seconds if self.seconds else 0
        days = (self.figures[VIRTUAL] + self.figures[ON_SQLITE + VIRTUAL]) / 86400
        yield (
            f"{self.seeds} seeds in {self.seconds:.1f} s, {rate:.0f} a second, {days:.1f} days of virtual time; "
            f"{len(self.failures)} failed"
        )


def many(seeds: list[int], store: Where = "memory") -> tuple[list[Verdict], Counter[str]]:
    """Simulate these seeds, and return the failures and the figures."""
    figures: Counter[str] = Counter()
    failures = []
    for seed in seeds:
        cases = [Case(seed, store=store)]
        if store == "memory" and seed % EVERY == 0:
            cases.append(Case(seed, store="sqlite"))
        for case in cases:
            verdict = simulate(case)
            told = "" if case.store == "memory" else ON_SQLITE
            figures.update({f"{told}{what}": times for what, times in verdict.figures.items()})
            figures[f"{told}seeds"] += 1
            figures[f"{told}{VIRTUAL}"] += round(verdict.seconds)
            if verdict.problems:
                failures.append(verdict)
    return failures, figures


def sweep(
    seeds: Iterable[int],
    *,
    least: int,
    seconds: float = 0.0,
    jobs: int = 1,
    store: Where = "memory",
    most_failures: int = 5,
    tell: Callable[[str], object] | None = None,
) -> Sweep:
    """Simulate at least ``least`` of the seeds, and more until ``seconds`` have passed.

    Ends early after ``most_failures`` failures, or by Ctrl-C, and returns the results so far.
    """
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

    with suppress(KeyboardInterrupt):
        for chunk, (bad, found) in _carried_out(chunks(), jobs, store):
            done += len(chunk)
            failures += bad
            figures += found
            if tell is not None:
                tell(f"{done} seeds in {time.monotonic() - began:.0f} s, failed: {[v.case.command for v in failures]}")
            if len(failures) >= most_failures:
                break
    return Sweep(done, failures, figures, time.monotonic() - began)


def _carried_out(
    chunks: Iterator[list[int]], jobs: int, store: Where
) -> Iterator[tuple[list[int], tuple[list[Verdict], Counter[str]]]]:
    if jobs == 1:
        for chunk in chunks:
            yield chunk, many(chunk, store)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=100) as pool:
        pending = [(chunk, pool.submit(many, chunk, store)) for chunk in islice(chunks, 2 * jobs)]
        while pending:
            chunk, future = pending.pop(0)
            yield chunk, future.result()
            pending += [(more, pool.submit(many, more, store)) for more in islice(chunks, 1)]


def fresh() -> Iterator[int]:
    """Random seeds, which in all likelihood were never used."""
    return count(int.from_bytes(os.urandom(6)))


def hash_in_fresh_process(seed: int, hash_seed: int, store: Where = "memory") -> str:
    """The trace hash of a seed, computed in a new process with this PYTHONHASHSEED."""
    told = subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--seed", str(seed), "--store", store, "--hash"],
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
        capture_output=True,
        text=True,
        check=True,
    )
    return told.stdout.strip()
