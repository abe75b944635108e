"""Commands that change a running study: pause, resume, stop, retry, enqueue and confirm."""

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpopt.cli.options import HOME, HomeOption, StorageOption, StudyArgument, out
from hpopt.errors import ConfigError, InputError
from hpopt.formats import join_words
from hpopt.hyperparameters import LARGEST_INT, Scalar

if TYPE_CHECKING:
    from hpopt.search.space import Range
    from hpopt.storage.database import Database
    from hpopt.storage.progress import StudyState
    from hpopt.storage.studies import Study


def pause(
    study: StudyArgument,
    reason: Annotated[str | None, typer.Option("--reason", help="Why, shown by status.")] = None,
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Pause a study: running trials return to the queue with checkpoints."""
    from hpopt.storage import control

    _change(study, storage, home, lambda database, row: control.pause(database, row, reason))


def resume(study: StudyArgument, storage: StorageOption = None, home: HomeOption = HOME) -> None:
    """Resume a study that is paused or stopped."""
    from hpopt.storage import control

    _change(study, storage, home, control.resume)


def stop(study: StudyArgument, storage: StorageOption = None, home: HomeOption = HOME) -> None:
    """Stop a study at the next evaluations; `hpopt resume` opens it again."""
    from hpopt.storage import control

    _change(study, storage, home, control.stop)


def retry(
    study: StudyArgument,
    trials: Annotated[list[int] | None, typer.Argument(help="Numbers of failed trials.", show_default=False)] = None,
    failed: Annotated[bool, typer.Option("--failed", help="All trials that have failed.")] = False,
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Run failed trials again, with their parameters and seeds."""
    from hpopt.storage import control
    from hpopt.storage.connect import open_database
    from hpopt.storage.studies import load_study
    from hpopt.terminal.status import describe_state

    if failed == bool(trials):
        raise InputError("expected the numbers of failed trials, or --failed for all of them")
    with open_database(storage, home) as database:
        n_requeued, now = control.retry(database, load_study(database, study), trials)
    none = "" if n_requeued else "no trial has failed; "
    out.print(none + describe_state(study, now), soft_wrap=True)


def enqueue(
    study: StudyArgument,
    params: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME=VALUE...",
            help="Parameters, and the seed if it is not the default. Parameters left out are sampled.",
            show_default=False,
        ),
    ] = None,
    trial: Annotated[int | None, typer.Option(help="Take the parameters of this trial.", show_default=False)] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Run it so many times, with seeds that no trial of it has.")
    ] = None,
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Enqueue a configuration to try next. A configuration and a seed are tried once."""
    from hpopt.search.conditions import active_params, find_missing
    from hpopt.storage import control
    from hpopt.storage.connect import open_database
    from hpopt.storage.studies import load_study
    from hpopt.terminal.status import describe_enqueued

    assignments, seed = _split_seed(params or ())
    if seed is not None and seeds is not None:
        raise InputError("--seeds: the seeds are chosen; remove seed or --seeds")
    if not assignments and trial is None:
        raise InputError("expected NAME=VALUE, or --trial")
    with open_database(storage, home) as database:
        row = load_study(database, study)
        control.refuse_arms(row)
        space = row.file.search_space
        given = parse_assignments(assignments, space)
        values = ({} if trial is None else control.params_of(database, row, trial)) | given
        values = active_params(space, values) | given
        _check_space(space, values)
        sampled = find_missing(space, values)
        if seeds is not None and sampled:
            raise InputError(
                f"--seeds: {sampled[0]} would be sampled, so that no two trials have one configuration; "
                f"give {join_words([f'{name}=VALUE' for name in sampled])} too, or all parameters of a trial by --trial"
            )
        added = control.enqueue(database, row, values, seed=seed, n_fresh_seeds=seeds)
        state = control.read_state(database, row).state
    out.print(describe_enqueued(study, state, sampled, added), soft_wrap=True)


def confirm(
    study: StudyArgument,
    top: Annotated[int, typer.Option(min=2, help="How many of the best configurations.")] = 3,
    seeds: Annotated[int, typer.Option(min=2, max=1000, help="Fresh seeds, the same for all.")] = 4,
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Run the best configurations again with fresh seeds, or add seeds to those that did."""
    from hpopt.storage import confirmation
    from hpopt.storage.connect import open_database
    from hpopt.storage.studies import load_study
    from hpopt.study.file import Confirm
    from hpopt.terminal.status import describe_confirmation

    with open_database(storage, home) as database:
        child = confirmation.create_confirmation(database, load_study(database, study), Confirm(top=top, seeds=seeds))
    out.print(describe_confirmation(study, child, seeds), soft_wrap=True)


def _split_seed(params: Sequence[str]) -> tuple[list[str], int | None]:
    """Return the assignments of parameters, and the seed of the last seed=VALUE, if any. Raises InputError."""
    assignments = [assignment for assignment in params if not assignment.startswith("seed=")]
    seeds = [assignment.removeprefix("seed=") for assignment in params if assignment.startswith("seed=")]
    if not seeds:
        return assignments, None
    if not (seeds[-1].isascii() and seeds[-1].isdigit() and int(seeds[-1]) <= LARGEST_INT):
        raise InputError(f"seed: '{seeds[-1]}' is not a whole number of at least 0")
    return assignments, int(seeds[-1])


def _check_space(space: "Mapping[str, Range]", params: Mapping[str, Scalar]) -> None:
    """Raise InputError for a parameter that is not searched, or a value outside of its range."""
    from hpopt.study.checks import check_params

    try:
        check_params(space, params)
    except ConfigError as error:
        raise InputError(str(error)) from error


def parse_assignments(assignments: Sequence[str], space: "Mapping[str, Range]") -> dict[str, Scalar]:
    """Parse NAME=VALUE arguments of parameters of a search space, in their order. Raises InputError."""
    from hpopt.search.space import as_sampled

    params: dict[str, Scalar] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise InputError(f"expected NAME=VALUE, got '{assignment}'")
        if name in params:
            raise InputError(f"{name}: given twice, as {params[name]!r} and as {value}")
        params[name] = _parse_value(value, space.get(name))
    _check_space(space, params)
    return {name: as_sampled(space[name], value) for name, value in params.items()}


def _parse_value(text: str, searched: "Range | None") -> Scalar:
    """Parse one value of TOML; anything else, such as a bare word, is a string."""
    from hpopt.search.space import Categorical, Float

    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        # TOML has no .5 and no 5.
        return float(text) if isinstance(searched, Float) and re.fullmatch(r"[-+]?(\.\d+|\d+\.)", text) else text
    value = parsed["value"]
    is_scalar = len(parsed) == 1 and isinstance(value, bool | int | float | str)
    # A choice "1" can be typed as it is shown, without quotes.
    is_bare_choice = isinstance(searched, Categorical) and not searched.contains(value) and searched.contains(text)
    return value if is_scalar and not is_bare_choice else text


def _change(name: str, storage: str | None, home: Path, change: "Callable[[Database, Study], StudyState]") -> None:
    """Change the state of a study and print it."""
    from hpopt.storage.connect import open_database
    from hpopt.storage.studies import load_study
    from hpopt.terminal.status import describe_state

    with open_database(storage, home) as database:
        now = change(database, load_study(database, name))
    out.print(describe_state(name, now), soft_wrap=True)
