"""Owns parameters as coordinates: each value a place on an axis, from 0 to 1 over the range in its own scale.

Leaves what is computed on the axes to the others. Choices that are all numbers are ordered, other choices are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from hpopt.analysis.trials import StudyTable, TrialRow
from hpopt.hyperparameters import Scalar
from hpopt.search.space import Categorical, Int, Range

FloatArray = npt.NDArray[np.float64]

# Where curves are drawn: steps of a fortieth of the range. Integrals are sums over the middles of its twentieths.
N_NODES = 41
N_CELLS = 20
# Choices that are positive numbers and span so much are meant in ratios: 16, 32, 64.
_RATIO_OF_LOG_CHOICES = 4


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One parameter. `levels` are the values of choices without an order, `choices` those of choices that are numbers.

    Curves are drawn at the `nodes`. An average over the range is one over the `grid`: all values of a few, else the
    middles of cells of equal width.
    Values tried outside of the range lie below 0 or above 1, or are levels without a node.
    """

    name: str
    low: float
    high: float
    is_log: bool
    is_whole: bool
    levels: tuple[Scalar, ...] = ()
    choices: tuple[Scalar, ...] = ()
    nodes: FloatArray
    grid: FloatArray

    @property
    def is_ordered(self) -> bool:
        """Say whether one value can lie between two others."""
        return not self.levels

    def place(self, value: Scalar) -> float:
        """Give the place of a value."""
        if self.levels:
            return float(self.levels.index(value))
        number = self.low if self.is_log and float(value) <= 0 else float(value)
        low, high, number = np.log((self.low, self.high, number)) if self.is_log else (self.low, self.high, number)
        return float((number - low) / (high - low))

    def value_at(self, place: float) -> Scalar:
        """Give the value at a place, the nearest whole one or the nearest choice where only those make sense."""
        if self.levels:
            return self.levels[round(place)]
        if self.choices:
            return self.choices[int(np.abs(self.nodes - place).argmin())]
        if self.is_log:
            value = float(self.low * (self.high / self.low) ** place)
        else:
            value = float(self.low + place * (self.high - self.low))
        return round(value) if self.is_whole else value


@dataclass(frozen=True, kw_only=True)
class Design:
    """Trials as points: `places` has a row for each of `rows` and a column for each of `axes`."""

    axes: tuple[Axis, ...]
    rows: tuple[TrialRow, ...]
    places: FloatArray

    def values(self) -> FloatArray:
        """Give the metric of each trial."""
        return np.array([row.value for row in self.rows], dtype=float)

    def take(self, which: npt.NDArray[np.int64]) -> "Design":
        """Give some of the trials."""
        return Design(axes=self.axes, rows=tuple(self.rows[i] for i in which), places=self.places[which])

    def thin(self, n_most: int) -> "Design":
        """Give all trials, or `n_most` of them drawn at random; always the same ones."""
        if len(self.rows) <= n_most:
            return self
        return self.take(np.sort(np.random.default_rng(0).choice(len(self.rows), n_most, replace=False)))


def build_design(table: StudyTable, rows: Sequence[TrialRow]) -> Design:
    """Place the trials that have all params on the axes of the parameters that the study moves."""
    moved = {name: range_ for name, range_ in table.search_space.items() if not is_fixed(range_)}
    usable = tuple(row for row in rows if moved.keys() <= row.params.keys())
    axes = tuple(build_axis(name, range_, [row.params[name] for row in usable]) for name, range_ in moved.items())
    places = np.array([[axis.place(row.params[axis.name]) for axis in axes] for row in usable], dtype=float)
    return Design(axes=axes, rows=usable, places=places.reshape(len(usable), len(axes)))


def is_fixed(range_: Range) -> bool:
    """Say whether a range has one value only."""
    return len(set(range_.extremes())) == 1


def build_axis(name: str, range_: Range, tried: Sequence[Scalar] = ()) -> Axis:
    """Make the axis of a parameter, with room for what was tried outside of its range."""
    if isinstance(range_, Categorical):
        return _choices_axis(name, range_.choices, tried)
    low, high = (float(end) for end in range_.extremes())
    return _ordered_axis(name, _candidates(range_, low, high), is_log=range_.log, is_whole=isinstance(range_, Int))


def _choices_axis(name: str, choices: tuple[Scalar, ...], tried: Sequence[Scalar]) -> Axis:
    numbers = [float(choice) for choice in choices if not isinstance(choice, str | bool)]
    is_number = all(not isinstance(value, str | bool) for value in tried)
    if len(numbers) == len(choices) and is_number:
        is_log = min(numbers) > 0 and max(numbers) / min(numbers) >= _RATIO_OF_LOG_CHOICES
        is_whole = all(isinstance(choice, int) for choice in choices)
        axis = _ordered_axis(name, np.sort(numbers), is_log=is_log, is_whole=is_whole)
        return replace(axis, choices=tuple(sorted(choices, key=float)))
    levels = (*choices, *dict.fromkeys(value for value in tried if value not in choices))
    nodes = np.arange(len(choices), dtype=float)
    return Axis(name=name, low=0, high=1, is_log=False, is_whole=False, levels=levels, nodes=nodes, grid=nodes)


def _ordered_axis(name: str, values: FloatArray, *, is_log: bool, is_whole: bool) -> Axis:
    scaled = np.log(values) if is_log else values
    nodes = (scaled - scaled[0]) / (scaled[-1] - scaled[0])
    low, high = float(values[0]), float(values[-1])
    grid = nodes if len(nodes) < N_NODES else (np.arange(N_CELLS) + 0.5) / N_CELLS
    return Axis(name=name, low=low, high=high, is_log=is_log, is_whole=is_whole, nodes=nodes, grid=grid)


def _candidates(range_: Range, low: float, high: float) -> FloatArray:
    """Give the values of a range of numbers at which curves are drawn: all of a few, else evenly spaced ones."""
    even = np.geomspace(low, high, N_NODES) if range_.log else np.linspace(low, high, N_NODES)  # type: ignore[union-attr]
    step = range_.step  # type: ignore[union-attr]
    if step is None:
        return even
    return np.unique(low + step * np.round((even - low) / step))
