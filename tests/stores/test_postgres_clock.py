"""The server's clock, by which a store goes whatever is done to that of its machine."""

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
    """Also before the server is asked again: else a lease would be written that is over, or a timer fire early."""
    store = PostgresStore(postgres_server.fresh())
    clock = StoreClock(store)
    await store.open(clock.micros())
    before, right = clock.micros(), time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: right() + hours * 3600 * 1_000_000_000)
    assert 0 <= clock.micros() - before < 60 * SECOND
    await store.close()
