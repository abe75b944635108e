"""A study with conditional parameters: two workers, stock Optuna, the answer in every format, and the report."""

import json
import os
import subprocess
import sys
import tomllib
import warnings
from contextlib import closing

import optuna
import optuna_dashboard
import pytest
import sqlalchemy as sa
import yaml

from hpopt.storage import studies
from hpopt.storage.database import Database

pytestmark = pytest.mark.long

OBJECTIVE = """
import math
from dataclasses import dataclass
from hpopt.training.run import Evaluation

@dataclass(frozen=True)
class Config:
    optimizer: str = "muon"
    learning_rate: float = 0.01
    momentum: float = 0.9
    ns_steps: int = 5
    beta: float = 0.9
    seed: int = 0

def train(config: Config, run):
    loss = (math.log10(config.learning_rate) + 2) ** 2
    if config.optimizer == "muon":
        loss += 10 * (config.momentum - 0.9) ** 2 + 0.02 * (config.ns_steps - 5) ** 2
    else:
        loss += 1 + config.beta
    for step in (1, 2):
        yield Evaluation(step=step, n_steps=2, tokens=step, seconds=0.0, metrics={"loss": loss + 1 / step})
"""
STUDY = """
name = "conditional"
objective = "conditional_objective:train"
metric = "loss"
[budget]
trials = 32
[pruner]
name = "none"
[search_space]
momentum      = { low = 0.5, high = 0.99, when = { optimizer = "muon" } }
optimizer     = { choices = ["muon", "adamw"] }
learning_rate = { low = 1e-4, high = 1.0, log = true }
ns_steps      = { low = 1, high = 9, type = "int", when = { optimizer = "muon" } }
beta          = { low = 0.5, high = 0.99, when = { optimizer = ["adamw"] } }
[[enqueue]]
optimizer = "adamw"
beta = 0.6
"""
ACTIVE = {
    "muon": {"momentum", "optimizer", "learning_rate", "ns_steps"},
    "adamw": {"optimizer", "learning_rate", "beta"},
}


class Finished:
    """A study that two workers have finished, and the command line on its database."""

    def __init__(self, folder, storage):
        self.folder, self.storage = folder, storage
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("HPOPT_")}
        self.environment |= {"HPOPT_STORAGE": storage, "HPOPT_HOME": str(folder / "home")}

    def rows(self, query):
        with closing(Database(self.storage)) as database, database.begin() as connection:
            return connection.execute(sa.text(query)).mappings().all()


@pytest.fixture(scope="module")
def finished(shared_database_url, tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditional")
    (folder / "conditional_objective.py").write_text(OBJECTIVE)
    (folder / "conditional.toml").write_text(STUDY)
    finished = Finished(folder, shared_database_url)
    run = [sys.executable, "-m", "hpopt", "run", "conditional.toml", "--workers", "2"]
    subprocess.run(run, cwd=folder, env=finished.environment, stdin=subprocess.DEVNULL, check=True)
    return finished


@pytest.fixture
def command(hpopt, finished):
    """The command line on the database of the study."""
    hpopt.environment["HPOPT_STORAGE"] = finished.storage
    return hpopt


def test_each_trial_has_the_params_that_are_active(finished):
    rows = finished.rows("select trial, state, params from hpopt.trials order by trial")
    assert [row["state"] for row in rows] == ["COMPLETE"] * 32
    for row in rows:
        assert row["params"].keys() == ACTIVE[row["params"]["optimizer"]], row
    assert rows[0]["params"] == {"momentum": 0.9, "optimizer": "muon", "learning_rate": 0.01, "ns_steps": 5}
    assert rows[1]["params"].items() >= {"optimizer": "adamw", "beta": 0.6}.items()
    assert len(finished.rows("select distinct worker_id from hpopt.attempt")) == 2
    # The default of the objective holds where a parameter is inactive.
    configs = finished.rows("select config from hpopt.attempt where config ->> 'optimizer' = 'adamw'")
    assert {row["config"]["momentum"] for row in configs} == {0.9}


def test_stock_optuna_and_its_dashboard_read_the_study(finished):
    with closing(Database(finished.storage)) as database:
        study = studies.open_optuna(database, studies.load_study(database, "conditional"))
        frame = study.trials_dataframe()
        assert frame["params_beta"].notna().tolist() == (frame["params_optimizer"] == "adamw").tolist()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shares = optuna.importance.get_param_importances(
                study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
            )
        assert {"optimizer", "learning_rate"} <= shares.keys()
        path = f"/api/studies/{study._study_id}"
        environment = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": "after=0"}
        page = json.loads(b"".join(optuna_dashboard.wsgi(database.optuna)(environment, lambda *_: None)))
        names = [{param["name"] for param in trial["params"]} for trial in page["trials"]]
        assert {frozenset(own) for own in names} == {frozenset(own) for own in ACTIVE.values()}


def test_best_has_the_active_params_in_every_format(command):
    best = json.loads(command.output("best", "conditional", "--format", "json"))["params"]
    assert best.keys() == ACTIVE["muon"]
    assert tomllib.loads(command.output("best", "conditional", "--format", "toml")) == best
    assert yaml.safe_load(command.output("best", "conditional", "--format", "yaml")) == best
    names = [line.split("=")[0] for line in command.output("best", "conditional", "--format", "env").splitlines()]
    assert names == [name.upper() for name in best]
    arguments = command.output("best", "conditional", "--format", "args")
    assert arguments.count("--") == len(best)
    assert "beta" not in arguments
    answer = command.output("best", "conditional")
    assert "0.5 to 0.99, where optimizer = muon" in answer
    assert "beta" not in answer
    assert "None" not in answer


def test_the_report_says_where_a_parameter_is_active(finished, command):
    assert command("report", "conditional", "--output", finished.folder / "report").code == 0
    folder = finished.folder / "report"
    page, document = (folder / "index.html").read_text(), json.loads((folder / "insights.json").read_text())
    (muon,) = [part for part in document["conditional"] if part["parameters"] == ["momentum", "ns_steps"]]
    assert muon["where"] == f"optimizer = muon, {muon['n_trials']} complete trials"
    assert f"momentum, where {muon['where']}" in page
    assert document["importance"]["fANOVA"]["shares"].keys() == {"optimizer", "learning_rate"}
    assert document["best"]["params"].keys() == ACTIVE["muon"]


def test_an_inactive_parameter_is_not_enqueued(finished, command):
    line = "hpopt: momentum: active only where optimizer = muon; remove momentum"
    assert command.refused("enqueue", "conditional", "optimizer=adamw", "momentum=0.9") == line
    line = "hpopt: momentum: active only where optimizer = muon; give optimizer too"
    assert command.refused("enqueue", "conditional", "momentum=0.9") == line
    enqueued = command.output("enqueue", "conditional", "--trial", "0", "optimizer=adamw")
    assert enqueued.startswith("trial 32 is enqueued, but will not run: ")
    (row,) = finished.rows("select value_json from public.trial_system_attributes order by trial_id desc limit 1")
    assert json.loads(row["value_json"]) == {"optimizer": "adamw", "learning_rate": 0.01}


def test_check_prints_the_conditions(finished, command, monkeypatch):
    monkeypatch.chdir(finished.folder)
    plan = command.output("check", "conditional.toml")
    assert "0.5 to 0.99, where optimizer = muon" in plan
    assert "0.5 to 0.99, where optimizer = adamw" in plan
