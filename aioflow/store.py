"""THE PORT: what a store must do. The runtime knows stores by this alone; backends know nothing else of aioflow.

Obligations that hold for every verb:

- A verb is one transaction. When it returns, that has committed, wholly or not at all.
- It takes ``now``, microseconds since the epoch, and reads no clock itself.
- It raises ``StoreUnavailable`` when it could not be done *or when that is unknown*, and ``StoreRefused`` when the
  data itself can never be stored, each caused by the driver's error; and nothing else.
- What it stores comes back exactly as it was, or is refused. It refuses a text with a lone surrogate and an integer
  beyond 64 bits; if it cannot hold a NUL, that too.
- It may be cancelled: whether it committed is then unknown to the caller, and the store stays usable.
- Called on a store that is not open it raises StoreUnavailable; ``renew`` may return False, and ``release`` do nothing.
- Rows it returns are as the last committed transaction left them.

``aioflow.testing.StoreConformance`` is this text as tests.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, overload

from pydantic import JsonValue

from aioflow.changes import Change, Result
from aioflow.clock import Micros
from aioflow.model import Deadline, Run, Signal, Transition
from aioflow.plans import EventRecord, Plan

#: The kinds of things for which ids are reserved.
IdKind: TypeAlias = Literal["run", "signal", "event", "worker"]


class Mail(NamedTuple):
    """A waiting run, the signals in the mailbox that fit its arms, in the order of (``sent_at``, id), and when its wait
    began: ``updated_at`` of the row that brought these arms. A later row with the same arms is the same wait.
    """

    run: Run
    signals: list[Signal]
    since: Micros


# ---- questions


@dataclass(frozen=True, slots=True, kw_only=True)
class RunQuery:
    """Selects runs, in an order. An empty tuple filters nothing; several values mean any of them."""

    workflow: tuple[str, ...] = ()
    version: tuple[str, ...] = ()
    status: tuple[str, ...] = ()
    step: tuple[str, ...] = ()
    #: What a waiting run waits for, or the kind of any of its arms.
    waiting_for: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    #: The name and the key of one and the same arm of a waiting run.
    waiting_signal: tuple[str, ...] = ()
    waiting_key: tuple[str, ...] = ()
    event_id: tuple[str, ...] = ()
    parent_id: tuple[int, ...] = ()
    #: A mapping matches a Context that holds its keys with matching values, and recursively; all else by equality
    #: (1 equals 1.0, True equals only True). Inside a list a mapping, too, matches by equality.
    data: Mapping[str, JsonValue] = field(default_factory=dict)
    #: Bounds are exclusive.
    created_after: Micros | None = None
    created_before: Micros | None = None
    updated_after: Micros | None = None
    updated_before: Micros | None = None
    #: Ties are broken by id, in the same direction.
    order: Literal["id", "created_at", "updated_at"] = "id"
    descending: bool = True
    limit: int = 100
    #: Only what comes after this (value of ``order``, id) in the order.
    after: tuple[int, int] | None = None
    #: A hint: the engine asks, and runs wait for the answer, so it should not queue behind users' queries.
    own: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EventQuery:
    """Selects events, in the order of their ids. An empty tuple filters nothing; several values mean any of them."""

    event_id: tuple[str, ...] = ()
    name: tuple[str, ...] = ()
    namespace: tuple[str, ...] = ()
    entity_id: tuple[str, ...] = ()
    status: tuple[str, ...] = ()
    #: Bounds of ``at``, exclusive.
    at_after: Micros | None = None
    at_before: Micros | None = None
    descending: bool = True
    limit: int = 100
    #: Only those that come after this id in the order.
    after: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanQuery:
    """Selects plans, each with its event, in any order: those of these ids that still exist; or, with workflow names in
    ``blocked``, the starts of these workflows whose ``due`` is ``BLOCKED``, ``limit`` at most.
    """

    ids: tuple[int, ...] = ()
    blocked: tuple[str, ...] = ()
    limit: int = 500


class Planned(NamedTuple):
    """A plan and its event."""

    plan: Plan
    event: EventRecord


@dataclass(frozen=True, slots=True)
class Claim:
    """The answer to ``claim``.

    ``working``: whether this worker may execute runs at all; False while another process works an exclusive store.
    ``runs``: what it is to run now and did not hold before. ``gone``: the runs in ``held`` that it does not own any
    more: ended, parked, or taken by another worker.
    """

    working: bool
    runs: list[Run] = field(default_factory=list)
    gone: Collection[int] = ()


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts of what is in the store.

    ``runs``: workflow -> status -> number. ``steps``: workflow -> step -> number, of live runs. ``waiting``:
    ``waiting_for`` -> number. ``overdue``: waiting runs whose deadline is now or past. ``oldest_due``: the earliest
    such deadline. ``mailbox``: signals that no run has taken yet, maybe expired ones, too. ``bytes``: size, or None.
    """

    runs: dict[str, dict[str, int]]
    steps: dict[str, dict[str, int]]
    waiting: dict[str, int]
    overdue: int
    oldest_due: Micros | None
    mailbox: int
    bytes: int | None
    #: status -> number of events.
    events: dict[str, int] = field(default_factory=dict)
    #: Planned starts; of these, those that failed and will be tried again, and those that are blocked.
    planned: int = 0
    failing: int = 0
    blocked: int = 0


class Store(Protocol):
    """The verbs. A store is opened before the other verbs and closed after them; it can then be opened again.

    An entry point in the group ``aioflow.backends`` is called with the whole URL; it raises ValueError for a bad one.
    """

    @property
    def name(self) -> str:
        """The store's address for messages and logs, without any password."""
        ...

    @property
    def exclusive(self) -> bool:
        """Whether one worker at a time works the whole store: it then claims runs of all workflows, known or not."""
        ...

    @property
    def in_flight(self) -> int:
        """How many batches it is given concurrently, at least 1. No two of them change one run, or concern one start
        key, signal_id, event or plan.
        """
        ...

    @property
    def pushes_hints(self) -> bool:
        """Whether ``hint`` waits for something new before it answers, a tenth of a second at most."""
        ...

    @property
    def clock_offset(self) -> Micros:
        """How far the store's clock is ahead of the machine's, measured at ``open`` and at each ``renew``; 0 if it has
        no clock. ``now`` is the machine's time plus this, so that several machines agree.
        """
        ...

    async def open(self, now: Micros) -> str:
        """Connect, migrate if need be (safe when several processes do it at once), and return the store's UUID.

        The UUID is made with the store and never changes. Data written by a newer schema than this code knows is
        refused with StoreUnavailable.
        """
        ...

    async def close(self) -> None:
        """Release every connection, thread and lock. Does nothing if the store is closed already."""
        ...

    async def reserve(self, kind: IdKind, count: int, now: Micros) -> int:
        """The first of ``count`` consecutive ids of a kind, from 1 upwards, which nobody else was or will be given."""
        ...

    async def apply(self, changes: Sequence[Change], now: Micros) -> list[Result]:
        """Commit a batch: each change wholly or not at all, all that apply in one transaction. A result for each.

        Guards are checked under the lock with which the change is written. A stale change does not undo its neighbours.
        The batch has at most one change per run (a Post is no change to its run), one Start per (workflow, key) and one
        Post per signal_id, those in ``also`` included. Whether a Start whose key a run has, or a Post to a run, sees
        that run before or after a change to it in the same batch is open. What ``decide`` raises undoes the batch.

        When a Start or Move leaves its run waiting with an "event" arm that has a key, the mailbox gets a copy of each
        event of this name and entity_id whose ``occurred_at`` is the run's ``created_at`` or later, which is not
        cancelled, and was not taken by the run before in this occurrence; the result says ``mail``. That a run has
        taken a copy, even to reject it, is remembered as long as the run exists.

        A batch has at most one Emit, Occur or Withdraw per event, and one change per plan. Each sees the listeners and
        plans as the changes before it in the batch leave them. Whether a run whose wait begins or ends in the batch
        gets an event that occurs in the batch is open, but if its arm has a key it gets it in either order; an Emit in
        a Move's ``also`` comes after the move.

        After an unknown outcome the same changes may be offered again. A Start whose run id is in the store with its
        commit_id in history row 1, and a Move or Amend that finds its commit_id in a history row of the run (a Move:
        row ``transition.seq``), have been applied: the result is "applied", with the row as it now stands.

        The row of a Start, Move or Amend that ends a run has no owner already; the store changes nothing in it.

        A Start whose id was taken by another commit, and an Amend that decides None, are stale.

        Raises:
            StoreRefused: some change can never be stored, so that nothing of the batch was.
        """
        ...

    async def load(self, run_ids: Collection[int], now: Micros) -> list[Run]:
        """The runs of these ids that exist, in any order."""
        ...

    @overload
    async def select(self, query: RunQuery, now: Micros) -> list[Run]: ...
    @overload
    async def select(self, query: EventQuery, now: Micros) -> list[EventRecord]: ...
    @overload
    async def select(self, query: PlanQuery, now: Micros) -> list[Planned]: ...
    async def select(self, query: RunQuery | EventQuery | PlanQuery, now: Micros) -> Any:
        """The runs, events or plans that match, in order, ``query.limit`` at most."""
        ...

    async def count(self, query: RunQuery, now: Micros) -> int:
        """How many runs match; ignores the query's order, limit and after."""
        ...

    async def history(self, run_id: int, after: int, limit: int, now: Micros) -> list[Transition]:
        """Transitions of a run with a seq above ``after``, oldest first. Empty if there is no such run."""
        ...

    async def due(
        self,
        after: tuple[Micros, int],
        until: tuple[Micros, int],
        limit: int,
        now: Micros,
        of: Literal["run", "plan"] = "run",
    ) -> list[Deadline]:
        """Deadlines of waiting runs with after < (at, run_id) <= until, earliest first, ``limit`` at most.

        For plans, the plan's id and attempts stand in place of the run's id and seq.
        """
        ...

    async def mail(
        self,
        run_ids: Collection[int] | None,
        limit: int,
        now: Micros,
        *,
        known: Collection[tuple[str, str]] | None = None,
        after: tuple[Micros, int] | None = None,
    ) -> list[Mail]:
        """Waiting runs, of these or of all, for which the mailbox holds signals: oldest wait first, ``limit`` at most.

        ``known``: only runs of these (workflow, version) pairs. ``after``: only what comes after this (since, run id)
        in the order.

        A copy of an event fits an "event" arm of its name, any other signal a "signal" arm; an "action" arm takes
        nothing. A signal fits an arm of its name if it is addressed to the run, or to the arm's key. What has expired
        or was taken is not in the mailbox any more. A signal to a key may be in several Mails; of many signals for one
        run the first few suffice.
        """
        ...

    async def expire(self, limit: int, now: Micros, *, forget: int | None = None) -> list[Signal]:
        """Take out of the mailbox what no run took in its time, ``limit`` at most, and return it.

        That is: what has expired, copies of a broadcast whose wait is over, and what is addressed to runs that have
        ended. It also forgets signals that were taken, up to ``forget`` (None: ``limit``): those with a signal_id after
        7 days, others after an hour, by when no Post of them is offered again.
        """
        ...

    async def claim(
        self, worker: int, *, lease: Micros, limit: int, known: Collection[tuple[str, str]], now: Micros,
        held: Collection[int] | None, after: tuple[Micros, int] | None = None, suspects: bool = True,
    ) -> Claim:  # fmt: skip
        """Make this worker the owner of up to ``limit`` running runs without a living owner; of none if it is below 1.

        Taking a run raises its fence and clears its mark. Runs without owner are taken in the order of (``created_at``,
        id), only those after ``after`` if given. Taking a run from a dead owner (``owner`` is set, and its lease is over
        or its lock lost) adds one to ``crashes`` while they are below 2, and from then on only if the run is ``marked``.
        Without ``suspects`` no run is taken that has 2 already. An exclusive store gives runs of all workflows, any other
        only those of ``known`` (workflow, version) pairs.

        Also returns, whatever the limit, the worker's own running runs that are not in ``held``, unchanged, as replies
        get lost; and which of ``held`` are ``gone``. With ``held`` None, neither is looked for.

        The first claim registers the worker with a lease of ``lease`` from now; so does one after its lease was over,
        and the worker keeps the runs that no other took meanwhile. A lease is over from the instant that it names. If
        the store is exclusive and another worker has it, ``working`` is False, and nothing is taken or told.
        """
        ...

    async def renew(self, worker: int, lease: Micros, now: Micros) -> bool:
        """Extend the worker's lease to ``now + lease``. If it was over already, do nothing and return False."""
        ...

    async def release(self, worker: int, now: Micros) -> None:
        """The worker stops: its running runs lose their owner, with a higher fence, unmarked, without adding a crash.

        Its lease and its lock end.
        """
        ...

    async def hint(self, now: Micros) -> int:
        """A number that changes when others have applied changes. Cheap, and only a hint.

        It may change by what is applied here, too; for a claim it need not, as nobody waits for a run to get an owner.
        """
        ...

    async def stats(self, now: Micros) -> Stats:
        """Counts of what is in the store now."""
        ...
