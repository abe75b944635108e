"""Owns bringing a database to the version of this hpopt. Leaves the tables to tables.py and the steps to alembic/."""

from pathlib import Path

import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from alembic import command
from hpopt import tables
from hpopt.errors import DatabaseError
from hpopt.storage.database import Database

_PACKAGE = Path(__file__).parent.parent
# "hpopt" in ASCII: the advisory lock that keeps two upgrades apart.
_UPGRADE_LOCK = 0x68706F7074


def upgrade(database: Database, revision: str = "head") -> None:
    """Make Optuna's tables, then ours and the views over both; does nothing where all is current."""
    _prepare_schema(database)
    with database.begin() as connection:
        connection.execute(sa.text("select pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
        # Optuna creates its tables over a connection of its own, within the lock, before ours refer to them.
        _ = database.optuna
        command.upgrade(_config(connection), revision)


def downgrade(database: Database, revision: str) -> None:
    """Go back to an older revision of our tables, or to `base`, which drops them with their rows."""
    with database.begin() as connection:
        connection.execute(sa.text("select pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
        command.downgrade(_config(connection), revision)


def require_current(database: Database) -> None:
    """Raise DatabaseError unless our tables are at the revision of this hpopt."""
    with database.begin() as connection:
        context = MigrationContext.configure(connection, opts={"version_table_schema": tables.SCHEMA})
        current = context.get_current_revision()
    head = ScriptDirectory.from_config(_config()).get_current_head()
    if current is None:
        raise DatabaseError(f"{database.address}: no hpopt tables here; run `hpopt db upgrade`")
    if current != head:
        raise DatabaseError(
            f"{database.address}: tables at revision {current}, expected {head}; run `hpopt db upgrade`"
        )


def _prepare_schema(database: Database) -> None:
    with database.begin() as connection:
        connection.execute(sa.text("select pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
        connection.execute(sa.text(f"create schema if not exists {tables.SCHEMA}"))
        schema = connection.scalar(sa.text("select current_schema()"))
        # The default search path begins with the user's own name: for a user called hpopt that is our schema.
        if schema == tables.SCHEMA:
            name = connection.dialect.identifier_preparer.quote(database.engine.url.database or "")
            connection.execute(sa.text(f"alter role current_user in database {name} set search_path = public"))
        elif schema != "public":
            raise DatabaseError(
                f"{database.address}: the first schema of the search path is {schema}; hpopt needs public"
            )
    database.engine.dispose()


def _config(connection: sa.Connection | None = None) -> Config:
    config = Config()
    # The wheel carries the migrations inside the package; an editable install reads the folder beside src/.
    packaged = _PACKAGE / "alembic"
    scripts = packaged if packaged.is_dir() else _PACKAGE.parent.parent / "alembic"
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
