"""The best of several repeated configurations is called better only beyond the noise."""

import numpy as np
import pytest
from scipy import stats

from hpopt.analysis.confirmation import best_critical_value, confirm, distance_from_center, recommend
from hpopt.search.direction import Direction
from hpopt.search.space import Categorical, Float, Int


@pytest.mark.parametrize(
    ("n_rivals", "degrees_of_freedom", "expected"),
    [(1, 5, 2.02), (2, 5, 2.44), (3, 5, 2.68), (2, 6, 2.34), (2, 10, 2.15), (3, 10, 2.34), (1, 1, 6.31)],
)
def test_the_critical_values_are_those_of_dunnetts_table(n_rivals, degrees_of_freedom, expected):
    """Dunnett 1955, table 1a: one-sided, 95%."""
    assert best_critical_value(n_rivals, degrees_of_freedom) == pytest.approx(expected, abs=0.006)


def test_the_margin_is_that_of_a_two_way_analysis_of_variance_worked_by_hand():
    """Effects of the seeds 0, 1, 2 cancel; the residuals of 2 x 3 runs have a mean square of 0.01 with 2 degrees."""
    first, second = [1.0, 2.1, 2.9], [1.3, 2.2, 3.4]
    result = confirm([first, second], Direction.MINIMIZE)
    differences = np.subtract(second, first)
    paired = stats.ttest_1samp(differences, 0.0, alternative="greater")
    assert (len(result.tied) == 1) == (paired.pvalue < 0.05)
    assert [interval.mean for interval in result.intervals] == pytest.approx([2.0, 2.3])


@pytest.mark.parametrize("scale", [0.7, 0.8, 0.85, 0.9, 1.0, 1.5])
def test_two_configurations_are_told_apart_as_by_the_one_sided_paired_test(scale):
    """Hsu's comparison with the best is that test for two configurations."""
    random = np.random.default_rng(1)
    first = random.normal(size=6)
    second = first + scale * np.array([0.9, 0.2, -0.3, 0.8, 0.4, 0.1])
    p_value = stats.ttest_rel(second, first, alternative="greater").pvalue
    assert confirm([first, second], Direction.MINIMIZE).is_confirmed == (p_value < 0.05)
    assert confirm([-first, -second], Direction.MAXIMIZE).is_confirmed == (p_value < 0.05)


def test_seeds_that_move_all_configurations_alike_do_not_hide_a_difference():
    seeds = np.array([0.0, 5.0, -3.0, 2.0])
    noise = np.random.default_rng(0).normal(scale=0.01, size=(3, 4))
    result = confirm(seeds + noise + np.array([[1.0], [1.1], [1.2]]), Direction.MINIMIZE)
    assert (result.order, result.tied) == ((0, 1, 2), (0,))
    # The interval of the mean has the variation between seeds.
    assert result.intervals[0].high - result.intervals[0].low > 5


def test_a_single_configuration_has_the_interval_of_its_mean():
    values = [1.0, 1.2, 0.9, 1.1]
    result = confirm([values], Direction.MINIMIZE)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    (interval,) = result.intervals
    assert (interval.low, interval.high) == pytest.approx((low, high))
    assert result.is_confirmed


def test_equal_values_are_a_tie():
    result = confirm([[1.0, 1.0], [1.0, 1.0]], Direction.MINIMIZE)
    assert result.tied == (0, 1)


@pytest.mark.parametrize("values", [[], [[1.0], [2.0]]])
def test_a_table_without_two_seeds_is_refused(values):
    with pytest.raises(ValueError, match="at least 1 configuration with 2 seeds"):
        confirm(values, Direction.MINIMIZE)


def test_the_recommended_one_of_a_tie_is_the_most_central_of_the_cheapest():
    costs, distances = [100.0, 104.0, 150.0], [0.4, 0.2, 0.0]
    assert recommend((0, 1, 2), costs, distances) == 1
    assert recommend((2, 0), costs, distances) == 0


def test_the_distance_from_the_centre_is_that_of_the_furthest_parameter():
    space = {
        "lr": Float(low=1e-4, high=1e-2, log=True),
        "steps": Int(low=0, high=10),
        "kind": Categorical(choices=("a", "b")),
    }
    assert distance_from_center(space, {"lr": 1e-3, "steps": 5, "kind": "a"}) == pytest.approx(0)
    assert distance_from_center(space, {"lr": 1e-3, "steps": 10, "kind": "b"}) == pytest.approx(0.5)


@pytest.mark.parametrize("scale", [1e-150, 1e99, 1e200])
def test_values_of_any_size_have_finite_intervals(scale):
    """The answer is stored, and a worker must not fail for what a training function returned."""
    result = confirm([[1.0 * scale, 1.1 * scale], [2.0 * scale, 2.2 * scale]], Direction.MINIMIZE)
    numbers = [result.noise_std, *(x for one in result.intervals for x in (one.mean, one.low, one.high))]
    assert np.isfinite(numbers).all()
    assert 0 in result.tied
