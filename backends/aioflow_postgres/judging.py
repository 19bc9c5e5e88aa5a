"""What becomes of the changes of a batch: read what they depend on, judge them in memory, write what they come to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Final, Literal, TypeAlias

from aioflow.changes import Amend, Change, Emit, Listen, Mark, Move, Occur, Post, Replan, Result, Start, Withdraw
from aioflow.clock import Micros
from aioflow.model import LIVE, Arm, Reuse, Run, Signal, Transition, WorkflowStatus
from aioflow_postgres import mailbox
from aioflow_postgres.database import Session
from aioflow_postgres.events import Events, awaits_entities, catch_up, entities_of
from aioflow_postgres.rows import HISTORY_COLUMNS, SELECT_RUNS, columns, unnest
from aioflow_postgres.writing import Row, write

Part: TypeAlias = Start | Post | Emit
Outcome: TypeAlias = Literal["applied", "exists", "stale"]

#: Locked, in the order of their ids, as everybody does.
_GUARDS: Final = """
SELECT id, seq, fence, status FROM aioflow.runs WHERE id = ANY($1::bigint[]) ORDER BY id FOR NO KEY UPDATE
"""
_ROWS: Final = f"{SELECT_RUNS} WHERE id = ANY($1::bigint[])"
_COMMITS: Final = f"""
SELECT h.run_id, h.commit_id FROM {unnest(["run_id", "seq"], ["bigint", "bigint"], "o")}
JOIN aioflow.history AS h ON h.run_id = o.run_id AND h.seq = o.seq
"""
_AMENDED: Final = f"""
SELECT {", ".join(f"h.{name}" for name in HISTORY_COLUMNS.split(", "))}
FROM {unnest(["run_id", "commit_id"], ["bigint", "bigint"], "o")}
JOIN aioflow.history AS h ON h.run_id = o.run_id AND h.commit_id = o.commit_id
"""
#: A live run and the newest that has ended, or the two newest: one of them has the key, whatever the batch does to them.
#: A live one comes first, whatever the clocks of those who started them said.
_HOLDERS: Final = f"""
SELECT h.workflow, h.key, h.id, h.status, h.created_at
FROM {unnest(["workflow", "key"], ["text", "text"], "o")} CROSS JOIN LATERAL (
    SELECT * FROM aioflow.runs AS r WHERE r.workflow = o.workflow AND r.key = o.key
    ORDER BY r.status IN ('running', 'waiting') DESC, r.created_at DESC, r.id DESC LIMIT 2
) AS h
"""
_WAITS: Final = "SELECT id, wake_at, arms FROM aioflow.runs WHERE id = ANY($1::bigint[]) AND arms IS NOT NULL"
_MARK: Final = "UPDATE aioflow.runs SET marked = 1 WHERE id = ANY($1::bigint[])"


class Batch:
    """One batch.

    The mutable state: what was read (guards of runs, rows and commits of those that need them, holders of keys, signals),
    what the changes so far come to (rows, marks, what is taken and posted), and which rows are still to be told.
    """

    def __init__(self, changes: Sequence[Change], now: Micros) -> None:
        self._now = now
        self._flat = [*changes, *(part for change in changes if isinstance(change, Move) for part in change.also)]
        self.events = Events((change for change in self._flat if _is_of_events(change)), now)
        self._guards: dict[int, tuple[int, int, str]] = {}
        self._rows: dict[int, Run] = {}
        self._commits: set[tuple[int, int]] = set()
        self._amended: dict[int, Transition] = {}
        self._holders: dict[tuple[str, str], list[tuple[int, str, int]]] = {}
        self._untaken: set[tuple[int, int]] = set()
        self._in_time: set[int] = set()
        self._waits: dict[int, tuple[Micros | None, list[Arm]]] = {}
        self._before = mailbox.Before(frozenset(), {})
        self._written: dict[int, Row] = {}
        self._marked: list[int] = []
        self._taken: list[tuple[int, int, int | None]] = []
        self._posted: list[Signal] = []
        #: rows that results want as they stand in the end
        self._unsaid: set[int] = set()
        self._mail: set[int] = set()
        self._receivers: dict[int, tuple[int, ...]] = {}

    @property
    def keys(self) -> list[tuple[str, ...]]:
        """Start keys and signal_ids."""
        keys: list[tuple[str, ...]] = []
        for change in self._flat:
            if isinstance(change, Start) and change.run.key is not None:
                keys.append(("key", change.run.workflow, change.run.key))
            elif isinstance(change, Post) and change.signal.signal_id is not None:
                keys.append(("signal", change.signal.signal_id))
        return keys

    @property
    def awaited(self) -> list[tuple[str, str]]:
        """(event, entity_id) of what runs begin to wait for."""
        runs = (change.run for change in self._flat if isinstance(change, Start | Move))
        return [pair for run in runs if awaits_entities(run) for pair in entities_of(run)]

    # ---- reading

    async def read(self, session: Session) -> None:
        """Lock the runs, and read what else the changes depend on."""
        ids = {run_id for change in self._flat if (run_id := _run_of(change))}
        if ids:
            found = await session.fetch(_GUARDS, sorted(ids))
            self._guards = {row["id"]: (row["seq"], row["fence"], row["status"]) for row in found}
        amends = [change for change in self._flat if isinstance(change, Amend)]
        if amends:
            rows = await session.fetch(_ROWS, [change.run_id for change in amends])
            self._rows = {run.id: run for run in map(Run._make, rows)}
            places = [(change.run_id, change.commit_id) for change in amends]
            before = map(Transition._make, await session.fetch(_AMENDED, *columns(places, 2)))
            self._amended = {transition.run_id: transition for transition in before}
        if offered := [place for change in self._flat if (place := self._offered_before(change))]:
            self._commits = {(id_, commit) for id_, commit in await session.fetch(_COMMITS, *columns(offered, 2))}
        await self._read_keys(session)
        if takes := [id_ for change in self._flat if isinstance(change, Move) for id_ in change.takes]:
            self._untaken = await mailbox.untaken(session, takes, self._now)
        if waiting := [change.run.id for change in self._flat if isinstance(change, Move) and change.unless_mail]:
            self._in_time = await mailbox.in_time(session, waiting, self._now)
            waits = await session.fetch(_WAITS, waiting)
            self._waits = {id_: (wake_at, [Arm(*arm) for arm in json.loads(arms)]) for id_, wake_at, arms in waits}
        signals = [change.signal for change in self._flat if isinstance(change, Post)]
        self._before = await mailbox.before(session, signals, self._now)

    async def _read_keys(self, session: Session) -> None:
        runs = [change.run for change in self._flat if isinstance(change, Start) and change.run.key is not None]
        if runs:
            keys = [(run.workflow, run.key) for run in runs]
            for workflow, key, *holder in await session.fetch(_HOLDERS, *columns(keys, 2)):
                self._holders.setdefault((workflow, key), []).append(tuple(holder))

    def _offered_before(self, change: Change) -> tuple[int, int] | None:
        """Where the change has left its commit_id, if this is not its first offer."""
        if isinstance(change, Start) and change.run.id in self._guards:
            return change.run.id, change.transition.seq
        if isinstance(change, Move) and self._guards.get(change.run.id, ())[:2] != (change.seq, change.fence):
            return change.run.id, change.transition.seq
        return None

    # ---- judging

    def judge(self, change: Change) -> Result:
        """What becomes of a change, after those before it."""
        match change:
            case Move():
                return self._move(change)
            case Start():
                return self._start(change)
            case Mark(run_id, seq, fence):
                if self._guards.get(run_id, ())[:2] != (seq, fence):
                    return self._stands("stale", run_id)
                self._marked.append(run_id)
                return self._stands("applied", run_id)
            case Amend():
                return self._amend(change)
            case Post(signal):
                return self._post(signal)
            case _:
                return self.events.judge(change)

    def _move(self, move: Move) -> Result:
        run = move.run
        if self._guards.get(run.id, ())[:2] != (move.seq, move.fence):
            result = self._offered(run.id, move.transition)
            if result.outcome == "applied":
                return result._replace(also=tuple(self._offered_with_it(part) for part in move.also))
            return result
        if move.unless_mail and self._has_mail(run.id):
            return self._stands("stale", run.id)._replace(mail=True)
        found = [place for id_ in move.takes for place in ((id_, run.id), (id_, 0)) if place in self._untaken]
        if len(found) != len(move.takes):
            return self._stands("stale", run.id)
        self._untaken.difference_update(found)
        taker = None if move.transition.kind == "reject" else run.id
        self._taken += [(*place, taker) for place in found]
        self._write(Row(run, move.seq, move.fence, move.transition))
        return Result("applied", run, also=tuple(self.judge(part) for part in move.also))

    def _has_mail(self, run_id: int) -> bool:
        """Whether the mailbox has something for the run that was sent by its deadline, or the batch has posted it."""
        if run_id in self._in_time:
            return True
        wake_at, arms = self._waits.get(run_id, (None, []))
        return any(
            (wake_at is None or signal.sent_at <= wake_at)
            and any(
                (arm.kind, arm.name) == ("signal", signal.name)
                and (signal.run_id == run_id or (not signal.run_id and signal.key == arm.key))
                for arm in arms
            )
            for signal in self._posted
        )

    def _start(self, start: Start) -> Result:
        run, mail_id = start.run, None
        if run.id in self._guards:
            return self._offered(run.id, start.transition)
        if start.plan:
            mail_id = self.events.take(start.plan)
            if mail_id is None:
                return Result("stale")
        holder = self._in_the_way(run, start.reuse)
        if holder is not None:
            return self._stands("exists", holder)
        if mail_id is not None:
            self.events.started(run.id, mail_id)
        self._write(Row(run, 0, 0, start.transition))
        return Result("applied", run)

    def _in_the_way(self, run: Run, reuse: Reuse) -> int | None:
        """The run that has the key already, as the changes before have left it."""
        if run.key is None:
            return None
        holders = []
        for id_, status, created_at in self._holders.get((run.workflow, run.key), ()):
            stands = self._written[id_].run.status if id_ in self._written else status
            holders.append((stands in LIVE, created_at, id_, stands))
        if not holders:
            return None
        live, _, id_, status = max(holders)
        free = (reuse == "ended" and not live) or (reuse == "failed" and status == WorkflowStatus.FAILED)
        return None if free else id_

    def _amend(self, change: Amend) -> Result:
        row = self._rows.get(change.run_id)
        if row is None:
            return Result("stale")
        if change.run_id in self._amended:
            return self._stands("applied", row.id)._replace(transition=self._amended[change.run_id])
        amended = change.decide(row)
        if amended is None:
            return Result("stale", row)
        run, transition = amended
        self._write(Row(run, row.seq, row.fence, transition))
        return Result("applied", run, transition)

    def _post(self, signal: Signal) -> Result:
        if signal.id in self._before.ids:
            return Result("applied")
        if signal.signal_id is not None and (sent := self._before.sent.get(signal.signal_id)) is not None:
            return Result("exists", mail=sent.waits, run_ids=sent.takers)
        if signal.run_id:
            written = self._written.get(signal.run_id)
            status = written.run.status if written is not None else self._guards.get(signal.run_id, ("", "", ""))[2]
            if status not in LIVE:
                return self._stands("stale", signal.run_id)
        self._posted.append(signal)
        return Result("applied")

    def _offered(self, run_id: int, transition: Transition) -> Result:
        return self._stands("applied" if (run_id, transition.commit_id) in self._commits else "stale", run_id)

    def _offered_with_it(self, part: Part) -> Result:
        """What became of a part of a move that an earlier offer has applied."""
        if isinstance(part, Post):
            return Result("applied" if part.signal.id in self._before.ids else "stale")
        if isinstance(part, Emit):
            return self.events.offered(part)
        return self._offered(part.run.id, part.transition)

    def _stands(self, outcome: Outcome, run_id: int) -> Result:
        """A result that has the row as it will stand when the batch is written."""
        self._unsaid.add(run_id)
        return Result(outcome, _STANDS._replace(id=run_id))

    def _write(self, row: Row) -> None:
        self._written[row.run.id] = row

    # ---- writing

    async def write(self, session: Session) -> None:
        """Write what the changes have come to, and read the rows that are to be told as they stand."""
        if self._taken:  # before the rows: a wait that ends takes what was not taken with it
            await mailbox.take(session, self._taken, self._now)
        if self._written:
            await write(session, sorted(self._written.values()))
        if self._marked:
            await session.execute(_MARK, self._marked)
        if self._posted:
            await mailbox.post(session, [self._in_force(signal) for signal in self._posted], self._now)
        await self.events.write(session)
        await catch_up(session, (row.run for row in self._written.values()))
        if self._unsaid:
            rows = await session.fetch(_ROWS, list(self._unsaid))
            self._rows = {run.id: run for run in map(Run._make, rows)}

    def _in_force(self, signal: Signal) -> Signal:
        """The signal, expired if the run that it is addressed to has ended by a later change of the batch."""
        written = self._written.get(signal.run_id)
        return signal if written is None or written.run.status in LIVE else signal._replace(expires_at=0)

    # ---- telling

    async def tell(self, session: Session, changes: Sequence[Change], results: Sequence[Result]) -> list[Result]:
        """The results, with what is known now that everything is committed."""
        told = [self._said(result) for result in results]
        flat = [*told, *(part for result in told for part in result.also)]
        if waiting := waits_in(flat):
            self._mail = await mailbox.with_mail(session, waiting, self._now)
        if posts := [change.signal for change in self._flat if isinstance(change, Post)]:
            self._receivers = await mailbox.receivers(session, posts, self._now)
        await self.events.look(session, flat)
        return [self._told(change, result) for change, result in zip(changes, told, strict=True)]

    def _said(self, result: Result) -> Result:
        if result.also:
            result = result._replace(also=tuple(map(self._said, result.also)))
        if result.run is not None and result.run.seq == _STANDS.seq:
            result = result._replace(run=self._rows.get(result.run.id))
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


#: Stands for the row of a run, but for its id, until that is read.
_STANDS: Final = Run._make([-1] * len(Run._fields))


def waits_in(results: Iterable[Result]) -> list[int]:
    """The runs that wait, by what was applied."""
    return [
        result.run.id
        for result in results
        if result.outcome == "applied" and result.run is not None and result.run.arms is not None
    ]


def _is_of_events(change: Change) -> bool:
    return isinstance(change, Emit | Occur | Withdraw | Replan | Listen) or (
        isinstance(change, Start) and bool(change.plan)
    )


def _run_of(change: Change) -> int:
    """The run whose row the change depends on."""
    if isinstance(change, Start | Move):
        return change.run.id
    if isinstance(change, Post):
        return change.signal.run_id
    return change.run_id if isinstance(change, Mark | Amend) else 0
