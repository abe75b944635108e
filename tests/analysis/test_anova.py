"""Functional ANOVA by sums of products against brute force over the whole grid."""

from itertools import product

import numpy as np
import pytest

from hpopt.analysis.anova import average_curve, decompose, draw_functions, draw_surrogates, expand_mean
from hpopt.analysis.model import build_model


def bent(params):
    """A bowl in the learning rate, a step between optimizers, and a joint effect of two."""
    x = np.log10(params["learning_rate"]) + 2
    return x**2 + (params["optimizer"] == "sgd") + 0.2 * x * (params["ns_steps"] - 5)


@pytest.fixture
def model(sample_table):
    return build_model(sample_table(bent, n_trials=50))


@pytest.fixture
def grid(model):
    """The surrogate's mean on the grids of all axes: an array with a dimension an axis."""
    grids = [axis.grid for axis in model.surrogate.axes]
    mean, _ = model.surrogate.predict(np.array(list(product(*grids))))
    return mean.reshape([len(axis_grid) for axis_grid in grids])


def test_the_parts_of_single_parameters_are_variances_of_averages(model, grid):
    scale = model.surrogate.scale**2
    for i, part in enumerate(model.decomposition.single.values()):
        others = tuple(axis for axis in range(3) if axis != i)
        assert scale * part[0] == pytest.approx(grid.mean(axis=others).var(), rel=1e-6)


def test_the_part_of_a_pair_is_the_variance_that_neither_explains_alone(model, grid):
    """The total variance is summed over 512 points only, hence the tolerance."""
    surface = grid.mean(axis=2)
    joint = surface.var() - surface.mean(axis=0).var() - surface.mean(axis=1).var()
    scale = model.surrogate.scale**2
    assert scale * model.decomposition.pairs["learning_rate", "ns_steps"][0] == pytest.approx(joint, rel=1e-6)
    assert scale * model.decomposition.total[0] == pytest.approx(grid.var(), rel=0.1)


def test_the_average_curve_is_the_mean_over_all_others(model, grid):
    mean, _ = average_curve(model.surrogate, 1)
    assert mean == pytest.approx(grid.mean(axis=(0, 2)))


def test_the_band_of_an_average_is_that_of_the_mean_of_correlated_values(model):
    """The variance of a mean is the mean of the covariance matrix."""
    surrogate = model.surrogate
    first, third = (surrogate.axes[i].grid for i in (0, 2))
    points = np.array([(one, 0.5, other) for one, other in product(first, third)])
    _, covariance = surrogate.predict(points)
    _, std = average_curve(surrogate, 1)
    middle = int(np.flatnonzero(surrogate.axes[1].nodes == 0.5)[0])
    assert std[middle] == pytest.approx(np.sqrt(covariance.mean()), rel=1e-5)


def test_draws_have_the_mean_and_covariance_of_the_posterior(model):
    """The random features must reproduce the kernel, also for choices without an order."""
    surrogate, rng = model.surrogate, np.random.default_rng(0)
    index = ([0, 10, 19, 5, 15], [0, 8, 4, 4, 2], [0, 1, 2, 0, 2])
    points = np.array([axis.grid[at] for axis, at in zip(surrogate.axes, index, strict=True)]).T
    draws = [evaluate(draw_functions(surrogate, rng), index) for _ in range(400)]
    drawn = surrogate.center + surrogate.scale * np.concatenate(draws, axis=1)
    mean, covariance = surrogate.predict(points)
    std = np.sqrt(np.diag(covariance))
    assert drawn.mean(axis=1) == pytest.approx(mean, abs=0.15 * std.max())
    assert np.cov(drawn) == pytest.approx(covariance, abs=0.15 * std.max() ** 2)
    assert evaluate(expand_mean(surrogate), index)[:, 0] == pytest.approx((mean - surrogate.center) / surrogate.scale)


def evaluate(expansion, index):
    rows = [factor[at] for factor, at in zip(expansion.factors, index, strict=True)]
    return np.real(np.prod(rows, axis=0) @ expansion.coefficients)


def test_drawn_surrogates_vary_less_with_more_trials(sample_table):
    """The length scale of a parameter with an effect is known better from more trials."""
    spreads = []
    for n_trials in (15, 120):
        surrogate = build_model(sample_table(bent, n_trials=n_trials, noise=0.2)).surrogate
        spreads.append(np.std([drawn.theta[2] for drawn in draw_surrogates(surrogate)]))
    assert spreads[1] < spreads[0]


def test_a_constant_function_has_no_parts(model):
    surrogate = model.surrogate
    flat = surrogate.with_theta(np.array([-7.0, 1.0, *surrogate.theta[2:]]))
    object.__setattr__(flat, "targets", np.zeros_like(flat.targets))
    assert decompose(flat, ()) is None
