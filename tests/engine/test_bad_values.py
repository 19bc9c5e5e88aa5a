"""Values that no store can hold, or that JSON would lose, in signals, events, Contexts and filters are refused."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import Retry, StartOptions, complete, errors, get_run, step, wait, workflow
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine


def nested(depth: int) -> list[Any]:
    """Lists nested to this depth."""
    inner: list[Any] = []
    for _ in range(depth - 1):
        inner = [inner]
    return inner


def endless() -> list[Any]:
    """A list that contains itself."""
    inner: list[Any] = []
    inner.append(inner)
    return inner


class Anything(BaseModel):
    """A message with any value."""

    value: Any = None
    named: dict[int | str, str] = {}


@workflow("bad-values")
class Flow:
    """Waits for a signal."""

    class Context(BaseModel):
        named: dict[int | str, str] = {}
        unlike: float = 0
        deep: dict[str, dict[int | str, str]] = {}
        value: Any = None

    @step(start=True)
    async def ask(self) -> Command:
        return wait.for_signal("go", then=self.end)

    @step
    async def end(self) -> Command:
        return complete()


# ---- signals

TWICE = "its payload has a mapping with the key '1' twice, once it is JSON, where all keys are text"
DEPTH, SURROGATE = "the limit of depth 64: deeper at value", "characters that every store can hold: a lone surrogate"
VALUES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "two keys that are one": (lambda: {1: "a", "1": "b"}, errors.SignalInvalid, TWICE),
    "two such keys further down": (lambda: [{"x": {1: "a", "1": "b"}}], errors.SignalInvalid, TWICE),
    "deep": (lambda: nested(100), errors.LimitExceeded, DEPTH),
    "very deep": (lambda: nested(5_000), errors.LimitExceeded, DEPTH),
    "endless": (endless, errors.LimitExceeded, DEPTH),
    "surrogate": (lambda: "\ud800", errors.LimitExceeded, f"{SURROGATE} at value"),
    "surrogate in a key": (lambda: {"\ud800": 1}, errors.LimitExceeded, f"{SURROGATE} in a key below value"),
    "surrogate further down": (lambda: [[{"x": "\udfff"}]], errors.LimitExceeded, f"{SURROGATE} at value[0][0].x"),
}


@pytest.mark.parametrize("what", VALUES)
@pytest.mark.parametrize("message", [False, True], ids=["payload", "message"])
async def test_signal_that_cannot_be_kept_is_not_sent(make_engine: MakeEngine, what: str, message: bool) -> None:
    """A signal with such a payload is refused, naming the signal and the place, and nothing is sent."""
    make, kind, text = VALUES[what]
    if message and kind is errors.SignalInvalid:
        text = "it does not survive JSON: value"
    async with make_engine(Flow, worker=False) as engine:
        run = await engine.start(Flow)
        args: tuple[Any, ...] = (Anything(value=make()),) if message else ("go", {"value": make()})
        with pytest.raises(kind) as caught:
            await engine.signal(*args, run_id=run.id)
        assert text in str(caught.value)
        assert f"Signal {'Anything' if message else 'go'!r}" in str(caught.value)
        assert "Pydantic" not in str(caught.value)
        assert (await engine.stats()).mailbox == 0


@dataclass
class Thing:
    """An entity with a value of any type."""

    value: Any = None


class Article(BaseModel):
    """An entity with one more field."""

    value: Any = None
    thing: Thing | None = None


ENTITIES: dict[str, Callable[[Any], Any]] = {
    "mapping": lambda value: {"value": value},
    "model": lambda value: Article(value=value),
    "dataclass": Thing,
    "nested": lambda value: Article(thing=Thing({"in": value})),
}


@pytest.mark.parametrize("what", VALUES)
@pytest.mark.parametrize("kind_of_entity", ENTITIES)
async def test_event_that_cannot_be_kept_is_not_emitted(
    make_engine: MakeEngine, what: str, kind_of_entity: str
) -> None:
    """An event with such an entity is refused, from the engine and in a step, and nothing is recorded."""
    make, kind, text = VALUES[what]
    if kind is errors.SignalInvalid:
        lost = "its entity does not survive JSON: " + ("thing" if kind_of_entity == "nested" else "value")
        kind, text = errors.EventInvalid, TWICE.replace("payload", "entity") if kind_of_entity == "mapping" else lost
    if kind_of_entity == "nested":
        text = text.replace(" value", " thing.value.in")

    @workflow("bad-values-emits", default_retry=Retry(max_attempts=1))
    class Emits:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def begin(self) -> Command:
            get_run().emit("seen", ENTITIES[kind_of_entity](make()))
            return complete()

    async with make_engine(Emits) as engine:
        with pytest.raises(kind) as caught:
            await engine.emit("seen", ENTITIES[kind_of_entity](make()))
        assert text in str(caught.value)
        assert "Event 'seen'" in str(caught.value)
        assert "Pydantic" not in str(caught.value)
        run = await (await engine.start(Emits)).wait(5)
        assert (run.status, run.error) == ("failed", str(caught.value).encode("utf-8", "backslashreplace").decode())
        assert await engine.events() == []


async def test_payload_whose_keys_stay_apart_is_sent(make_engine: MakeEngine) -> None:
    """Keys of a payload that are numbers become text, as long as no two keys of one mapping become equal."""
    async with make_engine(Flow) as engine:
        run = await (await engine.start(Flow)).wait(5, until="parked")
        value = {1: "a", "2": [{"x": 1.5, "y": -0.0}, {"x": 10**30, "é\n": None}], 3: 1e16}
        await engine.signal("go", {"value": value}, run_id=run.id)
        assert (await run.wait(5)).data["value"] == {str(key): item for key, item in value.items()}


@pytest.mark.parametrize(
    "keywords",
    [{"named": {1: "a", "1": "b"}}, {"deep": {"x": {1: "a", "1": "b"}}}, {"value": {1: "a", "1": "b"}}],
    ids=["field", "nested", "Any"],
)
async def test_context_whose_keys_become_one_is_not_started(make_engine: MakeEngine, keywords: dict[str, Any]) -> None:
    """A Context in which two keys of a mapping would become equal is refused by start."""
    async with make_engine(Flow, worker=False) as engine:
        with pytest.raises(
            errors.ContextInvalid,
            match=r"cannot be stored: .* has the key 1 \(int\), which does not read back as it is: JSON has texts as keys",
        ):
            await engine.start(Flow, **keywords)
        assert await engine.count() == 0


def far_below(values: int) -> dict[str, Any]:
    """This many values in a list, nested below fifty long keys."""
    inner: Any = [0] * values
    for _ in range(50):
        inner = {"k" * 200: inner}
    return {"value": inner}


@pytest.mark.parametrize("started", [False, True], ids=["signal", "start"])
async def test_many_values_below_long_keys_take_little_memory(make_engine: MakeEngine, started: bool) -> None:
    """Checking the limits of many values below long keys takes no memory for the path of each value."""
    async with make_engine(Flow) as engine:
        run = await engine.start(Flow)
        tracemalloc.start()
        try:
            if started:
                with pytest.raises(errors.LimitExceeded, match="the numbers that JSON has: nan at unlike"):
                    await engine.start(Flow, unlike=math.nan, **far_below(5_000))
            else:
                await engine.signal("later", {**far_below(5_000), "quoted": '"'}, run_id=run.id)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 10_000_000


# ---- filters

LONG, SURROGATES, NUL = "x" * 201, "\ud800", "\0"
NAMES = ("workflow", "step", "waiting_for", "waiting_signal", "waiting_key", "key")
DATA: dict[str, tuple[Any, str]] = {
    "surrogate": (SURROGATES, "characters that every store can hold: a lone surrogate at data.value"),
    "NUL": (NUL, "characters that every store can hold: a NUL at data.value"),
    "surrogate in a key": ({SURROGATES: 1}, "characters that every store can hold: it holds a lone surrogate"),
    "long key": ({LONG: 1}, "200 characters: it has 201"),
    "large": ("x" * (1 << 21), "1048576 characters: 2097152 at data.value"),
    "number": (1 << 63, "64-bit integers: a larger one at data.value"),
    "NaN": (float("nan"), "the numbers that JSON has: nan at data.value"),
    "wide": (list(range(5_000)), "200 values: it has more"),
    "deep": (nested(100), "depth 8: deeper at data.value"),
    "endless": (endless(), "depth 8: deeper at data.value"),
}


@pytest.mark.parametrize("value", [LONG, SURROGATES, NUL, "x" * (1 << 22)], ids=["long", "surrogate", "NUL", "huge"])
@pytest.mark.parametrize("filter_", NAMES)
async def test_filter_that_nothing_can_match_is_told(make_engine: MakeEngine, filter_: str, value: str) -> None:
    """A filter with a name that no store can hold is LimitExceeded, in the same way with every store."""
    async with make_engine(Flow, worker=False) as engine:
        for call in (engine.runs, engine.count):
            with pytest.raises(errors.LimitExceeded) as caught:
                await call(**{filter_: value})  # type: ignore[operator]
            assert len(str(caught.value)) < 500


@pytest.mark.parametrize("what", DATA)
async def test_data_that_nothing_can_match_is_told(make_engine: MakeEngine, what: str) -> None:
    """A data filter that no Context can match, or that is too large for a query, is LimitExceeded."""
    value, text = DATA[what]
    async with make_engine(Flow, worker=False) as engine:
        for call in (engine.runs, engine.count):
            with pytest.raises(errors.LimitExceeded) as caught:
                await call(data={"value": value})  # type: ignore[operator]
            assert text in str(caught.value)
            assert len(str(caught.value)) < 500


async def test_filters_up_to_their_limits_work(make_engine: MakeEngine) -> None:
    """Filters exactly within the limits find the runs that match, in every store."""
    wide, deep, edge = list(range(198)), nested(8), [2**63 - 1, -(2**63), "é" * 100_000, "", 1e300]
    async with make_engine(Flow, worker=False) as engine:
        for value in (wide, deep, edge, {"x" * 200: {"": 1}}):
            run = await engine.start(Flow, value=value)
            assert [found.id for found in await engine.runs(data={"value": value})] == [run.id]
        assert await engine.runs(key="", step="x" * 200, workflow="") == []


async def test_names_of_megabytes_are_not_repeated(make_engine: MakeEngine) -> None:
    """A name of megabytes is refused, and the error does not repeat it."""
    huge = "x" * (1 << 26)
    async with make_engine(Flow, worker=False) as engine:
        for name in (huge, SURROGATES):
            with pytest.raises(errors.LimitExceeded) as limit:
                await engine.find(name, "key")
            assert len(str(limit.value)) < 300
            with pytest.raises(errors.WorkflowUnknown) as unknown:
                await engine.start(name, StartOptions(key="key"))
            assert len(str(unknown.value)) < 500
        assert str(errors.WorkflowUnknown(huge, ["a"])).startswith(f"No workflow '{'x' * 200}'... is known")
        for wrong in ({"status": huge}, {"order": huge}):
            with pytest.raises(ValueError) as caught:
                await engine.runs(**wrong)  # type: ignore[arg-type]
            assert "takes one of" in str(caught.value)
            assert len(str(caught.value)) < 500
