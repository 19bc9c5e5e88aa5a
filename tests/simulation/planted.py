"""A pytest plugin that plants a mutant: ``pytest -p tests.simulation.planted --mutant "fire early" tests/test_timers.py``."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests.simulation.mutants import MUTANTS, applied

_planted = ExitStack()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option --mutant."""
    parser.addoption("--mutant", required=True, help="which")


def pytest_configure(config: pytest.Config) -> None:
    """Apply the mutant."""
    name = config.getoption("--mutant")
    _planted.enter_context(applied(next(mutant for mutant in MUTANTS if mutant.name == name)))


def pytest_unconfigure() -> None:
    """Remove the mutant."""
    _planted.close()
