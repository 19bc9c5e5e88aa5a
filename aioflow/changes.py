"""The vocabulary of ``Store.apply``: the changes, with their guards, and the result of one.

Named tuples, as they are made in large numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

from pydantic import BaseModel

from aioflow.clock import Micros
from aioflow.model import Deadline, Reuse, Run, Signal, Transition
from aioflow.plans import EventRecord, Listener, Plan


class Start(NamedTuple):
    """Insert ``run`` and its first history row.

    With a ``run.key``, the live run of that workflow and key, or if none is live the newest by (created_at, id), blocks
    the start: always if ``reuse`` is "never"; unless it has ended if "ended"; unless it has failed if "failed". Then
    the result is "exists", with that run.

    With a ``plan`` (its id), the change is stale if there is no such plan any more; else the plan is deleted, even if
    the result is "exists". The run counts as having taken this occurrence of the plan's event.

    ``live``: the Context that ``run.data`` reads back as, for the worker that runs it here; stores ignore it.
    """

    run: Run
    transition: Transition
    reuse: Reuse = "never"
    plan: int = 0
    live: BaseModel | None = None


class Post(NamedTuple):
    """Put a signal into the mailbox.

    - With a ``run_id``: only if that run is live; else the result is "stale", with the run if there is one.
    - With a ``key`` alone: for whichever run takes it.
    - With neither, a broadcast: a copy for each run that now waits for the name, each with that run's id and
      ``broadcast`` 1, without the signal_id. It lives as long as the wait that it was made for. The broadcast itself is
      remembered from now on as if it were taken, even if no run gets a copy.

    If the mailbox has this ``id`` or remembers it, the change was applied before, and the result is "applied" again;
    else, if it has an unexpired signal with this ``signal_id``, or remembers one, the result is "exists". Whether the
    run is live is asked after both.
    """

    signal: Signal


class Move(NamedTuple):
    """Replace the row ``run.id`` by ``run`` and insert the history row, if the row still has ``seq`` and ``fence``.

    Args:
        takes: ids of signals that it takes out of the mailbox, addressed to this run or to a key; the move is stale if
            one of them is not there (any more). A transition of kind "reject" also forgets their signal_ids: no run
            took them.
        unless_mail: the move is also stale, and the result says ``mail``, if the mailbox holds a signal for an arm of
            the stored row that was sent by the row's ``wake_at``, or at any time if that is None. And it is stale, with
            the plan in ``plans``, if an event that an arm waits for, and the run has not taken, is planned to occur
            by ``wake_at`` and by now; of several such plans, the first; of a row without ``wake_at``, none.
        also: what the step started, sent and emitted, committed with the move. A part that "exists" or is "stale" is
            left out, and does not make the move stale; a Start's key is checked after the move. It is unspecified
            whether the move's own wait gets a signal that is sent with it, or the former occurrence of an event that is
            replaced with it.
    """

    run: Run
    seq: int
    fence: int
    transition: Transition
    takes: tuple[int, ...] = ()
    unless_mail: bool = False
    also: tuple[Start | Post | Emit, ...] = ()


class Mark(NamedTuple):
    """Set ``marked`` on a run that still has ``seq`` and ``fence``. No history row; repeating it is harmless."""

    run_id: int
    seq: int
    fence: int


#: A pure function of the stored row: the new row and its history row, or None to leave the run as it is.
Decide: TypeAlias = Callable[[Run], tuple[Run, Transition] | None]


class Amend(NamedTuple):
    """Change a run whatever its seq and fence, by a pure function of the row as it is under the lock.

    The history row that ``decide`` gives bears ``commit_id``.
    """

    run_id: int
    decide: Decide
    commit_id: int


class Emit(NamedTuple):
    """Record an event, and plan the starts that it causes. The store sets ``event.occurrence`` and ``event.status``.

    - Its event_id is new: the event is inserted, with occurrence 1.
    - Its event_id is known: the result is "exists", with the stored event; or, with ``replace`` and the same name, all
      of it but id, event_id and recorded_at is replaced, its occurrence rises by one, and its plans are deleted. Copies
      in the mailbox stay.
    - The stored event has, or had before it was replaced, this very ``mail_id``: this change was applied before.

    Then a plan is made for each Listener to its name and namespace, due at ``event.at`` plus the offset. If
    ``event.at`` is past or now, the event occurs; else it is "pending", and gets a plan of its own by which it will
    occur.

    When an event occurs, its ``status`` becomes "occurred" and its ``occurred_at`` now; and the mailbox gets a copy
    (``EventRecord.copy_for``), like that of a broadcast, for each run that now waits with an "event" arm of this name
    whose key is None or the event's entity_id, and has not taken this occurrence, as a run that was started by it has.

    The id of a plan is never used again. Several matching Listeners of one workflow and offset get one plan.
    """

    event: EventRecord
    replace: bool = False


class Occur(NamedTuple):
    """The plan (its id) by which an event occurs is due: the event occurs, see Emit. Stale if the plan is gone, taken
    by an earlier offer or by another worker; or if it is the plan of a start. ``event_id``: that of the plan's event.
    """

    plan: int
    event_id: str


class Withdraw(NamedTuple):
    """Cancel an event, whatever its status: ``status`` becomes "cancelled", and its plans are deleted; copies in the
    mailbox stay. Stale, with the event, if it is cancelled already; stale, too, if there is none.
    """

    event_id: str


class Replan(NamedTuple):
    """Postpone a planned start: replace the plan's ``due`` and ``error``, and add one to its ``attempts``; with ``due``
    None, delete it. Stale if it is gone, or its attempts differ from those of ``plan``; if this very change was applied
    to it before, the result is "applied" again.
    """

    plan: Plan
    due: Micros | None
    error: str | None = None


class Listen(NamedTuple):
    """Store all the listeners of these workflows, in place of their former ones. Existing plans stay."""

    workflows: tuple[str, ...]
    listeners: tuple[Listener, ...]


Change: TypeAlias = Start | Post | Move | Mark | Amend | Emit | Occur | Withdraw | Replan | Listen


def size_of(change: Change) -> int:
    """How many characters of data it writes: Contexts, inputs, payloads and entities."""
    if isinstance(change, Post):
        return len(change.signal.payload)
    if isinstance(change, Emit):
        return len(change.event.entity or "")
    if not isinstance(change, (Start, Move)):
        return 0
    also = () if isinstance(change, Start) else change.also
    return len(change.run.data) + len(change.run.input or "") + sum(map(size_of, also))


class Result(NamedTuple):
    """The outcome of a change.

    - "applied": it is committed, now or by an earlier offer of the same change; ``run`` is the row it wrote.
    - "exists": a Start whose key is taken, ``run`` is the run that has it; or a Post whose signal_id was sent before.
    - "stale": a guard did not hold, nothing was changed; ``run`` is the stored row, None if there is none.

    ``mail``, and ``run_ids`` of an applied change, are as the whole batch leaves them. ``run_ids`` are in ascending
    order, for a Post with a key in the order of the waits; ``plans`` are in any order.

    ``transition``: the history row that an applied Amend wrote; None for every other change, which brought its own.
    ``mail``: of a Start or Move: the run waits, and the mailbox holds a signal for it; of a Post to a run or a key that
    "exists": the signal is not taken yet. ``run_ids``: of an applied Post: waiting runs that may take it (with a key,
    those with the oldest waits, as many as the mailbox has signals of this name and key); of one that "exists": the
    runs that have taken it; of a change by which an event occurred: the runs that got a copy. ``also``: the results of
    the Move's ``also``, in order; of a later offer, "applied" for what the first did, as it now stands, and not for
    what that left out. ``event``: of Emit, Withdraw and an applied Occur: the stored event, if there is one. ``plans``:
    of an Emit or Replan: the deadlines of the plans that it made or changed (with their ids and attempts), if this
    offer did; after another offer, none. Of a Move that is stale by ``unless_mail``: the plan of the event that has to
    occur first.
    """

    outcome: Literal["applied", "exists", "stale"]
    run: Run | None = None
    transition: Transition | None = None
    mail: bool = False
    run_ids: tuple[int, ...] = ()
    also: tuple[Result, ...] = ()
    event: EventRecord | None = None
    plans: tuple[Deadline, ...] = ()

    def left_by(self, move: Move) -> Run | None:
        """The row as this move left it; None if the move was refused.

        None, too, if the row has changed since: an offer whose reply was lost may be answered with a later row.
        """
        run = self.run
        if run is move.run and self.outcome == "applied":  # so it is in nearly all results
            return run
        own = self.outcome == "applied" and run is not None and (run.seq, run.fence) == (move.run.seq, move.run.fence)
        return run if own else None
