"""SIGKILL, EIO and ENOSPC at the writes and syncs of a small life, by strace: nothing acknowledged is lost.

strace counts each system call per thread, and the writes are of one: the thread of the store's writer. Without --slow a
sample of the places is tried, spread evenly from a random first one.
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
from tests.faults.children import PATIENCE, Child, House, Nursery
from tests.faults.images import Acknowledged, problems

#: How SQLite writes, and how it syncs.
SYNCS = "fdatasync,fsync"
WRITES = f"pwrite64,ftruncate,{SYNCS}"
ORDERS = 3
#: Places to try of each fault without --slow.
SAMPLE = 24


@pytest.fixture(scope="module")
def order_office() -> Iterator[Nursery]:
    """The process that forks lives which can be traced."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    nursery = Nursery("-m", "tests.faults.orders")
    yield nursery
    nursery.close()


@pytest.fixture
def houses(order_office: Nursery, tmp_path: Path) -> Iterator[Houses]:
    """Stores, one after the other."""
    houses = Houses(order_office, tmp_path)
    yield houses
    houses.close()


class Houses:
    """Makes a store for each life."""

    def __init__(self, nursery: Nursery, folder: Path) -> None:
        self._nursery = nursery
        self._folder = folder
        self._houses: list[House] = []

    def build(self) -> House:
        """A new store; the one before is gone."""
        self.close()
        folder = self._folder / str(len(self._houses))
        folder.mkdir()
        os.mkfifo(folder / "gate")
        self._houses.append(House(self._nursery, folder))
        return self._houses[-1]

    def close(self) -> None:
        """End who lives there, and remove the last store."""
        for house in self._houses[-1:]:
            house.close()
            shutil.rmtree(house.folder, ignore_errors=True)


@contextmanager
def traced(child: Child, folder: Path, *options: str) -> Iterator[None]:
    """Trace a life that has not begun yet, into the file ``trace``; it may begin in the block."""
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


async def live(house: House, *options: str, **job: int) -> tuple[int | None, list[str]]:
    """Let a life be lived under strace, with the arguments of ``orders.live``: its exit code, and what was traced."""
    return await to_thread.run_sync(lived, house, options, {"orders": ORDERS, **job})


def lived(house: House, options: Sequence[str], job: dict[str, int]) -> tuple[int | None, list[str]]:
    """See ``live``."""
    gate = house.folder / "gate"
    child = house.bear(gate=str(gate), **job)
    with traced(child, house.folder, *options):
        os.close(os.open(gate, os.O_WRONLY))
        code = child.exit_code(PATIENCE)
    return code, (house.folder / "trace").read_text().splitlines()


def acknowledged(house: House) -> Acknowledged:
    """What the life noted."""
    noted = Acknowledged()
    for note in house.journal.notes("committed"):
        noted.transitions[note["run"], note["seq"]] = note["commit"]
    noted.events = {note["event"] for note in house.journal.notes("emitted")}
    return noted


async def check(house: House) -> list[str]:
    """What is wrong with the store after a life, and after the next one."""
    if not house.database.exists():
        assert not house.journal.notes("committed")
        return []
    wrong = []
    if house.journal.notes("open") and house.database.read_bytes()[18:20] != b"\2\2":
        wrong.append("it works without a WAL")
    return wrong + problems(house.database, acknowledged(house)) + await orders.go_on(house.database)


#: A system call, and which one of a life.
Place: TypeAlias = tuple[str, int]
CALL = re.compile(r"^(\d+) +(\w+)\(")


def places(trace: list[str]) -> list[Place]:
    """Every write and sync of a life, in their order."""
    calls = [match.groups() for line in trace if (match := CALL.match(line))]
    assert len({thread for thread, _ in calls}) == 1, "one thread writes"
    counts = Counter[str]()
    found = []
    for _, call in calls:
        counts[call] += 1
        found.append((call, counts[call]))
    return found


def some(request: pytest.FixtureRequest, rng: random.Random, found: list[Place]) -> list[Place]:
    """Which of them to try."""
    if request.config.getoption("--slow"):
        return found
    stride = max(len(found) // SAMPLE, 1)
    return found[rng.randrange(stride) :: stride]


FAULTS = ["signal=SIGKILL", "error=EIO", "error=ENOSPC"]


@pytest.mark.parametrize("fault", FAULTS)
async def test_fault_at_a_write_or_sync_loses_nothing(
    houses: Houses, rng: random.Random, request: pytest.FixtureRequest, fault: str
) -> None:
    """Whichever write or sync is the last one or fails, what was acknowledged is there, and all orders end."""
    code, trace = await live(houses.build(), "-e", f"trace={WRITES}")
    assert code == 0
    everywhere = places(trace)
    assert len(everywhere) > 100, f"the life is too short: {trace}"
    tried, figures, wrong = some(request, rng, everywhere), Counter[str](), list[str]()
    for call, number in tried:
        house = houses.build()
        code, trace = await live(house, "-e", f"trace={WRITES}", "-e", f"inject={call}:{fault}:when={number}")
        hits = [line for line in trace if "INJECTED" in line or "+++ killed by SIGKILL" in line]
        figures["hit"] += bool(hits)
        figures["died"] += code == -signal.SIGKILL
        figures["went on"] += code == 0 and bool(hits)
        figures["did not open"] += code == 1
        if code != 0 and (code != -signal.SIGKILL or fault != "signal=SIGKILL") and house.journal.notes("open"):
            wrong.append(
                f"{call} {number}: exit code {code} after it was open: {(house.folder / 'log').read_text()[-2000:]}"
            )
        wrong += [f"{call} {number} {hits[:1]}: {problem}" for problem in await check(house)]
    sys.stdout.write(f"{fault} at {len(tried)} of {len(everywhere)} writes and syncs: {dict(figures)}\n")
    assert not wrong, "\n".join(wrong[:20])
    assert figures["hit"] >= 0.9 * len(tried), "how much is written varies too much from life to life"
    assert figures["died" if fault == "signal=SIGKILL" else "went on"] >= 0.7 * figures["hit"]


DESCRIPTOR = re.compile(r"sync\((\d+)<([^>]*)>")
#: Without events, so that one thing comes after the other, in every life alike.
LIGHT = {"events": False}
#: Enough for a life to copy its WAL back into the database while it works, more than once.
HEAVY = {"orders": 24, "load": 250_000, "events": False}


@pytest.mark.parametrize(("suffix", "job"), [("-wal", LIGHT), ("", HEAVY)], ids=["commit", "checkpoint"])
async def test_file_is_opened_anew_after_a_failed_sync(
    houses: Houses, rng: random.Random, suffix: str, job: dict[str, int]
) -> None:
    """After EIO from a sync nobody syncs that descriptor again, its path is opened once more, and all orders end."""
    options = ["-e", "trace=openat,close,fsync,fdatasync"]
    house = houses.build()
    code, trace = await live(house, *options, **job)
    assert code == 0
    found = [path for line in trace if (path := synced(line))]
    # A worker that takes the file over copies the WAL back; if that fails the engine cannot be opened. From then on it works.
    first = found.index(str(house.database), found.index(f"{house.database}-wal")) + 1
    places = [n for n, path in enumerate(found, 1) if path == f"{house.database}{suffix}" and n > first]
    assert len(places) > 1, "a life without such a sync"
    # The last one is of closing the store, when there is nobody left to open it.
    for place in rng.sample(places[:-1], min(len(places) - 1, 3)):
        house = houses.build()
        code, trace = await live(house, *options, "-e", f"inject={SYNCS}:error=EIO:when={place}", **job)
        assert code == 0
        (at,) = [n for n, line in enumerate(trace) if "INJECTED" in line]
        match = DESCRIPTOR.search(trace[at])
        assert match
        number, path = match.groups()
        assert path == f"{house.database}{suffix}"
        sys.stdout.write(f"sync {place} fails, of {Path(path).name}\n")
        after = trace[at + 1 :]
        again = [line for line in after[: closing_of(number, path, after)] if f"sync({number}<{path}>" in line]
        assert not again, "\n".join(trace[at:])
        assert any("openat(" in line and line.endswith(f"<{path}>") for line in after), "\n".join(trace[at:])
        assert not await check(house)


def synced(line: str) -> str | None:
    """The path of what is synced in a line of a trace."""
    match = DESCRIPTOR.search(line)
    return match[2] if match else None


def closing_of(number: str, path: str, trace: list[str]) -> int:
    """Where a descriptor is closed."""
    return next((n for n, line in enumerate(trace) if f" close({number}<{path}>" in line), len(trace))
