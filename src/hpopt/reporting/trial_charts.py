"""Owns the figures of trials: in their order, along their training, and the best of them parameter by parameter.

Leaves those of parameters to parameter_charts.py. Each function gives None when there is nothing to draw.
"""

from collections.abc import Sequence
from dataclasses import replace

from hpopt import formats
from hpopt.analysis.axes import Axis as ParameterAxis
from hpopt.analysis.axes import build_axis, is_fixed
from hpopt.analysis.trials import StudyTable, TrialRow
from hpopt.reporting import selection
from hpopt.reporting.chart import Axis, Chart, Line, Mark, Panel, Points, Style, Words
from hpopt.reporting.selection import BEST, COMPLETE, MUTED, Window, format_number
from hpopt.search.space import Range
from hpopt.training.config import PRETRAIN_UNITS

PRUNED_MARKS = Style(color=MUTED, label="pruned", symbol="cross", size=7)
COMPLETE_MARKS = Style(color=COMPLETE, label="complete", opacity=0.85)
BEST_MARKS = Style(color=BEST, label="best", symbol="star", size=15)
# Enough to see where the good ones agree.
_N_TOP, _N_REST = 10, 60
# Room above and below for the ends of the ranges.
_FRAME = (-0.12, 1.12)


def draw_history(table: StudyTable) -> Chart | None:
    """Draw the value of each trial in the order of the trials, and the best so far."""
    complete, pruned = selection.with_value(table.complete()), selection.with_value(table.pruned())
    window = selection.choose_window(table, [row.value for row in complete + pruned])
    if window is None:
        return None
    marks: list[Mark] = [
        _with_params(show_trials(table, rows, [row.trial for row in rows], style), rows)
        for rows, style in ((pruned, PRUNED_MARKS), (complete, COMPLETE_MARKS))
    ]
    steps = list(selection.best_so_far(table))
    if steps:
        steps.append((max(row.trial for row in table.trials), steps[-1][1]))
        x, y = zip(*steps, strict=True)
        marks.append(Line(x=x, y=y, style=Style(color=BEST, label="best so far"), is_step=True))
    panel = Panel(x=Axis(title="trial", format="whole"), y=metric_axis(table, window), marks=tuple(marks))
    return Chart(
        name="history",
        title="Trial by trial",
        panels=(panel,),
        caption="Each trial, pruned ones at the value where they stopped, and the best so far.",
    )


def draw_curves(table: StudyTable) -> Chart | None:
    """Draw the learning curves of the best trials against those of the pruned."""
    best, pruned = selection.choose_curves(table)
    window = selection.choose_window(
        table, [point.value for row in best + pruned for point in selection.finite_points(row)]
    )
    if window is None:
        return None
    unit = "tokens" if selection.counts_tokens(best + pruned) else "step"
    marks = [
        *(_curve(row, unit, Style(color=MUTED, label="pruned", width=1.2, dash="dot")) for row in pruned),
        *(_curve(row, unit, Style(color=COMPLETE, label="next best", width=1.5)) for row in reversed(best[1:])),
        *(_curve(row, unit, Style(color=BEST, label="best", width=3)) for row in best[:1]),
    ]
    panel = Panel(x=Axis(title=f"{unit} trained"), y=metric_axis(table, window), marks=tuple(marks))
    return Chart(
        name="curves",
        title="Learning curves: the best against the pruned",
        panels=(panel,),
        caption="Learning curves of the best trials against those that were stopped early.",
    )


def draw_parallel(table: StudyTable) -> Chart | None:
    """Draw the best complete trials as lines through their parameters, each on its own scale."""
    moved = {name: range_ for name, range_ in table.search_space.items() if not is_fixed(range_)}
    ranked = [row for row in table.ranked() if moved.keys() <= row.params.keys()][:_N_REST]
    if len(ranked) < 2 or not moved:  # noqa: PLR2004 - one line is no comparison.
        return None
    n_top = min(_N_TOP, max(1, len(ranked) // 3))
    axes = [build_axis(name, range_, [row.params[name] for row in ranked]) for name, range_ in moved.items()]
    names = (*moved, table.metric)
    lines = [_parallel_line(table, row, axes, ranked, _parallel_style(i, n_top)) for i, row in enumerate(ranked)]
    ends = [_ends(axis, range_) for axis, range_ in zip(axes, moved.values(), strict=True)]
    values = (format_number(ranked[-1].value), format_number(ranked[0].value))
    low, high = zip(*ends, values, strict=True)
    marks: list[Mark] = [*reversed(lines)]
    marks += [Words(x=names, y=(0.0,) * len(names), words=tuple(low), side="below")]
    marks += [Words(x=names, y=(1.0,) * len(names), words=tuple(high), side="above")]
    panel = Panel(x=Axis(names=names), y=Axis(span=_FRAME, format="none"), marks=tuple(marks))
    return Chart(
        name="parallel",
        title="The best trials, parameter by parameter",
        panels=(panel,),
        caption="Each line is a trial. Samplers draw lines together, too: whether a parameter matters, the curves say.",
    )


def show_trials(table: StudyTable, rows: Sequence[TrialRow], x: Sequence[float | str], style: Style) -> Points:
    """Mark trials at places."""
    hover = tuple(f"trial {row.trial}\n{table.metric} {format_number(row.value)}" for row in rows)
    return Points(x=tuple(x), y=tuple(row.value or 0.0 for row in rows), style=style, hover=hover)


def metric_axis(table: StudyTable, window: Window) -> Axis:
    """Give the axis of the metric."""
    unit = PRETRAIN_UNITS.get(table.metric, "") if table.objective == "pretrain" else ""
    return Axis(title=table.metric, unit=unit, span=(window.low, window.high), note=window.note())


def _with_params(points: Points, rows: Sequence[TrialRow]) -> Points:
    told = (
        "\n".join(f"{name} {formats.format_number(value, digits=3)}" for name, value in row.params.items())
        for row in rows
    )
    return replace(points, hover=tuple(f"{text}\n{params}" for text, params in zip(points.hover, told, strict=True)))


def _curve(row: TrialRow, unit: str, style: Style) -> Line:
    points = selection.finite_points(row)
    return Line(
        x=tuple(point.tokens if unit == "tokens" else point.step for point in points),
        y=tuple(point.value or 0.0 for point in points),
        style=style,
        ends_in_cross=style.label == "pruned",
        hover=f"trial {row.trial} ({style.label})",
    )


def _parallel_style(place: int, n_top: int) -> Style:
    if place == 0:
        return Style(color=BEST, label="best", width=3)
    if place < n_top:
        return Style(color=COMPLETE, label=f"next {n_top - 1}", width=1.6, opacity=0.85)
    return Style(color=MUTED, label="other complete trials", width=0.8, opacity=0.45)


def _parallel_line(
    table: StudyTable, row: TrialRow, axes: Sequence[ParameterAxis], ranked: Sequence[TrialRow], style: Style
) -> Line:
    """Place a trial on all axes, from 0 to 1; that of the metric has the best at its top."""
    best, worst = (table.loss(ranked[place].value) for place in (0, -1))
    goodness = (worst - table.loss(row.value)) / (worst - best) if worst > best else 1.0
    places = [axis.coordinate(row.params[axis.name]) / (max(axis.nodes) or 1.0) for axis in axes]
    return Line(
        x=(*(axis.name for axis in axes), table.metric),
        y=(*(min(1.0, max(0.0, place)) for place in places), goodness),
        style=style,
        hover=f"trial {row.trial}: {format_number(row.value)}",
    )


def _ends(axis: ParameterAxis, range_: Range) -> tuple[str, str]:
    values = (axis.value_at(axis.nodes[0]), axis.value_at(axis.nodes[-1])) if axis.is_ordered else range_.extremes()
    return formats.format_number(values[0], digits=3), formats.format_number(values[-1], digits=3)
