"""Findings about studies with planted problems."""

import json
import tomllib
from dataclasses import replace
from functools import cache

import pytest
from planted_studies import LEARNING_RATE, TRUTHS, Truth, plant, plant_grid
from pydantic import TypeAdapter

from hpopt.analysis.insights import compute_insights
from hpopt.analysis.trials import CurvePoint, StudyTable, TrialRow
from hpopt.findings.detection import detect_findings
from hpopt.findings.finding import to_toml
from hpopt.formats import list_values
from hpopt.search.direction import Direction
from hpopt.search.space import Categorical, Float, Int, Range


@cache
def planted(name: str):
    """The findings about a planted study, computed once for all tests."""
    table = plant(TRUTHS[name], 60, seed=1)
    return detect_findings(table, compute_insights(table))


def findings_in(name: str):
    return {finding.code: finding for finding in planted(name)}


def findings_of(table: StudyTable):
    return {finding.code: finding for finding in detect_findings(table, compute_insights(table))}


def change(table: StudyTable, alter) -> StudyTable:
    return replace(table, trials=tuple(alter(row) for row in table.trials))


@pytest.fixture(scope="module")
def noise() -> StudyTable:
    return plant(Truth(), 30, seed=0)


def test_a_leak_is_reported_first(noise):
    """A leak reversed the ranking of a manual study: its best result was memorization."""
    leaky = change(noise, lambda row: replace(row, metrics={"train_val_overlap": 0.97}))
    first = detect_findings(leaky, compute_insights(leaky))[0]
    assert (first.code, first.severity) == ("leak", "error")
    assert first.message.startswith(
        "97% of the validation text is also training text, so val_loss rewards memorization"
    )


def test_an_overlap_as_of_clean_splits_is_not_reported(noise):
    clean = change(noise, lambda row: replace(row, metrics={"train_val_overlap": 0.043}))
    assert "leak" not in findings_of(clean)


def test_a_parameter_and_a_seed_that_the_training_ignores_are_errors():
    """Three runs of a baseline and three with a longer warmup have equal curves to the last digit."""
    table = arms(lambda _warmup, _seed: 0.0)
    treatment, seed = (findings_of(table)[code] for code in ("treatment-not-applied", "seed-not-applied"))
    assert (treatment.severity, seed.severity) == ("error", "error")
    assert treatment.evidence["parameters"] == ["warmup_ratio"]
    assert treatment.message.startswith("Trials 0, 1, 2, 3 and 2 others differ in warmup_ratio but have the same")
    assert seed.evidence["seeds"] == [[0, 1, 2]]


def test_collapsed_and_saturated_metrics_are_told_apart():
    collapsed, saturated = (findings_of(plant_grid(kind, 0))["collapsed"] for kind in ("collapsed", "saturated"))
    assert (collapsed.severity, collapsed.evidence["is_best"]) == ("warning", False)
    assert "12 of 24 complete trials end at accuracy 0.1 exactly" in collapsed.message
    assert "the metric is collapsed" in collapsed.message
    assert saturated.evidence["is_best"]
    assert "the metric is saturated" in saturated.message


def test_a_study_whose_trials_all_end_at_one_value_has_no_answer():
    table = change(plant_grid("applied", 0), lambda row: replace(row, value=0.5, curve=row.curve[:1]))
    assert findings_of(table)["collapsed"].severity == "error"
    one = replace(table, trials=tuple(replace(row, params=table.trials[0].params) for row in table.trials))
    assert "collapsed" not in findings_of(one)


def test_a_small_effect_is_not_reported_as_an_ignored_parameter():
    table = arms(lambda warmup, seed: 1e-12 * warmup + 1e-9 * seed)
    assert not {"treatment-not-applied", "seed-not-applied"} & findings_of(table).keys()


def arms(effect) -> StudyTable:
    rows = []
    for warmup in (0.0, 0.1):
        for seed in range(3):
            values = [value + effect(warmup, seed) for value in (3.0, 2.5, 2.25)]
            curve = tuple(CurvePoint(step=i, tokens=i, seconds=1.0, value=v) for i, v in enumerate(values, start=1))
            row = TrialRow(
                trial=len(rows),
                state="COMPLETE",
                value=values[-1],
                params={"warmup_ratio": warmup},
                seed=seed,
                curve=curve,
            )
            rows.append(row)
    fields = {
        "name": "ab",
        "metric": "val_loss",
        "direction": Direction.MINIMIZE,
        "objective": "pretrain",
        "file_text": "",
    }
    return StudyTable(**fields, search_space={"warmup_ratio": Categorical(choices=(0.0, 0.1))}, trials=tuple(rows))


def replicated(means, spread) -> StudyTable:
    """Configurations with three seeds each, at a mean and a spread to either side."""
    rows = [
        TrialRow(
            trial=3 * i + seed,
            state="COMPLETE",
            value=mean + (seed - 1) * spread,
            params={"lr": 0.1 * (i + 1)},
            seed=seed,
        )
        for i, mean in enumerate(means)
        for seed in range(3)
    ]
    fields = {
        "name": "s",
        "metric": "val_loss",
        "direction": Direction.MINIMIZE,
        "objective": "pretrain",
        "file_text": "",
    }
    return StudyTable(**fields, search_space={"lr": Float(low=0.1, high=1.0)}, trials=tuple(rows))


def test_a_gap_within_the_noise_is_a_tie():
    """The standard deviation is 0.1, and that of a difference of two means of three 0.1 * sqrt(2 / 3) = 0.08."""
    tie = findings_of(replicated([3.0, 3.15, 5.0], 0.1))["tie"]
    assert tie.evidence["noise_source"] == "replicates"
    assert tie.evidence["noise"] == pytest.approx(0.1)
    assert tie.evidence["gap"] == pytest.approx(0.15)
    assert tie.evidence["rivals"] == [3]
    assert "`hpopt confirm s --top 2 --seeds 4`" in tie.remedy


def test_a_gap_beyond_the_noise_is_no_tie():
    assert "tie" not in findings_of(replicated([3.0, 3.2, 5.0], 0.1))


def test_the_best_run_of_a_configuration_that_is_worse_on_average_is_a_tie():
    """The runs 2.5, 3.1 and 3.3 include the best, but their mean is 0.037 above that of 2.73, 2.93 and 3.13."""
    table = replicated([2.93, 3.1], 0.2)
    table = change(table, lambda row: replace(row, value=2.5) if row.trial == 3 else row)
    tie = findings_of(table)["tie"]
    assert tie.evidence["gap"] == pytest.approx((2.5 + 3.1 + 3.3) / 3 - 2.93)
    assert "0.037 behind" in tie.message


def test_equal_means_are_a_tie_without_a_sign():
    assert "trial 3 is equal on average, and" in findings_of(replicated([3.0, 3.0], 0.1))["tie"].message


def test_without_a_measured_noise_the_best_may_be_best_by_chance():
    rows = [TrialRow(trial=i, state="COMPLETE", value=3.0 + i, params={"lr": 0.1 * i}) for i in range(4)]
    table = replace(replicated([3.0], 0.1), trials=tuple(rows))
    findings = findings_of(table)
    assert "is unknown" in findings["tie"].message
    assert findings["too-few-trials"].severity == "warning"


def test_an_edge_proposes_a_line_of_the_study_file():
    edge = findings_in("edge")["edge"]
    assert edge.subject == LEARNING_RATE
    assert "at the high end of its range, 0.3" in edge.message
    assert edge.remedy.endswith("learning_rate = { low = 0.001, high = 3.0, log = true }")


def test_a_budget_dependence_states_both_optima_and_their_tokens():
    dependence = findings_in("drift")["budget-dependent"]
    assert dependence.subject == LEARNING_RATE
    assert "after 81,920 tokens" in dependence.message
    assert "after 737,280 tokens" in dependence.message


def test_divergence_states_where_it_begins():
    findings = findings_in("cliff")
    assert "trials diverged, mostly with learning_rate above 0.0" in findings["diverging"].message
    assert "of which diverged, and they differ" in findings["importance-biased"].message


def test_random_divergence_is_not_attributed_to_a_parameter():
    table = plant(Truth(diverges=lambda _: 0.2), 60, seed=1)
    assert "in no particular region of the search space" in findings_of(table)["diverging"].message


def test_an_interaction_names_the_pair():
    assert findings_in("interaction")["interaction"].subject == "learning_rate, momentum"


def test_an_interaction_is_not_asserted_where_the_trials_are_called_few():
    found = findings_of(plant(TRUTHS["interaction"], 50, 0))
    assert "too-few-trials" in found
    assert "interaction" not in found


def test_early_values_unrelated_to_final_ones_prune_the_best():
    """Where only the last evaluation decides, two of three winners are pruned."""
    table = plant(Truth(effect=lambda units, fraction: units["momentum"] * (1 if fraction == 1 else -1)), 60, seed=1)
    finding = findings_of(table)["pruned-too-early"]
    assert finding.severity == "note"  # The study has no pruned trial.
    assert finding.evidence["best_pruned_share"] > 0.5


def test_the_most_severe_come_first_and_each_occurs_once(noise):
    leaky = change(noise, lambda row: replace(row, metrics={"train_val_overlap": 0.97}))
    findings = detect_findings(leaky, compute_insights(leaky))
    severities = [["error", "warning", "note"].index(finding.severity) for finding in findings]
    assert severities == sorted(severities)
    assert len({(finding.code, finding.subject) for finding in findings}) == len(findings)


@pytest.mark.parametrize("name", list(TRUTHS))
def test_evidence_is_json(name):
    """It is stored in the database and in insights.json."""
    for finding in planted(name):
        json.dumps(finding.evidence, allow_nan=False)


def test_few_complete_trials_because_of_the_pruner_name_its_first_rung():
    table = plant(replace(TRUTHS["bowl"], is_pruned=True), 40, 0)
    remedy = findings_of(table)["too-few-trials"].remedy
    assert "the pruner stops trials from 11% of their schedule on; raise `min_fraction` in [pruner]" in remedy
    assert "min_fraction" not in findings_of(plant(TRUTHS["bowl"], 20, 0))["too-few-trials"].remedy


def test_a_study_without_trials_has_too_few():
    table = plant(Truth(), 0, seed=0)
    assert [finding.code for finding in detect_findings(table, compute_insights(table))] == ["too-few-trials"]


@pytest.mark.parametrize(
    "range_",
    [
        Float(low=1e-3, high=3.0, log=True),
        Float(low=0.0, high=0.3),
        Float(low=0.0, high=1.5, step=0.25),
        Int(low=1, high=13),
        Int(low=2, high=14, step=4),
        Categorical(choices=(16, 32, 64)),
    ],
)
def test_a_proposed_range_is_valid_in_a_study_file(range_):
    assert TypeAdapter(Range).validate_python(tomllib.loads(f"x = {to_toml(range_)}")["x"]) == range_


def test_a_long_list_is_cut_short():
    assert list_values([1, 2, 3]) == "1, 2 and 3"
    assert list_values(list(range(40))) == "0, 1, 2, 3 and 36 others"
