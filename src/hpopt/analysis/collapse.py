"""Find trials whose metric ends at one constant value whatever their params: collapsed or saturated."""

from collections import defaultdict
from dataclasses import dataclass

from hpopt.analysis.trials import StudyTable, TrialRow

# Fewer trials can end at one value by chance, where a metric is counted in whole examples.
MIN_TRIALS = 3
# Evaluations of the second half of training that must be equal: with fewer, a coarse metric is constant by chance.
MIN_CONSTANT = 3


@dataclass(frozen=True, kw_only=True)
class Collapse:
    """Trials that end at one value with at least two configurations; of `n_complete` complete ones.

    `is_best` tells whether no complete trial is better: the metric is saturated.
    """

    value: float
    trials: tuple[int, ...]
    n_complete: int
    is_best: bool


def find_collapse(table: StudyTable) -> Collapse | None:
    """Return the largest group of complete trials that end at one value, or None.

    They stay at it during the second half of training; or all trials end at it, however short their curves.
    """
    complete = table.complete()
    groups: dict[float | None, list[TrialRow]] = defaultdict(list)
    for row in complete:
        groups[row.value].append(row)
    rows = max(groups.values(), key=len, default=[])
    if len(groups) > 1:
        rows = max(([row for row in group if is_constant(row)] for group in groups.values()), key=len)
    value = rows[0].value if rows else None
    n_configurations = len({tuple(sorted(row.params.items())) for row in rows})
    if value is None or len(rows) < MIN_TRIALS or n_configurations < 2:  # noqa: PLR2004 - repetitions are equal.
        return None
    best = table.best()
    return Collapse(
        value=value,
        trials=tuple(row.trial for row in rows),
        n_complete=len(complete),
        is_best=best is not None and best.value == value,
    )


def is_constant(row: TrialRow) -> bool:
    """Return whether the metric of a trial does not change in the second half of its evaluations."""
    values = [point.value for point in row.curve[len(row.curve) // 2 :]]
    return len(values) >= MIN_CONSTANT and len(set(values)) == 1
