"""Owns the verbs about the database: server, migrations, SQL, journals. Leaves those about studies to verbs.py."""

from pathlib import Path
from typing import Annotated

import typer

from hpopt.cli.options import HOME, HomeOption, JsonOption, StorageOption, out
from hpopt.errors import DatabaseError, InputError

app = typer.Typer(help="The database: the embedded server, the migrations, and SQL.", no_args_is_help=True)


@app.command("start")
def db_start(
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port; a free one if not given.")] = None,
    home: HomeOption = HOME,
) -> None:
    """Start the embedded server and leave it running."""
    from hpopt.postgres import server
    from hpopt.storage.database import Database

    out.print(Database(server.start(home, port)).address, soft_wrap=True)


@app.command("stop")
def db_stop(home: HomeOption = HOME) -> None:
    """Stop the embedded server."""
    from hpopt.postgres import server

    out.print("stopped" if server.stop(home) else "was not running")


@app.command("upgrade")
def db_upgrade(storage: StorageOption = None, home: HomeOption = HOME) -> None:
    """Bring the tables to the version of this hpopt."""
    from hpopt.storage.connect import open_database

    with open_database(storage, home, make=True) as database:
        out.print(f"{database.address} is up to date", soft_wrap=True)


@app.command("url")
def db_url(storage: StorageOption = None, home: HomeOption = HOME) -> None:
    """Print the whole URL, password included, for psql and other programs."""
    from hpopt.postgres import server

    url = storage or server.find_running_url(home)
    if url is None:
        raise DatabaseError(f"{home}: no server is running; start one with `hpopt db start`")
    out.write(url.replace("postgresql+psycopg2://", "postgresql://"))


@app.command("sql")
def db_sql(
    query: Annotated[str, typer.Argument(help="A query, e.g. 'select * from hpopt.best_params'.", show_default=False)],
    as_json: JsonOption = False,
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Run a query that changes nothing and print its rows."""
    from hpopt.storage import queries
    from hpopt.storage.connect import open_database
    from hpopt.terminal.answer import rows_table
    from hpopt.terminal.exports import rows_as_json

    with open_database(storage, home) as database:
        names, rows = queries.read_rows(database, query)
    if as_json:
        out.write(rows_as_json(names, rows))
    else:
        out.print(rows_table(names, rows))


@app.command("replay")
def db_replay(
    file: Annotated[Path, typer.Argument(help="An undelivered.jsonl of a worker.", show_default=False)],
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Take in what a worker could not deliver."""
    from hpopt.storage.connect import open_database
    from hpopt.worker import outbox

    if not file.is_file():
        raise InputError(f"{file}: no such file")
    with open_database(storage, home) as database:
        out.print(outbox.replay(database, file), soft_wrap=True)
