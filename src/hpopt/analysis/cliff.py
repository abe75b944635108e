"""Owns where runs diverge: the share of diverged trials, and the value of a parameter beyond which most of them do."""

from dataclasses import dataclass

import numpy as np
from sklearn.isotonic import IsotonicRegression

from hpopt.analysis.axes import Design, FloatArray, build_design
from hpopt.analysis.dependence import SIGNIFICANCE_LEVEL, assess_parameters
from hpopt.analysis.trials import StudyTable
from hpopt.analysis.widen import Side
from hpopt.hyperparameters import Scalar

MIN_DIVERGED = 3
_N_RESAMPLES = 200
_LOW, _HIGH = 0.05, 0.95
_HALF = 0.5


@dataclass(frozen=True, kw_only=True)
class Cliff:
    """A parameter with which divergence comes.

    Beyond `at`, on its `side`, at least half of the trials diverge, by a share that only rises (isotonic regression);
    with 90% that value lies from `low` to `high`. `at` is None where less than half diverge even at the end. A
    parameter without an order has the `levels` at which at least half diverge instead.
    """

    name: str
    side: Side | None
    at: Scalar | None
    low: Scalar | None
    high: Scalar | None
    levels: tuple[Scalar, ...]
    p_value: float


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """How many of the trials that trained diverged, and the parameters on which that depends by more than chance."""

    n_trials: int
    n_diverged: int
    cliffs: tuple[Cliff, ...]
    reason: str | None = None

    @property
    def share(self) -> float:
        """The share of diverged trials."""
        return self.n_diverged / self.n_trials if self.n_trials else 0.0


def find_divergence(table: StudyTable) -> Divergence:
    """Look for the parameters that make runs diverge, among all trials that completed, were pruned or diverged."""
    design = build_design(table, [row for row in table.trials if row.state in {"COMPLETE", "PRUNED"}])
    diverged = np.array([row.outcome == "diverged" for row in design.rows], dtype=float)
    n_trials, n_diverged = len(diverged), int(diverged.sum())
    fewest = min(n_diverged, n_trials - n_diverged)
    if not design.axes or fewest < MIN_DIVERGED:
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
    axis, places = design.axes[index], design.places[:, index]
    if not axis.is_ordered:
        levels = tuple(axis.value_at(level) for level in np.unique(places) if diverged[places == level].mean() >= _HALF)
        return Cliff(name=axis.name, side=None, at=None, low=None, high=None, levels=levels, p_value=p_value)
    rises = places[diverged == 1].mean() > places[diverged == 0].mean()
    gap = _gap(places, diverged, rises=rises)
    rng = np.random.default_rng(0)
    draws = [rng.integers(len(places), size=len(places)) for _ in range(_N_RESAMPLES)]
    gaps = np.array([gap, *(_gap(places[draw], diverged[draw], rises=rises) for draw in draws)])
    # Where no half diverges there is no place to give; draws without one are left out.
    known = gaps[np.isfinite(gaps[:, 0])]
    found: list[Scalar | None] = [None, None, None]
    if np.isfinite(gap[0]):
        ends = np.quantile(known[:, 0], _LOW), np.quantile(known[:, 1], _HIGH)
        found = [axis.value_at(float(place)) for place in (np.mean(gap), *ends)]
    side: Side = "high" if rises else "low"
    return Cliff(name=axis.name, side=side, at=found[0], low=found[1], high=found[2], levels=(), p_value=p_value)


def _gap(places: FloatArray, diverged: FloatArray, *, rises: bool) -> tuple[float, float]:
    """Give the places, in ascending order, between which the share of diverged trials passes a half; NaN if nowhere.

    Nobody was between them, so the cliff may be anywhere there.
    """
    toward = places if rises else -places
    order = np.argsort(toward, kind="stable")
    shares = IsotonicRegression(y_min=0, y_max=1).fit_transform(toward[order], diverged[order])
    beyond = np.flatnonzero(shares >= _HALF)
    if not len(beyond):
        return np.nan, np.nan
    first = int(beyond[0])
    ends = places[order[max(first - 1, 0)]], places[order[first]]
    return float(min(ends)), float(max(ends))
