"""Tell whether the best of several repeated configurations is better than the others beyond the noise."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import stats
from scipy.optimize import brentq

from hpopt.analysis.axes import FloatArray
from hpopt.analysis.comparison import CONFIDENCE, estimated_stds
from hpopt.analysis.surrogate import LARGEST_VALUE
from hpopt.hyperparameters import Scalar
from hpopt.search.direction import Direction
from hpopt.search.space import Categorical, Range

# Of the quadrature over a normal distribution; the critical values are exact to 1e-3.
_N_NODES = 64
# Device time varies by this share from run to run.
_EQUAL_COST = 0.1


@dataclass(frozen=True, kw_only=True)
class Interval:
    """The mean of a configuration over its seeds, and the 95% interval of its true mean."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """Configurations that ran with the same seeds, in the order of their means, best first.

    `tied` are those that may be the best one at 95% confidence: the answer is confirmed if there is one alone. The
    intervals hold for all configurations together, so that also that of the best one holds. `noise_std` is the
    standard deviation of a run.
    """

    order: tuple[int, ...]
    intervals: tuple[Interval, ...]
    tied: tuple[int, ...]
    noise_std: float

    @property
    def is_confirmed(self) -> bool:
        """Whether the mean of the best configuration is better than those of all others beyond the noise."""
        return len(self.tied) == 1


def confirm(values: Sequence[Sequence[float]], direction: Direction) -> Confirmation:
    """Compare configurations by their values (K configurations, N seeds), the same seeds for all.

    The configurations that may be the best one follow from the multiple comparison with the best (Hsu 1984) for the
    randomized block design, whose blocks are the seeds. The variance of a mean is the sum of the variances between and
    within seeds, its degrees of freedom are those of Satterthwaite (1946), and the intervals of all configurations
    hold together by Sidak's correction. A single configuration, whose rivals have failed, is confirmed. Raises
    ValueError unless K >= 1 and N >= 2.
    """
    table = np.asarray(values, dtype=float)
    if table.ndim != 2 or len(table) < 1 or table.shape[1] < 2:  # noqa: PLR2004 - a variance needs two.
        raise ValueError(f"values of shape {table.shape}; at least 1 configuration with 2 seeds is needed")
    n_configurations, n_seeds = table.shape
    # The fourth power of a large value is not finite, and that of a small one is 0.
    table = np.clip(table, -LARGEST_VALUE, LARGEST_VALUE)
    scale = float(np.abs(table).max()) or 1.0
    table = table / scale
    means = table.mean(axis=1)
    within, between, degrees_of_freedom = _variances(table)
    total = (between + (n_configurations - 1) * within) / n_configurations
    tail = 1 - CONFIDENCE ** (1 / n_configurations)
    half_width = float(stats.t.isf(tail / 2, degrees_of_freedom)) * (total / n_seeds) ** 0.5
    losses = direction.sign * means
    margin = 0.0
    if n_configurations > 1:
        critical = best_critical_value(n_configurations - 1, (n_configurations - 1) * (n_seeds - 1))
        margin = critical * (2 * within / n_seeds) ** 0.5
    rivals = np.array([min(np.delete(losses, i), default=np.inf) for i in range(n_configurations)])
    order = np.argsort(losses, kind="stable")
    return Confirmation(
        order=tuple(map(int, order)),
        intervals=tuple(
            Interval(mean=scale * mean, low=scale * (mean - half_width), high=scale * (mean + half_width))
            for mean in means.tolist()
        ),
        tied=tuple(int(i) for i in order if losses[i] - rivals[i] <= margin),
        noise_std=scale * total**0.5,
    )


def _variances(table: FloatArray) -> tuple[float, float, float]:
    """Return the mean squares within and between seeds, and the degrees of freedom of their weighted sum."""
    n_configurations, n_seeds = table.shape
    residuals = table - table.mean(axis=1, keepdims=True)
    by_seed = residuals.mean(axis=0)
    between = float(n_configurations * (by_seed**2).sum() / (n_seeds - 1))
    n_within = (n_configurations - 1) * (n_seeds - 1)
    within = float(((residuals - by_seed) ** 2).sum() / max(1, n_within))
    parts = between, (n_configurations - 1) * within
    spread = parts[0] ** 2 / (n_seeds - 1) + parts[1] ** 2 / max(1, n_within)
    return within, between, sum(parts) ** 2 / spread if spread else float(n_seeds - 1)


@cache
def best_critical_value(n_rivals: int, degrees_of_freedom: int) -> float:
    """Return the critical value of Hsu's comparison with the best at 95%: Dunnett's one-sided one (Dunnett 1955).

    It is the quantile of the largest of n_rivals differences between two means, in standard errors, whose pairwise
    correlation is 1/2.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(_N_NODES)
    weights = weights / weights.sum()
    stds, std_weights = estimated_stds(degrees_of_freedom)

    def coverage(critical: float) -> float:
        below = stats.norm.cdf(nodes[:, None] + 2**0.5 * critical * stds) ** n_rivals
        return float(weights @ below @ std_weights)

    low, high = 0.0, 1.0
    while coverage(high) < CONFIDENCE:
        low, high = high, 2 * high
    return float(brentq(lambda critical: coverage(critical) - CONFIDENCE, low, high, xtol=1e-6))


def recommend(tied: Sequence[int], costs: Sequence[float], distances: Sequence[float]) -> int:
    """Return which of the tied configurations to use: the most central of those that cost about as little as any.

    `costs` and `distances` from the centre of the search space are by configuration.
    """
    cheap = min(costs[i] for i in tied) * (1 + _EQUAL_COST)
    return min((i for i in tied if costs[i] <= cheap), key=lambda i: distances[i])


def distance_from_center(space: Mapping[str, Range], params: Mapping[str, Scalar]) -> float:
    """Return the largest distance of a parameter from the centre of its range: 0 at the centre, 0.5 at an end.

    Choices have no order, and count as central.
    """
    return max((abs(_position(space[name], value) - 0.5) for name, value in params.items() if name in space), default=0)


def _position(searched: Range, value: Scalar) -> float:
    if isinstance(searched, Categorical) or searched.low == searched.high:
        return 0.5
    scale = math.log if searched.log else float
    low, high, number = (scale(float(x)) for x in (searched.low, searched.high, value))
    return (number - low) / (high - low)
