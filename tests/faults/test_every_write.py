"""SIGKILL, EIO and ENOSPC injected by strace at the writes and syncs of a small program: nothing acknowledged is lost.

strace counts each system call per thread, and only one thread writes: that of the store's writer. Without --slow a
sample of the places is tried, evenly spread from a random first one.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import pytest
from anyio import to_thread

from tests.faults import orders
from tests.faults.children import PATIENCE, Child, ForkServer, Sandbox
from tests.faults.images import Acknowledged, problems

#: The system calls by which SQLite writes, and syncs.
SYNCS = "fdatasync,fsync"
WRITES = f"pwrite64,ftruncate,{SYNCS}"
ORDERS = 3
#: How many places are tried for each fault without --slow.
SAMPLE = 24


@pytest.fixture(scope="module")
def order_server() -> Iterator[ForkServer]:
    """The server that forks processes which can be traced."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    fork_server = ForkServer("-m", "tests.faults.orders")
    yield fork_server
    fork_server.close()


@pytest.fixture
def sandboxes(order_server: ForkServer, tmp_path: Path) -> Iterator[Sandboxes]:
    """Stores, one after the other."""
    sandboxes = Sandboxes(order_server, tmp_path)
    yield sandboxes
    sandboxes.close()


class Sandboxes:
    """Makes a store for each life."""

    def __init__(self, fork_server: ForkServer, folder: Path) -> None:
        self._fork_server = fork_server
        self._folder = folder
        self._sandboxes: list[Sandbox] = []

    def build(self) -> Sandbox:
        """Make a new store, and remove the one before."""
        self.close()
        folder = self._folder / str(len(self._sandboxes))
        folder.mkdir()
        os.mkfifo(folder / "gate")
        self._sandboxes.append(Sandbox(self._fork_server, folder))
        return self._sandboxes[-1]

    def close(self) -> None:
        """Kill the processes of the last store, and remove it."""
        for sandbox in self._sandboxes[-1:]:
            sandbox.close()
            shutil.rmtree(sandbox.folder, ignore_errors=True)


@contextmanager
def traced(child: Child, folder: Path, *options: str) -> Iterator[None]:
    """Trace a process, which waits for its gate, into the file ``trace`` while the block runs, which opens the gate."""
    command = ["strace", "-f", "-y", "-o", str(folder / "trace"), *options, "-p", str(child.pid)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        first = tracer.stderr.readline()
        if "attached" not in first:
            tracer.kill()
            pytest.skip(f"strace cannot trace here: {first.strip()}")
        try:
            yield
        finally:
            if child.exit_code(PATIENCE) is None:
                os.kill(child.pid, signal.SIGKILL)
            tracer.stderr.read()


async def live(sandbox: Sandbox, *options: str, **job: int) -> tuple[int | None, list[str]]:
    """Run one life under strace, with the arguments of ``orders.live``, and return its exit code and the trace."""
    return await to_thread.run_sync(lived, sandbox, options, {"orders": ORDERS, **job})


def lived(sandbox: Sandbox, options: Sequence[str], job: dict[str, int]) -> tuple[int | None, list[str]]:
    """Like ``live``, synchronously."""
    gate = sandbox.folder / "gate"
    child = sandbox.launch(gate=str(gate), **job)
    with traced(child, sandbox.folder, *options):
        os.close(os.open(gate, os.O_WRONLY))
        code = child.exit_code(PATIENCE)
    return code, (sandbox.folder / "trace").read_text().splitlines()


def acknowledged(sandbox: Sandbox) -> Acknowledged:
    """What the life has noted as acknowledged."""
    noted = Acknowledged()
    for note in sandbox.journal.notes("committed"):
        noted.transitions[note["run"], note["seq"]] = note["commit"]
    noted.events = {note["event"] for note in sandbox.journal.notes("emitted")}
    return noted


async def check(sandbox: Sandbox) -> list[str]:
    """The problems of the store after a life, and after another process has finished its work."""
    if not sandbox.database.exists():
        assert not sandbox.journal.notes("committed")
        return []
    wrong = []
    if sandbox.journal.notes("open") and sandbox.database.read_bytes()[18:20] != b"\2\2":
        wrong.append("it works without a WAL")
    return wrong + problems(sandbox.database, acknowledged(sandbox)) + await orders.go_on(sandbox.database)


#: A system call's name, and its number among those of that name in a life.
Place: TypeAlias = tuple[str, int]
CALL = re.compile(r"^(\d+) +(\w+)\(")


def places(trace: list[str]) -> list[Place]:
    """Every write and sync of a life, in order."""
    calls = [match.groups() for line in trace if (match := CALL.match(line))]
    assert len({thread for thread, _ in calls}) == 1, "one thread writes"
    counts = Counter[str]()
    found = []
    for _, call in calls:
        counts[call] += 1
        found.append((call, counts[call]))
    return found


def some(request: pytest.FixtureRequest, rng: random.Random, found: list[Place]) -> list[Place]:
    """The places to try."""
    if request.config.getoption("--slow"):
        return found
    stride = max(len(found) // SAMPLE, 1)
    return found[rng.randrange(stride) :: stride]


FAULTS = ["signal=SIGKILL", "error=EIO", "error=ENOSPC"]


@pytest.mark.parametrize("fault", FAULTS)
async def test_fault_at_a_write_or_sync_loses_nothing(
    sandboxes: Sandboxes, rng: random.Random, request: pytest.FixtureRequest, fault: str
) -> None:
    """Whichever write or sync fails or is killed, what was acknowledged is in the store, and all orders complete."""
    code, trace = await live(sandboxes.build(), "-e", f"trace={WRITES}")
    assert code == 0
    everywhere = places(trace)
    assert len(everywhere) > 100, f"the life is too short: {trace}"
    tried, figures, wrong = some(request, rng, everywhere), Counter[str](), list[str]()
    for call, number in tried:
        sandbox = sandboxes.build()
        code, trace = await live(sandbox, "-e", f"trace={WRITES}", "-e", f"inject={call}:{fault}:when={number}")
        hits = [line for line in trace if "INJECTED" in line or "+++ killed by SIGKILL" in line]
        figures["hit"] += bool(hits)
        figures["died"] += code == -signal.SIGKILL
        figures["went on"] += code == 0 and bool(hits)
        figures["did not open"] += code == 1
        if code != 0 and (code != -signal.SIGKILL or fault != "signal=SIGKILL") and sandbox.journal.notes("open"):
            wrong.append(
                f"{call} {number}: exit code {code} after it was open: {(sandbox.folder / 'log').read_text()[-2000:]}"
            )
        wrong += [f"{call} {number} {hits[:1]}: {problem}" for problem in await check(sandbox)]
    sys.stdout.write(f"{fault} at {len(tried)} of {len(everywhere)} writes and syncs: {dict(figures)}\n")
    assert not wrong, "\n".join(wrong[:20])
    assert figures["hit"] >= 0.9 * len(tried), "how much is written varies too much from life to life"
    assert figures["died" if fault == "signal=SIGKILL" else "went on"] >= 0.7 * figures["hit"]


DESCRIPTOR = re.compile(r"sync\((\d+)<([^>]*)>")
#: Without events, so that every life does the same things in the same order.
LIGHT = {"events": False}
#: Enough for a life to copy its WAL back into the database more than once while it works.
HEAVY = {"orders": 24, "load": 250_000, "events": False}


@pytest.mark.parametrize(("suffix", "job"), [("-wal", LIGHT), ("", HEAVY)], ids=["commit", "checkpoint"])
async def test_file_is_opened_anew_after_a_failed_sync(
    sandboxes: Sandboxes, rng: random.Random, suffix: str, job: dict[str, int]
) -> None:
    """After EIO from a sync that descriptor is never synced again, the file is opened anew, and all orders complete."""
    options = ["-e", "trace=openat,close,fsync,fdatasync"]
    sandbox = sandboxes.build()
    code, trace = await live(sandbox, *options, **job)
    assert code == 0
    found = [path for line in trace if (path := synced(line))]
    # A worker that takes over the file copies the WAL back first; if that fails, the engine cannot be opened.
    first = found.index(str(sandbox.database), found.index(f"{sandbox.database}-wal")) + 1
    places = [n for n, path in enumerate(found, 1) if path == f"{sandbox.database}{suffix}" and n > first]
    assert len(places) > 1, "a life without such a sync"
    # The last one is made while the store closes, when nothing is left that would open the file.
    for place in rng.sample(places[:-1], min(len(places) - 1, 3)):
        sandbox = sandboxes.build()
        code, trace = await live(sandbox, *options, "-e", f"inject={SYNCS}:error=EIO:when={place}", **job)
        assert code == 0
        (at,) = [n for n, line in enumerate(trace) if "INJECTED" in line]
        match = DESCRIPTOR.search(trace[at])
        assert match
        number, path = match.groups()
        assert path == f"{sandbox.database}{suffix}"
        sys.stdout.write(f"sync {place} fails, of {Path(path).name}\n")
        after = trace[at + 1 :]
        again = [line for line in after[: closing_of(number, path, after)] if f"sync({number}<{path}>" in line]
        assert not again, "\n".join(trace[at:])
        assert any("openat(" in line and line.endswith(f"<{path}>") for line in after), "\n".join(trace[at:])
        assert not await check(sandbox)


def synced(line: str) -> str | None:
    """The path of the file that a line of a trace syncs."""
    match = DESCRIPTOR.search(line)
    return match[2] if match else None


def closing_of(number: str, path: str, trace: list[str]) -> int:
    """The index of the line that closes a descriptor."""
    return next((n for n, line in enumerate(trace) if f" close({number}<{path}>" in line), len(trace))
