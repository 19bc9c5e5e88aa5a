"""The README's code and commands."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from aioflow.testing import TimeMachine

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_its_workflow_runs(tmp_path: Path) -> None:
    """The first program prints what the README says."""
    program = blocks("python")[0]
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "reminder 1 to a@example.com",
        "reminder 2 to a@example.com",
        "reminder 3 to a@example.com",
        "email='a@example.com' sent=3",
    ]


async def test_its_code_of_actions_runs(
    flow: TimeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The code about actions does what its comments say: it shows the open action with its schema, and calls it."""
    (actions,) = [block for block in blocks("python") if "@action" in block]
    imports = "from datetime import *\nfrom pydantic import BaseModel\nfrom aioflow import *\n"
    lines = "".join(f"    {line}\n" for line in actions.splitlines())
    (tmp_path / "readme_actions.py").write_text(f"{imports}\nasync def main(engine):\n{lines}    return run\n")
    monkeypatch.syspath_prepend(tmp_path)
    run = await importlib.import_module("readme_actions").main(flow)
    assert (run.status, run.current_step) == ("completed", "review")
    shown = capsys.readouterr().out
    assert shown.startswith("review_expense {'properties': {'approved': {'title': 'Approved', 'type': 'boolean'}")


def test_it_says_everything_once() -> None:
    """No heading and no paragraph stands in it twice, and it can be read in one go."""
    parts = [part for part in README.split("\n\n") if len(part) > 20]
    assert len(set(parts)) == len(parts)
    assert len(README.splitlines()) < 600


def test_its_workflow_has_at_most_20_lines() -> None:
    """The workflow of the first program has at most 20 lines."""
    program = blocks("python")[0]
    workflow = program[program.index("@workflow") : program.index("async def main")]
    assert len(workflow.strip().splitlines()) <= 20


@pytest.mark.parametrize("name", ["hello", "test"])
def test_its_commands_are_single_lines_that_bring_what_they_need(name: str) -> None:
    """Each command is one line that makes an environment, installs the project, and runs only from there."""
    found = re.search(rf"^<!-- {name}-command -->\n```\n(.*?)\n```$", README, re.MULTILINE | re.DOTALL)
    assert found is not None
    venv, install, run = found[1].split(" && ")
    assert "\n" not in found[1]
    assert venv == "python3 -m venv .venv"
    assert install.startswith(".venv/bin/pip install -q ")
    assert (
        run == {"hello": ".venv/bin/python examples/01_hello.py", "test": ".venv/bin/python -m pytest -q -n auto"}[name]
    )


def test_its_code_compiles() -> None:
    """Every Python block compiles, at least inside a coroutine."""
    for block in blocks("python")[1:]:
        compile("async def main():\n" + "".join(f"    {line}\n" for line in block.splitlines()), "README.md", "exec")


async def test_its_code_of_events_runs(
    flow: TimeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The code about events works: the deposit is paid, and a reminder is sent before the visit, none after a
    cancel."""
    (events,) = [block for block in blocks("python") if "@event_workflow" in block]
    imports = "from datetime import *\nfrom pydantic import BaseModel\nfrom aioflow import *\n"
    program, cancel = events.rstrip().rsplit("\n", 1)
    assert cancel.startswith('await engine.cancel_event("visit-7", runs=True)')
    lines = "".join(f"    {line}\n" for line in program.splitlines())
    (tmp_path / "readme_events.py").write_text(f"{imports}\nasync def main(engine):\n{lines}    return at\n")
    monkeypatch.syspath_prepend(tmp_path)
    at = await importlib.import_module("readme_events").main(flow)
    await flow.settle()
    (deposit,) = await flow.runs(workflow="event:Deposit", event_id="booked-7")
    assert (deposit.status, deposit.data["entity_id"], deposit.data["amount"]) == ("completed", "7", 20)
    assert capsys.readouterr().out == ""
    await flow.advance(at + timedelta(days=1, minutes=1) - flow.now)
    assert capsys.readouterr().out == f"To ann@example.com: you are expected at {at:%H:%M}\n"
    assert await flow.cancel_event("visit-7", runs=True)
    await flow.advance(days=2)
    assert capsys.readouterr().out == ""


async def test_its_code_over_http_runs(
    flow: TimeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The app of the code over HTTP answers each request shown below it, and refuses requests of another team."""
    (mounted,) = [block for block in blocks("python") if "app.mount(" in block]
    (actions,) = [block for block in blocks("python") if "@action" in block]
    requests = re.search(r"^```\n(POST /flows/workflows.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert requests is not None
    imports = "from datetime import timedelta\nfrom pydantic import BaseModel\nfrom aioflow import *\n"
    classes = actions[: actions.index("run = await")]
    (tmp_path / "readme_http.py").write_text(f"{imports}{classes}\n{mounted}")
    monkeypatch.syspath_prepend(tmp_path)
    app = importlib.import_module("readme_http").app
    asked = [re.fullmatch(r"(GET|POST) +(\S+) *(.*)", line) for line in requests[1].splitlines()]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://any.where") as client:
        for line in sorted(asked, key=lambda line: line is not None and line[1], reverse=True):  # POST before GET
            assert line is not None
            body = json.JSONDecoder().raw_decode(line[3])[0] if line[1] == "POST" else None
            stranger = await client.request(line[1], line[2], json=body)
            answer = await client.request(line[1], line[2], json=body, headers={"x-team": "finance"})
            assert answer.is_success, (line[0], answer.text)
            if not line[2].endswith("readyz"):
                assert stranger.status_code == 403, line[0]
            await flow.settle()
    run = await flow.get(1)
    assert (run.key, run.status, run.data["amount"]) == ("expense-7", "completed", 40)
