"""Owns the way in: the app, and what becomes of errors. Leaves the verbs to verbs.py and database.py."""

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from hpopt import __version__
from hpopt.cli import database, verbs
from hpopt.errors import HpoptError

app = typer.Typer(
    name="hpopt",
    help="Find the hyperparameters of a training run with a fleet of workers and a Postgres.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for verb in (
    *(verbs.run, verbs.create, verbs.check, verbs.worker, verbs.status),
    *(verbs.best, verbs.report, verbs.dashboard, verbs.params),
):
    app.command()(verb)
app.add_typer(database.app, name="db")


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer's signature.
    if wanted:
        print(__version__)  # noqa: T201 - rich is for tables.
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None: ...


def main() -> None:
    """Run the command line: one line to standard error for what goes wrong, a traceback only under --debug."""
    # As with `python -m`: the user's own training code stands beside the study file.
    sys.path.insert(0, str(Path.cwd()))
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        code = app(arguments, standalone_mode=False)
    except HpoptError as error:
        if debug:
            raise
        _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        _refuse(error.format_message())
    except Exception as error:
        if debug:
            raise
        _fail(f"{type(error).__name__}: {error} (a bug in hpopt: run it with --debug and report what it prints)", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _refuse(message: str) -> NoReturn:
    """Answer a command line that cannot be understood: the help for one without arguments, else one line."""
    if message.startswith("Usage:"):
        print(message, file=sys.stderr)  # noqa: T201 - rich would wrap it.
        sys.exit(2)
    _fail(f"{message} (see `hpopt --help`)", 2)


def _fail(message: str, code: int) -> NoReturn:
    one_line = " ".join(message.split())
    print(f"hpopt: {one_line}", file=sys.stderr)  # noqa: T201 - rich would wrap it.
    sys.exit(code)
