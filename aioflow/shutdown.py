"""Waits until a service is told to end: by SIGTERM from its supervisor, or SIGINT from the keyboard."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress

from aioflow import telemetry


async def signalled() -> None:
    """Wait for SIGINT or SIGTERM; then restore the handlers that were installed before."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        handler = signal.getsignal(number)
        with suppress(NotImplementedError, ValueError, RuntimeError):  # Windows, or not the main thread
            loop.add_signal_handler(number, stop.set)
            before[number] = handler
    try:
        await stop.wait()
        telemetry.info("signal received, the engine ends")
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
