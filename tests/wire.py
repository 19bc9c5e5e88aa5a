"""A proxy to a PostgreSQL server that cuts, delays or silences connections and loses replies, as a test demands."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

#: In the server's answer: a transaction is committed.
COMMITTED = b"COMMIT\0"


class Link:
    """A connection through the wire: the client's side, and the server's unless it was lost.

    The mutable state: how many bytes the client has sent since the last answer, and whether the server's side is lost.
    """

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter | None) -> None:
        self.client = client
        self.server = server
        self.asked = 0

    def cut(self) -> None:
        """Cut the connection on both sides."""
        self.client.transport.abort()
        self.lose_server()

    def lose_server(self) -> None:
        """Cut the server's side; the client's stays open, but nobody reads what it sends."""
        server, self.server = self.server, None
        if server is not None:
            server.transport.abort()


class Wire:
    """A proxy between a TCP port and the server's socket.

    Attributes:
        silent: data of both sides is dropped, and neither is told: the connection is half-open for both.
        deaf: what clients send reaches the server, but its answers are dropped.
        gone: new connections are accepted, but lead to no server; see also ``hang``.
        hang_at: as soon as a client sends this, all connections hang.
        delay: seconds by which each piece of data is delayed.
        lose_commit: the next reply to a COMMIT is lost, and its connection with it.
        lose_reply: so is the next reply to a client that has sent more than this many bytes since the last one.
        lost: how many replies were lost.
        cuts: how many connections were cut.
        swallowed: how many pieces of data were dropped.
        delayed: how many pieces of data were delayed.
    """

    def __init__(self, server: Path) -> None:
        self._server = server
        self._tasks: set[asyncio.Task[None]] = set()
        self._links: set[Link] = set()
        self.silent = False
        self.deaf = False
        self.gone = False
        self.hang_at: bytes | None = None
        self.delay = 0.0
        self.lose_commit = False
        self.lose_reply: int | None = None
        self.lost = 0
        self.cuts = 0
        self.swallowed = 0
        self.delayed = 0

    @property
    def url(self) -> str:
        """The URL of the proxy."""
        host, port = self._listening.sockets[0].getsockname()
        return f"postgresql://postgres@{host}:{port}/postgres"

    async def __aenter__(self) -> Self:
        self._listening = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def faults(self) -> int:
        """How many faults have had an effect."""
        return self.lost + self.cuts + self.swallowed + self.delayed

    def mend(self) -> None:
        """Let new connections, and those that are not cut, work again."""
        self.silent = self.deaf = self.gone = False
        self.delay = 0.0

    def fail(self, how: str) -> None:
        """Begin to fail in this way."""
        match how:
            case "cut":
                self.cut()
            case "hang":
                self.hang()
            case "slow":
                self.delay = 0.02
            case "lose commit":
                self.lose_commit = True
            case "lose reply":
                self.lose_reply = 500
            case _:
                assert how in ("silent", "deaf")
                setattr(self, how, True)

    def cut(self) -> None:
        """Cut all open connections."""
        self.cuts += len(self._links)
        for link in self._links:
            link.cut()
        self._links.clear()

    def hang(self) -> None:
        """Cut the server's side of all connections: the clients' sides stay open, and new ones lead nowhere, too."""
        self.gone = True
        for link in self._links:
            link.lose_server()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.gone:
            link, there = Link(writer, None), None
        else:
            there, back = await asyncio.open_unix_connection(self._server)
            link = Link(writer, back)
        self._links.add(link)
        self._spawn(self._carry_there(link, reader))
        if there is not None:
            self._spawn(self._carry_back(link, there))

    def _spawn(self, carrying: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(carrying)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry_there(self, link: Link, client: asyncio.StreamReader) -> None:
        """Pass on what the client sends."""
        with suppress(OSError):
            while piece := await self._piece(client):
                if self.hang_at is not None and self.hang_at in piece:
                    self.hang_at = None
                    self.hang()
                if self.silent or link.server is None:
                    self.swallowed += 1
                    continue
                link.asked += len(piece)
                link.server.write(piece)
                await link.server.drain()
        if link.server is not None:
            link.server.close()  # which ends _carry_back
        else:
            self._end(link)

    async def _carry_back(self, link: Link, server: asyncio.StreamReader) -> None:
        """Pass on what the server answers."""
        with suppress(OSError):
            while piece := await self._piece(server):
                if self.silent or self.deaf:
                    self.swallowed += 1
                    continue
                if self._loses(piece, link.asked):
                    self.lost += 1
                    break
                link.asked = 0
                link.client.write(piece)
                await link.client.drain()
        if link.server is not None:
            self._end(link)

    def _end(self, link: Link) -> None:
        self._links.discard(link)
        link.cut()

    async def _piece(self, reader: asyncio.StreamReader) -> bytes:
        piece = await reader.read(1 << 16)
        if self.delay:
            await asyncio.sleep(self.delay)
            self.delayed += 1
        return piece

    def _loses(self, piece: bytes, asked: int) -> bool:
        if self.lose_commit and COMMITTED in piece:
            self.lose_commit = False
            return True
        if self.lose_reply is not None and asked > self.lose_reply:
            self.lose_reply = None
            return True
        return False
