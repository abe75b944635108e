"""Owns the model of a metric: a Gaussian process over all parameters. How well it predicts is validation.py's to say.

Its kernel is a product over the parameters, so that averages over all the others are exact sums: anova.py takes them.
Source: Rasmussen and Williams 2006, algorithm 2.1 and eq. 5.9. Of its own and not scikit-learn's, which has no
choices without an order, no prior for a few trials and no weights of trials; a test holds the two equal.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from hpopt.analysis.axes import Axis, Design, FloatArray
from hpopt.analysis.trials import StudyTable

MIN_TRIALS = 10
# Length scales are chosen from so many trials, and predictions made from so many: time grows with their cube.
N_TO_TUNE = 150
N_TO_PREDICT = 500
# Tukey's outer fence: values further out than three times the middle half's spread tell how bad, not where good.
_FENCE = 3.0
# Logarithms of the signal's variance, of the noise's and of a length scale in ranges, and how sure of each we are
# beforehand: a smooth function and some noise, whatever the units. In more dimensions length scales are longer, as in
# Hvarfner et al. 2024 (arXiv 2402.02229).
_SIGNAL, _NOISE = (0.0, 1.0), (-2.0, 2.0)
_LENGTH_SPREAD = 0.8
_SHORTEST, _LONGEST = 0.05, 30.0
_JITTER = 1e-8
LARGEST_VALUE = 1e100


@dataclass(frozen=True, kw_only=True)
class Surrogate:
    """A fitted model. Values are standardized by `center` and `scale`; `weights` are 1 / (2 length scale ^ 2).

    `noise_variances` are further variances of the targets: 0 for a measured value. `n_clipped` trials
    were so bad that they count as merely bad.
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
        """The parameters."""
        return self.design.axes

    @property
    def theta(self) -> FloatArray:
        """The logarithms of signal, noise and weights."""
        theta: FloatArray = np.log([self.signal, self.noise, *self.weights])
        return theta

    def with_theta(self, theta: FloatArray) -> "Surrogate":
        """Give the same trials under another signal, noise and weights."""
        signal, noise = (float(np.exp(each)) for each in theta[:2])
        return replace(self, signal=signal, noise=noise, weights=np.exp(theta[2:]))

    @property
    def is_measured(self) -> npt.NDArray[np.bool_]:
        """Say of each trial whether its value was measured, and not predicted from its learning curve."""
        is_measured: npt.NDArray[np.bool_] = self.noise_variances == 0
        return is_measured

    @property
    def noise_std(self) -> float:
        """How much two runs of one configuration differ by this model, in units of the metric."""
        return float(np.sqrt(self.noise) * self.scale)

    def kernel_factor(self, axis: int, one: FloatArray, other: FloatArray) -> FloatArray:
        """Give the kernel's factor of one axis between two lists of places."""
        kernel_factor: FloatArray = np.exp(-self.weights[axis] * _distance(self.axes[axis], one, other))
        return kernel_factor

    def kernel(self, one: FloatArray, other: FloatArray) -> FloatArray:
        """Give the covariance of the function between two lists of points."""
        factors = [self.kernel_factor(axis, one[:, axis], other[:, axis]) for axis in range(len(self.axes))]
        covariance: FloatArray = self.signal * np.prod(factors, axis=0)
        return covariance

    def solve(self, right: FloatArray, trial_weights: FloatArray | None = None) -> FloatArray:
        """Solve with the covariance of the trials' values; a trial of weight 2 counts as two that agree."""
        solved: FloatArray = cho_solve(self._factor if trial_weights is None else self._factorize(trial_weights), right)
        return solved

    def _factorize(self, trial_weights: FloatArray) -> tuple[FloatArray, bool]:
        noise = self.noise / np.maximum(trial_weights, 1e-3)
        diagonal = np.diag(noise + self.noise_variances + _JITTER)
        factor: tuple[FloatArray, bool] = cho_factor(self._covariance + diagonal, lower=True)
        return factor

    @cached_property
    def _covariance(self) -> FloatArray:
        return self.kernel(self.design.places, self.design.places)

    @cached_property
    def _factor(self) -> tuple[FloatArray, bool]:
        return self._factorize(np.ones(len(self.targets)))

    def predict(self, points: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Give mean and covariance of the function at points, in units of the metric; without the noise of a run."""
        cross = self.kernel(points, self.design.places)
        mean = cross @ self.solve(self.targets)
        covariance = self.kernel(points, points) - cross @ self.solve(cross.T)
        return self.center + self.scale * mean, self.scale**2 * covariance

    def incumbent(self) -> FloatArray:
        """Give the point of the measured trial that is the best by the model: less noise than the best value."""
        places = self.design.places[self.is_measured]
        mean, _ = self.predict(places)
        best: FloatArray = places[np.argmin(self.sign * mean)]
        return best


def reason_not_fitted(table: StudyTable, design: Design) -> str | None:
    """Say why the trials of a design are not enough to model, or nothing."""
    if not table.search_space:
        return "the study searches no parameter"
    if len(design.rows) < MIN_TRIALS:
        return f"not enough data: {MIN_TRIALS} complete trials are needed, there are {len(design.rows)}"
    if not design.axes:
        return "every range of the study has one value only"
    if (design.places == design.places[0]).all():
        return "all complete trials have the same params"
    if len({row.value for row in design.rows}) == 1:
        return "all complete trials have the same value"
    return None


def fit(
    design: Design, values: FloatArray, *, sign: float, stds: FloatArray | None = None, n_starts: int = 2
) -> Surrogate:
    """Fit the model to the values of a design's trials; `sign` is 1 where low values are good and -1 otherwise.

    `stds` are standard deviations of values that were predicted, 0 for those that were measured, which all are if it is
    not given. Of many trials a random part is used.
    """
    stds = np.zeros(len(values)) if stds is None else stds
    clipped = clip_outliers(values, sign)
    kept = _choose(stds == 0)
    center, scale = float(clipped[kept].mean()), float(clipped[kept].std()) or 1.0
    targets, noise_variances = (clipped[kept] - center) / scale, np.minimum((stds[kept] / scale) ** 2, LARGEST_VALUE)
    theta = _tune(design.take(kept), targets, noise_variances, n_starts)
    return Surrogate(
        design=design.take(kept),
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


def _choose(is_measured: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Give all trials, or as many as can be used, at least half of them measured ones."""
    rng = np.random.default_rng(0)
    measured, predicted = np.flatnonzero(is_measured), np.flatnonzero(~is_measured)
    n_measured = min(len(measured), N_TO_PREDICT - min(len(predicted), N_TO_PREDICT // 2))
    n_predicted = min(len(predicted), N_TO_PREDICT - n_measured)
    kept = [rng.choice(each, n, replace=False) for each, n in ((measured, n_measured), (predicted, n_predicted))]
    return np.sort(np.concatenate(kept))


def clip_outliers(values: FloatArray, sign: float) -> FloatArray:
    """Put the values beyond Tukey's outer fence on the bad side onto it; squares of larger ones would be infinite."""
    values = np.clip(values, -LARGEST_VALUE, LARGEST_VALUE)
    low, high = np.quantile(sign * values, (0.25, 0.75))
    clipped: FloatArray = sign * np.minimum(sign * values, high + _FENCE * (high - low) if high > low else np.inf)
    return clipped


def _distance(axis: Axis, one: FloatArray, other: FloatArray) -> FloatArray:
    difference = one[:, None] - other[None, :]
    distance: FloatArray = difference**2 if axis.is_ordered else (difference != 0).astype(float)
    return distance


def pairwise_distances(design: Design) -> FloatArray:
    """Give the distances of all trials from each other, axis by axis."""
    return np.array([_distance(axis, design.places[:, i], design.places[:, i]) for i, axis in enumerate(design.axes)])


def theta_bounds(n_axes: int) -> list[tuple[float, float]]:
    """Give the bounds of theta."""
    return [(-7.0, 4.0), (-9.0, 1.0), *[(_weight(_LONGEST), _weight(_SHORTEST))] * n_axes]


def _tune(design: Design, targets: FloatArray, noise_variances: FloatArray, n_starts: int) -> FloatArray:
    """Choose the logarithms of signal, noise and weights that are most probable a posteriori."""
    if len(targets) > N_TO_TUNE:
        some = np.sort(np.random.default_rng(1).choice(len(targets), N_TO_TUNE, replace=False))
        design, targets, noise_variances = design.take(some), targets[some], noise_variances[some]
    distances = pairwise_distances(design)
    length = 0.5 * np.sqrt(len(design.axes))
    found = [
        minimize(
            negative_log_posterior,
            np.array([0.0, noise, *[_weight(length * stretch)] * len(design.axes)]),
            args=(distances, targets, noise_variances),
            jac=True,
            bounds=theta_bounds(len(design.axes)),
            method="L-BFGS-B",
            options={"maxiter": 60},
        )
        for noise, stretch in ((-2.0, 1.0), (-0.2, 2.0))[:n_starts]
    ]
    theta: FloatArray = min(found, key=lambda result: result.fun).x
    return theta


def negative_log_posterior(
    theta: FloatArray, distances: FloatArray, targets: FloatArray, noise_variances: FloatArray
) -> tuple[float, FloatArray]:
    """Give the function that tuning makes small, and its gradient."""
    value, gradient = log_likelihood(theta, distances, targets, noise_variances)
    centers = np.array([_SIGNAL[0], _NOISE[0], *[_weight(0.5 * np.sqrt(len(distances)))] * len(distances)])
    # A weight is an inverse square, so its logarithm spreads twice as far as that of the length.
    spreads = np.array([_SIGNAL[1], _NOISE[1], *[2 * _LENGTH_SPREAD] * len(distances)])
    deviation = (theta - centers) / spreads
    return float(0.5 * deviation @ deviation - value), deviation / spreads - gradient


def log_likelihood(
    theta: FloatArray, distances: FloatArray, targets: FloatArray, noise_variances: FloatArray
) -> tuple[float, FloatArray]:
    """Give the logarithm of the probability of the values, and its gradient by the logarithms in theta."""
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


def _weight(length: float) -> float:
    return float(-np.log(2 * length**2))
