"""A user's folder: a study of cheap trials, its training module, and hpopt as a program."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import psycopg2
import psycopg2.extras

HPOPT = [sys.executable, "-m", "hpopt"]
# For what must happen sooner or later on a busy machine. pytest's own limit is above it.
WAIT_S = 200
STUDY = """
name = "{name}"
objective = "paced:train"
[budget]
trials = {trials}
[sampler]
name = "random"
[pruner]
name = "none"
[search_space]
learning_rate = {{ low = 0.0, high = 1.0 }}
[fixed]
max_steps = {steps}
pace = {pace}
"""
# A step takes `pace` seconds and ends with a checkpoint. The last step lasts for as long as the file `hold` exists.
TRAINING = """
import json, os, time
from dataclasses import dataclass
from pathlib import Path
from hpopt.errors import Interrupted
from hpopt.training.run import Evaluation, Run

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Config:
    learning_rate: float = 0.5
    max_steps: int = 20
    pace: float = 0.1
    seed: int = 0


def train(config: Config, run: Run):
    first = int(run.checkpoint.read_text()) + 1 if run.checkpoint.exists() else 1
    start = {
        "node": os.environ.get("SLURMD_NODENAME") or os.environ.get("HPOPT_NODE", ""),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "first_step": first,
    }
    with (FOLDER / "starts.jsonl").open("a") as starts:
        starts.write(json.dumps(start) + "\\n")
    for step in range(first, config.max_steps + 1):
        end = time.monotonic() + config.pace
        while time.monotonic() < end or (step == config.max_steps and (FOLDER / "hold").exists()):
            if run.should_stop():
                raise Interrupted(f"stopped before step {step}")
            time.sleep(min(config.pace, 0.1))
        loss = (config.learning_rate - 0.3) ** 2 + 1 / step
        metrics = {"val_loss": loss}
        yield Evaluation(step=step, n_steps=config.max_steps, tokens=step, seconds=config.pace * step, metrics=metrics)
        draft = run.checkpoint.with_suffix(".draft")
        draft.write_text(str(step))
        draft.replace(run.checkpoint)
"""


class Workplace:
    """The folder that a user launches from."""

    # Short enough for a test to see a heartbeat expire, long enough for a busy machine.
    heartbeat_options = ("--heartbeat-every", "1", "--stale-after", "10")

    def __init__(self, folder: Path, url: str, **variables: str) -> None:
        self.folder = folder
        self.url = url
        self.hold_file = folder / "hold"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HPOPT_")}
        self.environment = {**inherited, "HPOPT_STORAGE": url, "HPOPT_HOME": str(folder / "home"), **variables}
        (folder / "paced.py").write_text(TRAINING)

    def write(self, name, *, trials, steps, pace=0.1):
        """Write a study file."""
        (self.folder / f"{name}.toml").write_text(STUDY.format(name=name, trials=trials, steps=steps, pace=pace))

    def create(self, name, **size):
        """Register a study."""
        self.write(name, **size)
        self.hpopt("create", f"{name}.toml")

    def hold(self):
        """Let every trial stay in its last step until `release`."""
        self.hold_file.touch()

    def release(self):
        """Let trials finish."""
        self.hold_file.unlink()

    def hpopt(self, *arguments):
        """Run hpopt, which must succeed, and return its standard output."""
        completed = self.try_hpopt(*arguments)
        assert completed.returncode == 0, completed
        return completed.stdout

    def try_hpopt(self, *arguments):
        """Run hpopt and return the completed process."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=WAIT_S)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def start(self, *arguments):
        """Start hpopt in the background."""
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([*HPOPT, *arguments], cwd=self.folder, env=self.environment, text=True, **pipes)

    def query(self, statement, *values):
        """Return the rows of a query as dictionaries."""
        url = self.url.replace("+psycopg2", "")
        with (
            closing(psycopg2.connect(url, cursor_factory=psycopg2.extras.RealDictCursor)) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(statement, values)
            return [dict(row) for row in cursor.fetchall()]

    def wait_until(self, condition):
        """Wait until a function of no arguments returns something true, and return that."""
        deadline = time.monotonic() + WAIT_S
        while not (answer := condition()):
            assert time.monotonic() < deadline, self.log_tails()
            time.sleep(0.3)
        return answer

    def workers(self, name):
        """Return the workers of a study that have not ended."""
        return self.query("select * from hpopt.fleet where study_name = %s and stopped_at is null", name)

    def wait_for_workers(self, name, n_workers):
        """Wait until so many workers train, and return them."""

        def training_workers():
            workers = self.workers(name)
            return workers if sum(worker["trial"] is not None for worker in workers) == n_workers else None

        return self.wait_until(training_workers)

    def wait_for_held_trials(self, name, n_workers, *, steps):
        """Wait until so many workers are in the last step of a trial, and return them."""

        def held_workers():
            workers = self.workers(name)
            return workers if sum(worker["step"] == steps - 1 for worker in workers) == n_workers else None

        return self.wait_until(held_workers)

    def wait_for_attempts(self, name, **n_by_outcome):
        """Wait until attempts have had these outcomes at least so often."""
        self.wait_until(lambda: all(self.outcomes(name)[outcome] >= n for outcome, n in n_by_outcome.items()))

    def wait_until_finished(self, name, *, trials, steps):
        """Wait until all trials are complete: exactly the budget, with one evaluation a step."""
        finished = "select count(*) as n from hpopt.trials where study_name = %s and outcome = 'complete'"
        self.wait_until(lambda: self.query(finished, name)[0]["n"] >= trials)
        rows = self.query("select outcome from hpopt.trials where study_name = %s", name)
        assert [row["outcome"] for row in rows] == ["complete"] * trials
        curves = self.query(
            "select trial, array_agg(step order by step) as steps from hpopt.learning_curves "
            "where study_name = %s group by trial",
            name,
        )
        assert [curve["steps"] for curve in curves] == [list(range(1, steps + 1))] * trials

    def outcomes(self, name):
        """Count the outcomes of the attempts of a study that have ended."""
        rows = self.query(
            "select outcome from hpopt.attempt join public.studies using (study_id) "
            "where study_name = %s and outcome is not null",
            name,
        )
        return Counter(row["outcome"] for row in rows)

    def starts(self):
        """Return where each attempt started: its node, its GPUs and its first step."""
        return [json.loads(line) for line in (self.folder / "starts.jsonl").read_text().splitlines()]

    def logs(self):
        """Return the logs of all workers by path."""
        paths = sorted((self.folder / "home" / "logs").rglob("*.log"))
        return {str(path.relative_to(self.folder)): path.read_text(errors="replace") for path in paths}

    def log_tails(self):
        """Return the ends of all logs, for a failed test to show."""
        return {path: text[-800:] for path, text in self.logs().items()}
