"""``aioflow.engine``: the ready engine of programs that need just one, which another may stand in for in tests."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from aioflow.parts import Parts
from aioflow.registry import Registry
from aioflow.runtime import Engine
from aioflow.shutdown import signalled
from aioflow.telemetry import Instrument


class ReadyEngine(Engine):
    """A ready engine. It reads ``AIOFLOW_DATABASE_URL`` when it is opened.

    While another engine stands in for it, every call goes to that one, whoever imported this one and however; opening
    and closing this one then does nothing, as the other is open.

    The mutable state, beside that of an Engine: the engine that stands in, and for each opening that is not closed yet,
    whether it opened this engine.
    """

    def __init__(self) -> None:
        super().__init__()
        self._stand_in: Engine | None = None
        self._opened: list[bool] = []

    def __repr__(self) -> str:
        return super().__repr__() if self._stand_in is None else repr(self._stand_in)

    @contextmanager
    def replaced_by(self, other: Engine) -> Generator[None]:
        """Let another engine stand in for this one in the whole process: ``with engine.replaced_by(flow): ...``.

        Args:
            other: an engine that is open, or will be when it is called. Of several, the last one given stands in.
        """
        before, self._stand_in = self._stand_in, other
        try:
            yield
        finally:
            self._stand_in = before

    def _open_for(self, call: str) -> Parts:
        return super()._open_for(call) if self._stand_in is None else self._stand_in._open_for(call)

    @property
    def registry(self) -> Registry:
        """The workflows that it knows."""
        return super().registry if self._stand_in is None else self._stand_in.registry

    @property
    def instruments(self) -> list[Instrument]:
        """What is told of transitions and steps beside the log: append your own instruments."""
        return super().instruments if self._stand_in is None else self._stand_in.instruments

    async def __aenter__(self) -> Self:
        """Open the engine, unless another stands in for it. See ``Engine``."""
        real = self._stand_in is None
        if real:
            await super().__aenter__()
        self._opened.append(real)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the engine, unless another stood in for it when it was opened."""
        if not self._opened or self._opened.pop():
            await super().__aexit__(kind, error, trace)

    async def run_forever(self) -> None:
        """Work until SIGTERM or SIGINT; see ``Engine``. While another stands in, only wait for the signal.

        Raises:
            BackendUnknown, StoreUnavailable, ValueError, UsageError: as opening the engine does.
        """
        if self._stand_in is None:
            await super().run_forever()
        else:
            await signalled()


#: A ready engine for programs that need just one; it reads ``AIOFLOW_DATABASE_URL`` when it is opened.
engine = ReadyEngine()
