"""Owns the wider range to try where an optimum lies at the edge. Leaves finding such optima to sensitivity.py."""

import math
from typing import Literal

from hpopt.analysis.trials import StudyTable
from hpopt.hyperparameters import HYPERPARAMETERS, Hyperparameter, Scalar
from hpopt.search.space import GRID_TOLERANCE, Categorical, Float, Int, Range

Side = Literal["low", "high"]

# By how much of its own width a range grows beyond an edge, and by which factor a logarithmic one at most.
_GROWTH = 0.5
_LARGEST_FACTOR = 10.0


def widen(table: StudyTable, name: str, side: Side) -> Range | None:
    """Give the range with more room on one side, None where the parameter allows none.

    Log ranges grow by a factor, others by half of their width; a bound that the value must stay below is approached
    by half the distance to it.
    """
    range_ = table.search_space[name]
    entry = HYPERPARAMETERS.get(name)
    if isinstance(range_, Categorical):
        return _widen_choices(range_, entry, side)
    low, high = (float(end) for end in range_.extremes())
    edge, other = (low, high) if side == "low" else (high, low)
    beyond = _beyond(edge, other, is_log=range_.log)
    if range_.step is None:
        return _with_end(range_, side, _bounded(beyond, edge, entry, side))
    # At least one step, and then as many as fit.
    step = math.copysign(range_.step, edge - other)
    beyond = _bounded(edge + step * max(1, round((beyond - edge) / step)), edge, entry, side)
    end = edge + step * math.floor((beyond - edge) / step + GRID_TOLERANCE)
    return _with_end(range_, side, int(end) if isinstance(range_, Int) else end)


def _beyond(edge: float, other: float, *, is_log: bool) -> float:
    if not is_log:
        return _round(edge + _GROWTH * (edge - other), edge)
    ratio = (edge / other) ** _GROWTH
    return _round(edge * min(max(ratio, 1 / _LARGEST_FACTOR), _LARGEST_FACTOR), edge)


def _bounded(beyond: float, edge: float, entry: Hyperparameter | None, side: Side) -> float:
    """Keep within what the parameter may be at all."""
    bound, is_open = _bound(entry, side)
    if bound is None or (beyond > bound if side == "low" else beyond < bound):
        return beyond
    return _round((edge + bound) / 2, edge) if is_open else bound


def _bound(entry: Hyperparameter | None, side: Side) -> tuple[float | None, bool]:
    if entry is None:
        return None, False
    return (entry.low, entry.low_open) if side == "low" else (entry.high, entry.high_open)


def _with_end(range_: Float | Int, side: Side, end: float) -> Range | None:
    low, high = range_.extremes()
    if (end >= low) if side == "low" else (end <= high):
        return None
    return type(range_)(**{**range_.model_dump(), "low": low, "high": high, side: end})


def _widen_choices(range_: Categorical, entry: Hyperparameter | None, side: Side) -> Range | None:
    """Go on by the ratio or the difference of the last two choices."""
    numbers = sorted(float(choice) for choice in range_.choices)
    edge, before = (numbers[0], numbers[1]) if side == "low" else (numbers[-1], numbers[-2])
    is_ratio = numbers[0] > 0 and numbers[-1] / numbers[0] >= len(numbers)
    beyond = _bounded(edge * edge / before if is_ratio else 2 * edge - before, edge, entry, side)
    is_whole = all(isinstance(choice, int) for choice in range_.choices)
    added: Scalar = round(beyond) if is_whole else float(f"{beyond:.6g}")
    if added in range_.choices:
        return None
    return Categorical(choices=(added, *range_.choices) if side == "low" else (*range_.choices, added))


def _round(value: float, edge: float) -> float:
    """Round to two digits of the distance to the edge, so that nobody is told to try 0.9487."""
    distance = abs(value - edge)
    return value if distance == 0 else round(value, 1 - math.floor(math.log10(distance)))
