"""The PostgreSQL store: several workers on several machines share one database."""

from __future__ import annotations

from aioflow_postgres.store import PostgresStore

__all__ = ["PostgresStore"]
