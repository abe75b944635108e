"""Build the charts of parameters: sensitivity, importance, interactions, training length and correlations.

Each function returns None if there is nothing to draw.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hpopt.analysis.budget import BudgetDependence, ParameterBudget
from hpopt.analysis.cliff import Cliff
from hpopt.analysis.correlation import Correlation
from hpopt.analysis.importance import Importance
from hpopt.analysis.insights import Insights
from hpopt.analysis.interactions import Interaction, Interactions
from hpopt.analysis.sensitivity import ParameterSensitivity
from hpopt.analysis.trials import StudyTable, TrialRow
from hpopt.hyperparameters import HYPERPARAMETERS, Scalar
from hpopt.reporting import selection
from hpopt.reporting.chart import (
    Axis,
    Band,
    Bars,
    Chart,
    Coordinate,
    Heatmap,
    Line,
    Mark,
    Panel,
    Points,
    Style,
    VerticalSpan,
)
from hpopt.reporting.selection import BEST, COMPLETE, MUTED, ValueRange
from hpopt.reporting.sentences import describe_parameter
from hpopt.reporting.trial_charts import BEST_POINTS, COMPLETE_POINTS, PRUNED_POINTS, build_metric_axis, draw_trials
from hpopt.search.space import Categorical

_N_PAIRS = 10
# Points of each kind in a panel: the dashboard sends all panels with each poll.
_N_POINTS = 200
_STARRED_BELOW = 0.05
_EXTRAPOLATED = " Pruned trials are shown at final values extrapolated from their learning curves."
_CURVE = Style(color=COMPLETE, label="model mean", width=2.2)
_BAND = Style(color=COMPLETE, label="90% band", opacity=0.16)
_GOOD = Style(color=BEST, label="good range", opacity=0.13)
_CLIFF = Style(color=MUTED, label="diverges", opacity=0.3)


def draw_sensitivity(table: StudyTable, insights: Insights) -> Chart | None:
    """Draw the metric over each parameter: the trials, and the model's mean with its 90% band."""
    shown = _choose_trials(table, insights)
    names = [name for name in table.search_space if any(name in row.params for row in table.trials)]
    if shown is None or not names:
        return None
    sensitivity = insights.sensitivity
    fitted = {parameter.name: parameter for parameter in sensitivity.parameters}
    order = [*fitted, *(name for name in names if name not in fitted)]
    caption = f"Values of the trials. No curves: {sensitivity.reason}."
    if fitted:
        caption = (
            "Model of the metric over each parameter, with the others as in the best configuration. Good range: model "
            "mean within one run-to-run standard deviation of its optimum."
            + _EXTRAPOLATED
            * bool(insights.extrapolated)
        )
    panels = tuple(_sensitivity_panel(table, insights, name, fitted.get(name), shown) for name in order)
    return Chart(name="sensitivity", title="Sensitivity to each parameter", panels=panels, caption=caption)


def draw_importance(insights: Insights) -> Chart | None:
    """Draw the shares of the parameters by each measure, with their 90% intervals.

    Conditional parameters have a panel for each condition, with all parameters that are active there.
    """
    conditional = {f" where {part.where}": part.importance for part in insights.conditional}
    panels = [
        _importance_panel(f"share{where}", each) for where, each in {"": insights.importance, **conditional}.items()
    ]
    drawn = tuple(panel for panel in panels if panel is not None)
    caption = "Share of each parameter, pruned trials included. Whiskers: 90% intervals."
    return (
        Chart(name="importance", title="Importance by two measures", panels=drawn, caption=caption) if drawn else None
    )


def _importance_panel(title: str, measures: Sequence[Importance]) -> Panel | None:
    drawn = [measure for measure in measures if measure.shares]
    if not drawn:
        return None
    total = {name: sum((measure.shares or {}).get(name, 0) for measure in drawn) for name in drawn[0].shares or {}}
    names = tuple(sorted(total, key=lambda name: -total[name]))
    bars = [
        Bars(
            lengths={name: (measure.shares or {}).get(name, 0.0) for name in names},
            intervals=measure.intervals or {},
            style=Style(color=color, label=measure.method),
            is_hatched=i > 0,
        )
        for i, (measure, color) in enumerate(zip(drawn, (COMPLETE, BEST), strict=False))
    ]
    x = Axis(title=title, format="percent", limits=(0, 1.08))
    return Panel(x=x, y=Axis(categories=names), marks=tuple(bars))


def draw_interactions(interactions: Interactions) -> Chart | None:
    """Draw the share of the variance that belongs to each pair of parameters jointly, with its 90% interval."""
    pairs = interactions.pairs[:_N_PAIRS]
    if not pairs:
        return None
    significant = interactions.significant
    groups = {
        "significant": (BEST, [pair for pair in pairs if pair in significant]),
        "not significant": (MUTED, [pair for pair in pairs if pair not in significant]),
    }
    bars = [
        Bars(
            lengths={_join_pair(pair): pair.share for pair in group},
            intervals={_join_pair(pair): (pair.low, pair.high) for pair in group},
            style=Style(color=color, label=label),
        )
        for label, (color, group) in groups.items()
        if group
    ]
    end = max(1.15 * max(pair.high for pair in pairs), 0.1)
    panel = Panel(
        x=Axis(title="share of the variance", format="percent", limits=(0, end)),
        y=Axis(categories=tuple(_join_pair(pair) for pair in pairs)),
        marks=tuple(bars),
    )
    return Chart(
        name="interactions",
        title="Interactions",
        panels=(panel,),
        caption="What two parameters explain together beyond what each explains alone. Whiskers: 90% intervals.",
    )


def draw_budget(table: StudyTable, budget: BudgetDependence) -> Chart | None:
    """Draw the optimum of each parameter by training length, with its 90% interval."""
    panels = tuple(_budget_panel(table, parameter) for parameter in budget.parameters)
    if not panels:
        return None
    return Chart(
        name="budget",
        title="Optimum by training length",
        panels=panels,
        caption="Model's optimum at each training length. Whiskers: 90% bootstrap intervals for comparing lengths, "
        "without the uncertainty of the model.",
    )


def draw_correlations(correlations: Sequence[Correlation]) -> Chart | None:
    """Draw Spearman's coefficient of each parameter with each metric."""
    parameters = {correlation.parameter for correlation in correlations}
    # A metric can be a parameter, too, such as the learning rate at the end of its schedule.
    drawn = [row for row in correlations if row.spearman is not None and row.metric not in parameters]
    if not drawn:
        return None
    x = tuple(dict.fromkeys(correlation.parameter for correlation in drawn))
    y = tuple(dict.fromkeys(correlation.metric for correlation in drawn))
    by_cell = {(correlation.metric, correlation.parameter): correlation for correlation in drawn}
    rows = [[by_cell.get((metric, parameter)) for parameter in x] for metric in y]
    heatmap = Heatmap(
        x=x,
        y=y,
        values=tuple(tuple(cell.spearman if cell else None for cell in row) for row in rows),
        texts=tuple(tuple(_format_correlation(cell) for cell in row) for row in rows),
    )
    panel = Panel(x=Axis(categories=x), y=Axis(categories=y), marks=(heatmap,))
    return Chart(
        name="correlations",
        title="Correlations with every metric",
        panels=(panel,),
        caption="Spearman's rank correlation over the complete trials, one parameter and one metric at a time; "
        "* p < 0.05. A parameter with its optimum inside the range can have a correlation of zero.",
    )


def _format_correlation(correlation: Correlation | None) -> str:
    if correlation is None or correlation.spearman is None or correlation.p_value is None:
        return ""
    return f"{correlation.spearman:+.2f}{'*' if correlation.p_value < _STARRED_BELOW else ''}"


def _join_pair(interaction: Interaction) -> str:
    return " and ".join(interaction.pair)


@dataclass(frozen=True)
class _ShownTrials:
    """The trials of the sensitivity panels, pruned ones at extrapolated values if there are any."""

    best: Sequence[TrialRow]
    rest: Sequence[TrialRow]
    pruned: Sequence[TrialRow]
    value_range: ValueRange

    def values_of(self, parameter: str) -> list[Scalar]:
        """Return the values of a parameter in all these trials."""
        rows = (*self.best, *self.rest, *self.pruned)
        return [row.params[parameter] for row in rows if parameter in row.params]


def _choose_trials(table: StudyTable, insights: Insights) -> _ShownTrials | None:
    extrapolated = insights.extrapolated
    complete, pruned = table.ranked(), selection.with_finite_value(table.pruned())
    if extrapolated:
        pruned = [replace(row, value=extrapolated[row.trial].value) for row in pruned if row.trial in extrapolated]
    value_range = selection.choose_value_range(table, [row.value for row in (*complete, *pruned)])
    if value_range is None:
        return None
    value_range = _include_bands(value_range, insights.sensitivity.parameters)
    return _ShownTrials(complete[:1], _thin(complete[1:]), _thin(pruned), value_range)


def _include_bands(shown: ValueRange, parameters: Sequence[ParameterSensitivity]) -> ValueRange:
    """Extend the range of the trials to the bands, at each end by a quarter of it at most."""
    most = (shown.high - shown.low) / 4
    low = min((min(parameter.profile.low) for parameter in parameters), default=shown.low)
    high = max((max(parameter.profile.high) for parameter in parameters), default=shown.high)
    low, high = max(low, shown.low - most), min(high, shown.high + most)
    return replace(shown, low=min(low, shown.low), high=max(high, shown.high))


def _thin(rows: Sequence[TrialRow]) -> Sequence[TrialRow]:
    """Return at most _N_POINTS trials, evenly spaced."""
    return rows[:: max(1, math.ceil(len(rows) / _N_POINTS))]


def _sensitivity_panel(
    table: StudyTable, insights: Insights, name: str, fitted: ParameterSensitivity | None, shown: _ShownTrials
) -> Panel:
    range_, tried = table.search_space[name], shown.values_of(name)
    # Enqueued trials may have values outside of the search space.
    choices: Sequence[Scalar] = (*range_.choices, *tried) if isinstance(range_, Categorical) else ()
    if fitted is not None and fitted.is_ordered:
        choices = sorted(choices, key=float)
    categories = tuple(dict.fromkeys(str(choice) for choice in choices))

    def locate(value: Scalar) -> Coordinate:
        return str(value) if categories else float(value)

    points = _trial_points(table, insights, name, shown, locate, is_faint=fitted is not None)
    marks = [points["pruned"], points["complete"], points["best"]]
    if fitted is not None:
        areas = _areas(insights, fitted) if fitted.is_ordered and not categories else []
        curve = _curve_marks(fitted, [locate(value) for value in fitted.values])
        marks = [*areas, points["pruned"], points["complete"], *curve, points["best"]]
    is_log = not categories and getattr(range_, "log", False)
    limits = None if categories else _add_margin(range_.extremes(), tried, is_log=is_log)
    return Panel(
        x=Axis(title=name, unit=_find_unit(name), is_log=is_log, categories=categories, limits=limits),
        y=build_metric_axis(table, shown.value_range),
        marks=tuple(marks),
        title=name,
        caption="" if fitted is None else describe_parameter(fitted),
    )


def _trial_points(
    table: StudyTable,
    insights: Insights,
    name: str,
    shown: _ShownTrials,
    locate: Callable[[Scalar], Coordinate],
    *,
    is_faint: bool,
) -> Mapping[str, Mark]:
    faint: dict[str, Any] = {"size": 6, "opacity": 0.6} if is_faint else {}
    pruned_label = "pruned, extrapolated" if insights.extrapolated else PRUNED_POINTS.label
    groups = {
        "pruned": (shown.pruned, replace(PRUNED_POINTS, label=pruned_label, **faint)),
        "complete": (shown.rest, replace(COMPLETE_POINTS, **faint)),
        "best": (shown.best, BEST_POINTS),
    }
    points = {}
    for group, (rows, style) in groups.items():
        with_parameter = [row for row in rows if name in row.params]
        x = [locate(row.params[name]) for row in with_parameter]
        points[group] = draw_trials(table, with_parameter, x, style)
    return points


def _areas(insights: Insights, fitted: ParameterSensitivity) -> list[Mark]:
    """Shade the good range, and the parts of the range where trials diverge."""
    low, high = sorted(float(value) for value in fitted.within_noise)
    cliffs = [
        cliff for cliff in insights.divergence.cliffs if cliff.name == fitted.name and cliff.threshold is not None
    ]
    return [VerticalSpan(low=low, high=high, style=_GOOD), *(_cliff_span(cliff, fitted) for cliff in cliffs)]


def _cliff_span(cliff: Cliff, fitted: ParameterSensitivity) -> VerticalSpan:
    at, ends = float(cliff.threshold or 0.0), (float(fitted.values[0]), float(fitted.values[-1]))
    low, high = (ends[0], at) if cliff.side == "low" else (at, ends[1])
    return VerticalSpan(low=low, high=high, style=_CLIFF)


def _curve_marks(fitted: ParameterSensitivity, x: Sequence[Coordinate]) -> list[Mark]:
    curve = fitted.profile
    if not fitted.is_ordered:
        intervals = tuple(zip(curve.low, curve.high, strict=True))
        return [Points(x=tuple(x), y=curve.mean, intervals=intervals, style=_CURVE)]
    return [
        Band(x=tuple(x), low=curve.low, high=curve.high, style=_BAND),
        Line(x=tuple(x), y=curve.mean, style=_CURVE, hover="model mean"),
    ]


def _budget_panel(table: StudyTable, parameter: ParameterBudget) -> Panel:
    range_, optima = table.search_space[parameter.name], parameter.optima
    categories = () if optima[0].low is not None else tuple(str(choice) for choice in range_.extremes())
    has_tokens = any(optimum.tokens for optimum in optima)
    x = tuple(float(optimum.tokens if has_tokens else optimum.step) for optimum in optima)
    y: tuple[Coordinate, ...] = tuple(str(optimum.best) if categories else float(optimum.best) for optimum in optima)
    intervals = tuple((float(optimum.low or 0.0), float(optimum.high or 0.0)) for optimum in optima)
    color, label = (BEST, "shifts significantly") if parameter.is_budget_dependent else (COMPLETE, "optimum")
    is_log = not categories and getattr(range_, "log", False)
    limits = None if categories else _add_margin(range_.extremes(), [], is_log=is_log)
    points_style = Style(color=color, label=label, size=9)
    return Panel(
        x=Axis(title="tokens" if has_tokens else "steps", limits=(0, 1.06 * max(x))),
        y=Axis(title=parameter.name, is_log=is_log, categories=categories, limits=limits),
        marks=(
            Line(x=x, y=y, style=Style(color=color, width=1.5)),
            Points(x=x, y=y, intervals=() if categories else intervals, style=points_style),
        ),
        title=parameter.name,
    )


def _find_unit(parameter: str) -> str:
    entry = HYPERPARAMETERS.get(parameter)
    return (entry.unit or "") if entry else ""


def _add_margin(ends: Sequence[Scalar], tried: Sequence[Scalar], *, is_log: bool) -> tuple[float, float]:
    """Return the limits of an axis that shows a range, and the values that were tried outside of it."""
    numbers = [float(value) for value in (*ends, *tried) if not isinstance(value, str)]
    low, high = min(numbers), max(numbers)
    if is_log and low > 0:
        margin = (high / low) ** 0.04
        return low / margin, high * margin
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin
