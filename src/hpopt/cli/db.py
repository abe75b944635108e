"""Commands of `hpopt db`: the embedded server, migrations, SQL and outboxes."""

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from hpopt.cli.options import HOME, HomeOption, JsonOption, StorageOption, err, out
from hpopt.errors import DatabaseError, InputError

app = typer.Typer(help="The database: embedded server, migrations and SQL.", no_args_is_help=True)


@app.command("start")
def db_start(
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port; a free one if not given.")] = None,
    home: HomeOption = HOME,
) -> None:
    """Start the embedded server and leave it running."""
    from hpopt.postgres import server
    from hpopt.storage.database import Database

    out.print(Database(server.start(home, port, keep=True)).address, soft_wrap=True)


@app.command("stop")
def db_stop(home: HomeOption = HOME) -> None:
    """Stop the embedded server."""
    from hpopt.postgres import server

    out.print("stopped" if server.stop(home) else "was not running")


@app.command("upgrade")
def db_upgrade(storage: StorageOption = None, home: HomeOption = HOME) -> None:
    """Create the tables, or upgrade them to this version."""
    from hpopt.storage import migrate
    from hpopt.storage.connect import open_database

    with open_database(storage, home, create=True) as database:
        missing = migrate.missing_roles(database)
        if missing:
            statements = " ".join(f"create role {role} nologin;" for role in missing)
            err.print(
                f"hpopt: {database.address}: this user may not create roles; after `{statements}` by an administrator, "
                "`hpopt db upgrade` grants them their rights",
                soft_wrap=True,
            )
        out.print(f"{database.address} is up to date", soft_wrap=True)


@app.command("url")
def db_url(
    libpq: Annotated[
        bool, typer.Option("--libpq", help="Print the URL for programs of libpq, without password.")
    ] = False,
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Print the URL, with password, for Optuna, optuna-dashboard and SQLAlchemy."""
    from hpopt.postgres import server
    from hpopt.storage.database import Database

    url = storage or server.find_running_url(home)
    if url is None:
        raise DatabaseError(f"{home}: no server is running; start one with `hpopt db start`")
    database = Database(url)
    out.write(database.libpq_url if libpq else database.url)


@app.command("psql", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def db_psql(context: typer.Context, storage: StorageOption = None, home: HomeOption = HOME) -> None:
    """Start psql on the database; further arguments are those of psql."""
    from hpopt.launch.job import Credentials, without_secrets, write_passfile
    from hpopt.storage.connect import open_database

    psql = shutil.which("psql")
    if psql is None:
        raise InputError("psql is not installed; `hpopt db sql QUERY` runs a query without it")
    # Ctrl-C at the prompt of psql is for psql.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with open_database(storage, home) as database, tempfile.TemporaryDirectory() as folder:
        # Other users of the machine can see the arguments of a process, and its children inherit its environment.
        environment = dict(os.environ)
        if database.password is not None:
            passfile = Path(folder, "pgpass")
            write_passfile(passfile, Credentials(url=None, password=database.password))
            environment = without_secrets(environment) | {"PGPASSFILE": str(passfile)}
        done = subprocess.run([psql, database.libpq_url, *context.args], env=environment, check=False)
    raise typer.Exit(done.returncode)


@app.command("sql")
def db_sql(
    query: Annotated[str, typer.Argument(help="A query, e.g. 'select * from hpopt.best_params'.", show_default=False)],
    as_json: JsonOption = False,
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Run a query in a read-only transaction and print its rows."""
    from hpopt.storage import queries
    from hpopt.storage.connect import open_database
    from hpopt.terminal.answer import render_rows
    from hpopt.terminal.exports import rows_as_json

    with open_database(storage, home) as database:
        names, rows = queries.read_rows(database, query)
    if as_json:
        out.write(rows_as_json(names, rows))
    else:
        out.print(render_rows(names, rows))


@app.command("replay")
def db_replay(
    file: Annotated[Path, typer.Argument(help="An outbox.jsonl of a worker.", show_default=False)],
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Record what a worker could not send."""
    from hpopt.storage.connect import open_database
    from hpopt.worker import outbox

    if not file.is_file():
        raise InputError(f"{file}: no such file")
    with open_database(storage, home) as database:
        out.print(outbox.replay(database, file), soft_wrap=True)
