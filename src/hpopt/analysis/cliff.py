"""Find where runs diverge: the share of diverged trials, and the value of a parameter beyond which most diverge."""

from dataclasses import dataclass

import numpy as np
from sklearn.isotonic import IsotonicRegression

from hpopt.analysis.axes import Design, FloatArray, build_design
from hpopt.analysis.dependence import INTERVAL, SIGNIFICANCE_LEVEL, assess_parameters
from hpopt.analysis.trials import Outcome, StudyTable
from hpopt.analysis.widen import Side
from hpopt.hyperparameters import Scalar

MIN_DIVERGED = 3
_N_RESAMPLES = 200
_HALF = 0.5


@dataclass(frozen=True, kw_only=True)
class Cliff:
    """A parameter on which divergence depends.

    At least half of the trials diverge beyond `threshold` on its `side`, by an isotonic regression of their share; its
    90% interval is `low` to `high`. `threshold` is None where less than half diverge even at the end of the range. A
    parameter without an order has instead the `levels` at which at least half diverge.
    """

    name: str
    side: Side | None
    threshold: Scalar | None
    low: Scalar | None
    high: Scalar | None
    levels: tuple[Scalar, ...]
    p_value: float


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """The number of trained trials that diverged, and the parameters on which that depends significantly."""

    n_trials: int
    n_diverged: int
    cliffs: tuple[Cliff, ...]
    reason: str | None = None

    @property
    def share(self) -> float:
        """The share of diverged trials."""
        return self.n_diverged / self.n_trials if self.n_trials else 0.0


def find_divergence(table: StudyTable) -> Divergence:
    """Find the parameters on which divergence depends, among all complete, pruned and diverged trials."""
    design = build_design(table, [row for row in table.trials if row.state in {"COMPLETE", "PRUNED"}])
    diverged = np.array([row.outcome == Outcome.DIVERGED for row in design.rows], dtype=float)
    n_trials, n_diverged = len(diverged), int(diverged.sum())
    if not design.axes or min(n_diverged, n_trials - n_diverged) < MIN_DIVERGED:
        reason = f"not enough data: {MIN_DIVERGED} diverged trials and as many others are needed"
        return Divergence(n_trials=n_trials, n_diverged=n_diverged, cliffs=(), reason=reason)
    p_values = assess_parameters(design, diverged)
    cliffs = [
        _find_cliff(design, i, diverged, p_values[axis.name])
        for i, axis in enumerate(design.axes)
        if p_values[axis.name] <= SIGNIFICANCE_LEVEL
    ]
    return Divergence(n_trials=n_trials, n_diverged=n_diverged, cliffs=tuple(cliffs))


def _find_cliff(design: Design, index: int, diverged: FloatArray, p_value: float) -> Cliff:
    axis, x = design.axes[index], design.points[:, index]
    if not axis.is_ordered:
        levels = tuple(axis.value_at(level) for level in np.unique(x) if diverged[x == level].mean() >= _HALF)
        return Cliff(name=axis.name, side=None, threshold=None, low=None, high=None, levels=levels, p_value=p_value)
    is_rising = x[diverged == 1].mean() > x[diverged == 0].mean()
    gap = _find_gap(x, diverged, is_rising=is_rising)
    rng = np.random.default_rng(0)
    draws = [rng.integers(len(x), size=len(x)) for _ in range(_N_RESAMPLES)]
    gaps = np.array([gap, *(_find_gap(x[draw], diverged[draw], is_rising=is_rising) for draw in draws)])
    # Resamples in which nowhere half of the trials diverge have no threshold.
    gaps = gaps[np.isfinite(gaps[:, 0])]
    threshold, low, high = None, None, None
    if np.isfinite(gap[0]):
        ends = np.quantile(gaps[:, 0], INTERVAL[0]), np.quantile(gaps[:, 1], INTERVAL[1])
        threshold, low, high = (axis.value_at(float(coordinate)) for coordinate in (np.mean(gap), *ends))
    side: Side = "high" if is_rising else "low"
    return Cliff(name=axis.name, side=side, threshold=threshold, low=low, high=high, levels=(), p_value=p_value)


def _find_gap(x: FloatArray, diverged: FloatArray, *, is_rising: bool) -> tuple[float, float]:
    """Return the ascending coordinates between which the share of diverged trials (N,) passes a half; NaN if nowhere.

    No trial lies between them, so the threshold may be anywhere there.
    """
    rising = x if is_rising else -x
    order = np.argsort(rising, kind="stable")
    shares = IsotonicRegression(y_min=0, y_max=1).fit_transform(rising[order], diverged[order])
    beyond = np.flatnonzero(shares >= _HALF)
    if not len(beyond):
        return np.nan, np.nan
    first = int(beyond[0])
    ends = x[order[max(first - 1, 0)]], x[order[first]]
    return float(min(ends)), float(max(ends))
