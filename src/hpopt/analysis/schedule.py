"""Owns what a trial had reached at a fraction of its schedule, so that trials are compared at equal budgets.

The value at half of a schedule is not that of a run half as long, whose learning rate would have decayed by then.
"""

from collections.abc import Mapping

from hpopt.analysis.trials import CurvePoint, StudyTable, TrialRow, is_finite

# Where trials are compared if the study's pruner says nothing about it.
FRACTIONS = (1 / 9, 1 / 3)
# Steps are whole, as in rungs.py; and an evaluation this much too late is no longer of the same budget.
_ROUNDING = 0.5
_LATE = 1.5


def fractions_of(table: StudyTable) -> tuple[float, ...]:
    """Give the fractions of the schedule at which trials are compared before its end."""
    return table.rungs.fractions or FRACTIONS


def points_at(table: StudyTable, fraction: float) -> Mapping[int, CurvePoint]:
    """Give the first evaluation at a fraction of the schedule, by trial, of the trials that came so far."""
    lengths = {row.curve[-1].step for row in table.complete() if row.curve}
    # How far a trial that was stopped would have gone is known where all whole ones went equally far.
    common = lengths.pop() if len(lengths) == 1 else None
    rows = (*table.complete(), *table.pruned())
    found = {row.trial: _point_at(row, fraction, common) for row in rows}
    return {trial: point for trial, point in found.items() if point is not None}


def _point_at(row: TrialRow, fraction: float, common: int | None) -> CurvePoint | None:
    n_steps = row.curve[-1].step if row.state == "COMPLETE" and row.curve else common
    if n_steps is None:
        return None
    reached = (point for point in row.curve if point.step + _ROUNDING >= fraction * n_steps)
    point = next(reached, None)
    if point is None or not is_finite(point.value) or point.step > _LATE * fraction * n_steps + 1:
        return None
    return point
