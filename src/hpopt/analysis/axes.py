"""Map parameter values to coordinates: 0 to 1 over the range of each parameter, on its own scale.

Numeric choices are ordered, other choices are not: their coordinate is their index.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from hpopt.analysis.trials import StudyTable, TrialRow
from hpopt.hyperparameters import Scalar
from hpopt.search.space import Categorical, Float, Int, Range

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# Curves are drawn at steps of a fortieth of the range. Integrals are sums over the midpoints of its twentieths.
N_NODES = 41
N_CELLS = 20
# Positive choices that span at least this ratio are taken on a logarithmic scale: 16, 32, 64.
_LOG_CHOICES_RATIO = 4


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The scale of one parameter.

    `low` and `high` are the values at the coordinates 0 and 1. `levels` are the values of choices without an order,
    `choices` the ascending values of numeric choices; both are empty for other parameters. `nodes` (G,) are the
    coordinates at which curves are drawn. `grid` (M,) are those over which averages are taken: all values where there
    are few, else the midpoints of cells of equal width. Values outside of the range have coordinates below 0 or above
    1, or are levels without a node.
    """

    name: str
    low: float
    high: float
    is_log: bool
    is_integer: bool
    levels: tuple[Scalar, ...] = ()
    choices: tuple[Scalar, ...] = ()
    nodes: FloatArray
    grid: FloatArray

    @property
    def is_ordered(self) -> bool:
        """Whether one value can lie between two others."""
        return not self.levels

    def coordinate(self, value: Scalar) -> float:
        """Return the coordinate of a value; on a logarithmic scale, values that are not positive count as `low`."""
        if self.levels:
            return float(self.levels.index(value))
        number = self.low if self.is_log and float(value) <= 0 else float(value)
        low, high, number = np.log((self.low, self.high, number)) if self.is_log else (self.low, self.high, number)
        return float((number - low) / (high - low))

    def value_at(self, coordinate: float) -> Scalar:
        """Return the value at a coordinate, rounded to an integer or to a choice where only those are possible."""
        if self.levels:
            return self.levels[round(coordinate)]
        if self.choices:
            return self.choices[int(np.abs(self.nodes - coordinate).argmin())]
        if self.is_log:
            value = float(self.low * (self.high / self.low) ** coordinate)
        else:
            value = float(self.low + coordinate * (self.high - self.low))
        return round(value) if self.is_integer else value


@dataclass(frozen=True, kw_only=True)
class Design:
    """Trials as points: `points` (N, A) has a row for each of `rows` and a column for each of `axes`.

    `n_parts` is that of the study's table.
    """

    axes: tuple[Axis, ...]
    rows: tuple[TrialRow, ...]
    points: FloatArray
    n_parts: int = 1

    def values(self) -> FloatArray:
        """Return the metric of each trial, shape (N,)."""
        return np.array([row.value for row in self.rows], dtype=float)

    def take(self, indices: IntArray) -> "Design":
        """Return the design of the trials with these indices."""
        return replace(self, rows=tuple(self.rows[i] for i in indices), points=self.points[indices])


def build_design(table: StudyTable, rows: Sequence[TrialRow]) -> Design:
    """Build the design of all rows that have a value for each parameter whose range has more than one."""
    searched = {name: range_ for name, range_ in table.search_space.items() if not is_fixed(range_)}
    usable = tuple(row for row in rows if searched.keys() <= row.params.keys())
    axes = tuple(build_axis(name, range_, [row.params[name] for row in usable]) for name, range_ in searched.items())
    points = np.array([[axis.coordinate(row.params[axis.name]) for axis in axes] for row in usable], dtype=float)
    points = points.reshape(len(usable), len(axes))
    return Design(axes=axes, rows=usable, points=points, n_parts=table.n_parts)


def is_fixed(range_: Range) -> bool:
    """Return whether a range has one value only."""
    return len(set(range_.extremes())) == 1


def build_axis(name: str, range_: Range, tried: Sequence[Scalar] = ()) -> Axis:
    """Build the axis of a parameter; `tried` are the values of trials, which may lie outside of the range."""
    if isinstance(range_, Categorical):
        return _build_choices_axis(name, range_.choices, tried)
    low, high = (float(end) for end in range_.extremes())
    values = _curve_values(range_, low, high)
    return _build_ordered_axis(name, values, is_log=range_.log, is_integer=isinstance(range_, Int))


def subsample(n_items: int, n_max: int, *, seed: int = 0) -> IntArray:
    """Return the ascending indices of all items, or of `n_max` of them drawn at random, the same in each call."""
    if n_items <= n_max:
        return np.arange(n_items)
    return np.sort(np.random.default_rng(seed).choice(n_items, n_max, replace=False))


def _build_choices_axis(name: str, choices: tuple[Scalar, ...], tried: Sequence[Scalar]) -> Axis:
    numbers = [float(choice) for choice in choices if not isinstance(choice, str | bool)]
    is_numeric = all(not isinstance(value, str | bool) for value in tried)
    if len(numbers) == len(choices) and is_numeric:
        is_log = min(numbers) > 0 and max(numbers) / min(numbers) >= _LOG_CHOICES_RATIO
        is_integer = all(isinstance(choice, int) for choice in choices)
        axis = _build_ordered_axis(name, np.sort(numbers), is_log=is_log, is_integer=is_integer)
        return replace(axis, choices=tuple(sorted(choices, key=float)))
    levels = (*choices, *dict.fromkeys(value for value in tried if value not in choices))
    nodes = np.arange(len(choices), dtype=float)
    return Axis(name=name, low=0, high=1, is_log=False, is_integer=False, levels=levels, nodes=nodes, grid=nodes)


def _build_ordered_axis(name: str, values: FloatArray, *, is_log: bool, is_integer: bool) -> Axis:
    scaled = np.log(values) if is_log else values
    nodes = (scaled - scaled[0]) / (scaled[-1] - scaled[0])
    low, high = float(values[0]), float(values[-1])
    grid = nodes if len(nodes) < N_NODES else (np.arange(N_CELLS) + 0.5) / N_CELLS
    return Axis(name=name, low=low, high=high, is_log=is_log, is_integer=is_integer, nodes=nodes, grid=grid)


def _curve_values(range_: Float | Int, low: float, high: float) -> FloatArray:
    """Return the values of a numeric range at which curves are drawn: all of a few, else evenly spaced ones."""
    even = np.geomspace(low, high, N_NODES) if range_.log else np.linspace(low, high, N_NODES)
    step = range_.step
    if step is None:
        return even
    return np.unique(low + step * np.round((even - low) / step))
