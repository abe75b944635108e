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
    parameter: it grows by half of the distance to it. A range without negative values gets none, since most parameters
    have no meaning there.
    """
    range_ = table.search_space[name]
    if isinstance(range_, Categorical):
        return _widen_choices(range_, name, side)
    low, high = (float(end) for end in range_.extremes())
    edge, other = (low, high) if side == "low" else (high, low)
    beyond = _beyond(edge, other, is_log=range_.log)
    bound, is_open = _bound(name, side, edge, is_integer=isinstance(range_, Int))
    if range_.step is None:
        return _with_end(range_, side, _bounded(beyond, edge, side, bound=bound, is_open=is_open))
    # At least one step, then as many as fit.
    step = math.copysign(range_.step, edge - other)
    beyond = edge + step * max(1, round((beyond - edge) / step))
    beyond = _bounded(beyond, edge, side, bound=bound, is_open=is_open)
    end = edge + step * math.floor((beyond - edge) / step + GRID_TOLERANCE)
    return _with_end(range_, side, int(end) if isinstance(range_, Int) else end)


def _beyond(edge: float, other: float, *, is_log: bool) -> float:
    if not is_log:
        return _round(edge + _GROWTH * (edge - other), edge)
    ratio = (edge / other) ** _GROWTH
    return _round(edge * min(max(ratio, 1 / _MAX_FACTOR), _MAX_FACTOR), edge)


def _bounded(beyond: float, edge: float, side: Side, *, bound: float | None, is_open: bool) -> float:
    """Limit a new end to the values that are valid for the parameter."""
    if bound is None or (beyond > bound if side == "low" else beyond < bound):
        return beyond
    return _round((edge + bound) / 2, edge) if is_open else bound


def _bound(name: str, side: Side, edge: float, *, is_integer: bool) -> tuple[float | None, bool]:
    """Return the bound of a parameter on one side, or None, and whether it is open."""
    entry = _entry(name)
    if entry is not None and (bound := entry.low if side == "low" else entry.high) is not None:
        return bound, entry.low_open if side == "low" else entry.high_open
    if (edge < 0) if side == "low" else (edge > 0):
        return None, False
    if edge == 0:
        return 0.0, False
    return (math.copysign(1.0, edge), False) if is_integer else (0.0, True)


def _entry(name: str) -> Hyperparameter | None:
    """Return the hyperparameter of a name, or the one that the name ends with: `lora_dropout` is a dropout."""
    names = (known for known in HYPERPARAMETERS if name.endswith(f"_{known}"))
    return HYPERPARAMETERS.get(name) or HYPERPARAMETERS.get(next(names, ""))


def _with_end(range_: Float | Int, side: Side, end: float) -> Range | None:
    low, high = range_.extremes()
    if (end >= low) if side == "low" else (end <= high):
        return None
    return type(range_)(**{**range_.model_dump(), "low": low, "high": high, side: end})


def _widen_choices(range_: Categorical, name: str, side: Side) -> Range | None:
    """Add a choice at the ratio, or the difference, of the last two."""
    numbers = sorted(float(choice) for choice in range_.choices)
    edge, before = (numbers[0], numbers[1]) if side == "low" else (numbers[-1], numbers[-2])
    is_ratio = numbers[0] > 0 and numbers[-1] / numbers[0] >= len(numbers)
    is_integer = all(isinstance(choice, int) for choice in range_.choices)
    bound, is_open = _bound(name, side, edge, is_integer=is_integer)
    beyond = edge * edge / before if is_ratio else 2 * edge - before
    beyond = _bounded(beyond, edge, side, bound=bound, is_open=is_open)
    added: Scalar = round(beyond) if is_integer else float(f"{beyond:.6g}")
    if added in range_.choices:
        return None
    choices = (added, *range_.choices) if side == "low" else (*range_.choices, added)
    return Categorical(**{**range_.model_dump(), "choices": choices})


def _round(value: float, edge: float) -> float:
    """Round to two significant digits of the distance to the edge: 0.95 rather than 0.9487."""
    distance = abs(value - edge)
    return value if distance == 0 else round(value, 1 - math.floor(math.log10(distance)))
