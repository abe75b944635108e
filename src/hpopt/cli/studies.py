"""Commands that create studies, show them and answer from them.

Each command imports what it needs when it runs, so that `--help` and `check` are fast.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpopt.cli.compare import answer_comparison
from hpopt.cli.options import (
    HOME,
    FileArgument,
    HomeOption,
    JsonOption,
    Output,
    StorageOption,
    StudyArgument,
    err,
    out,
)
from hpopt.errors import DatabaseError, HpoptError, InputError, StudyFileError, did_you_mean
from hpopt.formats import format_count

if TYPE_CHECKING:
    from hpopt.findings.finding import Finding
    from hpopt.storage.database import Database
    from hpopt.storage.progress import Progress
    from hpopt.storage.studies import Study


def create(file: FileArgument, storage: StorageOption = None, home: HomeOption = HOME) -> None:
    """Create a study, or update its budget from a changed file."""
    from hpopt.storage.connect import open_database
    from hpopt.storage.studies import create_study
    from hpopt.study.reading import read_study_file

    source = read_study_file(file)
    with open_database(storage, home, create=True) as database:
        study = create_study(database, source, log=print_change)
    out.print(study.name)


def print_change(line: str) -> None:
    """Print what changes in an existing study, on standard error."""
    err.print(f"changed: {line}", soft_wrap=True)


def delete(
    study: StudyArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Delete it although workers are alive, which then exit.")
    ] = False,
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Delete a study with its trials, and their files on this machine."""
    import shutil

    from hpopt.storage.connect import open_database
    from hpopt.storage.deletion import delete_study, read_content
    from hpopt.storage.studies import run_folder

    with open_database(storage, home) as database:
        content = read_content(database, study)
        if content.n_alive and not force:
            alive = format_count(content.n_alive, "running worker")
            raise InputError(f"study '{study}' has {alive}; `hpopt stop {study}` ends them, or pass --force")
        folders = [run_folder(home, name, created_at) for name, created_at in content.family]
        workers = f" and {format_count(content.n_alive, 'running worker')}" if content.n_alive else ""
        files = "".join(f", and {folder}" for folder in folders if folder.is_dir())
        what = f"study '{study}' with {format_count(content.n_trials, 'trial')}{workers} in {database.address}{files}"
        if not yes:
            if not sys.stdin.isatty():
                raise InputError(f"--yes: required where nobody can be asked; deletes {what}")
            if not typer.confirm(f"Delete {what}?", err=True):
                raise HpoptError("nothing was deleted")
        delete_study(database, content.study_id)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
    out.print(f"deleted {what}", soft_wrap=True)


def status(
    study: Annotated[
        str | None, typer.Argument(help="Name of a study; all of them if not given.", show_default=False)
    ] = None,
    follow: Annotated[bool, typer.Option("--watch", help="Follow the study until it has finished.")] = False,
    as_json: JsonOption = False,
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Show trials, workers, budget spent and the best so far."""
    from hpopt.storage.connect import open_database
    from hpopt.storage.studies import load_study

    if follow and study is None:
        raise InputError("--watch: name the study to follow")
    with open_database(storage, home) as database:
        if study is None:
            _show_all(database, as_json=as_json)
            return
        row = load_study(database, study)
        if follow:
            _follow(database, row)
        _show_one(database, row, as_json=as_json)


def best(
    study: StudyArgument,
    output_format: Annotated[str, typer.Option("--format", help="table, json, toml, yaml, env or args.")] = "table",
    storage: StorageOption = None,
    home: HomeOption = HOME,
) -> None:
    """Print the best parameters; exit code 3 while there are none."""
    from hpopt.hyperparameters import not_one_of
    from hpopt.storage import queries
    from hpopt.storage.connect import open_database
    from hpopt.storage.studies import load_study, require_root
    from hpopt.terminal.answer import render_answer
    from hpopt.terminal.exports import PARAMS_AS, best_as_json

    formats = ("table", "json", *PARAMS_AS)
    if output_format not in formats:
        raise InputError(f"--format: {not_one_of(output_format, formats)}")
    with open_database(storage, home) as database:
        row = load_study(database, study)
        require_root(row)
        if row.file.arms:
            answer_comparison(database, row, is_shown=output_format == "table")
        answer = queries.best(database, row)
        if output_format == "table":
            if not row.file.arms:
                out.print(render_answer(queries.progress(database, row), row))
            show_effects(database, row)
            show_findings(analyze(database, row))
            return
        findings = analyze(database, row)
        for finding in findings:
            if finding.severity == "error":
                err.print(f"error: {finding.message}", soft_wrap=True)
        is_json = output_format == "json"
        arguments = {name: value for name, value in answer.params.items() if name not in row.not_taken}
        out.write(best_as_json(answer, findings) if is_json else PARAMS_AS[output_format](arguments))


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
    from hpopt.storage.studies import load_study

    with open_database(storage, home) as database:
        row = load_study(database, study)
        with err.spinner("reading the trials"):
            table = queries.read_table(database, row)
        with err.spinner(f"analyzing {len(table.trials):,} trials"):
            summary = summarize(table)
        n_finished = sum(trial.outcome is not None for trial in table.trials)
        findings.store(database, row, summary.findings, n_finished=n_finished)
    with err.spinner("drawing figures"):
        paths = write_report(table, summary, output)
    for path in paths:
        out.print(str(path), soft_wrap=True)
    show_findings(summary.findings, err)


def dashboard(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8080,
    password_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the password of user hpopt, else HPOPT_DASHBOARD_PASSWORD; "
            "required if other machines can reach the dashboard."
        ),
    ] = None,
    writable: Annotated[bool, typer.Option("--writable", help="Let users with the password change studies.")] = False,
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
    """Explain the hyperparameters."""
    from hpopt.hyperparameters import HYPERPARAMETERS
    from hpopt.terminal.answer import render_dictionary, render_entry

    if name is None:
        out.print(render_dictionary(list(HYPERPARAMETERS.values())))
    elif name in HYPERPARAMETERS:
        out.print(render_entry(HYPERPARAMETERS[name]))
    else:
        raise InputError(f"no hyperparameter '{name}'{did_you_mean(name, HYPERPARAMETERS)}")


def show_effects(database: "Database", study: "Study") -> None:
    """Print what each parameter of a one_at_a_time study does to the metric."""
    if study.file.sampler.name != "one_at_a_time":
        return
    from hpopt.analysis.one_factor import analyze_one_factor
    from hpopt.storage import queries
    from hpopt.terminal.design import render_one_factor

    table = queries.read_table(database, study)
    result = analyze_one_factor(table)
    if result is not None:
        out.print()
        out.print(render_one_factor(table, result))


def analyze(database: "Database", study: "Study") -> "tuple[Finding, ...]":
    """Return the findings of a study, after an analysis if trials have finished since the last one."""
    from hpopt.storage import findings

    with err.spinner("analyzing the trials"):
        return findings.current(database, study)


def show_findings(findings: "Sequence[Finding]", output: Output = out) -> None:
    """Print findings below an answer."""
    from hpopt.terminal.answer import render_findings

    if findings:
        output.print()
        output.print(render_findings(findings))


def _show_all(database: "Database", *, as_json: bool) -> None:
    """Print a line for each study; one that cannot be read has a line on standard error."""
    from hpopt.storage import queries, studies
    from hpopt.terminal.exports import progress_as_json
    from hpopt.terminal.status import render_overview

    rows = []
    for name in studies.study_names(database):
        try:
            study = studies.load_study(database, name)
            if study.is_root:
                rows.append(queries.progress(database, study))
        except StudyFileError as error:
            err.print(f"hpopt: {error}", soft_wrap=True)
    out.write(f"[{', '.join(map(progress_as_json, rows))}]") if as_json else out.print(render_overview(rows))


def _show_one(database: "Database", study: "Study", *, as_json: bool) -> None:
    from hpopt.storage import queries
    from hpopt.terminal.exports import progress_as_json
    from hpopt.terminal.status import render_status
    from hpopt.terminal.time_left import seconds_left
    from hpopt.terminal.watch import N_FINISHED_SHOWN

    progress = queries.progress(database, study)
    findings = _cached_findings(database, progress, study)
    if as_json:
        out.write(progress_as_json(progress, findings))
        return
    left_s = seconds_left(progress, study.file.budget)
    finished = queries.finished_trials(database, study, last=N_FINISHED_SHOWN)
    out.print(render_status(progress, finished, left_s))
    show_findings(findings)


def _cached_findings(database: "Database", progress: "Progress", study: "Study") -> "tuple[Finding, ...]":
    """Return the findings of the last analysis of a running study, which is asked often; else the current ones."""
    from hpopt.storage import findings

    if progress.finished_reason is not None:
        return analyze(database, study)
    return findings.read(database, study).findings


def _follow(database: "Database", study: "Study") -> None:
    from hpopt.cli.run import stop_on_signals
    from hpopt.storage.confirmation import family_finished_reason
    from hpopt.terminal.watch import watch

    def is_running() -> bool:
        try:
            return family_finished_reason(database, study) is None
        except DatabaseError:
            return True

    watch(database, study, err, stop_on_signals(), is_running)
