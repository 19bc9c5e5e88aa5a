"""Migrates the schema by numbered scripts, each run once, by the first process that opens the store."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Final

from aioflow_postgres.session import Session, quoted

#: The class of the advisory lock ("aflw"), whose object is the schema's name.
LOCK_CLASS: Final = 0x61666C77


class NewerSchema(Exception):
    """The schema was written by a newer version than this code knows."""


@cache
def scripts() -> tuple[str, ...]:
    """The migrations, in order."""
    found = sorted(
        (file.name, file.read_text(encoding="utf-8"))
        for file in (files("aioflow_postgres") / "migrations").iterdir()
        if file.name.endswith(".sql")
    )
    return tuple(script for _, script in found)


async def migrate(session: Session, schema: str) -> str | None:
    """Migrate the schema by one step, and return the store's UUID if it is then up to date. Safe to run concurrently.

    A new schema is made in one step. On one that others use, a step is one script in a transaction, and each script
    locks one table: a transaction that waits for that lock holds none that others wait for.

    Raises:
        NewerSchema: this code is too old for it.
    """
    await session.fetch("SELECT pg_advisory_xact_lock($1::int, hashtext($2))", LOCK_CLASS, schema)
    [(is_there, has_store)] = await session.fetch(
        "SELECT to_regnamespace($1) IS NOT NULL, to_regclass($2) IS NOT NULL",
        quoted(schema),
        f"{quoted(schema)}.store",
    )
    if not is_there:
        await session.execute(f"CREATE SCHEMA {quoted(schema)}")
    version = 0
    if has_store:
        [(version,)] = await session.fetch("SELECT version FROM aioflow.store")
    if version > len(scripts()):
        raise NewerSchema(f"its schema is version {version}, this code knows up to {len(scripts())}")
    if version < len(scripts()):
        steps = scripts()[version:][: 1 if version else None]
        await session.execute(f"SET LOCAL search_path TO {quoted(schema)}, pg_catalog")
        for script in steps:
            await session.execute(script)
        version += len(steps)
        await session.execute("UPDATE aioflow.store SET version = $1", version)
    [(uuid,)] = await session.fetch("SELECT uuid FROM aioflow.store")
    return str(uuid) if version == len(scripts()) else None
