"""Owns the figures of parameters: sensitivity, importance, interactions, budget dependence, correlations.

Leaves those of trials to trial_charts.py. Each function gives None when there is nothing to draw.
"""

import math
from collections.abc import Sequence
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
from hpopt.reporting.chart import Axis, Band, Bars, Cells, Chart, Line, Mark, Panel, Place, Points, Stretch, Style
from hpopt.reporting.selection import BEST, COMPLETE, MUTED, Window
from hpopt.reporting.sentences import tell_parameter
from hpopt.reporting.trial_charts import BEST_MARKS, COMPLETE_MARKS, PRUNED_MARKS, metric_axis, show_trials
from hpopt.search.space import Categorical

_N_PAIRS = 10
_N_POINTS = 200
_STARRED = 0.05
_EXTRAPOLATED = " Pruned trials stand at the final values that are extrapolated from their learning curves."
_CURVE = Style(color=COMPLETE, label="surrogate", width=2.2)
_BAND = Style(color=COMPLETE, label="90% band", opacity=0.16)
_GOOD = Style(color=BEST, label="as good within noise", opacity=0.13)
_CLIFF = Style(color=MUTED, label="diverges", opacity=0.3)


def draw_sensitivity(table: StudyTable, insights: Insights) -> Chart | None:
    """Draw how the metric answers to each parameter: the surrogate's curve with its band, over the trials."""
    shown = _choose_shown(table, insights)
    names = [name for name in table.search_space if any(name in row.params for row in table.trials)]
    if shown is None or not names:
        return None
    sensitivity = insights.sensitivity
    measured = {parameter.name: parameter for parameter in sensitivity.parameters}
    order = [*measured, *(name for name in names if name not in measured)]
    caption = (
        "The metric along each parameter, with the others as in the best configuration. The shaded range is as good as "
        "the best within the noise of a run." + _EXTRAPOLATED * bool(insights.extrapolated)
        if measured
        else f"Each trial. No curves: {sensitivity.reason}."
    )
    panels = tuple(_sensitivity_panel(table, insights, name, measured.get(name), shown) for name in order)
    return Chart(name="sensitivity", title="Sensitivity to each parameter", panels=panels, caption=caption)


def draw_importance(measures: Sequence[Importance]) -> Chart | None:
    """Draw the shares of the parameters by each measure side by side, with their 90% intervals."""
    drawn = [measure for measure in measures if measure.shares]
    if not drawn:
        return None
    total = {name: sum((measure.shares or {}).get(name, 0) for measure in drawn) for name in drawn[0].shares or {}}
    names = tuple(sorted(total, key=lambda name: -total[name]))
    bars = [
        Bars(
            lengths={name: (measure.shares or {}).get(name, 0.0) for name in names},
            spans=measure.intervals or {},
            style=Style(color=color, label=measure.method),
            has_pattern=i > 0,
        )
        for i, (measure, color) in enumerate(zip(drawn, (COMPLETE, BEST), strict=False))
    ]
    panel = Panel(x=Axis(title="share", format="percent", span=(0, 1.08)), y=Axis(names=names), marks=tuple(bars))
    return Chart(
        name="importance",
        title="Importance, by two measures",
        panels=(panel,),
        caption="How much each parameter matters, pruned trials included. Lines are intervals of 90%.",
    )


def draw_interactions(interactions: Interactions) -> Chart | None:
    """Draw the share of each pair of parameters that neither has alone, with its 90% interval."""
    pairs = interactions.pairs[:_N_PAIRS]
    if not pairs:
        return None
    groups = {
        "more than chance": (BEST, [pair for pair in pairs if pair.is_significant]),
        "may be chance": (MUTED, [pair for pair in pairs if not pair.is_significant]),
    }
    bars = [
        Bars(
            lengths={_pair(pair): pair.share for pair in group},
            spans={_pair(pair): (pair.low, pair.high) for pair in group},
            style=Style(color=color, label=label),
        )
        for label, (color, group) in groups.items()
        if group
    ]
    most = max(1.15 * max(pair.high for pair in pairs), 0.1)
    panel = Panel(
        x=Axis(title="share of the differences", format="percent", span=(0, most)),
        y=Axis(names=tuple(_pair(pair) for pair in pairs)),
        marks=tuple(bars),
    )
    return Chart(
        name="interactions",
        title="Interactions",
        panels=(panel,),
        caption="What two parameters explain together beyond what each explains alone. Lines are intervals of 90%.",
    )


def draw_budget(table: StudyTable, budget: BudgetDependence) -> Chart | None:
    """Draw the best value of each parameter by how long one trains, with its 90% interval."""
    panels = tuple(_budget_panel(table, parameter) for parameter in budget.parameters)
    if not panels:
        return None
    return Chart(
        name="budget",
        title="Best value by training budget",
        panels=panels,
        caption="The best value of each parameter after a part of the training. Lines are 90% intervals of a "
        "bootstrap: of how it moves, not of all that is unknown about it.",
    )


def draw_correlations(correlations: Sequence[Correlation]) -> Chart | None:
    """Draw Spearman's coefficient of each parameter with each metric."""
    parameters = {each.parameter for each in correlations}
    # What is searched may be reported, too: the learning rate at the end of its schedule.
    known = [each for each in correlations if each.spearman is not None and each.metric not in parameters]
    if not known:
        return None
    x = tuple(dict.fromkeys(each.parameter for each in known))
    y = tuple(dict.fromkeys(each.metric for each in known))
    found = {(each.metric, each.parameter): each for each in known}
    rows = [[found.get((metric, parameter)) for parameter in x] for metric in y]
    cells = Cells(
        x=x,
        y=y,
        values=tuple(tuple(each.spearman if each else None for each in row) for row in rows),
        words=tuple(tuple(_tell_correlation(each) for each in row) for row in rows),
    )
    panel = Panel(x=Axis(names=x), y=Axis(names=y), marks=(cells,))
    return Chart(
        name="correlations",
        title="Correlations with every metric",
        panels=(panel,),
        caption="Spearman's coefficient over the complete trials, one parameter and one metric at a time; a star "
        "has a p-value below 5%. An effect with an optimum inside its range can show zero.",
    )


def _tell_correlation(each: Correlation | None) -> str:
    if each is None or each.spearman is None or each.p_value is None:
        return ""
    return f"{each.spearman:+.2f}{'*' if each.p_value < _STARRED else ''}"


def _pair(interaction: Interaction) -> str:
    return " and ".join(interaction.pair)


@dataclass(frozen=True)
class _Shown:
    """The trials of the sensitivity panels: pruned ones at extrapolated values, where there are any."""

    best: Sequence[TrialRow]
    rest: Sequence[TrialRow]
    pruned: Sequence[TrialRow]
    window: Window


def _choose_shown(table: StudyTable, insights: Insights) -> _Shown | None:
    extrapolated = insights.extrapolated
    complete, pruned = table.ranked(), selection.with_value(table.pruned())
    if extrapolated:
        pruned = [replace(row, value=extrapolated[row.trial].value) for row in pruned if row.trial in extrapolated]
    window = selection.choose_window(table, [row.value for row in (*complete, *pruned)])
    if window is None:
        return None
    return _Shown(complete[:1], _thin(complete[1:]), _thin(pruned), _with_room(window, insights.sensitivity.parameters))


def _with_room(window: Window, parameters: Sequence[ParameterSensitivity]) -> Window:
    """Show the bands, too, where they do not go far beyond the trials."""
    most = (window.high - window.low) / 4
    low = min((min(parameter.profile.low) for parameter in parameters), default=window.low)
    high = max((max(parameter.profile.high) for parameter in parameters), default=window.high)
    low, high = max(low, window.low - most), min(high, window.high + most)
    return replace(window, low=min(low, window.low), high=max(high, window.high))


def _thin(rows: Sequence[TrialRow]) -> Sequence[TrialRow]:
    """Give some of many trials, evenly spread, so that panels of thousands can be drawn, and sent."""
    return rows[:: max(1, math.ceil(len(rows) / _N_POINTS))]


def _sensitivity_panel(
    table: StudyTable, insights: Insights, name: str, measured: ParameterSensitivity | None, shown: _Shown
) -> Panel:
    range_ = table.search_space[name]
    tried = [row.params[name] for row in (*shown.best, *shown.rest, *shown.pruned) if name in row.params]
    # Enqueued trials may lie outside of the range.
    choices: Sequence[Scalar] = (*range_.choices, *tried) if isinstance(range_, Categorical) else ()
    if measured is not None and measured.is_ordered:
        choices = sorted(choices, key=float)
    names = tuple(dict.fromkeys(str(choice) for choice in choices))

    def place(value: Scalar) -> Place:
        return str(value) if names else float(value)

    def show(rows: Sequence[TrialRow], style: Style) -> Points:
        known = [row for row in rows if name in row.params]
        return show_trials(table, known, [place(row.params[name]) for row in known], style)

    marks: list[Mark] = []
    if measured is not None and measured.is_ordered and not names:
        low, high = sorted(float(value) for value in measured.within_noise)
        marks.append(Stretch(low=low, high=high, style=_GOOD))
        cliffs = [cliff for cliff in insights.divergence.cliffs if cliff.name == name and cliff.threshold is not None]
        marks += [_cliff_stretch(cliff, measured) for cliff in cliffs]
    pruned_marks = replace(PRUNED_MARKS, label="pruned, extrapolated") if insights.extrapolated else PRUNED_MARKS
    faint: dict[str, Any] = {} if measured is None else {"size": 6, "opacity": 0.6}
    marks += [show(shown.pruned, replace(pruned_marks, **faint)), show(shown.rest, replace(COMPLETE_MARKS, **faint))]
    if measured is not None:
        marks += _curve_marks(measured, [place(value) for value in measured.values])
    marks.append(show(shown.best, BEST_MARKS))
    is_log = not names and getattr(range_, "log", False)
    span = None if names else _with_margin(range_.extremes(), tried, is_log=is_log)
    caption = "" if measured is None else tell_parameter(measured)
    x = Axis(title=name, unit=_unit(name), is_log=is_log, names=names, span=span)
    return Panel(x=x, y=metric_axis(table, shown.window), marks=tuple(marks), title=name, caption=caption)


def _curve_marks(measured: ParameterSensitivity, places: Sequence[Place]) -> list[Mark]:
    curve = measured.profile
    if not measured.is_ordered:
        spans = tuple(zip(curve.low, curve.high, strict=True))
        return [Points(x=tuple(places), y=curve.mean, spans=spans, style=_CURVE)]
    return [
        Band(x=tuple(places), low=curve.low, high=curve.high, style=_BAND),
        Line(x=tuple(places), y=curve.mean, style=_CURVE, hover="surrogate"),
    ]


def _cliff_stretch(cliff: Cliff, measured: ParameterSensitivity) -> Stretch:
    at, ends = float(cliff.threshold or 0.0), (float(measured.values[0]), float(measured.values[-1]))
    low, high = (ends[0], at) if cliff.side == "low" else (at, ends[1])
    return Stretch(low=low, high=high, style=_CLIFF)


def _budget_panel(table: StudyTable, parameter: ParameterBudget) -> Panel:
    range_, optima = table.search_space[parameter.name], parameter.optima
    names = () if optima[0].low is not None else tuple(str(choice) for choice in range_.extremes())
    counts_tokens = any(each.tokens for each in optima)
    x = tuple(float(each.tokens if counts_tokens else each.step) for each in optima)
    y: tuple[Place, ...] = tuple(str(each.best) if names else float(each.best) for each in optima)
    spans = tuple((float(each.low or 0.0), float(each.high or 0.0)) for each in optima)
    color, label = (BEST, "moves with the budget") if parameter.is_budget_dependent else (COMPLETE, "best value")
    is_log = not names and getattr(range_, "log", False)
    span = None if names else _with_margin(range_.extremes(), [], is_log=is_log)
    marks = (
        Line(x=x, y=y, style=Style(color=color, width=1.5)),
        Points(x=x, y=y, spans=() if names else spans, style=Style(color=color, label=label, size=9)),
    )
    return Panel(
        x=Axis(title="tokens trained" if counts_tokens else "step", span=(0, 1.06 * max(x))),
        y=Axis(title=parameter.name, is_log=is_log, names=names, span=span),
        marks=marks,
        title=parameter.name,
    )


def _unit(parameter: str) -> str:
    entry = HYPERPARAMETERS.get(parameter)
    return (entry.unit or "") if entry else ""


def _with_margin(ends: Sequence[Scalar], tried: Sequence[Scalar], *, is_log: bool) -> tuple[float, float]:
    """Give the ends of an axis that shows a range, and what was tried outside of it."""
    numbers = [float(value) for value in (*ends, *tried) if not isinstance(value, str)]
    low, high = min(numbers), max(numbers)
    if is_log and low > 0:
        margin = (high / low) ** 0.04
        return low / margin, high * margin
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin
