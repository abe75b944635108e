import math
from dataclasses import replace

import pytest

from hpopt.analysis.model import build_model
from hpopt.analysis.sensitivity import estimate_sensitivity
from hpopt.analysis.trials import TrialRow
from hpopt.search.direction import Direction
from hpopt.search.space import Categorical


def estimate(table):
    sensitivity = estimate_sensitivity(table, build_model(table))
    return sensitivity, {parameter.name: parameter for parameter in sensitivity.parameters}


def bowl(params):
    """Best at 0.01, where it is 2; at either end 4. Muon is best."""
    return 2 + 2 * (math.log10(params["learning_rate"]) + 2) ** 2 + 0.5 * (params["optimizer"] != "muon")


def test_the_curve_finds_optimum_ratio_and_good_range(sample_table):
    """The metric is 2 at the best and 4 at the ends; within 0.1 of the best are 0.01 times 10 ** +-sqrt(0.05)."""
    sensitivity, parameters = estimate(sample_table(bowl, n_trials=60, noise=0.1))
    rate = parameters["learning_rate"]
    assert rate.best == pytest.approx(0.01, rel=0.15)
    assert rate.best_low <= 0.01 <= rate.best_high
    assert rate.ratio == pytest.approx(2, rel=0.1)
    low, high = (0.01 * 10**shift for shift in (-math.sqrt(0.05), math.sqrt(0.05)))
    assert rate.within_noise == pytest.approx((low, high), rel=0.3)
    assert rate.is_significant
    assert rate.edge is None
    assert sensitivity.parameters[0] is rate
    assert sensitivity.center["optimizer"] == "muon"
    assert sensitivity.error.r2 > 0.8


def test_the_true_function_lies_in_the_band_along_most_of_the_curve(sample_table):
    """The band has 90% coverage at each node; 37 of 41 are expected."""
    _, parameters = estimate(sample_table(bowl, n_trials=60, noise=0.1))
    rate = parameters["learning_rate"]
    truth = [2 + 2 * (math.log10(value) + 2) ** 2 for value in rate.values]
    curve = rate.profile
    covered = [low <= value <= high for low, value, high in zip(curve.low, truth, curve.high, strict=True)]
    assert sum(covered) >= 30


def test_levels_without_an_order_are_compared(sample_table):
    _, parameters = estimate(sample_table(bowl, n_trials=60, noise=0.1))
    optimizer = parameters["optimizer"]
    assert (optimizer.best, optimizer.best_levels, optimizer.within_noise) == ("muon", ("muon",), ("muon",))
    assert optimizer.average.mean[1] - optimizer.average.mean[0] == pytest.approx(0.5, abs=0.15)


def test_maximizing_the_negative_metric_gives_the_same_optimum(sample_table):
    table = sample_table(bowl, n_trials=60, noise=0.1)
    negated = replace(
        table, direction=Direction.MAXIMIZE, trials=tuple(replace(row, value=-row.value) for row in table.trials)
    )
    (_, lower), (_, higher) = estimate(table), estimate(negated)
    assert higher["learning_rate"].best == lower["learning_rate"].best
    assert higher["learning_rate"].within_noise == lower["learning_rate"].within_noise
    assert higher["learning_rate"].ratio is None  # A ratio is defined for positive values only.


def test_an_optimum_at_the_end_of_a_range_proposes_a_wider_range(sample_table):
    _, parameters = estimate(sample_table(lambda p: -math.log10(p["learning_rate"]), n_trials=40, noise=0.2))
    rate = parameters["learning_rate"]
    assert rate.edge == "high"
    assert (rate.widened_range.low, rate.widened_range.high) == (0.001, 1.0)


def test_the_edge_of_a_manual_study_is_detected(make_table):
    """A manual sensitivity study: its best learning rate was the highest that was tried."""
    base = {"learning_rate": 0.01, "momentum": 0.9, "ns_steps": 5}
    losses = [
        ("learning_rate", lr, loss) for lr, loss in zip(RATES, (6.1008, 4.1575, 2.5342, 0.7444, 0.3277), strict=True)
    ]
    losses += [("momentum", value, loss) for value, loss in ((0.9, 2.6167), (0.95, 2.5296), (0.99, 3.2341))]
    losses += [("ns_steps", value, loss) for value, loss in ((3, 2.9763), (5, 2.5375), (7, 2.4955))]
    rows = [
        TrialRow(trial=i, state="COMPLETE", value=loss, params=base | {name: value}, seed=42)
        for i, (name, value, loss) in enumerate(losses)
    ]
    space = {
        "learning_rate": Categorical(choices=RATES),
        "momentum": Categorical(choices=(0.9, 0.95, 0.99)),
        "ns_steps": Categorical(choices=(3, 5, 7)),
    }
    sensitivity, parameters = estimate(make_table(rows, space))
    assert sensitivity.parameters[0].name == "learning_rate"
    assert parameters["learning_rate"].edge == "high"
    assert parameters["learning_rate"].widened_range.choices == (*RATES, 0.125)
    assert parameters["momentum"].edge is None


RATES = (0.001, 0.005, 0.01, 0.02, 0.05)


def test_too_few_trials_give_a_reason(sample_table):
    table = sample_table(bowl, n_trials=9)
    sensitivity = estimate_sensitivity(table, build_model(table))
    assert sensitivity.parameters == ()
    assert sensitivity.reason == "not enough data: 10 complete trials are needed, there are 9"
