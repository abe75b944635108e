"""Owns what a study has cost in device hours, and what stopping early has saved."""

from dataclasses import dataclass
from statistics import median

from hpopt.analysis.trials import StudyTable, TrialRow

SECONDS_PER_HOUR = 3600


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Device hours of a study. `saved_hours` is an estimate, and None where no trial shows what a whole run takes."""

    device_hours: float
    complete_hours: float
    pruned_hours: float
    other_hours: float
    saved_hours: float | None
    tokens: int


def sum_cost(table: StudyTable) -> Cost:
    """Add up the device hours, and for each pruned trial the steps it was spared, at its own speed."""
    hours = {"COMPLETE": 0.0, "PRUNED": 0.0, "other": 0.0}
    for row in table.trials:
        hours[row.state if row.state in hours else "other"] += row.device_seconds / SECONDS_PER_HOUR
    lengths = [row.curve[-1].step for row in table.complete() if row.curve]
    spared = [_spared_seconds(row, int(median(lengths))) for row in table.pruned()] if lengths else None
    return Cost(
        device_hours=sum(hours.values()),
        complete_hours=hours["COMPLETE"],
        pruned_hours=hours["PRUNED"],
        other_hours=hours["other"],
        saved_hours=sum(spared) / SECONDS_PER_HOUR if spared is not None else None,
        tokens=sum(row.tokens for row in table.trials),
    )


def _spared_seconds(row: TrialRow, whole: int) -> float:
    if not row.curve or row.curve[-1].step <= 0:
        return 0.0
    first, last = row.curve[0], row.curve[-1]
    # Between evaluations, so that loading and compiling, which every trial does once, are not counted as speed.
    if last.step > first.step:
        pace = (last.seconds - first.seconds) / (last.step - first.step)
    else:
        pace = last.seconds / last.step
    return max(0, whole - last.step) * max(0.0, pace) * _n_devices(row)


def _n_devices(row: TrialRow) -> int:
    if row.started_at is None or row.finished_at is None:
        return 1
    wall_s = (row.finished_at - row.started_at).total_seconds()
    return max(1, round(row.device_seconds / wall_s)) if wall_s > 0 else 1
