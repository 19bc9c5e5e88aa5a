"""Fixtures: two processes that share a PostgreSQL store."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aioflow.testing.conformance_samples import a_signal, claiming, post, put
from aioflow_postgres import PostgresStore
from tests.postgres import Schemas
from tests.stores.races import RUNNER, WAITER, Race


@pytest.fixture
def race(postgres_server: Schemas, postgres_url: str) -> Race:
    """A race in the test's schema."""
    return Race(postgres_server.url, postgres_url)


@pytest.fixture
async def pair(postgres_url: str) -> AsyncIterator[tuple[PostgresStore, PostgresStore]]:
    """Two stores on one schema, as of two processes: run 1 waits, and worker 3, whose lease ends soon, owns run 2."""
    one, two = PostgresStore(postgres_url), PostgresStore(postgres_url)
    await one.open(0)
    await two.open(0)
    await claiming(one, 3)
    await put(one, WAITER, RUNNER)
    await post(one, a_signal(1, 1))
    yield one, two
    await one.close()
    await two.close()
