"""Compare the time that a study is said to have left with the time that it takes.

    python benchmarks/time_left.py --output benchmarks/results/time_left.md

Worker processes run trials that sleep, with and without a pruner, and with trials of unlike speed. Each half second the
estimate is read as `hpopt status` does. Its error is a share of the study's whole duration.
"""

import argparse
import datetime as dt
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import median, quantiles

from hpopt.postgres import server
from hpopt.storage import migrate, queries, studies
from hpopt.storage.database import Database
from hpopt.study.reading import parse_study_file
from hpopt.terminal.time_left import seconds_left
from hpopt.training.run import Evaluation, Run

STUDY = """
name = "{name}"
objective = "time_left:train"
metric = "loss"
[budget]
trials = {n_trials}
[sampler]
name = "random"
[pruner]
name = "{pruner}"
[search_space]
x = {{ low = 0.0, high = 1.0 }}
[fixed]
slowest = {slowest}
"""
N_STEPS = 27
STEP_S = 0.15
_EVERY_S = 0.5


@dataclass(frozen=True)
class Config:
    """A step of a trial takes between one and `slowest` times STEP_S."""

    x: float = 0.5
    slowest: float = 1.0
    seed: int = 0


def train(config: Config, _run: Run) -> Iterator[Evaluation]:
    """Sleep, and report a loss that falls from noise to x."""
    rng = random.Random(config.seed)  # noqa: S311 - noise.
    step_s = STEP_S * rng.uniform(1.0, config.slowest)
    for step in range(1, N_STEPS + 1):
        time.sleep(step_s)
        loss = config.x + rng.gauss(0.0, 0.3) / step
        yield Evaluation(step=step, n_steps=N_STEPS, tokens=step, seconds=step * step_s, metrics={"loss": loss})


def measure(database: Database, home: Path, *, n_workers: int, n_trials: int, pruner: str, slowest: float) -> list[str]:
    """Run a study and return a row of the table."""
    name = f"{pruner}-{n_workers}-{slowest:g}"
    text = STUDY.format(name=name, n_trials=n_trials, pruner=pruner, slowest=slowest)
    study = studies.create_study(database, parse_study_file(text, "time_left.py"))
    command = [sys.executable, "-m", "hpopt", "worker", name, "--storage", database.url, "--home", home]
    command += ["--device", "cpu", "--heartbeat-every", "1"]
    here = Path(__file__).parent
    workers = [subprocess.Popen(command, cwd=here, stdout=subprocess.DEVNULL) for _ in range(n_workers)]
    began, said = time.monotonic(), []
    while (progress := queries.progress(database, study)).finished_reason is None:
        left_s = seconds_left(progress, study.file.budget)
        if left_s is not None:
            said.append((time.monotonic(), left_s))
        time.sleep(_EVERY_S)
    end = time.monotonic()
    for worker in workers:
        worker.wait()
    total_s = end - began
    quarters: list[list[float]] = [[], [], [], []]
    for at, left_s in said:
        quarters[min(3, int(4 * (at - began) / total_s))].append((left_s - (end - at)) / total_s)
    errors = [abs(error) for quarter in quarters for error in quarter]
    cells = [f"{n_workers}", pruner, f"1 to {slowest:g}", f"{total_s:.0f} s"]
    cells += [f"{median(quarter):+.0%}" if quarter else "-" for quarter in quarters]
    return [*cells, f"{median(errors):.0%}", f"{quantiles(errors, n=10)[-1]:.0%}"]


def main() -> None:
    """Run the studies, print the table and write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    lines = [
        "# The time left\n",
        f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}; hpopt {metadata.version('hpopt')}. Trials of {N_STEPS} steps of",
        f"{STEP_S:g} s and longer. Errors are shares of the duration of the study: the median of each quarter,",
        "positive where the estimate is too long, then the median and the 90th percentile of all without their sign.\n",
        "| workers | pruner | speed | duration | 1st | 2nd | 3rd | 4th | median | 90% |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder, server.use(Path(folder, "home")):
        home = Path(folder, "home")
        try:
            with closing(Database(server.start(home))) as database:
                migrate.upgrade(database)
                for n_workers, n_trials, pruner, slowest in (
                    *((1, 24, "asha", 1), (4, 60, "asha", 1), (4, 40, "none", 1), (4, 60, "asha", 4)),
                    *((8, 80, "asha", 1), (8, 20, "none", 4)),
                ):
                    row = measure(
                        database, home, n_workers=n_workers, n_trials=n_trials, pruner=pruner, slowest=slowest
                    )
                    lines.append(f"| {' | '.join(row)} |")
                    print(lines[-1], flush=True)
        finally:
            server.stop(home)
    print("\n".join(lines))
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
