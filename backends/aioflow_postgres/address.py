"""Reads a PostgreSQL URL: aioflow's own options are taken off it, the rest is the driver's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

SCHEMES: Final = ("postgresql", "postgres")
#: How many bytes of an identifier PostgreSQL keeps.
_LONGEST_SCHEMA: Final = 63
_LEAST_POOL: Final = 3


@dataclass(frozen=True, slots=True, repr=False)
class Address:
    """Where the database is, and how it is used.

    Attributes:
        dsn: the URL for the driver.
        name: for messages and logs, without any password.
        schema: where the tables are.
        pool_size: how many connections one engine has at most, not counting the one that listens.
        timeout: seconds after which the outcome of a change that the server has not answered counts as unknown; a query
            may take four times as long.
        listen: where to listen for hints, if not at ``dsn``: a connection pooler does not pass notifications on.
    """

    dsn: str
    name: str
    schema: str
    pool_size: int
    timeout: float
    listen: str | None

    def __repr__(self) -> str:
        return f"<Address {self.name}>"


def parse(url: str) -> Address:
    """Read ``postgresql://user:password@host:port/database`` or ``postgres://…``.

    Options after ``?``: ``schema`` ("aioflow" if not given), ``pool_size`` (10), ``timeout`` (seconds, 15) and
    ``listen`` (a URL that reaches the server itself, if the first one is a pooler's) are aioflow's, the rest is passed
    to asyncpg.

    Raises:
        ValueError: it is not such a URL, or an option has an invalid value. The message has no password.
    """
    shown = masked(url)
    try:
        parts = urlsplit(url)
        scheme, port = parts.scheme, parts.port  # an invalid port raises only here, when it is read
        if _is_cut(parts):
            raise ValueError("its user and password would be taken for host and port")
    except ValueError:
        raise ValueError(
            f"The URL {shown} cannot be read: write special characters of user and password as %XX."
        ) from None
    if scheme not in SCHEMES or "://" not in url:
        raise ValueError(f"A PostgreSQL URL looks like postgresql://user:password@host:5432/database, got {shown}.")
    options = parse_qsl(parts.query, keep_blank_values=True)
    own = dict(options)
    schema = own.get("schema", "aioflow")
    if not schema or len(schema.encode()) > _LONGEST_SCHEMA or "\0" in schema or schema.startswith("pg_"):
        raise ValueError(f"schema takes the name of a schema, up to {_LONGEST_SCHEMA} bytes, got {schema!r}.")
    pool_size = own.get("pool_size", "10")
    if not pool_size.isdecimal() or int(pool_size) < _LEAST_POOL:
        raise ValueError(f"pool_size takes a number from {_LEAST_POOL} upwards, got {pool_size!r}.")
    timeout = own.get("timeout", "15")
    if not re.fullmatch(r"\d+(\.\d+)?", timeout) or float(timeout) <= 0:
        raise ValueError(f"timeout takes seconds, got {timeout!r}.")
    listen = own.get("listen")
    if listen is not None:
        listen = parse(listen).dsn
    rest = [(name, value) for name, value in options if name not in ("schema", "pool_size", "timeout", "listen")]
    place = f"{parts.hostname or 'localhost'}{f':{port}' if port else ''}{parts.path}"
    user = f"{parts.username}@" if parts.username else ""
    return Address(
        dsn=urlunsplit(parts._replace(query=urlencode(rest))),
        name=f"postgresql://{user}{place}{f'?schema={schema}' if schema != 'aioflow' else ''}",
        schema=schema,
        pool_size=int(pool_size),
        timeout=float(timeout),
        listen=listen,
    )


def _is_cut(parts: SplitResult) -> bool:
    """Whether a password seems to hold a "/", "?" or "#" that is not written as %XX, so that the host stands behind it."""
    behind = [parts.fragment, *dict(parse_qsl(parts.query, keep_blank_values=True))]
    if parts.username is None:  # with a user, it may be the name of the database
        behind.append(parts.path)
    return any("@" in each for each in behind)


def masked(url: str) -> str:
    """The URL as a message may show it: without anything that may be a password, or a query that may hold one."""
    head, separator, rest = url.partition("://")
    if not separator:
        return "something without '://'"
    rest, _, query = rest.partition("?")
    names = [option.partition("=")[0] for option in query.split("&")]
    # A password may have a "?" in it, which is not written as %XX, and a "@" before that.
    if "@" in query and ("@" not in rest or any("@" in name for name in names)):
        return f"{head}://***"
    user, at, place = rest.rpartition("@")
    return f"{head}://{user.partition(':')[0]}:***@{place}" if at else f"{head}://{place}"
