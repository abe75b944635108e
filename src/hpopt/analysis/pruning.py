"""Estimate how often pruning would have stopped the trial that is best at the end.

Trials are compared as if all had reached a rung at the same time. In a study with a pruner, only trials that it kept
can be the best, so that the risk is underestimated.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import spearmanr

from hpopt.analysis.surrogate import MIN_TRIALS
from hpopt.analysis.trials import CurvePoint, StudyTable, TrialRow, comparison_fractions, evaluations_at
from hpopt.search.pruner import Rungs

REDUCTION_FACTOR = 3
_N_RESAMPLES = 500


@dataclass(frozen=True, kw_only=True)
class RungCheck:
    """What a pruner would do at a rung: keep `n_kept` of the `n_trials` trials that reached it.

    `rank_of_best` is the rank there, from 1, of the trial that is best at the end. `rank_correlation` is Spearman's
    coefficient between the complete trials' values there and at the end, None if they are all equal there.
    """

    fraction: float
    n_trials: int
    n_kept: int
    rank_of_best: int
    rank_correlation: float | None


@dataclass(frozen=True, kw_only=True)
class PruningCheck:
    """The rungs, the earliest first; if there are none, `reason` states why.

    `best_pruned_share` is the share of bootstrap resamples of the trials whose best trial would be pruned at some rung.
    """

    rungs: tuple[RungCheck, ...]
    n_complete: int
    n_pruned: int
    best_pruned_share: float | None = None
    reason: str | None = None


def check_pruning(table: StudyTable) -> PruningCheck:
    """Replay a pruner that keeps one trial in three at each of the study's rungs."""
    rows = table.ranked()
    check = PruningCheck(rungs=(), n_complete=len(rows), n_pruned=len(table.pruned()))
    at_rungs = {fraction: _losses(table, evaluations_at(table, fraction)) for fraction in comparison_fractions(table)}
    usable = {fraction: losses for fraction, losses in at_rungs.items() if all(row.trial in losses for row in rows)}
    if len(rows) < MIN_TRIALS:
        reason = f"not enough data: {MIN_TRIALS} complete trials are needed, there are {len(rows)}"
        return replace(check, reason=reason)
    if not usable:
        return replace(check, reason="the trials have no evaluations at common fractions of their schedule")
    rungs = tuple(_check_rung(fraction, losses, rows) for fraction, losses in usable.items())
    return replace(check, rungs=rungs, best_pruned_share=_resample(table, list(usable.values())))


def _losses(table: StudyTable, points: Mapping[int, CurvePoint]) -> Mapping[int, float]:
    return {trial: table.loss(point.value) for trial, point in points.items()}


def _check_rung(fraction: float, losses: Mapping[int, float], ranked: tuple[TrialRow, ...]) -> RungCheck:
    early = [losses[row.trial] for row in ranked]
    correlation = float(spearmanr(early, range(len(early))).statistic) if len(set(early)) > 1 else None
    return RungCheck(
        fraction=fraction,
        n_trials=len(losses),
        n_kept=_n_kept(len(losses)),
        rank_of_best=1 + len([loss for loss in losses.values() if loss < early[0]]),
        rank_correlation=correlation,
    )


def _n_kept(n: int) -> int:
    rungs = Rungs(share=1 / REDUCTION_FACTOR)
    return next(n_better for n_better in range(n + 1) if rungs.should_prune(n_trials=n, n_better=n_better))


def _resample(table: StudyTable, at_rungs: Sequence[Mapping[int, float]]) -> float:
    """Return the share of bootstrap resamples whose best trial would be pruned at one of the rungs."""
    rows = [row for row in table.trials if any(row.trial in losses for losses in at_rungs)]
    final = np.array([table.loss(row.value) if row.state == "COMPLETE" else math.inf for row in rows])
    early = np.array([[losses.get(row.trial, np.nan) for row in rows] for losses in at_rungs])
    rng = np.random.default_rng(0)
    n_pruned = 0
    for _ in range(_N_RESAMPLES):
        draw = rng.integers(len(rows), size=len(rows))
        best = draw[np.argmin(final[draw])]
        n_better = (early[:, draw] < early[:, [best]]).sum(axis=1)
        n_reached = np.isfinite(early[:, draw]).sum(axis=1)
        n_pruned += any(better >= _n_kept(int(n)) for better, n in zip(n_better, n_reached, strict=True))
    return n_pruned / _N_RESAMPLES
