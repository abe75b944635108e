"""Every study can be analysed: each analysis returns a result or the reason why there is none."""

import math
from dataclasses import replace
from typing import Any

import pytest

from hpopt.analysis.insights import compute_insights
from hpopt.analysis.trials import TrialRow
from hpopt.findings.detection import detect_findings
from hpopt.search.space import Categorical, Float, Int


def rows_of(params: list[dict[str, Any]], values: list[float]) -> list[TrialRow]:
    return [
        TrialRow(trial=i, state="COMPLETE", value=value, params=own, seed=i)
        for i, (own, value) in enumerate(zip(params, values, strict=True))
    ]


SPACE = {"x": Float(low=0.0, high=1.0), "k": Int(low=3, high=3), "c": Categorical(choices=("a", "b"))}
UNUSUAL = {
    "replicates of one configuration": rows_of([{"x": 0.5, "k": 3, "c": "a"}] * 12, [i / 10 for i in range(12)]),
    "two arms": rows_of([{"x": 0.5, "k": 3, "c": "ab"[i % 2]} for i in range(12)], [i / 10 for i in range(12)]),
    "a value of 1e300": rows_of(
        [{"x": i / 12, "k": 3, "c": "a"} for i in range(12)], [10.0 ** (25 * i) for i in range(12)]
    ),
    "params that are missing": rows_of([{"x": i / 12} for i in range(12)], [i / 10 for i in range(12)]),
    "values that are equal": rows_of([{"x": i / 12, "k": 3, "c": "a"} for i in range(12)], [1.0] * 12),
    "choices outside of the range": rows_of(
        [{"x": i / 6, "k": 5, "c": "abz"[i % 3]} for i in range(12)], [i / 10 for i in range(12)]
    ),
    "no trial": [],
}


@pytest.mark.parametrize("name", UNUSUAL)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_an_unusual_study_gets_results_or_reasons(make_table, name):
    table = make_table(UNUSUAL[name], SPACE)
    insights = compute_insights(table)
    detect_findings(table, insights)
    assert insights.sensitivity.parameters or insights.sensitivity.reason
    assert insights.interactions.pairs or insights.interactions.reason
    assert all(importance.shares or importance.reason for importance in insights.importance)
    assert insights.budget.parameters or insights.budget.reason
    for parameter in insights.sensitivity.parameters:
        assert all(math.isfinite(value) for value in (*parameter.profile.mean, *parameter.average.high))


def test_replicates_alone_measure_noise_but_no_parameter(make_table):
    insights = compute_insights(make_table(UNUSUAL["replicates of one configuration"], SPACE))
    assert insights.sensitivity.reason == "all complete trials have the same params"
    assert insights.noise.source == "replicates"


def test_the_analysis_is_deterministic(sample_table):
    """A report that is written again must have the same numbers."""
    table = sample_table(lambda p: p["ns_steps"], n_trials=30, noise=1.0)
    assert compute_insights(table) == compute_insights(replace(table))
