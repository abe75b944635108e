"""The address of a database hides its password, and loopback hosts are recognized."""

import pytest

from hpopt.errors import DatabaseError
from hpopt.storage.database import Database, is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_a_loopback_host_is_recognized(host: str):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "gpu-node-7", "localhost.evil.example"])  # noqa: S104 - not loopback.
def test_a_host_that_other_machines_can_reach_is_not_loopback(host: str):
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("url", "is_on_loopback"),
    [
        ("postgresql://me@127.0.0.1/db", True),
        ("postgresql://me@/db", True),
        ("postgresql://me@/db?host=/var/run/postgresql", True),
        ("postgresql://me@db.example/db", False),
        ("postgresql://me@/db?host=db.example", False),
    ],
)
def test_a_database_on_loopback_or_a_socket_is_recognized(url: str, is_on_loopback: bool):  # noqa: FBT001 - expected.
    assert Database(url).is_on_loopback is is_on_loopback


def test_the_password_is_only_in_the_url_for_child_processes():
    database = Database("postgres://me:s3cret@db.example:5433/studies?sslmode=require&password=s3cret")
    assert (database.password, "s3cret" in database.url) == ("s3cret", True)
    shown = (database.address, database.url_without_password, database.libpq_url, repr(database))
    assert [text for text in shown if "s3cret" in text] == []
    assert database.address == "postgresql://me@db.example:5433/studies"
    assert database.libpq_url == "postgresql://me@db.example:5433/studies?sslmode=require"


def test_an_error_of_a_query_is_not_reported_as_an_unreachable_database(database):
    """It is a bug, and a worker that waits for the database would hide it."""
    with pytest.raises(Exception, match="division by zero") as error, database.begin() as connection:
        connection.exec_driver_sql("select 1 / 0")
    assert not isinstance(error.value, DatabaseError)


def test_a_server_that_is_read_only_after_a_failover_is_reported_as_unreachable(database):
    statement = "set transaction read only; create table public.written (n int)"
    with pytest.raises(DatabaseError, match="in a read-only transaction"), database.begin() as connection:
        connection.exec_driver_sql(statement)
