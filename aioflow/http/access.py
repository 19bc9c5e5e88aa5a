"""Authorization: asks the host's ``authorize`` about each operation, with the run as it was loaded."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

from starlette.requests import Request

from aioflow.errors import RunNotFound
from aioflow.http.problems import Problem
from aioflow.run import WorkflowRun
from aioflow.runtime import Engine

#: The most digits that a run's id can have.
_DIGITS: Final = len(str(1 << 53))
#: ``authorize(request, operation, run)``, sync or async: whether it is allowed. ``run`` is the loaded run, or None if
#: the operation is about no single run, or about a run that does not exist.
Authorize: TypeAlias = Callable[[Request, str, WorkflowRun[Any] | None], bool | Awaitable[bool]]


class Access:
    """Asks ``authorize``. Without one, everything is allowed that the guard has let in.

    Args:
        engine: where runs are loaded.
        authorize: the host's function.
    """

    def __init__(self, engine: Engine, authorize: Authorize | None) -> None:
        self._engine = engine
        self._authorize = authorize

    async def allows(self, request: Request, operation: str, run: WorkflowRun[Any] | None) -> bool:
        """Whether the operation is allowed: only if the answer is true."""
        if self._authorize is None:
            return True
        answer = self._authorize(request, operation, run)
        return bool(await answer if inspect.isawaitable(answer) else answer)

    async def check(self, request: Request, operation: str, run: WorkflowRun[Any] | None = None) -> None:
        """Raise Problem ("forbidden") unless it is allowed."""
        if not await self.allows(request, operation, run):
            raise Problem("forbidden")

    async def load(self, request: Request, operation: str) -> WorkflowRun[Any]:
        """The run that the address names, if the operation is allowed on it.

        Raises:
            Problem: "forbidden", also for a run that does not exist, if the operation is not allowed without a run: so
                a caller without rights does not learn which runs exist.
            RunNotFound: there is no such run.
        """
        try:
            run = await self._engine.get(_id_in(request))
        except RunNotFound:
            await self.check(request, operation)
            raise
        await self.check(request, operation, run)
        return run

    async def load_again(self, request: Request, operation: str, run: WorkflowRun[Any]) -> WorkflowRun[Any]:
        """The run as it is after the body was read, which the client may have held back for as long as it liked.

        If the run has moved since it was authorized, ``authorize`` is asked about it again.

        Raises:
            Problem: "forbidden".
        """
        now = await self._engine.get(run.id)
        if now.row.seq != run.row.seq:
            await self.check(request, operation, now)
        return now


def _id_in(request: Request) -> int:
    """The run id in the address; 0, which no run has, if it is not a valid id."""
    text = str(request.path_params["run_id"])
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _DIGITS else 0
