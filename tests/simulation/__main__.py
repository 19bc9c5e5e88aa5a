"""The simulation from the shell: many seeds, for hours if asked, or one seed again. See README.md."""

from __future__ import annotations

import argparse
import sys
from itertools import count

from tests.simulation.program import MOST_ENGINES
from tests.simulation.shrink import shrink
from tests.simulation.sweep import fresh, sweep
from tests.simulation.world import Case, simulate


def main() -> int:
    """Do what the command line says; the exit code is 1 if something failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", type=int, help="how many seeds at the least")
    parser.add_argument("--seconds", type=float, default=0.0, help="go on with further seeds for so long")
    parser.add_argument("--start", type=int, help="the first seed; without it, seeds that were never used")
    parser.add_argument("--jobs", type=int, default=1, help="how many processes")
    parser.add_argument("--failures", type=int, default=5, help="end after so many")
    parser.add_argument("--progress", action="store_true", help="tell how far it is, also where stderr is no terminal")
    parser.add_argument("--seed", type=int, help="repeat this one")
    parser.add_argument("--without-runs", default="", help="script numbers, with commas")
    parser.add_argument("--engines", type=int, default=MOST_ENGINES, help="at the most")
    parser.add_argument("--without-faults", default="", help="kinds, with commas")
    parser.add_argument("--without-events", action="store_true", help="nobody emits any")
    parser.add_argument("--store", choices=["memory", "sqlite"], default="memory", help="sqlite: all on real files")
    parser.add_argument("--trace", action="store_true", help="print what happens")
    parser.add_argument("--hash", action="store_true", help="print the hash of what happens, and nothing else")
    parser.add_argument("--shrink", action="store_true", help="look for the smallest case that still fails")
    options = parser.parse_args()
    return one(options) if options.seed is not None else all_of(options)


def one(options: argparse.Namespace) -> int:
    """Repeat one case."""
    case = Case(
        options.seed,
        frozenset(int(number) for number in options.without_runs.split(",") if number),
        options.engines,
        frozenset(kind.strip() for kind in options.without_faults.split(",") if kind),
        options.store,
        not options.without_events,
    )
    if options.shrink:
        if not simulate(case).problems:
            say("it does not fail")
            return 0
        case = shrink(case, lambda smaller: bool(simulate(smaller).problems))
    verdict = simulate(case, say if options.trace else None)
    if options.hash:
        say(verdict.trace)
        return 0
    for problem in verdict.problems:
        say(problem)
    say(f"{verdict.callbacks} callbacks, {verdict.seconds:.1f} s of virtual time, trace {verdict.trace}")
    say(f"repeat it: {case.command}")
    return bool(verdict.problems)


def all_of(options: argparse.Namespace) -> int:
    """Simulate many seeds."""
    seeds = fresh() if options.start is None else count(options.start)
    tell = (lambda line: sys.stderr.write(f"\r{line}")) if options.progress or sys.stderr.isatty() else None
    swept = sweep(
        seeds,
        least=options.seeds or 500,
        seconds=options.seconds,
        jobs=options.jobs,
        store=options.store,
        most_failures=options.failures,
        tell=tell,
    )
    for line in swept.report():
        say(line)
    for what, times in sorted(swept.figures.items()):
        say(f"    {what}: {times}")
    for what in swept.unmet:
        say(f"too rare: {what}")
    if swept.failures:
        case = swept.failures[0].case
        say(f"the smallest: {shrink(case, lambda smaller: bool(simulate(smaller).problems)).command}")
    return bool(swept.failures or swept.unmet)


def say(line: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
