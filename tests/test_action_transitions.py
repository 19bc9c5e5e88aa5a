"""What actions do to a run, as pure functions: what opens one, what a call changes, and what its result changes."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import GiveUp, RetryLater, complete, errors, fail, goto, on, sleep, step, wait, workflow
from aioflow.causes import describe
from aioflow.changes import Move
from aioflow.clock import SECOND, Micros
from aioflow.commands import Command
from aioflow.interventions import call, cancel, overrun, park, start, uncalled, wake
from aioflow.model import Arm, Resumption, Run, Transition, TransitionKind
from aioflow.open_steps import action
from aioflow.openings import call_of, open_arms
from aioflow.registry import definition_of
from aioflow.transitions import Raised, Stepped, decide

NOW: Micros = 1_893_456_000 * SECOND
HOUR = timedelta(hours=1)
HOURS: Micros = 3600 * SECOND
COMMIT = 77
TOOK: Micros = 5_000
DATA = '{"total":2}'


@workflow("acting.order")
class Order:
    """A workflow with steps and an action for commands to name."""

    class Context(BaseModel):
        total: int = 0

    @step(start=True)
    def ask(self) -> Command:
        return goto(self.review)

    @action("acting_review")
    def review(self, approved: bool) -> Command:
        return complete()

    @step
    def ship(self) -> Command:
        return complete()

    @step
    def late(self) -> Command:
        return complete()


ORDER = definition_of(Order)
#: The workflow, but started at the action.
OPEN = replace(ORDER, start="review")
#: The workflow, but with a timeout.
TIMED = replace(ORDER, timeout=2 * HOURS, on_timeout="late")
RUN = Run(
    id=7, workflow="acting.order", version="1", key="order-7", parent_id=None, event_id=None,
    created_at=NOW - 50 * SECOND, status="running", step="ask", next_step=None, seq=5, fence=3, owner=9, visit=4,
    failures=1, hops=2, crashes=1, marked=1, waiting_for=None, wake_at=None, arms=None, input='["timeout"]', deadline=None,
    failure=None, progress=0.25, data='{"total":1}', error=None, traceback=None, updated_at=NOW - 10 * SECOND,
    ended_at=None,
)  # fmt: skip
REVIEW = Arm("action", "acting_review", None, "review", False)
PAID = Arm("signal", "paid", "order-7", "ship", False)
PARKED: dict[str, Any] = {"status": "waiting", "owner": None, "crashes": 0, "marked": 0, "hops": 0, "input": None}
#: Waits at the action, after a goto.
SENT = RUN._replace(**PARKED, step="review", failures=0, waiting_for="action", arms=json.dumps([REVIEW]))
#: Waits with the action as one of its arms, with a timeout.
ARMED = RUN._replace(
    **PARKED, next_step="late", waiting_for="signal", wake_at=NOW + HOURS, arms=json.dumps([PAID, REVIEW])
)
OWNERS = pytest.mark.parametrize("owner", [9, 12, None])
WAITS = pytest.mark.parametrize("run", [SENT, ARMED], ids=["sent", "armed"])


def after(
    run: Run,
    kind: TransitionKind,
    note: str | None = None,
    *,
    made: tuple[str, int] | None = None,
    took: Micros = 0,
    unless_mail: bool = False,
    **columns: Any,
) -> Move:
    """The expected move: it changes these columns of the run, and otherwise only those that every move changes."""
    told, attempt = made or (run.step, run.failures + 1)
    return Move(
        run._replace(seq=run.seq + 1, crashes=0, marked=0, updated_at=NOW, **columns),
        run.seq,
        run.fence,
        Transition(run.id, run.seq + 1, NOW, told, attempt, kind, took, note, COMMIT),
        (),
        unless_mail,
    )


def returned(command: Command, run: Run = RUN) -> Move:
    """The move that follows when the step returns this command."""
    outcome = Stepped(command, DATA)  # type: ignore[arg-type]
    return decide(run, ORDER, outcome, duration=TOOK, now=NOW, commit_id=COMMIT)


def raised(error: BaseException, run: Run) -> Move:
    """The move that follows when the step raises."""
    return decide(run, ORDER, Raised(error), duration=TOOK, now=NOW, commit_id=COMMIT)


def called(run: Run, input_: str = '{"approved": true}', *, request: bool = False, owner: int | None = 9) -> Move:
    """The move that a call of the action makes."""
    return call(run, REVIEW, input_, request=request, owner=owner, now=NOW, commit_id=COMMIT)


# ---- what opens an action


@pytest.mark.parametrize("target", ["review", Order().review], ids=["name", "method"])
@pytest.mark.parametrize("deadline", [None, NOW + HOURS])
def test_a_goto_to_an_action_parks_the_run_there(target: Any, deadline: Micros | None) -> None:
    """A goto to an action parks the run at it until its deadline, if any, as a new visit without input or owner."""
    found = returned(goto(target, progress=0.5), RUN._replace(deadline=deadline))
    assert found == after(
        RUN._replace(deadline=deadline), "goto", took=TOOK, status="waiting", owner=None, step="review", visit=6,
        failures=0, waiting_for="action", wake_at=deadline, arms=json.dumps([REVIEW]), hops=0, input=None, progress=0.5,
        data=DATA,
    )  # fmt: skip
    assert returned(goto(target)).run.progress == 0.25


def test_an_action_does_not_count_against_max_transitions() -> None:
    """A run that has used up its max_transitions can still go to an action, where it waits."""
    assert returned(goto("review"), RUN._replace(hops=ORDER.max_transitions)).run.status == "waiting"


def test_a_wait_may_have_an_action_as_an_arm() -> None:
    """A wait keeps its arms in order, the first decides ``waiting_for``, and the waiting step stays the current one."""
    own = Order()
    command = wait.any(on("paid", then=own.ship), on(own.review), timeout=HOUR, on_timeout=own.late)
    assert returned(command) == after(
        RUN, "wait", took=TOOK, status="waiting", owner=None, next_step="late", waiting_for="signal",
        wake_at=NOW + HOURS, arms=json.dumps([PAID, REVIEW]), hops=0, input=None, data=DATA,
    )  # fmt: skip
    alone = returned(wait.any(on(own.review))).run
    assert (alone.waiting_for, alone.step, alone.wake_at) == ("action", "ask", None)


def test_an_arm_that_is_no_action_fails_the_run() -> None:
    """``on`` with a step that is no action fails the run, without a retry."""
    found = returned(wait.any(on(Order().ship)))  # type: ignore[call-overload]
    assert (found.run.status, found.transition.kind) == ("failed", "fail")
    assert "returned a wait with on(Order.ship), which is no action" in (found.run.error or "")


def test_a_start_at_an_action_waits() -> None:
    """A run whose start step is an action waits from the start, or from the end of its delay; its deadline counts."""
    options: dict[str, Any] = {"run_id": 7, "key": None, "reuse": "never", "now": NOW, "commit_id": COMMIT, "owner": 9}
    run = start(replace(OPEN, timeout=HOURS), "{}", due=None, **options).run
    assert (run.status, run.waiting_for, run.step, run.owner) == ("waiting", "action", "review", None)
    assert (run.arms, run.next_step, run.wake_at, run.deadline) == (
        json.dumps([REVIEW]),
        None,
        NOW + HOURS,
        NOW + HOURS,
    )
    assert start(OPEN, "{}", due=None, **options).run.wake_at is None
    delayed = start(OPEN, "{}", due=NOW + 1, **options).run
    assert (delayed.waiting_for, delayed.arms, delayed.next_step, delayed.wake_at) == ("start", None, "review", NOW + 1)


def test_a_run_that_came_to_an_action_without_a_call_parks() -> None:
    """A run that reached an action without a call, by a sleep or a timeout, parks there and waits to be called."""
    at = RUN._replace(step="review", deadline=NOW + HOURS)
    assert uncalled(at, ORDER) == "acting_review"
    assert uncalled(RUN, ORDER) is None
    assert uncalled(called(SENT).run, ORDER) is None
    assert park(at, "acting_review", now=NOW, commit_id=COMMIT) == after(
        at, "wait", status="waiting", owner=None, failures=0, waiting_for="action", wake_at=NOW + HOURS,
        arms=json.dumps([REVIEW]), hops=0, input=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("run", "now", "arms"),
    [
        (SENT, NOW, [REVIEW]),
        (ARMED, NOW, [REVIEW]),
        (ARMED, NOW + HOURS, [REVIEW]),
        (ARMED, NOW + HOURS + 1, []),
        (RUN, NOW, []),
        (RUN._replace(**PARKED, waiting_for="sleep"), NOW, []),
        (RUN._replace(status="completed"), NOW, []),
    ],
    ids=["sent", "arm", "just in time", "too late", "running", "sleeping", "ended"],
)
def test_what_can_be_called(run: Run, now: Micros, arms: list[Arm]) -> None:
    """An action is open only while its run waits for it, up to the end of the wait's timeout."""
    assert open_arms(run, now) == arms


# ---- the call


@OWNERS
@pytest.mark.parametrize("request_", [False, True])
def test_a_call_claims_the_run(owner: int | None, request_: bool) -> None:
    """A call resumes the run at the action, as a new visit with a new fence, and stores the input and the wait."""
    found = called(SENT, request=request_, owner=owner)
    assert found == after(
        SENT, "action", made=("review", 1), status="running", step="review", next_step=None, fence=4, owner=owner,
        waiting_for=None, wake_at=None, arms=None, input=found.run.input, visit=6, failures=0,
    )  # fmt: skip
    kept = call_of(found.run)
    assert kept is not None
    assert (kept.id, kept.input, kept.request) == (COMMIT, {"approved": True}, request_)
    told = Resumption.of(found.run)
    assert told is not None
    assert (told.kind, told.name) == ("action", "acting_review")


def test_a_call_does_not_overtake_mail() -> None:
    """A call of a run that also waits for a signal is made only if no mail came before it."""
    assert called(ARMED).unless_mail
    assert not called(SENT).unless_mail


def test_call_of_finds_only_calls() -> None:
    """``call_of`` finds no call in the input of a run that something else has resumed."""
    assert call_of(RUN._replace(input=None)) is None
    assert call_of(RUN) is None
    assert call_of(RUN._replace(input='["signal", "action", {"input": 3}]')) is None


@WAITS
@pytest.mark.parametrize(
    "error", [ValueError("no"), GiveUp("no"), RetryLater(HOUR), errors.StepError(7, "o", "s", "x"), KeyboardInterrupt()],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_an_action_that_raises_is_open_again(run: Run, error: BaseException) -> None:
    """Whatever an action raises, the run waits as before the call, Context unchanged; the history has the error."""
    claimed = called(run).run
    found = raised(error, claimed)
    note = found.transition.error
    back = {name: getattr(run, name) for name in ("step", "next_step", "visit", "failures", "waiting_for", "wake_at")}
    assert found == after(
        claimed, "reopen", note, took=TOOK, status="waiting", owner=None, hops=0, input=None, arms=run.arms, **back
    )
    assert note == describe(error)
    assert found.run._replace(seq=run.seq, fence=run.fence, updated_at=run.updated_at) == run


@pytest.mark.parametrize(
    ("command", "status", "step_"),
    [
        (goto("ship"), "running", "ship"),
        (goto("review"), "waiting", "review"),
        (complete(), "completed", "review"),
        (fail("no"), "failed", "review"),
        (wait.for_signal("paid", then="ship"), "waiting", "review"),
        (sleep(HOUR, then="ship"), "waiting", "review"),
    ],
    ids=["goto", "goto itself", "complete", "fail", "wait", "sleep"],
)
def test_an_action_that_returns_is_a_step_like_any_other(command: Command, status: str, step_: str) -> None:
    """The command that an action returns is followed like any step's, and the run's input is cleared."""
    run = returned(command, called(SENT).run).run
    assert (run.status, run.step, run.input, run.data) == (status, step_, None, DATA)


def test_an_action_that_sleeps_has_the_same_call_when_it_wakes() -> None:
    """A sleep without ``then=`` keeps the call: the step runs again with it, and the action reopens if it raises."""
    asleep = returned(sleep(HOUR), called(ARMED).run).run
    awake = wake(asleep, owner=9, now=NOW + HOURS, commit_id=COMMIT).run
    assert call_of(awake) == call_of(called(ARMED).run)
    assert uncalled(awake, ORDER) is None
    assert raised(ValueError(), awake).run.arms == ARMED.arms


def test_records_have_all_their_fields() -> None:
    """What is made without the records' constructors, which is quicker, has a value for each of their fields."""
    started = start(ORDER, "{}", run_id=7, key=None, reuse="never", due=None, now=NOW, commit_id=COMMIT, owner=9)
    for change in (started, returned(goto("ship")), returned(complete())):
        for record in (change, change.run, change.transition):
            assert len(record) == len(type(record)._fields)


# ---- other ends of such a wait


def test_an_action_with_a_request_does_not_sleep_until_it_runs_again() -> None:
    """A sleep without then= is an error of an action that was called with a request, as that is not stored."""
    claimed = called(ARMED, request=True).run
    assert (found := returned(sleep(HOUR), claimed)).transition.kind == "reopen"
    assert found == raised(errors.RequestNotKept(claimed.id, claimed.workflow, "review"), claimed)
    assert returned(sleep(HOUR, then="ship"), claimed).run.next_step == "ship"


def test_the_time_of_a_wait_with_an_action_ends_in_its_on_timeout() -> None:
    """A wait with an action times out to its on_timeout, even if the action is its first arm, but mail comes first."""
    run = ARMED._replace(waiting_for="action", arms=json.dumps([REVIEW, PAID]), wake_at=NOW)
    found = wake(run, owner=9, now=NOW, commit_id=COMMIT)
    assert (found.run.step, found.transition.kind, found.unless_mail) == ("late", "timeout", True)
    assert Resumption.of(found.run) == Resumption("timeout")


def test_a_run_that_waits_at_an_action_is_woken_at_the_end_of_its_time() -> None:
    """A run that waits at an action is woken at its own deadline."""
    run = SENT._replace(deadline=NOW, wake_at=NOW)
    assert Resumption.of(wake(run, owner=9, now=NOW, commit_id=COMMIT).run) == Resumption("deadline")


def test_an_action_that_was_called_in_time_runs() -> None:
    """An action that was called before the run's deadline runs even if the deadline passes before its step begins."""
    claimed = called(SENT._replace(deadline=NOW + 1, wake_at=NOW + 1)).run
    assert overrun(claimed, TIMED, now=NOW + 2, commit_id=COMMIT) is None
    again = claimed._replace(input=None)
    assert overrun(again, TIMED, now=NOW + 2, commit_id=COMMIT) is not None


@WAITS
def test_a_cancelled_run_is_not_open(run: Run) -> None:
    """A cancelled run has no open actions."""
    done = cancel(run, None, now=NOW, commit_id=COMMIT)
    assert done is not None
    assert open_arms(done[0], NOW) == []
