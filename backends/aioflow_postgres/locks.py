"""Advisory locks: for decisions that must not be made concurrently, about things that may have no row to lock yet.

Keys share a limited number of locks, as the server's lock table is limited: two unrelated keys may wait for each other.
The locks are released at the end of the transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from aioflow_postgres.rows import unnest
from aioflow_postgres.session import Session

_LOCKS: Final = 1024
_CLASS: Final = 0x61666C00
#: In the order of their numbers, each once, so that all transactions take them in the same order. Keys are locked
#: before entities, which may be known only once the events have been read.
_LOCK: Final = f"""
SELECT CASE WHEN alone THEN pg_advisory_xact_lock({{class_}}, place) ELSE pg_advisory_xact_lock_shared({{class_}}, place)
END FROM (
    SELECT (hashtext(key) & {_LOCKS - 1}) AS place, bool_or(alone) AS alone
    FROM {unnest(["key", "alone"], ["text", "boolean"], "wanted")} GROUP BY 1 ORDER BY 1
) AS places
"""
_LOCK_KEYS: Final = _LOCK.format(class_=_CLASS)
_LOCK_ENTITIES: Final = _LOCK.format(class_=_CLASS + 1)


async def lock_keys(session: Session, keys: Iterable[tuple[str, ...]], event_ids: Iterable[str]) -> None:
    """Lock start keys, signal_ids, workflows' listeners and events, so that no other transaction decides about them."""
    wanted = ["\n".join(key) for key in keys] + [f"event\n{event_id}" for event_id in event_ids]
    if wanted:
        await session.fetch(_LOCK_KEYS, wanted, [True] * len(wanted))


async def lock_entities(
    session: Session, awaited: Iterable[tuple[str, str]], occurring: Iterable[tuple[str, str]]
) -> None:
    """Order a run that begins to wait for an event of an entity, and that event, so that one sees the other.

    Runs share the lock; an event takes it alone, and so occurs before or after each of them.
    """
    shared = ["\n".join(pair) for pair in awaited]
    alone = ["\n".join(pair) for pair in occurring]
    if shared or alone:
        await session.fetch(_LOCK_ENTITIES, shared + alone, [False] * len(shared) + [True] * len(alone))
