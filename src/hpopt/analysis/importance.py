"""Estimate the importance of each parameter with intervals, by two methods that answer different questions.

PED-ANOVA is Optuna's (Watanabe et al. 2023, arXiv 2304.10255). fANOVA (Hutter et al. 2014) is that of a Gaussian
process rather than a random forest: its integrals are exact, and its posterior gives intervals.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from hpopt.analysis.anova import Decomposition
from hpopt.analysis.axes import FloatArray, subsample
from hpopt.analysis.dependence import INTERVAL, SIGNIFICANCE_LEVEL
from hpopt.analysis.model import Model, build_model, limit_blas_threads, reason_not_fitted
from hpopt.analysis.trials import StudyTable, TrialRow
from hpopt.formats import format_count
from hpopt.hyperparameters import Scalar
from hpopt.search.direction import Direction
from hpopt.search.sampler import to_distribution
from hpopt.search.space import Categorical, Float, Int, Range

NO_VARIANCE = "the trials show no variance that can be attributed to parameters"
MEANINGS = {
    "PED-ANOVA": "what distinguishes the best tenth of the trials (at least five) from the rest",
    "fANOVA": "what explains the variance over the whole search space, including its bad regions",
}
# Optuna's PED-ANOVA takes a tenth of a millisecond per trial.
_N_RESAMPLES = 40
_MAX_TRIALS = 300
# The best trials of PED-ANOVA: this share of them, but at least so many.
_TOP_SHARE, _MIN_TOP = 0.1, 5

Interval = tuple[float, float]
Shares = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Importance:
    """The importances of the parameters by one method.

    `shares` are in descending order and sum to 1; None if there are none, and `reason` states why. `intervals` are 90%
    intervals from `n_resamples` bootstrap resamples of the trials (PED-ANOVA) or functions drawn from the posterior
    (fANOVA). `p_values` are corrected for the number of parameters. `n_used` of `n_trials` trials were used, and
    `n_left_out` pruned trials are not among these. `bias_note` states how pruned trials count, `is_biased` whether the
    shares are biased since some are left out.
    """

    method: str
    meaning: str
    n_trials: int
    shares: Shares | None
    reason: str | None = None
    n_used: int = 0
    n_resamples: int = 0
    intervals: Mapping[str, Interval] | None = None
    p_values: Mapping[str, float] | None = None
    n_left_out: int = 0
    is_biased: bool = False
    bias_note: str | None = None

    @property
    def significant(self) -> tuple[str, ...]:
        """The names of the parameters with a statistically significant effect, the largest share first."""
        return tuple(name for name in self.shares or () if (self.p_values or {}).get(name, 1.0) <= SIGNIFICANCE_LEVEL)


@limit_blas_threads
def estimate_importance(table: StudyTable, model: Model | None = None) -> tuple[Importance, ...]:
    """Estimate the importances by PED-ANOVA and fANOVA, in this order; the model is built if it is not given.

    For PED-ANOVA, a pruned trial is one that is not among the best. For fANOVA, it counts at its extrapolated value.
    """
    model = model or build_model(table)
    if model is None:
        reason, n_trials = reason_not_fitted(table), len(table.complete())
        return tuple(
            Importance(method=method, meaning=meaning, n_trials=n_trials, shares=None, reason=reason)
            for method, meaning in MEANINGS.items()
        )
    return _estimate_ped_anova(table, model.p_values), _estimate_fanova(model)


def _estimate_ped_anova(table: StudyTable, p_values: Mapping[str, float]) -> Importance:
    rows = (*table.complete(), *table.pruned())
    if len(table.complete()) < _n_top(len(rows)):
        rows = table.complete()
    usable = [row for row in rows if _is_on_scale(table, row)]
    used = [usable[i] for i in subsample(len(usable), _MAX_TRIALS)]
    rng = np.random.default_rng(0)
    with _quiet_optuna():
        trials = _to_optuna_trials(table, used)
        shares = _ped_anova_shares(table.direction, trials)
        resamples = [rng.integers(len(trials), size=len(trials)) for _ in range(_N_RESAMPLES)]
        draws = [_ped_anova_shares(table.direction, [trials[i] for i in indices]) for indices in resamples]
    n_pruned = sum(row.state == "PRUNED" for row in rows)
    verb = "counts" if n_pruned == 1 else "count"
    return Importance(
        method="PED-ANOVA",
        meaning=MEANINGS["PED-ANOVA"],
        n_trials=len(rows),
        n_used=len(used),
        shares=shares,
        reason=None if shares else NO_VARIANCE,
        n_resamples=_N_RESAMPLES,
        intervals=_intervals(shares, [draw for draw in draws if draw], p_values),
        p_values=p_values,
        n_left_out=len(table.complete()) + len(table.pruned()) - len(rows),
        bias_note=f"{format_count(n_pruned, 'pruned trial')} {verb} as not among the best." if n_pruned else None,
    )


def _estimate_fanova(model: Model) -> Importance:
    left_out, p_values = model.left_out, model.p_values
    draws = _relative_parts(model.decomposition) if model.decomposition is not None else []
    shares = _sorted(draws[0]) if draws else None
    return Importance(
        method="fANOVA",
        meaning=MEANINGS["fANOVA"],
        n_trials=model.surrogate.n_trials,
        n_used=len(model.surrogate.targets),
        shares=shares,
        reason=None if shares else NO_VARIANCE,
        n_resamples=max(0, len(draws) - 1),
        intervals=_intervals(shares, draws[1:], p_values),
        p_values=p_values,
        n_left_out=left_out.n,
        is_biased=left_out.is_biased,
        bias_note=_describe_pruned(model),
    )


def _describe_pruned(model: Model) -> str | None:
    n, sentences = model.sample.n_extrapolated, [model.left_out.bias_note or ""]
    if n:
        verb, values = ("counts", "value") if n == 1 else ("count", "values")
        curves = "its learning curve" if n == 1 else "their learning curves"
        sentences.insert(
            0,
            f"{format_count(n, 'pruned trial')} {verb} at the final {values} extrapolated from {curves}, weighted by "
            "the error of the extrapolation.",
        )
    return " ".join(filter(None, sentences)) or None


def _relative_parts(decomposition: Decomposition) -> list[Shares]:
    """Return, for each function, the variances of the single parameters as shares of their sum."""
    total = np.sum(list(decomposition.single.values()), axis=0)
    return [{name: float(part[i] / total[i]) for name, part in decomposition.single.items()} for i in range(len(total))]


class _Trials:
    """The part of an Optuna study that the evaluator uses. Building a study takes longer than evaluating it."""

    def __init__(self, direction: str, trials: Sequence[FrozenTrial]) -> None:
        self.directions = [optuna.study.StudyDirection[direction.upper()]]
        self._trials = list(trials)

    def get_trials(self, *_args: object, **_options: object) -> list[FrozenTrial]:
        return self._trials

    def _is_multi_objective(self) -> bool:
        return False


def _n_top(n_trials: int) -> int:
    return max(_MIN_TOP, math.ceil(_TOP_SHARE * n_trials))


def _is_on_scale(table: StudyTable, row: TrialRow) -> bool:
    """Return whether all params on logarithmic scales are positive, which other tools do not guarantee."""
    return all(
        float(row.params[name]) > 0
        for name, range_ in table.search_space.items()
        if name in row.params and getattr(range_, "log", False)
    )


def _ped_anova_shares(direction: Direction, trials: Sequence[FrozenTrial]) -> Shares | None:
    evaluator = PedAnovaImportanceEvaluator(target_quantile=min(0.5, _n_top(len(trials)) / len(trials)))
    parts: Shares = evaluator.evaluate(_Trials(direction, trials))  # type: ignore[arg-type]
    total = sum(parts.values())
    if not math.isfinite(total) or total <= 0:
        return None
    return _sorted({name: part / total for name, part in parts.items()})


def _intervals(
    shares: Shares | None, draws: Sequence[Shares], p_values: Mapping[str, float]
) -> Mapping[str, Interval] | None:
    """Return the 90% intervals of the draws; each includes the share itself, and 0 unless it is significant."""
    if shares is None or not draws:
        return None
    ends: dict[str, Interval] = {}
    for name, share in shares.items():
        drawn: FloatArray = np.array([draw.get(name, 0.0) for draw in draws])
        low, high = np.quantile(drawn, INTERVAL)
        is_significant = p_values.get(name, 0.0) <= SIGNIFICANCE_LEVEL
        ends[name] = (min(float(low), share) if is_significant else 0.0, max(float(high), share))
    return ends


def _to_optuna_trials(table: StudyTable, rows: Sequence[TrialRow]) -> list[FrozenTrial]:
    distributions = {
        name: _to_covering_distribution(range_, [row.params[name] for row in rows if name in row.params])
        for name, range_ in table.search_space.items()
    }
    # A pruned trial ranks behind every complete one; only the order counts.
    worst = max(table.loss(row.value) for row in rows if row.state == "COMPLETE") + 1
    return [
        FrozenTrial(
            number=number,
            trial_id=number,
            state=TrialState.COMPLETE,
            value=row.value if row.state == "COMPLETE" else table.direction.sign * worst,
            params={name: row.params[name] for name in distributions if name in row.params},
            distributions={name: distributions[name] for name in distributions if name in row.params},
            datetime_start=None,
            datetime_complete=None,
            user_attrs={},
            system_attrs={},
            intermediate_values={},
        )
        for number, row in enumerate(rows)
    ]


def _to_covering_distribution(range_: Range, tried: Sequence[Scalar]) -> BaseDistribution:
    """Return the distribution of a range, without its step, extended to the values that were tried outside of it."""
    # Not validated: other tools may have written values that a search space may not contain.
    if isinstance(range_, Categorical):
        added = dict.fromkeys(value for value in tried if value not in range_.choices)
        return to_distribution(Categorical.model_construct(choices=(*range_.choices, *added)))
    numbers = [float(value) for value in tried]
    low, high = min([range_.low, *numbers]), max([range_.high, *numbers])
    if isinstance(range_, Int):
        return to_distribution(Int.model_construct(low=int(low), high=int(high), log=range_.log))
    return to_distribution(Float.model_construct(low=low, high=high, log=range_.log))


def _sorted(shares: Shares) -> Shares:
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
