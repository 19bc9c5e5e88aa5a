"""The task that checks, while clients wait, whether the server is shutting down."""

from __future__ import annotations

import asyncio

from aioflow.http.exits import Exits


def checking() -> list[asyncio.Task[object]]:
    """The tasks that check."""
    return [task for task in asyncio.all_tasks() if task.get_name() == "aioflow http exit"]


async def test_one_task_checks_for_all_clients_that_wait() -> None:
    """One task checks for all clients that wait, and ends with the last of them; a later client gets a new one."""
    exits = Exits()
    with exits.patient(), exits.patient():
        (task,) = checking()
    while not task.done():  # noqa: ASYNC110 - only its end shows that it was told
        await asyncio.sleep(0)
    with exits.patient():
        (other,) = checking()
    while not other.done():  # noqa: ASYNC110 - as above
        await asyncio.sleep(0)
    assert checking() == []
