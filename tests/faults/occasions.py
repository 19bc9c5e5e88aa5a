"""The program of the kill test of events: emitters, and the workflows that events start.

    python -m tests.faults.occasions    forks a process for each job, as program.py does

An emitter notes each event before and after the call; a step that an event has started notes that.
"""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta
from typing import Any

from aioflow import Engine, Event, complete, event_workflow, get_run, sleep, step
from aioflow.commands import Command
from tests.faults import program
from tests.faults.program import pause, serve

#: For each kind of event: workflow -> how many runs it starts.
VISIT = {"kill-remind": 3, "kill-answer": 1}
ECHO = {"kill-echoed": 2}


def began(event: Event) -> None:
    """Note that a step of a run that this event started has begun."""
    assert program.world is not None
    program.world.note("began", run=get_run().id, event=event.id)


@event_workflow("kill-visit", offsets=[timedelta(milliseconds=ms) for ms in (-30, 0, 60)], name="kill-remind")
class Remind:
    """Starts before, at and after the event."""

    @step(start=True)
    async def begin(self, event: Event) -> Command:
        began(event)
        return sleep(timedelta(milliseconds=5), then=self.end)

    @step
    async def end(self) -> Command:
        return complete()


@event_workflow("kill-visit", name="kill-answer")
class Answer:
    """Takes a while to decide that it starts, and emits another event with its only transition."""

    @classmethod
    async def should_run_for_event(cls, event: Event) -> bool:
        await pause(random.Random(event.id).random() / 100)
        return True

    @step(start=True)
    async def begin(self, event: Event) -> Command:
        began(event)
        get_run().emit("kill-echo", {"id": event.id}, event_id=f"echo of {event.id}")
        return complete()


@event_workflow("kill-echo", offsets=[timedelta(0), timedelta(milliseconds=20)], name="kill-echoed")
class Echoed:
    """Is started by the events that Answer emits."""

    @step(start=True)
    async def begin(self, event: Event) -> Command:
        began(event)
        return complete()


async def emit(engine: Engine, seed: int, life: int, number: int) -> None:
    """Emit in an endless loop, each event either once or three times concurrently."""
    assert program.world is not None
    rng = random.Random(f"{seed} emitter {life} {number}")
    for count in range(1_000_000):
        event_id = f"{life}.{number}.{count}"
        at = datetime.now(UTC) + timedelta(milliseconds=rng.choice([-100, 0, 10, 40]))
        program.world.note("emitting", event=event_id)
        again = rng.choice([1, 3])
        await asyncio.gather(
            *(engine.emit("kill-visit", {"id": count}, event_id=event_id, at=at) for _ in range(again))
        )
        program.world.note("emitted", event=event_id)
        await pause(rng.random() / 50)


async def settled(engine: Engine) -> bool:
    """Whether nothing that was planned is left to do."""
    live = await engine.count(status=["running", "waiting"])
    stats = await engine.stats()
    return not live and not stats.planned and not stats.events.get("pending")


async def errands(engine: Engine, seed: int, life: int, emitters: int) -> None:
    """What a life does besides running steps."""
    assert program.world is not None
    program.world.note("open")
    await asyncio.gather(*(emit(engine, seed, life, number) for number in range(emitters)))
    while not await settled(engine):
        await pause(0.05)
    program.world.note("settled")


async def live(folder: str, life: int, *, seed: int, emitters: int) -> None:
    """Be one life until SIGTERM; without emitters, note when everything is done."""
    engine = Engine(f"sqlite:///{folder}/runs.db", shutdown_timeout=timedelta(seconds=1))
    async with engine, asyncio.TaskGroup() as group:
        busy = group.create_task(errands(engine, seed, life, emitters))
        await engine.run_forever()
        busy.cancel()


def run_job(job: dict[str, Any]) -> None:
    """Be the life that the job describes."""
    program.enter(job["folder"], job["life"])
    asyncio.run(live(**job))


if __name__ == "__main__":
    serve(run_job)
