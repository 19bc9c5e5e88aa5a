"""The simulation finds bugs: each of those that are planted in the product is noticed, by it or by a test."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.simulation.mutants import MUTANTS, Drifted, Mutant, applied
from tests.simulation.world import Case, Verdict, simulate

#: Within so many seeds.
SEEDS = 1000


def killer(mutant: Mutant) -> Verdict | None:
    """The first seed that notices it; the one that did so last is tried first."""
    with applied(mutant):
        for seed in (mutant.seed, *range(SEEDS)):
            verdict = simulate(Case(seed, store=mutant.store))
            if verdict.problems:
                return verdict
    return None


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if not m.tests], ids=lambda mutant: mutant.name)
def test_the_simulation_notices(mutant: Mutant) -> None:
    """A seed fails with the bug, and does not fail without it."""
    found = killer(mutant)
    assert found is not None
    assert found.case.seed < SEEDS
    sys.stdout.write(f"seed {found.case.seed}: {found.problems[0]}\n")
    assert not simulate(found.case).problems


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.tests], ids=lambda mutant: mutant.name)
def test_a_test_notices(mutant: Mutant) -> None:
    """What the engine makes good by other means fails a test of the part that is broken."""
    plant = ["-p", "tests.simulation.planted", "--mutant", mutant.name]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *plant, mutant.tests],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "1 failed" in ran.stdout


def test_there_are_enough() -> None:
    """At least twenty, each with a name of its own, and none of them in the oracle."""
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 20
    assert all(mutant.module.startswith(("aioflow.", "aioflow_memory.", "aioflow_sqlite.")) for mutant in MUTANTS)


def test_a_mutant_that_does_not_fit_is_told() -> None:
    """A mutant that no longer applies fails, so that it is not taken for one that was noticed."""
    gone = Mutant("gone", "aioflow.timers", "Timers.pop", "no such words", "")
    with pytest.raises(Drifted, match=r"gone: Timers\.pop has 'no such words' 0 times"), applied(gone):
        pass
