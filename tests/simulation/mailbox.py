"""The model of the mailbox: every signal that was sent, and what became of it."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from aioflow.changes import Result
from aioflow.model import Run, Signal
from aioflow.plans import EventRecord

LIVE = ("running", "waiting")


@dataclass
class Letter:
    """A signal to a run, or to a key. ``end``: "taken", "rejected", "over", "ended", "expired"; None if it is there."""

    signal: Signal
    number: int
    end: str | None = None
    by: int | None = None
    #: False if it may or may not be in the mailbox, as both orders of two changes were possible.
    sure: bool = True

    def there(self, now: int) -> bool:
        """Whether a run can take it now."""
        expires = self.signal.expires_at
        return self.end is None and (expires is None or expires > now)


@dataclass
class Mailbox:
    """All letters by (signal id, run id). ``figures``: how often each situation came up."""

    figures: Counter[str]
    letters: dict[tuple[int, int], Letter] = field(default_factory=dict)
    posted: dict[int, Signal] = field(default_factory=dict)
    #: The signals that were offered again, as the first reply was lost.
    again: set[int] = field(default_factory=set)
    #: token -> the runs that took it
    takers: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    #: (run, mail_id) of each occurrence that a run has taken or rejected, or that has started it.
    seen: set[tuple[int, int]] = field(default_factory=set)
    posts: int = 0

    def post(self, signal: Signal, result: Result, rows: dict[int, Run], now: int) -> Iterator[str]:
        """Check a signal that was sent, and record what became of it."""
        if result.outcome == "stale":
            row = rows.get(signal.run_id)
            if not signal.run_id or (row is not None and row.status in LIVE):
                yield f"{token_of(signal)} was refused, and its run lives"
            return
        known = [each for each in self.posted.values() if signal.signal_id and each.signal_id == signal.signal_id]
        if result.outcome == "exists":
            self.figures["race: sent twice under one signal_id"] += 1
            if not known:
                yield f"{token_of(signal)} is said to have been sent before"
            return
        if signal.id in self.posted:
            self.figures["race: a signal offered twice"] += 1
            self.again.add(signal.id)
            letter = self.letters.get((signal.id, signal.run_id))
            if letter is not None and letter.end == "expired":  # the store had deleted it, and now has it again
                letter.end = None
            return
        for each in known:
            letters = [letter for (id_, _), letter in self.letters.items() if id_ == each.id]
            if any(letter.there(now) or letter.end == "taken" for letter in letters):
                yield f"{token_of(signal)} was sent twice under {signal.signal_id}"
        self.posted[signal.id] = signal
        number = self._number()
        if signal.run_id or signal.key is not None:
            self.letters[signal.id, signal.run_id] = Letter(signal, number)
            return
        for row in rows.values():
            if row.status == "waiting" and any(arm[:2] == ("signal", signal.name) for arm in arms_of(row)):
                copy = signal._replace(run_id=row.id, broadcast=1, signal_id=None)
                self.letters[signal.id, row.id] = Letter(copy, number)

    def hear(self, event: EventRecord, run_id: int, *, sure: bool = True, over: bool = False) -> bool:
        """Record the copy of an event for a run that waits for it, and return whether it is new.

        ``sure``: whether it certainly is in the mailbox; ``over``: whether the wait that it was for has ended already.
        """
        place = (event.mail_id, run_id)
        if (run_id, event.mail_id) in self.seen:
            return False
        letter = self.letters.get(place)
        if letter is not None and letter.end is None and letter.sure:
            return False
        if letter is None or not over:
            copy = event.copy_for(run_id)
            self.letters[place] = Letter(copy, self._number(), end="over" if over else None, sure=sure)
        return letter is None and not over

    def _number(self) -> int:
        self.posts += 1
        return self.posts

    def fitting(self, row: Run, now: int) -> list[Letter]:
        """The letters that certainly are there and that a waiting run can take, in the order of sending."""
        return [letter for letter in self._fitting(row, now) if letter.sure]

    def _fitting(self, row: Run, now: int) -> list[Letter]:
        arms = arms_of(row)
        found = [
            letter
            for (_, run_id), letter in self.letters.items()
            if letter.there(now)
            and (
                any(arm[:2] == (kind_of(letter.signal), letter.signal.name) for arm in arms)
                if run_id == row.id
                else not run_id and ("signal", letter.signal.name, letter.signal.key) in arms
            )
        ]
        return sorted(found, key=lambda letter: (letter.signal.sent_at, letter.signal.id))

    def take(self, row: Run, ids: tuple[int, ...], now: int, *, looked: int, rejects: bool) -> Iterator[str]:
        """Check that a waiting run may take these signals.

        ``looked``: the engine's clock when it read the run's mail. A signal that had expired by then may be passed by,
        even if the clock was set back since.
        """
        for id_ in ids:
            letter = self.letters.get((id_, row.id)) or self.letters.get((id_, 0))
            if letter is None or not letter.there(now):
                yield f"run {row.id} took signal {id_}, which is not there: {letter}"
                continue
            fitting = self._fitting(row, now)
            if letter not in fitting:
                yield f"run {row.id} took {token_of(letter.signal)}, for which it does not wait"
            for other in fitting:
                if other is letter:
                    break
                if (
                    other.sure
                    and other.signal.run_id == row.id
                    and other.number < letter.number
                    and other.there(looked)
                ):
                    yield f"run {row.id} took {token_of(letter.signal)} before {token_of(other.signal)}"
            if rejects != is_bad(letter.signal):
                yield f"run {row.id} {'rejected' if rejects else 'took'} {token_of(letter.signal)}"
            if letter.signal.event is not None:
                if (row.id, id_) in self.seen:
                    yield f"run {row.id} took {letter.signal}, which it had taken before"
                self.seen.add((row.id, id_))
            letter.end, letter.by = "rejected" if rejects else "taken", row.id

    def follow(self, was: Run | None, row: Run) -> None:
        """Record that a run's row was replaced: its mail may end with its wait or with the run."""
        ended = row.status not in LIVE
        over = was is not None and was.arms != row.arms
        if not (ended or over):
            return
        for (_, run_id), letter in self.letters.items():
            if run_id == row.id and letter.end is None and (ended or letter.signal.broadcast):
                letter.end = "over" if letter.signal.broadcast else "ended"

    def expire(self, signals: list[Signal], now: int) -> Iterator[str]:
        """Check the signals that the store has expired."""
        for signal in signals:
            letter = self.letters.get((signal.id, signal.run_id))
            if letter is None or letter.end in ("taken", "rejected") or letter.there(now):
                yield f"{token_of(signal)} was taken out before its time: {letter}"
            elif letter.end is None:
                letter.end = "expired"
            self.figures["signal expired"] += 1

    def left(self) -> list[Letter]:
        """The letters that nobody has taken, and that nothing has ended."""
        return [letter for letter in self.letters.values() if letter.end is None and letter.sure]


def arms_of(row: Run) -> list[tuple[str, str, str | None]]:
    """Kind, name and key of each arm of the run's wait."""
    return [] if row.arms is None else [(arm[0], arm[1], arm[2]) for arm in json.loads(row.arms)]


def kind_of(signal: Signal) -> str:
    """The kind of arm that takes a signal."""
    return "signal" if signal.event is None else "event"


def token_of(signal: Signal) -> str:
    """The token in a signal's payload; for the copy of an event, a name of its occurrence."""
    if signal.event is not None:
        return f"event {signal.id}"
    token = json.loads(signal.payload)["token"]
    return str(token[0] if isinstance(token, list) else token)


def is_bad(signal: Signal) -> bool:
    """Whether every run rejects a signal."""
    return signal.event is None and isinstance(json.loads(signal.payload)["token"], list)
