"""Extrapolate the final values of pruned trials by regression on the trials that continued.

For each step at which trials were pruned, a line is fitted to the values of the continued trials at that step and at
the end. Source: least squares, and the standard error of a single prediction.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import theilslopes

from hpopt.analysis.axes import FloatArray
from hpopt.analysis.trials import Outcome, StudyTable, TrialRow, is_finite

# A line through fewer complete trials says little.
MIN_FOR_A_LINE = 5
# Residuals beyond the quartiles by this many interquartile ranges are outliers (Tukey's outer fence).
_FENCE = 3.0
# Lower bound of the standard deviation of a prediction, as a share of that of the final values.
_MIN_RELATIVE_STD = 1e-6
# The robust slope takes time with the square of the number of trials.
_MAX_FOR_SLOPES = 200


@dataclass(frozen=True, kw_only=True)
class Extrapolation:
    """The extrapolated value of a trial and its standard deviation, in units of the metric."""

    value: float
    std: float


def extrapolate_finals(table: StudyTable) -> Mapping[int, Extrapolation]:
    """Extrapolate, by trial, the final values of the pruned trials that did not diverge, where that is possible."""
    return extrapolate(table, {row.trial: row.value for row in table.complete() if row.value is not None})


def extrapolate(table: StudyTable, measured: Mapping[int, float]) -> Mapping[int, Extrapolation]:
    """Extrapolate, by trial, the values of pruned trials from the `measured` ones of trials that trained longer."""
    continued = [row for row in table.trials if row.trial in measured]
    pruned_at: dict[int, list[TrialRow]] = {}
    for row in table.pruned():
        is_missing = row.trial not in measured and row.outcome != Outcome.DIVERGED
        if is_missing and row.curve and is_finite(row.curve[-1].value):
            pruned_at.setdefault(row.curve[-1].step, []).append(row)
    extrapolated = {}
    for step, rows in pruned_at.items():
        early = {row.trial: value for row in continued if (value := _value_at(row, step)) is not None}
        finals = [measured[trial] for trial in early]
        predicted = _predict(list(early.values()), finals, [row.curve[-1].value or 0.0 for row in rows])
        extrapolated.update({row.trial: value for row, value in zip(rows, predicted, strict=False)})
    return extrapolated


def _value_at(row: TrialRow, step: int) -> float | None:
    value = next((point.value for point in row.curve if point.step == step), None)
    return value if is_finite(value) else None


def _predict(early: Sequence[float], finals: Sequence[float], stopped: Sequence[float]) -> Sequence[Extrapolation]:
    """Predict the final values of trials from those where they were `stopped`, by a line from `early` to `finals`.

    Returns nothing if there are too few trials for a line, or if better early values do not lead to better final ones.
    """
    if len(early) < MIN_FOR_A_LINE:
        return ()
    x, y, at = (np.array(values, dtype=float) for values in (early, finals, stopped))
    if x.min() == x.max():
        return ()
    inliers = _find_inliers(x, y)
    x, y = x[inliers], y[inliers]
    n = len(x)
    if n < MIN_FOR_A_LINE or x.min() == x.max():
        return ()
    sum_of_squares = ((x - x.mean()) ** 2).sum()
    slope = ((x - x.mean()) * y).sum() / sum_of_squares
    if not np.isfinite(slope) or slope <= 0:
        return ()
    line = y.mean() + slope * (at - x.mean())
    residuals = y - y.mean() - slope * (x - x.mean())
    variance = (residuals**2).sum() / (n - 2) * (1 + 1 / n + (at - x.mean()) ** 2 / sum_of_squares)
    # A standard deviation of 0 marks a measured value.
    stds = np.maximum(np.sqrt(variance), _MIN_RELATIVE_STD * y.std())
    return [Extrapolation(value=float(v), std=float(s)) for v, s in zip(line, stds, strict=True)]


def _find_inliers(x: FloatArray, y: FloatArray) -> npt.NDArray[np.bool_]:
    """Return which trials (N,) lie near the Theil-Sen line (Theil 1950, Sen 1968).

    A single loss spike would turn a least-squares line.
    """
    some = slice(None, None, math.ceil(len(x) / _MAX_FOR_SLOPES))
    slope = theilslopes(y[some], x[some]).slope
    residuals = y - slope * x
    low, high = np.quantile(residuals, (0.25, 0.75))
    # Where a sampler has concentrated on the optimum, the few trials elsewhere determine the slope and are no outliers.
    reach = _FENCE * (high - low) + (y.max() - y.min()) / 2
    inliers: npt.NDArray[np.bool_] = (residuals >= low - reach) & (residuals <= high + reach)
    return inliers
