"""Planted effects are found, and nothing in pure noise; benchmarks/planted.py measures the rates on more seeds."""

import pytest
from planted import claim_without_effect, claims_of
from planted_studies import LEARNING_RATE, MOMENTUM, TRUTHS, Truth, plant, plant_grid, to_units

from hpopt.analysis.insights import compute_insights

N_TRIALS = 60


def analyse(truth, seed=1):
    table = plant(truth, N_TRIALS, seed)
    insights = compute_insights(table)
    return insights, claims_of(table, insights)


@pytest.mark.parametrize("seed", range(10))
def test_in_pure_noise_nothing_is_claimed(seed):
    """One study in twenty may have a claim; none of these ten seeds has one."""
    _, claims = analyse(Truth(), seed)
    assert claims == set()


@pytest.mark.parametrize("truth", [Truth(sampler="tpe"), Truth(is_pruned=True), Truth(sampler="tpe", is_pruned=True)])
def test_neither_sampler_nor_pruner_causes_claims_about_noise(truth):
    """Both use the values: trials concentrate around good ones by chance, and bad ones are missing."""
    _, claims = analyse(truth)
    assert claims == set()


def test_a_planted_importance_is_found():
    insights, claims = analyse(TRUTHS["bowl"])
    assert ("significant", LEARNING_RATE) in claims
    for importance in insights.importance:
        assert next(iter(importance.shares)) == LEARNING_RATE
        assert importance.intervals[LEARNING_RATE][0] > 1 / len(importance.shares)


def test_a_planted_interaction_ranks_first():
    insights, claims = analyse(TRUTHS["interaction"])
    assert insights.interactions.pairs[0].pair == (LEARNING_RATE, MOMENTUM)
    assert {subject for claim, subject in claims if claim == "interaction"} == {f"{LEARNING_RATE}, {MOMENTUM}"}


def test_a_planted_noise_is_measured_from_replicates():
    """The standard deviation of a run is 0.1; from 45 degrees of freedom its standard error is a tenth of that."""
    table = plant(Truth(n_seeds=4), 15, seed=0)
    noise = compute_insights(table).noise
    assert (noise.source, noise.degrees_of_freedom) == ("replicates", 45)
    assert noise.std == pytest.approx(0.1, rel=0.3)


def test_a_planted_edge_is_found():
    _, claims = analyse(TRUTHS["edge"])
    assert {subject for claim, subject in claims if claim == "edge"} == {LEARNING_RATE}


def test_the_optimum_of_a_pruned_study_is_found_where_only_pruned_trials_mark_its_end():
    """Without extrapolated values the curve would continue to fall in the region where all trials were pruned."""
    table = plant(Truth(effect=TRUTHS["bowl"].effect, sampler="tpe", is_pruned=True), 40, seed=12)
    parameters = {parameter.name: parameter for parameter in compute_insights(table).sensitivity.parameters}
    rate = parameters[LEARNING_RATE]
    high = max(row.params[LEARNING_RATE] for row in table.complete())
    assert any(row.params[LEARNING_RATE] > high for row in table.pruned())
    low, high = (to_units({LEARNING_RATE: end})[LEARNING_RATE] for end in (rate.best_low, rate.best_high))
    assert low <= 0.6 <= high < 0.9


def test_a_planted_cliff_is_found():
    insights, claims = analyse(TRUTHS["cliff"])
    (cliff,) = insights.divergence.cliffs
    low, high = (to_units({LEARNING_RATE: end})[LEARNING_RATE] for end in (cliff.low, cliff.high))
    assert cliff.name == LEARNING_RATE
    assert low <= 0.8 <= high
    assert ("importance-biased", "") in claims


def test_a_planted_budget_dependence_is_found():
    insights, claims = analyse(TRUTHS["drift"])
    assert {subject for claim, subject in claims if claim == "budget-dependent"} == {LEARNING_RATE}
    (rate,) = [parameter for parameter in insights.budget.parameters if parameter.name == LEARNING_RATE]
    optima = [to_units({LEARNING_RATE: optimum.best})[LEARNING_RATE] for optimum in rate.optima]
    assert optima == sorted(optima, reverse=True)
    assert [optimum.tokens for optimum in rate.optima] == [20 * 4096, 60 * 4096, 180 * 4096]


def test_a_constant_optimum_is_not_budget_dependent():
    """Its effect is larger than its noise at every budget, which alone is no dependence on the budget."""
    _, claims = analyse(TRUTHS["bowl"])
    assert "budget-dependent" not in {claim for claim, _ in claims}


@pytest.mark.parametrize(
    ("kind", "codes"),
    [
        ("applied", set()),
        ("conditional", set()),
        ("coarse", set()),
        ("ignored", {"treatment-not-applied"}),
        ("collapsed", {"collapsed"}),
        ("saturated", {"collapsed"}),
    ],
)
def test_no_effect_is_claimed_only_where_there_is_none(kind, codes):
    for seed in range(5):
        assert claim_without_effect(plant_grid(kind, seed)) == codes
