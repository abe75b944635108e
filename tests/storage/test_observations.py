"""The sampler observes the trials of the database that have all params of its space."""

import warnings

import numpy as np
import optuna
import pytest

from hpopt.search import sampler, tpe
from hpopt.storage import control, studies
from hpopt.storage.observations import ObservedTrials
from hpopt.study.reading import parse_study_file


def test_the_sampler_observes_the_trials_that_stock_optuna_has(asha_fleet):
    """States, values, params and constraints must be those of the database, read as they change or all at once.

    Stock Optuna's samplers do not see the failed one.
    """
    outcomes = ["complete", "pruned", "diverged", "failed", "complete"]
    asha_fleet.observed.refresh()
    running = [asha_fleet.start() for _ in outcomes]
    asha_fleet.observed.refresh()
    for k, (attempt, outcome) in enumerate(zip(running, outcomes, strict=True)):
        asha_fleet.record(attempt, 10, 1.0 + k)
        asha_fleet.finish(attempt, outcome, value=2.0 + k if outcome == "complete" else None)
    last = asha_fleet.start()
    tpe_kinds = [tpe.COMPLETE, tpe.PRUNED, tpe.INFEASIBLE, tpe.FAILED, tpe.COMPLETE]
    for observed in (asha_fleet.observed, ObservedTrials(asha_fleet.database, asha_fleet.study)):
        observed.refresh()
        observations = observed.observations()
        stock = asha_fleet.stock().trials
        assert list(observations.values["momentum"]) == [trial.params["momentum"] for trial in stock]
        assert [*observations.kind] == [*tpe_kinds, tpe.RUNNING]
        assert [*observations.score[:3], observations.score[4]] == [2.0, 2.0, 1.0, 6.0]
        assert observations.step[1] == 10
        assert observations.values["momentum"][-1] == last.params["momentum"]


def test_a_failed_trial_that_is_requeued_is_not_observed_until_it_runs_again(asha_fleet):
    attempt = asha_fleet.start()
    asha_fleet.finish(attempt, "failed", reason="broken")
    asha_fleet.observed.refresh()
    assert list(asha_fleet.observed.observations().kind) == [tpe.FAILED]
    control.retry(asha_fleet.database, asha_fleet.study)
    asha_fleet.observed.refresh()
    assert list(asha_fleet.observed.observations().kind) == []
    asha_fleet.start()
    asha_fleet.observed.refresh()
    assert list(asha_fleet.observed.observations().kind) == [tpe.RUNNING]


def test_the_observations_grow_beyond_their_first_capacity(asha_fleet):
    asha_fleet.execute(
        "insert into public.trials (study_id, number, state) select study_id, n, 'RUNNING' "
        "from hpopt.study, generate_series(1, 600) n"
    )
    asha_fleet.execute(
        "insert into public.trial_params (trial_id, param_name, param_value, distribution_json) "
        """select trial_id, 'momentum', 0.8 + number / 10000.0, '{"name": "FloatDistribution", "attributes": """
        """{"step": null, "low": 0.8, "high": 0.99, "log": false}}' from public.trials where number > 0"""
    )
    asha_fleet.observed.refresh()
    observations = asha_fleet.observed.observations()
    assert len(observations.kind) == 600
    assert observations.values["momentum"][-1] == pytest.approx(0.86)


def test_trials_of_another_space_are_not_observed(fleet):
    """One trial with another range would make multivariate TPE drop the parameter without a warning."""
    stock = fleet.stock()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = stock.ask({"momentum": optuna.distributions.FloatDistribution(0.1, 0.2)})
        stock.tell(theirs, 0.1)
        space = sampler.to_distributions(fleet.study.file.search_space)
        other_names = {f"my_{name}": distribution for name, distribution in space.items()}
        stock.tell(stock.ask(other_names), 0.1)
    fleet.observed.refresh()
    assert fleet.observed.observations().n_finished == 0


def test_trials_with_their_active_params_are_observed_and_no_others(database, make_fleet, study_file):
    """An inactive parameter has no value; a trial of another program that has one is of another space."""
    conditional = study_file.replace("high = 0.99 }", 'high = 0.99, when = { optimizer = "muon" } }')
    fleet = make_fleet(studies.create_study(database, parse_study_file(conditional, "tiny.toml")))
    space = sampler.to_distributions(fleet.study.file.search_space)
    params = {"learning_rate": 0.01, "ns_steps": 5, "optimizer": "adamw"}
    for own in (params, {**params, "optimizer": "muon", "momentum": 0.9}, {**params, "momentum": 0.9}):
        distributions = {name: space[name] for name in own}
        fleet.stock().add_trial(optuna.trial.create_trial(params=own, distributions=distributions, value=0.1))
    fleet.observed.refresh()
    observations = fleet.observed.observations()
    assert [*observations.kind] == [tpe.COMPLETE] * 2
    np.testing.assert_equal(observations.values["momentum"], [np.nan, 0.9])
