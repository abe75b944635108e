"""Owns the command line: verbs, exit codes, what goes to which output. The only reader of the environment.

Each verb imports what it needs when it runs, so that --help and check stay instant.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

from hpopt.errors import DatabaseError, HpoptError, InputError, Interrupted, did_you_mean

if TYPE_CHECKING:
    from hpopt.storage.database import Database
    from hpopt.storage.studies import Study

app = typer.Typer(
    name="hpopt",
    help="Find the hyperparameters of a training run with a fleet of workers and a Postgres.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
db_app = typer.Typer(help="The database: the embedded server, the migrations, and SQL.", no_args_is_help=True)
app.add_typer(db_app, name="db")

# A file or a pipe has no width that a table should be cut to.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True, highlight=False)

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
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, or auto: the GPU where there is one.")]

HOME = Path(".hpopt")


@app.command()
def run(
    file: FileArgument,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes; one a GPU, or half the cores, if not given.")
    ] = None,
    heartbeat_every: HeartbeatOption = 5.0,
    stale_after: StaleOption = 20.0,
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Do everything on this machine: database, study, workers, progress, answer."""
    from hpopt.launch.local import LocalWorkers, count_gpus
    from hpopt.report.terminal import answer
    from hpopt.storage import queries
    from hpopt.watch import watch

    text = _read(file)
    stop = _stop_on_signals()
    with _open(storage, home, make=True) as database:
        study = _create(database, text, str(file))
        n_workers = workers or count_gpus() or max(1, (os.cpu_count() or 1) // 2)
        environment = {**os.environ, "HPOPT_STORAGE": database.url, "HPOPT_HOME": str(home.absolute())}
        patience = ["--heartbeat-every", str(heartbeat_every), "--stale-after", str(stale_after)]
        command = ["worker", study.name, *patience]
        progress = queries.progress(database, study)
        if progress.over is None:
            with LocalWorkers(command, n_workers, environment, home / "logs" / study.name) as fleet:
                watch(database, study, err, stop, fleet.tend)
            progress = queries.progress(database, study)
        out.print(answer(progress, study.file.search_space))
    if progress.over is None:
        raise Interrupted(f"stopped with {progress.books.n_ended} trials done; the same command goes on from here")


@app.command()
def create(file: FileArgument, storage: StorageOption = None, home: HomeOption = HOME) -> None:
    """Register a study, or take over the budget of a changed file."""
    text = _read(file)
    with _open(storage, home, make=True) as database:
        study = _create(database, text, str(file))
    out.print(study.name)


@app.command()
def check(file: FileArgument) -> None:
    """Validate a study file, print the plan and what it may cost, touch nothing."""
    from hpopt.report.terminal import plan_view
    from hpopt.study import read_study_file

    out.print(plan_view(read_study_file(file)))


@app.command()
def worker(
    study: StudyArgument,
    storage: StorageOption = None,
    home: HomeOption = HOME,
    device: DeviceOption = "auto",
    heartbeat_every: HeartbeatOption = 15.0,
    stale_after: StaleOption = 60.0,
    stop_with_parent: Annotated[bool, typer.Option("--stop-with-parent", hidden=True)] = False,
) -> None:
    """Pull trials until the budget of the study is spent."""
    from hpopt.worker import Settings, find_device, work

    stop = _stop_on_signals()
    if stop_with_parent:
        threading.Thread(target=_stop_at_end_of_input, args=(stop,), daemon=True).start()
    settings = Settings(
        home=home.absolute(),
        device=find_device(device),
        heartbeat_every_s=heartbeat_every,
        stale_after_s=stale_after,
        say=lambda line: err.print(line, soft_wrap=True),
        stop=stop,
    )
    with _open(storage, home) as database:
        err.print(f"over: {work(database, _load(database, study), settings)}")


@app.command()
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
    from hpopt.report.terminal import overview, progress_as_json, standing
    from hpopt.storage import queries, studies
    from hpopt.watch import seconds_left, watch

    stop = _stop_on_signals()
    with _open(storage, home) as database:
        names = studies.study_names(database) if study is None else [study]
        found = [_load(database, name) for name in names]
        if follow and found:
            watch(database, found[0], err, stop, lambda: queries.progress(database, found[0]).over is None)
        shown = [queries.progress(database, each) for each in found]
        if as_json:
            print(progress_as_json(shown[0]) if study else f"[{', '.join(map(progress_as_json, shown))}]")  # noqa: T201 - rich would wrap it.
        elif study:
            left = seconds_left(shown[0], found[0].file.budget.wall_hours)
            out.print(standing(shown[0], queries.ended_trials(database, found[0]), left))
        else:
            out.print(overview(shown))


@app.command()
def best(
    study: StudyArgument,
    form: Annotated[str, typer.Option("--format", help="table, json, toml, yaml, env or args.")] = "table",
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Print the best parameters; exit code 3 while there is no answer."""
    from hpopt.report.terminal import PARAMS_AS, answer, best_as_json
    from hpopt.storage import queries

    forms = ("table", "json", *PARAMS_AS)
    if form not in forms:
        raise InputError(f"--format: '{form}' is not one of {', '.join(forms)}{did_you_mean(form, forms)}")
    with _open(storage, home) as database:
        found = _load(database, study)
        answered = queries.best(database, found)
        if form == "table":
            out.print(answer(queries.progress(database, found), found.file.search_space))
        else:
            print(best_as_json(answered) if form == "json" else PARAMS_AS[form](answered.params))  # noqa: T201 - rich would wrap it.


@app.command()
def report(
    study: StudyArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("report"),
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Write a page, figures, tables and insights.json."""
    from hpopt.report.folder import write_report
    from hpopt.storage import queries

    with _open(storage, home) as database:
        table = queries.read_table(database, _load(database, study))
    for path in write_report(table, output):
        out.print(str(path), soft_wrap=True)


@app.command()
def dashboard(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8080,
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Serve optuna-dashboard on the database until Ctrl-C."""
    from hpopt.dashboard import serve

    with _open(storage, home) as database:
        err.print(f"dashboard on http://{host}:{port}/dashboard (Ctrl-C ends it)")
        serve(database.url, host, port)


@app.command()
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


@db_app.command("start")
def db_start(
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port; a free one if not given.")] = None,
    home: HomeOption = HOME,
) -> None:
    """Start the embedded server and leave it running."""
    from hpopt import embedded
    from hpopt.storage.database import Database

    out.print(Database(embedded.start(home, port)).address, soft_wrap=True)


@db_app.command("stop")
def db_stop(home: HomeOption = HOME) -> None:
    """Stop the embedded server."""
    from hpopt import embedded

    out.print("stopped" if embedded.stop(home) else "was not running")


@db_app.command("upgrade")
def db_upgrade(storage: StorageOption = None, home: HomeOption = HOME) -> None:
    """Bring the tables to the version of this hpopt."""
    with _open(storage, home, make=True) as database:
        out.print(f"{database.address} is up to date", soft_wrap=True)


@db_app.command("url")
def db_url(storage: StorageOption = None, home: HomeOption = HOME) -> None:
    """Print the whole URL, password included, for psql and other programs."""
    from hpopt import embedded

    url = storage or embedded.running_url(home)
    if url is None:
        raise DatabaseError(f"{home}: no server is running; start one with `hpopt db start`")
    print(url.replace("postgresql+psycopg2://", "postgresql://"))  # noqa: T201 - rich would wrap it.


@db_app.command("sql")
def db_sql(
    query: Annotated[str, typer.Argument(help="A query, e.g. 'select * from hpopt.best_params'.", show_default=False)],
    as_json: JsonOption = False,
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Run a query that changes nothing and print its rows."""
    from hpopt.report.terminal import rows_as_json, rows_table
    from hpopt.storage import queries

    with _open(storage, home) as database:
        names, rows = queries.read_rows(database, query)
    if as_json:
        print(rows_as_json(names, rows))  # noqa: T201 - rich would wrap it.
    else:
        out.print(rows_table(names, rows))


def main() -> None:
    """Run the command line: one line to standard error for what goes wrong, a traceback only under --debug."""
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
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", Interrupted.exit_code)
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


@contextmanager
def _open(storage: str | None, home: Path, *, make: bool = False) -> Iterator["Database"]:
    """Open the database of a command, migrated if `make`.

    The embedded server is started if it does not run, and stopped afterwards if this command started it and nobody
    else uses it.
    """
    from hpopt import embedded
    from hpopt.storage import migrate
    from hpopt.storage.database import Database

    if storage is not None:
        database = Database(storage)
        (migrate.upgrade if make else migrate.require_current)(database)
        yield database
        return
    if not make and not embedded.exists(home):
        raise DatabaseError(f"{home}: no database here yet; `hpopt run FILE` makes one, --storage names another")
    started = embedded.running_url(home) is None
    with embedded.use(home):
        database = Database(embedded.start(home))
        (migrate.upgrade if make else migrate.require_current)(database)
        yield database
        database.close()
    if started:
        embedded.stop_if_unused(home)


def _read(file: Path) -> str:
    """Give the text of a study file that is in order; raises StudyFileError."""
    from hpopt.study import read_study_file

    read_study_file(file)
    return file.read_text(encoding="utf-8")


def _create(database: "Database", text: str, source: str) -> "Study":
    from hpopt.storage.studies import create_study

    return create_study(database, text, source)


def _load(database: "Database", name: str) -> "Study":
    from hpopt.storage.studies import load_study

    return load_study(database, name)


def _stop_on_signals() -> threading.Event:
    """Turn the first SIGTERM or Ctrl-C into an event, and the second into an end at once."""
    stop = threading.Event()

    def ask_to_stop(number: int, _frame: object) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask_to_stop)
    return stop


def _stop_at_end_of_input(stop: threading.Event) -> None:
    # Not through sys.stdin: its lock would be held at exit, which Python takes for a deadlock.
    while os.read(0, 1024):
        continue
    stop.set()
