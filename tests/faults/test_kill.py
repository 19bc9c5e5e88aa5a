"""SIGKILL at random moments: nothing acknowledged is lost, nothing committed is repeated, nothing is early.

Thirty processes, one after the other on the same file, run hundreds of random programs, and each is killed. Then one
may finish the work, and the store and the journal are compared with a model that knows neither kills nor stores.
"""

from __future__ import annotations

import os
import random
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from aioflow import Engine, Transition
from aioflow.interventions import poison
from aioflow.model import POISON_CRASHES, Run
from tests.faults.children import Sandbox
from tests.faults.program import LATER, REASON, RETRY, Plan, advance, parse, planned

KILLS = 30
#: How many runs each life starts, if it lives long enough.
STARTS = 150
MILLISECOND = 1000


# ---- the model


class Visit(NamedTuple):
    """A visit of a step according to the program: the Context that it begins with, its failures, and its command."""

    step: str
    at: int
    total: int
    failures: int
    laters: int
    end: str
    delay: int


class Outcome(NamedTuple):
    """The result of a program."""

    visits: list[Visit]
    status: str
    error: str | None
    at: int
    total: int
    path: list[str]


def model(program: list[str]) -> Outcome:
    """Execute the program in a model without faults."""
    total, path, visits = 0, [], []
    for at, instruction in enumerate(program):
        step, words = parse(instruction)
        (command, delay), actions = words[-1], dict(words[:-1])
        fails = not {"raise", "giveup"}.isdisjoint(actions)
        failures = RETRY.max_attempts - 1 if "raise" in actions else actions.get("flaky", 0)
        end = "fail" if fails else command
        visits.append(Visit(step, at, total, failures, actions.get("later", 0), end, delay))
        if fails:
            error = f"RuntimeError: attempt {RETRY.max_attempts} fails" if "raise" in actions else REASON
            return Outcome(visits, "failed", error, at, total, path)
        total = advance(total, at)
        path.append(step)
    if visits[-1].end == "fail":
        return Outcome(visits, "failed", REASON, len(program), total, path)
    return Outcome(visits, "completed", None, len(program), total, path)


# ---- one run, compared with its model


class Wrong(Exception):
    """A run differs from its model."""


class TakenForPoison(Exception):
    """A run has failed because six deaths of its process hit one step, so that the step was taken for their cause."""


def poison_of(row: Run, step: str) -> str | None:
    """The error of a run whose step is taken for the cause of its processes' deaths."""
    move = poison(row._replace(step=step, crashes=POISON_CRASHES), now=0, commit_id=0)
    return move and move.run.error


class Account:
    """A run's history and executions, followed along its model.

    Every execution must be between the transition that let it begin and the one that it, or its repetition after a
    crash, led to. ``repeated`` counts the repetitions.
    """

    def __init__(self, plan: Plan, row: Run, history: list[Transition], executions: list[dict[str, Any]]) -> None:
        self.plan = plan
        self.row = row
        self.history = history
        self.transitions = deque(history)
        self.executions = deque(executions)
        self.repeated = 0

    def check(self, store_id: str) -> None:
        """Raise Wrong if anything is wrong, TakenForPoison if the run has failed for that reason."""
        plan, row, outcome = self.plan, self.row, model(self.plan.program)
        assert [t.seq for t in self.history] == list(range(1, row.seq + 1)), "history has gaps"
        opened = self.next("start", "coroutine", 1)
        if plan.delay:
            opened = self.wake(opened, plan.delay * MILLISECOND, "coroutine", 1)
        for place, visit in enumerate(outcome.visits):
            left = self.visit(visit, f"{store_id}:{row.id}:{opened.seq}", opened)
            following = outcome.visits[place + 1].step if place + 1 < len(outcome.visits) else ""
            opened = self.wake(left, visit.delay * MILLISECOND, following, 1) if visit.end == "sleep" else left
        self.same("transitions left", list(self.transitions), [])
        self.same("executions after the end", list(self.executions), [])
        self.same("status and error", (row.status, row.error), (outcome.status, outcome.error))
        self.same("its end", (row.updated_at, row.ended_at), (opened.at_micros, opened.at_micros))
        self.same("what is left over", (row.owner, row.wake_at, row.waiting_for, row.crashes), (None, None, None, 0))
        if plan.delay and self.history[1].at_micros < row.created_at + plan.delay * MILLISECOND:
            raise Wrong("started early")

    def check_context(self, data: dict[str, Any]) -> None:
        """Raise Wrong if the Context is not that of the model."""
        outcome = model(self.plan.program)
        expected = {"program": self.plan.program, "number": self.plan.number}
        expected |= {"at": outcome.at, "total": outcome.total, "path": outcome.path}
        self.same("Context", data, expected)

    def visit(self, visit: Visit, key: str, opened: Transition) -> Transition:
        """Follow a visit through its failures to the transition that leaves it."""
        failures = laters = 0
        while True:
            left = self.transitions[0] if self.transitions else None
            if left is None:
                raise Wrong(f"history ends in {visit}")
            self.next(left.kind, visit.step, failures + 1)
            self.execute(visit, key, failures + 1, opened, left)
            if (left.kind, left.error) == ("fail", poison_of(self.row, visit.step)):
                self.same("transitions left", list(self.transitions), [])
                self.same("status and error", (self.row.status, self.row.error), ("failed", left.error))
                raise TakenForPoison
            if left.kind != "retry":
                break
            if left.error is None:
                laters += 1
                delay = LATER.microseconds
            else:
                failures += 1
                delay = RETRY.delay(failures)
            opened = self.wake(left, delay, visit.step, failures + 1)
        self.same("kind and failures", (left.kind, failures), (visit.end, visit.failures))
        if laters < visit.laters:
            raise Wrong(f"{laters} times later, not {visit.laters}")
        return left

    def execute(self, visit: Visit, key: str, attempt: int, opened: Transition, left: Transition) -> None:
        """Find the executions that began between two transitions: one, and another for each crash."""
        lives = []
        while self.executions and self.executions[0]["wall"] <= left.at_micros:
            execution = self.executions.popleft()
            seen = tuple(execution[name] for name in ("step", "key", "attempt", "at", "total"))
            self.same("execution", seen, (visit.step, key, attempt, visit.at, visit.total))
            if execution["wall"] < opened.at_micros:
                raise Wrong(f"{execution} began before {opened}")
            lives.append(execution["life"])
        if not lives:
            raise Wrong(f"{left} without an execution")
        if lives != sorted(set(lives)):
            raise Wrong(f"{visit} was repeated without a crash: lives {lives}")
        self.repeated += len(lives) - 1

    def wake(self, since: Transition, delay: int, step: str, attempt: int) -> Transition:
        """Find the wake-up, which must not be early."""
        woken = self.next("wake", step, attempt)
        if woken.at_micros < since.at_micros + delay:
            raise Wrong(f"{woken} is early: {delay} microseconds after {since}")
        return woken

    def next(self, kind: str, step: str, attempt: int) -> Transition:
        """Take the next transition, which must be this one."""
        if not self.transitions:
            raise Wrong(f"history ends before {kind} {step}")
        found = self.transitions.popleft()
        self.same("transition", (found.kind, found.step, found.attempt), (kind, step, attempt))
        return found

    def same(self, what: str, found: object, expected: object) -> None:
        """Raise Wrong unless they are equal."""
        if found != expected:
            raise Wrong(f"{what}: {found!r}, not {expected!r}")


# ---- all runs


class Hit(NamedTuple):
    """What a kill hit: how many runs had not ended, and how many steps that began in that life had not committed."""

    live: int
    steps: int


def inspect(sandbox: Sandbox, life: int) -> Hit:
    """Read a copy of the store as a kill left it, and check that it has everything that was acknowledged."""
    with sandbox.copy() as db:
        if not db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'runs'").fetchone():
            rows = []
        else:
            rows = db.execute("SELECT id, visit, failures + 1, status FROM runs").fetchall()
    lost = {note["run"] for note in sandbox.journal.notes("acknowledged")} - {run_id for run_id, *_ in rows}
    assert not lost, f"acknowledged, and not in the store: {sorted(lost)}"
    running = {(run_id, visit, attempt) for run_id, visit, attempt, status in rows if status == "running"}
    began = {(s["run"], int(s["key"].rpartition(":")[2]), s["attempt"]) for s in sandbox.steps(life=life)}
    return Hit(sum(status in ("running", "waiting") for *_, status in rows), len(running & began))


async def examine(sandbox: Sandbox, seed: int) -> tuple[Counter[str], list[str]]:
    """Compare every run with its model, and every acknowledgement with the runs: counts, and what is wrong."""
    figures: Counter[str] = Counter()
    problems: list[str] = []
    executions = defaultdict(list)
    for note in sandbox.steps():
        executions[note["run"]].append(note)
    (store_id,) = {note["key"].partition(":")[0] for note in sandbox.steps()}
    numbers: dict[int, int] = {}
    async with Engine(sandbox.url, worker=False) as engine:
        async for run in engine.iter_runs(order="id"):
            plan = planned(seed, run.data["number"])
            account = Account(plan, run.row, await engine.history(run.id), executions.pop(run.id, []))
            try:
                account.check(store_id)
                account.check_context(run.data)
                account.same("key", run.key, plan.key)
            except Wrong as wrong:
                problems.append(f"{run!r} of {plan}: {wrong}")
            except TakenForPoison:
                figures["taken for poison"] += 1
            numbers[run.id] = plan.number
            figures["runs"] += 1
            figures["transitions"] += len(account.history)
            figures["repeated steps"] += account.repeated
            figures["failed"] += run.status == "failed"
    problems += [f"executed, but not in the store: {sorted(executions)}"] * bool(executions)
    problems += check_acknowledged(sandbox, numbers, figures)
    return figures, problems


def check_acknowledged(sandbox: Sandbox, numbers: dict[int, int], figures: Counter[str]) -> Iterator[str]:
    """Each acknowledged start made its run, each plan one run, and only one start was told that it created the run."""
    acknowledged = sandbox.journal.notes("acknowledged")
    runs_of = defaultdict(set)
    for run_id, number in numbers.items():
        runs_of[number].add(run_id)
    for note in acknowledged:
        if numbers.get(note["run"]) != note["number"]:
            yield f"acknowledged, but not so in the store: {note}"
    for number, runs in runs_of.items():
        if len(runs) > 1:
            yield f"start {number} made the runs {sorted(runs)}"
    created = Counter(note["number"] for note in acknowledged if note["created"])
    for number, count in created.items():
        if count > 1:
            yield f"start {number} was told {count} times that it made its run"
    figures["acknowledged"] = len(created)
    figures["found by their key"] = sum(not note["created"] for note in acknowledged)
    figures["never acknowledged"] = len(runs_of.keys() - created.keys())


def tell(line: str) -> None:
    """Print to the test's captured output, which ``pytest -s`` and a failure show."""
    sys.stdout.write(f"{line}\n")


@pytest.mark.parametrize("lot", [1, *(pytest.param(lot, marks=pytest.mark.slow) for lot in range(2, 11))])
async def test_nothing_is_lost_doubled_or_early(sandbox: Sandbox, rng: random.Random, lot: int) -> None:
    """Thirty kills in the middle of hundreds of runs lead to nothing but steps that began twice."""
    seed = int(os.environ.get("AIOFLOW_TEST_SEED") or rng.randrange(2**32))
    tell(f"repeat the programs and the moments with AIOFLOW_TEST_SEED={seed}")
    chance = random.Random(f"{seed} kills")
    hits: list[Hit] = []
    early = chance.sample(range(2, KILLS + 1), KILLS // 10)
    for life in range(1, KILLS + 1):
        numbers = list(range(life * STARTS, (life + 1) * STARTS))
        # Some numbers of earlier lives that have a key, whether or not those lives got to start them.
        again = [number for number in range(STARTS, life * STARTS) if planned(seed, number).key]
        numbers[:0] = chance.sample(again, min(len(again), 5))
        child = sandbox.launch(
            stream={"seed": seed, "numbers": numbers}, max_running=chance.choice([20, 200, 1000]), shutdown_timeout=1
        )
        assert child.life == life
        if life in early:  # killed while it opens the store
            assert await child.ended(chance.uniform(0, 0.1)) is None
        else:
            await sandbox.noted("open", life=life)
            assert await child.ended(chance.uniform(0.1, 0.7)) is None
        await child.kill()
        hits.append(inspect(sandbox, life))

    last = sandbox.launch(finish=True)
    if (code := await last.ended(90)) is None:  # some run does not end: examine() says which
        await last.kill()
    figures, problems = await examine(sandbox, seed)
    tell(f"live runs and interrupted steps at each kill: {[tuple(hit) for hit in hits]}; {dict(figures)}")
    assert not problems, "\n".join(problems[:20])
    assert code == 0
    assert sum(hit.steps > 0 for hit in hits) >= KILLS * 2 // 3, f"too few kills came while steps ran: {hits}"
    assert sum(hit.live >= 100 for hit in hits) >= KILLS // 3, f"too few runs at once: {hits}"
    assert figures["repeated steps"] >= 3 * KILLS
    assert figures["runs"] >= 20 * KILLS
    assert figures["found by their key"] >= KILLS
    assert figures["never acknowledged"] >= 1
    assert figures["failed"] >= KILLS
    assert figures["taken for poison"] <= KILLS // 10, figures


def test_a_broken_account_is_noticed() -> None:
    """The model finds a step that is repeated, early, late, missing or misplaced: the check above can fail."""
    plan = Plan(1, ["coroutine: flaky 1, sleep 5", "thread: complete"])
    row = a_row(seq=6, status="completed", updated_at=90_000, ended_at=90_000)
    history = [
        Transition(9, seq, at, step, attempt, kind, 0, error, seq)
        for seq, at, step, attempt, kind, error in [
            (1, 10_000, "coroutine", 1, "start", None),
            (2, 20_000, "coroutine", 1, "retry", "RuntimeError"),
            (3, 30_000, "coroutine", 2, "wake", None),
            (4, 40_000, "coroutine", 2, "sleep", None),
            (5, 50_000, "thread", 1, "wake", None),
            (6, 90_000, "thread", 1, "complete", None),
        ]
    ]
    first, second, third = (
        {"step": step, "key": key, "attempt": attempt, "at": at, "total": total, "wall": wall, "life": life}
        for step, key, attempt, at, total, wall, life in [
            ("coroutine", "s:9:1", 1, 0, 0, 11_000, 1),
            ("coroutine", "s:9:1", 2, 0, 0, 31_000, 1),
            ("thread", "s:9:5", 1, 1, 1, 51_000, 1),
        ]
    )

    def account(*executions: dict[str, Any], history: list[Transition] = history, row: Run = row) -> Account:
        return Account(plan, row, history, list(executions))

    account(first, second, third).check("s")
    crashed = account(first, second, third, third | {"life": 2, "wall": 60_000})
    crashed.check("s")
    assert crashed.repeated == 1
    error = poison_of(row, "thread")
    poisoned = [*history[:5], history[5]._replace(kind="fail", error=error)]
    with pytest.raises(TakenForPoison):
        account(first, second, third, history=poisoned, row=row._replace(status="failed", error=error)).check("s")
    early = [*history[:4], history[4]._replace(at_micros=44_999), history[5]]
    for wrong in (
        account(first, second),
        account(first, second, third, third | {"wall": 60_000}),
        account(first, second, third, third | {"life": 2, "wall": 90_001}),
        account(first, second | {"attempt": 1}, third),
        account(first, second, third | {"key": "s:9:4"}),
        account(first, second, third | {"total": 2}),
        account(first, second, third | {"wall": 49_000}),
        account(first, second, third, history=early),
        account(first, second, third, history=[history[0], *history[2:]]),
        account(first, second, third, history=history[:5], row=row._replace(seq=5)),
        account(first, second, third, row=row._replace(status="running")),
        account(first, second, third, history=poisoned),
    ):
        with pytest.raises((Wrong, AssertionError)):
            wrong.check("s")


def a_row(**changes: Any) -> Run:
    """A row of a run."""
    row = Run(
        9, "machine", "1", None, None, None, 10_000, "running", "coroutine", None, 1, 1, None, 1, 0, 0, 0, 0,
        None, None, None, None, None, None, None, "{}", None, None, 10_000, None,
    )  # fmt: skip
    return row._replace(**changes)
