"""Rows of the table at the head of transitions.py that are about waits, their answers, and the run's own time."""

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
    """ask waits; what comes after it is in the order of these lines."""

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
#: In the middle of its life, resumed by a signal.
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
    """The move that changes these columns of the run, and no others but those that every move changes.

    ``made`` is the step and attempt that the history tells; by default those that ran.
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
    """What the run becomes when its step returns the command, having left DATA as its Context."""
    outcome = Stepped(command, DATA)  # type: ignore[arg-type]
    return decide(run, definition, outcome, duration=TOOK, now=NOW, commit_id=COMMIT)


def raised(error: BaseException, run: Run = RUN) -> Move:
    """What the run becomes when its step raises."""
    return decide(run, ORDER, Raised(error), duration=TOOK, now=NOW, commit_id=COMMIT)


def woken(run: Run, owner: int | None = 9, now: Micros = NOW) -> Move:
    return wake(run, owner=owner, now=now, commit_id=COMMIT)


def late(run: Run, definition: Any = TIMED, now: Micros = NOW) -> Move | None:
    return overrun(run, definition, now=now, commit_id=COMMIT)


# ---- wait


def waited(arms: list[Arm], next_step: str | None = None, wake_at: Micros | None = None, run: Run = RUN) -> Move:
    """The run waits for these arms."""
    return after(
        run, "wait", took=TOOK, status="waiting", owner=None, next_step=next_step, waiting_for="signal",
        wake_at=wake_at, arms=json.dumps(arms), hops=0, input=None, data=DATA,
    )  # fmt: skip


@pytest.mark.parametrize("then", ["last", Order().last], ids=["name", "method"])
def test_a_wait_parks_the_run_until_a_signal(then: Any) -> None:
    """The run waits without a deadline, at its step, its owner gone; visit and failures are kept, its input is not."""
    found = returned(wait.for_signal("paid", then=then))
    assert found == waited([Arm("signal", "paid", "order-7", "last", False)])
    assert arms_of(found.run) == [Arm("signal", "paid", "order-7", "last", False)]


@pytest.mark.parametrize(
    ("key", "of_run", "kept"),
    [(None, "order-7", "order-7"), ("k", "order-7", "k"), ("k", None, "k"), (None, None, None)],
)
def test_the_key_of_a_wait_is_its_own_or_the_run_s(key: str | None, of_run: str | None, kept: str | None) -> None:
    """Without a key of its own a wait takes what is sent to the run's."""
    run = RUN._replace(key=of_run)
    assert returned(wait.for_signal("paid", key=key, then="last"), run) == waited(
        [Arm("signal", "paid", kept, "last", False)], run=run
    )


def test_a_wait_for_a_model_bears_its_name() -> None:
    """An arm that a model named has the class's name, and remembers that a message is what it takes."""
    assert returned(wait.for_signal(Paid, then="last")) == waited([Arm("signal", "Paid", "order-7", "last", True)])


def test_a_wait_with_several_arms_keeps_their_order() -> None:
    """Every arm has its own step and key, in the order in which they were written."""
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
    """A duration counts from now, an instant is that instant, one that is past is now; the step for it is stored."""
    move = returned(wait.any(on("paid", then="ship"), timeout=timeout, on_timeout=Order().late))
    assert move == waited([ARM], "late", wake_at)


@pytest.mark.parametrize("timeout", [to_datetime(LAST_INSTANT + 1), timedelta.max], ids=["instant", "far"])
def test_a_wait_beyond_the_year_9999_fails_the_run(timeout: Any) -> None:
    """What no datetime can express cannot be waited for, and trying again would not help."""
    move = returned(wait.for_signal("paid", timeout=timeout, on_timeout="late"))
    text = "wait() is beyond the limit of the year 9999: run 7, step 'ask'."
    assert (move.run.status, move.run.error, move.run.data) == ("failed", text, RUN.data)


@pytest.mark.parametrize(
    ("at", "on_timeout", "goes_on"),
    [("ask", None, "late"), ("ask", "late", "ship"), ("ask", "last", "late"), ("late", "late", "ship"),
     ("ship", "late", "last"), ("ship", None, "last")],
)  # fmt: skip
def test_a_wait_without_then_goes_on_with_the_next_step(at: str, on_timeout: str | None, goes_on: str) -> None:
    """It is the next one declared, but for the one that its own timeout leads to."""
    timeout = None if on_timeout is None else HOUR
    run = RUN._replace(step=at)
    (arm,) = arms_of(returned(wait.for_signal("paid", timeout=timeout, on_timeout=on_timeout), run).run)
    assert arm.then == goes_on
    assert returned(wait.for_signal("paid", timeout=timeout, on_timeout=on_timeout), run).run.step == at


@pytest.mark.parametrize(("at", "on_timeout"), [("last", None), ("ship", "last"), ("gone", None)])
def test_a_wait_that_nothing_comes_after_fails_the_run(at: str, on_timeout: str | None) -> None:
    """Without then= and without a step after it, the wait is an error that says so, and is not retried."""
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
    """Whatever names it, what is no step fails the run at once, with the steps that there are."""
    move = returned(command)
    assert (move.run.status, move.run.arms, move.run.next_step) == ("failed", None, None)
    assert move.run.error == (
        "Step 'ask' of workflow 'waiting.order' (run 7) returned wait with the target 'shpi', which is no step of it "
        "(steps: ask, late, ship, last). wait() takes a step of the same workflow."
    )


def test_a_wait_begins_the_count_of_hops_anew() -> None:
    """A run that waited may take max_transitions steps again."""
    assert returned(wait.for_signal("paid"), RUN._replace(hops=4)).run.hops == 0


# ---- the deadline of the run


@pytest.mark.parametrize(
    ("deadline", "wake_at", "woken_at"),
    [(None, None, None), (None, 5, 5), (3, None, 3), (3, 5, 3), (5, 3, 3), (4, 4, 4)],
)
def test_a_parked_run_is_woken_at_the_end_of_its_time(
    deadline: Micros | None, wake_at: Micros | None, woken_at: Micros | None
) -> None:
    """It is the earlier of the two, where there are two."""
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
    """No sleep, wait or retry lasts longer than the run's own time; that a run has such a time changes nothing else."""
    parked = park(RUN._replace(deadline=NOW + HOURS)).run
    assert parked.status == "waiting"
    assert parked.wake_at == parked.deadline
    if parked.waiting_for == "signal":
        assert parked.next_step == park(RUN).run.next_step


def test_what_is_over_before_the_deadline_is_woken_then() -> None:
    """A run's own time does not prolong what is shorter."""
    run = RUN._replace(deadline=NOW + 3 * HOURS)
    assert returned(sleep(HOUR), run).run.wake_at == NOW + HOURS
    assert raised(ValueError(), run).run.wake_at == NOW + 20 * SECOND
    assert returned(wait.for_signal("x", timeout=HOUR, on_timeout="late"), run).run.wake_at == NOW + HOURS


def test_a_deadline_that_is_past_wakes_at_once() -> None:
    """A step that ran beyond the run's time parks it for no time at all."""
    assert returned(sleep(HOUR), RUN._replace(deadline=NOW - 5)).run.wake_at == NOW - 5


@pytest.mark.parametrize(
    ("due", "deadline"),
    [(None, NOW + 2 * HOURS), (NOW, NOW + 2 * HOURS), (NOW - 5, NOW + 2 * HOURS), (NOW + 7, NOW + 7 + 2 * HOURS),
     (LAST_INSTANT - 1, LAST_INSTANT)],
)  # fmt: skip
def test_the_time_of_a_run_counts_from_its_start(due: Micros | None, deadline: Micros) -> None:
    """A delayed run's time begins when it is due; it never ends after the last instant."""
    made = start(TIMED, DATA, run_id=7, key=None, reuse="never", due=due, owner=9, now=NOW, commit_id=COMMIT).run
    assert made.deadline == deadline
    assert made.wake_at == (due if due is not None and due > NOW else None)


def test_a_workflow_without_a_timeout_has_no_deadline() -> None:
    """A run may take for ever unless its workflow says otherwise."""
    made = start(ORDER, DATA, run_id=7, key=None, reuse="never", due=None, owner=9, now=NOW, commit_id=COMMIT).run
    assert made.deadline is None


# ---- input


@pytest.mark.parametrize(
    "command",
    [goto("ship"), goto("ask"), sleep(HOUR, then="ship"), sleep(HOUR, then="ask"), wait.for_signal("paid"),
     complete(), fail("no")],
    ids=["goto", "goto itself", "sleep then", "sleep then itself", "wait", "complete", "fail"],
)  # fmt: skip
def test_what_leads_elsewhere_forgets_what_resumed_the_run(command: Command) -> None:
    """What resumed the run was for the step that has returned now."""
    assert returned(command).run.input is None


@pytest.mark.parametrize("input_", [RESUMED, MESSAGED, TIMED_OUT, None])
def test_a_step_that_sleeps_keeps_what_resumed_it(input_: str | None) -> None:
    """The step that runs again after its sleep has the same arguments."""
    sleeping = returned(sleep(HOUR), RUN._replace(input=input_)).run
    assert sleeping.input == input_
    assert woken(sleeping, now=NOW + HOURS).run.input == input_


@pytest.mark.parametrize("error", [ValueError("no"), RetryLater(HOUR)], ids=["retry", "retry later"])
def test_an_attempt_keeps_what_resumed_the_visit(error: BaseException) -> None:
    """Each attempt of a visit has the same arguments."""
    retrying = raised(error).run
    assert retrying.input == RESUMED
    assert woken(retrying, now=NOW + HOURS).run.input == RESUMED


def test_a_blocked_run_keeps_what_resumed_it() -> None:
    """The step that its code could not take has, once it can, the arguments that it was to have."""
    blocked = block(RUN, "no such step", now=NOW, commit_id=COMMIT).run
    assert blocked.input == RESUMED
    assert unblock(blocked, owner=9, now=NOW, commit_id=COMMIT).run.input == RESUMED


@pytest.mark.parametrize("error", [GiveUp("no"), asyncio.CancelledError()], ids=["give up", "cancelled"])
def test_a_run_that_has_failed_keeps_no_input(error: BaseException) -> None:
    """What resumed the run is not needed any more."""
    assert raised(error).run.input is None


# ---- wake


@OWNERS
def test_a_wait_whose_time_is_over_goes_to_its_on_timeout(owner: int | None) -> None:
    """The run runs on_timeout as a new visit that knows why, unless the mailbox holds what it waits for."""
    assert woken(WAITING, owner) == after(
        WAITING, "timeout", made=("late", 1), unless_mail=True,
        status="running", step="late", next_step=None, fence=4, owner=owner, waiting_for=None, wake_at=None, arms=None,
        input=TIMED_OUT, visit=6, failures=0,
    )  # fmt: skip
    assert Resumption.of(woken(WAITING).run) == Resumption("timeout")


@OWNERS
@pytest.mark.parametrize("run", [WAITING, UNHURRIED, SLEEPING, RETRYING, DELAYED], ids=lambda run: run.waiting_for)
def test_a_run_whose_own_time_is_over_is_to_be_sent_on(run: Run, owner: int | None) -> None:
    """It runs at the step where it stood, as a new visit, marked to be sent on before that step begins; its failed
    attempts are still to be told of."""
    run = run._replace(deadline=NOW)
    assert woken(run, owner) == after(
        run, "wake", made=("ask", run.failures + 1), unless_mail=run.waiting_for == "signal",
        status="running", step="ask", next_step=None, fence=4, owner=owner, waiting_for=None, wake_at=None, arms=None,
        input=OUT_OF_TIME, visit=6, failures=run.failures,
    )  # fmt: skip


def test_a_wait_that_ends_before_the_run_s_time_is_only_that() -> None:
    """The run's own time is not over a microsecond before it is."""
    assert woken(WAITING._replace(deadline=NOW + 1)).run.step == "late"
    assert woken(SLEEPING._replace(deadline=NOW + 1)).run.step == "ship"
    assert woken(RETRYING._replace(deadline=NOW + 1)).run.visit == RETRYING.visit


@OWNERS
def test_a_retry_keeps_its_visit_and_input(owner: int | None) -> None:
    """The next attempt has the key, the number and the arguments that it should have."""
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
    """The run goes on at the arm's step with the signal as its input, which leaves the mailbox in the same commit."""
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
    """Name and payload are read back from the row as they were sent, whatever characters they hold."""
    signal = SIGNAL._replace(name=name, payload=json.dumps(payload))
    run = answer(WAITING, ARM, signal, DATA, owner=9, now=NOW, commit_id=COMMIT).run
    assert Resumption.of(run) == Resumption("signal", name, payload)


def test_a_signal_that_is_in_time_leaves_the_deadline() -> None:
    """The run's own time goes on counting while its answer is looked at."""
    run = WAITING._replace(deadline=NOW + 5)
    assert answer(run, ARM, SIGNAL, DATA, owner=9, now=NOW, commit_id=COMMIT).run.deadline == NOW + 5


@pytest.mark.parametrize("run", [WAITING, UNHURRIED], ids=["timeout", "no timeout"])
def test_a_signal_that_does_not_validate_is_taken_out(run: Run) -> None:
    """The run waits on as it did; that the signal was there, and why it was refused, is in its history alone."""
    assert reject(run, SIGNAL, "amount: Input should be greater than 0", now=NOW, commit_id=COMMIT) == after(
        run, "reject", "Signal 'paid' was rejected: amount: Input should be greater than 0", takes=(31,)
    )


def test_a_long_reason_for_a_rejection_is_cut() -> None:
    """No note takes more room than MAX_ERROR, and every store can hold it."""
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
    """Within its time, or resumed by a signal that came in time, the step runs."""
    assert late(RUN._replace(deadline=deadline, input=input_), definition) is None


@pytest.mark.parametrize(
    ("deadline", "input_"), [(NOW, None), (NOW - 1, TIMED_OUT), (NOW, OUT_OF_TIME), (NOW + HOURS, OUT_OF_TIME)]
)
def test_a_run_out_of_time_goes_to_on_timeout_once(deadline: Micros, input_: str | None) -> None:
    """It runs the workflow's on_timeout, as a new visit that knows why, and has no deadline any more."""
    run = RUN._replace(deadline=deadline, input=input_)
    move = late(run)
    assert move == after(
        run, "timeout", made=("late", 1), step="late", visit=6, failures=0, deadline=None, hops=3, input=TIMED_OUT
    )
    assert move is not None
    assert late(move.run, now=LAST_INSTANT) is None


def test_a_run_out_of_time_without_on_timeout_has_failed() -> None:
    """The error says that its time was over, and at which step; its attempts are counted as they are."""
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
    """Without on_timeout, the workflow's on_fail is told of a timeout, and it has no deadline any more."""
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
    """That a run's time is over is no failure of the step where it stands."""
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
    """Waking and sending on are two transitions, and a crash between them loses neither."""
    sleeping = SLEEPING._replace(deadline=NOW)
    waked = woken(sleeping).run
    claimed = waked._replace(owner=12, fence=waked.fence + 1, crashes=1)
    move = late(claimed)
    assert move is not None
    assert (move.run.step, move.run.input, move.run.deadline) == ("late", TIMED_OUT, None)


# ---- poison and cancel


@pytest.mark.parametrize("run", [WAITING, UNHURRIED, RETRYING, RUN], ids=lambda run: str(run.waiting_for))
def test_a_cancelled_run_waits_for_nothing(run: Run) -> None:
    """Cancelling takes away what the run waited for and what resumed it, and keeps its Context."""
    run = run._replace(deadline=NOW + 1)
    move = after(
        run, "cancel", "enough", status="cancelled", fence=4, owner=None, next_step=None, waiting_for=None,
        wake_at=None, arms=None, input=None, error="enough", ended_at=NOW,
    )  # fmt: skip
    assert cancel(run, "enough", now=NOW, commit_id=COMMIT) == (move.run, move.transition)


def test_a_waiting_run_is_no_poison() -> None:
    """That a run once crashed its process is forgotten when it parks."""
    parked = returned(wait.for_signal("paid"), RUN._replace(crashes=6, marked=1)).run
    assert (parked.crashes, parked.marked) == (0, 0)
    assert poison(parked, now=NOW, commit_id=COMMIT) is None


def test_a_poisonous_run_that_a_signal_resumed_keeps_no_input() -> None:
    """A run that was stopped from crashing its process has ended, and needs what resumed it no more."""
    move = poison(RUN._replace(crashes=6), now=NOW, commit_id=COMMIT)
    assert move is not None
    assert move.run.status == "failed"
    assert (move.run.input, move.run.arms) == (None, None)


@OWNERS
def test_an_unblocked_run_keeps_its_deadline(owner: int | None) -> None:
    """A blocked run is not woken at the end of its time; once it can go on, it is looked at before its step."""
    blocked = block(RUN._replace(deadline=NOW + 1, input=None), "no such step", now=NOW, commit_id=COMMIT).run
    assert (blocked.wake_at, blocked.deadline) == (None, NOW + 1)
    freed = unblock(blocked, owner=owner, now=NOW + 2, commit_id=COMMIT).run
    move = late(freed, now=NOW + 2)
    assert move is not None
    assert move.run.step == "late"
    assert BLOCKED.deadline is None
