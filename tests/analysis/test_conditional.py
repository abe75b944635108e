"""A conditional parameter is analysed on the trials in which it is active, and its absence has no effect."""

import math

import numpy as np
import pytest

from hpopt.analysis.conditional import split_table
from hpopt.analysis.dependence import SIGNIFICANCE_LEVEL
from hpopt.analysis.duplicates import find_duplicates
from hpopt.analysis.insights import compute_insights
from hpopt.analysis.sample import assess_table, with_extrapolated
from hpopt.analysis.trials import CurvePoint, Outcome, TrialRow
from hpopt.findings.detection import detect_findings
from hpopt.reporting.charts import draw_charts
from hpopt.reporting.sentences import describe_importance, tabulate_parameters
from hpopt.search.space import Categorical, Float

SPACE = {
    "learning_rate": Float(low=1e-3, high=0.1, log=True),
    "optimizer": Categorical(choices=("muon", "adamw", "sgd")),
    "momentum": Float(low=0.5, high=0.95, when={"optimizer": ("muon", "sgd")}),
    "ns_scale": Float(low=0.0, high=1.0, when={"optimizer": ("muon",)}),
    "beta": Float(low=0.5, high=1.0, when={"optimizer": ("adamw",)}),
}


@pytest.fixture
def conditional_table(make_table):
    """Builds a table of random trials of the conditional space, whose value is a function of the params plus noise."""

    def sample(value, n_trials=90, seed=0):
        rng = np.random.default_rng(seed)
        rows = []
        for trial in range(n_trials):
            params = {
                "learning_rate": float(10 ** rng.uniform(-3, -1)),
                "optimizer": str(rng.choice(["muon", "adamw", "sgd"])),
            }
            for name in ("momentum", "ns_scale", "beta"):
                if params["optimizer"] in SPACE[name].when["optimizer"]:
                    params[name] = float(rng.uniform(SPACE[name].low, SPACE[name].high))
            loss = value(params) + 0.02 * rng.normal()
            rows.append(TrialRow(trial=trial, state="COMPLETE", value=loss, params=params, outcome=Outcome.COMPLETE))
        return make_table(rows, SPACE)

    return sample


def by_name(insights):
    return {parameter.name: parameter for parameter in insights.sensitivity.parameters}


def test_a_parameter_is_analysed_where_it_is_active(conditional_table):
    table = conditional_table(lambda p: 4 * (p["momentum"] - 0.7) ** 2 if "momentum" in p else 0.3)
    insights = compute_insights(table)
    parameters = by_name(insights)
    n_muon = sum(row.params["optimizer"] == "muon" for row in table.trials)
    n_active = sum("momentum" in row.params for row in table.trials)
    assert parameters["momentum"].where == f"optimizer = muon or sgd, {n_active} complete trials"
    assert parameters["ns_scale"].where == f"optimizer = muon, {n_muon} complete trials"
    assert parameters["learning_rate"].where is None
    assert parameters["momentum"].is_significant
    assert parameters["momentum"].best == pytest.approx(0.7, abs=0.05)
    assert not parameters["ns_scale"].is_significant
    assert {part.parameters: part.n_trials for part in insights.conditional} == {
        ("momentum",): n_active,
        ("ns_scale",): n_muon,
        ("beta",): len(table.trials) - n_active,
    }
    # The effect of momentum is no noise.
    assert insights.noise.std == pytest.approx(0.02, rel=0.5)


def test_an_inactive_parameter_has_no_importance_because_of_its_parent(conditional_table):
    """Where it is absent, the trials are the worst by far."""
    table = conditional_table(lambda p: {"muon": 0.0, "adamw": 5.0, "sgd": 2.0}[p["optimizer"]])
    insights = compute_insights(table)
    assert [name for name, one in by_name(insights).items() if one.is_significant] == ["optimizer"]
    assert all(one.edge is None for one in by_name(insights).values())
    for measure in insights.importance:
        assert measure.shares.keys() == {"learning_rate", "optimizer"}
        assert measure.shares["optimizer"] > 0.9
    for part in insights.conditional:
        for measure in part.importance:
            assert not {"momentum", "ns_scale", "beta"} & set(measure.significant)
    codes = {finding.code for finding in detect_findings(table, insights)}
    assert not codes & {"edge", "interaction", "budget-dependent", "diverging"}


def test_the_condition_is_in_the_tables_and_charts_of_a_report(conditional_table):
    table = conditional_table(lambda p: -p.get("momentum", 0.5))
    insights = compute_insights(table)
    n_active = sum("momentum" in row.params for row in table.trials)
    where = f"where optimizer = muon or sgd, {n_active} complete trials"
    assert f"The effect of momentum is that {where}." in describe_importance(table, insights)
    assert f"momentum, {where}" in [row[0] for row in tabulate_parameters(insights)]
    (edge,) = [finding for finding in detect_findings(table, insights) if finding.code == "edge"]
    assert edge.message.startswith(f"The best momentum {where}, is at the high end of its range, 0.95 (90% interval")
    assert 'when = { optimizer = ["muon", "sgd"] }' in edge.remedy
    charts = draw_charts(table, insights)
    assert [panel.x.title for panel in charts["importance"].panels][:2] == ["share", f"share {where}"]
    momentum = next(panel for panel in charts["sensitivity"].panels if panel.title == "momentum")
    assert momentum.caption.startswith(where)
    lines = [mark for mark in charts["parallel"].panels[0].marks if hasattr(mark, "is_step")]
    assert lines[0].x == ("momentum", "ns_scale", "beta", "learning_rate", "optimizer", "loss")
    gaps = {frozenset(name for name, y in zip(line.x, line.y, strict=True) if math.isnan(y)) for line in lines}
    assert gaps == {frozenset({"beta"}), frozenset({"ns_scale", "beta"}), frozenset({"momentum", "ns_scale"})}


def test_a_condition_that_few_trials_meet_has_a_reason(conditional_table):
    table = conditional_table(lambda p: p["learning_rate"], n_trials=24)
    insights = compute_insights(table)
    n_adamw = sum(row.params["optimizer"] == "adamw" for row in table.trials)
    assert n_adamw < 10
    reason = f"not enough data: 10 complete trials are needed, there are {n_adamw}"
    assert (
        f"No effect of beta can be estimated, where optimizer = adamw, {n_adamw} complete trials: {reason}."
        in describe_importance(table, insights)
    )
    draw_charts(table, insights)


def test_pure_noise_with_conditions_seldom_has_a_significant_effect(conditional_table):
    """P-values are corrected for the number of parts that are tested."""
    n_found = 0
    for seed in range(24):
        parts = split_table(conditional_table(lambda _: 0.0, seed=seed))
        p_values = [assess_table(part.table, with_extrapolated(part.table)) for part in parts]
        smallest = [min(own[name] for name in part.parameters) for part, own in zip(parts, p_values, strict=True)]
        n_found += min(smallest) <= SIGNIFICANCE_LEVEL
    assert n_found <= 2


def test_parts_have_the_parameters_that_are_active_in_all_their_trials(conditional_table):
    parts = {part.parameters: set(part.table.search_space) for part in split_table(conditional_table(lambda _: 0.0))}
    assert parts == {
        ("learning_rate", "optimizer"): {"learning_rate", "optimizer"},
        ("momentum",): {"learning_rate", "optimizer", "momentum"},
        ("ns_scale",): {"learning_rate", "momentum", "ns_scale"},
        ("beta",): {"learning_rate", "beta"},
    }


def test_a_parameter_that_one_of_two_equal_trials_lacks_is_not_ignored(make_table):
    curve = tuple(CurvePoint(step=step, tokens=0, seconds=0, value=1 / step) for step in (1, 2))
    rows = [
        TrialRow(trial=i, state="COMPLETE", value=0.5, seed=0, curve=curve, params=params)
        for i, params in enumerate([{"optimizer": "adamw"}, {"optimizer": "muon", "momentum": 0.9}])
    ]
    assert [group.differ_in for group in find_duplicates(make_table(rows, SPACE))] == [("optimizer",)]
