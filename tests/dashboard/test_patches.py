import json
import math
from collections.abc import Sequence

import plotly.graph_objects as go
import pytest
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpopt.dashboard.patches import FIGURE_ID, MAX_STOCK_CURVES, N_BEST, redraw_curves
from hpopt.reporting.selection import POINTS_PER_CURVE

MINIMIZE, MAXIMIZE = StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE
ANSWER = {"trials": [], "has_intermediate_values": True, "note": {"body": ""}, "plotly_graph_objects": []}


def study_of(n_trials: int, n_points: int = 3) -> list[FrozenTrial]:
    """A third complete, the others pruned; the later, the worse."""
    trials = []
    for number in range(n_trials):
        state = TrialState.COMPLETE if number % 3 == 0 else TrialState.PRUNED
        curve = {step: number + 1 / (step + 1) for step in range(n_points)}
        trials.append(create_trial(state=state, value=float(number), intermediate_values=curve))
        trials[-1].number = number
    return trials


def redraw(trials: Sequence[FrozenTrial], direction: StudyDirection = MINIMIZE, **answer: object) -> dict[str, object]:
    return json.loads(redraw_curves(json.dumps({**ANSWER, **answer}).encode(), trials, [direction]))


def figure_of(answer: dict[str, object]) -> dict[str, object]:
    """Read the figure as the page does."""
    (figure,) = [each for each in answer["plotly_graph_objects"] if each["id"] == FIGURE_ID]
    return json.loads(figure["graph_object"])


def numbers(figure: dict[str, object], name: str) -> list[int]:
    (line,) = [line for line in figure["data"] if line["name"] == name]
    return sorted({number for number in line["text"] if number is not None})


def test_a_small_study_is_left_to_optuna_dashboard():
    assert redraw(study_of(MAX_STOCK_CURVES)) == ANSWER


@pytest.mark.parametrize("others", [[], [{"id": "theirs", "graph_object": "{}"}]])
def test_in_a_large_study_our_figure_takes_the_place_of_a_line_for_each_trial(others: list[dict[str, str]]):
    answer = redraw(study_of(MAX_STOCK_CURVES + 1), plotly_graph_objects=others)
    assert answer["has_intermediate_values"] is False
    assert [figure["id"] for figure in answer["plotly_graph_objects"]] == [FIGURE_ID, *(["theirs"] if others else [])]
    assert {**answer, **{key: ANSWER[key] for key in ("has_intermediate_values", "plotly_graph_objects")}} == ANSWER


def test_what_looks_like_the_answer_within_a_text_is_left_alone():
    text = '"has_intermediate_values": true, "plotly_graph_objects": []'
    answer = redraw(study_of(300), user_attrs=[{"key": text, "value": text}], note={"body": text})
    assert (answer["user_attrs"], answer["note"]) == ([{"key": text, "value": text}], {"body": text})
    assert answer["has_intermediate_values"] is False


@pytest.mark.parametrize("missing", ["has_intermediate_values", "plotly_graph_objects"])
def test_an_answer_of_another_form_is_not_changed(missing: str):
    body = json.dumps({key: value for key, value in ANSWER.items() if key != missing}).encode()
    assert redraw_curves(body, study_of(300), [MINIMIZE]) == body


def test_of_several_objectives_there_are_no_curves():
    body = json.dumps(ANSWER).encode()
    assert redraw_curves(body, study_of(300), [MINIMIZE, MINIMIZE]) == body


@pytest.mark.parametrize(("direction", "best"), [(MINIMIZE, 0), (MAXIMIZE, 2997)])
def test_the_best_curves_are_there_in_either_direction(direction: StudyDirection, best: int):
    drawn = numbers(figure_of(redraw(study_of(3000), direction)), "complete")
    assert {abs(best - 3 * place) for place in range(N_BEST)} <= set(drawn)


def test_every_running_trial_is_drawn_and_an_even_sample_of_the_others():
    trials = study_of(1000)
    for trial in trials[500:503]:
        trial.state, trial.values = TrialState.RUNNING, None
    figure = figure_of(redraw(trials))
    assert numbers(figure, "running") == [500, 501, 502]
    assert numbers(figure, "pruned") == [number for number in range(0, 1000, 16) if number % 3 and number != 500]


def test_the_sample_stays_while_the_study_grows():
    """Otherwise the picture would jump at each poll."""
    assert numbers(figure_of(redraw(study_of(1700))), "pruned") == [
        number for number in numbers(figure_of(redraw(study_of(3000))), "pruned") if number < 1700
    ]


def test_curves_are_divided_by_gaps_and_values_that_are_none_left_out():
    trials = study_of(300)
    trials[0].intermediate_values = {2: 0.123456789, 0: math.nan, 1: math.inf, 5: 4.0}
    (line,) = [line for line in figure_of(redraw(trials))["data"] if line["name"] == "complete"]
    assert (line["x"][:3], line["y"][:3], line["text"][:3]) == ([2, 5, None], [0.12346, 4.0, None], [0, 0, None])


def test_a_long_curve_is_thinned_out_and_keeps_its_end():
    (line,) = [line for line in figure_of(redraw(study_of(300, 1000)))["data"] if line["name"] == "complete"]
    steps = line["x"][: line["x"].index(None)]
    assert steps[0] == 0
    assert steps[-1] == 999
    assert POINTS_PER_CURVE / 2 < len(steps) <= POINTS_PER_CURVE + 1


def test_ten_thousand_trials_need_no_more_than_a_small_figure():
    """It is sent again with each poll."""
    trials = study_of(10_000, 100)
    assert len(json.dumps(redraw(trials))) < 300_000


def test_the_figure_is_one_that_plotly_takes():
    figure = figure_of(redraw(study_of(300)))
    assert len(go.Figure(figure).data) == 3
