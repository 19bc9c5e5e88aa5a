"""PostgreSQL behind PgBouncer in transaction mode: each transaction may have another server process."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest
from pydantic import BaseModel

from aioflow import Engine, complete, get_context, goto, step, wait, workflow
from aioflow.testing.conformance_samples import NOW
from aioflow_postgres import PostgresStore
from tests.postgres import Schemas, with_options
from tests.support import wait_until

CONFIGURATION = """
[databases]
postgres = host={server} dbname=postgres user=postgres
[pgbouncer]
listen_addr =
unix_socket_dir = {directory}
auth_type = any
pool_mode = transaction
default_pool_size = 4
logfile = {directory}/log
"""


@pytest.fixture
async def bouncer(postgres_server: Schemas, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The URL of a PgBouncer in front of the tests' server."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed (Debian: apt-get install pgbouncer)")
    if postgres_server.socket is None:
        pytest.skip("AIOFLOW_TEST_POSTGRES names a server whose socket file is not known")
    directory = Path("/tmp") / f"aioflow-bouncer-{os.getpid()}"  # a short name, in a directory that anybody may use
    directory.mkdir()
    directory.chmod(0o777)
    (directory / "ini").write_text(
        CONFIGURATION.format(server=postgres_server.socket.parent, directory=directory), encoding="utf-8"
    )
    user: dict[str, Any] = {"user": "nobody"} if os.geteuid() == 0 else {}  # PgBouncer does not run as root
    process = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs yet
        [program, "-q", str(directory / "ini")], cwd="/", stderr=subprocess.DEVNULL, **user
    )
    url = f"postgresql://postgres@/postgres?host={quote(str(directory), safe='')}&port=6432"

    async def up() -> bool:
        try:
            connection = await asyncpg.connect(url, statement_cache_size=0)
        except (OSError, asyncpg.PostgresError):
            return False
        await connection.close()
        return True

    try:
        await wait_until(up, timeout=10)
        yield url
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(directory)


@workflow("behind-a-pooler")
class Flow:
    class Context(BaseModel):
        answer: int = 0

    @step(start=True)
    async def first(self):
        return goto(self.second)

    @step
    async def second(self):
        return wait.for_signal("answer", then=self.third)

    @step
    async def third(self):
        get_context(self.Context).answer += 1
        return complete()


@pytest.mark.parametrize("listens", [True, False])
async def test_everything_works_behind_pgbouncer(
    bouncer: str, postgres_server: Schemas, postgres_url: str, *, listens: bool
) -> None:
    """A worker and a client share a store through PgBouncer, with hints over a direct connection and without hints."""
    options: dict[str, object] = {"schema": postgres_url.rpartition("schema=")[2]}
    if listens:
        options["listen"] = quote(postgres_server.url, safe="")
    url = with_options(bouncer, **options)
    async with Engine(url, workflows=[Flow]) as worker, Engine(url, workflows=[Flow], worker=False) as client:
        runs = [await (worker, client)[number % 2].start(Flow) for number in range(100)]
        for run in runs:
            await run.wait(20, until="parked")
            await client.signal("answer", {"answer": 41}, run_id=run.id)
        for run in runs:
            assert (await run.wait(20)).data == {"answer": 42}
            assert [row.seq for row in await client.history(run.id)] == [1, 2, 3, 4, 5]
        assert len(await client.runs(status="completed", data={"answer": 42}, limit=1000)) == 100
    assert await _pooled(url)


async def _pooled(url: str) -> bool:
    """Whether the store has noticed a pooler in front of the server."""
    store = PostgresStore(url)
    await store.open(NOW)
    assert store._database is not None
    pooled = store._database.pooled
    await store.close()
    return pooled


async def test_a_direct_connection_is_told_apart(postgres_url: str) -> None:
    """A direct connection is not taken for a pooler."""
    assert not await _pooled(postgres_url)
