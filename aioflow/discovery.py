"""From a URL to a store, through the entry-point group ``aioflow.backends`` (scheme -> class)."""

from __future__ import annotations

import os
import re
from importlib.metadata import entry_points
from typing import cast

from aioflow.errors import BackendUnknown
from aioflow.store import Store

DEFAULT_URL = "sqlite:///aioflow.db"
_GROUP = "aioflow.backends"
#: Backends that are optional parts of this distribution: scheme -> extra.
_EXTRAS: dict[str, str] = {}


def find_store(url_or_store: str | Store | None) -> Store:
    """The store to work with.

    Args:
        url_or_store: a store, a URL (``sqlite:///relative.db``, ``sqlite:////absolute.db``, ``memory://``), or None
            for the environment's ``AIOFLOW_DATABASE_URL``, and without it ``sqlite:///aioflow.db``.

    Returns:
        A store, not opened.

    Raises:
        BackendUnknown: no installed backend serves the scheme.
        ValueError: no URL, or one the backend cannot read.
    """
    if url_or_store is None:
        url_or_store = os.environ.get("AIOFLOW_DATABASE_URL") or DEFAULT_URL
    if not isinstance(url_or_store, str):
        return url_or_store
    scheme, separator, _ = url_or_store.partition("://")
    if not separator or not scheme:
        shown = re.sub(r"[^/]*@", "***@", url_or_store)
        raise ValueError(f"A store's URL looks like sqlite:///file.db, got {shown!r}.")
    installed = {point.name: point for point in entry_points(group=_GROUP)}
    point = installed.get(scheme)
    if point is None:
        extra = _EXTRAS.get(scheme)
        hint = f" Try: pip install 'aioflow-engine[{extra}]'." if extra else ""
        raise BackendUnknown(scheme, installed, hint)
    return cast("Store", point.load()(url_or_store))
