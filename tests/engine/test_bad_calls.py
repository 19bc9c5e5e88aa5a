"""Every call of an engine with wrong arguments, and every call of a closed one, is refused with the reason."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, TypeAlias

import pytest
from pydantic import BaseModel

from aioflow import Engine, StartOptions, complete, errors, step, wait, workflow
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine


@workflow("bad-calls")
class Known:
    """A workflow that the engine knows."""

    class Context(BaseModel):
        amount: int = 0

    @step(start=True)
    async def first(self) -> Command:
        return wait.for_signal("go", then=self.end)

    @step
    async def end(self) -> Command:
        return complete()


class Stranger:
    """A class that is no workflow."""


class Message(BaseModel):
    """A message."""

    amount: float = 0


async def _all(engine: Engine, **filters: Any) -> list[Any]:
    return [run async for run in engine.iter_runs(**filters)]


Row: TypeAlias = tuple[Callable[[Any], Awaitable[Any]], type[Exception], str]
NAIVE = datetime(2030, 1, 1)  # noqa: DTZ001 - what is to be refused
HUGE = "x" * 201
LARGE = "x" * (1 << 20)
DAY = timedelta(days=1)

ROWS: dict[str, Row] = {
    # ---- start
    "start: no workflow": (lambda e: e.start(Stranger), TypeError, "Stranger is no workflow. Pass a class decorated"),
    "start: a number": (lambda e: e.start(3), TypeError, "an instance of int is no workflow."),
    "start: unknown": (lambda e: e.start("nobody"), errors.WorkflowUnknown, "No workflow 'nobody' is known to this"),
    "start: options": (lambda e: e.start(Known, {"key": "k"}), TypeError, "takes StartOptions(...) after the workflow"),
    "start: by position": (lambda e: e.start(Known, StartOptions(), 3), TypeError, "Context's values as keywords"),
    "start: keyword": (lambda e: e.start(Known, key="k"), TypeError, "go into StartOptions(...), before them."),
    "start: value": (lambda e: e.start(Known, amount="x"), errors.ContextInvalid, "amount: Input should be a valid"),
    "start: empty": (lambda e: e.start(""), errors.WorkflowUnknown, "No workflow '' is known to this engine (known: "),
    "start: long": (lambda e: e.start("x" * (1 << 26)), errors.WorkflowUnknown, "x'... is known to this engine"),
    "start: no key": (lambda e: e.start(Known, StartOptions(key="")), ValueError, "(key=...) must not be empty."),
    "start: reuse": (
        lambda e: e.start(Known, StartOptions(key="k", reuse="x")),
        ValueError,
        "takes 'never', 'ended' or",
    ),
    "start: negative": (
        lambda e: e.start(Known, StartOptions(delay=-DAY)),
        ValueError,
        "(delay=...) must not be negative",
    ),
    "start: a delay": (lambda e: e.start(Known, StartOptions(delay=3)), TypeError, "takes a timedelta, got int."),
    "start: naive": (
        lambda e: e.start(Known, StartOptions(start_at=NAIVE)),
        ValueError,
        "Write datetime(..., tzinfo=UTC)",
    ),
    "start_run: options": (
        lambda e: e.start_run(Known, {}, {}),
        TypeError,
        "takes StartOptions(...) after the workflow",
    ),
    "start_run: value": (
        lambda e: e.start_run(Known, StartOptions(), {"amount": "x"}, from_json=True),
        errors.ContextInvalid,
        "amount: Input should be a valid",
    ),
    # ---- one run
    "get: a string": (lambda e: e.get("1"), TypeError, "A run's id is an int, got str."),
    "get: a bool": (lambda e: e.get(True), TypeError, "A run's id is an int, got bool."),
    "get: unknown": (lambda e: e.get(10**6), errors.RunNotFound, "There is no run 1000000 in this store."),
    "get: beyond": (lambda e: e.get(2**53), errors.RunNotFound, "There is no run 9007199254740992 in this store."),
    "get: negative": (
        lambda e: e.get(-1),
        errors.RunNotFound,
        "There is no run -1 in this store. Is it the store in which",
    ),
    "find: no key": (lambda e: e.find(Known, None), TypeError, "find(key) takes a string, got NoneType."),
    "find: empty": (lambda e: e.find(Known, ""), ValueError, "find(key) must not be empty."),
    "find: long": (lambda e: e.find(Known, HUGE), errors.LimitExceeded, "find(key) is beyond the limit of 200"),
    "find: unknown": (lambda e: e.find(Known, "k"), errors.RunNotFound, "no run of workflow 'bad-calls' with key 'k'"),
    "history: id": (lambda e: e.history(None), TypeError, "A run's id is an int, got NoneType."),
    "history: unknown": (lambda e: e.history(9), errors.RunNotFound, "There is no run 9 in this store."),
    "history: after": (lambda e: e.history(1, after="x"), TypeError, "history(after=...) takes a seq as an int"),
    "history: limit": (lambda e: e.history(1, limit=0), ValueError, "limit must be from 1 to 10000, got 0."),
    "cancel: id": (lambda e: e.cancel("1"), TypeError, "A run's id is an int, got str."),
    "cancel: unknown": (lambda e: e.cancel(9), errors.RunNotFound, "There is no run 9 in this store."),
    "cancel: reason": (lambda e: e.cancel(1, 3), TypeError, "cancel(reason) takes a string, got int."),
    "wait: id": (lambda e: e.wait(1.0), TypeError, "A run's id is an int, got float."),
    "wait: unknown": (lambda e: e.wait(9), errors.RunNotFound, "There is no run 9 in this store."),
    "wait: timeout": (lambda e: e.wait(1, "5"), TypeError, "timeout takes seconds or a timedelta, got str."),
    "wait: negative": (lambda e: e.wait(1, -1), ValueError, "timeout must not be negative, got -1."),
    "wait: NaN": (lambda e: e.wait(1, float("nan")), ValueError, "timeout must not be negative, got nan."),
    "wait: until": (lambda e: e.wait(1, until="done"), ValueError, "takes 'ended' or 'parked', got 'done'."),
    "result: id": (lambda e: e.result(""), TypeError, "A run's id is an int, got str."),
    "result: unknown": (lambda e: e.result(9), errors.RunNotFound, "There is no run 9 in this store."),
    # ---- many runs
    "runs: filter": (lambda e: e.runs(colour="red"), TypeError, "runs() has no filter 'colour' (filters: workflow,"),
    "runs: status": (lambda e: e.runs(status="done"), ValueError, "runs(status=...) takes one of running, waiting, "),
    "runs: waiting for": (
        lambda e: e.runs(waiting_for="timer"),
        ValueError,
        "runs(waiting_for=...) takes one of sleep, signal, event, action, retry, start, blocked; got 'timer'.",
    ),
    "runs: step": (lambda e: e.runs(step=3), TypeError, "runs(step=...) takes a string or several, got int."),
    "runs: signal": (lambda e: e.runs(waiting_signal=3), TypeError, "runs(waiting_signal=...) takes a string or"),
    "runs: key": (lambda e: e.runs(waiting_key=[None]), TypeError, "runs(waiting_key=...) takes a string or several"),
    "runs: naive": (lambda e: e.runs(created_after=NAIVE), ValueError, "runs(created_after=...) must be aware"),
    "runs: order": (lambda e: e.runs(order="amount"), ValueError, "runs(order=...) takes one of id, -id,"),
    "runs: limit": (lambda e: e.runs(limit=True), TypeError, "limit takes an int, got bool."),
    "runs: after": (lambda e: e.runs(after="x"), TypeError, "A run's id is an int, got str."),
    "runs: data": (lambda e: e.runs(data={"at": NAIVE}), TypeError, "takes values as JSON has them, got datetime"),
    "runs: workflow": (lambda e: e.runs(workflow=Stranger), TypeError, "Stranger is no workflow."),
    "iter_runs: filter": (lambda e: _all(e, colour="red"), TypeError, "iter_runs() has no filter 'colour'"),
    "count: filter": (lambda e: e.count(colour="red"), TypeError, "count() has no filter 'colour'"),
    # ---- signals
    "signal: name": (lambda e: e.signal(3), TypeError, "signal(name) takes a string, got int."),
    "signal: empty": (lambda e: e.signal(""), ValueError, "signal(name) must not be empty."),
    "signal: a class": (lambda e: e.signal(Message), TypeError, "not its class: write signal(Message(...))."),
    "signal: both": (lambda e: e.signal(Message(), {}), TypeError, "Message is the message itself."),
    "signal: payload": (lambda e: e.signal("x", [1]), TypeError, "signal(payload) takes a mapping, got list."),
    "signal: model": (lambda e: e.signal("x", Message()), TypeError, "Write signal(Message(...)) for a message."),
    "signal: keys": (lambda e: e.signal("x", {1: 2}), TypeError, "a key of its payload takes a string, got int."),
    "signal: NaN": (lambda e: e.signal("x", {"a": float("nan")}), errors.LimitExceeded, "nan at a."),
    "signal: object": (lambda e: e.signal("x", {"a": object()}), errors.SignalInvalid, "Signal 'x' cannot be sent:"),
    "signal: id": (lambda e: e.signal("x", run_id="1"), TypeError, "A run's id is an int, got str."),
    "signal: unknown": (lambda e: e.signal("x", run_id=9), errors.RunNotFound, "There is no run 9 in this store."),
    "signal: two": (lambda e: e.signal("x", run_id=1, key="k"), TypeError, "takes run_id=, or key= (and workflow=)"),
    "signal: workflow": (lambda e: e.signal("x", workflow=Known), TypeError, "signal(workflow=...) needs key="),
    "signal: stranger": (lambda e: e.signal("x", workflow=Stranger, key="k"), TypeError, "Stranger is no workflow."),
    "signal: nobody": (lambda e: e.signal("x", workflow=Known, key="k"), errors.RunNotFound, "with key 'k' in this"),
    "signal: key": (lambda e: e.signal("x", key=HUGE), errors.LimitExceeded, "signal(key=...) is beyond the limit"),
    "signal: signal_id": (lambda e: e.signal("x", signal_id=3), TypeError, "signal(signal_id=...) takes a string"),
    "signal: ttl": (lambda e: e.signal("x", key="k", ttl=3), TypeError, "signal(ttl=...) takes a timedelta, got int."),
    "signal: negative": (
        lambda e: e.signal("x", key="k", ttl=-DAY),
        ValueError,
        "signal(ttl=...) must not be negative",
    ),
    "signal: no key": (lambda e: e.signal("x", key=""), ValueError, "signal(key=...) must not be empty."),
    "signal: large": (lambda e: e.signal("x", {"a": LARGE}), errors.LimitExceeded, "1048576 bytes of JSON: it has"),
    "signal: no ttl": (lambda e: e.signal("x", key="k", ttl=timedelta()), ValueError, "must be longer than zero."),
    # ---- events
    "emit: name": (lambda e: e.emit(3), TypeError, "emit(name) takes a string, got int."),
    "emit: empty": (lambda e: e.emit(""), ValueError, "emit(name) must not be empty."),
    "emit: long": (lambda e: e.emit(HUGE), errors.LimitExceeded, "emit(name) is beyond the limit of 200 characters"),
    "emit: a message": (lambda e: e.emit(Message()), TypeError, "emit(name) takes a string, got Message."),
    "emit: large": (lambda e: e.emit("x", {"a": LARGE}), errors.LimitExceeded, "1048576 bytes of JSON: it has"),
    "emit: keys": (lambda e: e.emit("x", {1: 2}), TypeError, "Event 'x': a key of its entity takes a string, got int."),
    "emit: no id": (lambda e: e.emit("x", entity_id=""), ValueError, "emit(entity_id=...) must not be empty."),
    "emit: a time": (lambda e: e.emit("x", at="now"), TypeError, "emit(at=...) takes an aware datetime, got str."),
    "emit: a number": (lambda e: e.emit("x", event_id="e", replace=1), TypeError, "emit(replace=...) takes a bool"),
    "emit: entity": (
        lambda e: e.emit("x", [1]),
        TypeError,
        "a pydantic model, a dataclass, a mapping or None, got list.",
    ),
    "emit: a class": (lambda e: e.emit("x", Message), TypeError, "not its class: write emit(name, Message(...))."),
    "emit: object": (lambda e: e.emit("x", {"a": object()}), errors.EventInvalid, "its entity cannot be stored:"),
    "emit: NaN": (lambda e: e.emit("x", {"a": float("nan")}), errors.LimitExceeded, "nan at a."),
    "emit: entity_id": (lambda e: e.emit("x", entity_id=1.5), TypeError, "a str, an int or a UUID, got float."),
    "emit: at": (lambda e: e.emit("x", at=NAIVE), ValueError, "emit(at=...) must be aware"),
    "emit: namespace": (lambda e: e.emit("x", namespace=""), ValueError, "emit(namespace=...) must not be empty."),
    "emit: event_id": (lambda e: e.emit("x", event_id=HUGE), errors.LimitExceeded, "emit(event_id=...) is beyond"),
    "emit: replace": (lambda e: e.emit("x", replace=True), TypeError, "emit(replace=True) needs event_id="),
    "cancel_event: id": (lambda e: e.cancel_event(3), TypeError, "cancel_event(event_id) takes a string, got int."),
    "cancel_event: empty": (lambda e: e.cancel_event(""), ValueError, "cancel_event(event_id) must not be empty."),
    "cancel_event: long": (lambda e: e.cancel_event(HUGE), errors.LimitExceeded, "cancel_event(event_id) is beyond"),
    "cancel_event: runs": (lambda e: e.cancel_event("x", runs=1), TypeError, "cancel_event(runs=...) takes a bool"),
    "cancel_event: unknown": (
        lambda e: e.cancel_event("x"),
        errors.EventNotFound,
        "There is no event 'x' in this store.",
    ),
    "events: id": (
        lambda e: e.events(event_id=3),
        TypeError,
        "events(event_id=...) takes a string or several, got int.",
    ),
    "events: long": (lambda e: e.events(event_id=[HUGE]), errors.LimitExceeded, "events(event_id=...) is beyond the"),
    "events: NUL": (lambda e: e.events(name="\0"), errors.LimitExceeded, "events(name=...) is beyond the limit of"),
    "events: surrogate": (lambda e: e.events(namespace="\ud800"), errors.LimitExceeded, "it holds a lone surrogate."),
    "events: name": (lambda e: e.events(name=["a", 3]), TypeError, "events(name=...) takes a string or several"),
    "events: namespace": (lambda e: e.events(namespace=Known), TypeError, "events(namespace=...) takes a string or"),
    "events: entity_id": (lambda e: e.events(entity_id=True), TypeError, "events(entity_id=...) takes a str, an int"),
    "events: status": (
        lambda e: e.events(status="done"),
        ValueError,
        "takes one of pending, occurred, cancelled; got 'done'.",
    ),
    "events: naive": (lambda e: e.events(at_after=NAIVE), ValueError, "events(at_after=...) must be aware"),
    "events: at": (lambda e: e.events(at_before="now"), TypeError, "events(at_before=...) takes an aware datetime"),
    "watch: id": (lambda e: anext(e.watch(None)), TypeError, "A run's id is an int, got NoneType."),
    "events: order": (lambda e: e.events(order="at"), ValueError, "events(order=...) takes 'id' or '-id', got 'at'."),
    "events: limit": (lambda e: e.events(limit=0), ValueError, "limit must be from 1 to 10000, got 0."),
    "events: after": (lambda e: e.events(after=3), TypeError, "events(after=...) takes a string, got int."),
    "events: unknown": (lambda e: e.events(after="x"), errors.EventNotFound, "There is no event 'x' in this store."),
    "act: id": (lambda e: e.act("review", "1"), TypeError, "A run's id is an int, got str."),
    "act: unknown": (lambda e: e.act("review", 9), errors.RunNotFound, "There is no run 9 in this store."),
    "act: no action": (lambda e: e.act(Known.end, 9), TypeError, "Known.end is none. Add @action() to it."),
    "act: a number": (lambda e: e.act(3, 9), TypeError, "act() takes an action, as Order.review, or its name; int"),
    "act: by position": (lambda e: e.act("review", 9, True), TypeError, "act() takes the action's input as keywords"),
    "call_action: id": (lambda e: e.call_action("review", None, {}), TypeError, "A run's id is an int, got NoneType."),
    "open_actions: id": (lambda e: e.open_actions(None), TypeError, "A run's id is an int, got NoneType."),
    "open_actions: unknown": (lambda e: e.open_actions(9), errors.RunNotFound, "There is no run 9 in this store."),
    "runs: event": (lambda e: e.runs(event_id=3), TypeError, "runs(event_id=...) takes a string or several, got int."),
}


@pytest.mark.parametrize("row", ROWS)
async def test_wrong_arguments_are_refused(make_engine: MakeEngine, row: str) -> None:
    """The error says what is wrong and what to write instead; nothing has changed, and the engine goes on."""
    call, kind, text = ROWS[row]
    async with make_engine(Known) as engine:
        with pytest.raises(kind) as caught:
            await call(engine)
        assert text in str(caught.value)
        assert (await engine.count(), (await engine.stats()).mailbox) == (0, 0)
        run = await (await engine.start(Known)).wait(5, until="parked")
        assert (await engine.signal("go", run_id=run.id)).delivered == [run.id]
        assert (await run.wait(5)).status == "completed"


CALLS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "start": lambda e: e.start(Known),
    "start_run": lambda e: e.start_run(Known, StartOptions(), {}),
    "get": lambda e: e.get(1),
    "find": lambda e: e.find(Known, "k"),
    "runs": lambda e: e.runs(),
    "iter_runs": _all,
    "count": lambda e: e.count(),
    "emit": lambda e: e.emit("x"),
    "cancel_event": lambda e: e.cancel_event("x"),
    "events": lambda e: e.events(),
    "history": lambda e: e.history(1),
    "watch": lambda e: anext(e.watch(1)),
    "signal": lambda e: e.signal("x"),
    "act": lambda e: e.act("review", 1),
    "call_action": lambda e: e.call_action("review", 1, {}),
    "open_actions": lambda e: e.open_actions(1),
    "cancel": lambda e: e.cancel(1),
    "wait": lambda e: e.wait(1),
    "result": lambda e: e.result(1),
    "process_scheduled": lambda e: e.process_scheduled(),
    "stats": lambda e: e.stats(),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_closed_engine_says_so(make_engine: MakeEngine, name: str, when: str) -> None:
    """Every call of an engine that is not open raises EngineClosed, which tells how to open it."""
    engine = make_engine(Known)
    if when == "after":
        async with engine:
            pass
    with pytest.raises(errors.EngineClosed, match=r"needs an open engine\. Write 'async with engine:'"):
        await CALLS[name](engine)


def test_every_call_is_in_the_tables() -> None:
    """Every public coroutine of the engine has its rows in the tables above."""
    others = {"run_forever", "lifespan", "instruments", "registry", "definition_of", "reread", "row_when", "iterate"}
    public = {name for name in dir(Engine) if not name.startswith("_")} - others
    assert public == set(CALLS)
    assert {row.split(":")[0] for row in ROWS} | {"process_scheduled", "stats"} == public
