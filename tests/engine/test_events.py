"""Workflows that events start, and runs that wait for events, on every store."""

from __future__ import annotations

import asyncio
import enum
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from pydantic import BaseModel, ConfigDict
from structlog.typing import EventDict

from aioflow import (
    Engine,
    Event,
    WorkflowRun,
    complete,
    event_workflow,
    get_context,
    get_run,
    goto,
    on,
    step,
    wait,
    wait_for_event,
    workflow,
)
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, ShiftedClock, closed
from tests.flows import flow
from tests.support import wait_until

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


class Path(BaseModel):
    """The Context of runs that record their path, and of what the event tells them."""

    path: list[str] = []
    event_id: str | None = None
    event_name: str | None = None
    entity_id: str | None = None


def listener(
    name: str, told: list[Event] | None = None, *, event: str = "ev-visit", body: Any = None, **how: Any
) -> type:
    """A workflow that events start: it completes, and appends each event that it gets to ``told``."""

    async def begin(self: object, event: Event) -> Command:
        if told is not None:
            told.append(event)
        return complete()

    begin.__annotations__ = {"event": Event}
    made = type("Listens", (), {"begin": step(start=True)(begin), **(body or {})})
    return event_workflow(event, name=name, **how)(made)


async def started(engine: Engine, event_id: str, count: int) -> list[WorkflowRun[Any]]:
    """The runs of an event, once this many have ended."""
    await wait_until(lambda: _all_ended(engine, event_id, count), what=f"{count} runs of {event_id}")
    return await engine.runs(event_id=event_id)


async def _all_ended(engine: Engine, event_id: str, count: int) -> bool:
    return await engine.count(event_id=event_id, status=("completed", "failed")) >= count


def _told(run: WorkflowRun[Any]) -> tuple[Any, ...]:
    return run.data["event_id"], run.data["event_name"], run.data["entity_id"]


async def nothing_planned(engine: Engine) -> None:
    """Wait until no start is planned any more."""

    async def none() -> bool:
        return (await engine.stats()).planned == 0

    await wait_until(none)


async def parked(engine: Engine, workflow: Any, **context: Any) -> WorkflowRun[Any]:
    """Start a run; returns it once it is parked."""
    return await (await engine.start(workflow, **context)).wait(5, until="parked")


# ---- starts


async def test_all_who_listen_start(make_engine: MakeEngine) -> None:
    """Each workflow that listens to the event's name gets one run, which has the event and its id; others get none."""
    told: list[Event] = []
    flows = [listener("ev-one", told), listener("ev-two", told), listener("ev-other", told, event="other")]
    async with make_engine(*flows) as engine:
        event = await engine.emit("ev-visit", {"id": 7, "who": "Ann"}, event_id="e")
        runs = await started(engine, "e", 2)
        assert sorted(run.workflow for run in runs) == ["ev-one", "ev-two"]
        assert told == [event, event]
        assert {run.event_id for run in runs} == {"e"}
        for run in runs:
            assert _told(run) == ("e", "ev-visit", "7")


async def test_namespaces(make_engine: MakeEngine) -> None:
    """A listener to all namespaces starts from every event, and a listener to one only from events of that one."""
    flows = [listener("ev-all"), listener("ev-north", namespace="north"), listener("ev-south", namespace="south")]
    async with make_engine(*flows) as engine:
        found = {}
        for namespace, count in (("*", 1), ("north", 2), ("west", 1)):
            await engine.emit("ev-visit", namespace=namespace, event_id=namespace)
            found[namespace] = sorted(run.workflow for run in await started(engine, namespace, count))
        assert found == {"*": ["ev-all"], "north": ["ev-all", "ev-north"], "west": ["ev-all"]}
        await nothing_planned(engine)
        assert await engine.count() == 4


async def test_one_run_for_each_occurrence_and_offset(make_engine: MakeEngine) -> None:
    """However often an event is emitted, from two engines, each workflow has one run per offset and occurrence."""
    offsets = [timedelta(0), -HOUR, -MINUTE]
    flows = [listener("ev-thrice", offsets=offsets), listener("ev-once")]
    async with make_engine(*flows) as engine, make_engine(*flows, worker=False) as client:
        for occurrence in (1, 2):
            await asyncio.gather(
                *(
                    one.emit(
                        "ev-visit", event_id=f"e{number}", replace=occurrence == 2 and again == 0 and one is client
                    )
                    for number in range(20)
                    for again in range(5)
                    for one in (client, engine)
                )
            )
            await nothing_planned(engine)
            runs = await engine.runs(limit=1_000)
            found = Counter((run.event_id, run.workflow) for run in runs)
            assert found == {(f"e{n}", name): count * occurrence
                             for n in range(20) for name, count in (("ev-thrice", 3), ("ev-once", 1))}  # fmt: skip


async def test_an_offset_after_the_event(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A start with a later offset is made then and not before."""
    async with make_engine(listener("ev-after", offset_minutes=30)) as engine:
        await engine.emit("ev-visit", event_id="e")
        assert await engine.process_scheduled() == 0
        clock.shift(29 * MINUTE)
        assert (await engine.process_scheduled(), await engine.count()) == (0, 0)
        assert (await engine.stats()).planned == 1
        clock.shift(MINUTE)
        await started(engine, "e", 1)


@pytest.mark.parametrize("later", [False, True], ids=["sync", "async"])
async def test_a_workflow_may_decline(make_engine: MakeEngine, later: bool) -> None:
    """should_run_for_event, sync or async, is called before create_context, and if it returns False, no run starts."""
    made: list[str] = []

    def says(cls: type, event: Event) -> bool:
        return bool(event.entity["wanted"])

    async def says_later(cls: type, event: Event) -> bool:
        await asyncio.sleep(0)
        return says(cls, event)

    def create(cls: Any, event: Event) -> Any:
        made.append(event.id)
        return cls.Context(event_id=event.id)

    body = {"should_run_for_event": classmethod(says_later if later else says), "create_context": classmethod(create)}
    async with make_engine(listener("ev-choosy", body=body)) as engine:
        await engine.emit("ev-visit", {"wanted": False}, event_id="no")
        await engine.emit("ev-visit", {"wanted": True}, event_id="yes")
        await started(engine, "yes", 1)
        await nothing_planned(engine)
        assert (made, await engine.count()) == (["yes"], 1)


@pytest.mark.parametrize("what", ["create_context", "should_run_for_event"])
@pytest.mark.parametrize("later", [False, True], ids=["sync", "async"])
async def test_code_that_raises_is_tried_again(
    make_engine: MakeEngine, clock: ShiftedClock, log: list[EventDict], what: str, later: bool
) -> None:
    """A start whose code raises is counted, logged and retried with back-off until it succeeds; others go ahead."""
    asked: list[timedelta] = []
    begun = clock.now()

    def create(cls: Any, event: Event) -> Any:
        asked.append(clock.now() - begun)
        if len(asked) <= 3:
            raise LookupError("no such visit")
        return cls.Context() if what == "create_context" else True

    async def create_later(cls: Any, event: Event) -> Any:
        return create(cls, event)

    body = {what: classmethod(create_later if later else create)}
    async with make_engine(listener("ev-stubborn", body=body), listener("ev-easy")) as engine:
        await engine.emit("ev-visit", event_id="e")
        await started(engine, "e", 1)

        async def failing() -> bool:
            stats = await engine.stats()
            return (stats.planned, stats.failing) == (1, 1)

        for tries in (1, 2, 3):
            await wait_until(lambda tries=tries: len(asked) == tries)  # type: ignore[misc]
            await wait_until(failing)
            clock.shift(timedelta(seconds=2 ** (tries - 1)))
        assert len(await started(engine, "e", 2)) == 2
        stats = await engine.stats()
        assert (stats.planned, stats.failing, stats.events) == (0, 0, {"occurred": 1})
    pauses = [after - before for before, after in pairwise(asked)]
    assert all(pause >= timedelta(seconds=2**n) for n, pause in enumerate(pauses))
    lines = [entry for entry in log if entry["event"] == "run cannot be started for its event, will try again"]
    assert [(line["attempt"], line["workflow"], line["event_id"]) for line in lines] == [
        (attempt, "ev-stubborn", "e") for attempt in (1, 2, 3)
    ]
    assert "no such visit" in lines[0]["error"]


@pytest.mark.parametrize("year", [None, 1965, 1])
async def test_an_event_outlives_the_engine(make_engine: MakeEngine, year: int | None) -> None:
    """An event that a client emits while no worker is open starts its run once, however far it is past."""
    told: list[Event] = []
    flows = [listener("ev-patient", told, offsets=[timedelta(days=-36_000)])]
    at = None if year is None else datetime(year, 1, 2, tzinfo=UTC)
    async with make_engine(*flows):
        pass  # registers the listeners in the store
    async with make_engine(*flows, worker=False) as client:
        await client.emit("ev-visit", event_id="e", at=at)
        assert ((await client.stats()).planned, await client.count()) == (1, 0)
    for _ in range(2):
        async with make_engine(*flows) as engine:
            await started(engine, "e", 1)
            assert (await engine.stats()).planned == 0
    assert [event.id for event in told] == ["e"]


@pytest.mark.parametrize("raises", [False, True])
async def test_a_start_interrupted_by_a_close(make_engine: MakeEngine, *, raises: bool) -> None:
    """A start that was interrupted by the engine's close is made once by the next engine, even if it raised then."""
    begun: list[int] = []
    gate = asyncio.Event()

    async def create(cls: Any, event: Event) -> Any:
        begun.append(1)
        if len(begun) == 1:
            try:
                await gate.wait()
            finally:
                if raises:
                    raise ValueError("not now")
        return cls.Context()

    flows = [listener("ev-halted", body={"create_context": classmethod(create)})]
    async with make_engine(*flows, shutdown_timeout=timedelta(0)) as engine:
        await engine.emit("ev-visit", event_id="e")
        await wait_until(lambda: begun)
    await closed(engine)
    async with make_engine(*flows) as engine:
        await started(engine, "e", 1)
        await nothing_planned(engine)
        assert (await engine.count(), len(begun)) == (1, 2)


async def test_a_client_does_what_is_due(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """process_scheduled of a client makes the due starts, which a worker then runs, and lets the event occur."""
    flows = [listener("ev-scheduled", offsets=[-HOUR, timedelta(0)])]
    async with make_engine(*flows):
        pass
    async with make_engine(*flows, worker=False) as client:
        await client.emit("ev-visit", event_id="e", at=clock.now() + 2 * HOUR)
        for hours, done in ((0, 0), (1, 1), (1, 2), (1, 0)):
            clock.shift(hours * HOUR)
            assert await client.process_scheduled() == done
        assert await client.count(status="running") == 2
        [event] = await client.events()
        assert event.status == "occurred"
    async with make_engine(*flows) as engine:
        await started(engine, "e", 2)


@pytest.mark.parametrize("by", ["engine", "step"])
async def test_a_class_defined_after_the_engine_was_opened(make_engine: MakeEngine, by: str) -> None:
    """A workflow defined after the engine was opened is started by an event that the engine or a step then emits."""
    name = f"ev-fresh-{uuid4()}"  # no engine has known it before

    def emits(self: Any) -> Command:
        listener(name, event=name)
        get_run().emit(name, event_id="e")
        return complete()

    first = flow(Path, emits)
    async with make_engine() as engine:
        if by == "engine":
            listener(name, event=name)
            await engine.emit(name, event_id="e")
        else:
            await engine.start(first)
        [run] = await started(engine, "e", 1)
        assert run.workflow == name


# ---- steps that emit


async def test_a_step_emits_with_its_transition(make_engine: MakeEngine) -> None:
    """What a step emits is committed with its transition: once after retries, and not at all if the run fails."""

    def emits(self: Any) -> Command:
        get_run().emit("ev-visit", {"attempt": get_run().attempt}, event_id=f"e-{get_run().id}")
        if get_run().attempt < 3 or get_context(Path).path:
            raise RuntimeError("not yet")
        return complete()

    told: list[Event] = []
    emitter = flow(Path, emits)
    async with make_engine(emitter, listener("ev-emitted", told)) as engine:
        good = await (await engine.start(emitter)).wait(5)
        bad = await (await engine.start(emitter, path=["fail"])).wait(5)
        assert (good.status, bad.status) == ("completed", "failed")
        await started(engine, f"e-{good.id}", 1)
        assert [event.entity for event in told] == [{"attempt": 3}]
        assert len(await engine.events()) == 1


async def test_a_start_by_an_event_without_an_entity(make_engine: MakeEngine) -> None:
    """A Context whose entity_id does not accept None has its default if the event has no entity."""
    flows = [listener("ev-named", body={"Context": Named})]
    async with make_engine(*flows) as engine:
        event = await engine.emit("ev-visit")
        [run] = await started(engine, event.id, 1)
        assert (run.data["event_id"], run.data["entity_id"]) == (event.id, "none yet")


# ---- waits


def waiter(command: Callable[[Any], Command], context: type[BaseModel] = Path) -> Any:
    """A workflow that waits for "go", then with ``command``, and with it again after each event."""
    context.model_rebuild()

    def begin(self: Any) -> Command:
        return wait.for_signal("go", then=self.ask)

    def ask(self: Any) -> Command:
        return command(self)

    def came(self: Any, event: Any = None) -> Command:
        get_context(context).path.append(f"came {event.id}")  # type: ignore[attr-defined]
        return goto(self.ask)

    def signalled(self: Any) -> Command:
        get_context(context).path.append("signalled")  # type: ignore[attr-defined]
        return complete()

    def late(self: Any) -> Command:
        get_context(context).path.append("late")  # type: ignore[attr-defined]
        return complete()

    return flow(context, begin, ask, came, signalled, late)


def for_entity(self: Any) -> Command:
    """Waits for a payment of order 17."""
    return wait.any(on.event("paid", entity_id=17, then=self.came), on("stop", then=self.signalled))


def for_any(self: Any) -> Command:
    """Waits for any payment."""
    return wait.any(on.event("paid", then=self.came), on("stop", then=self.signalled))


async def path_after_stop(engine: Engine, run: WorkflowRun[Any]) -> list[str]:
    """Send "stop"; returns the path of the run once it has ended."""
    await engine.signal("stop", run_id=run.id)
    path: list[str] = (await run.wait(5)).data["path"]
    return path


async def has_come(run: WorkflowRun[Any], count: int) -> None:
    """Wait until this many events have resumed the run, and it waits again."""

    async def there() -> bool:
        await run.refresh()
        return len(run.data["path"]) == count and run.status == "waiting"

    await wait_until(there)


async def test_a_wait_for_an_entity_takes_what_came_before(make_engine: MakeEngine) -> None:
    """A wait with an entity_id takes events about it since the run's start, each once and in order, but no others."""
    order = waiter(for_entity)
    async with make_engine(order) as engine:
        await engine.emit("paid", entity_id=17, event_id="early")
        run = await parked(engine, order)
        for event_id, entity_id in (("a", 17), ("b", "17"), ("c", 18)):
            await engine.emit("paid", entity_id=entity_id, event_id=event_id)
        await engine.emit("refused", entity_id=17)
        await engine.signal("go", run_id=run.id)
        await has_come(run, 2)
        await engine.emit("paid", {"id": 17}, event_id="d")
        await has_come(run, 3)
        assert await path_after_stop(engine, run) == ["came a", "came b", "came d", "signalled"]
        assert _told(run) == ("d", "paid", "17")


async def test_a_wait_for_any_takes_only_what_comes(make_engine: MakeEngine) -> None:
    """A wait without an entity_id takes only events that occur while the run waits, about any entity."""
    order = waiter(for_any)
    async with make_engine(order) as engine:
        run = await parked(engine, order)
        await engine.emit("paid", entity_id=17, event_id="a")
        await engine.signal("go", run_id=run.id)
        await run.wait(5, until="parked")
        await engine.emit("paid", entity_id=18, event_id="b")
        await has_come(run, 1)
        await engine.emit("paid", event_id="c")
        await has_come(run, 2)
        assert await path_after_stop(engine, run) == ["came b", "came c", "signalled"]


async def test_an_occurrence_to_come_is_waited_for(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A pending event resumes a run when it occurs, and a cancelled one does not."""
    order = waiter(for_entity)
    async with make_engine(order) as engine:
        run = await parked(engine, order)
        await engine.signal("go", run_id=run.id)
        for event_id in ("a", "b"):
            await engine.emit("paid", entity_id=17, event_id=event_id, at=clock.now() + HOUR)
        await engine.cancel_event("a")
        await engine.process_scheduled()
        await run.refresh()
        assert run.data["path"] == []
        clock.shift(HOUR)
        await has_come(run, 1)
        assert await path_after_stop(engine, run) == ["came b", "signalled"]


async def test_a_client_s_event_ends_the_waits_of_many(make_engine: MakeEngine) -> None:
    """One event resumes every run that waits for it, whichever engine emits it."""
    order = waiter(for_any)
    async with make_engine(order) as engine, make_engine(order, worker=False) as client:
        runs = [await parked(engine, order) for _ in range(20)]
        for run in runs:
            await engine.signal("go", run_id=run.id)
            await run.wait(5, until="parked")
        await client.emit("paid", event_id="a")
        for run in runs:
            await has_come(run, 1)


class Strict(BaseModel):
    """A Context that forbids undeclared names, and declares one key of an event."""

    model_config = ConfigDict(extra="forbid")
    path: list[str] = []
    entity_id: str | None = None


async def test_a_context_that_forbids_other_keys(make_engine: MakeEngine) -> None:
    """A Context that forbids undeclared names gets only the keys of the event that it declares."""
    order = waiter(for_entity, Strict)
    async with make_engine(order) as engine:
        run = await parked(engine, order)
        await engine.emit("paid", entity_id=17, event_id="a")
        await engine.signal("go", run_id=run.id)
        await has_come(run, 1)
        assert await path_after_stop(engine, run) == ["came a", "signalled"]
        assert run.data == {"path": ["came a", "signalled"], "entity_id": "17"}


class Named(BaseModel):
    """A Context whose entity_id accepts only strings."""

    path: list[str] = []
    event_id: str = ""
    entity_id: str = "none yet"


async def test_an_event_without_an_entity(make_engine: MakeEngine) -> None:
    """If the event has no entity, a Context whose entity_id does not accept None keeps its value, and gets the rest."""
    order = waiter(for_any, Named)
    async with make_engine(order) as engine:
        run = await parked(engine, order)
        await engine.signal("go", run_id=run.id)
        await run.wait(5, until="parked")
        for count, (event_id, entity_id) in enumerate({"a": "none yet", "b": "17", "c": "17"}.items(), 1):
            await engine.emit("paid", entity_id=17 if event_id == "b" else None, event_id=event_id)
            await has_come(run, count)
            assert (run.data["event_id"], run.data["entity_id"]) == (event_id, entity_id)


class Numbered(BaseModel):
    """A Context whose event_id accepts only numbers."""

    path: list[str] = []
    event_id: int = 0


async def test_an_event_that_is_rejected(make_engine: MakeEngine, log: list[EventDict]) -> None:
    """An event that the Context does not accept is rejected: the run waits on, and log and history have the reason."""
    order = waiter(for_any, Numbered)
    async with make_engine(order) as engine:
        run = await parked(engine, order)
        await engine.signal("go", run_id=run.id)
        await run.wait(5, until="parked")
        await engine.emit("paid", event_id="a")

        async def rejected() -> bool:
            return "reject" in [row.kind for row in await engine.history(run.id)]

        await wait_until(rejected)
        await engine.emit("paid", event_id="7")
        await has_come(run, 1)
        assert (run.data["path"], run.data["event_id"]) == (["came 7"], 7)
    [line] = [entry for entry in log if entry["event"].endswith("rejected")]
    assert (line["event"], line["log_level"]) == ("event rejected", "warning")
    assert line["error"].startswith("Event 'paid' was rejected: event_id: ")


@workflow("ev-executed-again")
class Again:
    """Its step blocks the first time, so that it runs again after a restart."""

    Context = Path
    seen: ClassVar[list[Event]] = []
    gate = asyncio.Event()

    @step(start=True)
    async def begin(self) -> Command:
        return wait_for_event("paid", entity_id="17", then=self.came)

    @step
    async def came(self, event: Event) -> Command:
        self.seen.append(event)
        if len(self.seen) == 1:
            await self.gate.wait()
        return complete()


async def test_a_step_that_is_executed_again_is_given_the_same(make_engine: MakeEngine) -> None:
    """A step that runs again after a restart gets the event as it was, even if that was replaced meanwhile."""
    Again.seen.clear()
    Again.gate = asyncio.Event()
    async with make_engine(Again, shutdown_timeout=timedelta(0)) as engine:
        run = await parked(engine, Again)
        event = await engine.emit("paid", {"id": 17, "euros": 3}, event_id="a")
        await wait_until(lambda: Again.seen)
        await engine.emit("paid", {"id": 17, "euros": 4}, event_id="a", replace=True)
    async with make_engine(Again) as engine:
        assert (await engine.wait(run.id, 5)).status == "completed"
    assert Again.seen == [event, event]


class Room(str, enum.Enum):  # noqa: UP042 - one whose str() is not its value
    """An enum whose members are entity ids."""

    BLUE = "blue"


async def test_the_entity_of_a_wait_is_the_one_of_the_event(make_engine: MakeEngine) -> None:
    """An entity id that is an enum member is the same for the wait and for the event."""

    def first(self: Any) -> Command:
        return wait_for_event("booked", entity_id=Room.BLUE, then="done")

    def done(self: Any) -> Command:
        return complete()

    order = flow(Path, first, done)
    async with make_engine(order) as engine:
        run = await parked(engine, order)
        await engine.emit("booked", entity_id=Room.BLUE)
        assert _told(await run.wait(5))[2] == "blue"


def for_both(self: Any) -> Command:
    """Waits for a payment of order 17 or of any."""
    return wait.any(on.event("paid", then=self.late), on.event("paid", entity_id=17, then=self.came))


async def test_the_arm_of_the_entity_comes_first(make_engine: MakeEngine) -> None:
    """An arm with an entity_id takes events about it, from before the wait too; all others go to the other arm."""
    order = waiter(for_both)
    async with make_engine(order) as engine:
        run = await parked(engine, order)
        await engine.emit("paid", entity_id=17, event_id="before")
        await engine.signal("go", run_id=run.id)
        await has_come(run, 1)
        await engine.emit("paid", entity_id=17, event_id="then")
        await has_come(run, 2)
        await engine.emit("paid", entity_id=18, event_id="other")
        assert (await run.wait(5)).data["path"] == ["came before", "came then", "late"]
