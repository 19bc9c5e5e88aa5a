"""The simulation on real SQLite: a file, a store for each process, and crashes that leave a copy of db and WAL.

Each engine has a ``SQLiteStore`` of its own on one file, so that the lock on the file, the takeover and the hint are
the real ones; the stores' functions run inline. All engines live in one operating system process, within which SQLite
and ``FileLock`` tell connections and holders apart. A killed process leaves an image of the file, taken before, within
or after the transaction that was under way; all others go on with that image, and it must hold what was acknowledged.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from aioflow.errors import StoreError, StoreUnavailable
from aioflow.model import SUSPECT_CRASHES
from aioflow.store import Claim, EventQuery, RunQuery
from aioflow.testing.simloop import Process
from aioflow_sqlite import SQLiteStore
from aioflow_sqlite.connection import Connection
from tests.simulation.faults import WRITES, Request, Server, Wire, now_or_never
from tests.simulation.oracle import Client, Oracle

#: The faults of a network, which cannot happen between a process and its file.
NOT_HERE = frozenset({"applied after the error", "silent", "hint lost", "partition"})
#: What a crash leaves; the index of the WAL is rebuilt.
_SUFFIXES = ("", "-wal")
#: Added to the hints for each new image, so that they still grow.
_FURTHER = 1_000_000
#: A crash within a transaction happens before one of its first statements, at most this one, or before its commit.
_STATEMENTS = 16


class FileOracle(Oracle):
    """The oracle where one process works the store: as long as it lives, no other owns anything."""

    holder: Client | None = None
    #: The last process that held the file, if any.
    former: Client | None = None

    def alive(self, worker: int | None, now: int) -> bool:
        """Whether a worker holds the file."""
        return self.holder is not None and worker is not None and self.workers.get(self.holder) == worker

    def claimed(self, client: Client, worker: int, claim: Claim, now: int, *, lease: int, held: Any) -> None:
        """Check the runs that a worker has got, or that another process works the file."""
        if not claim.working:
            if self.holder in (None, client) or claim.runs or claim.gone:
                self.problems.append(f"{client.title} does not work the file of {self.holder}: {claim}")
            self.figures["another works the file"] += 1
            return
        if self.holder is not client:
            if self.holder is not None:
                self.problems.append(f"{client.title} works the file, and so does {self.holder.title}")
            self.figures["takeover"] += self.former not in (None, client)
            self.holder = self.former = client
            self.workers[client] = worker
            self._disown(worker)
        super().claimed(client, worker, claim, now, lease=lease, held=held)

    def _disown(self, worker: int) -> None:
        """Free the runs of earlier workers, which are dead."""
        for id_, row in self.rows.items():
            if row.status == "running" and row.owner not in (None, worker):
                crashes = row.crashes + (row.crashes < SUSPECT_CRASHES or row.marked == 1)
                self.rows[id_] = row._replace(owner=None, fence=row.fence + 1, marked=0, crashes=crashes)
                self.figures["a run of a dead process was freed"] += 1

    def released(self, worker: int) -> None:
        """Record that a worker has given its runs and the file back."""
        if self.alive(worker, 0):
            self.holder = None
        super().released(worker)

    def left(self, client: Client) -> None:
        """Record that a process has closed the file, or is dead."""
        if self.holder is client:
            self.holder = None


class FileServer(Server):
    """The file, and the way to it: each process has a thread that does one thing after the other.

    The mutable state, besides the server's: the image that all use now, which processes have opened it, and when the
    last request and the last reply of each arrives.
    """

    exclusive = True
    oracle: FileOracle

    def prepare(self) -> None:
        """Create the file. ``store`` only reads it, from outside."""
        self._folder = Path(tempfile.mkdtemp(prefix="aioflow-sim-"))
        self._image = 0
        self._stores: dict[Wire, SQLiteStore] = {}
        self._last: dict[tuple[Wire, bool], float] = {}
        self._path = self._folder / "0" / "sim.db"
        self._path.parent.mkdir()
        self.store = self._opened()
        writer = self.store._writer
        assert writer is not None
        now_or_never(writer.run(lambda db: db.execute("UPDATE store SET uuid = 'sim'").fetchall()))

    def _opened(self) -> Any:
        # The kernel keeps what a dead process has written, so syncing would only take time.
        store = self._new()
        now_or_never(store.open(0))
        return store

    def _new(self) -> SQLiteStore:
        return SQLiteStore(f"sqlite:///{self._path}?busy_timeout=0&synchronous=NORMAL")

    def dispose(self) -> None:
        """Close everything, and delete the file."""
        for store in (*self._stores.values(), self.store):
            with suppress(StoreError):
                now_or_never(store.close())
        shutil.rmtree(self._folder)

    # ---- called by Wire

    def store_of(self, client: Wire) -> Any:
        """The process's own store."""
        return self._stores[client] if client in self._stores else _Closed()

    async def open(self, client: Wire, now: int) -> str:
        """Open the file for a process."""
        if not client.process.alive:
            raise StoreUnavailable("sim://", "its process is dead")
        self._stores[client] = store = self._new()
        return str(await store.open(now))

    async def close(self, client: Wire) -> None:
        """Close a process's store, which releases the lock."""
        if (store := self._stores.pop(client, None)) is not None:
            self.oracle.left(client)
            await store.close()

    async def hear(self, client: Wire, now: int) -> int:
        """The store's own hint."""
        return self._image * _FURTHER + int(await self.store_of(client).hint(now))

    def _later(self, request: Request, seconds: float) -> None:
        super()._later(request, self._behind(request, seconds, reply=False))

    def _reply(self, request: Request, how: Callable[..., None], seconds: float, *value: Any) -> None:
        super()._reply(request, how, self._behind(request, seconds, reply=True), *value)

    def _behind(self, request: Request, seconds: float, *, reply: bool) -> float:
        """Seconds until a request or reply arrives: writes of a process keep their order, as they share a thread."""
        if request.verb not in WRITES:
            return seconds
        now, place = self.loop.time(), (request.client, reply)
        self._last[place] = max(now + seconds, self._last.get(place, 0.0) + 1e-6)
        return self._last[place] - now

    # ---- what happens to the processes

    def hold(self, process: Process, seconds: float) -> None:
        """A process is paused together with its threads: what was on its way is delayed, in the same order."""
        for request in sorted(self._under_way, key=_when):
            if request.client.process is process and request.timer is not None:
                left = request.timer.when() - self.loop.time()
                request.timer.cancel()
                self.oracle.figures["fault: request left after a pause"] += 1
                self._later(request, left + seconds)

    def killed(self, process: Process) -> None:
        """The process is dead: all others go on with the file that it leaves."""
        dying = sorted((r for r in self._under_way if r.client.process is process), key=_when)
        for request in dying:
            del self._under_way[request]
            assert request.timer is not None
            request.timer.cancel()
        target = self._folder / str(self._image + 1)
        target.mkdir()
        writing = [request for request in dying if request.verb in WRITES and request.client in self._stores]
        if writing:
            self._crash(writing[0], target)
        else:
            self._copy(target)
            self.oracle.figures["crash: between transactions"] += 1
        self._go_on(process, target)

    def _crash(self, request: Request, target: Path) -> None:
        """Let the process die while it carries out a request."""
        ways = ("before", "within", "within", "torn", "after") if request.verb == "apply" else ("before", "after")
        way, length = self._rng.choice(ways), self._length()
        self.trace(request.client.title, f"dies at {request.verb}, {way}")
        if way == "before":
            self._copy(target)
        elif way == "after":
            with suppress(StoreError):
                self._do(request)
            self._copy(target)
        else:
            with suppress(StoreError):
                self._unheard(request, target if way == "within" else None)
            if way == "torn":
                self._copy(target)
                self._tear(target, length)
            elif not (target / "sim.db").exists():
                self._copy(target)  # the batch was refused, and wrote nothing
        self.oracle.figures[f"crash: {way} {'a commit' if request.verb == 'apply' else 'something else'}"] += 1

    def _unheard(self, request: Request, target: Path | None) -> None:
        """Carry out a batch whose reply nobody gets, and take an image before one of its statements."""
        store, at, seen = self._stores[request.client], self._rng.randint(2, _STATEMENTS), 0
        writer = store._writer
        assert writer is not None

        def look(statement: str) -> None:
            nonlocal seen
            if target is None:
                return
            seen += 1
            # The first statement always counts: a plain batch is one statement, and commits without another.
            if seen in (1, at) or (seen < at and statement.startswith("COMMIT")):
                self._copy(target)

        writer._conn.set_trace_callback(look)
        try:
            now_or_never(store.apply(*request.arguments))
        finally:
            writer._conn.set_trace_callback(None)

    def _length(self) -> int:
        wal = Path(f"{self._path}-wal")
        return wal.stat().st_size if wal.exists() else 0

    def _copy(self, target: Path) -> None:
        for suffix in _SUFFIXES:
            path = Path(f"{self._path}{suffix}")
            if path.exists():
                shutil.copyfile(path, target / path.name)

    def _tear(self, target: Path, before: int) -> None:
        """Keep only a part of what the last transaction has written to the WAL."""
        wal = target / "sim.db-wal"
        length = wal.stat().st_size
        if length > before:
            self.oracle.figures["crash: the WAL was torn"] += 1
            with wal.open("r+b") as file:
                file.truncate(self._rng.randrange(before, length))

    def _go_on(self, process: Process, target: Path) -> None:
        old, self._path = self._path, target / "sim.db"
        self._image += 1
        stores, self._stores = self._stores, {}
        now_or_never(self.store.close())
        self.store = self._opened()
        for client, store in stores.items():
            works = store._works
            now_or_never(store.close())
            if client.process is process:
                self.oracle.left(client)
                continue
            new = self._stores[client] = self._opened()
            new._works = works and new._lock.acquire()
        shutil.rmtree(old.parent)
        self.oracle.figures["crash"] += 1
        self._check(self.oracle)

    def _check(self, oracle: FileOracle) -> None:
        """Check that the image has what was acknowledged, and nothing else."""
        micros = max((row.updated_at for row in oracle.rows.values()), default=0)
        rows = now_or_never(self.store.select(RunQuery(limit=10_000), micros))
        histories = {id_: now_or_never(self.store.history(id_, 0, 10_000, micros)) for id_ in oracle.rows}
        before = len(oracle.problems)
        events = now_or_never(self.store.select(EventQuery(limit=10_000), micros))
        oracle.check_end(rows, histories, events, now_or_never(self.store.stats(micros)))
        oracle.problems[before:] = [f"after a crash: {problem}" for problem in oracle.problems[before:]]


class _Closed:
    """Stands for the store of a process that has not opened the file."""

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        async def refuse(*_: Any, **__: Any) -> Any:
            if verb != "hint":  # by which a Wire checks whether the store is reachable
                raise StoreUnavailable("sim://", "it is not open")
            return 0

        return refuse


def _when(request: Request) -> float:
    return request.timer.when() if request.timer is not None else 0.0


@contextmanager
def inline_connections() -> Iterator[None]:
    """Let connections have no threads: what they are asked to do is done at once."""

    async def execute(self: Connection, function: Callable[..., Any], *arguments: Any) -> Any:
        if self._connection is None:
            raise ValueError("Connection closed")
        return function(*arguments)

    async def connect(self: Connection) -> Connection:
        self._connection = self._connector()
        return self

    def wait(self: Connection) -> Generator[Any, None, aiosqlite.Connection]:
        return connect(self).__await__()

    def stop(self: Connection) -> asyncio.Future[Any] | None:
        self._running = False
        return None

    def send(self: Connection, function: Callable[..., Any]) -> Coroutine[Any, Any, Any]:
        return execute(self, function)

    with pytest.MonkeyPatch.context() as patch:
        for name, seam in {"_execute": execute, "_send": send, "__await__": wait, "stop": stop}.items():
            patch.setattr(Connection, name, seam)
        yield
