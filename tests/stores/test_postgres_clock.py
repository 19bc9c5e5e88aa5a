"""A PostgreSQL store goes by the server's clock, even if that of its machine is set."""

from __future__ import annotations

import time

import pytest

from aioflow.clock import SECOND, StoreClock
from aioflow_postgres import PostgresStore
from tests.postgres import Schemas


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_machine_clock_that_is_set_changes_nothing(
    postgres_server: Schemas, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """After the machine's clock was set, the store's clock is right at once, before the server is asked again."""
    store = PostgresStore(postgres_server.fresh())
    clock = StoreClock(store)
    await store.open(clock.micros())
    before, right = clock.micros(), time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: right() + hours * 3600 * 1_000_000_000)
    assert 0 <= clock.micros() - before < 60 * SECOND
    await store.close()
