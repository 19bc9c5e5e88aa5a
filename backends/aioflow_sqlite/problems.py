"""SQLite's errors as those of the store port."""

from __future__ import annotations

import sqlite3

from aioflow.errors import StoreError, StoreRefused, StoreUnavailable

_ADVICE = {
    "switched to WAL": "Look at the disk: it has to be a local one that can be written.",
    "unable to open": "Check that the directory exists and can be written.",
    "locked": "Another process holds the file's write lock: end its long transaction.",
    "readonly": "Check the permissions of the file and of its directory.",
    "full": "Make room on the disk: work goes on by itself.",
    "malformed": "The file is damaged: restore a backup.",
    "not a database": "The path holds another kind of file, or the file is damaged: then restore a backup.",
    "disk I/O error": "The disk or its file system failed: look into the system's log; "
    "the file is opened anew, and work goes on when it can be written.",
}


def told_apart(store: str, error: sqlite3.Error) -> StoreError:
    """StoreRefused if the data is at fault, else StoreUnavailable, with advice. ``store``: its name."""
    if isinstance(error, sqlite3.DataError | sqlite3.IntegrityError | sqlite3.InterfaceError):
        return StoreRefused(store, str(error))
    text = str(error)
    advice = next((words for sign, words in _ADVICE.items() if sign in text), "")
    return StoreUnavailable(store, text, advice)
