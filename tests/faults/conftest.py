"""Fixtures: processes that tests start and kill."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.children import House, Nursery


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """The server that forks the processes; it ends with the session."""
    if not hasattr(os, "fork"):
        pytest.skip("there is no fork() and no SIGKILL here")
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture(scope="session")
def post_office(nursery: Nursery) -> Iterator[Nursery]:
    """The same for the processes that send signals."""
    nursery = Nursery("-m", "tests.faults.letters")
    yield nursery
    nursery.close()


@pytest.fixture
def house(nursery: Nursery, tmp_path: Path) -> Iterator[House]:
    """A folder with a store, and processes on it that end with the test."""
    house = House(nursery, tmp_path)
    yield house
    house.close()
