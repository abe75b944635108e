"""Owns what pruned trials would have come to: a line through those that went on, from the value where they stopped.

How much those that went on changed places, and how far the pruned one lies outside of them, says how uncertain that is.
Source: least squares, and the error of a single prediction.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import theilslopes

from hpopt.analysis.axes import FloatArray
from hpopt.analysis.trials import StudyTable, TrialRow, is_finite

# With fewer complete trials a line is a guess.
MIN_FOR_A_LINE = 5
_FENCE = 3.0
_LEAST_STD = 1e-6
# All pairs of these have a slope.
_N_FOR_SLOPES = 200


@dataclass(frozen=True, kw_only=True)
class Extrapolation:
    """The value that a trial's learning curve comes to, and its standard deviation, in units of the metric."""

    value: float
    std: float


def extrapolate_finals(table: StudyTable) -> Mapping[int, Extrapolation]:
    """Give what each pruned trial that did not diverge would have ended with, by trial; of some nothing is known."""
    return extrapolate(table, {row.trial: row.value for row in table.complete() if row.value is not None})


def extrapolate(table: StudyTable, known: Mapping[int, float]) -> Mapping[int, Extrapolation]:
    """Give what the pruned trials that stopped before would have come to, where `known` trials came to these values."""
    reached = [row for row in table.trials if row.trial in known]
    by_step: dict[int, list[TrialRow]] = {}
    for row in table.pruned():
        if row.trial not in known and row.outcome != "diverged" and row.curve and is_finite(row.curve[-1].value):
            by_step.setdefault(row.curve[-1].step, []).append(row)
    extrapolated = {}
    for step, rows in by_step.items():
        early = {row.trial: value for row in reached if (value := _value_at(row, step)) is not None}
        finals = [known[trial] for trial in early]
        found = _predict(list(early.values()), finals, [row.curve[-1].value or 0.0 for row in rows])
        extrapolated.update({row.trial: value for row, value in zip(rows, found, strict=False)})
    return extrapolated


def _value_at(row: TrialRow, step: int) -> float | None:
    value = next((point.value for point in row.curve if point.step == step), None)
    return value if is_finite(value) else None


def _predict(early: Sequence[float], finals: Sequence[float], stopped: Sequence[float]) -> Sequence[Extrapolation]:
    """Predict finals; nothing where those with a better start do not end better."""
    if len(early) < MIN_FOR_A_LINE:
        return ()
    x, y, at = (np.array(values, dtype=float) for values in (early, finals, stopped))
    if x.min() == x.max():
        return ()
    usual = _find_usual(x, y)
    x, y = x[usual], y[usual]
    n = len(x)
    if n < MIN_FOR_A_LINE or x.min() == x.max():
        return ()
    size = ((x - x.mean()) ** 2).sum()
    slope = ((x - x.mean()) * y).sum() / size
    if not np.isfinite(slope) or slope <= 0:
        return ()
    line = y.mean() + slope * (at - x.mean())
    residual = y - y.mean() - slope * (x - x.mean())
    variance = (residual**2).sum() / (n - 2) * (1 + 1 / n + (at - x.mean()) ** 2 / size)
    # Nothing that was not measured is certain.
    stds = np.maximum(np.sqrt(variance), _LEAST_STD * y.std())
    return [Extrapolation(value=float(v), std=float(s)) for v, s in zip(line, stds, strict=True)]


def _find_usual(x: FloatArray, y: FloatArray) -> npt.NDArray[np.bool_]:
    """Say which trials lie near a line that outliers do not turn (Theil 1950, Sen 1968).

    One loss spike would turn that of least squares.
    """
    some = slice(None, None, math.ceil(len(x) / _N_FOR_SLOPES))
    slope = theilslopes(y[some], x[some]).slope
    rest = y - slope * x
    low, high = np.quantile(rest, (0.25, 0.75))
    # Where a sampler has crowded around the optimum, the few others are no outliers: they say how steep the line is.
    reach = _FENCE * (high - low) + (y.max() - y.min()) / 2
    usual: npt.NDArray[np.bool_] = (rest >= low - reach) & (rest <= high + reach)
    return usual
