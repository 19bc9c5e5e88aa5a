"""A server that is read-only for a while, as after a failover to a standby that is promoted a moment later."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest

from aioflow.clock import SECOND
from aioflow.errors import StoreUnavailable
from aioflow.testing.conformance_samples import NOW, a_run, put, row
from aioflow_postgres import PostgresStore
from tests.postgres import Schemas, query


@pytest.fixture
async def role(postgres_server: Schemas) -> AsyncIterator[str]:
    """A role whose new connections can be made read-only."""
    if postgres_server.socket is None:
        pytest.skip("AIOFLOW_TEST_POSTGRES names a server on which nobody may make roles")
    name = f"standby_{os.getpid()}"
    await query(postgres_server.url, f"CREATE ROLE {name} SUPERUSER LOGIN")
    yield name
    await query(postgres_server.url, f"DROP ROLE {name}")


async def test_a_server_that_takes_writes_again_is_found(postgres_server: Schemas, role: str) -> None:
    """A connection that turns out to be read-only is dropped, so that the next one may reach the server that writes."""
    address = urlsplit(postgres_server.fresh())
    store = PostgresStore(address._replace(netloc=f"{role}@{address.netloc.rpartition('@')[2]}").geturl())
    await store.open(NOW)
    number = await store.reserve("worker", 1, NOW)
    await store.claim(number, lease=SECOND, limit=0, known=[], held=[], now=NOW)
    await query(postgres_server.url, f"ALTER ROLE {role} SET default_transaction_read_only = on")
    await query(
        postgres_server.url,
        "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = $1",
        role,
    )
    for _ in range(20):  # the terminated ones are used up first
        with pytest.raises(StoreUnavailable) as caught:
            await store.renew(number, SECOND, NOW)
        if "read-only" in str(caught.value):
            break
    assert "read-only" in str(caught.value)
    await query(postgres_server.url, f"ALTER ROLE {role} RESET default_transaction_read_only")
    assert await store.renew(number, SECOND, NOW)
    await put(store, a_run(1))
    assert await row(store, 1) == a_run(1)
    await store.close()
    await query(postgres_server.url, f"DROP OWNED BY {role} CASCADE")
