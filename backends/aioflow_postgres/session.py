"""A connection for the duration of an operation, and the statements that it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, Generic, Protocol, TypeVar

import asyncpg

T = TypeVar("T")

#: How many statements are cached: more than there are without those of users' questions.
_MOST_STATEMENTS: Final = 500
#: Seconds that a question may go on when its caller has left: a new connection costs as much as a short question.
_GRACE: Final = 1.0


class Connection(Protocol):
    """The methods of asyncpg's connections that are used."""

    async def execute(self, query: str, *args: Any) -> str:
        """Run a statement, and return the server's command tag."""
        ...

    async def fetch(self, query: str, *args: Any) -> list[Any]:
        """Run a statement, and return its rows."""
        ...

    def is_in_transaction(self) -> bool:
        """Whether a transaction is open."""
        ...

    def is_closed(self) -> bool:
        """Whether the connection is closed."""
        ...

    def terminate(self) -> None:
        """Drop it."""
        ...


class Session:
    """A connection for the duration of one operation. Statements name the schema "aioflow", which is replaced."""

    __slots__ = ("_connection", "_sql")

    def __init__(self, connection: Connection, sql: Statements) -> None:
        self._connection = connection
        self._sql = sql

    async def fetch(self, sql: str, *values: Any) -> list[Any]:
        """Run a statement, and return its rows."""
        return await self._connection.fetch(self._sql[sql], *values)

    async def execute(self, sql: str, *values: Any) -> None:
        """Run a statement."""
        await self._connection.execute(self._sql[sql], *values)

    def drop(self) -> None:
        """Drop the connection: what the operation awaits raises."""
        drop(self._connection)


def drop(connection: Connection) -> None:
    """Drop a connection, unless it was lost and the pool has taken it back."""
    with suppress(asyncpg.InterfaceError):
        connection.terminate()


class Statements(dict[str, str]):
    """A bounded cache of statements in which the address's schema replaces ``aioflow``.

    Of users' questions there are as many as there are filters, which callers choose.
    """

    def __init__(self, schema: str) -> None:
        super().__init__()
        self._schema = quoted(schema)

    def __missing__(self, sql: str) -> str:
        if len(self) >= _MOST_STATEMENTS:
            self.clear()
        made = self[sql] = sql.replace("aioflow.", f"{self._schema}.")
        return made


def quoted(name: str) -> str:
    """An identifier, quoted."""
    return '"' + name.replace('"', '""') + '"'


Operation = Callable[[Session], Awaitable[T]]


class Question(Generic[T]):
    """An operation that is to end soon after its caller has left.

    The mutable state: the session, while the operation runs, and whether the caller has left.
    """

    def __init__(self, operation: Operation[T]) -> None:
        self._operation = operation
        self._session: Session | None = None
        self._left = False

    async def __call__(self, session: Session) -> T:
        """Run the operation."""
        if self._left:
            raise asyncio.CancelledError
        self._session = session
        try:
            return await self._operation(session)
        finally:
            self._session = None

    def leave(self) -> None:
        """The caller has left: drop the connection if the operation still has it in a second."""
        self._left = True
        asyncio.get_running_loop().call_later(_GRACE, self._end)

    def _end(self) -> None:
        if self._session is not None:
            self._session.drop()
