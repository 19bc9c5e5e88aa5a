"""Which requests are let in at all: from this machine or any, from no foreign web page, with no body too large."""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv6Address, ip_address
from typing import Final
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.types import Message, Receive, Scope

#: How many bytes a request's body may have.
MAX_BODY: Final = 1024 * 1024
#: Headers that proxies add: the client behind one need not be on this machine, though the proxy may be.
_FORWARDED: Final = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
#: This machine's name, and those that in-process test clients use: no web page can have these as its host.
_OWN_NAMES: Final = frozenset({"localhost", "test", "testserver"})
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


def is_local(connection: HTTPConnection) -> bool:
    """Whether the client is on this machine and addresses it by its own name.

    The name matters, because a web page can have the browser resolve a foreign name to this machine (DNS rebinding). A
    client behind a proxy or a Unix socket is not known to be local.
    """
    client = connection.client
    if client is None or not _is_loopback(client.host):
        return False
    if any(name in connection.headers for name in _FORWARDED):
        return False
    host = _host_of(f"//{connection.headers.get('host', '')}")
    return host is not None and (host in _OWN_NAMES or host.endswith(".localhost") or _is_loopback(host))


def is_foreign(connection: HTTPConnection, allowed: Collection[str] = ()) -> bool:
    """Whether a web page of another origin makes its visitor's browser send a request that may change something.

    Browsers tell by ``Sec-Fetch-Site``, older ones by ``Origin``; no page can forge either. Programs send neither.

    Args:
        connection: the request.
        allowed: origins that may, as browsers write them: ``https://app.example.com``.
    """
    if connection.scope.get("method") in _SAFE_METHODS:
        return False
    origin = connection.headers.get("origin")
    if origin is not None and origin in allowed:
        return False
    site = connection.headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    if origin is None:
        return False
    try:
        named = urlsplit(origin).netloc.lower()  # nothing, for the origin "null"
    except ValueError:
        return True
    return not named or named != connection.headers.get("host", "").lower()


def limited(scope: Scope, receive: Receive, limit: int = MAX_BODY) -> Receive:
    """``receive`` with a limit: raises HTTPException 413 for a longer body, whatever its Content-Length says."""
    received = 0
    declared = HTTPConnection(scope).headers.get("content-length", "")
    too_long = declared.isascii() and declared.isdecimal() and (len(declared) > 18 or int(declared) > limit)

    async def counted() -> Message:
        nonlocal received
        if too_long:
            raise HTTPException(413)
        message = await receive()
        if message["type"] == "http.request":
            received += len(message.get("body", b""))
            if received > limit:
                raise HTTPException(413)
        return message

    return counted


def _is_loopback(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
