"""The parents' side: processes that can be killed, and what they wrote down."""

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
#: Seconds that a process may take to be up, or gone: the machine may be busy.
PATIENCE = 20.0


class Life(NamedTuple):
    """A process, and the how manieth of its nursery it is."""

    number: int
    pid: int


class Nursery:
    """A process that has imported everything, and forks: a life costs milliseconds to begin."""

    def __init__(self, *program: str) -> None:
        self._server = subprocess.Popen(
            [sys.executable, *(program or (str(PROGRAM),))], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._unread = b""
        self._born: list[Life] = []
        #: Who lives, by pid: pids are given again. How the others ended, by number.
        self._lives: dict[int, Life] = {}
        self._ended: dict[int, int] = {}
        self._births = 0
        self._lock = threading.Lock()
        self._ready = False
        while not self._ready:
            assert self._read(PATIENCE), "the server of lives does not begin"

    def bear(self, job: dict[str, Any]) -> Life:
        """Begin a life."""
        assert self._server.stdin is not None
        with self._lock:
            os.write(self._server.stdin.fileno(), json.dumps(job).encode() + b"\n")
            while not self._born:
                assert self._read(PATIENCE), "the server of lives does not fork"
            return self._born.pop()

    def exit_code(self, number: int, within: float) -> int | None:
        """How a life of this number ended, minus the signal if that was it; None if it does not within that many seconds."""
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
                case [b"born", pid]:
                    self._births += 1
                    self._lives[int(pid)] = life = Life(self._births, int(pid))
                    self._born.append(life)
                case [b"ended", pid, code]:
                    self._ended[self._lives.pop(int(pid)).number] = int(code)
        return True

    def close(self) -> None:
        """End the server; every life has been ended by who began it."""
        with self._server:
            pass


class Child:
    """A life in a process of its own. ``life``: its number."""

    def __init__(self, nursery: Nursery, life: int, process: Life) -> None:
        self._nursery = nursery
        self._number = process.number
        self.life = life
        self.pid = process.pid

    def exit_code(self, within: float = 0) -> int | None:
        """How it ended, minus the signal if that was it; None if it does not within that many seconds."""
        return self._nursery.exit_code(self._number, within)

    async def ended(self, within: float = PATIENCE) -> int | None:
        """See ``exit_code``; the loop goes on meanwhile."""
        return await anyio.to_thread.run_sync(self.exit_code, within)

    def is_stopped(self) -> bool:
        """Whether it was stopped by SIGSTOP."""
        return Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "T"

    def send(self, number: int) -> None:
        """Send it a signal; it must live."""
        assert self.exit_code() is None, f"life {self.life} ended by itself"
        os.kill(self.pid, number)

    async def kill(self) -> None:
        """SIGKILL it, and see it dead."""
        self.send(signal.SIGKILL)
        assert await self.ended() == -signal.SIGKILL


class Interpreter(Child):
    """A life that is not forked but run from the command line, with all that belongs to the end of an interpreter."""

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
    """What all lives wrote, in the order in which they did."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self._notes: dict[str, list[dict[str, Any]]] = {}

    def notes(self, what: str, **facts: object) -> list[dict[str, Any]]:
        """The notes of a kind with these facts."""
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


class House:
    """A folder with a store, its journal, and the processes that live on it, in numbered lives."""

    def __init__(self, nursery: Nursery, folder: Path) -> None:
        self._nursery = nursery
        self._life = 0
        self._children: list[Child] = []
        self.folder = folder
        self.database = folder / "runs.db"
        self.url = f"sqlite:///{self.database}"
        self.journal = Journal(folder / "journal")

    def bear(self, **job: Any) -> Child:
        """Begin the next life, see ``program.live``."""
        job |= {"folder": str(self.folder), "life": self.next_life()}
        return self._keep(Child(self._nursery, self._life, self._nursery.bear(job)))

    def interpret(self, **job: Any) -> Child:
        """Begin the next life with an interpreter of its own."""
        job |= {"folder": str(self.folder), "life": self.next_life()}
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen([sys.executable, str(PROGRAM), json.dumps(job)], stdout=log, stderr=log)
        return self._keep(Interpreter(self._life, process))

    def _keep(self, child: Child) -> Child:
        self._children.append(child)
        return child

    def enter(self) -> int:
        """Make this process the next life, so that it can run steps."""
        self.leave()
        program.enter(self.folder, self.next_life())
        return self._life

    def next_life(self) -> int:
        """Count."""
        self._life += 1
        return self._life

    def leave(self) -> None:
        """This process lives here no more."""
        if program.world is not None:
            program.world.leave()
            program.world = None

    def close(self) -> None:
        """End who still lives here."""
        self.leave()
        for child in self._children:
            if child.exit_code() is None:
                os.kill(child.pid, signal.SIGKILL)
                child.exit_code(PATIENCE)

    @contextmanager
    def copy(self) -> Iterator[sqlite3.Connection]:
        """A copy of the store as it is, sound: to be looked at after a kill, without mending anything."""
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
        """The executions of steps, by what the journal says of them."""
        return self.journal.notes("step", **facts)

    async def noted(self, what: str, count: int = 1, within: float = PATIENCE, **facts: object) -> list[dict[str, Any]]:
        """Wait until the journal has so many notes."""
        wanted = f"{count} notes of {what} {facts}"

        def enough() -> list[dict[str, Any]] | None:
            found = self.journal.notes(what, **facts)
            return found if len(found) >= count else None

        found = await wait_until(enough, within, wanted)
        assert found is not None
        return found
