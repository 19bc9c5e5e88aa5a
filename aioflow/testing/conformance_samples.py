"""What the conformance tests share: sample rows, the changes that write them, and the second handle."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest

from aioflow.changes import Amend, Change, Emit, Listen, Mark, Move, Post, Result, Start
from aioflow.clock import SECOND, Micros
from aioflow.model import Arm, Reuse, Run, Signal, Transition, TransitionKind
from aioflow.plans import EventRecord, Listener, Plan
from aioflow.store import Claim, EventQuery, PlanQuery, Store

#: The tests' present, and how long their leases are.
NOW: Final[Micros] = 1_750_000_000_000_000
LEASE: Final[Micros] = 30 * SECOND

KNOWN: Final = [("order", "1")]
ENDED: Final = ("completed", "failed", "cancelled")


def a_run(run_id: int = 1, **columns: Any) -> Run:
    """A run about to execute its first step, with nobody to do it; ``columns`` are what differs."""
    run = Run(
        id=run_id,
        workflow="order",
        version="1",
        key=None,
        parent_id=None,
        event_id=None,
        created_at=NOW,
        status="running",
        step="pay",
        next_step=None,
        seq=1,
        fence=1,
        owner=None,
        visit=1,
        failures=0,
        hops=0,
        crashes=0,
        marked=0,
        waiting_for=None,
        wake_at=None,
        arms=None,
        input=None,
        deadline=None,
        failure=None,
        progress=None,
        data='{"total":17}',
        error=None,
        traceback=None,
        updated_at=NOW,
        ended_at=None,
    )
    return run._replace(**columns)


def a_sleeper(run_id: int, wake_at: Micros | None, **columns: Any) -> Run:
    """A run that waits until ``wake_at``."""
    return a_run(run_id, **{"status": "waiting", "waiting_for": "sleep", "wake_at": wake_at, **columns})


def arms(*names: str | tuple[str, str | None]) -> str:
    """The column of a wait for these: a name, or a name and a key."""
    pairs = [(name, None) if isinstance(name, str) else name for name in names]
    return json.dumps([Arm("signal", name, key, "ship", message=False) for name, key in pairs])


def a_waiter(run_id: int, *names: str | tuple[str, str | None], since: Micros = NOW, **columns: Any) -> Run:
    """A run that waits for "paid", or for what is named, since ``since``."""
    wait = {"status": "waiting", "waiting_for": "signal", "arms": arms(*names or ("paid",)), "updated_at": since}
    return a_run(run_id, **{**wait, **columns})


def a_signal(id_: int, run_id: int = 0, **columns: Any) -> Signal:
    """A signal "paid" without key, sent at ``NOW`` plus its id; ``columns`` are what differs."""
    signal = Signal(
        id=id_,
        run_id=run_id,
        name="paid",
        key=None,
        payload='{"amount":17}',
        message=0,
        broadcast=0,
        signal_id=None,
        sent_at=NOW + id_,
        expires_at=None,
    )
    return signal._replace(**columns)


def an_event(id_: int = 1, **columns: Any) -> EventRecord:
    """The event "ordered" of the entity "e1", at ``NOW``; ``columns`` are what differs."""
    event = EventRecord(
        id=id_,
        event_id=f"event-{id_}",
        name="ordered",
        namespace="*",
        entity_id="e1",
        entity_type="Order",
        entity='{"total":17}',
        at=NOW,
        occurrence=1,
        status="pending",
        mail_id=1_000 + id_,
        recorded_at=NOW,
        occurred_at=None,
    )
    return event._replace(**columns)


def event_arms(*names: str | tuple[str, str | None]) -> str:
    """The column of a wait for these events: a name, or a name and an entity_id."""
    pairs = [(name, None) if isinstance(name, str) else name for name in names]
    return json.dumps([Arm("event", name, key, "ship", message=False) for name, key in pairs])


def an_event_waiter(run_id: int, *names: str | tuple[str, str | None], **columns: Any) -> Run:
    """A run that waits for the event "ordered", or for what is named."""
    wait = {"waiting_for": "event", "arms": event_arms(*names or ("ordered",))}
    return a_waiter(run_id, **{**wait, **columns})


def a_listener(workflow: str = "order", offset: Micros = 0, **columns: Any) -> Listener:
    """That a workflow starts from "ordered", in any namespace; ``columns`` are what differs."""
    return Listener(workflow, "ordered", "*", offset)._replace(**columns)


def an_ended(run_id: int, status: str = "completed", **columns: Any) -> Run:
    """A run that has ended."""
    return a_run(run_id, **{"status": status, "ended_at": NOW, **columns})


def a_transition(run: Run, *, kind: TransitionKind, commit_id: int | None = None) -> Transition:
    """The transition that led to the row; its commit id is its own unless one is given."""
    if commit_id is None:
        commit_id = run.id * 1_000_000 + run.seq
    return Transition(run.id, run.seq, run.updated_at, run.step, 1, kind, 1_500, None, commit_id)


def starting(run: Run, *, reuse: Reuse = "never", commit_id: int | None = None) -> Start:
    """The change that inserts the run."""
    return Start(run, a_transition(run, kind="start", commit_id=commit_id), reuse)


def moving(run: Run, *, kind: TransitionKind = "goto", commit_id: int | None = None, **columns: Any) -> Move:
    """The change that leads on from the row ``run``, one transition further; ``columns`` are what it changes."""
    to = run._replace(**{"seq": run.seq + 1, "updated_at": run.updated_at + SECOND, **columns})
    return Move(to, run.seq, run.fence, a_transition(to, kind=kind, commit_id=commit_id))


def resuming(run: Run, *takes: int, **columns: Any) -> Move:
    """The change by which a waiting run takes signals and runs on; ``columns`` are what else differs."""
    on: dict[str, Any] = {"status": "running", "waiting_for": None, "wake_at": None, "arms": None}
    return moving(run, kind="signal", **{**on, **columns})._replace(takes=takes)


def marking(run: Run) -> Mark:
    """The change that marks the row ``run``."""
    return Mark(run.id, run.seq, run.fence)


def cancelling(run_id: int, *, commit_id: int) -> Amend:
    """The change that cancels a run that lives, and leaves any other alone."""

    def decide(run: Run) -> tuple[Run, Transition] | None:
        if run.status in ENDED:
            return None
        to = run._replace(
            status="cancelled",
            seq=run.seq + 1,
            fence=run.fence + 1,
            owner=None,
            waiting_for=None,
            wake_at=None,
            arms=None,
            ended_at=NOW,
        )
        return to, a_transition(to, kind="cancel", commit_id=commit_id)

    return Amend(run_id, decide, commit_id)


def hopping(run_id: int, *, commit_id: int) -> Amend:
    """The change that adds one to ``hops``, whatever the row."""

    def decide(run: Run) -> tuple[Run, Transition]:
        to = run._replace(hops=run.hops + 1, seq=run.seq + 1)
        return to, a_transition(to, kind="goto", commit_id=commit_id)

    return Amend(run_id, decide, commit_id)


async def put(store: Store, *runs: Run) -> None:
    """Start the runs."""
    results = await store.apply([starting(run) for run in runs], NOW)
    assert [result.outcome for result in results] == ["applied"] * len(runs)


async def post(store: Store, *signals: Signal, now: Micros = NOW) -> list[Result]:
    """Put signals into the mailbox, which has to take them."""
    results = await store.apply([Post(signal) for signal in signals], now)
    assert [result.outcome for result in results] == ["applied"] * len(signals)
    return results


async def outcomes(store: Store, *changes: Change, now: Micros = NOW) -> list[str]:
    """Apply a batch and return what became of each change."""
    return [result.outcome for result in await store.apply(changes, now)]


async def mailbox(store: Store, now: Micros = NOW) -> list[tuple[int, list[int]]]:
    """Waiting runs, in the order that ``mail`` tells them, each with the ids of its signals."""
    return [(run.id, [signal.id for signal in signals]) for run, signals, _ in await store.mail(None, 1_000, now)]


async def do(store: Store, change: Start | Move | Mark | Amend) -> Run:
    """Apply one change, which has to apply, and return its row."""
    [result] = await store.apply([change], NOW)
    assert result.outcome == "applied"
    assert result.run is not None
    return result.run


async def emit(store: Store, *events: EventRecord, now: Micros = NOW) -> list[Result]:
    """Record events, which has to apply."""
    results = await store.apply([Emit(event) for event in events], now)
    assert [result.outcome for result in results] == ["applied"] * len(events)
    return results


async def listen(store: Store, *listeners: Listener) -> None:
    """Let workflows start from events."""
    workflows = tuple(dict.fromkeys(listener.workflow for listener in listeners))
    assert await store.apply([Listen(workflows, listeners)], NOW) == [Result("applied")]


async def the_event(store: Store, event_id: str = "event-1") -> EventRecord:
    """The event as it stands."""
    [event] = await store.select(EventQuery(event_id=(event_id,)), NOW)
    return event


async def plans(store: Store) -> list[Plan]:
    """All plans, in the order of their deadlines."""
    deadlines = await store.due((-(2**62), 0), (2**62, 0), 10_000, NOW, "plan")
    found = {
        plan.id: plan for plan, _ in await store.select(PlanQuery(ids=tuple(due.run_id for due in deadlines)), NOW)
    }
    assert [(found[id_].due, found[id_].attempts) for _, id_, _ in deadlines] == [(at, seq) for at, _, seq in deadlines]
    return [found[deadline.run_id] for deadline in deadlines]


async def planned(store: Store) -> list[tuple[str, Micros]]:
    """All plans in the order of their deadlines: workflow, and how long after ``NOW`` it is due."""
    return [(plan.workflow, plan.due - NOW) for plan in await plans(store)]


async def row(store: Store, run_id: int) -> Run:
    """The run as it stands."""
    [run] = await store.load([run_id], NOW)
    return run


async def log(store: Store, run_id: int) -> list[Transition]:
    """The run's whole history."""
    return await store.history(run_id, 0, 1_000, NOW)


async def claiming(store: Store, worker: int, now: Micros = NOW, **arguments: Any) -> Claim:
    """Claim with room for everything, for a worker that knows "order" and holds nothing."""
    return await store.claim(worker, **{"lease": LEASE, "limit": 100, "known": KNOWN, "held": [], **arguments}, now=now)


async def dying(store: Store, now: Micros = NOW) -> Micros:
    """Let the worker that claimed at ``now`` be dead, unreleased; return an instant at which it is.

    A lease dies of time. The lock of an exclusive store dies with its holder's handle.
    """
    if store.exclusive:
        await store.close()
        await store.open(now)
    return now + LEASE + 1


def ids(runs: list[Run]) -> list[int]:
    """The runs' ids, in order."""
    return [run.id for run in runs]


class SecondHandle:
    """The hook for tests that need two users of one store."""

    async def again(self, store: Store) -> Store | None:
        """Open the data of ``store`` a second time, as another process would; the tests close what they get.

        Args:
            store: what the fixture ``store`` gave; it is open, and stays so.

        Returns:
            The open second handle; ``store`` itself where users share one object that counts its openings; None if
            there can be none, and then these tests are skipped.
        """
        return None

    @asynccontextmanager
    async def second(self, store: Store) -> AsyncIterator[Store]:
        """The second handle, for the length of a ``with`` block."""
        other = await self.again(store)
        if other is None:
            pytest.skip("again() gives no second handle")
        try:
            yield other
        finally:
            await other.close()
