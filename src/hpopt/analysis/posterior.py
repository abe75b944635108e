"""Owns what else a study's function may be: draws of it that its trials do not rule out.

Both what the model leaves open is drawn: its length scales and noise (Laplace's approximation at the best ones) and,
for each of these, the function. Source: pathwise conditioning, Wilson et al. 2020 (arXiv 2002.09309), on random Fourier
features, Rahimi and Recht 2007. They are products over the parameters as the kernel is, which anova.py relies on.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hpopt.analysis.surrogate import Surrogate, bounds_of, distances_of, negative_log_posterior

ComplexArray = npt.NDArray[np.complex128]

N_VARIANTS = 20
N_DRAWS_EACH = 6
_N_FEATURES = 256
_STEP = 0.05
# A direction in which the posterior is flat would be drawn from without end.
_LEAST_CURVATURE = 0.1


@dataclass(frozen=True)
class Expansion:
    """Functions as sums of products: the real part of sum_k coefficients[k] prod_axis factors[axis][place, k].

    Each axis has a row for each place of its grid; each function a column of coefficients. Values are standardized as
    the surrogate's are.
    """

    factors: tuple[ComplexArray, ...]
    coefficients: ComplexArray


def expand_mean(surrogate: Surrogate) -> Expansion:
    """Give the surrogate's mean."""
    alpha = surrogate.solve(surrogate.targets)[:, None]
    return Expansion(_kernel_factors(surrogate), (surrogate.signal * alpha).astype(complex))


def draw_variants(surrogate: Surrogate) -> tuple[Surrogate, ...]:
    """Draw surrogates with other length scales, signal and noise, as probable as the trials make them."""
    best = surrogate.theta
    distances = distances_of(surrogate.design)
    steps = _STEP * np.eye(len(best))
    slopes = [
        negative_log_posterior(best + step, distances, surrogate.targets, surrogate.doubts)[1]
        - negative_log_posterior(best - step, distances, surrogate.targets, surrogate.doubts)[1]
        for step in steps
    ]
    curvature = np.array(slopes) / (2 * _STEP)
    values, vectors = np.linalg.eigh((curvature + curvature.T) / 2)
    root = vectors / np.sqrt(np.maximum(values, _LEAST_CURVATURE))
    drawn = best + np.random.default_rng(0).normal(size=(N_VARIANTS, len(best))) @ root.T
    return tuple(surrogate.with_theta(theta) for theta in np.clip(drawn, *np.array(bounds_of(len(best) - 2)).T))


def draw_functions(surrogate: Surrogate, rng: np.random.Generator) -> Expansion:
    """Draw functions from the posterior of one surrogate."""
    n_draws = N_DRAWS_EACH
    on_grid, at_trials = _features(surrogate, rng)
    shape = (_N_FEATURES, n_draws)
    # The real part of a product of phases has half of its variance, which two normal parts make up for.
    weights = (rng.normal(size=shape) + 1j * rng.normal(size=shape)) * np.sqrt(surrogate.signal / _N_FEATURES)
    prior = np.real(np.prod(at_trials, axis=0) @ weights)
    luck = np.sqrt(surrogate.noise + surrogate.doubts)[:, None] * rng.normal(size=prior.shape)
    alphas = surrogate.solve(surrogate.targets[:, None] - prior - luck)
    factors = zip(_kernel_factors(surrogate), on_grid, strict=True)
    coefficients = np.vstack([(surrogate.signal * alphas).astype(complex), weights])
    return Expansion(tuple(np.hstack(pair) for pair in factors), coefficients)


def _kernel_factors(surrogate: Surrogate) -> tuple[ComplexArray, ...]:
    places = surrogate.design.places
    return tuple(
        surrogate.similarity(i, axis.grid, places[:, i]).astype(complex) for i, axis in enumerate(surrogate.axes)
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
