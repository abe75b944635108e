"""Paired comparisons against scipy, and verdicts worked by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hpopt.analysis.comparison import MAX_SEEDS, compare_pairs, detectable_effect, needed_seeds
from hpopt.search.direction import Direction

MINIMIZE, MAXIMIZE = Direction("minimize"), Direction("maximize")


def pairs(n, effect=0.3, seed=0):
    rng = np.random.default_rng(seed)
    baseline = rng.normal(5, 1, n)
    return baseline, baseline + effect + rng.normal(0, 0.2, n)


@pytest.mark.parametrize("n", [2, 3, 7, 30])
def test_interval_and_p_value_are_those_of_scipys_paired_t_test(n):
    baseline, treatment = pairs(n)
    result = compare_pairs(baseline, treatment, direction=MINIMIZE)
    reference = stats.ttest_rel(treatment, baseline)
    interval = reference.confidence_interval(0.95)
    assert result.p_value == pytest.approx(reference.pvalue)
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high))
    assert result.difference == pytest.approx((treatment - baseline).mean())


@pytest.mark.parametrize("n", [6, 9])
def test_the_permutation_p_value_is_that_of_all_permutations_of_the_signs(n):
    baseline, treatment = pairs(n, effect=0.1)
    reference = stats.permutation_test(
        (treatment, baseline), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=np.inf
    )
    result = compare_pairs(baseline, treatment, direction=MINIMIZE)
    assert result.permutation_p_value == pytest.approx(reference.pvalue)


def test_many_pairs_have_a_permutation_p_value_of_a_random_part():
    baseline, treatment = pairs(25, effect=0.06)
    result = compare_pairs(baseline, treatment, direction=MINIMIZE)
    assert result.permutation_p_value == pytest.approx(result.p_value, abs=0.02)


def test_fewer_than_six_pairs_have_none():
    assert compare_pairs(*pairs(5), direction=MINIMIZE).permutation_p_value is None


@pytest.mark.parametrize(
    ("differences", "indifference", "verdict"),
    [
        # t(0.975, 2) = 4.303 and t(0.95, 2) = 2.920; the standard deviation is 1, so that of the mean is 0.577.
        ([1.5, 2.5, 3.5], None, "worse"),
        ([1.3, 2.3, 3.3], None, "undecided"),
        ([-3.5, -2.5, -1.5], None, "better"),
        ([-1, 0, 1], 1.69, "equivalent"),
        ([-1, 0, 1], 1.68, "undecided"),
        # Within the indifference, although it surely is worse.
        ([1.5, 2.5, 3.5], 4.2, "equivalent"),
    ],
)
def test_verdicts_follow_from_intervals_worked_by_hand(differences, indifference, verdict):
    baseline = [5.0, 6.0, 7.0]
    treatment = [value + difference for value, difference in zip(baseline, differences, strict=True)]
    result = compare_pairs(baseline, treatment, direction=MINIMIZE, indifference=indifference)
    assert result.verdict == verdict
    assert (result.needed is None) == (verdict != "undecided" or (indifference is None and result.difference == 0))
    opposite = {"better": "worse", "worse": "better"}.get(verdict, verdict)
    assert compare_pairs(baseline, treatment, direction=MAXIMIZE, indifference=indifference).verdict == opposite


def test_several_comparisons_are_corrected_by_bonferroni():
    baseline, treatment = pairs(7)
    one, three = (compare_pairs(baseline, treatment, direction=MINIMIZE, n_comparisons=n) for n in (1, 3))
    assert three.p_value == pytest.approx(3 * one.p_value)
    assert three.permutation_p_value == pytest.approx(min(1, 3 * one.permutation_p_value))
    error = (one.high - one.low) / 2 / stats.t.isf(0.025, 6)
    assert three.high - three.low == pytest.approx(2 * stats.t.isf(0.05 / 3 / 2, 6) * error)
    assert three.detectable > one.detectable


@pytest.mark.parametrize("n", [3, 5, 12])
def test_the_detectable_effect_has_80_percent_power(n):
    effect = detectable_effect(n)
    noncentral, critical = effect * math.sqrt(n), stats.t.isf(0.025, n - 1)
    power = stats.nct.sf(critical, n - 1, noncentral) + stats.nct.cdf(-critical, n - 1, noncentral)
    assert power == pytest.approx(0.8, abs=1e-3)


def test_the_needed_seeds_show_the_effect_and_one_fewer_do_not():
    needed = needed_seeds(effect=0.5, std=1.0, n=8)
    # The paired t-test of G*Power (dz = 0.5, 80%) takes 34 pairs.
    assert needed.n == 34
    assert needed.low < needed.n < needed.high
    assert detectable_effect(needed.n) <= 0.5 < detectable_effect(needed.n - 1)
    assert needed_seeds(effect=1e-9, std=1.0, n=8).n == MAX_SEEDS


def test_differences_without_noise_have_no_verdict():
    result = compare_pairs([5.0, 6.0, 7.0], [5.1, 6.1, 7.1], direction=MINIMIZE, indifference=0.5)
    assert (result.verdict, result.std, result.low, result.p_value) == ("undecided", 0, None, None)


def test_one_pair_is_refused():
    with pytest.raises(ValueError, match="1 pairs; at least 2 are needed"):
        compare_pairs([1.0], [2.0], direction=MINIMIZE)


values = st.lists(st.tuples(*[st.floats(-1e6, 1e6)] * 2), min_size=2, max_size=12)


@given(values, st.floats(0.001, 1e3), st.integers(1, 4))
def test_a_comparison_is_symmetric_and_its_verdict_agrees_with_its_interval(given_pairs, indifference, n_comparisons):
    baseline, treatment = zip(*given_pairs, strict=True)
    options = {"direction": MINIMIZE, "indifference": indifference, "n_comparisons": n_comparisons}
    result, mirrored = (
        compare_pairs(one, other, **options) for one, other in ((baseline, treatment), (treatment, baseline))
    )
    assert mirrored.difference == pytest.approx(-result.difference)
    opposite = {"better": "worse", "worse": "better"}
    assert mirrored.verdict == opposite.get(result.verdict, result.verdict)
    if result.low is not None:
        excludes_zero = result.low > 0 or result.high < 0
        assert result.low <= result.difference <= result.high
        assert excludes_zero == (result.p_value < 0.05) or math.isclose(result.p_value, 0.05)
        assert result.verdict not in opposite or excludes_zero


def test_very_large_values_have_a_finite_interval():
    result = compare_pairs([1e200, -2e200, 1.0], [3e200, 1.5e200, 2.0], direction=Direction.MINIMIZE)
    assert result.low is not None
    assert result.high is not None
    assert np.isfinite([result.difference, result.std, result.low, result.high]).all()
