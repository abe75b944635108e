"""Select the trials that are analysed, and test what leaving out the others does to the result."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from hpopt.analysis.axes import Design, FloatArray, build_design
from hpopt.analysis.dependence import SIGNIFICANCE_LEVEL, assess_parameters, normal_scores
from hpopt.analysis.extrapolation import Extrapolation, extrapolate
from hpopt.analysis.surrogate import clip_outliers
from hpopt.analysis.trials import Outcome, StudyTable, TrialRow
from hpopt.formats import format_count, join_words

# Fewer trials than this cannot show that they differ from the others.
_MIN_LEFT_OUT = 3


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """The trials without a final value that an analysis leaves out: diverged ones, and those without an extrapolation.

    `differ_in` names the parameters in which they differ significantly from the others, whose importance is therefore
    underestimated.
    """

    n: int
    n_diverged: int
    differ_in: tuple[str, ...]

    @property
    def is_biased(self) -> bool:
        """Whether the remaining trials are not a representative sample."""
        return bool(self.differ_in)

    @property
    def bias_note(self) -> str | None:
        """The sentence that describes the effect of leaving them out; None if there are none."""
        if not self.n:
            return None
        subject = f"{format_count(self.n, 'pruned trial')} {'is' if self.n == 1 else 'are'} left out"
        if self.n_diverged:
            subject += f", {self.n_diverged} of which diverged" if self.n > 1 else ", which diverged"
        if not self.differ_in:
            return f"{subject}; they show no significant difference from the others in any parameter."
        return (
            f"{subject}, and they differ from the others in {join_words(self.differ_in)}, whose importance is "
            "underestimated."
        )


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Trials with measured or extrapolated values.

    `values` (N,) are in units of the metric, `stds` (N,) their standard deviations: 0 for measured values.
    """

    design: Design
    values: FloatArray
    stds: FloatArray

    @property
    def n_extrapolated(self) -> int:
        """The number of extrapolated values."""
        return int((self.stds > 0).sum())


def with_extrapolated(table: StudyTable, measured: Mapping[int, float] | None = None) -> Sample:
    """Return the trials with a measured value, and the pruned trials for which one can be extrapolated.

    `measured` are values by trial, by default the final values of the complete trials.
    """
    if measured is None:
        measured = {row.trial: row.value for row in table.complete() if row.value is not None}
    values = {trial: Extrapolation(value=value, std=0.0) for trial, value in measured.items()}
    values |= extrapolate(table, measured)
    rows = sorted((row for row in table.trials if row.trial in values), key=lambda row: row.trial not in measured)
    design = build_design(table, rows)
    return Sample(
        design=design,
        values=np.array([values[row.trial].value for row in design.rows], dtype=float),
        stds=np.array([values[row.trial].std for row in design.rows], dtype=float),
    )


def completed(table: StudyTable) -> Design:
    """Return the design of the complete trials."""
    return build_design(table, table.complete())


def find_left_out(table: StudyTable, used: Collection[int]) -> LeftOut:
    """Compare the params of the pruned trials that are not in `used` (trial numbers) with those of all others."""
    design = build_design(table, (*table.complete(), *table.pruned()))
    is_out = np.array([row.state == "PRUNED" and row.trial not in used for row in design.rows], dtype=float)
    n = int(is_out.sum())
    differ_in: tuple[str, ...] = ()
    if design.axes and min(n, len(is_out) - n) >= _MIN_LEFT_OUT:
        p_values = assess_parameters(design, is_out)
        differ_in = tuple(name for name, p_value in p_values.items() if p_value <= SIGNIFICANCE_LEVEL)
    n_diverged = sum(row.outcome == Outcome.DIVERGED for row in design.rows)
    return LeftOut(n=n, n_diverged=n_diverged, differ_in=differ_in)


def assess_table(table: StudyTable, sample: Sample) -> dict[str, float]:
    """Return, by parameter, the p-value of an effect on the final value, corrected for the number of parameters.

    Pruned trials count at their extrapolated values. If one has none, ranks are tested instead of values: pruned trials
    rank behind all complete ones, those that were stopped later before the others, and diverged ones last.
    """
    design = build_design(table, (*table.complete(), *table.pruned()))
    if len(sample.values) == len(design.rows):
        return dict(assess_parameters(sample.design, clip_outliers(sample.values, table.direction.sign)))
    return dict(assess_parameters(design, normal_scores(_ranks(table, design.rows))))


def _ranks(table: StudyTable, rows: tuple[TrialRow, ...]) -> FloatArray:
    """Return the rank of each trial (N,), 0 for the best; equal trials share a rank."""
    keys = [_rank_key(table, row) for row in rows]
    rank = {key: number for number, key in enumerate(sorted(set(keys)))}
    return np.array([rank[key] for key in keys], dtype=float)


def _rank_key(table: StudyTable, row: TrialRow) -> tuple[int, int, float]:
    if row.state == "COMPLETE":
        return (0, 0, table.loss(row.value))
    if row.outcome == Outcome.DIVERGED or not row.curve:
        return (2, 0, 0.0)
    return (1, -row.curve[-1].step, table.loss(row.curve[-1].value))
