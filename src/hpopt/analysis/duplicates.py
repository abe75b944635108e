"""Find trials that should differ and do not: a sign that the training ignores a parameter or the seed.

Such a study would seem to show that a parameter has no effect, or that runs have no noise.
"""

from collections import defaultdict
from dataclasses import dataclass

from hpopt.analysis.trials import StudyTable, TrialRow
from hpopt.hyperparameters import HYPERPARAMETERS

# A single value may be equal by chance, where a metric is counted in whole examples.
_MIN_DISTINCT_VALUES = 2


@dataclass(frozen=True, kw_only=True)
class DuplicateTrials:
    """Trials with identical learning curves, the names of the params that they differ in, and their seeds."""

    trials: tuple[int, ...]
    differ_in: tuple[str, ...]
    seeds: tuple[int, ...]


def find_duplicates(table: StudyTable) -> tuple[DuplicateTrials, ...]:
    """Find the groups of trials that have identical learning curves but different params or seeds."""
    groups: dict[tuple[tuple[int, float | None], ...], list[TrialRow]] = defaultdict(list)
    for row in table.trials:
        curve = tuple((point.step, point.value) for point in row.curve)
        if len({value for _, value in curve if value == value}) >= _MIN_DISTINCT_VALUES:  # noqa: PLR0124 - false for NaN.
            groups[curve].append(row)
    compared = [_compare(rows) for rows in groups.values() if len(rows) > 1]
    return tuple(group for group in compared if group.differ_in or len(group.seeds) > 1)


def _compare(rows: list[TrialRow]) -> DuplicateTrials:
    names = dict.fromkeys(name for row in rows for name in row.params)
    differ_in = tuple(
        name
        for name in names
        if len({row.params.get(name) for row in rows}) > 1 and not all(_is_unused(name, row) for row in rows)
    )
    return DuplicateTrials(
        trials=tuple(row.trial for row in rows),
        differ_in=differ_in,
        seeds=tuple(sorted({row.seed for row in rows if row.seed is not None})),
    )


def _is_unused(name: str, row: TrialRow) -> bool:
    """Return whether a parameter is known to have no effect given another param of the trial."""
    entry = HYPERPARAMETERS.get(name)
    if entry is None:
        return False
    off, on = entry.unused_if, entry.unused_unless
    return (off is not None and row.params.get(off[0]) == off[1]) or (
        on is not None and on[0] in row.params and row.params[on[0]] != on[1]
    )
