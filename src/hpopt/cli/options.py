"""Define the two outputs and the options that several commands share."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from hpopt.formats import printable


class PipeClosedError(Exception):
    """The reader of the output has closed it, as `head` does."""


class Output(Console):
    """Standard output or standard error, without control characters in what is printed.

    Writing raises PipeClosedError when its reader has closed it.
    """

    def on_broken_pipe(self) -> NoReturn:
        """Raise PipeClosedError, where the console itself would exit with 1."""
        raise PipeClosedError

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render what is printed, with control characters in its texts as escapes."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def write(self, text: str) -> None:
        """Print a text without wrapping: unchanged for programs, for people without control characters."""
        try:
            print(printable(text) if self.stderr or self.is_terminal else text, file=self.file, flush=True)
        except BrokenPipeError:
            self.on_broken_pipe()

    @contextmanager
    def spinner(self, description: str) -> Iterator[None]:
        """Show a spinner with a description on a terminal, elsewhere nothing."""
        if self.is_terminal:
            with self.status(f"{description} ..."):
                yield
        else:
            yield


# A file or a pipe has no width to fit a table to, unless COLUMNS gives one.
_HAS_WIDTH = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
out = Output(highlight=False, markup=False, width=None if _HAS_WIDTH else 1000)
err = Output(stderr=True, highlight=False, markup=False)

StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage",
        envvar="HPOPT_STORAGE",
        show_envvar=True,
        help="URL of a PostgreSQL database; the embedded one if not given.",
    ),
]
HomeOption = Annotated[
    Path,
    typer.Option("--home", envvar="HPOPT_HOME", help="Folder of the embedded database, prepared data and checkpoints."),
]
FileArgument = Annotated[Path, typer.Argument(help="A study file (TOML).", show_default=False)]
StudyArgument = Annotated[str, typer.Argument(help="Name of a study.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
HeartbeatOption = Annotated[float, typer.Option("--heartbeat-every", min=0.1, help="Seconds between heartbeats.")]
StaleOption = Annotated[
    float,
    typer.Option("--stale-after", min=0.5, help="Seconds after the last heartbeat when an attempt is marked as lost."),
]
GiveUpOption = Annotated[
    float,
    typer.Option("--give-up-after", min=1, help="Seconds after which a worker exits if the database is unreachable."),
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, or auto: the GPU if there is one.")]

HOME = Path(".hpopt")
