"""The embedded store: one SQLite file, one process that works it, any number that start and query."""

from aioflow_sqlite.store import SQLiteStore

__all__ = ["SQLiteStore"]
