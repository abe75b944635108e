"""A worker gets every kind of trial to its right end, and the next one after it."""

import importlib
import re
import sys
import threading
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa

from hpopt.errors import Interrupted
from hpopt.storage import books, migrate, queries, studies
from hpopt.storage.database import Database
from hpopt.worker import Settings, work

OBJECTIVE = """
import math, pathlib
import numpy as np
from dataclasses import dataclass
from hpopt.errors import Diverged, Interrupted
from hpopt.training.run import Evaluation

STEPS = 9
HOOK = None

@dataclass(frozen=True)
class Config:
    x: float = 0.5
    kind: str = "good"
    max_steps: int = STEPS
    seed: int = 0

    def __post_init__(self):
        if self.x > 10:
            raise ValueError("x is above 10")

def train(config: Config, run):
    try:
        for step in range(1, STEPS + 1):
            if HOOK: HOOK(config, step)
            if run.should_stop(): raise Interrupted(f"stopped after step {step - 1}")
            if config.kind == "broken": raise RuntimeError("no such [/file]")
            if config.kind == "odd": yield 5
            if config.kind == "empty": return
            if config.kind == "diverged": raise Diverged("loss is nan at step 1")
            loss = math.nan if config.kind == "nan" else config.x + 1 / step
            if config.kind == "word": loss = "low"
            if config.kind == "numpy": loss, step = np.float32(loss), np.int64(step)
            yield Evaluation(step=step, n_steps=STEPS, tokens=step * 100, seconds=step, metrics={"loss": loss})
    finally:
        (run.folder / "closed").touch()
        pathlib.Path(run.cache).mkdir(parents=True, exist_ok=True)
        (pathlib.Path(run.cache) / f"closed-{config.x:g}-{config.kind}").touch()
"""
ONLY_GOOD = re.compile('"good".*"numpy"')
STUDY = """
name = "cheap"
objective = "cheap_objective:train"
metric = "loss"
[budget]
trials = 3
[sampler]
name = "random"
[pruner]
name = "none"
[search_space]
x = { low = 0.0, high = 1.0 }
kind = { choices = ["good", "broken", "empty", "diverged", "nan", "odd", "word", "numpy"] }
"""


class Workshop:
    """A database, a cheap objective, and a worker that runs in this process."""

    def __init__(self, database: Database, folder: Path, objective) -> None:
        self.database = database
        self.folder = folder
        self.objective = objective
        self.said: list[str] = []
        self.settings = Settings(home=folder, heartbeat_every_s=0.1, stale_after_s=5, say=self.said.append)

    def create(self, text=STUDY, *points):
        study = studies.create_study(self.database, text, "cheap.toml")
        enqueue = optuna.load_study(study_name=study.name, storage=self.database.optuna)
        for point in points:
            enqueue.enqueue_trial(point)
        return study

    def outcomes(self):
        with self.database.begin() as connection:
            query = sa.text("select trial, outcome, value, reason from hpopt.trials order by trial")
            return [tuple(row) for row in connection.execute(query)]


@pytest.fixture
def workshop(database_url, tmp_path, monkeypatch):
    (tmp_path / "cheap_objective.py").write_text(OBJECTIVE)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("cheap_objective", None)
    objective = importlib.import_module("cheap_objective")
    database = Database(database_url)
    migrate.upgrade(database)
    yield Workshop(database, tmp_path, objective)
    database.close()
    sys.modules.pop("cheap_objective", None)


@pytest.mark.parametrize(
    ("kind", "outcome", "reason"),
    [
        ("good", "complete", None),
        ("broken", "failed", "RuntimeError: no such [/file]"),
        ("odd", "failed", "the objective yielded 5, which is no Evaluation"),
        ("word", "failed", "ValueError: could not convert string to float: 'low'"),
        ("numpy", "complete", None),
        ("empty", "failed", "the objective yielded no evaluation"),
        ("diverged", "diverged", "loss is nan at step 1"),
        ("nan", "diverged", "loss is nan at step 1"),
    ],
)
def test_a_trial_ends_as_what_it_was_and_the_study_goes_on(workshop, kind, outcome, reason):
    """A configuration that fails is a result; it must not take the worker or the study with it."""
    point = {"x": 0.25, "kind": kind}
    study = workshop.create(STUDY, point, {"x": 0.75, "kind": "good"})
    assert work(workshop.database, study, workshop.settings) == "3 trials done"
    default, enqueued, after = workshop.outcomes()
    assert default[1] == after[1] == "complete"
    assert (enqueued[1], enqueued[3]) == (outcome, reason)


def test_a_training_function_that_is_no_generator_fails_with_what_it_gave(workshop):
    (workshop.folder / "plain_objective.py").write_text(
        "from cheap_objective import Config\ndef train(config: Config, run): return 5\n"
    )
    study = workshop.create(STUDY.replace("cheap_objective:train", "plain_objective:train"))
    work(workshop.database, study, workshop.settings)
    assert workshop.outcomes()[0][3] == "plain_objective:train is no generator function: it returned 5"


def test_a_configuration_that_was_enqueued_past_the_study_file_fails_with_its_reason(workshop):
    study = workshop.create(STUDY, {"x": 99.0, "kind": "good"})
    with pytest.warns(UserWarning, match="out of range"):
        work(workshop.database, study, workshop.settings)
    assert workshop.outcomes()[1][1:] == ("failed", None, "x is above 10")


def test_a_metric_that_is_not_reported_is_named_with_those_that_are(workshop):
    study = workshop.create(STUDY.replace('metric = "loss"', 'metric = "accuracy"'))
    work(workshop.database, study, workshop.settings)
    assert "the objective reports no 'accuracy'; it reports loss" in workshop.outcomes()[0][3]


def test_pruning_closes_the_training_function_and_spares_the_defaults(workshop):
    """A generator that is only dropped leaves its files, processes and GPU memory behind."""
    text = STUDY.replace('name = "none"', 'name = "asha"').replace("trials = 3", "trials = 2")
    study = workshop.create(ONLY_GOOD.sub('"good"', text), {"x": 0.9})
    work(workshop.database, study, workshop.settings)
    default, worse = workshop.outcomes()
    assert default[1] == "complete"
    assert (worse[1], worse[3]) == ("pruned", "not among the best at step 1")
    assert (workshop.folder / "cache" / "closed-0.9-good").exists()


def test_the_defaults_are_not_pruned_by_a_better_trial_before_them(workshop):
    """Everything is measured against them, so they need a value at the end of the schedule."""
    text = STUDY.replace('name = "none"', 'name = "asha"').replace("trials = 3", "trials = 2")
    study = workshop.create(text, {"x": 0.1, "kind": "good"})

    def set_the_defaults_to(state):
        with workshop.database.begin() as connection:
            query = "update public.trials set state = :state, datetime_start = now() where number = 0"
            connection.execute(sa.text(query.replace(":state", f"'{state}'")))

    set_the_defaults_to("RUNNING")
    workshop.objective.HOOK = lambda config, step: (
        set_the_defaults_to("WAITING") if (config.x, step) == (0.1, 9) else None
    )
    work(workshop.database, study, workshop.settings)
    default, better = workshop.outcomes()
    assert (default[1], better[1]) == ("complete", "complete")
    assert default[2] > better[2]


def test_the_hours_are_checked_at_every_evaluation(workshop):
    study = workshop.create(STUDY.replace("trials = 3", "wall_hours = 1.0"))

    def let_an_hour_pass(_config, step):
        if step == 4:
            with workshop.database.begin() as connection:
                connection.execute(sa.text("update hpopt.attempt set started_at = now() - interval '2 hours'"))

    workshop.objective.HOOK = let_an_hour_pass
    assert work(workshop.database, study, workshop.settings) == "1 hours passed"
    (trial,) = [row for row in workshop.outcomes() if row[1]]
    assert (trial[1], trial[3]) == ("pruned", "the budget ended at step 4: 1 hours passed")


def test_a_worker_whose_trial_was_handed_on_says_so_and_takes_the_next(workshop):
    study = workshop.create()
    fenced = []

    def hand_it_on(_config, step):
        if step == 5 and not fenced:
            fenced.append(step)
            with workshop.database.begin() as connection:
                ended = "update hpopt.attempt set ended_at = now(), outcome = 'lost' where ended_at is null"
                connection.execute(sa.text(ended))
                connection.execute(sa.text("update public.trials set state = 'FAIL' where state = 'RUNNING'"))

    workshop.objective.HOOK = hand_it_on
    assert work(workshop.database, study, workshop.settings) == "3 trials done"
    assert "trial 0 was handed on to another worker" in workshop.said
    goes = queries.read_rows(workshop.database, "select go, outcome from hpopt.attempt order by attempt_id")[1]
    assert goes[:2] == [[1, "lost"], [2, "complete"]]


def test_a_stopped_worker_hands_its_trial_back(workshop):
    study = workshop.create()
    stop = threading.Event()
    workshop.objective.HOOK = lambda _config, step: stop.set() if step == 5 else None
    settings = Settings(home=workshop.folder, say=workshop.said.append, stop=stop)
    with pytest.raises(Interrupted):
        work(workshop.database, study, settings)
    counted = books.read_books(workshop.database, study)
    assert (counted.n_ended, counted.n_held, counted.n_waiting) == (0, 0, 1)
    workshop.objective.HOOK = None
    assert work(workshop.database, study, workshop.settings) == "3 trials done"
    curve = queries.read_table(workshop.database, study).trials[0].curve
    assert [point.step for point in curve] == list(range(1, 10))
