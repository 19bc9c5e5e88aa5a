"""The memory store, which is the reference."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest

from aioflow.changes import Amend, Change, Start
from aioflow.errors import StoreRefused
from aioflow.model import Run
from aioflow.store import Store
from aioflow.testing import StoreConformance
from aioflow.testing.conformance_samples import NOW, a_run, a_sleeper, a_transition, log, moving, put, row, starting
from aioflow_memory import MemoryStore


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    """An open store without data."""
    store = MemoryStore()
    await store.open(NOW)
    yield store
    await store.close()


class TestMemoryStore(StoreConformance):
    """The conformance suite; all users share one object."""

    async def again(self, store: Store) -> Store:
        await store.open(NOW)
        return store


async def test_uuid_is_given_or_random() -> None:
    """A given UUID makes the store deterministic; without one, each store has its own."""
    assert await MemoryStore(uuid="0-0").open(NOW) == "0-0"
    one, two = await MemoryStore().open(NOW), await MemoryStore().open(NOW)
    assert one != two
    assert UUID(one).version == 4


def test_store_is_named_by_its_url() -> None:
    """A store is named by its URL."""
    assert MemoryStore().name == "memory://"
    assert MemoryStore("memory://orders").name == "memory://orders"
    assert repr(MemoryStore()) == "<MemoryStore memory:// with 0 runs>"


async def test_store_is_closed_when_every_user_has_closed_it() -> None:
    """The store is closed once each open was followed by a close."""
    store = MemoryStore()
    await store.open(NOW)
    await store.open(NOW)
    await store.close()
    assert await store.load([1], NOW) == []
    await store.close()
    with pytest.raises(Exception, match="The store memory:// is not available: it is not open"):
        await store.load([1], NOW)


TEXTS = ("workflow", "version", "key", "event_id", "status", "step", "next_step", "waiting_for", "data", "error", "traceback")  # fmt: skip
NUMBERS = ("parent_id", "created_at", "fence", "owner", "visit", "failures", "hops", "crashes", "wake_at", "updated_at", "ended_at")  # fmt: skip


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        *((column, "a\0", f"a NUL in {column} of run 2") for column in TEXTS),
        *((column, "a\udfff", f"a lone surrogate in {column} of run 2") for column in TEXTS),
        *((column, 2**63, f"{column} of run 2 is beyond 64 bits") for column in NUMBERS),
        *((column, -(2**63) - 1, f"{column} of run 2 is beyond 64 bits") for column in NUMBERS),
    ],
    ids=ascii,
)
async def test_what_no_database_takes_is_refused(store: Store, column: str, value: Any, problem: str) -> None:
    """The memory store is as strict as the strictest store in every column, and its error names column and row."""
    await put(store, a_run(1))
    with pytest.raises(StoreRefused, match=f"cannot hold this data: {problem}"):
        await store.apply([moving(a_run(1)), starting(a_run(2, **{column: value}))], NOW)
    assert await store.load([1, 2], NOW) == [a_run(1)]


@pytest.mark.parametrize(("column", "value"), [("step", "\0"), ("error", "\ud800"), ("commit_id", 2**63)])
async def test_what_no_history_takes_is_refused(store: Store, column: str, value: Any) -> None:
    """History rows are checked like runs."""
    transition = a_transition(a_run(1), kind="start")._replace(**{column: value})
    with pytest.raises(StoreRefused, match=column):
        await store.apply([Start(a_run(1), transition)], NOW)


async def test_a_history_row_out_of_turn_is_refused(store: Store) -> None:
    """A transition that would leave a gap in the history is refused."""
    await put(store, a_run(1))
    with pytest.raises(StoreRefused, match="run 1 as of 3, with transition 3 of run 1, for a run of 1 transitions"):
        await store.apply([moving(a_run(1), seq=3)], NOW)
    assert len(await log(store, 1)) == 1


async def test_an_exception_in_a_decision_undoes_the_batch(store: Store) -> None:
    """If a decide() raises, rows, keys, deadlines and owners are as before the batch."""
    await put(store, a_run(1), a_sleeper(2, NOW))

    def decide(run: Run) -> None:
        raise ZeroDivisionError

    batch: list[Change] = [
        starting(a_run(3, key="order-3")),
        moving(a_run(1), status="waiting", waiting_for="sleep", wake_at=NOW),
        moving(a_sleeper(2, NOW), status="running"),
        Amend(3, decide, 7),
    ]
    with pytest.raises(ZeroDivisionError):
        await store.apply(batch, NOW)

    assert [await row(store, 1), await row(store, 2)] == [a_run(1), a_sleeper(2, NOW)]
    assert [deadline.run_id for deadline in await store.due((0, 0), (NOW, 9), 9, NOW)] == [2]
    assert [len(await log(store, number)) for number in (1, 2, 3)] == [1, 1, 0]
    await put(store, a_run(4, key="order-3"))
    assert [run.id for run in (await store.claim(1, lease=9, limit=9, known=[("order", "1")], held=[], now=NOW)).runs] == [1, 4]  # fmt: skip
