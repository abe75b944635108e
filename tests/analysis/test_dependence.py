"""Whether something is chance: the statistic against least squares, the error rate on noise, the power on truths."""

import numpy as np
import pytest
from scipy import stats

from hpopt.analysis.dependence import (
    SIGNIFICANCE_LEVEL,
    _shuffled_share,
    assess_pairs,
    assess_parameters,
    normal_scores,
)
from hpopt.analysis.sample import completed


def sum_of_squares(columns, targets):
    coefficients, *_ = np.linalg.lstsq(columns, targets, rcond=None)
    return ((targets - columns @ coefficients) ** 2).sum()


def test_the_statistic_is_the_share_that_least_squares_explains():
    """Reference: the fall of the residual sum of squares when the columns are added to a regression."""
    rng = np.random.default_rng(0)
    others, own = np.column_stack([np.ones(30), rng.normal(size=(30, 3))]), rng.normal(size=(30, 2))
    targets = rng.normal(size=30) + own[:, 0]
    without, along = sum_of_squares(others, targets), sum_of_squares(np.column_stack([others, own]), targets)
    assert _shuffled_share(own, others, targets)[0] == pytest.approx((without - along) / without)


def test_the_chance_of_one_parameter_is_that_of_an_f_test(sample_table):
    """With one parameter and normal noise there is a formula: 2 and n - 3 degrees of freedom."""
    table = sample_table(lambda p: 0.5 * np.log10(p["learning_rate"]), n_trials=40, noise=1.0)
    design = completed(table)
    only = design.__class__(axes=design.axes[:1], rows=design.rows, places=design.places[:, :1])
    x, y = only.places[:, 0], only.values()
    without, along = sum_of_squares(np.ones((40, 1)), y), sum_of_squares(np.column_stack([np.ones(40), x, x**2]), y)
    expected = stats.f.sf((without - along) / 2 / (along / 37), 2, 37)
    assert assess_parameters(only, y)["learning_rate"] == pytest.approx(expected, abs=0.03)


def test_scores_are_normal_quantiles_and_equals_share_one():
    assert normal_scores(np.array([5.0, 1.0, 1.0])) == pytest.approx(stats.norm.ppf([2.5 / 3, 1 / 3, 1 / 3]))


def test_what_depends_on_a_parameter_is_seen_beside_a_stronger_one(sample_table):
    table = sample_table(lambda p: p["ns_steps"] + (p["optimizer"] == "sgd"), n_trials=40, noise=0.3)
    design = completed(table)
    p_values = assess_parameters(design, design.values())
    assert p_values["ns_steps"] <= SIGNIFICANCE_LEVEL
    assert p_values["optimizer"] <= SIGNIFICANCE_LEVEL
    assert p_values["learning_rate"] > SIGNIFICANCE_LEVEL


def test_a_parameter_does_not_inherit_the_effect_of_its_companion():
    """A sampler that likes two values at once makes their parameters go together in the trials."""
    rng = np.random.default_rng(0)
    design = companions(rng)
    p_values = assess_parameters(design, design.places[:, 0] + 0.1 * rng.normal(size=60))
    assert p_values["a"] <= SIGNIFICANCE_LEVEL < p_values["b"]


def companions(rng):
    from hpopt.analysis.axes import Design, build_axis  # noqa: PLC0415 - beside its only use.
    from hpopt.search.space import Float  # noqa: PLC0415 - as above.

    first = rng.random(60)
    places = np.column_stack([first, 0.8 * first + 0.2 * rng.random(60)])
    return Design(axes=tuple(build_axis(name, Float(low=0, high=1)) for name in "ab"), rows=(None,) * 60, places=places)


def test_a_joint_effect_is_found_and_not_ascribed_to_other_pairs(sample_table):
    table = sample_table(lambda p: (np.log10(p["learning_rate"]) + 2) * (p["ns_steps"] - 5), n_trials=60, noise=0.5)
    design = completed(table)
    p_values = assess_pairs(design, design.values())
    assert [pair for pair, p_value in p_values.items() if p_value <= SIGNIFICANCE_LEVEL] == [
        ("learning_rate", "ns_steps")
    ]
