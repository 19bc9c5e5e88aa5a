"""The server's clock, by which all workers of a store go, however wrong those of their machines are."""

from __future__ import annotations

from aioflow.clock import Clock, Micros
from aioflow_postgres.database import Session

_NOW = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"


class ServerClock:
    """How far the server's clock is ahead of the machine's, also when that was set anew since it was measured.

    The mutable state: how far it is ahead of the machine's monotonic clock, None before the first time.
    """

    def __init__(self) -> None:
        self._clock = Clock()
        self._ahead: Micros | None = None

    @property
    def ahead(self) -> Micros:
        """Microseconds; negative if the machine's is ahead."""
        return 0 if self._ahead is None else self._ahead + self._clock.monotonic() - self._clock.micros()

    async def measure(self, session: Session) -> None:
        """Ask the server. A difference that the answer's delay may explain is none, so that time runs evenly."""
        asked = self._clock.monotonic()
        [(there,)] = await session.fetch(_NOW)
        answered = self._clock.monotonic()
        ahead = int(there) - (asked + answered) // 2
        if self._ahead is None or abs(ahead - self._ahead) > answered - asked:
            self._ahead = ahead
