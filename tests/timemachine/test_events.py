"""Events on virtual time: starts before and after them, moved and cancelled events, and waits with timeouts."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import Event, complete, event_workflow, get_context, get_run, on, step, wait, wait_for_event, workflow
from aioflow.commands import Command
from aioflow.testing import TimeMachine

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


class Visit(BaseModel):
    """The entity of the events."""

    id: int
    guest: str = ""


class Told(BaseModel):
    """The Context of a reminder: the event's time, and when the run began."""

    about: datetime
    began: datetime | None = None


class Reminds:
    """The steps of all reminders."""

    Context = Told

    @classmethod
    def create_context(cls, event: Event) -> Told:
        return Told(about=event.at)

    @step(start=True)
    async def begin(self) -> Command:
        get_context(Told).began = get_run().now
        return wait.for_signal("end", then=self.end)

    @step
    async def end(self) -> Command:
        return complete()


@event_workflow("tm-visit", offsets=[-60 * MINUTE, 30 * MINUTE], name="tm-remind")
class Remind(Reminds):
    """Starts an hour before, and half an hour after the event."""


@event_workflow("tm-visit", offset_minutes=-60, name="tm-prepare")
class Prepare(Reminds):
    """Starts an hour before the event."""


@workflow("tm-order", timeout=timedelta(days=9), on_timeout="late")
class Order:
    """Waits two hours for its payment, an event, or for a signal that cancels it."""

    class Context(BaseModel):
        order_id: int = 17
        path: list[str] = []
        event_id: str | None = None

    @step(start=True)
    async def begin(self) -> Command:
        return wait.any(
            on.event("tm-paid", entity_id=get_context(self.Context).order_id, then=self.paid),
            on("tm-cancelled", then=self.stopped),
            timeout=2 * HOUR,
            on_timeout=self.late,
        )

    @step
    async def paid(self, event: Event) -> Command:
        get_context(self.Context).path.append(f"paid {event.id} {event.entity_id}")
        return complete()

    @step
    async def stopped(self) -> Command:
        get_context(self.Context).path.append("stopped")
        return complete()

    @step
    async def late(self) -> Command:
        get_context(self.Context).path.append(f"late {get_run().timed_out}")
        return complete()


@workflow("tm-last-call")
class LastCall:
    """Waits for an event until an instant."""

    class Context(BaseModel):
        until: datetime
        came: str = ""
        entity_id: str | None = None

    @step(start=True)
    async def begin(self) -> Command:
        context = get_context(self.Context)
        return wait_for_event(
            "tm-visit", entity_id=context.entity_id, timeout=context.until, on_timeout=self.late, then=self.came
        )

    @step
    async def came(self, event: Event) -> Command:
        return complete(came=event.id)

    @step
    async def late(self) -> Command:
        return complete(came="nobody")


@pytest.fixture(params=["memory", "sqlite"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> TimeMachine:
    """A machine on each store."""
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/x.db"
    return TimeMachine(url, workflows=[Remind, Prepare, Order, LastCall])


async def begun(flow: TimeMachine, event_id: str, at: datetime) -> list[tuple[str, float]]:
    """The event's runs: workflow, and how many minutes after ``at`` each began, sorted."""
    runs = await flow.runs(event_id=event_id, order="id", limit=1_000)
    found = []
    for run in runs:
        data: dict[str, Any] = (await flow.get(run.id)).data
        found.append((run.workflow, (Told.model_validate(data).began or at) - at))
    return sorted((name, span / MINUTE) for name, span in found)


async def test_past_starts_of_a_replaced_event_are_made_now(machine: TimeMachine) -> None:
    """If an event is replaced, runs whose instant is past are created at the present, not before the replacement."""
    async with machine as flow:
        begin = flow.now
        await flow.emit("tm-visit", Visit(id=7), event_id="v1")
        await flow.advance(days=10)
        first = await flow.runs(event_id="v1", limit=100)
        assert {run.created_at for run in first} == {begin, begin + 30 * MINUTE}
        await flow.emit("tm-visit", Visit(id=7), event_id="v1", at=begin + 24 * HOUR, replace=True)
        await flow.settle()
        again = {
            run.created_at for run in await flow.runs(event_id="v1", limit=100) if run.id not in {r.id for r in first}
        }
        assert again == {flow.now}


async def test_starts_before_and_after(machine: TimeMachine) -> None:
    """Each start before or after an event is made exactly at its instant."""
    async with machine as flow:
        at = flow.now + 3 * HOUR
        await flow.emit("tm-visit", Visit(id=1), event_id="e", at=at)
        await flow.advance(at - HOUR - timedelta(microseconds=1))
        assert await flow.count() == 0
        await flow.advance(microseconds=1)
        assert await begun(flow, "e", at) == [("tm-prepare", -60), ("tm-remind", -60)]
        await flow.advance(at + 30 * MINUTE - timedelta(microseconds=1))
        assert await flow.count() == 2
        [event] = await flow.events()
        assert (event.status, event.occurred_at) == ("occurred", at)
        await flow.advance(days=9)
        assert await begun(flow, "e", at) == [("tm-prepare", -60), ("tm-remind", -60), ("tm-remind", 30)]
        assert (await flow.stats()).planned == 0


async def test_what_is_past_starts_at_once(machine: TimeMachine) -> None:
    """Starts whose instant is past when the event is recorded are made at once, and later ones at their instant."""
    async with machine as flow:
        at = flow.now + 10 * MINUTE
        await flow.emit("tm-visit", event_id="soon", at=at)
        await flow.emit("tm-visit", event_id="past", at=at - 9 * HOUR)
        await flow.settle()
        assert await begun(flow, "soon", at) == [("tm-prepare", -10), ("tm-remind", -10)]
        assert await flow.count(event_id="past") == 3
        await flow.advance(days=1)
        assert (await flow.count(event_id="soon"), await flow.count(event_id="past")) == (3, 3)


async def test_moving_an_event(machine: TimeMachine) -> None:
    """``replace=True`` plans all starts for the new time, also those that were made for the old one."""
    async with machine as flow:
        first = flow.now + 3 * HOUR
        for event_id in ("early", "late"):
            await flow.emit("tm-visit", event_id=event_id, at=first)
        new = first + 24 * HOUR
        assert (await flow.emit("tm-visit", event_id="early", at=new, replace=True)).occurrence == 2
        await flow.advance(first - 30 * MINUTE)
        assert (await flow.count(event_id="early"), await flow.count(event_id="late")) == (0, 2)
        await flow.emit("tm-visit", event_id="late", at=new, replace=True)
        await flow.advance(days=9)
        moved = [("tm-prepare", -60), ("tm-remind", -60), ("tm-remind", 30)]
        assert await begun(flow, "early", new) == moved
        assert await begun(flow, "late", new) == sorted([*moved, ("tm-prepare", -25 * 60), ("tm-remind", -25 * 60)])
        about = [Told.model_validate(run.data).about for run in await flow.runs(event_id="late", order="id")]
        assert about == [first, first, new, new, new]


@pytest.mark.parametrize("runs", [False, True])
async def test_cancelling_an_event(machine: TimeMachine, runs: bool) -> None:
    """Cancelling an event drops the starts that were not made, and with ``runs=True`` cancels the other runs."""
    async with machine as flow:
        at = flow.now + 3 * HOUR
        await flow.emit("tm-visit", event_id="e", at=at)
        await flow.advance(at - HOUR)
        assert await flow.cancel_event("e", runs=runs)
        await flow.advance(days=9)
        assert await flow.count() == await flow.count(status="cancelled" if runs else "waiting") == 2
        assert (await flow.stats()).events == {"cancelled": 1}
        assert [event.status for event in await flow.events()] == ["cancelled"]


async def test_a_cancelled_event_may_be_emitted_again(machine: TimeMachine) -> None:
    """A cancelled event that is emitted again stays cancelled, and ``replace`` makes a new occurrence."""
    async with machine as flow:
        at = flow.now + 3 * HOUR
        await flow.emit("tm-visit", event_id="e", at=at)
        await flow.cancel_event("e")
        assert (await flow.emit("tm-visit", event_id="e", at=at)).status == "cancelled"
        again = await flow.emit("tm-visit", event_id="e", at=at, replace=True)
        assert (again.status, again.occurrence) == ("pending", 2)
        await flow.advance(days=1)
        assert len(await begun(flow, "e", at)) == 3


async def test_an_event_answers_a_wait(machine: TimeMachine) -> None:
    """An event that was emitted before, for a time within the wait, ends the wait at that time."""
    async with machine as flow:
        begin = flow.now
        await flow.emit("tm-paid", {"id": 17}, event_id="p", at=begin + HOUR)
        run = await flow.start(Order)
        assert (await run.wait()).status == "completed"
        assert (run.data["path"], run.data["event_id"], flow.now) == (["paid p 17"], "p", begin + HOUR)


@pytest.mark.parametrize("entity_id", [None, 17], ids=["any", "entity"])
@pytest.mark.parametrize("first", ["event", "wait"])
@pytest.mark.parametrize(("microseconds", "came"), [(-1, "e"), (0, "e"), (1, "nobody")])
async def test_an_event_against_a_timeout(
    machine: TimeMachine, microseconds: int, came: str, first: str, entity_id: int | None
) -> None:
    """An event that occurs by the deadline of a wait, that instant included, resumes the run, and no later one does."""

    async def emit() -> None:
        at = until + timedelta(microseconds=microseconds)
        await flow.emit("tm-visit", event_id="e", entity_id=17, at=at)
        await flow.emit("tm-visit", event_id="other", entity_id=18, at=until + HOUR)

    async with machine as flow:
        until = flow.now + 2 * HOUR
        if first == "event":
            await emit()
        runs = [await flow.start(LastCall, until=until, entity_id=entity_id and str(entity_id)) for _ in range(9)]
        await flow.settle()
        if first == "wait":
            await emit()
        assert [(await run.wait()).data["came"] for run in runs] == [came] * 9
        assert flow.now == until + timedelta(microseconds=min(microseconds, 0))
        await flow.advance(hours=3)
        assert (await flow.stats()).mailbox == 0


@pytest.mark.parametrize(("minutes", "came"), [(-1, "e"), (0, "e"), (1, "nobody")])
async def test_an_event_and_a_timeout_while_no_engine_is_open(tmp_path: Path, minutes: int, came: str) -> None:
    """Of events due while no engine is open, one by the deadline of a wait resumes it, and a later one does not."""
    url = f"sqlite:///{tmp_path}/x.db"
    async with TimeMachine(url, workflows=[LastCall]) as flow:
        until = flow.now + 2 * HOUR
        runs = [await flow.start(LastCall, until=until) for _ in range(9)]
        await flow.settle()
        await flow.emit("tm-visit", event_id="e", at=until + minutes * MINUTE)
    async with TimeMachine(url, workflows=[LastCall], now=until + timedelta(days=1)) as flow:
        await flow.settle()
        assert [(await flow.get(run.id)).data["came"] for run in runs] == [came] * 9


async def test_a_wait_whose_event_is_cancelled_at_the_last_instant(machine: TimeMachine) -> None:
    """A wait whose event is cancelled before it occurs times out at its deadline."""
    async with machine as flow:
        until = flow.now + 2 * HOUR
        run = await flow.start(LastCall, until=until)
        await flow.emit("tm-visit", event_id="e", at=until)
        await flow.advance(minutes=119)
        await flow.cancel_event("e")
        assert (await run.wait()).data["came"] == "nobody"
        assert flow.now == until


async def test_a_start_whose_workflow_is_unknown(tmp_path: Path) -> None:
    """A planned start whose workflow is unknown holds up nothing, and is made as soon as its workflow is known."""
    url = f"sqlite:///{tmp_path}/x.db"
    async with TimeMachine(url, workflows=[Remind]) as flow:
        at = flow.now + 2 * HOUR
        await flow.emit("tm-visit", event_id="e", at=at)
    async with TimeMachine(url, workflows=[Order]) as flow:
        run = await flow.start(Order)
        assert (await run.wait()).data["path"] == ["late True"]
        await flow.advance(days=1)
        stats = await flow.stats()
        assert (stats.planned, stats.blocked_starts, stats.events) == (2, 2, {"occurred": 1})
        end = flow.now
    async with TimeMachine(url, workflows=[Remind], now=end) as flow:
        await flow.settle()
        assert await begun(flow, "e", at) == [("tm-remind", 24.0 * 60)] * 2
        assert ((await flow.stats()).blocked_starts, flow.now) == (0, end)


async def test_a_signal_and_an_event(machine: TimeMachine) -> None:
    """Of the arms of a wait the first to come resumes the run, and without any the timeout does."""
    async with machine as flow:
        paid, stopped, late = [await flow.start(Order, order_id=number) for number in (1, 2, 3)]
        await flow.advance(minutes=119)
        await flow.emit("tm-paid", {"id": 1}, event_id="p")
        await flow.signal("tm-cancelled", run_id=stopped.id)
        await flow.settle()
        await flow.emit("tm-paid", {"id": 2})
        await flow.advance(minutes=1)
        assert [run.data["path"] for run in [await each.wait() for each in (paid, stopped, late)]] == [
            ["paid p 1"],
            ["stopped"],
            ["late True"],
        ]
        assert (await flow.stats()).mailbox == 0
