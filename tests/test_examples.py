"""Every file in examples/ runs by itself, and prints what is expected."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import httpx
import pytest

from tests.programs import read_until, running

EXAMPLES = Path(__file__).parent.parent / "examples"
#: Seconds for one example: it may sleep, and the machine may be busy.
PATIENCE = 60

#: example -> lists of patterns of lines. Those of one list match in order; other lines may come in between, and the
#: lists are independent, as the output of several runs may come in any order.
LINES = {
    "17_workers.py": [
        [
            r"worker \d+ works",
            r"worker \d+ was killed",
            r"worker \d+ ships, key \d+:2",
            r"30 orders shipped by [23] workers",
            r"transitions of an order: \[3\]",
            r"the killed worker shipped \d+ of them",
        ],
        [r"worker \d+ works", r"worker \d+ works", r"30 orders shipped .*"],
    ],
    "01_hello.py": [
        [
            r"1\. Hello world!",
            r"2\. Hello world!",
            r"3\. Hello world!",
            r"Goodbye\.",
            r"name='world' greetings=3",
        ],
    ],
    "02_retry.py": [
        [
            r"bank, 4242, payment 1:1: 429 Retry-After: 0\.3",
            r"bank, 4242, payment 1:1: timeout",
            r".*step failed, will be retried .*the line dropped.*",
            r"bank, 4242, payment 1:1: timeout",
            r"bank, 4242, payment 1:1: 200 receipt 17",
            r".*step failed, will be retried .*the mail server restarts.*",
            r"completed after 0:00:0\d\.\d+: 200 receipt 17",
            r"bank, 1111, payment 2:1: 402 card expired",
            r"Sorry: charge gave up after attempt 1",
            r"failed after .*: 402 card expired",
        ],
    ],
    "03_reminders.py": [
        ["To ann: tip 1", "To ann: tip 2", "To ann: tip 3", "tips to ann: completed after 3, thanks"],
        ["To bob: invitation 1", "To bob: see you, all 2 of you!", r"invitation to bob: completed after [123], thanks"],
        ["To eve: invitation 1", "To eve: invitation 3", "invitation to eve: failed after 3, no answer"],
    ],
    "04_approval.py": [
        ["train: to be approved by the clerk", "train: completed, .*'approved': False, 'by': 'meg'.*"],
        ["hotel: the withdrawal is (delivered|buffered)", "hotel: failed, withdrawn: booked twice"],
        [
            "yacht: to be approved by the clerk",
            "yacht: to be approved by the manager",
            "yacht: to be approved by the director",
            "yacht: failed, nobody decided",
        ],
    ],
    "05_loan.py": [
        ["800: offer > repay > repay > completed"],
        ["9000: review > offer > repay > failed, 8000 are lost"],
        ["5000: review > failed, refused"],
        ["700: failed, the offer expired"],
    ],
    "06_signup.py": [
        [
            r"To ann@example\.com: please confirm: /confirm\?email=ann%40example.com&token=[0-9a-f]{64}",
            r"\{'status': 'waiting', 'step': 'ask', 'error': None\}",
            r"\{'status': 'completed', 'step': 'welcome', 'error': None\}",
        ],
        [r"\{'created': True, 'status': 'running'\}", r"\{'signal': 'delivered'\}"],
        [r"To ann@example\.com: welcome!"],
    ],
    "07_polling.py": [
        ["report: submitted, once for 1:1", "report: not yet", "report: done", "report: completed, in time"],
        [
            "backup: submitted, once for 2:1",
            "backup: not yet",
            "backup: not yet",
            "backup: called off",
            r"backup: failed, not done within 0\.7 s",
        ],
    ],
    "10_testing.py": [[r".*::test_a_step_alone PASSED.*", r"=* 6 passed in .*"]],
    "11_appointments.py": [
        [
            "To ann: your massage is in 24 h, at 10:00",
            "To ann: your massage is in 1 h, at 10:00",
            r"To ann: how was your massage\?",
            "ann: occurred, 3 mails",
        ],
        [
            "To bob: your massage is in 24 h, at 11:00",
            "Bob has moved his by two days.",
            "To bob: your massage is in 24 h, at 11:00",
            "To bob: your massage is in 1 h, at 11:00",
            r"To bob: how was your massage\?",
            "bob: occurred, 4 mails",
        ],
        ["To eve: your massage is in 24 h, at 12:00", "Eve has cancelled hers.", "eve: cancelled, 1 mails"],
    ],
    "12_payment.py": [
        ["book: reserved", "book: shipped, paid by card", "book: completed, thanks"],
        ["piano: reserved", "piano: shipped, paid by invoice", "piano: completed, thanks"],
        ["lamp: reserved", "lamp: failed, cancelled"],
        ["vase: reserved", "vase: failed, never paid"],
    ],
    "13_fastapi.py": [
        [
            "the app opens its own things",
            "ann's ticket is waiting for Answer",
            "bob gets 403",
            r"bob lists \[\]",
            "ann's answer is delivered",
            r"ann's ticket is completed: \['It was order 17\.'\]",
            "the app closes its own things",
        ],
    ],
    "14_starlette.py": [
        [
            "started /ops/flows/runs/1",
            "id: 1",
            "id: 2",
            "id: 6",
            "event: end",
            r"\{'month': '2030-01', 'pages': 3\}",
            "1 reports",
            "This app answers only clients on its own machine",
        ],
        [".*the run API has no authorize=.*"],
    ],
    "15_expenses.py": [
        [
            "train: review_expense takes approved, note",
            r".*action failed, is open again .*",
            "train: say why; it is waiting still",
            r"train: completed, approved\. click [12]",
            "yacht, meg reviews: 400 .*Current status: waiting",
            "yacht, meg decides: 403 Permission denied",
            "yacht, dora decides: 200 completed",
            "yacht: refused by dora, a director",
        ],
        ["train: the second click is too late"],
    ],
    "16_statezero.py": [
        [
            r"expense_submit_review\(workflow_run_id, reviewer_notes, priority\)",
            r"nobody: Authentication credentials were not provided\.",
            "rita: ValidationError Input should be 'low', 'medium' or 'high'",
            "rita: .*'Step await_review executed', 'workflow_status': 'completed', 'current_step': 'await_review'.*",
            "rita, again: .*Current status: completed",
            "the expense is reviewed",
        ],
    ],
}
#: Examples that keep a database in the current folder.
CONTINUED = ["01_hello.py"]
#: Examples that have tests of their own.
APART = ["08_service.py", "09_tracing.py"]


def missing(patterns: list[str], output: str) -> list[str]:
    """Of patterns that lines must match one after another: the first that is not found, and all after it."""
    lines = iter(output.splitlines())
    for place, pattern in enumerate(patterns):
        if not any(re.fullmatch(pattern, line) for line in lines):
            return patterns[place:]
    return []


def test_every_example_is_run() -> None:
    """Every file in examples/ has expected output or tests of its own."""
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted([*LINES, *APART])


@pytest.mark.parametrize("example", LINES)
def test_an_example_runs_alone(example: str, tmp_path: Path) -> None:
    """In an empty folder it exits with 0, writes nothing to stderr, prints the expected lines, and leaves no file."""
    with running(EXAMPLES / example, folder=tmp_path) as process:
        output, complaints = process.communicate(timeout=PATIENCE)
    assert (process.returncode, complaints) == (0, ""), output
    for patterns in LINES[example]:
        assert not missing(patterns, output), output
    assert example in CONTINUED or not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "last", "code", "rest"),
    [
        # As in README.md: the step that printed this ends, and is committed.
        (signal.SIGINT, "1. Hello world!", 0, "2. Hello world!\n3. Hello world!\nGoodbye.\n"),
        # Whether the step that printed this was committed is unknown: it may run again, but not the one before.
        (signal.SIGKILL, "2. Hello world!", -9, "(2. Hello world!\n)?3. Hello world!\nGoodbye.\n"),
    ],
    ids=["ctrl-c", "plug pulled"],
)
def test_hello_goes_on_where_it_was(tmp_path: Path, number: int, last: str, code: int, rest: str) -> None:
    """After an interrupt and a restart, the run is found again and goes on with its count."""
    with running(EXAMPLES / "01_hello.py", folder=tmp_path) as first:
        read_until(first.stdout, re.escape(last))
        first.send_signal(number)
        assert first.communicate(timeout=PATIENCE) == ("", "")
    assert first.returncode == code

    with running(EXAMPLES / "01_hello.py", folder=tmp_path) as second:
        output, complaints = second.communicate(timeout=PATIENCE)
    assert (second.returncode, complaints) == (0, "")
    lines = output.splitlines(keepends=True)
    lines.remove("Found the run that was interrupted.\n")  # before or after a step that was due at once
    assert re.fullmatch(f"{rest}name='world' greetings=3\n", "".join(lines)), output


def test_the_service_ends_when_told_and_goes_on_when_started_again(tmp_path: Path) -> None:
    """At SIGTERM and at Ctrl-C the current sweep ends; the next process begins with the next sweep."""
    swept = 0
    for number in (signal.SIGTERM, signal.SIGINT):
        with running(EXAMPLES / "08_service.py", folder=tmp_path) as service:
            assert int(read_until(service.stdout, r"sweep (\d+) begins")[1]) == swept + 1
            read_until(service.stdout, f"sweep {swept + 2} begins")
            service.send_signal(number)
            output, complaints = service.communicate(timeout=PATIENCE)
        assert (service.returncode, complaints) == (0, "")
        swept = max(map(int, re.findall(r"sweep (\d+) ends", output)))
        assert output.endswith(f"sweep {swept} ends\nservice ended\n")


def test_the_traced_lines_of_one_run_tell_its_story(tmp_path: Path) -> None:
    """Each line is a JSON object, and the example's own lines have run, step and attempt, even those from a thread."""
    with running(EXAMPLES / "09_tracing.py", folder=tmp_path) as process:
        output, complaints = process.communicate(timeout=PATIENCE)
    assert (process.returncode, complaints, list(tmp_path.iterdir())) == (0, "", [])
    lines = [json.loads(line) for line in output.splitlines()]
    told = [line for line in lines if line.get("run_id") == 2 and line["level"] != "debug"]
    assert [(line["event"], line["workflow"], line["step"], line["attempt"]) for line in told] == [
        ("run started", "parcel", "pack", 1),
        ("weighed", "parcel", "pack", 1),
        ("step failed, will be retried", "parcel", "ship", 1),
        ("shipped", "parcel", "ship", 2),
        ("run completed", "parcel", "ship", 2),
    ]
    transitions = [line["kind"] for line in lines if line.get("run_id") == 2 and line["event"] == "transition"]
    assert transitions == ["start", "goto", "retry", "wake", "complete"]


def test_the_tested_example_is_run_by_pytest(tmp_path: Path) -> None:
    """Copied into a project without settings, the file is collected and passed by pytest as it is."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    copy = tmp_path / "test_order.py"
    copy.write_text((EXAMPLES / "10_testing.py").read_text(encoding="utf-8"), encoding="utf-8")
    with running("-m", "pytest", "-q", "-p", "no:asyncio", copy, folder=tmp_path) as process:
        output, complaints = process.communicate(timeout=PATIENCE)
    assert (process.returncode, complaints) == (0, ""), output
    assert re.search(r"^6 passed in", output, re.MULTILINE)


def test_uvicorn_serves_the_signup(tmp_path: Path) -> None:
    """With the command in its docstring, uvicorn serves the app on a database of its own, and it ends at SIGTERM."""
    with running("-m", "uvicorn", "--app-dir", EXAMPLES, "06_signup:app", "--port", "0", folder=tmp_path) as server:
        url = read_until(server.stderr, r".*running on (http://\S+) .*")[1]
        answer = httpx.post(f"{url}/signup", json={"email": "ann@example.com"}, timeout=PATIENCE, trust_env=False)
        assert (answer.status_code, answer.json()["created"]) == (202, True)
        read_until(server.stdout, "To ann@example.com: please confirm: .*")
        server.send_signal(signal.SIGTERM)
        _, complaints = server.communicate(timeout=PATIENCE)
    assert "Application shutdown complete" in complaints
    assert (tmp_path / "aioflow.db").exists()


def test_a_missing_line_is_noticed() -> None:
    """``missing`` matches whole lines, in order."""
    assert missing(["one", "three"], "one\ntwo\nthree\n") == []
    assert missing(["one", "two", "one"], "one\ntwo\nthree\n") == ["one"]
    assert missing(["on"], "one") == ["on"]
