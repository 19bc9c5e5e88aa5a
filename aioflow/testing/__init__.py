"""For those who test: what they build on aioflow, or a store of their own for it.

pytest is imported with ``StoreConformance`` only, so that nothing else here needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aioflow.testing.conformance import StoreConformance

__all__ = ["StoreConformance"]


def __getattr__(name: str) -> object:
    if name != "StoreConformance":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from aioflow.testing.conformance import StoreConformance

    return StoreConformance
