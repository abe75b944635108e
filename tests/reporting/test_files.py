import csv
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from planted_studies import TRUTHS, Truth, plant

from hpopt.analysis.trials import StudyTable, TrialRow
from hpopt.reporting.files import write_insights, write_summary_table, write_trials
from hpopt.reporting.summary import summarize
from hpopt.search.space import Float

DOCUMENT = Path(__file__).parents[2] / "docs" / "insights.md"


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def insights_of(table: StudyTable, path: Path) -> dict[str, Any]:
    write_insights(table, summarize(table), path)

    def refuse(word: str) -> None:
        raise AssertionError(word)

    found: dict[str, Any] = json.loads(path.read_text(), parse_constant=refuse)
    return found


def test_each_trial_is_a_row_with_its_params(table: StudyTable, tmp_path: Path):
    write_trials(table, tmp_path / "trials.csv")
    rows = read(tmp_path / "trials.csv")
    assert len(rows) == 40
    assert float(rows[27]["params_learning_rate"]) == table.trials[27].params["learning_rate"]
    assert float(rows[27]["value"]) == table.trials[27].value
    assert rows[0]["started_at"] == "2026-01-01T00:00:00+00:00"
    assert (rows[39]["state"], rows[39]["value"]) == ("FAIL", "")


def test_a_reason_of_several_lines_stays_in_its_cell(
    make_table: Callable[..., StudyTable], make_trial: Callable[..., TrialRow], tmp_path: Path
):
    """Reasons come from the output of programs."""
    reason = 'Traceback:\n  File "x.py", line 1\nboom, bang'
    write_trials(make_table(make_trial(0, state="FAIL", reason=reason)), tmp_path / "trials.csv")
    assert read(tmp_path / "trials.csv")[0]["reason"] == reason


def test_replicates_are_one_row_of_the_summary_table(
    make_table: Callable[..., StudyTable], make_trial: Callable[..., TrialRow], tmp_path: Path
):
    """Worked by hand: 1, 2 and 6 have mean 3 and, as a sample, variance (4 + 1 + 9) / 2 = 7."""
    params = {"learning_rate": 0.05}
    same = [make_trial(i, value=value, params=params, seed=i) for i, value in enumerate([2.0, 6.0, 1.0])]
    table = make_table(*same, make_trial(3, value=4.0, params={"learning_rate": 0.1}))
    write_summary_table(summarize(table), tmp_path / "summary_table.csv")
    first, second = read(tmp_path / "summary_table.csv")
    assert (first["rank"], first["n_runs"], first["n_seeds"], first["params_learning_rate"]) == ("1", "3", "3", "0.05")
    assert [float(first[name]) for name in ("mean", "std", "min", "max")] == pytest.approx([3, math.sqrt(7), 1, 6])
    assert (second["n_runs"], second["std"]) == ("1", "")


# Below these, keys are the study's own names.
OF_THE_STUDY = {"params", "at", "shares", "intervals", "p_values", "evidence", "extrapolated", "n_trials", "wider"}


def keys_of(found: object) -> Iterator[str]:
    if isinstance(found, list):
        for each in found:
            yield from keys_of(each)
    if isinstance(found, dict):
        for name, inner in found.items():
            yield name
            # Below these, keys are names of the study and its own numbers.
            if name not in {
                "params",
                "center",
                "shares",
                "intervals",
                "p_values",
                "evidence",
                "extrapolated",
                "n_trials",
                "widened_range",
            }:
                yield from keys_of(inner)


def test_the_keys_of_insights_are_those_that_are_documented(tmp_path: Path):
    """What is not documented, nobody may rely on; what is and has gone, somebody does."""
    truth = Truth(effect=TRUTHS["interaction"].effect, diverges=TRUTHS["cliff"].diverges)
    found = insights_of(plant(truth, 60, seed=0), tmp_path / "insights.json")
    documented = set(re.findall(r"`([a-z0-9_]+)`", DOCUMENT.read_text()))
    keys = set(keys_of(found)) - {"PED-ANOVA", "fANOVA"}
    assert keys - documented == set()
    assert documented - keys - {"null", "total", "trials", "differ_in", "seeds", "value"} == set()


def test_counts_and_confirmation_are_told(table: StudyTable, tmp_path: Path):
    found = insights_of(table, tmp_path / "insights.json")
    assert found["n_trials"] == {"COMPLETE": 26, "FAIL": 1, "PRUNED": 13, "total": 40}
    assert found["confirmed"] is False


def test_a_wider_range_is_told_as_the_study_file_takes_it(tmp_path: Path):
    found = insights_of(plant(TRUTHS["edge"], 60, seed=1), tmp_path / "insights.json")
    (wider,) = (each["widened_range"] for each in found["sensitivity"]["parameters"] if each["edge"])
    assert Float(**wider) == Float(low=0.001, high=3.0, log=True)


def test_the_same_study_gives_the_same_bytes(table: StudyTable, tmp_path: Path):
    """People keep insights.json under version control."""
    for name in ("a", "b"):
        write_insights(table, summarize(table), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_insights_are_json_that_every_reader_takes(
    make_table: Callable[..., StudyTable], make_trial: Callable[..., TrialRow], tmp_path: Path
):
    """NaN and Infinity are no JSON: jq and JavaScript refuse them."""
    odd = make_table(make_trial(0, params={"x": math.inf}, device_seconds=math.nan), make_trial(1, value=math.nan))
    best = insights_of(odd, tmp_path / "insights.json")["best"]
    assert isinstance(best, dict)
    assert (best["trial"], best["params"]) == (0, {"x": None})
