"""SIGKILL while events are emitted and start runs: each acknowledged event has its runs, and no event has one too many.

A worker is killed fifteen times while it emits. Then a last life finishes the work. The program is in occasions.py.
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
from tests.faults.occasions import ECHO, VISIT

KILLS = 15
EMITTERS = 4


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    """A folder with a store, and processes that emit events on it."""
    if not hasattr(os, "fork"):
        pytest.skip("there is no fork() and no SIGKILL here")
    fork_server = ForkServer("-m", "tests.faults.occasions")
    sandbox = Sandbox(fork_server, tmp_path)
    yield sandbox
    sandbox.close()
    fork_server.close()


class Hit(NamedTuple):
    """What a kill hit: calls of emit() that had not returned, due starts that were not made, and runs that executed."""

    calls: int
    due: int
    runs: int


def inspect(sandbox: Sandbox, life: int) -> Hit:
    """Read a copy of the store as a kill left it, and check that it has everything that was acknowledged."""
    emitted = {note["event"] for note in sandbox.journal.notes("emitted")}
    calls = {note["event"] for note in sandbox.journal.notes("emitting", life=life)} - emitted
    with sandbox.copy() as db:
        there = {event_id for (event_id,) in db.execute("SELECT event_id FROM events")}
        (due,) = db.execute(
            "SELECT count(*) FROM plans WHERE workflow <> '' AND due <= (SELECT max(updated_at) FROM runs)"
        ).fetchone()
        (runs,) = db.execute("SELECT count(*) FROM runs WHERE status = 'running'").fetchone()
    assert emitted <= there, f"acknowledged, and not in the store: {emitted - there}"
    return Hit(len(calls), due, runs)


async def problems_of(sandbox: Sandbox) -> tuple[Counter[str], list[str]]:
    """Compare the store with what was noted: counts, and what is wrong."""
    async with Engine(sandbox.url, worker=False) as engine:
        runs = [run.row async for run in engine.iter_runs(order="id")]
        events = await engine.events(limit=10_000)
    started = Counter((run.event_id, run.workflow) for run in runs)
    wanted: Counter[tuple[str | None, str]] = Counter()
    problems = [f"run {run.id} is {run.status}: {run.error}" for run in runs if run.status != "completed"]
    for event in events:
        starts = VISIT if event.name == "kill-visit" else ECHO
        wanted.update({(event.id, name): count for name, count in starts.items()})
        if event.status != "occurred":
            problems.append(f"event {event.id} is {event.status}")
    problems += [
        f"{key}: {started[key]} runs, not {wanted[key]}"
        for key in started.keys() | wanted.keys()
        if started[key] != wanted[key]
    ]
    known = {event.id for event in events}
    emitted = {note["event"] for note in sandbox.journal.notes("emitted")}
    problems += [f"event {lost} was acknowledged, and is not there" for lost in emitted - known]
    echoes = {event.id for event in events if event.name == "kill-echo"}
    if echoes != {f"echo of {event.id}" for event in events if event.name == "kill-visit"}:
        problems.append("a step's event is lost, or was emitted by none")
    if unknown := {run.id for run in runs} - {note["run"] for note in sandbox.journal.notes("began")}:
        problems.append(f"completed, and never begun: {unknown}")
    figures = Counter(
        acknowledged=len(emitted), events=len(events), runs=len(runs), unknown=len(known - emitted - echoes)
    )
    return figures, problems


async def test_every_acknowledged_event_starts_its_runs_once(sandbox: Sandbox, rng: random.Random) -> None:
    """Of events that are emitted, occur and start runs through fifteen kills, no start is lost or made twice."""
    seed = int(os.environ.get("AIOFLOW_TEST_SEED") or rng.randrange(2**32))
    sys.stdout.write(f"repeat the events and the moments with AIOFLOW_TEST_SEED={seed}\n")
    chance = random.Random(f"{seed} kills")
    hits: list[Hit] = []
    for _ in range(KILLS):
        child = sandbox.launch(seed=seed, emitters=EMITTERS)
        await sandbox.noted("emitted", chance.randint(1, 30), life=child.life)
        assert await child.ended(chance.uniform(0, 0.1)) is None
        await child.kill()
        hits.append(inspect(sandbox, child.life))
    last = sandbox.launch(seed=seed, emitters=0)
    await sandbox.noted("settled", within=60, life=last.life)
    last.send(signal.SIGTERM)
    assert await last.ended() == 0
    figures, problems = await problems_of(sandbox)
    sys.stdout.write(
        f"calls, due starts and runs that each kill hit: {[tuple(hit) for hit in hits]}\n{dict(figures)}\n"
    )
    assert not problems, "\n".join(problems[:20])
    assert sum(hit.calls > 0 for hit in hits) >= KILLS // 3, f"too few kills came while events were emitted: {hits}"
    assert sum(hit.due > 0 for hit in hits) >= KILLS // 5, f"too few kills came before starts that were due: {hits}"
    assert sum(hit.runs > 0 for hit in hits) >= KILLS // 3, f"too few kills came while runs were under way: {hits}"
