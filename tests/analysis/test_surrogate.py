"""The surrogate against scikit-learn, where both apply."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from hpopt.analysis.sample import completed
from hpopt.analysis.surrogate import clip_outliers, fit, log_likelihood, negative_log_posterior, pairwise_distances
from hpopt.analysis.trials import TrialRow
from hpopt.analysis.validation import cross_validate
from hpopt.search.space import Float

SPACE = {"a": Float(low=0, high=1), "b": Float(low=0, high=1)}
THETA = np.log([0.7, 0.05, 2.0, 0.5])


def sample(n: int = 30):
    rng = np.random.default_rng(0)
    points = rng.random((n, 2))
    return points, np.sin(5 * points[:, 0]) + 0.3 * points[:, 1] + 0.1 * rng.normal(size=n)


@pytest.fixture
def design(make_table):
    points, values = sample()
    rows = [
        TrialRow(trial=i, state="COMPLETE", value=float(v), params={"a": float(p[0]), "b": float(p[1])})
        for i, (p, v) in enumerate(zip(points, values, strict=True))
    ]
    return completed(make_table(rows, SPACE))


# Every third value is an extrapolated one, with a variance of its own.
NOISE_VARIANCES = np.where(np.arange(30) % 3 == 0, np.linspace(0.01, 2, 30), 0.0)


def reference(noise_variances=0.0):
    lengths = (2 * np.exp(THETA[2:])) ** -0.5
    kernel = ConstantKernel(0.7) * RBF(lengths) + WhiteKernel(0.05)
    return GaussianProcessRegressor(kernel, alpha=1e-8 + noise_variances, optimizer=None)


def test_the_likelihood_is_that_of_scikit_learn(design):
    points, values = sample()
    expected = reference(NOISE_VARIANCES).fit(points, values).log_marginal_likelihood_value_
    assert log_likelihood(THETA, pairwise_distances(design), values, NOISE_VARIANCES)[0] == pytest.approx(
        expected, rel=1e-9
    )


def test_the_gradient_is_that_of_finite_differences(design):
    _, values = sample()
    for function in (log_likelihood, negative_log_posterior):
        _, gradient = function(THETA, pairwise_distances(design), values, NOISE_VARIANCES)
        reference_gradient = approx_fprime(
            THETA, lambda theta, f=function: f(theta, pairwise_distances(design), values, NOISE_VARIANCES)[0], 1e-6
        )
        assert gradient == pytest.approx(reference_gradient, rel=1e-3, abs=1e-4)


def test_predictions_are_those_of_scikit_learn(design):
    """Mean and covariance of the function, without the noise of a run, which scikit-learn adds."""
    stds = np.sqrt(NOISE_VARIANCES) * design.values().std()
    surrogate = fit(design, design.values(), sign=1, stds=stds).with_theta(THETA)
    model = reference(NOISE_VARIANCES).fit(design.points, surrogate.targets)
    points = np.random.default_rng(1).random((7, 2))
    mean, covariance = surrogate.predict(points)
    expected_mean, expected = model.predict(points, return_cov=True)
    assert mean == pytest.approx(surrogate.center + surrogate.scale * expected_mean)
    assert covariance == pytest.approx(surrogate.scale**2 * (expected - 0.05 * np.eye(7)), abs=1e-9)


def test_a_planted_noise_is_estimated(sample_table):
    """60 runs with a standard deviation of 0.2 around a bowl."""
    table = sample_table(lambda p: (np.log10(p["learning_rate"]) + 2) ** 2, n_trials=60, noise=0.2)
    design = completed(table)
    assert fit(design, design.values(), sign=1).noise_std == pytest.approx(0.2, rel=0.3)


@pytest.mark.parametrize("sign", [1, -1])
def test_only_bad_values_beyond_the_outer_fence_are_clipped(sign):
    """The quartiles are 1 and 3, so the fence is at 3 + 3 * 2; a good value is never clipped."""
    values = sign * np.array([-50.0, 1.0, 1.0, 2.0, 3.0, 3.0, 1e9])
    assert clip_outliers(values, sign) * sign == pytest.approx([-50, 1, 1, 2, 3, 3, 9])


def test_the_error_is_that_of_held_out_trials(sample_table):
    """Pure noise cannot be predicted, however well it is fitted; a smooth function can."""
    for value, low, high in ((lambda _: 0.0, -1.0, 0.2), (lambda p: np.log10(p["learning_rate"]), 0.9, 1.0)):
        design = completed(sample_table(value, n_trials=60, noise=0.1))
        error = cross_validate(fit(design, design.values(), sign=1))
        assert low < error.r2 < high
        assert 0.07 < error.rmse < 0.15


def test_replicates_are_not_predicted_from_each_other(sample_table, make_table):
    """Otherwise noise that is equal in replicates would seem to be explained by the params."""
    rows = [row for row in sample_table(lambda _: 0.0, n_trials=20, noise=1.0).trials for _ in range(2)]
    design = completed(make_table(list(rows)))
    assert cross_validate(fit(design, design.values(), sign=1)).r2 < 0.2


def test_many_trials_are_subsampled_and_both_numbers_reported(sample_table):
    table = sample_table(lambda p: p["ns_steps"], n_trials=700)
    design = completed(table)
    surrogate = fit(design, design.values(), sign=1)
    assert (surrogate.n_trials, len(surrogate.targets)) == (700, 500)
