"""Owns the functional ANOVA of a surrogate: the part of each parameter alone, and of each pair beyond its two parts.

The measure is uniform over the ranges, each in its scale. Since the kernel is a product, every integral is a product
of sums over one axis each. Source: Hoeffding 1948 and Hutter et al. 2014 for the decomposition; Chen, Jin and Sudjianto
2005 (J. Mech. Des. 127) for product kernels; Oakley and O'Hagan 2004 for the uncertainty of an average.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.stats import qmc

from hpopt.analysis.axes import Axis, FloatArray
from hpopt.analysis.surrogate import Surrogate, negative_log_posterior, pairwise_distances, theta_bounds

ComplexArray = npt.NDArray[np.complex128]
Pair = tuple[str, str]

# The points that the whole variance is summed over.
_N_POINTS = 512
# Less than this of the values' variance is rounding.
_NOTHING = 1e-6
N_VARIANTS = 20
N_DRAWS_EACH = 6
_N_FEATURES = 256
_STEP = 0.05
# A direction in which the posterior is flat would be drawn from without end.
_LEAST_CURVATURE = 0.1


@dataclass(frozen=True, kw_only=True)
class Decomposition:
    """Parts of the function's variance: of single parameters, of pairs, and all of it.

    The first number is that of the surrogate's mean, the others are those of draws from its posterior.
    """

    single: Mapping[str, FloatArray]
    pairs: Mapping[Pair, FloatArray]
    total: FloatArray


@dataclass(frozen=True)
class Expansion:
    """Functions as sums of products: the real part of sum_k coefficients[k] prod_axis factors[axis][place, k].

    Each axis has a row for each place of its grid; each function a column of coefficients. Values are standardized as
    the surrogate's are.
    """

    factors: tuple[ComplexArray, ...]
    coefficients: ComplexArray


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
    factors = [surrogate.kernel_factor(i, each.grid, places[:, i]) for i, each in enumerate(surrogate.axes)]
    rest = np.prod([factor.mean(axis=0) for i, factor in enumerate(factors) if i != axis], axis=0)
    cross = surrogate.signal * surrogate.kernel_factor(axis, nodes, places[:, axis]) * rest
    # The prior variance of an average is the mean of the kernel over both of its ends.
    own = [
        surrogate.kernel_factor(i, each.grid, each.grid).mean() for i, each in enumerate(surrogate.axes) if i != axis
    ]
    variance = surrogate.signal * np.prod(own) - np.einsum("gn,ng->g", cross, surrogate.solve(cross.T))
    mean = surrogate.center + surrogate.scale * (cross @ surrogate.solve(surrogate.targets))
    return mean, surrogate.scale * np.sqrt(np.clip(variance, 0, None))


def expand_mean(surrogate: Surrogate) -> Expansion:
    """Give the surrogate's mean."""
    alpha = surrogate.solve(surrogate.targets)[:, None]
    return Expansion(_kernel_factors(surrogate), (surrogate.signal * alpha).astype(complex))


def draw_variants(surrogate: Surrogate) -> tuple[Surrogate, ...]:
    """Draw surrogates with other length scales, signal and noise, as probable as the trials make them."""
    best = surrogate.theta
    distances = pairwise_distances(surrogate.design)
    steps = _STEP * np.eye(len(best))
    slopes = [
        negative_log_posterior(best + step, distances, surrogate.targets, surrogate.noise_variances)[1]
        - negative_log_posterior(best - step, distances, surrogate.targets, surrogate.noise_variances)[1]
        for step in steps
    ]
    curvature = np.array(slopes) / (2 * _STEP)
    values, vectors = np.linalg.eigh((curvature + curvature.T) / 2)
    root = vectors / np.sqrt(np.maximum(values, _LEAST_CURVATURE))
    drawn = best + np.random.default_rng(0).normal(size=(N_VARIANTS, len(best))) @ root.T
    return tuple(surrogate.with_theta(theta) for theta in np.clip(drawn, *np.array(theta_bounds(len(best) - 2)).T))


def draw_functions(surrogate: Surrogate, rng: np.random.Generator) -> Expansion:
    """Draw functions from the posterior of one surrogate."""
    n_draws = N_DRAWS_EACH
    on_grid, at_trials = _features(surrogate, rng)
    shape = (_N_FEATURES, n_draws)
    # The real part of a product of phases has half of its variance, which two normal parts make up for.
    weights = (rng.normal(size=shape) + 1j * rng.normal(size=shape)) * np.sqrt(surrogate.signal / _N_FEATURES)
    prior = np.real(np.prod(at_trials, axis=0) @ weights)
    noise = np.sqrt(surrogate.noise + surrogate.noise_variances)[:, None] * rng.normal(size=prior.shape)
    alphas = surrogate.solve(surrogate.targets[:, None] - prior - noise)
    factors = zip(_kernel_factors(surrogate), on_grid, strict=True)
    coefficients = np.vstack([(surrogate.signal * alphas).astype(complex), weights])
    return Expansion(tuple(np.hstack(pair) for pair in factors), coefficients)


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


def _kernel_factors(surrogate: Surrogate) -> tuple[ComplexArray, ...]:
    places = surrogate.design.places
    return tuple(
        surrogate.kernel_factor(i, axis.grid, places[:, i]).astype(complex) for i, axis in enumerate(surrogate.axes)
    )


def _features(surrogate: Surrogate, rng: np.random.Generator) -> tuple[list[ComplexArray], list[ComplexArray]]:
    """Give random factors whose products have the kernel's covariance, on the grid of each axis and at the trials."""
    on_grid, at_trials = [], []
    for i, axis in enumerate(surrogate.axes):
        places = surrogate.design.places[:, i]
        if axis.is_ordered:
            frequencies = np.sqrt(2 * surrogate.weights[i]) * rng.normal(size=_N_FEATURES)
            on_grid.append(np.exp(1j * np.outer(axis.grid, frequencies)))
            at_trials.append(np.exp(1j * np.outer(places, frequencies)))
        else:
            # Either one sign for all levels, or a random one for each: unlike levels agree as often as the kernel says.
            is_common = rng.random(_N_FEATURES) < np.exp(-surrogate.weights[i])
            signs = np.where(is_common, 1.0, rng.choice([-1.0, 1.0], size=(len(axis.levels), _N_FEATURES)))
            on_grid.append(signs[axis.grid.astype(int)].astype(complex))
            at_trials.append(signs[places.astype(int)].astype(complex))
    return on_grid, at_trials
