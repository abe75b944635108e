"""The address of a database hides its password, and loopback hosts are recognized."""

import select
import socket
import threading
from contextlib import closing

import psycopg2
import pytest
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError

from hpopt.errors import DatabaseError, DatabasePermissionError, DatabaseUnreachableError
from hpopt.storage import studies
from hpopt.storage.database import Database, is_loopback
from hpopt.study.reading import parse_study_file


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


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:s3@cret-tail@127.0.0.1:1/x",
        "postgresql://me:s3@cret/tail@127.0.0.1:1/x",
        "postgresql://me:s3?@cret-tail@127.0.0.1:1/x",
        "postgresql:///me:cret-tail@127.0.0.1",
        "postgresql://me@127.0.0.1:1/x?password=s3@cret-tail",
    ],
)
def test_a_url_with_an_at_sign_in_its_password_is_refused_without_showing_it(url: str):
    with pytest.raises(DatabaseError) as refusal:
        Database(url)
    assert str(refusal.value) == "the storage URL cannot be read: write @ in a user name or password as %40"


def driver_error(message: str) -> psycopg2.OperationalError:
    return psycopg2.OperationalError(f'connection to server at "db" (10.0.0.1), port 5432 failed: {message}')


@pytest.mark.parametrize(
    "message",
    [
        "Connection refused",
        'could not translate host name "db" to address: Name or service not known',
        "FATAL:  the database system is starting up",
        "FATAL:  the database system is shutting down",
        "FATAL:  the database system is not accepting connections\nDETAIL:  Hot standby mode is disabled.",
        'FATAL:  database "x" is not currently accepting connections',
        "FATAL:  das Datenbanksystem startet",
        "SSL error: unexpected eof while reading",
        "FATAL:  sorry, too many clients already",
    ],
)
@pytest.mark.parametrize("wrap", [lambda error: error, lambda error: sa.exc.OperationalError("", {}, error)])
def test_a_database_without_connections_for_the_moment_is_unreachable(message: str, wrap):
    with pytest.raises(DatabaseUnreachableError) as error, Database("postgresql://me@db/x").errors():
        raise wrap(driver_error(message))
    assert error.value.exit_code == 75
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "message",
    [
        'FATAL:  password authentication failed for user "me"',
        'FATAL:  no pg_hba.conf entry for host "10.0.0.2", user "me", database "x", SSL off',
        'FATAL:  database "x" does not exist',
        'FATAL:  role "me" is not permitted to log in',
        "fe_sendauth: no password supplied",
    ],
)
def test_a_login_that_will_be_refused_again_is_no_unreachable_database(message: str):
    with pytest.raises(DatabaseError) as error, Database("postgresql://me@db/x").errors():
        raise StorageInternalError from sa.exc.OperationalError("", {}, driver_error(message))
    assert error.value.exit_code == 2


def test_an_sqlstate_tells_a_refused_login_from_an_unreachable_database_in_any_language(database):
    """PgBouncer passes the error of its own login on as that of a statement."""
    for sqlstate, exit_code in (("28P01", 2), ("28000", 2), ("3D000", 2), ("57P03", 75), ("53300", 75)):
        message = 'Anmeldung: user "me" does not exist'
        statement = f"do $$ begin raise exception '{message}' using errcode = '{sqlstate}'; end $$"
        with pytest.raises(DatabaseError, match="Anmeldung") as error, database.begin() as connection:
            connection.exec_driver_sql(statement)
        assert error.value.exit_code == exit_code


def test_a_missing_right_is_one_line_and_no_unreachable_database(database, study_file, new_login):
    reader = Database(new_login(database.url, "hpopt_reader"))
    with pytest.raises(DatabasePermissionError, match="permission denied for table") as error:
        studies.create_study(reader, parse_study_file(study_file, "tiny.toml"))
    assert error.value.exit_code == 2
    reader.close()


@pytest.fixture
def frozen(database):
    """A database behind a proxy that can stop passing anything on while its connections stay open."""
    host, port = database.engine.url.host, database.engine.url.port
    stalled = threading.Event()

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=copy, args=(client,), daemon=True).start()

    def copy(client: socket.socket) -> None:
        with client, socket.create_connection((host, port)) as server:
            other = {client: server, server: client}
            while not stalled.is_set():
                for source in select.select([*other], [], [], 0.01)[0]:
                    data = source.recv(65536)
                    if not data:
                        return
                    other[source].sendall(data)
            client.settimeout(None)
            done.wait()

    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        url = database.engine.url.set(host="127.0.0.1", port=listener.getsockname()[1])
        with closing(Database(url.render_as_string(hide_password=False), response_timeout_s=0.5)) as behind:
            yield behind, stalled
        listener.shutdown(socket.SHUT_RDWR)
        done.set()


@pytest.mark.parametrize("wait_in", ["statement", "commit"])
def test_a_statement_without_a_response_fails(frozen, wait_in):
    database, stalled = frozen

    def run():
        with database.begin() as connection:
            connection.exec_driver_sql("create temporary table x (n int)")
            stalled.set()
            if wait_in == "statement":
                connection.exec_driver_sql("select 1")

    with pytest.raises(DatabaseUnreachableError, match=r"no response for 0\.5 s"):
        run()


def test_each_of_many_rows_has_the_whole_time(database):
    database.response_timeout_s = 0.4
    with database.begin() as connection:
        connection.exec_driver_sql("create temporary table x (n int)")
        slow = sa.text("insert into x select :n from pg_sleep(0.15)")
        assert connection.execute(slow, [{"n": n} for n in range(6)]).rowcount == 6


def test_connections_of_a_training_function_are_as_without_hpopt(database):
    """A callback for all connections of the process would also forbid COPY."""
    database.response_timeout_s = 0.2
    with database.begin() as connection:
        connection.exec_driver_sql("select 1")
    assert psycopg2.extensions.get_wait_callback() is None
    with closing(psycopg2.connect(database.url.replace("+psycopg2", ""))) as own, own.cursor() as cursor:
        cursor.execute("select pg_sleep(0.5)")
