"""URLs of PostgreSQL stores: options of aioflow and of the driver, and passwords that are never shown."""

from __future__ import annotations

import re

import pytest

from aioflow.discovery import find_store
from aioflow.errors import StoreUnavailable
from aioflow_postgres import PostgresStore
from aioflow_postgres.address import parse


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
def test_both_schemes_find_the_store(scheme: str) -> None:
    """postgres:// and postgresql:// mean the same."""
    store = find_store(f"{scheme}://ann:s3cret@db.example.com:6432/orders")
    assert isinstance(store, PostgresStore)
    assert store.name == "postgresql://ann@db.example.com:6432/orders"
    assert repr(store) == "<PostgresStore postgresql://ann@db.example.com:6432/orders>"


def test_own_options_are_taken_off() -> None:
    """aioflow's options are taken off the URL, and the others are left to the driver."""
    address = parse(
        "postgresql://h/d?schema=work&sslmode=require&pool_size=5&timeout=2.5"
        "&application_name=shop&listen=postgresql%3A%2F%2Fdirect%2Fd"
    )
    assert (address.schema, address.pool_size, address.timeout) == ("work", 5, 2.5)
    assert address.dsn == "postgresql://h/d?sslmode=require&application_name=shop"
    assert address.listen == "postgresql://direct/d"
    assert address.name == "postgresql://h/d?schema=work"


def test_all_options_have_defaults() -> None:
    """All options have defaults."""
    address = parse("postgresql://h/d")
    assert (address.dsn, address.schema, address.pool_size, address.timeout, address.listen) == (
        "postgresql://h/d",
        "aioflow",
        10,
        15.0,
        None,
    )


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("postgresql://h/d?schema=", "schema takes the name of a schema, up to 63 bytes, got ''."),
        ("postgresql://h/d?schema=pg_own", "schema takes the name of a schema, up to 63 bytes, got 'pg_own'."),
        ("postgresql://h/d?pool_size=2", "pool_size takes a number from 3 upwards, got '2'."),
        ("postgresql://h/d?timeout=soon", "timeout takes seconds, got 'soon'."),
        ("postgresql://h/d?timeout=0", "timeout takes seconds, got '0'."),
        ("mysql://h/d", "A PostgreSQL URL looks like postgresql://user:password@host:5432/database, got mysql://h/d."),
    ],
)
def test_invalid_options_are_refused(url: str, problem: str) -> None:
    """An invalid URL or option is refused with what is accepted, and what was given."""
    with pytest.raises(ValueError, match=f"^{re.escape(problem)}$"):
        parse(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:s3cret@h:port/d",
        "postgresql://ann:s3cret#@h/d?schema=",
        "postgresql://ann:s3cret@[h/d",
        "mysql://ann:s3cret@h/d",
        "postgresql:ann:s3cret@h/d",
        "postgresql://ann:s3cret@h/d?pool_size=x&password=s3cret",
        "postgresql://ann:s3cret?more@h/d",
        "postgresql://ann:4711/s3cret@h/d",
        "postgresql://ann:4711?s3cret@h/d",
        "postgresql://ann:4711#s3cret@h/d",
        "postgresql://ann:4711@s3cret?s3cret@h/d",
        "postgresql://ann:4711@s3cret#s3cret@h/d",
        "postgresql://h/d?listen=postgresql://ann:s3cret?more@h/d",
    ],
)
def test_no_message_shows_a_password(url: str) -> None:
    """No error message shows the URL's password."""
    with pytest.raises(ValueError, match=r".") as caught:
        PostgresStore(url)
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(caught.value.__cause__)


def test_an_at_sign_is_allowed_where_it_is_unambiguous() -> None:
    """A URL may have an at sign in the database's name, if it has a user, and in options."""
    assert parse("postgresql://ann@h/a@b").name == "postgresql://ann@h/a@b"
    assert parse("postgresql://h/d?user=ann@x").dsn == "postgresql://h/d?user=ann%40x"
    assert parse("postgresql://h/d?listen=postgresql://ann:s3cret@h/d").listen == "postgresql://ann:s3cret@h/d"


async def test_an_unreachable_server_is_named_without_its_password() -> None:
    """An unreachable server is an error that names the store without its password, gives advice, and has the cause."""
    store = PostgresStore("postgresql://ann:s3cret@127.0.0.1:1/orders?timeout=5")
    with pytest.raises(StoreUnavailable, match="Check host and port") as caught:
        await store.open(0)
    assert str(caught.value).startswith("The store postgresql://ann@127.0.0.1:1/orders is not available: ")
    assert "s3cret" not in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert "s3cret" not in repr(store)
