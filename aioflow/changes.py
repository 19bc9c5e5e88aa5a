"""The vocabulary of ``Store.apply``: what may be changed, by which guards, and what became of it.

Named tuples, for there are many of them.
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

    With a ``run.key``, the live run of that workflow and key stands in the way, or if none is live the newest by
    (created_at, id): always if ``reuse`` is "never"; unless it has ended if "ended"; unless it has failed if "failed".
    Then the result is "exists", with that run.

    With a ``plan`` (its id): it is stale if there is no such plan any more, and takes the plan away with it, also when it
    "exists". The run counts as having taken this occurrence of the plan's event.

    ``live``: the Context that ``run.data`` reads back as, for whoever begins the run here; no store looks at it.
    """

    run: Run
    transition: Transition
    reuse: Reuse = "never"
    plan: int = 0
    live: BaseModel | None = None


class Post(NamedTuple):
    """Put a signal into the mailbox.

    - With a ``run_id``: if that run is live; else the result is "stale", with the run if there is one.
    - With a ``key`` alone: for whichever run takes it.
    - With neither, a broadcast: a copy for each run that now waits for the name, each with that run's id and
      ``broadcast`` 1. It lives as long as the wait that it was made for.

    A ``signal_id`` that the mailbox has, unexpired, or remembers makes it "exists"; an ``id`` that it has makes it
    "applied" again.
    """

    signal: Signal


class Move(NamedTuple):
    """Replace the row ``run.id`` by ``run`` and insert the history row, if the row still has ``seq`` and ``fence``.

    Args:
        takes: ids of signals that it takes out of the mailbox, addressed to this run or to a key; one that is not
            there (any more) is a guard that does not hold. A transition of kind "reject" also forgets their signal_ids:
            nobody took them.
        unless_mail: it is also stale, and the result says ``mail``, if the mailbox holds a signal for an arm of the
            row as it stands that was sent by the row's ``wake_at``, or at any time if it has none. And it is stale, with
            that plan in ``plans``, if the occurring of an event that an arm would hear of is due by ``wake_at`` and by now:
            of several, the first.
        also: what the step started and sent, committed with it. What "exists" or is "stale" among it is left out, and
            does not hold the move back; a Start's key is looked at as the move leaves it. Whether the move's own wait hears
            what is sent with it, or of an event that is replaced with it the occurrence before, is open.
    """

    run: Run
    seq: int
    fence: int
    transition: Transition
    takes: tuple[int, ...] = ()
    unless_mail: bool = False
    also: tuple[Start | Post | Emit, ...] = ()


class Mark(NamedTuple):
    """Set ``marked`` on a run that still has ``seq`` and ``fence``. No history row; to repeat it is harmless."""

    run_id: int
    seq: int
    fence: int


#: From the row as it stands to the new one and its history row, or None to leave it alone. Pure.
Decide: TypeAlias = Callable[[Run], tuple[Run, Transition] | None]


class Amend(NamedTuple):
    """Change a run whatever its seq and fence, by a pure function of the row as it stands under the lock.

    The history row that ``decide`` gives bears ``commit_id``.
    """

    run_id: int
    decide: Decide
    commit_id: int


class Emit(NamedTuple):
    """Record an event, and plan what comes of it. ``event.occurrence`` and ``event.status`` are the store's to say.

    - Its event_id is new: it is inserted, with occurrence 1.
    - It is known: "exists", with the event as it stands; or, with ``replace`` and the same name, all of it but id, event_id
      and recorded_at is replaced, its occurrence is one higher, and its plans are taken away.
    - It is known with this very ``mail_id``, or was before it was replaced: this change was applied before.

    Then each Listener to its name and namespace gets a plan, due at ``event.at`` plus the offset. If ``event.at`` is past
    or now, it occurs, else it is "pending" and its occurring is a plan, too.

    To occur is: ``status`` "occurred", ``occurred_at`` now; and the mailbox gets a copy (``EventRecord.copy_for``), as of a
    broadcast, for each run that now waits with an "event" arm of this name whose key is None or the event's entity_id,
    and has not taken this occurrence: one that was started by it does not hear of it.

    A plan's id is never another's. Of several Listeners of one workflow and offset that it fits, there is one plan.
    """

    event: EventRecord
    replace: bool = False


class Occur(NamedTuple):
    """The plan (its id) of an event's occurring is due: it occurs, see Emit. Stale if there is no such plan any more: by
    an earlier offer, or somebody else; or if it is a start's.
    """

    plan: int
    event_id: str


class Withdraw(NamedTuple):
    """Cancel an event, whatever its status: ``status`` "cancelled", its plans are taken away. Stale if it is cancelled
    already, with the event, or if there is none.
    """

    event_id: str


class Replan(NamedTuple):
    """A start has failed: replace the plan's ``due`` and ``error``, and add one to its ``attempts``; with ``due`` None
    take it away. Stale if it is gone, or has other attempts than ``plan``; one that this very change has replaced is
    "applied" again.
    """

    plan: Plan
    due: Micros | None
    error: str | None = None


class Listen(NamedTuple):
    """Say all that these workflows listen to; what was said of them before is replaced. Plans stay."""

    workflows: tuple[str, ...]
    listeners: tuple[Listener, ...]


Change: TypeAlias = Start | Post | Move | Mark | Amend | Emit | Occur | Withdraw | Replan | Listen


class Result(NamedTuple):
    """What became of a change.

    - "applied": it is committed, now or by an earlier offer of the same change; ``run`` is the row it wrote.
    - "exists": a Start whose key is taken, ``run`` is the run that has it; or a Post whose signal_id was sent before.
    - "stale": a guard did not hold, nothing was changed; ``run`` is the row as it stands, None if there is none.

    ``transition``: the history row that an applied Amend wrote; None for every other change, which brought its own.
    ``mail``: of a Start or Move: the mailbox holds a signal for the run, which waits; of a Post that "exists": nobody has
    taken it yet. ``run_ids``: of an applied Post: waiting runs that may take it (of those with the key, the oldest waits,
    as many as the mailbox has signals of this name and key); of one that "exists": who has taken it; of an event that has
    occurred by this change: the runs that it has mail for. ``also``: what became of the Move's ``also``, in order, when
    this offer applied it. ``event``: of Emit, Occur and Withdraw: the event as it stands, if there is one. ``plans``: of an
    Emit and a Replan: when its plans are due (id, due, attempts), if this offer made them; after another offer, none. Of
    a Move that is stale by ``unless_mail``: what is in its way.
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
        """The row as this move left it; None if it was refused.

        Also if it is not as that left it: an offer whose reply was lost may be answered with what came after it.
        """
        run = self.run
        if run is move.run and self.outcome == "applied":  # as it is in nearly all answers
            return run
        own = self.outcome == "applied" and run is not None and (run.seq, run.fence) == (move.run.seq, move.run.fence)
        return run if own else None
