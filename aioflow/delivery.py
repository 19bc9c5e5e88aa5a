"""Delivers the mailbox's signals to the runs that wait for them.

A signal is committed, then its receivers are looked up; a wait is committed, then its mailbox is looked up: whichever
of the two comes second finds the other. Both end in ``notify``, and the scan finds what was missed. A delivery is one
change of the waiting run, guarded by its seq and by the signal that it takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Hashable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import NamedTuple

from aioflow import telemetry
from aioflow.changes import Result
from aioflow.clock import SECOND, Clock, Micros
from aioflow.committer import MOST_DATA, Committer
from aioflow.definition import WorkflowDefinition
from aioflow.errors import StoreRefused
from aioflow.interventions import answer, reject
from aioflow.model import Run, Signal
from aioflow.reading import read_context
from aioflow.registry import Registry
from aioflow.signals import Misfit, arm_for, fit, runs_within
from aioflow.slots import Slots
from aioflow.store import Mail, Store

#: How many runs' mail is read at once: few at first, then as many as have about the data of a batch.
_FEW, _BATCH = 20, 500
#: How often expired signals, and the records of those taken long ago, are removed from the mailbox, and how many of
#: each at once: together they limit how many signals a second one worker can keep up with. Expired signals are logged,
#: so they are removed in lots.
_EXPIRE_EACH: Micros = 10 * SECOND
_FORGETS = 10_000
_LOT = 1_000


class Watch:
    """Watches the outcome of one signal, for its sender.

    The mutable state: the runs that may take it and were not looked at yet, and which runs took or rejected it.
    """

    def __init__(self) -> None:
        self.pending: set[int] = set()
        self.delivered: list[int] = []
        self.rejected: dict[int, str] = {}
        self.settled = asyncio.Event()


class _Attempt(NamedTuple):
    run: Run
    signal: Signal
    #: Why the signal is rejected; None if the run goes on with it.
    why: str | None
    future: asyncio.Future[Result]


class Delivery:
    """Delivers signals.

    Args:
        store, clock, registry, committer: what it works with.
        slots: decides who runs the runs that it resumes.
        commit_ids: makes commit ids.

    The mutable state: the runs to look at and how many at once, what to call for those that turn out to have no mail, the watches by signal,
    the senders by address, how many signals have expired, the runs that have mail but that the code here cannot take,
    when to look for expired signals again, how far a scan has come, and whether it is closed.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        registry: Registry,
        committer: Committer,
        slots: Slots,
        commit_ids: Iterator[int],
    ) -> None:
        self._store = store
        self._clock = clock
        self._registry = registry
        self._committer = committer
        self._slots = slots
        self._commit_ids = commit_ids
        self._todo: dict[int, None] = {}
        self._many = _FEW
        self._otherwise: dict[int, Callable[[], None]] = {}
        self._busy = False
        self._again = asyncio.Event()
        self._watches: dict[int, Watch] = {}
        self._turns: dict[Hashable, tuple[asyncio.Lock, int]] = {}
        self._next_expiry: Micros = 0
        self._warned: set[int] = set()
        self._to_scan = False
        self._scanned_to: tuple[Micros, int] | None = None
        self.expired = 0
        self._closed = False

    @property
    def idle(self) -> bool:
        """Whether no delivery is known to be due, or under way."""
        return not self._todo and not self._busy

    def notify(self, run_ids: Iterable[int]) -> None:
        """These runs may have mail."""
        self._todo.update(dict.fromkeys(run_ids))
        if self._todo:
            self._again.set()

    def notify_or(self, run_id: int, otherwise: Callable[[], None]) -> None:
        """This run had mail just now. ``otherwise`` is called if it turns out to have none that it can take."""
        self._otherwise[run_id] = otherwise
        self.notify((run_id,))

    def posted(self, signal: Signal, result: Result) -> None:
        """A signal was committed to the mailbox."""
        if watch := self._watches.get(signal.id):
            watch.pending.update(result.run_ids)
        self.notify(result.run_ids)

    @contextmanager
    def watching(self, signal_id: int) -> Iterator[Watch]:
        """Watch the outcome of a signal that is about to be posted."""
        watch = self._watches[signal_id] = Watch()
        if self._closed:
            watch.settled.set()
        try:
            yield watch
        finally:
            del self._watches[signal_id]

    @asynccontextmanager
    async def turn(self, address: Hashable) -> AsyncGenerator[Callable[[], bool]]:
        """Let senders send to an address one at a time, in order of asking. Yields a check that no other one waits."""
        lock, count = self._turns.get(address) or (asyncio.Lock(), 0)
        self._turns[address] = lock, count + 1
        try:
            async with lock:
                yield lambda: self._turns[address][1] == 1
        finally:
            lock, count = self._turns.pop(address)
            if count > 1:
                self._turns[address] = lock, count - 1

    def refusal(self, run: Run, signal: Signal) -> str | None:
        """Why a run that waits for the signal would reject it; None if it would not, or this process cannot tell."""
        arm = arm_for(run, signal, self._clock.micros())
        definition = self._registry.get(run.workflow, run.version)
        try:
            if arm is not None and definition is not None:
                fit(run, definition, arm, signal)
        except Misfit as misfit:
            return str(misfit)
        return None

    async def straight(self, run: Run, signal: Signal, patience: Micros) -> bool:
        """Give a signal to a run that waits for it, bypassing the mailbox, in one change instead of two.

        Args:
            run: the row as read.
            signal: the signal, not posted.
            patience: microseconds, see ``Committer.submit``.

        Returns:
            Whether the run has taken it. If not, the run waits for something else, has to take another signal first, or
            cannot be taken by this process's code: then the signal has to be posted to the mailbox.

        Raises:
            Misfit: the signal is not valid for the run.
            StoreUnavailable: see ``Committer.submit``.
        """
        arm = arm_for(run, signal, self._clock.micros())
        definition = self._registry.get(run.workflow, run.version)
        data = None if arm is None or definition is None else fit(run, definition, arm, signal)
        if arm is None or data is None:
            return False
        owner, now, commit_id = self._slots.promise(), self._clock.micros(), next(self._commit_ids)
        move = answer(run, arm, signal, data, owner=owner, now=now, commit_id=commit_id)
        move = move._replace(takes=(), unless_mail=True)
        try:
            result = await self._committer.submit(move, patience, self._slots, owner)
        except StoreRefused as error:
            raise Misfit(str(error)) from error
        return result.outcome == "applied"

    async def run(self) -> None:
        """Deliver, until cancelled."""
        while True:
            await self._again.wait()
            self._again.clear()
            while self._todo:
                batch = list(self._todo)[: self._many]
                for run_id in batch:
                    del self._todo[run_id]
                self._busy = True
                try:
                    self.notify(await self._deliver(batch))
                    self._settle_watches(batch)
                except Exception as error:  # noqa: BLE001 - nothing may end the deliveries
                    self.notify(batch)
                    telemetry.trouble("signals cannot be delivered, will try again", error)
                    await self._clock.sleep(SECOND)
                except asyncio.CancelledError:  # perhaps by a step: then the next task has to look at all of them
                    self.notify(batch)
                    raise
                finally:
                    self._busy = False

    async def look(self, *, scan: bool) -> None:
        """Remove expired signals; with ``scan``, also look for all waiting runs that the mailbox has signals for."""
        self._to_scan = self._to_scan or scan
        await self._expire()
        if self._to_scan or self._scanned_to is not None:
            await self._scan()

    async def _scan(self) -> None:
        """Notify one part of the runs each time: the first ones may be runs that the code here cannot take."""
        known, many = self._registry.known(), _FEW
        for _ in range(2):  # the first few tell how many more may be read at once
            after, now = self._scanned_to, self._clock.micros()
            mails = await self._store.mail(None, many, now, known=known, after=after)
            self.notify(mail.run.id for mail in mails)
            self._to_scan = self._to_scan and after is not None
            self._scanned_to = (mails[-1].since, mails[-1].run.id) if len(mails) == many else None
            many = min(_BATCH, runs_within(MOST_DATA, mails, many)) - many
            if self._scanned_to is None or many <= 0:
                return

    async def _expire(self) -> None:
        """Remove expired signals from the mailbox, every ``_EXPIRE_EACH``."""
        now = self._clock.micros()
        if 0 < self._next_expiry - now <= _EXPIRE_EACH:  # if it is further off, the clock was set back
            return
        for left in range(_FORGETS, 0, -_LOT):
            forget = _FORGETS if left == _FORGETS else 0  # all of it in the first transaction
            expired = await self._store.expire(_LOT, now, forget=forget)
            self._report(expired)
            if len(expired) < _LOT:
                self._next_expiry = now + _EXPIRE_EACH
                break

    def _report(self, expired: list[Signal]) -> None:
        """Count the expired signals, and log them: one line for each name, with the details of the first."""
        by_name: dict[str, list[Signal]] = {}
        for signal in expired:
            if not signal.broadcast:  # such a copy is removed because its run's wait has ended otherwise
                by_name.setdefault(signal.name, []).append(signal)
        for name, (first, *others) in by_name.items():
            self.expired += 1 + len(others)
            telemetry.warn(
                "signal expired, nobody took it",
                signal=name,
                count=1 + len(others),
                run_id=first.run_id or None,
                key=first.key,
                signal_id=first.signal_id,
            )

    def close(self) -> None:
        """End all watches, and those to come."""
        self._closed = True
        for watch in self._watches.values():
            watch.settled.set()

    async def _deliver(self, run_ids: list[int]) -> list[int]:
        """Deliver what these runs can take. Returns the runs that have to be looked at again."""
        mails = await self._store.mail(run_ids, _BATCH, self._clock.micros())
        self._many = min(max(2 * len(run_ids), _FEW), _BATCH, runs_within(MOST_DATA, mails, len(run_ids)))
        given: set[int] = set()
        attempts, left = list[_Attempt](), list[int]()
        without = set(run_ids)
        for mail in mails:
            if any(arm_for(mail.run, signal, self._clock.micros()) for signal in mail.signals):
                without.discard(mail.run.id)
            attempt = self._attempt(mail, given)
            if attempt is not None:
                attempts.append(attempt)
            elif all(signal.id in given for signal in mail.signals):
                left.append(mail.run.id)  # its mail may hold more signals than were read
        for run_id in without:
            if (otherwise := self._otherwise.pop(run_id, None)) is not None:
                otherwise()
        again = [attempt.run.id for attempt in attempts if not await self._succeeded(attempt)]
        again += left if attempts else []
        for run_id in run_ids:
            if run_id not in again and run_id not in self._todo:  # it has its mail, or this process cannot deliver it
                self._otherwise.pop(run_id, None)
        return again

    async def _succeeded(self, attempt: _Attempt) -> bool:
        """Whether the run has taken or rejected the signal; if not, the run or the signal has changed since."""
        try:
            result = await attempt.future
        except StoreRefused as error:
            return attempt.why is None and await self._succeeded(
                self._rejection(attempt.run, attempt.signal, str(error))
            )
        if result.outcome == "applied" and (watch := self._watches.get(attempt.signal.id)):
            if attempt.why is None:
                watch.delivered.append(attempt.run.id)
            else:
                watch.rejected[attempt.run.id] = attempt.why
        return result.outcome == "applied"

    def _attempt(self, mail: Mail, given: set[int]) -> _Attempt | None:
        """Offer the run the first of its signals that was not given to another run in this round."""
        run = mail.run
        definition = self._registry.get(run.workflow, run.version)
        if definition is None:
            return None
        for signal in mail.signals:
            arm = arm_for(run, signal, self._clock.micros())
            if arm is None or (not signal.run_id and signal.id in given):
                continue
            given.add(signal.id)
            try:
                data = fit(run, definition, arm, signal)
            except Misfit as misfit:
                return self._rejection(run, signal, str(misfit))
            if data is None:
                self._warn(run, definition, signal)
                return None
            self._warned.discard(run.id)
            owner, now, commit_id = self._slots.promise(), self._clock.micros(), next(self._commit_ids)
            move = answer(run, arm, signal, data, owner=owner, now=now, commit_id=commit_id)
            return _Attempt(run, signal, None, self._committer.submit(move, slots=self._slots, owner=owner))
        return None

    def _warn(self, run: Run, definition: WorkflowDefinition, signal: Signal) -> None:
        """Log once that a run has mail but goes on waiting, because the code here cannot take the run."""
        if run.id not in self._warned:
            self._warned.add(run.id)
            why = read_context(run, definition)
            what = "a waiting run has mail, and keeps it: the code cannot take the run"
            telemetry.warn(what, run_id=run.id, workflow=run.workflow, signal=signal.name, error=str(why))

    def _rejection(self, run: Run, signal: Signal, why: str) -> _Attempt:
        move = reject(run, signal, why, now=self._clock.micros(), commit_id=next(self._commit_ids))
        return _Attempt(run, signal, why, self._committer.submit(move))

    def _settle_watches(self, run_ids: list[int]) -> None:
        for watch in self._watches.values():
            if watch.pending:
                watch.pending.difference_update(set(run_ids) - self._todo.keys())
                if not watch.pending:
                    watch.settled.set()
