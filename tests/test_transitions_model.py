"""A run of a random workflow, moved by random events, compared with a model of the table in transitions.py.

The model computes each column of the row as the table and its rules say, from the row before and from what it has
recorded itself, without calling the product.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pydantic import BaseModel

from aioflow import GiveUp, Retry, RetryLater, complete, fail, goto, on, sleep, step, wait, workflow
from aioflow.changes import Move
from aioflow.clock import SECOND, duration_micros
from aioflow.commands import Command
from aioflow.errors import StepError
from aioflow.interventions import answer, block, cancel, overrun, poison, reject, start, unblock, wake
from aioflow.model import Run, Signal, Transition, arms_of, failure_of
from aioflow.registry import definition_of
from aioflow.transitions import Raised, Stepped, decide

NOW = 1_750_000_000_000_000
TOOK = 1_500
NAMES = ["a", "b", "c", "d"]
ENDED = {"completed", "failed", "cancelled"}


@workflow("transitions_model.flow")
class Flow:
    """Four steps; their on_fails are drawn for each machine."""

    class Context(BaseModel):
        total: int = 0

    @step(start=True)
    def a(self) -> Command:
        return complete()

    @step
    def b(self) -> Command:
        return complete()

    @step
    def c(self) -> Command:
        return complete()

    @step
    def d(self) -> Command:
        return complete()


FLOW = definition_of(Flow)

targets = st.sampled_from(NAMES)
lengths = st.sampled_from([timedelta(0), timedelta(seconds=1), timedelta(seconds=40), timedelta(days=2)])
policies = st.builds(
    Retry,
    max_attempts=st.integers(1, 4),
    base_delay=st.sampled_from([timedelta(0), timedelta(seconds=3)]),
    max_delay=st.just(timedelta(seconds=20)),
    jitter=st.sampled_from([0.0, 0.5, 1.0]),
    give_up_on=st.sampled_from([(), (KeyError,)]),
)
workers = st.sampled_from([None, 1, 2])


class TransitionMachine(RuleBasedStateMachine):
    """A run and its model."""

    run: Run

    @initialize(data=st.data())
    def the_run_is_started(self, data: st.DataObject) -> None:
        self.now, self.commit, self.contexts = NOW, 0, 0
        self.policies = {name: data.draw(policies, f"retry of {name}") for name in NAMES}
        self.on_fail = {name: data.draw(st.none() | targets, f"on_fail of {name}") for name in NAMES}
        self.last_resort = data.draw(st.none() | targets, "on_fail")
        self.most_hops = data.draw(st.integers(1, 6), "max_transitions")
        self.on_timeout = data.draw(st.none() | targets, "on_timeout")
        timeout = data.draw(st.sampled_from([None, 50 * SECOND]), "timeout")
        steps = {
            name: replace(made, options=replace(made.options, retry=self.policies[name], on_fail=self.on_fail[name]))
            for name, made in FLOW.steps.items()
        }
        self.flow = replace(
            FLOW, steps=steps, on_fail=self.last_resort, max_transitions=self.most_hops, timeout=timeout,
            on_timeout=self.on_timeout,
        )  # fmt: skip
        #: The steps that failed one into the other, the visit that the last of them led to, and whether the workflow's
        #: on_fail was taken.
        self.chain: list[str] = []
        self.rescue_visit = 0
        self.rescued = False
        due = data.draw(st.sampled_from([None, NOW, NOW + 5 * SECOND]), "due")
        owner = data.draw(workers, "owner")
        made = start(
            self.flow, "{}", run_id=7, key="k", reuse="never", due=due, owner=owner, now=NOW, commit_id=0
        )  # fmt: skip
        self.run, self.history = made.run, [made.transition]
        waits = due == NOW + 5 * SECOND
        self.is_now(
            made.run, seq=1, visit=1, step="a", failures=0, hops=0, fence=1, input=None, arms=None,
            status="waiting" if waits else "running", waiting_for="start" if waits else None,
            wake_at=due if waits else None, next_step="a" if waits else None, owner=None if waits else owner,
            deadline=None if timeout is None else NOW + timeout + (5 * SECOND if waits else 0),
        )  # fmt: skip

    # ---- checks of each move

    def is_now(self, run: Run, **columns: Any) -> None:
        assert {name: getattr(run, name) for name in columns} == columns

    def happens(self, move: Move | tuple[Run, Transition], kind: str, **columns: Any) -> None:
        """Check that these columns of the row have changed and no others, and check its history row."""
        before = self.run
        after, made = (move.run, move.transition) if isinstance(move, Move) else move
        if isinstance(move, Move):
            assert (move.seq, move.fence) == (before.seq, before.fence)
        free = {"error", "traceback", "failure", "progress"} - columns.keys()
        expected = before._replace(
            **{"seq": before.seq + 1, "crashes": 0, "marked": 0, "updated_at": self.now, **columns},
            **{name: getattr(after, name) for name in free},
        )
        assert after == expected, (kind, before)
        assert (made.run_id, made.seq, made.at_micros, made.kind) == (before.id, after.seq, self.now, kind)
        assert made.commit_id == self.commit
        if kind in {"wake", "unblock", "signal", "timeout"}:
            assert (made.step, made.attempt) == (after.step, after.failures + 1)
        else:
            assert (made.step, made.attempt) == (before.step, before.failures + 1)
        self.history.append(made)
        self.run = after

    def outcome(self, outcome: Stepped | Raised) -> Move:
        self.commit += 1
        return decide(self.run, self.flow, outcome, duration=TOOK, now=self.now, commit_id=self.commit)

    def returns(self, command: Command) -> tuple[Move, str]:
        self.contexts += 1
        data = json.dumps({"total": self.contexts})
        return self.outcome(Stepped(command, data)), data  # type: ignore[arg-type]

    def parked(self, wake_at: int | None) -> dict[str, Any]:
        """The columns of a run that parks: no owner, a new count of hops, and woken by its deadline at the latest."""
        ends = [at for at in (wake_at, self.run.deadline) if at is not None]
        return {"status": "waiting", "owner": None, "hops": 0, "wake_at": min(ends, default=None)}

    def entered(self, name: str) -> dict[str, Any]:
        return {"step": name, "visit": self.run.seq + 1, "failures": 0}

    def fails(self, move: Move, failures: int, kind: str, *, late: bool = False) -> None:
        """Check a failure: it leads to the step's on_fail, else once to the workflow's, but to none on the way here."""
        run = self.run
        chain = [*(self.chain if self.rescue_visit == run.visit else []), run.step]
        to = self.on_fail[run.step]
        hops = run.hops + 1
        if to in chain or late or hops >= self.most_hops:
            to = None
        if to is None and not self.rescued and self.last_resort not in chain:
            to, hops = self.last_resort, 0
            self.rescued = self.rescued or to is not None
        deadline = {"deadline": None} if late else {}
        if to is None:
            self.happens(
                move, "fail", status="failed", owner=None, failures=failures, ended_at=self.now, input=None, **deadline
            )
            assert self.run.error
            assert self.run.traceback
        else:
            self.happens(move, "on_fail", **self.entered(to), hops=hops, input=None, **deadline)
            told = failure_of(self.run)
            assert told is not None
            assert (told.step, told.attempts, told.kind) == (run.step, failures, kind)
            self.chain, self.rescue_visit = chain, self.run.visit
        assert self.history[-1].error

    # ---- what a step can do

    def is_running(self) -> bool:
        return self.run.status == "running"

    @precondition(is_running)
    @rule(to=targets, progress=st.sampled_from([None, 0.5]))
    def goes(self, to: str, progress: float | None) -> None:
        move, data = self.returns(goto(to, progress=progress))
        if self.run.hops + 1 >= self.most_hops:
            self.fails(move, self.run.failures + 1, "invalid")
        else:
            kept = self.run.progress if progress is None else progress
            self.happens(move, "goto", **self.entered(to), hops=self.run.hops + 1, input=None, data=data, progress=kept)

    @precondition(is_running)
    @rule(length=lengths, then=st.none() | targets)
    def sleeps(self, length: timedelta, then: str | None) -> None:
        move, data = self.returns(sleep(length, then=then))
        wakes = self.parked(self.now + duration_micros(length))
        kept = self.run.input if then is None else None
        self.happens(
            move, "sleep", **wakes, waiting_for="sleep", next_step=then or self.run.step, input=kept, data=data
        )

    @precondition(is_running)
    @rule(
        arms=st.lists(st.tuples(st.sampled_from(["x", "y"]), targets), min_size=1, max_size=3), late=st.none() | targets
    )
    def waits(self, arms: list[tuple[str, str]], late: str | None) -> None:
        ons = [on(name, then=then) for name, then in arms]
        if late is None:
            move, data = self.returns(wait.any(*ons))
        else:
            move, data = self.returns(wait.any(*ons, timeout=timedelta(seconds=9), on_timeout=late))
        wakes = self.parked(None if late is None else self.now + 9 * SECOND)
        written = json.dumps([["signal", name, "k", then, False] for name, then in arms])
        self.happens(move, "wait", **wakes, waiting_for="signal", next_step=late, input=None, data=data, arms=written)

    @precondition(is_running)
    @rule(
        raises=st.sampled_from(
            [ValueError("no"), KeyError("id"), GiveUp("enough"), "shpi", StepError(7, "f", "a", "is wrong")]
        )
    )
    def fails_once(self, raises: Any) -> None:
        """It raises an error that its policy may retry or one that is never retried, or goes to an unknown target."""
        run = self.run
        move = self.returns(goto(raises))[0] if isinstance(raises, str) else self.outcome(Raised(raises))
        policy, failures = self.policies[run.step], run.failures + 1
        invalid = isinstance(raises, str | StepError)
        final = invalid or isinstance(raises, GiveUp) or (isinstance(raises, KeyError) and policy.give_up_on != ())
        if final or failures >= policy.max_attempts:
            listed = isinstance(raises, KeyError | ValueError)
            kind = "invalid" if invalid else "exhausted" if listed else "gave up"
            self.fails(move, failures, kind)
            return
        base = duration_micros(policy.base_delay) * 2.0 ** (failures - 1)
        low, high = (min(base * (1 + way * policy.jitter), 20 * SECOND) for way in (-1, 1))
        at = move.run.wake_at
        assert at is not None
        if at != run.deadline:
            assert low - 1 <= at - self.now <= high + 1
        else:
            assert at <= self.now + high
        self.happens(
            move, "retry", **{**self.parked(at), "wake_at": at}, waiting_for="retry", next_step=run.step,
            failures=failures,
        )  # fmt: skip

    @precondition(is_running)
    @rule(delay=lengths)
    def asks_for_later(self, delay: timedelta) -> None:
        move = self.outcome(Raised(RetryLater(delay)))
        wakes = self.parked(self.now + duration_micros(delay))
        self.happens(move, "retry", **wakes, waiting_for="retry", next_step=self.run.step)
        assert self.history[-1].error is None

    @precondition(lambda self: self.is_running() and self.run.seq > 12)
    @rule(well=st.booleans())
    def ends(self, well: bool) -> None:
        move, data = self.returns(complete() if well else fail("because"))
        status, kind = ("completed", "complete") if well else ("failed", "fail")
        self.happens(move, kind, status=status, owner=None, ended_at=self.now, input=None, data=data)
        assert self.run.error == (None if well else "because")

    # ---- what else can happen

    @rule(seconds=st.sampled_from([1, 10, 60]))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds * SECOND

    @precondition(lambda self: self.run.status == "waiting" and self.run.wake_at is not None)
    @rule(owner=workers)
    def is_due(self, owner: int | None) -> None:
        run = self.run
        self.now = max(self.now, run.wake_at or 0)
        self.commit += 1
        move = wake(run, owner=owner, now=self.now, commit_id=self.commit)
        assert move.unless_mail is (run.waiting_for == "signal")
        on_: dict[str, Any] = {
            "status": "running", "owner": owner, "fence": run.fence + 1, "waiting_for": None, "wake_at": None,
            "next_step": None, "arms": None,
        }  # fmt: skip
        if run.deadline is not None and run.deadline <= self.now:
            told = json.dumps(["deadline", "", None])
            self.happens(move, "wake", **on_, visit=run.seq + 1, input=told)
        elif run.waiting_for == "retry":
            self.happens(move, "wake", **on_)
        elif run.waiting_for == "signal":
            self.happens(move, "timeout", **on_, **self.entered(run.next_step or ""), input='["timeout", "", null]')
        else:
            self.happens(move, "wake", **on_, **self.entered(run.next_step or ""))

    @precondition(lambda self: self.run.waiting_for == "signal")
    @rule(owner=workers, fits=st.integers(0, 3), which=st.integers(0, 2), message=st.integers(0, 1))
    def is_answered(self, owner: int | None, fits: int, which: int, message: int) -> None:
        arms = arms_of(self.run)
        arm = arms[which % len(arms)]
        signal = Signal(5, 7, arm.name, None, '{"n": 1}', message, 0, None, self.now, None)
        self.commit += 1
        if not fits:
            move = reject(self.run, signal, "no", now=self.now, commit_id=self.commit)
            assert move.takes == (5,)
            self.happens(move, "reject")
            return
        move = answer(self.run, arm, signal, '{"total": -1}', owner=owner, now=self.now, commit_id=self.commit)
        assert move.takes == (5,)
        kind = "message" if message else "signal"
        self.happens(
            move, "signal", **self.entered(arm.then), status="running", owner=owner, fence=self.run.fence + 1,
            waiting_for=None, wake_at=None, next_step=None, arms=None, data='{"total": -1}',
            input=json.dumps([kind, arm.name, {"n": 1}]),
        )  # fmt: skip

    @precondition(is_running)
    @rule()
    def its_time_is_looked_at(self) -> None:
        """Check the deadline, as before each step."""
        run = self.run
        self.commit += 1
        move = overrun(run, self.flow, now=self.now, commit_id=self.commit)
        resumed_by = None if run.input is None else json.loads(run.input)[0]
        over = run.deadline is not None and (
            resumed_by == "deadline" or (run.deadline <= self.now and resumed_by not in {"signal", "message"})
        )
        assert (move is not None) is over
        if move is None:
            return
        if self.on_timeout is None:
            self.fails(move, run.failures, "timeout", late=True)
        else:
            self.happens(
                move, "timeout", **self.entered(self.on_timeout), hops=run.hops + 1, deadline=None,
                input='["timeout", "", null]',
            )  # fmt: skip

    @precondition(is_running)
    @rule(times=st.sampled_from([1, 1, 6]), owner=st.integers(1, 2))
    def its_owner_dies(self, times: int, owner: int) -> None:
        """The owner dies: the store raises fence and crashes, and the next owner checks for poison."""
        for _ in range(times):
            run = self.run = self.run._replace(
                owner=owner, fence=self.run.fence + 1, crashes=self.run.crashes + 1, marked=0
            )
            self.commit += 1
            move = poison(run, now=self.now, commit_id=self.commit)
            assert (move is not None) is (run.crashes >= 6)
            if move is not None:
                self.happens(move, "fail", status="failed", owner=None, input=None, ended_at=self.now)
                assert "died 6 times" in (self.run.error or "")
                return

    @precondition(is_running)
    @rule()
    def its_code_cannot_take_it(self) -> None:
        self.commit += 1
        move = block(self.run, "no such step", now=self.now, commit_id=self.commit)
        self.happens(
            move, "block", status="waiting", owner=None, hops=0, waiting_for="blocked", next_step=self.run.step,
            error="no such step",
        )  # fmt: skip

    @precondition(lambda self: self.run.waiting_for == "blocked")
    @rule(owner=workers)
    def its_code_can_take_it(self, owner: int | None) -> None:
        self.commit += 1
        move = unblock(self.run, owner=owner, now=self.now, commit_id=self.commit)
        self.happens(
            move, "unblock", status="running", owner=owner, fence=self.run.fence + 1, waiting_for=None, next_step=None,
            error=None,
        )  # fmt: skip

    @precondition(lambda self: self.run.seq > 12 or self.run.status in ENDED)
    @rule(reason=st.sampled_from([None, "\0 no"]))
    def is_cancelled(self, reason: str | None) -> None:
        self.commit += 1
        made = cancel(self.run, reason, now=self.now, commit_id=self.commit)
        assert (made is None) is (self.run.status in ENDED)
        if made is not None:
            self.happens(
                made, "cancel", status="cancelled", fence=self.run.fence + 1, owner=None, next_step=None,
                waiting_for=None, wake_at=None, arms=None, input=None, ended_at=self.now,
                error=None if reason is None else "\\0 no",
            )  # fmt: skip

    # ---- after each rule

    @invariant()
    def the_row_is_one_that_can_be(self) -> None:
        if not hasattr(self, "run"):
            return
        run = self.run
        waits, ended = run.status == "waiting", run.status in ENDED
        assert [made.seq for made in self.history] == list(range(1, run.seq + 1))
        assert waits == (run.waiting_for is not None)
        assert ended == (run.ended_at is not None)
        assert run.owner is None or run.status == "running"
        assert (run.arms is not None) == (run.waiting_for == "signal")
        assert run.wake_at is None or waits
        assert run.wake_at is not None or run.waiting_for in {None, "signal", "blocked"}
        assert run.next_step is None or waits
        assert 0 <= run.hops <= self.most_hops
        assert 1 <= run.visit <= run.seq
        assert run.failures <= max(policy.max_attempts for policy in self.policies.values()) + (run.status == "failed")
        assert sum(made.kind == "on_fail" for made in self.history) <= run.seq


@pytest.mark.parametrize("derandomize", [True, False], ids=["fixed", "fresh"])
def test_a_run_becomes_what_the_table_says(derandomize: bool, request: pytest.FixtureRequest) -> None:
    """After every event, in any order, each column of the row is what the table says."""
    slow = request.config.getoption("--slow")
    phases = set(Phase) if slow else {Phase.explicit, Phase.reuse, Phase.generate}  # shrinking a failure takes minutes
    chosen = settings(
        max_examples=5_000 if slow else 150, stateful_step_count=50, derandomize=derandomize, phases=phases
    )  # fmt: skip
    if derandomize:
        chosen = settings(chosen, database=None)
    run_state_machine_as_test(TransitionMachine, settings=chosen)
