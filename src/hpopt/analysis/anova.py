"""Functional ANOVA of a surrogate: the variance due to each parameter alone, and to each pair beyond its two parts.

Averages are uniform over the ranges, each on its own scale. Since the kernel is a product, every integral is a product
of sums over one axis each. Sources: Hoeffding 1948 and Hutter et al. 2014 for the decomposition; Chen, Jin and
Sudjianto 2005 (J. Mech. Des. 127) for product kernels; Oakley and O'Hagan 2004 for the variance of an average.

Intervals come from functions drawn from the posterior: hyperparameters by Laplace's approximation, and functions for
each of these by pathwise conditioning (Wilson et al. 2020, arXiv 2002.09309) of random Fourier features (Rahimi and
Recht 2007), which are products over the parameters, too.

Dimensions: N trials, A axes, M points of an axis' grid, G nodes of an axis, K terms of an expansion, F functions.
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

N_SURROGATES = 20
N_FUNCTIONS_EACH = 6
_N_FEATURES = 256
# Points of the Sobol sequence over which the total variance is summed.
_N_POINTS = 512
# Smaller shares of the variance of the targets are rounding errors.
_ROUNDING = 1e-6
# Step of the finite differences of the gradient of the log posterior.
_STEP = 0.05
# Lower bound of the curvature of the log posterior, so that draws along a flat direction stay bounded.
_MIN_CURVATURE = 0.1


@dataclass(frozen=True, kw_only=True)
class Decomposition:
    """Variances of functions, in standardized units: of single parameters, of pairs, and in total.

    Each array has shape (1 + F,): the surrogate's mean first, then functions drawn from the posterior.
    """

    single: Mapping[str, FloatArray]
    pairs: Mapping[Pair, FloatArray]
    total: FloatArray


@dataclass(frozen=True)
class Expansion:
    """Functions f as sums of products: f(x) = Re sum_k coefficients[k, f] prod_a factors[a][x_a, k].

    `factors` holds for each axis an array (M, K) at the points of its grid; `coefficients` has shape (K, F). Values are
    standardized as those of the surrogate.
    """

    factors: tuple[ComplexArray, ...]
    coefficients: ComplexArray


def decompose(surrogate: Surrogate, draws: Sequence[Surrogate]) -> Decomposition | None:
    """Decompose the mean of a surrogate, and functions from the posteriors of `draws`; None if the mean is constant."""
    rng = np.random.default_rng(0)
    expansions = [expand_mean(surrogate), *(draw_functions(draw, rng) for draw in draws)]
    parts = [_decompose_expansion(surrogate.axes, expansion) for expansion in expansions]
    if parts[0].total[0] < _ROUNDING:
        return None
    return Decomposition(
        single={name: np.concatenate([part.single[name] for part in parts]) for name in parts[0].single},
        pairs={pair: np.concatenate([part.pairs[pair] for part in parts]) for pair in parts[0].pairs},
        total=np.concatenate([part.total for part in parts]),
    )


def average_curve(surrogate: Surrogate, axis: int) -> tuple[FloatArray, FloatArray]:
    """Return mean and standard deviation (G,) of the function along an axis, averaged over all other axes.

    In units of the metric. The mean is the partial dependence (Friedman 2001) under uniform params; source of the
    variance: Oakley and O'Hagan 2004.
    """
    points = surrogate.design.points
    nodes = surrogate.axes[axis].nodes
    others = [(i, other.grid) for i, other in enumerate(surrogate.axes) if i != axis]
    rest = np.prod([surrogate.kernel_factor(i, grid, points[:, i]).mean(axis=0) for i, grid in others], axis=0)
    cross = surrogate.signal * surrogate.kernel_factor(axis, nodes, points[:, axis]) * rest
    # The prior variance of an average is the mean of the kernel over both of its arguments.
    prior = surrogate.signal * np.prod([surrogate.kernel_factor(i, grid, grid).mean() for i, grid in others])
    variance = prior - np.einsum("gn,ng->g", cross, surrogate.solve(cross.T))
    mean = surrogate.center + surrogate.scale * (cross @ surrogate.solve(surrogate.targets))
    return mean, surrogate.scale * np.sqrt(np.clip(variance, 0, None))


def expand_mean(surrogate: Surrogate) -> Expansion:
    """Expand the surrogate's posterior mean: one function, K = N."""
    alpha = surrogate.solve(surrogate.targets)[:, None]
    return Expansion(_kernel_factors(surrogate), (surrogate.signal * alpha).astype(complex))


def draw_surrogates(surrogate: Surrogate) -> tuple[Surrogate, ...]:
    """Draw N_SURROGATES surrogates with hyperparameters from their posterior, by Laplace's approximation."""
    best = surrogate.theta
    distances = pairwise_distances(surrogate.design)
    steps = _STEP * np.eye(len(best))
    differences = [
        negative_log_posterior(best + step, distances, surrogate.targets, surrogate.noise_variances)[1]
        - negative_log_posterior(best - step, distances, surrogate.targets, surrogate.noise_variances)[1]
        for step in steps
    ]
    curvature = np.array(differences) / (2 * _STEP)
    values, vectors = np.linalg.eigh((curvature + curvature.T) / 2)
    root = vectors / np.sqrt(np.maximum(values, _MIN_CURVATURE))
    drawn = best + np.random.default_rng(0).normal(size=(N_SURROGATES, len(best))) @ root.T
    return tuple(surrogate.with_theta(theta) for theta in np.clip(drawn, *np.array(theta_bounds(len(best) - 2)).T))


def draw_functions(surrogate: Surrogate, rng: np.random.Generator) -> Expansion:
    """Draw N_FUNCTIONS_EACH functions from the posterior of one surrogate.

    A function f and a noise e drawn from the prior are conditioned on the targets y at the trials X by Matheron's rule,
    f + k(., X) (K + noise)^-1 (y - f(X) - e). Source: Wilson et al. 2020.
    """
    on_grid, at_trials = _draw_features(surrogate, rng)
    shape = (_N_FEATURES, N_FUNCTIONS_EACH)
    # The real part of a product of phases has half of its variance, which two normal parts make up for.
    weights = (rng.normal(size=shape) + 1j * rng.normal(size=shape)) * np.sqrt(surrogate.signal / _N_FEATURES)
    prior = np.real(np.prod(at_trials, axis=0) @ weights)
    noise = np.sqrt(surrogate.noise + surrogate.noise_variances)[:, None] * rng.normal(size=prior.shape)
    alphas = surrogate.solve(surrogate.targets[:, None] - prior - noise)
    factors = zip(_kernel_factors(surrogate), on_grid, strict=True)
    coefficients = np.vstack([(surrogate.signal * alphas).astype(complex), weights])
    return Expansion(tuple(np.hstack(pair) for pair in factors), coefficients)


def _decompose_expansion(axes: tuple[Axis, ...], expansion: Expansion) -> Decomposition:
    factors, coefficients = expansion.factors, expansion.coefficients
    means = [factor.mean(axis=0) for factor in factors]
    single = {
        axis.name: np.real(factors[i] @ (_product_of_means(means, i)[:, None] * coefficients)).var(axis=0)
        for i, axis in enumerate(axes)
    }
    indices = combinations(range(len(axes)), 2)
    pairs = {(axes[i].name, axes[j].name): _joint_variance(expansion, means, i, j) for i, j in indices}
    points = qmc.Sobol(len(axes), seed=0).random(_N_POINTS)
    rows = [factor[(points[:, i] * len(factor)).astype(int)] for i, factor in enumerate(factors)]
    total = np.real(np.prod(rows, axis=0) @ coefficients).var(axis=0)
    return Decomposition(single=single, pairs=pairs, total=total)


def _joint_variance(expansion: Expansion, means: list[ComplexArray], i: int, j: int) -> FloatArray:
    """Return the variance (F,) of the surfaces over two axes, less that of their averages along either axis."""
    one, other = expansion.factors[i], expansion.factors[j]
    weights = _product_of_means(means, i, j)[:, None] * expansion.coefficients
    surfaces = np.array([np.real((one * weight) @ other.T) for weight in weights.T])
    joint: FloatArray = (
        surfaces.var(axis=(1, 2)) - surfaces.mean(axis=2).var(axis=1) - surfaces.mean(axis=1).var(axis=1)
    )
    return np.clip(joint, 0, None)


def _product_of_means(means: list[ComplexArray], *excluded: int) -> ComplexArray:
    included = [mean for i, mean in enumerate(means) if i not in excluded]
    product: ComplexArray = np.prod([np.ones_like(means[0]), *included], axis=0)
    return product


def _kernel_factors(surrogate: Surrogate) -> tuple[ComplexArray, ...]:
    """Return for each axis the factor of the kernel between its grid and the trials, shape (M, N)."""
    points = surrogate.design.points
    return tuple(
        surrogate.kernel_factor(i, axis.grid, points[:, i]).astype(complex) for i, axis in enumerate(surrogate.axes)
    )


def _draw_features(surrogate: Surrogate, rng: np.random.Generator) -> tuple[list[ComplexArray], list[ComplexArray]]:
    """Draw, for each axis, factors on its grid (M, K) and at the trials (N, K).

    Their products over the axes have the correlation that the kernel gives.
    """
    on_grid, at_trials = [], []
    for i, axis in enumerate(surrogate.axes):
        coordinates = surrogate.design.points[:, i]
        if axis.is_ordered:
            frequencies = np.sqrt(2 * surrogate.weights[i]) * rng.normal(size=_N_FEATURES)
            on_grid.append(np.exp(1j * np.outer(axis.grid, frequencies)))
            at_trials.append(np.exp(1j * np.outer(coordinates, frequencies)))
        else:
            # One sign for all levels, or a random one for each: two levels agree as often as the kernel requires.
            is_common = rng.random(_N_FEATURES) < np.exp(-surrogate.weights[i])
            signs = np.where(is_common, 1.0, rng.choice([-1.0, 1.0], size=(len(axis.levels), _N_FEATURES)))
            on_grid.append(signs[axis.grid.astype(int)].astype(complex))
            at_trials.append(signs[coordinates.astype(int)].astype(complex))
    return on_grid, at_trials
