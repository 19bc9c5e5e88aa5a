"""The text of every error: it says exactly what happened and what to do."""

from __future__ import annotations

import builtins
import inspect
import re
from typing import Any, NamedTuple

import pytest

from aioflow import errors


class Row(NamedTuple):
    """An error, its expected text, and its expected attributes."""

    error: errors.AioflowError
    text: str
    attributes: dict[str, Any]


ROWS = [
    Row(errors.AioflowError("It went wrong."), "It went wrong.", {}),
    Row(
        errors.DefinitionError("shop.Order", iter(["It has no start step.", "It has no Context."])),
        "Workflow class shop.Order cannot be used:\n  - It has no start step.\n  - It has no Context.",
        {"where": "shop.Order", "problems": ("It has no start step.", "It has no Context.")},
    ),
    Row(errors.UsageError("Not like this."), "Not like this.", {}),
    Row(
        errors.EngineClosed("start()"),
        "start() needs an open engine. Write 'async with engine:' around it, use engine.lifespan in an ASGI app, "
        "or run the service with 'await engine.run_forever()'.",
        {"call": "start()"},
    ),
    Row(
        errors.OtherLoop("engine.start()"),
        "engine.start() was called in another event loop than the one that opened the engine, perhaps in another thread. "
        "Nothing was done. From a thread: asyncio.run_coroutine_threadsafe(engine.start(...), loop).result(), with the loop "
        "that opened it.",
        {"call": "engine.start()"},
    ),
    Row(
        errors.OtherLoop("engine.watch()"),
        "engine.watch() was called in another event loop than the one that opened the engine, perhaps in another thread. "
        "Nothing was done. 'async for ... in engine.watch(...)' has to run in the loop that opened it. From a thread: write "
        "it into a coroutine, and asyncio.run_coroutine_threadsafe(coroutine, loop).result().",
        {"call": "engine.watch()"},
    ),
    Row(
        errors.WorkflowUnknown("order", version="2"),
        "No workflow 'order' version '2' is known to this engine. "
        "Import the module that defines it, or add the class to Engine(workflows=[...]).",
        {"workflow": "order", "version": "2"},
    ),
    Row(
        errors.WorkflowUnknown("ordr", ["refund", "order", "order"]),
        "No workflow 'ordr' is known to this engine (known: order, refund). "
        "Import the module that defines it, or add the class to Engine(workflows=[...]).",
        {"workflow": "ordr", "version": None},
    ),
    Row(
        errors.WorkflowUnknown("order", []),
        "No workflow 'order' is known to this engine (known: none). "
        "Import the module that defines it, or add the class to Engine(workflows=[...]).",
        {"workflow": "order", "version": None},
    ),
    Row(
        errors.WorkflowUnknown("order", ["order"], "2"),
        "No workflow 'order' version '2' is known to this engine (known: order). "
        "Import the module that defines it, or add the class to Engine(workflows=[...]).",
        {"workflow": "order", "version": "2"},
    ),
    Row(
        errors.TimeStandsStill(["run 1 waits for signal 'paid', at step 'pay'", "run 2 is blocked: no code"]),
        "This wait cannot end: nothing goes on, and no timer is set that could bring it about."
        "\n  - run 1 waits for signal 'paid', at step 'pay'\n  - run 2 is blocked: no code\n"
        "Do what it waits for before you wait, or in another task meanwhile, or give the wait a timeout.",
        {"stuck": ("run 1 waits for signal 'paid', at step 'pay'", "run 2 is blocked: no code")},
    ),
    Row(
        errors.ContextInvalid("order", "total: Field required"),
        "These arguments do not make a Context of workflow 'order': total: Field required",
        {"workflow": "order"},
    ),
    Row(
        errors.ContextInvalid("order", "total: Field required", 7),
        "What run 7 has stored does not make a Context of workflow 'order': total: Field required",
        {"workflow": "order"},
    ),
    Row(
        errors.WorkflowUnknown("order", version="2", replaced_by="shop.Order"),
        "This class is no longer workflow 'order' version '2': shop.Order has replaced it. It was defined again, as by a "
        "script that is also imported. Define it in a module, and import that.",
        {"workflow": "order", "version": "2"},
    ),
    Row(
        errors.SignalInvalid("paid", "amount: Input should be a valid integer"),
        "Signal 'paid' cannot be sent: amount: Input should be a valid integer",
        {"signal": "paid"},
    ),
    Row(
        errors.ActionInputInvalid("review", "approved: Field required"),
        "Action 'review' cannot be called with this input: approved: Field required",
        {"action": "review"},
    ),
    Row(
        errors.EventInvalid("paid", "its entity cannot be stored: total: Field required"),
        "Event 'paid' is not usable: its entity cannot be stored: total: Field required",
        {"event": "paid"},
    ),
    Row(
        errors.IdTaken("event_id", "7", "an event 'paid'"),
        "event_id '7' is already used for an event 'paid'. It must be unique in the whole store: derive it from its purpose, "
        'as in f"paid-{order_id}".',
        {"name": "event_id", "id": "7"},
    ),
    Row(
        errors.EventNotFound("order-1"),
        "There is no event 'order-1' in this store. It was never emitted here.",
        {"event_id": "order-1"},
    ),
    Row(errors.RunError(7, "Run 7 is odd."), "Run 7 is odd.", {"run_id": 7}),
    Row(
        errors.RunNotFound(7),
        "There is no run 7 in this store. Is it the store in which the run was started?",
        {"run_id": 7, "workflow": None, "key": None},
    ),
    Row(
        errors.RunNotFound(workflow="order", key="order-1"),
        "There is no run of workflow 'order' with key 'order-1' in this store.",
        {"run_id": 0, "workflow": "order", "key": "order-1"},
    ),
    Row(
        errors.RunEnded(7, "order", "completed"),
        "Run 7 of workflow 'order' has ended (completed): it takes no signals.",
        {"run_id": 7, "workflow": "order", "status": "completed"},
    ),
    Row(
        errors.ActionNotOpen(7, "order", "review", "waiting", "ask", ["refund", "cancel"]),
        "Action 'review' is not open on run 7 of workflow 'order', which is waiting at step 'ask' (open actions: 'refund', "
        "'cancel'). It can be called once a 'goto' leads to it, or a wait has it as an arm.",
        {"run_id": 7, "workflow": "order", "action": "review", "status": "waiting"},
    ),
    Row(
        errors.ActionNotOpen(7, "order", "review", "completed", "ship", []),
        "Action 'review' is not open on run 7 of workflow 'order', which is completed at step 'ship' (open actions: none). "
        "It can be called once a 'goto' leads to it, or a wait has it as an arm.",
        {"run_id": 7, "workflow": "order", "action": "review", "status": "completed"},
    ),
    Row(
        errors.ActionFailed(7, "order", "review", "ValueError: no"),
        "Action 'review' of workflow 'order' failed on run 7: ValueError: no",
        {"run_id": 7, "workflow": "order", "action": "review", "error": "ValueError: no"},
    ),
    Row(
        errors.RunTimeout(7, "order", "pay"),
        "Run 7 of workflow 'order' was out of time at step 'pay'.",
        {"run_id": 7, "workflow": "order", "step": "pay"},
    ),
    Row(
        errors.RunFailed(7, "order", "pay", "card declined"),
        "Run 7 of workflow 'order' failed in step 'pay': card declined",
        {"run_id": 7, "workflow": "order", "step": "pay", "error": "card declined"},
    ),
    Row(
        errors.RunCancelled(7, "order", "pay", "the customer left"),
        "Run 7 of workflow 'order' was cancelled at step 'pay': the customer left",
        {"run_id": 7, "workflow": "order", "step": "pay", "reason": "the customer left"},
    ),
    Row(
        errors.RunCancelled(7, "order", "pay", None),
        "Run 7 of workflow 'order' was cancelled at step 'pay'.",
        {"run_id": 7, "workflow": "order", "step": "pay", "reason": None},
    ),
    Row(
        errors.StepError(7, "order", "pay", "is odd."),
        "Step 'pay' of workflow 'order' (run 7) is odd.",
        {"run_id": 7, "workflow": "order", "step": "pay"},
    ),
    Row(
        errors.NoCommand(7, "order", "pay", "None"),
        "Step 'pay' of workflow 'order' (run 7) returned None, not a command. Return what happens next: "
        "'return goto(self.next_step)', 'return sleep(...)', 'return wait.for_signal(...)', 'return complete()' or "
        "'return fail(reason)'.",
        {"run_id": 7, "workflow": "order", "step": "pay", "returned": "None"},
    ),
    Row(
        errors.CommandAwaited(7, "order", "pay", "goto"),
        "Step 'pay' of workflow 'order' (run 7) awaited goto(...). "
        "A command takes effect when the step returns it: write 'return goto(...)'.",
        {"run_id": 7, "workflow": "order", "step": "pay"},
    ),
    Row(
        errors.TargetUnknown(7, "order", "pay", "'shpi'", "goto", ["pay", "ship"]),
        "Step 'pay' of workflow 'order' (run 7) returned goto with the target 'shpi', "
        "which is no step of it (steps: pay, ship). goto() takes a step of the same workflow.",
        {"run_id": 7, "workflow": "order", "step": "pay", "target": "'shpi'"},
    ),
    Row(
        errors.NotAnAction(7, "order", "pay", "'ship'"),
        "Step 'pay' of workflow 'order' (run 7) returned a wait with on('ship'), which is no action, so that nobody could "
        "call it. Add @action() to it.",
        {"run_id": 7, "workflow": "order", "step": "pay", "target": "'ship'"},
    ),
    Row(
        errors.NoNextStep(7, "order", "pay"),
        "Step 'pay' of workflow 'order' (run 7) returned a wait, and no step is declared after it for the run to go on "
        "with. Say then=.",
        {"run_id": 7, "workflow": "order", "step": "pay"},
    ),
    Row(
        errors.RequestNotKept(7, "order", "pay"),
        "Step 'pay' of workflow 'order' (run 7) returned sleep() without then=: it would run again without the request "
        "that called it, which is not stored. Say then=, and keep in the Context what that step needs.",
        {"run_id": 7, "workflow": "order", "step": "pay"},
    ),
    Row(
        errors.ArgumentsMissing(7, "order", "pay", "nothing gives its parameter amount."),
        "Step 'pay' of workflow 'order' (run 7) cannot be called: nothing gives its parameter amount.",
        {"run_id": 7, "workflow": "order", "step": "pay"},
    ),
    Row(
        errors.ContextNotStorable(7, "order", "pay", "total: 10 came back as '10'"),
        "Step 'pay' of workflow 'order' (run 7) left a Context that cannot be stored: total: 10 came back as '10'",
        {"run_id": 7, "workflow": "order", "step": "pay"},
    ),
    Row(
        errors.UndeclaredField(7, "order", "pay", "Order.Context", "totl", ["total", "paid"]),
        "Step 'pay' of workflow 'order' (run 7) assigned 'totl', which Order.Context does not declare "
        "(fields: total, paid). Declare the field, or mend the spelling.",
        {"run_id": 7, "workflow": "order", "step": "pay", "field": "totl"},
    ),
    Row(
        errors.UndeclaredField(7, "order", "pay", "Order.Context", "total", []),
        "Step 'pay' of workflow 'order' (run 7) assigned 'total', which Order.Context does not declare "
        "(fields: none). Declare the field, or mend the spelling.",
        {"run_id": 7, "workflow": "order", "step": "pay", "field": "total"},
    ),
    Row(
        errors.StepTimeout("order", "pay", 30.0),
        "Step 'pay' of workflow 'order' ran longer than its timeout of 30 s.",
        {"seconds": 30.0},
    ),
    Row(
        errors.LimitExceeded("StartOptions(key=...)", "200 characters", "it has 201"),
        "StartOptions(key=...) is beyond the limit of 200 characters: it has 201.",
        {"limit": "200 characters"},
    ),
    Row(errors.StoreError("The store said no."), "The store said no.", {}),
    Row(
        errors.StoreUnavailable("sqlite:///aioflow.db", "disk I/O error"),
        "The store sqlite:///aioflow.db is not available: disk I/O error.",
        {"store": "sqlite:///aioflow.db"},
    ),
    Row(
        errors.StoreUnavailable("sqlite:///aioflow.db", "its schema is newer", "Update aioflow-engine."),
        "The store sqlite:///aioflow.db is not available: its schema is newer. Update aioflow-engine.",
        {"store": "sqlite:///aioflow.db"},
    ),
    Row(
        errors.StoreRefused("sqlite:///aioflow.db", "string or blob too big"),
        "The store sqlite:///aioflow.db cannot hold this data: string or blob too big.",
        {"store": "sqlite:///aioflow.db"},
    ),
    Row(
        errors.BackendUnknown("postgres", ["sqlite", "memory"], " Try this."),
        "No backend is installed for postgres:// URLs (installed: memory, sqlite). Try this.",
        {"scheme": "postgres"},
    ),
    Row(
        errors.BackendUnknown("sqlite", []),
        "No backend is installed for sqlite:// URLs (installed: none).",
        {"scheme": "sqlite"},
    ),
    Row(
        errors.InternalError("Run 7 has two owners."),
        "Run 7 has two owners. This is a bug in aioflow: please report it.",
        {},
    ),
]

CLASSES = [
    value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and value.__module__ == errors.__name__ and not name.startswith("_")
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: type(row.error).__name__)
def test_an_error_says_what_happened(row: Row) -> None:
    """Each error has exactly this text and these attributes."""
    assert str(row.error) == row.text
    assert vars(row.error) == row.attributes


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_class_has_a_row(cls: type[errors.AioflowError]) -> None:
    """The text of every public error is tested above."""
    assert cls in {type(row.error) for row in ROWS}, f"{cls.__name__} needs a row in ROWS"


def test_the_drawn_tree_is_the_tree_of_the_classes() -> None:
    """The tree in the module's docstring has every class under its base, with the builtin that it also derives from."""
    drawn: dict[str, tuple[str, ...]] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if found := re.fullmatch(r" {4}([│ ├└─]*)([A-Z]\w+)(?: .*?(?:\(also an? (\w+)\))?)?", line):
            bars, name, also = found.groups()
            del above[len(bars) // 4 :]
            drawn[name] = (*above[-1:], *([also] if also else []))
            above.append(name)
    drawn["AioflowError"] = ("Exception",)
    assert drawn == {cls.__name__: tuple(base.__name__ for base in cls.__bases__) for cls in CLASSES}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_one_except_catches_them_all(cls: type[errors.AioflowError]) -> None:
    """Every error is an AioflowError, has a docstring, and hides no builtin."""
    assert issubclass(cls, errors.AioflowError)
    assert cls.__doc__
    assert not hasattr(builtins, cls.__name__)
