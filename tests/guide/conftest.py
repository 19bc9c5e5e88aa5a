"""A test in which the engine reports a bug fails, here too."""

from __future__ import annotations

from tests.engine.conftest import log  # noqa: F401 - autouse
