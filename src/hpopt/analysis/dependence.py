"""Permutation tests of whether a metric depends on a parameter, or on a pair of parameters jointly.

Each is an F test of low polynomials given those of all other parameters, with one error rate for all parameters
together: where nothing depends on anything, one study in twenty is significant at 5%. The distribution of the statistic
is not taken from a table but from permuted or simulated data. Sources: permutation of residuals, Freedman and Lane
1983; correction for multiple tests, Westfall and Young 1993; simulation for pairs, Langsrud 2005.

Dimensions: N trials, E columns of an effect, R replications (the observed data first, then N_PERMUTATIONS).
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from scipy.stats import norm, rankdata

from hpopt.analysis.axes import Axis, Design, FloatArray, subsample

# Permuting residuals is slightly liberal, and a study is tested for parameters, pairs, budgets and divergence: at this
# level at most one study of pure noise in twenty gets any significant result at all (benchmarks/planted.py).
SIGNIFICANCE_LEVEL = 0.025
# The quantiles that bound a 90% interval.
INTERVAL = (0.05, 0.95)
N_PERMUTATIONS = 999
# Effects that only more trials would show are too small to act on.
MAX_TRIALS = 1000
# Degree of a parameter's polynomial: a trend and a bowl. A pair has their products, given cubic effects of each alone.
_DEGREE = 2
_DEGREE_GIVEN_PAIRS = 3
_TRIALS_PER_EFFECT = 3
# Relative differences below this are rounding errors.
_ROUNDING = 1e-10


def normal_scores(values: FloatArray) -> FloatArray:
    """Return the normal scores of the ranks of values (N,), which do not depend on how bad the worst are.

    Equal values share a rank r; its score is the normal quantile of (r - 1/2) / N.
    """
    scores: FloatArray = norm.ppf((rankdata(values) - 0.5) / len(values))
    return scores


def assess_parameters(design: Design, targets: FloatArray) -> Mapping[str, float]:
    """Return, by parameter, the p-value of an effect on the targets (N,), corrected for the number of parameters.

    It is the probability of an effect of this size of any parameter if there is none. The effects of the other
    parameters are regressed out first, as far as the number of trials allows: they would hide a weaker one, and
    correlated params, as of a sampler, would show the effect of one in the other.
    """
    design, targets = _prepare(design, targets)
    degree = _affordable_degree(design, _DEGREE)
    effects = [_effects(axis, design.points[:, i], _DEGREE) for i, axis in enumerate(design.axes)]
    others = [_effects(axis, design.points[:, i], degree) for i, axis in enumerate(design.axes)]
    statistics = [
        _permuted_r2(own, _with_mean([*others[:i], *others[i + 1 :]], len(targets)), targets)
        for i, own in enumerate(effects)
    ]
    p_values = _corrected_p_values(statistics, design.n_parts)
    return dict(zip((axis.name for axis in design.axes), p_values, strict=True))


def assess_pairs(design: Design, targets: FloatArray) -> Mapping[tuple[str, str], float]:
    """Return, by pair, the p-value of a joint effect on the targets (N,), corrected for the number of pairs.

    A significant pair is regressed out before the remaining pairs are tested, which would share in its effect.
    """
    design, targets = _prepare(design, targets)
    given = _all_effects(design, max(_DEGREE, _affordable_degree(design, _DEGREE_GIVEN_PAIRS)))
    own = {axis.name: _effects(axis, design.points[:, i], _DEGREE) for i, axis in enumerate(design.axes)}
    remaining = {(one, other): _products(own[one], own[other]) for one, other in combinations(own, 2)}
    tested: dict[tuple[str, str], float] = {}
    while remaining:
        statistics = [_simulated_r2(product, given, targets) for product in remaining.values()]
        p_values = _corrected_p_values(statistics, design.n_parts)
        first = int(np.argmin(p_values))
        if p_values[first] > SIGNIFICANCE_LEVEL:
            return tested | dict(zip(remaining, p_values, strict=True))
        pair = list(remaining)[first]
        tested[pair] = max([p_values[first], *tested.values()])
        given = np.column_stack([given, remaining.pop(pair)])
    return tested


def min_trials_for_pairs(design: Design) -> int:
    """Return the number of trials that a test of pairs needs: three for each effect that is regressed out first."""
    return _TRIALS_PER_EFFECT * int(_all_effects(design, _DEGREE).shape[1])


def _prepare(design: Design, targets: FloatArray) -> tuple[Design, FloatArray]:
    """Scale the targets to at most 1, whose squares cannot overflow, and draw at most MAX_TRIALS trials."""
    targets = targets / (np.abs(targets).max(initial=0.0) or 1.0)
    some = subsample(len(targets), MAX_TRIALS)
    return design.take(some), targets[some]


def _permuted_r2(own: FloatArray, others: FloatArray, targets: FloatArray) -> FloatArray:
    """Return the partial R^2 (R,) of an effect (N, E) given others (N, E'), for the targets and permuted residuals."""
    residuals = _residuals(others, targets[:, None])[:, 0]
    # The same permutations for all parameters, so that the largest of their statistics is that of one data set.
    permuted = np.random.default_rng(0).permuted(np.tile(residuals, (N_PERMUTATIONS, 1)), axis=1)
    return _partial_r2(own, others, np.vstack([residuals, permuted]).T)


def _simulated_r2(own: FloatArray, others: FloatArray, targets: FloatArray) -> FloatArray:
    """Return the partial R^2 (R,) of a joint effect, of the normal scores of the residuals and of normal noise.

    So many effects are regressed out for pairs that permuting the residuals would reject too often.
    """
    scores = normal_scores(_residuals(others, targets[:, None])[:, 0])
    noise = np.random.default_rng(0).normal(size=(len(targets), N_PERMUTATIONS))
    return _partial_r2(own, others, np.column_stack([scores, noise]))


def _partial_r2(own: FloatArray, others: FloatArray, samples: FloatArray) -> FloatArray:
    """Return the share (R,) of the variance of samples (N, R) left by `others` that `own` explains."""
    residuals = _residuals(others, samples)
    basis = _orthonormal_basis(_residuals(others, own))
    explained, total = ((basis.T @ residuals) ** 2).sum(axis=0), (residuals**2).sum(axis=0)
    share: FloatArray = explained / np.where(total > 0, total, np.inf)
    return share


def _residuals(effects: FloatArray, samples: FloatArray) -> FloatArray:
    """Return what a least-squares fit of effects (N, E) leaves of samples (N, R)."""
    basis = _orthonormal_basis(effects)
    residuals: FloatArray = samples - basis @ (basis.T @ samples)
    return residuals


def _orthonormal_basis(columns: FloatArray) -> FloatArray:
    """Return an orthonormal basis (N, rank) of the space that columns (N, E) span."""
    vectors, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    basis: FloatArray = vectors[:, sizes > _ROUNDING * max(1.0, sizes.max(initial=0.0))]
    return basis


def _corrected_p_values(statistics: Sequence[FloatArray], n_parts: int) -> list[float]:
    """Compare each observed statistic with the largest one of each replication (Westfall and Young's maxT).

    Between the parts of a study, which are tested separately, the correction is Bonferroni's.
    """
    if not statistics:
        return []
    observed_first = np.array(statistics)
    permuted = observed_first[:, 1:]
    std = permuted.std(axis=1, keepdims=True)
    standardized = (observed_first - permuted.mean(axis=1, keepdims=True)) / np.where(std > 0, std, np.inf)
    largest = standardized[:, 1:].max(axis=0)
    p_values = [float((1 + (largest >= own - _ROUNDING).sum()) / (1 + len(largest))) for own in standardized[:, 0]]
    return [min(1.0, n_parts * p_value) for p_value in p_values]


def _affordable_degree(design: Design, highest: int) -> int:
    """Return the highest degree of polynomials that leaves enough trials for each of their terms."""
    n = len(design.rows)
    affordable = (d for d in range(highest, 0, -1) if n >= _TRIALS_PER_EFFECT * _all_effects(design, d).shape[1])
    return next(affordable, 0)


def _all_effects(design: Design, degree: int) -> FloatArray:
    effects = [_effects(axis, design.points[:, i], degree) for i, axis in enumerate(design.axes)]
    return _with_mean(effects, len(design.rows))


def _with_mean(effects: Sequence[FloatArray], n: int) -> FloatArray:
    return np.column_stack([np.ones(n), *effects])


def _effects(axis: Axis, coordinates: FloatArray, degree: int) -> FloatArray:
    """Return the columns (N, E) of a parameter: powers up to a degree, or indicators of all levels but the first."""
    levels = np.unique(coordinates)
    if degree == 0:
        columns = []
    elif axis.is_ordered:
        centered = coordinates - coordinates.mean()
        columns = [centered**power for power in range(1, min(degree, len(levels) - 1) + 1)]
    else:
        columns = [(coordinates == level).astype(float) for level in levels[1:]]
    return np.array(columns).reshape(len(columns), len(coordinates)).T


def _products(one: FloatArray, other: FloatArray) -> FloatArray:
    """Return the products of all pairs of columns, shape (N, E E')."""
    return np.column_stack([a * b for a in one.T for b in other.T] or [np.zeros(len(one))])
