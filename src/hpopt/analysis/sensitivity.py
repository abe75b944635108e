"""Estimate how the metric responds to each parameter: its curve, its optimum, and whether the range is too narrow.

Curves are those of the surrogate, which is fitted to complete trials and to the extrapolated values of pruned ones.
Diverged trials are left out, so that the band is wide where they were; cliff.py looks at them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hpopt.analysis.anova import average_curve
from hpopt.analysis.axes import Axis, FloatArray, IntArray
from hpopt.analysis.dependence import INTERVAL, SIGNIFICANCE_LEVEL
from hpopt.analysis.model import Model, reason_not_fitted
from hpopt.analysis.noise import Noise, estimate_noise
from hpopt.analysis.sample import LeftOut, completed
from hpopt.analysis.surrogate import Surrogate
from hpopt.analysis.trials import StudyTable
from hpopt.analysis.validation import CrossValidation, cross_validate
from hpopt.analysis.widen import Side, widen
from hpopt.hyperparameters import Scalar
from hpopt.search.space import Range

# Functions drawn from each surrogate: the fitted one and those with drawn hyperparameters.
_N_FUNCTIONS_EACH = 25
# Half the width of a 90% band, in standard deviations.
_BAND = 1.645
# The edge is this share of the range at each end, and an optimum is there if this share of the draws has it there.
_EDGE = 0.05
_MIN_EDGE_SHARE = 0.8


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The mean of the metric along one parameter (G,), with a 90% band from `low` to `high`, without the run noise."""

    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ParameterSensitivity:
    """How the metric responds to one parameter.

    `values` (G,) are the values of the parameter along both curves: `profile`, with the other parameters as in the best
    configuration, and `average`, over all values of the others. `best` is the optimum of the profile, with a 90%
    interval from `best_low` to `best_high`, or the likely `best_levels` of a parameter without an order. `ratio` is the
    largest value of the profile over its smallest, with a 90% interval; None unless all are positive. `within_noise`
    are the ends of the interval around the optimum where the profile is within one standard deviation of the run noise
    of it, or all such levels. `p_value` is corrected for the number of parameters. `edge` is the end of the range at
    which the optimum lies, if it does, and `widened_range` the range to search then, if the parameter allows one.
    `where` is the condition of a conditional parameter, which is estimated from the trials that meet it.
    """

    name: str
    is_log: bool
    is_ordered: bool
    values: tuple[Scalar, ...]
    profile: Curve
    average: Curve
    best: Scalar
    best_low: Scalar | None
    best_high: Scalar | None
    best_levels: tuple[Scalar, ...]
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    within_noise: tuple[Scalar, ...]
    p_value: float
    edge: Side | None
    widened_range: Range | None
    where: str | None = None

    @property
    def is_significant(self) -> bool:
        """Whether the effect of the parameter is statistically significant."""
        return self.p_value <= SIGNIFICANCE_LEVEL


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """The parameters in the order of their ratios, the largest first; if there are none, `reason` states why.

    `center` is the configuration through which profiles are taken: of those tried, the best by the surrogate. `error`
    is the cross-validated error of the surrogate. `n_used` of `n_trials` trials were used; the values of `n_clipped`
    were clipped as outliers, and those of `n_extrapolated` pruned trials extrapolated.
    """

    parameters: tuple[ParameterSensitivity, ...]
    n_trials: int
    reason: str | None = None
    center: Mapping[str, Scalar] | None = None
    error: CrossValidation | None = None
    noise: Noise | None = None
    n_used: int = 0
    n_clipped: int = 0
    n_extrapolated: int = 0
    left_out: LeftOut | None = None


def estimate_sensitivity(table: StudyTable, model: Model | None) -> Sensitivity:
    """Estimate the sensitivity of the metric to each parameter from the model of a study."""
    if model is None:
        return Sensitivity(parameters=(), n_trials=len(completed(table).rows), reason=reason_not_fitted(table))
    surrogate = model.surrogate
    noise = estimate_noise(table, surrogate)
    center = surrogate.incumbent()
    surrogates = (surrogate, *model.draws)
    noise_std = noise.std if noise else 0.0
    parameters = [
        _estimate_parameter(table, surrogates, center, i, noise_std=noise_std, p_value=model.p_values[axis.name])
        for i, axis in enumerate(surrogate.axes)
    ]
    return Sensitivity(
        parameters=tuple(sorted(parameters, key=lambda parameter: -(parameter.ratio or 0.0))),
        n_trials=surrogate.n_trials,
        center={axis.name: axis.value_at(center[i]) for i, axis in enumerate(surrogate.axes)},
        error=cross_validate(surrogate),
        noise=noise,
        n_used=len(surrogate.targets),
        n_clipped=surrogate.n_clipped,
        n_extrapolated=model.sample.n_extrapolated,
        left_out=model.left_out,
    )


def profile_points(axis: Axis, index: int, center: FloatArray) -> FloatArray:
    """Return the points (G, A) of a profile: the nodes of the axis at `index`, with the others as in `center` (A,)."""
    points = np.tile(center, (len(axis.nodes), 1))
    points[:, index] = axis.nodes
    return points


def _draw_profiles(surrogates: Sequence[Surrogate], points: FloatArray) -> FloatArray:
    """Draw functions at points (G, A) from the posteriors of all surrogates, shape (F, G), in units of the metric."""
    rng = np.random.default_rng(0)
    drawn = []
    for surrogate in surrogates:
        mean, covariance = surrogate.predict(points)
        values, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(np.clip(values, 0, None))
        drawn.append(mean + rng.normal(size=(_N_FUNCTIONS_EACH, len(mean))) @ root.T)
    return np.concatenate(drawn)


def _estimate_parameter(
    table: StudyTable,
    surrogates: Sequence[Surrogate],
    center: FloatArray,
    index: int,
    *,
    noise_std: float,
    p_value: float,
) -> ParameterSensitivity:
    surrogate, axis, sign = surrogates[0], surrogates[0].axes[index], table.direction.sign
    points = profile_points(axis, index, center)
    mean, _ = surrogate.predict(points)
    draws = _draw_profiles(surrogates, points)
    optima = np.argmin(sign * draws, axis=1)
    edge = _find_edge(axis, optima) if p_value <= SIGNIFICANCE_LEVEL else None
    best = int(np.argmin(sign * mean))
    low, high = (axis.value_at(coordinate) for coordinate in np.quantile(axis.nodes[optima], INTERVAL))
    ratio_low, ratio_high = _ratio_interval(draws)
    return ParameterSensitivity(
        name=axis.name,
        is_log=axis.is_log,
        is_ordered=axis.is_ordered,
        values=tuple(axis.value_at(node) for node in axis.nodes),
        profile=_band(mean, draws.std(axis=0)),
        average=_band(*average_curve(surrogate, index)),
        best=axis.value_at(axis.nodes[best]),
        best_low=low if axis.is_ordered else None,
        best_high=high if axis.is_ordered else None,
        best_levels=() if axis.is_ordered else _likely_levels(axis, optima),
        ratio=_ratio(mean),
        ratio_low=ratio_low,
        ratio_high=ratio_high,
        within_noise=_find_within_noise(axis, sign * mean, best, noise_std),
        p_value=p_value,
        edge=edge,
        widened_range=widen(table, axis.name, edge) if edge else None,
    )


def _band(mean: FloatArray, std: FloatArray) -> Curve:
    return Curve(
        mean=tuple(mean.tolist()),
        low=tuple((mean - _BAND * std).tolist()),
        high=tuple((mean + _BAND * std).tolist()),
    )


def _ratio(values: FloatArray) -> float | None:
    """Return the largest value over the smallest, None unless all are positive."""
    return float(values.max() / values.min()) if values.min() > 0 else None


def _ratio_interval(draws: FloatArray) -> tuple[float | None, float | None]:
    ratios = [ratio for draw in draws if (ratio := _ratio(draw)) is not None]
    if len(ratios) < len(draws):
        return None, None
    low, high = np.quantile(ratios, INTERVAL)
    return float(low), float(high)


def _likely_levels(axis: Axis, optima: IntArray) -> tuple[Scalar, ...]:
    return tuple(axis.value_at(node) for i, node in enumerate(axis.nodes) if (optima == i).mean() > INTERVAL[0])


def _find_within_noise(axis: Axis, losses: FloatArray, best: int, noise_std: float) -> tuple[Scalar, ...]:
    is_within = losses <= losses[best] + noise_std
    if not axis.is_ordered:
        return tuple(axis.value_at(node) for node in axis.nodes[is_within])
    outside = np.flatnonzero(~is_within)
    first = max([i + 1 for i in outside if i < best], default=0)
    last = min([i - 1 for i in outside if i > best], default=len(axis.nodes) - 1)
    return axis.value_at(axis.nodes[first]), axis.value_at(axis.nodes[last])


def _find_edge(axis: Axis, optima: IntArray) -> Side | None:
    if not axis.is_ordered:
        return None
    coordinates = axis.nodes[optima]
    low, high = (coordinates <= _EDGE).mean(), (coordinates >= 1 - _EDGE).mean()
    if max(low, high) < _MIN_EDGE_SHARE:
        return None
    return "low" if low > high else "high"
