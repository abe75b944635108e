"""Estimate which pairs of parameters interact: the variance of a pair beyond that of each parameter alone.

Source: the second-order effects of the surrogate's functional ANOVA (anova.py), with the permutation tests of
dependence.py.
"""

from dataclasses import dataclass

import numpy as np

from hpopt.analysis.axes import FloatArray
from hpopt.analysis.dependence import INTERVAL, SIGNIFICANCE_LEVEL, assess_pairs, min_trials_for_pairs
from hpopt.analysis.importance import NO_VARIANCE
from hpopt.analysis.model import Model, reason_not_fitted
from hpopt.analysis.sample import LeftOut, with_extrapolated
from hpopt.analysis.surrogate import TRIALS_PER_PARAMETER, clip_outliers
from hpopt.analysis.trials import StudyTable

# Smaller shares of the variance are not worth acting on.
_NEGLIGIBLE = 0.01


@dataclass(frozen=True, kw_only=True)
class Interaction:
    """A pair of parameters, and its share of the surrogate's variance with a 90% interval from `low` to `high`.

    `p_value` is the probability that the strongest pair would have an effect of this size if no pair interacted.
    """

    pair: tuple[str, str]
    share: float
    low: float
    high: float
    p_value: float

    @property
    def is_significant(self) -> bool:
        """Whether the effect of the pair is statistically significant and not negligible."""
        return self.p_value <= SIGNIFICANCE_LEVEL and self.share >= _NEGLIGIBLE


@dataclass(frozen=True, kw_only=True)
class Interactions:
    """All pairs, the largest share first; if there are none, `reason` states why.

    With `is_few` there are fewer complete trials than the finding `too-few-trials` asks for.
    """

    pairs: tuple[Interaction, ...]
    n_trials: int
    is_few: bool = False
    left_out: LeftOut | None = None
    reason: str | None = None

    @property
    def significant(self) -> tuple[Interaction, ...]:
        """The pairs of which an interaction is asserted: none with few trials."""
        return tuple(pair for pair in self.pairs if pair.is_significant and not self.is_few)


def estimate_interactions(table: StudyTable, model: Model | None) -> Interactions:
    """Estimate the interactions of all pairs, from complete trials and the extrapolated values of pruned ones."""
    sample = model.sample if model else with_extrapolated(table)
    design, n_trials = sample.design, len(sample.values)
    reason = reason_not_fitted(table)
    if reason is None and len(design.axes) < 2:  # noqa: PLR2004 - a pair is two.
        reason = "the study searches one parameter"
    if reason is None and n_trials < min_trials_for_pairs(design):
        reason = f"not enough data: {min_trials_for_pairs(design)} trials are needed, there are {n_trials}"
    if reason is not None or model is None:
        return Interactions(pairs=(), n_trials=n_trials, reason=reason)
    decomposition = model.decomposition
    if decomposition is None:
        return Interactions(pairs=(), n_trials=n_trials, reason=NO_VARIANCE)
    p_values = assess_pairs(design, clip_outliers(sample.values, table.direction.sign))
    pairs = [
        _interaction(pair, part / decomposition.total, p_values[pair]) for pair, part in decomposition.pairs.items()
    ]
    pairs.sort(key=lambda interaction: -interaction.share)
    is_few = len(table.complete()) < TRIALS_PER_PARAMETER * len(design.axes)
    return Interactions(pairs=tuple(pairs), n_trials=n_trials, is_few=is_few, left_out=model.left_out)


def _interaction(pair: tuple[str, str], shares: FloatArray, p_value: float) -> Interaction:
    share, low, high = float(shares[0]), *(float(end) for end in np.quantile(shares[1:], INTERVAL))
    # The interval includes the share itself, and 0 unless the pair is significant.
    low = 0.0 if p_value > SIGNIFICANCE_LEVEL else min(low, share)
    return Interaction(pair=pair, share=share, low=low, high=max(high, share), p_value=p_value)
