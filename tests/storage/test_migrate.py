"""The tables, views and roles come out of the migrations as the models say, from any install."""

import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from hpopt.errors import DatabaseError
from hpopt.storage import migrate, studies, tables
from hpopt.storage.database import Database
from hpopt.study.reading import parse_study_file

ROOT = Path(__file__).parents[2]


def _names(database: Database, query: str) -> set[str]:
    with database.begin() as connection:
        return set(connection.scalars(sa.text(query)))


def test_upgrade_from_empty_makes_tables_views_and_roles(database):
    in_schema = "select table_name from information_schema.tables where table_schema = 'hpopt'"
    assert _names(database, in_schema) == {
        *("study", "worker", "attempt", "evaluation", "rung", "finding", "alembic_version"),
        *("goes", "trials", "leaderboard", "best_params", "learning_curves", "fleet", "findings"),
    }
    assert set(tables.ROLES) <= _names(database, "select rolname from pg_roles")


def test_models_and_migrations_are_equal(database):
    """A model that was changed without a migration would fail on a user's database and nowhere else."""

    def ours(item, _name, kind, _reflected, _other):
        return kind != "table" or item.schema == tables.SCHEMA

    options = {
        "include_schemas": True,
        "include_object": ours,
        "version_table_schema": tables.SCHEMA,
        "compare_server_default": True,
    }
    with database.engine.connect() as connection:
        connection.execute(sa.text("set local search_path = pg_catalog"))
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, tables.metadata) == []


def test_upgrade_of_what_is_current_changes_nothing(database, study):
    """Others may have granted on our views, or built views on them."""
    with database.begin() as connection:
        connection.execute(sa.text("create view public.theirs as select * from hpopt.best_params"))
        connection.execute(sa.text("create role guest"))
        connection.execute(sa.text("grant select on hpopt.best_params to guest"))
    try:
        migrate.upgrade(database)
        assert _names(database, "select has_table_privilege('guest', 'hpopt.best_params', 'select')::text") == {"true"}
    finally:
        with database.begin() as connection:
            connection.execute(sa.text("drop owned by guest"))
            connection.execute(sa.text("drop role guest"))


def test_a_worker_role_can_create_a_study_in_a_current_database(database, database_url, study_file):
    with database.begin() as connection:
        connection.execute(sa.text("create role plain login password 'x' in role hpopt_worker"))
    try:
        url = sa.make_url(database_url).set(username="plain", password="x")
        plain = Database(url.render_as_string(hide_password=False))
        migrate.upgrade(plain)
        assert studies.create_study(plain, parse_study_file(study_file, "tiny.toml")).name == "tiny"
        plain.close()
    finally:
        with database.begin() as connection:
            connection.execute(sa.text("drop role plain"))


def test_downgrade_drops_ours_and_leaves_optunas(database, study):
    migrate.downgrade(database, "base")
    assert _names(database, "select table_name from information_schema.tables where table_schema = 'hpopt'") == {
        "alembic_version"
    }
    assert optuna.get_all_study_names(database.optuna) == ["tiny"]
    migrate.upgrade(database)
    assert studies.study_names(database) == []


def test_going_back_one_revision_and_on_again_keeps_the_studies(database, study):
    migrate.downgrade(database, "-1")
    with pytest.raises(DatabaseError, match="run `hpopt db upgrade`"):
        migrate.require_current(database)
    migrate.upgrade(database)
    migrate.require_current(database)
    assert studies.study_names(database) == ["tiny"]


def test_a_database_without_our_tables_is_refused_with_the_remedy(database_url):
    database = Database(database_url)
    with pytest.raises(DatabaseError, match="no hpopt tables here; run `hpopt db upgrade`"):
        migrate.require_current(database)
    database.close()


def test_optunas_tables_are_in_public_for_a_user_called_hpopt(database):
    """The default search path begins with the user's name, so Optuna's tables would land in our schema."""
    found = _names(database, "select table_schema from information_schema.tables where table_name = 'trials'")
    assert found == {"public", "hpopt"}
    assert _names(database, "select viewname from pg_views where schemaname = 'hpopt' and viewname = 'trials'")


def test_deleting_a_study_with_optuna_deletes_our_rows(database, study):
    """A foreign key without a cascade makes optuna.delete_study silently do nothing."""
    optuna.delete_study(study_name="tiny", storage=database.optuna)
    assert _names(database, "select study_id::text from hpopt.study") == set()


def test_a_reader_sees_the_views_and_nothing_else(database, study):
    with database.engine.connect() as connection:
        connection.execute(sa.text("set role hpopt_reader"))
        connection.execute(sa.text("select * from hpopt.best_params"))
        with pytest.raises(sa.exc.ProgrammingError, match="permission denied"):
            connection.execute(sa.text("select * from hpopt.study"))


def test_a_worker_may_write_rows_and_may_not_change_tables(database, study):
    with database.engine.connect() as connection:
        connection.execute(sa.text("set role hpopt_worker"))
        connection.execute(sa.text("update hpopt.study set data_fingerprint = 'x'"))
        with pytest.raises(sa.exc.ProgrammingError, match="must be owner"):
            connection.execute(sa.text("drop table hpopt.evaluation"))


def test_an_installed_wheel_carries_the_migrations(database_url, tmp_path):
    """A wheel without its migrations works on every developer's machine and on no user's."""
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    installed = tmp_path / "site"
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT], check=True)
    subprocess.run([*pip, "install", "--no-deps", "--target", installed, *tmp_path.glob("*.whl")], check=True)
    code = f"""
import sys; sys.path.insert(0, {str(installed)!r})
from hpopt.storage import migrate, database
from hpopt.study.reading import parse_study_file
assert migrate.__file__.startswith({str(installed)!r}), migrate.__file__
db = database.Database({database_url!r}); migrate.upgrade(db); migrate.require_current(db)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    database = Database(database_url)
    assert "study" in _names(database, "select table_name from information_schema.tables where table_schema = 'hpopt'")
    database.close()
