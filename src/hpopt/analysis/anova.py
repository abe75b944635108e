"""Owns the functional ANOVA of a surrogate: the part of each parameter alone, and of each pair beyond its two parts.

The measure is uniform over the ranges, each in its scale. Since the kernel is a product, every integral is a product
of sums over one axis each. Source: Hoeffding 1948 and Hutter et al. 2014 for the decomposition; Chen, Jin and Sudjianto
2005 (J. Mech. Des. 127) for product kernels; Oakley and O'Hagan 2004 for the uncertainty of an average.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.stats import qmc

from hpopt.analysis.axes import Axis, FloatArray
from hpopt.analysis.posterior import ComplexArray, Expansion, draw_functions, expand_mean
from hpopt.analysis.surrogate import Surrogate

Pair = tuple[str, str]

# The points that the whole variance is summed over.
_N_POINTS = 512
# Less than this of the values' variance is rounding.
_NOTHING = 1e-6


@dataclass(frozen=True, kw_only=True)
class Decomposition:
    """Parts of the function's variance: of single parameters, of pairs, and all of it.

    The first number is that of the surrogate's mean, the others are those of draws from its posterior.
    """

    single: Mapping[str, FloatArray]
    pairs: Mapping[Pair, FloatArray]
    total: FloatArray


def decompose(surrogate: Surrogate, variants: Sequence[Surrogate]) -> Decomposition | None:
    """Decompose the function and what it may be instead, by its variants; None where it is constant."""
    rng = np.random.default_rng(0)
    expansions = [expand_mean(surrogate), *(draw_functions(variant, rng) for variant in variants)]
    parts = [_decompose(surrogate.axes, expansion) for expansion in expansions]
    if parts[0].total[0] < _NOTHING:
        return None
    return Decomposition(
        single={name: np.concatenate([part.single[name] for part in parts]) for name in parts[0].single},
        pairs={pair: np.concatenate([part.pairs[pair] for part in parts]) for pair in parts[0].pairs},
        total=np.concatenate([part.total for part in parts]),
    )


def average(surrogate: Surrogate, axis: int) -> tuple[FloatArray, FloatArray]:
    """Give mean and standard deviation of the function along an axis, averaged over all others, at its nodes."""
    places = surrogate.design.places
    nodes = surrogate.axes[axis].nodes
    factors = [surrogate.similarity(i, each.grid, places[:, i]) for i, each in enumerate(surrogate.axes)]
    rest = np.prod([factor.mean(axis=0) for i, factor in enumerate(factors) if i != axis], axis=0)
    cross = surrogate.signal * surrogate.similarity(axis, nodes, places[:, axis]) * rest
    # The prior variance of an average is the mean of the kernel over both of its ends.
    own = [surrogate.similarity(i, each.grid, each.grid).mean() for i, each in enumerate(surrogate.axes) if i != axis]
    variance = surrogate.signal * np.prod(own) - np.einsum("gn,ng->g", cross, surrogate.solve(cross.T))
    mean = surrogate.center + surrogate.scale * (cross @ surrogate.solve(surrogate.targets))
    return mean, surrogate.scale * np.sqrt(np.clip(variance, 0, None))


def _decompose(axes: tuple[Axis, ...], expansion: Expansion) -> Decomposition:
    factors, coefficients = expansion.factors, expansion.coefficients
    means = [factor.mean(axis=0) for factor in factors]
    single = {
        axis.name: np.real(factors[i] @ (_product(means, i)[:, None] * coefficients)).var(axis=0)
        for i, axis in enumerate(axes)
    }
    pairs = {(axes[i].name, axes[j].name): _joint(expansion, means, i, j) for i, j in combinations(range(len(axes)), 2)}
    points = qmc.Sobol(len(axes), seed=0).random(_N_POINTS)
    rows = [factor[(points[:, i] * len(factor)).astype(int)] for i, factor in enumerate(factors)]
    total = np.real(np.prod(rows, axis=0) @ coefficients).var(axis=0)
    return Decomposition(single=single, pairs=pairs, total=total)


def _joint(expansion: Expansion, means: list[ComplexArray], i: int, j: int) -> FloatArray:
    """Give the variance of the surfaces over two axes, less that of their averages along either."""
    one, other = expansion.factors[i], expansion.factors[j]
    weights = _product(means, i, j)[:, None] * expansion.coefficients
    surfaces = np.array([np.real((one * weight) @ other.T) for weight in weights.T])
    joint: FloatArray = (
        surfaces.var(axis=(1, 2)) - surfaces.mean(axis=2).var(axis=1) - surfaces.mean(axis=1).var(axis=1)
    )
    return np.clip(joint, 0, None)


def _product(means: list[ComplexArray], *but: int) -> ComplexArray:
    kept = [mean for i, mean in enumerate(means) if i not in but]
    product: ComplexArray = np.prod([np.ones_like(means[0]), *kept], axis=0)
    return product
