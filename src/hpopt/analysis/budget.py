"""Test whether the best value of a parameter depends on the training budget.

At each fraction of the schedule, a surrogate is fitted to the values that trials had there. Trials that were pruned
later count like all others, those that were pruned before at extrapolated values. The optimum is that of the profile
through the configuration that is best at the end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from hpopt.analysis.axes import Axis, Design, FloatArray, IntArray, build_design
from hpopt.analysis.dependence import INTERVAL, SIGNIFICANCE_LEVEL, assess_parameters, normal_scores
from hpopt.analysis.sample import with_extrapolated
from hpopt.analysis.sensitivity import profile_points
from hpopt.analysis.surrogate import MIN_TRIALS, Surrogate, fit
from hpopt.analysis.trials import CurvePoint, StudyTable, comparison_fractions, evaluations_at
from hpopt.hyperparameters import Scalar

N_RESAMPLES = 100
# An optimum has moved if it moves in one direction in at least this share of the resamples.
_MIN_MOVED_SHARE = 0.975


@dataclass(frozen=True, kw_only=True)
class BudgetOptimum:
    """The optimum at a fraction of the schedule, with its 90% interval from `low` to `high`; None without an order.

    `step` and `tokens` are those of the median trial; `tokens` is 0 if the objective counts none.
    """

    fraction: float
    step: int
    tokens: int
    n_trials: int
    best: Scalar
    low: Scalar | None
    high: Scalar | None


@dataclass(frozen=True, kw_only=True)
class ParameterBudget:
    """A parameter's optima, the smallest budget first.

    `p_value` is that of a test whether the change in the ranking of the trials from the first budget to the last
    depends on the parameter, corrected for the number of parameters. `moved_share` is the share of resamples in which
    the optimum moves from the first budget to the last, in the more frequent direction.
    """

    name: str
    optima: tuple[BudgetOptimum, ...]
    p_value: float
    moved_share: float

    @property
    def is_budget_dependent(self) -> bool:
        """Whether the optimum moves significantly with the budget."""
        return self.p_value <= SIGNIFICANCE_LEVEL and self.moved_share >= _MIN_MOVED_SHARE


@dataclass(frozen=True, kw_only=True)
class BudgetDependence:
    """The parameters in the order of the search space; if there are none, `reason` states why."""

    parameters: tuple[ParameterBudget, ...]
    reason: str | None = None


@dataclass(frozen=True)
class _Budget:
    """The evaluations at a fraction, by trial, and for each parameter the profiles (1 + N_RESAMPLES, G) there."""

    fraction: float
    points: Mapping[int, CurvePoint]
    profiles: Sequence[FloatArray]


def estimate_budget_dependence(table: StudyTable, surrogate: Surrogate | None) -> BudgetDependence:
    """Compare the optima at fractions of the schedule with those at its end."""
    at_fractions = {fraction: evaluations_at(table, fraction) for fraction in (*comparison_fractions(table), 1.0)}
    sufficient = {fraction: points for fraction, points in at_fractions.items() if len(points) >= MIN_TRIALS}
    if surrogate is None or 1.0 not in sufficient or len(sufficient) == 1:
        counts = ", ".join(f"{len(points)} at {fraction:.0%}" for fraction, points in at_fractions.items())
        needed = f"{MIN_TRIALS} trials are needed at the end of the schedule and at one fraction before"
        return BudgetDependence(parameters=(), reason=f"not enough data: {needed}; there are {counts}")
    center = surrogate.incumbent()
    budgets = [_profile(table, fraction, points, center) for fraction, points in sufficient.items()]
    p_values = _assess_changes(table, budgets[0].points, budgets[-1].points)
    sign = table.direction.sign
    return BudgetDependence(
        parameters=tuple(
            _compare_optima(axis, i, budgets, sign, p_values[axis.name]) for i, axis in enumerate(surrogate.axes)
        )
    )


def _profile(table: StudyTable, fraction: float, points: Mapping[int, CurvePoint], center: FloatArray) -> _Budget:
    measured = {trial: point.value for trial, point in points.items() if point.value is not None}
    sample = with_extrapolated(table, measured)
    surrogate = fit(sample.design, sample.values, sign=table.direction.sign, stds=sample.stds)
    crosses = [
        surrogate.kernel(profile_points(axis, i, center), surrogate.design.points)
        for i, axis in enumerate(sample.design.axes)
    ]
    alphas = [surrogate.solve(surrogate.targets)]
    alphas += [surrogate.solve(surrogate.targets, weights) for weights in _draw_weights(table, surrogate.design)]
    return _Budget(fraction, points, [(cross @ np.array(alphas).T).T for cross in crosses])


def _draw_weights(table: StudyTable, design: Design) -> FloatArray:
    """Draw weights (N_RESAMPLES, N) of the Bayesian bootstrap (Rubin 1981).

    A trial has the same weights at all budgets, since its noise is the same.
    """
    numbers = np.array([row.trial for row in design.rows])
    drawn = np.random.default_rng(0).exponential(size=(N_RESAMPLES, max(row.trial for row in table.trials) + 1))
    weights: FloatArray = drawn[:, numbers] / drawn[:, numbers].mean(axis=1, keepdims=True)
    return weights


def _assess_changes(
    table: StudyTable, early: Mapping[int, CurvePoint], late: Mapping[int, CurvePoint]
) -> Mapping[str, float]:
    """Return, by parameter, the p-value of an effect on the change in rank of the trials."""
    common = early.keys() & late.keys()
    if len(common) < MIN_TRIALS:
        return dict.fromkeys(table.search_space, 1.0)
    design = build_design(table, [row for row in table.trials if row.trial in common])
    before, after = (
        np.array([points[row.trial].value for row in design.rows], dtype=float) for points in (early, late)
    )
    return assess_parameters(design, normal_scores(after) - normal_scores(before))


def _compare_optima(axis: Axis, index: int, budgets: Sequence[_Budget], sign: float, p_value: float) -> ParameterBudget:
    optima = [np.argmin(sign * budget.profiles[index], axis=1) for budget in budgets]
    shift = axis.nodes[optima[-1][1:]] - axis.nodes[optima[0][1:]]
    moved_share = max((shift > 0).mean(), (shift < 0).mean()) if axis.is_ordered else (shift != 0).mean()
    return ParameterBudget(
        name=axis.name,
        optima=tuple(_optimum(axis, budget, nodes) for budget, nodes in zip(budgets, optima, strict=True)),
        p_value=p_value,
        moved_share=float(moved_share),
    )


def _optimum(axis: Axis, budget: _Budget, optima: IntArray) -> BudgetOptimum:
    """Summarize the optima (1 + N_RESAMPLES,), as indices of nodes: that of the surrogate first."""
    coordinates = axis.nodes[optima]
    low, high = np.quantile(coordinates, INTERVAL)
    return BudgetOptimum(
        fraction=budget.fraction,
        step=round(median(point.step for point in budget.points.values())),
        tokens=round(median(point.tokens for point in budget.points.values())),
        n_trials=len(budget.points),
        best=axis.value_at(coordinates[0]),
        low=axis.value_at(low) if axis.is_ordered else None,
        high=axis.value_at(high) if axis.is_ordered else None,
    )
