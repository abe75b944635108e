"""Does a fleet lose anything when everything around it fails? Injects faults into one, and audits what it leaves.

Worker processes serve a study of recurrence.py, whose every evaluation is known in closed form, while faults.py kills
and freezes them, cuts their connections, restarts Postgres and fills their disk. The budget is spent, and raised, again
and again until the time is over; then the faults stop, and the fleet must finish by itself. Ten minutes, on two cores:

    python benchmarks/chaos.py --seed 0 --minutes 10 --output benchmarks/results/chaos.md

The exit code is 1 if the audit finds anything; the folder with logs, checkpoints and database is kept then.
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

from audit import Ledger, audit, count_lost, describe_trial, read_ledger
from faults import Disk, Faults, Patience, Server
from fleet import Fleet
from proxy import Network
from sqlalchemy import make_url

from hpopt.errors import DatabaseError
from hpopt.storage import budget, studies
from hpopt.storage.connect import open_database
from hpopt.storage.database import Database
from hpopt.study.reading import parse_study_file

STUDY = "chaos"
# The one line of the audit that the database does not know.
WORKERS = "workers end only as they may, and all by themselves at the end"
# The last trials, their retries, and the patience of workers whose last fault was the longest.
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
rate  = {{ low = 1e-3, high = 1.0, log = true }}
width = {{ low = 1, high = 8, type = "int" }}
shape = {{ choices = ["cosine", "linear", "constant"] }}
ending = {{ low = 0, high = 9, type = "int" }}
[fixed]
max_steps = {max_steps}
step_seconds = {step_seconds}
# These two end before the first rung, so that no pruner is faster.
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
PATIENCE = Patience(heartbeat_every_s=0.5, stale_after_s=2.0, give_up_after_s=10.0)
_TEND_EVERY_S = 0.05
_ASK_EVERY_S = 0.5
_LINE_WIDTH = 118


@dataclass(frozen=True, kw_only=True)
class Dose:
    """How much of everything."""

    seed: int = 0
    minutes: float = 10.0
    n_workers: int = 8
    mean_gap_s: float = 1.2
    trials_at_a_time: int = 30
    max_steps: int = 60
    step_seconds: float = 0.1
    patience: Patience = PATIENCE

    def study_file(self, n_trials: int) -> str:
        """Write the study file with a budget."""
        return STUDY_FILE.format(
            name=STUDY, n_trials=n_trials, max_steps=self.max_steps, step_seconds=self.step_seconds
        )


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was done to the fleet, and what the audit says of it."""

    dose: Dose
    seconds: float
    disk: str
    faults: Counter[str]
    exits: Counter[str]
    n_budgets: int
    n_fenced: int
    ledger: Ledger
    violations: dict[str, list[str]]

    @property
    def is_clean(self) -> bool:
        """Say whether nothing is violated."""
        return not any(self.violations.values())


@dataclass(frozen=True, kw_only=True)
class _Stage:
    database: Database
    disk: Disk
    fleet: Fleet
    faults: Faults


def run_chaos(dose: Dose, folder: Path) -> Report:
    """Disturb a fleet in a folder for as long as the dose says, let it finish, and audit what is left."""
    began = time.monotonic()
    with ExitStack() as stack:
        stage = _set_up(stack, dose, folder)
        try:
            n_budgets = _disturb(dose, stage)
            _drain(stage)
        finally:
            (folder / "logs" / "faults.log").write_text("\n".join(stage.faults.log) + "\n")
        ledger = read_ledger(stage.database, STUDY)
        report = Report(
            dose=dose,
            seconds=time.monotonic() - began,
            disk=stage.disk.describe(),
            faults=stage.faults.counts,
            exits=stage.fleet.exits,
            n_budgets=n_budgets,
            n_fenced=stage.fleet.n_fenced,
            ledger=ledger,
            violations={**audit(ledger), WORKERS: stage.fleet.troubles},
        )
        if not report.is_clean:
            # The disk goes with the stack.
            shutil.copytree(folder / "home" / "runs", folder / "runs", ignore=shutil.ignore_patterns("filler"))
        return report


def _set_up(stack: ExitStack, dose: Dose, folder: Path) -> _Stage:
    """Start everything but the workers, each with its end on the stack."""
    server = Server(folder)
    stack.callback(_stop_quietly, server)
    disk = Disk(folder / "home" / "runs")
    stack.callback(disk.close)
    database = stack.enter_context(open_database(server.url, folder, create=True))
    network = stack.enter_context(Network(make_url(server.url).port or 0, dose.n_workers))
    fleet = stack.enter_context(Fleet(folder, STUDY, server.url, network.links, dose.patience))
    faults = Faults(
        seed=dose.seed, mean_gap_s=dose.mean_gap_s, workers=fleet, server=server, disk=disk, patience=dose.patience
    )
    stack.callback(faults.close)
    return _Stage(database=database, disk=disk, fleet=fleet, faults=faults)


def _disturb(dose: Dose, stage: _Stage) -> int:
    """Inject faults until the time is over, raise the budget whenever it is spent, and count the budgets."""
    database, fleet, faults = stage.database, stage.fleet, stage.faults
    deadline = time.monotonic() + 60 * dose.minutes
    budget = dose.trials_at_a_time
    study = studies.create_study(database, parse_study_file(dose.study_file(budget), "chaos.py"))
    fleet.start(budget)
    faults.begin(study)
    ask_at = 0.0
    n_budgets = 1
    while time.monotonic() < deadline:
        faults.step()
        fleet.tend()
        if time.monotonic() > ask_at:
            ask_at = time.monotonic() + _ASK_EVERY_S
            if _is_over(fleet, database, study):
                budget += dose.trials_at_a_time
                study = studies.create_study(database, parse_study_file(dose.study_file(budget), "chaos.py"))
                n_budgets += 1
                fleet.start(budget)
        time.sleep(_TEND_EVERY_S)
    return n_budgets


def _is_over(fleet: Fleet, database: Database, study: studies.Study) -> bool:
    """Say whether the budget is spent; a worker that says so before it is has made a mistake."""
    n_over = fleet.n_over()
    try:
        over = budget.finished_reason(study, budget.read_usage(database, study))
    except DatabaseError:
        return False
    if n_over and over is None:
        fleet.troubles.append(f"{n_over} workers ended with a budget of {study.file.budget.trials} not spent")
    return over is not None


def _drain(stage: _Stage) -> None:
    """End the faults, and let the fleet spend the rest of its budget and leave."""
    stage.faults.settle()
    deadline = time.monotonic() + DRAIN_S
    while stage.fleet.tend() and time.monotonic() < deadline:
        time.sleep(_TEND_EVERY_S)
    stage.fleet.end()


def _stop_quietly(server: Server) -> None:
    with suppress(DatabaseError):
        server.stop("fast")


def render(report: Report) -> Iterator[str]:
    """Write a report as Markdown."""
    dose = report.dose
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in ("hpopt", "optuna"))
    n_faults = sum(report.faults.values())
    patience = dose.patience
    yield "# A fleet under faults\n"
    about = (
        f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}; {versions}; Python {platform.python_version()}; seed {dose.seed}. "
        f"{dose.n_workers} workers, {dose.minutes:g} minutes of faults, {report.seconds:.0f} s in all. "
        f"A budget of {dose.trials_at_a_time} trials was spent and raised {report.n_budgets - 1} times. "
        f"A heartbeat every {patience.heartbeat_every_s:g} s, stale after {patience.stale_after_s:g} s, "
        f"the database given up after {patience.give_up_after_s:g} s. The full disk: {report.disk}."
    )
    yield textwrap.fill(about, _LINE_WIDTH) + "\n"
    attempts = Counter(str(attempt["outcome"]) for attempt in report.ledger.attempts)
    trials = Counter(str(goes[-1]["outcome"]) for goes in report.ledger.goes.values())
    yield from _table(f"{n_faults} faults", report.faults)
    yield from _table(f"{sum(trials.values())} trials", trials)
    yield from _table(f"{sum(attempts.values())} attempts", attempts)
    yield from _table(f"{sum(report.exits.values())} ends of workers", report.exits)
    n_found = {title: len(found) for title, found in report.violations.items()}
    n_evaluations = len(report.ledger.evaluations)
    yield f"{report.n_fenced} times a worker that lived found that its trial had been handed on.\n"
    yield f"| audit, over {n_evaluations} evaluations | violations |\n|---|---|"
    yield from (f"| {title} | {n} |" for title, n in n_found.items())
    yield f"\nlost: {count_lost(report.violations)}"


def _table(title: str, counts: Counter[str]) -> Iterator[str]:
    yield f"| {title} | |\n|---|---|"
    yield from (f"| {name} | {n} |" for name, n in counts.most_common())
    yield ""


def explain(report: Report) -> Iterator[str]:
    """Write down every violation, and the rows of the trials that they name."""
    named: set[int] = set()
    for title, found in report.violations.items():
        for violation in found:
            yield f"violated: {title}: {violation}"
            words = violation.split()
            if words[0] == "trial" and words[1].isdigit():
                named.add(int(words[1]))
    for first_trial_id in sorted(named):
        yield f"trial {first_trial_id}:"
        yield from (f"    {line}" for line in describe_trial(report.ledger, first_trial_id))


@contextmanager
def own_folder() -> Iterator[Path]:
    """Make a folder that a server started by root can enter, too; it is kept when this ends with an error."""
    folder = Path(tempfile.mkdtemp(prefix="hpopt-chaos-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def main() -> None:
    """Disturb, audit, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--mean-gap", type=float, default=1.2, help="seconds between faults, on average")
    parser.add_argument("--output", type=Path, help="file for the table, in Markdown")
    options = parser.parse_args()
    # As Ctrl-C does, SIGTERM takes everything down again; a shell's background job ignores the former unless told.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    dose = Dose(seed=options.seed, minutes=options.minutes, n_workers=options.workers, mean_gap_s=options.mean_gap)
    with own_folder() as folder:
        print(f"logs in {folder}", file=sys.stderr)
        try:
            report = run_chaos(dose, folder)
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
    if options.output:
        command = f"python benchmarks/chaos.py --seed {dose.seed} --minutes {dose.minutes:g} --workers {dose.n_workers}"
        options.output.write_text(f"{text}\n\n    {command} --mean-gap {dose.mean_gap_s:g}\n")


if __name__ == "__main__":
    main()
