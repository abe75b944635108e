"""Owns what moving one parameter does: its curve, where it is good enough, and whether its range is too small.

Curves are those of the surrogate, fitted to the final values of the complete trials and the extrapolated
ones of pruned trials. Diverged trials are left out: where they were, the band is wide. Cliffs are cliff.py's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hpopt.analysis.anova import average
from hpopt.analysis.axes import Axis, FloatArray
from hpopt.analysis.dependence import SIGNIFICANCE_LEVEL
from hpopt.analysis.model import Model
from hpopt.analysis.noise import Noise, measure_noise
from hpopt.analysis.sample import LeftOut, completed
from hpopt.analysis.surrogate import Surrogate, reason_not_fitted
from hpopt.analysis.trials import StudyTable
from hpopt.analysis.validation import Error, cross_validate
from hpopt.analysis.widen import Side, widen
from hpopt.hyperparameters import Scalar
from hpopt.search.space import Range

# Of each variant of the surrogate; see posterior.py.
_N_DRAWS_EACH = 25
# The band, and the interval of an optimum, hold 90%.
_LOW, _HIGH = 0.05, 0.95
_BAND = 1.645
# This part of a range at each end is its edge, and so sure must we be that the optimum is there.
_EDGE = 0.05
_SURE = 0.8


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The metric along one parameter, with the band that holds it with 90%; without the noise of single runs."""

    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ParameterSensitivity:
    """How the metric answers to one parameter.

    `values` are the places of both curves: `profile` with the others as in the best configuration, `average` over all
    values of the others. `best` is the optimum of the profile; with 90% it lies from `best_low` to `best_high`, or is
    one of `best_levels` where values have no order. `ratio` is the largest value of the profile over its smallest,
    None unless all are positive.
    `good` are the ends of the stretch around the optimum that is within the noise of a run of it, or such levels.
    `p_value` is how likely the trials would be if no parameter mattered. `edge` says that the optimum is at an end of
    the range, and `wider` is the range to try then, None where the parameter allows no other.
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
    good: tuple[Scalar, ...]
    p_value: float
    edge: Side | None
    wider: Range | None

    @property
    def matters(self) -> bool:
        """Say whether the parameter makes a difference that is more than chance."""
        return self.p_value <= SIGNIFICANCE_LEVEL


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """The parameters in the order of their ratios, the largest first; none with the reason for it.

    `at` is the configuration around which profiles are taken: of those tried, the best by the surrogate. `error` is
    the surrogate's on trials it has not seen. `n_used` of `n_trials` were looked
    at, `n_clipped` of them so bad that they count as merely bad. `n_extrapolated` were pruned.
    """

    parameters: tuple[ParameterSensitivity, ...]
    n_trials: int
    reason: str | None = None
    at: Mapping[str, Scalar] | None = None
    error: Error | None = None
    noise: Noise | None = None
    n_used: int = 0
    n_clipped: int = 0
    n_extrapolated: int = 0
    left_out: LeftOut | None = None


def measure_sensitivity(table: StudyTable, model: Model | None) -> Sensitivity:
    """Move each parameter of the surrogate and look."""
    if model is None:
        design = completed(table)
        return Sensitivity(parameters=(), n_trials=len(design.rows), reason=reason_not_fitted(table, design))
    surrogate = model.surrogate
    noise = measure_noise(table, surrogate)
    center = surrogate.incumbent()
    variants = (surrogate, *model.variants)
    found = [
        _measure(table, variants, center, i, noise_std=noise.std if noise else 0.0, p_value=model.p_values[axis.name])
        for i, axis in enumerate(surrogate.axes)
    ]
    return Sensitivity(
        parameters=tuple(sorted(found, key=lambda parameter: -(parameter.ratio or 0.0))),
        n_trials=surrogate.n_trials,
        at={axis.name: axis.value_at(center[i]) for i, axis in enumerate(surrogate.axes)},
        error=cross_validate(surrogate),
        noise=noise,
        n_used=len(surrogate.targets),
        n_clipped=surrogate.n_clipped,
        n_extrapolated=model.sample.n_extrapolated,
        left_out=model.left_out,
    )


def profile_points(axis: Axis, index: int, center: FloatArray) -> FloatArray:
    """Give the points of a profile: the nodes of one axis, with the others at the center."""
    points = np.tile(center, (len(axis.nodes), 1))
    points[:, index] = axis.nodes
    return points


def _draw_profiles(variants: Sequence[Surrogate], points: FloatArray) -> FloatArray:
    """Draw functions along a profile from the posteriors of all variants, a row each."""
    rng = np.random.default_rng(0)
    drawn = []
    for variant in variants:
        mean, covariance = variant.predict(points)
        values, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(np.clip(values, 0, None))
        drawn.append(mean + rng.normal(size=(_N_DRAWS_EACH, len(mean))) @ root.T)
    return np.concatenate(drawn)


def _measure(
    table: StudyTable,
    variants: Sequence[Surrogate],
    center: FloatArray,
    index: int,
    *,
    noise_std: float,
    p_value: float,
) -> ParameterSensitivity:
    surrogate, axis, sign = variants[0], variants[0].axes[index], table.direction.sign
    points = profile_points(axis, index, center)
    mean, _ = surrogate.predict(points)
    draws = _draw_profiles(variants, points)
    optima = np.argmin(sign * draws, axis=1)
    edge = _edge(axis, optima) if p_value <= SIGNIFICANCE_LEVEL else None
    best = int(np.argmin(sign * mean))
    low, high = (axis.value_at(place) for place in np.quantile(axis.nodes[optima], (_LOW, _HIGH)))
    ratio_low, ratio_high = _ratio_interval(draws)
    return ParameterSensitivity(
        name=axis.name,
        is_log=axis.is_log,
        is_ordered=axis.is_ordered,
        values=tuple(axis.value_at(node) for node in axis.nodes),
        profile=_band(mean, draws.std(axis=0)),
        average=_band(*average(surrogate, index)),
        best=axis.value_at(axis.nodes[best]),
        best_low=low if axis.is_ordered else None,
        best_high=high if axis.is_ordered else None,
        best_levels=() if axis.is_ordered else _likely_levels(axis, optima),
        ratio=_ratio(mean),
        ratio_low=ratio_low,
        ratio_high=ratio_high,
        good=_good(axis, sign * mean, best, noise_std),
        p_value=p_value,
        edge=edge,
        wider=widen(table, axis.name, edge) if edge else None,
    )


def _band(mean: FloatArray, std: FloatArray) -> Curve:
    return Curve(
        mean=tuple(mean.tolist()),
        low=tuple((mean - _BAND * std).tolist()),
        high=tuple((mean + _BAND * std).tolist()),
    )


def _ratio(values: FloatArray) -> float | None:
    """Give the largest value over the smallest, None unless all are positive."""
    return float(values.max() / values.min()) if values.min() > 0 else None


def _ratio_interval(draws: FloatArray) -> tuple[float | None, float | None]:
    ratios = [ratio for draw in draws if (ratio := _ratio(draw)) is not None]
    if len(ratios) < len(draws):
        return None, None
    low, high = np.quantile(ratios, (_LOW, _HIGH))
    return float(low), float(high)


def _likely_levels(axis: Axis, optima: npt.NDArray[np.int64]) -> tuple[Scalar, ...]:
    return tuple(axis.value_at(node) for i, node in enumerate(axis.nodes) if (optima == i).mean() > _LOW)


def _good(axis: Axis, loss: FloatArray, best: int, noise_std: float) -> tuple[Scalar, ...]:
    is_good = loss <= loss[best] + noise_std
    if not axis.is_ordered:
        return tuple(axis.value_at(node) for node in axis.nodes[is_good])
    bad = np.flatnonzero(~is_good)
    first = max([i + 1 for i in bad if i < best], default=0)
    last = min([i - 1 for i in bad if i > best], default=len(axis.nodes) - 1)
    return axis.value_at(axis.nodes[first]), axis.value_at(axis.nodes[last])


def _edge(axis: Axis, optima: npt.NDArray[np.int64]) -> Side | None:
    if not axis.is_ordered:
        return None
    places = axis.nodes[optima]
    low, high = ((places <= _EDGE).mean(), (places >= 1 - _EDGE).mean())
    if max(low, high) < _SURE:
        return None
    return "low" if low > high else "high"
