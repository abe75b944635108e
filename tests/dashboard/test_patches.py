import json
import math
from collections.abc import Sequence

import plotly.graph_objects as go
import pytest
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpopt.dashboard.patches import CURVES_ID, MAX_STOCK_CURVES, N_BEST, replace_curves
from hpopt.reporting.selection import POINTS_PER_CURVE

MINIMIZE, MAXIMIZE = StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE
RESPONSE = {"trials": [], "has_intermediate_values": True, "note": {"body": ""}, "plotly_graph_objects": []}


def study_of(n_trials: int, n_points: int = 3) -> list[FrozenTrial]:
    """Return trials of which a third is complete and the others are pruned; later ones are worse."""
    trials = []
    for number in range(n_trials):
        state = TrialState.COMPLETE if number % 3 == 0 else TrialState.PRUNED
        curve = {step: number + 1 / (step + 1) for step in range(n_points)}
        trials.append(create_trial(state=state, value=float(number), intermediate_values=curve))
        trials[-1].number = number
    return trials


def patch(trials: Sequence[FrozenTrial], direction: StudyDirection = MINIMIZE, **changes: object) -> dict[str, object]:
    return json.loads(replace_curves(json.dumps({**RESPONSE, **changes}).encode(), trials, [direction]))


def figure_of(response: dict[str, object]) -> dict[str, object]:
    """Return the inserted figure, parsed as by the page."""
    (figure,) = [figure for figure in response["plotly_graph_objects"] if figure["id"] == CURVES_ID]
    return json.loads(figure["graph_object"])


def numbers(figure: dict[str, object], name: str) -> list[int]:
    (line,) = [line for line in figure["data"] if line["name"] == name]
    return sorted({number for number in line["text"] if number is not None})


def test_a_small_study_is_not_patched():
    assert patch(study_of(MAX_STOCK_CURVES)) == RESPONSE


@pytest.mark.parametrize("others", [[], [{"id": "theirs", "graph_object": "{}"}]])
def test_in_a_large_study_one_figure_replaces_the_line_for_each_trial(others: list[dict[str, str]]):
    response = patch(study_of(MAX_STOCK_CURVES + 1), plotly_graph_objects=others)
    assert response["has_intermediate_values"] is False
    assert [figure["id"] for figure in response["plotly_graph_objects"]] == [CURVES_ID, *(["theirs"] if others else [])]
    assert {key: response[key] for key in ("trials", "note")} == {"trials": [], "note": {"body": ""}}


def test_keys_within_a_text_are_not_patched():
    text = '"has_intermediate_values": true, "plotly_graph_objects": []'
    response = patch(study_of(300), user_attrs=[{"key": text, "value": text}], note={"body": text})
    assert (response["user_attrs"], response["note"]) == ([{"key": text, "value": text}], {"body": text})
    assert response["has_intermediate_values"] is False


@pytest.mark.parametrize("missing", ["has_intermediate_values", "plotly_graph_objects"])
def test_a_response_in_another_format_is_not_patched(missing: str):
    body = json.dumps({key: value for key, value in RESPONSE.items() if key != missing}).encode()
    assert replace_curves(body, study_of(300), [MINIMIZE]) == body


def test_a_study_with_several_objectives_is_not_patched():
    body = json.dumps(RESPONSE).encode()
    assert replace_curves(body, study_of(300), [MINIMIZE, MINIMIZE]) == body


@pytest.mark.parametrize(("direction", "best"), [(MINIMIZE, 0), (MAXIMIZE, 2997)])
def test_the_best_trials_are_drawn_in_either_direction(direction: StudyDirection, best: int):
    drawn = numbers(figure_of(patch(study_of(3000), direction)), "complete")
    assert {abs(best - 3 * rank) for rank in range(N_BEST)} <= set(drawn)


def test_every_running_trial_is_drawn_and_an_even_sample_of_the_others():
    trials = study_of(1000)
    for trial in trials[500:503]:
        trial.state, trial.values = TrialState.RUNNING, None
    figure = figure_of(patch(trials))
    assert numbers(figure, "running") == [500, 501, 502]
    assert numbers(figure, "pruned") == [number for number in range(0, 1000, 16) if number % 3 and number != 500]


def test_the_sample_stays_while_the_study_grows():
    """Otherwise the figure would jump at each poll."""
    assert numbers(figure_of(patch(study_of(1700))), "pruned") == [
        number for number in numbers(figure_of(patch(study_of(3000))), "pruned") if number < 1700
    ]


def test_curves_are_separated_by_gaps_and_omit_values_that_are_not_finite():
    trials = study_of(300)
    trials[0].intermediate_values = {2: 0.123456789, 0: math.nan, 1: math.inf, 5: 4.0}
    (line,) = [line for line in figure_of(patch(trials))["data"] if line["name"] == "complete"]
    assert (line["x"][:3], line["y"][:3], line["text"][:3]) == ([2, 5, None], [0.12346, 4.0, None], [0, 0, None])


def test_a_long_curve_is_thinned_and_keeps_its_last_point():
    (line,) = [line for line in figure_of(patch(study_of(300, 1000)))["data"] if line["name"] == "complete"]
    steps = line["x"][: line["x"].index(None)]
    assert steps[0] == 0
    assert steps[-1] == 999
    assert POINTS_PER_CURVE / 2 < len(steps) <= POINTS_PER_CURVE + 1


def test_the_figure_of_ten_thousand_trials_is_small():
    """It is sent again with each poll."""
    trials = study_of(10_000, 100)
    assert len(json.dumps(patch(trials))) < 300_000


def test_plotly_accepts_the_figure():
    figure = figure_of(patch(study_of(300)))
    assert len(go.Figure(figure).data) == 3
