"""Owns the verbs that steer a study while it runs. Leaves the other verbs about studies to verbs.py."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpopt.cli.options import HOME, HomeOption, StorageOption, StudyArgument, out

if TYPE_CHECKING:
    from hpopt.storage.control import State
    from hpopt.storage.database import Database
    from hpopt.storage.studies import Study


def pause(
    study: StudyArgument,
    reason: Annotated[str | None, typer.Option("--reason", help="Why, for everybody who asks.")] = None,
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Let workers hand back their trials with checkpoints, and wait."""
    from hpopt.storage import control

    _steer(study, storage, home, lambda database, found: control.pause(database, found, reason))


def resume(study: StudyArgument, storage: StorageOption = None, home: HomeOption = HOME) -> None:
    """Let workers go on with a study that is paused or stopped."""
    from hpopt.storage import control

    _steer(study, storage, home, control.resume)


def stop(study: StudyArgument, storage: StorageOption = None, home: HomeOption = HOME) -> None:
    """End a study with what it has; `hpopt resume` opens it again."""
    from hpopt.storage import control

    _steer(study, storage, home, control.stop)


def enqueue(
    study: StudyArgument,
    params: Annotated[
        list[str],
        typer.Argument(metavar="NAME=VALUE...", help="What is left out is sampled.", show_default=False),
    ],
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Let a configuration be tried next."""
    from hpopt.cli.assignments import read_assignments
    from hpopt.storage import control
    from hpopt.storage.connect import open_database
    from hpopt.storage.studies import load_study
    from hpopt.terminal.status import enqueued_line

    with open_database(storage, home) as database:
        found = load_study(database, study)
        wanted = read_assignments(params, found.file)
        added = control.enqueue(database, found, wanted)
        state = control.find_state(database, found).state
    if not added.is_new:
        out.print(f"already enqueued or tried as trial {added.trial}")
        return
    sampled = [name for name in found.file.search_space if name not in wanted]
    line = enqueued_line(study, state, sampled, n_ahead=added.n_ahead, ends_before=added.ends_before)
    out.print(line, soft_wrap=True)


def _steer(name: str, storage: str | None, home: Path, turn: "Callable[[Database, Study], State]") -> None:
    """Turn a study and say in one line what holds now."""
    from hpopt.storage.connect import open_database
    from hpopt.storage.studies import load_study
    from hpopt.terminal.status import state_line

    with open_database(storage, home) as database:
        now = turn(database, load_study(database, name))
    out.print(state_line(name, now.state, n_running=now.n_running, n_to_retry=now.n_to_retry), soft_wrap=True)
