"""Owns Optuna's TPE over columns of numbers. Leaves filling the columns to storage/history.py.

The params are those of Optuna's own TPESampler, to the bit; what it does in Python for each trial is done once for a
whole column. A test holds the two equal.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator
from optuna.samplers._tpe.sampler import default_gamma

from hpopt.hyperparameters import Scalar

# The kinds of trials, in the order in which TPE takes them for good ones; running ones are never.
COMPLETE, PRUNED, INFEASIBLE, RUNNING = range(4)

Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What a sampler learns from: one row a trial, in the order of their numbers.

    `values` holds each parameter as Optuna stores it; `step` the last step of a pruned trial, -1 if it reported none;
    `score` the value, for a pruned one the last, or how much an infeasible one violates: lower is better, whatever the
    direction of the study.
    """

    values: Mapping[str, Numbers]
    kind: NDArray[np.int8]
    step: NDArray[np.int64]
    score: Numbers

    @property
    def n_ended(self) -> int:
        """Trials that are over."""
        return int((self.kind != RUNNING).sum())


class ColumnTPESampler(TPESampler):
    """TPE as Optuna sets it up: multivariate, with running trials among the bad ones (constant liar)."""

    def propose(self, space: Mapping[str, BaseDistribution], observed: Observed) -> dict[str, Scalar]:
        """Sample all parameters that have more than one value together. Source: Bergstra et al. 2011."""
        searched = {name: space[name] for name in sorted(space) if not space[name].single()}
        if not searched:
            return {}
        good, rest = _split(observed)
        below, above = (
            _ParzenEstimator(
                {name: observed.values[name][rows] for name in searched}, searched, self._parzen_estimator_parameters
            )
            for rows in (good, rest)
        )
        samples = below.sample(self._rng.rng, self._n_ei_candidates)
        best = self._compare(samples, below.log_pdf(samples) - above.log_pdf(samples))
        return {name: searched[name].to_external_repr(best[name]) for name in searched}


def _split(observed: Observed) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give the rows of the good trials and of all others: of the pruned ones, those that came the furthest are best."""
    kind = observed.kind
    order = np.lexsort((observed.score, np.where(kind == PRUNED, -observed.step, 0), kind))
    n_good = min(default_gamma(observed.n_ended), observed.n_ended)
    is_good = np.zeros(len(kind), dtype=bool)
    is_good[order[:n_good]] = True
    return np.flatnonzero(is_good), np.flatnonzero(~is_good)
