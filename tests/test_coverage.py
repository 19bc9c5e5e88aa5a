"""Every branch of the modules that make decisions is tested, by these test files, which take seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: The pure modules that decide, and the committer, on which everything depends.
COVERED = ("codec", "committer", "interventions", "openings", "retry", "timers", "transitions")
BY = (
    "test_action_transitions.py",
    "test_assignment.py",
    "test_codec_edges.py",
    "test_committer.py",
    "test_contexts.py",
    "test_failure_edges.py",
    "test_retry.py",
    "test_timers.py",
    "test_transitions.py",
    "test_waiting_transitions.py",
)


def run(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "coverage", *arguments]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_branch_of_what_decides_is_tested(tmp_path: Path) -> None:
    """These test files, with the same examples each time, cover all lines and branches of the modules that decide."""
    data, report = f"--data-file={tmp_path}/coverage", tmp_path / "coverage.json"
    include = "--include=" + ",".join(f"aioflow/{module}.py" for module in COVERED)
    tests = [f"tests/{name}" for name in BY]
    options = ["-q", "-x", "-p", "no:cacheprovider", "--hypothesis-profile=few", "--seed=0"]
    # Without --rcfile=, the project's `source` would override --include, and measuring other modules costs time.
    run(ROOT, "run", "--branch", "--rcfile=", data, include, "-m", "pytest", *options, *tests)
    run(ROOT, "json", data, include, "-q", "-o", str(report))
    found = json.loads(report.read_text())["files"]
    assert set(found) == {f"aioflow/{module}.py" for module in COVERED}
    left = [
        f"{name}: lines {file['missing_lines']}, branches {file['missing_branches']}"
        for name, file in found.items()
        if file["missing_lines"] or file["missing_branches"]
    ]
    if left:
        pytest.fail("Not tested:\n" + "\n".join(left), pytrace=False)
