"""The server's clock, which all workers of a store use, however wrong the clocks of their machines are."""

from __future__ import annotations

from aioflow.clock import Clock, Micros
from aioflow_postgres.session import Session

_NOW = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"


class ServerClock:
    """How far the server's clock is ahead of the machine's, even if the latter was set since that was measured.

    The mutable state: how far it is ahead of the machine's monotonic clock; None before it was measured.
    """

    def __init__(self) -> None:
        self._clock = Clock()
        self._ahead: Micros | None = None

    @property
    def ahead(self) -> Micros:
        """The offset in microseconds; negative if the machine's clock is ahead."""
        return 0 if self._ahead is None else self._ahead + self._clock.monotonic() - self._clock.micros()

    async def measure(self, session: Session) -> None:
        """Ask the server. A difference that the reply's delay may explain is ignored, so that time does not jump."""
        asked = self._clock.monotonic()
        [(there,)] = await session.fetch(_NOW)
        answered = self._clock.monotonic()
        ahead = int(there) - (asked + answered) // 2
        if self._ahead is None or abs(ahead - self._ahead) > answered - asked:
            self._ahead = ahead
