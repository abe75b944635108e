"""`hpopt db`: URLs for other programs, psql, SQL and outboxes."""

import json
import os
import shutil
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from optuna_dashboard._storage_url import get_storage

from hpopt.storage.database import Database

needs_psql = pytest.mark.skipif(shutil.which("psql") is None, reason="no psql: apt-get install postgresql-client")


@pytest.fixture
def url(created):
    return created.output("db", "url").strip()


def test_the_optuna_command_reads_the_study_by_the_url(url):
    command = [Path(sys.executable).with_name("optuna"), "trials", "--study-name", "answer", "--storage", url]
    done = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, check=True)
    (enqueued,) = json.loads(done.stdout)
    assert (enqueued["number"], enqueued["state"]) == (0, "WAITING")


def test_optuna_loads_the_study_by_the_url(url):
    study = optuna.load_study(study_name="answer", storage=url)
    assert [trial.state.name for trial in study.trials] == ["WAITING"]


def test_optuna_dashboard_opens_the_url(url):
    (study,) = get_storage(url).get_all_studies()
    assert study.study_name == "answer"


def test_the_url_names_the_driver_and_that_of_libpq_does_not_and_has_no_password(created, url, migrated_url):
    password = sa.make_url(migrated_url).password
    assert url.startswith("postgresql+psycopg2://")
    assert sa.make_url(url).password == password
    libpq = created.output("db", "url", "--libpq").strip()
    assert libpq == url.replace("postgresql+psycopg2://", "postgresql://").replace(f":{password}@", "@")
    assert password not in libpq


def test_the_url_of_a_server_that_does_not_run_is_refused_with_the_command_that_starts_it(hpopt, tmp_path):
    line = hpopt.refused("db", "url", "--home", tmp_path)
    assert line == f"hpopt: {tmp_path}: no server is running; start one with `hpopt db start`"


def psql(url, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "hpopt", "db", "psql", *arguments],
        env={**os.environ, **environment, "HPOPT_STORAGE": url},
        capture_output=True,
        text=True,
        check=False,
    )


@needs_psql
@pytest.mark.parametrize("separator", [[], ["--"]])
def test_psql_runs_a_query_with_options_of_its_own(created, url, separator):
    done = psql(url, *separator, "-X", "-c", "select study_name from hpopt.trials", "-tA", PGPASSWORD="wrong")
    assert (done.returncode, done.stdout, done.stderr) == (0, "answer\n", "")


@needs_psql
def test_the_exit_code_of_psql_is_that_of_the_command(created, url, tmp_path):
    script = tmp_path / "wrong.sql"
    script.write_text("select nonsense;\n")
    done = psql(url, "-X", "-v", "ON_ERROR_STOP=1", "-f", str(script))
    assert done.returncode == 3
    assert 'column "nonsense" does not exist' in done.stderr


@pytest.mark.parametrize("spelling", ["hpopt:{password}@", "hpopt@"])
def test_psql_gets_the_password_in_a_file_that_only_its_user_can_read(created, url, tmp_path, spelling):
    """All users of a machine can read the arguments of a process, and its children inherit its environment."""
    password = sa.make_url(url).password
    option = "" if "password" in spelling else f"?password={password}"
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "psql").write_text(
        f"""#!{sys.executable}
import json, os, pathlib, sys
passfile = pathlib.Path(os.environ["PGPASSFILE"])
seen = dict(arguments=sys.argv, environment=dict(os.environ), path=str(passfile), mode=passfile.stat().st_mode,
            folder_mode=passfile.parent.stat().st_mode, passfile=passfile.read_text())
pathlib.Path({str(tmp_path / "seen.json")!r}).write_text(json.dumps(seen))
"""
    )
    (programs / "psql").chmod(0o755)
    host = url.partition("@")[2]
    done = psql(
        f"postgresql://{spelling.format(password=password)}{host}{option}", "-c", "select 1", PATH=str(programs)
    )
    assert (done.returncode, done.stderr) == (0, "")
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["arguments"][1:] == [f"postgresql://hpopt@{host}", "-c", "select 1"]
    assert password not in json.dumps([seen["arguments"], seen["environment"]])
    assert seen["passfile"] == f"*:*:*:*:{password}\n"
    assert stat.filemode(seen["mode"]) == "-rw-------"
    assert stat.filemode(seen["folder_mode"]) == "drwx------"
    assert not Path(seen["path"]).exists()


def test_psql_that_is_not_installed_is_one_line(created, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    line = created.refused("db", "psql")
    assert line == "hpopt: psql is not installed; `hpopt db sql QUERY` runs a query without it"


def test_sql_prints_rows_and_changes_nothing(created):
    assert json.loads(created.output("db", "sql", "--json", "select study_name from hpopt.trials")) == [
        {"study_name": "answer"}
    ]
    assert "read-only" in created.refused("db", "sql", "delete from hpopt.study")


def test_sql_runs_one_query(created):
    """The second of two could leave the read-only transaction."""
    assert "expected one query that returns rows" in created.refused("db", "sql", "commit; delete from hpopt.study")
    assert json.loads(created.output("db", "sql", "--json", "select count(*) from hpopt.study")) == [{"count": 1}]


@pytest.mark.parametrize(
    ("query", "value"),
    [
        ("select string_agg(study_name, ';') as x from hpopt.trials", "answer"),
        ("select sum(tokens) as x from hpopt.trials", 0),
        ("select 'nan'::float as x", None),
        ("select 1.50 as x", 1.5),
    ],
)
def test_sql_as_json_has_the_types_of_json(created, query, value):
    assert json.loads(created.output("db", "sql", "--json", query)) == [{"x": value}]


def test_a_file_that_is_not_an_outbox_is_refused(created, tmp_path):
    missing, text = tmp_path / "none.jsonl", tmp_path / "text.jsonl"
    text.write_text("text")
    assert created.refused("db", "replay", missing) == f"hpopt: {missing}: no such file"
    assert created.refused("db", "replay", text) == f"hpopt: {text}: not an outbox of hpopt"


def test_upgrading_a_current_database_changes_nothing(created, migrated_url):
    query = sa.text("select oid, relname from pg_class where relnamespace = 'hpopt'::regnamespace order by oid")
    with closing(Database(migrated_url)) as database, database.begin() as connection:
        before = connection.execute(query).all()
    assert "is up to date" in created.output("db", "upgrade")
    with closing(Database(migrated_url)) as database, database.begin() as connection:
        assert connection.execute(query).all() == before
