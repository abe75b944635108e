import math
from dataclasses import replace

import pytest

from hpopt.analysis.model import build_model
from hpopt.analysis.sensitivity import measure_sensitivity
from hpopt.analysis.trials import TrialRow
from hpopt.search.direction import Direction
from hpopt.search.space import Categorical


def measure(table):
    sensitivity = measure_sensitivity(table, build_model(table))
    return sensitivity, {parameter.name: parameter for parameter in sensitivity.parameters}


def bowl(params):
    """Best at 0.01, where it is 2; at either end 4. Muon is best."""
    return 2 + 2 * (math.log10(params["learning_rate"]) + 2) ** 2 + 0.5 * (params["optimizer"] != "muon")


def test_the_curve_finds_optimum_ratio_and_good_range(sample_table):
    """By hand: 2 at the best and 4 at the ends; within 0.1 of the best are 0.01 times 10 ** +-sqrt(0.05)."""
    sensitivity, parameters = measure(sample_table(bowl, n_trials=60, noise=0.1))
    rate = parameters["learning_rate"]
    assert rate.best == pytest.approx(0.01, rel=0.15)
    assert rate.best_low <= 0.01 <= rate.best_high
    assert rate.ratio == pytest.approx(2, rel=0.1)
    low, high = (0.01 * 10**shift for shift in (-math.sqrt(0.05), math.sqrt(0.05)))
    assert rate.good == pytest.approx((low, high), rel=0.3)
    assert rate.matters
    assert rate.edge is None
    assert sensitivity.parameters[0] is rate
    assert sensitivity.at["optimizer"] == "muon"
    assert sensitivity.error.r2 > 0.8


def test_the_truth_lies_in_the_band_at_most_places(sample_table):
    """The band holds it with 90% at each place; 37 of 41 is what one expects."""
    _, parameters = measure(sample_table(bowl, n_trials=60, noise=0.1))
    rate = parameters["learning_rate"]
    truth = [2 + 2 * (math.log10(value) + 2) ** 2 for value in rate.values]
    curve = rate.profile
    held = [low <= value <= high for low, value, high in zip(curve.low, truth, curve.high, strict=True)]
    assert sum(held) >= 30


def test_levels_without_an_order_are_compared(sample_table):
    _, parameters = measure(sample_table(bowl, n_trials=60, noise=0.1))
    optimizer = parameters["optimizer"]
    assert (optimizer.best, optimizer.best_levels, optimizer.good) == ("muon", ("muon",), ("muon",))
    assert optimizer.average.mean[1] - optimizer.average.mean[0] == pytest.approx(0.5, abs=0.15)


def test_the_direction_turns_everything_around(sample_table):
    table = sample_table(bowl, n_trials=60, noise=0.1)
    upside_down = replace(
        table, direction=Direction.MAXIMIZE, trials=tuple(replace(row, value=-row.value) for row in table.trials)
    )
    (_, lower), (_, higher) = measure(table), measure(upside_down)
    assert higher["learning_rate"].best == lower["learning_rate"].best
    assert higher["learning_rate"].good == lower["learning_rate"].good
    assert higher["learning_rate"].ratio is None  # Below zero a ratio means nothing.


def test_an_optimum_at_the_end_of_a_range_asks_for_a_wider_one(sample_table):
    _, parameters = measure(sample_table(lambda p: -math.log10(p["learning_rate"]), n_trials=40, noise=0.2))
    rate = parameters["learning_rate"]
    assert rate.edge == "high"
    assert (rate.wider.low, rate.wider.high) == (0.001, 1.0)


def test_the_edges_of_the_write_up_are_seen(make_table):
    """The table of a sensitivity study done by hand: its best learning rate was the highest that was tried."""
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
    sensitivity, parameters = measure(make_table(rows, space))
    assert sensitivity.parameters[0].name == "learning_rate"
    assert parameters["learning_rate"].edge == "high"
    assert parameters["learning_rate"].wider.choices == (*RATES, 0.125)
    assert parameters["momentum"].edge is None


RATES = (0.001, 0.005, 0.01, 0.02, 0.05)


def test_too_few_trials_give_a_reason(sample_table):
    table = sample_table(bowl, n_trials=9)
    sensitivity = measure_sensitivity(table, build_model(table))
    assert sensitivity.parameters == ()
    assert sensitivity.reason == "not enough data: 10 complete trials are needed, there are 9"
