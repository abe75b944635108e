"""Select what the figures show: trials, points of curves, the range and unit of the value axis, colors.

Complete, pruned and best trials differ in shape as well as in color. The colors are from the palette of Okabe and Ito
(2008), which is safe for most kinds of color blindness; each has a counterpart for a dark background.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import quantiles

from hpopt.analysis.trials import CurvePoint, StudyTable, TrialRow, is_finite
from hpopt.training.config import PRETRAIN_UNITS

TEXT, GRID, MUTED = "#1f2328", "#dfe3e8", "#7a828e"
COMPLETE, BEST = "#0072b2", "#d55e00"
DARK_COLORS = {TEXT: "#e6e8eb", GRID: "#343a43", MUTED: "#959da8", COMPLETE: "#56b4e9", BEST: "#e69f00"}

N_BEST_CURVES = 5
N_PRUNED_CURVES = 20
POINTS_PER_CURVE = 80
# Interquartile ranges beyond the upper quartile: Tukey's outer fence (1977). One diverged trial would otherwise stretch
# the axis until all other trials look equal.
OUTER_FENCE = 3.0


@dataclass(frozen=True, kw_only=True)
class ValueRange:
    """The part of the value axis that is shown, and the number of values beyond it."""

    low: float
    high: float
    n_beyond: int

    def note(self) -> str:
        """Return how many values are not shown, as text; empty if all are."""
        return f"{self.n_beyond} beyond this range" if self.n_beyond else ""


def choose_value_range(table: StudyTable, values: Iterable[float | None]) -> ValueRange | None:
    """Return the range of all values but the far outliers on the bad side; None if no value is finite."""
    losses = sorted(table.loss(value) for value in values if is_finite(value))
    if not losses:
        return None
    lower, _, upper = quantiles(losses, n=4, method="inclusive") if len(losses) > 1 else [losses[0]] * 3
    fence = upper + OUTER_FENCE * (upper - lower)
    inside = [loss for loss in losses if loss <= fence]
    margin = 0.06 * (inside[-1] - inside[0]) or 0.05 * abs(inside[0]) or 0.5
    sign = table.direction.sign
    low, high = sorted((sign * (inside[0] - margin), sign * (inside[-1] + margin)))
    return ValueRange(low=low, high=high, n_beyond=len(losses) - len(inside))


def with_finite_value(rows: Iterable[TrialRow]) -> list[TrialRow]:
    """Return the trials whose value can be drawn."""
    return [row for row in rows if is_finite(row.value)]


def find_improvements(table: StudyTable) -> Iterator[tuple[int, float]]:
    """Yield number and value of each complete trial that is better than all before it, in the order of the numbers."""
    best = math.inf
    for row in sorted(table.complete(), key=lambda row: row.trial):
        if row.value is not None and table.loss(row.value) < best:
            best = table.loss(row.value)
            yield row.trial, row.value


def choose_curves(table: StudyTable) -> tuple[list[TrialRow], list[TrialRow]]:
    """Return the best complete trials, and the pruned trials that ran longest."""
    best = [row for row in table.ranked() if thin_curve(row)][:N_BEST_CURVES]
    pruned = sorted((row for row in table.pruned() if thin_curve(row)), key=lambda row: -row.curve[-1].step)
    return best, pruned[:N_PRUNED_CURVES]


def thin_curve(row: TrialRow) -> list[CurvePoint]:
    """Return at most POINTS_PER_CURVE evenly spaced points with a finite value, the first and the last among them."""
    points = [point for point in row.curve if is_finite(point.value)]
    if len(points) <= POINTS_PER_CURVE:
        return points
    stride = (len(points) - 1) / (POINTS_PER_CURVE - 1)
    return [points[round(i * stride)] for i in range(POINTS_PER_CURVE)]


def has_tokens(rows: Iterable[TrialRow]) -> bool:
    """Return whether any evaluation counts tokens; those of custom objectives may count steps only."""
    return any(point.tokens for row in rows for point in row.curve)


def find_metric_unit(table: StudyTable) -> str:
    """Return the unit of the study's metric; empty if it is not known, as for custom objectives."""
    return PRETRAIN_UNITS.get(table.metric, "") if table.objective == "pretrain" else ""
