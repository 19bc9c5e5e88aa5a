"""Runs programs in processes of their own, and reads their output while they run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

#: The Python that runs them: AIOFLOW_PYTHON names that of another environment, with other versions of the dependencies.
PYTHON = os.environ.get("AIOFLOW_PYTHON", sys.executable)


@contextmanager
def running(*command: str | Path, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A Python process in an empty folder, whose output can be read while it runs."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AIOFLOW_", "COV_"))}
    process = subprocess.Popen(
        [PYTHON, *command],
        cwd=folder,
        env=environment | {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "error", "PYTEST_ADDOPTS": "-p no:cacheprovider"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def read_until(stream: IO[str] | None, pattern: str) -> re.Match[str]:
    """Read lines up to the first that matches the pattern as a whole."""
    assert stream is not None
    read = []
    for line in stream:
        read.append(line)
        if found := re.fullmatch(pattern, line.rstrip("\n")):
            return found
    raise AssertionError(f"It ended without a line like {pattern}:\n{''.join(read)}")
