"""Sample with Optuna's TPE from columns of numbers instead of trial objects.

The params are those of Optuna's TPESampler, which a test checks to the bit. Optuna's Python loops over trials are array
operations here, and the densities of all candidates under all trials are one matrix product.

Dimensions: K kernels, one a trial and one of the prior; S candidates; P params; F factors of a density.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator
from optuna.samplers._tpe.probability_distributions import (
    _BatchedCategoricalDistributions,
    _BatchedDistributions,
    _MixtureOfProductDistribution,
)
from optuna.samplers._tpe.sampler import default_gamma

from hpopt.hyperparameters import Scalar

# The kinds of trials in the order in which TPE ranks them as good; failed and running ones are never good.
COMPLETE, PRUNED, INFEASIBLE, FAILED, RUNNING = range(5)

Numbers = NDArray[np.float64]

# Candidates are left out that succeed less often than three times in four, unless no other is more likely to succeed.
_MIN_LOG_ODDS = float(np.log(3))
# exp is ten times slower where its result is subnormal; nothing this small changes a sum that begins with 1.
_SMALLEST_EXPONENT = -700.0
# OpenBLAS keeps products below 2^18 multiplications on one core; more threads would compete with the training.
_KERNELS_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True)
class Observations:
    """What a sampler learns from: one row for each trial, in the order of their numbers.

    `values` has each parameter as Optuna stores it, nan where it is inactive; `kind` is COMPLETE, PRUNED, INFEASIBLE,
    FAILED or RUNNING; `step` is the last step of a pruned trial, -1 if it reported none; `score` is the value (the last
    one of a pruned trial), or the constraint violation of an infeasible trial. A lower score is better, whatever the
    direction of the study.
    """

    values: Mapping[str, Numbers]
    kind: NDArray[np.int8]
    step: NDArray[np.int64]
    score: Numbers

    @property
    def n_finished(self) -> int:
        """The number of finished trials, failed ones included."""
        return int((self.kind != RUNNING).sum())

    def of(self, names: Collection[str]) -> "Observations":
        """Return the trials in which all of these parameters are active, with their values alone."""
        is_in = np.logical_and.reduce([~np.isnan(self.values[name]) for name in names])
        values = {name: self.values[name][is_in] for name in names}
        return Observations(values=values, kind=self.kind[is_in], step=self.step[is_in], score=self.score[is_in])


class ColumnTPESampler(TPESampler):
    """TPE with Optuna's defaults: multivariate, with running trials among the bad ones (constant liar).

    Optuna ignores failed trials. Here they are among the bad ones, and candidates that are likely to fail are left out,
    so that a region that runs out of memory is avoided. Their probability to fail is that of a Parzen classifier, as
    for the constraints of c-TPE (Watanabe and Hutter 2023).
    """

    def propose(self, space: Mapping[str, BaseDistribution], observations: Observations) -> dict[str, Scalar]:
        """Sample the parameters that have more than one value jointly. Source: Bergstra et al. 2011."""
        searched = {name: space[name] for name in sorted(space) if not space[name].single()}
        if not searched:
            return {}

        def fit(rows: NDArray[np.int64]) -> _ParzenEstimator:
            values = {name: observations.values[name][rows] for name in searched}
            return _ParzenEstimator(values, searched, self._parzen_estimator_parameters)

        good, rest = _split(observations)
        below, above = fit(good), fit(rest)
        samples = below.sample(self._rng.rng, self._n_ei_candidates)
        candidates_SP = np.column_stack([samples[name] for name in searched])
        gain_S, loss_S = (log_density(part._mixture_distribution, candidates_SP) for part in (below, above))
        acquisition_S = gain_S - loss_S
        failed = np.flatnonzero(observations.kind == FAILED)
        if len(failed):
            not_failed = np.flatnonzero(observations.kind < FAILED)
            # The prior counts as one trial of each.
            log_odds_S = log_density(fit(not_failed)._mixture_distribution, candidates_SP) + np.log(len(not_failed) + 1)
            log_odds_S -= log_density(fit(failed)._mixture_distribution, candidates_SP) + np.log(len(failed) + 1)
            acquisition_S[log_odds_S < min(_MIN_LOG_ODDS, log_odds_S.max())] = -np.inf
        best = self._compare(samples, acquisition_S)
        return {name: searched[name].to_external_repr(best[name]) for name in searched}


def _split(observations: Observations) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of the good trials and of all others; of pruned trials, those with the most steps are best."""
    kind = observations.kind
    order = np.lexsort((observations.score, np.where(kind == PRUNED, -observations.step, 0), kind))
    n_ranked = int((kind < FAILED).sum())
    n_good = min(default_gamma(n_ranked), n_ranked)
    is_good = np.zeros(len(kind), dtype=bool)
    is_good[order[:n_good]] = True
    return np.flatnonzero(is_good), np.flatnonzero(~is_good)


def log_density(mixture: _MixtureOfProductDistribution, candidates_SP: Numbers) -> Numbers:
    """Return the logarithm of a mixture's density at each candidate (S,), equal to its log_pdf up to rounding.

    The log density of a kernel is a sum over params of terms that are each a product of a factor of the kernel and a
    factor of the candidate, so that all of them together are one matrix product.
    """
    constant_K = np.log(mixture.weights)
    of_kernels, of_candidates = [], []
    for distribution, x_S in zip(mixture.distributions, candidates_SP.T, strict=True):
        left_KF, right_SF, term_K = _factors(distribution, x_S)
        of_kernels.append(left_KF)
        of_candidates.append(right_SF)
        constant_K = constant_K + term_K
    exponent_SK = _product(np.concatenate(of_candidates, axis=1), np.concatenate(of_kernels, axis=1))
    exponent_SK += constant_K
    largest_S = exponent_SK.max(axis=1)
    exponent_SK -= largest_S[:, None]
    np.maximum(exponent_SK, _SMALLEST_EXPONENT, out=exponent_SK)
    density_S: Numbers = np.log(np.exp(exponent_SK, out=exponent_SK).sum(axis=1)) + largest_S
    return density_S


def _factors(distribution: _BatchedDistributions, x_S: Numbers) -> tuple[Numbers, Numbers, Numbers | float]:
    """Return a param's terms of the log density: factors of kernels (K, F) and candidates (S, F), constants (K,)."""
    if isinstance(distribution, _BatchedCategoricalDistributions):
        return np.log(distribution.weights), _one_hot(x_S.astype(np.int64), distribution.weights.shape[1]), 0.0
    # The import takes a tenth of a second, and only workers sample.
    from scipy.special import ndtr  # noqa: PLC0415

    mu_K, sigma_K = distribution.mu, distribution.sigma
    low, high = distribution.adapted_low, distribution.adapted_high
    mass_K = ndtr((high - mu_K) / sigma_K) - ndtr((low - mu_K) / sigma_K)
    scale = np.log if distribution.is_log else np.asarray
    if distribution.step:
        value_F, index_S = np.unique(x_S, return_inverse=True)
        # Many trials share a value, and most share the narrowest width.
        kernel_G, index_K = np.unique(mu_K + 1j * sigma_K, return_inverse=True)
        left_GF, right_GF = (
            (scale(value_F + side * distribution.step) - kernel_G.real[:, None]) / kernel_G.imag[:, None]
            for side in (-0.5, 0.5)
        )
        return _log_mass(left_GF, right_GF)[index_K], _one_hot(index_S, len(value_F)), -np.log(mass_K)
    # Relative to the middle of the range, so that expanding the square loses little precision.
    middle = (low + high) / 2
    mu_K, x_S = mu_K - middle, scale(x_S) - middle
    precision_K = sigma_K**-2
    constant_K = -0.5 * precision_K * mu_K**2 - np.log(mass_K * sigma_K * np.sqrt(2 * np.pi))
    return np.column_stack([precision_K, precision_K * mu_K]), np.column_stack([-0.5 * x_S**2, x_S]), constant_K


def _product(left_SF: Numbers, right_KF: Numbers) -> Numbers:
    product_SK = np.empty((len(left_SF), len(right_KF)))
    for start in range(0, len(right_KF), _KERNELS_AT_ONCE):
        part = slice(start, start + _KERNELS_AT_ONCE)
        np.matmul(left_SF, right_KF[part].T, out=product_SK[:, part])
    return product_SK


def _one_hot(index_S: NDArray[np.int64], n: int) -> Numbers:
    return np.equal(index_S[:, None], np.arange(n)).astype(np.float64)


def _log_mass(low: Numbers, high: Numbers) -> Numbers:
    """Return the logarithm of the normal distribution's mass between two bounds, accurate in both tails."""
    from scipy.special import log_ndtr  # noqa: PLC0415 - As above.

    is_right = low + high > 0
    low, high = np.where(is_right, -high, low), np.where(is_right, -low, high)
    log_mass: Numbers = log_ndtr(high) + np.log1p(-np.exp(log_ndtr(low) - log_ndtr(high)))
    return log_mass
