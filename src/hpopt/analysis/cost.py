"""Sum up the device hours that a study has used, and estimate those that pruning has saved."""

from dataclasses import dataclass
from statistics import median

from hpopt.analysis.trials import StudyTable, TrialRow

SECONDS_PER_HOUR = 3600


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Device hours of a study; `saved_hours` is an estimate, None unless the length of a schedule is known."""

    device_hours: float
    complete_hours: float
    pruned_hours: float
    other_hours: float
    saved_hours: float | None
    tokens: int


def sum_cost(table: StudyTable) -> Cost:
    """Sum up the device hours, and those that pruned trials have saved.

    A pruned trial saves its remaining steps at its own speed; a full schedule is the median one of the complete trials.
    """
    hours = {"COMPLETE": 0.0, "PRUNED": 0.0, "other": 0.0}
    for row in table.trials:
        hours[row.state if row.state in hours else "other"] += row.device_seconds / SECONDS_PER_HOUR
    lengths = [row.curve[-1].step for row in table.complete() if row.curve]
    saved = [_saved_seconds(row, int(median(lengths))) for row in table.pruned()] if lengths else None
    return Cost(
        device_hours=sum(hours.values()),
        complete_hours=hours["COMPLETE"],
        pruned_hours=hours["PRUNED"],
        other_hours=hours["other"],
        saved_hours=sum(saved) / SECONDS_PER_HOUR if saved is not None else None,
        tokens=sum(row.tokens for row in table.trials),
    )


def _saved_seconds(row: TrialRow, n_steps: int) -> float:
    if not row.curve or row.curve[-1].step <= 0:
        return 0.0
    first, last = row.curve[0], row.curve[-1]
    # Measured between evaluations, which excludes loading and compiling: each trial does them once.
    if last.step > first.step:
        seconds_per_step = (last.seconds - first.seconds) / (last.step - first.step)
    else:
        seconds_per_step = last.seconds / last.step
    return max(0, n_steps - last.step) * max(0.0, seconds_per_step) * _n_devices(row)


def _n_devices(row: TrialRow) -> int:
    if row.started_at is None or row.finished_at is None:
        return 1
    wall_s = (row.finished_at - row.started_at).total_seconds()
    return max(1, round(row.device_seconds / wall_s)) if wall_s > 0 else 1
