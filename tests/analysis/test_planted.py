"""What was planted is found, and in pure noise nothing is; benchmarks/planted.py measures how often, on more seeds."""

import pytest
from planted import claims_of
from planted_studies import LEARNING_RATE, MOMENTUM, TRUTHS, Truth, plant, to_units

from hpopt.analysis.insights import gather

N_TRIALS = 60


def analyse(truth, seed=1):
    table = plant(truth, N_TRIALS, seed)
    insights = gather(table)
    return insights, claims_of(table, insights)


@pytest.mark.parametrize("seed", range(10))
def test_in_pure_noise_nothing_is_claimed(seed):
    """One claim in twenty-five studies is what the tests allow; none of these ten seeds is one."""
    _, claims = analyse(Truth(), seed)
    assert claims == set()


@pytest.mark.parametrize("truth", [Truth(sampler="tpe"), Truth(is_pruned=True), Truth(sampler="tpe", is_pruned=True)])
def test_neither_sampler_nor_pruner_make_noise_into_something(truth):
    """Both look at the values, so that trials crowd around lucky ones and unlucky ones are missing."""
    _, claims = analyse(truth)
    assert claims == set()


def test_a_planted_importance_is_found():
    insights, claims = analyse(TRUTHS["bowl"])
    assert ("stands out", LEARNING_RATE) in claims
    assert all(next(iter(measure.shares)) == LEARNING_RATE for measure in insights.importance)


def test_a_planted_interaction_ranks_first():
    insights, claims = analyse(TRUTHS["interaction"])
    assert insights.interactions.pairs[0].pair == (LEARNING_RATE, MOMENTUM)
    assert {subject for claim, subject in claims if claim == "interaction"} == {f"{LEARNING_RATE}, {MOMENTUM}"}


def test_a_planted_noise_is_measured_from_replicates():
    """45 degrees of freedom know a standard deviation to a tenth of it; the noise of a run is 0.1."""
    table = plant(Truth(n_seeds=4), 15, seed=0)
    noise = gather(table).noise
    assert (noise.source, noise.freedom) == ("replicates", 45)
    assert noise.std == pytest.approx(0.1, rel=0.3)


def test_a_planted_edge_is_found():
    _, claims = analyse(TRUTHS["edge"])
    assert {subject for claim, subject in claims if claim == "edge"} == {LEARNING_RATE}


def test_the_optimum_of_a_pruned_study_is_found_where_only_pruned_trials_mark_its_end():
    """Without their extrapolated values the curve falls on into the region where all of them were stopped."""
    table = plant(Truth(effect=TRUTHS["bowl"].effect, sampler="tpe", is_pruned=True), 40, seed=12)
    (found,) = (each for each in gather(table).sensitivity.parameters if each.name == LEARNING_RATE)
    high = max(row.params[LEARNING_RATE] for row in table.complete())
    assert any(row.params[LEARNING_RATE] > high for row in table.pruned())
    low, high = (to_units({LEARNING_RATE: end})[LEARNING_RATE] for end in (found.best_low, found.best_high))
    assert low <= 0.6 <= high < 0.9


def test_a_planted_cliff_is_found():
    insights, claims = analyse(TRUTHS["cliff"])
    (cliff,) = insights.divergence.cliffs
    low, high = (to_units({LEARNING_RATE: end})[LEARNING_RATE] for end in (cliff.low, cliff.high))
    assert cliff.name == LEARNING_RATE
    assert low <= 0.8 <= high
    assert ("importance-biased", "") in claims


def test_a_planted_drift_is_found():
    insights, claims = analyse(TRUTHS["drift"])
    assert {subject for claim, subject in claims if claim == "budget-dependent"} == {LEARNING_RATE}
    (rate,) = [each for each in insights.budget.parameters if each.name == LEARNING_RATE]
    places = [to_units({LEARNING_RATE: each.best})[LEARNING_RATE] for each in rate.optima]
    assert places == sorted(places, reverse=True)
    assert [each.tokens for each in rate.optima] == [20 * 4096, 60 * 4096, 180 * 4096]


def test_a_bowl_that_stays_where_it_is_does_not_drift():
    """Its trials differ less in noise than in effect at every budget, and that alone is no drift."""
    _, claims = analyse(TRUTHS["bowl"])
    assert "budget-dependent" not in {claim for claim, _ in claims}
