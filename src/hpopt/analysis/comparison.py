"""Compare a treatment with a baseline that ran with the same seeds, and plan how many seeds a comparison needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from itertools import product

import numpy as np
from scipy import stats
from scipy.optimize import brentq

from hpopt.analysis.axes import FloatArray
from hpopt.analysis.surrogate import LARGEST_VALUE
from hpopt.search.direction import Direction

CONFIDENCE = 0.95
POWER = 0.8
# The interval of the noise from which the range of needed seeds follows.
NOISE_CONFIDENCE = 0.9
# With fewer pairs, no permutation of the signs has a p-value below 0.05.
MIN_PERMUTED_PAIRS = 6
# Of more pairs, so many random permutations of the signs are drawn.
_MAX_PERMUTATIONS = 2**14
# More seeds than anybody runs; a search for the number that a test needs ends here.
MAX_SEEDS = 1_000_000
# Of the quadrature over the distribution of a standard deviation; the power is exact to 1e-4.
_N_NODES = 128


class Verdict(StrEnum):
    """What a comparison shows about the treatment."""

    BETTER = "better"
    WORSE = "worse"
    EQUIVALENT = "equivalent"
    UNDECIDED = "undecided"


@dataclass(frozen=True, kw_only=True)
class NeededSeeds:
    """The seeds per arm at which a difference would be seen with 80% power.

    `low` and `high` follow from the 90% interval of the noise; a number of MAX_SEEDS stands for at least so many.
    """

    effect: float
    n: int
    low: int
    high: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Difference of the means, treatment minus baseline, in units of the metric, over `n` pairs of runs of one seed.

    `std` is that of the differences; `low` and `high` bound the 95% interval, corrected for the number of comparisons;
    they and `p_value` are None where all differences are equal, so that the noise is unknown. `permutation_p_value` is
    that of the permutations of the signs, from 6 pairs on. `detectable` is the smallest difference that so many pairs
    show with 80% power at this noise. `needed` is given for `undecided` alone.
    """

    n: int
    difference: float
    std: float
    low: float | None
    high: float | None
    p_value: float | None
    permutation_p_value: float | None
    detectable: float | None
    verdict: Verdict
    needed: NeededSeeds | None = None


def compare_pairs(
    baseline: Sequence[float],
    treatment: Sequence[float],
    *,
    direction: Direction,
    indifference: float | None = None,
    n_comparisons: int = 1,
) -> Comparison:
    """Compare the values of two arms (N,), each pair with one seed, by a paired t-test.

    The verdict is `equivalent` if the 90% interval is within +-`indifference` (two one-sided tests, Schuirmann 1987),
    `better` or `worse` if the 95% interval excludes 0, else `undecided`. Intervals, p-values and verdicts of several
    comparisons are corrected by Bonferroni. Raises ValueError for fewer than two pairs.
    """
    # The square of a larger value is not finite.
    pairs = np.clip((baseline, treatment), -LARGEST_VALUE, LARGEST_VALUE).astype(float)
    differences = pairs[1] - pairs[0]
    n = len(differences)
    if n < 2:  # noqa: PLR2004 - a standard deviation needs two.
        raise ValueError(f"{n} pairs; at least 2 are needed")
    mean, std = float(differences.mean()), float(differences.std(ddof=1))
    # Differences of equal size differ by rounding.
    if std <= 1e-12 * float(np.abs(differences).max()):
        return Comparison(
            n=n,
            difference=mean,
            std=0.0,
            low=None,
            high=None,
            p_value=None,
            permutation_p_value=None,
            detectable=None,
            verdict=Verdict.UNDECIDED,
        )
    alpha = (1 - CONFIDENCE) / n_comparisons
    error = std / n**0.5
    half_width, half_width_of_equivalence = (confidence_half_width(std, n, alpha=a) for a in (alpha, 2 * alpha))
    verdict = Verdict.UNDECIDED
    if indifference is not None and abs(mean) + half_width_of_equivalence < indifference:
        verdict = Verdict.EQUIVALENT
    elif abs(mean) > half_width:
        verdict = Verdict.BETTER if direction.sign * mean < 0 else Verdict.WORSE
    effect = abs(mean) if indifference is None else indifference
    return Comparison(
        n=n,
        difference=mean,
        std=std,
        low=mean - half_width,
        high=mean + half_width,
        p_value=min(1.0, n_comparisons * float(2 * stats.t.sf(abs(mean) / error, n - 1))),
        permutation_p_value=_permute_signs(differences, n_comparisons) if n >= MIN_PERMUTED_PAIRS else None,
        detectable=std * detectable_effect(n, n_comparisons=n_comparisons),
        verdict=verdict,
        needed=needed_seeds(effect, std, n, n_comparisons) if verdict is Verdict.UNDECIDED and effect else None,
    )


def confidence_half_width(std: float, n: int, *, alpha: float = 1 - CONFIDENCE) -> float:
    """Return half the width of the interval of a mean of n values with a standard deviation (Student's t)."""
    return float(stats.t.isf(alpha / 2, n - 1)) * std / float(n**0.5)


@cache
def detectable_effect(n: int, *, n_comparisons: int = 1) -> float:
    """Return the smallest mean of n differences, in their standard deviations, that has 80% power.

    The standard deviation of a difference of two independent runs is sqrt(2) times that of a run.
    """
    low, high = 0.0, 1.0
    while _power(n, high, n_comparisons) < POWER:
        low, high = high, 2 * high
    return float(brentq(lambda effect: _power(n, effect, n_comparisons) - POWER, low, high, xtol=1e-6))


def needed_seeds(effect: float, std: float, n: int, n_comparisons: int = 1) -> NeededSeeds:
    """Return the number of pairs that show an effect with 80% power, at the noise that n pairs estimate as std."""
    tail = (1 - NOISE_CONFIDENCE) / 2
    low, high = (std * ((n - 1) / float(stats.chi2.isf(q, n - 1))) ** 0.5 for q in (tail, 1 - tail))
    estimate, fewest, most = (_n_pairs(effect / noise, n_comparisons) for noise in (std, low, high))
    return NeededSeeds(effect=effect, n=estimate, low=fewest, high=most)


def _n_pairs(effect: float, n_comparisons: int) -> int:
    """Return the fewest pairs, at least 2, that show an effect, in standard deviations, with 80% power."""
    quantiles = stats.norm.isf((1 - CONFIDENCE) / n_comparisons / 2) + stats.norm.ppf(POWER)
    # A test that knows the standard deviation needs a few pairs less.
    n = int(min(MAX_SEEDS, max(2.0, (quantiles / effect) ** 2)))
    while n < MAX_SEEDS and _power(n, effect, n_comparisons) < POWER:
        n += 1
    return n


def _power(n: int, effect: float, n_comparisons: int) -> float:
    """Return the power of the two-sided paired t-test with n pairs; the effect is in standard deviations."""
    critical = float(stats.t.isf((1 - CONFIDENCE) / n_comparisons / 2, n - 1))
    stds, weights = estimated_stds(n - 1)
    # Given the estimated standard deviation, the mean is normal; scipy's noncentral t fails for one degree of freedom.
    rejected = stats.norm.sf(critical * stds - effect * n**0.5) + stats.norm.cdf(-critical * stds - effect * n**0.5)
    return float(weights @ rejected)


@cache
def estimated_stds(degrees_of_freedom: int) -> tuple[FloatArray, FloatArray]:
    """Return nodes and weights of the distribution of an estimated standard deviation whose true value is 1."""
    nodes, weights = np.polynomial.legendre.leggauss(_N_NODES)
    return np.sqrt(stats.chi2.ppf((nodes + 1) / 2, degrees_of_freedom) / degrees_of_freedom), weights / 2


def _permute_signs(differences: FloatArray, n_comparisons: int) -> float:
    """Return the two-sided p-value of the mean over the permutations of the signs: all, or a random part of many."""
    n = len(differences)
    if 2**n <= _MAX_PERMUTATIONS:
        signs = np.array(list(product((1, -1), repeat=n)))
    else:
        signs = np.random.default_rng(0).choice((1, -1), size=(_MAX_PERMUTATIONS, n))
        # The observed signs are one of the permutations.
        signs[0] = 1
    means = np.abs(signs @ differences)
    share = float(np.mean(means >= (1 - 1e-12) * abs(differences.sum())))
    return min(1.0, n_comparisons * share)
