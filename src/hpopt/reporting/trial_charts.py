"""Build the charts of trials: optimization history, learning curves and parallel coordinates.

Each function returns None if there is nothing to draw.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hpopt.analysis.axes import Axis as ParameterAxis
from hpopt.analysis.axes import build_axis, is_fixed
from hpopt.analysis.trials import StudyTable, TrialRow
from hpopt.formats import format_metric, format_number
from hpopt.reporting import selection
from hpopt.reporting.chart import Annotations, Axis, Chart, Line, Mark, Panel, Points, Style
from hpopt.reporting.selection import BEST, COMPLETE, MUTED, ValueRange
from hpopt.search.conditions import find_conditions, find_missing
from hpopt.search.space import Range

PRUNED_POINTS = Style(color=MUTED, label="pruned", symbol="cross", size=7)
COMPLETE_POINTS = Style(color=COMPLETE, label="complete", opacity=0.85)
BEST_POINTS = Style(color=BEST, label="best trial", symbol="star", size=15)
# The trials drawn in parallel coordinates: a few are highlighted, so that their agreement can be seen.
_N_HIGHLIGHTED, _N_PARALLEL = 10, 60
# Of the baseline, the first treatment, and the others.
_ARM_COLORS = (COMPLETE, BEST, MUTED)
# The axes go from 0 to 1; the rest is for the annotations at their ends.
_PARALLEL_LIMITS = (-0.12, 1.12)


def draw_history(table: StudyTable) -> Chart | None:
    """Draw the value of each trial in the order of the trials, and the best value so far."""
    complete, pruned = selection.with_finite_value(table.complete()), selection.with_finite_value(table.pruned())
    shown = selection.choose_value_range(table, [row.value for row in complete + pruned])
    if shown is None:
        return None
    marks: list[Mark] = [
        _with_params(draw_trials(table, rows, [row.trial for row in rows], style), rows)
        for rows, style in ((pruned, PRUNED_POINTS), (complete, COMPLETE_POINTS))
    ]
    steps = list(selection.find_improvements(table))
    if steps:
        steps.append((max(row.trial for row in table.trials), steps[-1][1]))
        x, y = zip(*steps, strict=True)
        marks.append(Line(x=x, y=y, style=Style(color=BEST, label="best so far"), is_step=True))
    panel = Panel(x=Axis(title="trial", format="whole"), y=build_metric_axis(table, shown), marks=tuple(marks))
    return Chart(
        name="history",
        title="Optimization history",
        panels=(panel,),
        caption="Value of each trial, of a pruned trial its last one, and the best value so far.",
    )


def draw_curves(table: StudyTable) -> Chart | None:
    """Draw the learning curves of the best trials, and of the pruned trials that ran longest."""
    best, pruned = selection.choose_curves(table)
    shown = selection.choose_value_range(
        table, [point.value for row in best + pruned for point in selection.thin_curve(row)]
    )
    if shown is None:
        return None
    unit = "tokens" if selection.has_tokens(best + pruned) else "steps"
    marks = [
        *(_draw_curve(row, unit, Style(color=MUTED, label="pruned", width=1.2, dash="dot")) for row in pruned),
        *(_draw_curve(row, unit, Style(color=COMPLETE, label="next best", width=1.5)) for row in reversed(best[1:])),
        *(_draw_curve(row, unit, Style(color=BEST, label="best trial", width=3)) for row in best[:1]),
    ]
    panel = Panel(x=Axis(title=unit), y=build_metric_axis(table, shown), marks=tuple(marks))
    return Chart(
        name="curves",
        title="Learning curves of the best and pruned trials",
        panels=(panel,),
        caption=f"The best {len(best)} of {len(table.complete())} complete trials, and the longest {len(pruned)} of "
        f"{len(table.pruned())} pruned trials.",
    )


def draw_arm_curves(table: StudyTable) -> Chart | None:
    """Draw the learning curves of the complete runs of each arm of a comparison."""
    rows = [row for row in table.complete() if selection.thin_curve(row)]
    values = [point.value for row in rows for point in selection.thin_curve(row)]
    shown = selection.choose_value_range(table, values)
    if shown is None or table.design is None:
        return None
    unit = "tokens" if selection.has_tokens(rows) else "steps"
    arms = list(table.design.arms)
    styles = {arm: Style(color=_ARM_COLORS[min(i, 2)], label=arm, width=1.5) for i, arm in enumerate(arms)}
    marks = tuple(_draw_curve(row, unit, styles[row.arm]) for row in rows if row.arm in styles)
    panel = Panel(x=Axis(title=unit), y=build_metric_axis(table, shown), marks=marks)
    return Chart(
        name="curves", title="Learning curves of the arms", panels=(panel,), caption="The complete runs of each arm."
    )


def draw_parallel(table: StudyTable) -> Chart | None:
    """Draw the best complete trials as lines through their parameters, each parameter on its own scale."""
    space, conditions = table.search_space, find_conditions(table.search_space)
    # Conditional parameters first, so that no gap separates the metric from the others.
    searched = [name for name in sorted(space, key=lambda name: not conditions[name]) if not is_fixed(space[name])]
    ranked = [row for row in table.ranked() if not {*searched} & {*find_missing(space, row.params)}][:_N_PARALLEL]
    searched = [name for name in searched if any(name in row.params for row in ranked)]
    if len(ranked) < 2 or not searched:  # noqa: PLR2004 - one line is no comparison.
        return None
    n_highlighted = min(_N_HIGHLIGHTED, max(1, len(ranked) // 3))
    axes = [
        build_axis(name, space[name], [row.params[name] for row in ranked if name in row.params]) for name in searched
    ]
    names = (*searched, table.metric)
    lines = [
        _parallel_line(table, row, axes, ranked, _parallel_style(rank, n_highlighted))
        for rank, row in enumerate(ranked)
    ]
    ends = [_format_ends(axis, space[axis.name]) for axis in axes]
    worst, best = (format_metric(ranked[rank].value or 0.0) for rank in (-1, 0))
    low, high = zip(*ends, (worst, best), strict=True)
    marks: list[Mark] = [*reversed(lines)]
    marks += [Annotations(x=names, y=(0.0,) * len(names), texts=tuple(low), position="below")]
    marks += [Annotations(x=names, y=(1.0,) * len(names), texts=tuple(high), position="above")]
    panel = Panel(x=Axis(categories=names), y=Axis(limits=_PARALLEL_LIMITS, format="none"), marks=tuple(marks))
    return Chart(
        name="parallel",
        title="Parallel coordinates of the best trials",
        panels=(panel,),
        caption="Each line is a trial. Agreement may come from the sampler; see Sensitivity.",
    )


def draw_trials(table: StudyTable, rows: Sequence[TrialRow], x: Sequence[float | str], style: Style) -> Points:
    """Draw trials as points at their values, with number and value as hover text."""
    hover = tuple(f"trial {row.trial}\n{table.metric} {format_metric(row.value or 0.0)}" for row in rows)
    return Points(x=tuple(x), y=tuple(row.value or 0.0 for row in rows), style=style, hover=hover)


def build_metric_axis(table: StudyTable, shown: ValueRange) -> Axis:
    """Return the axis of the study's metric."""
    return Axis(
        title=table.metric, unit=selection.find_metric_unit(table), limits=(shown.low, shown.high), note=shown.note()
    )


def _with_params(points: Points, rows: Sequence[TrialRow]) -> Points:
    params = (
        "\n".join(f"{name} {format_number(value, digits=3)}" for name, value in row.params.items()) for row in rows
    )
    return replace(points, hover=tuple(f"{text}\n{lines}" for text, lines in zip(points.hover, params, strict=True)))


def _draw_curve(row: TrialRow, unit: str, style: Style) -> Line:
    points = selection.thin_curve(row)
    return Line(
        x=tuple(point.tokens if unit == "tokens" else point.step for point in points),
        y=tuple(point.value or 0.0 for point in points),
        style=style,
        ends_in_cross=style.label == "pruned",
        hover=f"trial {row.trial} ({style.label})",
    )


def _parallel_style(rank: int, n_highlighted: int) -> Style:
    if rank == 0:
        return Style(color=BEST, label="best trial", width=3)
    if rank < n_highlighted:
        return Style(color=COMPLETE, label=f"next {n_highlighted - 1}", width=1.6, opacity=0.85)
    return Style(color=MUTED, label="other complete trials", width=0.8, opacity=0.45)


def _parallel_line(
    table: StudyTable, row: TrialRow, axes: Sequence[ParameterAxis], ranked: Sequence[TrialRow], style: Style
) -> Line:
    """Scale the params and the value of a trial to [0, 1]; the best value is at 1 whatever the direction.

    The line has a gap at the axis of an inactive parameter.
    """
    best, worst = (table.loss(ranked[rank].value) for rank in (0, -1))
    height = (worst - table.loss(row.value)) / (worst - best) if worst > best else 1.0
    heights = [
        axis.coordinate(row.params[axis.name]) / (max(axis.nodes) or 1.0) if axis.name in row.params else math.nan
        for axis in axes
    ]
    return Line(
        x=(*(axis.name for axis in axes), table.metric),
        y=(*np.clip(heights, 0.0, 1.0).tolist(), height),
        style=style,
        hover=f"trial {row.trial}: {format_metric(row.value or 0.0)}",
    )


def _format_ends(axis: ParameterAxis, range_: Range) -> tuple[str, str]:
    values = (axis.value_at(axis.nodes[0]), axis.value_at(axis.nodes[-1])) if axis.is_ordered else range_.extremes()
    return format_number(values[0], digits=3), format_number(values[-1], digits=3)
