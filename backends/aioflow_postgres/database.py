"""Connections, and operations on them.

A cancellation inside asyncpg can leave a connection in a state that breaks later operations: after a BEGIN whose
cancellation went unnoticed, all later transactions are savepoints in one that nobody commits. So nothing is ever
cancelled inside asyncpg. An operation is a task of its own, which runs to its end even if its caller is cancelled; if
it takes too long, or the connection's state is in doubt, the connection is dropped.

Behind a pooler, which may give each transaction another server process, every operation is a transaction, and no
statement is kept prepared.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, TypeVar

import asyncpg
from anyio import CancelScope

from aioflow.errors import StoreUnavailable
from aioflow_postgres.address import Address
from aioflow_postgres.failures import ELSEWHERE, FAILURES, IN_THE_WAY, told_apart
from aioflow_postgres.session import Connection, Operation, Question, Session, Statements, drop

T = TypeVar("T")

_TRIES: Final = 8
#: Milliseconds after which the server ends an idle transaction, and releases its locks: a process that is stopped in
#: the middle of one must not hold up others.
_IDLE: Final = 5000
_BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
_LOOK: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
#: All our queries read few rows by an index, however many parameters they have and whatever the statistics say of
#: tables that grow quickly. So query plans are generic, made once and not each time, and use indexes.
#: ``random_page_cost``: at its default an index that finds few rows seems too expensive, and the rows of a rare name
#: are sought among all, by id.
_SETTINGS: Final = (
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("enable_seqscan", "off"),
    ("random_page_cost", "1.1"),
    ("jit", "off"),
    ("default_transaction_isolation", "'read committed'"),
    ("idle_in_transaction_session_timeout", _IDLE),
)
#: The server ends a statement whose connection was dropped. PostgreSQL has it since 14, on most systems.
_END: Final = "SET client_connection_check_interval = 1000"
_SET: Final = "; ".join(f"SET {name} = {value}" for name, value in _SETTINGS)
_SET_LOCAL: Final = "; ".join(f"SET LOCAL {name} = {value}" for name, value in _SETTINGS)


class Doubt(Exception):
    """The state of a connection is unknown, or whether a transaction was committed."""


class Database:
    """A pool of connections, and the operations that are under way.

    The mutable state: the pool, whether the server is behind a pooler, the tasks of the operations, and how many more users'
    questions may run.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._sql = Statements(address.schema)
        self._pool: asyncpg.Pool[Any] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._turns = asyncio.Semaphore(address.pool_size // 2)
        self.pooled = False

    async def open(self) -> None:
        """Connect.

        Raises:
            StoreUnavailable: the server cannot be reached, or refuses the connection.
        """
        try:
            self.pooled = await self._behind_a_pooler()
            self._pool = await asyncpg.create_pool(
                self._address.dsn,
                min_size=0,
                max_size=self._address.pool_size,
                timeout=self._address.timeout,
                init=None if self.pooled else _set_up,
                reset=_leave,
                statement_cache_size=0 if self.pooled else 200,
                max_cached_statement_lifetime=0,
            )
        except Exception as error:
            raise told_apart(self._address.name, error) from error

    async def close(self) -> None:
        """Let operations that are under way end, then disconnect; connections that do not close in time are dropped."""
        pool, self._pool = self._pool, None
        await self.settle()
        if pool is not None:
            try:
                await asyncio.wait_for(pool.close(), timeout=2.0)
            except FAILURES:
                pool.terminate()

    async def settle(self) -> None:
        """Wait for operations that are under way, even if their callers were cancelled."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=self._address.timeout)

    async def ask(self, operation: Operation[T]) -> T:
        """Run an operation that reads, each statement by itself. It may take four times as long as a change."""
        return await self._under_way(self._do(operation, transaction=self.pooled, patience=4))

    async def question(self, operation: Operation[T], *, snapshot: bool = False) -> T:
        """Run what a user asks, which may take long: each statement by itself, or all as of one instant.

        Such questions take half of the connections at most, so that runs have the others. One that waits for the others
        for as long as a question may take is given up. One whose caller has left is dropped after a second; the
        server, unless it is behind a pooler, ends it within another.
        """
        try:
            async with asyncio.timeout(4 * self._address.timeout):
                await self._turns.acquire()
        except TimeoutError as error:
            raise told_apart(self._address.name, error) from error
        begin = _LOOK if snapshot else _BEGIN
        question = Question(operation)
        doing = self._do(question, transaction=self.pooled or snapshot, patience=4, begin=begin)
        try:
            return await self._under_way(doing, self._turns.release)
        except asyncio.CancelledError:
            question.leave()
            raise

    async def snapshot(self, operation: Operation[T]) -> T:
        """Run an operation whose statements all read the state as of one instant."""
        return await self._under_way(self._do(operation, transaction=True, patience=4, begin=_LOOK))

    async def say(self, operation: Operation[T]) -> T:
        """Run an operation of one statement that writes: a transaction by itself, retried like ``transact``."""
        return await self._under_way(self._again(operation, transaction=self.pooled))

    async def transact(self, operation: Operation[T], patience: float = 1) -> T:
        """Run an operation in a transaction. It is retried if it failed because of another one's locks."""
        return await self._under_way(self._again(operation, transaction=True, patience=patience))

    async def _under_way(self, doing: Coroutine[Any, Any, T], ended: Callable[[], None] = lambda: None) -> T:
        """Run it in a task. ``ended`` is called when it has ended, also if it was never begun."""
        if self._pool is None:
            doing.close()
            ended()
            raise StoreUnavailable(self._address.name, "it is not open", "Call 'await store.open(now)' first.")
        task = asyncio.get_running_loop().create_task(doing, name="aioflow postgres")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        task.add_done_callback(lambda _: ended())
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():  # the event loop is being closed
                raise StoreUnavailable(self._address.name, "the event loop is being closed") from None
            raise

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # mark it as retrieved: the caller may have been cancelled

    async def _again(self, operation: Operation[T], *, transaction: bool, patience: float = 1) -> T:
        for _ in range(_TRIES - 1):
            try:
                return await self._do(operation, transaction=transaction, patience=patience)
            except StoreUnavailable as error:
                if not isinstance(error.__cause__, IN_THE_WAY):
                    raise
        return await self._do(operation, transaction=transaction, patience=patience)

    async def _do(self, operation: Operation[T], *, transaction: bool, patience: float, begin: str = _BEGIN) -> T:
        pool = self._pool
        try:
            if pool is None:
                raise asyncpg.InterfaceError("the pool is closed")
            connection = await pool.acquire(timeout=self._address.timeout)
        except Exception as error:
            raise told_apart(self._address.name, error) from error
        late = asyncio.get_running_loop().call_later(self._address.timeout * patience, drop, connection)
        try:
            session = Session(connection, self._sql)
            if not transaction:
                return await operation(session)
            # Behind a pooler settings last only for a transaction.
            begin = f"{begin}; {_SET_LOCAL}" if self.pooled else begin
            return await _transaction(connection, session, operation, begin)
        except (*FAILURES, Doubt, UnicodeEncodeError) as error:
            clean = _is_the_servers(error) or (
                transaction and isinstance(error, asyncpg.DataError | UnicodeEncodeError)
            )
            if not clean or isinstance(error, ELSEWHERE):
                drop(connection)
            raise told_apart(self._address.name, error) from error
        except BaseException:
            if _is_lost(connection) or connection.is_in_transaction():
                drop(connection)
            raise
        finally:
            late.cancel()
            with CancelScope(shield=True):
                await _give_back(pool, connection)

    async def _behind_a_pooler(self) -> bool:
        """Whether a transaction runs in another server process than the one that accepted the connection."""
        connection = await asyncpg.connect(self._address.dsn, timeout=self._address.timeout, statement_cache_size=0)
        late = asyncio.get_running_loop().call_later(self._address.timeout, connection.terminate)
        try:
            await connection.execute("BEGIN")
            pid = await connection.fetchval("SELECT pg_backend_pid()")
            await connection.execute("COMMIT")
            return bool(pid != connection.get_server_pid())
        finally:
            late.cancel()
            await hang_up(connection)


async def hang_up(connection: Any) -> None:
    """Close a connection; drop it if that fails."""
    try:
        await connection.close(timeout=2.0)
    except FAILURES:
        connection.terminate()


async def _transaction(connection: Connection, session: Session, operation: Operation[T], begin: str) -> T:
    if connection.is_in_transaction():
        raise Doubt("a transaction was left open on the connection")
    await connection.execute(begin)
    try:
        result = await operation(session)
    except BaseException:
        if not _is_lost(connection):
            try:
                await connection.execute("ROLLBACK")
            except FAILURES:
                drop(connection)
        raise
    if (tag := await connection.execute("COMMIT")) != "COMMIT":
        raise Doubt(f"the server answered {tag} to COMMIT")
    return result


async def _set(connection: Connection) -> None:
    await connection.execute(_SET)
    with suppress(asyncpg.PostgresError):
        await connection.execute(_END)


async def _set_up(connection: Connection) -> None:
    # When a statement is cancelled, asyncpg tells the server by another connection, and may wait for that for ever.
    setting = asyncio.ensure_future(_set(connection))
    try:
        await asyncio.shield(setting)
    except asyncio.CancelledError:
        connection.terminate()
        with suppress(*FAILURES):
            await setting
        raise


async def _leave(connection: Connection) -> None:
    """Reset nothing: operations change no setting that outlives them."""


async def _give_back(pool: Any, connection: Any) -> None:
    try:
        await pool.release(connection)
    except FAILURES:
        drop(connection)


def _is_lost(connection: Connection) -> bool:
    """Whether a connection is closed. If the server closed it, the pool has taken it back, and asking raises."""
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:
        return True


def _is_the_servers(error: BaseException) -> bool:
    """Whether the server raised it. An error of asyncpg itself may leave a statement half sent, until a ROLLBACK."""
    return isinstance(error, asyncpg.PostgresError) and error.severity is not None
