"""Owns how much each parameter matters, by two measures that answer different questions, and how sure that is.

PED-ANOVA is Optuna's (Watanabe et al. 2023, arXiv 2304.10255). fANOVA (Hutter et al. 2014) is taken of a Gaussian
process and not of a forest: what it leaves open can be drawn, and its integrals are exact.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from hpopt.analysis.anova import Decomposition
from hpopt.analysis.axes import FloatArray
from hpopt.analysis.dependence import SIGNIFICANCE_LEVEL
from hpopt.analysis.model import Model, build_model, limit_blas_threads
from hpopt.analysis.sample import completed
from hpopt.analysis.surrogate import reason_not_fitted
from hpopt.analysis.trials import StudyTable, TrialRow
from hpopt.search.space import Categorical, Int, Range

NO_DIFFERENCE = "the trials show no difference that this measure could assign"
MEANINGS = {
    "PED-ANOVA": "what sets the best tenth of the trials (five at least) apart from the rest",
    "fANOVA": "what explains the differences over the whole search space, the bad regions included",
}
INTERVAL = (0.05, 0.95)
# Optuna's PED-ANOVA takes a tenth of a millisecond for each trial.
_N_PED_RESAMPLES = 40
_N_MOST = 300
_TOP_SHARE, _TOP_LEAST = 0.1, 5

Interval = tuple[float, float]
Shares = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Shares of the parameters by one measure, the largest first, adding up to 1; None with the reason for it.

    `intervals` are of 90%: for PED-ANOVA of `n_resamples` resamples of the trials, for fANOVA of so many functions that
    the trials do not rule out. `p_values` say how likely the trials would be if no
    parameter mattered, one error rate for all; `matters` are the parameters where that is below 5%. `bias_sentence`
    says what becomes of pruned trials. `n_used` trials of `n_trials` were looked at.
    """

    measure: str
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
    bias_sentence: str | None = None

    @property
    def matters(self) -> tuple[str, ...]:
        """Name the parameters that matter by more than chance, the largest share first."""
        return tuple(name for name in self.shares or () if (self.p_values or {}).get(name, 1.0) <= SIGNIFICANCE_LEVEL)

    @property
    def stands_out(self) -> tuple[str, ...]:
        """Name the parameters that matter, and more than an equal share even at the low end of their interval."""
        equal = 1 / len(self.shares) if self.shares else 0.0
        return tuple(name for name in self.matters if (self.intervals or {})[name][0] > equal)


@limit_blas_threads
def measure_importance(table: StudyTable, model: Model | None = None) -> tuple[Importance, ...]:
    """Measure by PED-ANOVA and fANOVA, in this order; a model that is there already need not be built.

    For PED-ANOVA a pruned trial is one that is not among the best. For fANOVA it counts at its extrapolated value.
    """
    model = model or build_model(table)
    if model is None:
        reason = reason_not_fitted(table, completed(table))
        n_trials = len(table.complete())
        return tuple(
            Importance(measure=measure, meaning=meaning, n_trials=n_trials, shares=None, reason=reason)
            for measure, meaning in MEANINGS.items()
        )
    return _measure_ped_anova(table, model.p_values), _measure_fanova(model)


def _measure_ped_anova(table: StudyTable, p_values: Mapping[str, float]) -> Importance:
    rows = (*table.complete(), *table.pruned())
    if len(table.complete()) < _n_top(len(rows)):
        rows = table.complete()
    used = _thin(tuple(row for row in rows if _is_placeable(table, row)))
    rng = np.random.default_rng(0)
    with _quiet_optuna():
        trials = _as_trials(table, used)
        shares = _ped_anova(table, trials)
        draws = [_ped_anova(table, [trials[i] for i in _redraw(rng, len(trials))]) for _ in range(_N_PED_RESAMPLES)]
    n_pruned = sum(row.state == "PRUNED" for row in rows)
    return Importance(
        measure="PED-ANOVA",
        meaning=MEANINGS["PED-ANOVA"],
        n_trials=len(rows),
        n_used=len(used),
        shares=shares,
        reason=None if shares else NO_DIFFERENCE,
        n_resamples=_N_PED_RESAMPLES,
        intervals=_intervals(shares, [draw for draw in draws if draw], p_values),
        p_values=p_values,
        n_left_out=len(table.complete()) + len(table.pruned()) - len(rows),
        bias_sentence=f"{n_pruned} pruned trials count as not among the best." if n_pruned else None,
    )


def _measure_fanova(model: Model) -> Importance:
    left_out, p_values = model.left_out, model.p_values
    draws = _relative(model.decomposition) if model.decomposition is not None else []
    shares = _sorted(draws[0]) if draws else None
    return Importance(
        measure="fANOVA",
        meaning=MEANINGS["fANOVA"],
        n_trials=model.surrogate.n_trials,
        n_used=len(model.surrogate.targets),
        shares=shares,
        reason=None if shares else NO_DIFFERENCE,
        n_resamples=max(0, len(draws) - 1),
        intervals=_intervals(shares, draws[1:], p_values),
        p_values=p_values,
        n_left_out=left_out.n,
        is_biased=left_out.is_biased,
        bias_sentence=_tell_pruned(model),
    )


def _tell_pruned(model: Model) -> str | None:
    n, parts = model.sample.n_extrapolated, [model.left_out.bias_sentence or ""]
    if n:
        who = f"{n} pruned trials count at the final values" if n > 1 else "1 pruned trial counts at the final value"
        whose = "their learning curves" if n > 1 else "its learning curve"
        parts.insert(0, f"{who} extrapolated from {whose}, weighted by the error of that.")
    return " ".join(filter(None, parts)) or None


def _relative(decomposition: Decomposition) -> list[Shares]:
    """Give each draw's parts of the single parameters as shares of their sum."""
    total = np.sum(list(decomposition.single.values()), axis=0)
    return [{name: float(part[i] / total[i]) for name, part in decomposition.single.items()} for i in range(len(total))]


class _Trials:
    """What the evaluator asks of an Optuna study. Making one of a hundred trials takes longer than the evaluation."""

    def __init__(self, direction: str, trials: Sequence[FrozenTrial]) -> None:
        self.directions = [optuna.study.StudyDirection[direction.upper()]]
        self._trials = list(trials)

    def get_trials(self, *_args: object, **_options: object) -> list[FrozenTrial]:
        return self._trials

    def _is_multi_objective(self) -> bool:
        return False


def _n_top(n_trials: int) -> int:
    return max(_TOP_LEAST, math.ceil(_TOP_SHARE * n_trials))


def _thin(rows: tuple[TrialRow, ...]) -> tuple[TrialRow, ...]:
    if len(rows) <= _N_MOST:
        return rows
    return tuple(rows[i] for i in np.sort(np.random.default_rng(0).choice(len(rows), _N_MOST, replace=False)))


def _is_placeable(table: StudyTable, row: TrialRow) -> bool:
    """Say whether all params have places on their scales: other tools may add a 0 to a range of logarithms."""
    return all(
        float(row.params[name]) > 0
        for name, range_ in table.search_space.items()
        if name in row.params and getattr(range_, "log", False)
    )


def _redraw(rng: np.random.Generator, n: int) -> list[int]:
    return [int(i) for i in rng.integers(n, size=n)]


def _ped_anova(table: StudyTable, trials: Sequence[FrozenTrial]) -> Shares | None:
    evaluator = PedAnovaImportanceEvaluator(target_quantile=min(0.5, _n_top(len(trials)) / len(trials)))
    parts: Shares = evaluator.evaluate(_Trials(table.direction, trials))  # type: ignore[arg-type]
    total = sum(parts.values())
    if not math.isfinite(total) or total <= 0:
        return None
    return _sorted({name: part / total for name, part in parts.items()})


def _intervals(
    shares: Shares | None, draws: Sequence[Shares], p_values: Mapping[str, float]
) -> Mapping[str, Interval] | None:
    """Give the middle 90% of the draws; it holds the share itself, and 0 where the parameter may not matter at all."""
    if shares is None or not draws:
        return None
    ends: dict[str, Interval] = {}
    for name, share in shares.items():
        drawn: FloatArray = np.array([draw.get(name, 0.0) for draw in draws])
        low, high = np.quantile(drawn, INTERVAL)
        is_chance = p_values.get(name, 0.0) > SIGNIFICANCE_LEVEL
        ends[name] = (0.0 if is_chance else min(float(low), share), max(float(high), share))
    return ends


def _as_trials(table: StudyTable, rows: Sequence[TrialRow]) -> list[FrozenTrial]:
    ranges = {name: _distribution(name, range_, rows) for name, range_ in table.search_space.items()}
    # A pruned trial ranks behind every complete one; the distance does not matter, since only the order counts.
    worst = max(table.loss(row.value) for row in rows if row.state == "COMPLETE") + 1
    return [
        FrozenTrial(
            number=number,
            trial_id=number,
            state=TrialState.COMPLETE,
            value=row.value if row.state == "COMPLETE" else table.direction.sign * worst,
            params={name: row.params[name] for name in ranges if name in row.params},
            distributions={name: ranges[name] for name in ranges if name in row.params},
            datetime_start=None,
            datetime_complete=None,
            user_attrs={},
            system_attrs={},
            intermediate_values={},
        )
        for number, row in enumerate(rows)
    ]


def _distribution(name: str, range_: Range, rows: Sequence[TrialRow]) -> BaseDistribution:
    """Give a distribution that holds the range and whatever was tried outside of it (enqueued trials may be)."""
    tried = [row.params[name] for row in rows if name in row.params]
    if isinstance(range_, Categorical):
        return CategoricalDistribution([*range_.choices, *dict.fromkeys(v for v in tried if v not in range_.choices)])
    numbers = [float(value) for value in tried]
    low, high = min([range_.low, *numbers]), max([range_.high, *numbers])
    if isinstance(range_, Int):
        return IntDistribution(int(low), int(high), log=range_.log)
    return FloatDistribution(low, high, log=range_.log)


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
