"""A user's folder for tests of engines: a study of cheap trials, its training module, and hpopt as a program."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

HPOPT = [sys.executable, "-m", "hpopt"]
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
# Each step takes `pace` seconds and is kept, so that a trial that goes on somewhere else does not begin again.
TRAINING = """
import os, time
from dataclasses import dataclass
from pathlib import Path
from hpopt.errors import Interrupted
from hpopt.training.run import Evaluation, Run


@dataclass(frozen=True)
class Config:
    learning_rate: float = 0.5
    max_steps: int = 20
    pace: float = 0.1
    seed: int = 0


def train(config: Config, run: Run):
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    node = os.environ.get("SLURMD_NODENAME") or os.environ.get("HPOPT_NODE", "")
    with Path(__file__).with_name("places.txt").open("a") as places:
        places.write(f"{node} {seen}\\n")
    first = int(run.checkpoint.read_text()) + 1 if run.checkpoint.exists() else 1
    for step in range(first, config.max_steps + 1):
        end = time.monotonic() + config.pace
        while time.monotonic() < end:
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
    """Where a user launches from. `patience` are the options that let the dead be noticed within a test."""

    patience = ("--heartbeat-every", "1", "--stale-after", "5")

    def __init__(self, folder: Path, url: str, **variables: str) -> None:
        self.folder = folder
        self.url = url
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HPOPT_")}
        self.environment = {**inherited, "HPOPT_STORAGE": url, "HPOPT_HOME": str(folder / "home"), **variables}
        (folder / "paced.py").write_text(TRAINING)

    def write(self, name, *, trials, steps, pace=0.1):
        """Write a study file; a step takes `pace` seconds."""
        (self.folder / f"{name}.toml").write_text(STUDY.format(name=name, trials=trials, steps=steps, pace=pace))

    def create(self, name, **asked):
        """Register a study."""
        self.write(name, **asked)
        self.hpopt("create", f"{name}.toml")

    def hpopt(self, *arguments):
        """Run hpopt and give what it prints; it must succeed."""
        done = self.try_hpopt(*arguments)
        assert done.returncode == 0, done
        return done.stdout

    def try_hpopt(self, *arguments):
        """Run hpopt and give how it ended."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=100)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def start(self, *arguments):
        """Start hpopt and come back at once."""
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([*HPOPT, *arguments], cwd=self.folder, env=self.environment, text=True, **pipes)

    def rows(self, query):
        """Ask the database."""
        return json.loads(self.hpopt("db", "sql", "--json", query))

    def status(self, name):
        """Give where a study stands."""
        return json.loads(self.hpopt("status", name, "--json"))

    def wait_until(self, name, condition, *, seconds):
        """Wait until the status of a study meets a condition, and give it."""
        deadline = time.monotonic() + seconds
        while not condition(status := self.status(name)):
            assert time.monotonic() < deadline, (status, self.logs())
            time.sleep(0.5)
        return status

    def wait_until_over(self, name, *, seconds):
        """Wait for the end of a study and hold its books against its budget: all trials ended, once, by evaluations."""
        status = self.wait_until(name, lambda status: status["over"], seconds=seconds)
        trials = self.rows(f"select state, outcome, value from hpopt.trials where study_name = '{name}'")
        assert [trial["outcome"] for trial in trials] == ["complete"] * status["planned_trials"]
        steps = self.rows(
            f"select trial, count(*) as n, max(step) as last from hpopt.learning_curves "
            f"where study_name = '{name}' group by trial"
        )
        assert len(steps) == status["planned_trials"]
        assert all(each["n"] == each["last"] for each in steps), steps
        return status

    def outcomes(self, name):
        """Count how the goes of a study ended."""
        counted = self.rows(
            "select g.outcome, count(*) as n from hpopt.goes g join public.studies s using (study_id) "
            f"where s.study_name = '{name}' group by g.outcome"
        )
        return {row["outcome"]: row["n"] for row in counted}

    def logs(self):
        """Give the ends of all logs of workers, for a failed test to show."""
        paths = sorted((self.folder / "home" / "logs").rglob("*.log"))
        return {str(path.relative_to(self.folder)): path.read_text(errors="replace")[-800:] for path in paths}
