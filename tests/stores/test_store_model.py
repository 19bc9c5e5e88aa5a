"""Every store, driven at random beside a model of it: after every rule both hold the same.

Batches are made so that the port determines their results: what a store may judge before or after another change is not
in one batch with it.

A failure prints its whole sequence. Shortening it takes minutes: `--slow -o faulthandler_timeout=0` does so.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aioflow.changes import Amend, Change, Emit, Listen, Mark, Move, Occur, Post, Replan, Result, Start, Withdraw
from aioflow.clock import SECOND
from aioflow.discovery import find_store
from aioflow.errors import StoreRefused
from aioflow.model import Arm, Deadline, Run
from aioflow.plans import BLOCKED, EventRecord, Listener
from aioflow.store import EventQuery, Planned, PlanQuery, RunQuery, Store
from aioflow.testing.conformance_samples import NOW, a_run, a_signal, a_transition, cancelling, hopping, moving
from aioflow.timers import START
from tests.flows import STORES
from tests.postgres import Schemas
from tests.stores.model import ENDED, HOUR, WEEK, Model

T = TypeVar("T")

LEASE = 30 * SECOND
KEYS = [None, "a", "b"]
NAMES = ["paid", "sent"]
EVENT_IDS = ["v1", "v2", "v3"]
NAMESPACES = ["*", "shop", "office"]
OFFSETS = [-HOUR, 0, SECOND]
WORKFLOWS = [("order", "1"), ("order", "2"), ("refund", "1")]
DATA = [{}, {"n": 1}, {"n": 1.0}, {"n": True, "deep": {"x": [1, {"y": None}], "z": "ä"}}, {"deep": {"x": [True]}}]
FILTERS: list[dict[str, Any]] = [
    {}, {"n": 1}, {"n": True}, {"deep": {"z": "ä"}}, {"deep": {"x": [1, {"y": None}]}}, {"deep": {"x": [1]}}, {"no": None}
]  # fmt: skip
MARKED = [False, False, False, True]


class StoreMachine(RuleBasedStateMachine):
    """A store and its model, in a loop and a folder of their own."""

    def __init__(self, make: Callable[[Path], str | Store]) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.make = partial(make, Path(self.folder.name))
        self.now = NOW
        self.store: Store = find_store(self.make())
        self.uuid = self.do(self.store.open(self.now))
        self.model = Model()
        self.commits = count(1)
        self.given: dict[str, set[int]] = {"run": set(), "signal": set(), "event": set(), "worker": set()}
        self.offers: list[list[Change]] = []
        #: worker -> the end of its lease; for an exclusive store, only the worker that works the file
        self.leases: dict[int, int] = {}
        self.unread: set[int] = set()

    def do(self, verb: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(verb)

    def teardown(self) -> None:
        try:
            self.do(self.store.close())
        finally:
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()
            self.folder.cleanup()

    # ---- ids, time, workers

    @initialize(data=st.data())
    def work_is_under_way(self, data: st.DataObject) -> None:
        """Start with a worker, and with runs of which two wait, as otherwise most rules would find nothing to do."""
        self.workers = self.reserve("worker", 3)
        self.do(self.store.claim(self.workers[0], lease=LEASE, limit=0, known=WORKFLOWS, held=None, now=self.now))
        self.leases[self.workers[0]] = self.now + LEASE
        starts = [self.a_start(data, key=key, delayed=False) for key in (None, "a", "b")]
        self.apply([*starts])
        self.apply([self.a_wait(data, start.run) for start in starts[:2]])
        self.apply([self.a_listen(data)])

    def reserve(self, kind: Any, number: int = 1) -> list[int]:
        first = self.do(self.store.reserve(kind, number, self.now))
        ids = list(range(first, first + number))
        assert first >= 1
        assert not self.given[kind].intersection(ids), "these ids were given before"
        self.given[kind].update(ids)
        return ids

    def alive(self) -> list[int]:
        return [worker for worker, until in self.leases.items() if self.store.exclusive or until > self.now]

    def owners(self) -> st.SearchStrategy[int | None]:
        return st.sampled_from([None, *self.alive()])

    @rule(by=st.sampled_from([1, SECOND, LEASE, LEASE + 1, HOUR, WEEK]))
    def time_passes(self, by: int) -> None:
        self.now += by

    @precondition(lambda self: self.model.events.plans)
    @rule(data=st.data())
    def something_is_due(self, data: st.DataObject) -> None:
        plan = data.draw(st.sampled_from(sorted(self.model.events.plans.values())), "plan")
        if plan.due != BLOCKED:
            self.now = max(self.now, plan.due)

    @rule()
    def the_store_is_opened_anew(self) -> None:
        """Reopen the store, as after a restart. An exclusive store loses its lock then, while leases run on."""
        self.do(self.store.close())
        assert self.do(self.store.open(self.now)) == self.uuid
        if self.store.exclusive:
            self.leases.clear()

    # ---- changes

    def offer(self, changes: list[Change]) -> list[Result]:
        told = self.do(self.store.apply(changes, self.now))
        expected = self.model.apply(changes, self.now)
        assert len(told) == len(changes)
        for change, found, wanted in zip(changes, told, expected, strict=True):
            compare(change, found, wanted)
            self.unread.add(run_of(change))
            self.unread.update(run_of(part) for part in (change.also if isinstance(change, Move) else ()))
        if new := self.model.events.new:
            parts = [part for result in told for part in (result, *result.also)]
            ids = tuple(deadline.run_id for part in parts if part.event is not None for deadline in part.plans)
            assert len(ids) == len(new)
            self.model.events.learn(self.do(self.store.select(PlanQuery(ids=ids), self.now)))
        return told

    def apply(self, changes: list[Change]) -> None:
        if changes:
            self.offers.append(changes)
            self.offer(changes)

    @rule(data=st.data(), size=st.integers(1, 4))
    def runs_change(self, data: st.DataObject, size: int) -> None:
        """Starts, Moves, Marks and Amends in one batch, each of another run, and no two with one key."""
        changes: list[Change] = []
        runs: set[int] = set()
        keys: set[tuple[str, str | None]] = set()
        for _ in range(size):
            free = [
                run for run in self.model.runs.values()
                if run.id not in runs and (run.key is None or (run.workflow, run.key) not in keys)
            ]  # fmt: skip
            if not free or data.draw(st.integers(0, 5), "start?") == 5:
                start = self.a_start(data, key=data.draw(st.sampled_from(KEYS), "key"))
                if start.run.key is not None and (start.run.workflow, start.run.key) in keys:
                    continue
                changes.append(start)
                run = start.run
            else:
                run = data.draw(st.sampled_from(free), "run")
                changes.append(self.a_change(data, run))
            runs.add(run.id)
            keys.add((run.workflow, run.key))
        self.apply(changes)

    @precondition(lambda self: any(run.status == "running" for run in self.model.runs.values()))
    @rule(data=st.data())
    def a_step_starts_and_sends(self, data: st.DataObject) -> None:
        """A Move of a running run, alone in its batch, with changes that are part of it."""
        running = [run for run in self.model.runs.values() if run.status == "running"]
        run = data.draw(st.sampled_from(running), "run")
        move = self.a_step(data, run)
        also: list[Start | Post | Emit] = []
        keys: set[Any] = set()
        for _ in range(data.draw(st.integers(1, 3), "also")):
            part: Start | Post | Emit
            what = data.draw(st.sampled_from(["start", "post", "emit"]), "what")
            if what == "emit":
                part = self.an_emit(data)
                own = ("event", part.event.event_id)
                # Which occurrence of an event that the move replaces its own wait receives is left open.
                if part.replace and move.run.arms is not None:
                    continue
            elif what == "start":
                part = self.a_start(data, key=data.draw(st.sampled_from(KEYS), "key"), parent=run.id)
                own = None if part.run.key is None else (part.run.workflow, part.run.key)
            else:
                part = self.a_post(data, avoid=run.id)
                own = part.signal.signal_id
                # Whether the move's own wait receives a broadcast that is sent with it is left open.
                if not part.signal.run_id and part.signal.key is None and move.run.arms is not None:
                    continue
            if own is None or own not in keys:
                keys.add(own)
                also.append(part)
        self.apply([move._replace(also=tuple(also))])

    @precondition(lambda self: any(run.status == "running" and run.key for run in self.model.runs.values()))
    @rule(data=st.data(), ends=st.booleans(), reuse=st.sampled_from(["never", "ended", "failed"]))
    def a_run_is_succeeded(self, data: st.DataObject, ends: bool, reuse: Any) -> None:
        """A step starts the next run of its own key, which is free if the same move has ended its run."""
        run = data.draw(
            st.sampled_from([r for r in self.model.runs.values() if r.status == "running" and r.key]), "run"
        )
        after = self.a_start(data, parent=run.id)
        after = after._replace(run=after.run._replace(workflow=run.workflow, key=run.key), reuse=reuse)
        move = (
            self.to(run, "complete", status="completed", owner=None, ended_at=self.now)
            if ends
            else self.to(run, "goto")
        )
        self.apply([move._replace(also=(after,))])

    @rule(data=st.data(), size=st.integers(1, 3))
    def signals_are_sent(self, data: st.DataObject, size: int) -> None:
        posts = [self.a_post(data) for _ in range(size)]
        told = {}
        for post in posts:  # one per signal_id
            told[post.signal.signal_id or post.signal.id] = post
        self.apply(list(told.values()))

    @precondition(lambda self: self.model.since)
    @rule(data=st.data())
    def a_wait_ends(self, data: st.DataObject) -> None:
        self.end_a_wait(data)

    def end_a_wait(self, data: st.DataObject) -> None:
        """End a wait by a signal that may be there, by one that is rejected, or by its timeout."""
        held_back = [
            id_ for id_ in self.model.waiting()
            if self.model.events.in_the_way(self.model.runs[id_], self.model.arms(id_), self.now) is not None
        ]  # fmt: skip
        run = self.model.runs[data.draw(st.sampled_from(self.model.waiting() + 3 * held_back), "run")]
        ways = ["take", "take", "take", "reject", "time", *["time"] * 3 * (run.id in held_back)]
        how = data.draw(st.sampled_from(ways), "how")
        going: dict[str, Any] = {
            "status": "running", "waiting_for": None, "wake_at": None, "arms": None, "fence": run.fence + 1,
            "owner": data.draw(self.owners(), "owner"),
        }  # fmt: skip
        fits = [signal.id for signal in self.model.fitting(run.id, self.now)]
        ids = sorted({kept.signal.id for kept in self.model.kept}) or [999]
        takes = tuple(data.draw(st.lists(st.sampled_from(fits or ids), min_size=1, max_size=2, unique=True), "takes"))
        move = self.to(run, "reject" if how == "reject" else "signal", **({} if how == "reject" else going))
        if how == "time":
            self.apply([move._replace(unless_mail=True)])
        else:
            self.apply([move._replace(takes=takes)])

    # Listed again so that they are chosen more often, as deliveries have the most ways to go wrong.
    signals_are_sent_again = rule(data=st.data())(lambda self, data: self.apply([self.a_post(data)]))
    another_wait_ends = precondition(lambda self: self.model.since)(
        rule(data=st.data())(lambda self, data: self.end_a_wait(data))
    )

    @rule(data=st.data(), size=st.integers(1, 3))
    def events_happen(self, data: st.DataObject, size: int) -> None:
        """Changes about events in one batch, at most one for each event and plan."""
        changes: list[Change] = []
        about: set[Any] = set()
        for _ in range(size):
            change, names = self.an_event_change(data)
            if not about & names:
                about |= names
                changes.append(change)
        self.apply(changes)

    more_events_happen = rule(data=st.data())(lambda self, data: self.apply([self.an_event_change(data)[0]]))

    def an_event_change(self, data: st.DataObject) -> tuple[Change, set[Any]]:
        """A change about events, and the names of what a batch may change only once."""
        events = self.model.events
        how = data.draw(
            st.sampled_from(["emit", "emit", "emit", "withdraw", "occur", "replan", "start", "start", "listen"])
        )
        if how == "listen":
            return self.a_listen(data), {"listen"}
        if how == "withdraw":
            event_id = data.draw(st.sampled_from([*EVENT_IDS, "none"]), "event_id")
            return Withdraw(event_id), {("event", event_id)}
        occurring = sorted(id_ for id_, plan in events.plans.items() if not plan.workflow)
        starts = sorted(id_ for id_, plan in events.plans.items() if plan.workflow)
        if how == "occur":
            id_ = data.draw(st.sampled_from([*occurring * 3, *starts[:1], 999]), "plan")
            event_id = events.by_id(events.plans[id_].event).event_id if id_ in events.plans else "none"
            return Occur(id_, event_id), {("plan", id_), ("event", event_id)}
        if how == "replan" and starts:
            plan = events.plans[data.draw(st.sampled_from(starts), "plan")]
            late = data.draw(st.sampled_from([0, 0, 0, 1]), "past")
            due = data.draw(st.sampled_from([None, self.now + SECOND, self.now + HOUR, BLOCKED]), "due")
            error = data.draw(st.sampled_from([None, "ValueError: no"]), "error")
            return Replan(plan._replace(attempts=plan.attempts - late), due, error), {("plan", plan.id)}
        if how == "start":
            id_ = data.draw(st.sampled_from([*starts * 3, *occurring[:0], 999]), "plan")
            start = self.a_start(data, key=data.draw(st.sampled_from(KEYS), "key"))
            run = start.run
            if id_ in events.plans:
                run = run._replace(workflow=events.plans[id_].workflow)
            names = {("plan", id_)} | ({("key", run.workflow, run.key)} if run.key is not None else set())
            return start._replace(run=run, plan=id_), names
        emit = self.an_emit(data)
        return emit, {("event", emit.event.event_id)}

    def an_emit(self, data: st.DataObject) -> Emit:
        [id_] = self.reserve("event")
        [mail_id] = self.reserve("signal")
        event = EventRecord(
            id=id_, event_id=data.draw(st.sampled_from(EVENT_IDS), "event_id"),
            name=data.draw(st.sampled_from(NAMES), "name"), namespace=data.draw(st.sampled_from(NAMESPACES), "namespace"),
            entity_id=data.draw(st.sampled_from(KEYS), "entity_id"), entity_type=None, entity=json.dumps({"n": id_}),
            at=self.now + data.draw(st.sampled_from([-2 * self.now, -HOUR, 0, SECOND, HOUR]), "at"), occurrence=1, status="pending",
            mail_id=mail_id, recorded_at=self.now, occurred_at=None,
        )  # fmt: skip
        return Emit(event, replace=data.draw(st.booleans(), "replace"))

    def a_listen(self, data: st.DataObject) -> Listen:
        names = data.draw(st.sampled_from([("order",), ("refund",), ("order", "refund")]), "workflows")
        heard = st.tuples(
            st.sampled_from(names), st.sampled_from(NAMES), st.sampled_from(NAMESPACES[:2]), st.sampled_from(OFFSETS)
        )
        listeners = data.draw(st.lists(heard, max_size=4, unique=True), "listeners")
        return Listen(names, tuple(Listener(*listener) for listener in listeners))

    @precondition(lambda self: self.offers)
    @rule(data=st.data())
    def a_change_is_offered_again(self, data: st.DataObject) -> None:
        """Offer the last batch again, as after a lost reply, or an old change, as from a client that kept trying."""
        if data.draw(st.booleans(), "last"):
            self.offer(self.offers[-1])
        else:
            changes = data.draw(st.sampled_from(self.offers), "batch")
            self.offer([data.draw(st.sampled_from(changes), "change")])

    @rule(data=st.data())
    def a_batch_is_refused(self, data: st.DataObject) -> None:
        """A row that no store can hold undoes the whole batch."""
        poison = self.a_start(data)
        poison = poison._replace(run=poison.run._replace(hops=2**63))
        changes: list[Change] = [self.a_start(data), self.a_post(data), poison]
        if free := [run for run in self.model.runs.values() if run.key is None]:
            changes.insert(0, self.a_change(data, data.draw(st.sampled_from(free), "run")))
        with pytest.raises(StoreRefused):
            self.do(self.store.apply(changes, self.now))
        self.unread.update(map(run_of, changes))

    @rule()
    def somebody_else_writes(self) -> None:
        """A second handle of the same data writes: its rows are seen, and the hint changes."""
        before = self.do(self.store.hint(self.now))
        made = self.make()  # a URL, or the object that all share
        other = find_store(made if isinstance(made, str) else self.store)
        assert self.do(other.open(self.now)) == self.uuid
        store, self.store = self.store, other
        try:
            run = a_run(*self.reserve("run"), created_at=self.now, updated_at=self.now)
            self.offer([Start(run, a_transition(run, kind="start", commit_id=next(self.commits)))])
        finally:
            self.store = store
            self.do(other.close())
        # A store that listens for writes may notice them a little later.
        assert any(self.do(self.store.hint(self.now)) != before for _ in range(50))

    # ---- making changes

    def to(self, run: Run, kind: Any, **columns: Any) -> Move:
        """A Move that continues from a row."""
        cleared = {"crashes": 0, "marked": 0, "updated_at": self.now}
        return moving(run, kind=kind, commit_id=next(self.commits), **{**cleared, **columns})

    def a_start(
        self, data: st.DataObject, key: str | None = None, parent: int | None = None, delayed: bool | None = None
    ) -> Start:
        workflow, version = data.draw(st.sampled_from(WORKFLOWS), "workflow")
        if delayed is None:
            delayed = data.draw(st.booleans(), "delayed")
        run = a_run(
            *self.reserve("run"), workflow=workflow, version=version, key=key,
            parent_id=parent, created_at=self.now, updated_at=self.now,
            data=json.dumps(data.draw(st.sampled_from(DATA), "data")),
            event_id=data.draw(st.sampled_from([None, "e"]), "event"),
        )  # fmt: skip
        if delayed:
            run = run._replace(status="waiting", waiting_for="start", wake_at=self.now + SECOND, next_step="pay")
        else:
            run = run._replace(owner=data.draw(self.owners(), "owner"))
        reuse = data.draw(st.sampled_from(["never", "ended", "failed"]), "reuse")
        return Start(run, a_transition(run, kind="start", commit_id=next(self.commits)), reuse)  # type: ignore[arg-type]

    def a_post(self, data: st.DataObject, avoid: int = 0) -> Post:
        runs = sorted(self.model.runs.keys() - {avoid})
        waiting = [run_id for run_id in self.model.waiting() if run_id != avoid] or [0]
        kinds = [st.just(0)] * 4 + [st.sampled_from(waiting)] * 3 + [st.sampled_from([*runs, 999])]
        to = data.draw(st.one_of(kinds), "to")
        [id_] = self.reserve("signal")
        return Post(
            a_signal(
                id_, to, name=data.draw(st.sampled_from(NAMES), "name"), key=data.draw(st.sampled_from(KEYS), "key"),
                signal_id=data.draw(st.sampled_from([None, None, None, "s1", "s2", "s3"]), "signal_id"),
                sent_at=self.now - data.draw(st.sampled_from([0, 0, SECOND]), "ago"),
                expires_at=data.draw(st.sampled_from([None, None, self.now + SECOND, self.now + WEEK]), "expires"),
            )
        )  # fmt: skip

    def a_step(self, data: st.DataObject, run: Run) -> Move:
        """A Move by a step of the run."""
        how = data.draw(st.sampled_from(["goto", "wait", "wait", "sleep", "complete", "fail"]), "step")
        context = json.dumps(data.draw(st.sampled_from(DATA), "data"))
        if how == "goto":
            step = data.draw(st.sampled_from(["pay", "ship"]), "to")
            return self.to(run, "goto", step=step, visit=run.seq + 1, hops=run.hops + 1, data=context)
        if how in {"complete", "fail"}:
            status = "completed" if how == "complete" else "failed"
            return self.to(run, how, status=status, owner=None, ended_at=self.now, data=context)
        if how == "sleep":
            wake_at = self.now + data.draw(st.sampled_from([0, SECOND, HOUR]), "length")
            return self.to(run, "sleep", status="waiting", owner=None, waiting_for="sleep", wake_at=wake_at)
        return self.a_wait(data, run)

    def a_wait(self, data: st.DataObject, run: Run) -> Move:
        events = self.model.events.records.values()
        pending = [event for event in events if event.status == "pending"]
        told = [event for event in events if event.status == "occurred" and event.entity_id is not None]
        places = [("signal", name, key) for name in NAMES for key in KEYS]
        places += [("event", name, key) for name in NAMES for key in KEYS]
        places += [("event", event.name, event.entity_id) for event in (*told, *pending) for _ in range(4)]
        drawn = data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=3), "arms")
        waits = [Arm(kind, name, key, "ship", message=False) for kind, name, key in drawn]  # type: ignore[arg-type]
        ends = [None, self.now, self.now + SECOND, self.now + HOUR, *(event.at for event in pending)]
        until = data.draw(st.sampled_from(ends), "until")
        return self.to(
            run, "wait", status="waiting", owner=None, waiting_for=waits[0].kind, wake_at=until, arms=json.dumps(waits)
        )

    def a_change(self, data: st.DataObject, run: Run) -> Change:
        """A change of a run, also with outdated guards."""
        commit_id = next(self.commits)
        how = data.draw(st.sampled_from(["move", "move", "move", "mark", "cancel", "hop"]), "change")
        past = data.draw(st.sampled_from([(0, 0)] * 5 + [(1, 0), (0, 1)]), "past")
        if how == "cancel":
            return cancelling(run.id, commit_id=commit_id)
        if how == "hop" and run.status not in ENDED:
            return hopping(run.id, commit_id=commit_id)
        if how == "mark" or run.status in ENDED:
            return Mark(run.id, run.seq - past[0], run.fence - past[1])
        if run.status == "running":
            move = self.a_step(data, run)
        else:
            move = self.to(
                run, "wake", status="running", waiting_for=None, wake_at=None, arms=None, fence=run.fence + 1,
                owner=data.draw(self.owners(), "owner"),
            )  # fmt: skip
        return move._replace(seq=move.seq - past[0], fence=move.fence - past[1])

    # ---- the mailbox is swept

    @rule(few=st.booleans())
    def the_mailbox_is_swept(self, few: bool) -> None:
        """Expire signals, with a small limit only if it includes all that are to be deleted, whose order is open."""
        model, now = self.model, self.now
        forgotten = [kept for kept in model.kept if kept.forgettable(now)]
        limit = max(1, len(forgotten)) if few else 1_000
        over = {(kept.signal.id, kept.signal.run_id): kept for kept in model.kept if kept.expired(now)}
        gone = [(signal.id, signal.run_id) for signal in self.do(self.store.expire(limit, now))]
        assert len(gone) == len(set(gone)) == min(limit, len(over))
        assert over.keys() >= set(gone)
        left = [over[place] for place in gone] + forgotten
        model.kept = [kept for kept in model.kept if not any(kept is other for other in left)]

    # ---- ownership

    @rule(data=st.data(), limit=st.integers(0, 4))
    def a_worker_claims(self, data: st.DataObject, limit: int) -> None:
        exclusive = self.store.exclusive
        worker = data.draw(st.sampled_from(self.alive() if exclusive and self.leases else self.workers), "worker")
        known = data.draw(st.sampled_from([WORKFLOWS, WORKFLOWS[:1]]), "known")
        runs = self.model.runs
        ids = st.lists(st.sampled_from(sorted(runs)), unique=True) if runs else st.just([])
        held = data.draw(st.none() | ids, "held")
        if worker not in self.alive():
            self.leases[worker] = self.now + LEASE
        living = self.alive()
        own = {run.id for run in runs.values() if run.status == "running" and run.owner == worker}
        orphans = {run.id for run in runs.values() if run.status == "running" and run.owner not in living}
        free = {id_ for id_ in orphans if exclusive or (runs[id_].workflow, runs[id_].version) in known}
        claim = self.do(
            self.store.claim(worker, lease=LEASE, limit=limit, known=known, held=held, now=self.now)
        )  # fmt: skip
        after = {run.id: run for run in self.do(self.store.load(list(runs), self.now))}
        taken = {id_ for id_ in after if after[id_].owner == worker} - own
        assert claim.working
        assert taken <= free
        assert len(taken) == min(limit, len(free))
        back = [run.id for run in claim.runs]
        assert sorted(back) == sorted(taken | (set() if held is None else own.difference(held)))
        assert all(run == after[run.id] for run in claim.runs)
        assert set(claim.gone) == set(held or ()).difference(own, taken)
        for id_, was in list(runs.items()):
            if after[id_] != was:  # an exclusive store may free dead owners' runs before anybody takes them
                assert id_ in taken or (exclusive and id_ in orphans and was.owner is not None)
                crashed = was.owner is not None and (was.crashes < 2 or was.marked)
                self.owned(id_, after[id_], worker if id_ in taken else None, was.crashes + bool(crashed))

    def owned(self, run_id: int, run: Run, owner: int | None, crashes: int) -> None:
        """Check that the row's owner changed correctly, and nothing else, and adopt the row."""
        was = self.model.runs[run_id]
        assert run.fence > was.fence
        assert run == was._replace(owner=owner, fence=run.fence, crashes=crashes, marked=0)
        self.model.put(run)

    @rule(data=st.data())
    def a_worker_renews(self, data: st.DataObject) -> None:
        exclusive = self.store.exclusive
        worker = data.draw(st.sampled_from(self.alive() if exclusive and self.leases else self.workers), "worker")
        living = worker in self.alive()
        assert self.do(self.store.renew(worker, LEASE, self.now)) is living
        if living:
            self.leases[worker] = self.now + LEASE

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def a_worker_releases(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.leases)), "worker")
        self.do(self.store.release(worker, self.now))
        del self.leases[worker]
        for run in self.do(self.store.load(list(self.model.runs), self.now)):
            was = self.model.runs[run.id]
            if was.status == "running" and was.owner == worker:
                self.owned(run.id, run, None, was.crashes)

    # ---- queries

    @rule(data=st.data())
    def runs_are_looked_for(self, data: st.DataObject) -> None:
        """Find runs by any filters, in any order, page by page."""

        def some(values: Sequence[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
            return st.just(()) | st.lists(st.sampled_from(values), max_size=2, unique=True).map(tuple)

        instants = st.none() | st.sampled_from([NOW - 1, NOW, self.now, self.now + 1])
        filters: dict[str, st.SearchStrategy[Any]] = {
            "workflow": some(["order", "refund", "none"]), "version": some(["1", "2"]),
            "status": some(["running", "waiting", "completed", "failed", "cancelled"]), "step": some(["pay", "ship"]),
            "waiting_for": some(["sleep", "signal", "start"]), "key": some(["a", "b", "c"]), "event_id": some(["e", "f"]),
            "waiting_signal": some(NAMES), "waiting_key": some(["a", "b"]), "data": st.sampled_from(FILTERS),
            "parent_id": some([*self.model.runs, 999]), "created_after": instants, "created_before": instants,
            "updated_after": instants, "updated_before": instants,
        }  # fmt: skip
        names = data.draw(st.lists(st.sampled_from(sorted(filters)), max_size=3, unique=True), "filters")
        query = RunQuery(
            **{name: data.draw(filters[name], name) for name in names},
            order=data.draw(st.sampled_from(["id", "created_at", "updated_at"]), "order"),  # type: ignore[arg-type]
            descending=data.draw(st.booleans(), "descending"),
            limit=data.draw(st.integers(1, 3), "limit"),
        )
        wanted = self.model.select(query)
        assert self.do(self.store.count(query, self.now)) == len(wanted)
        pages: list[Run] = []
        while page := self.do(self.store.select(query, self.now)):
            assert len(page) <= query.limit
            pages += page
            query = replace(query, after=(getattr(page[-1], query.order), page[-1].id))
            assert len(pages) <= len(wanted)
        assert pages == wanted

    @rule(data=st.data())
    def events_are_looked_for(self, data: st.DataObject) -> None:
        """Find events by any filters, in both orders, page by page."""
        values = {
            "event_id": EVENT_IDS, "name": NAMES, "namespace": NAMESPACES, "entity_id": ["a", "b"],
            "status": ["pending", "occurred", "cancelled"],
        }  # fmt: skip
        names = data.draw(st.lists(st.sampled_from(sorted(values)), max_size=2, unique=True), "filters")
        instants = st.sampled_from([None, None, self.now, self.now - SECOND])
        query = EventQuery(
            **{name: tuple(data.draw(st.lists(st.sampled_from(values[name]), max_size=2), name)) for name in names},
            at_after=data.draw(instants, "at_after"), at_before=data.draw(instants, "at_before"),
            descending=data.draw(st.booleans(), "descending"), limit=data.draw(st.integers(1, 3), "limit"),
        )  # fmt: skip
        wanted = self.model.events.select(query)
        pages: list[EventRecord] = []
        while page := self.do(self.store.select(query, self.now)):
            assert len(page) <= query.limit
            pages += page
            query = replace(query, after=page[-1].id)
        assert pages == wanted

    @precondition(lambda self: self.model.runs)
    @rule(data=st.data(), limit=st.integers(1, 3), after=st.integers(0, 4))
    def parts_are_read(self, data: st.DataObject, limit: int, after: int) -> None:
        """Read parts of a history, of the deadlines and of the mail."""
        run_id = data.draw(st.sampled_from([*self.model.runs, 999]), "run")
        history = self.model.history.get(run_id, [])
        assert self.do(self.store.history(run_id, after, limit, self.now)) == history[after:][:limit]
        all_ = self.deadlines()
        low, high = sorted(data.draw(st.tuples(*[st.sampled_from([START, *(d[:2] for d in all_)])] * 2), "between"))
        wanted = [deadline for deadline in all_ if low < deadline[:2] <= high]
        assert self.do(self.store.due(low, high, limit, self.now)) == wanted[:limit]
        ids = data.draw(st.lists(st.sampled_from([*self.model.runs, 999]), unique=True), "of")
        told = [mail.run.id for mail in self.do(self.store.mail(ids, limit, self.now))]
        assert told == [id_ for id_ in self.model.waiting() if id_ in ids and self.model.fitting(id_, self.now)][:limit]

    def deadlines(self) -> list[Deadline]:
        waits = [run for run in self.model.runs.values() if run.status == "waiting"]
        return sorted(Deadline(run.wake_at, run.id, run.seq) for run in waits if run.wake_at is not None)

    # ---- after every rule

    @invariant()
    def rows_and_histories_are_those_of_the_model(self) -> None:
        runs = self.do(self.store.load([*self.given["run"], 999], self.now))
        assert {run.id: run for run in runs} == self.model.runs
        for run_id in self.unread:
            found = self.do(self.store.history(run_id, 0, 1_000, self.now))
            assert found == self.model.history.get(run_id, [])
            assert [made.seq for made in found] == list(range(1, len(found) + 1))
        self.unread.clear()

    @invariant()
    def what_is_due_and_counted_is_that_of_the_model(self) -> None:
        assert self.do(self.store.due(START, (2**60, 0), 1_000, self.now)) == self.deadlines()
        assert replace(self.do(self.store.stats(self.now)), bytes=None) == self.model.stats(self.now)

    @invariant()
    def what_is_planned_is_that_of_the_model(self) -> None:
        events = self.model.events
        last = (2**62, 2**62)
        assert self.do(self.store.due(START, last, 1_000, self.now, "plan")) == events.deadlines()
        planned = self.do(self.store.select(PlanQuery(ids=(*events.plans, 999)), self.now))
        assert sorted(planned) == sorted(Planned(plan, events.by_id(plan.event)) for plan in events.plans.values())
        query = PlanQuery(blocked=("order",))
        blocked = {plan.id for plan in events.plans.values() if plan.due == BLOCKED and plan.workflow == "order"}
        assert {plan.id for plan, _ in self.do(self.store.select(query, self.now))} == blocked

    @invariant()
    def the_mail_is_that_of_the_model(self) -> None:
        fitting = {id_: self.model.fitting(id_, self.now) for id_ in self.model.waiting()}
        mails = self.do(self.store.mail(None, 1_000, self.now))
        assert [mail.run.id for mail in mails] == [id_ for id_, signals in fitting.items() if signals]
        for run, signals, _ in mails:
            assert run == self.model.runs[run.id]
            assert signals
            assert signals == fitting[run.id][: len(signals)]


def run_of(change: Change) -> int:
    match change:
        case Post(signal=signal):
            return signal.run_id
        case Mark(run_id=run_id) | Amend(run_id=run_id):
            return run_id
        case Start(run=run) | Move(run=run):
            return run.id
        case _:
            return 0


def compare(change: Change, told: Result, wanted: Result) -> None:
    """Check that the result is the model's in everything that the port promises for this kind of change."""
    assert told.outcome == wanted.outcome, (change, told, wanted)
    if isinstance(change, Post):
        assert (told.mail, sorted(told.run_ids)) == (wanted.mail, sorted(wanted.run_ids)), (change, told, wanted)
        if told.outcome == "stale":
            assert told.run == wanted.run
        return
    if isinstance(change, Emit | Occur | Withdraw):
        assert told.event == wanted.event, (change, told, wanted)
        if not isinstance(change, Emit) or wanted.event is None or wanted.event.mail_id == change.event.mail_id:
            assert sorted(told.run_ids) == sorted(wanted.run_ids), (change, told, wanted)
        return
    assert told.run == wanted.run, (change, told, wanted)
    if isinstance(change, Move | Replan):
        assert told.plans == wanted.plans, (change, told, wanted)
    assert told.transition == wanted.transition
    if isinstance(change, Move):
        assert told.mail == wanted.mail, (change, told, wanted)
        assert len(told.also) == len(wanted.also)
        for part, found, expected in zip(change.also, told.also, wanted.also, strict=False):
            compare(part, found, expected)


@pytest.fixture(params=[*STORES, "postgres"])
def make(request: pytest.FixtureRequest) -> Callable[[Path], str | Store]:
    """Makes an empty store, as a URL or an object, in a folder."""
    if request.param != "postgres":
        return STORES[request.param]
    schemas: Schemas = request.getfixturevalue("postgres_server")
    return lambda folder: schemas.of(folder.name)


@pytest.mark.parametrize("derandomize", [True, False], ids=["fixed", "fresh"])
def test_a_store_does_what_the_model_does(
    make: Callable[[Path], str | Store], derandomize: bool, request: pytest.FixtureRequest
) -> None:
    """Random changes and queries have the same results, and lead to the same rows, in each store and in the model."""
    slow = request.config.getoption("--slow")
    phases = set(Phase) if slow else {Phase.explicit, Phase.reuse, Phase.generate}
    few = 4 if "postgres" in request.node.name else 12  # a server takes longer
    chosen = settings(
        max_examples=500 if slow else few, stateful_step_count=50, derandomize=derandomize, phases=phases
    )  # fmt: skip
    if derandomize:
        chosen = settings(chosen, database=None)
    run_state_machine_as_test(partial(StoreMachine, make), settings=chosen)
