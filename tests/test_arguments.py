"""Arguments of decorators, commands and options: a wrong one is refused at once, by an error that names it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from pydantic import BaseModel

from aioflow import Retry, StartOptions, complete, fail, goto, on, sleep, step, wait, workflow
from aioflow.clock import LAST_INSTANT, to_micros
from aioflow.commands import Command, Complete, Fail, Goto, Sleep
from aioflow.errors import LimitExceeded
from aioflow.registry import registry

NAIVE = datetime(2030, 1, 1)  # noqa: DTZ001
NO_ZONE = "2030-01-01T00:00:00 has no time zone. Write datetime(..., tzinfo=UTC) or datetime.now(UTC)."
AGO = timedelta(seconds=-1)


class Empty(BaseModel):
    """A Context without fields."""


class Half(datetime):
    """A time zone without an offset."""

    def utcoffset(self) -> None:
        return None


def a_function() -> None: ...


def limit(what: str, limit: str, found: str) -> str:
    return f"{what} is beyond the limit of {limit}: {found}."


STORABLE = "characters that every store can hold"
TARGET = "takes a step of the same workflow, as self.step_name or 'step_name', got"

Row = tuple[Callable[[], object], type[Exception], str]

WORKFLOW: list[Row] = [
    (lambda: workflow(""), ValueError, "@workflow(name) must not be empty."),
    (lambda: workflow(Empty), TypeError, "@workflow(name) takes a string, got ModelMetaclass."),
    (lambda: workflow("x" * 201), LimitExceeded, limit("@workflow(name)", "200 characters", "it has 201")),
    (lambda: workflow("or\0der"), LimitExceeded, limit("@workflow(name)", STORABLE, "it holds a NUL")),
    (lambda: workflow("\udc80"), LimitExceeded, limit("@workflow(name)", STORABLE, "it holds a lone surrogate")),
    (lambda: workflow("x", version=2), TypeError, "@workflow(version=...) takes a string, got int."),
    (lambda: workflow("x", version=""), ValueError, "@workflow(version=...) must not be empty."),
    (lambda: workflow("x", default_retry=3), TypeError, "@workflow(default_retry=...) takes a Retry, got int."),
    (
        lambda: workflow("x", max_transitions=0),
        ValueError,
        "@workflow(max_transitions=...) must be an int of at least 1, got 0.",
    ),
    (
        lambda: workflow("x", max_transitions=9.0),
        ValueError,
        "@workflow(max_transitions=...) must be an int of at least 1, got 9.0.",
    ),
    (lambda: workflow("x")(a_function), TypeError, "@workflow decorates a class, got function."),
]
STEP: list[Row] = [
    (lambda: step("pay"), TypeError, "@step decorates a method, got str. Options are keywords: @step(start=True)."),
    (
        lambda: step(start=True)(property(a_function)),
        TypeError,
        "@step decorates a method, got property. Options are keywords: @step(start=True).",
    ),
    (lambda: step(retry=3), TypeError, "@step(retry=...) takes a Retry, got int."),
    (lambda: step(timeout=3), TypeError, "@step(timeout=...) takes a timedelta, got int."),
    (lambda: step(timeout=timedelta()), ValueError, "@step(timeout=...) must be longer than zero."),
    (lambda: step(timeout=AGO), ValueError, "@step(timeout=...) must not be negative, got -1 day, 23:59:59."),
    (lambda: step(start="yes"), TypeError, "@step(start=...) takes a bool, got str."),
    (lambda: step(title=3), TypeError, "@step(title=...) takes a string, got int."),
    (lambda: step(thread="no"), TypeError, "@step(thread=...) takes a bool, got str."),
]
COMMANDS: list[Row] = [
    (lambda: goto(3), TypeError, f"goto() {TARGET} int."),
    (lambda: goto(None), TypeError, f"goto() {TARGET} NoneType."),
    (lambda: goto("x", progress=1.1), ValueError, "goto(progress=...) takes a number from 0.0 to 1.0, got 1.1."),
    (lambda: goto("x", progress=-0.1), ValueError, "goto(progress=...) takes a number from 0.0 to 1.0, got -0.1."),
    (lambda: goto("x", progress="50%"), ValueError, "goto(progress=...) takes a number from 0.0 to 1.0, got '50%'."),
    (
        lambda: goto("x", progress=float("nan")),
        ValueError,
        "goto(progress=...) takes a number from 0.0 to 1.0, got nan.",
    ),
    (
        lambda: sleep(5),
        TypeError,
        "sleep() takes a timedelta or an aware datetime, got int. Write sleep(timedelta(seconds=5)).",
    ),
    (
        lambda: sleep(date(2030, 1, 1)),
        TypeError,
        "sleep() takes a timedelta or an aware datetime, got date. Write sleep(timedelta(seconds=5)).",
    ),
    (lambda: sleep(AGO), ValueError, "sleep(duration) must not be negative, got -1 day, 23:59:59."),
    (lambda: sleep(NAIVE), ValueError, f"sleep(until) must be aware, {NO_ZONE}"),
    (lambda: sleep(Half(2030, 1, 1)), ValueError, f"sleep(until) must be aware, {NO_ZONE}"),
    (lambda: sleep(timedelta(), then=3), TypeError, f"sleep() {TARGET} int."),
    (lambda: fail(3), TypeError, "fail() takes the reason as a string, got int."),
    (lambda: fail(ValueError("x")), TypeError, "fail() takes the reason as a string, got ValueError."),
]
WAITS: list[Row] = [
    (lambda: wait.for_signal(3), TypeError, "wait.for_signal() takes a signal's name or a pydantic model, got int."),
    (lambda: wait.for_signal(""), ValueError, "wait.for_signal(name) must not be empty."),
    (
        lambda: wait.for_signal("x" * 201),
        LimitExceeded,
        limit("wait.for_signal(name)", "200 characters", "it has 201"),
    ),
    (lambda: wait.for_signal("x", key=17), TypeError, "wait.for_signal(key=...) takes a string, got int."),
    (lambda: wait.for_signal("x", key=""), ValueError, "wait.for_signal(key=...) must not be empty."),
    (lambda: wait.for_signal("x", then=3), TypeError, f"wait.for_signal() {TARGET} int."),
    (
        lambda: wait.for_signal("x", timeout=3, on_timeout="y"),
        TypeError,
        "wait.for_signal(timeout=...) takes a timedelta or an aware datetime, got int.",
    ),
    (
        lambda: wait.for_signal("x", timeout=AGO, on_timeout="y"),
        ValueError,
        "wait.for_signal(timeout=...) must not be negative, got -1 day, 23:59:59.",
    ),
    (
        lambda: wait.for_signal("x", timeout=NAIVE, on_timeout="y"),
        ValueError,
        f"wait.for_signal(timeout=...) must be aware, {NO_ZONE}",
    ),
    (
        lambda: wait.for_signal("x", timeout=timedelta(1)),
        TypeError,
        "wait.for_signal() has timeout= and no on_timeout=. Name the step that goes on when time is over.",
    ),
    (
        lambda: wait.for_signal("x", on_timeout="y"),
        TypeError,
        "wait.for_signal() has on_timeout= and no timeout=. Say how long to wait.",
    ),
    (lambda: wait.for_signal("x", timeout=timedelta(1), on_timeout=3), TypeError, f"wait.for_signal() {TARGET} int."),
    (
        wait.any,
        TypeError,
        "wait.any() takes arms: wait.any(on('paid', then=self.ship), on('cancel', then=self.stop)).",
    ),
    (
        lambda: wait.any("paid"),
        TypeError,
        "wait.any() takes arms: wait.any(on('paid', then=self.ship), on('cancel', then=self.stop)).",
    ),
    (
        lambda: wait.any(on("x", then="y"), timeout=timedelta(1)),
        TypeError,
        "wait.any() has timeout= and no on_timeout=. Name the step that goes on when time is over.",
    ),
    (
        lambda: on("x", then=None),
        TypeError,
        "on(...) takes then=, the step to go on with: on('paid', then=self.ship).",
    ),
    (lambda: on(None, then="y"), TypeError, "on() takes a signal's name or a pydantic model, got NoneType."),
    (lambda: on("x", then=3), TypeError, f"on() {TARGET} int."),
    (lambda: on("x", key="\0", then="y"), LimitExceeded, limit("on(key=...)", STORABLE, "it holds a NUL")),
]
EDGES: list[Row] = [
    (lambda: step(on_fail=3), TypeError, "@step(on_fail=...) takes a step of the class or its name, got int."),
    (
        lambda: workflow("x", on_fail=3),
        TypeError,
        "@workflow(on_fail=...) takes a step of the class or its name, got int.",
    ),
    (lambda: workflow("x", timeout=3), TypeError, "@workflow(timeout=...) takes a timedelta, got int."),
    (lambda: workflow("x", timeout=timedelta()), ValueError, "@workflow(timeout=...) must be longer than zero."),
    (
        lambda: workflow("x", timeout=AGO),
        ValueError,
        "@workflow(timeout=...) must not be negative, got -1 day, 23:59:59.",
    ),
    (
        lambda: workflow("x", on_timeout="y"),
        TypeError,
        "@workflow(on_timeout=...) needs timeout=. Say how long a run may take.",
    ),
    (
        lambda: workflow("x", timeout=timedelta(1), on_timeout=3),
        TypeError,
        "@workflow(on_timeout=...) takes a step of the class or its name, got int.",
    ),
]
RETRY: list[Row] = [  # its other arguments: test_retry.py
    (lambda: Retry(backoff_factor="2"), TypeError, "Retry(backoff_factor=...) takes a number, got str."),
    (lambda: Retry(jitter="0"), TypeError, "Retry(jitter=...) takes a number, got str."),
]
OPTIONS: list[Row] = [
    (lambda: StartOptions(key=""), ValueError, "StartOptions(key=...) must not be empty."),
    (lambda: StartOptions(key=17), TypeError, "StartOptions(key=...) takes a string, got int."),
    (
        lambda: StartOptions(key="x" * 201),
        LimitExceeded,
        limit("StartOptions(key=...)", "200 characters", "it has 201"),
    ),
    (lambda: StartOptions(key="\0"), LimitExceeded, limit("StartOptions(key=...)", STORABLE, "it holds a NUL")),
    (
        lambda: StartOptions(key="\ud800"),
        LimitExceeded,
        limit("StartOptions(key=...)", STORABLE, "it holds a lone surrogate"),
    ),
    (
        lambda: StartOptions(reuse="always"),
        ValueError,
        "StartOptions(reuse=...) takes 'never', 'ended' or 'failed', got 'always'.",
    ),
    (
        lambda: StartOptions(reuse=None),
        ValueError,
        "StartOptions(reuse=...) takes 'never', 'ended' or 'failed', got None.",
    ),
    (lambda: StartOptions(delay=3), TypeError, "StartOptions(delay=...) takes a timedelta, got int."),
    (
        lambda: StartOptions(delay=AGO),
        ValueError,
        "StartOptions(delay=...) must not be negative, got -1 day, 23:59:59.",
    ),
    (lambda: StartOptions(start_at="now"), TypeError, "StartOptions(start_at=...) takes a datetime, got str."),
    (lambda: StartOptions(start_at=NAIVE), ValueError, f"StartOptions(start_at=...) must be aware, {NO_ZONE}"),
    (
        lambda: StartOptions(delay=timedelta(), start_at=datetime(2030, 1, 1, tzinfo=UTC)),
        ValueError,
        "StartOptions takes delay= or start_at=, not both.",
    ),
]


ROWS = WORKFLOW + STEP + COMMANDS + WAITS + EDGES + RETRY + OPTIONS


@pytest.mark.parametrize(("call", "kind", "text"), ROWS, ids=[ascii(text) for _, _, text in ROWS])
def test_wrong_arguments_are_refused(call: Callable[[], object], kind: type[Exception], text: str) -> None:
    """A wrong argument is refused at once, by an error that names it."""
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert str(caught.value) == text


def test_options_take_keywords_only() -> None:
    """StartOptions takes no positional arguments."""
    with pytest.raises(TypeError, match="positional"):
        StartOptions("order-1")


def test_names_may_have_200_characters() -> None:
    """A workflow's name, its version and a key are accepted with exactly 200 characters."""

    @workflow("ä" * 200, version="v" * 200)
    class Order:
        Context = Empty

        @step(start=True)
        def first(self) -> Command:
            return complete()

    assert registry.find("ä" * 200).version == "v" * 200
    assert StartOptions(key="🌊" * 200).key == "🌊" * 200


def test_commands_are_records() -> None:
    """A command is a record of its arguments."""
    until = datetime(2030, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    assert goto("ship") == Goto("ship", None)
    assert goto("ship", progress=1) == Goto("ship", 1.0)
    assert sleep(timedelta(seconds=2)) == Sleep(2_000_000, None)
    assert sleep(until, then="ship") == Sleep(None, to_micros(datetime(2030, 1, 1, 10, tzinfo=UTC)), "ship")
    assert complete(total=3, target="x") == Complete({"total": 3, "target": "x"})
    assert fail("no stock") == Fail("no stock")


def test_options_know_when_the_run_is_due() -> None:
    """``delay`` counts from now, ``start_at`` is an instant, and without either the run is due at once."""
    at = datetime(2030, 1, 1, tzinfo=UTC)
    assert StartOptions().due(7) is None
    assert StartOptions(delay=timedelta(seconds=1)).due(7) == 1_000_007
    assert StartOptions(start_at=at).due(7) == to_micros(at)
    assert StartOptions(delay=timedelta.max).due(7) == LAST_INSTANT
