"""Owns how often stopping early would have been wrong: whether the best at the end would have been cut on its way.

Trials are compared as if all had come to a rung at once. In a study with a pruner the winner is among those that it
kept, so that what it lost stays unseen and the risk is understated.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import spearmanr

from hpopt.analysis.surrogate import MIN_TRIALS
from hpopt.analysis.trials import StudyTable, TrialRow, comparison_fractions, evaluations_at
from hpopt.search.pruner import Rungs

REDUCTION_FACTOR = 3
_N_RESAMPLES = 500


@dataclass(frozen=True, kw_only=True)
class RungCheck:
    """What a rung would have done. `rank_of_best` is the place there, of `n_trials`, of the best trial at the end.

    `agreement` is Spearman's coefficient between the complete trials' values there and at the end.
    """

    fraction: float
    n_trials: int
    n_kept: int
    rank_of_best: int
    agreement: float | None

    @property
    def would_cut_best(self) -> bool:
        """Say whether the best trial would have been stopped here."""
        return self.rank_of_best > self.n_kept


@dataclass(frozen=True, kw_only=True)
class PruningCheck:
    """The rungs, the earliest first; none with the reason for it.

    `loses_best` is the share of resamples of the trials in which the best of them would have been cut at some rung.
    """

    rungs: tuple[RungCheck, ...]
    n_complete: int
    n_pruned: int
    loses_best: float | None = None
    reason: str | None = None


def check_pruning(table: StudyTable) -> PruningCheck:
    """Replay a pruner that keeps one trial in three at each of the study's rungs."""
    rows = table.ranked()
    nothing = PruningCheck(rungs=(), n_complete=len(rows), n_pruned=len(table.pruned()))
    at_rungs = {fraction: _badness(table, evaluations_at(table, fraction)) for fraction in comparison_fractions(table)}
    usable = {fraction: values for fraction, values in at_rungs.items() if all(row.trial in values for row in rows)}
    if len(rows) < MIN_TRIALS:
        reason = f"not enough data: {MIN_TRIALS} complete trials are needed, there are {len(rows)}"
        return replace(nothing, reason=reason)
    if not usable:
        return replace(nothing, reason="the trials have no evaluations at common fractions of their schedule")
    rungs = [_check(fraction, values, rows) for fraction, values in usable.items()]
    return replace(nothing, rungs=tuple(rungs), loses_best=_resample(table, list(usable.values())))


def _badness(table: StudyTable, points: Mapping[int, object]) -> Mapping[int, float]:
    return {trial: table.loss(getattr(point, "value", None)) for trial, point in points.items()}


def _check(fraction: float, values: Mapping[int, float], ranked: tuple[TrialRow, ...]) -> RungCheck:
    early = [values[row.trial] for row in ranked]
    agreement = float(spearmanr(early, range(len(early))).statistic) if len(set(early)) > 1 else None
    return RungCheck(
        fraction=fraction,
        n_trials=len(values),
        n_kept=_n_kept(len(values)),
        rank_of_best=1 + len([value for value in values.values() if value < early[0]]),
        agreement=agreement,
    )


def _n_kept(n: int) -> int:
    rungs = Rungs(share=1 / REDUCTION_FACTOR)
    return next(n_better for n_better in range(n + 1) if rungs.is_hopeless(n=n, n_better=n_better))


def _resample(table: StudyTable, at_rungs: Sequence[Mapping[int, float]]) -> float:
    """Draw the trials with replacement, and see whether the best of each draw would have come through."""
    rows = [row for row in table.trials if any(row.trial in values for values in at_rungs)]
    final = np.array([table.loss(row.value) if row.state == "COMPLETE" else math.inf for row in rows])
    early = np.array([[values.get(row.trial, np.nan) for row in rows] for values in at_rungs])
    rng = np.random.default_rng(0)
    n_lost = 0
    for _ in range(_N_RESAMPLES):
        draw = rng.integers(len(rows), size=len(rows))
        best = draw[np.argmin(final[draw])]
        n_better = (early[:, draw] < early[:, [best]]).sum(axis=1)
        n_lost += any(
            better >= _n_kept(int(n))
            for better, n in zip(n_better, np.isfinite(early[:, draw]).sum(axis=1), strict=True)
        )
    return n_lost / _N_RESAMPLES
