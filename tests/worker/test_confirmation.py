"""Workers follow a finished search with its confirmation, and record one answer."""

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import optuna
import pytest
import sqlalchemy as sa

from hpopt.errors import InputError
from hpopt.storage import budget, confirmation, control, deletion, queries, studies
from hpopt.storage.database import Database
from hpopt.study.file import Confirm
from hpopt.study.reading import parse_study_file
from hpopt.worker.attempt import WorkerOptions
from hpopt.worker.loop import work

# The best of the points is 0.3; a run's noise has a standard deviation of 0.01, and 0.4 fails with one seed.
OBJECTIVE = """
from dataclasses import dataclass
import numpy as np
from hpopt.training.run import Evaluation

FAILS_WITH = None

@dataclass(frozen=True)
class Config:
    x: float = 0.5
    seed: int = 0

def train(config: Config, run):
    noise = 0.01 * np.random.default_rng([config.seed, int(1000 * config.x)]).normal()
    if (config.x, config.seed) == FAILS_WITH:
        raise RuntimeError("unstable")
    metrics = {"loss": 1 + abs(config.x - 0.3) + noise}
    if run.evaluates_test:
        metrics["test_loss"] = 2 + config.x
    yield Evaluation(step=1, n_steps=1, tokens=10, seconds=0.1, metrics=metrics)
"""
STUDY = """
name = "cheap"
objective = "noisy_objective:train"
metric = "loss"
[budget]
trials = 9
[sampler]
name = "grid"
[confirm]
top = 3
seeds = 4
[search_space]
x = { choices = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9] }
"""


class Workers:
    """Workers that run in threads of this process, each with a connection of its own."""

    def __init__(self, url, folder):
        self.url = url
        self.folder = folder
        self.database = Database(url)

    def create(self, text=STUDY):
        return studies.create_study(self.database, parse_study_file(text, "cheap.toml"))

    def run(self, study):
        """Run a worker until the family has finished, and return why it has."""
        times = {"heartbeat_every_s": 0.1, "poll_every_s": 0.05}
        with closing(Database(self.url)) as database:
            return work(database, study, WorkerOptions(home=self.folder, log=lambda _line: None, **times))

    def rows(self, query):
        with self.database.begin() as connection:
            return [tuple(row) for row in connection.execute(sa.text(query))]


@pytest.fixture
def workers(migrated_url, tmp_path, monkeypatch):
    (tmp_path / "noisy_objective.py").write_text(OBJECTIVE)
    monkeypatch.syspath_prepend(tmp_path)
    workers = Workers(migrated_url, tmp_path)
    yield workers
    workers.database.close()
    sys.modules.pop("noisy_objective", None)


RUNS = "select params ->> 'x', array_agg(seed order by seed) from hpopt.trials where study_name = '{}' group by 1"


def test_workers_run_the_best_configurations_again_with_fresh_paired_seeds(workers):
    study = workers.create()
    assert workers.run(study) == "trials budget exhausted (9); confirmation finished"
    assert sorted(workers.rows(RUNS.format("cheap@confirm"))) == [(x, [1, 2, 3, 4]) for x in ("0.2", "0.3", "0.4")]
    best = queries.best(workers.database, study)
    assert (best.answer, best.params, best.n_seeds, best.source) == ("confirmed", {"x": 0.3}, 4, "confirm")
    values = best.candidates[0].values
    assert best.value == pytest.approx(sum(values) / 4)
    assert best.value_low < 1.0 < best.value_high
    assert [one.is_tied for one in best.candidates] == [True, False, False]
    assert best.optimism == pytest.approx(best.value - best.candidates[0].search_value)


def test_workers_that_find_a_search_finished_at_once_create_one_confirmation(workers):
    study = workers.create(STUDY.replace("[confirm]\ntop = 3\nseeds = 4\n", ""))
    workers.run(study)
    study = workers.create()

    def follow(_number):
        with closing(Database(workers.url)) as database:
            return confirmation.continue_family(database, study, "finished").next_study.study_id

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(follow, range(6)))) == 1
    assert workers.rows(
        "select count(*) from public.trials join hpopt.study using (study_id) where role = 'confirm'"
    ) == [(12,)]


def test_only_the_test_metrics_of_the_answer_are_shown(workers):
    study = workers.create()
    workers.run(study)
    assert queries.best(workers.database, study).test_metrics == {"test_loss": pytest.approx(2.3)}
    assert workers.rows("select distinct jsonb_object_keys(metrics) from hpopt.learning_curves") == [("loss",)]
    rows = workers.rows("select to_jsonb(t) from hpopt.trials t") + workers.rows(
        "select to_jsonb(a) from hpopt.attempts a"
    )
    assert not any("test_loss" in str(row) for row in rows)


def test_the_files_of_the_answer_are_those_of_its_run_with_the_lowest_seed(workers):
    study = workers.create()
    workers.run(study)
    folder = queries.best(workers.database, study).folder
    query = "select seed from hpopt.trials where study_name = 'cheap@confirm' and folder = '{}'"
    assert workers.rows(query.format(folder)) == [(1,)]
    assert len(workers.rows("select from hpopt.trials where study_name = 'cheap@confirm' and folder is not null")) == 3


def test_a_noisy_winner_is_a_tie_with_a_recommendation(workers):
    (workers.folder / "noisy_objective.py").write_text(OBJECTIVE.replace("0.01 *", "1.0 *"))
    study = workers.create()
    workers.run(study)
    best = queries.best(workers.database, study)
    assert best.answer == "tie"
    assert sum(one.is_tied for one in best.candidates) > 1
    assert best.trial in [one.trial for one in best.candidates if one.is_tied]


def test_a_configuration_with_a_failed_run_is_left_out(workers):
    (workers.folder / "noisy_objective.py").write_text(OBJECTIVE.replace("FAILS_WITH = None", "FAILS_WITH = (0.3, 2)"))
    study = workers.create()
    workers.run(study)
    best = queries.best(workers.database, study)
    assert sorted(one.params["x"] for one in best.candidates) == [0.2, 0.4]


def test_a_stopped_study_is_confirmed_only_when_it_is_asked_for(workers):
    study = workers.create(STUDY.replace("[confirm]\ntop = 3\nseeds = 4\n", ""))
    workers.run(study)
    control.stop(workers.database, study)
    study = workers.create()
    assert workers.run(study).startswith("stopped")
    assert confirmation.find_confirmation(workers.database, study) is None
    confirmation.create_confirmation(workers.database, study, Confirm(top=2, seeds=2))
    assert workers.run(study).endswith("confirmation finished")
    assert queries.best(workers.database, study).n_seeds == 2


def test_one_configuration_is_not_confirmed(workers):
    study = workers.create(STUDY.partition("x = {")[0].replace("trials = 9", "trials = 1") + "x = { choices = [0.3] }")
    assert workers.run(study) == "trials budget exhausted (1)"
    with pytest.raises(InputError, match="fewer than two complete configurations"):
        confirmation.create_confirmation(workers.database, study, Confirm())


def test_a_further_confirmation_adds_fresh_seeds_to_the_same_configurations(workers):
    study = workers.create()
    workers.run(study)
    again = confirmation.create_confirmation(workers.database, study, Confirm(top=2, seeds=2))
    assert again.name == "cheap@confirm"
    assert confirmation.family_finished_reason(workers.database, study) is None
    workers.run(study)
    assert {len(seeds) for _, seeds in workers.rows(RUNS.format("cheap@confirm"))} == {6}
    assert queries.best(workers.database, study).n_seeds == 6


def test_the_name_of_a_foreign_study_is_refused_and_the_answer_of_the_search_stands(workers):
    optuna.create_study(study_name="cheap@confirm", storage=workers.database.optuna)
    study = workers.create()
    with pytest.raises(InputError, match="has a study 'cheap@confirm' that hpopt did not create"):
        workers.run(study)
    assert queries.best(workers.database, study).answer == "unconfirmed"


def test_a_worker_is_started_for_the_root_of_a_family(workers):
    study = workers.create()
    workers.run(study)
    child = confirmation.find_confirmation(workers.database, study)
    with pytest.raises(InputError, match="belongs to 'cheap'"):
        workers.run(child)


def test_deleting_a_study_deletes_what_follows_it(workers):
    study = workers.create()
    workers.run(study)
    content = deletion.read_content(workers.database, "cheap")
    assert ([name for name, _ in content.family], content.n_trials) == (["cheap", "cheap@confirm"], 21)
    deletion.delete_study(workers.database, study.study_id)
    assert workers.rows("select study_name from public.studies") == []
    assert workers.rows("select count(*) from hpopt.answer") == [(0,)]


def test_the_expected_cost_of_the_confirmation_is_set_aside(workers):
    """Runs of 60 s and 12 of them reserved: a search of 0.5 device hours ends after 18 minutes."""
    text = STUDY.replace("trials = 9", "gpu_hours = 0.5").replace('name = "grid"', 'name = "random"')
    study = workers.create(text)
    assert budget.compare(study, device_hours=0.29, wall_hours=0, reserved_hours=0.2, best_value=None) is None
    reached = budget.compare(study, device_hours=0.3, wall_hours=0, reserved_hours=0.2, best_value=None)
    assert reached == "gpu_hours budget exhausted (0.5, 0.2 of them for the confirmation)"
