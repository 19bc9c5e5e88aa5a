"""Renews the lease from a thread while the event loop is blocked.

Normally the event loop renews its worker's lease. While a step blocks the loop it cannot, though the process is alive,
and other workers would take its runs over and run their steps again. So a thread checks whether the loop still turns;
if it does not, the thread renews the lease, over a connection of its own. A loop that has been blocked for four leases
is taken for dead.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from threading import Event, Thread, get_ident
from typing import Final

import asyncpg
import structlog
from anyio import to_thread

from aioflow.clock import SECOND, Clock, Micros
from aioflow_postgres import ownership
from aioflow_postgres.address import Address
from aioflow_postgres.database import hang_up
from aioflow_postgres.failures import FAILURES
from aioflow_postgres.session import Session, Statements

_log = structlog.get_logger("aioflow")
#: For how many leases a blocked loop counts as alive.
_PATIENCE: Final = 4
#: The most seconds between two checks of the loop, however long a lease is.
_LONGEST_LOOK: Final = 60.0
#: How many seconds ``stop`` waits for the thread.
_LAST_WAIT: Final = 2.0


class Pulse:
    """Renews the lease of a worker whose event loop is blocked.

    Args:
        address: where the store is.
        ahead: how far the store's clock is ahead of the machine's.

    The mutable state: the thread, and when the loop was last seen turning.
    """

    def __init__(self, address: Address, ahead: Callable[[], Micros]) -> None:
        self._address = address
        self._ahead = ahead
        self._clock = Clock()
        self._thread: Thread | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._end = Event()
        self._seen: Micros = 0

    def start(self, worker: int, lease: Micros) -> None:
        """Keep this worker's lease from now on, unless the thread runs already; called in the event loop."""
        if self._thread is None:
            self._end = Event()
            loop = asyncio.get_running_loop()
            self._turn(loop, min(lease / 20 / SECOND, _LONGEST_LOOK / 2))
            arguments = (worker, lease, loop, get_ident())
            self._thread = Thread(target=self._run, args=arguments, name="aioflow pulse", daemon=True)
            self._thread.start()

    async def stop(self) -> None:
        """Stop keeping the lease."""
        self._end.set()
        if self._timer is not None:
            self._timer.cancel()
        if self._thread is not None:
            await to_thread.run_sync(self._thread.join, _LAST_WAIT)  # it may be connecting
            self._thread = None

    def _turn(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        """Record that the event loop turns, and call this again after ``seconds``."""
        self._seen = self._clock.monotonic()
        self._timer = loop.call_later(seconds, self._turn, loop, seconds)

    def _run(self, worker: int, lease: Micros, loop: asyncio.AbstractEventLoop, thread: int) -> None:
        over = False
        while not self._end.wait(min(lease / 10 / SECOND, _LONGEST_LOOK)) and not loop.is_closed():
            blocked = self._blocked(lease)
            over = over and bool(blocked)
            if blocked and not over:
                try:
                    over = not asyncio.run(self._keep(worker, lease, thread))
                except (*FAILURES, TimeoutError) as error:
                    _log.warning("the lease of a blocked event loop cannot be renewed", worker=worker, error=str(error))

    def _blocked(self, lease: Micros) -> Micros:
        """For how long the event loop has been blocked; 0 if it is not, or for so long that it is taken for dead."""
        silent = self._clock.monotonic() - self._seen
        return silent if lease // 5 < silent < _PATIENCE * lease else 0

    async def _keep(self, worker: int, lease: Micros, thread: int) -> bool:
        """Renew the lease until the event loop turns again; False if the lease is over."""
        timeout = lease / 2 / SECOND
        connection = await asyncpg.connect(self._address.dsn, timeout=timeout, statement_cache_size=0)
        session = Session(connection, Statements(self._address.schema))
        told = ""
        try:
            while blocked := self._blocked(lease):
                late = asyncio.get_running_loop().call_later(timeout, connection.terminate)
                kept = await ownership.renew(session, worker, lease, self._clock.micros() + self._ahead())
                late.cancel()
                before, told = told, "was renewed beside it" if kept else "is over"
                if told != before:
                    seconds = round(blocked / SECOND, 1)
                    text = f"event loop is blocked, the worker's lease {told}"
                    _log.warning(text, worker=worker, seconds=seconds, at=_place(thread))
                if not kept:
                    return False
                if self._end.wait(min(lease / 5 / SECOND, _LONGEST_LOOK)):
                    break
            return True
        finally:
            await hang_up(connection)


def _place(thread: int) -> str:
    """The line of code that a thread executes."""
    frame = sys._current_frames().get(thread)  # noqa: SLF001 - the only way to see another thread
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
