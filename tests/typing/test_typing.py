"""The types of the API: both type checkers accept good use, and find each mistake in its line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
GOOD, BAD = HERE / "good.py", HERE / "bad.py"

#: file name -> line -> the checker's error
Found = dict[str, dict[int, str]]


def run(*command: str) -> str:
    """The output of a checker on both files, which must fail because of the bad one."""
    paths = [str(path.relative_to(ROOT)) for path in (GOOD, BAD)]
    done = subprocess.run([*command, *paths], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@cache
def mypy() -> Found:
    """mypy's errors, with the project's own configuration."""
    found: Found = {}
    output = run(sys.executable, "-m", "mypy", "--no-error-summary", "--hide-error-context")
    for line in output.splitlines():
        said = re.fullmatch(r"(.+?):(\d+): (error|note): (.*)", line)
        assert said, line
        path, number, kind, text = said.groups()
        if kind == "error":
            found.setdefault(Path(path).name, {})[int(number)] = text
    return found


@cache
def basedpyright() -> Found:
    """basedpyright's errors, strict as the files demand."""
    found: Found = {}
    program = str(Path(sys.executable).with_name("basedpyright"))
    output = json.loads(run(program, "--pythonpath", sys.executable, "--outputjson"))
    assert output["summary"]["filesAnalyzed"] == 2
    for said in output["generalDiagnostics"]:
        line = said["range"]["start"]["line"] + 1
        found.setdefault(Path(said["file"]).name, {})[line] = said["message"]
    return found


def report(path: Path, lines: dict[int, str]) -> str:
    source = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(f"{path.name}:{line}: {source[line - 1].strip()}: {text}" for line, text in sorted(lines.items()))


CHECKERS = pytest.mark.parametrize("checker", [mypy, basedpyright], ids=lambda checker: checker.__wrapped__.__name__)


@CHECKERS
def test_good_use_is_accepted(checker: Callable[[], Found]) -> None:
    """Neither checker reports an error in good.py, which includes the types that it asserts."""
    said = checker().get(GOOD.name, {})
    assert not said, report(GOOD, said)


@CHECKERS
def test_each_mistake_is_found(checker: Callable[[], Found]) -> None:
    """Each checker reports an error in every line of bad.py that is marked, and in no other."""
    said = checker().get(BAD.name, {})
    source = BAD.read_text(encoding="utf-8").splitlines()
    marked = {number for number, line in enumerate(source, 1) if line.endswith("# E")}
    assert len(marked) > 50
    missed = dict.fromkeys(marked - said.keys(), "not found")
    wrong = {line: text for line, text in said.items() if line not in marked}
    assert not missed, report(BAD, missed)
    assert not wrong, report(BAD, wrong)


def test_error_for_wrong_arguments_of_create_context_has_a_name() -> None:
    """The error for wrong arguments of ``create_context`` has a name that says so, in both checkers."""
    source = BAD.read_text(encoding="utf-8").splitlines()
    lines = [number for number, line in enumerate(source, 1) if "start(Created" in line and line.endswith("# E")]
    assert len(lines) > 5
    for checker in (mypy, basedpyright):
        for line in lines:
            assert "ArgumentsDoNotFitCreateContext" in checker()[BAD.name][line]
