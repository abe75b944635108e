"""The section of a report on one factor at a time."""

from pathlib import Path

import pytest

from hpopt.analysis.one_factor import analyze_one_factor
from hpopt.reporting.folder import write_report
from hpopt.reporting.one_factor import describe_one_factor, draw_one_factor, tabulate_factors, tabulate_values
from hpopt.reporting.summary import summarize


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_the_report_of_four_configurations_has_tables_a_figure_and_what_the_design_cannot_see(
    one_factor_table, tmp_path: Path, n_seeds
):
    table = one_factor_table(n_seeds)
    paths = write_report(table, summarize(table), tmp_path)
    assert tmp_path / "one_factor.png" in paths
    page, text = ((tmp_path / name).read_text() for name in ("index.html", "report.md"))
    for document in (page, text):
        assert "One factor at a time" in document
        assert "cannot see interactions" in document
        assert "0.1 (best)" in document
        assert ("The noise is unknown" in document) == (n_seeds == 1)
        assert "too-few-trials" not in document


def test_the_tables_have_means_intervals_costs_and_the_range_as_good_as_the_best(one_factor_table):
    table = one_factor_table(3)
    result = analyze_one_factor(table)
    header, rows = tabulate_values(table, result, result.factors[0])
    assert header == ["learning_rate", "n", "val_loss", "std", "95% interval", "val_accuracy", "time"]
    assert [row[:4] for row in rows] == [
        ["0.001", "3", "4.0333", "0.058"],
        ["0.01 (base)", "3", "3.1000", "0.1"],
        ["0.1 (best)", "3", "2.5667", "0.058"],
    ]
    (rate, optimizer) = tabulate_factors(result)
    assert rate[:3] == ["learning_rate", "0.1", "0.1"]
    assert rate[3].startswith("1.47, 1.")
    assert rate[4].startswith("1.57, 1.")
    assert optimizer[1:3] == ["muon", "muon, adamw"]
    assert optimizer[3].startswith("0.0333, 0 to 0.")
    sentences = describe_one_factor(table, result)
    assert "Effect shown (95%): learning_rate." in sentences
    assert "Effect not shown by these runs: optimizer." in sentences
    assert "The best tested value of learning_rate is the largest one: test larger ones." in sentences


def test_the_figure_has_a_panel_for_each_parameter_with_intervals_only_where_the_noise_is_known(one_factor_table):
    chart = draw_one_factor(one_factor_table(3), analyze_one_factor(one_factor_table(3)))
    assert [panel.title for panel in chart.panels] == ["learning_rate", "optimizer"]
    assert [len(panel.marks[-2].intervals) for panel in chart.panels] == [3, 2]
    chart = draw_one_factor(one_factor_table(1), analyze_one_factor(one_factor_table(1)))
    assert not any(panel.marks[-2].intervals for panel in chart.panels)
