"""Owns all numbers that are read off a study, computed once. Leaves warnings to findings.py and words to report/."""

from collections.abc import Mapping
from dataclasses import dataclass

from hpopt.analysis.budget import BudgetDependence, measure_budget
from hpopt.analysis.cliff import Divergence, find_divergence
from hpopt.analysis.correlation import Correlation, correlate
from hpopt.analysis.cost import Cost, sum_cost
from hpopt.analysis.duplicates import DuplicateTrials, find_duplicates
from hpopt.analysis.extrapolation import Extrapolation, extrapolate_finals
from hpopt.analysis.importance import Importance, measure_importance
from hpopt.analysis.interactions import Interactions, measure_interactions
from hpopt.analysis.model import build_model, limit_blas_threads
from hpopt.analysis.noise import Noise, measure_noise
from hpopt.analysis.pruning import PruningCheck, check_pruning
from hpopt.analysis.sensitivity import Sensitivity, measure_sensitivity
from hpopt.analysis.trials import StudyTable


@dataclass(frozen=True, kw_only=True)
class Insights:
    """Every analysis of one study; `extrapolated` are what pruned trials would have come to, by trial."""

    cost: Cost
    extrapolated: Mapping[int, Extrapolation]
    noise: Noise | None
    importance: tuple[Importance, ...]
    interactions: Interactions
    sensitivity: Sensitivity
    divergence: Divergence
    correlations: tuple[Correlation, ...]
    budget: BudgetDependence
    pruning: PruningCheck
    duplicates: tuple[DuplicateTrials, ...]


@limit_blas_threads
def gather(table: StudyTable) -> Insights:
    """Analyse a study; of many trials some analyses look at a random part, and say so."""
    model = build_model(table)
    surrogate = model.surrogate if model else None
    return Insights(
        cost=sum_cost(table),
        extrapolated=extrapolate_finals(table),
        noise=measure_noise(table, surrogate),
        importance=measure_importance(table, model),
        interactions=measure_interactions(table, model),
        sensitivity=measure_sensitivity(table, model),
        divergence=find_divergence(table),
        correlations=correlate(table),
        budget=measure_budget(table, surrogate),
        pruning=check_pruning(table),
        duplicates=find_duplicates(table),
    )
