"""Upgrade a database to the tables and views of this version of hpopt."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from alembic import command
from hpopt.errors import DatabaseError
from hpopt.storage import optuna_write, tables, views
from hpopt.storage.database import Database

_PACKAGE = Path(__file__).parent.parent
# "hpopt" in ASCII: the advisory lock of upgrades.
_UPGRADE_LOCK = 0x68706F7074
_VERSION_AND_PATH = f"""
    select obj_description('{tables.SCHEMA}'::regnamespace, 'pg_namespace') as version, current_schema() as first_schema
"""
_PUBLIC_TABLES = """
    select relname from pg_class where relnamespace = 'public'::regnamespace and relname = any(cast(:names as text[]))
"""
_OPTUNA_REVISIONS = "select version_num from public.alembic_version"


def upgrade(database: Database, revision: str = "head") -> None:
    """Create or upgrade Optuna's tables, then ours and the views over both; a current database is not changed.

    A user without the right to change tables can thus use a current database, and grants and views of others stay.
    Roles that an administrator created since are granted their rights.
    Raises DatabaseError, before anything is made, for tables of another program or that this version cannot upgrade.
    """
    if revision == "head" and _is_current(database):
        _complete_roles(database)
        return
    _require_known(database)
    _require_optuna(database)
    _prepare_schema(database)
    with _upgrading(database) as connection:
        schema = connection.scalar(sa.text("select current_schema()"))
        if schema != "public":
            raise DatabaseError(f"{database.address}: the search path begins with {schema}; Optuna requires public")
        # Optuna creates its tables over a connection of its own, under the lock, before ours refer to them.
        _ = database.optuna
        command.upgrade(_config(connection), revision)


def downgrade(database: Database, revision: str) -> None:
    """Downgrade our tables to an older revision, or to `base`, which drops them with their rows."""
    with _upgrading(database) as connection:
        command.downgrade(_config(connection), revision)


def require_current(database: Database) -> None:
    """Raise DatabaseError unless the tables and views are those of this version of hpopt."""
    _require_known(database)
    current, head = _revisions(database)
    if current is None:
        raise DatabaseError(f"{database.address}: no tables of hpopt; run `hpopt db upgrade`")
    if current != head:
        raise DatabaseError(
            f"{database.address}: tables at revision {current}, expected {head}; run `hpopt db upgrade`"
        )
    _require_optuna(database)
    with database.begin() as connection:
        version = connection.execute(sa.text(_VERSION_AND_PATH)).one().version
    if version != views.views_version():
        raise DatabaseError(
            f"{database.address}: the views are those of another version of hpopt; run `hpopt db upgrade`"
        )


def missing_roles(database: Database) -> list[str]:
    """Return the roles that an administrator has to create, because no user with that right has upgraded it."""
    with database.begin() as connection:
        return views.missing_roles(connection)


def _complete_roles(database: Database) -> None:
    with database.begin() as connection:
        incomplete = views.incomplete_roles(connection)
    if incomplete:
        with _upgrading(database) as connection:
            views.create_roles(connection)


def _require_optuna(database: Database) -> None:
    """Raise DatabaseError if tables with the names of Optuna's are of another program or version."""
    with database.begin() as connection:
        names = set(connection.scalars(sa.text(_PUBLIC_TABLES), {"names": ["alembic_version", *views.OPTUNA_TABLES]}))
        is_stamped = "alembic_version" in names
        revisions = set(connection.scalars(sa.text(_OPTUNA_REVISIONS))) if is_stamped else set()
    others = ", ".join(sorted(str(revision) for revision in revisions - {optuna_write.REVISION}))
    if "version_info" in names and others:
        raise DatabaseError(f"{database.address}: Optuna's tables are at {others}, expected {optuna_write.REVISION}")
    if "version_info" not in names and (revisions or names - {"alembic_version"}):
        what = f"alembic_version (at {', '.join(sorted(revisions))})" if revisions else min(names - {"alembic_version"})
        raise DatabaseError(
            f"{database.address}: table public.{what} is another program's; hpopt needs a database of its own"
        )


def _require_known(database: Database) -> None:
    """Raise DatabaseError if the tables are at a revision that this version does not have."""
    current, _ = _revisions(database)
    if current is not None and current not in {script.revision for script in _scripts().walk_revisions()}:
        raise DatabaseError(
            f"{database.address}: tables at revision {current}, which this version of hpopt cannot upgrade; use another"
            " database, or the version that created it"
        )


def _is_current(database: Database) -> bool:
    current, head = _revisions(database)
    if current != head:
        return False
    with database.begin() as connection:
        row = connection.execute(sa.text(_VERSION_AND_PATH)).one()
    # A copy of a database has no settings of roles: its search path can begin with our schema again.
    return bool(row.version == views.views_version() and row.first_schema == "public")


def _revisions(database: Database) -> tuple[str | None, str | None]:
    with database.begin() as connection:
        context = MigrationContext.configure(connection, opts={"version_table_schema": tables.SCHEMA})
        current = context.get_current_revision()
    return current, _scripts().get_current_head()


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


@contextmanager
def _upgrading(database: Database) -> Iterator[sa.Connection]:
    """Open a transaction under the lock of upgrades."""
    try:
        with database.begin() as connection:
            connection.execute(sa.text("select pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
            yield connection
    except (sa.exc.ProgrammingError, sa.exc.InternalError) as error:
        lines = str(error.orig).splitlines()
        detail = [line.partition(":")[2].strip() for line in lines if line.startswith("DETAIL:")]
        raise DatabaseError(f"{database.address}: cannot upgrade: {'; '.join([lines[0], *detail])}") from error


def _prepare_schema(database: Database) -> None:
    with _upgrading(database) as connection:
        # Not `if not exists`, which requires the right to create one that exists.
        if not connection.scalar(sa.text(f"select to_regnamespace('{tables.SCHEMA}')")):
            connection.execute(sa.text(f"create schema {tables.SCHEMA}"))
        schema = connection.scalar(sa.text("select current_schema()"))
        # The default search path begins with the user's name, which for a user called hpopt is our schema.
        if schema == tables.SCHEMA:
            name = connection.scalar(sa.text("select quote_ident(current_database())"))
            connection.execute(sa.text(f"alter role current_user in database {name} set search_path = public"))
        elif schema != "public":
            raise DatabaseError(
                f"{database.address}: the first schema of the search path is {schema}; hpopt requires public"
            )
    database.engine.dispose()


def _config(connection: sa.Connection | None = None) -> Config:
    config = Config()
    # A wheel has the migrations inside the package; an editable install reads the folder beside src/.
    packaged = _PACKAGE / "alembic"
    scripts = packaged if packaged.is_dir() else _PACKAGE.parent.parent / "alembic"
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
