"""Power loss under the real SQLite: a VFS that keeps what was synced, and a random part of what was not.

``Disk`` registers a VFS with the library that Python's sqlite3 uses, so that ``?vfs=<name>`` in its URL puts a store on
it. It passes everything on to SQLite's own VFS, and records opening, writing, truncating, syncing and deleting. The
index of the WAL (-shm) is not on the disk, as it is memory.

What a power loss may leave: of the writes since the last sync of a file any subset may be on the disk, in any order,
and of each write any of its sectors. The creation or deletion of a file may be on the disk or not, until the file or
its directory is synced.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_int, c_int64, c_void_p, cast
from itertools import count
from pathlib import Path
from typing import Any

import pytest

SECTOR = 512
OK, IOERR_FSYNC, IOERR_NOMEM = 0, 1034, 3082
_numbers = count(1)

OPEN = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, POINTER(c_int))
DELETE = ctypes.CFUNCTYPE(c_int, c_void_p, c_char_p, c_int)
CLOSE = ctypes.CFUNCTYPE(c_int, c_void_p)
WRITE = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
TRUNCATE = ctypes.CFUNCTYPE(c_int, c_void_p, c_int64)
SYNC = ctypes.CFUNCTYPE(c_int, c_void_p, c_int)


class Methods(ctypes.Structure):
    """sqlite3_io_methods: a version, and function pointers of which only some matter here."""

    _fields_ = [("version", c_int)] + [
        (name, c_void_p)
        for name in (
            "close", "read", "write", "truncate", "sync", "size", "lock", "unlock", "reserved", "control",
            "sector", "characteristics", "shm_map", "shm_lock", "shm_barrier", "shm_unmap", "fetch", "unfetch",
        )
    ]  # fmt: skip


class Vfs(ctypes.Structure):
    """sqlite3_vfs, likewise."""

    _fields_ = [
        ("version", c_int), ("file_size", c_int), ("max_path", c_int), ("next", c_void_p), ("name", c_char_p),
        ("data", c_void_p), ("open", c_void_p), ("delete", c_void_p),
        *((name, c_void_p) for name in (
            "access", "full_path", "dl_open", "dl_error", "dl_sym", "dl_close", "randomness", "sleep", "time", "error",
            "time64", "set_call", "get_call", "next_call",
        )),
    ]  # fmt: skip


class OpenFile(ctypes.Structure):
    """sqlite3_file."""

    _fields_ = [("methods", POINTER(Methods))]


class File:
    """A file's content. ``pending``: writes and truncations since the last sync, as (offset, bytes or None)."""

    def __init__(self) -> None:
        self.synced = bytearray()
        self.pending: list[tuple[int, bytes | None]] = []

    def settle(self) -> None:
        """Sync: what was written is on the disk."""
        for offset, data in self.pending:
            put(self.synced, offset, data)
        self.pending.clear()

    def torn(self, rng: random.Random) -> bytes:
        """A random state in which a power loss may leave the file."""
        image = bytearray(self.synced)
        survive = rng.choice([0.05, 0.5, 0.95])
        pending = [write for write in self.pending if rng.random() < survive]
        if rng.random() < 0.5:
            rng.shuffle(pending)
        for offset, data in pending:
            if data is None or rng.random() < 0.7:
                put(image, offset, data)
                continue
            begin = 0
            while begin < len(data):  # cut into sectors, any of which may be on the disk
                end = min(len(data), (offset + begin) // SECTOR * SECTOR + SECTOR - offset)
                if rng.random() < 0.5:
                    put(image, offset + begin, data[begin:end])
                begin = end
        return bytes(image)


def put(image: bytearray, offset: int, data: bytes | None) -> None:
    """Write, or truncate."""
    if data is None:
        del image[offset:]
        return
    if len(image) < offset:
        image.extend(bytes(offset - len(image)))
    image[offset : offset + len(data)] = data


_registered: list[Disk] = []


class Disk:
    """A disk that can lose its power.

    Args:
        watch: called before every recorded operation, with its name and the file's path. It may take an image
            (``lose_power``). If it returns True for a "sync", the sync fails as in the kernel: the pending writes are
            dropped, though they can still be read, and the next sync of the file does not retry them.

    The mutable state: ``files``, the current ones by path; ``entries``, by path as the directory on the disk has them;
    which files are open.
    """

    def __init__(self, watch: Callable[[str, str], bool]) -> None:
        self.name = f"disk{next(_numbers)}"
        self.files: dict[str, File] = {}
        self.entries: dict[str, File] = {}
        self._watch = watch
        self._open: dict[int, tuple[str, File]] = {}
        self._library = library()
        base = cast(self._library.sqlite3_vfs_find(None), POINTER(Vfs)).contents
        self._vfs = Vfs.from_buffer_copy(base)
        self._name = self.name.encode()
        self._vfs.name, self._vfs.next = self._name, None
        self._real_open, self._real_delete = OPEN(base.open), DELETE(base.delete)
        self._methods: dict[int, Methods] = {}
        self._real: dict[int, dict[str, Any]] = {}
        # ctypes does not keep these alive by itself.
        self._calls = {"open": OPEN(self._on_open), "delete": DELETE(self._on_delete)}
        self._file_calls = {
            "close": CLOSE(self._on_close),
            "write": WRITE(self._on_write),
            "truncate": TRUNCATE(self._on_truncate),
            "sync": SYNC(self._on_sync),
        }
        for name, call in self._calls.items():
            setattr(self._vfs, name, cast(call, c_void_p))
        assert self._library.sqlite3_vfs_register(byref(self._vfs), 0) == OK
        _registered.append(self)  # SQLite refers to it until it is removed, which a test that fails may not do

    def remove(self) -> None:
        """Unregister the VFS. Nothing on it may be open."""
        assert not self._open
        self._library.sqlite3_vfs_unregister(byref(self._vfs))
        _registered.remove(self)

    def lose_power(self, rng: random.Random, folder: Path) -> Path:
        """Write a state that a power loss may leave into an empty folder, and return the path of the database there."""
        paths = sorted(self.files.keys() | self.entries.keys())
        for path in paths:
            before, now = self.entries.get(path), self.files.get(path)
            file = before if before is now else rng.choice([before, now])
            if file is not None:
                (folder / Path(path).name).write_bytes(file.torn(rng))
        return folder / Path(min(paths, key=len)).name

    # ---- called by SQLite, in any thread

    def _on_open(self, vfs: int, name: int | None, file: int, flags: int, out: Any) -> int:
        code: int = self._real_open(vfs, name, file, flags, out)
        path = cast(name, c_char_p).value.decode() if name else ""  # type: ignore[union-attr]
        if code != OK or not path:  # temporary files do not survive a power loss
            return code
        self._watch("open", path)
        opened = cast(file, POINTER(OpenFile)).contents
        address = cast(opened.methods, c_void_p).value
        assert address is not None
        if address not in self._methods:
            real = opened.methods.contents
            types = {"close": CLOSE, "write": WRITE, "truncate": TRUNCATE, "sync": SYNC}
            self._real[address] = {call: type_(getattr(real, call)) for call, type_ in types.items()}
            self._methods[address] = Methods.from_buffer_copy(real)
            for call, function in self._file_calls.items():
                setattr(self._methods[address], call, cast(function, c_void_p))
        ours = self._methods[address]
        self._real.setdefault(ctypes.addressof(ours), self._real[address])
        opened.methods = ctypes.pointer(ours)
        self._open[file] = path, self.files.setdefault(path, File())
        return code

    def _on_delete(self, vfs: int, name: bytes, sync_directory: int) -> int:
        path = name.decode()
        self._watch("delete", path)
        code: int = self._real_delete(vfs, name, sync_directory)
        if code == OK:
            self.files.pop(path, None)
            if sync_directory:
                self.entries = dict(self.files)
        return code

    def _call(self, name: str, file: int, *arguments: Any) -> int:
        methods = cast(file, POINTER(OpenFile)).contents.methods
        code: int = self._real[ctypes.addressof(methods.contents)][name](file, *arguments)
        return code

    def _on_close(self, file: int) -> int:
        self._open.pop(file)
        return self._call("close", file)

    def _on_write(self, file: int, data: int, length: int, offset: int) -> int:
        path, content = self._open[file]
        self._watch("write", path)
        content.pending.append((offset, ctypes.string_at(data, length)))
        return self._call("write", file, data, length, offset)

    def _on_truncate(self, file: int, length: int) -> int:
        path, content = self._open[file]
        self._watch("truncate", path)
        content.pending.append((length, None))
        return self._call("truncate", file, length)

    def _on_sync(self, file: int, flags: int) -> int:
        path, content = self._open[file]
        if self._watch("sync", path):
            content.pending.clear()
            return IOERR_FSYNC
        content.settle()
        if self.files.get(path) is content and self.entries.get(path) is not content:
            # SQLite syncs the directory with a new journal or WAL, which also makes its other entries durable.
            self.entries = dict(self.files) if path.endswith(("-wal", "-journal")) else self.entries | {path: content}
        return OK


def library() -> ctypes.CDLL:
    """The SQLite that Python's sqlite3 module uses."""
    import _sqlite3

    found = ctypes.CDLL(getattr(_sqlite3, "__file__", None))
    if not hasattr(found, "sqlite3_vfs_find"):
        pytest.skip("this Python has SQLite built in, and does not show it")
    found.sqlite3_vfs_find.restype = c_void_p
    found.sqlite3_vfs_find.argtypes = [c_char_p]
    return found
