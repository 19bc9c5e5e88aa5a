"""The simulation finds bugs: each mutant of the product is noticed, by the simulation or by a test."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.simulation.mutants import MUTANTS, Drifted, Mutant, applied
from tests.simulation.world import Case, Verdict, simulate

#: The number of seeds within which a mutant must be noticed.
SEEDS = 1000


def killer(mutant: Mutant) -> Verdict | None:
    """The first seed that notices a mutant; the one that noticed it last is tried first."""
    with applied(mutant):
        for seed in (mutant.seed, *range(SEEDS)):
            verdict = simulate(Case(seed, store=mutant.store))
            if verdict.problems:
                return verdict
    return None


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if not m.tests], ids=lambda mutant: mutant.name)
def test_the_simulation_notices(mutant: Mutant) -> None:
    """Each mutant makes a seed fail that passes without it."""
    found = killer(mutant)
    assert found is not None
    assert found.case.seed < SEEDS
    sys.stdout.write(f"seed {found.case.seed}: {found.problems[0]}\n")
    assert not simulate(found.case).problems


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.tests], ids=lambda mutant: mutant.name)
def test_a_test_notices(mutant: Mutant) -> None:
    """Each mutant whose effect the engine makes up for elsewhere fails a test of the function that it breaks."""
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
    """There are at least twenty mutants, each with a name of its own, and all of them change the product."""
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 20
    assert all(mutant.module.startswith(("aioflow.", "aioflow_memory.", "aioflow_sqlite.")) for mutant in MUTANTS)


def test_a_mutant_that_does_not_apply_raises() -> None:
    """A mutant that no longer applies raises, so that it does not pass for one that was noticed."""
    gone = Mutant("gone", "aioflow.timers", "Timers.pop", "no such words", "")
    with pytest.raises(Drifted, match=r"gone: Timers\.pop has 'no such words' 0 times"), applied(gone):
        pass
