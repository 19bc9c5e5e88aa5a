"""Checks what became of every letter: compares what was noted about it with the store. It knows nothing of kills.

A letter that was acknowledged is taken exactly once, or still in the mailbox, or gone because its run has ended or its
ttl is over; one that was not acknowledged is taken at most once. What a reader did is in its Context, which is
committed with the transition.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from aioflow import Transition
from aioflow.model import Run
from tests.faults.letters import SHEET, route

MILLISECOND = 1000
ENDED = ("completed", "failed", "cancelled")
Note = Mapping[str, Any]


@dataclass
class Letter:
    """A letter as its sender noted it. Instants are microseconds; ``life``: that of the acknowledgement."""

    token: str
    name: str
    to: str
    by: str
    ttl: int | None = None
    valid: bool = True
    known: bool = False
    sent: int = 0
    tries: int = 0
    life: int = 0
    acknowledged: int | None = None
    state: str = ""
    delivered: list[int] = field(default_factory=list)
    refused: bool = False

    @property
    def everybody(self) -> bool:
        """Whether it is a broadcast."""
        return self.to == "all"


class Take(NamedTuple):
    """A reader took a letter, in this visit."""

    run: int
    visit: int
    at: int


class Reading(NamedTuple):
    """A run, its Context and its history."""

    row: Run
    data: dict[str, Any]
    history: list[Transition]


def letters_of(notes: Iterable[Note]) -> dict[str, Letter]:
    """The letters by token, from the notes "sending", "sent" and "refused" in the order in which they were written."""
    letters: dict[str, Letter] = {}
    for note in notes:
        token = note["token"]
        match note["what"]:
            case "sending":
                letter = letters.get(token)
                if letter is None:
                    letter = letters[token] = Letter(**{fact: note[fact] for fact in SHEET}, sent=note["wall"])
                letter.tries += 1
            case "sent":
                letter = letters[token]
                letter.acknowledged, letter.life = note["wall"], note["life"]
                letter.state, letter.delivered = note["state"], note["delivered"]
            case "refused":
                letters[token].refused = True
    return letters


class Ledger:
    """All that was noted and stored. ``left``: token -> the runs in whose mailboxes it is, 0 for that of a key."""

    def __init__(
        self,
        seed: int,
        letters: dict[str, Letter],
        readings: list[Reading],
        left: Mapping[str, set[int]],
        took: Sequence[Note],
    ) -> None:
        self.seed = seed
        self.letters = letters
        self.left = left
        self.took = took
        self.readers = {reading.row.id: reading for reading in readings if reading.row.workflow == "reader"}
        self.errands = [reading for reading in readings if reading.row.workflow == "errand"]
        self.takes: dict[str, list[Take]] = defaultdict(list)
        for run_id, reading in self.readers.items():
            for token, visit in reading.data["taken"]:
                self.takes[token].append(Take(run_id, visit, reading.history[visit - 1].at_micros))
        self.by_key = {reading.row.key: run_id for run_id, reading in self.readers.items() if reading.row.key}
        #: Letters that their reader could take whenever it waited, by address.
        self.addressed: dict[str, list[Letter]] = defaultdict(list)
        for letter in letters.values():
            if letter.acknowledged is not None and letter.valid and letter.ttl is None and not letter.refused:
                self.addressed[letter.to].append(letter)
        self.figures: Counter[str] = Counter()

    def problems(self) -> Iterator[str]:
        """All problems."""
        broken = [problem for reading in [*self.readers.values(), *self.errands] for problem in self.history(reading)]
        if broken:  # the other checks rely on the histories
            yield from broken
            return
        for reading in self.readers.values():
            yield from self.route(reading)
            yield from self.timeouts(reading)
        yield from self.steps()
        yield from self.written()
        for letter in self.letters.values():
            yield from (f"{letter}, taken {self.takes.get(letter.token, [])}: {why}" for why in self.letter(letter))
        yield from self.order()
        unknown = self.takes.keys() - self.letters.keys()
        yield from [f"taken, but never sent: {sorted(unknown)}"] * bool(unknown)

    def history(self, reading: Reading) -> Iterator[str]:
        """A history without gaps, of a run that has not failed and has nothing left to do."""
        row, history = reading.row, reading.history
        if [transition.seq for transition in history] != list(range(1, row.seq + 1)):
            yield f"history of {row.id} has gaps: {[transition.seq for transition in history]}"
        if row.status not in ("completed", "waiting") or (row.status == "waiting" and row.wake_at is not None):
            yield f"run {row.id} is {row.status}, {row.waiting_for}, {row.error}"

    def route(self, reading: Reading) -> Iterator[str]:
        """Each stop ended once, by a letter or by its timeout; each letter came by a transition of its own."""
        row, data, history = reading
        kinds = defaultdict(list)
        for transition in history:
            kinds[transition.kind].append(transition.seq)
        self.figures["rejected"] += len(kinds["reject"])
        self.figures["timeouts"] += len(kinds["timeout"])
        for what, noted, committed in (
            ("letters", [visit for _, visit in data["taken"]], kinds["signal"]),
            ("timeouts", data["timeouts"], kinds["timeout"]),
            ("waits", [seq for seq, _ in data["waits"]], kinds["wait"]),
            ("stops", [at for _, at in data["waits"]], list(range(len(kinds["wait"])))),
        ):
            if noted != committed:
                yield f"{what} of run {row.id}: {noted}, not {committed}"
        ended = len(kinds["signal"]) + len(kinds["timeout"])
        stops = len(route(self.seed, data["number"]))
        if data["at"] != ended or (row.status == "completed") != (ended == stops):
            yield f"run {row.id} is {row.status} at stop {data['at']} of {stops}, with {ended} behind it"

    def timeouts(self, reading: Reading) -> Iterator[str]:
        """No wait timed out early, or although a letter for it had been acknowledged before its deadline."""
        row, data, history = reading
        mine = {f"run {row.id}", f"key {row.key}", f"flow {row.key}"}
        addressed = [letter for to in mine for letter in self.addressed.get(to, ())]
        waits, last = dict(data["waits"]), 0
        for transition in history:
            last = transition.seq if transition.kind == "wait" else last
            if transition.kind not in ("timeout", "signal"):
                continue
            stop = route(self.seed, data["number"])[waits[last]]
            if stop.timeout is None:
                continue
            deadline = history[last - 1].at_micros + stop.timeout * MILLISECOND
            if transition.kind == "signal":
                self.figures["taken after the deadline"] += transition.at_micros > deadline
                continue
            if transition.at_micros < deadline:
                yield f"wait {last} of run {row.id} was over at {transition.at_micros}, before {deadline}"
            for letter in addressed:
                if letter.name not in stop.names or (letter.to == f"key {row.key}" and stop.hub is not None):
                    continue
                if (
                    letter.acknowledged is not None
                    and letter.acknowledged <= deadline
                    and not any(take.visit < transition.seq for take in self.takes.get(letter.token, ()))
                ):
                    yield f"wait {last} of run {row.id} was over at seq {transition.seq} in spite of {letter}"

    def steps(self) -> Iterator[str]:
        """No letter was seen by two visits, and no visit saw two; a letter in a Context was seen by its step."""
        seen: dict[str, set[tuple[int, int]]] = defaultdict(set)
        visits: dict[tuple[int, int], Counter[str]] = defaultdict(Counter)
        for note in self.took:
            seen[note["token"]].add((note["run"], note["visit"]))
            visits[note["run"], note["visit"]][note["token"]] += 1
        for token, places in seen.items():
            runs = [run for run, _ in places]
            everybody = token in self.letters and self.letters[token].everybody
            if len(places) > 1 and not (everybody and len(set(runs)) == len(runs)):
                yield f"{token} was seen by the visits {sorted(places)}"
        for place, tokens in visits.items():
            self.figures["repeated steps"] += sum(tokens.values()) > 1
            if len(tokens) > 1:
                yield f"the visit {place} saw the letters {sorted(tokens)}"
        for token, takes in self.takes.items():
            if unseen := {(take.run, take.visit) for take in takes} - seen[token]:
                yield f"{token} was taken unseen by {sorted(unseen)}"

    def written(self) -> Iterator[str]:
        """What a committed step started is there exactly once; what it sent is added to the letters."""
        started = Counter(
            (run_id, visit) for run_id, reading in self.readers.items() for visit in reading.data["started"]
        )
        found = Counter((errand.data["parent"], errand.data["visit"]) for errand in self.errands)
        if started != found:
            yield f"errands started and not there {started - found}, there and not started {found - started}"
        for errand in self.errands:
            if errand.row.parent_id != errand.data["parent"]:
                yield f"errand {errand.row.id} has the parent {errand.row.parent_id}"
        self.figures["errands"] = len(self.errands)
        for reading in [*self.readers.values(), *self.errands]:
            for token, to in reading.data["wrote"]:
                seq = int(token.rpartition(".")[2]) if token.startswith("step.") else 1
                at = reading.history[seq].at_micros
                if token in self.letters:
                    yield f"{token} was sent twice"
                self.letters[token] = Letter(
                    token, "letter", to, token, sent=at, acknowledged=None, state="committed", tries=1
                )

    def letter(self, letter: Letter) -> Iterator[str]:
        """What became of a letter agrees with its receipt."""
        takes, left = self.takes.get(letter.token, []), self.left.get(letter.token, set())
        runs = [take.run for take in takes]
        self.count(letter, takes)
        if letter.everybody:
            yield from self.broadcast(letter, runs)
            return
        if strangers := [run for run in runs if not (letter.valid and self.reaches(letter, run))]:
            yield f"it is not for {strangers}, or not valid"
        told = letter.state or ("refused" if letter.refused and letter.tries == 1 else "nothing")
        there = bool(takes or left)
        right = {
            "delivered": runs == letter.delivered and not left,
            "buffered": there or self.may_be_gone(letter),
            "committed": there or self.may_be_gone(letter),
            "rejected": not there and not letter.valid,
            "refused": not there,
            "nothing": True,
        }
        if not right.get(told) or len(takes) + len(left) > 1:
            yield f"its sender was told {told!r}, the mailbox has it for {left}"

    def broadcast(self, letter: Letter, runs: list[int]) -> Iterator[str]:
        """No run took a broadcast twice, and the runs that its receipt names took it."""
        if len(set(runs)) != len(runs):
            yield "a run took it twice"
        if letter.state == "delivered" and not set(letter.delivered) <= set(runs):
            yield "it was not taken by all who were said to have"
        if letter.state in ("none", "rejected") and runs:
            yield "somebody took it"

    def reaches(self, letter: Letter, run_id: int) -> bool:
        """Whether the letter is addressed to this run."""
        row = self.readers[run_id].row
        way, _, whom = letter.to.partition(" ")
        return whom == str(run_id) if way == "run" else whom == row.key or whom.startswith("hub-")

    def may_be_gone(self, letter: Letter) -> bool:
        """Whether it may be neither taken nor in the mailbox: it has a ttl, its run has ended, or it is not valid."""
        way, _, whom = letter.to.partition(" ")
        run_id = int(whom) if way == "run" else self.by_key.get(whom) if way == "flow" else None
        ended = run_id is not None and run_id in self.readers and self.readers[run_id].row.status in ENDED
        return letter.ttl is not None or ended or not letter.valid

    def count(self, letter: Letter, takes: list[Take]) -> None:
        """Count the situations that came up."""
        figures = self.figures
        figures["letters"] += 1
        figures["broadcasts taken"] += letter.everybody and bool(takes)
        figures[letter.state or ("refused" if letter.refused else "cut off")] += 1
        figures["cut off, and taken"] += not letter.state and bool(takes)
        figures["cut off, and sent again"] += letter.tries > 1
        for run_id, visit, _ in takes:
            reading = self.readers[run_id]
            began = max(t.at_micros for t in reading.history[:visit] if t.kind == "wait")
            if letter.acknowledged is None:
                continue
            if letter.acknowledged < reading.row.created_at:
                figures["sent before the start"] += 1
            elif letter.acknowledged < began:
                figures["sent before the wait"] += 1
            elif letter.sent > began:
                figures["sent during the wait"] += 1
            else:
                figures["sent while the wait began"] += 1

    def order(self) -> Iterator[str]:
        """Letters that one sender sent to one reader one after the other were taken in that order."""
        queues: dict[tuple[str, str, str], list[Letter]] = defaultdict(list)
        for letter in self.letters.values():
            if letter.tries == 1 and not letter.to.startswith(("key hub", "all")) and letter.token in self.takes:
                queues[letter.by, letter.to, letter.name].append(letter)
        for letters in queues.values():
            self.figures["pairs in order"] += len(letters) - 1
            for one, other in pairwise(sorted(letters, key=lambda letter: letter.sent)):
                if self.takes[one.token][0].visit >= self.takes[other.token][0].visit:
                    yield f"taken out of order: {one.token} {self.takes[one.token]}, {other.token} {self.takes[other.token]}"
