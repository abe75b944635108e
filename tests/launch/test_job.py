"""What engines are asked for names its study, and keeps its password where only its owner can read it."""

import stat
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime

import psycopg2
import pytest
from sqlalchemy import make_url

from hpopt.launch.job import Access, access_to, job_name, without_secrets, write_passfile
from hpopt.storage.database import Database


def test_the_driver_takes_the_password_from_the_passfile(database_url, postgres_url, tmp_path, monkeypatch):
    """Colons and backslashes separate and escape in that file."""
    where = make_url(database_url)
    user = f"u_{where.database}"
    with closing(psycopg2.connect(database_url.replace("+psycopg2", ""))) as connection, connection.cursor() as cursor:
        cursor.execute(f"create role {user} login password %s", ["p:a\\ss w"])
        connection.commit()
        try:
            passfile = tmp_path / "deep" / "pgpass"
            write_passfile(passfile, Access(url=database_url, password="p:a\\ss w"))
            assert stat.S_IMODE(passfile.stat().st_mode) == 0o600
            monkeypatch.setenv("PGPASSFILE", str(passfile))
            psycopg2.connect(host=where.host, port=where.port, user=user, dbname=where.database).close()
        finally:
            cursor.execute(f"drop role {user}")
            connection.commit()


def test_without_a_password_there_is_no_passfile(tmp_path):
    write_passfile(tmp_path / "pgpass", Access(url="postgresql://ann@db/studies"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "url", ["postgresql://ann:s3cret@db/x?sslmode=require", "postgresql://ann@db/x?sslmode=require&password=s3cret"]
)
def test_the_password_leaves_the_url_and_the_options_stay(url):
    access = access_to(Database(url), is_embedded=False, password=None)
    assert access == Access(url="postgresql+psycopg2://ann@db/x?sslmode=require", password="s3cret")
    assert "s3cret" not in repr(access)


def test_the_password_of_the_environment_serves_a_url_without_one():
    assert access_to(Database("postgresql://ann@db/x"), is_embedded=False, password="s3cret").password == "s3cret"


def test_the_embedded_database_is_found_by_its_folder(order, tmp_path):
    access = access_to(Database("postgresql://a:b@127.0.0.1/x"), is_embedded=True, password=None)
    assert replace(order, access=access).environment(tmp_path) == {"HPOPT_HOME": str(order.home)}


def test_secrets_are_not_handed_to_an_engine():
    given = {"HPOPT_STORAGE": "x", "PGPASSWORD": "x", "HPOPT_DASHBOARD_PASSWORD": "x", "PATH": "/bin"}
    assert without_secrets(given) == {"PATH": "/bin"}


@pytest.mark.parametrize(
    ("url", "is_on_loopback"),
    [
        ("postgresql://a@127.0.0.1/x", True),
        ("postgresql://a@localhost/x", True),
        ("postgresql://a@[::1]/x", True),
        ("postgresql:///x", True),
        ("postgresql:///x?host=/run/postgresql", True),
        ("postgresql:///x?host=10.0.0.7", False),
        ("postgresql://a@db.example/x", False),
        ("postgresql://a@10.0.0.7/x", False),
    ],
)
def test_a_database_that_other_machines_cannot_reach_is_known(url, is_on_loopback):
    assert Database(url).is_on_loopback is is_on_loopback


class _Named:
    def __init__(self, study_id, name):
        self.study_id, self.name, self.created_at = study_id, name, datetime(2026, 1, 1, tzinfo=UTC)


def test_jobs_are_named_after_their_study_and_never_like_those_of_another():
    names = [job_name(_Named(1, "MoE / Muon!")), job_name(_Named(2, "MoE / Muon!")), job_name(_Named(1, "x" * 90))]
    assert names[0].startswith("hpopt-moe-muon-")
    assert len(set(names)) == 3
    assert max(map(len, names)) <= 50
