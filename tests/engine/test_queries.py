"""Finding runs: by id, key and filters, in order and in pages."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from aioflow import Engine, StartOptions, WorkflowRun, complete, errors, fail, get_context, goto, sleep, step, workflow
from aioflow.clock import Micros
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, ShiftedClock

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


@workflow("queries-order")
class Order:
    """Ends or parks as its Context says."""

    class Context(BaseModel):
        way: str
        number: int
        customer: dict[str, Any] = {}
        tags: list[str] = []

    @step(start=True)
    async def pay(self) -> Command:
        match get_context(self.Context).way:
            case "fail":
                return fail("declined")
            case "sleep":
                return sleep(HOUR)
            case "ship":
                return goto(self.ship)
        return complete()

    @step
    async def ship(self) -> Command:
        return sleep(2 * HOUR)


@workflow("queries-trip")
class Trip:
    """A workflow that ends at once."""

    class Context(BaseModel):
        number: int

    @step(start=True)
    async def go(self) -> Command:
        return complete()


async def some_runs(engine: Engine, clock: ShiftedClock) -> dict[str, WorkflowRun[Any]]:
    """Start a run of each kind, a minute apart; returns name -> run, in the order of their starts."""
    ways = {
        "completed": ("complete", {"name": "Ann", "address": {"city": "Bonn", "zip": 53111}}, ["a", "b"]),
        "failed": ("fail", {"name": "Bob", "vip": True}, []),
        "cancelled": ("sleep", {"name": "Cid", "vip": 1}, ["b", "a"]),
        "sleeping": ("sleep", {"name": "Dot", "address": {"city": "Ulm"}}, ["a"]),
        "shipping": ("ship", {}, ["a", "b"]),
    }
    runs: dict[str, WorkflowRun[Any]] = {}
    for number, (name, (way, customer, tags)) in enumerate(ways.items(), 1):
        options = StartOptions(key=name)
        runs[name] = await engine.start(Order, options, way=way, number=number, customer=customer, tags=tags)
        await runs[name].wait(5, until="parked")
        clock.shift(MINUTE)
    runs["delayed"] = await engine.start(Trip, StartOptions(delay=3 * HOUR), number=1)
    clock.shift(MINUTE)
    runs["trip"] = await (await engine.start(Trip, StartOptions(key="failed"), number=2)).wait(5)
    clock.shift(MINUTE)
    assert await engine.cancel(runs["cancelled"].id)
    for run in runs.values():
        await run.refresh()
    return runs


# ---- one run


async def test_get_reads_a_run_by_its_id(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """get() returns the run as it is stored; its ``created`` is false."""
    async with make_engine() as engine:
        for run in (await some_runs(engine, clock)).values():
            found = await engine.get(run.id)
            assert (found, found.id, found.data) == (run, run.id, run.data)
            assert not found.created


@pytest.mark.parametrize("run_id", [4711, 0, -1, 1 << 53, 1 << 80])
async def test_run_that_does_not_exist_is_not_found(make_engine: MakeEngine, run_id: int) -> None:
    """get, history, wait, result and cancel of an unknown run are RunNotFound."""
    async with make_engine() as engine:
        for call in (engine.get, engine.history, engine.wait, engine.result, engine.cancel):
            with pytest.raises(errors.RunNotFound) as raised:
                await call(run_id)
            assert str(raised.value) == (
                f"There is no run {run_id} in this store. Is it the store in which the run was started?"
            )
            assert raised.value.run_id == run_id
            assert isinstance(raised.value, LookupError)


@pytest.mark.parametrize("run_id", ["1", 1.0, None, True])
async def test_id_is_an_int(make_engine: MakeEngine, run_id: Any) -> None:
    """An id that is no int is a TypeError."""
    async with make_engine() as engine:
        for call in (engine.get, engine.history, engine.wait, engine.result, engine.cancel):
            with pytest.raises(TypeError) as raised:
                await call(run_id)
            assert str(raised.value) == f"A run's id is an int, got {type(run_id).__name__}."


async def test_find_gives_the_newest_run_of_a_key(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """find() takes a workflow, as class or name, and a key, and returns the newest run with that key."""
    async with make_engine() as engine:
        runs = await some_runs(engine, clock)
        assert await engine.find(Order, "failed") == runs["failed"]
        assert await engine.find("queries-trip", "failed") == runs["trip"]
        again = await engine.start(Order, StartOptions(key="failed", reuse="failed"), way="sleep", number=9)
        assert (await engine.find(Order, "failed")).id == again.id
        for workflow_, key in ((Order, "nobody"), ("queries-trip", "sleeping"), ("unheard-of", "failed")):
            name = workflow_ if isinstance(workflow_, str) else "queries-order"
            with pytest.raises(errors.RunNotFound) as raised:
                await engine.find(workflow_, key)
            assert str(raised.value) == f"There is no run of workflow {name!r} with key {key!r} in this store."


async def test_find_wants_a_workflow_and_a_key(make_engine: MakeEngine) -> None:
    """find() refuses a wrong workflow or key with an error that says so."""
    async with make_engine() as engine:
        with pytest.raises(TypeError, match=r"^Engine is no workflow\. Pass a class decorated with @workflow"):
            await engine.find(Engine, "a")
        with pytest.raises(TypeError, match=r"^find\(key\) takes a string, got int\."):
            await engine.find(Order, 7)
        with pytest.raises(ValueError, match=r"^find\(key\) must not be empty\."):
            await engine.find(Order, "")


# ---- filters

#: A filter, and the runs that match it.
FILTERS: list[tuple[dict[str, Any], set[str]]] = [
    ({}, {"completed", "failed", "cancelled", "sleeping", "shipping", "delayed", "trip"}),
    ({"workflow": Trip}, {"delayed", "trip"}),
    ({"workflow": "queries-trip"}, {"delayed", "trip"}),
    (
        {"workflow": [Trip, "queries-order"]},
        {"completed", "failed", "cancelled", "sleeping", "shipping", "delayed", "trip"},
    ),
    ({"workflow": "unheard-of"}, set()),
    ({"status": "failed"}, {"failed"}),
    ({"status": ["failed", "cancelled"]}, {"failed", "cancelled"}),
    ({"status": ("waiting",)}, {"sleeping", "shipping", "delayed"}),
    ({"step": "ship"}, {"shipping"}),
    ({"step": Order.ship}, {"shipping"}),
    ({"step": [Order.ship, "go"]}, {"shipping", "delayed", "trip"}),
    ({"waiting_for": "sleep"}, {"sleeping", "shipping"}),
    ({"waiting_for": ["sleep", "start"]}, {"sleeping", "shipping", "delayed"}),
    ({"waiting_for": "retry"}, set()),
    ({"key": "failed"}, {"failed", "trip"}),
    ({"key": ["failed", "sleeping", "nobody"]}, {"failed", "trip", "sleeping"}),
    ({"key": "failed", "workflow": Order}, {"failed"}),
    ({"data": {"number": 2}}, {"failed", "trip"}),
    ({"data": {"number": 2.0}}, {"failed", "trip"}),
    ({"data": {"number": "2"}}, set()),
    ({"data": {"customer": {"name": "Ann"}}}, {"completed"}),
    ({"data": {"customer": {"address": {"city": "Bonn"}}}}, {"completed"}),
    ({"data": {"customer": {"address": {}}}}, {"completed", "sleeping"}),
    ({"data": {"customer": {"vip": True}}}, {"failed"}),
    ({"data": {"customer": {"vip": 1}}}, {"cancelled"}),
    ({"data": {"customer": {"vip": None}}}, set()),
    ({"data": {"tags": ["a", "b"]}}, {"completed", "shipping"}),
    ({"data": {"tags": []}}, {"failed"}),
    ({"data": {"way": "sleep", "number": 4}}, {"sleeping"}),
    ({"data": {"nothing": 1}}, set()),
    ({"data": {}}, {"completed", "failed", "cancelled", "sleeping", "shipping", "delayed", "trip"}),
    ({"status": "waiting", "workflow": Order, "data": {"tags": ["a"]}}, {"sleeping"}),
    ({"status": []}, set()),
    ({"key": (), "status": "failed"}, set()),
    ({"workflow": {}}, set()),
    ({"step": set()}, set()),
    ({"waiting_for": []}, set()),
    ({"waiting_signal": []}, set()),
    ({"waiting_key": frozenset()}, set()),
    ({"event_id": []}, set()),
    ({"key": {"failed", "sleeping"}}, {"failed", "trip", "sleeping"}),
    (
        {"status": None, "key": None, "data": None, "created_after": None},
        {"completed", "failed", "cancelled", "sleeping", "shipping", "delayed", "trip"},
    ),
]


async def test_runs_match_every_filter(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A filter takes one value or several, a run must match all filters, and count() agrees with runs()."""
    async with make_engine() as engine:
        runs = await some_runs(engine, clock)
        names = {run.id: name for name, run in runs.items()}
        for filters, expected in FILTERS:
            found = await engine.runs(**filters)
            assert {names[run.id] for run in found} == expected, filters
            assert await engine.count(**filters) == len(expected), filters
            assert {names[run.id] async for run in engine.iter_runs(**filters)} == expected, filters
            assert [run.id for run in found] == sorted((run.id for run in found), reverse=True)
            assert all(run == runs[names[run.id]] for run in found)


async def test_a_filter_may_be_read_once_only(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A filter may be an iterator, also an empty one."""
    async with make_engine() as engine:
        await some_runs(engine, clock)
        assert await engine.count(key=iter(["failed", "sleeping"])) == 3  # type: ignore[arg-type]
        assert await engine.count(key=iter([])) == 0  # type: ignore[arg-type]
        assert await engine.runs(status=iter([]), key="failed") == []  # type: ignore[arg-type]


async def test_instants_are_exclusive_bounds(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """created_* and updated_* take aware datetimes of any zone, and are exclusive bounds."""
    async with make_engine() as engine:
        runs = await some_runs(engine, clock)
        names = {run.id: name for name, run in runs.items()}
        for column in ("created", "updated"):
            instants = {name: getattr(run, f"{column}_at") for name, run in runs.items()}
            for edge in [*instants.values(), clock.now()]:
                for bound, passes in (("after", lambda at, edge: at > edge), ("before", lambda at, edge: at < edge)):
                    found = await engine.runs(**{f"{column}_{bound}": edge.astimezone()})
                    assert {names[run.id] for run in found} == {
                        name for name, at in instants.items() if passes(at, edge)
                    }
        after, before = runs["completed"].created_at, runs["shipping"].created_at
        found = await engine.runs(created_after=after, created_before=before)
        assert {names[run.id] for run in found} == {"failed", "cancelled", "sleeping"}
        assert [names[run.id] for run in await engine.runs(updated_after=runs["trip"].updated_at)] == ["cancelled"]


# ---- order and pages


async def test_runs_come_in_the_order_asked_for(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """``order`` is id, created_at or updated_at, descending with "-", and "-id" by default."""
    async with make_engine() as engine:
        runs = list((await some_runs(engine, clock)).values())
        assert await engine.runs() == sorted(runs, key=lambda run: run.id, reverse=True)
        for column in ("id", "created_at", "updated_at"):
            upwards = sorted(runs, key=lambda run: (getattr(run, column), run.id))
            assert await engine.runs(order=column) == upwards
            assert await engine.runs(order=f"-{column}") == upwards[::-1]
            assert await engine.runs(order=column, limit=3) == upwards[:3]
        assert [run.id async for run in engine.iter_runs(order="updated_at")] == [
            run.id for run in sorted(runs, key=lambda run: run.updated_at)
        ]


class StoppedClock(ShiftedClock):
    """A clock that stands still."""

    def micros(self) -> Micros:
        return 1_800_000_000_000_000


@pytest.mark.parametrize("order", ["id", "-id", "created_at", "-created_at", "updated_at", "-updated_at"])
async def test_pages_make_up_the_whole(make_engine: MakeEngine, order: str) -> None:
    """Pages, each after the last run of the one before, give every run once in every order, even for equal instants."""
    async with make_engine(Trip, worker=False, clock=StoppedClock()) as engine:
        await asyncio.gather(*(engine.start(Trip, number=number) for number in range(20)))
        for limit in (1, 3, 7, 20):
            found: list[WorkflowRun[Any]] = []
            by_id: list[WorkflowRun[Any]] = []
            while page := await engine.runs(order=order, limit=limit, after=found[-1] if found else None):
                found += page
                assert len(page) == limit or len(found) == 20
            assert found == await engine.runs(order=order)
            if order.endswith("id") and not order.endswith("_at"):
                while page := await engine.runs(order=order, limit=limit, after=by_id[-1].id if by_id else None):
                    by_id += page
                assert by_id == found
        assert len(found) == 20


async def test_pages_keep_their_place_while_runs_come(make_engine: MakeEngine) -> None:
    """Runs that are started between two pages do not change what the second page has."""
    async with make_engine(Trip, worker=False) as engine:
        first = [(await engine.start(Trip, number=number)).id for number in range(10)]
        page = await engine.runs(limit=4)
        await engine.start(Trip, number=10)
        rest = await engine.runs(limit=100, after=page[-1])
        assert [run.id for run in page + rest] == first[::-1]


async def test_iter_runs_goes_through_every_page(make_engine: MakeEngine) -> None:
    """iter_runs() gives all of a thousand runs once, in order and with filters."""
    async with make_engine(Trip, worker=False) as engine:
        await asyncio.gather(*(engine.start(Trip, number=number % 2) for number in range(1100)))
        found = [run.id async for run in engine.iter_runs(workflow=Trip)]
        assert found == sorted(set(found), reverse=True)
        assert len(found) == await engine.count() == 1100
        odd = [run.data["number"] async for run in engine.iter_runs(data={"number": 1}, order="created_at")]
        assert odd == [1] * 550


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"order": "size"}, ValueError, "runs(order=...) takes one of id, -id, created_at, -created_at, updated_at, "),
    ({"limit": 0}, ValueError, "limit must be from 1 to 10000, got 0. Page with after=."),
    ({"limit": 10_001}, ValueError, "limit must be from 1 to 10000, got 10001."),
    ({"limit": "9"}, TypeError, "limit takes an int, got str."),
    ({"after": "1"}, TypeError, "A run's id is an int, got str."),
    (
        {"after": 1, "order": "created_at"},
        TypeError,
        "runs(after=...) takes the last WorkflowRun of the page before when the order is not by id.",
    ),
    ({"workflow": 7}, TypeError, "an instance of int is no workflow."),
    ({"workflow": [Order, Engine]}, TypeError, "Engine is no workflow."),
    (
        {"status": "shipped"},
        ValueError,
        "runs(status=...) takes one of running, waiting, completed, failed, cancelled; got 'shipped'.",
    ),
    ({"step": 7}, TypeError, "runs(step=...) takes a string or several, got int."),
    ({"key": [None]}, TypeError, "runs(key=...) takes a string or several, got NoneType."),
    ({"waiting_for": b"sleep"}, TypeError, "runs(waiting_for=...) takes a string or several, got bytes."),
    ({"data": [("a", 1)]}, TypeError, "runs(data=...) takes a mapping of Context fields, got list."),
    ({"created_after": "today"}, TypeError, "runs(created_after=...) takes an aware datetime, got str."),
    ({"updated_before": datetime(2026, 1, 1)}, ValueError, "runs(updated_before=...) must be aware"),  # noqa: DTZ001
    ({"colour": "red"}, TypeError, ""),
]


async def test_wrong_filters_are_refused(make_engine: MakeEngine) -> None:
    """A wrong value of a filter is refused, and the error names the filter."""
    async with make_engine() as engine:
        for filters, error, text in WRONG:
            calls: list[Callable[..., Awaitable[Any]]] = [engine.runs]
            if not {"order", "limit", "after"} & filters.keys():
                calls += [engine.count, _first]
            for call in calls:
                with pytest.raises(error) as raised:
                    await (call(engine, **filters) if call is _first else call(**filters))
                assert str(raised.value).startswith(text), filters
                assert next(iter(filters)) in str(raised.value) or text


async def _first(engine: Engine, **filters: Any) -> WorkflowRun[Any]:
    return await anext(aiter(engine.iter_runs(**filters)))


@pytest.mark.parametrize(
    "value",
    [datetime(2026, 1, 1, tzinfo=UTC), {1, 2}, b"raw", object(), {"deep": [timedelta(1)]}],
    ids=["datetime", "set", "bytes", "object", "deep"],
)
async def test_data_filter_takes_json(make_engine: MakeEngine, value: Any) -> None:
    """A data filter with a value that no Context can hold is a TypeError that names the filter, on every store."""
    async with make_engine(Trip, worker=False) as engine:
        await engine.start(Trip, number=1)
        for call in (engine.runs, engine.count):
            with pytest.raises(TypeError, match="data"):
                await call(data={"number": value})


@pytest.mark.parametrize("key", ["a b", 'a"b', "a.b", "$", "ü", "a[0]", "", "x'y", "back\\slash", "%"])
async def test_data_filter_takes_any_key(make_engine: MakeEngine, key: str) -> None:
    """A key of the data filter matches literally, whatever characters it has, and is not read as a path."""

    @workflow("queries-keys")
    class Keys:
        class Context(BaseModel):
            names: dict[str, int]

        @step(start=True)
        async def end(self) -> Command:
            return complete()

    async with make_engine(Keys, worker=False) as engine:
        run = await engine.start(Keys, names={key: 1})
        await engine.start(Keys, names={"other": 1})
        assert await engine.runs(data={"names": {key: 1}}) == [run]
        assert await engine.runs(data={"names": {key: 2}}) == []


@pytest.mark.parametrize("call", ["runs", "iter_runs", "count"])
async def test_unknown_filter_is_named_with_those_that_there_are(make_engine: MakeEngine, call: str) -> None:
    """The error for an unknown filter names the call, the filter, and the filters that exist."""
    async with make_engine(Trip, worker=False) as engine:
        wrong = {"runs": "stauts", "iter_runs": "limit", "count": "order"}[call]

        async def ask() -> None:
            await getattr(engine, call)(**{wrong: "failed"})

        with pytest.raises(TypeError) as raised:
            await ask()
        assert str(raised.value).startswith(f"{call}() has no filter '{wrong}' (filters: workflow, status, step, ")
