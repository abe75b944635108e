"""A search, its confirmation and the answer, from the study file to the report, by worker processes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import sqlalchemy as sa

from hpopt.storage.database import Database

OBJECTIVE = """
from dataclasses import dataclass
import pathlib, time
import numpy as np
from hpopt.training.run import Evaluation

@dataclass(frozen=True)
class Config:
    x: float = 0.5
    seed: int = 0

def train(config: Config, run):
    noise = 0.01 * np.random.default_rng([config.seed, int(1000 * config.x)]).normal()
    while pathlib.Path("hold").exists() and run.evaluates_test and not run.should_stop():
        time.sleep(0.05)
    yield Evaluation(step=1, n_steps=1, tokens=10, seconds=0.1, metrics={
        "loss": 1 + abs(config.x - 0.3) + noise, **({"test_loss": 2.0} if run.evaluates_test else {}),
    })
"""
STUDY = """
name = "noisy"
objective = "noisy_objective:train"
metric = "loss"
[budget]
trials = 5
[sampler]
name = "grid"
[confirm]
top = 2
seeds = 3
[search_space]
x = { choices = [0.1, 0.2, 0.3, 0.4, 0.5] }
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "noisy_objective.py").write_text(OBJECTIVE)
    (tmp_path / "noisy.toml").write_text(STUDY)
    return tmp_path


def start(folder, url, *arguments):
    environment = {**os.environ, "HPOPT_STORAGE": url, "HPOPT_HOME": str(folder / "home")}
    command = [sys.executable, "-m", "hpopt", *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for_runs(url):
    """Wait until two runs of the confirmation are running."""
    query = "select count(*) from hpopt.attempt a join hpopt.study using (study_id) where role = 'confirm'"
    database = Database(url)
    deadline = time.monotonic() + 60
    while True:
        with database.begin() as connection:
            if connection.scalar(sa.text(query)) >= 2:
                database.close()
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_confirmation_survives_the_death_of_all_workers_and_gives_the_answer(folder, migrated, migrated_url):
    (folder / "hold").touch()
    with start(
        folder, migrated_url, "run", "noisy.toml", "--workers", "2", "--heartbeat-every", "0.2", "--stale-after", "1"
    ) as first:
        wait_for_runs(migrated_url)
        assert "confirmation: 0/6 runs" in migrated.output("status")
        first.send_signal(signal.SIGKILL)
    (folder / "hold").unlink()
    with start(
        folder, migrated_url, "run", "noisy.toml", "--workers", "2", "--stale-after", "1", "--heartbeat-every", "0.2"
    ) as second:
        output, _ = second.communicate()
    assert second.returncode == 0, output
    assert "confirmed loss" in output
    assert "On the held-out test split, which no other run read: test_loss 2.0000." in output
    best = json.loads(migrated.output("best", "noisy", "--format", "json"))
    assert (best["answer"], best["n_seeds"], best["params"]) == ("confirmed", 3, {"x": 0.3})
    assert [finding["code"] for finding in best["findings"] if finding["code"] == "tie"] == []
    status = json.loads(migrated.output("status", "noisy", "--json"))
    assert status["confirmation"]["usage"]["n_finished"] == 6
    assert migrated.refused("best", "noisy@confirm").endswith("belongs to 'noisy'; name that one")
    report = migrated("report", "noisy", "--output", folder / "report")
    assert report.code == 0
    text = (folder / "report" / "report.md").read_text()
    assert "Confirmed: with 3 seeds, the configuration of trial 2 is better than its rivals" in text
    assert "<h3>Confirmation</h3>" in (folder / "report" / "index.html").read_text()


def test_hpopt_confirm_is_refused_before_there_is_anything_to_confirm(created):
    assert "study 'answer' has not finished; `hpopt stop answer` first" in created.refused("confirm", "answer")
