"""Owns whether the best value of a parameter depends on how long one trains.

At each fraction of the schedule all trials that came so far are modelled, the pruned ones included: up to there they
are as good as any. Those that stopped before count at extrapolated values. The optimum is that of the
profile through the best configuration at the end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import numpy.typing as npt

from hpopt.analysis.axes import Axis, Design, FloatArray, build_design
from hpopt.analysis.dependence import SIGNIFICANCE_LEVEL, assess_parameters, normal_scores
from hpopt.analysis.sample import with_extrapolated
from hpopt.analysis.sensitivity import profile_points
from hpopt.analysis.surrogate import MIN_TRIALS, Surrogate, fit
from hpopt.analysis.trials import CurvePoint, StudyTable, comparison_fractions, evaluations_at
from hpopt.hyperparameters import Scalar

N_RESAMPLES = 100
_INTERVAL = (0.05, 0.95)
# An optimum has moved where it has moved in so many of the resamples, in one direction.
_SURE = 0.975


@dataclass(frozen=True, kw_only=True)
class BudgetOptimum:
    """The optimum at a fraction of the schedule, with its 90% interval; of values without an order, no interval.

    `step` and `tokens` are those of the median trial; 0 tokens where the objective counts none.
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
    """A parameter's optimum by budget, the smallest first.

    `p_value` is how likely the ranking of the trials would change so much with the budget if that had nothing to do
    with any parameter; `moved` is the share of resamples in which the optimum moves from the first budget to the last
    in the direction in which it mostly does.
    """

    name: str
    optima: tuple[BudgetOptimum, ...]
    p_value: float
    moved: float

    @property
    def is_drifting(self) -> bool:
        """Say whether the optimum moves with the budget by more than chance."""
        return self.p_value <= SIGNIFICANCE_LEVEL and self.moved >= _SURE


@dataclass(frozen=True, kw_only=True)
class BudgetDependence:
    """The parameters in the order of the study; none with the reason for it."""

    parameters: tuple[ParameterBudget, ...]
    reason: str | None = None


@dataclass(frozen=True)
class _Budget:
    """The trials that came to a fraction, and the profiles of all parameters there: a row a resample."""

    fraction: float
    points: Mapping[int, CurvePoint]
    surrogate: Surrogate
    profiles: Sequence[FloatArray]


def measure_budget(table: StudyTable, surrogate: Surrogate | None) -> BudgetDependence:
    """Compare the optima at the fractions of the schedule with those at its end."""
    at_fractions = {fraction: evaluations_at(table, fraction) for fraction in (*comparison_fractions(table), 1.0)}
    enough = {fraction: points for fraction, points in at_fractions.items() if len(points) >= MIN_TRIALS}
    if surrogate is None or 1.0 not in enough or len(enough) == 1:
        counts = ", ".join(f"{len(points)} at {fraction:.0%}" for fraction, points in at_fractions.items())
        needed = f"not enough data: {MIN_TRIALS} trials are needed at two budgets at least, the last among them"
        return BudgetDependence(parameters=(), reason=f"{needed}; of the schedule there are {counts}")
    center = surrogate.incumbent()
    budgets = [_profile(table, fraction, points, center) for fraction, points in enough.items()]
    p_values = _assess(table, budgets[0].points, budgets[-1].points)
    found = [
        _follow(axis, i, budgets, table.direction.sign, p_values[axis.name]) for i, axis in enumerate(surrogate.axes)
    ]
    return BudgetDependence(parameters=tuple(found))


def _profile(table: StudyTable, fraction: float, points: Mapping[int, CurvePoint], center: FloatArray) -> _Budget:
    known = {trial: point.value for trial, point in points.items() if point.value is not None}
    sample = with_extrapolated(table, known)
    design = sample.design
    surrogate = fit(design, sample.values, sign=table.direction.sign, stds=sample.stds)
    crosses = [
        surrogate.kernel(profile_points(axis, i, center), surrogate.design.places) for i, axis in enumerate(design.axes)
    ]
    weights = _weights(table, surrogate.design)
    alphas = [surrogate.solve(surrogate.targets)]
    alphas += [surrogate.solve(surrogate.targets, weight) for weight in weights]
    return _Budget(fraction, points, surrogate, [(cross @ np.array(alphas).T).T for cross in crosses])


def _weights(table: StudyTable, design: Design) -> FloatArray:
    """Draw weights of the Bayesian bootstrap: a trial has the same at all budgets, since its noise is the same."""
    numbers = np.array([row.trial for row in design.rows])
    drawn = np.random.default_rng(0).exponential(size=(N_RESAMPLES, max(row.trial for row in table.trials) + 1))
    weights: FloatArray = drawn[:, numbers] / drawn[:, numbers].mean(axis=1, keepdims=True)
    return weights


def _values_at(table: StudyTable, points: Mapping[int, CurvePoint]) -> tuple[Design, FloatArray]:
    design = build_design(table, [row for row in table.trials if row.trial in points])
    return design, np.array([points[row.trial].value for row in design.rows], dtype=float)


def _assess(table: StudyTable, early: Mapping[int, CurvePoint], late: Mapping[int, CurvePoint]) -> Mapping[str, float]:
    """Test whether the change in rank of a trial depends on a parameter."""
    common = {trial: point for trial, point in early.items() if trial in late}
    if len(common) < MIN_TRIALS:
        return dict.fromkeys(table.search_space, 1.0)
    design, before = _values_at(table, common)
    after = np.array([late[row.trial].value for row in design.rows], dtype=float)
    return assess_parameters(design, normal_scores(after) - normal_scores(before))


def _follow(axis: Axis, index: int, budgets: Sequence[_Budget], sign: float, p_value: float) -> ParameterBudget:
    optima = [np.argmin(sign * budget.profiles[index], axis=1) for budget in budgets]
    shift = axis.nodes[optima[-1][1:]] - axis.nodes[optima[0][1:]]
    moved = max((shift > 0).mean(), (shift < 0).mean()) if axis.is_ordered else (shift != 0).mean()
    return ParameterBudget(
        name=axis.name,
        optima=tuple(_optimum(axis, budget, optimum) for budget, optimum in zip(budgets, optima, strict=True)),
        p_value=p_value,
        moved=float(moved),
    )


def _optimum(axis: Axis, budget: _Budget, optima: npt.NDArray[np.int64]) -> BudgetOptimum:
    places = axis.nodes[optima]
    low, high = np.quantile(places, _INTERVAL)
    return BudgetOptimum(
        fraction=budget.fraction,
        step=round(median(point.step for point in budget.points.values())),
        tokens=round(median(point.tokens for point in budget.points.values())),
        n_trials=len(budget.points),
        best=axis.value_at(places[0]),
        low=axis.value_at(low) if axis.is_ordered else None,
        high=axis.value_at(high) if axis.is_ordered else None,
    )
