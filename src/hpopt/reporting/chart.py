"""Describe a figure as panels with axes and marks, independent of the plotting library.

interactive.py draws charts with plotly, pictures.py with matplotlib.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

# A number, or a category of an axis that has categories.
Coordinate = float | str


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of a panel.

    With `categories` the axis has these values, in their order; otherwise it has numbers in `unit`. `limits` are its
    ends, None to fit the marks. `note` states what the panel does not show.
    """

    title: str = ""
    unit: str = ""
    is_log: bool = False
    categories: tuple[str, ...] = ()
    limits: tuple[float, float] | None = None
    format: Literal["number", "whole", "percent", "none"] = "number"
    note: str = ""

    @property
    def label(self) -> str:
        """Title and unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


@dataclass(frozen=True, kw_only=True)
class Style:
    """The style of a mark, and its label in the legend; a mark without a label has no legend entry.

    `size` and `width` are in pixels.
    """

    color: str
    label: str = ""
    symbol: Literal["circle", "cross", "star"] = "circle"
    size: float = 8
    width: float = 2
    dash: Literal["solid", "dot"] = "solid"
    opacity: float = 1


@dataclass(frozen=True, kw_only=True)
class Points:
    """Markers; `intervals` are their error bars along y (low, high), `hover` is the text of each."""

    x: tuple[Coordinate, ...]
    y: tuple[Coordinate, ...]
    style: Style
    intervals: tuple[tuple[float, float], ...] = ()
    hover: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line; `ends_in_cross` marks a curve that was pruned, `is_step` holds each value until the next."""

    x: tuple[Coordinate, ...]
    y: tuple[Coordinate, ...]
    style: Style
    is_step: bool = False
    ends_in_cross: bool = False
    hover: str = ""


@dataclass(frozen=True, kw_only=True)
class Band:
    """The area between two lines."""

    x: tuple[Coordinate, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    style: Style


@dataclass(frozen=True, kw_only=True)
class VerticalSpan:
    """A part of the x axis, shaded over the whole height of the panel."""

    low: float
    high: float
    style: Style


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Horizontal bars, by category of the y axis, with their error bars (low, high)."""

    lengths: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    style: Style
    is_hatched: bool = False


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """Texts above or below points."""

    x: tuple[Coordinate, ...]
    y: tuple[Coordinate, ...]
    texts: tuple[str, ...]
    position: Literal["above", "below"]


@dataclass(frozen=True, kw_only=True)
class Heatmap:
    """Cells colored by values from -1 to 1, None for no value, with their texts; a row for each category of y."""

    x: tuple[str, ...]
    y: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    texts: tuple[tuple[str, ...], ...]


Mark = Points | Line | Band | VerticalSpan | Bars | Annotations | Heatmap


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A pair of axes with its marks, drawn in order, the first at the bottom."""

    x: Axis
    y: Axis
    marks: tuple[Mark, ...]
    title: str = ""
    caption: str = ""

    def legend_entries(self) -> Iterator[tuple[Style, str]]:
        """Yield the style of each mark that a legend explains, and its symbol: that of its points, line or area."""
        for mark in self.marks:
            if isinstance(mark, Points) and mark.x:
                yield mark.style, mark.style.symbol
            elif isinstance(mark, Line):
                yield mark.style, "line"
            elif isinstance(mark, Band | VerticalSpan | Bars):
                yield mark.style, "area"


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One figure. `name` is its file name without the suffix, `caption` explains how to read it."""

    name: str
    title: str
    panels: tuple[Panel, ...]
    caption: str = ""

    @property
    def n_columns(self) -> int:
        """Panels side by side."""
        return 1 if len(self.panels) == 1 else 2

    @property
    def n_rows(self) -> int:
        """Panels one below the other."""
        return -(-len(self.panels) // self.n_columns)

    @property
    def n_bar_rows(self) -> int:
        """Rows of bars or cells in the panel that has most of them; 0 for a chart without bars and cells."""
        panels = (panel for panel in self.panels if any(isinstance(mark, Bars | Heatmap) for mark in panel.marks))
        return max((len(panel.y.categories) for panel in panels), default=0)
