"""Draw charts with matplotlib and write them as PNG, for Markdown, papers and slides."""

import math
from collections.abc import Iterable, Sequence
from functools import singledispatch
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from hpopt.formats import format_number
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
    VerticalSpan,
)
from hpopt.reporting.selection import BEST, COMPLETE, GRID, MUTED, TEXT

_DPI = 160
# In inches.
_WIDTH, _HEIGHT = 7.5, 3.8
_SYMBOLS = {"circle": "o", "cross": "x", "star": "*"}
# Marker areas in square points, from diameters in pixels.
_AREA_PER_SQUARE_PIXEL = 0.42
_POINTS_PER_PIXEL = 0.75
# Distance between the bars of two measures, in rows.
_BAR = 0.36
# Larger tick labels are written with an SI prefix, as 10k.
_SI_PREFIX_FROM = 1e4
_COLORMAP = LinearSegmentedColormap.from_list("hpopt", [COMPLETE, GRID, BEST])
# The text of cells with larger absolute values is white, since they are dark.
_DARK_CELL_ABOVE = 0.6
# An axis over more decades has ticks at powers of ten only.
_FEW_DECADES = 2
# A decorator: dollar signs in names do not start a formula.
_without_formulas = rc_context({"text.parse_math": False})


def write_picture(chart: Chart, path: Path) -> None:
    """Write a chart as PNG."""
    _write(draw_picture(chart), path)


def write_table(header: Sequence[str], rows: Sequence[Sequence[str]], path: Path) -> None:
    """Write a table of texts as PNG."""
    _write(draw_table(header, rows), path)


@_without_formulas
def draw_picture(chart: Chart) -> Figure:
    """Draw all panels of a chart, in two columns if there are several, without a title."""
    height = _HEIGHT - 0.8 * (chart.n_rows > 1)
    if chart.n_bar_rows:
        height = 0.3 * chart.n_bar_rows + 1.3
    figure = Figure(figsize=(_WIDTH, height * chart.n_rows + 0.3), layout="constrained")
    grid = list(figure.subplots(chart.n_rows, chart.n_columns, squeeze=False).ravel())
    for axes, panel in zip(grid, chart.panels, strict=False):
        _draw_panel(axes, panel)
    for axes in grid[len(chart.panels) :]:
        axes.set_visible(False)
    _add_legend(figure, grid)
    return figure


@_without_formulas
def draw_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Figure:
    """Draw a table of texts, with its first row in bold."""
    figure = Figure(figsize=(max(4.0, 1.15 * len(header)), 0.32 * (len(rows) + 1) + 0.2), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    table = axes.table(cellText=[list(row) for row in rows], colLabels=list(header), loc="center", cellLoc="right")
    table.auto_set_font_size(value=False)
    table.set_fontsize(9)
    table.scale(1, 1.35)
    for (row, _), cell in table.get_celld().items():
        cell.set_edgecolor(GRID)
        cell.visible_edges = "B"
        cell.set_text_props(color=MUTED if row == 0 else TEXT, weight="bold" if row == 1 else "normal")
    return figure


@_without_formulas
def _write(figure: Figure, path: Path) -> None:
    # Without the version of matplotlib, so that the same study gives the same file.
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})


def _draw_panel(axes: Axes, panel: Panel) -> None:
    axes.grid(visible=True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=TEXT, labelsize=9, length=0)
    axes.spines[:].set_visible(False)
    _set_axis(axes, "x", panel.x)
    _set_axis(axes, "y", panel.y)
    positions = _Positions(x=_index(panel.x), y=_index(panel.y))
    bars = [mark for mark in panel.marks if isinstance(mark, Bars)]
    is_grouped = len(set().union(*(mark.lengths for mark in bars))) < sum(len(mark.lengths) for mark in bars)
    for mark in panel.marks:
        if isinstance(mark, Bars) and is_grouped:
            _draw(mark, axes, positions.shifted(_BAR * (bars.index(mark) - (len(bars) - 1) / 2)))
        else:
            _draw(mark, axes, positions)
    if panel.y.categories:
        axes.grid(visible=False, axis="y")
        axes.set_ylim(len(panel.y.categories) - 0.5, -0.5)


class _Positions:
    """The positions of the categories of both axes; numbers are positions themselves."""

    def __init__(self, *, x: dict[Coordinate, float], y: dict[Coordinate, float]) -> None:
        self._by_axis = {"x": x, "y": y}

    def on(self, axis: str, coordinates: Iterable[Coordinate]) -> list[float]:
        """Return the positions of coordinates on an axis."""
        return [float(self._by_axis[axis].get(coordinate, coordinate)) for coordinate in coordinates]

    def shifted(self, rows: float) -> "_Positions":
        """Return positions that are moved down by a part of a row."""
        moved = {name: position + rows for name, position in self._by_axis["y"].items()}
        return _Positions(x=self._by_axis["x"], y=moved)


def _index(axis: Axis) -> dict[Coordinate, float]:
    return {category: float(i) for i, category in enumerate(axis.categories)}


def _set_axis(axes: Axes, which: str, axis: Axis) -> None:
    drawn, set_scale, set_limits = (
        (axes.xaxis, axes.set_xscale, axes.set_xlim) if which == "x" else (axes.yaxis, axes.set_yscale, axes.set_ylim)
    )
    drawn.set_label_text(axis.label, color=TEXT)
    if axis.note:
        axes.text(1, 1, axis.note, transform=axes.transAxes, ha="right", va="bottom", fontsize=8, color=MUTED)
    if axis.is_log:
        set_scale("log")
        n_decades = math.log10(axis.limits[1] / axis.limits[0]) if axis.limits else math.inf
        drawn.set_major_locator(LogLocator(subs=(1,) if n_decades >= _FEW_DECADES else (1, 2, 5)))
        drawn.set_minor_formatter(NullFormatter())
    if axis.limits is not None:
        set_limits(*axis.limits)
    if axis.categories:
        drawn.set_ticks(range(len(axis.categories)), axis.categories)
        if which == "x":
            set_limits(-0.5, len(axis.categories) - 0.5)
    elif axis.format == "whole":
        drawn.set_major_locator(MaxNLocator(integer=True))
    elif axis.format == "percent":
        drawn.set_major_formatter(PercentFormatter(1, decimals=0))
    elif axis.format == "none":
        drawn.set_ticks([])
    else:
        drawn.set_major_formatter(FuncFormatter(lambda value, _: _format_tick(value)))


def _format_tick(value: float) -> str:
    return EngFormatter(sep="")(value) if abs(value) >= _SI_PREFIX_FROM else format_number(float(value))


@singledispatch
def _draw(mark: Mark, _axes: Axes, _positions: _Positions) -> None:
    raise NotImplementedError(mark)


@_draw.register
def _(mark: Points, axes: Axes, positions: _Positions) -> None:
    style = mark.style
    x, y = positions.on("x", mark.x), positions.on("y", mark.y)
    options: dict[str, Any] = {"marker": _SYMBOLS[style.symbol], "color": style.color, "alpha": style.opacity}
    options["linewidths"] = 1.1 if style.symbol == "cross" else 0
    if mark.intervals:
        error = _error_bars(mark.intervals, y)
        axes.errorbar(x, y, yerr=error, fmt="none", ecolor=style.color, elinewidth=1.3, capsize=3)
    if x:
        axes.scatter(x, y, _AREA_PER_SQUARE_PIXEL * style.size**2, label=style.label, zorder=3, **options)


@_draw.register
def _(mark: Line, axes: Axes, positions: _Positions) -> None:
    style = mark.style
    options: dict[str, Any] = {"color": style.color, "linewidth": _POINTS_PER_PIXEL * style.width}
    options |= {"alpha": style.opacity, "linestyle": ":" if style.dash == "dot" else "-", "label": style.label}
    if mark.ends_in_cross or len(mark.x) == 1:
        options |= {"marker": "x" if mark.ends_in_cross else "o", "markevery": [-1], "markersize": 5}
    x, y = positions.on("x", mark.x), positions.on("y", mark.y)
    axes.plot(x, y, drawstyle="steps-post" if mark.is_step else "default", **options)


@_draw.register
def _(mark: Band, axes: Axes, positions: _Positions) -> None:
    style = mark.style
    options: dict[str, Any] = {"color": style.color, "alpha": style.opacity, "linewidth": 0, "label": style.label}
    axes.fill_between(positions.on("x", mark.x), list(mark.low), list(mark.high), **options)


@_draw.register
def _(mark: VerticalSpan, axes: Axes, _positions: _Positions) -> None:
    style = mark.style
    axes.axvspan(mark.low, mark.high, color=style.color, alpha=style.opacity, linewidth=0, label=style.label)


@_draw.register
def _(mark: Bars, axes: Axes, positions: _Positions) -> None:
    style, lengths = mark.style, list(mark.lengths.values())
    intervals = [mark.intervals.get(name, (length, length)) for name, length in mark.lengths.items()]
    axes.barh(
        positions.on("y", mark.lengths),
        lengths,
        _BAR * 0.9,
        color=style.color,
        hatch="////" if mark.is_hatched else "",
        edgecolor="white",
        linewidth=0,
        label=style.label,
        xerr=_error_bars(intervals, lengths),
        error_kw={"ecolor": TEXT, "elinewidth": 1.1, "capsize": 2.5},
    )


@_draw.register
def _(mark: Annotations, axes: Axes, positions: _Positions) -> None:
    alignment, shift = ("bottom", 4) if mark.position == "above" else ("top", -4)
    options: dict[str, Any] = {"ha": "center", "va": alignment, "fontsize": 8, "color": TEXT}
    for x, y, text in zip(positions.on("x", mark.x), positions.on("y", mark.y), mark.texts, strict=True):
        axes.annotate(text, (x, y), xytext=(0, shift), textcoords="offset points", **options)


@_draw.register
def _(mark: Heatmap, axes: Axes, _positions: _Positions) -> None:
    numbers = [[float("nan") if value is None else value for value in row] for row in mark.values]
    axes.grid(visible=False)
    axes.imshow(numbers, cmap=_COLORMAP, vmin=-1, vmax=1, aspect="auto")
    for y, row in enumerate(mark.values):
        for x, value in enumerate(row):
            if value is not None:
                color = "white" if abs(value) > _DARK_CELL_ABOVE else TEXT
                axes.text(x, y, mark.texts[y][x], ha="center", va="center", fontsize=9, color=color)


def _error_bars(intervals: Sequence[tuple[float, float]], middles: Sequence[float]) -> list[list[float]]:
    """Return the distances of the ends of intervals from their middles, as matplotlib takes them: low, then high."""
    return [
        [middle - low for middle, (low, _) in zip(middles, intervals, strict=True)],
        [high - middle for middle, (_, high) in zip(middles, intervals, strict=True)],
    ]


def _add_legend(figure: Figure, grid: Sequence[Axes]) -> None:
    handles: dict[str, Any] = {}
    for axes in grid:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        options = {"ncols": 4, "frameon": False, "fontsize": 9}
        figure.legend(list(handles.values()), list(handles), loc="outside upper left", **options)
