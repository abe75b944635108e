"""Trials that stock Optuna adds to a study are shown, told apart, and it is said which of them the sampler uses."""

import json
import warnings
from contextlib import closing

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial

import hpopt
from hpopt.storage.database import Database
from hpopt.storage.observations import ObservedTrials
from hpopt.storage.studies import load_study

LEARNING_RATE = FloatDistribution(1e-3, 0.3, log=True)
SAME = {"learning_rate": LEARNING_RATE}
FURTHER = {"learning_rate": LEARNING_RATE, "weight_decay": FloatDistribution(0.0, 1.0)}
ANOTHER_RANGE = {"learning_rate": FloatDistribution(1e-5, 1.0, log=True)}
LINE = "trials added outside of hpopt: 2 and 3, used by the sampler; 4 and 5, not used: other parameters or ranges than"


@pytest.fixture
def database(created, migrated_url):
    """A study of trials that stock Optuna ran: two of its space, one with a further parameter, one of another range."""
    with closing(Database(migrated_url)) as database, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock = optuna.load_study(study_name="answer", storage=database.optuna)
        stock.add_trial(create_trial(state=optuna.trial.TrialState.FAIL))
        for value, distributions in ((0.5, SAME), (0.4, SAME), (0.3, FURTHER), (0.6, ANOTHER_RANGE)):
            params = dict.fromkeys(distributions, 0.01)
            stock.add_trial(create_trial(params=params, distributions=distributions, value=value))
        yield database


def test_status_says_which_trials_the_sampler_uses(database, created):
    assert LINE in created.output("status", "answer")
    external = json.loads(created.output("status", "answer", "--json"))["external"]
    assert external == {"used": [2, 3], "left_out": [4, 5], "sampler": "tpe"}


def test_the_answer_says_that_its_trial_was_added_outside_of_hpopt(database, created):
    answer = created.output("best", "answer")
    assert "in trial 4, which was added outside of hpopt" in answer
    assert LINE in answer
    assert "weight_decay" in answer
    assert json.loads(created.output("best", "answer", "--format", "json"))["params"]["weight_decay"] == 0.01
    assert hpopt.best("answer", storage=database).trial == 4


def test_the_report_says_which_trials_the_sampler_uses(database, created, tmp_path):
    created("report", "answer", "--output", tmp_path)
    for name in ("report.md", "index.html"):
        assert f"T{LINE[1:]}" in (tmp_path / name).read_text()


def test_the_sampler_uses_the_trials_that_are_named(database):
    observed = ObservedTrials(database, load_study(database, "answer"))
    observed.refresh()
    assert observed.observations().score.tolist() == [0.5, 0.4]


def test_a_study_without_trials_of_others_has_no_such_line(created):
    assert "outside of hpopt" not in created.output("status", "answer")
