"""Correlate each parameter with each final metric, without regard to the other parameters.

Coefficients measure a linear (Pearson) or monotonic (Spearman) relation: those of a bowl around its optimum are zero.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import pearsonr, spearmanr

from hpopt.analysis.axes import FloatArray
from hpopt.analysis.sample import completed
from hpopt.analysis.surrogate import MIN_TRIALS
from hpopt.analysis.trials import StudyTable


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """The correlation of a parameter, or of its logarithm if `is_log`, with a metric over `n_trials` complete trials.

    The coefficients are None, with a reason, where there are too few trials or either does not vary. `p_value` is that
    of the Spearman coefficient, not corrected for the number of pairs.
    """

    parameter: str
    metric: str
    is_log: bool
    n_trials: int
    pearson: float | None = None
    spearman: float | None = None
    p_value: float | None = None
    reason: str | None = None


def correlate(table: StudyTable) -> tuple[Correlation, ...]:
    """Correlate every ordered parameter with every metric of the complete trials, the study's own metric first."""
    design = completed(table)
    names = sorted({name for row in design.rows for name in row.metrics} - {table.metric})
    columns = {table.metric: design.values()}
    columns |= {name: np.array([row.metrics.get(name, np.nan) for row in design.rows], dtype=float) for name in names}
    return tuple(
        _correlate(axis.name, name, design.points[:, i], column, is_log=axis.is_log)
        for i, axis in enumerate(design.axes)
        for name, column in columns.items()
        if axis.is_ordered
    )


def _correlate(parameter: str, metric: str, x: FloatArray, column: FloatArray, *, is_log: bool) -> Correlation:
    finite = np.isfinite(column)
    x, column = x[finite], column[finite]
    correlation = Correlation(parameter=parameter, metric=metric, is_log=is_log, n_trials=len(column))
    reason = next(_find_reasons(x, column), None)
    if reason is not None:
        return replace(correlation, reason=reason)
    # scipy warns about columns that are constant up to rounding, but returns a result.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pearson, spearman = pearsonr(x, column), spearmanr(x, column)
    return replace(
        correlation,
        pearson=float(pearson.statistic),
        spearman=float(spearman.statistic),
        p_value=float(spearman.pvalue),
    )


def _find_reasons(x: FloatArray, column: FloatArray) -> Iterator[str]:
    if len(column) < MIN_TRIALS:
        yield f"not enough data: {MIN_TRIALS} complete trials are needed, there are {len(column)}"
    if len(set(x.tolist())) < 2:  # noqa: PLR2004 - one value does not vary.
        yield "the parameter has the same value in all of them"
    if len(set(column.tolist())) < 2:  # noqa: PLR2004 - as above.
        yield "the metric has the same value in all of them"
