"""Owns the way in: the app, and what becomes of errors. Leaves the verbs to verbs.py, steering.py and database.py."""

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from hpopt import __version__
from hpopt.cli import control, db, launch, run, studies
from hpopt.cli.options import PipeClosedError, err, out
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
    *(run.run, studies.create, studies.check, run.worker, studies.status),
    *(control.pause, control.resume, control.stop, control.enqueue),
    *(studies.best, studies.report, studies.dashboard, studies.params),
):
    app.command()(verb)
app.add_typer(launch.app, name="launch")
app.add_typer(db.app, name="db")


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer's signature.
    if wanted:
        out.write(__version__)
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
    stdout = sys.stdout
    try:
        code = _run("--debug" in sys.argv)
        sys.stdout.flush()
    except (PipeClosedError, BrokenPipeError):
        _end_of_pipe()
    except SystemExit:
        # Where typer's own help meets a closed pipe, typer puts something harmless in place of the outputs and exits.
        if sys.stdout is stdout:
            raise
        _end_of_pipe()
    sys.exit(code)


def _run(debug: bool) -> int:  # noqa: FBT001 - there is one flag.
    """Run the verb and give the exit code."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        code = app(arguments, standalone_mode=False)
    except HpoptError as error:
        if debug:
            traceback.print_exc()
        return _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        return _refuse(error.format_message())
    except PipeClosedError:
        raise
    except Exception as error:
        if debug:
            raise
        message = f"{type(error).__name__}: {error} (a bug in hpopt: run it with --debug and report what it prints)"
        return _fail(message, 1)
    return code if isinstance(code, int) else 0


def _refuse(message: str) -> int:
    """Answer a command line that cannot be understood: the help for one without arguments, else one line."""
    if message.startswith("Usage:"):
        err.write(message)
        return 2
    return _fail(f"{message} (see `hpopt --help`)", 2)


def _fail(message: str, code: int) -> int:
    err.write("hpopt: " + " ".join(message.split()))
    return code


def _end_of_pipe() -> NoReturn:
    """End as other programs do when their reader leaves: by SIGPIPE, without a word."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGPIPE)
    sys.exit(128 + signal.SIGPIPE)
