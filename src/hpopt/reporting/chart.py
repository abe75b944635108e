"""Owns what a figure is: panels with axes and marks, which interactive.py and pictures.py draw alike.

Leaves what is drawn to trial_charts.py and parameter_charts.py.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

# A place on an axis: a number, or a name on an axis of names.
Place = float | str


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis. With `names` its places are these, in their order, and otherwise numbers, counted in `unit`.

    `span` are its ends, None for whatever the marks need. `note` says what is not in the picture.
    """

    title: str = ""
    unit: str = ""
    is_log: bool = False
    names: tuple[str, ...] = ()
    span: tuple[float, float] | None = None
    format: Literal["number", "whole", "percent", "none"] = "number"
    note: str = ""

    @property
    def label(self) -> str:
        """Title and unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


@dataclass(frozen=True, kw_only=True)
class Style:
    """How marks look, and what the legend calls them; marks without a label are not in it."""

    color: str
    label: str = ""
    symbol: Literal["circle", "cross", "star"] = "circle"
    size: float = 8
    width: float = 2
    dash: Literal["solid", "dot"] = "solid"
    opacity: float = 1


@dataclass(frozen=True, kw_only=True)
class Points:
    """Marks at places; `spans` are their intervals along y, `hover` what each says of itself."""

    x: tuple[Place, ...]
    y: tuple[Place, ...]
    style: Style
    spans: tuple[tuple[float, float], ...] = ()
    hover: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line through places; one with `ends_in_cross` was cut short, one that `is_step` holds each value."""

    x: tuple[Place, ...]
    y: tuple[Place, ...]
    style: Style
    is_step: bool = False
    ends_in_cross: bool = False
    hover: str = ""


@dataclass(frozen=True, kw_only=True)
class Band:
    """What lies between two lines."""

    x: tuple[Place, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    style: Style


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A part of the x axis."""

    low: float
    high: float
    style: Style


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Bars along x, one for each name of the y axis that has one, with their intervals; a pattern tells two apart."""

    lengths: Mapping[str, float]
    spans: Mapping[str, tuple[float, float]]
    style: Style
    has_pattern: bool = False


@dataclass(frozen=True, kw_only=True)
class Words:
    """Words beside places."""

    x: tuple[Place, ...]
    y: tuple[Place, ...]
    words: tuple[str, ...]
    side: Literal["above", "below"]


@dataclass(frozen=True, kw_only=True)
class Cells:
    """A number from -1 to 1 for each pair of names, None where there is none, and the words in its place.

    Both have a row for each of y.
    """

    x: tuple[str, ...]
    y: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    words: tuple[tuple[str, ...], ...]


Mark = Points | Line | Band | Stretch | Bars | Words | Cells


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes and what is on it, the first at the bottom; `caption` says in words what to see."""

    x: Axis
    y: Axis
    marks: tuple[Mark, ...]
    title: str = ""
    caption: str = ""

    def looks(self) -> Iterator[tuple[Style, str]]:
        """Give the styles that a legend explains, each with the symbol that it goes with."""
        for mark in self.marks:
            if isinstance(mark, Points) and mark.x:
                yield mark.style, mark.style.symbol
            elif isinstance(mark, Line):
                yield mark.style, "line"
            elif isinstance(mark, Band | Stretch | Bars):
                yield mark.style, "area"


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One figure; `name` is that of its file, `caption` a sentence on how to read it."""

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
    def n_bars(self) -> int:
        """Bars and cells one below the other, for which there must be room."""
        panels = (panel for panel in self.panels if any(isinstance(mark, Bars | Cells) for mark in panel.marks))
        return max((len(panel.y.names) for panel in panels), default=0)
