"""Hostile values, wherever they enter: a clear error for the caller or the run, and no effect on anything else."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import (
    Engine,
    Event,
    Retry,
    StartOptions,
    WorkflowRun,
    complete,
    event_workflow,
    fail,
    get_context,
    get_run,
    goto,
    step,
    wait,
    wait_for_event,
    workflow,
)
from aioflow.commands import Command
from aioflow.errors import AioflowError, ContextInvalid, EventInvalid, LimitExceeded, SignalInvalid
from tests.engine.conftest import MakeEngine, kinds_of
from tests.hostile.crowd import crowded, whole


@dataclass(frozen=True)
class Hostile:
    """A value, and what the errors say about it: the limit that it exceeds, or how it differs after JSON."""

    make: Callable[[], Any]
    limit: str = ""
    differs: str = ""
    #: What the error says about a signal's payload, if that is something else.
    payload: str = ""


def nested(depth: int) -> Any:
    value: Any = None
    for _ in range(depth):
        value = [value]
    return value


STORABLE = "characters that every store can hold"
HOSTILE = {
    "64 MB": Hostile(lambda: "x" * (64 << 20), "1048576 bytes of JSON: it has 67108875"),
    "100 000 keys": Hostile(lambda: {f"key {i}": i for i in range(100_000)}, "1048576 bytes of JSON: it has 1777790"),
    "depth 10 000": Hostile(lambda: nested(10_000), "depth 64: deeper at note" + "[0]" * 63),
    "NUL": Hostile(lambda: "a\0b", f"{STORABLE}: a NUL at note"),
    "NUL in a key": Hostile(lambda: {"a": {"b\0": 1}}, f"{STORABLE}: a NUL in a key below note.a"),
    "surrogate": Hostile(lambda: "a\ud800", f"{STORABLE}: a lone surrogate at note"),
    "surrogate in a key": Hostile(lambda: {"a\ud800": 1}, f"{STORABLE}: a lone surrogate in a key below note"),
    "NaN": Hostile(
        lambda: float("nan"),
        differs="note is nan, which JSON does not have",
        payload="the numbers that JSON has: nan at note",
    ),
    "-Infinity": Hostile(
        lambda: float("-inf"),
        differs="note is -inf, which JSON does not have",
        payload="the numbers that JSON has: -inf at note",
    ),
    "10^5000": Hostile(lambda: 10**5000, "4300 digits for a number: a number has more"),
    "long key": Hostile(lambda: {"k" * 201: 1}, "200 characters for a key: 201 below note"),
}
all_hostile = pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)


class Note(BaseModel):
    """A Context that takes any value; also a message."""

    note: Any = None


class Letter(Note):
    """A message."""


ONCE = Retry(max_attempts=1)


@workflow("hostile-child", default_retry=ONCE)
class Child:
    """Is started by a step, or by a caller."""

    Context = Note

    @step(start=True)
    async def end(self) -> Command:
        return complete()


@workflow("hostile-reader", default_retry=ONCE)
class Reader:
    """Waits for a signal whose payload it takes, or for a message."""

    class Context(Note):
        by: str = "go"

    @step(start=True)
    async def ask(self) -> Command:
        if get_context(self.Context).by == "go":
            return wait.for_signal("go", then=self.end)
        return wait.for_signal(Letter, then=self.read)

    @step
    async def read(self, letter: Letter) -> Command:
        get_context(self.Context).note = letter.note
        return complete()

    @step
    async def end(self) -> Command:
        return complete()


@workflow("hostile-watcher", default_retry=ONCE)
class Watcher:
    """Waits for an event, whose entity it takes."""

    Context = Note

    @step(start=True)
    async def ask(self) -> Command:
        return wait_for_event("seen", then=self.see)

    @step
    async def see(self, event: Event) -> Command:
        entity = event.entity
        get_context(Note).note = entity["note"] if isinstance(entity, dict) else entity.note
        return complete()


def filler(hostile: Hostile) -> Any:
    """A workflow whose step uses the value in the way that its Context names."""

    @workflow("hostile-filler", default_retry=ONCE)
    class Filler:
        class Context(Note):
            way: str = ""

        @step(start=True)
        async def fill(self) -> Command:
            context = get_context(self.Context)
            match context.way:
                case "change":
                    context.note = hostile.make()
                    return goto(self.end)
                case "complete":
                    return complete(note=hostile.make())
                case "start":
                    get_run().start(Child, note=hostile.make())
                case "signal":
                    get_run().signal("go", {"note": hostile.make()}, key="nobody")
                case "message":
                    get_run().signal(Letter(note=hostile.make()), key="nobody")
                case "emit":
                    get_run().emit("seen", {"note": hostile.make()})
            return goto(self.end)

        @step
        async def end(self) -> Command:
            return complete()

    return Filler


def said(hostile: Hostile, what: str, workflow: str) -> tuple[type[Exception], str]:
    """The error about a value that is used as ``what``: its class and text."""
    if what in ("go", "Letter"):
        other = hostile.payload if what == "go" else ""
        if what == "Letter" and hostile.differs:
            text = f"it does not survive JSON: {hostile.differs}"
            return SignalInvalid, f"Signal 'Letter' cannot be sent: {text}"
        return LimitExceeded, f"Signal {what!r} is beyond the limit of {other or hostile.limit}."
    if what in ("seen", "an entity"):
        if what == "an entity" and hostile.differs:
            return EventInvalid, f"Event 'seen' is not usable: its entity does not survive JSON: {hostile.differs}"
        return LimitExceeded, f"Event 'seen' is beyond the limit of {hostile.payload or hostile.limit}."
    if hostile.differs:
        text = f"it cannot be stored: {hostile.differs}"
        return ContextInvalid, f"These arguments do not make a Context of workflow {workflow!r}: {text}"
    return LimitExceeded, f"The Context is beyond the limit of {hostile.limit}."


def spelled(text: str) -> str:
    """A text as a run's row has it, with lone surrogates and NUL escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


async def reading(engine: Engine, by: str) -> WorkflowRun[Any]:
    """A run that waits for a signal, or for a message."""
    return await (await engine.start(Reader, by=by)).wait(5, until="parked")


@all_hostile
async def test_start_refuses_what_cannot_be_stored(make_engine: MakeEngine, hostile: Hostile) -> None:
    """start() with such a value raises, starts nothing, and fifty other runs complete."""
    async with make_engine() as engine, crowded(engine):
        kind, text = said(hostile, "context", "hostile-child")
        with pytest.raises(AioflowError) as caught:
            await engine.start(Child, note=hostile.make())
        assert (type(caught.value), str(caught.value)) == (kind, text)
        assert await engine.count(workflow=Child) == 0
        run = await engine.start(Child, note="fine")
        assert (await run.wait(5)).data == {"note": "fine"}


@all_hostile
async def test_step_that_uses_what_cannot_be_stored_fails_alone(make_engine: MakeEngine, hostile: Hostile) -> None:
    """A step that puts such a value into a Context, a start, a signal or an event fails its own run alone."""
    flow = filler(hostile)
    async with make_engine() as engine, crowded(engine):
        ways = ("change", "complete", "start", "signal", "message", "emit")
        runs = [await engine.start(flow, way=way) for way in ways]
        for way, run in zip(ways, runs, strict=True):
            await run.wait(5)
            what = {"signal": "go", "message": "Letter", "emit": "seen"}.get(way, "context")
            _, text = said(hostile, what, "hostile-child")
            if way in ("change", "complete"):
                if hostile.differs:
                    left = "left a Context that cannot be stored"
                    text = f"Step 'fill' of workflow 'hostile-filler' (run {run.id}) {left}: {hostile.differs}"
                if found := re.search(r"it has (\d+)", text):  # the Context has another field, so its JSON is longer
                    text = text.replace(found[1], str(int(found[1]) + len(f',"way":"{way}"')))
            assert (way, run.status, run.error) == (way, "failed", spelled(text))
            assert run.data == {"way": way, "note": None}
            assert await kinds_of(engine, run) == ["start", "fail"]
        stats = await engine.stats()
        assert (await engine.count(workflow=Child), stats.mailbox, stats.events) == (0, 0, {})


@all_hostile
async def test_event_that_cannot_be_stored_is_not_emitted(make_engine: MakeEngine, hostile: Hostile) -> None:
    """emit() with such a value raises, nothing is recorded, and the run that waits for the event takes the next one."""
    async with make_engine() as engine, crowded(engine):
        run = await (await engine.start(Watcher)).wait(5, until="parked")
        for what, entity in (("seen", {"note": hostile.make()}), ("an entity", Note(note=hostile.make()))):
            kind, text = said(hostile, what, "")
            with pytest.raises(AioflowError) as caught:
                await engine.emit("seen", entity)
            assert (type(caught.value), str(caught.value)) == (kind, text)
        assert (await engine.events(), (await engine.stats()).mailbox) == ([], 0)
        event = await engine.emit("seen", {"note": 1})
        assert (await run.wait(5)).data == {"note": 1, "event_id": event.id, "event_name": "seen", "entity_id": None}


@all_hostile
@pytest.mark.parametrize("addressed", [True, False], ids=["run", "key"])
async def test_signal_that_cannot_be_stored_is_not_sent(
    make_engine: MakeEngine, hostile: Hostile, addressed: bool
) -> None:
    """signal() with such a value raises, nothing is in the mailbox, and the waiting run takes the next signal."""
    async with make_engine() as engine, crowded(engine):
        for by in ("go", "Letter"):
            run = await reading(engine, by)
            to: dict[str, Any] = {"run_id": run.id} if addressed else {"key": "nobody"}
            kind, text = said(hostile, by, "")
            message = Letter(note=hostile.make())
            with pytest.raises(AioflowError) as caught:
                await (
                    engine.signal("go", {"note": message.note}, **to) if by == "go" else engine.signal(message, **to)
                )
            assert (type(caught.value), str(caught.value)) == (kind, text)
            await run.refresh()
            assert (run.status, run.data["note"], (await engine.stats()).mailbox) == ("waiting", None, 0)
            receipt = await (
                engine.signal("go", {"note": 1}, run_id=run.id)
                if by == "go"
                else engine.signal(Letter(note=1), run_id=run.id)
            )
            assert receipt.delivered == [run.id]
            assert (await run.wait(5)).data["note"] == 1


STRANGE = {
    "10^400": 10**400,
    "-10^4298": -(10**4298),  # pydantic up to 2.14.0 counts the sign as a digit
    "5e-324": 5e-324,
    "many keys": {f"{i:x}": i for i in range(60_000)},
    "depth 63": nested(61),
    "odd characters": "\x01\x1f\x7f\u2028\u202e\ufffe\U0010ffff \\u0000 \\ud800 '; DROP TABLE runs; --",
    "duplicate to a loose eye": {"a": 1, "A": 2, "a ": 3, "\u0430": 4, "é": 5, "e\u0301": 6},
}


@pytest.mark.parametrize("value", STRANGE.values(), ids=STRANGE)
async def test_strange_values_come_through(make_engine: MakeEngine, value: Any) -> None:
    """Strange values within the limits arrive unchanged, in every way, and are the same after a restart."""
    flow = filler(Hostile(lambda: value))
    async with make_engine() as engine, crowded(engine):
        runs = [await engine.start(flow, way=way) for way in ("change", "complete", "start")]
        runs.append(await engine.start(Child, note=value))
        for by in ("go", "Letter"):
            run = await reading(engine, by)
            await (
                engine.signal("go", {"note": value}, run_id=run.id)
                if by == "go"
                else engine.signal(Letter(note=value), run_id=run.id)
            )
            runs.append(run)
        for entity in ({"note": value}, Note(note=value)):
            run = await (await engine.start(Watcher)).wait(5, until="parked")
            event = await engine.emit("seen", entity)
            assert await engine.events(event_id=event.id) == [event]
            assert (await run.wait(5)).data["note"] == value
            runs.append(run)
        for run in runs:
            assert (await run.wait(5)).error is None
        (started,) = [child for child in await engine.runs(workflow=Child) if child.parent_id == runs[2].id]
        runs[2] = await started.wait(5)
    async with make_engine() as engine:
        for run in runs:
            again = await engine.get(run.id)
            assert (again.status, again.data["note"]) == ("completed", value)
            await whole(engine, again)


# ---- names


NAMES = {
    "NUL": ("a\0", f"{STORABLE}: it holds a NUL"),
    "surrogate": ("a\udfff", f"{STORABLE}: it holds a lone surrogate"),
    "64 MB": ("x" * (64 << 20), "200 characters: it has 67108864"),
}


@pytest.mark.parametrize(("name", "limit"), NAMES.values(), ids=NAMES)
async def test_hostile_names_are_refused_where_they_are_written(make_engine: MakeEngine, name: str, limit: str) -> None:
    """Keys, ids and names with such a text are refused by an error that names the argument, without effect."""
    async with make_engine() as engine, crowded(engine):
        run = await reading(engine, "go")
        calls: dict[str, Callable[[], Any]] = {
            "StartOptions(key=...)": lambda: engine.start(Child, StartOptions(key=name)),
            "find(key)": lambda: engine.find(Child, name),
            "signal(name)": lambda: engine.signal(name, run_id=run.id),
            "signal(key=...)": lambda: engine.signal("go", key=name),
            "signal(signal_id=...)": lambda: engine.signal("go", run_id=run.id, signal_id=name),
            "Signal 'go': a key of its payload": lambda: engine.signal("go", {name: 1}, run_id=run.id),
            "@workflow(name)": lambda: workflow(name)(Child),
            "@event_workflow(event_name)": lambda: event_workflow(name)(Child),
            "@event_workflow(namespace=...)": lambda: event_workflow("seen", namespace=name)(Child),
            "emit(name)": lambda: engine.emit(name),
            "emit(event_id=...)": lambda: engine.emit("seen", event_id=name),
            "emit(entity_id=...)": lambda: engine.emit("seen", entity_id=name),
            "emit(namespace=...)": lambda: engine.emit("seen", namespace=name),
            "Event 'seen': a key of its entity": lambda: engine.emit("seen", {name: 1}),
            "cancel_event(event_id)": lambda: engine.cancel_event(name),
            "events(after=...)": lambda: engine.events(after=name),
        }
        for what, call in calls.items():
            with pytest.raises(LimitExceeded) as caught:
                await call()
            assert str(caught.value) == f"{what} is beyond the limit of {limit}."
        await run.refresh()
        assert (run.status, (await engine.stats()).mailbox, await engine.count(workflow=Child)) == ("waiting", 0, 0)


@pytest.mark.parametrize(("name", "limit"), NAMES.values(), ids=NAMES)
async def test_wait_with_a_hostile_name_fails_its_run_alone(make_engine: MakeEngine, name: str, limit: str) -> None:
    """A step that waits for such a name, or with such a key, fails its own run alone, with the text."""

    @workflow("hostile-namer", default_retry=ONCE)
    class Waiter:
        class Context(BaseModel):
            by: str

        @step(start=True)
        async def ask(self) -> Command:
            match get_context(self.Context).by:
                case "key":
                    return wait.for_signal("go", key=name, then=self.end)
                case "event":
                    return wait_for_event(name, then=self.end)
                case "entity":
                    return wait_for_event("seen", entity_id=name, then=self.end)
                case _:
                    return wait.for_signal(name, then=self.end)

        @step
        async def end(self) -> Command:
            return complete()

    async with make_engine() as engine, crowded(engine):
        for by, what in {
            "key": "wait.for_signal(key=...)",
            "name": "wait.for_signal(name)",
            "event": "wait_for_event(name)",
            "entity": "wait_for_event(entity_id=...)",
        }.items():
            run = await (await engine.start(Waiter, by=by)).wait(5)
            assert run.status == "failed"
            assert run.error == f"{what} is beyond the limit of {limit}."
            await whole(engine, run)


@pytest.mark.parametrize(
    ("text", "kept"),
    [("a\0b", r"a\0b"), ("a\udfffb", r"a\udfffb"), ("x" * (64 << 20), "x" * 100)],
    ids=["NUL", "surrogate", "64 MB"],
)
async def test_hostile_reasons_are_spelled_out_and_bounded(make_engine: MakeEngine, text: str, kept: str) -> None:
    """The reasons of fail, exceptions and cancel are stored whatever they contain, with escapes and up to a limit."""

    @workflow("hostile-failing", default_retry=ONCE)
    class Failing:
        class Context(BaseModel):
            how: str

        @step(start=True)
        async def end(self) -> Command:
            if get_context(self.Context).how == "raise":
                raise ValueError(text)
            return fail(text)

    async with make_engine() as engine, crowded(engine):
        cancelled = await reading(engine, "go")
        assert await engine.cancel(cancelled.id, text)
        runs = [cancelled, *[await engine.start(Failing, how=how) for how in ("fail", "raise")]]
        expected = [("cancelled", "", 65_536), ("failed", "", 65_536), ("failed", "ValueError: ", 2_000)]
        for run, (status, before, most) in zip(runs, expected, strict=True):
            ended = await engine.wait(run.id, 5)
            assert ended.error is not None
            assert (ended.status, len(ended.error) <= most) == (status, True)
            assert ended.error.startswith(before + kept)
            assert len((await engine.history(run.id))[-1].error or "") <= 2_000
            if len(text) < 10:
                assert ended.error == before + kept
            await whole(engine, ended)
