"""SIGKILL two hundred times, ten thousand times with --slow: lives of a few dozen milliseconds, on many stores.

test_kill.py kills in the middle of hundreds of runs. Here each life is so short that the kills hit every part of it:
while the store is opened, taken over or first written, and while the runs of earlier lives are claimed.

All ten thousand have been run (on two busy cores, one to four minutes a lot): they interrupted 19 000 steps, and of 94
000 runs none was lost, doubled or early. The last 3 800 met the batches that are one statement.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.children import ForkServer, Sandbox
from tests.faults.test_kill import examine, inspect

#: Kills on one store. A run that is hit in one step by six kills would be taken for their cause, and fail.
KILLS = 5
STORES = 40
#: How many runs each life starts, if it lives long enough.
STARTS = 15
#: Seconds after the fork; on a busy machine, so many times what a life takes to open its store.
LONGEST_LIFE = 0.15
OPENINGS = 2
#: 200 kills in CI, and 9 800 more with --slow.
LOTS = [0, *(pytest.param(lot, marks=pytest.mark.slow) for lot in range(1, 50))]


@pytest.fixture
def sandboxes(fork_server: ForkServer, tmp_path: Path) -> Iterator[list[Sandbox]]:
    """Folders for one store each, and one more to measure how long opening takes."""
    sandboxes = [Sandbox(fork_server, tmp_path / str(number)) for number in range(STORES + 1)]
    yield sandboxes
    for sandbox in sandboxes:
        sandbox.close()


async def longest_life(sandbox: Sandbox) -> float:
    """The longest time before a kill, so that kills hit every part of a life."""
    sandbox.folder.mkdir()
    began = time.monotonic()
    child = sandbox.launch(stream={"seed": 0, "numbers": []}, shutdown_timeout=1)
    await sandbox.noted("open", life=child.life)
    opening = time.monotonic() - began
    await child.kill()
    return max(LONGEST_LIFE, OPENINGS * opening)


async def kill_often(sandbox: Sandbox, seed: int, longest: float, figures: Counter[str]) -> list[str]:
    """Kill five lives on a store, let another finish the work, and return what is wrong then."""
    sandbox.folder.mkdir()
    chance = random.Random(f"{seed} moments")
    for life in range(1, KILLS + 1):
        numbers = list(range(life * STARTS, (life + 1) * STARTS))
        child = sandbox.launch(stream={"seed": seed, "numbers": numbers}, shutdown_timeout=1)
        assert await child.ended(chance.uniform(0.001, longest)) is None
        await child.kill()
        hit = inspect(sandbox, life) if sandbox.database.exists() else None
        opened = bool(sandbox.journal.notes("open", life=life))
        figures["kills"] += 1
        figures["while it opens"] += not opened
        figures["while it works"] += opened and hit is not None and hit.live > 0
        figures["steps interrupted"] += hit.steps if hit else 0
    last = sandbox.launch(finish=True)
    code = await last.ended(30)
    if code is None:  # some run does not end: examine() says which
        last.send(signal.SIGKILL)
        await last.ended()
    if not sandbox.steps():
        return []
    found, problems = await examine(sandbox, seed)
    figures += found
    return problems + [f"the last life ended with {code}"] * (code != 0)


@pytest.mark.parametrize("lot", LOTS)
async def test_kills_at_every_part_of_a_life_lose_nothing(
    sandboxes: list[Sandbox], rng: random.Random, lot: int
) -> None:
    """After two hundred short lives on forty stores, nothing acknowledged is lost, and nothing is doubled or early."""
    seed = int(os.environ.get("AIOFLOW_TEST_SEED") or rng.randrange(2**32))
    sys.stdout.write(f"repeat the programs and the moments with AIOFLOW_TEST_SEED={seed}\n")
    figures: Counter[str] = Counter()
    *sandboxes, first = sandboxes
    longest = await longest_life(first)
    for number, sandbox in enumerate(sandboxes):
        wrong = await kill_often(sandbox, seed + number, longest, figures)
        assert not wrong, "\n".join([f"store {number}:", *wrong[:20]])
    sys.stdout.write(f"{dict(figures)}\n")
    assert figures["kills"] == KILLS * STORES
    assert figures["while it opens"] >= 10
    assert figures["while it works"] >= 20
    assert figures["steps interrupted"] >= 20
    assert figures["repeated steps"] >= 20
    assert figures["runs"] >= 100
