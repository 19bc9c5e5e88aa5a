"""Whatever a step does, in a coroutine, a thread or on the loop: only its own run is affected.

The other files of this name have the cases that do not fit into the table, with the same household around them.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, NoReturn

import anyio
import anyio.from_thread
import pytest
import structlog
from pydantic import BaseModel
from structlog.contextvars import bind_contextvars, clear_contextvars, get_contextvars

from aioflow import Engine, GiveUp, Retry, complete, get_context, get_run, goto, sleep, step, wait, workflow
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine, ShiftedClock, closed, kinds_of, run_of
from tests.support import wait_until

ONCE = Retry(max_attempts=1)
HOUR = timedelta(hours=1)
#: Seconds in which an engine closes if nothing holds it up, on a busy machine.
CLOSES_WITHIN = 3.0

secret: ContextVar[str] = ContextVar("secret", default="unset")


class Nothing(BaseModel):
    """A Context without fields."""


# ---- the household: runs that must not be affected


@workflow("hostile-sleeper")
class Sleeper:
    """Sleeps for an hour."""

    Context = Nothing

    @step(start=True)
    async def begin(self) -> Command:
        return sleep(HOUR, then=self.end)

    @step
    async def end(self) -> Command:
        return complete()


@workflow("hostile-waiter")
class Waiter:
    """Waits for a signal."""

    class Context(BaseModel):
        paid: int = 0

    @step(start=True)
    async def begin(self) -> Command:
        return wait.for_signal("paid", then=self.end)

    @step
    def end(self) -> Command:
        return complete()


#: The gates of runs of Threaded: for their first and second step.
gates: dict[int, tuple[threading.Event, asyncio.Event]] = {}


@workflow("hostile-threaded", default_retry=ONCE)
class Threaded:
    """Blocks in a thread until its gate opens, and then on the loop."""

    Context = Nothing

    @step(start=True)
    def begin(self) -> Command:
        assert gates[get_run().id][0].wait(10)
        return goto(self.then)

    @step
    async def then(self) -> Command:
        await gates[get_run().id][1].wait()
        return complete()


@workflow("hostile-probe", default_retry=ONCE)
class Probe:
    """Records any foreign state that it finds, on the loop and in a thread."""

    class Context(BaseModel):
        found: list[str] = []

    def look(self) -> None:
        found, run = get_context(self.Context).found, get_run()
        mine = {"run_id": run.id, "workflow": "hostile-probe", "step": run.step, "attempt": 1}
        if secret.get() != "unset" or (bound := get_contextvars()) != mine:
            found.append(f"{run.step}: {secret.get()}, {bound}")

    @step(start=True)
    async def begin(self) -> Command:
        self.look()
        task = asyncio.current_task()
        assert task is not None
        for _ in range(5):
            await asyncio.sleep(0)
        if task.cancelling() or anyio.current_effective_deadline() < float("inf"):
            get_context(self.Context).found.append("a task that is not its own")
        return goto(self.thread)

    @step
    def thread(self) -> Command:
        self.look()
        return complete()


@asynccontextmanager
async def household(
    make_engine: MakeEngine, clock: ShiftedClock, *flows: type, **options: Any
) -> AsyncIterator[Engine]:
    """An engine with a sleeping run, a waiting one and one in a thread, which are checked to go on as usual."""
    loop = asyncio.get_running_loop()
    engine = make_engine(Sleeper, Waiter, Threaded, Probe, *flows, **options)
    async with engine:
        sleeper, waiter, threaded = [await engine.start(flow) for flow in (Sleeper, Waiter, Threaded)]
        gates[threaded.id] = gate, event = threading.Event(), asyncio.Event()
        for run in (sleeper, waiter):
            await run.wait(5, until="parked")
        try:
            yield engine
            gate.set()
            assert (await run_of(engine, Probe)).data == {"found": []}
            await threaded.refresh()
            assert threaded.status == "running"
            receipt = await engine.signal("paid", {"paid": 7}, run_id=waiter.id)
            assert receipt.state in {"delivered", "buffered"}
            clock.shift(HOUR)
            event.set()
            for run, kinds in (
                (sleeper, ["start", "sleep", "wake", "complete"]),
                (waiter, ["start", "wait", "signal", "complete"]),
                (threaded, ["start", "goto", "complete"]),
            ):
                assert (await run.wait(5)).status == "completed", run.error
                assert await kinds_of(engine, run) == kinds
            assert waiter.data == {"paid": 7}
            await wait_until(lambda: idle(engine))
            assert (await run_of(engine, Probe)).data == {"found": []}
        finally:
            gate.set()
            event.set()
            before = loop.time()
    assert loop.time() - before < CLOSES_WITHIN
    await closed(engine)


async def idle(engine: Engine) -> bool:
    return (await engine.stats()).running_here == 0


# ---- what steps do: plain functions, for each place


def _raises(make: Callable[[], BaseException]) -> Callable[[], object]:
    def act() -> NoReturn:
        raise make()

    return act


def _raise_class() -> NoReturn:
    raise KeyError


def _refuse(*_: object) -> NoReturn:
    raise RuntimeError("hands off")


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _hostile(name: str, member: object) -> Callable[[], object]:
    """Raises an exception with one broken member."""
    return _raises(lambda: type("Hostile", (Exception,), {name: member})("text"))


class Text(str):
    """A string most of whose methods raise."""

    __slots__ = ()
    __len__ = __bool__ = __format__ = __str__ = __getitem__ = encode = replace = _refuse  # type: ignore[assignment]


class Meta(type):
    """The metaclass of an exception class whose name cannot be read."""

    __instancecheck__ = __subclasscheck__ = _refuse

    def __getattribute__(cls, name: str) -> Any:
        if name in {"__name__", "__qualname__", "__module__"}:
            raise RuntimeError("hands off")
        return super().__getattribute__(name)


class Nameless(Exception, metaclass=Meta):
    pass


class Unreasonable(GiveUp):
    """A GiveUp without a reason."""

    def __init__(self) -> None:
        Exception.__init__(self)


def _provoke(depth: int = 0) -> int:
    return 1 + _provoke(depth + 1)


def _cycle() -> NoReturn:
    one, two, three = ValueError("one"), ValueError("two"), ValueError("three")
    one.__cause__, two.__cause__, three.__cause__ = two, three, one
    one.__context__ = two.__context__ = three.__context__ = one
    raise one


def _long_chain() -> NoReturn:
    error = ValueError("innermost")
    for number in range(3000):
        outer = ValueError(number)
        outer.__context__ = error
        error = outer
    raise error


def _nested(depth: int) -> BaseException:
    error: Exception = ValueError("innermost")
    for _ in range(depth):
        error = ExceptionGroup("nested", [error])
    return error


def _in_itself() -> NoReturn:
    members: list[Exception] = [ValueError("first")]
    group = ExceptionGroup("in itself", members)
    members[0].__cause__ = group
    raise group


def _notes() -> BaseException:
    error = ValueError("noted")
    error.__notes__ = [_refuse, Text("x"), 7]  # type: ignore[list-item]
    return error


MUCH = 10_000_000

#: What is raised, in a coroutine, a thread and a sync step on the loop, and how the recorded error begins.
RAISED: dict[str, tuple[Callable[[], object], str]] = {
    "ValueError": (_raises(lambda: ValueError("plain")), "ValueError: plain"),
    "a class": (_raise_class, "KeyError"),
    "sys.exit": (lambda: sys.exit("enough"), "SystemExit: enough"),
    "recursion": (_provoke, "RecursionError: maximum recursion depth exceeded"),
    "10 MB": (_raises(lambda: ValueError("x" * MUCH)), "ValueError: xxx"),
    "1 MB of lines": (_raises(lambda: ValueError("x\n" * (MUCH // 20))), "ValueError: x\nx"),
    "10 MB of NULs": (_raises(lambda: ValueError("\0" * MUCH)), "ValueError: \\0\\0"),
    "foreign group": (
        _raises(lambda: ExceptionGroup("foreign", [OSError(1, "a"), ValueError("b")])),
        "ExceptionGroup: foreign (2 sub-exceptions)",
    ),
    "nested group": (_raises(lambda: _nested(1000)), "ExceptionGroup: nested (1 sub-exception)"),
    "wide group": (
        _raises(lambda: ExceptionGroup("wide", [ValueError(n) for n in range(20_000)])),
        "ExceptionGroup: wide (20000 sub-exceptions)",
    ),
    "group in itself": (_in_itself, "ExceptionGroup: in itself"),
    "cyclic chain": (_cycle, "ValueError: one"),
    "long chain": (_long_chain, "ValueError: 2999"),
    "notes": (_raises(_notes), "ValueError: noted"),
    "__str__ interrupts": (_hostile("__str__", _interrupt), "Hostile: <its __str__ raised>"),
    "__str__ is no string": (_hostile("__str__", lambda _: 7), "Hostile: <its __str__ raised>"),
    "__repr__": (_hostile("__repr__", _refuse), "Hostile: text"),
    "__reduce__": (_hostile("__reduce__", _refuse), "Hostile: text"),
    "__eq__": (_hostile("__eq__", _refuse), "Hostile: text"),
    "__hash__": (_hostile("__hash__", _refuse), "Hostile: text"),
    "no __hash__": (_hostile("__hash__", None), "Hostile: text"),
    "__bool__": (_hostile("__bool__", _refuse), "Hostile: text"),
    "with_traceback": (_hostile("with_traceback", _refuse), "Hostile: text"),
    "__cause__": (_hostile("__cause__", property(_interrupt)), "Hostile: text"),
    "__context__": (_hostile("__context__", property(_refuse)), "Hostile: text"),
    "__notes__": (_hostile("__notes__", property(_interrupt)), "Hostile: text"),
    "__module__": (_hostile("__module__", 7), "Hostile: text"),
    "metaclass": (_raises(Nameless), "Nameless"),
    "GiveUp without a reason": (_raises(Unreasonable), ""),
}
#: Exceptions whose text cannot be read.
UNKNOWN = {"metaclass"}


@workflow("hostile-does", default_retry=ONCE)
class Does:
    """Performs the act that its Context names, in the step that it names."""

    class Context(BaseModel):
        what: str
        where: str
        changed: bool = False

    @step(start=True)
    async def begin(self) -> Command:
        return goto(get_context(self.Context).where)

    def act(self) -> Any:
        context = get_context(self.Context)
        context.changed = True
        return ACTS[context.what]()

    @step
    async def coroutine(self) -> Command:
        await asyncio.sleep(0)
        result = self.act()
        if isinstance(result, Awaitable):
            await result
        return goto(self.last)

    @step
    def thread(self) -> Command:
        self.act()
        return goto(self.last)

    @step(thread=False)
    def loop(self) -> Command:
        self.act()
        return goto(self.last)

    @step
    async def last(self) -> Command:
        await asyncio.sleep(0)
        return complete()


@pytest.mark.parametrize("where", ["coroutine", "thread", "loop"])
@pytest.mark.parametrize("what", RAISED)
async def test_whatever_a_step_raises_is_its_own_runs_failure(
    make_engine: MakeEngine, clock: ShiftedClock, what: str, where: str
) -> None:
    """The error is recorded once, as bounded text with a traceback, and no other run is affected."""
    async with household(make_engine, clock, Does) as engine:
        run = await run_of(engine, Does, what=what, where=where)
        assert (run.status, run.current_step, run.data["changed"]) == ("failed", where, False)
        assert (run.error or "").startswith("" if what in UNKNOWN else RAISED[what][1])
        assert len(run.error or "") <= 2_000
        assert 0 < len(run.traceback or "") <= 16_000
        assert await kinds_of(engine, run) == ["start", "goto", "fail"]


# ---- what steps leave behind


left: list[asyncio.Task[Any]] = []
left_open: list[Any] = []


async def _stay() -> None:
    secret.set("of a task that stays")
    await asyncio.Event().wait()


def _variables() -> None:
    secret.set("of a step")
    bind_contextvars(mine="of a step", run_id=-1)


async def _numbers() -> AsyncIterator[int]:
    secret.set("of a generator")
    try:
        yield 1
    finally:
        await asyncio.sleep(0)


async def _open_generator() -> None:
    async for _ in _numbers():
        break
    generator = _numbers()
    await anext(generator)
    left_open.append(generator)


async def _leave_tasks() -> None:
    left.extend(asyncio.get_running_loop().create_task(_stay()) for _ in range(3))
    await asyncio.sleep(0)


def _start_tasks() -> None:
    left.extend(asyncio.get_running_loop().create_task(_stay()) for _ in range(3))


async def _own_timeout() -> None:
    try:
        async with asyncio.timeout(0.001):
            await asyncio.Event().wait()
    except TimeoutError:
        return
    raise AssertionError


async def _open_timeout() -> None:
    await asyncio.timeout(60).__aenter__()


async def _cancel_and_uncancel() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    task.uncancel()


def _cancel_and_uncancel_at_once() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    task.uncancel()


def _uncancel() -> None:
    task = asyncio.current_task()
    assert task is not None
    for _ in range(3):
        task.uncancel()


def _block() -> None:
    threading.Event().wait(0.2)


def _configure_structlog() -> None:
    nothing: Any = object
    structlog.configure(processors=[_refuse], wrapper_class=nothing, cache_logger_on_first_use=False)


async def _scope() -> None:
    anyio.CancelScope().__enter__()


async def _scope_with_deadline() -> None:
    anyio.move_on_after(60).__enter__()


async def _group() -> None:
    await anyio.create_task_group().__aenter__()


def _handler() -> None:
    asyncio.get_running_loop().set_exception_handler(_refuse)


def _rename() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.set_name("aioflow committer")


def _collect() -> None:
    gc.collect()


def _asyncio_run() -> None:
    async def inner() -> int:
        secret.set("of another loop")
        await asyncio.sleep(0)
        return 7

    assert asyncio.run(inner()) == 7


def _anyio_run() -> None:
    async def inner() -> int:
        await anyio.lowlevel.checkpoint()
        return 7

    assert anyio.run(inner) == 7


def _from_thread() -> None:
    async def inner(number: int) -> int:
        await asyncio.sleep(0)
        secret.set("of a loop that was lent")
        assert get_run().workflow == "hostile-does"
        return number

    assert anyio.from_thread.run(inner, 7) == 7
    assert anyio.from_thread.run_sync(lambda: asyncio.get_running_loop().is_running())
    anyio.from_thread.check_cancelled()


def _portal() -> None:
    with anyio.from_thread.start_blocking_portal() as portal:
        assert portal.call(lambda: 7) == 7


def _threads() -> None:
    inner = threading.Thread(target=lambda: secret.set("of another thread"))
    inner.start()
    inner.join()


EVERYWHERE = ("coroutine", "thread", "loop")
ON_THE_LOOP = ("coroutine", "loop")
#: What is done, and in which places; each of these steps succeeds.
DONE: dict[str, tuple[Callable[[], object], tuple[str, ...]]] = {
    "variables": (_variables, EVERYWHERE),
    "cleared log": (clear_contextvars, EVERYWHERE),
    "configured log": (_configure_structlog, EVERYWHERE),
    "open generator": (_open_generator, ("coroutine",)),
    "tasks": (_leave_tasks, ("coroutine",)),
    "tasks at once": (_start_tasks, ("loop",)),
    "own timeout": (_own_timeout, ("coroutine",)),
    "timeout left open": (_open_timeout, ("coroutine",)),
    "scope left open": (_scope, ("coroutine",)),
    "scope with a deadline left open": (_scope_with_deadline, ("coroutine",)),
    "task group left open": (_group, ("coroutine",)),
    "uncancel": (_uncancel, ON_THE_LOOP),
    "cancel and uncancel": (_cancel_and_uncancel, ("coroutine",)),
    "cancel and uncancel at once": (_cancel_and_uncancel_at_once, ("loop",)),
    "blocked": (_block, EVERYWHERE),
    "exception handler": (_handler, ON_THE_LOOP),
    "renamed task": (_rename, ON_THE_LOOP),
    "collected": (_collect, EVERYWHERE),
    "asyncio.run": (_asyncio_run, ("thread",)),
    "anyio.run": (_anyio_run, ("thread",)),
    "from_thread": (_from_thread, ("thread",)),
    "portal": (_portal, ("thread",)),
    "threads": (_threads, EVERYWHERE),
}

ACTS: dict[str, Callable[[], object]] = {name: act for name, (act, _) in (RAISED | DONE).items()}


@pytest.fixture(autouse=True)
def _loop_as_it_was(anyio_backend: str) -> Iterator[None]:
    """Close what steps have left open in the test's loop."""
    yield
    left_open.clear()


@pytest.mark.parametrize(("what", "where"), [(what, where) for what, (_, places) in DONE.items() for where in places])
async def test_whatever_a_step_leaves_behind_stays_with_its_run(
    make_engine: MakeEngine, clock: ShiftedClock, what: str, where: str
) -> None:
    """The run itself completes, with each step run once, and no other run is affected."""
    loop = asyncio.get_running_loop()
    try:
        async with household(make_engine, clock, Does) as engine:
            run = await run_of(engine, Does, what=what, where=where)
            assert (run.status, run.error) == ("completed", None)
            assert await kinds_of(engine, run) == ["start", "goto", "goto", "complete"]
        assert secret.get() == "unset"
    finally:
        loop.set_exception_handler(None)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        left.clear()
        for generator in left_open:
            await generator.aclose()
