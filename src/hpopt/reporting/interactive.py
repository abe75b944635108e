"""Draw charts with plotly, for the page of a report and for the dashboard."""

import math
from collections.abc import Mapping, Sequence
from functools import singledispatch
from html import escape as escape_html
from itertools import product
from textwrap import wrap
from typing import Any, Literal

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from hpopt.formats import format_percent
from hpopt.reporting.chart import (
    Annotations,
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
from hpopt.reporting.selection import BEST, COMPLETE, GRID, MUTED, TEXT

# In pixels.
_PANEL_HEIGHT, _SINGLE_PANEL_HEIGHT, _BAR_HEIGHT, _BAR_MARGIN = 300, 340, 26, 110
# Space between two rows of panels, for the titles of the axes, in pixels.
_ROW_GAP = 70
# Characters in a line of a caption, in a card of half a page.
_CAPTION_WIDTH = 88
_SYMBOLS = {"circle": "circle", "cross": "x-thin", "star": "star"}
# The default template would add 7 kB to every figure.
_NO_TEMPLATE = go.layout.Template()


def draw(chart: Chart) -> go.Figure:
    """Draw all panels of a chart, in two columns if there are several, without a title."""
    height = _SINGLE_PANEL_HEIGHT if len(chart.panels) == 1 else _PANEL_HEIGHT
    if chart.n_bar_rows:
        height = _BAR_HEIGHT * chart.n_bar_rows + _BAR_MARGIN
    figure = _draw_panels(chart, chart.n_columns, height * chart.n_rows)
    has_legend = any(trace.showlegend for trace in figure.data)
    figure.update_layout(margin_t=10 + 30 * has_legend)
    return figure


def draw_card(chart: Chart, height: int) -> go.Figure:
    """Draw a chart with title and caption at a height in pixels, in about as many columns as rows."""
    figure = _draw_panels(chart, math.ceil(math.sqrt(len(chart.panels))), height)
    lines = (f"<br><span style='font-size:12px'>{_escape(line)}</span>" for line in wrap(chart.caption, _CAPTION_WIDTH))
    text = f"{_escape(chart.title)}{''.join(lines)}"
    place = {"x": 0, "xref": "container", "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 22, "l": 8}}
    figure.update_layout(title={"text": text, "font": {"size": 17}, **place}, margin_t=112)
    return figure


def _draw_panels(chart: Chart, n_columns: int, height: int) -> go.Figure:
    n_rows = math.ceil(len(chart.panels) / n_columns)
    figure = make_subplots(
        rows=n_rows,
        cols=n_columns,
        horizontal_spacing=0.22 / n_columns if n_columns > 1 else 0,
        vertical_spacing=min(_ROW_GAP / height, 0.8 / (n_rows - 1)) if n_rows > 1 else 0,
    )
    cells = product(range(1, n_rows + 1), range(1, n_columns + 1))
    for panel, (row, col) in zip(chart.panels, cells, strict=False):
        _add_panel(figure, panel, row, col)
    _show_each_label_once(figure)
    figure.update_layout(
        template=_NO_TEMPLATE,
        font={"family": "system-ui, sans-serif", "color": TEXT, "size": 13},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 8, "r": 14, "b": 8},
        height=height,
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "traceorder": "normal"},
        barmode="group",
    )
    return figure


def _add_panel(figure: go.Figure, panel: Panel, row: int, col: int) -> None:
    figure.update_xaxes(_axis_options("x", panel.x), row=row, col=col)
    figure.update_yaxes(_axis_options("y", panel.y), row=row, col=col)
    for mark in panel.marks:
        # A span is drawn as a band, because shapes have no legend entry.
        for trace in _traces(_span_as_band(mark, panel.y) if isinstance(mark, VerticalSpan) else mark):
            figure.add_trace(trace, row=row, col=col)
        if isinstance(mark, Annotations):
            _add_annotations(figure, mark, row, col)


def _axis_options(which: Literal["x", "y"], axis: Axis) -> dict[str, Any]:
    title = _escape(axis.label)
    if axis.note:
        title += f" <span style='color:{MUTED};font-size:11px'>({_escape(axis.note)})</span>"
    options: dict[str, Any] = {
        "title": {"text": title, "standoff": 6},
        "gridcolor": GRID,
        "linecolor": GRID,
        "zeroline": False,
        "automargin": True,
        "exponentformat": "SI",
        "minexponent": 4,
    }
    if axis.categories:
        options |= {"type": "category", "categoryorder": "array", "categoryarray": _compact(axis.categories)}
        # The first category is at the top, or at the left.
        options |= {"autorange": "reversed"} if which == "y" else {}
    if axis.is_log:
        # Ticks at 1, 2 and 5 if the axis covers few decades.
        options |= {"type": "log", "dtick": "D2"}
    if axis.limits is not None and not axis.categories:
        options["range"] = [math.log10(end) for end in axis.limits] if axis.is_log else list(axis.limits)
    if axis.format == "whole":
        # Otherwise plotly adds a tick at trial 0.5 if there are few trials.
        options |= {"tickformat": "d", "nticks": 10}
    if axis.format == "percent":
        options["tickformat"] = ".0%"
    if axis.format == "none":
        options |= {"showticklabels": False, "showgrid": False}
    return options


@singledispatch
def _traces(_mark: Mark) -> Sequence[Any]:
    """Return the plotly traces of a mark; annotations have none."""
    return ()


@_traces.register
def _(mark: Points) -> Sequence[Any]:
    if not mark.x:
        return ()
    style = mark.style
    line = {"color": style.color, "width": 1.6 if style.symbol == "cross" else 0}
    marker = {"symbol": _SYMBOLS[style.symbol], "size": style.size, "color": style.color, "opacity": style.opacity}
    options: dict[str, Any] = {"marker": {**marker, "line": line}}
    if mark.intervals:
        error = {"color": style.color, "thickness": 1.6, "width": 5}
        options["error_y"] = {**_error_bars(mark.intervals, mark.y), **error}
    if mark.hover:
        options |= {"hovertext": [_hover(text) for text in mark.hover], "hoverinfo": "text"}
    return (go.Scatter(x=_compact(mark.x), y=_compact(mark.y), mode="markers", **options, **_legend_options(style)),)


@_traces.register
def _(mark: Line) -> Sequence[Any]:
    style, n_points = mark.style, len(mark.x)
    line = {"color": style.color, "width": style.width, "dash": style.dash, "shape": "hv" if mark.is_step else "linear"}
    options: dict[str, Any] = {"line": line, "mode": "lines", "opacity": style.opacity}
    if mark.ends_in_cross or n_points == 1:
        options |= {"mode": "lines+markers"}
        options["marker"] = {"symbol": "x" if mark.ends_in_cross else "circle", "size": [0] * (n_points - 1) + [7]}
    if mark.hover:
        options["hovertemplate"] = f"{_hover(mark.hover)}<br>%{{x}}: %{{y:.4g}}<extra></extra>"
    else:
        options["hoverinfo"] = "skip"
    return (go.Scatter(x=_compact(mark.x), y=_compact(mark.y), **options, **_legend_options(style)),)


@_traces.register
def _(mark: Band) -> Sequence[Any]:
    style = mark.style
    outline = {"x": _compact((*mark.x, *reversed(mark.x))), "y": _compact((*mark.low, *reversed(mark.high)))}
    # The opacity of a trace holds for its fill and for the edge of it.
    fill = {"fill": "toself", "fillcolor": style.color, "opacity": style.opacity, "hoverinfo": "skip"}
    return (go.Scatter(**outline, mode="none", **fill, **_legend_options(style)),)


@_traces.register
def _(mark: Bars) -> Sequence[Any]:
    style = mark.style
    names, lengths = _compact(list(mark.lengths)), list(mark.lengths.values())
    marker: dict[str, Any] = {"color": style.color}
    if mark.is_hatched:
        marker["pattern"] = {"shape": "/", "size": 5, "solidity": 0.35}
    intervals = [mark.intervals.get(name, (length, length)) for name, length in mark.lengths.items()]
    return (
        go.Bar(
            x=_compact(lengths),
            y=names,
            orientation="h",
            marker=marker,
            error_x={**_error_bars(intervals, lengths), "color": TEXT, "thickness": 1.3, "width": 4},
            customdata=[f"{format_percent(low)} to {format_percent(high)}" for low, high in intervals],
            hovertemplate=f"{_escape(style.label)}<br>%{{y}}: %{{x:.0%}} (%{{customdata}})<extra></extra>",
            **_legend_options(style),
        ),
    )


@_traces.register
def _(mark: Heatmap) -> Sequence[Any]:
    return (
        go.Heatmap(
            x=_compact(mark.x),
            y=_compact(mark.y),
            z=[_compact(row) for row in mark.values],
            text=[list(row) for row in mark.texts],
            texttemplate="%{text}",
            zmin=-1,
            zmax=1,
            colorscale=[[0, COMPLETE], [0.5, GRID], [1, BEST]],
            showscale=False,
            xgap=3,
            ygap=3,
            hovertemplate="%{x} and %{y}: %{z:.2f}<extra></extra>",
        ),
    )


def _add_annotations(figure: go.Figure, mark: Annotations, row: int, col: int) -> None:
    anchor, shift = ("bottom", 6) if mark.position == "above" else ("top", -6)
    for x, y, text in zip(mark.x, mark.y, mark.texts, strict=True):
        options = {"showarrow": False, "yanchor": anchor, "yshift": shift, "font": {"size": 12}}
        figure.add_annotation(x=_compact([x])[0], y=y, text=_escape(text), row=row, col=col, **options)


def _span_as_band(mark: VerticalSpan, y: Axis) -> Band:
    low, high = y.limits or (0.0, 1.0)
    return Band(x=(mark.low, mark.high), low=(low, low), high=(high, high), style=mark.style)


def _show_each_label_once(figure: go.Figure) -> None:
    seen: set[str] = set()
    for trace in figure.data:
        if trace.showlegend is None:
            trace.showlegend = bool(trace.name) and trace.name not in seen
            seen.add(trace.name)


def _legend_options(style: Style) -> Mapping[str, Any]:
    return {"name": _escape(style.label), "legendgroup": style.label} if style.label else {"showlegend": False}


def _error_bars(intervals: Sequence[tuple[float, float]], middles: Sequence[Coordinate]) -> dict[str, Any]:
    numbers = [float(middle) for middle in middles]
    return {
        "type": "data",
        "array": _compact([high - middle for (_, high), middle in zip(intervals, numbers, strict=True)]),
        "arrayminus": _compact([middle - low for (low, _), middle in zip(intervals, numbers, strict=True)]),
    }


def _compact(values: Sequence[Coordinate | None]) -> list[Coordinate | None]:
    """Round numbers to five digits, since the dashboard sends figures with each poll, and escape categories."""

    def convert(value: Coordinate | None) -> Coordinate | None:
        if isinstance(value, str):
            return _escape(value)
        return float(f"{value:.5g}") if isinstance(value, float) else value

    return [convert(value) for value in values]


def _hover(text: str) -> str:
    return "<br>".join(_escape(line) for line in text.split("\n"))


def _escape(text: str) -> str:
    """Escape a text for plotly, which renders some HTML tags and does not decode &quot;."""
    return escape_html(text, quote=False)
