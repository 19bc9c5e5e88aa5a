"""The table at the head of transitions.py, row by row, and the rules below it, as pure functions."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from aioflow import complete, fail, goto, sleep, step, workflow
from aioflow.causes import describe
from aioflow.changes import Move, Start
from aioflow.clock import LAST_INSTANT, SECOND, Micros, to_datetime, to_micros
from aioflow.commands import Command
from aioflow.definition import WorkflowDefinition
from aioflow.errors import ContextNotStorable, LimitExceeded, NoCommand, RunNotFound, StepTimeout, TargetUnknown
from aioflow.interventions import block, cancel, poison, start, unblock, wake
from aioflow.model import MAX_ERROR, MAX_REASON, MAX_TRACEBACK, POISON_CRASHES, Run, Transition, TransitionKind
from aioflow.registry import definition_of
from aioflow.retry import GiveUp, Retry, RetryLater, chance_of
from aioflow.timers import START
from aioflow.transitions import Raised, Stepped, decide

NOW: Micros = 1_750_000_000_000_000
COMMIT = 77
TOOK: Micros = 1_500
HOUR = timedelta(hours=1)
DATA = '{"total":17}'
LONG = "a" * 50_000 + "b" * 50_000


class Shop:
    """A base class of workflows, which is not one itself."""

    @step
    def pack(self) -> Command:
        return complete()


@workflow("transitions.order", max_transitions=5, default_retry=Retry(base_delay=timedelta(seconds=10)))
class Order(Shop):
    """A workflow in which pay has three attempts, and ship one."""

    class Context(BaseModel):
        total: int = 0

    @step(start=True)
    def pay(self) -> Command:
        return complete()

    @step(retry=Retry(max_attempts=1))
    def ship(self) -> Command:
        return complete()

    @step
    def pack(self) -> Command:
        return goto(super().pack)

    def helper(self) -> Command:
        return complete()


@workflow("transitions.refund")
class Refund:
    """Another workflow, with a step of the same name."""

    class Context(BaseModel):
        total: int = 0

    @step(start=True)
    def pay(self) -> Command:
        return complete()


ORDER = definition_of(Order)
#: A run in the middle of its life, which differs from a new one in every column that can.
RUN = Run(
    id=7,
    workflow="transitions.order",
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
    failures=1,
    hops=2,
    crashes=1,
    marked=1,
    waiting_for=None,
    wake_at=None,
    arms=None,
    input=None,
    deadline=None,
    failure=None,
    progress=0.25,
    data='{"total":1}',
    error=None,
    traceback=None,
    updated_at=NOW - 10 * SECOND,
    ended_at=None,
)
SLEEPING = RUN._replace(
    status="waiting", owner=None, next_step="ship", waiting_for="sleep", wake_at=NOW - 1, hops=0, crashes=0, marked=0
)
RETRYING = SLEEPING._replace(next_step="pay", waiting_for="retry")
DELAYED = SLEEPING._replace(next_step="pay", waiting_for="start", seq=1, fence=1, visit=1, failures=0)
BLOCKED = SLEEPING._replace(next_step="pay", waiting_for="blocked", wake_at=None, error="no such step")
LIVE_RUNS = [RUN, RUN._replace(owner=None), SLEEPING, RETRYING, DELAYED, BLOCKED]
ENDED_RUNS = [
    RUN._replace(status=status, owner=None, ended_at=NOW - 1) for status in ("completed", "failed", "cancelled")
]
OWNERS = pytest.mark.parametrize("owner", [9, 12, None])


def named(run: object) -> str | None:
    return f"{run.status}-{run.waiting_for or run.owner}" if isinstance(run, Run) else None


def after(
    run: Run,
    kind: TransitionKind,
    note: str | None = None,
    *,
    made: tuple[str, int] | None = None,
    took: Micros = 0,
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
    )


def returned(command: Command, run: Run = RUN, definition: WorkflowDefinition = ORDER) -> Move:
    """The move that follows when the step returns this command, having left DATA as its Context."""
    outcome = Stepped(command, DATA)  # type: ignore[arg-type]
    return decide(run, definition, outcome, duration=TOOK, now=NOW, commit_id=COMMIT)


def raised(error: BaseException, run: Run = RUN, definition: WorkflowDefinition = ORDER) -> Move:
    """The move that follows when the step raises."""
    return decide(run, definition, Raised(error), duration=TOOK, now=NOW, commit_id=COMMIT)


def assert_failed(move: Move, text: str, run: Run = RUN) -> None:
    """Check that the move fails the run with exactly this error, and changes neither its Context nor anything else."""
    assert move.run.traceback is not None
    assert move == after(
        run, "fail", text, took=TOOK,
        status="failed", owner=None, failures=run.failures + 1, error=text, traceback=move.run.traceback, ended_at=NOW,
    )  # fmt: skip


def assert_retried(move: Move, delay: Micros, text: str, run: Run = RUN) -> None:
    """Check that the move parks the run for this delay with one more failure, and changes nothing else."""
    assert move == after(
        run, "retry", text, took=TOOK,
        status="waiting", owner=None, next_step=run.step, waiting_for="retry", wake_at=NOW + delay,
        failures=run.failures + 1, hops=0,
    )  # fmt: skip


# ---- start

NEW = Run(
    id=7,
    workflow="transitions.order",
    version="1",
    key="order-7",
    parent_id=None,
    event_id=None,
    created_at=NOW,
    status="running",
    step="pay",
    next_step=None,
    seq=1,
    fence=1,
    owner=9,
    visit=1,
    failures=0,
    hops=0,
    crashes=0,
    marked=0,
    waiting_for=None,
    wake_at=None,
    arms=None,
    input=None,
    deadline=None,
    failure=None,
    progress=None,
    data=DATA,
    error=None,
    traceback=None,
    updated_at=NOW,
    ended_at=None,
)
FIRST = Transition(7, 1, NOW, "pay", 1, "start", 0, None, COMMIT)


def started(due: Micros | None, owner: int | None = 9) -> Start:
    return start(
        ORDER, DATA, run_id=7, key="order-7", reuse="ended", due=due, owner=owner, now=NOW, commit_id=COMMIT
    )  # fmt: skip


@pytest.mark.parametrize("due", [None, NOW, NOW - 1, 0, -1])
def test_a_new_run_runs(due: Micros | None) -> None:
    """A run whose start is not delayed, or due in the past, is running at its start step, with its owner."""
    assert started(due) == Start(NEW, FIRST, "ended")


def test_a_new_run_may_have_no_owner() -> None:
    """A run that starts without an owner, as no worker has room for it, is running all the same."""
    assert started(None, owner=None) == Start(NEW._replace(owner=None), FIRST, "ended")


@OWNERS
def test_a_delayed_run_waits(owner: int | None) -> None:
    """A delayed run waits for its start, without an owner."""
    waiting = NEW._replace(status="waiting", owner=None, next_step="pay", waiting_for="start", wake_at=NOW + 1)
    assert started(NOW + 1, owner) == Start(waiting, FIRST, "ended")


# ---- goto


@pytest.mark.parametrize("target", [Order().ship, "ship", "Ship".lower()], ids=["method", "name", "computed"])
def test_goto_enters_a_step(target: Any) -> None:
    """A goto makes the target the current step, as a new visit; the owner, the progress and the rest stay."""
    assert returned(goto(target)) == after(
        RUN, "goto", took=TOOK, step="ship", visit=RUN.seq + 1, failures=0, hops=RUN.hops + 1, data=DATA
    )


def test_goto_may_lead_back() -> None:
    """A goto to the current step is a new visit as well."""
    assert returned(goto("pay")).run[:] == after(RUN, "goto", visit=6, failures=0, hops=3, data=DATA).run


@pytest.mark.parametrize(("given", "kept"), [(None, 0.25), (0.0, 0.0), (0.5, 0.5), (1, 1.0)])
def test_goto_tells_the_progress(given: float | None, kept: float) -> None:
    """A goto with a progress replaces the old one, and one without keeps it."""
    assert returned(goto("ship", progress=given)).run.progress == kept


def test_goto_can_name_a_step_of_a_subclass() -> None:
    """A goto accepts a step of a subclass."""

    class Express(Order):
        pass

    assert returned(goto(Express().ship)).run.step == "ship"


def test_a_step_named_through_super_is_the_step_of_that_name() -> None:
    """A goto to ``super().pack`` leads to the step pack of the run's own class."""
    assert returned(goto(super(Order, Order()).pack)).run.step == "pack"


class Elusive:
    """Any attribute access on it raises, as on a proxy without a target."""

    def __call__(self) -> Command:
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("nothing behind it")


class Nameless:
    """A bound method of the workflow whose name is not a string."""

    def __init__(self) -> None:
        self.__self__ = Order()
        self.__name__ = ["pay"]

    def __call__(self) -> Command:
        raise NotImplementedError


UNKNOWN: list[tuple[Any, str]] = [
    ("shpi", "'shpi'"),
    ("", "''"),
    ("helper", "'helper'"),
    ("Context", "'Context'"),
    ("a" * 5, "'aaaaa'"),
    (Order().helper, "Order.helper"),
    (Refund().pay, "Refund.pay"),
    (Shop().pack, "Shop.pack"),
    (Order.pay, "Order.pay"),
    (print, "print"),
    (partial(Order().ship), "partial"),
    (lambda: complete(), "<lambda>"),  # noqa: PLW0108 - some callable that is no step
    (Order, "Order"),
    (Elusive(), "Elusive"),
    (Nameless(), "Nameless"),
]


@pytest.mark.parametrize("command", [goto, lambda target: sleep(HOUR, then=target)], ids=["goto", "sleep"])
@pytest.mark.parametrize(("target", "written"), UNKNOWN, ids=[written for _, written in UNKNOWN])
def test_an_unknown_target_fails_the_run(command: Callable[[Any], Command], target: Any, written: str) -> None:
    """An unknown target fails the run at once, and the error names the target and the steps."""
    move = returned(command(target))
    name = "goto" if command is goto else "sleep"
    assert move.run.error is not None
    assert re.fullmatch(
        rf"Step 'pay' of workflow 'transitions\.order' \(run 7\) returned {name} with the target "
        rf"(\S+\.)?{re.escape(written)}, which is no step of it \(steps: pack, pay, ship\)\. "
        rf"{name}\(\) takes a step of the same workflow\.",
        move.run.error,
    )
    assert_failed(move, move.run.error)


def test_the_limit_of_transitions_is_exact() -> None:
    """A run may take exactly max_transitions steps without a wait; the next goto fails it and changes nothing else."""
    run, steps = NEW, 1
    while (move := returned(goto("pay"), run)).run.status == "running":
        run, steps = move.run, steps + 1
    assert steps == ORDER.max_transitions == 5
    assert_failed(
        move,
        "Run 7 of workflow 'transitions.order' is beyond the limit of 5 transitions without a wait (max_transitions): "
        "it went on from step 'pay' to 'pay'. Let it sleep or wait in between, or allow it more.",
        run,
    )


def test_a_limit_of_one_allows_one_step() -> None:
    """With max_transitions=1 a step can end or park the run, but not go to another step."""
    strict = replace(ORDER, max_transitions=1)
    assert returned(goto("ship"), NEW, strict).run.status == "failed"
    assert returned(sleep(HOUR, then="ship"), NEW, strict).run.status == "waiting"
    assert returned(complete(), NEW, strict).run.status == "completed"


@pytest.mark.parametrize(
    "park",
    [
        lambda run: returned(sleep(HOUR), run),
        lambda run: raised(ValueError(), run),
        lambda run: raised(RetryLater(HOUR), run),
        lambda run: block(run, "no such step", now=NOW, commit_id=COMMIT),
    ],
    ids=["sleep", "retry", "retry later", "block"],
)
def test_parking_resets_the_count_of_transitions(park: Callable[[Run], Move]) -> None:
    """Whatever parks a run, the count against max_transitions starts anew."""
    assert park(RUN._replace(hops=4)).run.hops == 0


# ---- sleep


def slept(wake_at: Micros, then: str = "pay") -> Move:
    return after(
        RUN, "sleep", took=TOOK,
        status="waiting", owner=None, next_step=then, waiting_for="sleep", wake_at=wake_at, hops=0, data=DATA,
    )  # fmt: skip


@pytest.mark.parametrize("length", [timedelta(0), timedelta(microseconds=1), HOUR, timedelta(days=36_500)], ids=str)
def test_sleep_parks_the_run_for_a_time(length: timedelta) -> None:
    """A sleep for a duration parks the run at its step until that time from now; visit and failures are kept."""
    assert returned(sleep(length)) == slept(NOW + length // timedelta(microseconds=1))


def test_sleep_parks_the_run_until_an_instant() -> None:
    """A sleep until an instant parks the run until exactly that instant."""
    assert returned(sleep(to_datetime(NOW + 12_345_678))) == slept(NOW + 12_345_678)


@pytest.mark.parametrize("then", ["ship", Order().ship, "pay"], ids=["name", "method", "itself"])
def test_sleep_can_lead_on(then: Any) -> None:
    """A sleep with then= stores the next step; the sleeping step stays the current one until then."""
    assert returned(sleep(HOUR, then=then)) == slept(NOW + 3600 * SECOND, "pay" if then == "pay" else "ship")


@pytest.mark.parametrize(
    "until", [NOW - 1, 0, to_micros(datetime(1969, 7, 20, tzinfo=UTC)), to_micros(datetime(1, 1, 1, tzinfo=UTC))]
)
def test_a_sleep_until_the_past_is_due(until: Micros) -> None:
    """A sleep until a past instant, however long ago, gives a deadline that is due at once."""
    run = returned(sleep(to_datetime(until))).run
    assert run.waiting_for == "sleep"
    assert run.wake_at is not None
    assert (run.wake_at, run.id) > START
    assert run.wake_at <= NOW


def test_a_sleep_until_the_last_instant_is_possible() -> None:
    """A sleep may last until the last instant that can be stored."""
    assert returned(sleep(to_datetime(LAST_INSTANT))) == slept(LAST_INSTANT)
    assert returned(sleep(timedelta(microseconds=LAST_INSTANT - NOW))) == slept(LAST_INSTANT)


@pytest.mark.parametrize(
    "beyond",
    [to_datetime(LAST_INSTANT + 1), timedelta(microseconds=LAST_INSTANT - NOW + 1), timedelta.max],
    ids=["instant", "just", "far"],
)
def test_a_sleep_beyond_the_year_9999_fails_the_run(beyond: Any) -> None:
    """A sleep beyond the year 9999 fails the run, without a retry."""
    assert_failed(returned(sleep(beyond)), "sleep() is beyond the limit of the year 9999: run 7, step 'pay'.")


# ---- the end


def test_complete_ends_the_run() -> None:
    """complete() ends the run as completed, with the Context that its step left."""
    assert returned(complete(paid=True)) == after(
        RUN, "complete", took=TOOK, status="completed", owner=None, data=DATA, ended_at=NOW
    )


@pytest.mark.parametrize(
    ("reason", "stored"),
    [("out of stock", "out of stock"), ("", ""), ("a\0b\ud800c", "a\\0b\\ud800c")],
    ids=["plain", "empty", "unstorable"],
)
def test_fail_ends_the_run(reason: str, stored: str) -> None:
    """fail() ends the run with exactly the reason, as far as it can be stored, and the Context that its step left."""
    assert returned(fail(reason)) == after(
        RUN, "fail", stored, took=TOOK, status="failed", owner=None, error=stored, data=DATA, ended_at=NOW
    )


def test_a_long_reason_keeps_its_ends() -> None:
    """A reason that is too long loses its middle, and says so."""
    move = returned(fail(LONG))
    for error, most in ((move.run.error, MAX_REASON), (move.transition.error, MAX_ERROR)):
        assert error is not None
        assert most - 20 <= len(error) <= most
        assert re.fullmatch(f"a{{{most // 2 - 100},}} … [0-9]+ characters left out … b{{{most // 2 - 100},}}", error)


# ---- a step that raises


@pytest.mark.parametrize(("failures", "delay"), [(0, 10 * SECOND), (1, 20 * SECOND)])
def test_an_error_is_retried_while_attempts_are_left(failures: int, delay: Micros) -> None:
    """While attempts are left, a failed step is retried after the policy's delay, and its changes are discarded."""
    run = RUN._replace(failures=failures)
    assert_retried(raised(ValueError("no"), run), delay, "ValueError: no", run)


def test_an_error_without_attempts_left_fails_the_run() -> None:
    """When no attempt is left, the run fails with the last attempt's error and traceback."""
    run = RUN._replace(failures=2)
    assert_failed(raised(ValueError("no"), run), "ValueError: no", run)


def test_the_policy_of_the_step_stands_over_that_of_the_workflow() -> None:
    """The retry policy of a step replaces that of the workflow."""
    run = RUN._replace(step="ship", failures=0)
    assert_failed(raised(ValueError("no"), run), "ValueError: no", run)


def test_a_step_that_is_gone_has_the_policy_of_the_workflow() -> None:
    """A step that no longer exists is retried by the workflow's policy."""
    run = RUN._replace(step="wrap", failures=0)
    assert_retried(raised(ValueError("no"), run), 10 * SECOND, "ValueError: no", run)


def test_jitter_is_the_same_at_each_offer() -> None:
    """The jitter of a delay depends only on run and seq: deciding the same outcome again gives the same delay."""
    jittery = replace(ORDER, default_retry=Retry(base_delay=timedelta(seconds=10), jitter=0.5))
    delay = int(20 * SECOND * (0.5 + chance_of(RUN.id, RUN.seq)))
    for _ in range(2):
        assert_retried(raised(ValueError("no"), RUN, jittery), delay, "ValueError: no")
    assert raised(ValueError("no"), RUN._replace(seq=6), jittery).run.wake_at != NOW + delay


@pytest.mark.parametrize("failures", [0, 1, 2, 50])
@pytest.mark.parametrize("delay", [timedelta(0), HOUR])
def test_retry_later_does_not_count(failures: int, delay: timedelta) -> None:
    """RetryLater parks the run for its own delay, and does not count as a failure."""
    run = RUN._replace(step="ship", failures=failures)
    assert raised(RetryLater(delay), run) == after(
        run, "retry", took=TOOK,
        status="waiting", owner=None, next_step="ship", waiting_for="retry",
        wake_at=NOW + delay // timedelta(microseconds=1), hops=0,
    )  # fmt: skip


def test_a_retry_is_never_later_than_the_last_instant() -> None:
    """A delay that would end after the year 9999 ends at the last instant."""
    patient = replace(ORDER, default_retry=Retry(base_delay=timedelta.max, max_delay=timedelta.max))
    assert raised(RetryLater(timedelta.max)).run.wake_at == LAST_INSTANT
    assert raised(ValueError(), RUN, patient).run.wake_at == LAST_INSTANT


class Later(RetryLater):
    """A subclass that does not call the constructor of RetryLater."""

    def __init__(self, delay: Any = None) -> None:
        Exception.__init__(self, "later")
        if delay is not None:
            self.delay = delay


@pytest.mark.parametrize("delay", [None, 3, timedelta(-1)], ids=["unset", "number", "negative"])
def test_an_invalid_delay_is_a_failed_attempt(delay: Any) -> None:
    """A RetryLater without a valid delay is retried by the policy, like any other error."""
    assert_retried(raised(Later(delay), NEW), 10 * SECOND, "Later: later", NEW)


FINAL = [
    (GiveUp("the card is stolen"), "the card is stolen"),
    (NoCommand(7, "transitions.order", "pay", "None"), None),
    (ContextNotStorable(7, "transitions.order", "pay", "total is lost"), None),
    (TargetUnknown(7, "transitions.order", "pay", "'shpi'", "goto", ["pay"]), None),
    (LimitExceeded("The Context", "depth 64", "it is nested deeper"), None),
    (asyncio.CancelledError(), "CancelledError"),
    (asyncio.CancelledError("stop"), "CancelledError: stop"),
    (KeyboardInterrupt(), "KeyboardInterrupt"),
    (SystemExit(3), "SystemExit: 3"),
    (GeneratorExit(), "GeneratorExit"),
    (
        BaseExceptionGroup("both", [KeyboardInterrupt()]),
        "BaseExceptionGroup: both (1 sub-exception): KeyboardInterrupt",
    ),
]


@pytest.mark.parametrize(("error", "text"), FINAL, ids=[type(error).__name__ for error, _ in FINAL])
def test_final_errors_fail_at_once(error: BaseException, text: str | None) -> None:
    """An error that a retry cannot help fails the run at once, even if attempts are left."""
    assert_failed(raised(error), str(error) if text is None else text)


@pytest.mark.parametrize("error", [error for error, _ in FINAL[:5]], ids=lambda error: type(error).__name__)
def test_no_policy_retries_what_is_final(error: BaseException) -> None:
    """A programming error or GiveUp is not retried even by a policy that names BaseException."""
    everything = replace(ORDER, default_retry=Retry(retry_on=BaseException))
    assert raised(error, RUN, everything).run.status == "failed"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), asyncio.CancelledError(), SystemExit()], ids=repr)
def test_a_policy_can_name_what_is_not_retried_by_default(error: BaseException) -> None:
    """A policy that names BaseException also retries KeyboardInterrupt, CancelledError and SystemExit."""
    everything = replace(ORDER, default_retry=Retry(retry_on=BaseException))
    assert raised(error, RUN, everything).run.waiting_for == "retry"


@pytest.mark.parametrize(
    "error",
    [
        StepTimeout("transitions.order", "pay", 3.0),
        RunNotFound(8),
        ExceptionGroup("all", [ValueError()]),
        StopIteration(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_are_retried(error: Exception) -> None:
    """A timeout, an error of another engine call, a group and StopIteration are retried like other errors."""
    assert raised(error).run.waiting_for == "retry"


# ---- errors as text


class Mute(Exception):
    """Its ``__str__`` raises."""

    def __init__(self, raises: BaseException) -> None:
        self.raises = raises

    def __str__(self) -> str:
        raise self.raises


class MuteLimit(LimitExceeded):
    """An error of aioflow whose ``__str__`` raises."""

    def __str__(self) -> str:
        raise RecursionError


def group(*members: Exception) -> ExceptionGroup[Exception]:
    """The group in which a TaskGroup wraps the errors of its tasks."""
    return ExceptionGroup("g", members)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no"), "ValueError: no"),
        (ValueError(), "ValueError"),
        (KeyError("id"), "KeyError: 'id'"),
        (Mute(ValueError()), "Mute: <its __str__ raised>"),
        (Mute(KeyboardInterrupt()), "Mute: <its __str__ raised>"),
        (MuteLimit("The Context", "depth 64", "deeper"), "<its __str__ raised>"),
        (RunNotFound(8), str(RunNotFound(8))),
        (GiveUp("the card is stolen"), "the card is stolen"),
        (GiveUp(""), ""),
        (ValueError("a\0b"), "ValueError: a\\0b"),
        (ValueError("a\ud800\udfffb"), "ValueError: a\\ud800\\udfffb"),
        (GiveUp("\0"), "\\0"),
        (group(ValueError("no")), "ExceptionGroup: g (1 sub-exception): ValueError: no"),
        (group(group(ValueError("no"))), "ExceptionGroup: g (1 sub-exception): ValueError: no"),
        (
            group(*map(ValueError, "abcd")),
            "ExceptionGroup: g (4 sub-exceptions): ValueError: a; ValueError: b; ValueError: c",
        ),
        (group(group(KeyError(1)), OSError()), "ExceptionGroup: g (2 sub-exceptions): KeyError: 1; OSError"),
        (group(GiveUp("the card is stolen")), "the card is stolen"),
    ],
    ids=ascii,
)
def test_how_errors_are_described(error: BaseException, text: str) -> None:
    """An error of aioflow is recorded by its text alone, others with their class, even if ``__str__`` raises."""
    assert describe(error) == text
    assert raised(error, RUN._replace(failures=2)).run.error == text


@pytest.mark.parametrize(
    "error", [ValueError(LONG), GiveUp(LONG), ValueError("\0" * 5_000)], ids=["own", "give up", "escaped"]
)
def test_a_long_error_is_cut(error: BaseException) -> None:
    """An error is cut to MAX_ERROR, escapes included, and says how much is missing."""
    move = raised(error, RUN._replace(failures=2))
    assert move.run.error == move.transition.error
    assert len(move.run.error or "") <= MAX_ERROR
    assert " characters left out " in (move.run.error or "")


def thrown(error: BaseException, depth: int = 0) -> BaseException:
    """The error, after it was raised at this depth."""

    def dig(left: int) -> None:
        if left:
            dig(left - 1)
        raise error

    try:
        dig(depth)
    except BaseException as caught:
        return caught
    raise AssertionError


def traceback_of(error: BaseException) -> str:
    return raised(error, RUN._replace(failures=2)).run.traceback or ""


def test_the_traceback_is_kept() -> None:
    """The traceback has the lines that raised, the error, its cause and its notes."""
    error = thrown(ValueError("no"))
    error.__cause__ = KeyError("id")
    error.add_note("order 17")
    found = traceback_of(error)
    for part in (
        "Traceback (most recent call last)",
        "in thrown",
        "raise error",
        "ValueError: no",
        "KeyError: 'id'",
        "order 17",
    ):
        assert part in found


@pytest.mark.parametrize(
    "error",
    [ValueError("x" * 100_000), ExceptionGroup("all", [ValueError("y" * 5_000) for _ in range(20)])],
    ids=["long", "many"],
)
def test_a_long_traceback_keeps_its_ends(error: BaseException) -> None:
    """A traceback is cut in the middle to MAX_TRACEBACK."""
    found = traceback_of(thrown(error, depth=50))
    assert MAX_TRACEBACK - 20 <= len(found) <= MAX_TRACEBACK
    assert " characters left out " in found
    assert "Traceback (most recent call last)" in found[:200]


@pytest.mark.parametrize(
    "error",
    [Mute(ValueError()), ValueError("a\0\ud800b"), ValueError("\x1b[31m")],
    ids=["mute", "unstorable", "colour"],
)
def test_every_traceback_can_be_stored(error: BaseException) -> None:
    """A traceback is text that every store can hold, whatever the error says."""
    found = traceback_of(thrown(error))
    assert "in thrown" in found
    assert "\0" not in found
    found.encode()


class Unprintable(Exception):
    """Its traceback cannot be formatted."""

    @property
    def __notes__(self) -> list[str]:
        raise KeyboardInterrupt


def test_an_error_that_cannot_be_printed_still_tells_where_it_was_raised() -> None:
    """If formatting an error's traceback raises, the lines that raised the error are still recorded."""
    found = traceback_of(thrown(Unprintable()))
    assert "in thrown" in found
    assert "raise error" in found


# ---- wake


@OWNERS
@pytest.mark.parametrize("run", [SLEEPING, SLEEPING._replace(next_step="pay"), DELAYED], ids=named)
def test_a_sleep_or_delay_that_is_over_is_a_new_visit(run: Run, owner: int | None) -> None:
    """A run that wakes from a sleep or delay is a new visit of its next step, with a new fence and the new owner."""
    assert run.next_step is not None
    assert wake(run, owner=owner, now=NOW, commit_id=COMMIT) == after(
        run, "wake", made=(run.next_step, 1),
        status="running", step=run.next_step, next_step=None, fence=run.fence + 1, owner=owner, waiting_for=None,
        wake_at=None, visit=run.seq + 1, failures=0,
    )  # fmt: skip


@OWNERS
def test_a_retry_that_is_due_is_the_same_visit(owner: int | None) -> None:
    """The next attempt of a retry keeps the visit and the failures, so the step key stays the same."""
    assert wake(RETRYING, owner=owner, now=NOW, commit_id=COMMIT) == after(
        RETRYING, "wake", made=("pay", 2),
        status="running", step="pay", next_step=None, fence=4, owner=owner, waiting_for=None, wake_at=None,
    )  # fmt: skip


# ---- blocked


@pytest.mark.parametrize(
    ("reason", "stored"), [("no such step", "no such step"), ("a\0\ud800", "a\\0\\ud800")], ids=["plain", "unstorable"]
)
def test_a_run_that_its_code_cannot_take_is_parked(reason: str, stored: str) -> None:
    """A blocked run waits without a deadline, with the reason as its error; visit, failures and Context are kept."""
    assert block(RUN, reason, now=NOW, commit_id=COMMIT) == after(
        RUN, "block", stored,
        status="waiting", owner=None, next_step="pay", waiting_for="blocked", error=stored, hops=0,
    )  # fmt: skip
    assert len(block(RUN, LONG, now=NOW, commit_id=COMMIT).run.error or "") <= MAX_ERROR


@OWNERS
def test_a_blocked_run_goes_on_with_its_visit(owner: int | None) -> None:
    """An unblocked run is running again with a new fence and without the error; visit and failures are kept."""
    assert unblock(BLOCKED, owner=owner, now=NOW, commit_id=COMMIT) == after(
        BLOCKED, "unblock", status="running", fence=4, owner=owner, next_step=None, waiting_for=None, error=None
    )


# ---- cancel


@pytest.mark.parametrize("run", LIVE_RUNS, ids=named)
@pytest.mark.parametrize(
    ("reason", "stored"),
    [("not wanted", "not wanted"), (None, None), ("a\0\ud800", "a\\0\\ud800"), ("", "")],
    ids=ascii,
)
def test_a_run_that_has_not_ended_can_be_cancelled(run: Run, reason: str | None, stored: str | None) -> None:
    """A cancelled run keeps its step, has the reason as its error and a new fence, and no longer waits for anything."""
    move = after(
        run, "cancel", stored,
        status="cancelled", fence=run.fence + 1, owner=None, next_step=None, waiting_for=None, wake_at=None,
        error=stored, ended_at=NOW,
    )  # fmt: skip
    assert cancel(run, reason, now=NOW, commit_id=COMMIT) == (move.run, move.transition)


def test_a_long_reason_for_a_cancel_is_cut() -> None:
    """A reason for a cancel is cut to MAX_REASON in the row, and to MAX_ERROR in the history."""
    found = cancel(RUN, LONG, now=NOW, commit_id=COMMIT)
    assert found is not None
    assert MAX_REASON - 20 <= len(found[0].error or "") <= MAX_REASON
    assert MAX_ERROR - 20 <= len(found[1].error or "") <= MAX_ERROR


@pytest.mark.parametrize("run", ENDED_RUNS, ids=named)
def test_a_run_that_has_ended_is_left_alone(run: Run) -> None:
    """Cancelling an ended run changes nothing."""
    assert cancel(run, "too late", now=NOW, commit_id=COMMIT) is None


# ---- poison


@pytest.mark.parametrize("crashes", range(POISON_CRASHES))
def test_a_few_crashes_are_survived(crashes: int) -> None:
    """A run with fewer than six crashes is not failed."""
    assert poison(RUN._replace(crashes=crashes), now=NOW, commit_id=COMMIT) is None


@pytest.mark.parametrize("crashes", [6, 7])
def test_the_sixth_crash_fails_the_run(crashes: int) -> None:
    """The sixth crash fails the run, with an error that names the count, the step and the run."""
    run = RUN._replace(crashes=crashes)
    error = (
        f"The process died {crashes} times while step 'pay' of workflow 'transitions.order' ran (run 7): "
        "it was stopped from trying again."
    )
    assert poison(run, now=NOW, commit_id=COMMIT) == after(
        run, "fail", error, status="failed", owner=None, error=error, ended_at=NOW
    )


# ---- every sequence of transitions


@dataclass
class Life:
    """Applies any sequence of events to one run, and checks the invariants after each."""

    run: Run
    now: Micros = NOW
    commit: int = COMMIT
    #: Counted here by the rules of the design; the rows must agree.
    failures: int = 0
    visit: int = 1
    hops: int = 0
    history: list[Transition] = field(default_factory=list)

    def happen(self, what: str, later: Micros, **details: Any) -> None:
        """Apply one event, if it can happen to the run in its current state."""
        self.now += later
        move: Move | tuple[Run, Transition] | None = getattr(self, what)(**details)
        before = self.run
        if move is None:
            return
        if isinstance(move, Move):
            assert (move.seq, move.fence) == (before.seq, before.fence)
            after, transition = move.run, move.transition
        else:
            after, transition = move
        self.check(before, after, transition)
        self.history.append(transition)
        self.commit += 1
        self.run = after

    def returns(self, command: Command, data: str) -> Move | None:
        if self.run.status != "running":
            return None
        return self.decided(Stepped(command, data))  # type: ignore[arg-type]

    def raises(self, error: BaseException) -> Move | None:
        return None if self.run.status != "running" else self.decided(Raised(error))

    def decided(self, outcome: Stepped | Raised) -> Move:
        return decide(self.run, ORDER, outcome, duration=TOOK, now=self.now, commit_id=self.commit)

    def is_due(self, owner: int | None) -> Move | None:
        if self.run.wake_at is None:
            return None
        self.now = max(self.now, self.run.wake_at)
        return wake(self.run, owner=owner, now=self.now, commit_id=self.commit)

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
        run = self.run
        if run.status != "running":
            return None
        self.run = run._replace(owner=owner, fence=run.fence + 1, crashes=run.crashes + 1, marked=0)
        return poison(self.run, now=self.now, commit_id=self.commit)

    def check(self, before: Run, after: Run, made: Transition) -> None:
        """Check what holds for every row of the table."""
        assert before.status in {"running", "waiting"}, "what has ended never changes"
        assert after[:7] == before[:7]
        assert after.seq == before.seq + 1
        assert made[:3] == (before.id, after.seq, self.now)
        assert made.commit_id == self.commit
        assert after.updated_at == self.now
        assert after.fence == before.fence + (made.kind in {"wake", "unblock", "cancel"})
        assert (after.crashes, after.marked) == (0, 0)
        assert after.data == before.data or made.kind in {"goto", "sleep", "complete", "fail"}
        self.check_status(before, after, made)
        self.check_visit(before, after, made)
        for text in (after.error, after.traceback, made.error):
            assert text is None or len(text) <= MAX_TRACEBACK
            assert "\0" not in (text or "")
            (text or "").encode()

    def check_status(self, before: Run, after: Run, made: Transition) -> None:
        waits = after.status == "waiting"
        ended = after.status in {"completed", "failed", "cancelled"}
        assert waits or ended or after.status == "running"
        assert waits == (after.waiting_for is not None) == (after.next_step is not None)
        assert (after.wake_at is not None) == (waits and after.waiting_for != "blocked")
        assert after.owner is None or after.status == "running"
        if made.kind == "goto":
            assert after.owner == before.owner
        assert (after.ended_at is not None) == ended
        assert after.error is None or ended or after.waiting_for == "blocked"
        assert (after.status == "failed") <= (after.error is not None)
        assert after.traceback is None or after.status == "failed"
        assert after.step == before.step or made.kind in {"goto", "wake"}
        if after.wake_at is not None:
            assert self.now <= after.wake_at <= LAST_INSTANT
        if made.kind in {"wake", "unblock"}:
            assert before.waiting_for is not None
            assert after.step == before.next_step

    def check_visit(self, before: Run, after: Run, made: Transition) -> None:
        if made.kind == "goto" or (made.kind == "wake" and before.waiting_for != "retry"):
            self.visit, self.failures = after.seq, 0
        if made.kind == "wake":
            assert (made.step, made.attempt) == (after.step, self.failures + 1)
        else:
            assert (made.step, made.attempt) == (before.step, before.failures + 1)
        if made.kind == "retry":
            self.failures += made.error is not None
        elif made.kind == "fail":
            self.failures = after.failures
            assert after.failures - before.failures in {0, 1}
        self.hops = 0 if after.status == "waiting" else self.hops + (made.kind == "goto")
        assert (after.visit, after.failures, after.hops) == (self.visit, self.failures, self.hops)
        assert after.hops < ORDER.max_transitions


#: Any text of a message, NUL and lone surrogates included.
TEXTS = st.text(st.characters(exclude_categories=()), max_size=20)
DURATIONS = st.timedeltas(timedelta(0), timedelta(days=400))
STEPS = st.sampled_from(["pay", "ship", "pack"])
WORKERS = st.none() | st.integers(1, 3)


def happening(what: str, **details: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"what": st.just(what), "later": st.integers(0, 5 * SECOND), **details})


def returning(commands: st.SearchStrategy[Command]) -> st.SearchStrategy[dict[str, Any]]:
    return happening("returns", command=commands, data=st.sampled_from(["{}", DATA]))


GOING = returning(st.builds(goto, STEPS, progress=st.none() | st.floats(0.0, 1.0)))
RUNNING = st.one_of(
    GOING,
    returning(st.builds(sleep, DURATIONS, then=st.none() | STEPS)),
    happening("raises", error=st.builds(RetryLater, DURATIONS) | st.builds(ValueError, TEXTS)),
    happening("is_claimed", owner=st.integers(1, 3)),
    happening("is_blocked", reason=TEXTS),
)
RESUMING = happening("is_due", owner=WORKERS) | happening("is_unblocked", owner=WORKERS)
ENDING = st.one_of(
    returning(st.just(complete())),
    returning(st.builds(fail, TEXTS) | st.builds(goto, st.just("shpi"))),
    happening("raises", error=st.builds(GiveUp, TEXTS) | st.sampled_from([KeyboardInterrupt(), Mute(ValueError())])),
    happening("is_cancelled", reason=st.none() | TEXTS),
)


@st.composite
def lives(draw: st.DrawFn) -> Life:
    """A run that has been through a random sequence of events, checked after each."""
    life = Life(started(draw(st.sampled_from([None, NOW + SECOND])), draw(WORKERS)).run)
    for luck in draw(st.lists(st.integers(0, 20), min_size=15, max_size=60)):
        if luck == 0:
            life.happen(**draw(ENDING))
        elif life.run.status == "running":
            happened = draw(RUNNING)
            for _ in range(6 if luck < 3 else 1):  # several crashes or gotos in a row, as they are counted
                life.happen(**happened)
        else:
            life.happen(**draw(RESUMING))
    return life


@given(lives())
def test_what_holds_for_every_row_holds_after_every_sequence(life: Life) -> None:
    """After any sequence of events, the rules below the table hold."""
    assert life.run.seq == len(life.history) + 1


@given(lives())
def test_the_history_tells_the_attempts(life: Life) -> None:
    """The history numbers a visit's attempts from 1, and only a failed attempt raises the number."""
    assert [transition.seq for transition in life.history] == list(range(2, len(life.history) + 2))
    attempt = 1
    for transition in life.history:
        if transition.kind == "wake" and transition.attempt == 1:
            attempt = 1  # after a sleep; after a retry the number goes on
        assert transition.attempt == attempt
        if transition.kind == "goto":
            attempt = 1
        elif transition.kind == "retry" and transition.error is not None:
            attempt += 1


def test_a_group_of_one_error_counts_as_that_error() -> None:
    """GiveUp and RetryLater count in a group if they are its only error, but not beside others."""
    assert raised(group(GiveUp("stolen"))).transition.kind == "fail"
    later = raised(group(group(RetryLater(timedelta(minutes=1)))))
    assert (later.transition.kind, later.run.wake_at, later.run.failures) == ("retry", NOW + 60 * SECOND, RUN.failures)
    assert raised(group(GiveUp("stolen"), ValueError())).transition.kind == "retry"
