"""Makes a failing case smaller."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.simulation import program
from tests.simulation.faults import KINDS
from tests.simulation.world import Case


def shrink(case: Case, fails: Callable[[Case], bool]) -> Case:
    """Leave out engines, kinds of faults, events and runs, as long as the case still fails."""
    found = True
    while found:
        found = False
        for smaller in _smaller(case):
            if fails(smaller):
                case, found = smaller, True
                break
    return case


def _smaller(case: Case) -> Iterator[Case]:
    whole = program.make(case.seed)
    engines = min(whole.engines, case.engines)
    yield from (case._replace(engines=fewer) for fewer in range(1, engines))
    if case.events and any(act.what == "emit" for act in whole.acts):
        yield case._replace(events=False)
    left = [kind for kind in KINDS if kind not in case.faults]
    if len(left) > 1:  # first try without any faults
        yield case._replace(faults=frozenset(KINDS))
    yield from (case._replace(faults=case.faults | {kind}) for kind in left)
    runs = [script.number for script in whole.scripts if script.at is not None and script.number not in case.runs]
    if len(runs) > 1:
        yield from (case._replace(runs=case.runs | {number}) for number in runs)
