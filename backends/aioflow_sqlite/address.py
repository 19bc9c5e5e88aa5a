"""Parses SQLite URLs."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote, urlencode

_SYNCHRONOUS = ("FULL", "EXTRA", "NORMAL")
#: The parameters of SQLite's own URIs. SQLite ignores any other without an error.
_SQLITES = ("cache", "immutable", "mode", "nolock", "psow", "vfs")


@dataclass(frozen=True, slots=True)
class Address:
    """Where the database is, and how it is opened.

    ``path``: the file, None for a private one in memory. ``busy_timeout``: milliseconds to wait for another process's
    lock. ``synchronous``: FULL loses nothing that was acknowledged; NORMAL may lose the last commits at power loss.
    ``uri``: what SQLite opens.
    """

    path: str | None
    uri: str
    busy_timeout: int
    synchronous: str

    @property
    def name(self) -> str:
        """For messages and logs."""
        return f"sqlite:///{self.path or ':memory:'}"

    def existing(self, path: str) -> str:
        """A URI that opens the file at this path with the same options, and does not create it."""
        options = dict(parse_qsl(self.uri.partition("?")[2], keep_blank_values=True))
        return f"file:{quote(path)}?{urlencode(options | {'mode': 'rw'})}"


def parse(url: str) -> Address:
    """Read ``sqlite:///relative.db``, ``sqlite:////absolute.db`` or ``sqlite://`` (in memory).

    Options after ``?``: ``busy_timeout`` (milliseconds, 5000 if not given) and ``synchronous`` (FULL, EXTRA, NORMAL;
    FULL if not given) are aioflow's, the rest is passed to SQLite as URI parameters.

    Raises:
        ValueError: it is not such a URL, or has an unknown option, or an invalid value of one.
    """
    rest, _, query = url.partition("?")
    scheme, separator, location = rest.partition("://")
    if scheme != "sqlite" or not separator or (location and not location.startswith("/")):
        raise ValueError(
            f"A SQLite URL looks like sqlite:///relative.db (three slashes) or sqlite:////absolute.db (four), got {url!r}."
        )
    options = dict(parse_qsl(query, keep_blank_values=True))
    busy_timeout = options.pop("busy_timeout", "5000")
    if not busy_timeout.isdecimal():
        raise ValueError(f"busy_timeout takes milliseconds, got {busy_timeout!r}.")
    synchronous = options.pop("synchronous", "FULL").upper()
    if synchronous not in _SYNCHRONOUS:
        raise ValueError(f"synchronous takes {', '.join(_SYNCHRONOUS)}; got {synchronous!r}.")
    for name, value in options.items():
        if name not in _SQLITES:
            raise ValueError(
                f"A SQLite URL has no option {name!r}. There are busy_timeout and synchronous, "
                f"and SQLite's own {', '.join(_SQLITES)}."
            )
        if (name, value) == ("mode", "memory"):
            raise ValueError(
                "mode=memory makes a database of its own for each connection. A store in memory is sqlite:// without a path."
            )
    path = unquote(location[1:])
    if path in ("", ":memory:"):
        return Address(None, ":memory:", int(busy_timeout), synchronous)
    uri = f"file:{quote(path)}" + (f"?{urlencode(options)}" if options else "")
    return Address(path, uri, int(busy_timeout), synchronous)
