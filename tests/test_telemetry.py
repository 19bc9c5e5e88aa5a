"""What the log and the instruments get about runs, and which store a URL means."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import structlog
from pydantic import BaseModel
from structlog.contextvars import bind_contextvars, clear_contextvars, get_contextvars
from structlog.testing import capture_logs

from aioflow import Engine, Retry, RetryLater, complete, fail, get_context, goto, sleep, step, telemetry, workflow
from aioflow.commands import Command
from aioflow.discovery import find_store
from aioflow.errors import BackendUnknown
from aioflow.model import Run, Transition, TransitionKind
from aioflow.telemetry import Telemetry
from aioflow.testing.conformance_samples import NOW, a_run
from aioflow_memory import MemoryStore
from aioflow_sqlite import SQLiteStore
from tests.support import wait_until

SECRET = "4111 1111 1111 1111"


@pytest.fixture(autouse=True)
def _unconfigured() -> Iterator[None]:
    """Reset structlog to its defaults, with no context bound."""
    structlog.reset_defaults()
    clear_contextvars()
    yield
    structlog.reset_defaults()
    clear_contextvars()


def told(kind: TransitionKind, error: str | None = None, **columns: Any) -> tuple[Run, Transition]:
    """A row with a secret in its Context, and the transition that led to it."""
    run = a_run(7, data=f'{{"card":"{SECRET}"}}', seq=3, **columns)
    return run, Transition(7, 3, NOW, "pay", 2, kind, 0, error, 77)


FIELDS = {"run_id": 7, "workflow": "order", "step": "pay", "attempt": 2, "seq": 3}

KINDS: list[tuple[TransitionKind, str | None, str | None, str | None]] = [
    ("start", None, "info", "run started"),
    ("goto", None, None, None),
    ("sleep", None, None, None),
    ("wake", None, None, None),
    ("unblock", None, None, None),
    ("complete", None, "info", "run completed"),
    ("cancel", None, "info", "run cancelled"),
    ("cancel", "not wanted", "info", "run cancelled"),
    ("retry", None, None, None),
    ("retry", "ValueError: no", "warning", "step failed, will be retried"),
    ("fail", "ValueError: no", "warning", "run failed"),
    ("fail", "", "warning", "run failed"),
    ("block", "no such step", "warning", "run blocked"),
]


# ---- the log


@pytest.mark.parametrize(("kind", "error", "level", "name"), KINDS, ids=str)
def test_a_transition_is_a_debug_event_and_at_most_one_more(
    kind: TransitionKind, error: str | None, level: str | None, name: str | None
) -> None:
    """Each transition is logged at debug level; starts and ends also at info level, and failures as warnings."""
    with capture_logs() as logged:
        Telemetry().committed(*told(kind, error))
    fields: dict[str, Any] = {**FIELDS, "kind": kind}
    if error is not None:
        fields["error"] = error
    expected = [{"event": name, "log_level": level, **fields}] if name else []
    assert logged == [
        *expected,
        {"event": "transition", "log_level": "debug", "status": "running", "next_step": "pay", **fields},
    ]


def test_an_event_tells_what_there_is_to_tell() -> None:
    """The log of a transition has the run's key, the duration and the next step, if there are any."""
    run, transition = told("sleep", key="order-7", status="waiting", next_step="ship")
    with capture_logs() as logged:
        Telemetry().committed(run, transition._replace(duration_micros=1_500))
    assert logged == [
        {
            "event": "transition",
            "log_level": "debug",
            **FIELDS,
            "kind": "sleep",
            "key": "order-7",
            "duration_ms": 1.5,
            "status": "waiting",
            "next_step": "ship",
        }
    ]


@pytest.mark.parametrize(("kind", "error", "level", "name"), KINDS, ids=str)
def test_nothing_but_warnings_is_printed_while_unconfigured(
    kind: TransitionKind, error: str | None, level: str | None, name: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """While structlog is unconfigured, only warnings are printed, and no info or debug lines."""
    Telemetry().committed(*told(kind, error))
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == (level == "warning")
    assert all(name is not None and name in line for line in printed)


def test_a_traceback_is_printed_without_complaint_while_unconfigured(capsys: pytest.CaptureFixture[str]) -> None:
    """While structlog is unconfigured, a traceback is printed below its line, without a warning from structlog."""
    try:
        raise ConnectionError("the line dropped")
    except ConnectionError as error:
        telemetry.warn("step failed", exception=telemetry.plain_traceback(error))
    told = capsys.readouterr().out.splitlines()
    assert "step failed" in told[0]
    assert "exception" not in told[0]
    assert "ConnectionError: the line dropped" in told


def test_levels_are_kept_while_unconfigured(capsys: pytest.CaptureFixture[str]) -> None:
    """While structlog is unconfigured, only warnings and errors are printed; a configured one gets every level."""
    telemetry.debug("one", number=1)
    telemetry.info("two", number=2)
    telemetry.warn("three", number=3)
    telemetry.fault("four", number=4)
    found = capsys.readouterr().out
    assert [word for word in ("one", "two", "three", "four") if word in found] == ["three", "four"]
    with capture_logs() as logged:
        telemetry.debug("one", number=1)
        telemetry.info("two", number=2)
        telemetry.warn("three", number=3)
        telemetry.fault("four", number=4)
    assert [(entry["log_level"], entry["event"], entry["number"]) for entry in logged] == [
        ("debug", "one", 1),
        ("info", "two", 2),
        ("warning", "three", 3),
        ("error", "four", 4),
    ]


# ---- instruments


class Recorder:
    """An instrument that records its calls."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def committed(self, run: Run, transition: Transition) -> None:
        self.heard.append(("committed", run, transition))

    def step_started(self, run: Run) -> None:
        self.heard.append(("started", run))

    def step_ended(self, run: Run, error: BaseException | None) -> None:
        self.heard.append(("ended", run, error))


class Broken(Recorder):
    """An instrument that records its calls and then raises."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def committed(self, run: Run, transition: Transition) -> None:
        super().committed(run, transition)
        raise self.error

    def step_started(self, run: Run) -> None:
        super().step_started(run)
        raise self.error

    def step_ended(self, run: Run, error: BaseException | None) -> None:
        super().step_ended(run, error)
        raise self.error


def tell(seam: Telemetry) -> list[Any]:
    """Call every method of the telemetry; returns what an instrument should have recorded."""
    run, transition = told("goto")
    error = ValueError()
    seam.step_started(run)
    seam.step_ended(run, None)
    seam.step_ended(run, error)
    seam.committed(run, transition)
    return [("started", run), ("ended", run, None), ("ended", run, error), ("committed", run, transition)]


@pytest.mark.parametrize("error", [ValueError(), asyncio.CancelledError(), KeyboardInterrupt()], ids=repr)
def test_an_instrument_that_raises_breaks_nothing(error: BaseException) -> None:
    """If instruments raise anything, all instruments still get every call, and each broken one is logged once."""
    seam = Telemetry()
    one, two, well = Broken(error), Broken(error), Recorder()
    seam.instruments += [one, well, two]
    with capture_logs() as logged:
        heard = tell(seam)
        tell(seam)
    assert one.heard[:4] == two.heard[:4] == well.heard[:4] == heard
    assert len(one.heard) == len(two.heard) == len(well.heard) == 8
    reports = [entry for entry in logged if entry["event"] != "transition"]
    # Text that structlog must not format: its formatter may print the values of local variables.
    assert all(entry.pop("exception").startswith("Traceback (most recent call last):") for entry in reports)
    assert (
        reports
        == [
            {
                "event": "instrument raised; its later errors are not logged",
                "log_level": "warning",
                "instrument": "Broken",
                "method": "step_started",
            }
        ]
        * 2
    )


def test_an_instrument_that_equals_another_is_reported_for_itself() -> None:
    """Two broken instruments that compare equal are logged separately."""

    class Twin(Broken):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    seam = Telemetry()
    seam.instruments += [Twin(ValueError()), Twin(ValueError())]
    with capture_logs() as logged:
        tell(seam)
    assert [entry["event"] for entry in logged].count("instrument raised; its later errors are not logged") == 2


def test_a_log_that_raises_breaks_nothing() -> None:
    """If logging raises, instruments still get every call."""

    def broken(*_: Any) -> Any:
        raise OSError("no space left on device")

    structlog.configure(processors=[broken])
    seam = Telemetry()
    bad, well = Broken(ValueError()), Recorder()
    seam.instruments += [bad, well]
    heard = tell(seam)
    assert bad.heard == well.heard == heard


# ---- through an engine

NOTED: list[tuple[str, dict[str, Any]]] = []


def note(where: str) -> None:
    """Record the context variables that a log line would have here."""
    NOTED.append((where, get_contextvars()))


@pytest.fixture
def noted() -> list[tuple[str, dict[str, Any]]]:
    NOTED.clear()
    return NOTED


@workflow("telemetry.order", default_retry=Retry(max_attempts=2, base_delay=timedelta(0)))
class Order:
    """An async step, a sync one in a thread that fails once, a sync one on the loop."""

    class Context(BaseModel):
        card: str = SECRET
        number: int = 0
        tries: int = 0

    @step(start=True)
    async def pay(self) -> Command:
        note("pay")
        await asyncio.sleep(0)
        note("pay")
        return goto(self.pack)

    @step
    def pack(self) -> Command:
        note("pack")
        if get_contextvars()["attempt"] == 1:
            raise ValueError("not yet")
        return sleep(timedelta(0), then=self.ship)

    @step(thread=False)
    def ship(self) -> Command:
        note("ship")
        return complete(parcel=17)


@workflow("telemetry.binder")
class Binder:
    """Its steps bind context variables and do not unbind them."""

    class Context(BaseModel):
        number: int

    @step(start=True)
    async def begin(self) -> Command:
        note("begin")
        bind_contextvars(number=get_context(self.Context).number, customer="Ada")
        return goto(self.proceed)

    @step
    def proceed(self) -> Command:
        bind_contextvars(parcel=17)
        return complete()


@workflow("telemetry.loser")
class Loser:
    """A workflow that fails."""

    class Context(BaseModel):
        card: str = SECRET

    @step(start=True)
    async def lose(self) -> Command:
        return fail("out of stock")


@workflow("telemetry.sleeper")
class Sleeper:
    """A workflow that waits for a signal."""

    class Context(BaseModel):
        card: str = SECRET

    @step(start=True)
    async def rest(self) -> Command:
        raise RetryLater(timedelta(days=1))


async def test_log_lines_of_a_step_carry_its_run(noted: list[tuple[str, dict[str, Any]]]) -> None:
    """In a step, async, in a thread or sync on the loop, run, workflow, step and attempt are bound to log lines."""
    async with Engine(MemoryStore(), workflows=[Order]) as engine:
        run = await engine.start(Order)
        assert (await run.wait(5)).status == "completed"

    def carries(name: str, attempt: int) -> tuple[str, dict[str, Any]]:
        return name, {"run_id": run.id, "workflow": "telemetry.order", "step": name, "attempt": attempt}

    assert noted == [carries("pay", 1), carries("pay", 1), carries("pack", 1), carries("pack", 2), carries("ship", 1)]


async def test_what_a_step_is_bound_to_is_gone_after_it(noted: list[tuple[str, dict[str, Any]]]) -> None:
    """The caller's bound context variables are the same before, while and after its runs execute."""
    bind_contextvars(request="r-1")
    mine = get_contextvars()
    async with Engine(MemoryStore(), workflows=[Order]) as engine:
        run = await engine.start(Order)
        await run.wait(5)
        assert get_contextvars() == mine
        assert await engine.count(status="completed") == 1
    assert get_contextvars() == mine
    assert len(noted) == 5


@pytest.mark.parametrize("max_running", [1, 10])
async def test_what_a_step_binds_is_its_runs_own(noted: list[tuple[str, dict[str, Any]]], max_running: int) -> None:
    """What a step binds is not seen by other runs, in the same slot or concurrent."""
    async with Engine(MemoryStore(), workflows=[Binder, Order], max_running=max_running) as engine:
        runs = [await engine.start(Binder, number=number) for number in range(5)]
        runs += [await engine.start(Order)]
        for run in runs:
            assert (await run.wait(5)).status == "completed"
    carried = [values for where, values in noted if where in {"begin", "pay"}]
    assert len(carried) == 7
    assert all(values.keys() == {"run_id", "workflow", "step", "attempt"} for values in carried)


async def test_every_transition_of_an_engine_is_logged_once() -> None:
    """Each history row has one debug line; starts, ends and failures have another; none has values of the Context."""
    with capture_logs() as logged:
        async with Engine(MemoryStore(), workflows=[Order, Loser, Sleeper]) as engine:
            runs = [await engine.start(cls) for cls in (Order, Loser, Sleeper)]
            assert [(await run.wait(5)).status for run in runs[:2]] == ["completed", "failed"]
            await runs[2].wait(5, until="parked")
            assert await engine.cancel(runs[2].id, "not wanted")
            histories = [await engine.history(run.id) for run in runs]
    debug = [entry for entry in logged if entry["event"] == "transition"]
    assert sorted((entry["run_id"], entry["seq"], entry["kind"]) for entry in debug) == [
        (row.run_id, row.seq, row.kind) for history in histories for row in history
    ]
    found = sorted((entry["run_id"], entry["log_level"], entry["event"]) for entry in logged if "run_id" in entry)
    order, loser, sleeper = (run.id for run in runs)
    assert [entry for entry in found if entry[1] != "debug"] == sorted(
        [
            (order, "info", "run started"),
            (order, "warning", "step failed, will be retried"),
            (order, "info", "run completed"),
            (loser, "info", "run started"),
            (loser, "warning", "run failed"),
            (sleeper, "info", "run started"),
            (sleeper, "info", "run cancelled"),
        ]
    )
    assert SECRET not in str(logged)
    assert "parcel" not in str(logged)


async def test_an_engine_is_silent_while_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    """While structlog is unconfigured, the engine prints nothing but the failed step's warning and its traceback."""
    async with Engine(MemoryStore(), workflows=[Order]) as engine:
        await (await engine.start(Order)).wait(5)
    line, *trace = capsys.readouterr().out.rstrip().splitlines()
    assert "step failed, will be retried" in line
    assert "ValueError: not yet" in line
    assert (trace[0], trace[-1]) == ("Traceback (most recent call last):", "ValueError: not yet")
    assert sum(" [warning" in each for each in (line, *trace)) == 1


async def test_an_instrument_is_told_in_the_order_of_the_run() -> None:
    """An instrument is told of a step's start and end, and of a transition once it is committed, in that order."""
    recorder = Recorder()
    engine = Engine(MemoryStore(), workflows=[Loser])
    engine.instruments.append(recorder)
    async with engine:
        run = await engine.start(Loser)
        await run.wait(5)
        await wait_until(lambda: len(recorder.heard) == 4)
    assert [(what, row.id, row.seq) for what, row, *_ in recorder.heard] == [
        ("committed", run.id, 1),
        ("started", run.id, 1),
        ("ended", run.id, 1),
        ("committed", run.id, 2),
    ]


# ---- from a URL to a store


def test_a_url_means_a_store() -> None:
    """The URL's scheme selects the backend, which gets the whole URL."""
    assert isinstance(find_store("memory://"), MemoryStore)
    assert find_store("memory://orders").name == "memory://orders"
    assert isinstance(find_store("sqlite:///orders.db"), SQLiteStore)


def test_a_store_is_taken_as_it_is() -> None:
    """A store object is used as it is."""
    store = MemoryStore()
    assert find_store(store) is store


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ("memory://from-outside", "memory://from-outside"),
        ("sqlite:///outside.db", "sqlite:///outside.db"),
        ("", "sqlite:///aioflow.db"),
        (None, "sqlite:///aioflow.db"),
    ],
)
def test_without_a_url_the_environment_decides(
    monkeypatch: pytest.MonkeyPatch, environment: str | None, name: str
) -> None:
    """Without a URL, AIOFLOW_DATABASE_URL is used; if that is unset or empty, it is a file in the working directory."""
    if environment is None:
        monkeypatch.delenv("AIOFLOW_DATABASE_URL", raising=False)
    else:
        monkeypatch.setenv("AIOFLOW_DATABASE_URL", environment)
    assert find_store(None).name == name
    assert find_store("memory://given").name == "memory://given"


@pytest.mark.parametrize("scheme", ["mysql", "SQLITE", "sqlite+aio"])
def test_an_unknown_scheme_is_refused(scheme: str) -> None:
    """An unknown scheme is refused with its name and the available backends."""
    with pytest.raises(
        BackendUnknown, match=re.escape(f"No backend is installed for {scheme}:// URLs (installed: ")
    ) as caught:
        find_store(f"{scheme}://host/orders")
    assert caught.value.scheme == scheme
    installed = re.findall(r"installed: (.*)\)", str(caught.value))[0].split(", ")
    assert installed == sorted(installed)
    assert {"memory", "sqlite"} <= set(installed)


@pytest.mark.parametrize("url", ["", "orders.db", "sqlite", "sqlite:", "sqlite:/orders.db", "://orders.db", "://"])
def test_what_is_no_url_is_refused(url: str) -> None:
    """A text that is no URL is refused with what was given, and an example of a URL."""
    text = f"A store's URL looks like sqlite:///file.db, got {url!r}."
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        find_store(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgres:/ada:s3cret@host/orders",
        "postgresql//ann:s3cret@h/d",
        "postgresql:/ann:s3cret/s3cret@h/d",
        "postgresql:/ann:s3cret?s3cret@h/d",
        "postgresql:/h/d?password=s3cret",
        "postgresql:/h/d?password=s3cret@s3cret",
        "ann:s3cret@h/d",
        "ann:s3cret\ns3cret@h/d",
    ],
)
def test_a_password_is_not_shown(url: str) -> None:
    """The error for a wrong URL does not show its password."""
    with pytest.raises(ValueError, match="A store's URL looks like") as caught:
        find_store(url)
    assert "s3cret" not in str(caught.value)
