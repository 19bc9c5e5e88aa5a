"""The reference store: in memory, for tests and simulation."""

from __future__ import annotations

from aioflow_memory.store import MemoryStore

__all__ = ["MemoryStore"]
