"""Owns which two parameters must be chosen together: the part of a pair that neither has alone.

Source: the second-order effects of the surrogate's functional ANOVA (anova.py); whether they are chance, dependence.py.
"""

from dataclasses import dataclass

import numpy as np

from hpopt.analysis.axes import FloatArray
from hpopt.analysis.dependence import SIGNIFICANCE_LEVEL, assess_pairs, min_trials_for_pairs
from hpopt.analysis.importance import INTERVAL, NO_DIFFERENCE
from hpopt.analysis.model import Model
from hpopt.analysis.sample import LeftOut, completed, with_extrapolated
from hpopt.analysis.surrogate import clip_outliers, reason_not_fitted
from hpopt.analysis.trials import StudyTable

# Nobody would choose two values together for less.
_NEGLIGIBLE = 0.01


@dataclass(frozen=True, kw_only=True)
class Interaction:
    """A pair, its share of the variance that the surrogate sees, with its 90% interval, and whether it is chance.

    `p_value` is how likely a pair at least as joint as this one would be among all pairs if there were none.
    """

    pair: tuple[str, str]
    share: float
    low: float
    high: float
    p_value: float

    @property
    def is_significant(self) -> bool:
        """Say whether the pair is more than chance, and more than nothing."""
        return self.p_value <= SIGNIFICANCE_LEVEL and self.share >= _NEGLIGIBLE


@dataclass(frozen=True, kw_only=True)
class Interactions:
    """All pairs, the largest share first; none with the reason for it."""

    pairs: tuple[Interaction, ...]
    n_trials: int
    left_out: LeftOut | None = None
    reason: str | None = None


def measure_interactions(table: StudyTable, model: Model | None) -> Interactions:
    """Measure all pairs on the complete trials, and on the extrapolated values of pruned ones."""
    sample = model.sample if model else with_extrapolated(table)
    design, n_trials = sample.design, len(sample.values)
    reason = reason_not_fitted(table, completed(table))
    if reason is None and len(design.axes) < 2:  # noqa: PLR2004 - a pair is two.
        reason = "the study searches one parameter"
    if reason is None and n_trials < min_trials_for_pairs(design):
        reason = f"not enough data: {min_trials_for_pairs(design)} trials are needed, there are {n_trials}"
    if reason is not None or model is None:
        return Interactions(pairs=(), n_trials=n_trials, reason=reason)
    decomposition = model.decomposition
    if decomposition is None:
        return Interactions(pairs=(), n_trials=n_trials, reason=NO_DIFFERENCE)
    p_values = assess_pairs(design, clip_outliers(sample.values, table.direction.sign))
    found = [
        _interaction(pair, part / decomposition.total, p_values[pair]) for pair, part in decomposition.pairs.items()
    ]
    found.sort(key=lambda interaction: -interaction.share)
    return Interactions(pairs=tuple(found), n_trials=n_trials, left_out=model.left_out)


def _interaction(pair: tuple[str, str], shares: FloatArray, p_value: float) -> Interaction:
    share, low, high = float(shares[0]), *(float(end) for end in np.quantile(shares[1:], INTERVAL))
    # The interval holds the share itself, and 0 where there may be no interaction at all.
    low = 0.0 if p_value > SIGNIFICANCE_LEVEL else min(low, share)
    return Interaction(pair=pair, share=share, low=low, high=max(high, share), p_value=p_value)
