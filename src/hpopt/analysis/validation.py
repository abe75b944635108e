"""Cross-validate a surrogate."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hpopt.analysis.axes import Design, IntArray
from hpopt.analysis.surrogate import Surrogate, fit

N_FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class CrossValidation:
    """The error of predictions for held-out trials; `rmse` is in units of the metric.

    `r2` is 1 minus the unexplained share of the variance: at 0 or below, predictions are no better than the mean.
    """

    rmse: float
    r2: float
    n_folds: int
    n_trials: int


def cross_validate(surrogate: Surrogate) -> CrossValidation | None:
    """Refit the surrogate without each fifth of the trials and predict their measured values.

    Trials with equal params are held out together. Returns None if all trials have the same params.
    """
    values = surrogate.targets
    residuals, deviations = [], []
    for held_out in _split(surrogate.design):
        rest = np.setdiff1d(np.arange(len(values)), held_out)
        is_measured = surrogate.is_measured[rest]
        measured = held_out[surrogate.is_measured[held_out]]
        if not len(measured) or not is_measured.any():
            continue
        stds = np.sqrt(surrogate.noise_variances[rest])
        model = fit(surrogate.design.take(rest), values[rest], sign=surrogate.sign, stds=stds, n_starts=1)
        mean, _ = model.predict(surrogate.design.points[measured])
        residuals.append(values[measured] - mean)
        deviations.append(values[measured] - values[rest][is_measured].mean())
    if not residuals:
        return None
    squares, total = (float((np.concatenate(parts) ** 2).mean()) for parts in (residuals, deviations))
    return CrossValidation(
        rmse=surrogate.scale * squares**0.5,
        r2=1 - squares / total if total else 0.0,
        n_folds=N_FOLDS,
        n_trials=int(surrogate.is_measured.sum()),
    )


def _split(design: Design) -> Iterator[IntArray]:
    _, groups = np.unique(design.points, axis=0, return_inverse=True)
    order = np.random.default_rng(0).permutation(groups.max() + 1)
    for fold in range(N_FOLDS):
        held_out = np.flatnonzero(order[groups] % N_FOLDS == fold)
        if 0 < len(held_out) < len(groups):
            yield held_out
