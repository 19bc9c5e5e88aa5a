"""Checks of waits, on_fail and on_timeout when the class is defined: only what is certainly wrong is refused."""

# What is refused here at import is also an error for type checkers; "or" puts several commands into one step.
# mypy: disable-error-code="arg-type, attr-defined, call-overload, no-untyped-def, return-value, truthy-bool"

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

import aioflow
import aioflow as af
from aioflow import Event, Failure, action, arguments, complete, goto, on, sleep, step, wait, wait_for_event, workflow
from aioflow import on as arm
from aioflow import wait as w
from aioflow.commands import Command
from aioflow.errors import DefinitionError
from aioflow.model import Resumption
from aioflow.registry import definition_of

if TYPE_CHECKING:
    Hidden = BaseModel

DAY = timedelta(days=1)
any_of = wait.any
for_signal = w.for_signal


class Empty(BaseModel):
    """A Context without fields."""


class Paid(BaseModel):
    """A message."""

    amount: int = 0


class Sent(BaseModel):
    """Another message."""


class Base:
    """The base class of the workflows of these tests, with the steps second and third; the start step comes last."""

    Context = Empty

    @step
    def second(self) -> Command:
        return complete()

    @step
    def third(self) -> Command:
        return complete()

    def helper(self) -> None: ...


STEPS = "(steps: second, third, first)"


def refusal(cls: type, **options: Any) -> tuple[str, ...]:
    """The problems for which the class is refused as a workflow."""
    with pytest.raises(DefinitionError) as caught:
        workflow("refused", **options)(cls)
    return caught.value.problems


def accepted(cls: type, **options: Any) -> None:
    workflow("accepted", **options)(cls)


def unknown(written: str, name: str, step: str = "first", steps: str = STEPS) -> str:
    return f"step {step!r}: {written} names {name!r}, which is no step of this class {steps}."


# ---- unknown targets


def test_unknown_targets_of_waits_are_refused() -> None:
    """Unknown targets in then= and on_timeout= of for_signal, any and on are refused, as attributes and as names."""

    class Order(Base):
        @step(start=True)
        def first(self) -> Command:
            return (
                wait.for_signal("x", then=self.a)
                or wait.for_signal("x", then="b", timeout=DAY, on_timeout=self.c)
                or wait.any(on("x", then=self.d), on("y", key="k", then="e"), timeout=DAY, on_timeout="f")
                or wait.for_signal(Paid, then=self.g)
                or wait.any(on(Paid, then="h"))
            )

    assert set(refusal(Order)) == {
        unknown("wait.for_signal(then=)", "a"),
        unknown("wait.for_signal(then=)", "b"),
        unknown("wait.for_signal(on_timeout=)", "c"),
        unknown("on(then=)", "d"),
        unknown("on(then=)", "e"),
        unknown("wait.any(on_timeout=)", "f"),
        unknown("wait.for_signal(then=)", "g"),
        unknown("on(then=)", "h"),
    }


def test_a_method_that_is_no_step_is_nowhere_to_go_on() -> None:
    """A plain method as the target of a wait is refused, with the advice to make it a step."""

    class Order(Base):
        @step(start=True)
        def first(self) -> Command:
            return wait.any(on("x", then=self.helper), timeout=DAY, on_timeout=self.helper)

    assert set(refusal(Order)) == {
        f"step 'first': {written} names 'helper', which is a method but no step {STEPS}. Add @step."
        for written in ("on(then=)", "wait.any(on_timeout=)")
    }


def test_unknown_edges_of_failures_are_refused() -> None:
    """Unknown steps in @step(on_fail=), @workflow(on_fail=) and @workflow(on_timeout=) are refused."""

    class Order(Base):
        @step(start=True, on_fail="a")
        def first(self) -> Command:
            return complete()

    found = refusal(Order, on_fail="b", timeout=DAY, on_timeout="c")
    assert set(found) == {
        f"@step(on_fail=) of step 'first' names 'a', which is no step of this class {STEPS}.",
        f"@workflow(on_fail=) names 'b', which is no step of this class {STEPS}.",
        f"@workflow(on_timeout=) names 'c', which is no step of this class {STEPS}.",
    }


def test_a_method_that_is_no_step_is_no_on_fail() -> None:
    """A plain method of a base class is refused as an on_fail."""

    class Order(Base):
        @step(start=True, on_fail=Base.helper)
        def first(self) -> Command:
            return complete()

    assert refusal(Order) == (
        f"@step(on_fail=) of step 'first' names 'helper', which is no step of this class {STEPS}.",
    )


def test_edges_may_be_functions_or_names() -> None:
    """An edge may be a step's function, of the class or of a base, or a name; it is stored as a name."""

    class Order(Base):
        @step
        def mend(self, failure: Failure) -> Command:
            return complete()

        @step(start=True, on_fail=mend)
        def first(self) -> Command:
            return complete()

        @step(on_fail=Base.second)
        def another(self) -> Command:
            return complete()

        @step(on_fail="later")
        def last(self) -> Command:
            return complete()

        @step
        async def later(self, why: Failure, note: str = "") -> Command:
            return complete()

    accepted(Order, on_fail=Base.third, timeout=DAY, on_timeout=Order.first)
    definition = definition_of(Order)
    edges = {name: definition.on_fail_of(name) for name in definition.steps}
    assert edges == {
        "second": None, "third": None, "mend": None, "first": "mend", "another": "second", "last": "later", "later": None
    }  # fmt: skip
    assert (definition.on_fail, definition.on_timeout, definition.timeout) == ("third", "first", 86_400_000_000)


def test_an_on_fail_of_a_base_class_is_checked_in_the_class() -> None:
    """An inherited on_fail is checked in the subclass, and may name a step that only the subclass has."""

    class Early(Base):
        @step(start=True, on_fail="mend")
        def first(self) -> Command:
            return complete()

    class Good(Early):
        @step
        def mend(self) -> Command:
            return complete()

    accepted(Good)
    assert refusal(Early) == (f"@step(on_fail=) of step 'first' names 'mend', which is no step of this class {STEPS}.",)


# ---- options


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: step(on_fail=3), TypeError, "@step(on_fail=...) takes a step of the class or its name, got int."),
        (lambda: workflow("x", on_fail=3), TypeError, "@workflow(on_fail=...) takes a step of the class or its name, got int."),
        (
            lambda: workflow("x", timeout=DAY, on_timeout=b"x"),
            TypeError,
            "@workflow(on_timeout=...) takes a step of the class or its name, got bytes.",
        ),
        (
            lambda: workflow("x", on_timeout="late"),
            TypeError,
            "@workflow(on_timeout=...) needs timeout=. Say how long a run may take.",
        ),
        (lambda: workflow("x", timeout=3), TypeError, "@workflow(timeout=...) takes a timedelta, got int."),
        (lambda: workflow("x", timeout=timedelta()), ValueError, "@workflow(timeout=...) must be longer than zero."),
        (
            lambda: workflow("x", timeout=-DAY),
            ValueError,
            "@workflow(timeout=...) must not be negative, got -1 day, 0:00:00.",
        ),
    ],
    ids=["step", "workflow", "bytes", "no timeout", "int", "zero", "negative"],
)  # fmt: skip
def test_wrong_options_are_refused(make: Callable[[], object], kind: type[Exception], text: str) -> None:
    """A wrong option is refused at once, by an error that names it."""
    with pytest.raises(kind) as caught:
        make()
    assert type(caught.value) is kind
    assert str(caught.value) == text


# ---- timeout without on_timeout


def test_a_timeout_without_on_timeout_is_refused() -> None:
    """A wait with timeout= but without on_timeout= is refused."""

    class Signal(Base):
        @step(start=True)
        def first(self) -> Command:
            return wait.for_signal("x", timeout=DAY, then=self.second)

    class AnyOf(Base):
        @step(start=True)
        def first(self) -> Command:
            return wait.any(on("x", then=self.second), timeout=DAY)

    for cls, command in ((Signal, "wait.for_signal"), (AnyOf, "wait.any")):
        assert refusal(cls) == (
            f"step 'first': {command}() has timeout= and no on_timeout=. Name the step that goes on when the time is over.",
        )


def test_a_timeout_that_is_none_is_no_timeout() -> None:
    """A wait with timeout=None needs no on_timeout=."""

    class Order(Base):
        @step(start=True)
        def first(self) -> Command:
            return wait.for_signal("x", timeout=None, then=self.second)

    accepted(Order)


def test_an_on_timeout_that_is_none_is_no_on_timeout() -> None:
    """on_timeout=None counts as no on_timeout=."""

    class Order(Base):
        @step(start=True)
        def first(self) -> Command:
            return wait.for_signal("x", timeout=DAY, on_timeout=None, then=self.second)

    (problem,) = refusal(Order)
    assert "has timeout= and no on_timeout=" in problem


# ---- fall-through


class Waits(Base):
    """A base class whose start step waits and goes on with the next step."""

    @step(start=True)
    def first(self) -> Command:
        return wait.for_signal("x")


def test_a_wait_at_the_end_is_refused() -> None:
    """A wait without then= is refused if no step comes after it, apart from its own on_timeout."""

    class Late(Base):
        @step(start=True)
        def first(self) -> Command:
            return wait.for_signal("x", timeout=DAY, on_timeout=self.last)

        @step
        def last(self) -> Command:
            return complete()

    sentence = "step 'first' waits, and no step is declared after it to go on with. Say then=."
    assert refusal(Waits) == (sentence,)
    assert refusal(Late) == (sentence,)


def test_a_wait_goes_on_with_the_next_step_of_a_subclass() -> None:
    """A wait without then= may go on with a step that a subclass adds."""

    class Longer(Waits):
        @step
        def after(self) -> Command:
            return complete()

    accepted(Longer)
    assert definition_of(Longer).falls_to("first", None) == "after"


def test_a_fall_through_onto_a_goto_s_target_is_refused() -> None:
    """A wait without then= is refused if a goto leads to the next step, too; the error names the goto's step."""

    class Order(Waits):
        @step
        def after(self) -> Command:
            return complete()

        @step
        def other(self) -> Command:
            return goto(self.after)

    assert refusal(Order) == (
        (
            "step 'first' waits and would go on with 'after', the next one declared, but goto() in step 'other' leads "
            "there, too: whether it was meant is unclear. Say then=."
        ),
    )


@pytest.mark.parametrize("name", ["for_signal", "any"])
def test_a_fall_through_onto_another_wait_s_on_timeout_is_refused(name: str) -> None:
    """A wait without then= is refused if the next step is the on_timeout of another wait."""

    class Signal(Waits):
        @step
        def after(self) -> Command:
            return complete()

        @step
        def other(self) -> Command:
            return wait.for_signal("y", timeout=DAY, on_timeout="after", then=self.second)

    class AnyOf(Waits):
        @step
        def after(self) -> Command:
            return complete()

        @step
        def other(self) -> Command:
            return wait.any(on("y", then=self.second), timeout=DAY, on_timeout="after")

    (problem,) = refusal(Signal if name == "for_signal" else AnyOf)
    assert problem == (
        f"step 'first' waits and would go on with 'after', the next one declared, but wait.{name}(on_timeout=) in step "
        "'other' leads there, too: whether it was meant is unclear. Say then=."
    )


def test_a_fall_through_onto_a_target_of_the_same_step_is_refused() -> None:
    """A wait without then= is refused if a goto or another wait's on_timeout in its own step leads to the next step."""

    class Goes(Base):
        @step(start=True)
        def first(self) -> Command:
            return wait.for_signal("x") or goto("after")

        @step
        def after(self) -> Command:
            return complete()

    class Late(Base):
        @step(start=True)
        def first(self) -> Command:
            return wait.for_signal("x") or wait.for_signal("y", timeout=DAY, on_timeout=self.after, then=self.second)

        @step
        def after(self) -> Command:
            return complete()

    assert "but goto() in step 'first' leads there" in refusal(Goes)[0]
    assert "but wait.for_signal(on_timeout=) in step 'first' leads there" in refusal(Late)[0]


def test_a_wait_s_own_on_timeout_is_passed_over() -> None:
    """A wait without then= passes over its own on_timeout and goes on with the step after it."""

    class Order(Base):
        @step(start=True)
        def first(self) -> Command:
            return wait.for_signal("x", timeout=DAY, on_timeout=self.late)

        @step
        def late(self) -> Command:
            return complete()

        @step
        def after(self) -> Command:
            return complete()

    accepted(Order)
    assert definition_of(Order).falls_to("first", "late") == "after"


def test_other_edges_do_not_make_a_fall_through_unclear() -> None:
    """A then= of a sleep or another wait, an on_fail, or a goto to another step do not make the next step ambiguous."""

    class Order(Waits):
        @step
        def after(self) -> Command:
            return sleep(DAY, then=self.after)

        @step(on_fail="after")
        def other(self) -> Command:
            return wait.for_signal("y", then=self.after) or wait.any(on("z", then="after")) or goto(self.second)

    accepted(Order)


def test_a_step_that_fails_into_itself_is_refused() -> None:
    """An on_fail that names its own step is refused."""

    class Order(Waits):
        @step(on_fail="after")
        def after(self) -> Command:
            return complete()

    assert refusal(Order) == (
        (
            "@step(on_fail=) of step 'after' names the step itself, which has just failed. "
            "Name another, or raise max_attempts."
        ),
    )


def test_a_wait_that_says_then_is_clear() -> None:
    """A wait with then= is accepted whatever leads to the next step."""

    class Order(Base):
        @step(start=True)
        def first(self) -> Command:
            return wait.for_signal("x", then=self.after)

        @step
        def after(self) -> Command:
            return goto(self.after)

    accepted(Order)


def test_then_none_is_a_fall_through() -> None:
    """then=None counts as no then=."""

    class Order(Base):
        @step(start=True)
        def first(self) -> Command:
            return wait.for_signal("x", then=None)

    assert refusal(Order) == ("step 'first' waits, and no step is declared after it to go on with. Say then=.",)


def test_an_override_keeps_its_place() -> None:
    """A step that overrides one of a base keeps its place in the order of steps."""

    class Early(Base):
        @step(start=True)
        def first(self) -> Command:
            return complete()

        @step
        def after(self) -> Command:
            return complete()

    class Order(Early):
        @step
        def later(self) -> Command:
            return complete()

        @step(start=True)
        def first(self) -> Command:
            return wait.for_signal("x")

    accepted(Order)
    assert definition_of(Order).falls_to("first", None) == "after"


def test_what_an_override_replaced_is_not_read() -> None:
    """A goto in a step that was overridden does not count."""

    class Early(Waits):
        @step
        def after(self) -> Command:
            return complete()

        @step
        def other(self) -> Command:
            return goto(self.after)

    class Order(Early):
        @step
        def other(self) -> Command:
            return complete()

    accepted(Order)
    assert "whether it was meant is unclear" in refusal(Early)[0]


# ---- what is not certain


def test_computed_targets_of_waits_are_accepted() -> None:
    """Targets of waits that are variables, unpacked arguments or attributes of the instance are accepted."""

    class Order(Base):
        def __init__(self) -> None:
            self.somewhere = self.second

        @step(start=True)
        def first(self) -> Command:
            target: Any = "nowhere"
            options: dict[str, Any] = {"then": "nowhere"}
            arms = [on("x", then="second")]
            return (
                wait.for_signal("x", then=target)
                or wait.for_signal("x", **options)
                or wait.for_signal("x", timeout=DAY, **options)
                or wait.for_signal("x", timeout=DAY, on_timeout=target)
                or wait.for_signal("x", then=self.somewhere)
                or wait.any(*arms, timeout=DAY, **options)
                or wait.any(*arms, timeout=DAY, on_timeout=target)
                or wait.for_signal(*["x"])
            )

    accepted(Order)


@pytest.mark.parametrize("number", range(8))
def test_waits_are_known_under_any_name(number: int) -> None:
    """A wait is recognised under another import name, through a module, and under a name in the module."""

    class Order(Base):
        @step(start=True)
        def first(self) -> Command:
            return (
                w.for_signal("x", then=self.s0)
                or aioflow.wait.any(on("x", then=self.second), timeout=DAY, on_timeout=self.s1)
                or af.wait.for_signal("x", then=self.s2)
                or arm("x", then=self.s3)
                or af.on("x", then=self.s4)
                or any_of(on("x", then=self.second), timeout=DAY, on_timeout=self.s5)
                or for_signal("x", then=self.s6)
                or aioflow.waits.wait.for_signal("x", then=self.s7)
            )

    written = ["wait.for_signal(then=)", "wait.any(on_timeout=)", "wait.for_signal(then=)", "on(then=)", "on(then=)",
               "wait.any(on_timeout=)", "wait.for_signal(then=)", "wait.for_signal(then=)"]  # fmt: skip
    found = refusal(Order)
    assert unknown(written[number], f"s{number}") in found
    assert len(found) == len(written)


def test_a_local_import_is_not_read() -> None:
    """A name that is imported within the step is not taken for aioflow's."""

    class Order(Base):
        @step(start=True)
        def first(self) -> Command:
            from aioflow import on as my_on
            from aioflow import wait as my_wait

            return my_wait.any(my_on("x", then=self.nowhere), timeout=DAY)

    accepted(Order)


def test_something_else_called_wait_is_not_read() -> None:
    """A parameter, variable or attribute called wait or on is not taken for aioflow's."""

    class Order(Base):
        wait: Any = None
        on: Any = None

        @step(start=True)
        def first(self, wait: Any = None) -> Command:
            self.wait.for_signal("x", then=self.nowhere)
            self.on("x", then="nowhere")
            wait.any(then="nowhere", timeout=3)
            return complete()

    accepted(Order)


# ---- arguments of steps


def test_a_step_that_needs_arguments_is_no_target_of_what_gives_none() -> None:
    """A step that needs arguments is refused as a target of goto, sleep or any on_timeout, which give none."""

    class Order(Base):
        @step(start=True)
        def first(self) -> Command:
            return (
                goto(self.ship)
                or sleep(DAY, then="ship")
                or wait.for_signal("x", timeout=DAY, on_timeout=self.ship, then=self.ship)
                or wait.any(on("x", then=self.ship), timeout=DAY, on_timeout="ship")
            )

        @step
        def ship(self, address: str, note: str = "") -> Command:
            return complete()

    needs = "names 'ship', which needs the arguments address. Only what resumes a wait gives arguments."
    assert set(refusal(Order, timeout=DAY, on_timeout="ship")) == {
        f"step 'first': {written} {needs}"
        for written in ("goto()", "sleep(then=)", "wait.for_signal(on_timeout=)", "wait.any(on_timeout=)")
    } | {f"@workflow(on_timeout=) {needs}"}


def test_a_step_whose_arguments_have_defaults_is_a_target() -> None:
    """A step whose arguments all have defaults may be any target."""

    class Order(Base):
        @step(start=True)
        def first(self) -> Command:
            return (
                goto(self.ship)
                or sleep(DAY, then=self.ship)
                or wait.for_signal("x", timeout=DAY, on_timeout=self.ship, then=self.ship)
            )

        @step
        def ship(self, paid: Paid | None = None, failure: Failure | None = None, **rest: Any) -> Command:
            return complete()

    accepted(Order, on_fail="ship", timeout=DAY, on_timeout="ship")


def test_an_on_fail_gets_a_failure_and_nothing_else() -> None:
    """An on_fail step that needs more than a Failure is refused."""

    class Order(Base):
        @step(start=True, on_fail="mend")
        def first(self) -> Command:
            return complete()

        @step
        def mend(self, failure: Failure, amount: int) -> Command:
            return complete()

    needs = "names 'mend', which needs more than a 'failure: Failure'. Give the rest defaults."
    assert set(refusal(Order, on_fail="mend")) == {
        f"@step(on_fail=) of step 'first' {needs}",
        f"@workflow(on_fail=) {needs}",
    }


def test_a_step_that_needs_a_failure_is_not_gone_to() -> None:
    """A step that needs a Failure is refused as a target of goto or any on_timeout."""

    class Order(Base):
        @step(start=True)
        def first(self) -> Command:
            return goto("mend") or wait.for_signal("x", timeout=DAY, on_timeout=self.mend, then=self.end)

        @step
        def mend(self, failure: Failure) -> Command:
            return complete()

        @step
        def end(self) -> Command:
            return complete()

    needs = (
        "names 'mend', which needs the arguments failure. Only what resumes a wait gives arguments. "
        "Where not only an on_fail leads there, write failure: Failure | None = None."
    )
    assert set(refusal(Order, on_fail="mend", timeout=DAY, on_timeout="mend")) == {
        f"step 'first': goto() {needs}",
        f"step 'first': wait.for_signal(on_timeout=) {needs}",
        f"@workflow(on_timeout=) {needs}",
    }


def test_a_signal_s_payload_may_be_anything() -> None:
    """A wait for a signal by name may lead to a step that needs any arguments, as the payload is not known."""

    class Order(Base):
        @step(start=True)
        def first(self) -> Command:
            return wait.for_signal("x") or wait.any(on("y", then=self.ship))

        @step
        def ship(self, address: str, paid: Paid) -> Command:
            return complete()

    accepted(Order)


def test_a_message_has_to_be_all_that_a_step_needs() -> None:
    """A wait for a message is refused if its step needs another model, or anything besides the message."""

    class Order(Base):
        @step(start=True)
        def first(self) -> Command:
            return wait.for_signal(Paid, then=self.more) or wait.any(on(Sent, then=self.one)) or wait.for_signal(Sent)

        @step
        def one(self, paid: Paid) -> Command:
            return complete()

        @step
        def more(self, paid: Paid, *, by: str) -> Command:
            return complete()

    assert set(refusal(Order)) == {
        "step 'first': wait.for_signal(then=) names 'more', which needs the arguments paid, by; a Paid is all it will get.",
        "step 'first': on(then=) names 'one', which needs the arguments paid; a Sent is all it will get.",
        "step 'first' waits and goes on with 'one', which needs the arguments paid; a Sent is all it will get.",
    }


def test_an_event_has_to_be_all_that_a_step_needs() -> None:
    """A wait for an event is refused if its step needs what no event gives."""

    class Order(Base):
        @step(start=True)
        def first(self) -> Command:
            return (
                wait_for_event("paid", then=self.more)
                or wait.any(on.event("paid", then=self.model))
                or wait_for_event("paid")
            )

        @step
        def model(self, paid: Paid) -> Command:
            return complete()

        @step
        def more(self, event: Event, *, by: str) -> Command:
            return complete()

    advice = "All that it gets of an event is event: Event. Give the rest defaults, or read the Context."
    assert set(refusal(Order)) == {
        f"step 'first': wait_for_event(then=) names 'more', which needs the arguments by. {advice}",
        f"step 'first': on.event(then=) names 'model', which needs the arguments paid. {advice}",
        f"step 'first' waits and goes on with 'model', which needs the arguments paid. {advice}",
    }


def test_an_event_may_go_to_whoever_takes_it() -> None:
    """An event may go to a step with an Event, its ids, defaults or a Failure, to an action or to a computed step."""

    class Order(Base):
        @step(start=True)
        def first(self) -> Command:
            computed = "more"
            return (
                wait_for_event("paid", then=self.what)
                or wait.any(
                    on.event("paid", then=self.ids), on.event("paid", then=self.failed), on.event("paid", then=self.act)
                )
                or wait.any(on.event("paid", then=computed), on.event("sent", then=self.second))
            )

        @step
        def what(self, occurred: Event, note: str = "") -> Command:
            return complete()

        @step
        def ids(self, event_id: str, entity_id: str | None, event_name: str, event: Any) -> Command:
            return complete()

        @step
        def failed(self, event: Event, failure: Failure) -> Command:
            return complete()

        @step
        def more(self, by: str) -> Command:
            return complete()

        @action()
        def act(self, by: str) -> Command:
            return complete()

    accepted(Order)


def test_a_message_may_go_to_whoever_takes_it() -> None:
    """A message may go to a step that takes its type or anything, or has no parameters."""

    class Order(Base):
        @step(start=True)
        def first(self) -> Command:
            return wait.for_signal(Paid) or wait.any(
                on(Paid, then=self.optional), on(Paid, key="k", then=self.untyped), on(Paid, then=self.second)
            )

        @step
        def typed(self, paid: Paid, note: str = "") -> Command:
            return complete()

        @step
        def optional(self, paid: Paid | None = None) -> Command:
            return complete()

        @step
        def untyped(self, paid) -> Command:
            return complete()

    accepted(Order)


def test_a_model_of_an_enclosing_function_is_read() -> None:
    """The model of a wait may be a class from an enclosing function."""

    class Local(BaseModel):
        pass

    class Order(Base):
        @step(start=True)
        def first(self) -> Command:
            return wait.for_signal(Local, then=self.one)

        @step
        def one(self, paid: Paid) -> Command:
            return complete()

    assert refusal(Order) == (
        "step 'first': wait.for_signal(then=) names 'one', which needs the arguments paid; a Local is all it will get.",
    )


def test_a_model_that_a_wait_names_is_known_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message is read as the model that the class's waits name, even in a process that has not used the model yet."""
    monkeypatch.setattr(arguments, "_seen", {})

    class Order(Base):
        @step(start=True)
        def first(self) -> Command:
            return wait.any(on(Paid, then=self.one)) or wait.for_signal(Paid)

        @step
        def one(self, paid: Hidden) -> Command:
            return complete()

    accepted(Order)
    filled = definition_of(Order).steps["one"].parameters.fill(Resumption("message", "Paid", {"amount": 3}), None)
    assert filled == {"paid": Paid(amount=3)}


def test_a_message_may_go_to_whoever_takes_its_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message may go to a step that takes a base class, even in a process that has not used its model yet."""
    monkeypatch.setattr(arguments, "_seen", {})

    class PaidTwice(Paid):
        second: int = 0

    class Order(Base):
        @step(start=True)
        def first(self) -> Command:
            return wait.any(on(PaidTwice, then=self.one)) or wait.for_signal(PaidTwice)

        @step
        def one(self, paid: Paid) -> Command:
            return complete()

    accepted(Order)
    filled = definition_of(Order).steps["one"].parameters.fill(Resumption("message", "PaidTwice", {"second": 3}), None)
    assert filled == {"paid": PaidTwice(second=3)}


@pytest.mark.parametrize("start", [True, False])
def test_positional_only_parameters_are_refused(start: bool) -> None:
    """A step with positional-only parameters is refused, whether it is the start step or not."""

    class Order(Base):
        if not start:

            @step(start=True)
            def begin(self) -> Command:
                return wait.for_signal("x")

        @step(start=start)
        def first(self, amount: int, /, note: str = "") -> Command:
            return complete()

    assert refusal(Order) == ("step 'first' takes amount by position only. Leave out the '/'.",)


def test_a_start_step_takes_what_has_defaults() -> None:
    """A start step may have parameters with defaults, but none that it needs."""

    class Good(Base):
        @step(start=True)
        def first(self, amount: int = 0, *, failure: Failure | None = None) -> Command:
            return complete()

    class Bad(Base):
        @step(start=True)
        def first(self, amount: int, *, failure: Failure) -> Command:
            return complete()

    accepted(Good)
    assert refusal(Bad) == (
        "step 'first' needs the arguments amount, failure. A start step takes self alone: read the Context.",
    )
