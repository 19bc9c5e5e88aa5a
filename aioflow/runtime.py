"""``Engine``: the façade that users hold. It composes the parts, opens and closes them, and decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Self

from aioflow import telemetry
from aioflow.callers import Callers
from aioflow.calls import Calls
from aioflow.changes import Change, Emit, Move, Occur, Post, Result, Start
from aioflow.clock import SECOND, Clock, StoreClock, duration_micros
from aioflow.committer import Committer
from aioflow.delivery import Delivery
from aioflow.discovery import find_store
from aioflow.errors import EngineClosed, OtherLoop, StoreError, UsageError
from aioflow.executor import Executor
from aioflow.ids import Ids, commit_ids
from aioflow.model import Run, Transition
from aioflow.outbox import Office
from aioflow.parts import Parts
from aioflow.planner import Planner
from aioflow.registry import Registry, definition_of, registry
from aioflow.scheduler import Scheduler
from aioflow.shutdown import signalled
from aioflow.store import Store
from aioflow.tasks import TaskSet, alone, finish
from aioflow.telemetry import Instrument, Telemetry
from aioflow.timers import Timers
from aioflow.waiters import Waiters
from aioflow.worker import Worker


class Engine(Calls):
    """Runs workflows, in the event loop that opens it: ``async with Engine("sqlite:///app.db") as engine: ...``.

    Args:
        url_or_store: a URL (``sqlite:///relative.db``, ``sqlite:////absolute.db``, ``memory://``) or a store. Without
            it the environment's ``AIOFLOW_DATABASE_URL`` is read when the engine opens, else ``sqlite:///aioflow.db``.
        workflows: the workflow classes that it knows; without it, all that are imported.
        worker: False makes it a client, which starts, signals, queries and cancels runs, and executes none.
        max_running: how many runs execute at once, at least 1; others wait their turn in the store.
        threads: how many sync steps run at once, at least 1.
        lease: how long a worker that has gone silent keeps its runs, if several workers share the store.
        clock: where time comes from; the machine's if not given.
        shutdown_timeout: how long steps that are running may take to end when the engine closes.

    Its calls, and those of its runs, belong to that event loop: called in another one, such as another thread's, they
    raise OtherLoop, and do nothing.

    The mutable state: the open parts, None while it is closed. A closed engine can be opened again.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of its range.
    """

    def __init__(
        self,
        url_or_store: str | Store | None = None,
        *,
        workflows: Iterable[type] | None = None,
        worker: bool = True,
        max_running: int = 1000,
        threads: int = 40,
        lease: timedelta = timedelta(seconds=30),
        clock: Clock | None = None,
        shutdown_timeout: timedelta = timedelta(seconds=10),
    ) -> None:
        for name, count in (("max_running", max_running), ("threads", threads)):
            if isinstance(count, bool) or not isinstance(count, int):
                raise TypeError(f"Engine({name}=...) takes an int, got {type(count).__name__}.")
            if count < 1:
                raise ValueError(f"Engine({name}=...) must be at least 1, got {count}.")
        if not isinstance(worker, bool):
            raise TypeError(f"Engine(worker=...) takes a bool, got {type(worker).__name__}.")
        if clock is not None and not isinstance(clock, Clock):
            raise TypeError(f"Engine(clock=...) takes a Clock, got {type(clock).__name__}.")
        for name, span in (("lease", lease), ("shutdown_timeout", shutdown_timeout)):
            if not isinstance(span, timedelta):
                raise TypeError(f"Engine({name}=...) takes a timedelta, got {type(span).__name__}.")
        if lease < timedelta(seconds=1):
            raise ValueError(f"Engine(lease=...) must be at least a second, got {lease}.")
        if not isinstance(url_or_store, str | None) and not callable(getattr(url_or_store, "apply", None)):
            raise TypeError(
                f"Engine() takes a URL as a string or a store, got {type(url_or_store).__name__}. "
                'Write Engine("sqlite:///file.db").'
            )
        if isinstance(workflows, str | type):
            raise TypeError(f"Engine(workflows=...) takes workflow classes in a list, got {workflows!r}.")
        self._url_or_store = url_or_store
        super().__init__(registry if workflows is None else Registry(definition_of(flow) for flow in workflows))
        self._works = worker
        self._max_running = max_running
        self._threads = threads
        self._lease = duration_micros(lease)
        self._clock = clock
        self._shutdown_timeout = duration_micros(shutdown_timeout, "Engine(shutdown_timeout=...)")
        self._telemetry = Telemetry()
        self._tasks = TaskSet()
        self._waiters: Waiters
        self._callers: Callers
        self._delivery: Delivery
        self._planner: Planner
        self._worker: Worker | None = None
        self._opening = False
        self._closing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "closed" if self._parts is None else f"open on {self._parts.store.name}"
        return f"<Engine {state}{'' if self._works else ', client only'}>"

    @property
    def instruments(self) -> list[Instrument]:
        """What is told of transitions and steps beside the log: append your own instruments."""
        return self._telemetry.instruments

    async def __aenter__(self) -> Self:
        """Open the store, migrate it if need be, and begin to work.

        Raises:
            BackendUnknown, StoreUnavailable: there is no such store, or it cannot be opened.
            ValueError: the URL, given or in the environment, is invalid, or has an option with an invalid value.
            UsageError: the engine is open already.
        """
        if self._worker is not None or self._opening:
            raise UsageError(f"{self!r} is open already. Open it once, and share it within the event loop.")
        self._opening = True
        try:
            # In a task of its own, which is cancelled at most once: a clean-up cut short would leave threads and locks.
            await finish(alone(self._start_up(), name="aioflow opening"), cancel=True)
        except asyncio.CancelledError:
            if self._parts is not None:  # it had opened already
                await self.__aexit__(None, None, None)
            raise
        finally:
            self._opening = False
        return self

    async def _start_up(self) -> None:
        store = find_store(self._url_or_store)
        try:
            await self._compose(store)
        except BaseException:
            await finish(alone(self._undo(store), name="aioflow undoing its opening"))
            raise

    async def _undo(self, store: Store) -> None:
        await self._tasks.cancel(1.0)
        await store.close()

    async def _compose(self, store: Store) -> None:
        clock, known = self._clock or StoreClock(store), self._registry
        self._tasks = TaskSet()
        store_id = await store.open(clock.micros())
        number = await store.reserve("worker", 1, clock.micros())
        ids = commit_ids(number)
        waiters, callers = self._waiters, self._callers = Waiters(), Callers()
        committer = Committer(store, clock, self._committed, in_flight=store.in_flight)
        run_ids, signal_ids = Ids(store, clock, "run"), Ids(store, clock, "signal", block=500)
        office = Office(store, clock, known, run_ids, signal_ids, ids, store_id=store_id)
        executor = Executor(clock, self._telemetry, store_id, self._threads, office, callers)
        worker = Worker(
            store,
            clock,
            known,
            committer,
            executor,
            ids,
            number=number,
            max_running=self._max_running,
            lease=self._lease,
        )
        delivery = self._delivery = worker.delivery = Delivery(store, clock, known, committer, worker, ids)
        scheduler = worker.scheduler = Scheduler(
            store, clock, committer, worker, ids, Timers(), registry=known, delivery=delivery
        )
        planner = self._planner = worker.planner = Planner(
            store, clock, Timers(), committer=committer, registry=known, slots=worker, office=office, commit_ids=ids
        )
        if self._works:
            office.listen = planner.listen
        parts = Parts(
            loop=asyncio.get_running_loop(),
            store=store,
            clock=clock,
            registry=known,
            committer=committer,
            scheduler=scheduler,
            planner=planner,
            slots=worker,
            waiters=waiters,
            callers=callers,
            office=office,
            delivery=delivery,
            signal_ids=signal_ids,
            commit_ids=ids,
            running=lambda: worker.running,
        )
        self._worker = worker
        self._parts = parts
        committer.start()
        try:
            if self._works:
                self._tasks.keep(worker.watch, name="aioflow lease")
                await worker.look()
                self._tasks.keep(worker.run, name="aioflow worker")
                self._tasks.keep(scheduler.run, name="aioflow scheduler")
                self._tasks.keep(planner.run, name="aioflow planner")
            self._tasks.keep(delivery.run, name="aioflow delivery")
            self._tasks.keep(partial(parts.listen, worker.notice), name="aioflow listener")
        except BaseException:
            self._parts = self._worker = None
            # Commits that are under way end before the store is closed.
            await finish(alone(committer.stop(0), name="aioflow undoing its opening"))
            raise

    def _committed(self, applied: Iterable[tuple[Change, Result]]) -> None:
        """Changes were committed: the state in memory is updated from here alone."""
        telemetry, callers, waiters, worker = self._telemetry, self._callers, self._waiters, self._worker
        logs = telemetry.is_told_all
        for change, result in applied:
            _, run, transition, mail, run_ids, also, _, plans = result
            # Moves and starts, of which there are many, come first.
            if isinstance(change, (Move, Start)):
                transition = change.transition
            elif isinstance(change, Post):
                self._delivery.posted(change.signal, result)
            elif isinstance(change, (Emit, Occur)):
                self._delivery.notify(run_ids)
            if plans:
                self._planner.push(plans)
            if run is None or transition is None or worker is None:
                continue
            if logs or transition.error is not None:
                telemetry.committed(run, transition)
            if callers.by_call:
                callers.committed(run, transition)
            if self._works:
                # Not if the run has gone on since: a Start offered again, after a lost reply, may be given a later row.
                worker.follow(run, change.live if type(change) is Start and run.seq == 1 else None)
            waiters.tell(run)
            if mail:
                self._delivery.notify((run.id,))
            if also and isinstance(change, Move):
                self._ordered(run, transition, zip(change.also, also, strict=True))

    def _ordered(self, run: Run, transition: Transition, orders: Iterable[tuple[Start | Post | Emit, Result]]) -> None:
        """The orders of the run's step were committed with its transition, or left out."""
        for part, told in orders:
            if told.outcome == "applied":
                self._committed([(part, told)])
            else:
                _tell_left_out(run, transition, part, told)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let running steps end and commit, give the runs back, and close the store."""
        loop = None if self._parts is None else self._parts.loop
        if loop is not None and loop is not asyncio.get_running_loop() and not loop.is_closed():
            raise OtherLoop("engine.__aexit__()")
        if self._closing is None or self._closing.done():
            self._closing = TaskSet().spawn(self._close(), name="aioflow closing")
        # Other callers that close it meanwhile wait for the same task. It is bounded by shutdown_timeout.
        await finish(self._closing)

    async def _close(self) -> None:
        parts, worker = self._parts, self._worker
        if parts is None or worker is None:
            return
        try:
            if self._works:
                await worker.drain(self._shutdown_timeout)
            else:
                await parts.planner.stop(1.0)
            await self._tasks.cancel(1.0)
            # Until now steps could start and query runs. From here on no call is taken, or closing might never end.
            self._parts = None
            parts.office.closed = True
            parts.waiters.fail(EngineClosed("engine.wait()"))
            parts.callers.fail(EngineClosed("engine.act()"))
            parts.delivery.close()
            await parts.committer.stop(max(self._shutdown_timeout, SECOND))
            try:
                if self._works:
                    await worker.release()
            except StoreError as problem:
                telemetry.warn("runs could not be given back, they will be taken over", error=str(problem))
        finally:
            self._parts = self._worker = None
            parts.office.closed = True
            await parts.store.close()

    async def run_forever(self) -> None:
        """Work until SIGTERM or SIGINT (Ctrl-C), then close: a service in one call.

        Opens the engine if it is not open. Signal handlers are installed only meanwhile, and only in the main thread.

        Raises:
            BackendUnknown, StoreUnavailable, ValueError, UsageError: as opening the engine does.
        """
        if self._parts is not None:
            await signalled()
            return
        async with self:
            await signalled()

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncGenerator[None, None]:
        """An ASGI lifespan in which the engine is open: ``FastAPI(lifespan=engine.lifespan)``.

        Args:
            app: the ASGI app, which is not used.
        """
        async with self:
            yield


def _tell_left_out(run: Run, transition: Transition, part: Start | Post | Emit, told: Result) -> None:
    """Log an order of a step that was not carried out."""
    who = {"run_id": run.id, "workflow": run.workflow, "step": transition.step}
    match part:
        case Start():
            telemetry.info("run not started, its key is taken", **who, starts=part.run.workflow, key=part.run.key)
        case Emit(event):
            telemetry.info(
                "event not emitted, its event_id is known", **who, event_name=event.name, event_id=event.event_id
            )
        case Post(signal) if told.outcome == "exists":
            telemetry.info(
                "signal not sent, its signal_id is known", **who, signal=signal.name, signal_id=signal.signal_id
            )
        case Post(signal) if told.run is not None:
            telemetry.info("signal not sent, its run has ended", **who, signal=signal.name, to=signal.run_id)
        case Post(signal):
            telemetry.warn("signal not sent, there is no such run", **who, signal=signal.name, to=signal.run_id)
