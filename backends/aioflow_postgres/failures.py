"""The errors of asyncpg and the server, and the StoreErrors that they become."""

from __future__ import annotations

from typing import Final

import asyncpg

from aioflow.errors import StoreError, StoreRefused, StoreUnavailable

#: Raised for a transaction that failed because of another one, and was rolled back: it can be retried.
IN_THE_WAY: Final = (
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.LockNotAvailableError,
)
#: What asyncpg raises when the server or the connection fails; the last when the connection is lost at a bad moment.
FAILURES: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, asyncpg.InternalClientError)
#: Raised by a server that is a standby, or has become one: a new connection may reach the primary.
ELSEWHERE: Final = (asyncpg.ReadOnlySQLTransactionError, asyncpg.CannotConnectNowError)


def told_apart(name: str, error: Exception) -> StoreError:
    """The StoreError for an error: StoreRefused if the data is at fault, else StoreUnavailable."""
    if isinstance(error, StoreError):
        return error
    text = " ".join(str(error).split()) or type(error).__name__
    refused = asyncpg.DataError | asyncpg.IntegrityConstraintViolationError | asyncpg.ProgramLimitExceededError
    if isinstance(error, refused | UnicodeEncodeError):
        return StoreRefused(name, text)
    advice = next((words for kinds, words in _ADVICE if isinstance(error, kinds)), "")
    if isinstance(error, TimeoutError):
        text = "it does not answer in time, or all connections are taken"
    return StoreUnavailable(name, text.rstrip("."), advice)


_ADVICE: Final[tuple[tuple[tuple[type[Exception], ...], str], ...]] = (
    (
        (asyncpg.InvalidAuthorizationSpecificationError,),
        "Check user and password, and the server's pg_hba.conf.",
    ),
    ((asyncpg.InvalidCatalogNameError,), "Create the database first; aioflow makes its own schema and tables."),
    ((asyncpg.InsufficientPrivilegeError,), "Give the user CREATE on the database, or name a schema that it owns."),
    ((asyncpg.TooManyConnectionsError,), "Raise the server's max_connections, or lower pool_size."),
    ((ConnectionRefusedError,), "Check host and port, and that the server runs."),
)
