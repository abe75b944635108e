"""Owns the verbs about studies. Leaves steering them to steering.py, and the verbs about the database to database.py.

Each verb imports what it needs when it runs, so that --help and check stay instant.
"""

import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpopt.cli.options import (
    HOME,
    DeviceOption,
    FileArgument,
    GiveUpOption,
    HeartbeatOption,
    HomeOption,
    JsonOption,
    PipeClosedError,
    StaleOption,
    StorageOption,
    StudyArgument,
    err,
    out,
)
from hpopt.errors import (
    DatabaseError,
    DatabaseLostError,
    HpoptError,
    InputError,
    Interrupted,
    NoAnswerError,
    did_you_mean,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from hpopt.analysis.progress import Progress
    from hpopt.storage.database import Database
    from hpopt.storage.studies import Study


def run(
    file: FileArgument,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes; one a GPU, or half the cores, if not given.")
    ] = None,
    heartbeat_every: HeartbeatOption = 5.0,
    stale_after: StaleOption = 20.0,
    give_up_after: GiveUpOption = 900.0,
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Do everything on this machine: database, study, workers, progress, answer."""
    from hpopt.launch.local import LocalWorkers, count_cores, list_gpus
    from hpopt.report.terminal import answer
    from hpopt.storage import queries
    from hpopt.storage.opening import open_database
    from hpopt.watch import has_work, watch

    text = _read(file)
    _check_patience(heartbeat_every, stale_after)
    stop = _stop_on_signals()
    patience = {"--heartbeat-every": heartbeat_every, "--stale-after": stale_after, "--give-up-after": give_up_after}
    with open_database(storage, home, make=True) as database:
        study = _create(database, text, str(file))
        n_workers = workers or len(list_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))) or max(1, count_cores() // 2)
        environment = {**os.environ, "HPOPT_STORAGE": database.url, "HPOPT_HOME": str(home.absolute())}
        command = ["worker", study.name, *(word for option in patience.items() for word in map(str, option))]
        logs = home / "logs" / study.name
        progress = queries.progress(database, study)
        if progress.over is None and progress.books.state == "open":
            with LocalWorkers(command, n_workers, environment, logs) as fleet:
                watch(database, study, err, stop, lambda: fleet.tend() and has_work(database, study))
            progress = _progress_now(database, study)
        _refuse_paused(progress)
        out.print(answer(progress, study.file))
    is_over = progress.over is not None or progress.books.state == "stopped"
    if is_over and progress.best is None:
        raise NoAnswerError(f"study '{study.name}' ended without a completed trial; the workers' logs are in {logs}")
    if not is_over:
        raise Interrupted(f"stopped with {progress.books.n_ended} trials done; the same command goes on from here")


def _refuse_paused(progress: "Progress") -> None:
    """Raise HpoptError for a study that somebody, or a run of failures, has paused."""
    from hpopt.report.standing import paused_line

    if progress.over is None and progress.books.state == "paused":
        raise HpoptError(paused_line(progress.name, progress.books.state_reason))


def _progress_now(database: "Database", study: "Study") -> "Progress":
    from hpopt.storage import queries

    try:
        return queries.progress(database, study)
    except DatabaseError as error:
        raise DatabaseLostError(f"lost the database: {error}; the same command goes on from here") from error


def create(file: FileArgument, storage: StorageOption = None, home: HomeOption = HOME) -> None:
    """Register a study, or take over the budget of a changed file."""
    from hpopt.storage.opening import open_database

    text = _read(file)
    with open_database(storage, home, make=True) as database:
        study = _create(database, text, str(file))
    out.print(study.name)


def check(file: FileArgument) -> None:
    """Validate a study file, print the plan and what it may cost, touch nothing."""
    from hpopt.report.terminal import plan_view
    from hpopt.study.reading import read_study_file

    out.print(plan_view(read_study_file(file)))


def worker(
    study: StudyArgument,
    storage: StorageOption = None,
    home: HomeOption = HOME,
    device: DeviceOption = "auto",
    heartbeat_every: HeartbeatOption = 15.0,
    stale_after: StaleOption = 60.0,
    give_up_after: GiveUpOption = 900.0,
    stop_with_parent: Annotated[bool, typer.Option("--stop-with-parent", hidden=True)] = False,
) -> None:
    """Pull trials until the budget of the study is spent."""
    from hpopt.cli.patience import open_study_patiently
    from hpopt.go import Settings
    from hpopt.storage.database import limit_waits
    from hpopt.worker import find_device, work

    _check_patience(heartbeat_every, stale_after)
    limit_waits()
    stop = _stop_on_signals()
    if stop_with_parent:
        threading.Thread(target=_stop_at_end_of_input, args=(stop,), daemon=True).start()
    say = _say_until_nobody_listens(stop)
    settings = Settings(
        home=home.absolute(),
        device=find_device(device),
        heartbeat_every_s=heartbeat_every,
        stale_after_s=stale_after,
        give_up_after_s=give_up_after,
        say=say,
        stop=stop,
    )
    with open_study_patiently(storage, home, study, stop, say) as (database, found):
        err.print(f"over: {work(database, found, settings)}")


def status(
    study: Annotated[
        str | None, typer.Argument(help="Name of a study; all of them if not given.", show_default=False)
    ] = None,
    follow: Annotated[bool, typer.Option("--watch", help="Follow the study until it is over.")] = False,
    as_json: JsonOption = False,
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Show trials, workers, budget spent and the best so far."""
    from hpopt.report.standing import overview, standing
    from hpopt.report.text import progress_as_json
    from hpopt.storage import queries, studies
    from hpopt.storage.opening import open_database
    from hpopt.watch import N_ENDED_SHOWN, seconds_left

    if follow and study is None:
        raise InputError("--watch: name the study to follow")
    with open_database(storage, home) as database:
        names = studies.study_names(database) if study is None else [study]
        found = [_load(database, name) for name in names]
        if follow:
            _follow(database, found[0])
        shown = [queries.progress(database, each) for each in found]
        if as_json:
            out.write(progress_as_json(shown[0]) if study else f"[{', '.join(map(progress_as_json, shown))}]")
        elif study:
            left = seconds_left(shown[0], found[0].file.budget.wall_hours)
            out.print(standing(shown[0], queries.ended_trials(database, found[0], last=N_ENDED_SHOWN), left))
        else:
            out.print(overview(shown))


def _follow(database: "Database", study: "Study") -> None:
    from hpopt.storage import books
    from hpopt.watch import watch

    def is_running() -> bool:
        try:
            return books.finished(study, books.read_books(database, study)) is None
        except DatabaseError:
            return True

    watch(database, study, err, _stop_on_signals(), is_running)


def best(
    study: StudyArgument,
    form: Annotated[str, typer.Option("--format", help="table, json, toml, yaml, env or args.")] = "table",
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Print the best parameters; exit code 3 while there is no answer."""
    from hpopt.hyperparameters import not_one_of
    from hpopt.report.terminal import answer
    from hpopt.report.text import PARAMS_AS, best_as_json
    from hpopt.storage import queries
    from hpopt.storage.opening import open_database

    forms = ("table", "json", *PARAMS_AS)
    if form not in forms:
        raise InputError(f"--format: {not_one_of(form, forms)}")
    with open_database(storage, home) as database:
        found = _load(database, study)
        answered = queries.best(database, found)
        if form == "table":
            out.print(answer(queries.progress(database, found), found.file))
        else:
            out.write(best_as_json(answered) if form == "json" else PARAMS_AS[form](answered.params))


def report(
    study: StudyArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("report"),
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Write a page, figures, tables and insights.json."""
    from hpopt.report.folder import write_report
    from hpopt.storage import queries
    from hpopt.storage.opening import open_database

    with open_database(storage, home) as database:
        table = queries.read_table(database, _load(database, study))
    for path in write_report(table, output):
        out.print(str(path), soft_wrap=True)


def dashboard(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8080,
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Serve optuna-dashboard on the database until Ctrl-C."""
    from hpopt.dashboard import serve
    from hpopt.storage.opening import open_database

    with open_database(storage, home) as database:
        serve(database, host, port, err.print)


def params(
    name: Annotated[
        str | None, typer.Argument(help="One hyperparameter; all of them if not given.", show_default=False)
    ] = None,
) -> None:
    """Explain the hyperparameters that hpopt knows."""
    from hpopt.hyperparameters import HYPERPARAMETERS
    from hpopt.report.terminal import dictionary, entry_page

    if name is None:
        out.print(dictionary(list(HYPERPARAMETERS.values())))
    elif name in HYPERPARAMETERS:
        out.print(entry_page(HYPERPARAMETERS[name]))
    else:
        raise InputError(f"no hyperparameter '{name}'{did_you_mean(name, HYPERPARAMETERS)}")


def _check_patience(heartbeat_every: float, stale_after: float) -> None:
    # Half of it must be longer than the time between two heartbeats, by which a worker knows that it was cut off.
    if stale_after < 3 * heartbeat_every:
        raise InputError(f"--stale-after: {stale_after:g} s is below three heartbeats of {heartbeat_every:g} s")


def _read(file: Path) -> str:
    """Give the text of a study file that is in order; raises StudyFileError."""
    from hpopt.study.reading import read_study_file

    read_study_file(file)
    return file.read_text(encoding="utf-8-sig")


def _create(database: "Database", text: str, source: str) -> "Study":
    from hpopt.storage.studies import create_study

    return create_study(database, text, source)


def _load(database: "Database", name: str) -> "Study":
    from hpopt.storage.studies import load_study

    return load_study(database, name)


def _stop_on_signals() -> threading.Event:
    """Turn SIGTERM and the first Ctrl-C into an event, and a Ctrl-C after that into an end at once.

    Schedulers repeat SIGTERM while a checkpoint is being written; only a person is impatient.
    """
    stop = threading.Event()

    def ask_to_stop(number: int, _frame: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise Interrupted("ended at once; what was running goes back to the queue")
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask_to_stop)
    return stop


def _say_until_nobody_listens(stop: threading.Event) -> "Callable[[str], None]":
    """Give what prints a line of a worker; when its reader has left, the worker hands back its trial and ends."""

    def say(line: str) -> None:
        try:
            err.print(line, soft_wrap=True)
        except PipeClosedError:
            stop.set()

    return say


def _stop_at_end_of_input(stop: threading.Event) -> None:
    # Not through sys.stdin: its lock would be held at exit, which Python takes for a deadlock.
    while os.read(0, 1024):
        continue
    stop.set()
