"""The description of a job: its name, its environment, and where its password is written."""

import stat
import sys
import tempfile
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime

import psycopg2
import pytest
from sqlalchemy import make_url

from hpopt.errors import InputError
from hpopt.launch.job import Credentials, job_name, run_client, split_credentials, without_secrets, write_passfile
from hpopt.storage.database import Database


def test_libpq_reads_the_password_from_the_passfile(database_url, postgres_url, tmp_path, monkeypatch):
    """Colons and backslashes have a meaning in that file."""
    url = make_url(database_url)
    user = f"u_{url.database}"
    with closing(psycopg2.connect(database_url.replace("+psycopg2", ""))) as connection, connection.cursor() as cursor:
        cursor.execute(f"create role {user} login password %s", ["p:a\\ss w"])
        connection.commit()
        try:
            passfile = tmp_path / "deep" / "pgpass"
            write_passfile(passfile, Credentials(url=database_url, password="p:a\\ss w"))
            monkeypatch.setenv("PGPASSFILE", str(passfile))
            psycopg2.connect(host=url.host, port=url.port, user=user, dbname=url.database).close()
        finally:
            cursor.execute(f"drop role {user}")
            connection.commit()


def test_without_a_password_there_is_no_passfile(tmp_path):
    write_passfile(tmp_path / "pgpass", Credentials(url="postgresql://ann@db/studies"))
    assert not list(tmp_path.iterdir())


def test_a_password_is_not_written_through_a_file_that_is_there_already(tmp_path, monkeypatch):
    """Others may write to a shared home, and guess the names that a draft gets."""
    monkeypatch.setattr(tempfile, "_get_candidate_names", lambda: iter(["linked", "taken", "free"]))
    passfile, others = tmp_path / "pgpass", tmp_path / "others"
    taken = tmp_path / "pgpass.taken"
    for path in (others, taken):
        path.write_text("")
        path.chmod(0o644)
    for link in (passfile, tmp_path / "pgpass.linked"):
        link.symlink_to(others)
    write_passfile(passfile, Credentials(url="postgresql://ann@db/x", password="s3cret"))
    assert (others.read_text(), taken.read_text()) == ("", "")
    assert passfile.read_text() == "*:*:*:*:s3cret\n"
    assert not passfile.is_symlink()
    assert stat.S_IMODE(passfile.stat().st_mode) == 0o600


def test_a_home_that_cannot_be_written_to_is_refused_and_no_draft_stays(tmp_path):
    (tmp_path / "pgpass").mkdir()
    with pytest.raises(InputError, match="pgpass: cannot write the password file: Is a directory"):
        write_passfile(tmp_path / "pgpass", Credentials(url="postgresql://ann@db/x", password="s3cret"))
    assert [path.name for path in tmp_path.iterdir()] == ["pgpass"]


@pytest.mark.parametrize(
    "url", ["postgresql://ann:s3cret@db/x?sslmode=require", "postgresql://ann@db/x?sslmode=require&password=s3cret"]
)
def test_the_password_is_removed_from_the_url_and_the_options_stay(url):
    credentials = split_credentials(Database(url), is_embedded=False, password=None)
    assert credentials == Credentials(url="postgresql+psycopg2://ann@db/x?sslmode=require", password="s3cret")
    assert "s3cret" not in repr(credentials)


def test_a_url_without_a_password_takes_that_of_the_environment():
    database = Database("postgresql://ann@db/x")
    assert split_credentials(database, is_embedded=False, password="s3cret").password == "s3cret"


def test_workers_find_the_embedded_database_by_its_folder(job_spec, tmp_path):
    credentials = split_credentials(Database("postgresql://a:b@127.0.0.1/x"), is_embedded=True, password=None)
    environment = replace(job_spec, credentials=credentials).environment(tmp_path)
    assert environment == {"HPOPT_HOME": str(job_spec.home)}


def test_an_engine_gets_no_variable_that_holds_a_password():
    environment = {"HPOPT_STORAGE": "x", "PGPASSWORD": "x", "HPOPT_DASHBOARD_PASSWORD": "x", "PATH": "/bin"}
    assert without_secrets(environment) == {"PATH": "/bin"}


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
def test_a_database_that_other_machines_cannot_reach_is_recognized(url, is_on_loopback):
    assert Database(url).is_on_loopback is is_on_loopback


class _Study:
    def __init__(self, study_id, name):
        self.study_id, self.name, self.created_at = study_id, name, datetime(2026, 1, 1, tzinfo=UTC)


def test_a_job_name_contains_the_name_of_its_study_and_is_unique():
    names = [job_name(_Study(1, "MoE / Muon!")), job_name(_Study(2, "MoE / Muon!")), job_name(_Study(1, "x" * 90))]
    assert names[0].startswith("hpopt-moe-muon-")
    assert len(set(names)) == 3
    assert max(map(len, names)) <= 50


def test_a_client_program_that_fails_is_quoted():
    program = "import sys; print('no such\\n  partition', file=sys.stderr); sys.exit(3)"
    with pytest.raises(InputError, match=r"python.*: no such partition$"):
        run_client([sys.executable, "-c", program], hint="")


def test_a_client_program_reads_standard_input_and_its_output_is_returned():
    assert run_client(["cat"], hint="", stdin=" a\nb\n") == "a\nb"
