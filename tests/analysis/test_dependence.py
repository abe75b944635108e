"""Permutation tests against least squares and the F test, and their power on known effects."""

import numpy as np
import pytest
from scipy import stats

from hpopt.analysis.axes import Design, build_axis
from hpopt.analysis.dependence import (
    SIGNIFICANCE_LEVEL,
    _permuted_r2,
    assess_pairs,
    assess_parameters,
    normal_scores,
)
from hpopt.analysis.sample import completed
from hpopt.search.space import Float


def sum_of_squares(columns, targets):
    coefficients, *_ = np.linalg.lstsq(columns, targets, rcond=None)
    return ((targets - columns @ coefficients) ** 2).sum()


def test_the_statistic_is_the_partial_r2_of_least_squares():
    """Reference: the decrease of the residual sum of squares when the columns are added to a regression."""
    rng = np.random.default_rng(0)
    others, own = np.column_stack([np.ones(30), rng.normal(size=(30, 3))]), rng.normal(size=(30, 2))
    targets = rng.normal(size=30) + own[:, 0]
    without, with_own = sum_of_squares(others, targets), sum_of_squares(np.column_stack([others, own]), targets)
    assert _permuted_r2(own, others, targets)[0] == pytest.approx((without - with_own) / without)


def test_the_p_value_of_a_single_parameter_is_that_of_an_f_test(sample_table):
    """With one parameter and normal noise the F distribution has 2 and n - 3 degrees of freedom."""
    table = sample_table(lambda p: 0.5 * np.log10(p["learning_rate"]), n_trials=40, noise=1.0)
    design = completed(table)
    only = design.__class__(axes=design.axes[:1], rows=design.rows, points=design.points[:, :1])
    x, y = only.points[:, 0], only.values()
    without, with_x = sum_of_squares(np.ones((40, 1)), y), sum_of_squares(np.column_stack([np.ones(40), x, x**2]), y)
    expected = stats.f.sf((without - with_x) / 2 / (with_x / 37), 2, 37)
    assert assess_parameters(only, y)["learning_rate"] == pytest.approx(expected, abs=0.03)


def test_normal_scores_are_quantiles_and_equal_values_share_one():
    assert normal_scores(np.array([5.0, 1.0, 1.0])) == pytest.approx(stats.norm.ppf([2.5 / 3, 1 / 3, 1 / 3]))


def test_a_weak_effect_is_detected_beside_a_stronger_one(sample_table):
    table = sample_table(lambda p: p["ns_steps"] + (p["optimizer"] == "sgd"), n_trials=40, noise=0.3)
    design = completed(table)
    p_values = assess_parameters(design, design.values())
    assert p_values["ns_steps"] <= SIGNIFICANCE_LEVEL
    assert p_values["optimizer"] <= SIGNIFICANCE_LEVEL
    assert p_values["learning_rate"] > SIGNIFICANCE_LEVEL


def test_a_parameter_does_not_inherit_the_effect_of_a_correlated_one():
    """A sampler that prefers a combination of values makes their params correlated."""
    rng = np.random.default_rng(0)
    design = correlated_design(rng)
    p_values = assess_parameters(design, design.points[:, 0] + 0.1 * rng.normal(size=60))
    assert p_values["a"] <= SIGNIFICANCE_LEVEL < p_values["b"]


def correlated_design(rng):
    first = rng.random(60)
    points = np.column_stack([first, 0.8 * first + 0.2 * rng.random(60)])
    return Design(axes=tuple(build_axis(name, Float(low=0, high=1)) for name in "ab"), rows=(None,) * 60, points=points)


def test_a_joint_effect_is_found_and_not_ascribed_to_other_pairs(sample_table):
    table = sample_table(lambda p: (np.log10(p["learning_rate"]) + 2) * (p["ns_steps"] - 5), n_trials=60, noise=0.5)
    design = completed(table)
    p_values = assess_pairs(design, design.values())
    assert [pair for pair, p_value in p_values.items() if p_value <= SIGNIFICANCE_LEVEL] == [
        ("learning_rate", "ns_steps")
    ]
