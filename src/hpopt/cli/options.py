"""Owns the two outputs and the options that several verbs share. Leaves the verbs to their files."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console


class PipeClosedError(Exception):
    """Whoever read the output has left, as `head` does."""


class Output(Console):
    """Standard output or standard error; raises PipeClosedError when nobody reads it any more."""

    def on_broken_pipe(self) -> NoReturn:
        """Let main.py end the process, where the console itself would exit with 1."""
        raise PipeClosedError

    def write(self, text: str) -> None:
        """Print a text for programs as it is: no table, no wrapping."""
        try:
            print(text, file=self.file, flush=True)
        except BrokenPipeError:
            self.on_broken_pipe()

    @contextmanager
    def working(self, on: str) -> Iterator[None]:
        """Show on a terminal that something is being worked on; elsewhere nothing."""
        if self.is_terminal:
            with self.status(f"{on} ..."):
                yield
        else:
            yield


# A file or a pipe has no width that a table should be cut to.
out = Output(highlight=False, markup=False, width=None if sys.stdout.isatty() else 1000)
err = Output(stderr=True, highlight=False, markup=False)

StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage", envvar="HPOPT_STORAGE", show_envvar=True, help="URL of a Postgres; the embedded one if not given."
    ),
]
HomeOption = Annotated[
    Path,
    typer.Option("--home", envvar="HPOPT_HOME", help="Folder of the embedded Postgres, prepared data and checkpoints."),
]
FileArgument = Annotated[Path, typer.Argument(help="A study file (TOML).", show_default=False)]
StudyArgument = Annotated[str, typer.Argument(help="Name of a study.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]
HeartbeatOption = Annotated[float, typer.Option("--heartbeat-every", min=0.1, help="Seconds between heartbeats.")]
StaleOption = Annotated[
    float, typer.Option("--stale-after", min=0.5, help="Seconds of silence after which a worker counts as dead.")
]
GiveUpOption = Annotated[
    float, typer.Option("--give-up-after", min=1, help="Seconds after which a worker gives up a database that is away.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, or auto: the GPU where there is one.")]

HOME = Path(".hpopt")
