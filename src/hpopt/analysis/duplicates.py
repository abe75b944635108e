"""Owns the trials that should differ and do not, to the last digit: what they were given never arrived.

A training that ignores a parameter, or a seed, looks like a parameter without effect, or like a study without noise.
"""

from collections import defaultdict
from dataclasses import dataclass

from hpopt.analysis.trials import StudyTable, TrialRow
from hpopt.hyperparameters import HYPERPARAMETERS

# A single number may be equal by chance, where a metric is counted in whole examples.
_FEWEST_VALUES = 2


@dataclass(frozen=True, kw_only=True)
class DuplicateTrials:
    """Trials with identical learning curves; `differ_in` are the params that they differ in, `seeds` theirs."""

    trials: tuple[int, ...]
    differ_in: tuple[str, ...]
    seeds: tuple[int, ...]


def find_duplicates(table: StudyTable) -> tuple[DuplicateTrials, ...]:
    """Find the groups of trials with identical curves that differ in their params or in their seeds."""
    groups: dict[tuple[tuple[int, float | None], ...], list[TrialRow]] = defaultdict(list)
    for row in table.trials:
        curve = tuple((point.step, point.value) for point in row.curve)
        if len({value for _, value in curve if value == value}) >= _FEWEST_VALUES:  # noqa: PLR0124 - NaN is not.
            groups[curve].append(row)
    found = [_compare(rows) for rows in groups.values() if len(rows) > 1]
    return tuple(duplicates for duplicates in found if duplicates.differ_in or len(duplicates.seeds) > 1)


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
    """Say whether the dictionary knows that the parameter does nothing beside another one of the trial."""
    entry = HYPERPARAMETERS.get(name)
    if entry is None:
        return False
    off, on = entry.unused_if, entry.unused_unless
    return (off is not None and row.params.get(off[0]) == off[1]) or (
        on is not None and on[0] in row.params and row.params[on[0]] != on[1]
    )
