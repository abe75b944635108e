"""Owns how much each parameter matters, by two measures that answer different questions.

PED-ANOVA: Watanabe et al. 2023 (arXiv 2304.10255). fANOVA: Hutter et al. 2014 (ICML). Both are Optuna's.
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import BaseImportanceEvaluator, FanovaImportanceEvaluator, PedAnovaImportanceEvaluator

from hpopt.analysis.trials import StudyTable, TrialRow
from hpopt.search_space import Categorical, Int, Range

MIN_TRIALS = 10
NO_DIFFERENCE = "the trials show no difference that this measure could assign"
MEANINGS = {
    "PED-ANOVA": "what sets the best tenth of the trials apart from the rest",
    "fANOVA": "what explains the differences among all trials, the bad ones included",
}


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Shares of the parameters by one measure, the largest first, adding up to 1; None with the reason for it."""

    measure: str
    meaning: str
    n_trials: int
    shares: Mapping[str, float] | None
    reason: str | None = None


def measure_importance(table: StudyTable) -> tuple[Importance, ...]:
    """Measure by PED-ANOVA and fANOVA, in this order, from the complete trials."""
    rows = table.complete()
    reason = _why_not(table, rows)
    shares: dict[str, Mapping[str, float] | None] = dict.fromkeys(MEANINGS)
    if reason is None:
        with _quiet_optuna():
            study = _as_study(table, rows)
            shares["PED-ANOVA"] = _shares(study, PedAnovaImportanceEvaluator())
            shares["fANOVA"] = _shares(study, FanovaImportanceEvaluator(seed=0))
    return tuple(
        Importance(
            measure=measure,
            meaning=meaning,
            n_trials=len(rows),
            shares=shares[measure],
            reason=None if shares[measure] else reason or NO_DIFFERENCE,
        )
        for measure, meaning in MEANINGS.items()
    )


def _why_not(table: StudyTable, rows: tuple[TrialRow, ...]) -> str | None:
    if not table.search_space:
        return "the study searches no parameter"
    if len(rows) < MIN_TRIALS:
        return f"not enough data: {MIN_TRIALS} complete trials are needed, there are {len(rows)}"
    if len({row.value for row in rows}) == 1:
        return "all complete trials have the same value"
    return None


def _as_study(table: StudyTable, rows: tuple[TrialRow, ...]) -> optuna.Study:
    ranges = {name: _distribution(name, range_, rows) for name, range_ in table.search_space.items()}
    study = optuna.create_study(storage=optuna.storages.InMemoryStorage(), direction=table.direction)
    study.add_trials(
        [
            optuna.create_trial(
                value=row.value,
                params={name: row.params[name] for name in ranges if name in row.params},
                distributions={name: ranges[name] for name in ranges if name in row.params},
            )
            for row in rows
        ]
    )
    return study


def _distribution(name: str, range_: Range, rows: tuple[TrialRow, ...]) -> BaseDistribution:
    """Give a distribution that holds the range and whatever was tried outside of it (enqueued trials may be)."""
    tried = [row.params[name] for row in rows if name in row.params]
    if isinstance(range_, Categorical):
        return CategoricalDistribution([*range_.choices, *dict.fromkeys(v for v in tried if v not in range_.choices)])
    numbers = [float(value) for value in tried]
    low, high = min([range_.low, *numbers]), max([range_.high, *numbers])
    if isinstance(range_, Int):
        return IntDistribution(int(low), int(high), log=range_.log)
    return FloatDistribution(low, high, log=range_.log)


def _shares(study: optuna.Study, evaluator: BaseImportanceEvaluator) -> Mapping[str, float] | None:
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    total = sum(shares.values())
    return dict(sorted(shares.items(), key=lambda item: -item[1])) if math.isfinite(total) and total > 0 else None


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
