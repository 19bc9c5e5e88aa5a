"""A wire to a PostgreSQL server that cuts, delays, goes silent, and loses replies, as it is told to."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

#: The server's word that a transaction is committed.
COMMITTED = b"COMMIT\0"


class Wire:
    """A proxy between sockets.

    Attributes:
        silent: nothing comes through, either way, and nobody is told: half-open connections.
        delay: seconds that each piece takes.
        lose_commit: the next reply to a COMMIT is lost, and its connection with it.
        lose_reply: the next reply that a client gets is lost likewise, if the client has asked with more than so many bytes.
        lost: how many replies were.
        cuts: how many connections were cut.
    """

    def __init__(self, server: Path) -> None:
        self._server = server
        self._directory = Path(tempfile.mkdtemp(prefix="aioflow-wire-"))
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.silent = False
        self.delay = 0.0
        self.lose_commit = False
        self.lose_reply: int | None = None
        self.lost = 0
        self.cuts = 0

    @property
    def url(self) -> str:
        """Where the wire begins."""
        return f"postgresql://postgres@/postgres?host={quote(str(self._directory), safe='')}"

    async def __aenter__(self) -> Self:
        self._listening = await asyncio.start_unix_server(self._connect, self._directory / ".s.PGSQL.5432")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        shutil.rmtree(self._directory)

    def cut(self) -> None:
        """Cut all connections that there are."""
        self.cuts += len(self._writers) // 2
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(self._server)
        self._writers |= {writer, back}
        asked = [0]
        for task in (
            asyncio.create_task(self._carry(reader, back, asked, answers=False)),
            asyncio.create_task(self._carry(there, writer, asked, answers=True)),
        ):
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: list[int], *, answers: bool
    ) -> None:
        with suppress(OSError):
            while piece := await reader.read(1 << 16):
                if self.delay:
                    await asyncio.sleep(self.delay)
                if self.silent:
                    continue
                if not answers:
                    asked[0] += len(piece)
                elif self._loses(piece, asked[0]):
                    self.lost += 1
                    break
                else:
                    asked[0] = 0
                writer.write(piece)
                await writer.drain()
        if answers:
            writer.transport.abort()
        else:
            writer.close()
        self._writers.discard(writer)

    def _loses(self, piece: bytes, asked: int) -> bool:
        if self.lose_commit and COMMITTED in piece:
            self.lose_commit = False
            return True
        if self.lose_reply is not None and asked > self.lose_reply:
            self.lose_reply = None
            return True
        return False
