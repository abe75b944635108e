"""A comparison from its study file to the verdict, by workers in this process: what they enqueue, record and refuse."""

import csv
import json
import sys
from contextlib import closing

import psycopg2
import pytest

from hpopt.storage import studies
from hpopt.storage.database import Database

# Noise of the seed, which the arms share, and a little of its own for each run.
OBJECTIVE = """
from dataclasses import dataclass
import numpy as np
from hpopt.training.run import Evaluation

@dataclass(frozen=True)
class Config:
    x: float = 0.5
    data: str = "a"
    split: str = "documents"
    seed: int = 0

def train(config: Config, run):
    x, seed = config.x, config.seed
    assert run.arm in {"baseline", "treatment", "third"}
    noise = 0.1 * np.random.default_rng(seed).normal() + 0.01 * np.random.default_rng([seed, int(100 * x)]).normal()
    for step in (1, 2):
        metrics = {"loss": 1 + abs(x - 0.3) + noise + 1 / step}
        yield Evaluation(step=step, n_steps=2, tokens=step, seconds=0.1, metrics=metrics)
"""
STUDY = """
name = "ab"
objective = "compared:train"
metric = "loss"
seeds = 3
[arms.baseline]
[arms.treatment]
x = 0.4
"""


@pytest.fixture
def compared(migrated, tmp_path, monkeypatch):
    """Run a study with an objective, and return the command line on its database."""
    monkeypatch.syspath_prepend(tmp_path)

    def run(study=STUDY, objective=OBJECTIVE):
        (tmp_path / "compared.py").write_text(objective)
        (tmp_path / "ab.toml").write_text(study)
        migrated.environment["HPOPT_HOME"] = str(tmp_path)
        assert migrated.output("create", tmp_path / "ab.toml") == "ab\n"
        result = migrated("worker", "ab", "--device", "cpu")
        assert result.code == 0, result
        return migrated

    yield run
    sys.modules.pop("compared", None)


def query(hpopt, sql):
    return json.loads(hpopt.output("db", "sql", "--json", sql))


def test_a_comparison_runs_its_arms_in_pairs_of_one_seed_and_records_the_verdict(compared):
    hpopt = compared()
    trials = query(
        hpopt, "select trial, arm, seed, parent, params, config ->> 'x' as x from hpopt.trials order by trial"
    )
    assert [(row["arm"], row["seed"], row["x"]) for row in trials] == [
        (arm, seed, x) for seed in range(3) for arm, x in (("baseline", "0.5"), ("treatment", "0.4"))
    ]
    assert {(row["parent"], str(row["params"])) for row in trials} == {(None, "{}")}
    (row,) = query(hpopt, "select * from hpopt.comparisons")
    assert (row["study_name"], row["baseline"], row["treatment"], row["n"]) == ("ab", "baseline", "treatment", 3)
    assert (row["verdict"], row["reason"], row["needed_seeds_low"]) == ("better", None, None)
    assert row["low"] < row["difference"] < row["high"] < 0 < row["p_value"] < 0.05
    (best,) = query(hpopt, "select * from hpopt.best_params")
    assert (best["arm"], best["answer"], best["source"], best["params"]) == (
        "treatment",
        "better",
        "compare",
        {"x": 0.4},
    )
    assert (best["n_seeds"], best["trial"]) == (3, 1)
    assert best["value_low"] < best["value"] < best["value_high"]
    arms = query(hpopt, "select distinct arm, parent from hpopt.learning_curves order by arm")
    assert arms == query(hpopt, "select distinct arm, parent from hpopt.attempts order by arm")
    assert [row["arm"] for row in arms] == ["baseline", "treatment"]
    assert hpopt.output("best", "ab", "--format", "args") == "--x 0.4\n"
    assert json.loads(hpopt.output("best", "ab", "--format", "json"))["arm"] == "treatment"
    assert "study 'ab' runs its arms; raise seeds in its file" in hpopt.refused("enqueue", "ab", "--trial", "0")


def test_compare_prints_the_table_the_verdict_and_what_it_rests_on(compared):
    hpopt = compared()
    printed = hpopt.output("compare", "ab")
    assert printed == hpopt.output("best", "ab")
    lines = [line.split() for line in printed.splitlines()]
    assert ["arm", "mean", "std.", "dev.", "min", "max", "n"] in lines
    assert "treatment is better than baseline.\nDifference of the means, treatment minus baseline: -" in printed
    assert "treatment: x 0.5 -> 0.4\nbaseline and treatment share data; seeds: 0, 1 and 2\n" in printed
    found = json.loads(hpopt.output("compare", "ab", "--json"))
    (one,) = found["comparisons"]
    assert [side["name"] for side in found["sides"]] == ["baseline", "treatment"]
    assert (one["result"]["verdict"], one["changed"], one["seeds"]) == ("better", {"x": [0.5, 0.4]}, [0, 1, 2])
    assert one["result"]["difference"] == pytest.approx(found["sides"][1]["mean"] - found["sides"][0]["mean"])
    (row,) = query(hpopt, "select difference, low, high, p_value, detectable from hpopt.comparisons")
    assert row == pytest.approx({name: one["result"][name] for name in row})


def test_two_configurations_of_any_studies_are_compared(compared, tmp_path):
    hpopt = compared()
    pair = json.loads(hpopt.output("compare", "ab#0", "ab@treatment", "--json"))["comparisons"][0]
    assert (pair["baseline"], pair["treatment"], pair["result"]["verdict"]) == ("ab#0", "ab@treatment", "better")
    assert pair["shared"] == ["objective", "metric", "direction", "summary", "data"]
    # The answer of the study is its better arm, which is one configuration.
    same = hpopt("compare", "ab", "ab#1")
    assert (same.code, same.stderr) == (
        1,
        "hpopt: refused: ab and ab#1 resolve to one config: there is nothing to compare\n",
    )
    assert hpopt.refused("compare", "ab#9", "ab") == "hpopt: ab#9: study 'ab' has no trial 9"
    assert hpopt.refused("compare", "ab#x", "ab") == "hpopt: ab#x: 'x' is not the number of a trial"
    assert hpopt.refused("compare", "ab@tretment", "ab") == (
        "hpopt: ab@tretment: study 'ab' has no arm 'tretment'; did you mean 'treatment'?"
    )
    assert hpopt("compare", "ab@confirm", "ab").stderr == "hpopt: ab@confirm: study 'ab' has no confirmation yet\n"
    search = "[budget]\ntrials = 2\n[search_space]\nx = { low = 0.0, high = 1.0 }\n"
    other = STUDY.partition("seeds")[0].replace('"ab"', '"other"').replace('"loss"', '"loss2"')
    (tmp_path / "other.toml").write_text(other + search)
    hpopt.output("create", tmp_path / "other.toml")
    assert (
        hpopt.refused("compare", "other") == "hpopt: study 'other' has no arms; name two sides, such as other#0 other#1"
    )
    unlike = hpopt("compare", "ab#0", "other#0")
    assert (unlike.code, "ab#0 and other#0 differ in metric: their values are not compared" in unlike.stdout) == (
        0,
        True,
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            ("x, seed = config.x, config.seed", "x, seed = 0.5, config.seed"),
            (
                "treatment never arrived: its config differs from that of baseline (x 0.5 and 0.4), and their learning "
                "curves are equal to the last digit with seeds 0, 1 and 2. The training ignores x"
            ),
        ),
        (
            ("x, seed = config.x, config.seed", "x, seed = config.x, 0"),
            (
                "the seeds never arrived: the runs of baseline with the seeds 0, 1 and 2 have one learning curve to "
                "the last digit. The training ignores seed, so that its runs do not show the noise"
            ),
        ),
    ],
)
def test_a_treatment_or_a_seed_that_the_training_ignores_is_refused_by_name(compared, change, reason):
    """A published comparison of warmups found standard deviations of 0.0000, and called that no improvement."""
    hpopt = compared(objective=OBJECTIVE.replace(*change))
    for command in (("compare", "ab"), ("compare", "ab", "--json"), ("best", "ab"), ("best", "ab", "--format", "args")):
        result = hpopt(*command)
        assert (result.code, result.stderr) == (1, f"hpopt: refused: {reason}\n")
    (row,) = query(hpopt, "select verdict, reason from hpopt.comparisons")
    assert row == {"verdict": None, "reason": reason}
    assert query(hpopt, "select * from hpopt.best_params") == []


def test_arms_of_one_config_are_refused_and_check_says_so(compared, tmp_path):
    hpopt = compared(STUDY.replace("0.4", "0.5"))
    reason = "baseline and treatment resolve to one config: there is nothing to compare"
    assert hpopt("compare", "ab").stderr == f"hpopt: refused: {reason}\n"
    assert "baseline and treatment resolve to one config" in hpopt.output("check", tmp_path / "ab.toml")


def test_arms_with_different_data_are_shown_side_by_side(compared):
    hpopt = compared(STUDY.replace("seeds = 3", "seeds = 1").replace("x = 0.4", 'split = "windows"'))
    printed = hpopt.output("compare", "ab")
    assert "No verdict: baseline and treatment differ in data: their values are not compared." in printed
    best = query(hpopt, "select arm, answer, n_seeds, value_low from hpopt.best_params order by arm")
    assert [tuple(row.values()) for row in best] == [
        ("baseline", "unconfirmed", 1, None),
        ("treatment", "unconfirmed", 1, None),
    ]
    assert hpopt.refused("best", "ab", "--format", "args") == (
        "hpopt: study 'ab' has arms with different data, of which none is the best"
    )


def test_a_comparison_that_has_not_finished_has_no_verdict(compared, tmp_path):
    hpopt = compared()
    (tmp_path / "ab.toml").write_text(STUDY.replace("seeds = 3", "seeds = 4"))
    assert hpopt("create", tmp_path / "ab.toml").stderr == "changed: seeds: 4, was 3\n"
    result = hpopt("compare", "ab")
    reason = "no verdict: not all runs have finished; the verdict follows when they have"
    assert (result.code, result.stderr) == (3, f"hpopt: {reason}\n")
    assert query(hpopt, "select * from hpopt.comparisons") == []
    assert hpopt("worker", "ab", "--device", "cpu").code == 0
    assert query(hpopt, "select n from hpopt.comparisons") == [{"n": 4}]


def test_an_undecided_comparison_says_how_many_seeds_would_show_the_effect(compared):
    third = "[arms.third]\nx = 0.51\n[compare]\nindifference = 0.002\n"
    hpopt = compared(STUDY + third)
    printed = hpopt.output("compare", "ab")
    assert "Undecided whether third is better than baseline: about " in printed
    assert "would show a difference of 0.002 with 80% power." in printed
    row = query(hpopt, "select * from hpopt.comparisons where treatment = 'third'")[0]
    assert (row["verdict"], row["position"]) == ("undecided", 2)
    assert 3 < row["needed_seeds_low"] < row["needed_seeds_high"]


def test_the_report_has_a_section_of_the_comparison(compared, tmp_path):
    hpopt = compared()
    hpopt.output("report", "ab", "-o", tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    page = (tmp_path / "report" / "index.html").read_text()
    for document in (text, page):
        assert "Comparison" in document
        assert "treatment is better than baseline." in document
        assert "Parameter importance" not in document
    assert "| arm | mean | std. dev. | min | max | n |" in text
    assert (tmp_path / "report" / "comparison.png").stat().st_size > 1000
    insights = json.loads((tmp_path / "report" / "insights.json").read_text())
    assert insights["comparison"]["comparisons"][0]["result"]["verdict"] == "better"
    with (tmp_path / "report" / "summary_table.csv").open() as file:
        assert [row["params_x"] for row in csv.DictReader(file)] == ["0.4", "0.5"]


def test_a_reader_sees_the_comparison(compared, migrated_url, new_login):
    hpopt = compared()
    url = new_login(migrated_url, "hpopt_reader")
    with closing(psycopg2.connect(url.replace("+psycopg2", ""))) as connection, connection.cursor() as cursor:
        cursor.execute("select study_name, treatment, verdict from hpopt.comparisons")
        assert cursor.fetchall() == [("ab", "treatment", "better")]
    with closing(Database(migrated_url)) as database, database.begin() as connection:
        connection.exec_driver_sql("delete from hpopt.comparison")
    assert hpopt("compare", "ab", HPOPT_STORAGE=url).code == 0


def test_a_trial_that_another_program_enqueued_without_an_arm_fails_with_the_reason(migrated, compared):
    hpopt = compared()
    with closing(Database(migrated.environment["HPOPT_STORAGE"])) as database:
        studies.open_optuna(database, studies.load_study(database, "ab")).enqueue_trial({}, user_attrs={"arm": 7})
    assert hpopt("worker", "ab", "--device", "cpu").code == 0
    assert query(hpopt, "select state, reason, arm from hpopt.trials where trial = 6") == [
        {"state": "FAIL", "reason": "arm: enqueued, but None is not one of baseline, treatment", "arm": None}
    ]
    assert query(hpopt, "select verdict from hpopt.comparisons") == [{"verdict": "better"}]
