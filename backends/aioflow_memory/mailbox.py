"""The signals in the mailbox, and the waits of runs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

from aioflow.changes import Result
from aioflow.clock import SECOND, Micros
from aioflow.model import LIVE, Arm, Run, Signal, arms_of
from aioflow.plans import EventRecord
from aioflow.store import Mail

_HOUR: Final = 3600 * SECOND
_MEMORY: Final = 7 * 24 * _HOUR
_SHORT_MEMORY: Final = _HOUR
_FEW: Final = 8


class _Kept(NamedTuple):
    """A signal, and when which run took it. One that no run can take any more has ``expires_at`` 0."""

    signal: Signal
    taken_at: Micros | None = None
    taken_by: int | None = None

    def there(self, now: Micros) -> bool:
        """Whether it can still be taken."""
        expires_at = self.signal.expires_at
        return self.taken_at is None and (expires_at is None or expires_at > now)


class _Waiting(NamedTuple):
    since: Micros
    arms: list[Arm]


class Mailbox:
    """All signals, by (id, run id), in order of posting; the waits, by run id; and the occurrences that runs took."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], _Kept] = {}
        self._waits: dict[int, _Waiting] = {}
        #: The occurrences that runs have taken: (run id, mail_id).
        self._seen: set[tuple[int, int]] = set()
        #: What the present batch has added to ``_seen``.
        self._just_seen: list[tuple[int, int]] = []
        #: The waits that the present batch has changed, as they were.
        self._waits_before: list[tuple[int, _Waiting | None]] = []
        #: The signals that the present batch has changed, as they were.
        self._before: list[tuple[tuple[int, int], _Kept | None]] = []

    def __len__(self) -> int:
        return sum(kept.taken_at is None for kept in self._kept.values())

    def follow(self, was: Run | None, run: Run | None) -> None:
        """A run's row was replaced: update its wait, and expire the copies for its last wait; if it has ended, all."""
        before = None if was is None else was.arms
        after = None if run is None else run.arms
        id_ = (run or was).id  # type: ignore[union-attr]
        ended = run is not None and run.status not in LIVE
        if before != after:
            self._waits_before.append((id_, self._waits.get(id_)))
            self._waits.pop(id_, None)
            if run is not None and after is not None:
                self._waits[id_] = _Waiting(run.updated_at, arms_of(run))
        if (before != after and was is not None) or ended:
            for place, kept in list(self._kept.items()):
                if place[1] == id_ and kept.taken_at is None and (ended or kept.signal.broadcast):
                    self._put(place, kept._replace(signal=kept.signal._replace(expires_at=0)))

    def post(self, signal: Signal, run: Run | None, now: Micros) -> Result:
        """Put a signal into the mailbox; ``run`` is the run that it is addressed to."""
        if self.has(signal):
            return Result("applied")
        if signal.signal_id is not None and (before := self._sent_before(signal.signal_id, now)) is not None:
            return before
        if signal.run_id and (run is None or run.status not in LIVE):
            return Result("stale", run)
        if signal.run_id or signal.key is not None:
            self._put((signal.id, signal.run_id), _Kept(signal))
            return Result("applied")
        for run_id, waiting in sorted(self._waits.items()):
            if _waits_for(waiting, signal):
                copy = signal._replace(run_id=run_id, broadcast=1, signal_id=None)
                self._put((signal.id, run_id), _Kept(copy))
        self._put((signal.id, 0), _Kept(signal, taken_at=now))  # remembers that it was sent, even if no run waited
        return Result("applied")

    def has(self, signal: Signal) -> bool:
        """Whether this very signal was posted."""
        return any(id_ == signal.id for id_, _ in self._kept)

    def receivers(self, signal: Signal, now: Micros) -> tuple[int, ...]:
        """Waiting runs that may take it."""
        if signal.run_id:
            waiting = self._waits.get(signal.run_id)
            waits = waiting is not None and _waits_for(waiting, signal)
            return (signal.run_id,) if waits else ()
        if signal.key is None:
            return self.holders(signal.id, now)
        there = sum(
            kept.there(now)
            and not kept.signal.run_id
            and (kept.signal.name, kept.signal.key) == (signal.name, signal.key)
            for kept in self._kept.values()
        )
        fitting = [
            (waiting.since, run_id)
            for run_id, waiting in self._waits.items()
            if any((arm.kind, arm.name, arm.key) == ("signal", signal.name, signal.key) for arm in waiting.arms)
        ]
        return tuple(run_id for _, run_id in sorted(fitting)[:there])

    def holders(self, id_: int, now: Micros) -> tuple[int, ...]:
        """The runs for which the mailbox has a copy of this."""
        return tuple(
            run_id for (posted, run_id), kept in self._kept.items() if posted == id_ and run_id and kept.there(now)
        )

    def tell(self, event: EventRecord) -> None:
        """An event has occurred: put a copy there for each run that now waits for it."""
        for run_id, waiting in sorted(self._waits.items()):
            if any(hears(arm, event) for arm in waiting.arms):
                self.copy(event, run_id)

    def copy(self, event: EventRecord, run_id: int) -> None:
        """Put a copy of an event there for a run, unless the run has taken it; an expired copy is valid again."""
        if (run_id, event.mail_id) not in self._seen:
            self._put((event.mail_id, run_id), _Kept(event.copy_for(run_id)))

    def has_seen(self, run_id: int, mail_id: int) -> bool:
        """Whether the run has taken this occurrence."""
        return (run_id, mail_id) in self._seen

    def see(self, run_id: int, mail_id: int) -> None:
        """Remember that the run has taken this occurrence."""
        if (run_id, mail_id) not in self._seen:
            self._seen.add((run_id, mail_id))
            self._just_seen.append((run_id, mail_id))

    def take(self, run_id: int, ids: Collection[int], now: Micros, *, rejects: bool) -> bool:
        """Take all of these for a run, or none. ``rejects``: the run rejects them, so their signal_ids become free."""
        places = [place for id_ in ids for place in ((id_, run_id), (id_, 0)) if self._untaken(place, now)]
        if len(places) != len(ids):
            return False
        for place in places:
            signal = self._kept[place].signal
            if signal.event is not None:
                self.see(run_id, signal.id)
            if rejects:
                self._put(place, _Kept(signal._replace(signal_id=None), taken_at=now))
            else:
                self._put(place, _Kept(signal, taken_at=now, taken_by=run_id))
        return True

    def of(self, run_id: int, now: Micros) -> list[Signal]:
        """The signals that a waiting run can take, in the order of sending."""
        waiting = self._waits.get(run_id)
        if waiting is None:
            return []
        return sorted(self._fitting(run_id, waiting.arms, now), key=lambda signal: (signal.sent_at, signal.id))

    def mail(
        self,
        runs: dict[int, Run],
        run_ids: Collection[int] | None,
        limit: int,
        now: Micros,
        after: tuple[Micros, int] | None,
    ) -> list[Mail]:
        """Those of these runs that have mail, with that, the oldest wait first."""
        asked = self._waits.keys() if run_ids is None else self._waits.keys() & set(run_ids)
        waits = sorted((self._waits[run_id].since, run_id) for run_id in asked & runs.keys())
        oldest = waits if after is None else waits[bisect_right(waits, after) :]
        found = (Mail(runs[id_], signals[:_FEW], since) for since, id_ in oldest if (signals := self.of(id_, now)))
        return [mail for mail, _ in zip(found, range(limit), strict=False)]

    def expire(self, limit: int, now: Micros, forget: int) -> list[Signal]:
        """Take out what no run took in its time, and forget what was taken long ago."""
        gone: list[Signal] = []
        forgotten = 0
        for place, (signal, taken_at, _) in list(self._kept.items()):
            if taken_at is not None:
                memory = _SHORT_MEMORY if signal.signal_id is None else _MEMORY
                if taken_at <= now - memory and forgotten < forget:
                    forgotten += 1
                    del self._kept[place]
            elif signal.expires_at is not None and signal.expires_at <= now and len(gone) < limit:
                gone.append(signal)
                del self._kept[place]
        return gone

    def begin(self) -> None:
        """A batch begins: ``undo`` goes back to here."""
        self._before.clear()
        self._waits_before.clear()
        self._just_seen.clear()

    def undo(self) -> None:
        """Put signals and waits back as they were when the batch began."""
        for place, kept in reversed(self._before):
            if kept is None:
                self._kept.pop(place, None)
            else:
                self._kept[place] = kept
        self._seen.difference_update(self._just_seen)
        for run_id, waiting in reversed(self._waits_before):
            if waiting is None:
                self._waits.pop(run_id, None)
            else:
                self._waits[run_id] = waiting

    def _put(self, place: tuple[int, int], kept: _Kept) -> None:
        self._before.append((place, self._kept.get(place)))
        self._kept[place] = kept

    def _untaken(self, place: tuple[int, int], now: Micros) -> bool:
        kept = self._kept.get(place)
        return kept is not None and kept.there(now)

    def _fitting(self, run_id: int, arms: list[Arm], now: Micros) -> Iterator[Signal]:
        names = {(arm.kind, arm.name) for arm in arms}
        keys = {(arm.name, arm.key) for arm in arms if arm.kind == "signal"}
        for (_, addressee), kept in self._kept.items():
            signal = kept.signal
            kind = "signal" if signal.event is None else "event"
            addressed = (kind, signal.name) in names
            fits = addressed if addressee == run_id else not addressee and (signal.name, signal.key) in keys
            if fits and kept.there(now):
                yield signal

    def _sent_before(self, signal_id: str, now: Micros) -> Result | None:
        place = next((place for place, kept in self._kept.items() if kept.signal.signal_id == signal_id), None)
        if place is None:
            return None
        found = self._kept[place]
        if found.taken_at is None and not found.there(now):  # it has expired, so its signal_id is free
            self._put(place, found._replace(signal=found.signal._replace(signal_id=None)))
            return None
        takers = sorted(
            kept.taken_by
            for (id_, _), kept in self._kept.items()
            if id_ == found.signal.id and kept.taken_by is not None
        )
        return Result("exists", mail=found.taken_at is None, run_ids=tuple(takers))


def hears(arm: Arm, event: EventRecord) -> bool:
    """Whether a run that waits with this arm gets the event."""
    return arm.kind == "event" and arm.name == event.name and arm.key in (None, event.entity_id)


def _waits_for(waiting: _Waiting, signal: Signal) -> bool:
    return any((arm.kind, arm.name) == ("signal", signal.name) for arm in waiting.arms)
