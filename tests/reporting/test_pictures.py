"""Charts drawn by matplotlib."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle

from hpopt.reporting import pictures
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
from hpopt.reporting.charts import CHART_NAMES

BLUE = Style(color="#0072b2", label="blue")


def draw_panel(*marks: Mark, x: Axis | None = None, y: Axis | None = None) -> Axes:
    panel = Panel(x=x or Axis(), y=y or Axis(), marks=marks)
    (axes,) = pictures.draw_picture(Chart(name="a", title="a", panels=(panel,))).axes
    return axes


def positions(axis: Axis, coordinates: Iterable[Coordinate]) -> list[float]:
    return [axis.categories.index(value) if isinstance(value, str) else value for value in coordinates]


def tick_labels(axes: Axes, which: str) -> list[str]:
    return [label.get_text() for label in getattr(axes, f"get_{which}ticklabels")()]


def test_points_are_markers_with_error_bars():
    style = Style(color="#d55e00", label="best", symbol="star", size=10, opacity=0.5)
    axes = draw_panel(Points(x=(1.0, 2.0), y=(3.0, 5.0), intervals=((2.5, 4.0), (5.0, 6.0)), style=style))
    (points,) = (artist for artist in axes.collections if isinstance(artist, PathCollection))
    assert points.get_offsets().tolist() == [[1, 3], [2, 5]]
    assert (points.get_label(), to_hex(points.get_facecolor()[0]), points.get_alpha()) == ("best", "#d55e00", 0.5)
    star = MarkerStyle("*")
    assert np.array_equal(points.get_paths()[0].vertices, star.get_path().transformed(star.get_transform()).vertices)
    (bars,) = (artist for artist in axes.collections if isinstance(artist, LineCollection))
    assert [segment.tolist() for segment in bars.get_segments()] == [[[1, 2.5], [1, 4]], [[2, 5], [2, 6]]]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"drawstyle": "default", "marker": "None", "linestyle": "-"}),
        ({"is_step": True}, {"drawstyle": "steps-post"}),
        ({"ends_in_cross": True}, {"marker": "x", "markevery": [-1]}),
        ({"style": Style(color="#0072b2", dash="dot", width=4)}, {"linestyle": ":", "linewidth": 3.0}),
    ],
)
def test_lines_have_their_data_and_style(changes: dict[str, Any], expected: dict[str, Any]):
    (line,) = draw_panel(Line(**{"x": (1.0, 2.0, 4.0), "y": (3.0, 5.0, 4.0), "style": BLUE} | changes)).lines
    assert line.get_xydata().tolist() == [[1, 3], [2, 5], [4, 4]]
    assert {name: getattr(line, f"get_{name}")() for name in expected} == expected
    assert to_hex(line.get_color()) == "#0072b2"


def test_a_line_of_one_point_is_a_marker():
    (line,) = draw_panel(Line(x=(1.0,), y=(3.0,), style=BLUE)).lines
    assert line.get_marker() == "o"


def test_a_band_covers_the_area_between_its_lines():
    (band,) = draw_panel(Band(x=(1.0, 2.0), low=(3.0, 4.0), high=(5.0, 7.0), style=BLUE)).collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.tolist()}
    assert corners == {(1, 3), (2, 4), (1, 5), (2, 7)}


def test_a_vertical_span_covers_its_part_of_the_axis():
    axes = draw_panel(VerticalSpan(low=0.2, high=0.5, style=BLUE), x=Axis(limits=(0, 1)), y=Axis(limits=(2, 3)))
    (span,) = axes.patches
    assert (span.get_x(), span.get_width()) == pytest.approx((0.2, 0.3))
    assert (span.get_y(), span.get_height()) == (0, 1)
    assert axes.get_ylim() == (2, 3)


def test_bars_are_in_the_rows_of_their_categories_with_error_bars():
    bars = Bars(lengths={"q": 0.5, "p": 0.25}, intervals={"q": (0.2, 0.75)}, style=BLUE, is_hatched=True)
    axes = draw_panel(bars, x=Axis(format="percent"), y=Axis(categories=("p", "q")))
    drawn = {bar.get_y() + bar.get_height() / 2: bar.get_width() for bar in axes.patches}
    assert drawn == pytest.approx({1: 0.5, 0: 0.25})
    assert {bar.get_hatch() for bar in axes.patches} == {"////"}
    (errors,) = (artist for artist in axes.collections if isinstance(artist, LineCollection))
    ends = [segment[:, 0].tolist() for segment in errors.get_segments()]
    assert ends == [pytest.approx([0.2, 0.75]), pytest.approx([0.25, 0.25])]


def test_bars_of_two_measures_are_side_by_side():
    first, second = (Bars(lengths={"p": length, "q": length}, intervals={}, style=BLUE) for length in (0.25, 0.5))
    axes = draw_panel(first, second, y=Axis(categories=("p", "q")))
    edges = {bar.get_width(): (bar.get_y(), bar.get_y() + bar.get_height()) for bar in axes.patches[::2]}
    assert -0.5 < edges[0.25][0] < edges[0.25][1] <= edges[0.5][0] < edges[0.5][1] < 0.5


def test_annotations_are_above_or_below_their_points():
    axis = Axis(categories=("a", "b"))
    low = Annotations(x=("a", "b"), y=(0.0, 0.0), texts=("1", "2"), position="below")
    high = Annotations(x=("b",), y=(1.0,), texts=("3",), position="above")
    texts = [(text.get_text(), text.xy, text.get_va()) for text in draw_panel(low, high, x=axis).texts]
    assert texts == [("1", (0, 0), "top"), ("2", (1, 0), "top"), ("3", (1, 1), "bottom")]


def test_a_heatmap_has_a_color_and_a_text_for_each_value():
    heatmap = Heatmap(x=("a", "b"), y=("p",), values=((0.9, None),), texts=(("+0.90*", ""),))
    axes = draw_panel(heatmap, x=Axis(categories=("a", "b")), y=Axis(categories=("p",)))
    (image,) = axes.images
    assert image.get_array().tolist() == [[0.9, None]]
    assert image.get_clim() == (-1, 1)
    assert to_hex(image.to_rgba(np.array([1.0]))[0]) == "#d55e00"
    assert [(text.get_text(), text.get_position(), text.get_color()) for text in axes.texts] == [
        ("+0.90*", (0, 0), "white")
    ]


def test_axes_have_labels_units_limits_and_notes():
    axes = draw_panel(
        Points(x=(1.0,), y=(2.0,), style=BLUE),
        x=Axis(title="momentum", limits=(0, 4)),
        y=Axis(title="val_loss", unit="nats per token", limits=(1, 3), note="2 beyond this range"),
    )
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("momentum", "val_loss (nats per token)")
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 4), (1, 3))
    assert [text.get_text() for text in axes.texts] == ["2 beyond this range"]


def test_a_logarithmic_axis_has_ticks_at_1_2_and_5_of_each_decade():
    axes = draw_panel(
        Points(x=(1.0,), y=(2.0,), style=BLUE),
        x=Axis(is_log=True, limits=(0.1, 5)),
        y=Axis(is_log=True, limits=(1e-4, 1)),
    )
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert {"0.1", "0.2", "0.5", "1", "2", "5"} <= set(tick_labels(axes, "x"))
    assert {"0.0001", "0.001", "0.01", "0.1", "1"} <= set(tick_labels(axes, "y"))
    assert "0.2" not in tick_labels(axes, "y")


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        (Axis(limits=(0, 0.5)), {"0", "0.1", "0.2"}),
        (Axis(limits=(0, 40_000)), {"0", "10k", "40k"}),
        (Axis(limits=(0, 0.5), format="percent"), {"0%", "10%", "20%"}),
        (Axis(limits=(0, 3), format="whole"), {"0", "1", "2", "3"}),
        (Axis(limits=(0, 3), format="none"), set()),
        (Axis(categories=("cosine", "linear")), {"cosine", "linear"}),
    ],
)
def test_tick_labels_have_the_format_of_the_axis(axis: Axis, expected: set[str]):
    labels = tick_labels(draw_panel(x=axis), "x")
    assert expected <= set(labels)
    if axis.format in {"whole", "none"}:
        assert set(labels) == expected


def test_the_first_category_is_at_the_top_and_at_the_left():
    categories = ("a", "b", "c")
    axes = draw_panel(x=Axis(categories=categories), y=Axis(categories=categories))
    assert (axes.get_xlim(), axes.get_ylim()) == ((-0.5, 2.5), (2.5, -0.5))
    assert tick_labels(axes, "x") == tick_labels(axes, "y") == list(categories)


def test_panels_are_in_two_columns_and_the_last_cell_is_empty(every_mark: Chart):
    figure = pictures.draw_picture(Chart(name="a", title="a", panels=every_mark.panels[:3]))
    assert [axes.get_visible() for axes in figure.axes] == [True, True, True, False]
    assert {axes.get_gridspec().get_geometry() for axes in figure.axes} == {(2, 2)}


def test_each_label_is_in_the_legend_once_as_its_first_mark():
    line, points = Line(x=(1.0,), y=(1.0,), style=BLUE), Points(x=(1.0,), y=(1.0,), style=BLUE)
    other = replace(points, style=Style(color="#d55e00", label="orange"))
    panels = tuple(Panel(x=Axis(), y=Axis(), marks=marks) for marks in ((line,), (points, other)))
    (legend,) = pictures.draw_picture(Chart(name="a", title="a", panels=panels)).legends
    assert [text.get_text() for text in legend.get_texts()] == ["blue", "orange"]
    assert [type(handle).__name__ for handle in legend.legend_handles] == ["Line2D", "PathCollection"]


def test_marks_without_a_label_have_no_legend():
    line = Line(x=(1.0, 2.0), y=(1.0, 2.0), style=Style(color="#0072b2"))
    assert draw_panel(line).figure.legends == []


def assert_drawn(mark: Mark, panel: Panel, axes: Axes) -> None:
    """Assert that the axes have artists with all data of a mark."""
    if isinstance(mark, Points | Line) and mark.x:
        expected = np.column_stack([positions(panel.x, mark.x), positions(panel.y, mark.y)])
        drawn = (
            [artist.get_offsets() for artist in axes.collections if isinstance(artist, PathCollection)]
            if isinstance(mark, Points)
            else [line.get_xydata() for line in axes.lines]
        )
        assert any(np.array_equal(data, expected) for data in drawn), mark.style.label
    elif isinstance(mark, Bars):
        lengths = [[bar.get_width() for bar in group] for group in axes.containers if isinstance(group, BarContainer)]
        assert list(mark.lengths.values()) in lengths
    elif isinstance(mark, Annotations):
        assert set(mark.texts) <= {text.get_text() for text in axes.texts}
    elif isinstance(mark, Heatmap):
        values = np.array(mark.values, dtype=float)
        assert np.array_equal(axes.images[0].get_array().filled(np.nan), values, equal_nan=True)
    elif isinstance(mark, Band):
        vertices = [artist.get_paths()[0].vertices for artist in axes.collections]
        assert any({*mark.low, *mark.high} <= set(data[:, 1]) for data in vertices if len(data))
    elif isinstance(mark, VerticalSpan):
        ends = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches]
        assert any(end == pytest.approx((mark.low, mark.high)) for end in ends)


@pytest.mark.parametrize("name", CHART_NAMES)
def test_every_chart_of_a_study_is_drawn_with_its_data(planted_charts: dict[str, Chart], name: str):
    chart = planted_charts[name]
    shown = [axes for axes in pictures.draw_picture(chart).axes if axes.get_visible()]
    for axes, panel in zip(shown, chart.panels, strict=True):
        assert (axes.get_xlabel(), axes.get_ylabel()) == (panel.x.label, panel.y.label)
        assert (axes.get_xscale() == "log", axes.get_yscale() == "log") == (panel.x.is_log, panel.y.is_log)
        assert panel.marks
        for mark in panel.marks:
            assert_drawn(mark, panel, axes)


def test_dollar_signs_are_no_formula(tmp_path: Path):
    axis = Axis(title="$a^$", categories=("$x_{$", "$"))
    panel = Panel(x=axis, y=Axis(), marks=(Points(x=("$x_{$",), y=(2.0,), style=BLUE),))
    pictures.write_picture(Chart(name="a", title="a", panels=(panel,)), tmp_path / "a.png")
    pictures.write_table(["$a^$"], [["$x_{$"]], tmp_path / "table.png")
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("a.png", "table.png"))


def cell_texts(figure: Figure) -> dict[tuple[int, int], str]:
    (axes,) = figure.axes
    (table,) = axes.tables
    return {cell: artist.get_text().get_text() for cell, artist in table.get_celld().items()}


def test_a_table_has_its_header_and_rows_with_the_first_in_bold():
    figure = pictures.draw_table(["trial", "val_loss"], [["3", "2.8758"], ["1", "2.9"]])
    assert cell_texts(figure) == {
        (0, 0): "trial",
        (0, 1): "val_loss",
        (1, 0): "3",
        (1, 1): "2.8758",
        (2, 0): "1",
        (2, 1): "2.9",
    }
    cells = figure.axes[0].tables[0].get_celld()
    assert [cells[row, 0].get_text().get_weight() for row in range(3)] == ["normal", "bold", "normal"]
