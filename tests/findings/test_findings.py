"""Each warning says what was found in numbers, and what to do; the traps that it guards against are planted here."""

import json
import tomllib
from dataclasses import replace
from functools import cache

import pytest
from planted_studies import LEARNING_RATE, TRUTHS, Truth, plant
from pydantic import TypeAdapter

from hpopt.analysis.insights import gather
from hpopt.analysis.trials import CurvePoint, StudyTable, TrialRow
from hpopt.findings.detection import find
from hpopt.findings.finding import as_toml, list_words
from hpopt.search.direction import Direction
from hpopt.search.space import Categorical, Float, Int, Range


@cache
def planted(name: str):
    """A planted study and what was found of it, once for all tests."""
    table = plant(TRUTHS[name], 60, seed=1)
    return find(table, gather(table))


def findings_in(name: str):
    return {finding.code: finding for finding in planted(name)}


def findings_of(table: StudyTable):
    return {finding.code: finding for finding in find(table, gather(table))}


def change(table: StudyTable, alter) -> StudyTable:
    return replace(table, trials=tuple(alter(row) for row in table.trials))


@pytest.fixture(scope="module")
def noise() -> StudyTable:
    return plant(Truth(), 30, seed=0)


def test_validation_text_that_is_trained_on_comes_first(noise):
    """The famous result of a study done by hand was memorization: its ranking was the reverse of the truth."""
    leaky = change(noise, lambda row: replace(row, metrics={"train_val_overlap": 0.97}))
    first = find(leaky, gather(leaky))[0]
    assert (first.code, first.severity) == ("leak", "error")
    assert first.message.startswith("97% of the validation text is trained on too, so val_loss rewards memorizing it")


def test_an_overlap_that_clean_splits_have_is_no_leak(noise):
    clean = change(noise, lambda row: replace(row, metrics={"train_val_overlap": 0.043}))
    assert "leak" not in findings_of(clean)


def test_a_treatment_that_never_arrived_is_named_and_not_called_no_effect():
    """Three runs of a baseline and three with a longer warmup, all alike to the last digit."""
    table = arms(lambda _warmup, _seed: 0.0)
    treatment, seed = (findings_of(table)[code] for code in ("treatment-not-applied", "seed-not-applied"))
    assert (treatment.severity, seed.severity) == ("error", "error")
    assert treatment.evidence["parameters"] == ["warmup_ratio"]
    assert treatment.message.startswith("Trials 0, 1, 2, 3 and 2 others differ in warmup_ratio and have the same")
    assert seed.evidence["seeds"] == [[0, 1, 2]]


def test_a_treatment_with_a_small_effect_is_no_such_thing():
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
    words = {
        "name": "ab",
        "metric": "val_loss",
        "direction": Direction.MINIMIZE,
        "objective": "pretrain",
        "file_text": "",
    }
    return StudyTable(**words, search_space={"warmup_ratio": Categorical(choices=(0.0, 0.1))}, trials=tuple(rows))


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
    words = {
        "name": "s",
        "metric": "val_loss",
        "direction": Direction.MINIMIZE,
        "objective": "pretrain",
        "file_text": "",
    }
    return StudyTable(**words, search_space={"lr": Float(low=0.1, high=1.0)}, trials=tuple(rows))


def test_a_gap_within_the_noise_is_a_tie():
    """By hand: the standard deviation is 0.1, that of a difference of two means of three 0.1 * sqrt(2 / 3) = 0.08."""
    tie = findings_of(replicated([3.0, 3.15, 5.0], 0.1))["tie"]
    assert tie.evidence["noise_source"] == "replicates"
    assert tie.evidence["noise"] == pytest.approx(0.1)
    assert tie.evidence["gap"] == pytest.approx(0.15)
    assert tie.evidence["rivals"] == [3]


def test_a_gap_beyond_the_noise_is_none():
    assert "tie" not in findings_of(replicated([3.0, 3.2, 5.0], 0.1))


def test_the_best_run_of_a_configuration_that_is_worse_on_average_is_a_tie():
    """By hand: 2.5, 3.1 and 3.3 hold the best run, and their mean is 0.03 higher than that of 2.73, 2.93 and 3.13."""
    table = replicated([2.93, 3.1], 0.2)
    lucky = change(table, lambda row: replace(row, value=2.5) if row.trial == 3 else row)
    tie = findings_of(lucky)["tie"]
    assert tie.evidence["gap"] == pytest.approx(2.93 - (2.5 + 3.1 + 3.3) / 3)
    assert "0.037 ahead on average" in tie.message


def test_without_any_knowledge_of_noise_the_best_may_be_luck():
    rows = [TrialRow(trial=i, state="COMPLETE", value=3.0 + i, params={"lr": 0.1 * i}) for i in range(4)]
    table = replace(replicated([3.0], 0.1), trials=tuple(rows))
    found = findings_of(table)
    assert "is unknown" in found["tie"].message
    assert found["too-few-trials"].severity == "warning"


def test_an_edge_offers_the_line_of_a_study_file():
    edge = findings_in("edge")["edge"]
    assert edge.subject == LEARNING_RATE
    assert "at the high end of its range, 0.3" in edge.message
    assert edge.remedy.endswith("learning_rate = { low = 0.001, high = 3.0, log = true }")


def test_a_drift_tells_both_optima_and_their_tokens():
    drift = findings_in("drift")["budget-dependent"]
    assert drift.subject == LEARNING_RATE
    assert "after 81,920 tokens" in drift.message
    assert "after 737,280 tokens" in drift.message


def test_divergence_tells_where_it_begins():
    found = findings_in("cliff")
    assert "trials diverged, mostly with learning_rate above 0.0" in found["diverging"].message
    assert "of which diverged, and they differ" in found["importance-biased"].message


def test_divergence_by_accident_points_away_from_the_parameters():
    table = plant(Truth(diverges=lambda _: 0.2), 60, seed=1)
    assert "in no region of the parameters" in findings_of(table)["diverging"].message


def test_an_interaction_names_the_pair():
    found = findings_in("interaction")["interaction"]
    assert found.subject == "learning_rate, momentum"


def test_early_curves_that_say_nothing_lose_the_best():
    """The winner of pure luck that only the end decides is cut in two of three cases."""
    table = plant(Truth(effect=lambda units, fraction: units["momentum"] * (1 if fraction == 1 else -1)), 60, seed=1)
    found = findings_of(table)["pruned-too-early"]
    assert found.severity == "note"  # The study had no pruned trial: it is good to know.
    assert found.evidence["loses_best"] > 0.5


def test_the_gravest_come_first_and_each_occurs_once(noise):
    leaky = change(noise, lambda row: replace(row, metrics={"train_val_overlap": 0.97}))
    found = find(leaky, gather(leaky))
    gravity = ["error", "warning", "note"]
    assert [gravity.index(each.severity) for each in found] == sorted(gravity.index(each.severity) for each in found)
    assert len({(each.code, each.subject) for each in found}) == len(found)


@pytest.mark.parametrize("name", list(TRUTHS))
def test_evidence_is_json(name):
    """It goes into the database and into insights.json."""
    for finding in planted(name):
        json.dumps(finding.evidence, allow_nan=False)


def test_a_study_without_trials_has_no_findings_but_that():
    table = plant(Truth(), 0, seed=0)
    assert [finding.code for finding in find(table, gather(table))] == ["too-few-trials"]


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
def test_an_offered_range_reads_as_what_it_is(range_):
    """A remedy that a study file refuses is none."""
    assert TypeAdapter(Range).validate_python(tomllib.loads(f"x = {as_toml(range_)}")["x"]) == range_


def test_a_long_list_is_cut_short():
    assert list_words([1, 2, 3]) == "1, 2 and 3"
    assert list_words(list(range(40))) == "0, 1, 2, 3 and 36 others"
