"""The benchmarks: each is a program that runs alone and prints its figures as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
#: The programs, with arguments that make them short.
PROGRAMS = {
    "throughput.py": "--runs 20 --rounds 1 --outstanding 5 --serial 2",
    "latency.py": "--signals 3 --rounds 1 --waiting 5",
    "recovery.py": "--runs 5 --rounds 1",
    "over_http.py": "--calls 10 --rounds 1 --connections 2",
    "timers.py": "--timers 20 --seconds 1 --lead 2 --rounds 1",
    "waiting.py": "--runs 10 --rounds 1",
    "events.py": "--events 20 --lead 2 --rounds 1 --future 10",
    "postgres.py": "--runs 50 --rounds 1 --outstanding 10 --dead 20",
}
#: What they import.
PARTS = {"bare.py", "measuring.py", "raw.py", "three_steps.py"}
#: They sleep for long.
LONG = {"waiting.py", "events.py", "postgres.py"}


def test_all_programs_are_named_here() -> None:
    """Every file in benchmarks/ is one of the programs, or a part of them."""
    assert {path.name for path in FOLDER.glob("*.py")} == PROGRAMS.keys() | PARTS


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in PROGRAMS]
)
def test_a_benchmark_prints_figures(name: str, tmp_path: Path) -> None:
    """A short run of it ends without an error, and prints a JSON object."""
    program = [sys.executable, str(FOLDER / name), *PROGRAMS[name].split()]
    done = subprocess.run(program, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), dict)
