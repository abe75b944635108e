"""The migrations create the tables of the models, the views and the roles, from any installation."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from optuna.storages._rdb.models import BaseModel

from hpopt.errors import DatabaseError, DatabasePermissionError
from hpopt.storage import migrate, studies, tables, views
from hpopt.storage.database import Database
from hpopt.study.reading import parse_study_file

ROOT = Path(__file__).parents[2]


TABLES = {"study", "study_change", "worker", "attempt", "evaluation", "rung", "finding", "answer", "comparison"} | {
    "alembic_version"
}
RELATIONS = "select table_name from information_schema.tables where table_schema = 'hpopt'"
# Everything that a refused upgrade must not have changed.
CONTENT = """
    select n.nspname || '.' || c.relname || ' ' || c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname in ('hpopt', 'public')
"""


def names(database: Database, query: str) -> set[str]:
    with database.begin() as connection:
        return set(connection.scalars(sa.text(query)))


def execute(database: Database, *statements: str) -> None:
    with database.begin() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))


@pytest.fixture
def empty(database_url) -> Iterator[Database]:
    """A database without tables."""
    database = Database(database_url)
    yield database
    database.close()


def test_an_upgrade_of_an_empty_database_creates_tables_views_functions_and_roles(empty):
    migrate.upgrade(empty)
    migrate.require_current(empty)
    assert names(empty, RELATIONS) == TABLES | views.VIEWS.keys()
    functions = "select routine_name from information_schema.routines where routine_schema = 'hpopt'"
    assert names(empty, functions) == views.FUNCTIONS.keys()
    assert set(views.ROLES) <= names(empty, "select rolname from pg_roles")


def test_models_and_migrations_are_equal(database):
    """A model that was changed without a migration would fail only on the databases of users."""

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


def test_an_upgrade_of_a_current_database_changes_nothing(database, study):
    before = names(database, CONTENT)
    migrate.upgrade(database)
    assert names(database, CONTENT) == before


def test_an_upgrade_keeps_views_of_others_over_ours_and_their_rights(database, study, new_login):
    """New versions add columns at the end."""
    guest = sa.make_url(new_login(database.url)).username
    execute(
        database,
        "drop view hpopt.best_params",
        """create view hpopt.best_params as
           select study_name, value, null::double precision as value_low from hpopt.leaderboard""",
        "create view public.theirs as select study_name from hpopt.best_params",
        f"grant select on hpopt.best_params to {guest}",
        "comment on schema hpopt is 'views of another version'",
    )
    migrate.upgrade(database)
    assert names(database, "select study_name from public.theirs") == set()
    assert names(database, "select source from hpopt.best_params") == set()
    assert names(database, f"select has_table_privilege('{guest}', 'hpopt.best_params', 'select')::text") == {"true"}
    execute(database, f"revoke all on hpopt.best_params from {guest}")


def test_an_upgrade_replaces_the_views_of_another_version(database, study):
    execute(
        database,
        "drop view hpopt.best_params",
        "create view hpopt.best_params as select 'old' as version",
        "grant select on hpopt.best_params to public",
        "comment on schema hpopt is 'views of another version'",
    )
    with pytest.raises(DatabaseError, match="the views are those of another version of hpopt; run `hpopt db upgrade`"):
        migrate.require_current(database)
    migrate.upgrade(database)
    migrate.require_current(database)
    assert names(database, "select source from hpopt.best_params") == set()
    rights = "select grantee from information_schema.table_privileges where table_name = 'best_params'"
    assert "PUBLIC" in names(database, rights)
    assert names(database, "select obj_description('hpopt'::regnamespace)") == {views.views_version()}
    assert studies.study_names(database) == ["tiny"]


def test_an_upgrade_that_others_depend_on_is_refused_in_one_line(database, study):
    execute(
        database,
        "drop view hpopt.best_params",
        "create view hpopt.best_params as select 'old' as version",
        "create view public.theirs as select * from hpopt.best_params",
        "comment on schema hpopt is 'views of another version'",
    )
    with pytest.raises(DatabaseError) as refusal:
        migrate.upgrade(database)
    assert str(refusal.value) == (
        f"{database.address}: cannot upgrade: cannot drop view hpopt.best_params because other objects depend on it; "
        "view public.theirs depends on view hpopt.best_params"
    )
    assert names(database, "select study_name from hpopt.trials") == {"tiny"}


def test_an_upgrade_sets_the_search_path_of_a_copied_database(database, study):
    """A copy or a restored dump has no settings of roles, and Optuna would read hpopt.trials as its own table."""
    name = database.url.rpartition("/")[2]
    execute(database, f"alter role current_user in database {name} reset search_path")
    database.disconnect()
    assert names(database, "select current_schema()") == {"hpopt"}
    migrate.upgrade(database)
    assert names(database, "select current_schema()") == {"public"}
    assert [trial.number for trial in studies.open_optuna(database, study).trials] == [0]


def test_a_worker_can_create_a_study_in_a_current_database(database, study_file, new_login):
    with closing(Database(new_login(database.url, "hpopt_worker"))) as worker:
        migrate.upgrade(worker)
        assert studies.create_study(worker, parse_study_file(study_file, "tiny.toml")).name == "tiny"


def test_an_owner_other_than_the_first_can_upgrade_and_downgrade(database, study, new_login):
    with closing(Database(new_login(database.url, "hpopt_owner"))) as owner:
        execute(owner, "drop view hpopt.findings", "comment on schema hpopt is 'views of another version'")
        migrate.upgrade(owner)
        migrate.require_current(owner)
    owners = "select relowner::regrole::text from pg_class where relnamespace = 'hpopt'::regnamespace"
    assert names(database, owners) == {"hpopt_owner"}
    with closing(Database(new_login(database.url, "hpopt_owner"))) as owner:
        migrate.downgrade(owner, "base")
    migrate.upgrade(database)


def test_roles_that_could_not_be_created_are_reported_and_granted_their_rights_later(empty, new_login):
    """Few users of a shared server may create roles. The roles of the server belong to all of its databases."""
    migrate.upgrade(empty)
    execute(empty, *(f"revoke all on schema hpopt from {role}" for role in views.ROLES if role != "hpopt_owner"))
    with closing(Database(new_login(empty.url, "hpopt_reader"))) as reader:
        with pytest.raises(DatabasePermissionError, match="permission denied for schema hpopt"):
            studies.study_names(reader)
        migrate.upgrade(empty)
        assert studies.study_names(reader) == []


def test_a_downgrade_to_base_drops_our_tables_and_leaves_those_of_optuna(database, study):
    migrate.downgrade(database, "base")
    assert names(database, RELATIONS) == {"alembic_version"}
    assert optuna.get_all_study_names(database.optuna) == ["tiny"]
    with pytest.raises(DatabaseError, match="no tables of hpopt; run `hpopt db upgrade`"):
        migrate.require_current(database)
    migrate.upgrade(database)
    migrate.require_current(database)
    assert studies.study_names(database) == []


def test_a_database_without_our_tables_is_refused_with_the_remedy(empty):
    with pytest.raises(DatabaseError, match="no tables of hpopt; run `hpopt db upgrade`"):
        migrate.require_current(empty)


@pytest.mark.parametrize("refuse", [migrate.upgrade, migrate.require_current])
def test_a_database_of_another_layout_is_refused_and_not_changed(empty, refuse):
    """Its tables can have the names of ours and other columns."""
    execute(
        empty,
        "create schema hpopt",
        "create table hpopt.alembic_version (version_num varchar(32) not null)",
        "insert into hpopt.alembic_version values ('0003')",
        "create table hpopt.study (study_id int primary key, name text)",
    )
    before = names(empty, CONTENT)
    with pytest.raises(DatabaseError) as refusal:
        refuse(empty)
    assert str(refusal.value) == (
        f"{empty.address}: tables at revision 0003, which this version of hpopt cannot upgrade; "
        "use another database, or the version that created it"
    )
    assert names(empty, CONTENT) == before
    assert names(empty, "select version_num from hpopt.alembic_version") == {"0003"}


def test_a_migrated_database_of_another_layout_is_refused_and_keeps_its_views(database, study):
    execute(database, "update hpopt.alembic_version set version_num = '0003'")
    before = names(database, CONTENT)
    for refuse in (migrate.upgrade, migrate.require_current):
        with pytest.raises(DatabaseError, match="tables at revision 0003, which this version of hpopt cannot upgrade"):
            refuse(database)
    assert names(database, CONTENT) == before


def test_tables_of_another_version_of_optuna_are_refused(database):
    execute(database, "update public.alembic_version set version_num = 'v9.9.9'")
    with pytest.raises(DatabaseError, match=r"Optuna's tables are at v9\.9\.9, expected v"):
        migrate.require_current(database)


def test_the_tables_of_optuna_are_in_public_for_a_user_called_hpopt(empty):
    """The default search path begins with the name of the user, which is that of our schema."""
    migrate.upgrade(empty)
    schemas = names(empty, "select table_schema from information_schema.tables where table_name = 'trials'")
    assert schemas == {"public", "hpopt"}
    assert names(empty, "select viewname from pg_views where schemaname = 'hpopt' and viewname = 'trials'")


def test_a_user_whose_search_path_begins_with_another_schema_is_refused(empty):
    name = empty.url.rpartition("/")[2]
    execute(empty, "create schema other", f"alter role current_user in database {name} set search_path = other")
    empty.disconnect()
    with pytest.raises(DatabaseError, match="first schema of the search path is other; hpopt requires public"):
        migrate.upgrade(empty)
    assert names(empty, RELATIONS) == set()


def test_deleting_a_study_with_optuna_deletes_our_rows(database, study):
    """A foreign key without a cascade makes optuna.delete_study do nothing, without an error."""
    optuna.delete_study(study_name="tiny", storage=database.optuna)
    assert names(database, "select study_id::text from hpopt.study") == set()


def test_a_reader_may_read_everything_and_write_nothing(database, study, new_login):
    with closing(Database(new_login(database.url, "hpopt_reader"))) as reader:
        for table in names(reader, RELATIONS):
            names(reader, f"select true from hpopt.{table} limit 1")
        for table in views.OPTUNA_TABLES:
            names(reader, f"select true from public.{table} limit 1")
        for statement in (
            "update hpopt.study set file = ''",
            "delete from hpopt.rung",
            "delete from public.studies",
            "insert into public.studies (study_name) values ('x')",
            "select hpopt.record_contact(1)",
            "create table public.x ()",
            "create table hpopt.x ()",
        ):
            with pytest.raises(DatabasePermissionError, match="permission denied"):
                execute(reader, statement)


def test_a_worker_may_write_rows_and_neither_change_tables_nor_versions(database, study, new_login):
    with closing(Database(new_login(database.url, "hpopt_worker"))) as worker:
        execute(worker, "update hpopt.study set data_fingerprint = 'x'", "select hpopt.record_contact(1)")
        execute(worker, "delete from hpopt.finding", "insert into public.studies (study_name) values ('x')")
        for statement in (
            "drop table hpopt.evaluation",
            "create or replace view hpopt.findings as select 1",
            *(f"delete from {table}" for table in ("hpopt.alembic_version", "public.alembic_version")),
            "update public.version_info set library_version = 'x'",
        ):
            with pytest.raises(DatabasePermissionError, match=r"permission denied|must be owner"):
                execute(worker, statement)


def test_only_tables_of_optuna_and_hpopt_are_granted(empty, new_login):
    execute(empty, "create table public.experiments (secret text)")
    migrate.upgrade(empty)
    for role in views.ROLES:
        member = Database(new_login(empty.url, role))
        with pytest.raises(DatabasePermissionError, match="permission denied for table experiments"):
            names(member, "select secret from public.experiments")
        member.close()


def test_the_tables_of_optuna_are_known():
    assert set(views.OPTUNA_TABLES) == set(BaseModel.metadata.tables)


@pytest.mark.parametrize(
    ("statements", "table"),
    [
        (
            ["create table alembic_version (version_num text)", "insert into alembic_version values ('c48cb773bb87')"],
            "alembic_version (at c48cb773bb87)",
        ),
        (["create table trials (id int)"], "trials"),
    ],
)
def test_a_database_of_another_program_is_refused_and_not_changed(empty, statements, table):
    """MLflow and others stamp their revision into public.alembic_version, as Optuna does."""
    execute(empty, *statements)
    before = names(empty, CONTENT)
    with pytest.raises(DatabaseError) as refusal:
        migrate.upgrade(empty)
    assert str(refusal.value) == (
        f"{empty.address}: table public.{table} is another program's; hpopt needs a database of its own"
    )
    assert names(empty, CONTENT) == before


def test_an_installed_wheel_has_the_migrations(database_url, tmp_path):
    """A wheel without them works on the machines of developers only."""
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
    assert "study" in names(database, "select table_name from information_schema.tables where table_schema = 'hpopt'")
    database.close()
