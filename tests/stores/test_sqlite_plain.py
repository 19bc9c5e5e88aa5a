"""How SQLite writes plain batches: by one statement that needs no temporary file, or like any other."""

from __future__ import annotations

from pathlib import Path

import pytest

from aioflow.testing.conformance_samples import NOW, a_run, starting
from aioflow_sqlite import SQLiteStore


@pytest.mark.parametrize(("text", "is_plain"), [("x" * 3000, True), ("x" * 8000, False), ("Ω" * 3000, False)])
async def test_a_large_batch_needs_no_temporary_file(tmp_path: Path, text: str, *, is_plain: bool) -> None:
    """A batch is written by one statement only if its size in bytes fits into the statement's cache."""
    store = SQLiteStore(f"sqlite:///{tmp_path}/runs.db")
    await store.open(NOW)
    statements: list[str] = []
    assert store._writer is not None
    await store._writer.run(lambda db: db.set_trace_callback(statements.append))
    await store.apply([starting(a_run(number, data=f'"{text}"')) for number in range(1, 101)], NOW)
    await store._writer.run(lambda db: db.set_trace_callback(None))
    assert any("INSERT INTO temp." in statement for statement in statements) == is_plain
    await store.close()
