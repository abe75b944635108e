"""Owns the verbs that make studies, show them and answer from them.

Leaves working on them to working.py and launching.py, steering to steering.py, and the database's verbs to database.py.

Each verb imports what it needs when it runs, so that --help and check stay instant.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpopt.cli.findings import findings_of, kept_findings_of, show_findings
from hpopt.cli.options import (
    HOME,
    FileArgument,
    HomeOption,
    JsonOption,
    StorageOption,
    StudyArgument,
    err,
    out,
)
from hpopt.errors import DatabaseError, InputError, did_you_mean

if TYPE_CHECKING:
    from hpopt.storage.database import Database
    from hpopt.storage.studies import Study


def create(file: FileArgument, storage: StorageOption = None, home: HomeOption = HOME) -> None:
    """Register a study, or take over the budget of a changed file."""
    from hpopt.storage.connect import open_database
    from hpopt.storage.studies import create_study
    from hpopt.study.reading import read_study_text

    text = read_study_text(file)
    with open_database(storage, home, make=True) as database:
        study = create_study(database, text, str(file))
    out.print(study.name)


def check(file: FileArgument) -> None:
    """Validate a study file, print the plan and what it may cost, touch nothing."""
    from hpopt.study.reading import read_study_file
    from hpopt.terminal.answer import plan_view

    out.print(plan_view(read_study_file(file)))


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
    from hpopt.storage import queries, studies
    from hpopt.storage.connect import open_database
    from hpopt.terminal.exports import progress_as_json
    from hpopt.terminal.status import overview, standing
    from hpopt.terminal.watch import N_ENDED_SHOWN, seconds_left

    if follow and study is None:
        raise InputError("--watch: name the study to follow")
    with open_database(storage, home) as database:
        names = studies.study_names(database) if study is None else [study]
        found = [_load(database, name) for name in names]
        if follow:
            _follow(database, found[0])
        shown = [queries.progress(database, each) for each in found]
        if study is None:
            out.write(f"[{', '.join(map(progress_as_json, shown))}]") if as_json else out.print(overview(shown))
            return
        told = kept_findings_of(database, shown[0], found[0])
        if as_json:
            out.write(progress_as_json(shown[0], told))
            return
        left = seconds_left(shown[0], found[0].file.budget.wall_hours)
        out.print(standing(shown[0], queries.ended_trials(database, found[0], last=N_ENDED_SHOWN), left))
        show_findings(told)


def _follow(database: "Database", study: "Study") -> None:
    from hpopt.cli.run import stop_on_signals
    from hpopt.storage import budget
    from hpopt.terminal.watch import watch

    def is_running() -> bool:
        try:
            return budget.finished(study, budget.read_books(database, study)) is None
        except DatabaseError:
            return True

    watch(database, study, err, stop_on_signals(), is_running)


def best(
    study: StudyArgument,
    form: Annotated[str, typer.Option("--format", help="table, json, toml, yaml, env or args.")] = "table",
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Print the best parameters; exit code 3 while there is no answer."""
    from hpopt.hyperparameters import not_one_of
    from hpopt.storage import queries
    from hpopt.storage.connect import open_database
    from hpopt.terminal.answer import answer
    from hpopt.terminal.exports import PARAMS_AS, best_as_json

    forms = ("table", "json", *PARAMS_AS)
    if form not in forms:
        raise InputError(f"--format: {not_one_of(form, forms)}")
    with open_database(storage, home) as database:
        found = _load(database, study)
        answered = queries.best(database, found)
        if form == "table":
            out.print(answer(queries.progress(database, found), found.file))
            show_findings(findings_of(database, found))
            return
        told = findings_of(database, found)
        for error in (each for each in told if each.severity == "error"):
            err.print(f"error: {error.message}", soft_wrap=True)
        out.write(best_as_json(answered, told) if form == "json" else PARAMS_AS[form](answered.params))


def report(
    study: StudyArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("report"),
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Write a page, figures, tables and insights.json."""
    from hpopt.reporting.folder import write_report
    from hpopt.reporting.summary import summarize
    from hpopt.storage import findings, queries
    from hpopt.storage.connect import open_database

    with open_database(storage, home) as database:
        found = _load(database, study)
        with err.working("reading the trials"):
            table = queries.read_table(database, found)
        with err.working(f"analysing {len(table.trials):,} trials"):
            summary = summarize(table)
        n_ended = sum(row.outcome is not None for row in table.trials)
        findings.keep(database, found, summary.findings, n_ended=n_ended)
    with err.working("drawing figures"):
        written = write_report(table, summary, output)
    for path in written:
        out.print(str(path), soft_wrap=True)
    show_findings(summary.findings, err)


def dashboard(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8080,
    password_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the password of user hpopt, else HPOPT_DASHBOARD_PASSWORD; "
            "needed where other machines can reach the dashboard."
        ),
    ] = None,
    writable: Annotated[bool, typer.Option("--writable", help="Let those with the password change studies.")] = False,
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Serve optuna-dashboard on the database until Ctrl-C."""
    from hpopt.cli.auth import read_password
    from hpopt.dashboard.server import serve
    from hpopt.storage.connect import open_database

    password = read_password(password_file)
    with open_database(storage, home) as database:
        serve(database, host, port, err.write, password=password, writable=writable)


def params(
    name: Annotated[
        str | None, typer.Argument(help="One hyperparameter; all of them if not given.", show_default=False)
    ] = None,
) -> None:
    """Explain the hyperparameters that hpopt knows."""
    from hpopt.hyperparameters import HYPERPARAMETERS
    from hpopt.terminal.answer import dictionary, entry_page

    if name is None:
        out.print(dictionary(list(HYPERPARAMETERS.values())))
    elif name in HYPERPARAMETERS:
        out.print(entry_page(HYPERPARAMETERS[name]))
    else:
        raise InputError(f"no hyperparameter '{name}'{did_you_mean(name, HYPERPARAMETERS)}")


def _load(database: "Database", name: str) -> "Study":
    from hpopt.storage.studies import load_study

    return load_study(database, name)
