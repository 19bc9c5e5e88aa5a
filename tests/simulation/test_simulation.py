"""Engines, users and faults on virtual time: the invariants hold, and the simulation would notice if they did not."""

from __future__ import annotations

import sys

import pytest

from aioflow import interventions
from tests.simulation import model, oracle, program
from tests.simulation.faults import KINDS, plan
from tests.simulation.mutants import MUTANTS, applied
from tests.simulation.shrink import shrink
from tests.simulation.sweep import Sweep, hash_in_fresh_process, sweep
from tests.simulation.world import Case, simulate

#: How many seeds of the fixed set; `.ci/run` takes more, and adds fresh ones.
SEEDS = 120


def tell(swept: Sweep) -> None:
    """Print to the test's captured output what failed, and how to repeat it."""
    sys.stdout.writelines(f"{line}\n" for line in swept.report())


def test_the_fixed_seeds_hold() -> None:
    """No seed of a fixed set breaks an invariant, and all faults and races come up often enough."""
    swept = sweep(range(SEEDS), least=SEEDS)
    tell(swept)
    assert swept.seeds == SEEDS
    assert not swept.failures
    assert not swept.unmet


def test_a_sweep_that_meets_too_little_fails() -> None:
    """A situation that comes up too rarely is reported, as nothing is proved about it."""
    figures = sweep(range(3), least=3).figures
    figures["seeds"] = 500
    swept = Sweep(500, [], figures, 1.0)
    assert any(line.startswith("fault: kill: ") for line in swept.unmet)


def test_a_replace_whose_reply_was_lost_moves_the_event_once() -> None:
    """A ``replace`` whose reply was lost does not move the event again after another user has moved it."""
    assert not simulate(Case(428)).problems
    with applied(next(mutant for mutant in MUTANTS if mutant.name == "forget what was replaced")):
        assert simulate(Case(428)).problems


def test_a_start_that_raises_during_the_shutdown_is_not_logged_as_a_bug() -> None:
    """An engine that is closed while a start raises does not log that as a bug of its own."""
    assert not simulate(Case(2004126)).problems


@pytest.mark.parametrize("seed", [1649, 20003974, 30000806, 30002305])
def test_seeds_that_found_bugs_hold(seed: int) -> None:
    """The seeds that found a step begun after its next transition, two without a lease and one without a slot pass."""
    assert not simulate(Case(seed)).problems


def test_signals_of_others_are_found_after_a_failed_scan() -> None:
    """After a scan of the store has failed, signals that others sent are still found, though nobody writes again."""
    assert not simulate(Case(60003630, store="sqlite")).problems


def test_a_run_that_takeovers_hit_in_one_step_is_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose owners lose their leases in one step is failed (after two here, as six are rare), as modelled."""
    monkeypatch.setattr(interventions, "POISON_CRASHES", 2)
    for module in (model, oracle):
        monkeypatch.setattr(module, "DEATHS", 2)
    verdicts = (simulate(Case(seed)) for seed in (150, *range(1000)))
    hit = next(verdict for verdict in verdicts if verdict.figures["taken for what they died of"])
    assert not hit.problems


@pytest.mark.parametrize("seed", [1, 7, 18])
def test_a_seed_repeats_itself(seed: int) -> None:
    """New processes with other string hashes come to the same trace as this one, and another seed does not."""
    here = simulate(Case(seed))
    assert not here.problems
    assert {hash_in_fresh_process(seed, hash_seed) for hash_seed in (1, 2)} == {here.trace}
    assert here.trace != simulate(Case(seed + 100)).trace


@pytest.mark.parametrize("seed", [15, 65])
def test_a_seed_repeats_itself_on_sqlite(seed: int) -> None:
    """New processes with other string hashes come to the same trace on SQLite files and their crashes."""
    here = simulate(Case(seed, store="sqlite"))
    assert not here.problems
    assert {hash_in_fresh_process(seed, hash_seed, "sqlite") for hash_seed in (1, 2)} == {here.trace}


def test_what_is_left_out_does_not_happen() -> None:
    """A case without faults, runs or events has none of those that it leaves out."""
    seeds = [seed for seed in range(100) if not plan(seed, 3, frozenset()).quiet]
    programs = {seed: program.make(seed) for seed in seeds}
    seed = next(seed for seed in seeds if sum(script.at is not None for script in programs[seed].scripts) > 3)
    whole = simulate(Case(seed, events=False))
    quiet = simulate(Case(seed, faults=frozenset(KINDS), events=False))
    assert any(figure.startswith("fault") for figure in whole.figures)
    assert not any(figure.startswith("fault") for figure in quiet.figures)
    fewer = simulate(Case(seed, runs=frozenset({0, 1}), faults=frozenset(KINDS), events=False))
    assert fewer.figures["transition: start"] < quiet.figures["transition: start"]
    eventful = next(seed for seed in range(100) if simulate(Case(seed)).figures["event occurred in its time"])
    assert not simulate(Case(eventful, events=False)).figures["event emitted"]
    assert not quiet.problems
    assert not fewer.problems


def test_a_failing_seed_shrinks() -> None:
    """A failing case is shrunk by what its failure does not need, still fails, and has a command that repeats it."""

    def fails(case: Case) -> bool:
        return bool(simulate(case).problems)

    with applied(next(mutant for mutant in MUTANTS if mutant.name == "skip the fence")):
        failing = next(Case(seed) for seed in range(500) if fails(Case(seed)))
        small = shrink(failing, fails)
        assert fails(small)
    assert len(small.faults) > len(KINDS) // 3
    assert small.command.startswith(f"python -m tests.simulation --seed {failing.seed} ")
    assert not fails(small)
