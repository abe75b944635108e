"""Owns where runs diverge: the share of diverged trials, and the value of a parameter beyond which most of them do."""

from dataclasses import dataclass

import numpy as np
from sklearn.isotonic import IsotonicRegression

from hpopt.analysis.axes import Axis, Design, FloatArray, build_design
from hpopt.analysis.dependence import SIGNIFICANT, assess_parameters
from hpopt.analysis.trials import StudyTable
from hpopt.analysis.wider import Side
from hpopt.hyperparameters import Scalar

MIN_DIVERGED = 3
_N_RESAMPLES = 200
_INTERVAL = (0.05, 0.95)
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
    chance: float


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
    chances = assess_parameters(design, diverged)
    cliffs = [
        _find_cliff(design, i, diverged, chances[axis.name])
        for i, axis in enumerate(design.axes)
        if chances[axis.name] <= SIGNIFICANT
    ]
    return Divergence(n_trials=n_trials, n_diverged=n_diverged, cliffs=tuple(cliffs))


def _find_cliff(design: Design, index: int, diverged: FloatArray, chance: float) -> Cliff:
    axis, places = design.axes[index], design.places[:, index]
    if not axis.is_ordered:
        levels = tuple(axis.value_at(level) for level in np.unique(places) if diverged[places == level].mean() >= _HALF)
        return Cliff(name=axis.name, side=None, at=None, low=None, high=None, levels=levels, chance=chance)
    rises = places[diverged == 1].mean() > places[diverged == 0].mean()
    threshold = _threshold(places, diverged, rises=rises)
    rng = np.random.default_rng(0)
    draws = [rng.integers(len(places), size=len(places)) for _ in range(_N_RESAMPLES)]
    found = [_threshold(places[draw], diverged[draw], rises=rises) for draw in draws]
    known = [place for place in found if place is not None]
    ends = np.quantile([*known, threshold], _INTERVAL) if threshold is not None else (None, None)
    at, low, high = (_value_at(axis, place) for place in (threshold, *ends))
    side: Side = "high" if rises else "low"
    return Cliff(name=axis.name, side=side, at=at, low=low, high=high, levels=(), chance=chance)


def _threshold(places: FloatArray, diverged: FloatArray, *, rises: bool) -> float | None:
    """Give the place halfway between the last one where less than half diverge and the first one where they do."""
    toward = places if rises else -places
    order = np.argsort(toward, kind="stable")
    sorted_places = toward[order]
    shares = IsotonicRegression(y_min=0, y_max=1).fit_transform(sorted_places, diverged[order])
    beyond = np.flatnonzero(shares >= _HALF)
    if not len(beyond):
        return None
    first = int(beyond[0])
    place = float(sorted_places[max(first - 1, 0) : first + 1].mean())
    return place if rises else -place


def _value_at(axis: Axis, place: float | None) -> Scalar | None:
    return None if place is None else axis.value_at(place)
