"""SIGKILL while signals are sent: every acknowledged one is taken once, by a run it was for, or is still there.

A worker is killed thirty times while it and a client process that lives on start readers and write to them: before they
wait, while they wait, and to their keys before they exist. Then a last life finishes the work, and the store is
compared with what the senders and the steps noted. The model is in ledger.py.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from anyio import to_thread

from aioflow import Engine, Transition
from tests.faults.children import ForkServer, Sandbox
from tests.faults.ledger import ENDED, Ledger, Letter, Reading, letters_of
from tests.faults.letters import key_of, route
from tests.faults.test_kill import a_row

KILLS = 30
WRITERS = 8


@pytest.fixture
def sandbox(letter_server: ForkServer, tmp_path: Path) -> Iterator[Sandbox]:
    """A folder with a store, and processes that send signals on it."""
    sandbox = Sandbox(letter_server, tmp_path)
    yield sandbox
    sandbox.close()


class Hit(NamedTuple):
    """What a kill hit: calls of signal(), letters in the mailbox whose reader waits for them, steps with a letter."""

    calls: int
    mail: int
    steps: int


def letters(sandbox: Sandbox) -> dict[str, Letter]:
    """The letters that have been noted so far."""
    # The first note of a letter is read last, as others go on writing.
    notes = [note for what in ("sent", "refused", "sending") for note in sandbox.journal.notes(what)]
    return letters_of(sorted(notes, key=lambda note: note["wall"]))


def cut_off(sandbox: Sandbox, life: int) -> list[dict[str, Any]]:
    """The sends of a life that have no outcome in the journal."""
    told = {note["token"] for what in ("sent", "refused") for note in sandbox.journal.notes(what, life=life)}
    return [note for note in sandbox.journal.notes("sending", life=life) if note["token"] not in told]


MAIL = """
SELECT count(*) FROM signals AS s JOIN waits AS w ON s.name = w.name
    AND (s.run_id = w.run_id OR (s.run_id = 0 AND s.key = w.key))
WHERE s.taken_at IS NULL
"""


def inspect(sandbox: Sandbox, life: int) -> Hit:
    """Read a copy of the store as a kill left it, and check that it has everything that was acknowledged."""
    sent = [letter for letter in letters(sandbox).values() if letter.state in ("delivered", "buffered")]
    with sandbox.copy() as db:
        if not db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'signals'").fetchone():
            assert not sent
            return Hit(0, 0, 0)
        there = {token for (token,) in db.execute("SELECT json_extract(payload, '$.token') FROM signals")}
        runs = db.execute("SELECT id, key, visit, status FROM runs").fetchall()
        # A letter that resumed its run without the mailbox is in the run's input, and then in its Context.
        given = "".join(text for texts in db.execute("SELECT data, ifnull(input, '') FROM runs") for text in texts)
        (mail,) = db.execute(MAIL).fetchone()
    ended = {name for id_, key, _, status in runs if status in ENDED for name in (f"run {id_}", f"flow {key}")}
    missing = [s for s in sent if s.token not in there and f'"{s.token}"' not in given]
    lost = [s.token for s in missing if s.ttl is None and not s.everybody and s.to not in ended]
    assert not lost, f"acknowledged, and not in the store: {lost}"
    running = {(run_id, visit) for run_id, _, visit, status in runs if status == "running"}
    took = {(note["run"], note["visit"]) for note in sandbox.journal.notes("took", life=life)}
    return Hit(len(cut_off(sandbox, life)), mail, len(running & took))


async def examine(sandbox: Sandbox, seed: int) -> tuple[Counter[str], list[str]]:
    """Compare everything with the model: counts, and what is wrong."""
    async with Engine(sandbox.url, worker=False) as engine:
        readings = [
            Reading(run.row, run.data, await engine.history(run.id)) async for run in engine.iter_runs(order="id")
        ]
    return await to_thread.run_sync(compare, sandbox, seed, readings)


def compare(sandbox: Sandbox, seed: int, readings: list[Reading]) -> tuple[Counter[str], list[str]]:
    """Like ``examine``, synchronously."""
    left: dict[str, set[int]] = {}
    taken: dict[str, set[int]] = {}
    with sandbox.copy() as db:
        (fitting,) = db.execute(MAIL + " AND s.expires_at IS NULL").fetchone()
        posted: set[str] = set()
        for token, run_id, taken_by, alive in db.execute(
            "SELECT json_extract(payload, '$.token'), run_id, taken_by, taken_at IS NULL FROM signals"
        ):
            posted.add(token)
            if alive:
                left.setdefault(token, set()).add(run_id)
            elif taken_by is not None:
                taken.setdefault(token, set()).add(taken_by)
    noted, took = letters(sandbox), sandbox.journal.notes("took")
    ledger = Ledger(seed, noted, readings, left, took)
    problems = list(ledger.problems())
    if fitting:
        problems.append(f"{fitting} letters are there for runs that wait for them")
    for token, takes in ledger.takes.items():
        if token in posted and taken.get(token, set()) != {take.run for take in takes}:
            problems.append(f"{token} was taken by {takes}, the mailbox says {taken.get(token)}")
    if lost := {note["run"] for note in sandbox.journal.notes("acknowledged")} - ledger.readers.keys():
        problems.append(f"acknowledged, and not there: {lost}")
    lives = {(note["run"], note["visit"]): note["life"] for note in took}
    for letter in noted.values():
        takes = ledger.takes.get(letter.token, [])
        later = letter.life and any(lives.get(take[:2], 0) > letter.life for take in takes)
        ledger.figures["taken in a later life"] += bool(later)
    ledger.figures["readers"] = len(ledger.readers)
    ledger.figures["taken past the mailbox"] = len(ledger.takes.keys() - posted)
    return ledger.figures, problems


def tell(line: str) -> None:
    """Print to the test's captured output."""
    sys.stdout.write(f"{line}\n")


@pytest.mark.parametrize("lot", [1, *(pytest.param(lot, marks=pytest.mark.slow) for lot in range(2, 11))])
async def test_every_acknowledged_signal_is_taken_once(sandbox: Sandbox, rng: random.Random, lot: int) -> None:
    """Of signals sent and taken through thirty kills none is lost, doubled, out of order or ignored by a timeout."""
    seed = int(os.environ.get("AIOFLOW_TEST_SEED") or rng.randrange(2**32))
    tell(f"repeat the routes and the moments with AIOFLOW_TEST_SEED={seed}")
    chance = random.Random(f"{seed} kills")
    client = sandbox.launch(seed=seed, worker=False, writers=3, pace=0.05)
    hits: list[Hit] = []
    again: dict[str, dict[str, Any]] = {}
    for _ in range(KILLS):
        child = sandbox.launch(
            seed=seed, writers=WRITERS, again=list(again.values()), max_running=chance.choice([20, 1000])
        )
        await sandbox.noted("sent", chance.randint(1, 60), life=child.life)
        assert await child.ended(chance.uniform(0, 0.4)) is None
        await child.kill()
        hits.append(await to_thread.run_sync(inspect, sandbox, child.life))
        told = {note["token"] for what in ("sent", "refused") for note in sandbox.journal.notes(what)}
        again |= {note["token"]: note for note in cut_off(sandbox, child.life) if note["known"]}
        again = {token: note for token, note in again.items() if token not in told}
    client.send(signal.SIGTERM)
    assert await client.ended() == 0

    last = sandbox.launch(seed=seed, again=list(again.values()), finish=True)
    settled = await last.ended(0) is None and await has_settled(sandbox, last.life)
    last.send(signal.SIGTERM)
    code = await last.ended()
    figures, problems = await examine(sandbox, seed)
    tell(f"calls cut off, letters and steps on their way at each kill: {[tuple(hit) for hit in hits]}")
    tell(str(dict(figures)))
    assert not problems, "\n".join(problems[:20])
    assert settled
    assert code == 0
    check_figures(hits, figures)


async def has_settled(sandbox: Sandbox, life: int) -> bool:
    """Whether the last life has finished all work that is left."""
    try:
        await sandbox.noted("settled", within=60, life=life)
    except AssertionError:  # examine() says what is left
        return False
    return True


def check_figures(hits: list[Hit], figures: Counter[str]) -> None:
    """Check that the kills hit what the test is about."""
    assert sum(hit.calls > 0 for hit in hits) >= KILLS - 5, f"too few kills came while signals were sent: {hits}"
    assert sum(hit.mail > 0 for hit in hits) >= KILLS // 5, f"too few kills came between sending and taking: {hits}"
    assert sum(hit.steps > 0 for hit in hits) >= KILLS // 2, f"too few kills came while a letter was read: {hits}"
    for what, least in WANTED.items():
        assert figures[what] >= least, f"{what}: {figures[what]}, not {least}: {figures}"


#: Situations, and how often each must have come up.
WANTED = {
    "sent before the start": 2 * KILLS,
    "sent before the wait": 5 * KILLS,
    "sent while the wait began": KILLS // 2,
    "sent during the wait": 3 * KILLS,
    "taken in a later life": 4 * KILLS,
    "taken past the mailbox": KILLS,
    "taken after the deadline": 2 * KILLS,
    "timeouts": KILLS,
    "pairs in order": KILLS,
    "repeated steps": KILLS,
    "delivered": KILLS,
    "buffered": 20 * KILLS,
    "committed": 4 * KILLS,
    "errands": 2 * KILLS,
    "broadcasts taken": KILLS // 2,
    "refused": KILLS,
    "rejected": KILLS // 6,
    "cut off": KILLS,
    "cut off, and taken": KILLS // 6,
    "cut off, and sent again": KILLS // 6,
}


# ---- that the check can fail

WAITS_ONCE = next(
    number
    for number in range(1, 10_000)
    if key_of(number) and [stop[:2] + stop[5:] for stop in route(1, number)] == [(("letter",), None, False, None)]
    and route(1, number)[0].timeout == 60
)  # fmt: skip


def a_reading(run_id: int, token: str | None, **changes: Any) -> Reading:
    """A reader that took a letter, or whose wait timed out at 130 milliseconds."""
    kinds = ["start", "goto", "wait", "timeout" if token is None else "signal", "complete"]
    instants = [10, 20, 70, 130 if token is None else 80, 150]
    history = [
        Transition(run_id, seq, at * 1000, "ask", 1, kind, 0, None, seq)  # type: ignore[arg-type]
        for seq, (kind, at) in enumerate(zip(kinds, instants, strict=True), 1)
    ]
    data = {"number": WAITS_ONCE, "at": 1, "waits": [[3, 0]], "started": [], "wrote": []}
    data |= {"taken": [[token, 4]] if token else [], "timeouts": [] if token else [4]} | changes
    row = a_row(id=run_id, workflow="reader", seq=5, status="completed", key=key_of(WAITS_ONCE))
    return Reading(row, data, history)


def test_a_broken_ledger_is_noticed() -> None:
    """The model finds a letter that is lost, doubled, late, out of order or taken by another: the check can fail."""
    key = f"key {key_of(WAITS_ONCE)}"
    sent = Letter("a", "letter", key, "me", sent=74_000, tries=1, life=1, acknowledged=75_000, state="buffered")
    told = replace(sent, state="delivered", delivered=[9])
    took = {"run": 9, "visit": 4, "token": "a"}
    reader, late = a_reading(9, "a"), a_reading(9, None)

    def problems(letters: list[Letter], *readings: Reading, left: Any = None, steps: Any = (took,)) -> list[str]:
        by_token = {letter.token: letter for letter in letters}
        return list(Ledger(1, by_token, list(readings), left or {}, list(steps)).problems())

    assert not problems([sent], reader)
    assert not problems([told], reader)
    assert not problems([replace(sent, acknowledged=None, state="")], reader)
    assert not problems([replace(sent, to="key hub-1")], late, left={"a": {0}}, steps=())
    assert not problems([replace(sent, acknowledged=131_000)], late, left={"a": {0}}, steps=())
    assert not problems([replace(sent, ttl=1)], late, steps=())
    for wrong in (
        problems([sent], late, steps=()),
        problems([sent], late, left={"a": {0}}, steps=()),
        problems([replace(sent, to="key hub-1")], late, steps=()),
        problems([replace(sent, to="run 10")], reader),
        problems([replace(sent, valid=False)], reader),
        problems([replace(sent, refused=True, state="", acknowledged=None)], reader),
        problems([replace(sent, state="rejected")], reader),
        problems([replace(told, delivered=[10])], reader),
        problems([sent], reader, left={"a": {0}}),
        problems([sent], reader, steps=()),
        problems([sent], reader, steps=(took, took | {"run": 10})),
        problems([sent], reader, steps=(took, took | {"token": "b"})),
        problems([sent], reader, a_reading(10, "a"), steps=(took, took | {"run": 10})),
        problems([sent], a_reading(9, "a", started=[4])),
        problems([sent], a_reading(9, "a", wrote=[["step.9.4", "key hub-1"]])),
        problems([sent], a_reading(9, "a", taken=[["a", 3]])),
        problems([sent], reader._replace(history=reader.history[:2] + reader.history[3:])),
        problems([sent], reader._replace(row=reader.row._replace(status="running"))),
        problems([], reader),
    ):
        assert wrong
    two = a_reading(9, "a", taken=[["b", 4], ["a", 6]])
    two.history.append(two.history[3]._replace(seq=6))
    swapped = Ledger(1, {"a": sent, "b": replace(sent, token="b", sent=76_000)}, [two], {}, [])
    assert [problem for problem in swapped.order() if "out of order" in problem]
