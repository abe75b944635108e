import csv
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from planted_studies import TRUTHS, plant

from hpopt.analysis.trials import StudyTable, TrialRow
from hpopt.reporting.files import write_insights, write_summary_table, write_trials
from hpopt.reporting.summary import Summary, summarize
from hpopt.search.space import Float

DOCUMENT = Path(__file__).parents[2] / "docs" / "insights.md"


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def insights_of(table: StudyTable, summary: Summary, folder: Path) -> dict[str, Any]:
    write_insights(table, summary, folder / "insights.json")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    insights: dict[str, Any] = json.loads((folder / "insights.json").read_text(), parse_constant=refuse)
    return insights


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
    """A reason may be the output of a program."""
    reason = 'Traceback:\n  File "x.py", line 1\nboom, bang'
    write_trials(make_table(make_trial(0, state="FAIL", reason=reason)), tmp_path / "trials.csv")
    assert read(tmp_path / "trials.csv")[0]["reason"] == reason


def test_replicates_are_one_row_of_the_summary_table(
    make_table: Callable[..., StudyTable], make_trial: Callable[..., TrialRow], tmp_path: Path
):
    """1, 2 and 6 have mean 3 and, as a sample, variance (4 + 1 + 9) / 2 = 7."""
    params = {"learning_rate": 0.05}
    same = [make_trial(i, value=value, params=params, seed=i) for i, value in enumerate([2.0, 6.0, 1.0])]
    table = make_table(*same, make_trial(3, value=4.0, params={"learning_rate": 0.1}))
    write_summary_table(summarize(table), tmp_path / "summary_table.csv")
    first, second = read(tmp_path / "summary_table.csv")
    assert (first["rank"], first["n_runs"], first["n_seeds"], first["params_learning_rate"]) == ("1", "3", "3", "0.05")
    assert [float(first[name]) for name in ("mean", "std", "min", "max")] == pytest.approx([3, math.sqrt(7), 1, 6])
    assert (second["n_runs"], second["std"]) == ("1", "")


# Below these, keys are names of the study and its own numbers.
OF_THE_STUDY = {
    "params",
    "base",
    "metrics",
    "center",
    "shares",
    "intervals",
    "p_values",
    "evidence",
    "extrapolated",
    "n_trials",
    "widened_range",
}


def keys_of(value: object) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from keys_of(item)
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name
            if name not in OF_THE_STUDY:
                yield from keys_of(inner)


def test_the_keys_of_insights_are_the_documented_ones(
    planted: StudyTable, planted_summary: Summary, one_factor_table, tmp_path: Path
):
    """Undocumented keys cannot be relied on, and programs rely on the documented ones."""
    documented = set(re.findall(r"`([a-z0-9_]+)`", DOCUMENT.read_text()))
    keys = set(keys_of(insights_of(planted, planted_summary, tmp_path))) - {"PED-ANOVA", "fANOVA"}
    table = one_factor_table(3)
    keys |= set(keys_of(insights_of(table, summarize(table), tmp_path)["one_factor"]))
    assert keys - documented == set()
    optional = {"null", "total", "trials", "differ_in", "seeds", "value", "confirmed", "tie", "unconfirmed"}
    of_a_confirmation = {"kind", "optimism", "noise_std", "candidates", "test_metrics"}
    assert documented - keys - optional - of_a_confirmation == set()


def test_insights_count_trials_and_state_confirmation(table: StudyTable, summary: Summary, tmp_path: Path):
    insights = insights_of(table, summary, tmp_path)
    assert insights["n_trials"] == {"COMPLETE": 26, "FAIL": 1, "PRUNED": 13, "total": 40}
    assert (insights["answer"], insights["confirmation"]) == ("unconfirmed", None)
    assert insights["direction"] == "minimize"
    assert insights["best"]["value"] == table.best().value
    messages = [finding["message"] for finding in insights["findings"]]
    assert messages == [finding.message for finding in summary.findings]


def test_a_wider_range_is_written_as_the_study_file_takes_it(tmp_path: Path):
    table = plant(TRUTHS["edge"], 60, seed=1)
    parameters = insights_of(table, summarize(table), tmp_path)["sensitivity"]["parameters"]
    (wider,) = (parameter["widened_range"] for parameter in parameters if parameter["edge"])
    assert Float(**wider) == Float(low=0.001, high=3.0, log=True)


def test_insights_are_json_that_every_parser_accepts(
    make_table: Callable[..., StudyTable], make_trial: Callable[..., TrialRow], tmp_path: Path
):
    """NaN and Infinity are not JSON: jq and JavaScript refuse them."""
    odd = make_table(make_trial(0, params={"x": math.inf}, device_seconds=math.nan), make_trial(1, value=math.nan))
    best = insights_of(odd, summarize(odd), tmp_path)["best"]
    assert isinstance(best, dict)
    assert (best["trial"], best["params"]) == (0, {"x": None})
