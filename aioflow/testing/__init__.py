"""Tools for tests: of programs that use aioflow, and of stores (``StoreConformance``).

Each name is loaded when it is first imported, so that ``TimeMachine`` needs no pytest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aioflow.testing.alone import StepResult
    from aioflow.testing.conformance import StoreConformance
    from aioflow.testing.timemachine import TimeMachine

__all__ = ["StepResult", "StoreConformance", "TimeMachine"]

_MODULES = {"StepResult": "alone", "StoreConformance": "conformance", "TimeMachine": "timemachine"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"aioflow.testing.{_MODULES[name]}"), name)
