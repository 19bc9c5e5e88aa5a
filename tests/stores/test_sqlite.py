"""The SQLite store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aioflow.store import Store
from aioflow.testing import StoreConformance
from aioflow.testing.conformance_samples import NOW
from aioflow_sqlite import SQLiteStore


class TestSQLiteStore(StoreConformance):
    """The conformance suite, on a file of its own for each test."""

    url: str

    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[Store]:
        self.url = f"sqlite:///{tmp_path}/aioflow.db"
        store = SQLiteStore(self.url)
        await store.open(NOW)
        yield store
        await store.close()

    async def again(self, store: Store) -> Store:
        other = SQLiteStore(self.url)
        await other.open(NOW)
        return other
