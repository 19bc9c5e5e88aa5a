"""Fixtures: processes that tests start and kill."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.children import ForkServer, Sandbox


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """The server that forks the processes; it ends with the session."""
    if not hasattr(os, "fork"):
        pytest.skip("there is no fork() and no SIGKILL here")
    fork_server = ForkServer()
    yield fork_server
    fork_server.close()


@pytest.fixture(scope="session")
def letter_server(fork_server: ForkServer) -> Iterator[ForkServer]:
    """The same for the processes that send signals."""
    fork_server = ForkServer("-m", "tests.faults.letters")
    yield fork_server
    fork_server.close()


@pytest.fixture
def sandbox(fork_server: ForkServer, tmp_path: Path) -> Iterator[Sandbox]:
    """A folder with a store, and processes on it that end with the test."""
    sandbox = Sandbox(fork_server, tmp_path)
    yield sandbox
    sandbox.close()
