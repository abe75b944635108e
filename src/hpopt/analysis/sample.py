"""Owns which trials are analysed, and what leaving out the others does to the answer."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from hpopt.analysis.axes import Design, FloatArray, build_design
from hpopt.analysis.dependence import SIGNIFICANCE_LEVEL, assess_parameters, normal_scores
from hpopt.analysis.extrapolation import Extrapolation, extrapolate
from hpopt.analysis.surrogate import clip_outliers
from hpopt.analysis.trials import StudyTable, TrialRow

# Fewer than this many cannot show that they are unlike the others.
_MIN_LEFT_OUT = 3


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """The trials without a final value that an analysis leaves out: diverged ones, and what cannot be extrapolated.

    `unlike` names the parameters in which they differ from the complete ones: what is said of those is too little.
    """

    n: int
    n_diverged: int
    unlike: tuple[str, ...]

    @property
    def is_biased(self) -> bool:
        """Say whether the trials that are left are no fair sample."""
        return bool(self.unlike)

    @property
    def bias_sentence(self) -> str | None:
        """Say what leaving them out does, if any were."""
        if not self.n:
            return None
        who = f"{self.n} pruned trials are left out" if self.n > 1 else "1 pruned trial is left out"
        if self.n_diverged:
            who += f", {self.n_diverged} of which diverged" if self.n > 1 else ", which diverged"
        if not self.unlike:
            return f"{who}; in no parameter do they differ from the others by more than chance."
        return f"{who}, and they differ from the others in {_enumerate(self.unlike)}, whose weight is understated."


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The trials whose value is known or extrapolated, with these values; `stds` are 0 where it is known."""

    design: Design
    values: FloatArray
    stds: FloatArray

    @property
    def n_extrapolated(self) -> int:
        """How many are extrapolated."""
        return int((self.stds > 0).sum())


def with_extrapolated(table: StudyTable, known: Mapping[int, float] | None = None) -> Sample:
    """Place the trials whose value is known, and those that were pruned before at extrapolated ones.

    `known` values are by trial; the final values of the complete trials if they are not given.
    """
    if known is None:
        known = {row.trial: row.value for row in table.complete() if row.value is not None}
    found = {trial: Extrapolation(value=value, std=0.0) for trial, value in known.items()}
    found |= extrapolate(table, known)
    rows = sorted((row for row in table.trials if row.trial in found), key=lambda row: row.trial not in known)
    design = build_design(table, rows)
    values, stds = ([getattr(found[row.trial], name) for row in design.rows] for name in ("value", "std"))
    return Sample(design=design, values=np.array(values, dtype=float), stds=np.array(stds, dtype=float))


def completed(table: StudyTable) -> Design:
    """Place the trials that completed."""
    return build_design(table, table.complete())


def find_left_out(table: StudyTable, used: Collection[int]) -> LeftOut:
    """Compare the params of the stopped trials that are not used, by their numbers, with those of all others."""
    design = build_design(table, (*table.complete(), *table.pruned()))
    is_out = np.array([row.state == "PRUNED" and row.trial not in used for row in design.rows], dtype=float)
    n = int(is_out.sum())
    unlike: tuple[str, ...] = ()
    if design.axes and min(n, len(is_out) - n) >= _MIN_LEFT_OUT:
        p_values = assess_parameters(design, is_out)
        unlike = tuple(name for name, p_value in p_values.items() if p_value <= SIGNIFICANCE_LEVEL)
    return LeftOut(n=n, n_diverged=sum(row.outcome == "diverged" for row in design.rows), unlike=unlike)


def assess_table(table: StudyTable, sample: Sample) -> dict[str, float]:
    """Give for each parameter the p-value: the chance that it only seems to matter, over all parameters together.

    Pruned trials count at extrapolated values. Where one has none, they count as worse than all complete ones, those
    that came further before the others; diverged ones are worst.
    """
    design = build_design(table, (*table.complete(), *table.pruned()))
    if len(sample.values) == len(design.rows):
        return dict(assess_parameters(sample.design, clip_outliers(sample.values, table.direction.sign)))
    return dict(assess_parameters(design, normal_scores(_places(table, design.rows))))


def _places(table: StudyTable, rows: tuple[TrialRow, ...]) -> FloatArray:
    """Give the place of each trial among all, the best first; equals share one."""
    keys = [_key(table, row) for row in rows]
    place = {key: number for number, key in enumerate(sorted(set(keys)))}
    return np.array([place[key] for key in keys], dtype=float)


def _key(table: StudyTable, row: TrialRow) -> tuple[int, int, float]:
    if row.state == "COMPLETE":
        return (0, 0, table.loss(row.value))
    if row.outcome == "diverged" or not row.curve:
        return (2, 0, 0.0)
    return (1, -row.curve[-1].step, table.loss(row.curve[-1].value))


def _enumerate(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
