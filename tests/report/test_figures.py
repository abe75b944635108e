from collections.abc import Callable

import plotly.graph_objects as go
import pytest

from hpopt.analysis.importance import measure_importance
from hpopt.analysis.trials import CurvePoint, StudyTable, TrialRow
from hpopt.report import figures, selection

MakeTable = Callable[..., StudyTable]
MakeTrial = Callable[..., TrialRow]


def trace(figure: go.Figure | None, name: str) -> go.Scatter:
    assert figure is not None
    (found,) = (each for each in figure.data if each.name == name and each.showlegend is not False)
    return found


def test_best_complete_and_pruned_differ_in_shape(table: StudyTable):
    """Color alone says nothing to one reader in twelve, nor on paper."""
    figure = figures.draw_parameter(table, "learning_rate")
    shapes = {trace(figure, name).marker.symbol for name in ("best", "complete", "pruned")}
    assert len(shapes) == 3


def test_a_parameter_searched_in_the_logarithm_has_a_logarithmic_axis(table: StudyTable):
    axes = {name: figures.draw_parameter(table, name).layout.xaxis.type for name in table.search_space}
    assert axes == {"learning_rate": "log", "momentum": None, "ns_steps": None, "schedule": "category"}


@pytest.mark.parametrize(("direction", "sign"), [("minimize", 1), ("maximize", -1)])
def test_a_diverged_trial_does_not_flatten_the_others(
    make_table: MakeTable, make_trial: MakeTrial, direction: str, sign: int
):
    rows = [make_trial(i, value=sign * (3 + i / 10)) for i in range(10)]
    table = make_table(*rows, make_trial(10, state="PRUNED", value=sign * 1e9), direction=direction)
    figure = figures.draw_history(table)
    assert figure is not None
    low, high = figure.layout.yaxis.range
    assert low < min(sign * 3, sign * 3.9) < max(sign * 3, sign * 3.9) < high
    assert high - low < 2
    assert "1 beyond this range" in figure.layout.xaxis.title.text


def test_the_best_so_far_only_gets_better(table: StudyTable):
    values = [value for _, value in selection.best_so_far(table)]
    assert values == sorted(values, reverse=True)
    assert trace(figures.draw_history(table), "best so far").y[-1] == min(row.value or 9 for row in table.complete())


def test_curves_of_many_evaluations_are_thinned_to_their_ends(make_table: MakeTable, make_trial: MakeTrial):
    curve = tuple(CurvePoint(step=i, tokens=i, seconds=i, value=float(i)) for i in range(1, 10_001))
    points = selection.finite_points(make_trial(0, curve=curve))
    assert len(points) == selection.POINTS_PER_CURVE
    assert (points[0].step, points[-1].step) == (1, 10_000)


def test_without_tokens_the_curves_are_drawn_over_steps(make_table: MakeTable, make_trial: MakeTrial):
    curve = tuple(CurvePoint(step=i, tokens=0, seconds=i, value=1 / i) for i in range(1, 5))
    figure = figures.draw_curves(make_table(make_trial(0, curve=curve)))
    assert figure is not None
    assert figure.layout.xaxis.title.text == "step"
    assert list(trace(figure, "best").x) == [1, 2, 3, 4]


def test_figures_stay_small_for_the_dashboard(make_table: MakeTable, make_trial: MakeTrial):
    """It stores them in study attributes of 2 kB each and reads all of them on every poll."""
    table = make_table(*(make_trial(i, state="PRUNED" if i % 2 else "COMPLETE") for i in range(200)))
    drawn = [figures.draw_history(table), figures.draw_curves(table), figures.draw_parameter(table, "momentum")]
    drawn.append(figures.draw_importance(measure_importance(table)))
    for figure in drawn:
        assert figure is not None
        assert len(figure.to_json()) < 60_000


def test_nothing_to_draw_is_no_figure(make_table: MakeTable, make_trial: MakeTrial):
    table = make_table(
        make_trial(0, state="RUNNING", value=None, curve=()), make_trial(1, value=float("nan"), curve=())
    )
    drawn = [figures.draw_history(table), figures.draw_curves(table), figures.draw_parameter(table, "momentum")]
    assert [*drawn, figures.draw_importance(measure_importance(table))] == [None] * 4
