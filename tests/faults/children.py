"""Processes that tests start and kill, seen from the test's side, and the journal that they write."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import anyio

from tests.faults import program
from tests.support import wait_until

PROGRAM = Path(program.__file__)
ROOT = PROGRAM.parents[2]
#: Seconds that a process may take to start or to end, on a busy machine.
PATIENCE = 20.0


class Life(NamedTuple):
    """A process, with its number among those that its server has forked."""

    number: int
    pid: int


class ForkServer:
    """A server that has imported everything and forks a process for each job, within milliseconds."""

    def __init__(self, *program: str) -> None:
        self._server = subprocess.Popen(
            [sys.executable, *(program or (str(PROGRAM),))], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._unread = b""
        self._forked: list[Life] = []
        #: The living processes by pid, as pids are reused, and the exit codes of the others by number.
        self._lives: dict[int, Life] = {}
        self._ended: dict[int, int] = {}
        self._forks = 0
        self._lock = threading.Lock()
        self._ready = False
        while not self._ready:
            assert self._read(PATIENCE), "the server of lives does not begin"

    def fork(self, job: dict[str, Any]) -> Life:
        """Fork a process that does this job."""
        assert self._server.stdin is not None
        with self._lock:
            os.write(self._server.stdin.fileno(), json.dumps(job).encode() + b"\n")
            while not self._forked:
                assert self._read(PATIENCE), "the server of lives does not fork"
            return self._forked.pop()

    def exit_code(self, number: int, within: float) -> int | None:
        """The exit code of a process, or minus the signal that killed it; None if it has not ended by then."""
        deadline = time.monotonic() + within
        with self._lock:
            while number not in self._ended:
                left = max(deadline - time.monotonic(), 0)
                if not self._read(left) and not left:
                    return None
            return self._ended[number]

    def _read(self, within: float) -> bool:
        assert self._server.stdout is not None
        if not select.select([self._server.stdout], [], [], within)[0]:
            return False
        read = os.read(self._server.stdout.fileno(), 1 << 16)
        assert read, "the server of lives has ended"
        *lines, self._unread = (self._unread + read).split(b"\n")
        for line in lines:
            match line.split():
                case [b"ready"]:
                    self._ready = True
                case [b"forked", pid]:
                    self._forks += 1
                    self._lives[int(pid)] = life = Life(self._forks, int(pid))
                    self._forked.append(life)
                case [b"ended", pid, code]:
                    self._ended[self._lives.pop(int(pid)).number] = int(code)
        return True

    def close(self) -> None:
        """End the server. Whoever started a process has ended it by now."""
        with self._server:
            pass


class Child:
    """A forked process. ``life``: its number among those of its store."""

    def __init__(self, fork_server: ForkServer, life: int, process: Life) -> None:
        self._fork_server = fork_server
        self._number = process.number
        self.life = life
        self.pid = process.pid

    def exit_code(self, within: float = 0) -> int | None:
        """The exit code, or minus the signal that killed it; None if it does not end within that many seconds."""
        return self._fork_server.exit_code(self._number, within)

    async def ended(self, within: float = PATIENCE) -> int | None:
        """Like ``exit_code``, without blocking the event loop."""
        return await anyio.to_thread.run_sync(self.exit_code, within)

    def is_stopped(self) -> bool:
        """Whether the process is stopped by SIGSTOP."""
        return Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "T"

    def send(self, number: int) -> None:
        """Send the process a signal. It must be alive."""
        assert self.exit_code() is None, f"life {self.life} ended by itself"
        os.kill(self.pid, number)

    async def kill(self) -> None:
        """Send SIGKILL, and wait until the process is dead."""
        self.send(signal.SIGKILL)
        assert await self.ended() == -signal.SIGKILL


class Interpreter(Child):
    """A process that is not forked but started from the command line, so that it ends as an interpreter does."""

    def __init__(self, life: int, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.life = life
        self.pid = process.pid

    def exit_code(self, within: float = 0) -> int | None:
        """See Child."""
        try:
            return self._process.wait(within)
        except subprocess.TimeoutExpired:
            return None


class Journal:
    """The lines that all processes on a store have written, in the order of writing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self._notes: dict[str, list[dict[str, Any]]] = {}

    def notes(self, what: str, **facts: object) -> list[dict[str, Any]]:
        """The notes of this kind that have these facts."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._read)
                text = file.read()
            text = text[: text.rfind(b"\n") + 1]
            self._read += len(text)
            for line in text.splitlines():
                if line.endswith(b"}"):
                    note = json.loads(line)
                    self._notes.setdefault(note["what"], []).append(note)
        of_kind = self._notes.get(what, [])
        return [note for note in of_kind if all(note.get(fact) == value for fact, value in facts.items())]


class Sandbox:
    """A folder with a store, its journal, and the processes that work on it, called lives and numbered."""

    def __init__(self, fork_server: ForkServer, folder: Path) -> None:
        self._fork_server = fork_server
        self._life = 0
        self._children: list[Child] = []
        self.folder = folder
        self.database = folder / "runs.db"
        self.url = f"sqlite:///{self.database}"
        self.journal = Journal(folder / "journal")

    def launch(self, **job: Any) -> Child:
        """Fork the next life. ``job``: see ``program.live``."""
        job |= {"folder": str(self.folder), "life": self.next_life()}
        return self._keep(Child(self._fork_server, self._life, self._fork_server.fork(job)))

    def launch_interpreter(self, **job: Any) -> Child:
        """Start the next life in an interpreter of its own."""
        job |= {"folder": str(self.folder), "life": self.next_life()}
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen([sys.executable, str(PROGRAM), json.dumps(job)], stdout=log, stderr=log)
        return self._keep(Interpreter(self._life, process))

    def _keep(self, child: Child) -> Child:
        self._children.append(child)
        return child

    def enter(self) -> int:
        """Make the test's process itself the next life, so that it can run steps."""
        self.leave()
        program.enter(self.folder, self.next_life())
        return self._life

    def next_life(self) -> int:
        """Count the lives."""
        self._life += 1
        return self._life

    def leave(self) -> None:
        """Let the test's process be no life any more."""
        if program.world is not None:
            program.world.leave()
            program.world = None

    def close(self) -> None:
        """Kill the processes that are still alive."""
        self.leave()
        for child in self._children:
            if child.exit_code() is None:
                os.kill(child.pid, signal.SIGKILL)
                child.exit_code(PATIENCE)

    @contextmanager
    def copy(self) -> Iterator[sqlite3.Connection]:
        """A copy of the store as it is, checked to be sound, for a look after a kill that recovers nothing."""
        copy = self.folder / "copy"
        copy.mkdir()
        for name in ("runs.db", "runs.db-wal"):
            if (self.folder / name).exists():
                shutil.copy(self.folder / name, copy)
        with closing(sqlite3.connect(copy / "runs.db")) as db:
            assert db.execute("PRAGMA quick_check").fetchall() == [("ok",)]
            yield db
        shutil.rmtree(copy)

    def steps(self, **facts: object) -> list[dict[str, Any]]:
        """The executions of steps that the journal has, with these facts."""
        return self.journal.notes("step", **facts)

    async def noted(self, what: str, count: int = 1, within: float = PATIENCE, **facts: object) -> list[dict[str, Any]]:
        """Wait until the journal has so many notes of this kind."""
        wanted = f"{count} notes of {what} {facts}"

        def enough() -> list[dict[str, Any]] | None:
            found = self.journal.notes(what, **facts)
            return found if len(found) >= count else None

        found = await wait_until(enough, within, wanted)
        assert found is not None
        return found
