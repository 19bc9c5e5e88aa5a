"""The rows of the table at the head of transitions.py about waits, signals, and a run's deadline."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import Retry, complete, fail, goto, on, sleep, step, wait, workflow
from aioflow.changes import Move
from aioflow.clock import LAST_INSTANT, SECOND, Micros, to_datetime
from aioflow.commands import Command
from aioflow.errors import NoNextStep
from aioflow.interventions import answer, block, cancel, overrun, poison, reject, start, unblock, wake
from aioflow.model import MAX_ERROR, Arm, Resumption, Run, Signal, Transition, TransitionKind, arms_of
from aioflow.registry import definition_of
from aioflow.retry import GiveUp, RetryLater
from aioflow.transitions import Raised, Stepped, by_deadline, decide

NOW: Micros = 1_750_000_000_000_000
COMMIT = 77
TOOK: Micros = 1_500
HOUR = timedelta(hours=1)
HOURS: Micros = 3_600 * SECOND
DATA = '{"total":17}'
RESUMED = '["signal", "paid", {"amount": 3}]'
MESSAGED = '["message", "Paid", {"amount": 3}]'
TIMED_OUT = '["timeout", "", null]'
OUT_OF_TIME = '["deadline", "", null]'


class Paid(BaseModel):
    """A message."""

    amount: int = 0


@workflow("waiting.order", max_transitions=5, default_retry=Retry(base_delay=timedelta(seconds=10)))
class Order:
    """A workflow in which ask waits; the order of the other steps matters."""

    class Context(BaseModel):
        total: int = 0

    @step(start=True)
    def ask(self) -> Command:
        return complete()

    @step
    def late(self) -> Command:
        return complete()

    @step
    def ship(self) -> Command:
        return complete()

    @step
    def last(self, amount: int = 0) -> Command:
        return complete()


ORDER = definition_of(Order)
TIMED = replace(ORDER, timeout=2 * HOURS, on_timeout="late")
#: A run in the middle of its life, resumed by a signal.
RUN = Run(
    id=7,
    workflow="waiting.order",
    version="1",
    key="order-7",
    parent_id=3,
    event_id="e-1",
    created_at=NOW - 50 * SECOND,
    status="running",
    step="ask",
    next_step=None,
    seq=5,
    fence=3,
    owner=9,
    visit=4,
    failures=1,
    hops=2,
    crashes=1,
    marked=1,
    waiting_for=None,
    wake_at=None,
    arms=None,
    input=RESUMED,
    deadline=None,
    failure=None,
    progress=0.25,
    data='{"total":1}',
    error=None,
    traceback=None,
    updated_at=NOW - 10 * SECOND,
    ended_at=None,
)
ARM = Arm("signal", "paid", "order-7", "ship", False)
PARKED: dict[str, Any] = {"status": "waiting", "owner": None, "crashes": 0, "marked": 0, "hops": 0}
WAITING = RUN._replace(
    **PARKED, input=None, next_step="late", waiting_for="signal", wake_at=NOW, arms=json.dumps([ARM])
)
UNHURRIED = WAITING._replace(next_step=None, wake_at=None)
SLEEPING = RUN._replace(**PARKED, input=None, next_step="ship", waiting_for="sleep", wake_at=NOW)
RETRYING = RUN._replace(**PARKED, next_step="ask", waiting_for="retry", wake_at=NOW)
DELAYED = RUN._replace(**PARKED, input=None, next_step="ask", waiting_for="start", wake_at=NOW)
BLOCKED = RUN._replace(**PARKED, next_step="ask", waiting_for="blocked", error="no such step")
SIGNAL = Signal(31, 7, "paid", None, '{"amount": 3}', 0, 0, None, NOW - 1, None)

OWNERS = pytest.mark.parametrize("owner", [9, 12, None])


def after(
    run: Run,
    kind: TransitionKind,
    note: str | None = None,
    *,
    made: tuple[str, int] | None = None,
    took: Micros = 0,
    takes: tuple[int, ...] = (),
    unless_mail: bool = False,
    **columns: Any,
) -> Move:
    """The expected move: it changes these columns of the run, and otherwise only those that every move changes.

    ``made`` is the step and attempt in the history row; by default those that ran.
    """
    told, attempt = made or (run.step, run.failures + 1)
    return Move(
        run._replace(seq=run.seq + 1, crashes=0, marked=0, updated_at=NOW, **columns),
        run.seq,
        run.fence,
        Transition(run.id, run.seq + 1, NOW, told, attempt, kind, took, note, COMMIT),
        takes,
        unless_mail,
    )


def returned(command: Command, run: Run = RUN, definition: Any = ORDER) -> Move:
    """The move that follows when the step returns this command, having left DATA as its Context."""
    outcome = Stepped(command, DATA)  # type: ignore[arg-type]
    return decide(run, definition, outcome, duration=TOOK, now=NOW, commit_id=COMMIT)


def raised(error: BaseException, run: Run = RUN) -> Move:
    """The move that follows when the step raises."""
    return decide(run, ORDER, Raised(error), duration=TOOK, now=NOW, commit_id=COMMIT)


def woken(run: Run, owner: int | None = 9, now: Micros = NOW) -> Move:
    return wake(run, owner=owner, now=now, commit_id=COMMIT)


def late(run: Run, definition: Any = TIMED, now: Micros = NOW) -> Move | None:
    return overrun(run, definition, now=now, commit_id=COMMIT)


# ---- wait


def waited(arms: list[Arm], next_step: str | None = None, wake_at: Micros | None = None, run: Run = RUN) -> Move:
    """The expected move of a run that waits for these arms."""
    return after(
        run, "wait", took=TOOK, status="waiting", owner=None, next_step=next_step, waiting_for="signal",
        wake_at=wake_at, arms=json.dumps(arms), hops=0, input=None, data=DATA,
    )  # fmt: skip


@pytest.mark.parametrize("then", ["last", Order().last], ids=["name", "method"])
def test_a_wait_parks_the_run_until_a_signal(then: Any) -> None:
    """A wait parks the run at its step, without owner, deadline or input; visit and failures are kept."""
    found = returned(wait.for_signal("paid", then=then))
    assert found == waited([Arm("signal", "paid", "order-7", "last", False)])
    assert arms_of(found.run) == [Arm("signal", "paid", "order-7", "last", False)]


@pytest.mark.parametrize(
    ("key", "of_run", "kept"),
    [(None, "order-7", "order-7"), ("k", "order-7", "k"), ("k", None, "k"), (None, None, None)],
)
def test_the_key_of_a_wait_is_its_own_or_the_run_s(key: str | None, of_run: str | None, kept: str | None) -> None:
    """A wait without a key of its own uses the run's key."""
    run = RUN._replace(key=of_run)
    assert returned(wait.for_signal("paid", key=key, then="last"), run) == waited(
        [Arm("signal", "paid", kept, "last", False)], run=run
    )


def test_a_wait_for_a_model_bears_its_name() -> None:
    """The arm of a wait for a model has the class's name, and is marked as a message."""
    assert returned(wait.for_signal(Paid, then="last")) == waited([Arm("signal", "Paid", "order-7", "last", True)])


def test_a_wait_with_several_arms_keeps_their_order() -> None:
    """A wait with several arms stores each with its own step and key, in the order in which they were written."""
    found = returned(wait.any(on("paid", then="ship"), on(Paid, key="k", then=Order().last), on("x", then="ask")))
    assert found == waited(
        [
            Arm("signal", "paid", "order-7", "ship", False),
            Arm("signal", "Paid", "k", "last", True),
            Arm("signal", "x", "order-7", "ask", False),
        ]
    )


@pytest.mark.parametrize(
    ("timeout", "wake_at"),
    [
        (timedelta(0), NOW),
        (HOUR, NOW + HOURS),
        (to_datetime(NOW + 5), NOW + 5),
        (to_datetime(NOW - 5), NOW),
        (to_datetime(LAST_INSTANT), LAST_INSTANT),
    ],
    ids=str,
)
def test_a_wait_with_a_timeout_has_a_deadline(timeout: Any, wake_at: Micros) -> None:
    """A timeout gives the wait a deadline: a duration counts from now, a past instant is now; on_timeout is stored."""
    move = returned(wait.any(on("paid", then="ship"), timeout=timeout, on_timeout=Order().late))
    assert move == waited([ARM], "late", wake_at)


@pytest.mark.parametrize("timeout", [to_datetime(LAST_INSTANT + 1), timedelta.max], ids=["instant", "far"])
def test_a_wait_beyond_the_year_9999_fails_the_run(timeout: Any) -> None:
    """A timeout beyond the year 9999 fails the run, without a retry."""
    move = returned(wait.for_signal("paid", timeout=timeout, on_timeout="late"))
    text = "wait() is beyond the limit of the year 9999: run 7, step 'ask'."
    assert (move.run.status, move.run.error, move.run.data) == ("failed", text, RUN.data)


@pytest.mark.parametrize(
    ("at", "on_timeout", "goes_on"),
    [("ask", None, "late"), ("ask", "late", "ship"), ("ask", "last", "late"), ("late", "late", "ship"),
     ("ship", "late", "last"), ("ship", None, "last")],
)  # fmt: skip
def test_a_wait_without_then_goes_on_with_the_next_step(at: str, on_timeout: str | None, goes_on: str) -> None:
    """A wait without then= goes on with the next step declared, except its own on_timeout."""
    timeout = None if on_timeout is None else HOUR
    run = RUN._replace(step=at)
    (arm,) = arms_of(returned(wait.for_signal("paid", timeout=timeout, on_timeout=on_timeout), run).run)
    assert arm.then == goes_on
    assert returned(wait.for_signal("paid", timeout=timeout, on_timeout=on_timeout), run).run.step == at


@pytest.mark.parametrize(("at", "on_timeout"), [("last", None), ("ship", "last"), ("gone", None)])
def test_a_wait_that_nothing_comes_after_fails_the_run(at: str, on_timeout: str | None) -> None:
    """A wait without then= and without a next step fails the run, without a retry."""
    timeout = None if on_timeout is None else HOUR
    move = returned(wait.for_signal("paid", timeout=timeout, on_timeout=on_timeout), RUN._replace(step=at))
    assert (move.run.status, move.run.arms, move.run.data) == ("failed", None, RUN.data)
    assert move.run.error == str(NoNextStep(7, "waiting.order", at))
    assert move.run.error.endswith(
        "returned a wait, and no step is declared after it for the run to go on with. Say then=."
    )


@pytest.mark.parametrize(
    "command",
    [
        wait.for_signal("paid", then="shpi"),
        wait.for_signal("paid", timeout=HOUR, on_timeout="shpi"),
        wait.for_signal("paid", timeout=HOUR, on_timeout="shpi", then="ship"),
        wait.any(on("paid", then="ship"), on("cancel", then="shpi")),
        wait.any(on("paid", then="ship"), timeout=HOUR, on_timeout="shpi"),
    ],
    ids=["then", "on_timeout", "both", "second arm", "any's on_timeout"],
)
def test_an_unknown_target_of_a_wait_fails_the_run(command: Command) -> None:
    """An unknown target in any part of a wait fails the run at once, and the error names the steps."""
    move = returned(command)
    assert (move.run.status, move.run.arms, move.run.next_step) == ("failed", None, None)
    assert move.run.error == (
        "Step 'ask' of workflow 'waiting.order' (run 7) returned wait with the target 'shpi', which is no step of it "
        "(steps: ask, late, ship, last). wait() takes a step of the same workflow."
    )


def test_a_wait_resets_the_count_of_transitions() -> None:
    """A wait starts the count against max_transitions anew."""
    assert returned(wait.for_signal("paid"), RUN._replace(hops=4)).run.hops == 0


# ---- the deadline of the run


@pytest.mark.parametrize(
    ("deadline", "wake_at", "woken_at"),
    [(None, None, None), (None, 5, 5), (3, None, 3), (3, 5, 3), (5, 3, 3), (4, 4, 4)],
)
def test_a_parked_run_is_woken_at_the_end_of_its_time(
    deadline: Micros | None, wake_at: Micros | None, woken_at: Micros | None
) -> None:
    """A parked run is woken at its deadline or at the end of its wait, whichever is earlier."""
    assert by_deadline(RUN._replace(deadline=deadline), wake_at) == woken_at


@pytest.mark.parametrize(
    "park",
    [
        lambda run: returned(sleep(2 * HOUR), run),
        lambda run: returned(wait.for_signal("paid"), run),
        lambda run: returned(wait.for_signal("paid", timeout=2 * HOUR, on_timeout="late"), run),
        lambda run: raised(RetryLater(2 * HOUR), run),
        lambda run: raised(ValueError(), run._replace(deadline=NOW + 10 * SECOND)),
    ],
    ids=["sleep", "wait", "wait with timeout", "retry later", "retry"],
)
def test_whatever_parks_a_run_heeds_its_deadline(park: Any) -> None:
    """A sleep, wait or retry lasts no longer than the run's deadline, and keeps its next step."""
    parked = park(RUN._replace(deadline=NOW + HOURS)).run
    assert parked.status == "waiting"
    assert parked.wake_at == parked.deadline
    if parked.waiting_for == "signal":
        assert parked.next_step == park(RUN).run.next_step


def test_what_ends_before_the_deadline_is_not_prolonged() -> None:
    """A sleep, wait or retry that ends before the run's deadline ends at its own time."""
    run = RUN._replace(deadline=NOW + 3 * HOURS)
    assert returned(sleep(HOUR), run).run.wake_at == NOW + HOURS
    assert raised(ValueError(), run).run.wake_at == NOW + 20 * SECOND
    assert returned(wait.for_signal("x", timeout=HOUR, on_timeout="late"), run).run.wake_at == NOW + HOURS


def test_a_deadline_that_is_past_wakes_at_once() -> None:
    """A run that parks after its deadline is due at once."""
    assert returned(sleep(HOUR), RUN._replace(deadline=NOW - 5)).run.wake_at == NOW - 5


@pytest.mark.parametrize(
    ("due", "deadline"),
    [(None, NOW + 2 * HOURS), (NOW, NOW + 2 * HOURS), (NOW - 5, NOW + 2 * HOURS), (NOW + 7, NOW + 7 + 2 * HOURS),
     (LAST_INSTANT - 1, LAST_INSTANT)],
)  # fmt: skip
def test_the_time_of_a_run_counts_from_its_start(due: Micros | None, deadline: Micros) -> None:
    """The timeout of a delayed run counts from when it is due, and ends at the last instant at the latest."""
    made = start(TIMED, DATA, run_id=7, key=None, reuse="never", due=due, owner=9, now=NOW, commit_id=COMMIT).run
    assert made.deadline == deadline
    assert made.wake_at == (due if due is not None and due > NOW else None)


def test_a_workflow_without_a_timeout_has_no_deadline() -> None:
    """A run whose workflow has no timeout has no deadline."""
    made = start(ORDER, DATA, run_id=7, key=None, reuse="never", due=None, owner=9, now=NOW, commit_id=COMMIT).run
    assert made.deadline is None


# ---- input


@pytest.mark.parametrize(
    "command",
    [goto("ship"), goto("ask"), sleep(HOUR, then="ship"), sleep(HOUR, then="ask"), wait.for_signal("paid"),
     complete(), fail("no")],
    ids=["goto", "goto itself", "sleep then", "sleep then itself", "wait", "complete", "fail"],
)  # fmt: skip
def test_leaving_the_visit_clears_the_input(command: Command) -> None:
    """The run's input is cleared when the step returns a command that leads to another visit or ends the run."""
    assert returned(command).run.input is None


@pytest.mark.parametrize("input_", [RESUMED, MESSAGED, TIMED_OUT, None])
def test_a_step_that_sleeps_keeps_its_input(input_: str | None) -> None:
    """A step that sleeps without then= keeps its input for when it runs again."""
    sleeping = returned(sleep(HOUR), RUN._replace(input=input_)).run
    assert sleeping.input == input_
    assert woken(sleeping, now=NOW + HOURS).run.input == input_


@pytest.mark.parametrize("error", [ValueError("no"), RetryLater(HOUR)], ids=["retry", "retry later"])
def test_a_retry_keeps_the_input_of_the_visit(error: BaseException) -> None:
    """Each attempt of a visit has the same input."""
    retrying = raised(error).run
    assert retrying.input == RESUMED
    assert woken(retrying, now=NOW + HOURS).run.input == RESUMED


def test_a_blocked_run_keeps_its_input() -> None:
    """A run keeps its input while it is blocked."""
    blocked = block(RUN, "no such step", now=NOW, commit_id=COMMIT).run
    assert blocked.input == RESUMED
    assert unblock(blocked, owner=9, now=NOW, commit_id=COMMIT).run.input == RESUMED


@pytest.mark.parametrize("error", [GiveUp("no"), asyncio.CancelledError()], ids=["give up", "cancelled"])
def test_a_run_that_has_failed_keeps_no_input(error: BaseException) -> None:
    """A failed run has no input."""
    assert raised(error).run.input is None


# ---- wake


@OWNERS
def test_a_wait_whose_time_is_over_goes_to_its_on_timeout(owner: int | None) -> None:
    """A wait whose timeout is over goes to on_timeout as a new visit that knows why, but only if no mail is there."""
    assert woken(WAITING, owner) == after(
        WAITING, "timeout", made=("late", 1), unless_mail=True,
        status="running", step="late", next_step=None, fence=4, owner=owner, waiting_for=None, wake_at=None, arms=None,
        input=TIMED_OUT, visit=6, failures=0,
    )  # fmt: skip
    assert Resumption.of(woken(WAITING).run) == Resumption("timeout")


@OWNERS
@pytest.mark.parametrize("run", [WAITING, UNHURRIED, SLEEPING, RETRYING, DELAYED], ids=lambda run: run.waiting_for)
def test_a_run_woken_at_its_deadline_is_marked_out_of_time(run: Run, owner: int | None) -> None:
    """A run woken at its deadline is running at its step, as a new visit marked out of time, and keeps its failures."""
    run = run._replace(deadline=NOW)
    assert woken(run, owner) == after(
        run, "wake", made=("ask", run.failures + 1), unless_mail=run.waiting_for == "signal",
        status="running", step="ask", next_step=None, fence=4, owner=owner, waiting_for=None, wake_at=None, arms=None,
        input=OUT_OF_TIME, visit=6, failures=run.failures,
    )  # fmt: skip


def test_what_ends_before_the_deadline_ends_as_usual() -> None:
    """A wait, sleep or retry that ends just before the deadline is handled as usual."""
    assert woken(WAITING._replace(deadline=NOW + 1)).run.step == "late"
    assert woken(SLEEPING._replace(deadline=NOW + 1)).run.step == "ship"
    assert woken(RETRYING._replace(deadline=NOW + 1)).run.visit == RETRYING.visit


@OWNERS
def test_a_retry_keeps_its_visit_and_input(owner: int | None) -> None:
    """A retry keeps its visit, and so its step key and input."""
    assert woken(RETRYING, owner) == after(
        RETRYING, "wake", made=("ask", 2),
        status="running", next_step=None, fence=4, owner=owner, waiting_for=None, wake_at=None,
    )  # fmt: skip


# ---- answer and reject


@OWNERS
@pytest.mark.parametrize(
    ("arm", "signal", "kind"),
    [
        (ARM, SIGNAL, "signal"),
        (ARM._replace(message=True), SIGNAL, "message"),
        (ARM, SIGNAL._replace(message=1), "message"),
        (ARM._replace(message=True), SIGNAL._replace(message=1), "message"),
    ],
    ids=["names", "model waits", "model sent", "models"],
)
def test_a_signal_resumes_the_run(arm: Arm, signal: Signal, kind: str, owner: int | None) -> None:
    """A signal resumes the run at the arm's step with the signal as input, and is taken from the mailbox."""
    assert answer(WAITING, arm, signal, DATA, owner=owner, now=NOW, commit_id=COMMIT) == after(
        WAITING, "signal", made=("ship", 1), takes=(31,),
        status="running", step="ship", next_step=None, fence=4, owner=owner, waiting_for=None, wake_at=None, arms=None,
        input=f'["{kind}", "paid", {{"amount": 3}}]', visit=6, failures=0, data=DATA,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "payload"),
    [
        ("paid", {}),
        ('"quoted" \\ ä🌊\n', {"x": None}),
        ("paid", {"a": [1, 2.5, True, "x", {"b": 10**30}], '"': "\u2028\\"}),
    ],
)
def test_a_run_knows_exactly_what_resumed_it(name: str, payload: dict[str, Any]) -> None:
    """The name and payload of a signal read back from the row as sent, whatever characters they have."""
    signal = SIGNAL._replace(name=name, payload=json.dumps(payload))
    run = answer(WAITING, ARM, signal, DATA, owner=9, now=NOW, commit_id=COMMIT).run
    assert Resumption.of(run) == Resumption("signal", name, payload)


def test_a_signal_that_is_in_time_leaves_the_deadline() -> None:
    """A signal that resumes the run leaves its deadline as it is."""
    run = WAITING._replace(deadline=NOW + 5)
    assert answer(run, ARM, SIGNAL, DATA, owner=9, now=NOW, commit_id=COMMIT).run.deadline == NOW + 5


@pytest.mark.parametrize("run", [WAITING, UNHURRIED], ids=["timeout", "no timeout"])
def test_a_signal_that_does_not_validate_is_taken_out(run: Run) -> None:
    """A rejected signal is taken from the mailbox, and only the history has the reason: the run waits as before."""
    assert reject(run, SIGNAL, "amount: Input should be greater than 0", now=NOW, commit_id=COMMIT) == after(
        run, "reject", "Signal 'paid' was rejected: amount: Input should be greater than 0", takes=(31,)
    )


def test_a_long_reason_for_a_rejection_is_cut() -> None:
    """The reason of a rejection is cut to MAX_ERROR, and is text that every store can hold."""
    note = reject(WAITING, SIGNAL, "\0\ud800" + "a" * 50_000, now=NOW, commit_id=COMMIT).transition.error
    assert note is not None
    assert len(note) <= MAX_ERROR
    assert "\0" not in note
    note.encode()


# ---- overrun


@pytest.mark.parametrize(
    ("deadline", "input_"),
    [
        (None, None),
        (None, RESUMED),
        (NOW + 1, None),
        (NOW + 1, TIMED_OUT),
        (NOW, RESUMED),
        (NOW - HOURS, MESSAGED),
    ],
)
@pytest.mark.parametrize("definition", [TIMED, ORDER], ids=["on_timeout", "without"])
def test_a_run_may_run_on(deadline: Micros | None, input_: str | None, definition: Any) -> None:
    """The step of a run runs if its deadline is not over, or if a signal or message resumed it."""
    assert late(RUN._replace(deadline=deadline, input=input_), definition) is None


@pytest.mark.parametrize(
    ("deadline", "input_"), [(NOW, None), (NOW - 1, TIMED_OUT), (NOW, OUT_OF_TIME), (NOW + HOURS, OUT_OF_TIME)]
)
def test_a_run_out_of_time_goes_to_on_timeout_once(deadline: Micros, input_: str | None) -> None:
    """A run that is out of time goes to the workflow's on_timeout as a new visit that knows why, without a deadline."""
    run = RUN._replace(deadline=deadline, input=input_)
    move = late(run)
    assert move == after(
        run, "timeout", made=("late", 1), step="late", visit=6, failures=0, deadline=None, hops=3, input=TIMED_OUT
    )
    assert move is not None
    assert late(move.run, now=LAST_INSTANT) is None


def test_a_run_out_of_time_without_on_timeout_has_failed() -> None:
    """A run that is out of time and has no on_timeout fails, and the error names the step; failures are kept."""
    run = RUN._replace(deadline=NOW, input=None)
    move = late(run, ORDER)
    assert move is not None
    text = "Run 7 of workflow 'waiting.order' was out of time at step 'ask'."
    assert move == after(
        run, "fail", text, status="failed", owner=None, deadline=None, ended_at=NOW, error=text,
        traceback=move.run.traceback,
    )  # fmt: skip
    assert "RunTimeout" in (move.run.traceback or "")


def test_a_run_out_of_time_may_have_an_on_fail() -> None:
    """Without on_timeout, a run that is out of time goes to the workflow's on_fail, and has no deadline there."""
    run = RUN._replace(deadline=NOW, input=None)
    move = late(run, replace(ORDER, on_fail="last"))
    assert move is not None
    text = "Run 7 of workflow 'waiting.order' was out of time at step 'ask'."
    told = json.loads(move.run.failure or "")
    assert (told["step"], told["error"], told["attempts"], told["kind"]) == ("ask", text, 1, "timeout")
    assert move == after(
        run, "on_fail", text, step="last", visit=6, failures=0, hops=0, deadline=None, input=None,
        failure=move.run.failure,
    )  # fmt: skip


def test_the_on_fail_of_a_step_is_not_for_timeouts() -> None:
    """A run that is out of time does not go to its step's own on_fail."""
    steps = {
        **ORDER.steps,
        "ask": replace(ORDER.steps["ask"], options=replace(ORDER.steps["ask"].options, on_fail="ship")),
    }
    own = replace(ORDER, steps=steps)
    run = RUN._replace(deadline=NOW, input=None)
    move = late(run, own)
    assert move is not None
    assert move.run.status == "failed"
    both = late(run, replace(own, on_fail="last"))
    assert both is not None
    assert both.run.step == "last"


def test_a_run_that_was_woken_late_knows_that_it_was_out_of_time() -> None:
    """A run that was woken at its deadline goes to on_timeout even if its owner crashes in between."""
    sleeping = SLEEPING._replace(deadline=NOW)
    waked = woken(sleeping).run
    claimed = waked._replace(owner=12, fence=waked.fence + 1, crashes=1)
    move = late(claimed)
    assert move is not None
    assert (move.run.step, move.run.input, move.run.deadline) == ("late", TIMED_OUT, None)


# ---- poison and cancel


@pytest.mark.parametrize("run", [WAITING, UNHURRIED, RETRYING, RUN], ids=lambda run: str(run.waiting_for))
def test_a_cancelled_run_waits_for_nothing(run: Run) -> None:
    """A cancelled run loses its wait and its input, and keeps its Context."""
    run = run._replace(deadline=NOW + 1)
    move = after(
        run, "cancel", "enough", status="cancelled", fence=4, owner=None, next_step=None, waiting_for=None,
        wake_at=None, arms=None, input=None, error="enough", ended_at=NOW,
    )  # fmt: skip
    assert cancel(run, "enough", now=NOW, commit_id=COMMIT) == (move.run, move.transition)


def test_a_waiting_run_is_no_poison() -> None:
    """Parking resets a run's count of crashes, so a waiting run is never poison."""
    parked = returned(wait.for_signal("paid"), RUN._replace(crashes=6, marked=1)).run
    assert (parked.crashes, parked.marked) == (0, 0)
    assert poison(parked, now=NOW, commit_id=COMMIT) is None


def test_a_poisonous_run_that_a_signal_resumed_keeps_no_input() -> None:
    """A run that fails as poison has no input."""
    move = poison(RUN._replace(crashes=6), now=NOW, commit_id=COMMIT)
    assert move is not None
    assert move.run.status == "failed"
    assert (move.run.input, move.run.arms) == (None, None)


@OWNERS
def test_an_unblocked_run_keeps_its_deadline(owner: int | None) -> None:
    """A blocked run is not woken at its deadline, which is checked before its step once it is unblocked."""
    blocked = block(RUN._replace(deadline=NOW + 1, input=None), "no such step", now=NOW, commit_id=COMMIT).run
    assert (blocked.wake_at, blocked.deadline) == (None, NOW + 1)
    freed = unblock(blocked, owner=owner, now=NOW + 2, commit_id=COMMIT).run
    move = late(freed, now=NOW + 2)
    assert move is not None
    assert move.run.step == "late"
    assert BLOCKED.deadline is None
