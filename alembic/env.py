"""Run the migrations of schema `hpopt`, which has its own version table, and replace its views.

`hpopt db upgrade` passes a connection; `alembic upgrade head` takes the URL from HPOPT_STORAGE.
"""

import os

import sqlalchemy as sa
from sqlalchemy.schema import SchemaItem

from alembic import context
from hpopt.storage import tables, views
from hpopt.storage.database import parse_url


def _is_ours(item: SchemaItem, _name: str | None, kind: str, _reflected: bool, _other: SchemaItem | None) -> bool:  # noqa: FBT001 - alembic's signature.
    return kind != "table" or getattr(item, "schema", None) == tables.SCHEMA


def _run(connection: sa.Connection) -> None:
    # Names that the search path finds come back from Postgres without their schema and would not compare as equal.
    connection.execute(sa.text("set local search_path = pg_catalog"))
    context.configure(
        connection=connection,
        target_metadata=tables.metadata,
        include_schemas=True,
        include_object=_is_ours,
        version_table_schema=tables.SCHEMA,
    )
    with context.begin_transaction():
        context.run_migrations()
        # The views are those of the newest tables; an older revision has none.
        if context.get_context().get_current_revision() == context.get_head_revision():
            views.create_views(connection)


connection = context.config.attributes.get("connection")
if connection is not None:
    _run(connection)
elif "HPOPT_STORAGE" in os.environ:
    with sa.create_engine(parse_url(os.environ["HPOPT_STORAGE"])).begin() as connection:
        _run(connection)
else:
    raise SystemExit("set HPOPT_STORAGE to the URL of the database, or use `hpopt db upgrade`")
