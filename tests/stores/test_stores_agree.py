"""All stores, given the same random batches about events, answer the same and hold the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from aioflow.changes import Change, Emit, Listen, Occur, Replan, Result, Withdraw
from aioflow.model import Run
from aioflow.store import EventQuery, PlanQuery, Store
from aioflow.testing.conformance_samples import (
    NOW,
    a_listener,
    a_run,
    an_event,
    event_arms,
    moving,
    plans,
    resuming,
    starting,
)
from aioflow_memory import MemoryStore
from aioflow_postgres import PostgresStore
from aioflow_sqlite import SQLiteStore

NAMES = ["ordered", "paid"]
ENTITIES = [None, "e1", "e2"]


class Chooser:
    """Makes the next batch from what a store holds."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.ids = 0

    def next(self) -> int:
        self.ids += 1
        return self.ids

    async def batch(self, store: Store, runs: list[Run], now: int) -> list[Change]:
        rng = self.rng
        there = {(plan.event, plan.id): plan for plan in await plans(store)}
        mail = {mail.run.id: [signal.id for signal in mail.signals] for mail in await store.mail(None, 100, now)}
        changes: list[Change] = []
        for run in rng.sample(runs, min(len(runs), 3)):
            if run.status == "running":
                pairs = [(rng.choice(NAMES), rng.choice(ENTITIES)) for _ in range(rng.randint(1, 2))]
                wait: dict[str, Any] = {"status": "waiting", "waiting_for": "event", "arms": event_arms(*pairs)}
                changes.append(moving(run, kind="wait", **wait, commit_id=10**6 + self.next()))
            else:
                takes = rng.sample(mail.get(run.id, []), min(len(mail.get(run.id, [])), rng.randint(0, 2)))
                changes.append(resuming(run, *takes, commit_id=10**6 + self.next()))
        # Only a batch that parks no runs has events: whether a wait and an event of one batch meet is left open.
        if rng.random() < 0.6:
            changes = []
            events = rng.sample(range(1, 9), 3)
            for event in events:
                mine = [plan for plan in there.values() if plan.event == event]
                if mine and rng.random() < 0.5:
                    plan = rng.choice(mine)
                    if not plan.workflow:
                        changes.append(Occur(plan.id, f"event-{event}"))
                    elif rng.random() < 0.3:
                        changes.append(Replan(plan, rng.choice([None, now + 50]), "no"))
                    else:
                        run = a_run(100 + self.next(), created_at=now)
                        changes.append(starting(run)._replace(plan=plan.id))
                elif rng.random() < 0.2:
                    changes.append(Withdraw(f"event-{event}"))
                else:
                    record = an_event(
                        event, event_id=f"event-{event}", name=rng.choice(NAMES), entity_id=rng.choice(ENTITIES),
                        namespace=rng.choice(["*", "shop"]), at=now + rng.randint(-20, 20), mail_id=5_000 + self.next(),
                    )  # fmt: skip
                    changes.append(Emit(record, replace=rng.random() < 0.7))
            if rng.random() < 0.2:
                heard = [
                    a_listener(
                        workflow, rng.randint(-9, 9), event_name=rng.choice(NAMES), namespace=rng.choice(["*", "shop"])
                    )
                    for workflow in ("order", "order", "remind")
                ]
                changes.insert(rng.randint(0, len(changes)), Listen(("order", "remind"), tuple(heard)))
        return changes


async def told(store: Store, changes: list[Change], now: int) -> list[Result]:
    results = await store.apply(changes, now)
    return [
        result._replace(run_ids=tuple(sorted(result.run_ids)), plans=tuple(sorted(result.plans))) for result in results
    ]


async def held(store: Store, now: int) -> list[object]:
    found = await plans(store)
    return [
        await store.select(EventQuery(), now),
        await store.due((-(2**62), 0), (2**62, 0), 10_000, now, "plan"),
        sorted(await store.select(PlanQuery(ids=tuple(plan.id for plan in found)), now)),
        [(run, sorted(signals)) for run, signals, _ in await store.mail(None, 1_000, now)],
        replace(await store.stats(now), bytes=None),
    ]


async def test_stores_agree_on_events(tmp_path: Path, postgres_url: str, rng: Random) -> None:
    """After random batches about events and waits, some of them offered twice, all stores answer and hold the same."""
    stores: list[Store] = [MemoryStore(), SQLiteStore(f"sqlite:///{tmp_path}/a.db"), PostgresStore(postgres_url)]
    chooser = Chooser(rng)
    seen: Counter[str] = Counter()
    try:
        for store in stores:
            await store.open(NOW)
            await store.apply([starting(a_run(number)) for number in range(1, 6)], NOW)
        for step in range(300):
            now = NOW + 3 * step
            runs = await stores[0].load([1, 2, 3, 4, 5], now)
            changes = await chooser.batch(stores[0], runs, now)
            for _ in range(rng.choice([1, 1, 2])):
                results = [await told(store, changes, now) for store in stores]
                assert results[0] == results[1] == results[2], (step, changes)
                for change, result in zip(changes, results[0], strict=True):
                    seen[f"{type(change).__name__} {result.outcome}"] += 1
                    seen["mail"] += result.mail
            if rng.random() < 0.1:
                swept = [sorted(await store.expire(1_000, now)) for store in stores]
                assert swept[0] == swept[1] == swept[2]
            holds = [await held(store, now) for store in stores]
            assert holds[0] == holds[1] == holds[2], (step, changes)
    finally:
        for store in stores:
            await store.close()
    kinds = {"Emit applied", "Emit exists", "Occur applied", "Occur stale", "Withdraw applied", "Withdraw stale"}
    assert kinds | {"Start applied", "Replan applied", "Listen applied", "Move applied", "mail"} <= {
        kind for kind, number in seen.items() if number
    }, seen
