"""Hints that other processes have written: NOTIFY without payload, on a connection of its own, outside transactions.

If a hint is lost, everything still works, only later. A connection that looks alive may be half open, so it is used
every few seconds. Whenever listening begins again, that counts as a hint, as some may have been missed.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final

import asyncpg

from aioflow.clock import SECOND, Clock, Micros
from aioflow_postgres.database import hang_up
from aioflow_postgres.session import quoted

#: How often the connection is used if there is no hint to send.
_PING: Final[Micros] = 5 * SECOND
#: The least time between two hints that are sent: many commits in a row need only one.
_REST: Final[Micros] = SECOND // 100
#: Bytes: a longer name the server cuts, and asyncpg then does not know it again.
_LONGEST_CHANNEL: Final = 60
_FIRST_BACKOFF: Final[Micros] = SECOND // 10
_LONGEST_BACKOFF: Final[Micros] = 2 * SECOND


class Ear:
    """Listens for hints, and sends them.

    Args:
        dsn: the URL of the server itself, not of a pooler.
        schema: the schema whose writes the hints are about.
        timeout: seconds after which a silent connection is dropped.

    The mutable state: how many hints were heard, whether one is to be sent (``_untold``), and the task with its
    connection.
    """

    def __init__(self, dsn: str, schema: str, timeout: float) -> None:
        self._dsn = dsn
        self._channel = f"aioflow {schema}".encode()[:_LONGEST_CHANNEL].decode(errors="ignore")
        self._timeout = timeout
        self._clock = Clock()
        self.heard = 0
        self.listening = False
        self._news = asyncio.Event()
        self._wake = asyncio.Event()
        self._untold = False
        self._ending = asyncio.Event()
        self._connection: Any = None
        self._own_pid = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Listen until ``close``."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="aioflow postgres ear")

    async def close(self) -> None:
        """Send a hint that is still to be sent, and stop."""
        self._ending.set()
        self._wake.set()
        if self._task is not None:
            late = asyncio.get_running_loop().call_later(1.0, self._drop)
            await asyncio.wait({self._task}, timeout=self._timeout)
            late.cancel()
            self._task.cancel()  # if it is still connecting: that may be cancelled
            await asyncio.wait({self._task})

    def tell(self) -> None:
        """Send a hint that something was written."""
        self._untold = True
        self._wake.set()

    async def news(self, seen: int, patience: Micros) -> int:
        """How many hints were heard; if that is ``seen``, waits up to ``patience`` for another one."""
        if self.heard == seen:
            self._news.clear()
            await self._clock.wait(self._news, patience)
        return self.heard

    def _hear(self, _: Any, pid: int, __: str, ___: object) -> None:
        if pid != self._own_pid:
            self._count()

    def _count(self) -> None:
        self.heard += 1
        self._news.set()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()

    async def _run(self) -> None:
        backoff = _FIRST_BACKOFF
        while not self._ending.is_set():
            try:
                connection = self._connection = await asyncpg.connect(self._dsn, timeout=self._timeout)
                self._own_pid = connection.get_server_pid()
                try:
                    await self._in_time(connection.add_listener(self._channel, self._hear))
                    backoff = _FIRST_BACKOFF
                    self.listening = True
                    self._count()
                    while not self._ending.is_set() or self._untold:
                        await self._use(connection)
                finally:
                    self.listening = False
                    self._connection = None
                    with suppress(asyncpg.InterfaceError):
                        connection.remove_termination_listener(self._lost)
                    await hang_up(connection)
            except Exception:  # noqa: BLE001 - asyncpg may raise anything for a lost connection: connect again
                self._wake.clear()
                if not self._ending.is_set():
                    await self._clock.wait(self._wake, backoff)
                backoff = min(2 * backoff, _LONGEST_BACKOFF)

    async def _use(self, connection: Any) -> None:
        """Send a hint, once there is one to send, or check that the connection is still alive."""
        connection.add_termination_listener(self._lost)
        if not self._untold and not self._ending.is_set():
            self._wake.clear()
            await self._clock.wait(self._wake, _PING)
        untold, self._untold = self._untold, False
        try:
            await self._in_time(connection.execute(f"NOTIFY {quoted(self._channel)}" if untold else "SELECT 1"))
        except BaseException:
            self._untold = self._untold or untold
            raise
        if untold and not self._ending.is_set():
            await self._clock.sleep(_REST)

    def _lost(self, _: object) -> None:
        self._wake.set()  # using the connection will raise

    async def _in_time(self, doing: Any) -> None:
        late = asyncio.get_running_loop().call_later(self._timeout, self._drop)
        try:
            await doing
        finally:
            late.cancel()
