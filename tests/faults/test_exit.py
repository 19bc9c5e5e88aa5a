"""The end of a process whose engine has a sync step that never returns."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import asyncio, atexit, sys, threading
from datetime import timedelta
from pydantic import BaseModel
from aioflow import Engine, Retry, complete, step, workflow

how, url = sys.argv[1:]
gate, entered, gone = threading.Event(), threading.Event(), threading.Event()
if how == "freed by the end":
    atexit.register(lambda: (gate.set(), gone.wait(5)))

@workflow("exit-blocked")
class Blocked:
    class Context(BaseModel):
        pass

    @step(
        start=True,
        timeout=timedelta(milliseconds=50) if how == "timed out" else None,
        retry=Retry(max_attempts=1),
    )
    def block(self):
        entered.set()
        try:
            gate.wait()
        finally:
            gone.set()
        return complete()

async def main():
    async with Engine(url, shutdown_timeout=timedelta(milliseconds=50)) as engine:
        run = await engine.start(Blocked)
        if how == "timed out":
            await run.wait(10)
        while not entered.is_set():
            await asyncio.sleep(0.01)
    print(run.status, [thread.name for thread in threading.enumerate() if "step" in thread.name], flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["for ever", "timed out", "freed by the end"])
def test_step_that_blocks_its_thread_for_ever_keeps_no_process_from_ending(tmp_path: Path, how: str) -> None:
    """A program whose sync step outlasts its engine ends by itself, with exit code 0 and nothing on stderr."""
    command = [sys.executable, "-c", PROGRAM, how, f"sqlite:///{tmp_path}/runs.db"]
    with (tmp_path / "out").open("w+b") as out, (tmp_path / "err").open("w+b") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err)
        try:
            code = process.wait(20)
        finally:
            process.kill()
            process.wait()
    said = (tmp_path / "out").read_text()
    status = "failed" if how == "timed out" else "running"
    # The thread was still blocked when the engine had closed.
    assert said.endswith(f"{status} ['aioflow step']\n"), said
    assert (code, (tmp_path / "err").read_text()) == (0, "")
