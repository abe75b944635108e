"""Inject faults into a fleet of workers, and audit whether it lost a trial or an evaluation.

Worker processes run a study of recurrence.py, whose evaluations are known in closed form, while faults.py kills and
freezes them, cuts their connections, restarts PostgreSQL, takes its connections and fills their disk. Every second
worker connects by TLS, foreign.py writes as other programs do, and some training functions misbehave. Each time the
budget is exhausted it is raised, until the time is over; then the faults end, and the workers must finish the study.
Ten minutes, with about 400 faults, on two cores:

    python benchmarks/chaos.py --seed 0 --minutes 10 --output benchmarks/results/chaos.md

If the audit finds a violation, the exit code is 1 and the folder with logs, checkpoints and database is kept.
"""

import argparse
import datetime as dt
import platform
import shutil
import signal
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from audit import StudyRecords, audit, count_lost, describe_trial, read_records
from faults import Faults, Timeouts
from fleet import Fleet
from machine import Disk, Server
from proxy import Network, create_certificate
from recurrence import ENDINGS
from sqlalchemy import make_url

from hpopt.errors import DatabaseError
from hpopt.storage import budget, studies
from hpopt.storage.connect import open_database
from hpopt.storage.database import Database
from hpopt.study.reading import parse_study_file

STUDY = "chaos"
# The one check of the audit that does not read the database.
WORKERS = "workers exit only with an expected code, and all of them when the study has finished"
# For the last trials, their retries, and the timeouts of workers whose last fault was the longest.
DRAIN_S = 120.0
STUDY_FILE = """
name = "{name}"
objective = "recurrence:train"
[budget]
trials = {n_trials}
[pruner]
reduction_factor = 2
min_fraction = 0.3
[search_space]
rate = {{ low = 1e-3, high = 1.0, log = true }}
width = {{ low = 1, high = 8, type = "int" }}
shape = {{ choices = ["cosine", "linear", "constant"] }}
ending = {{ low = 0, high = 9, type = "int" }}
[fixed]
max_steps = {max_steps}
step_seconds = {step_seconds}
# These two fail and diverge before the first rung, so that they are not pruned.
[[enqueue]]
rate = 0.9
width = 3
shape = "cosine"
ending = 0
[[enqueue]]
rate = 0.2
width = 5
shape = "cosine"
ending = 1
"""
TIMEOUTS = Timeouts(heartbeat_every_s=0.5, stale_after_s=2.0, give_up_after_s=10.0)
_SUPERVISE_EVERY_S = 0.05
_READ_USAGE_EVERY_S = 0.5
_LINE_WIDTH = 118


@dataclass(frozen=True, kw_only=True)
class Options:
    """The faults, workers and trials of a run; the faults end after `minutes`, or sooner after `n_faults`."""

    seed: int = 0
    minutes: float = 10.0
    n_faults: int | None = None
    n_workers: int = 8
    mean_gap_s: float = 1.2
    trials_at_a_time: int = 30
    max_steps: int = 60
    step_seconds: float = 0.1
    timeouts: Timeouts = TIMEOUTS

    def study_file(self, n_trials: int) -> str:
        """Return the study file with a budget."""
        return STUDY_FILE.format(
            name=STUDY, n_trials=n_trials, max_steps=self.max_steps, step_seconds=self.step_seconds
        )


@dataclass(frozen=True, kw_only=True)
class Report:
    """The faults of a run, and the violations that the audit found."""

    options: Options
    seconds: float
    disk: str
    faults: Counter[str]
    exits: Counter[str]
    n_budgets: int
    n_fenced: int
    records: StudyRecords
    violations: dict[str, list[str]]

    @property
    def is_clean(self) -> bool:
        """Return whether there is no violation."""
        return not any(self.violations.values())


@dataclass(frozen=True, kw_only=True)
class _Setup:
    database: Database
    disk: Disk
    fleet: Fleet
    faults: Faults


def run_chaos(options: Options, folder: Path) -> Report:
    """Inject faults into a fleet in a folder, let it finish the study, and audit the database."""
    began = time.monotonic()
    with ExitStack() as stack:
        setup = _set_up(stack, options, folder)
        try:
            n_budgets = _inject_faults(options, setup)
            _drain(setup)
        finally:
            (folder / "logs" / "faults.log").write_text("\n".join(setup.faults.log) + "\n")
        records = read_records(setup.database, STUDY)
        report = Report(
            options=options,
            seconds=time.monotonic() - began,
            disk=setup.disk.describe(),
            faults=setup.faults.counts,
            exits=setup.fleet.exits,
            n_budgets=n_budgets,
            n_fenced=setup.fleet.n_fenced,
            records=records,
            violations={**audit(records), WORKERS: setup.fleet.problems},
        )
        if not report.is_clean:
            # The disk is unmounted at the end.
            shutil.copytree(folder / "home" / "runs", folder / "runs", ignore=shutil.ignore_patterns("filler"))
        return report


def _set_up(stack: ExitStack, options: Options, folder: Path) -> _Setup:
    """Start the server, the disk, the network and the fleet; the stack ends each."""
    server = Server(folder)
    stack.callback(_stop_if_running, server)
    disk = Disk(folder / "home" / "runs")
    stack.callback(disk.close)
    database = stack.enter_context(open_database(server.url, folder, create=True))
    port = make_url(server.url).port or 0
    network = stack.enter_context(Network(port, options.n_workers, create_certificate(folder)))
    fleet = stack.enter_context(Fleet(folder, STUDY, server.url, network.links, options.timeouts))
    faults = Faults(
        seed=options.seed,
        mean_gap_s=options.mean_gap_s,
        workers=fleet,
        server=server,
        disk=disk,
        timeouts=options.timeouts,
    )
    stack.callback(faults.close)
    return _Setup(database=database, disk=disk, fleet=fleet, faults=faults)


def _inject_faults(options: Options, setup: _Setup) -> int:
    """Inject faults until the time is over, raise the budget whenever it is exhausted, and count the budgets."""
    database, fleet, faults = setup.database, setup.fleet, setup.faults
    n_trials = options.trials_at_a_time
    study = studies.create_study(database, parse_study_file(options.study_file(n_trials), "chaos.py"))
    fleet.start(n_trials)
    while not fleet.pids_with_trials:
        fleet.supervise()
        time.sleep(_SUPERVISE_EVERY_S)
    faults.begin(study)
    deadline = time.monotonic() + 60 * options.minutes
    read_usage_at = 0.0
    n_budgets = 1
    while time.monotonic() < deadline and not (options.n_faults and faults.counts.total() >= options.n_faults):
        faults.step()
        fleet.supervise()
        if time.monotonic() > read_usage_at:
            read_usage_at = time.monotonic() + _READ_USAGE_EVERY_S
            if _has_finished(fleet, database, study):
                n_trials += options.trials_at_a_time
                study = studies.create_study(database, parse_study_file(options.study_file(n_trials), "chaos.py"))
                n_budgets += 1
                fleet.start(n_trials)
        time.sleep(_SUPERVISE_EVERY_S)
    return n_budgets


def _has_finished(fleet: Fleet, database: Database, study: studies.Study) -> bool:
    """Return whether the budget is exhausted; that a worker exits before it is exhausted is a problem."""
    n_finished = fleet.n_finished()
    try:
        reason = budget.finished_reason(study, budget.read_usage(database, study))
    except DatabaseError:
        return False
    if n_finished and reason is None:
        fleet.problems.append(f"{n_finished} workers exited before the budget of {study.file.budget.trials} trials")
    return reason is not None


def _drain(setup: _Setup) -> None:
    """End the faults, and wait until the workers have finished the study and exited."""
    setup.faults.end_all()
    deadline = time.monotonic() + DRAIN_S
    while setup.fleet.supervise() and time.monotonic() < deadline:
        time.sleep(_SUPERVISE_EVERY_S)
    setup.fleet.end()


def _stop_if_running(server: Server) -> None:
    with suppress(DatabaseError):
        server.stop("fast")


def render(report: Report) -> Iterator[str]:
    """Render a report as Markdown."""
    options, timeouts = report.options, report.options.timeouts
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in ("hpopt", "optuna"))
    yield "# A fleet under faults\n"
    conditions = (
        f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}; {versions}; Python {platform.python_version()}; seed {options.seed}. "
        f"{options.n_workers} workers, {options.minutes:g} minutes of faults, {report.seconds:.0f} s in all. "
        f"A budget of {options.trials_at_a_time} trials was raised {report.n_budgets - 1} times. "
        f"A heartbeat every {timeouts.heartbeat_every_s:g} s, stale after {timeouts.stale_after_s:g} s, "
        f"exit after {timeouts.give_up_after_s:g} s without the database. The full disk: {report.disk}."
    )
    yield textwrap.fill(conditions, _LINE_WIDTH) + "\n"
    attempts = Counter(str(attempt["outcome"]) for attempt in report.records.attempts)
    trials = Counter(str(attempts[-1]["outcome"]) for attempts in report.records.attempts_of.values())
    yield from _table(f"{report.faults.total()} faults", report.faults)
    yield from _table(f"{trials.total()} trials", trials)
    yield from _table(f"{attempts.total()} attempts", attempts)
    yield from _table(f"{report.exits.total()} exits of workers", report.exits)
    endings = report.records.count_endings()
    counts = ", ".join(f"{text}: {endings[ending]}" for ending, text in ENDINGS.items())
    yield textwrap.fill(f"Trials that {counts}.", _LINE_WIDTH) + "\n"
    yield f"{report.n_fenced} times a running worker found that its trial had been reassigned.\n"
    yield f"| audit of {len(report.records.evaluations)} evaluations | violations |\n|---|---|"
    yield from (f"| {title} | {len(violations)} |" for title, violations in report.violations.items())
    yield f"\nlost: {count_lost(report.violations)}"


def _table(title: str, counts: Counter[str]) -> Iterator[str]:
    yield f"| {title} | |\n|---|---|"
    yield from (f"| {name} | {n} |" for name, n in counts.most_common())
    yield ""


def explain(report: Report) -> Iterator[str]:
    """List every violation, and the rows of the trials that the violations name."""
    trial_ids: set[int] = set()
    for title, violations in report.violations.items():
        for violation in violations:
            yield f"violated: {title}: {violation}"
            words = violation.split()
            if words[0] == "trial" and words[1].isdigit():
                trial_ids.add(int(words[1]))
    for trial_id in sorted(trial_ids):
        yield f"trial {trial_id}:"
        yield from (f"    {line}" for line in describe_trial(report.records, trial_id))


@contextmanager
def own_folder() -> Iterator[Path]:
    """Create a folder that the user of a server started by root can enter; it is kept after an error."""
    folder = Path(tempfile.mkdtemp(prefix="hpopt-chaos-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def main() -> None:
    """Inject faults, audit, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--mean-gap", type=float, default=1.2, help="seconds between faults, on average")
    parser.add_argument("--output", type=Path, help="file for the table, in Markdown")
    arguments = parser.parse_args()
    # SIGTERM ends everything as Ctrl-C does; a background job of a shell starts with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    options = Options(
        seed=arguments.seed,
        minutes=arguments.minutes,
        n_workers=arguments.workers,
        mean_gap_s=arguments.mean_gap,
    )
    with own_folder() as folder:
        print(f"logs in {folder}", file=sys.stderr)
        try:
            report = run_chaos(options, folder)
        except KeyboardInterrupt:
            print("stopped; nothing was audited", file=sys.stderr)
            shutil.rmtree(folder)
            sys.exit(130)
        text = "\n".join(render(report))
        print(text)
        if not report.is_clean:
            (folder / "violations.txt").write_text("\n".join(explain(report)) + "\n")
            print((folder / "violations.txt").read_text(), f"kept: {folder}", sep="\n", file=sys.stderr)
            sys.exit(1)
    if arguments.output:
        words = f"--seed {options.seed} --minutes {options.minutes:g} --workers {options.n_workers}"
        command = f"python benchmarks/chaos.py {words} --mean-gap {options.mean_gap_s:g}"
        arguments.output.write_text(f"{text}\n\n    {command}\n")


if __name__ == "__main__":
    main()
