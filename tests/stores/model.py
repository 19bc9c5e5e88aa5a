"""The model of a store, written as plainly as possible: dicts and loops, according to the port's docstrings.

It shares nothing with the stores but the records. What the port leaves open (which runs a claim takes, how far a fence
rises, to whom a dead worker's runs go) is not decided here: the machine checks whether the store's answer is one of
those that are allowed, and the model goes on from it.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aioflow.changes import Amend, Change, Emit, Listen, Mark, Move, Occur, Post, Replan, Result, Start, Withdraw
from aioflow.clock import SECOND
from aioflow.model import Arm, Run, Signal, Transition
from aioflow.plans import EventRecord
from aioflow.store import RunQuery, Stats
from tests.stores.events import Events, hears

ENDED = {"completed", "failed", "cancelled"}
HOUR = 3600 * SECOND
WEEK = 7 * 24 * HOUR


@dataclass
class Kept:
    """A signal, or a copy of one, until it is deleted."""

    signal: Signal
    #: The signal_id under which it is remembered.
    known_as: str | None
    #: Whether nobody can take it any more, though it was not deleted yet.
    over: bool = False
    taken_at: int | None = None
    taken_by: int | None = None

    def expired(self, now: int) -> bool:
        expires_at = self.signal.expires_at
        return self.taken_at is None and (self.over or (expires_at is not None and expires_at <= now))

    def there(self, now: int) -> bool:
        return self.taken_at is None and not self.expired(now)

    def forgettable(self, now: int) -> bool:
        return self.taken_at is not None and self.taken_at <= now - (WEEK if self.known_as else HOUR)


@dataclass
class Model:
    """Everything that a store holds."""

    runs: dict[int, Run] = field(default_factory=dict)
    history: dict[int, list[Transition]] = field(default_factory=lambda: defaultdict(list))
    kept: list[Kept] = field(default_factory=list)
    #: run -> when its wait was written
    since: dict[int, int] = field(default_factory=dict)
    events: Events = field(default_factory=Events)

    # ---- called by the machine

    def arms(self, run_id: int) -> list[Arm]:
        text = self.runs[run_id].arms
        return [] if text is None else [Arm(*arm) for arm in json.loads(text)]

    def kinds(self, run_id: int) -> set[str]:
        """The kinds of a run's arms."""
        return {arm.kind for arm in self.arms(run_id)}

    def fitting(self, run_id: int, now: int) -> list[Signal]:
        """The signals that a waiting run can take, in the order of sending."""
        found = [
            kept.signal
            for kept in self.kept
            if kept.there(now)
            and any(
                (kept.signal.name, kind_of(kept.signal)) == (arm.name, arm.kind)
                and (
                    kept.signal.run_id == run_id
                    or (not kept.signal.run_id and arm.key is not None and kept.signal.key == arm.key)
                )
                for arm in self.arms(run_id)
            )
        ]
        return sorted(found, key=lambda signal: (signal.sent_at, signal.id))

    def waiting(self) -> list[int]:
        """The runs that wait for signals or events, the oldest wait first."""
        return sorted(self.since, key=lambda run_id: (self.since[run_id], run_id))

    def stats(self, now: int) -> Stats:
        runs: dict[str, Counter[str]] = defaultdict(Counter)
        steps: dict[str, Counter[str]] = defaultdict(Counter)
        waits = [run for run in self.runs.values() if run.status == "waiting"]
        for run in self.runs.values():
            runs[run.workflow][run.status] += 1
            if run.status not in ENDED:
                steps[run.workflow][run.step] += 1
        late = [run.wake_at for run in waits if run.wake_at is not None and run.wake_at <= now]
        return Stats(
            runs={name: dict(counts) for name, counts in runs.items()},
            steps={name: dict(counts) for name, counts in steps.items()},
            waiting=dict(Counter(str(run.waiting_for) for run in waits)),
            overdue=len(late),
            oldest_due=min(late, default=None),
            mailbox=sum(kept.taken_at is None for kept in self.kept),
            bytes=None,
            **self.events.stats(),  # type: ignore[arg-type]
        )

    def select(self, query: RunQuery) -> list[Run]:
        """All runs that match, in order, without the limit."""

        def place(run: Run) -> tuple[int, int]:
            return getattr(run, query.order), run.id

        found = sorted((run for run in self.runs.values() if self._matches(run, query)), key=place)
        if query.descending:
            found.reverse()
        if query.after is not None:
            found = [
                run for run in found if place(run) != query.after and (place(run) < query.after) is query.descending
            ]
        return found

    def _matches(self, run: Run, query: RunQuery) -> bool:
        columns = ("workflow", "version", "status", "step", "key", "event_id", "parent_id")
        bounds = [
            (query.created_after, run.created_at),
            (run.created_at, query.created_before),
            (query.updated_after, run.updated_at),
            (run.updated_at, query.updated_before),
        ]
        signals, keys = query.waiting_signal, query.waiting_key
        return (
            all(getattr(run, name) in getattr(query, name) for name in columns if getattr(query, name))
            and (not query.waiting_for or not {run.waiting_for, *self.kinds(run.id)}.isdisjoint(query.waiting_for))
            and all(low < high for low, high in bounds if low is not None and high is not None)
            and (
                not (signals or keys)
                or any(arm.name in (signals or [arm.name]) and arm.key in (keys or [arm.key]) for arm in self.arms(run.id))
            )
            and _holds(json.loads(run.data), query.data)
        )  # fmt: skip

    # ---- apply

    def apply(self, changes: list[Change], now: int) -> list[Result]:
        """Apply the changes one after the other, and then complete the results by what depends on the whole batch."""
        results = [self._change(change, now) for change in changes]
        return [self._told(change, result, now) for change, result in zip(changes, results, strict=True)]

    def _change(self, change: Change, now: int) -> Result:
        match change:
            case Start():
                return self._start(change)
            case Post():
                return self._post(change.signal, now)
            case Move():
                return self._move(change, now)
            case Mark(run_id=run_id):
                run = self.runs.get(run_id)
                if run is None or (run.seq, run.fence) != (change.seq, change.fence):
                    return Result("stale", run)
                return Result("applied", self.put(run._replace(marked=1)))
            case Amend(run_id=run_id):
                run = self.runs.get(run_id)
                for made in self.history.get(run_id, []):
                    if made.commit_id == change.commit_id:
                        return Result("applied", run, made)
                decided = None if run is None else change.decide(run)
                if decided is None:
                    return Result("stale", run)
                self.history[run_id].append(decided[1])
                return Result("applied", self.put(decided[0]), decided[1])
            case Emit() | Occur() | Withdraw() | Replan() | Listen():
                result = self.events.change(change, now)
                self._tell()
                return result

    def _offered(self, run_id: int, made: Transition) -> Result:
        same = [m for m in self.history.get(run_id, []) if (m.seq, m.commit_id) == (made.seq, made.commit_id)]
        return Result("applied" if same else "stale", self.runs.get(run_id))

    def _start(self, start: Start) -> Result:
        run = start.run
        if run.id in self.runs:
            return self._offered(run.id, start.transition)
        plan = self.events.plans.pop(start.plan, None)
        if start.plan and plan is None:
            return Result("stale")
        same = [r for r in self.runs.values() if run.key is not None and (r.workflow, r.key) == (run.workflow, run.key)]
        if same:
            first = ([r for r in same if r.status not in ENDED] or sorted(same, key=lambda r: (r.created_at, r.id)))[-1]
            free = {"never": (), "ended": ENDED, "failed": {"failed"}}[start.reuse]
            if first.status not in free:
                return Result("exists", first)
        if plan is not None:
            self.events.seen.add((run.id, self.events.by_id(plan.event).mail_id))
        self.history[run.id].append(start.transition)
        return Result("applied", self._caught_up(self.put(run)))

    def _post(self, signal: Signal, now: int) -> Result:
        if any(kept.signal.id == signal.id for kept in self.kept):
            return Result("applied")
        if signal.signal_id is not None:
            for kept in self.kept:
                if kept.known_as == signal.signal_id and not kept.expired(now):
                    copies = [other for other in self.kept if other.signal.id == kept.signal.id]
                    takers = sorted(other.taken_by for other in copies if other.taken_by is not None)
                    return Result("exists", mail=kept.taken_at is None, run_ids=tuple(takers))
                if kept.known_as == signal.signal_id:
                    kept.known_as = None
        run = self.runs.get(signal.run_id)
        if signal.run_id and (run is None or run.status in ENDED):
            return Result("stale", run)
        if signal.run_id or signal.key is not None:
            self.kept.append(Kept(signal, signal.signal_id))
            return Result("applied")
        for run_id in self.since:
            if self._waits_for(run_id, signal):
                copy = signal._replace(run_id=run_id, broadcast=1, signal_id=None)
                self.kept.append(Kept(copy, None))
        # A broadcast counts as sent although nobody waits for it, at least as long as the Post may be offered again.
        self.kept.append(Kept(signal, signal.signal_id, taken_at=now))
        return Result("applied")

    def _move(self, move: Move, now: int) -> Result:
        id_ = move.run.id
        offered = self._offered(id_, move.transition)
        if offered.outcome == "applied":
            return offered._replace(also=tuple(self._offered_with_it(part) for part in move.also))
        was = self.runs.get(id_)
        if was is None or (was.seq, was.fence) != (move.seq, move.fence):
            return Result("stale", was)
        if move.unless_mail and any(
            was.wake_at is None or signal.sent_at <= was.wake_at for signal in self.fitting(id_, now)
        ):
            return Result("stale", was, mail=True)
        if move.unless_mail and (first := self.events.in_the_way(was, self.arms(id_), now)) is not None:
            return Result("stale", was, plans=(first,))
        taken = [
            kept for kept in self.kept
            if kept.there(now) and kept.signal.id in move.takes and kept.signal.run_id in {0, id_}
        ]  # fmt: skip
        if len(taken) != len(move.takes):
            return Result("stale", was)
        for kept in taken:
            kept.taken_at = now
            if kept.signal.event is not None:
                self.events.seen.add((id_, kept.signal.id))
            if move.transition.kind == "reject":
                kept.known_as = None
            else:
                kept.taken_by = id_
        self.history[id_].append(move.transition)
        run = self._caught_up(self.put(move.run))
        return Result("applied", run, also=tuple(self._change(part, now) for part in move.also))

    def _waits_for(self, run_id: int, signal: Signal) -> bool:
        return any((arm.kind, arm.name) == ("signal", signal.name) for arm in self.arms(run_id))

    def _tell(self) -> None:
        """Deliver what has occurred to the runs that wait for it."""
        for event in self.events.occurred:
            for run_id in self.since:
                if any(hears(arm, event) for arm in self.arms(run_id)):
                    self._copy(event, run_id)
        self.events.occurred.clear()

    def _caught_up(self, run: Run) -> Run:
        for event in self.events.missed(run, self.arms(run.id)):
            self._copy(event, run.id)
        return run

    def _copy(self, event: EventRecord, run_id: int) -> None:
        if (run_id, event.mail_id) in self.events.seen:
            return
        self.kept = [kept for kept in self.kept if (kept.signal.id, kept.signal.run_id) != (event.mail_id, run_id)]
        self.kept.append(Kept(event.copy_for(run_id), None))

    def _offered_with_it(self, part: Start | Post | Emit) -> Result:
        if isinstance(part, Emit):
            known = self.events.records.get(part.event.event_id)
            again = self.events.recorded(part.event)
            return Result("applied" if again else "stale" if known is None else "exists", event=known)
        if isinstance(part, Start):
            return self._offered(part.run.id, part.transition)
        return Result("applied" if any(kept.signal.id == part.signal.id for kept in self.kept) else "stale")

    def _told(self, change: Change, result: Result, now: int) -> Result:
        if result.outcome != "applied":
            return result
        if isinstance(change, Post):
            return result._replace(run_ids=self._receivers(change.signal, now))
        if isinstance(change, Emit | Occur) and result.event is not None:
            return result._replace(run_ids=self._holders(result.event.mail_id, now))
        if isinstance(change, Move):
            also = tuple(self._told(part, told, now) for part, told in zip(change.also, result.also, strict=True))
            return result._replace(mail=bool(self.fitting(change.run.id, now)), also=also)
        return result

    def _receivers(self, signal: Signal, now: int) -> tuple[int, ...]:
        if signal.run_id:
            waits = signal.run_id in self.since and self._waits_for(signal.run_id, signal)
            return (signal.run_id,) if waits else ()
        if signal.key is None:
            return self._holders(signal.id, now)
        wait = (signal.name, signal.key)
        there = [k for k in self.kept if k.there(now) and not k.signal.run_id and (k.signal.name, k.signal.key) == wait]
        fits = [run_id for run_id in self.waiting() if ("signal", *wait) in [arm[:3] for arm in self.arms(run_id)]]
        return tuple(fits[: len(there)])

    def _holders(self, id_: int, now: int) -> tuple[int, ...]:
        copies = [kept for kept in self.kept if kept.signal.id == id_ and kept.there(now)]
        return tuple(sorted(kept.signal.run_id for kept in copies))

    def put(self, run: Run) -> Run:
        """Store a row, and apply what that means for the run's mail."""
        was = self.runs.get(run.id)
        self.runs[run.id] = run
        wait_is_over = was is not None and was.arms != run.arms
        if was is None or wait_is_over:
            self.since.pop(run.id, None)
            if run.arms is not None:
                self.since[run.id] = run.updated_at
        for kept in self.kept:
            if kept.signal.run_id == run.id and (run.status in ENDED or (wait_is_over and kept.signal.broadcast)):
                kept.over = True
        return run


def kind_of(signal: Signal) -> str:
    """The kind of arm that takes a signal."""
    return "signal" if signal.event is None else "event"


def _holds(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        return isinstance(found, dict) and all(key in found and _holds(found[key], wanted[key]) for key in wanted)
    return json.dumps(_plain(found), sort_keys=True) == json.dumps(_plain(wanted), sort_keys=True)


def _plain(value: Any) -> Any:
    """A value in which equal numbers have one type, so that equal values are equal as text."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
