"""What the charts show."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from planted_studies import LEARNING_RATE, MOMENTUM, TRUTHS, plant

from hpopt.analysis.trials import CurvePoint, StudyTable, TrialRow
from hpopt.reporting import selection
from hpopt.reporting.chart import Band, Chart, Line, Panel, Points, VerticalSpan
from hpopt.reporting.charts import CHART_NAMES, draw_charts
from hpopt.reporting.summary import Summary, summarize
from hpopt.reporting.trial_charts import draw_curves, draw_history, draw_parallel
from hpopt.search.space import Categorical

MakeTable = Callable[..., StudyTable]
MakeTrial = Callable[..., TrialRow]
Charts = dict[str, Chart]


def charts_of(table: StudyTable) -> Charts:
    return draw_charts(table, summarize(table).insights)


def panel_of(charts: Charts, name: str) -> Panel:
    (panel,) = (panel for panel in charts["sensitivity"].panels if panel.x.title == name)
    return panel


def test_charts_are_in_the_documented_order(planted_charts: Charts):
    assert list(planted_charts) == list(CHART_NAMES)


def test_best_complete_and_pruned_differ_in_shape(charts: Charts):
    """One reader in twelve cannot tell the colors apart, and none can in a black-and-white print."""
    marks = panel_of(charts, "learning_rate").marks
    assert {mark.style.symbol for mark in marks if isinstance(mark, Points)} == {"star", "circle", "cross"}


def test_a_parameter_with_a_logarithmic_range_has_a_logarithmic_axis(charts: Charts):
    axes = {panel.x.title: (panel.x.is_log, panel.x.categories) for panel in charts["sensitivity"].panels}
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
    low, high = axis.limits
    assert low < min(sign * 3, sign * 3.9) < max(sign * 3, sign * 3.9) < high
    assert high - low < 2
    assert axis.note == "1 beyond this range"


def test_axes_have_units_if_they_are_known(table: StudyTable, charts: Charts):
    labels = [(panel.x.label, panel.y.label) for panel in charts["sensitivity"].panels]
    assert ("ns_steps (iterations)", "val_loss (nats per token)") in labels
    assert charts["curves"].panels[0].x.label == "tokens"
    custom = draw_history(replace(table, objective="mymodule:train")).panels[0]
    assert custom.y.label == "val_loss"


def test_the_best_so_far_only_improves(table: StudyTable, charts: Charts):
    values = [value for _, value in selection.find_improvements(table)]
    assert values == sorted(values, reverse=True)
    (line,) = (mark for mark in charts["history"].panels[0].marks if isinstance(mark, Line))
    assert line.y[:-1] == tuple(values)
    assert (line.x[-1], line.y[-1]) == (39, min(row.value for row in table.complete()))


def test_curves_of_many_evaluations_are_thinned_but_keep_their_ends(make_trial: MakeTrial):
    curve = tuple(CurvePoint(step=i, tokens=i, seconds=i, value=float(i)) for i in range(1, 10_001))
    points = selection.thin_curve(make_trial(0, curve=curve))
    assert len(points) == selection.POINTS_PER_CURVE
    assert (points[0].step, points[-1].step) == (1, 10_000)


def test_without_tokens_the_curves_are_drawn_over_steps(make_table: MakeTable, make_trial: MakeTrial):
    curve = tuple(CurvePoint(step=i, tokens=0, seconds=i, value=1 / i) for i in range(1, 5))
    (panel,) = draw_curves(make_table(make_trial(0, curve=curve))).panels
    assert panel.x.title == "steps"
    assert panel.marks[-1].x == (1, 2, 3, 4)


def test_the_curves_caption_counts_what_is_drawn(table: StudyTable, charts: Charts):
    lines = charts["curves"].panels[0].marks
    assert len([line for line in lines if line.ends_in_cross]) == 13
    assert charts["curves"].caption == "The best 5 of 26 complete trials, and the longest 13 of 13 pruned trials."


def test_pruned_trials_are_at_extrapolated_values_in_sensitivity_panels(
    table: StudyTable, summary: Summary, charts: Charts
):
    """The values at which they stopped are high above the curve and do not show where it ends."""
    marks = panel_of(charts, "momentum").marks
    (pruned,) = (mark for mark in marks if isinstance(mark, Points) and "pruned" in mark.style.label)
    assert sorted(pruned.y) == sorted(value.value for value in summary.insights.extrapolated.values())
    assert min(pruned.y) < min(row.value for row in table.pruned())


def test_sensitivity_has_a_band_a_curve_and_a_good_range(summary: Summary, charts: Charts):
    marks = panel_of(charts, "learning_rate").marks
    (band,), (curve,) = ([mark for mark in marks if isinstance(mark, kind)] for kind in (Band, Line))
    assert all(low < mean < high for low, mean, high in zip(band.low, curve.y, band.high, strict=True))
    (good,) = (mark for mark in marks if isinstance(mark, VerticalSpan))
    (optimum,) = (
        parameter.best for parameter in summary.insights.sensitivity.parameters if parameter.name == "learning_rate"
    )
    assert good.low <= optimum <= good.high


def test_a_curve_over_numeric_choices_has_a_point_at_each_choice(make_table: MakeTable, make_trial: MakeTrial):
    """0.0002 computed from the ends of its range is 0.00019999999999999998, which would be another category."""
    choices = (1e-4, 2e-4, 3e-4, 16.0)
    rows = [make_trial(i, params={"rate": choices[i % 4]}, value=3.0 + (i % 4 - 1) ** 2 + i / 1000) for i in range(16)]
    (panel,) = charts_of(make_table(*rows, search_space={"rate": Categorical(choices=choices)}))["sensitivity"].panels
    (curve,) = (mark for mark in panel.marks if isinstance(mark, Line))
    assert curve.x == panel.x.categories == ("0.0001", "0.0002", "0.0003", "16.0")


def test_numeric_choices_are_sorted(make_table: MakeTable, make_trial: MakeTrial):
    """In the order of the study file the curve would fold back on itself."""
    choices = (64, 16, 32, 128)
    rows = [make_trial(i, params={"width": choices[i % 4]}) for i in range(12)]
    (panel,) = charts_of(make_table(*rows, search_space={"width": Categorical(choices=choices)}))["sensitivity"].panels
    assert panel.x.categories == ("16", "32", "64", "128")


def test_the_range_where_trials_diverge_is_shaded(planted_summary: Summary, planted_charts: Charts):
    marks = panel_of(planted_charts, LEARNING_RATE).marks
    (span,) = (mark for mark in marks if isinstance(mark, VerticalSpan) and mark.style.label == "diverges")
    (cliff,) = planted_summary.insights.divergence.cliffs
    assert (span.low, span.high) == pytest.approx((cliff.threshold, 0.3))


def test_significant_interactions_are_set_apart(planted_charts: Charts):
    (panel,) = planted_charts["interactions"].panels
    pairs = {mark.style.label: set(mark.lengths) for mark in panel.marks}
    assert pairs["significant"] == {f"{LEARNING_RATE} and {MOMENTUM}"}
    assert len(pairs["not significant"]) == 9


def test_an_optimum_that_shifts_with_training_length_is_set_apart():
    panels = charts_of(plant(TRUTHS["drift"], 60, seed=1))["budget"].panels
    labels = {panel.title: [mark.style.label for mark in panel.marks if isinstance(mark, Points)] for panel in panels}
    assert [name for name, label in labels.items() if label == ["shifts significantly"]] == [LEARNING_RATE]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_the_best_trial_is_at_the_top_of_the_metric_in_parallel_coordinates(
    make_table: MakeTable, make_trial: MakeTrial, direction: str
):
    table = make_table(*(make_trial(i) for i in range(12)), direction=direction)
    (panel,) = draw_parallel(table).panels
    lines = [mark for mark in panel.marks if isinstance(mark, Line)]
    assert (lines[-1].style.label, lines[-1].y[-1]) == ("best trial", 1.0)
    assert lines[0].y[-1] == 0.0
    assert all(0 <= height <= 1 for line in lines for height in line.y)
    below, above = panel.marks[-2:]
    assert [float(label.texts[-1]) for label in (below, above)] == pytest.approx(
        [table.ranked()[rank].value for rank in (-1, 0)], abs=1e-4
    )


def test_a_study_without_values_has_no_charts(make_table: MakeTable, make_trial: MakeTrial):
    running = make_trial(0, state="RUNNING", value=None, curve=())
    assert charts_of(make_table(running, make_trial(1, value=float("nan"), curve=()))) == {}
