"""Owns what the figures show: which trials, which part of the axis, in which color. Leaves drawing to its two users.

Complete, pruned and best differ in shape as well as in color. The colors are those of Okabe and Ito (2008), which most
color-blind people can tell apart; each has a twin for a dark background.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import quantiles

from hpopt.analysis.trials import CurvePoint, StudyTable, TrialRow, is_finite

TEXT, GRID, MUTED = "#1f2328", "#dfe3e8", "#7a828e"
COMPLETE, BEST = "#0072b2", "#d55e00"
DARK_TWINS = {TEXT: "#e6e8eb", GRID: "#343a43", MUTED: "#959da8", COMPLETE: "#56b4e9", BEST: "#e69f00"}

N_BEST_CURVES = 5
N_PRUNED_CURVES = 20
POINTS_PER_CURVE = 80
# Tukey's "far out" fence: a diverged trial would press all others into one line.
FENCE = 3.0


@dataclass(frozen=True, kw_only=True)
class Window:
    """The part of the value axis that is shown, and how many trials lie beyond it."""

    low: float
    high: float
    n_beyond: int

    def note(self) -> str:
        """Say what is not in the picture."""
        return f"{self.n_beyond} beyond this range" if self.n_beyond else ""


def choose_window(table: StudyTable, values: Iterable[float | None]) -> Window | None:
    """Show all values but those far on the bad side; None if there is no finite value."""
    badness = sorted(table.loss(value) for value in values if is_finite(value))
    if not badness:
        return None
    lower, _, upper = quantiles(badness, n=4, method="inclusive") if len(badness) > 1 else [badness[0]] * 3
    fence = upper + FENCE * (upper - lower)
    inside = [bad for bad in badness if bad <= fence]
    margin = 0.06 * (inside[-1] - inside[0]) or 0.05 * abs(inside[0]) or 0.5
    ends = (inside[0] - margin, inside[-1] + margin)
    low, high = ends if table.direction == "minimize" else (-ends[1], -ends[0])
    return Window(low=low, high=high, n_beyond=len(badness) - len(inside))


def with_value(rows: Iterable[TrialRow]) -> list[TrialRow]:
    """Keep the trials that have a point to draw."""
    return [row for row in rows if is_finite(row.value)]


def best_so_far(table: StudyTable) -> Iterator[tuple[int, float]]:
    """Give trial number and best value where the complete trials, in the order of their numbers, get better."""
    best = math.inf
    for row in sorted(table.complete(), key=lambda row: row.trial):
        if row.value is not None and table.loss(row.value) < best:
            best = table.loss(row.value)
            yield row.trial, row.value


def choose_curves(table: StudyTable) -> tuple[list[TrialRow], list[TrialRow]]:
    """Choose the best complete trials and the pruned ones that got furthest."""
    best = [row for row in table.ranked() if finite_points(row)][:N_BEST_CURVES]
    pruned = sorted((row for row in table.pruned() if finite_points(row)), key=lambda row: -row.curve[-1].step)
    return best, pruned[:N_PRUNED_CURVES]


def finite_points(row: TrialRow) -> list[CurvePoint]:
    """Thin a curve out to what can be seen; its first and last point stay."""
    points = [point for point in row.curve if is_finite(point.value)]
    if len(points) <= POINTS_PER_CURVE:
        return points
    stride = (len(points) - 1) / (POINTS_PER_CURVE - 1)
    return [points[round(i * stride)] for i in range(POINTS_PER_CURVE)]


def counts_tokens(rows: Iterable[TrialRow]) -> bool:
    """Say whether fidelity can be drawn in tokens; a program's own trials may only know steps."""
    return any(point.tokens for row in rows for point in row.curve)


def format_number(value: float | None) -> str:
    """Write a number with the digits that a reader wants."""
    return "none" if value is None else f"{value:.4g}"
