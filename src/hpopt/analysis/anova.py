"""Owns the functional ANOVA of a surrogate: the part of each parameter alone, and of each pair beyond its two parts.

The measure is uniform over the ranges, each in its scale. Since the kernel is a product, every integral is a product
of sums over one axis each. Source: Hoeffding 1948 and Hutter et al. 2014 for the decomposition; Chen, Jin and Sudjianto
2005 (J. Mech. Des. 127) for product kernels; Oakley and O'Hagan 2004 for the uncertainty of an average.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from hpopt.analysis.axes import FloatArray
from hpopt.analysis.surrogate import Surrogate

Pair = tuple[str, str]

# Less than this of the values' variance is rounding.
_NOTHING = 1e-6


@dataclass(frozen=True, kw_only=True)
class Decomposition:
    """Shares of the function's variance, one a resample of the trials: of single parameters and of pairs."""

    single: Mapping[str, FloatArray]
    pairs: Mapping[Pair, FloatArray]


def decompose(surrogate: Surrogate, alphas: FloatArray) -> Decomposition | None:
    """Decompose the function of each column of `alphas`, the solved targets; None where the first is constant."""
    n_axes, places = len(surrogate.axes), surrogate.design.places
    factors = [surrogate.similarity(i, axis.nodes, places[:, i]) for i, axis in enumerate(surrogate.axes)]
    means = [factor.mean(axis=0) for factor in factors]
    total = _variance(surrogate, factors, means, alphas)
    if total[0] < _NOTHING:
        return None
    single = {
        axis.name: (surrogate.signal * factors[i] @ (_others(means, i)[:, None] * alphas)).var(axis=0)
        for i, axis in enumerate(surrogate.axes)
    }
    pairs = {}
    for i, j in combinations(range(n_axes), 2):
        one, other = surrogate.axes[i].name, surrogate.axes[j].name
        rest = _others(means, i, j)
        surfaces = np.array([(factors[i] * (rest * alpha)) @ factors[j].T for alpha in alphas.T])
        both = (surrogate.signal * surfaces).var(axis=(1, 2))
        pairs[one, other] = np.clip(both - single[one] - single[other], 0, None) / total
    return Decomposition(single={name: variance / total for name, variance in single.items()}, pairs=pairs)


def resample(surrogate: Surrogate, n_resamples: int) -> FloatArray:
    """Solve for the targets with all trials as they are, and then with random weights; a column each.

    The Bayesian bootstrap (Rubin 1981): drawing trials with replacement would show the model twins that agree exactly.
    """
    draws = np.random.default_rng(0).exponential(size=(n_resamples, len(surrogate.targets)))
    columns = [surrogate.solve(surrogate.targets)]
    columns += [surrogate.solve(surrogate.targets, weights / weights.mean()) for weights in draws]
    return np.array(columns).T


def average(surrogate: Surrogate, axis: int) -> tuple[FloatArray, FloatArray]:
    """Give mean and standard deviation of the function along an axis, averaged over all others, at its nodes."""
    places = surrogate.design.places
    factors = [surrogate.similarity(i, each.nodes, places[:, i]) for i, each in enumerate(surrogate.axes)]
    rest = _others([factor.mean(axis=0) for factor in factors], axis)
    cross = surrogate.signal * factors[axis] * rest
    # The prior variance of an average is the mean of the kernel over both of its ends.
    own = [surrogate.similarity(i, each.nodes, each.nodes).mean() for i, each in enumerate(surrogate.axes) if i != axis]
    variance = surrogate.signal * np.prod(own) - np.einsum("gn,ng->g", cross, surrogate.solve(cross.T))
    mean = surrogate.center + surrogate.scale * (cross @ surrogate.solve(surrogate.targets))
    return mean, surrogate.scale * np.sqrt(np.clip(variance, 0, None))


def _variance(
    surrogate: Surrogate, factors: list[FloatArray], means: list[FloatArray], alphas: FloatArray
) -> FloatArray:
    second = np.prod([factor.T @ factor / len(factor) for factor in factors], axis=0)
    first = np.prod(means, axis=0) @ alphas
    variance: FloatArray = surrogate.signal**2 * (
        np.einsum("nb,nm,mb->b", alphas, second, alphas, optimize=True) - first**2
    )
    return variance


def _others(means: list[FloatArray], *but: int) -> FloatArray:
    product: FloatArray = np.prod([mean for i, mean in enumerate(means) if i not in but], axis=0)
    return product * np.ones_like(means[0])
