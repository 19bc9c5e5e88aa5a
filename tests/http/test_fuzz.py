"""Sends what the OpenAPI description allows, and what it does not, to a real server, and checks the responses."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode, checks

from aioflow.http.messages import Models
from aioflow.http.openapi import describe
from aioflow.registry import Registry, definition_of
from tests.http.flows import ALL, SECRET, Broken
from tests.programs import read_until, running

ROOT = Path(__file__).parents[2]
#: How many cases are tried for each operation, once of valid and once of invalid ones.
FEW, MANY = 25, 1000

#: The workflows of the server, and its operations.
FLOWS = [flow for flow in ALL if flow is not Broken]
OPERATIONS = [
    (method.upper(), path)
    for path, methods in describe(Registry(map(definition_of, FLOWS)), Models())["paths"].items()
    for method in methods
]

#: A server of the workflows of these tests, except the one that raises on purpose. Its long polls and streams are
#: short.
PROGRAM = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from aioflow import Engine
from aioflow.http import api, runs, stream
from tests.http.test_fuzz import FLOWS

runs.LONGEST_WAIT = stream.LONGEST_STREAM = 0.02
app = api(Engine("sqlite:///fuzz.db", workflows=FLOWS))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    """A server with a few runs, its URL, and its folder. What it logs must not have an unforeseen error."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "fuzzed.py").write_text(PROGRAM)
    with running("-m", "uvicorn", "--port", "0", "--no-access-log", "fuzzed:app", folder=folder) as process:
        url = read_until(process.stderr, r".*running on (http://\S+) .*")[1]
        with httpx.Client(base_url=url, trust_env=False) as client:
            for number in range(3):
                for name, context in (("expense", {"amount": number}), ("count", {}), ("nap%2Fof the cat", {})):
                    assert client.post(f"/workflows/{name}/runs", json={"context": context}).status_code == 201
        yield process, url, folder
        process.send_signal(signal.SIGTERM)
        output, complaints = process.communicate(timeout=30)
    for text in (output, complaints):
        assert "Exception in ASGI" not in text, text
        assert "a bug in aioflow" not in text, text
        assert "request failed" not in text, text


@pytest.fixture(scope="module")
def description(server: tuple[subprocess.Popen[str], str, Path]) -> Any:
    """The server's description of itself."""
    return schemathesis.openapi.from_url(f"{server[1]}/openapi.json")


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_the_description_is_kept(description: Any, method: str, path: str, mode: GenerationMode, count: int) -> None:
    """Whatever is sent, the response is no 5xx, and has a status, type and shape that the description has."""
    asked = _ask(description[path][method], mode, count)
    assert asked or mode is GenerationMode.NEGATIVE


def test_all_that_is_described_is_asked(description: Any) -> None:
    """The server describes exactly the operations that these tests try."""
    found = {(each.ok().method.upper(), each.ok().path) for each in description.get_all_operations()}
    assert found == set(OPERATIONS)


def _ask(operation: Any, mode: GenerationMode, count: int) -> int:
    """Send so many cases of an operation, and return how many there were."""
    cases = operation.as_strategy(generation_mode=mode)
    asked = 0

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases, run_id=st.integers(1, 12), known=st.booleans())
    def ask(case: Any, run_id: int, known: bool) -> None:
        nonlocal asked
        asked += 1
        if known and "run_id" in (case.path_parameters or {}):
            case.path_parameters["run_id"] = run_id
        answer = case.call()
        if answer.status_code == 405 and mode is GenerationMode.NEGATIVE:
            return  # an id with a slash may make another path
        assert SECRET not in answer.text
        case.validate_response(
            answer,
            checks=[
                checks.not_a_server_error,
                checks.CHECKS.get_one("status_code_conformance"),
                checks.CHECKS.get_one("content_type_conformance"),
                checks.CHECKS.get_one("response_schema_conformance"),
            ],
        )

    try:
        ask()
    except Unsatisfiable:  # an operation without input has no invalid cases
        assert (mode, asked) == (GenerationMode.NEGATIVE, 0)
    return asked
