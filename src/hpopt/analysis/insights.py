"""Compute all analyses of a study."""

from collections.abc import Mapping
from dataclasses import dataclass

from hpopt.analysis.arms import ArmsComparison, compare_arms
from hpopt.analysis.budget import BudgetDependence, estimate_budget_dependence
from hpopt.analysis.cliff import Divergence, find_divergence
from hpopt.analysis.correlation import Correlation, correlate
from hpopt.analysis.cost import Cost, sum_cost
from hpopt.analysis.duplicates import DuplicateTrials, find_duplicates
from hpopt.analysis.extrapolation import Extrapolation, extrapolate_finals
from hpopt.analysis.importance import Importance, estimate_importance
from hpopt.analysis.interactions import Interactions, estimate_interactions
from hpopt.analysis.model import build_model, limit_blas_threads
from hpopt.analysis.noise import Noise, estimate_noise
from hpopt.analysis.pruning import PruningCheck, check_pruning
from hpopt.analysis.sensitivity import Sensitivity, estimate_sensitivity
from hpopt.analysis.trials import StudyTable


@dataclass(frozen=True, kw_only=True)
class Insights:
    """All analyses of one study; `extrapolated` are the extrapolated final values of pruned trials, by trial."""

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
    comparison: ArmsComparison | None = None


@limit_blas_threads
def compute_insights(table: StudyTable) -> Insights:
    """Analyse a study; analyses that use a random part of many trials report its size."""
    model = build_model(table)
    surrogate = model.surrogate if model else None
    return Insights(
        cost=sum_cost(table),
        extrapolated=extrapolate_finals(table),
        noise=estimate_noise(table, surrogate),
        importance=estimate_importance(table, model),
        interactions=estimate_interactions(table, model),
        sensitivity=estimate_sensitivity(table, model),
        divergence=find_divergence(table),
        correlations=correlate(table),
        budget=estimate_budget_dependence(table, surrogate),
        pruning=check_pruning(table),
        duplicates=find_duplicates(table),
        comparison=compare_arms(table),
    )
