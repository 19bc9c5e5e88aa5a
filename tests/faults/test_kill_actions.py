"""SIGKILL while actions are called: each acknowledged call has happened exactly once, and no refused call has.

A worker is killed fifteen times while actions are called by its own clerks, and by those of a client process, which
lives through all kills and whose calls the next worker answers. Then a last life finishes the work. The program is in
clerks.py.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from aioflow import Engine
from tests.faults.children import ForkServer, Sandbox

KILLS = 15
CLERKS = 4
#: The kinds of transition that the action's step may lead to, and the kind that one which raises leads to.
RETURNED = {"goto", "wait", "complete"}
RAISED = "reopen"


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    """A folder with a store, and processes that call actions on it."""
    if not hasattr(os, "fork"):
        pytest.skip("there is no fork() and no SIGKILL here")
    fork_server = ForkServer("-m", "tests.faults.clerks")
    sandbox = Sandbox(fork_server, tmp_path)
    yield sandbox
    sandbox.close()
    fork_server.close()


class Hit(NamedTuple):
    """What a kill hit: how many calls of act() had no outcome yet, and how many runs an action had claimed."""

    calls: int
    claimed: int


def inspect(sandbox: Sandbox, life: int) -> Hit:
    """Read a copy of the store as a kill left it."""
    answered = {
        note["token"] for what in ("served", "refused", "failed", "unknown") for note in sandbox.journal.notes(what)
    }
    calls = {note["token"] for note in sandbox.journal.notes("calling", life=life)} - answered
    with sandbox.copy() as db:
        (claimed,) = db.execute(
            "SELECT count(*) FROM runs WHERE status = 'running' AND input LIKE '[\"action\"%'"
        ).fetchone()
    return Hit(len(calls), claimed)


async def problems_of(sandbox: Sandbox) -> tuple[Counter[str], list[str]]:
    """Compare the store with what was noted: counts, and what is wrong."""
    noted = {
        what: {note["token"] for note in sandbox.journal.notes(what)}
        for what in ("calling", "ran", "served", "refused", "failed", "unknown")
    }
    problems: list[str] = []
    committed: Counter[str] = Counter()
    transitions: Counter[str] = Counter()
    async with Engine(sandbox.url, worker=False) as engine:
        runs = [run async for run in engine.iter_runs(order="id")]
        for run in runs:
            done = [str(token) for token in run.data["done"]]  # type: ignore[union-attr]
            committed.update(done)
            kinds = [row.kind for row in await engine.history(run.id)]
            after = Counter(kinds[place + 1] for place, kind in enumerate(kinds[:-1]) if kind == "action")
            transitions.update(after)
            if run.status not in {"running", "waiting", "completed"} or kinds[-1] == "action":
                problems.append(f"run {run.id} is {run.status} after {kinds[-1]}: {run.error}")
            if set(after) - RETURNED - {RAISED}:
                problems.append(f"run {run.id}: an action led to {after}")
            if sum(count for kind, count in after.items() if kind != RAISED) != len(done):
                problems.append(f"run {run.id}: {after} in its history, but {len(done)} calls in its Context")
    problems += [f"{token} has happened {count} times" for token, count in committed.items() if count != 1]
    happened = set(committed)
    problems += [f"{token} was acknowledged, and is lost" for token in noted["served"] - happened]
    problems += [f"{token} was refused, and has happened" for token in noted["refused"] & happened]
    problems += [f"{token} was refused, and has run" for token in noted["refused"] & noted["ran"]]
    problems += [f"{token} has failed, and has happened" for token in noted["failed"] & happened]
    problems += [f"{token} is to fail, and has happened" for token in happened if token.endswith("!")]
    problems += [f"{token} has happened, and never run" for token in happened - noted["ran"]]
    problems += [f"nobody has called {token}" for token in (happened | noted["ran"]) - noted["calling"]]
    figures = Counter({what: len(tokens) for what, tokens in noted.items()})
    figures.update(runs=len(runs), happened=len(happened), raised=transitions[RAISED])
    figures["happened unacknowledged"] = len(happened - noted["served"])
    return figures, problems


async def test_every_acknowledged_call_has_happened_once(sandbox: Sandbox, rng: random.Random) -> None:
    """Of actions called through fifteen kills, here and from a client process, none is lost or happens twice."""
    seed = int(os.environ.get("AIOFLOW_TEST_SEED") or rng.randrange(2**32))
    sys.stdout.write(f"repeat the calls and the moments with AIOFLOW_TEST_SEED={seed}\n")
    chance = random.Random(f"{seed} kills")
    hits: list[Hit] = []
    caller = None
    for _ in range(KILLS):
        child = sandbox.launch(seed=seed, clerks=CLERKS)
        await sandbox.noted("open", life=child.life)
        if caller is None:
            caller = sandbox.launch(seed=seed, clerks=CLERKS, worker=False)
            await sandbox.noted("served", life=caller.life)
        await sandbox.noted("served", chance.randint(1, 30), life=child.life)
        assert await child.ended(chance.uniform(0, 0.1)) is None
        await child.kill()
        hits.append(inspect(sandbox, child.life))
    assert caller is not None
    before = len(sandbox.journal.notes("served", life=caller.life))
    last = sandbox.launch(seed=seed, clerks=0)
    await sandbox.noted("served", before + 5, life=caller.life)  # the new worker answers them
    caller.send(signal.SIGTERM)
    assert await caller.ended() == 0
    last.send(signal.SIGTERM)
    assert await last.ended() == 0
    end = sandbox.launch(seed=seed, clerks=0)
    await sandbox.noted("settled", within=60, life=end.life)
    end.send(signal.SIGTERM)
    assert await end.ended() == 0
    figures, problems = await problems_of(sandbox)
    sys.stdout.write(f"calls and claimed runs that each kill hit: {[tuple(hit) for hit in hits]}\n{dict(figures)}\n")
    assert not problems, "\n".join(problems[:20])
    assert before > KILLS, "the process that only calls was hardly served"
    assert sum(hit.calls > 0 for hit in hits) >= KILLS // 2, f"too few kills came while actions were called: {hits}"
    assert sum(hit.claimed > 0 for hit in hits) >= KILLS // 3, f"too few kills came while an action ran: {hits}"
    assert figures["refused"], "no two clerks have met at a counter"
    assert figures["happened unacknowledged"], "no call was claimed by one life and ended by another"
