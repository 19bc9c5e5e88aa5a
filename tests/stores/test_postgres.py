"""The PostgreSQL store."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aioflow.store import Store
from aioflow.testing import StoreConformance
from aioflow.testing.conformance_samples import NOW
from aioflow_postgres import PostgresStore


class TestPostgresStore(StoreConformance):
    """The conformance suite, in a schema of its own for each test."""

    url: str

    @pytest.fixture
    async def store(self, postgres_url: str) -> AsyncIterator[Store]:
        self.url = postgres_url
        store = PostgresStore(self.url)
        await store.open(NOW)
        yield store
        await store.close()

    async def again(self, store: Store) -> Store:
        other = PostgresStore(self.url)
        await other.open(NOW)
        return other
