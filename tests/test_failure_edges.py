"""Where a run goes when a step has failed for good: to the step's on_fail, else once to the workflow's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from aioflow import Failure, Retry, complete, fail, goto, on, sleep, step, wait, workflow
from aioflow.changes import Move
from aioflow.clock import LAST_INSTANT, SECOND, Micros
from aioflow.commands import Command
from aioflow.definition import WorkflowDefinition
from aioflow.errors import LimitExceeded, NoCommand, TargetUnknown
from aioflow.interventions import answer, block, cancel, overrun, poison, reject, start, unblock, wake
from aioflow.model import MAX_ERROR, POISON_CRASHES, Arm, Resumption, Run, Signal, Transition, arms_of, failure_of
from aioflow.registry import definition_of
from aioflow.retry import GiveUp, RetryLater
from aioflow.transitions import Raised, Stepped, decide

NOW: Micros = 1_750_000_000_000_000
COMMIT = 77
TOOK: Micros = 1_500
HOUR = timedelta(hours=1)
HOURS: Micros = 3_600 * SECOND
DATA = '{"total":17}'


@workflow("failing.order", max_transitions=6, default_retry=Retry(max_attempts=1), on_fail="rescue")
class Order:
    """pay and ship have an on_fail of their own; all other steps use the workflow's."""

    class Context(BaseModel):
        total: int = 0

    @step(start=True, on_fail="refund", retry=Retry(max_attempts=3, base_delay=timedelta(seconds=10)))
    def pay(self) -> Command:
        return complete()

    @step
    def refund(self, failure: Failure) -> Command:
        return complete()

    @step
    def pack(self) -> Command:
        return complete()

    @step(on_fail="loop_back")
    def ship(self) -> Command:
        return complete()

    @step
    def loop_back(self, failure: Failure) -> Command:
        return goto(self.ship)

    @step
    def rescue(self, failure: Failure) -> Command:
        return complete()


ORDER = definition_of(Order)
#: The same without an on_fail of the workflow.
BARE = replace(ORDER, on_fail=None)
RUN = Run(
    id=7,
    workflow="failing.order",
    version="1",
    key="order-7",
    parent_id=3,
    event_id="e-1",
    created_at=NOW - 50 * SECOND,
    status="running",
    step="pay",
    next_step=None,
    seq=5,
    fence=3,
    owner=9,
    visit=4,
    failures=2,
    hops=2,
    crashes=1,
    marked=1,
    waiting_for=None,
    wake_at=None,
    arms=None,
    input='["signal", "paid", {"amount": 3}]',
    deadline=None,
    failure=None,
    progress=0.25,
    data='{"total":1}',
    error=None,
    traceback=None,
    updated_at=NOW - 10 * SECOND,
    ended_at=None,
)


def returned(command: Command, run: Run = RUN, definition: WorkflowDefinition = ORDER) -> Move:
    """The move that follows when the step returns this command, having left DATA as its Context."""
    outcome = Stepped(command, DATA)  # type: ignore[arg-type]
    return decide(run, definition, outcome, duration=TOOK, now=NOW, commit_id=COMMIT)


def raised(error: BaseException, run: Run = RUN, definition: WorkflowDefinition = ORDER) -> Move:
    """The move that follows when the step raises."""
    return decide(run, definition, Raised(error), duration=TOOK, now=NOW, commit_id=COMMIT)


def sent_on(run: Run, to: str, failure: Failure, found: Move, hops: int) -> None:
    """Check that the move sends the run to this on_fail step with this failure, and changes nothing else."""
    assert failure_of(found.run) == failure
    assert found == Move(
        run._replace(
            seq=run.seq + 1, crashes=0, marked=0, updated_at=NOW, step=to, visit=run.seq + 1, failures=0, hops=hops,
            input=None, failure=found.run.failure,
        ),
        run.seq,
        run.fence,
        Transition(
            run.id, run.seq + 1, NOW, run.step, run.failures + 1, "on_fail", TOOK, failure.error, COMMIT
        ),
    )  # fmt: skip


def at(step: str, **columns: Any) -> Run:
    return RUN._replace(step=step, failures=0, input=None, **columns)


# ---- where it leads


def test_a_failed_step_leads_to_its_own_on_fail() -> None:
    """A failed step's on_fail is a new visit that gets the failure; what the step did to the Context is discarded."""
    sent_on(RUN, "refund", Failure("pay", "ValueError: no", 3, "exhausted"), raised(ValueError("no")), hops=3)


def test_a_failed_step_without_on_fail_leads_to_that_of_the_workflow() -> None:
    """A failed step without an on_fail of its own leads to the workflow's."""
    run = at("pack")
    sent_on(run, "rescue", Failure("pack", "ValueError: no", 1, "exhausted"), raised(ValueError("no"), run), hops=0)


def test_without_any_on_fail_the_run_fails() -> None:
    """Without any on_fail, the run fails with the step's error and traceback."""
    move = raised(ValueError("no"), at("pack"), BARE)
    assert (move.run.status, move.run.error, move.run.step, move.run.failures) == (
        "failed",
        "ValueError: no",
        "pack",
        1,
    )
    assert move.run.traceback
    assert move.run.failure is None


def test_attempts_come_before_on_fail() -> None:
    """While a step is retried, its on_fail is not taken."""
    for failures in (0, 1):
        assert raised(ValueError(), RUN._replace(failures=failures)).run.waiting_for == "retry"
    assert raised(RetryLater(HOUR)).run.waiting_for == "retry"


INVALID = NoCommand(7, "failing.order", "pay", "None")


@pytest.mark.parametrize(
    ("error", "text", "kind"),
    [
        (GiveUp("the card is stolen"), "the card is stolen", "gave up"),
        (INVALID, str(INVALID), "invalid"),
        (LimitExceeded("The Context", "depth 64", "it is deeper"), None, "invalid"),
        (asyncio.CancelledError(), "CancelledError", "exhausted"),
        (KeyboardInterrupt(), "KeyboardInterrupt", "exhausted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_a_failure_says_of_what_kind_it_is(error: BaseException, text: str | None, kind: Any) -> None:
    """An error that is not retried leads to on_fail at once, with its kind of failure."""
    run = RUN._replace(failures=0)
    failure = Failure("pay", str(error) if text is None else text, 1, kind)
    sent_on(run, "refund", failure, raised(error, run), hops=3)


@pytest.mark.parametrize(
    "command",
    [goto("shpi"), sleep(HOUR, then="shpi"), wait.for_signal("paid", then="shpi"), sleep(timedelta.max)],
    ids=["goto", "sleep", "wait", "limit"],
)
def test_a_command_that_cannot_be_followed_leads_to_on_fail(command: Command) -> None:
    """A command that cannot be followed leads to on_fail, and the Context that the step left is discarded."""
    move = returned(command, RUN._replace(failures=0))
    assert (move.run.step, move.run.data) == ("refund", RUN.data)
    failure = failure_of(move.run)
    assert failure is not None
    assert (failure.step, failure.attempts, failure.kind) == ("pay", 1, "invalid")


def test_an_unknown_target_is_told_word_for_word() -> None:
    """The failure that on_fail gets has exactly the error that ``run.error`` would have had."""
    failure = failure_of(returned(goto("shpi")).run)
    assert failure is not None
    assert failure.error == str(TargetUnknown(7, "failing.order", "pay", "'shpi'", "goto", ORDER.steps))


@pytest.mark.parametrize("run", [RUN, at("pack")], ids=["step", "workflow"])
@pytest.mark.parametrize("reason", ["out of stock", ""])
def test_fail_runs_no_on_fail(run: Run, reason: str) -> None:
    """A step that returns fail(reason) fails the run with exactly that reason, and takes no on_fail."""
    move = returned(fail(reason), run)
    assert (move.run.status, move.run.error, move.run.failure, move.run.data) == ("failed", reason, None, DATA)


@pytest.mark.parametrize("crashes", [POISON_CRASHES])
def test_poison_runs_no_on_fail(crashes: int) -> None:
    """A run that is failed because it kept crashing its process takes no on_fail."""
    move = poison(RUN._replace(crashes=crashes), now=NOW, commit_id=COMMIT)
    assert move is not None
    assert (move.run.status, move.run.failure) == ("failed", None)


def test_a_failure_can_be_stored() -> None:
    """The error in a failure is cut to MAX_ERROR, and is text that every store can hold."""
    failure = failure_of(raised(GiveUp("\0\ud800" + "a" * 50_000)).run)
    assert failure is not None
    assert len(failure.error) <= MAX_ERROR
    assert "\0" not in failure.error
    failure.error.encode()


@pytest.mark.parametrize("deadline", [None, NOW + 5])
def test_the_deadline_holds_for_on_fail_too(deadline: Micros | None) -> None:
    """A run keeps its deadline when it goes to on_fail."""
    assert raised(GiveUp("no"), RUN._replace(deadline=deadline)).run.deadline == deadline


# ---- an on_fail that fails


def test_an_on_fail_of_a_step_that_fails_leads_to_that_of_the_workflow() -> None:
    """If a step's on_fail fails, the run goes to the workflow's, with the later failure."""
    refunding = raised(GiveUp("no")).run
    rescuing = raised(ValueError("nor this"), refunding)
    sent_on(refunding, "rescue", Failure("refund", "ValueError: nor this", 1, "exhausted"), rescuing, hops=0)


def test_an_on_fail_of_the_workflow_that_fails_ends_the_run() -> None:
    """If the workflow's on_fail fails, the run fails."""
    rescuing = raised(GiveUp("no"), at("pack")).run
    ended = raised(ValueError("nor this"), rescuing).run
    assert (ended.status, ended.error, ended.step) == ("failed", "ValueError: nor this", "rescue")
    assert failure_of(ended) == Failure("pack", "no", 1, "gave up")


def test_an_on_fail_of_the_workflow_is_taken_once() -> None:
    """Once the workflow's on_fail was taken, a failed step still leads to its own on_fail, but else fails the run."""
    rescuing = raised(GiveUp("no"), at("pack")).run
    packing = returned(goto("pack"), rescuing).run
    assert raised(GiveUp("again"), packing).run.status == "failed"
    paying = returned(goto("pay"), rescuing).run
    assert raised(GiveUp("again"), paying).run.step == "refund"


def test_an_on_fail_of_the_workflow_is_taken_once_even_by_way_of_a_step_s() -> None:
    """The workflow's on_fail is not taken again even if a step's own on_fail was taken in between."""
    rescuing = raised(GiveUp("first"), at("pack")).run
    paying = returned(goto("pay"), rescuing).run
    refunding = raised(GiveUp("second"), paying).run
    assert refunding.step == "refund"
    ended = raised(GiveUp("third"), refunding).run
    assert (ended.status, ended.error) == ("failed", "third")


def test_two_on_fails_that_fail_into_each_other_end() -> None:
    """If the workflow's on_fail has an on_fail that fails as well, the run fails and does not loop."""
    rescue = ORDER.steps["rescue"]
    steps = {**ORDER.steps, "rescue": replace(rescue, options=replace(rescue.options, on_fail="refund"))}
    definition = replace(ORDER, steps=steps)
    run, path = at("pack"), ["pack"]
    while run.status == "running" and len(path) < 100:
        run = raised(GiveUp("no"), run, definition).run
        path.append(run.step)
    assert run.status == "failed", path[:12]
    assert path == ["pack", "rescue", "refund", "refund"]


def test_a_step_is_not_its_own_on_fail() -> None:
    """A step that names itself as its on_fail counts as having none."""
    pack = ORDER.steps["pack"]
    steps = {**ORDER.steps, "pack": replace(pack, options=replace(pack.options, on_fail="pack"))}
    assert raised(GiveUp("no"), at("pack"), replace(ORDER, steps=steps)).run.step == "rescue"
    assert raised(GiveUp("no"), at("pack"), replace(BARE, steps=steps)).run.status == "failed"


def test_a_step_that_is_gone_has_the_on_fail_of_the_workflow() -> None:
    """If a step that no longer exists has failed, the workflow's on_fail is taken."""
    assert raised(GiveUp("no"), at("wrap")).run.step == "rescue"


def test_an_on_fail_may_be_retried_and_may_wait() -> None:
    """An on_fail step may be retried and may wait, and has the failure at each attempt and after each wait."""
    refunding = raised(GiveUp("no")).run
    told = Failure("pay", "no", 3, "gave up")
    patient = replace(ORDER, default_retry=Retry(max_attempts=2, base_delay=timedelta(seconds=1)))
    retrying = raised(ValueError("later"), refunding, patient).run
    assert (retrying.waiting_for, failure_of(retrying)) == ("retry", told)
    again = wake(retrying, owner=9, now=NOW + SECOND, commit_id=COMMIT).run
    assert (again.step, again.failures, failure_of(again)) == ("refund", 1, told)
    waiting = returned(wait.for_signal("paid", then="refund"), again).run
    signal = Signal(31, 7, "paid", None, "{}", 0, 0, None, NOW, None)
    (arm,) = arms_of(waiting)
    resumed = answer(waiting, arm, signal, DATA, owner=9, now=NOW, commit_id=COMMIT).run
    assert (resumed.step, failure_of(resumed)) == ("refund", told)


# ---- loops


def test_a_goto_beyond_max_transitions_leads_to_the_on_fail_of_the_workflow() -> None:
    """A goto beyond max_transitions leads to the workflow's on_fail, not to the step's, which may be in the loop."""
    move = returned(goto("ship"), RUN._replace(hops=5))
    failure = failure_of(move.run)
    assert failure is not None
    assert (move.run.step, move.run.hops, failure.kind) == ("rescue", 0, "invalid")
    assert failure.error.endswith(
        "is beyond the limit of 6 transitions without a wait (max_transitions): it went on from step 'pay' to 'ship'. "
        "Let it sleep or wait in between, or allow it more."
    )
    assert returned(goto("ship"), RUN._replace(hops=5), BARE).run.status == "failed"


@pytest.mark.parametrize("definition", [ORDER, BARE], ids=["workflow's on_fail", "without"])
def test_a_cycle_by_way_of_an_on_fail_ends(definition: WorkflowDefinition) -> None:
    """A step whose on_fail leads back to it is stopped at max_transitions."""
    run, steps = at("ship", hops=0), ["ship"]
    while run.status == "running" and len(steps) < 100:
        move = returned(goto("ship"), run, definition) if run.step == "loop_back" else None
        move = move or raised(ValueError("no"), run, definition)
        run = move.run
        steps.append(run.step)
    assert run.status == "failed"
    assert steps.count("loop_back") <= definition.max_transitions
    assert ("rescue" in steps) == (definition is ORDER)


@pytest.mark.parametrize("hops", range(6))
def test_on_fail_counts_as_a_transition_without_a_wait(hops: int) -> None:
    """Going to an on_fail counts against max_transitions as a goto does."""
    run = RUN._replace(hops=hops)
    failed, gone = raised(GiveUp("no"), run, BARE).run, returned(goto("ship"), run, BARE).run
    assert failed.status == gone.status
    assert gone.status == ("running" if hops < 5 else "failed")


# ---- every sequence of what can happen


@workflow("failing.life", max_transitions=8, timeout=3 * HOUR, on_fail="rescue")
class Timed:
    """A workflow with every kind of edge."""

    class Context(BaseModel):
        total: int = 0

    @step(start=True, on_fail="refund")
    def pay(self) -> Command:
        return complete()

    @step(retry=Retry(max_attempts=1))
    def refund(self) -> Command:
        return complete()

    @step(on_fail="pay", retry=Retry(max_attempts=1))
    def rescue(self) -> Command:
        return complete()

    @step
    def late(self) -> Command:
        return complete()


FAILING = definition_of(Timed)
LATE = replace(FAILING, on_timeout="late")
TAKES_OWNER = {"wake", "signal", "unblock", "cancel"}


@dataclass
class Life:
    """Applies any sequence of events to one run, and checks the invariants after each."""

    definition: WorkflowDefinition
    run: Run
    now: Micros = NOW
    commit: int = COMMIT
    signals: int = 0
    #: How often the run went to the workflow's on_fail, and how often its deadline was over.
    rescued: int = 0
    timed_out: int = 0
    kinds: list[str] = field(default_factory=list)

    def happen(self, what: str, later: Micros, **details: Any) -> None:
        """Apply one event, if it can happen to the run in its current state."""
        self.now += later
        before = self.run
        found: Move | tuple[Run, Transition] | None = getattr(self, what)(**details)
        if found is None:
            return
        after, made = (found.run, found.transition) if isinstance(found, Move) else found
        if isinstance(found, Move):
            assert (found.seq, found.fence) == (self.run.seq, self.run.fence)
            assert len(found.takes) == (made.kind in {"signal", "reject"})
            assert found.unless_mail == (before.waiting_for == "signal" and made.kind in {"wake", "timeout"})
        self.check(self.run, after, made)
        self.kinds.append(made.kind)
        self.commit += 1
        self.run = after

    # -- the events

    def returns(self, command: Command, data: str) -> Move | None:
        return self.decided(Stepped(command, data))  # type: ignore[arg-type]

    def raises(self, error: BaseException) -> Move | None:
        return self.decided(Raised(error))

    def decided(self, outcome: Stepped | Raised) -> Move | None:
        if self.run.status != "running":
            return None
        move = overrun(self.run, self.definition, now=self.now, commit_id=self.commit)
        if move is not None:
            self.timed_out += 1
            return move
        return decide(self.run, self.definition, outcome, duration=TOOK, now=self.now, commit_id=self.commit)

    def is_due(self, owner: int | None) -> Move | None:
        if self.run.wake_at is None:
            return None
        self.now = max(self.now, self.run.wake_at)
        return wake(self.run, owner=owner, now=self.now, commit_id=self.commit)

    def is_answered(self, owner: int | None, fits: bool, message: bool) -> Move | None:
        if self.run.waiting_for != "signal":
            return None
        self.signals += 1
        arm = arms_of(self.run)[-1]
        signal = Signal(self.signals, 7, arm.name, None, '{"amount": 3}', int(message), 0, None, self.now, None)
        if not fits:
            return reject(self.run, signal, "amount: too little", now=self.now, commit_id=self.commit)
        return answer(self.run, arm, signal, DATA, owner=owner, now=self.now, commit_id=self.commit)

    def is_blocked(self, reason: str) -> Move | None:
        return block(self.run, reason, now=self.now, commit_id=self.commit) if self.run.status == "running" else None

    def is_unblocked(self, owner: int | None) -> Move | None:
        if self.run.waiting_for != "blocked":
            return None
        return unblock(self.run, owner=owner, now=self.now, commit_id=self.commit)

    def is_cancelled(self, reason: str | None) -> tuple[Run, Transition] | None:
        return cancel(self.run, reason, now=self.now, commit_id=self.commit)

    def is_claimed(self, owner: int) -> Move | None:
        """The owner has died: the store raises fence and crashes, and the next owner checks for poison."""
        if self.run.status != "running":
            return None
        self.run = self.run._replace(
            owner=owner, fence=self.run.fence + 1, crashes=self.run.crashes + 1, marked=0
        )  # fmt: skip
        return poison(self.run, now=self.now, commit_id=self.commit)

    # -- the invariants

    def check(self, before: Run, after: Run, made: Transition) -> None:
        """Check what holds for every row of the table."""
        assert before.status in {"running", "waiting"}, "what has ended never changes"
        assert after[:7] == before[:7]
        assert after.seq == before.seq + 1 == made.seq
        assert (made.at_micros, made.commit_id, after.updated_at) == (self.now, self.commit, self.now)
        assert (after.crashes, after.marked) == (0, 0)
        wakes = made.kind in TAKES_OWNER or (made.kind == "timeout" and before.status == "waiting")
        assert after.fence == before.fence + wakes
        if after.owner != before.owner and after.owner is not None:
            assert wakes, "an owner that comes raises the fence"
        self.check_status(before, after, made)
        self.check_resumed(before, after, made)
        self.check_failures(before, after, made)

    def check_status(self, before: Run, after: Run, made: Transition) -> None:
        waits = after.status == "waiting"
        ended = after.status in {"completed", "failed", "cancelled"}
        assert waits or ended or after.status == "running"
        assert after.owner is None or after.status == "running"
        assert waits == (after.waiting_for is not None)
        assert (after.ended_at is not None) == ended
        assert (after.arms is not None) == (after.waiting_for == "signal")
        for arm in arms_of(after):
            assert isinstance(arm, Arm)
            assert arm.then in self.definition.steps
        assert after.next_step is None or after.next_step in self.definition.steps
        assert (after.next_step is not None) >= (waits and after.waiting_for != "signal")
        assert after.next_step is None or waits
        assert after.wake_at is None or waits
        if waits and after.deadline is not None and after.waiting_for != "blocked":
            assert after.wake_at is not None
            assert after.wake_at <= after.deadline
        if after.waiting_for == "blocked":
            assert after.wake_at is None
        assert after.wake_at is None or after.wake_at <= LAST_INSTANT
        # A run's deadline is over at most once, and never starts anew.
        assert after.deadline in {before.deadline, None}
        if after.deadline != before.deadline:
            assert made.kind in {"timeout", "on_fail", "fail"}

    def check_resumed(self, before: Run, after: Run, made: Transition) -> None:
        resumption = Resumption.of(after)
        if made.kind in {"goto", "on_fail", "complete", "wait", "cancel"}:
            assert resumption is None
        if made.kind in {"retry", "block", "unblock", "reject"}:
            assert after.input == before.input
        if made.kind == "signal":
            assert resumption is not None
            assert resumption.kind in {"signal", "message"}
            assert resumption.payload == {"amount": 3}
        if made.kind == "timeout":
            assert resumption == Resumption("timeout")
        if resumption is not None and resumption.kind == "deadline":
            assert self.definition.timeout is not None
            assert after.deadline is not None

    def check_failures(self, before: Run, after: Run, made: Transition) -> None:
        failure = failure_of(after)
        if made.kind != "on_fail":
            assert after.failure == before.failure
        else:
            assert failure is not None
            assert failure.step == before.step != after.step
            assert failure.error == made.error
            assert (after.visit, after.failures) == (after.seq, 0)
            self.rescued += after.step == self.definition.on_fail
        assert self.rescued <= 1, "a workflow's on_fail is taken once"
        assert self.timed_out <= 1, "a run's own time is over once"
        assert after.hops <= self.definition.max_transitions


TEXTS = st.text(st.characters(exclude_categories=()), max_size=20)
DURATIONS = st.timedeltas(timedelta(0), timedelta(days=1))
STEPS = st.sampled_from(["pay", "refund", "rescue", "late"])
WORKERS = st.none() | st.integers(1, 3)


def happening(what: str, **details: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"what": st.just(what), "later": st.integers(0, HOURS), **details})


def returning(commands: st.SearchStrategy[Command]) -> st.SearchStrategy[dict[str, Any]]:
    return happening("returns", command=commands, data=st.sampled_from(["{}", DATA]))


ARMS = st.lists(st.builds(on, st.sampled_from(["paid", "x"]), then=STEPS), min_size=1, max_size=3)
WAITS: st.SearchStrategy[Command] = st.one_of(
    ARMS.map(lambda arms: wait.any(*arms)),
    st.builds(
        lambda arms, timeout, on_timeout: wait.any(*arms, timeout=timeout, on_timeout=on_timeout),
        ARMS,
        DURATIONS,
        STEPS,
    ),
    st.just(wait.for_signal("paid")),
    st.just(wait.for_signal("paid", timeout=HOUR, on_timeout="late")),
)
RUNNING = st.one_of(
    returning(st.builds(goto, STEPS)),
    returning(st.builds(sleep, DURATIONS, then=st.none() | STEPS)),
    returning(WAITS),
    happening("raises", error=st.builds(RetryLater, DURATIONS) | st.builds(ValueError, TEXTS)),
    happening("raises", error=st.builds(GiveUp, TEXTS) | st.sampled_from([KeyboardInterrupt(), INVALID])),
    happening("is_claimed", owner=st.integers(1, 3)),
    happening("is_blocked", reason=TEXTS),
)
RESUMING = st.one_of(
    happening("is_due", owner=WORKERS),
    happening("is_unblocked", owner=WORKERS),
    happening("is_answered", owner=WORKERS, fits=st.booleans(), message=st.booleans()),
)
ENDING = st.one_of(
    returning(st.just(complete())),
    returning(st.builds(fail, TEXTS)),
    happening("is_cancelled", reason=st.none() | TEXTS),
)


@st.composite
def lives(draw: st.DrawFn) -> Life:
    """A run that has been through a random sequence of events, checked after each."""
    definition = draw(st.sampled_from([FAILING, LATE, ORDER]))
    due = draw(st.sampled_from([None, NOW + SECOND]))
    begun = start(
        definition, DATA, run_id=7, key="k", reuse="never", due=due, owner=draw(WORKERS), now=NOW, commit_id=COMMIT
    )
    life = Life(definition, begun.run)
    for luck in draw(st.lists(st.integers(0, 30), min_size=10, max_size=50)):
        if luck == 0:
            life.happen(**draw(ENDING))
        elif life.run.status == "running":
            happened = draw(RUNNING)
            for _ in range(6 if luck < 4 else 1):  # loops show only when the same happens several times
                life.happen(**happened)
        else:
            life.happen(**draw(RESUMING))
    return life


@given(lives())
def test_what_holds_for_every_row_holds_after_every_sequence(life: Life) -> None:
    """After any sequence of events, the rules below the table in transitions.py hold."""
    assert life.run.seq == len(life.kinds) + 1
    for stored in (life.run.input, life.run.failure, life.run.arms):
        assert stored is None or json.loads(stored)


def ends(definition: WorkflowDefinition, act: Callable[[Run], Move]) -> Run:
    """Lead the run to its end, within a bounded number of transitions."""
    run = start(definition, DATA, run_id=7, key=None, reuse="never", due=None, owner=9, now=NOW, commit_id=COMMIT).run
    for _ in range(10 * definition.max_transitions):
        if run.status not in {"running", "waiting"}:
            return run
        run = act(run).run
    raise AssertionError(f"It goes on and on: {run}")


@given(st.data())
def test_a_run_whose_steps_all_fail_ends(data: st.DataObject) -> None:
    """Whatever on_fails a class names, a run whose steps all fail ends."""
    edges = {
        name: replace(found, options=replace(found.options, retry=None, on_fail=data.draw(st.none() | STEPS)))
        for name, found in FAILING.steps.items()
    }
    once = Retry(max_attempts=1)
    definition = replace(FAILING, steps=edges, default_retry=once, on_fail=data.draw(st.none() | STEPS))
    assert ends(definition, lambda run: raised(ValueError("no"), run, definition)).status == "failed"
