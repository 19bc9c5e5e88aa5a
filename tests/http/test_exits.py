"""Who looks at the server while anybody waits."""

from __future__ import annotations

import asyncio

from aioflow.http.exits import Exits


def looking() -> list[asyncio.Task[object]]:
    """The tasks that look."""
    return [task for task in asyncio.all_tasks() if task.get_name() == "aioflow http exit"]


async def test_somebody_looks_for_everybody_who_waits() -> None:
    """One looks for all of them, none when nobody waits, and another for who comes just as the last has ended."""
    exits = Exits()
    with exits.patient(), exits.patient():
        (task,) = looking()
    while not task.done():  # noqa: ASYNC110 - nothing tells of it but its own end
        await asyncio.sleep(0)
    with exits.patient():
        (other,) = looking()
    while not other.done():  # noqa: ASYNC110 - as above
        await asyncio.sleep(0)
    assert looking() == []
