"""The effect of each parameter in a study that changes one at a time, against scipy and formulas worked by hand."""

import numpy as np
import pytest
from scipy import stats

from hpopt.analysis.comparison import compare_pairs
from hpopt.analysis.one_factor import analyze_one_factor
from hpopt.analysis.trials import TrialRow
from hpopt.search.design import one_at_a_time_points
from hpopt.search.direction import Direction

BASE = {"learning_rate": 0.01, "ns_steps": 5, "optimizer": "muon"}


def run(trial, value, seed, **changes):
    return TrialRow(trial=trial, state="COMPLETE", value=value, params={**BASE, **changes}, seed=seed)


def pairs(base, other, **change):
    rows = [run(i, value, i) for i, value in enumerate(base)]
    return [*rows, *(run(10 + i, value, i, **change) for i, value in enumerate(other))]


def test_two_values_are_compared_by_the_paired_t_test(make_table):
    base, other = [3.0, 3.4, 3.1], [3.6, 3.9, 3.8]
    result = analyze_one_factor(make_table(pairs(base, other, ns_steps=3), base=BASE))
    (factor,) = result.factors
    expected = compare_pairs(base, other, direction=Direction.MINIMIZE)
    cost = factor.cost
    assert (factor.name, factor.best, factor.worst) == ("ns_steps", 5, 3)
    assert (cost.value, cost.low, cost.high) == tuple(
        map(pytest.approx, (expected.difference, expected.low, expected.high))
    )
    assert result.noise_std == pytest.approx(expected.std / 2**0.5)
    assert factor.as_good == (5,)
    assert factor.is_shown


def test_the_interval_of_the_largest_difference_is_that_of_tukey(make_table):
    rows = [*pairs([3.0, 3.2], [3.1, 3.3], ns_steps=3), run(20, 3.5, 0, ns_steps=7), run(21, 3.4, 1, ns_steps=7)]
    (factor,) = analyze_one_factor(make_table(rows, base=BASE)).factors
    values = np.array([[3.0, 3.2], [3.1, 3.3], [3.5, 3.4]])
    residuals = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    error = ((residuals**2).sum() / 2 / 2) ** 0.5
    margin = stats.studentized_range.ppf(0.95, 3, 2) * error
    assert factor.cost.value == pytest.approx(0.35)
    assert factor.cost.high == pytest.approx(0.35 + margin)
    assert factor.cost.low == max(0, 0.35 - margin)


def test_a_seed_that_shifts_all_configurations_is_no_noise_of_a_difference(make_table):
    shift = np.array([0.0, 5.0, -3.0])
    rows = pairs(3 + shift, 3.5 + shift + [0.01, 0.0, -0.01], ns_steps=3)
    result = analyze_one_factor(make_table(rows, base=BASE))
    assert result.factors[0].cost.low > 0.4
    assert result.noise_std < 0.01
    base = next(row for row in result.factors[0].values if row.value == 5)
    assert base.mean.low < 0
    assert base.mean.high > 6


def test_an_interrupted_design_uses_every_run_that_is_complete(make_table):
    """The second seed lacks one configuration: its other runs still tell the noise."""
    rows = pairs([3.0, 3.2], [3.1], ns_steps=3)
    rows += [run(20, 3.5, 0, optimizer="sgd"), run(21, 3.8, 1, optimizer="sgd")]
    result = analyze_one_factor(make_table(rows, base=BASE))
    assert [factor.name for factor in result.factors] == ["optimizer", "ns_steps"]
    assert (result.n_seeds, result.degrees_of_freedom) == (2, 1)
    assert [(row.value, row.n) for row in result.factors[1].values] == [(3, 1), (5, 2)]


def test_one_seed_has_costs_without_intervals(make_table):
    result = analyze_one_factor(make_table([run(0, 3.0, 0), run(1, 6.0, 0, learning_rate=0.1)], base=BASE))
    (factor,) = result.factors
    assert result.noise_std is None
    assert (factor.cost.value, factor.cost.low, factor.ratio.value) == (3.0, None, 2.0)
    assert not factor.is_shown
    assert factor.as_good == ()


def test_equal_runs_of_two_seeds_tell_no_noise(make_table):
    result = analyze_one_factor(make_table(pairs([3.0, 3.0], [4.0, 4.0], ns_steps=3), base=BASE))
    assert result.noise_std is None


def test_values_that_diverged_are_listed_and_a_changed_pair_is_not(make_table):
    rows = pairs([3.0, 3.2], [3.1, 3.0], ns_steps=3)
    rows.append(TrialRow(trial=30, state="PRUNED", value=None, params={**BASE, "ns_steps": 9}, seed=0))
    rows.append(run(31, 1.0, 0, ns_steps=3, optimizer="sgd"))
    (factor,) = analyze_one_factor(make_table(rows, base=BASE)).factors
    assert [(row.value, row.n, row.n_failed) for row in factor.values] == [(3, 2, 0), (5, 2, 0), (9, 0, 1)]
    assert factor.values[-1].mean is None


def test_a_study_without_a_base_or_without_a_comparison_has_no_effects(make_table):
    assert analyze_one_factor(make_table(pairs([3.0], [3.1], ns_steps=3))) is None
    assert analyze_one_factor(make_table([run(0, 3.0, 0)], base=BASE)) is None


def test_the_intervals_cover_the_truth(make_table):
    """The best of many values is chosen after the fact, which an interval of one difference would not allow for."""
    rng = np.random.default_rng(0)
    space = make_table([]).search_space
    points = list(one_at_a_time_points({"ns_steps": space["ns_steps"]}, BASE))
    n_shown, n_studies = 0, 200
    for values in rng.normal(3, 1, size=(n_studies, len(points), 2)):
        rows = [
            run(2 * i + seed, value, seed, **point)
            for i, (point, own) in enumerate(zip(points, values, strict=True))
            for seed, value in enumerate(own)
        ]
        (factor,) = analyze_one_factor(make_table(rows, base=BASE)).factors
        n_shown += factor.is_shown
    assert 0.001 < stats.binom.cdf(n_shown, n_studies, 0.05) < 0.999
