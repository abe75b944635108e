"""Compute all analyses of a study."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hpopt.analysis.arms import ArmsComparison, compare_arms
from hpopt.analysis.budget import BudgetDependence, estimate_budget_dependence
from hpopt.analysis.cliff import Divergence, find_divergence
from hpopt.analysis.conditional import Part, split_table
from hpopt.analysis.correlation import Correlation, correlate
from hpopt.analysis.cost import Cost, sum_cost
from hpopt.analysis.duplicates import DuplicateTrials, find_duplicates
from hpopt.analysis.extrapolation import Extrapolation, extrapolate_finals
from hpopt.analysis.importance import Importance, estimate_importance
from hpopt.analysis.interactions import Interactions, estimate_interactions
from hpopt.analysis.model import Model, build_model, limit_blas_threads
from hpopt.analysis.noise import Noise, estimate_noise
from hpopt.analysis.one_factor import OneFactor, analyze_one_factor
from hpopt.analysis.pruning import PruningCheck, check_pruning
from hpopt.analysis.sensitivity import Sensitivity, estimate_sensitivity
from hpopt.analysis.surrogate import Surrogate
from hpopt.analysis.trials import StudyTable


@dataclass(frozen=True, kw_only=True)
class ConditionalInsights:
    """The importance of all parameters that are active in the trials that meet a condition.

    `parameters` are those that have the condition, `where` is it in words, with the number of complete trials. `reason`
    states why nothing could be estimated, if so.
    """

    where: str
    parameters: tuple[str, ...]
    n_trials: int
    importance: tuple[Importance, ...]
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Insights:
    """All analyses of one study; `extrapolated` are the extrapolated final values of pruned trials, by trial.

    `conditional` has an entry for each condition of parameters. The effects of these are among those of the others,
    estimated from the trials that meet the condition; `importance` is that of the parameters without a condition.
    """

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
    conditional: tuple[ConditionalInsights, ...] = ()
    comparison: ArmsComparison | None = None
    one_factor: OneFactor | None = None


@limit_blas_threads
def compute_insights(table: StudyTable) -> Insights:
    """Analyse a study; analyses that use a random part of many trials report its size."""
    whole, *parts = split_table(table)
    model = build_model(whole.table)
    models = [build_model(part.table) for part in parts]
    insights = _analyze(table, whole.table, model, _find_least_noisy([model, *models]))
    for part, part_model in zip(parts, models, strict=True):
        insights = _add_part(insights, part, part_model)
    return insights


def _analyze(table: StudyTable, whole: StudyTable, model: Model | None, least_noisy: Surrogate | None) -> Insights:
    """Analyse a study: all of it, or the parameters without a condition, which `whole` has alone."""
    return Insights(
        cost=sum_cost(table),
        extrapolated=extrapolate_finals(table),
        noise=estimate_noise(table, least_noisy),
        importance=estimate_importance(whole, model),
        interactions=estimate_interactions(whole, model),
        sensitivity=estimate_sensitivity(whole, model),
        divergence=find_divergence(whole),
        correlations=correlate(whole),
        budget=estimate_budget_dependence(whole, model.surrogate if model else None),
        pruning=check_pruning(table),
        duplicates=find_duplicates(table),
        comparison=compare_arms(table),
        one_factor=analyze_one_factor(table),
    )


def _find_least_noisy(models: Sequence[Model | None]) -> Surrogate | None:
    """Return the surrogate with the least noise: the others lack parameters, whose effects are noise to them."""
    surrogates = [model.surrogate for model in models if model is not None]
    return min(surrogates, key=lambda surrogate: surrogate.noise_std, default=None)


def _add_part(insights: Insights, part: Part, model: Model | None) -> Insights:
    """Add the effects of the parameters that have the condition of a part, and of pairs with one of them."""
    if not part.parameters:
        return insights
    own = set(part.parameters)
    sensitivity = estimate_sensitivity(part.table, model)
    parameters = [replace(one, where=part.where) for one in sensitivity.parameters if one.name in own]
    interactions = estimate_interactions(part.table, model)
    pairs = [pair for pair in interactions.pairs if own & {*pair.pair}]
    divergence, correlations = find_divergence(part.table), correlate(part.table)
    budget = estimate_budget_dependence(part.table, model.surrogate if model else None)
    conditional = ConditionalInsights(
        where=part.where,
        parameters=part.parameters,
        n_trials=sensitivity.n_trials,
        importance=estimate_importance(part.table, model),
        reason=sensitivity.reason,
    )
    merged = sorted((*insights.sensitivity.parameters, *parameters), key=lambda one: -(one.ratio or 0.0))
    return replace(
        insights,
        sensitivity=replace(insights.sensitivity, parameters=tuple(merged)),
        interactions=replace(
            insights.interactions,
            pairs=tuple(sorted((*insights.interactions.pairs, *pairs), key=lambda pair: -pair.share)),
        ),
        divergence=replace(
            insights.divergence,
            cliffs=(*insights.divergence.cliffs, *(cliff for cliff in divergence.cliffs if cliff.name in own)),
        ),
        correlations=(*insights.correlations, *(one for one in correlations if one.parameter in own)),
        budget=replace(
            insights.budget,
            parameters=(*insights.budget.parameters, *(one for one in budget.parameters if one.name in own)),
        ),
        conditional=(*insights.conditional, conditional),
    )
