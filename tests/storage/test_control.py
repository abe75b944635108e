"""A study can be paused, resumed, stopped and given configurations by anybody, at any time, as often as they like."""

import optuna
import pytest
import sqlalchemy as sa

from hpopt.errors import InputError
from hpopt.storage import control, studies
from hpopt.study.reading import parse_study_file


def states(database, study):
    query = "select state, state_reason, state_since from hpopt.study where study_id = :id"
    with database.begin() as connection:
        return tuple(connection.execute(sa.text(query), {"id": study.study_id}).one())


def waiting(database, study):
    """Give what is enqueued, oldest first."""
    optuna_study = optuna.load_study(study_name=study.name, storage=database.optuna)
    trials = optuna_study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,))
    return [trial.system_attrs["fixed_params"] for trial in trials]


def test_a_new_study_is_open(database, study):
    assert control.read_state(database, study).state == "open"


def test_pausing_keeps_the_reason_and_resuming_drops_it(database, study):
    assert control.pause(database, study, "nodes are needed").reason == "nodes are needed"
    assert states(database, study)[:2] == ("paused", "nodes are needed")
    assert control.resume(database, study).reason is None
    assert states(database, study)[:2] == ("open", None)


def test_a_pause_without_a_reason_is_by_hand(database, study):
    assert control.pause(database, study).reason == "by hand"


def test_a_second_pause_changes_neither_the_reason_nor_the_time(database, study):
    """Whoever repeats a command must not wipe out why a run of failures paused the study."""
    control.pause(database, study, "5 trials in a row failed")
    first = states(database, study)
    control.pause(database, study)
    assert states(database, study) == first


def test_a_second_pause_with_a_reason_takes_over_the_reason_alone(database, study):
    control.pause(database, study, "5 trials in a row failed")
    since = states(database, study)[2]
    control.pause(database, study, "the data are being repaired")
    assert states(database, study) == ("paused", "the data are being repaired", since)


def test_resuming_opens_a_stopped_study_too(database, study):
    control.stop(database, study)
    assert states(database, study)[0] == "stopped"
    control.resume(database, study)
    assert states(database, study)[0] == "open"


def test_a_paused_study_can_be_stopped(database, study):
    control.pause(database, study, "nodes are needed")
    control.stop(database, study)
    assert states(database, study)[:2] == ("stopped", "by hand")


def test_a_stopped_study_is_not_paused(database, study):
    """Paused it would wait for a resume that nobody thinks of: it was over."""
    control.stop(database, study)
    with pytest.raises(InputError, match=r"study 'tiny' is stopped; `hpopt resume tiny` opens it again"):
        control.pause(database, study)
    assert states(database, study)[0] == "stopped"


def test_creating_a_study_again_leaves_it_paused(database, study, study_file):
    control.pause(database, study, "nodes are needed")
    studies.create_study(database, parse_study_file(study_file.replace("trials = 4", "trials = 5")), "tiny.toml")
    assert states(database, study)[:2] == ("paused", "nodes are needed")


def test_another_study_keeps_its_state(database, study, study_file):
    other = studies.create_study(database, parse_study_file(study_file.replace('"tiny"', '"other"'), "other.toml"))
    control.pause(database, study)
    assert states(database, other)[0] == "open"


def test_a_configuration_is_tried_after_those_that_wait(database, study):
    added = control.enqueue(database, study, {"learning_rate": 0.05})
    assert (added.trial, added.is_new, added.n_ahead) == (1, True, 1)
    assert waiting(database, study)[1] == {"learning_rate": 0.05}


def test_a_configuration_beyond_the_budget_is_told_what_ends_the_study_first(database, study):
    control.enqueue(database, study, {"ns_steps": 1})
    control.enqueue(database, study, {"ns_steps": 2})
    assert control.enqueue(database, study, {"ns_steps": 3}).ends_before is None
    assert control.enqueue(database, study, {"ns_steps": 4}).ends_before == "the budget of 4 trials is taken"


def test_what_waits_already_is_not_enqueued_twice(database, study):
    control.enqueue(database, study, {"learning_rate": 0.05, "optimizer": "muon"})
    again = control.enqueue(database, study, {"optimizer": "muon", "learning_rate": 0.05})
    assert (again.trial, again.is_new) == (1, False)
    assert len(waiting(database, study)) == 2


def test_a_part_of_a_configuration_is_another_one(database, study):
    control.enqueue(database, study, {"learning_rate": 0.05, "ns_steps": 7})
    assert control.enqueue(database, study, {"learning_rate": 0.05}).is_new
    assert control.enqueue(database, study, {"learning_rate": 0.05, "ns_steps": 6}).is_new


def test_what_was_sampled_is_not_tried_again(database, study):
    """Whoever copies the parameters of a trial gets told its number, not a second run with another seed."""
    optuna_study = optuna.load_study(study_name=study.name, storage=database.optuna)
    params = {"learning_rate": 0.1, "momentum": 0.9, "ns_steps": 5, "optimizer": "adamw"}
    distributions = {
        "learning_rate": optuna.distributions.FloatDistribution(1e-3, 0.3, log=True),
        "momentum": optuna.distributions.FloatDistribution(0.8, 0.99),
        "ns_steps": optuna.distributions.IntDistribution(1, 9),
        "optimizer": optuna.distributions.CategoricalDistribution(["muon", "adamw"]),
    }
    optuna_study.add_trial(optuna.trial.create_trial(value=1.0, params=params, distributions=distributions))
    assert not control.enqueue(database, study, params).is_new


def test_a_grid_takes_no_further_configuration(database, study_file):
    """Its points are all enqueued, and its budget counts them: another would push one of them out."""
    space = study_file.replace('"random"', '"grid"').split("[search_space]")[0]
    text = space.replace('"tiny"', '"grid"') + "[search_space]\nns_steps = { low = 1, high = 3, type = 'int' }\n"
    grid = studies.create_study(database, parse_study_file(text, "grid.toml"))
    with pytest.raises(InputError, match=r"study 'grid' tries a grid, whose points are all enqueued"):
        control.enqueue(database, grid, {"ns_steps": 2})
