"""Judges the changes of a batch in memory, in order, by what was read under locks; then writes their effects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Literal, TypeAlias

from aioflow.changes import Amend, Change, Emit, Listen, Mark, Move, Occur, Post, Replan, Result, Start, Withdraw
from aioflow.clock import Micros
from aioflow.model import LIVE, Reuse, Run, Signal, Transition, WorkflowStatus
from aioflow_postgres import mailbox
from aioflow_postgres.events import Events
from aioflow_postgres.hearing import awaits_entities, catch_up, entities_of
from aioflow_postgres.session import Session
from aioflow_postgres.standing import ROWS, Standing
from aioflow_postgres.writing import BEGINS, Row, write

Part: TypeAlias = Start | Post | Emit
Outcome: TypeAlias = Literal["applied", "exists", "stale"]

_MARK: Final = "UPDATE aioflow.runs SET marked = 1 WHERE id = ANY($1::bigint[])"


class Batch:
    """One batch.

    The mutable state: the state that the changes find (``_was``), the effects of those judged so far (rows, marks,
    signals taken and posted), and the runs whose rows are to be read for results (``_unread``).
    """

    def __init__(self, changes: Sequence[Change], now: Micros) -> None:
        self._now = now
        self._flat = [*changes, *(part for change in changes if isinstance(change, Move) for part in change.also)]
        self._was = Standing(self._flat, now)
        self.events = Events((change for change in self._flat if _is_of_events(change)), now)
        self._written: dict[int, Row] = {}
        self._marked: list[int] = []
        self._taken: list[tuple[int, int, int | None]] = []
        self._posted: list[Signal] = []
        #: runs whose rows, as the batch leaves them, are part of results
        self._unread: set[int] = set()
        self._mail: set[int] = set()
        self._receivers: dict[int, tuple[int, ...]] = {}

    @property
    def keys(self) -> list[tuple[str, ...]]:
        """The start keys, signal_ids, and workflows whose listeners are set."""
        keys: list[tuple[str, ...]] = []
        for change in self._flat:
            if isinstance(change, Start) and change.run.key is not None:
                keys.append(("key", change.run.workflow, change.run.key))
            elif isinstance(change, Post) and change.signal.signal_id is not None:
                keys.append(("signal", change.signal.signal_id))
            elif isinstance(change, Listen):
                keys += [("listen", workflow) for workflow in change.workflows]
        return keys

    @property
    def awaited(self) -> list[tuple[str, str]]:
        """(event, entity_id) of the events that runs begin to wait for."""
        runs = (change.run for change in self._flat if isinstance(change, Start | Move))
        return [pair for run in runs if awaits_entities(run) for pair in entities_of(run)]

    async def read(self, session: Session) -> None:
        """Lock the runs, and read what else the changes depend on."""
        await self._was.read(session)

    # ---- judging

    def judge(self, change: Change) -> Result:
        """The result of a change, after those before it."""
        match change:
            case Move():
                return self._move(change)
            case Start():
                return self._start(change)
            case Mark(run_id, seq, fence):
                if self._was.guards.get(run_id, ())[:2] != (seq, fence):
                    return self._with_row("stale", run_id)
                self._marked.append(run_id)
                return self._with_row("applied", run_id)
            case Amend():
                return self._amend(change)
            case Post(signal):
                return self._post(signal)
            case _:
                return self.events.judge(change)

    def _move(self, move: Move) -> Result:
        run = move.run
        if self._was.guards.get(run.id, ())[:2] != (move.seq, move.fence):
            result = self._offered(run.id, move.transition)
            if result.outcome == "applied":
                return result._replace(also=tuple(self._offered_with_it(part) for part in move.also))
            return result
        if move.unless_mail and self._has_mail(run.id):
            return self._with_row("stale", run.id)._replace(mail=True)
        if move.unless_mail and (first := self._was.to_occur.get(run.id)) is not None:
            return self._with_row("stale", run.id)._replace(plans=(first,))
        found = [place for id_ in move.takes for place in ((id_, run.id), (id_, 0)) if place in self._was.untaken]
        if len(found) != len(move.takes):
            return self._with_row("stale", run.id)
        self._was.untaken.difference_update(found)
        taker = None if move.transition.kind == "reject" else run.id
        self._taken += [(*place, taker) for place in found]
        self._write(Row(run, move.seq, move.fence, move.transition))
        return Result("applied", run, also=tuple(self.judge(part) for part in move.also))

    def _has_mail(self, run_id: int) -> bool:
        """Whether the mailbox, or a Post of this batch, has something for the run that was sent by its deadline."""
        if run_id in self._was.in_time:
            return True
        wake_at, arms = self._was.waits.get(run_id, (None, []))
        return any(
            (wake_at is None or signal.sent_at <= wake_at)
            and any(
                (arm.kind, arm.name) == ("signal", signal.name)
                and (signal.run_id == run_id or (not signal.run_id and signal.key in {None, arm.key}))
                for arm in arms
            )
            for signal in self._posted
        )

    def _start(self, start: Start) -> Result:
        run, mail_id = start.run, None
        if run.id in self._was.guards:
            return self._offered(run.id, start.transition)
        if start.plan:
            mail_id = self.events.take(start.plan)
            if mail_id is None:
                return Result("stale")
        holder = self._in_the_way(run, start.reuse)
        if holder is not None:
            return self._with_row("exists", holder)
        if mail_id is not None:
            self.events.started(run.id, mail_id)
        self._write(Row(run, BEGINS, BEGINS, start.transition))
        return Result("applied", run)

    def _in_the_way(self, run: Run, reuse: Reuse) -> int | None:
        """The run that holds the key, after the changes before this one; None if the key is free."""
        if run.key is None:
            return None
        holders = []
        for id_, status, created_at in self._was.holders.get((run.workflow, run.key), ()):
            stands = self._written[id_].run.status if id_ in self._written else status
            holders.append((stands in LIVE, created_at, id_, stands))
        if not holders:
            return None
        live, _, id_, status = max(holders)
        free = (reuse == "ended" and not live) or (reuse == "failed" and status == WorkflowStatus.FAILED)
        return None if free else id_

    def _amend(self, change: Amend) -> Result:
        row = self._was.rows.get(change.run_id)
        if row is None:
            return Result("stale")
        if change.run_id in self._was.amended:
            return self._with_row("applied", row.id)._replace(transition=self._was.amended[change.run_id])
        amended = change.decide(row)
        if amended is None:
            return Result("stale", row)
        run, transition = amended
        self._write(Row(run, row.seq, row.fence, transition))
        return Result("applied", run, transition)

    def _post(self, signal: Signal) -> Result:
        if signal.id in self._was.before.ids:
            return Result("applied")
        if signal.signal_id is not None and (sent := self._was.before.sent.get(signal.signal_id)) is not None:
            return Result("exists", mail=sent.waits, run_ids=sent.takers)
        if signal.run_id:
            written = self._written.get(signal.run_id)
            status = written.run.status if written is not None else self._was.guards.get(signal.run_id, ("", "", ""))[2]
            if status not in LIVE:
                return self._with_row("stale", signal.run_id)
        self._posted.append(signal)
        return Result("applied")

    def _offered(self, run_id: int, transition: Transition) -> Result:
        return self._with_row("applied" if (run_id, transition.commit_id) in self._was.commits else "stale", run_id)

    def _offered_with_it(self, part: Part) -> Result:
        """The result of a part of a Move that an earlier offer has applied."""
        if isinstance(part, Post):
            return Result("applied" if part.signal.id in self._was.before.ids else "stale")
        if isinstance(part, Emit):
            return self.events.offered(part)
        return self._offered(part.run.id, part.transition)

    def _with_row(self, outcome: Outcome, run_id: int) -> Result:
        """A result with a placeholder for the run's row, which is read once the batch is written."""
        self._unread.add(run_id)
        return Result(outcome, _PLACEHOLDER._replace(id=run_id))

    def _write(self, row: Row) -> None:
        self._written[row.run.id] = row

    # ---- writing

    async def write(self, session: Session) -> None:
        """Write the effects of the changes, and read the rows that results need."""
        if self._taken:  # before the rows: when a wait ends, a trigger expires the copies that were not taken
            await mailbox.take(session, self._taken, self._now)
        if self._written:
            await write(session, sorted(self._written.values()))
        if self._marked:
            await session.execute(_MARK, self._marked)
        if self._posted:
            await mailbox.post(session, [self._in_force(signal) for signal in self._posted], self._now)
        await self.events.write(session)
        await catch_up(session, (row.run for row in self._written.values()))
        if self._unread:
            rows = await session.fetch(ROWS, list(self._unread))
            self._was.rows = {run.id: run for run in map(Run._make, rows)}

    def _in_force(self, signal: Signal) -> Signal:
        """The signal, expired if a later change of the batch has ended the run that it is addressed to."""
        written = self._written.get(signal.run_id)
        return signal if written is None or written.run.status in LIVE else signal._replace(expires_at=0)

    # ---- telling

    async def tell(self, session: Session, changes: Sequence[Change], results: Sequence[Result]) -> list[Result]:
        """The results, completed with what is known now that everything is committed."""
        told = [self._filled(result) for result in results]
        flat = [*told, *(part for result in told for part in result.also)]
        if waiting := waits_in(flat):
            self._mail = await mailbox.with_mail(session, waiting, self._now)
        if posts := [change.signal for change in self._flat if isinstance(change, Post)]:
            self._receivers = await mailbox.receivers(session, posts, self._now)
        await self.events.look(session, flat)
        return [self._told(change, result) for change, result in zip(changes, told, strict=True)]

    def _filled(self, result: Result) -> Result:
        """The result with rows in the place of placeholders."""
        if result.also:
            result = result._replace(also=tuple(map(self._filled, result.also)))
        if result.run is not None and result.run.seq == _PLACEHOLDER.seq:
            result = result._replace(run=self._was.rows.get(result.run.id))
        return result

    def _told(self, change: Change, result: Result) -> Result:
        if result.outcome != "applied":
            return result
        if isinstance(change, Post):
            return result._replace(run_ids=self._receivers.get(change.signal.id, ()))
        if isinstance(change, Emit | Occur):
            return self.events.told(result)
        if result.also and isinstance(change, Move):
            parts = zip(change.also, result.also, strict=True)
            result = result._replace(also=tuple(self._told(part, told) for part, told in parts))
        if isinstance(change, Start | Move) and result.run is not None and result.run.id in self._mail:
            return result._replace(mail=True)
        return result


#: Stands for the row of a run in a result, with the run's id, until the row is read.
_PLACEHOLDER: Final = Run._make([-1] * len(Run._fields))


def waits_in(results: Iterable[Result]) -> list[int]:
    """The runs that wait for signals, events or calls after changes that were applied."""
    return [
        result.run.id
        for result in results
        if result.outcome == "applied" and result.run is not None and result.run.arms is not None
    ]


def _is_of_events(change: Change) -> bool:
    return isinstance(change, Emit | Occur | Withdraw | Replan | Listen) or (
        isinstance(change, Start) and bool(change.plan)
    )
