"""Decides what becomes of each change of a batch, writes it, and can undo the whole batch."""

from __future__ import annotations

from typing import assert_never

from aioflow.changes import Amend, Change, Emit, Listen, Mark, Move, Occur, Post, Replan, Result, Start, Withdraw
from aioflow.clock import Micros
from aioflow.model import LIVE, Reuse, Run, Transition, WorkflowStatus
from aioflow_memory.rows import Rows, Write


class Judge:
    """Judges and writes one batch, and records what it writes, so that it can be undone."""

    def __init__(self, rows: Rows, now: Micros) -> None:
        self._rows = rows
        self._now = now
        self._done: list[Write] = []
        rows.mailbox.begin()
        rows.events.begin()

    @property
    def writes(self) -> int:
        """How many rows of runs it has written."""
        return len(self._done)

    def undo(self) -> None:
        """Undo the batch."""
        for write in reversed(self._done):
            self._rows.undo(write)
        self._rows.mailbox.undo()
        self._rows.events.undo()

    def judge(self, change: Change) -> Result:
        """Write the change, if its guards hold; the changes judged before it are written already."""
        match change:
            case Start():
                return self._judge_start(change)
            case Post(signal):
                self._rows.check_storable(signal.run_id, signal)
                return self._rows.mailbox.post(signal, self._rows.runs.get(signal.run_id), self._now)
            case Move():
                return self._judge_move(change)
            case Mark(run_id=run_id, seq=seq, fence=fence):
                was = self._rows.runs.get(run_id)
                if was is None or (was.seq, was.fence) != (seq, fence):
                    return Result("stale", was)
                return self._write(Write(was, was._replace(marked=1), None))
            case Amend():
                return self._judge_amend(change)
            case _:
                return self._judge_event(change)

    def _judge_event(self, change: Emit | Occur | Withdraw | Replan | Listen) -> Result:
        events = self._rows.events
        match change:
            case Emit():
                return events.emit(change, self._now)
            case Occur():
                return events.occur(change, self._now)
            case Withdraw():
                return events.withdraw(change)
            case Replan():
                return events.replan(change)
            case Listen():
                return events.listen(change)
            case _:
                assert_never(change)

    def _judge_start(self, change: Start) -> Result:
        run, transition = change.run, change.transition
        if run.id in self._rows.runs:
            return self._offered(run.id, transition)
        planned = self._rows.events.plan(change.plan)
        if change.plan and planned is None:
            return Result("stale")
        if planned is not None:
            self._rows.events.take(change.plan)
        if run.key is not None and (ids := self._rows.keyed.get((run.workflow, run.key))):
            holders = [self._rows.runs[run_id] for run_id in ids]
            holder = max(holders, key=lambda run: (run.status in LIVE, run.created_at, run.id))
            if not _may_follow(holder, change.reuse):
                return Result("exists", holder)
        if planned is not None:
            self._rows.mailbox.see(run.id, planned.event.mail_id)
        return self._catch_up(self._write(Write(None, run, transition)))

    def _judge_move(self, change: Move) -> Result:
        run, transition = change.run, change.transition
        mailbox = self._rows.mailbox
        offered = self._offered(run.id, transition)
        if offered.outcome == "applied":
            return offered._replace(also=tuple(self._offered_with_it(part) for part in change.also))
        was = offered.run
        if was is None or (was.seq, was.fence) != (change.seq, change.fence):
            return offered
        if change.unless_mail:
            if any(was.wake_at is None or signal.sent_at <= was.wake_at for signal in mailbox.of(run.id, self._now)):
                return Result("stale", was, mail=True)
            if (first := self._rows.events.in_the_way(was, self._now)) is not None:
                return Result("stale", was, plans=(first,))
        if change.takes and not mailbox.take(run.id, change.takes, self._now, rejects=transition.kind == "reject"):
            return Result("stale", was)
        result = self._catch_up(self._write(Write(was, run, transition)))
        return result._replace(also=tuple(self.judge(part) for part in change.also))

    def _judge_amend(self, change: Amend) -> Result:
        was = self._rows.runs.get(change.run_id)
        if was is None:
            return Result("stale")
        before = [row for row in self._rows.history[was.id] if row.commit_id == change.commit_id]
        if before:
            return Result("applied", was, before[0])
        decided = change.decide(was)
        if decided is None:
            return Result("stale", was)
        run, transition = decided
        return self._write(Write(was, run, transition))._replace(transition=transition)

    def _write(self, write: Write) -> Result:
        self._rows.write(write)
        self._done.append(write)
        return Result("applied", write.run)

    def _catch_up(self, result: Result) -> Result:
        """Give a run that waits for events of an entity copies of those that have occurred before."""
        if result.run is not None and result.run.arms is not None:
            for event in self._rows.events.missed(result.run):
                self._rows.mailbox.copy(event, result.run.id)
        return result

    def _offered(self, run_id: int, transition: Transition) -> Result:
        """The result of an earlier offer of this change; "stale" if none was applied."""
        rows = self._rows.history.get(run_id, [])[transition.seq - 1 :][:1]
        again = any(row.commit_id == transition.commit_id for row in rows)
        return Result("applied" if again else "stale", self._rows.runs.get(run_id))

    def _offered_with_it(self, part: Start | Post | Emit) -> Result:
        if isinstance(part, Emit):
            known = self._rows.events.known(part.event.event_id)
            again = self._rows.events.recorded(part.event)
            return Result("applied" if again else "stale" if known is None else "exists", event=known)
        if isinstance(part, Start):
            return self._offered(part.run.id, part.transition)
        return Result("applied" if self._rows.mailbox.has(part.signal) else "stale")

    def told(self, change: Change, result: Result) -> Result:
        """The result, completed with what is known only once the whole batch is written."""
        if isinstance(change, Post) and result.outcome == "applied":
            return result._replace(run_ids=self._rows.mailbox.receivers(change.signal, self._now))
        if isinstance(change, Emit | Occur) and result.event is not None and result.outcome == "applied":
            return result._replace(run_ids=self._rows.mailbox.holders(result.event.mail_id, self._now))
        if isinstance(change, Start | Move) and result.outcome == "applied" and result.run is not None:
            mail = bool(self._rows.mailbox.of(result.run.id, self._now))
            parts = zip(change.also if isinstance(change, Move) else (), result.also, strict=True)
            return result._replace(mail=mail, also=tuple(self.told(part, told) for part, told in parts))
        return result


def _may_follow(newest: Run, reuse: Reuse) -> bool:
    """Whether another run may be started with the key of this run, which holds it."""
    match reuse:
        case "never":
            return False
        case "ended":
            return WorkflowStatus(newest.status).ended
        case "failed":
            return newest.status == WorkflowStatus.FAILED
        case _:
            assert_never(reuse)
