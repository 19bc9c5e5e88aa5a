"""Contexts that cannot be stored: refused by field before they reach a store, without harm to other runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from aioflow import Engine, WorkflowStatus, complete, get_context, goto
from aioflow.commands import Command
from aioflow.errors import AioflowError, ContextInvalid, LimitExceeded
from aioflow.model import MAX_DATA, MAX_DEPTH, MAX_NAME
from tests.flows import PATIENCE, STORES, completed, done, ended, failed_at_once, flow


class Loose(BaseModel):
    """A Context that takes anything."""

    payload: Any = None


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Each store in turn, as an argument of Engine."""
    return STORES[request.param](tmp_path)


@pytest.fixture
async def engine(store: Any) -> AsyncIterator[Engine]:
    """An open engine."""
    async with Engine(store) as engine:
        yield engine


@dataclass(frozen=True)
class Hostile:
    """A value that cannot be stored, and the texts that the error must have.

    With ``limit`` the error names that limit; without it, the error says that the Context cannot be stored.
    """

    make: Callable[[], Any]
    says: tuple[str, ...]
    limit: str | None = None


def nested(depth: int, inner: Any = None) -> Any:
    """Lists and mappings in turn, nested to this depth."""
    for level in range(depth):
        inner = [inner] if level % 2 else {"a": inner}
    return inner


def cyclic() -> Any:
    ring: list[Any] = []
    ring.append([ring])
    return ring


BYTES = f"{MAX_DATA} bytes of JSON"
DEPTH = f"depth {MAX_DEPTH}"
KEY = f"{MAX_NAME} characters for a key"
CHARACTERS = "characters that every store can hold"

HOSTILE = {
    "64 MB": Hostile(lambda: "x" * 64 * 1024 * 1024, (str(64 * 1024 * 1024 + len('{"payload":""}')),), BYTES),
    "64 MB of escapes": Hostile(lambda: "\x01" * 12 * 1024 * 1024, (), BYTES),
    "100 000 keys": Hostile(lambda: {f"key {i}": i for i in range(100_000)}, (), BYTES),
    "one byte too many": Hostile(lambda: "x" * (MAX_DATA - len('{"payload":""}') + 1), (str(MAX_DATA + 1),), BYTES),
    "depth 65": Hostile(lambda: nested(64), ("payload[0].a",), DEPTH),
    "depth 250": Hostile(lambda: nested(249), (), DEPTH),
    "depth 300": Hostile(lambda: nested(299), (), DEPTH),
    "depth 10 000": Hostile(lambda: nested(9_999), (), DEPTH),
    "key of 201": Hostile(lambda: [{"k" * 201: 1}], ("201", "payload[0]"), KEY),
    "key of 201 quotes": Hostile(lambda: {'"' * 201: 1}, ("201", "payload"), KEY),
    "key of 1 MB": Hostile(lambda: {"k" * 1_000_000: 1}, ("1000000", "payload"), KEY),
    "NUL": Hostile(lambda: {"a": ["b\0c"]}, ("a NUL", "payload.a[0]"), CHARACTERS),
    "NUL in a key": Hostile(lambda: {"a": {"b\0c": 1}}, ("a NUL in a key", "payload.a"), CHARACTERS),
    "surrogate": Hostile(lambda: {"a": ["b\ud800c"]}, ("a lone surrogate", "payload"), CHARACTERS),
    "surrogate in a key": Hostile(lambda: {"a": {"b\udfffc": 1}}, ("a lone surrogate in a key", "payload"), CHARACTERS),
    "NaN": Hostile(lambda: float("nan"), ("payload",)),
    "NaN, nested": Hostile(lambda: [{"x": float("nan")}], ("payload[0]['x']",)),
    "inf": Hostile(lambda: float("inf"), ("payload",)),
    "-inf": Hostile(lambda: [float("-inf")], ("payload[0]",)),
    "10**5000": Hostile(lambda: [10**5000], (), "4300 digits for a number"),
    "10**400 as a key": Hostile(lambda: {10**400: 1}, ("401", "payload"), KEY),
    "non-UTF-8 bytes": Hostile(lambda: {"a": b"\xff"}, ("payload",)),
    "UTF-8 bytes": Hostile(lambda: {"a": b"abc"}, ("payload['a'] is a bytes, but reads back as a str",)),
    "cycle": Hostile(cyclic, (), DEPTH),
    "object": Hostile(lambda: [object()], ("payload", "object")),
    "function": Hostile(lambda: {"f": print}, ("payload", "function")),
}


def expect(hostile: Hostile, text: str) -> None:
    """Check that the error names the limit, or that it says what else is wrong and where."""
    if hostile.limit is not None:
        assert f"The Context is beyond the limit of {hostile.limit}: " in text
    else:
        assert "cannot be stored: " in text
    for part in hostile.says:
        assert part in text
    assert len(text) < 2_000


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
async def test_hostile_values_start_nothing(engine: Engine, hostile: Hostile) -> None:
    """A value that cannot be stored is refused by ``start`` with a typed error, and no run is started."""
    order = flow(Loose, done)
    with pytest.raises(AioflowError) as caught:
        await engine.start(order, payload=hostile.make())
    assert await engine.count() == 0
    assert type(caught.value) is (ContextInvalid if hostile.limit is None else LimitExceeded)
    expect(hostile, str(caught.value))
    assert await completed(engine, order, payload="fine") == Loose(payload="fine")


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
async def test_hostile_values_fail_the_run_alone(engine: Engine, hostile: Hostile) -> None:
    """A step that leaves such a value fails its run at once, with its Context unchanged; other runs complete."""

    async def first(self: object) -> Command:
        context = get_context(Loose)
        if context.payload == "evil":
            context.payload = hostile.make()
        await asyncio.sleep(0)
        return goto("second")

    def second(self: object) -> Command:
        return complete(after=True)

    order = flow(Loose, first, second)
    evil, *good = [await engine.start(order, payload=word) for word in ("evil", "good", "good")]
    assert [(await run.wait(PATIENCE)).status for run in good] == [WorkflowStatus.COMPLETED] * 2
    await evil.wait(PATIENCE)
    assert (evil.status, evil.data) == (WorkflowStatus.FAILED, {"payload": "evil"})
    assert [t.kind for t in await engine.history(evil.id)] == ["start", "fail"]
    expect(hostile, evil.error or "")
    assert (await completed(engine, order, payload="late")).after


async def test_hostile_values_in_complete_fail_the_run(engine: Engine) -> None:
    """Values in ``complete(**data)`` have the same limits as those of fields."""

    def first(self: object) -> Command:
        return complete(**{"k" * 201: 1})

    error = await failed_at_once(engine, flow(Loose, first))
    assert error == "The Context is beyond the limit of 200 characters for a key: 201 below its top."


class Limits(BaseModel):
    """A Context that can be filled exactly up to a limit."""

    text: str = ""
    deep: Any = None
    keys: dict[str, int] = {}


#: The JSON of a Limits beside the text that fills it.
FRAME = len('{"text":"","deep":null,"keys":{}}')


@pytest.mark.parametrize(
    "values",
    [
        {"text": "x" * (MAX_DATA - FRAME)},
        {"text": "ä" * ((MAX_DATA - FRAME) // 2)},
        {"deep": nested(MAX_DEPTH - 1, "x")},
        {"deep": [nested(MAX_DEPTH - 2) for _ in range(100)]},
        {"keys": {"k" * MAX_NAME: 1, '"' * MAX_NAME: 2, "🌊" * MAX_NAME: 3}},
        {"keys": {f"{i:x}": 1 for i in range(100_000)}},
        {"deep": 10**400},
        {"text": "\x01\x1f\x7f\u2028\ufffe\U0010ffff \\u0000 \\ud800"},
    ],
    ids=["1 MiB", "1 MiB of umlauts", "depth 64", "100 x depth 64", "keys of 200", "100 000 keys", "10**400", "odd"],
)
async def test_the_limits_themselves_are_accepted(engine: Engine, values: dict[str, Any]) -> None:
    """Values exactly at a limit are stored and read back equal, from ``start`` and from a step."""

    def first(self: object) -> Command:
        for name, value in values.items():
            setattr(get_context(), name, value)
        return goto("second")

    def second(self: object) -> Command:
        assert get_context() == Limits(**values)
        return complete()

    order = flow(Limits, done)
    run = await ended(engine, order, **values)
    assert run.context == Limits(**values)
    run = await ended(engine, flow(Limits, first, second))
    assert (run.error, run.context) == (None, Limits(**values))


@pytest.mark.parametrize("way", ["constants", "strings", "null"])
@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
async def test_only_json_is_stored(engine: Engine, way: Any, number: float) -> None:
    """Whatever ``ser_json_inf_nan`` says, NaN and infinities are stored as valid JSON and read back, or are refused."""

    class Numbers(BaseModel):
        model_config = ConfigDict(ser_json_inf_nan=way)
        number: float | None = None
        anything: Any = None

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    order = flow(Numbers, done)
    for name in ("number", "anything"):
        refused: AioflowError | None = None
        try:
            run = await ended(engine, order, **{name: number})
        except AioflowError as error:
            refused = error
        if refused is None:
            json.loads(run.row.data, parse_constant=refuse)
            assert getattr(run.context, name) == number
        else:
            assert name in str(refused)


@pytest.mark.parametrize(
    ("annotation", "value", "text"),
    [
        (float, float("inf"), "The Context is beyond the limit of the numbers that JSON has: inf at number."),
        (list[float], [1.0, float("nan")], "The Context is beyond the limit of the numbers that JSON has: nan at number[1]."),
        (float | None, float("nan"), "left a Context that cannot be stored: number is nan, which JSON does not have"),
        (float | None, float("-inf"), "left a Context that cannot be stored: number is -inf, which JSON does not have"),
    ],
)  # fmt: skip
async def test_numbers_that_json_does_not_have_are_named(
    engine: Engine, annotation: Any, value: Any, text: str
) -> None:
    """If a step leaves a number that JSON does not have, the error names the number and its place."""

    class Numbers(BaseModel):
        number: annotation = [] if annotation == list[float] else 0.0

    def leave(self: Any) -> Command:
        get_context(Numbers).number = value
        return complete()

    assert text in await failed_at_once(engine, flow(Numbers, leave))
