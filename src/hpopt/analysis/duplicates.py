"""Find trials that should differ and do not: a sign that the training ignores a parameter or the seed.

Such a study would seem to show that a parameter has no effect, or that runs have no noise.
"""

from collections import defaultdict
from dataclasses import dataclass

from hpopt.analysis.collapse import is_constant
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
    """Find the groups of trials that have identical learning curves but different params or seeds.

    A param is named if it moves the metric nowhere: not if trials that differ in it alone have different curves, as
    where it has no effect together with one value of another param. Curves of a collapsed metric show nothing.
    """
    groups: dict[tuple[tuple[int, float | None], ...], list[TrialRow]] = defaultdict(list)
    for row in table.trials:
        curve = tuple((point.step, point.value) for point in row.curve)
        n_values = len({value for _, value in curve if value == value})  # noqa: PLR0124 - false for NaN.
        if n_values >= _MIN_DISTINCT_VALUES and not is_constant(row):
            groups[curve].append(row)
    effective = _effective_params(table)
    compared = [_compare(rows, effective) for rows in groups.values() if len(rows) > 1]
    return tuple(group for group in compared if group.differ_in or len(group.seeds) > 1)


def _effective_params(table: StudyTable) -> set[str]:
    """Return the params in which alone two trials differ, with the same seed and different curves."""
    names = {name for row in table.trials for name in row.params}
    curves: dict[tuple[object, ...], set[tuple[float | None, ...]]] = defaultdict(set)
    for row in table.trials:
        # A running or pruned trial has a part of its curve.
        if row.state == "COMPLETE" and row.curve:
            for name in names & row.params.keys():
                others = frozenset((other, value) for other, value in row.params.items() if other != name)
                curves[name, row.seed, others].add(tuple(point.value for point in row.curve))
    return {str(name) for (name, *_), distinct in curves.items() if len(distinct) > 1}


def _compare(rows: list[TrialRow], effective: set[str]) -> DuplicateTrials:
    names = dict.fromkeys(name for row in rows for name in row.params)
    differ_in = tuple(
        name
        for name in names
        if name not in effective
        and len({row.params[name] for row in rows if name in row.params}) > 1
        and not all(_is_unused(name, row) for row in rows)
    )
    return DuplicateTrials(
        trials=tuple(row.trial for row in rows),
        differ_in=differ_in,
        seeds=tuple(sorted({row.seed for row in rows if row.seed is not None})),
    )


def _is_unused(name: str, row: TrialRow) -> bool:
    """Return whether a parameter is known to have no effect given another param of the trial."""
    return name in HYPERPARAMETERS and HYPERPARAMETERS[name].is_unused(row.params)
