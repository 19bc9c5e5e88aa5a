"""The PostgreSQL store's schema: created by the first process that opens the store, where the URL says."""

from __future__ import annotations

from functools import partial

import anyio
import asyncpg
import pytest

from aioflow.errors import StoreRefused, StoreUnavailable
from aioflow.model import Run, Signal, Transition
from aioflow.plans import EventRecord, Listener, Plan
from aioflow.store import RunQuery
from aioflow.testing.conformance_samples import NOW, a_run, put, row, starting
from aioflow_postgres import PostgresStore
from aioflow_postgres.migrating import scripts
from aioflow_postgres.rows import types_of
from tests.postgres import Schemas, query, with_options
from tests.support import wait_until

#: The column types that may hold a field of each type.
SAME = {"bigint": {"bigint", "integer"}, "text": {"text", "json"}, "double precision": {"double precision"}}


async def test_ten_workers_that_start_at_once_make_one_store(postgres_url: str) -> None:
    """Ten stores that open an empty schema at once run its migrations once, and all have the same UUID."""
    stores = [PostgresStore(with_options(postgres_url, pool_size=3)) for _ in range(10)]
    uuids: set[str] = set()

    async def open_store(store: PostgresStore) -> None:
        uuids.add(await store.open(NOW))

    async with anyio.create_task_group() as tasks:
        for store in stores:
            tasks.start_soon(open_store, store)
    assert len(uuids) == 1
    for store in stores:
        await store.close()


async def test_a_schema_has_any_name(postgres_server: Schemas, postgres_url: str) -> None:
    """A schema's name is used exactly as the URL has it, with capitals, spaces and quotes."""
    schema = postgres_url.rpartition("=")[2] + "_It\"s%20'mine"
    store = PostgresStore(with_options(postgres_server.url, schema=schema))
    await store.open(NOW)
    await put(store, a_run(1))
    assert await row(store, 1) == a_run(1)
    stats = await store.stats(NOW)
    assert stats.runs
    assert (stats.bytes or 0) > 8192
    await store.close()
    name = schema.replace("%20", " ")
    found = await query(postgres_server.url, "SELECT count(*) FROM pg_tables WHERE schemaname = $1", name)
    assert found[0][0] > 0
    await query(postgres_server.url, f'DROP SCHEMA "{name.replace(chr(34), chr(34) * 2)}" CASCADE')


async def test_a_long_name_is_heard(postgres_server: Schemas, postgres_url: str) -> None:
    """Hints arrive if the schema's name is as long as it may be, with letters of several bytes."""
    schema = (postgres_url.rpartition("=")[2] + "é" * 31).encode()[:62].decode(errors="ignore")
    one, two = (PostgresStore(with_options(postgres_server.url, schema=schema)) for _ in range(2))
    await one.open(NOW)
    await two.open(NOW)
    ears = one._ear, two._ear
    await wait_until(lambda: all(ear is not None and ear.listening for ear in ears))
    seen = await two.hint(NOW)
    await put(one, a_run(1))

    async def heard() -> bool:
        return await two.hint(NOW) > seen

    await wait_until(heard)
    await one.close()
    await two.close()
    await query(postgres_server.url, f'DROP SCHEMA "{schema}" CASCADE')


async def test_schemas_do_not_see_each_other(postgres_server: Schemas) -> None:
    """Two schemas in one database share neither rows nor ids."""
    one, two = PostgresStore(postgres_server.fresh()), PostgresStore(postgres_server.fresh())
    assert await one.open(NOW) != await two.open(NOW)
    await put(one, a_run(1))
    assert await two.count(RunQuery(), NOW) == 0
    assert await one.reserve("run", 10, NOW) == await two.reserve("run", 10, NOW) == 1
    await one.close()
    await two.close()


async def test_a_newer_schema_is_refused(postgres_server: Schemas, postgres_url: str) -> None:
    """A schema of a newer version is refused."""
    store = PostgresStore(postgres_url)
    await store.open(NOW)
    await store.close()
    schema = postgres_url.rpartition("=")[2]
    await query(postgres_server.url, f'UPDATE "{schema}".store SET version = 99')
    known = len(scripts())
    with pytest.raises(StoreUnavailable, match=f"its schema is version 99, this code knows up to {known}"):
        await store.open(NOW)


async def test_an_older_schema_is_migrated_beside_an_old_worker(postgres_server: Schemas, postgres_url: str) -> None:
    """Five stores migrate an older schema once while an old worker writes, and nothing that it writes is lost."""
    schema = postgres_url.rpartition("=")[2]
    old = await asyncpg.connect(postgres_server.url)
    await old.execute(f'CREATE SCHEMA "{schema}"; SET search_path TO "{schema}"')
    for script in scripts()[:2]:
        await old.execute(script)
    await old.execute("UPDATE store SET version = 2")
    transaction = old.transaction()
    await transaction.start()
    await old.execute("UPDATE signals SET taken_at = 1")
    stores = [PostgresStore(postgres_url) for _ in range(5)]
    opened: list[str] = []

    async def open_store(store: PostgresStore) -> None:
        opened.append(await store.open(NOW))

    columns = ", ".join(Run._fields)
    values = ", ".join("NULL" if value is None else f"'{value}'" for value in a_run(1, key="k"))
    async with anyio.create_task_group() as tasks:
        for store in stores:
            tasks.start_soon(open_store, store)
        waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = $1::text::regclass"
        await wait_until(partial(_is_there, postgres_server.url, waiting, f'"{schema}".signals'))
        await old.execute(
            f"INSERT INTO runs ({columns}) VALUES ({values})"
        )  # which does not wait for a lock of the migration
        await transaction.commit()
    assert len(set(opened)) == 1
    assert await row(stores[0], 1) == a_run(1, key="k")
    assert (await stores[0].apply([starting(a_run(2, key="k"))], NOW))[0].outcome == "exists"
    assert await old.fetchval("SELECT version FROM store") == len(scripts())
    for store in stores:
        await store.close()
    await old.close()


async def _is_there(url: str, sql: str, *values: object) -> bool:
    return bool(await query(url, sql, *values))


async def test_a_missing_database_is_named(postgres_server: Schemas) -> None:
    """A database that does not exist is an error that says to create it."""
    store = PostgresStore(postgres_server.url.replace("/postgres?", "/nowhere?"))
    with pytest.raises(StoreUnavailable, match="Create the database first"):
        await store.open(NOW)


@pytest.mark.parametrize(
    ("table", "record"),
    [
        ("runs", Run),
        ("history", Transition),
        ("signals", Signal),
        ("events", EventRecord),
        ("plans", Plan),
        ("listeners", Listener),
    ],
)
async def test_columns_stand_in_the_order_of_the_records(
    postgres_server: Schemas,
    postgres_url: str,
    table: str,
    record: type[Run | Transition | Signal | EventRecord | Plan | Listener],
) -> None:
    """The first columns of a table are the fields of its record, in the same order and of the same types."""
    store = PostgresStore(postgres_url)
    await store.open(NOW)
    await store.close()
    found = await query(
        postgres_server.url,
        "SELECT column_name, data_type FROM information_schema.columns "
        "WHERE table_schema = $1 AND table_name = $2 ORDER BY ordinal_position",
        postgres_url.rpartition("=")[2],
        table,
    )
    names = [field.removesuffix("_micros") for field in record._fields]
    assert [name for name, _ in found][: len(names)] == names
    for (name, type_), wanted in zip(found, types_of(record), strict=False):
        assert type_ in SAME[wanted], name


async def test_a_context_comes_back_as_it_was_written(postgres_url: str) -> None:
    """A Context's JSON text is returned exactly as it was written: order of keys, whole floats, negative zero."""
    store = PostgresStore(postgres_url)
    await store.open(NOW)
    data = '{"zz":1.0,"a":[1e+22,-0.0,{"b":1,"a":2}],"é":"\\u0001"}'
    await put(store, a_run(1, data=data))
    assert (await row(store, 1)).data == data
    with pytest.raises(StoreRefused, match="invalid input syntax for type json"):
        await store.apply([starting(a_run(2, data="{"))], NOW)
    await store.close()
