"""Charts drawn by plotly."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from hpopt.analysis.trials import StudyTable, TrialRow
from hpopt.reporting import interactive
from hpopt.reporting.chart import (
    Annotations,
    Axis,
    Band,
    Bars,
    Chart,
    Heatmap,
    Line,
    Mark,
    Panel,
    Points,
    Style,
    VerticalSpan,
)
from hpopt.reporting.charts import CHART_NAMES, draw_charts
from hpopt.reporting.summary import summarize
from hpopt.search.space import Categorical

MakeTable = Callable[..., StudyTable]
MakeTrial = Callable[..., TrialRow]
Charts = dict[str, Chart]


def charts_of(table: StudyTable) -> Charts:
    return draw_charts(table, summarize(table).insights)


def test_every_mark_is_drawn(every_mark: Chart):
    figure = interactive.draw(every_mark)
    kinds = [type(trace).__name__ for trace in figure.data]
    assert kinds == ["Scatter", "Scatter", "Scatter", "Bar", "Heatmap", "Scatter"]
    points, line, band, bars, heatmap, span = figure.data
    assert (points.x, points.y) == (("b",), (1.0,))
    assert (points.error_y.array, points.error_y.arrayminus) == ((0.75,), (0.5,))
    assert (line.x, line.y, line.marker.symbol) == (("a", "b"), (1.0, 2.0), "x")
    assert (band.x, band.y) == (("a", "b", "b", "a"), (1.0, 1.5, 3.0, 2.0))
    assert (bars.y, bars.x, bars.marker.pattern.shape) == (("q",), (0.5,), "/")
    assert bars.error_x.array == pytest.approx((0.2,))
    assert bars.error_x.arrayminus == pytest.approx((0.3,))
    assert bars.customdata == ("20% to 70%",)
    assert list(heatmap.z) == [[0.5], [None]]
    assert (span.x, span.y) == ((0.2, 0.4, 0.4, 0.2), (0, 0, 1, 1))
    (annotation,) = figure.layout.annotations
    assert (annotation.text, annotation.x, annotation.y, annotation.yanchor) == ("low", "b", 1.0, "top")


def test_axes_have_the_scales_of_the_chart(every_mark: Chart):
    layout = interactive.draw(every_mark).layout
    assert (layout.xaxis.type, layout.xaxis.categoryarray) == ("category", ("a", "b"))
    assert (layout.yaxis.type, layout.yaxis.range) == ("log", (-1, 1))
    assert layout.xaxis2.tickformat == ".0%"
    assert layout.yaxis2.autorange == "reversed"


def test_each_label_is_in_the_legend_once(every_mark: Chart):
    assert [trace.showlegend for trace in interactive.draw(every_mark).data if trace.name == "x"].count(True) == 1


def assert_drawn(mark: Mark, trace: Any) -> None:
    """Assert that a trace has all data of a mark."""
    if isinstance(mark, Points | Line):
        for drawn, expected in ((trace.x, mark.x), (trace.y, mark.y)):
            assert drawn == (expected if isinstance(expected[0], str) else pytest.approx(expected, rel=1e-4))
    if isinstance(mark, Points) and mark.intervals:
        for y, (low, high), below, above in zip(
            mark.y, mark.intervals, trace.error_y.arrayminus, trace.error_y.array, strict=True
        ):
            assert (below, above) == pytest.approx((y - low, high - y), rel=1e-4)
    elif isinstance(mark, Bars):
        assert dict(zip(trace.y, trace.x, strict=True)) == pytest.approx(mark.lengths, rel=1e-4)
    elif isinstance(mark, Heatmap):
        assert [tuple(row) for row in trace.text] == list(mark.texts)
    elif isinstance(mark, Band):
        assert trace.y == pytest.approx((*mark.low, *reversed(mark.high)), rel=1e-4)
    elif isinstance(mark, VerticalSpan):
        assert trace.x == pytest.approx((mark.low, mark.high, mark.high, mark.low), rel=1e-4)


@pytest.mark.parametrize("name", CHART_NAMES)
def test_every_chart_of_a_study_is_drawn_with_its_data(planted_charts: Charts, name: str):
    chart = planted_charts[name]
    figure = interactive.draw(chart)
    marks = [mark for panel in chart.panels for mark in panel.marks if getattr(mark, "x", True)]
    annotations = [mark for mark in marks if isinstance(mark, Annotations)]
    for mark, trace in zip((mark for mark in marks if mark not in annotations), figure.data, strict=True):
        assert_drawn(mark, trace)
    texts = [text for mark in annotations for text in mark.texts]
    assert [annotation.text for annotation in figure.layout.annotations] == texts


def test_cards_are_small_enough_to_be_sent_with_each_poll(planted_charts: Charts):
    sizes = {name: len(interactive.draw_card(chart, 450).to_json()) for name, chart in planted_charts.items()}
    assert max(sizes.values()) < 60_000, sizes


def test_a_card_has_title_and_caption():
    panel = Panel(x=Axis(), y=Axis(), marks=(Points(x=(1.0,), y=(2.0,), style=Style(color="#000000")),))
    figure = interactive.draw_card(Chart(name="a", title="Title", panels=(panel,), caption="word " * 30), 450)
    title, *lines = figure.layout.title.text.split("<br>")
    assert (title, len(lines), figure.layout.height) == ("Title", 2, 450)


def test_names_cannot_inject_html(make_table: MakeTable, make_trial: MakeTrial):
    """Plotly renders some HTML in texts."""
    hostile = "<a href='https://evil.example'>x</a>"
    table = make_table(*(make_trial(i) for i in range(12)), metric=hostile)
    table = replace(table, trials=tuple(replace(row, metrics={hostile: row.value}) for row in table.trials))
    for chart in charts_of(table).values():
        assert "<a" not in interactive.draw_card(chart, 450).to_json().replace("\\u003c", "<")


def test_names_are_shown_literally(make_table: MakeTable, make_trial: MakeTrial):
    names = ("$x_{$", "<think>", '"')
    rows = [make_trial(i, params={"schedule": names[i % 3]}) for i in range(12)]
    table = make_table(*rows, search_space={"schedule": Categorical(choices=names)})
    figure = interactive.draw(charts_of(table)["sensitivity"])
    assert figure.layout.xaxis.categoryarray == ("$x_{$", "&lt;think&gt;", '"')
