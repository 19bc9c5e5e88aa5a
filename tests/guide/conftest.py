"""A fixture that lets a test fail if the engine reports a bug."""

from __future__ import annotations

from tests.engine.conftest import log  # noqa: F401 - autouse
