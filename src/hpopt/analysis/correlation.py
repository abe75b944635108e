"""Owns how each parameter goes with each metric at the end of a run, one by one and without the others.

A correlation sees a straight line (Pearson) or a direction (Spearman): that of a bowl around its optimum is zero.
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
    """A parameter and a metric over `n_trials` complete trials; `is_log` says that the parameter's logarithm counts.

    The coefficients are None, with a reason, where there are too few trials or either does not vary. `p_value` is that
    of a Spearman coefficient so far from 0 without any relation, for this pair alone.
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
    """Correlate every ordered parameter with every metric, the study's own first, of the complete trials."""
    design = completed(table)
    names = sorted({name for row in design.rows for name in row.metrics} - {table.metric})
    columns = {table.metric: design.values()}
    columns |= {name: np.array([row.metrics.get(name, np.nan) for row in design.rows], dtype=float) for name in names}
    found = [
        _correlate(axis.name, name, design.places[:, i], column, is_log=axis.is_log)
        for i, axis in enumerate(design.axes)
        for name, column in columns.items()
        if axis.is_ordered
    ]
    return tuple(found)


def _correlate(parameter: str, metric: str, places: FloatArray, column: FloatArray, *, is_log: bool) -> Correlation:
    known = np.isfinite(column)
    places, column = places[known], column[known]
    n_trials = len(column)
    about = Correlation(parameter=parameter, metric=metric, is_log=is_log, n_trials=n_trials)
    reason = next(_reasons(places, column), None)
    if reason is not None:
        return replace(about, reason=reason)
    # scipy warns of columns that are constant but for rounding, and gives what it can.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pearson, spearman = pearsonr(places, column), spearmanr(places, column)
    return replace(
        about,
        pearson=float(pearson.statistic),
        spearman=float(spearman.statistic),
        p_value=float(spearman.pvalue),
    )


def _reasons(places: FloatArray, column: FloatArray) -> Iterator[str]:
    if len(column) < MIN_TRIALS:
        yield f"not enough data: {MIN_TRIALS} complete trials are needed, there are {len(column)}"
    if len(set(places.tolist())) < 2:  # noqa: PLR2004 - one value does not vary.
        yield "the parameter has the same value in all of them"
    if len(set(column.tolist())) < 2:  # noqa: PLR2004 - as above.
        yield "the metric has the same value in all of them"
