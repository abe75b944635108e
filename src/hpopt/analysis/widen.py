"""Widen a search range beyond the edge at which its optimum lies."""

import math
from typing import Literal

from hpopt.analysis.trials import StudyTable
from hpopt.hyperparameters import HYPERPARAMETERS, Hyperparameter, Scalar
from hpopt.search.space import GRID_TOLERANCE, Categorical, Float, Int, Range

Side = Literal["low", "high"]

# A range grows by this share of its width, on its own scale; a logarithmic one at most by this factor.
_GROWTH = 0.5
_MAX_FACTOR = 10.0


def widen(table: StudyTable, name: str, side: Side) -> Range | None:
    """Return the range of a parameter widened on one side, or None if the parameter allows no values there.

    Logarithmic ranges grow by a factor, others by half of their width. A range never reaches an open bound of the
    parameter: it grows by half of the distance to it.
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
    # At least one step, then as many as fit.
    step = math.copysign(range_.step, edge - other)
    beyond = _bounded(edge + step * max(1, round((beyond - edge) / step)), edge, entry, side)
    end = edge + step * math.floor((beyond - edge) / step + GRID_TOLERANCE)
    return _with_end(range_, side, int(end) if isinstance(range_, Int) else end)


def _beyond(edge: float, other: float, *, is_log: bool) -> float:
    if not is_log:
        return _round(edge + _GROWTH * (edge - other), edge)
    ratio = (edge / other) ** _GROWTH
    return _round(edge * min(max(ratio, 1 / _MAX_FACTOR), _MAX_FACTOR), edge)


def _bounded(beyond: float, edge: float, entry: Hyperparameter | None, side: Side) -> float:
    """Limit a new end to the values that are valid for the parameter."""
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
    """Add a choice at the ratio, or the difference, of the last two."""
    numbers = sorted(float(choice) for choice in range_.choices)
    edge, before = (numbers[0], numbers[1]) if side == "low" else (numbers[-1], numbers[-2])
    is_ratio = numbers[0] > 0 and numbers[-1] / numbers[0] >= len(numbers)
    beyond = _bounded(edge * edge / before if is_ratio else 2 * edge - before, edge, entry, side)
    is_integer = all(isinstance(choice, int) for choice in range_.choices)
    added: Scalar = round(beyond) if is_integer else float(f"{beyond:.6g}")
    if added in range_.choices:
        return None
    return Categorical(choices=(added, *range_.choices) if side == "low" else (*range_.choices, added))


def _round(value: float, edge: float) -> float:
    """Round to two significant digits of the distance to the edge: 0.95 rather than 0.9487."""
    distance = abs(value - edge)
    return value if distance == 0 else round(value, 1 - math.floor(math.log10(distance)))
