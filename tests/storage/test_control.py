"""A study can be paused, resumed, stopped and given configurations at any time, and each command can be repeated."""

from concurrent.futures import ThreadPoolExecutor
from statistics import stdev

import optuna
import pytest
import sqlalchemy as sa
from scipy import stats

from hpopt.errors import InputError
from hpopt.storage import budget, control, queries, studies
from hpopt.storage.database import Database
from hpopt.storage.progress import Enqueued
from hpopt.study.reading import parse_study_file


def state_of(database, study):
    query = "select state, state_reason, state_since from hpopt.study where study_id = :id"
    with database.begin() as connection:
        return tuple(connection.execute(sa.text(query), {"id": study.study_id}).one())


def enqueued(database, study):
    """Return the params of the enqueued trials, oldest first."""
    optuna_study = optuna.load_study(study_name=study.name, storage=database.optuna)
    trials = optuna_study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,))
    return [trial.system_attrs["fixed_params"] for trial in trials]


def test_a_new_study_is_open(database, study):
    state = control.read_state(database, study)
    assert (state.state, state.reason, state.n_running, state.n_pending_retry) == ("open", None, 0, 0)


def test_the_state_counts_running_trials_and_those_to_be_retried(fleet):
    fleet.start()
    fleet.lose(fleet.start())
    fleet.finish(fleet.start(), "preempted")
    fleet.finish(fleet.start(), value=1.0)
    # The third attempt retried the lost trial and was preempted; the fourth retried it again.
    state = control.read_state(fleet.database, fleet.study)
    assert (state.n_running, state.n_pending_retry) == (1, 0)
    fleet.lose(fleet.start())
    assert control.read_state(fleet.database, fleet.study).n_pending_retry == 1


def test_pausing_stores_the_reason_and_resuming_clears_it(database, study):
    assert control.pause(database, study, "nodes are needed").reason == "nodes are needed"
    assert state_of(database, study)[:2] == ("paused", "nodes are needed")
    assert control.resume(database, study).reason is None
    assert state_of(database, study)[:2] == ("open", None)


def test_a_reason_can_have_any_characters(database, study):
    assert control.pause(database, study, "a\0\udcff 😀").reason == "a\ufffd 😀"


def test_the_reason_of_a_pause_is_manually_unless_one_is_given(database, study):
    assert control.pause(database, study).reason == "manually"


def test_a_second_pause_changes_neither_the_reason_nor_the_time(database, study):
    """Repeating the command must not overwrite why a series of failures paused the study."""
    control.pause(database, study, "5 trials in a row failed")
    first = state_of(database, study)
    control.pause(database, study)
    assert state_of(database, study) == first


def test_a_second_pause_with_a_reason_replaces_only_the_reason(database, study):
    control.pause(database, study, "5 trials in a row failed")
    since = state_of(database, study)[2]
    control.pause(database, study, "the data are being repaired")
    assert state_of(database, study) == ("paused", "the data are being repaired", since)


def test_resuming_an_open_study_does_not_change_the_time(database, study):
    """The time bounds the failures that are counted before the study is paused."""
    before = state_of(database, study)
    control.resume(database, study)
    assert state_of(database, study) == before


def test_resuming_opens_a_stopped_study(database, study):
    control.stop(database, study)
    assert state_of(database, study)[0] == "stopped"
    control.resume(database, study)
    assert state_of(database, study)[0] == "open"


def test_a_paused_study_can_be_stopped(database, study):
    control.pause(database, study, "nodes are needed")
    control.stop(database, study)
    assert state_of(database, study)[:2] == ("stopped", "manually")


def test_a_stopped_study_is_not_paused(database, study):
    """It would wait for a resume instead of staying finished."""
    control.stop(database, study)
    with pytest.raises(InputError, match=r"study 'tiny' is stopped; `hpopt resume tiny` opens it again"):
        control.pause(database, study)
    assert state_of(database, study)[0] == "stopped"


def test_creating_a_study_again_leaves_it_paused(database, study, study_file):
    control.pause(database, study, "nodes are needed")
    studies.create_study(database, parse_study_file(study_file.replace("trials = 4", "trials = 5"), "tiny.toml"))
    assert state_of(database, study)[:2] == ("paused", "nodes are needed")


def test_other_studies_keep_their_state(database, study, study_file):
    other = studies.create_study(database, parse_study_file(study_file.replace('"tiny"', '"other"'), "other.toml"))
    control.pause(database, study)
    assert state_of(database, other)[0] == "open"


def test_a_deleted_study_is_refused(database, study):
    optuna.delete_study(study_name=study.name, storage=database.optuna)
    with pytest.raises(InputError, match=r"^study 'tiny' was deleted$"):
        control.pause(database, study)


def test_a_configuration_is_enqueued_behind_those_that_wait(database, study):
    added = control.enqueue(database, study, {"learning_rate": 0.05})
    assert added == Enqueued(trials=(1,), is_new=True, n_ahead=1)
    assert enqueued(database, study)[1] == {"learning_rate": 0.05}


def test_trials_to_be_retried_are_ahead_of_a_configuration(fleet):
    fleet.finish(fleet.start(), "preempted")
    assert control.enqueue(fleet.database, fleet.study, {"learning_rate": 0.05}).n_ahead == 1


def test_a_configuration_beyond_the_budget_is_returned_with_what_finishes_the_study_before_it(database, study):
    control.enqueue(database, study, {"ns_steps": 1})
    control.enqueue(database, study, {"ns_steps": 2})
    assert control.enqueue(database, study, {"ns_steps": 3}).blocked_by is None
    blocked = control.enqueue(database, study, {"ns_steps": 4}).blocked_by
    assert blocked == "trials budget reserved by earlier trials (4)"


def test_a_configuration_after_the_end_of_the_budget_is_returned_with_the_limit(fleet):
    for _ in range(4):
        fleet.finish(fleet.start(), value=1.0)
    added = control.enqueue(fleet.database, fleet.study, {"ns_steps": 4})
    assert (added.n_ahead, added.blocked_by) == (0, "trials budget exhausted (4)")


def test_an_enqueued_configuration_is_not_enqueued_again(database, study):
    control.enqueue(database, study, {"learning_rate": 0.05, "optimizer": "muon"})
    again = control.enqueue(database, study, {"optimizer": "muon", "learning_rate": 0.05})
    assert again == Enqueued(trials=(1,), is_new=False)
    assert len(enqueued(database, study)) == 2


def test_a_part_of_a_configuration_is_another_configuration(database, study):
    control.enqueue(database, study, {"learning_rate": 0.05, "ns_steps": 7})
    assert control.enqueue(database, study, {"learning_rate": 0.05}).is_new
    assert control.enqueue(database, study, {"learning_rate": 0.05, "ns_steps": 6}).is_new


def test_the_params_of_a_finished_trial_are_not_enqueued_again(database, study):
    """Copying the parameters of a trial returns its number instead of a second run with another seed."""
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


def test_params_with_another_seed_are_another_trial(fleet):
    """The trial that was given none runs with the seed of the objective's config."""
    params = {"learning_rate": 0.1, "momentum": 0.9, "ns_steps": 5, "optimizer": "adamw"}
    first = control.enqueue(fleet.database, fleet.study, params)
    assert control.enqueue(fleet.database, fleet.study, params, seed=0) == Enqueued(trials=first.trials, is_new=False)
    added = control.enqueue(fleet.database, fleet.study, params, seed=1)
    assert (added.trials, added.seeds, added.is_new) == ((2,), (1,), True)
    assert not control.enqueue(fleet.database, fleet.study, params, seed=1).is_new
    assert [fleet.start().seed for _ in range(3)] == [None, None, 1]
    assert fleet.stock().trials[2].user_attrs == {"seed": 1}


def test_further_seeds_are_the_lowest_that_no_trial_of_the_configuration_has(database, study):
    params = {"learning_rate": 0.1, "momentum": 0.9, "ns_steps": 5, "optimizer": "adamw"}
    control.enqueue(database, study, params, seed=2)
    added = control.enqueue(database, study, params, n_fresh_seeds=3)
    assert (added.trials, added.seeds) == ((2, 3, 4), (0, 1, 3))
    assert control.enqueue(database, study, {**params, "ns_steps": 6}, n_fresh_seeds=2).seeds == (0, 1)


def test_the_best_configuration_is_that_of_the_best_mean_over_its_seeds(database, make_fleet, study_file):
    """A lucky run is not the answer once its configuration was repeated."""
    text = study_file.replace("trials = 4", "trials = 40")
    fleet = make_fleet(studies.create_study(database, parse_study_file(text, "tiny.toml")))
    fleet.finish(fleet.start(), value=3.0)
    lucky = fleet.start()
    fleet.finish(lucky, value=1.0)
    assert queries.best(database, fleet.study).n_seeds == 1
    control.enqueue(database, fleet.study, lucky.params, n_fresh_seeds=2)
    for value in (2.0, 2.4):
        fleet.finish(fleet.start(), value=value)
    best = queries.best(database, fleet.study)
    interval = stats.t.interval(0.95, 2, loc=1.8, scale=stdev([1.0, 2.0, 2.4]) / 3**0.5)
    assert (best.value, best.value_low, best.value_high) == pytest.approx((1.8, *interval), abs=1e-4)
    assert (best.n_seeds, best.trial, best.params) == (3, lucky.number, lucky.params)
    # A single run that looks better may be a lucky one.
    fleet.finish(fleet.start(), value=1.7)
    assert queries.best(database, fleet.study) == best


def test_equal_configurations_that_are_enqueued_at_once_are_one_trial(database, study):
    connections = [Database(database.url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        added = list(pool.map(lambda one: control.enqueue(one, study, {"ns_steps": 7}), connections))
    assert {one.trials for one in added} == {(1,)}
    assert [one.is_new for one in added].count(True) == 1
    assert len(enqueued(database, study)) == 2
    for connection in connections:
        connection.close()


GRID = """
name = "grid"
[budget]
trials = 100
[sampler]
name = "grid"
[search_space]
ns_steps = { low = 1, high = 3, type = "int" }
"""


def test_a_point_of_a_grid_is_repeated_with_another_seed(database, make_fleet):
    fleet = make_fleet(studies.create_study(database, parse_study_file(GRID, "grid.toml")))
    assert control.enqueue(database, fleet.study, {"ns_steps": 2}) == Enqueued(trials=(1,), is_new=False)
    assert control.enqueue(database, fleet.study, {"ns_steps": 2}, n_fresh_seeds=2).trials == (3, 4)
    while fleet.reserve() is not None:
        fleet.execute("update hpopt.attempt set ended_at = now(), outcome = 'complete' where ended_at is null")
    usage = budget.read_usage(database, fleet.study)
    assert budget.finished_reason(fleet.study, usage) == "trials budget exhausted (5)"


def test_a_configuration_that_is_no_point_of_a_grid_is_refused(database):
    grid = studies.create_study(database, parse_study_file(GRID, "grid.toml"))
    with pytest.raises(InputError, match=r"study 'grid' tries a grid, whose points are all enqueued"):
        control.enqueue(database, grid, {"ns_steps": 4})


def test_an_integer_is_the_value_that_a_float_equals_and_true_is_another(database, study):
    """JSON keeps no 1.0, and a choice can be true."""
    assert control.enqueue(database, study, {"momentum": 1}).is_new
    assert not control.enqueue(database, study, {"momentum": 1.0}).is_new
    assert control.enqueue(database, study, {"momentum": True}).is_new


def test_only_the_user_attribute_seed_of_a_trial_is_its_seed(fleet):
    params = {"ns_steps": 7}
    fleet.stock().enqueue_trial(params, user_attrs={"priority": 3, "seed": 4})
    assert control.enqueue(fleet.database, fleet.study, params, seed=3).is_new
    assert not control.enqueue(fleet.database, fleet.study, params, seed=4).is_new


def test_the_params_of_a_trial_are_those_that_it_ran_with(fleet):
    attempt = fleet.start()
    assert control.params_of(fleet.database, fleet.study, attempt.number) == attempt.params
    fleet.stock().enqueue_trial({})
    for number in (1, 9):
        with pytest.raises(InputError, match=f"^study 'tiny' has no trial {number} with parameters$"):
            control.params_of(fleet.database, fleet.study, number)
