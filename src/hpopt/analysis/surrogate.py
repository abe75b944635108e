"""A Gaussian process of the metric over all parameters.

Its kernel is a product over the parameters, so that averages over any of them are exact sums (anova.py). Source:
Rasmussen and Williams 2006 (GPML), algorithm 2.1 and eq. 5.9. scikit-learn's has no unordered choices, no prior over
length scales and no noise variance per trial; a test compares the two where both apply.

Dimensions: N trials, A axes, P and Q points.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from hpopt.analysis.axes import Axis, Design, FloatArray, IntArray, subsample

MIN_TRIALS = 10
# Loeppky, Sacks and Welch 2009 (Technometrics 51): a response surface takes about ten runs per dimension.
TRIALS_PER_PARAMETER = 10
# The hyperparameters are fitted to at most N_TO_TUNE trials and predictions use at most N_TO_PREDICT: time grows with
# the cube of their number.
N_TO_TUNE = 150
N_TO_PREDICT = 500
# Tukey's outer fence, in interquartile ranges: values beyond it show how bad a trial is, not where the optimum is.
_FENCE = 3.0
# Means and standard deviations of the normal priors over the logarithms of the signal variance and the noise variance:
# a smooth function and some noise, whatever the units.
_SIGNAL_PRIOR, _NOISE_PRIOR = (0.0, 1.0), (-2.0, 2.0)
# Standard deviation of the prior over the logarithm of a length scale. Its mean grows with the root of the number of
# dimensions, as in Hvarfner et al. 2024 (arXiv 2402.02229).
_LOG_LENGTH_STD = 0.8
# Bounds of a length scale, in widths of the range.
_SHORTEST, _LONGEST = 0.05, 30.0
_JITTER = 1e-8
# The largest magnitude of a value: squares of larger ones would overflow.
LARGEST_VALUE = 1e100


@dataclass(frozen=True, kw_only=True)
class Surrogate:
    """A fitted Gaussian process.

    `targets` (N,) are the trials' values, clipped and standardized by `center` and `scale`. `noise_variances` (N,) are
    the known variances of extrapolated targets, 0 for measured ones, in standardized units. `signal` and `noise` are
    the fitted variances of the function and of a run, in standardized units; `weights` (A,) are 1 / (2 l^2) for each
    length scale l. `sign` is 1 if low values are good and -1 otherwise. The design holds those of `n_trials` trials
    that are used; `n_clipped` of the values were clipped.
    """

    design: Design
    targets: FloatArray
    noise_variances: FloatArray
    center: float
    scale: float
    sign: float
    weights: FloatArray
    signal: float
    noise: float
    n_trials: int
    n_clipped: int

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes of the design."""
        return self.design.axes

    @property
    def theta(self) -> FloatArray:
        """The logarithms of signal, noise and weights, shape (2 + A,)."""
        theta: FloatArray = np.log([self.signal, self.noise, *self.weights])
        return theta

    def with_theta(self, theta: FloatArray) -> "Surrogate":
        """Return a surrogate of the same trials with other hyperparameters, given as their logarithms (2 + A,)."""
        signal, noise = (float(np.exp(logarithm)) for logarithm in theta[:2])
        return replace(self, signal=signal, noise=noise, weights=np.exp(theta[2:]))

    @property
    def is_measured(self) -> npt.NDArray[np.bool_]:
        """Whether each target was measured, and not extrapolated from a learning curve, shape (N,)."""
        is_measured: npt.NDArray[np.bool_] = self.noise_variances == 0
        return is_measured

    @property
    def noise_std(self) -> float:
        """The standard deviation between runs of one configuration, in units of the metric."""
        return float(np.sqrt(self.noise) * self.scale)

    def kernel_factor(self, axis: int, one: FloatArray, other: FloatArray) -> FloatArray:
        """Return the factor of the kernel for one axis between coordinates (P,) and (Q,), shape (P, Q)."""
        factor: FloatArray = np.exp(-self.weights[axis] * _distance(self.axes[axis], one, other))
        return factor

    def kernel(self, one: FloatArray, other: FloatArray) -> FloatArray:
        """Return the prior covariance of the function between points (P, A) and (Q, A), shape (P, Q)."""
        factors = [self.kernel_factor(axis, one[:, axis], other[:, axis]) for axis in range(len(self.axes))]
        covariance: FloatArray = self.signal * np.prod(factors, axis=0)
        return covariance

    def solve(self, right: FloatArray, trial_weights: FloatArray | None = None) -> FloatArray:
        """Solve a linear system with the covariance of the targets (N, N) and a right-hand side (N,) or (N, K).

        `trial_weights` (N,) divide the noise of each trial: a trial of weight 2 counts as two with the same value.
        """
        factor = self._factor if trial_weights is None else self._factorize(trial_weights)
        solution: FloatArray = cho_solve(factor, right)
        return solution

    def _factorize(self, trial_weights: FloatArray) -> tuple[FloatArray, bool]:
        noise = self.noise / np.maximum(trial_weights, 1e-3)
        diagonal = np.diag(noise + self.noise_variances + _JITTER)
        factor: tuple[FloatArray, bool] = cho_factor(self._covariance + diagonal, lower=True)
        return factor

    @cached_property
    def _covariance(self) -> FloatArray:
        return self.kernel(self.design.points, self.design.points)

    @cached_property
    def _factor(self) -> tuple[FloatArray, bool]:
        return self._factorize(np.ones(len(self.targets)))

    def predict(self, points: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return posterior mean (P,) and covariance (P, P) of the function at points (P, A), in units of the metric.

        The noise of a run is not included. Source: GPML, eq. 2.23 and 2.24.
        """
        cross = self.kernel(points, self.design.points)
        mean = cross @ self.solve(self.targets)
        covariance = self.kernel(points, points) - cross @ self.solve(cross.T)
        return self.center + self.scale * mean, self.scale**2 * covariance

    def incumbent(self) -> FloatArray:
        """Return the point (A,) of the measured trial with the best predicted mean, which is less noisy than values."""
        points = self.design.points[self.is_measured]
        mean, _ = self.predict(points)
        best: FloatArray = points[np.argmin(self.sign * mean)]
        return best


def fit(
    design: Design, values: FloatArray, *, sign: float, stds: FloatArray | None = None, n_starts: int = 2
) -> Surrogate:
    """Fit the surrogate to the values (N,) of a design's trials, at most N_TO_PREDICT of them, drawn at random.

    `sign` is 1 if low values are good and -1 otherwise. `stds` (N,) are the standard deviations of extrapolated values,
    0 for measured ones; all are measured by default. `n_starts` (1 or 2) is the number of starts of the optimizer.
    """
    stds = np.zeros(len(values)) if stds is None else stds
    clipped = clip_outliers(values, sign)
    used = _choose_trials(stds == 0)
    center, scale = float(clipped[used].mean()), float(clipped[used].std()) or 1.0
    targets, noise_variances = (clipped[used] - center) / scale, np.minimum((stds[used] / scale) ** 2, LARGEST_VALUE)
    theta = _maximize_posterior(design.take(used), targets, noise_variances, n_starts)
    return Surrogate(
        design=design.take(used),
        targets=targets,
        noise_variances=noise_variances,
        center=center,
        scale=scale,
        sign=sign,
        weights=np.exp(theta[2:]),
        signal=float(np.exp(theta[0])),
        noise=float(np.exp(theta[1])),
        n_trials=len(values),
        n_clipped=int((clipped != values).sum()),
    )


def _choose_trials(is_measured: npt.NDArray[np.bool_]) -> IntArray:
    """Return the indices of all trials, or of N_TO_PREDICT, at least half of them measured if there are as many."""
    rng = np.random.default_rng(0)
    measured, extrapolated = np.flatnonzero(is_measured), np.flatnonzero(~is_measured)
    n_measured = min(len(measured), N_TO_PREDICT - min(len(extrapolated), N_TO_PREDICT // 2))
    n_extrapolated = min(len(extrapolated), N_TO_PREDICT - n_measured)
    counts = ((measured, n_measured), (extrapolated, n_extrapolated))
    return np.sort(np.concatenate([rng.choice(indices, n, replace=False) for indices, n in counts]))


def clip_outliers(values: FloatArray, sign: float) -> FloatArray:
    """Clip values (N,) to Tukey's outer fence on the bad side, and all magnitudes to LARGEST_VALUE.

    Source: Tukey 1977, Exploratory Data Analysis: the fence lies three interquartile ranges beyond the quartile.
    """
    values = np.clip(values, -LARGEST_VALUE, LARGEST_VALUE)
    low, high = np.quantile(sign * values, (0.25, 0.75))
    clipped: FloatArray = sign * np.minimum(sign * values, high + _FENCE * (high - low) if high > low else np.inf)
    return clipped


def _distance(axis: Axis, one: FloatArray, other: FloatArray) -> FloatArray:
    difference = one[:, None] - other[None, :]
    distance: FloatArray = difference**2 if axis.is_ordered else (difference != 0).astype(float)
    return distance


def pairwise_distances(design: Design) -> FloatArray:
    """Return the distances between all trials for each axis, shape (A, N, N): squared, or 0 or 1 without an order."""
    return np.array([_distance(axis, design.points[:, i], design.points[:, i]) for i, axis in enumerate(design.axes)])


def theta_bounds(n_axes: int) -> list[tuple[float, float]]:
    """Return the bounds of each element of theta."""
    return [(-7.0, 4.0), (-9.0, 1.0), *[(_log_weight(_LONGEST), _log_weight(_SHORTEST))] * n_axes]


def _maximize_posterior(design: Design, targets: FloatArray, noise_variances: FloatArray, n_starts: int) -> FloatArray:
    """Return the theta (2 + A,) of the highest posterior density."""
    some = subsample(len(targets), N_TO_TUNE, seed=1)
    distances = pairwise_distances(design.take(some))
    n_axes = len(design.axes)
    length = 0.5 * np.sqrt(n_axes)
    results = [
        minimize(
            negative_log_posterior,
            np.array([0.0, noise, *[_log_weight(length * stretch)] * n_axes]),
            args=(distances, targets[some], noise_variances[some]),
            jac=True,
            bounds=theta_bounds(n_axes),
            method="L-BFGS-B",
            options={"maxiter": 60},
        )
        for noise, stretch in ((-2.0, 1.0), (-0.2, 2.0))[:n_starts]
    ]
    theta: FloatArray = min(results, key=lambda result: result.fun).x
    return theta


def negative_log_posterior(
    theta: FloatArray, distances: FloatArray, targets: FloatArray, noise_variances: FloatArray
) -> tuple[float, FloatArray]:
    """Return the negative logarithm of the posterior density of theta, up to a constant, and its gradient (2 + A,)."""
    value, gradient = log_likelihood(theta, distances, targets, noise_variances)
    n_axes = len(distances)
    means = np.array([_SIGNAL_PRIOR[0], _NOISE_PRIOR[0], *[_log_weight(0.5 * np.sqrt(n_axes))] * n_axes])
    # A weight is an inverse square, so its logarithm has twice the standard deviation of that of the length scale.
    stds = np.array([_SIGNAL_PRIOR[1], _NOISE_PRIOR[1], *[2 * _LOG_LENGTH_STD] * n_axes])
    deviation = (theta - means) / stds
    return float(0.5 * deviation @ deviation - value), deviation / stds - gradient


def log_likelihood(
    theta: FloatArray, distances: FloatArray, targets: FloatArray, noise_variances: FloatArray
) -> tuple[float, FloatArray]:
    """Return the log marginal likelihood of the targets (N,) and its gradient by theta (2 + A,).

    `distances` (A, N, N) are those of pairwise_distances. Source: GPML, eq. 5.8 and 5.9.
    """
    signal, noise, weights = np.exp(theta[0]), np.exp(theta[1]), np.exp(theta[2:])
    n = len(targets)
    kernel = signal * np.exp(-np.tensordot(weights, distances, axes=1))
    factor = cho_factor(kernel + np.diag(noise + noise_variances + _JITTER), lower=True)
    alpha, inverse = cho_solve(factor, targets), cho_solve(factor, np.eye(n))
    value = -0.5 * targets @ alpha - np.log(np.diag(factor[0])).sum() - 0.5 * n * np.log(2 * np.pi)
    inner = np.outer(alpha, alpha) - inverse
    through = inner * kernel
    slopes = -weights * np.tensordot(distances, through, axes=2)
    return float(value), 0.5 * np.array([through.sum(), noise * np.trace(inner), *slopes])


def _log_weight(length: float) -> float:
    return float(-np.log(2 * length**2))
