"""Compare the values of each parameter in a study that changes one parameter at a time."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev

import numpy as np
from scipy import stats

from hpopt.analysis.axes import FloatArray
from hpopt.analysis.comparison import CONFIDENCE
from hpopt.analysis.confirmation import best_critical_value
from hpopt.analysis.trials import Params, StudyTable, TrialRow
from hpopt.hyperparameters import Scalar
from hpopt.search.conditions import active_params
from hpopt.search.direction import Direction
from hpopt.search.space import Range

# Metrics of the last evaluation that are shown beside the one of the study, by a part of their names.
_SHOWN_METRICS = ("accuracy", "perplexity", "ppl")
_ROUNDING = 1e-12
# The exponential of a larger one is not finite.
_LARGEST_LOG = 700.0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number and its 95% interval, which is None where the noise is unknown."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class TestedValue:
    """A value of a parameter, the others as in the base: the mean of the metric over `n` complete runs, None without.

    `n_failed` runs failed or diverged. `std` is that of these runs; the interval of the mean is from the noise of all
    configurations. `metrics` are means of the last evaluations, `device_seconds` is the mean of a run.
    """

    value: Scalar
    n: int
    n_failed: int
    mean: Estimate | None
    std: float | None
    metrics: Mapping[str, float]
    device_seconds: float


@dataclass(frozen=True, kw_only=True)
class FactorEffect:
    """What one parameter does to the metric.

    `cost` is the difference between the means of its worst and its best value, `ratio` their quotient, at least 1; None
    unless all values are positive. Their intervals hold for the largest of all differences. `as_good` are the values
    that are not shown to be worse than the best one (Hsu 1984), none where the noise is unknown. An effect is shown if
    the interval of `cost` excludes 0.
    """

    name: str
    values: tuple[TestedValue, ...]
    best: Scalar
    worst: Scalar
    cost: Estimate
    ratio: Estimate | None
    as_good: tuple[Scalar, ...]
    is_shown: bool


@dataclass(frozen=True, kw_only=True)
class OneFactor:
    """The parameters of a one_at_a_time study in the order of their costs, the largest first.

    `noise_std` is the standard deviation of the difference between two runs of one seed, divided by sqrt(2), with its
    degrees of freedom: None where no seed was repeated. Seeds are blocks: what a seed does to all configurations is no
    noise of a difference.
    """

    base: Mapping[str, Scalar]
    n_seeds: int
    noise_std: float | None
    degrees_of_freedom: int
    factors: tuple[FactorEffect, ...]


@dataclass(frozen=True)
class _Fit:
    """Least squares of configuration + seed: effects (K,), their covariance up to the noise (K, K), and the noise."""

    effects: FloatArray
    covariance: FloatArray
    variance: float
    degrees_of_freedom: int

    def difference(self, i: int, j: int) -> tuple[float, float]:
        """Return the effect of configuration i above that of j, and its standard error."""
        c = self.covariance
        return float(self.effects[i] - self.effects[j]), (self.variance * (c[i, i] + c[j, j] - 2 * c[i, j])) ** 0.5


# The complete run of each seed.
_Runs = Mapping[int | None, TrialRow]


def analyze_one_factor(table: StudyTable) -> OneFactor | None:
    """Return the effect of each parameter; None for a study without a base, or with nothing to compare."""
    if table.base is None:
        return None
    finished: dict[Params, list[TrialRow]] = defaultdict(list)
    for row in table.trials:
        if row.state in {"COMPLETE", "PRUNED", "FAIL"}:
            finished[tuple(sorted(row.params.items()))].append(row)
    tested = {name: _find_values(table.search_space, table.base, name, finished) for name in table.search_space}
    complete = {row.trial for row in table.complete()}
    runs = {
        key: {row.seed: row for row in finished[key] if row.trial in complete}
        for key in dict.fromkeys(key for own in tested.values() for key in own.values())
    }
    design = _Design({key: own for key, own in runs.items() if own})
    factors = []
    for name, own in tested.items():
        indices = {value: design.keys.index(key) for value, key in own.items() if key in design.keys}
        if len(indices) > 1:
            rows = [_summarize(value, finished[key], runs[key], design) for value, key in own.items()]
            factors.append(_compare(name, rows, indices, design, table.direction))
    if not factors:
        return None
    return OneFactor(
        base=active_params(table.search_space, table.base),
        n_seeds=len({seed for own in runs.values() for seed in own}),
        noise_std=design.fit.variance**0.5 if design.fit.degrees_of_freedom else None,
        degrees_of_freedom=design.fit.degrees_of_freedom,
        factors=tuple(sorted(factors, key=lambda factor: -factor.cost.value)),
    )


class _Design:
    """The configurations with a complete run, in a fixed order, and the fits to their values."""

    def __init__(self, runs: Mapping[Params, _Runs]) -> None:
        self.keys = list(runs)
        values = [{seed: row.value or 0.0 for seed, row in own.items()} for own in runs.values()]
        self.means = [fmean(own.values()) for own in values]
        self.fit = _fit(values)
        is_positive = all(value > 0 for own in values for value in own.values())
        self.log_fit = _fit([{seed: math.log(v) for seed, v in own.items()} for own in values]) if is_positive else None
        # Of a mean, whose runs have other seeds than another study's: what a seed does to all configurations counts.
        self.n_free = sum(len(own) - 1 for own in values)
        squares = sum((len(own) - 1) * stdev(own.values()) ** 2 for own in values if len(own) > 1)
        self.std = (squares / self.n_free) ** 0.5 if self.n_free else None

    def mean_of(self, values: Sequence[float]) -> Estimate:
        """Return the mean of the values of one configuration."""
        mean = fmean(values)
        if self.std is None:
            return Estimate(value=mean)
        margin = float(stats.t.isf((1 - CONFIDENCE) / 2, self.n_free)) * self.std / len(values) ** 0.5
        return Estimate(value=mean, low=mean - margin, high=mean + margin)


def _find_values(
    space: Mapping[str, Range], base: Mapping[str, Scalar], name: str, configurations: Iterable[Params]
) -> dict[Scalar, Params]:
    """Return the configuration of each value of a parameter that was tested with the others as in the base."""
    found: dict[Scalar, Params] = {}
    for key in configurations:
        params = dict(key)
        if name in params and params == active_params(space, {**base, name: params[name]}):
            found[params[name]] = key
    choices = getattr(space[name], "choices", ())
    return dict(sorted(found.items(), key=lambda item: choices.index(item[0]) if choices else item[0]))


def _fit(values: Sequence[Mapping[int | None, float]]) -> _Fit:
    """Fit effects of configurations and seeds, which sum to 0, to a value for each configuration and seed."""
    seeds = list(dict.fromkeys(seed for own in values for seed in own))
    runs = [(i, seeds.index(seed), value) for i, own in enumerate(values) for seed, value in own.items()]
    design = np.zeros((len(runs), len(values) + len(seeds)))
    for row, (i, j, _) in enumerate(runs):
        design[row, i] = 1
        design[row, len(values) :] = -1 / len(seeds)
        design[row, len(values) + j] += 1
    targets = np.array([value for *_, value in runs])
    inverse = np.linalg.pinv(design.T @ design)
    coefficients = inverse @ design.T @ targets
    n_free = len(runs) - int(np.linalg.matrix_rank(design)) if runs else 0
    residuals = targets - design @ coefficients
    # Runs that agree to the last digit tell nothing about the noise.
    if n_free and np.abs(residuals).max() <= _ROUNDING * np.abs(targets).max():
        n_free = 0
    variance = float(residuals @ residuals) / n_free if n_free else 0.0
    n = len(values)
    return _Fit(np.asarray(coefficients[:n], float), np.asarray(inverse[:n, :n], float), variance, n_free)


def _summarize(value: Scalar, rows: Sequence[TrialRow], runs: _Runs, design: _Design) -> TestedValue:
    values = [row.value for row in runs.values() if row.value is not None]
    names = [name for name in rows[0].metrics if any(part in name for part in _SHOWN_METRICS)]
    shown = {name: [row.metrics[name] for row in runs.values() if name in row.metrics] for name in names}
    return TestedValue(
        value=value,
        n=len(values),
        n_failed=sum(row.state != "COMPLETE" for row in rows),
        mean=design.mean_of(values) if values else None,
        std=stdev(values) if len(values) > 1 else None,
        metrics={name: fmean(numbers) for name, numbers in shown.items() if numbers},
        device_seconds=fmean(row.device_seconds for row in rows),
    )


def _compare(
    name: str, rows: Sequence[TestedValue], indices: Mapping[Scalar, int], design: _Design, direction: Direction
) -> FactorEffect:
    """Compare the values of a parameter that have a complete run, by their indices in the design."""
    fit = design.fit
    ranked = sorted(indices, key=lambda value: direction.sign * float(fit.effects[indices[value]]))
    best, worst = indices[ranked[0]], indices[ranked[-1]]
    cost, error = fit.difference(worst, best)
    margin = _margin(error, len(ranked), fit)
    as_good: list[Scalar] = []
    if fit.degrees_of_freedom:
        critical = best_critical_value(len(ranked) - 1, fit.degrees_of_freedom)
        losses = {value: fit.difference(i, best) for value, i in indices.items()}
        as_good = [value for value, (loss, its_error) in losses.items() if abs(loss) <= critical * its_error]
    return FactorEffect(
        name=name,
        values=tuple(rows),
        best=ranked[0],
        worst=ranked[-1],
        cost=_at_least_zero(abs(cost), margin),
        ratio=_ratio(design, worst, best, len(ranked)),
        as_good=tuple(as_good),
        is_shown=margin is not None and abs(cost) > margin,
    )


def _ratio(design: _Design, worst: int, best: int, n_values: int) -> Estimate | None:
    """Return the quotient of two means, at least 1; its interval is that of the difference of the logarithms."""
    if design.log_fit is None:
        return None
    high, low = sorted((design.means[worst], design.means[best]), reverse=True)
    _, error = design.log_fit.difference(worst, best)
    margin = _margin(error, n_values, design.log_fit)
    logs = _at_least_zero(math.log(high / low), margin)
    if logs.low is None or logs.high is None:
        return Estimate(value=high / low)
    return Estimate(value=high / low, low=math.exp(logs.low), high=math.exp(min(logs.high, _LARGEST_LOG)))


def _margin(error: float, n_values: int, fit: _Fit) -> float | None:
    """Return half the 95% interval of the largest difference between n_values means (Tukey 1953, Kramer 1956)."""
    if not fit.degrees_of_freedom:
        return None
    return _range_critical_value(n_values, fit.degrees_of_freedom) / 2**0.5 * error


@cache
def _range_critical_value(n_values: int, degrees_of_freedom: int) -> float:
    return float(stats.studentized_range.isf(1 - CONFIDENCE, n_values, degrees_of_freedom))


def _at_least_zero(value: float, margin: float | None) -> Estimate:
    if margin is None:
        return Estimate(value=value)
    return Estimate(value=value, low=max(0.0, value - margin), high=value + margin)
