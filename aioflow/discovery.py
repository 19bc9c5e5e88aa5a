"""From a URL to a store, through the entry-point group ``aioflow.backends`` (scheme -> class)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from aioflow.errors import BackendUnknown
from aioflow.store import Store

DEFAULT_URL = "sqlite:///aioflow.db"
_GROUP = "aioflow.backends"
#: Backends that need an optional extra of this distribution: scheme -> extra.
_EXTRAS: dict[str, str] = {"postgres": "postgres", "postgresql": "postgres"}


@cache
def _installed() -> Mapping[str, EntryPoint]:
    """Scheme -> entry point. Cached: it reads a file of every installed distribution."""
    return {point.name: point for point in entry_points(group=_GROUP)}


def find_store(url_or_store: str | Store | None) -> Store:
    """The store to work with.

    Args:
        url_or_store: a store, a URL (``sqlite:///relative.db``, ``sqlite:////absolute.db``,
            ``postgresql://host/database``, ``memory://``), or None for the environment's ``AIOFLOW_DATABASE_URL``, and
            without it ``sqlite:///aioflow.db``.

    Returns:
        A store, not opened.

    Raises:
        BackendUnknown: no installed backend serves the scheme.
        ValueError: not a URL, or one that the backend cannot read.
    """
    if url_or_store is None:
        url_or_store = os.environ.get("AIOFLOW_DATABASE_URL") or DEFAULT_URL
    if not isinstance(url_or_store, str):
        return url_or_store
    scheme, separator, _ = url_or_store.partition("://")
    if not separator or not scheme:
        place, _, query = url_or_store.partition("?")
        # It may be a URL with a slip, and a password.
        shown = "***" if "@" in query else re.sub(r"(?s).*@", "***@", place)
        raise ValueError(f"A store's URL looks like sqlite:///file.db, got {shown!r}.")
    installed = _installed()
    point = installed.get(scheme)
    if point is None:
        raise BackendUnknown(scheme, installed)
    try:
        store = point.load()
    except ModuleNotFoundError:
        if scheme not in _EXTRAS:
            raise
        hint = f" Try: pip install 'aioflow-engine[{_EXTRAS[scheme]}]'."
        raise BackendUnknown(scheme, installed.keys() - _EXTRAS.keys(), hint) from None
    return cast("Store", store(url_or_store))
