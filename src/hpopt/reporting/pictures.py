"""Owns charts as PNG: matplotlib, for papers, slides and Markdown. Leaves what they show to the charts."""

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

from hpopt.reporting.chart import Axis, Band, Bars, Cells, Chart, Line, Mark, Panel, Place, Points, Stretch, Words
from hpopt.reporting.selection import BEST, COMPLETE, GRID, MUTED, TEXT

_DPI = 160
_WIDTH, _HEIGHT = 7.5, 3.8
_SYMBOLS = {"circle": "o", "cross": "x", "star": "*"}
# Areas, which matplotlib counts in square points, from the diameters that plotly counts in pixels.
_AREA_OF = 0.42
_BAR = 0.36
# Numbers from here on are written as 10k.
_MANY = 1e4
_BETWEEN_BLUE_AND_ORANGE = LinearSegmentedColormap.from_list("hpopt", [COMPLETE, GRID, BEST])
# Beyond this a cell is too dark for dark words.
_STRONG = 0.6
# Over so many decades of a small panel, only the powers of ten find room.
_FEW_DECADES = 2


# Names are no formulas, whatever dollars are in them.
@rc_context({"text.parse_math": False})
def write_picture(chart: Chart, path: Path) -> None:
    """Write a chart as PNG."""
    room = 0.3 * chart.n_bars + 1.3 if chart.n_bars else _HEIGHT - 0.8 * (chart.n_rows > 1)
    figure = Figure(figsize=(_WIDTH, room * chart.n_rows + 0.3), layout="constrained")
    grid = list(figure.subplots(chart.n_rows, chart.n_columns, squeeze=False).ravel())
    for axes, panel in zip(grid, chart.panels, strict=False):
        _draw_panel(axes, panel)
    for axes in grid[len(chart.panels) :]:
        axes.set_visible(False)
    _add_legend(figure, grid)
    save(figure, path)


@rc_context({"text.parse_math": False})
def write_table(header: Sequence[str], rows: Sequence[Sequence[str]], path: Path) -> None:
    """Write a table of words as PNG, its first row in bold."""
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
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure; without the version of matplotlib in it, the same study gives the same file."""
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})


def _draw_panel(axes: Axes, panel: Panel) -> None:
    axes.grid(visible=True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=TEXT, labelsize=9, length=0)
    axes.spines[:].set_visible(False)
    _set_axis(axes, "x", panel.x)
    _set_axis(axes, "y", panel.y)
    places = _Places(x=_positions(panel.x), y=_positions(panel.y))
    bars = [mark for mark in panel.marks if isinstance(mark, Bars)]
    overlap = len(set().union(*(mark.lengths for mark in bars))) < sum(len(mark.lengths) for mark in bars)
    for mark in panel.marks:
        if isinstance(mark, Bars) and overlap:
            _draw(mark, axes, places.shifted(_BAR * (bars.index(mark) - (len(bars) - 1) / 2)))
        else:
            _draw(mark, axes, places)
    if panel.y.names:
        axes.grid(visible=False, axis="y")
        axes.set_ylim(len(panel.y.names) - 0.5, -0.5)


class _Places:
    """Where names are on the two axes; numbers are where they are."""

    def __init__(self, *, x: dict[Place, float], y: dict[Place, float]) -> None:
        self.positions = {"x": x, "y": y}

    def on(self, axis: str, places: Iterable[Place]) -> list[float]:
        """Give the positions of places on an axis."""
        return [float(self.positions[axis].get(place, place)) for place in places]

    def shifted(self, by: float) -> "_Places":
        """Give places that lie beside these."""
        return _Places(x=self.positions["x"], y={name: place + by for name, place in self.positions["y"].items()})


def _positions(axis: Axis) -> dict[Place, float]:
    return {name: float(i) for i, name in enumerate(axis.names)}


def _set_axis(axes: Axes, which: str, axis: Axis) -> None:
    ticks, set_scale, set_ends = (
        (axes.xaxis, axes.set_xscale, axes.set_xlim) if which == "x" else (axes.yaxis, axes.set_yscale, axes.set_ylim)
    )
    ticks.set_label_text(axis.label, color=TEXT)
    if axis.note:
        axes.text(1, 1, axis.note, transform=axes.transAxes, ha="right", va="bottom", fontsize=8, color=MUTED)
    if axis.is_log:
        set_scale("log")
        n_decades = math.log10(axis.span[1] / axis.span[0]) if axis.span else math.inf
        ticks.set_major_locator(LogLocator(subs=(1,) if n_decades >= _FEW_DECADES else (1, 2, 5)))
        ticks.set_minor_formatter(NullFormatter())
    if axis.span is not None:
        set_ends(*axis.span)
    if axis.names:
        ticks.set_ticks(range(len(axis.names)), axis.names)
        if which == "x":
            set_ends(-0.5, len(axis.names) - 0.5)
    elif axis.format == "whole":
        ticks.set_major_locator(MaxNLocator(integer=True))
    elif axis.format == "percent":
        ticks.set_major_formatter(PercentFormatter(1, decimals=0))
    elif axis.format == "none":
        ticks.set_ticks([])
    else:
        ticks.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))


def _short(value: float) -> str:
    return EngFormatter(sep="")(value) if abs(value) >= _MANY else f"{value:.4g}"


@singledispatch
def _draw(mark: Mark, axes: Axes, places: _Places) -> None:
    raise NotImplementedError(mark)


@_draw.register
def _(mark: Points, axes: Axes, places: _Places) -> None:
    style = mark.style
    x, y = places.on("x", mark.x), places.on("y", mark.y)
    options: dict[str, Any] = {"marker": _SYMBOLS[style.symbol], "color": style.color, "alpha": style.opacity}
    options["linewidths"] = 1.1 if style.symbol == "cross" else 0
    if mark.spans:
        reach = [
            [middle - low for middle, (low, _) in zip(y, mark.spans, strict=True)],
            [high - middle for middle, (_, high) in zip(y, mark.spans, strict=True)],
        ]
        axes.errorbar(x, y, yerr=reach, fmt="none", ecolor=style.color, elinewidth=1.3, capsize=3)
    if x:
        axes.scatter(x, y, _AREA_OF * style.size**2, label=style.label, zorder=3, **options)


@_draw.register
def _(mark: Line, axes: Axes, places: _Places) -> None:
    style = mark.style
    options: dict[str, Any] = {"color": style.color, "linewidth": 0.75 * style.width, "alpha": style.opacity}
    options |= {"linestyle": ":" if style.dash == "dot" else "-", "label": style.label}
    if mark.ends_in_cross or len(mark.x) == 1:
        options |= {"marker": "x" if mark.ends_in_cross else "o", "markevery": [-1], "markersize": 5}
    axes.plot(
        places.on("x", mark.x), places.on("y", mark.y), drawstyle="steps-post" if mark.is_step else "default", **options
    )


@_draw.register
def _(mark: Band, axes: Axes, places: _Places) -> None:
    style = mark.style
    look: dict[str, Any] = {"color": style.color, "alpha": style.opacity, "linewidth": 0, "label": style.label}
    axes.fill_between(places.on("x", mark.x), list(mark.low), list(mark.high), **look)


@_draw.register
def _(mark: Stretch, axes: Axes, _places: _Places) -> None:
    style = mark.style
    axes.axvspan(mark.low, mark.high, color=style.color, alpha=style.opacity, linewidth=0, label=style.label)


@_draw.register
def _(mark: Bars, axes: Axes, places: _Places) -> None:
    style, lengths = mark.style, list(mark.lengths.values())
    spans = [mark.spans.get(name, (length, length)) for name, length in mark.lengths.items()]
    reach = [
        [length - low for length, (low, _) in zip(lengths, spans, strict=True)],
        [high - length for length, (_, high) in zip(lengths, spans, strict=True)],
    ]
    axes.barh(
        places.on("y", mark.lengths),
        lengths,
        _BAR * 0.9,
        color=style.color,
        hatch="////" if mark.has_pattern else "",
        edgecolor="white",
        linewidth=0,
        label=style.label,
        xerr=reach,
        error_kw={"ecolor": TEXT, "elinewidth": 1.1, "capsize": 2.5},
    )


@_draw.register
def _(mark: Words, axes: Axes, places: _Places) -> None:
    alignment, shift = ("bottom", 4) if mark.side == "above" else ("top", -4)
    for x, y, word in zip(places.on("x", mark.x), places.on("y", mark.y), mark.words, strict=True):
        look: dict[str, Any] = {"ha": "center", "va": alignment, "fontsize": 8, "color": TEXT}
        axes.annotate(word, (x, y), xytext=(0, shift), textcoords="offset points", **look)


@_draw.register
def _(mark: Cells, axes: Axes, _places: _Places) -> None:
    numbers = [[float("nan") if value is None else value for value in row] for row in mark.values]
    axes.grid(visible=False)
    axes.imshow(numbers, cmap=_BETWEEN_BLUE_AND_ORANGE, vmin=-1, vmax=1, aspect="auto")
    for y, row in enumerate(mark.values):
        for x, value in enumerate(row):
            if value is not None:
                color = "white" if abs(value) > _STRONG else TEXT
                axes.text(x, y, mark.words[y][x], ha="center", va="center", fontsize=9, color=color)


def _add_legend(figure: Figure, grid: Sequence[Axes]) -> None:
    handles: dict[str, Any] = {}
    for axes in grid:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True) if label}
    if handles:
        look = {"ncols": 4, "frameon": False, "fontsize": 9}
        figure.legend(list(handles.values()), list(handles), loc="outside upper left", **look)
