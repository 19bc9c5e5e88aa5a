"""``Engine.watch``: a run's transitions, one after the other, as they are committed."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final

from aioflow.client import Client
from aioflow.errors import EngineClosed
from aioflow.model import LIVE, Transition, check_id
from aioflow.parts import Parts
from aioflow.waiters import reached

#: How many transitions are read at once.
_PAGE: Final = 500


class Watching(Client):
    """The call that follows a run."""

    def watch(self, run_id: int, *, after: int = 0) -> AsyncGenerator[Transition, None]:
        """Follow a run: its transitions from the first one on, as they commit, until it has ended.

        ``async for transition in engine.watch(run.id): ...``. It sees what another process commits as soon as ``wait``
        would. A slow watcher misses nothing, as it reads what is stored; between two transitions it holds no resources,
        so that the loop may be left.

        Args:
            run_id: the run's id.
            after: only transitions with a higher seq; to go on from there, the seq of the last one that was seen.

        Returns:
            An async generator of transitions, as ``history`` gives them: in order, without gaps, each once. The last is
            the one that ended the run. For a run that has ended it gives its history, and ends.

        Raises:
            TypeError, ValueError: at once, for an argument of the wrong type or out of its range.
            EngineClosed: at once if the engine is not open; in the iteration, if it is closed meanwhile.
            RunNotFound: in the iteration, if there is no such run.
            StoreUnavailable: in the iteration, which can be repeated with ``after`` the last seq.
        """
        parts = self._open_for("watch()")
        check_id(run_id)
        if isinstance(after, bool) or not isinstance(after, int):
            raise TypeError(f"watch(after=...) takes a seq as an int, got {type(after).__name__}.")
        if after < 0:
            raise ValueError(f"watch(after=...) takes a seq, which is never negative, got {after}.")
        return self._watch(parts, run_id, after)

    async def _watch(self, parts: Parts, run_id: int, after: int) -> AsyncGenerator[Transition, None]:
        while rows := await self._further(parts, run_id, after):
            for row in rows:
                yield row
            after = rows[-1].seq

    async def _further(self, parts: Parts, run_id: int, after: int) -> list[Transition]:
        """The next transitions after this one, once there are any; none if the run has ended without any."""
        try:
            future = parts.waiters.add(run_id, after)  # before reading, so that no later commit is missed
            try:
                while True:
                    rows = await parts.store.history(run_id, after, _PAGE, parts.clock.micros())
                    if rows:
                        return rows
                    run = await self.reread(run_id)
                    if not reached(run, after):
                        async with parts.clock.limit(None):
                            run = await future
                    if run.status not in LIVE and run.seq <= after:
                        return []
            finally:
                parts.waiters.remove(run_id, future)
        except EngineClosed:
            raise EngineClosed("engine.watch()") from None
