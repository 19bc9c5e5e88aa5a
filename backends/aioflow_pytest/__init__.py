"""The pytest plugin: the fixture ``flow``, for async tests that anyio's plugin or pytest-asyncio runs.

pytest loads the plugin in every session, so it is a package of its own, and imports aioflow only when a test uses the
fixture: other sessions do not pay for the import, and coverage tools see it happen.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from inspect import signature
from types import ModuleType
from typing import TYPE_CHECKING, cast

import pytest

if TYPE_CHECKING:
    from aioflow.testing import TimeMachine

_SCOPES = ("function", "class", "module", "package", "session")
_ON_ANYIO = "_aioflow_on_anyio"
_ON_ASYNCIO = "_aioflow_on_asyncio_{}"
_FIXTURES = "aioflow_pytest on asyncio"


@pytest.fixture
def flow(request: pytest.FixtureRequest) -> TimeMachine:
    """An open ``aioflow.testing.TimeMachine``, in memory, of the test's own.

    It knows all workflows, including those that the test defines; workflows defined in functions are forgotten after
    the test. During the test ``aioflow.engine`` is this machine, however the code under test has imported it.
    """
    return cast("TimeMachine", request.getfixturevalue(_fixture_of(request)))


def _fixture_of(request: pytest.FixtureRequest) -> str:
    """The name of the fixture that opens the machine in the event loop of the test."""
    marker = request.node.get_closest_marker("asyncio")
    on_anyio = "anyio_backend" in request.fixturenames
    if marker is not None and request.config.pluginmanager.hasplugin("asyncio"):
        if on_anyio:
            pytest.fail(
                f"{request.node.name} is a test of anyio's plugin and of pytest-asyncio at once, which have an event "
                "loop each. Give one of them up, or set both asyncio_mode and anyio_mode to strict and mark each test.",
                pytrace=False,
            )
        if not request.config.pluginmanager.hasplugin(_FIXTURES):
            pytest.fail(
                f"The fixture 'flow' needs pytest-asyncio 0.24 or newer, to open in the event loop of "
                f"{request.node.name}. Try: pip install -U pytest-asyncio.",
                pytrace=False,
            )
        scope = marker.kwargs.get("loop_scope") or marker.kwargs.get("scope") or _default_scope(request.config)
        return _ON_ASYNCIO.format(scope)
    if not on_anyio:
        pytest.fail(
            f"The fixture 'flow' needs the event loop of an async test, and {request.node.name} has none. Make it an "
            "'async def' that anyio or pytest-asyncio runs: mark it with @pytest.mark.anyio or @pytest.mark.asyncio.",
            pytrace=False,
        )
    backend = request.getfixturevalue("anyio_backend")
    name = backend if isinstance(backend, str) else backend[0]
    if name != "asyncio":
        pytest.fail(
            f"aioflow runs on asyncio, and {request.node.name} on {name}. "
            "Define a fixture anyio_backend that returns 'asyncio'.",
            pytrace=False,
        )
    return _ON_ANYIO


def _default_scope(config: pytest.Config) -> str:
    try:
        return str(config.getini("asyncio_default_test_loop_scope"))
    except (KeyError, ValueError):  # an older pytest-asyncio, without this option
        return "function"


@asynccontextmanager
async def _machine() -> AsyncGenerator[TimeMachine]:
    from aioflow import engine
    from aioflow.registry import registry
    from aioflow.testing import TimeMachine

    with registry.scope():
        async with TimeMachine() as flow:
            with engine.replaced_by(flow):
                yield flow


async def _open() -> AsyncGenerator[TimeMachine]:
    async with _machine() as flow:
        yield flow


_on_anyio = pytest.fixture(name=_ON_ANYIO)(_open)


def pytest_configure(config: pytest.Config) -> None:
    """If pytest-asyncio is loaded, register a fixture for each scope of its event loops.

    Before version 0.24 a fixture cannot choose its loop; then none is registered, and only tests that use ``flow``
    fail.
    """
    if not config.pluginmanager.hasplugin("asyncio"):
        return
    import pytest_asyncio

    if "loop_scope" not in signature(pytest_asyncio.fixture).parameters:
        return

    def opens(scope: str) -> object:
        async def on_asyncio() -> AsyncGenerator[TimeMachine]:
            async with _machine() as flow:
                yield flow

        return pytest_asyncio.fixture(on_asyncio, loop_scope=scope, name=_ON_ASYNCIO.format(scope))  # type: ignore[call-overload]

    fixtures = ModuleType(_FIXTURES)  # pytest collects fixtures from modules and classes
    vars(fixtures).update({scope: opens(scope) for scope in _SCOPES})
    config.pluginmanager.register(fixtures, fixtures.__name__)
