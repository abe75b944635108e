"""Owns how well a surrogate predicts trials that it has not seen."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hpopt.analysis.axes import Design
from hpopt.analysis.surrogate import Surrogate, fit

N_FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class Error:
    """How far predictions are off for trials that the model has not seen, in units of the metric.

    `r2` is 1 minus the share of the variance that is not predicted: at 0 or below it predicts no better than a mean.
    """

    rmse: float
    r2: float
    n_folds: int
    n_trials: int


def cross_validate(surrogate: Surrogate) -> Error | None:
    """Fit anew without each fifth of the trials and predict its measured values; equal params stay together.

    None where all trials share their params.
    """
    values = surrogate.targets
    residuals, deviations = [], []
    for held_out in _folds(surrogate.design):
        rest = np.setdiff1d(np.arange(len(values)), held_out)
        is_known = surrogate.is_measured[rest]
        known = held_out[surrogate.is_measured[held_out]]
        if not len(known) or not is_known.any():
            continue
        stds = np.sqrt(surrogate.noise_variances[rest])
        model = fit(surrogate.design.take(rest), values[rest], sign=surrogate.sign, stds=stds, n_starts=1)
        mean, _ = model.predict(surrogate.design.places[known])
        residuals.append(values[known] - mean)
        deviations.append(values[known] - values[rest][is_known].mean())
    if not residuals:
        return None
    squares, total = (float((np.concatenate(parts) ** 2).mean()) for parts in (residuals, deviations))
    return Error(
        rmse=surrogate.scale * squares**0.5,
        r2=1 - squares / total if total else 0.0,
        n_folds=N_FOLDS,
        n_trials=int(surrogate.is_measured.sum()),
    )


def _folds(design: Design) -> Iterator[npt.NDArray[np.int64]]:
    _, groups = np.unique(design.places, axis=0, return_inverse=True)
    order = np.random.default_rng(0).permutation(groups.max() + 1)
    for fold in range(N_FOLDS):
        held_out = np.flatnonzero(order[groups] % N_FOLDS == fold)
        if 0 < len(held_out) < len(groups):
            yield held_out
