"""Fixtures: engines on every store, a clock that tests move, and disks that can be full or read-only."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from io import RawIOBase
from pathlib import Path

import pytest

from tests.engine.conftest import (  # noqa: F401 - fixtures
    clock,
    log,
    make_engine,
    pytest_generate_tests,
    store_url,
)

#: Enough for the database and its WAL, and small enough to be filled quickly.
DISK = "64m"


class Disk:
    """A small file system in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ballast = folder / "ballast"

    def fill(self) -> None:
        """Write until the disk is full."""
        with self.ballast.open("wb", buffering=0) as file:
            for size in (1 << 20, 4096):
                with pytest.raises(OSError, match="No space left"):
                    _write_on(file, bytes(size))

    def make_room(self) -> None:
        """Remove what has filled the disk."""
        self.ballast.unlink()

    def remount(self, how: str) -> None:
        """Remount the disk read-only (``ro``) or writable (``rw``). No file on it may be open for writing."""
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.folder)], check=True, timeout=10)


def _write_on(file: RawIOBase, data: bytes) -> None:
    while True:
        file.write(data)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of 64 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "aioflow-test", str(folder)],
            check=True,
            capture_output=True,
            timeout=10,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"") or b""
        pytest.skip(f"no tmpfs can be mounted here: {error} {said.decode(errors='replace').strip()}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=10)
