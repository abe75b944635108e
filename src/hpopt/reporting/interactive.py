"""Owns charts that can be hovered over: plotly, for the page and the dashboard. Leaves PNG to pictures.py."""

import math
from collections.abc import Mapping, Sequence
from functools import singledispatch
from html import escape as escape_html
from itertools import product
from textwrap import wrap
from typing import Any, Literal

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from hpopt.reporting.chart import (
    Axis,
    Band,
    Bars,
    Cells,
    Chart,
    Line,
    Mark,
    Panel,
    Place,
    Points,
    Stretch,
    Style,
    Words,
)
from hpopt.reporting.selection import BEST, COMPLETE, GRID, MUTED, TEXT

_PANEL_HEIGHT, _BAR_HEIGHT = 300, 26
# Of the characters of a caption, in a card of half a page.
_CAPTION_WIDTH = 96
# Between two rows, for the titles of axes.
_GAP = 70
_SYMBOLS = {"circle": "circle", "cross": "x-thin", "star": "star"}
_NO_TEMPLATE = go.layout.Template()


def draw(chart: Chart) -> go.Figure:
    """Draw all panels of a chart, in two columns where there are several, without a title."""
    room = (_BAR_HEIGHT * chart.n_bars + 110) if chart.n_bars else _PANEL_HEIGHT + 40 * (len(chart.panels) == 1)
    figure = _draw_panels(chart, chart.n_columns, room * chart.n_rows)
    has_legend = any(trace.showlegend for trace in figure.data)
    figure.update_layout(margin_t=10 + 30 * has_legend)
    return figure


def draw_card(chart: Chart, height: int) -> go.Figure:
    """Draw a chart with title and caption, as high as a card of some page, in about as many columns as rows."""
    figure = _draw_panels(chart, math.ceil(math.sqrt(len(chart.panels))), height)
    lines = (f"<br><span style='font-size:12px'>{escape(line)}</span>" for line in wrap(chart.caption, _CAPTION_WIDTH))
    caption = "".join(lines)
    place: dict[str, Any] = {"x": 0, "xref": "paper", "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 22}}
    figure.update_layout(title={"text": f"{escape(chart.title)}{caption}", "font": {"size": 17}, **place}, margin_t=112)
    return figure


def _draw_panels(chart: Chart, n_columns: int, height: int) -> go.Figure:
    n_rows = math.ceil(len(chart.panels) / n_columns)
    figure = make_subplots(
        rows=n_rows,
        cols=n_columns,
        horizontal_spacing=0.22 / n_columns if n_columns > 1 else 0,
        vertical_spacing=min(_GAP / height, 0.8 / (n_rows - 1)) if n_rows > 1 else 0,
    )
    places = product(range(1, n_rows + 1), range(1, n_columns + 1))
    for panel, (row, col) in zip(chart.panels, places, strict=False):
        _add_panel(figure, panel, row, col)
    _show_each_label_once(figure)
    figure.update_layout(
        # The default template is 7 kB in every figure.
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
    figure.update_xaxes(_axis("x", panel.x), row=row, col=col)
    figure.update_yaxes(_axis("y", panel.y), row=row, col=col)
    for mark in panel.marks:
        # A shape would have no entry in the legend.
        for trace in _traces(_stretch_as_band(mark, panel.y) if isinstance(mark, Stretch) else mark):
            figure.add_trace(trace, row=row, col=col)
        if isinstance(mark, Words):
            _add_words(figure, mark, row, col)


def _axis(which: Literal["x", "y"], axis: Axis) -> dict[str, Any]:
    title = escape(axis.label)
    if axis.note:
        title += f" <span style='color:{MUTED};font-size:11px'>({escape(axis.note)})</span>"
    options: dict[str, Any] = {
        "title": {"text": title, "standoff": 6},
        "gridcolor": GRID,
        "linecolor": GRID,
        "zeroline": False,
        "automargin": True,
        "exponentformat": "SI",
        "minexponent": 4,
    }
    if axis.names:
        options |= {"type": "category", "categoryorder": "array", "categoryarray": _short(axis.names)}
        # The first name belongs at the top, and at the left.
        options |= {"autorange": "reversed"} if which == "y" else {}
    if axis.is_log:
        # Ticks at 1, 2 and 5 where there are few decades.
        options |= {"type": "log", "dtick": "D2"}
    if axis.span is not None and not axis.names:
        options["range"] = _logarithms(axis.span) if axis.is_log else list(axis.span)
    if axis.format == "whole":
        # Left to itself, plotly writes trial 0.5 under a handful of trials.
        options |= {"tickformat": "d", "nticks": 10}
    if axis.format == "percent":
        options["tickformat"] = ".0%"
    if axis.format == "none":
        options |= {"showticklabels": False, "showgrid": False}
    return options


@singledispatch
def _traces(_mark: Mark) -> Sequence[Any]:
    """Give the traces that show a mark; words have none."""
    return ()


@_traces.register
def _(mark: Points) -> Sequence[Any]:
    if not mark.x:
        return ()
    style = mark.style
    line = {"color": style.color, "width": 1.6 if style.symbol == "cross" else 0}
    marker = {"symbol": _SYMBOLS[style.symbol], "size": style.size, "color": style.color, "opacity": style.opacity}
    options: dict[str, Any] = {"marker": {**marker, "line": line}}
    if mark.spans:
        options["error_y"] = {**_spans(mark.spans, mark.y), "color": style.color, "thickness": 1.6, "width": 5}
    if mark.hover:
        options |= {"hovertext": [_hover(text) for text in mark.hover], "hoverinfo": "text"}
    return (go.Scatter(x=_short(mark.x), y=_short(mark.y), mode="markers", **options, **_named(style)),)


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
    return (go.Scatter(x=_short(mark.x), y=_short(mark.y), **options, **_named(style)),)


@_traces.register
def _(mark: Band) -> Sequence[Any]:
    style = mark.style
    there_and_back = {"x": _short((*mark.x, *reversed(mark.x))), "y": _short((*mark.low, *reversed(mark.high)))}
    fill = {"fill": "toself", "fillcolor": style.color, "opacity": style.opacity, "hoverinfo": "skip"}
    # plotly makes a fill as opaque as its trace, its edge included.
    return (go.Scatter(**there_and_back, mode="none", **fill, **_named(style)),)


@_traces.register
def _(mark: Bars) -> Sequence[Any]:
    style = mark.style
    names, lengths = _short(list(mark.lengths)), list(mark.lengths.values())
    marker: dict[str, Any] = {"color": style.color}
    if mark.has_pattern:
        marker["pattern"] = {"shape": "/", "size": 5, "solidity": 0.35}
    spans = [mark.spans.get(name, (length, length)) for name, length in mark.lengths.items()]
    return (
        go.Bar(
            x=_short(lengths),
            y=names,
            orientation="h",
            marker=marker,
            error_x={**_spans(spans, lengths), "color": TEXT, "thickness": 1.3, "width": 4},
            customdata=[f"{low:.0%} to {high:.0%}" for low, high in spans],
            hovertemplate=f"{escape(style.label)}<br>%{{y}}: %{{x:.0%}} (%{{customdata}})<extra></extra>",
            **_named(style),
        ),
    )


@_traces.register
def _(mark: Cells) -> Sequence[Any]:
    return (
        go.Heatmap(
            x=_short(mark.x),
            y=_short(mark.y),
            z=[_short(row) for row in mark.values],
            text=[list(row) for row in mark.words],
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


def _add_words(figure: go.Figure, mark: Words, row: int, col: int) -> None:
    anchor, shift = ("bottom", 6) if mark.side == "above" else ("top", -6)
    for x, y, word in zip(mark.x, mark.y, mark.words, strict=True):
        look = {"showarrow": False, "yanchor": anchor, "yshift": shift, "font": {"size": 12}}
        figure.add_annotation(x=_short([x])[0], y=y, text=escape(word), row=row, col=col, **look)


def _stretch_as_band(mark: Stretch, y: Axis) -> Band:
    low, high = y.span or (0.0, 1.0)
    return Band(x=(mark.low, mark.high), low=(low, low), high=(high, high), style=mark.style)


def _show_each_label_once(figure: go.Figure) -> None:
    seen: set[str] = set()
    for trace in figure.data:
        if trace.showlegend is None:
            trace.showlegend = bool(trace.name) and trace.name not in seen
            seen.add(trace.name)


def _named(style: Style) -> Mapping[str, Any]:
    return {"name": escape(style.label), "legendgroup": style.label} if style.label else {"showlegend": False}


def _spans(spans: Sequence[tuple[float, float]], middles: Sequence[Place]) -> dict[str, Any]:
    numbers = [float(middle) for middle in middles]
    return {
        "type": "data",
        "array": _short([high - middle for (_, high), middle in zip(spans, numbers, strict=True)]),
        "arrayminus": _short([middle - low for (low, _), middle in zip(spans, numbers, strict=True)]),
    }


def _short(values: Sequence[Place | None]) -> list[Place | None]:
    """Give five digits, which is what can be seen, since the dashboard sends figures again and again."""

    def shorten(value: Place | None) -> Place | None:
        if isinstance(value, str):
            return escape(value)
        return float(f"{value:.5g}") if isinstance(value, float) else value

    return [shorten(value) for value in values]


def escape(text: str) -> str:
    """Let plotly show a text as it is, which takes some HTML, but not all of its names for characters."""
    return escape_html(text, quote=False)


def _hover(text: str) -> str:
    return "<br>".join(escape(line) for line in text.split("\n"))


def _logarithms(span: tuple[float, float]) -> list[float]:
    return [math.log10(end) for end in span]
