"""What the figures show, and that both programs that draw them draw all of it."""

from collections.abc import Callable
from dataclasses import replace

import plotly.graph_objects as go
import pytest
from planted_studies import LEARNING_RATE, MOMENTUM, TRUTHS, Truth, plant

from hpopt.analysis.insights import compute_insights
from hpopt.analysis.trials import CurvePoint, StudyTable, TrialRow
from hpopt.reporting import interactive, pictures, selection
from hpopt.reporting.chart import Axis, Band, Bars, Cells, Chart, Line, Panel, Points, Stretch, Style, Words
from hpopt.reporting.charts import CHART_NAMES, draw_charts
from hpopt.reporting.trial_charts import draw_curves, draw_history, draw_parallel
from hpopt.search.space import Categorical

MakeTable = Callable[..., StudyTable]
MakeTrial = Callable[..., TrialRow]


def charts_of(table: StudyTable) -> dict[str, Chart]:
    return draw_charts(table, compute_insights(table))


def panel_of(table: StudyTable, name: str) -> Panel:
    (found,) = (panel for panel in charts_of(table)["sensitivity"].panels if panel.x.title == name)
    return found


def trace(figure: go.Figure, name: str) -> go.Scatter:
    (found,) = (each for each in figure.data if each.name == name and each.showlegend is not False)
    return found


def test_best_complete_and_pruned_differ_in_shape(table: StudyTable):
    """Color alone says nothing to one reader in twelve, nor on paper."""
    styles = {mark.style.symbol for mark in panel_of(table, "learning_rate").marks if isinstance(mark, Points)}
    assert styles == {"star", "circle", "cross"}


def test_a_parameter_searched_in_the_logarithm_has_a_logarithmic_axis(table: StudyTable):
    axes = {panel.x.title: (panel.x.is_log, panel.x.names) for panel in charts_of(table)["sensitivity"].panels}
    choices = ("cosine", "linear")
    assert axes == {
        "learning_rate": (True, ()),
        "momentum": (False, ()),
        "ns_steps": (False, ()),
        "schedule": (False, choices),
    }


@pytest.mark.parametrize(("direction", "sign"), [("minimize", 1), ("maximize", -1)])
def test_a_diverged_trial_does_not_flatten_the_others(
    make_table: MakeTable, make_trial: MakeTrial, direction: str, sign: int
):
    rows = [make_trial(i, value=sign * (3 + i / 10)) for i in range(10)]
    table = make_table(*rows, make_trial(10, state="PRUNED", value=sign * 1e9), direction=direction)
    axis = draw_history(table).panels[0].y
    low, high = axis.span
    assert low < min(sign * 3, sign * 3.9) < max(sign * 3, sign * 3.9) < high
    assert high - low < 2
    assert axis.note == "1 beyond this range"


def test_axes_have_units_where_they_are_known(table: StudyTable):
    axes = [(panel.x.label, panel.y.label) for panel in charts_of(table)["sensitivity"].panels]
    assert ("ns_steps (iterations)", "val_loss (nats per token)") in axes
    assert draw_curves(table).panels[0].x.label == "tokens trained"
    others = draw_history(replace(table, objective="mymodule:train")).panels[0]
    assert others.y.label == "val_loss"


def test_the_best_so_far_only_gets_better(table: StudyTable):
    values = [value for _, value in selection.best_so_far(table)]
    assert values == sorted(values, reverse=True)
    figure = interactive.draw(draw_history(table))
    assert trace(figure, "best so far").y[-1] == pytest.approx(min(row.value for row in table.complete()), rel=1e-4)


def test_curves_of_many_evaluations_are_thinned_to_their_ends(make_table: MakeTable, make_trial: MakeTrial):
    curve = tuple(CurvePoint(step=i, tokens=i, seconds=i, value=float(i)) for i in range(1, 10_001))
    points = selection.finite_points(make_trial(0, curve=curve))
    assert len(points) == selection.POINTS_PER_CURVE
    assert (points[0].step, points[-1].step) == (1, 10_000)


def test_without_tokens_the_curves_are_drawn_over_steps(make_table: MakeTable, make_trial: MakeTrial):
    curve = tuple(CurvePoint(step=i, tokens=0, seconds=i, value=1 / i) for i in range(1, 5))
    (panel,) = draw_curves(make_table(make_trial(0, curve=curve))).panels
    assert panel.x.title == "step trained"
    assert panel.marks[-1].x == (1, 2, 3, 4)


def test_pruned_trials_stand_at_extrapolated_values_beside_the_curve(table: StudyTable):
    """At the values where they stopped they would all lie high above the curve, and say nothing of where it ends."""
    extrapolated = compute_insights(table).extrapolated
    (pruned,) = (
        mark
        for mark in panel_of(table, "momentum").marks
        if getattr(mark, "style", None) and "pruned" in mark.style.label
    )
    assert sorted(pruned.y) == sorted(each.value for each in extrapolated.values())
    assert min(pruned.y) < min(row.value for row in table.pruned())


def test_the_sensitivity_has_a_band_a_curve_and_the_range_within_noise(table: StudyTable):
    marks = panel_of(table, "learning_rate").marks
    (band,), (curve,) = ([mark for mark in marks if isinstance(mark, kind)] for kind in (Band, Line))
    assert all(low < mean < high for low, mean, high in zip(band.low, curve.y, band.high, strict=True))
    (good,) = (mark for mark in marks if isinstance(mark, Stretch))
    (best,) = (
        parameter.best
        for parameter in compute_insights(table).sensitivity.parameters
        if parameter.name == "learning_rate"
    )
    assert good.low <= best <= good.high


def test_a_curve_over_choices_that_are_numbers_lies_on_them(make_table: MakeTable, make_trial: MakeTrial):
    """0.0002 computed from the ends of its range is 0.00019999999999999998, and would be a choice of its own."""
    choices = (1e-4, 2e-4, 3e-4, 16.0)
    rows = [make_trial(i, params={"rate": choices[i % 4]}, value=3.0 + (i % 4 - 1) ** 2 + i / 1000) for i in range(16)]
    (panel,) = charts_of(make_table(*rows, search_space={"rate": Categorical(choices=choices)}))["sensitivity"].panels
    (curve,) = (mark for mark in panel.marks if isinstance(mark, Line))
    assert curve.x == panel.x.names == ("0.0001", "0.0002", "0.0003", "16.0")


def test_a_cliff_is_marked_on_its_side():
    table = plant(TRUTHS["cliff"], 60, seed=1)
    (panel,) = (panel for panel in charts_of(table)["sensitivity"].panels if panel.x.title == LEARNING_RATE)
    (cliff,) = (mark for mark in panel.marks if isinstance(mark, Stretch) and mark.style.label == "diverges")
    assert (cliff.low, cliff.high) == pytest.approx((compute_insights(table).divergence.cliffs[0].threshold, 0.3))


def test_only_interactions_beyond_chance_are_set_apart():
    (panel,) = charts_of(plant(TRUTHS["interaction"], 60, seed=1))["interactions"].panels
    names = {mark.style.label: set(mark.lengths) for mark in panel.marks}
    assert names["more than chance"] == {f"{LEARNING_RATE} and {MOMENTUM}"}
    assert len(names["may be chance"]) == 9


def test_an_optimum_that_moves_with_the_budget_is_set_apart():
    panels = charts_of(plant(TRUTHS["drift"], 60, seed=1))["budget"].panels
    labels = {panel.title: [mark.style.label for mark in panel.marks if isinstance(mark, Points)] for panel in panels}
    assert [name for name, label in labels.items() if label == ["moves with the budget"]] == [LEARNING_RATE]


def test_the_best_trial_is_at_the_top_of_the_metric_in_parallel_coordinates(table: StudyTable):
    lines = [mark for mark in draw_parallel(table).panels[0].marks if isinstance(mark, Line)]
    assert (lines[-1].style.label, lines[-1].y[-1]) == ("best", 1.0)
    assert {line.y[-1] for line in lines[:1]} == {0.0}
    assert all(0 <= place <= 1 for line in lines for place in line.y)


def full_table() -> StudyTable:
    return plant(Truth(effect=TRUTHS["interaction"].effect, diverges=TRUTHS["cliff"].diverges), 60, seed=0)


def test_every_figure_is_drawn_by_both_and_small_enough_to_be_sent_with_each_poll(tmp_path):
    charts = charts_of(full_table())
    assert list(charts) == list(CHART_NAMES)
    for chart in charts.values():
        assert len(interactive.draw_card(chart, 450).to_json()) < 60_000
        pictures.write_picture(chart, tmp_path / "picture.png")
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def every_mark() -> Chart:
    """One of each, on axes of numbers, names and logarithms."""
    style = Style(color=selection.BEST, label="x")
    marks = (
        Points(x=("a",), y=(1.0,), spans=((0.5, 1.5),), style=style),
        Line(x=("a", "b"), y=(1.0, 2.0), style=style, ends_in_cross=True),
        Band(x=("a", "b"), low=(1.0, 1.0), high=(2.0, 2.0), style=style),
        Words(x=("a",), y=(1.0,), words=("low",), side="below"),
    )
    bars = Bars(lengths={"p": 0.5}, spans={"p": (0.2, 0.7)}, style=style, has_pattern=True)
    cells = Cells(x=("a",), y=("p", "q"), values=((0.5,), (None,)), words=(("+0.50",), ("",)))
    return Chart(
        name="all",
        title="all",
        panels=(
            Panel(x=Axis(names=("a", "b")), y=Axis(is_log=True, span=(0.1, 10.0)), marks=marks),
            Panel(x=Axis(format="percent"), y=Axis(names=("p", "q")), marks=(bars,)),
            Panel(x=Axis(names=("a",)), y=Axis(names=("p", "q")), marks=(cells,)),
            Panel(x=Axis(span=(0, 1)), y=Axis(span=(0, 1)), marks=(Stretch(low=0.2, high=0.4, style=style),)),
        ),
    )


def test_both_know_every_mark(tmp_path):
    """A mark that one of them left out would be missing from every second figure, without a word."""
    figure = interactive.draw(every_mark())
    kinds = [type(each).__name__ for each in figure.data]
    assert kinds == ["Scatter", "Scatter", "Scatter", "Bar", "Heatmap", "Scatter"]
    assert [annotation.text for annotation in figure.layout.annotations] == ["low"]
    pictures.write_picture(every_mark(), tmp_path / "all.png")


def test_names_cannot_break_out_of_a_figure(make_table: MakeTable, make_trial: MakeTrial):
    """Plotly reads some HTML in texts."""
    hostile = "<a href='https://evil.example'>x</a>"
    table = make_table(*(make_trial(i) for i in range(12)), metric=hostile)
    table = replace(table, trials=tuple(replace(row, metrics={hostile: row.value}) for row in table.trials))
    for chart in charts_of(table).values():
        figure = interactive.draw_card(chart, 450)
        texts = [figure.layout.yaxis.title.text or "", *(trace.name or "" for trace in figure.data)]
        texts += [text for trace in figure.data for text in (getattr(trace, "hovertext", None) or ())]
        assert not [text for text in texts if "<a" in text]


def test_names_are_shown_as_they_are(make_table: MakeTable, make_trial: MakeTrial, tmp_path):
    """Dollars are a formula to matplotlib, and angle brackets HTML to plotly."""
    names = ("$x_{$", "<think>", '"')
    rows = [make_trial(i, params={"schedule": names[i % 3]}) for i in range(12)]
    table = make_table(*rows, metric="$a^$", search_space={"schedule": Categorical(choices=names)})
    charts = charts_of(table)
    for chart in charts.values():
        pictures.write_picture(chart, tmp_path / "picture.png")
    assert interactive.draw(charts["sensitivity"]).layout.xaxis.categoryarray == ("$x_{$", "&lt;think&gt;", '"')


def test_numeric_choices_are_drawn_in_their_order(make_table: MakeTable, make_trial: MakeTrial):
    """The curve goes from low to high, whatever the order in the file; it would fold back on itself."""
    choices = (64, 16, 32, 128)
    rows = [make_trial(i, params={"width": choices[i % 4]}) for i in range(12)]
    (panel,) = charts_of(make_table(*rows, search_space={"width": Categorical(choices=choices)}))["sensitivity"].panels
    assert panel.x.names == ("16", "32", "64", "128")


def test_nothing_to_draw_is_no_figure(make_table: MakeTable, make_trial: MakeTrial):
    table = make_table(
        make_trial(0, state="RUNNING", value=None, curve=()), make_trial(1, value=float("nan"), curve=())
    )
    assert charts_of(table) == {}
