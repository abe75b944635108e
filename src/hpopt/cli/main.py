"""The command line: its commands, and the exit codes of errors."""

import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from hpopt import __version__
from hpopt.cli import check, compare, control, db, launch, run, studies
from hpopt.cli.options import PipeClosedError, err, out
from hpopt.errors import HpoptError
from hpopt.formats import one_line

# What typer returns after Ctrl-C, as shells do.
_INTERRUPTED = 128 + signal.SIGINT
# Threads have this long to end before the process exits without them.
_THREADS_TIMEOUT_S = 2.0

app = typer.Typer(
    name="hpopt",
    help="Find the hyperparameters of a training run with a fleet of workers and PostgreSQL.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (
    *(run.run, studies.create, studies.delete, check.check, run.worker, studies.status),
    *(control.pause, control.resume, control.stop, control.retry, control.enqueue, control.confirm),
    *(studies.best, compare.compare, studies.report, studies.dashboard, studies.params),
):
    app.command()(command)
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
    """Run the command line. An error is one line on standard error, with a traceback under --debug."""
    # Training code of users is in the current folder, where no file shadows a library.
    sys.path.append(str(Path.cwd()))
    stdout = sys.stdout
    try:
        code = _run("--debug" in sys.argv)
        sys.stdout.flush()
    except (PipeClosedError, BrokenPipeError):
        _end_of_pipe()
    except SystemExit:
        # When its help meets a closed pipe, typer replaces sys.stdout and exits.
        if sys.stdout is stdout:
            raise
        _end_of_pipe()
    _exit(code)


def _exit(code: int) -> NoReturn:
    """Exit, also if a training function has left a thread running that does not end."""
    deadline = time.monotonic() + _THREADS_TIMEOUT_S
    others = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
    for thread in others:
        if not thread.daemon:
            thread.join(max(0.0, deadline - time.monotonic()))
    if any(thread.is_alive() and not thread.daemon for thread in others):
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _run(debug: bool) -> int:  # noqa: FBT001 - there is one flag.
    """Run the command and return its exit code."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        code = app(arguments, standalone_mode=False)
    except HpoptError as error:
        if debug:
            err.write(traceback.format_exc())
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
    if code == _INTERRUPTED:
        return _fail("interrupted", _INTERRUPTED)
    return code if isinstance(code, int) else 0


def _refuse(message: str) -> int:
    """Print the help for a command line without arguments, else one line; return exit code 2."""
    if message.startswith("Usage:"):
        err.write(message)
        return 2
    return _fail(f"{message} (see `hpopt --help`)", 2)


def _fail(message: str, code: int) -> int:
    err.write(f"hpopt: {one_line(message).rstrip()}")
    return code


def _end_of_pipe() -> NoReturn:
    """End by SIGPIPE without a message, as other programs do when their output is closed."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGPIPE)
    sys.exit(128 + signal.SIGPIPE)
