"""Every file in examples/ runs alone, and says what it promises to say."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
#: Seconds for one example: it may sleep, and the machine may be busy.
PATIENCE = 60

#: example -> patterns of lines, in the order in which they are printed; other lines may stand between them.
LINES = {
    "01_hello.py": [
        r"1\. Hello world!",
        r"2\. Hello world!",
        r"3\. Hello world!",
        r"Goodbye\.",
        r"name='world' greetings=3",
    ],
}


@contextmanager
def running(example: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """An example in a process of its own, in an empty folder, its output readable as it comes."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AIOFLOW_", "COV_"))}
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / example)],
        cwd=folder,
        env=environment | {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "error"},
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


def missing(patterns: list[str], output: str) -> list[str]:
    """The first pattern that no line matches after the line of the one before it, and those after it."""
    lines = iter(output.splitlines())
    for place, pattern in enumerate(patterns):
        if not any(re.fullmatch(pattern, line) for line in lines):
            return patterns[place:]
    return []


def test_every_example_is_run() -> None:
    """There are examples, and each of them is expected to say something."""
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted(LINES)


@pytest.mark.parametrize("example", LINES)
def test_an_example_runs_alone(example: str, tmp_path: Path) -> None:
    """In an empty folder it ends with exit code 0, without complaint, and prints the expected lines."""
    with running(example, tmp_path) as process:
        output, complaints = process.communicate(timeout=PATIENCE)
    assert (process.returncode, complaints) == (0, "")
    assert not missing(LINES[example], output), output


@pytest.mark.parametrize(
    ("number", "last", "code", "rest"),
    [
        # As README.md shows it: the step that said so ends, and is committed.
        (signal.SIGINT, "1. Hello world!", 0, "2. Hello world!\n3. Hello world!\nGoodbye.\n"),
        # Whether the step that said so was committed is open: it may run again, the first one may not.
        (signal.SIGKILL, "2. Hello world!", -9, "(2. Hello world!\n)?3. Hello world!\nGoodbye.\n"),
    ],
    ids=["ctrl-c", "plug pulled"],
)
def test_hello_goes_on_where_it_was(tmp_path: Path, number: int, last: str, code: int, rest: str) -> None:
    """Interrupted in its middle and started again, the run is found and goes on with what it had counted."""
    with running("01_hello.py", tmp_path) as first:
        assert first.stdout is not None
        for line in first.stdout:
            if line == f"{last}\n":
                break
        first.send_signal(number)
        assert first.communicate(timeout=PATIENCE) == ("", "")
    assert first.returncode == code

    with running("01_hello.py", tmp_path) as second:
        output, complaints = second.communicate(timeout=PATIENCE)
    assert (second.returncode, complaints) == (0, "")
    lines = output.splitlines(keepends=True)
    lines.remove("Found the run that was interrupted.\n")  # before or after a step that was due at once
    assert re.fullmatch(f"{rest}name='world' greetings=3\n", "".join(lines)), output


def test_a_missing_line_is_noticed() -> None:
    """Lines are looked for whole, and in their order."""
    assert missing(["one", "three"], "one\ntwo\nthree\n") == []
    assert missing(["one", "two", "one"], "one\ntwo\nthree\n") == ["one"]
    assert missing(["on"], "one") == ["on"]
