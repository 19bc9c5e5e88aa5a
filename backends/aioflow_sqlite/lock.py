"""An advisory lock on a file: the kernel releases it when the process dies, however it dies."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# POSIX record locks belong to the process: a child does not inherit them, and a second lock by the same process would
# be granted. So the locks that this process holds are kept here, with its pid, which a forked child does not have.
_held: dict[str, int] = {}

if sys.platform == "win32":  # pragma: no cover - runs on Windows only
    import msvcrt

    def _lock(fd: int) -> None:
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(fd: int) -> None:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


class FileLock:
    """One holder among all processes, and within this one.

    Args:
        path: a file for this lock alone; it is created, and stays. No other code may open it: closing any handle to it
            would release a POSIX lock.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._name = os.path.realpath(path)
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object has the lock."""
        return self._fd is not None

    def acquire(self) -> bool:
        """Take the lock if it is free. True if this object has it now.

        A lock on a file that was deleted meanwhile does not count, as another process may lock a new file.

        Raises:
            OSError: the file cannot be created.
        """
        if self._fd is not None:
            if self._is_the_file(self._fd):
                return True
            os.close(self._fd)
            self._fd = None
        elif _held.get(self._name) == os.getpid():
            return False
        try:
            self._fd = self._locked()
        finally:
            if self._fd is None:
                _held.pop(self._name, None)
        if self._fd is None:
            return False
        _held[self._name] = os.getpid()
        return True

    def _locked(self) -> int | None:
        """The file, open and locked; None if another process has the lock."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            _lock(fd)
        except OSError:
            os.close(fd)
            return None
        if not self._is_the_file(fd):  # it was deleted since: the next try creates it anew
            os.close(fd)
            return None
        return fd

    def _is_the_file(self, fd: int) -> bool:
        """Whether the path still holds this file."""
        mine = os.fstat(fd)
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return False
        return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)

    def release(self) -> None:
        """Release the lock, if this object has it."""
        if self._fd is not None:
            _held.pop(self._name, None)
            os.close(self._fd)
            self._fd = None
