"""A comparison in words and as a figure."""

from dataclasses import replace

import pytest

from hpopt.analysis.arms import compare_arms
from hpopt.reporting.chart import Band, Line, Points
from hpopt.reporting.comparison import describe_comparison, draw_pairs, tabulate_sides
from hpopt.reporting.markdown import render_note
from hpopt.reporting.summary import summarize


@pytest.fixture
def compared(comparison):
    return compare_arms(comparison)


def test_each_arm_has_a_row_and_a_verdict(compared):
    assert tabulate_sides(compared) == [
        ["baseline", "3.0033", "0.0153", "2.9900", "3.0200", "3"],
        ["warm", "2.9843", "0.0143", "2.9720", "3.0000", "3"],
        ["hot", "3.1043", "0.0156", "3.0900", "3.1210", "3"],
    ]
    warm, hot, corrected = describe_comparison(compared)
    assert warm.startswith("warm is better than baseline. Difference of the means, warm minus baseline: -0.0")
    assert "95% interval -0.0" in warm
    assert "3 pairs" in warm
    assert hot.startswith("hot is worse than baseline.")
    assert corrected == "Intervals and p-values are corrected for 2 comparisons (Bonferroni)."


def test_the_lines_of_the_figure_are_pairs_and_its_intervals_are_those_of_the_differences(compared):
    runs, differences = draw_pairs(compared, "nats per token").panels
    lines = [mark for mark in runs.marks if isinstance(mark, Line)]
    assert [line.x for line in lines] == [("baseline", "warm", "hot")] * 3
    assert [line.y[0] for line in lines] == list(compared.sides[0].values.values())
    assert runs.y.label == "val_loss (nats per token)"
    points = next(mark for mark in differences.marks if isinstance(mark, Points))
    results = [one.result for one in compared.comparisons]
    assert points.intervals == tuple((result.low, result.high) for result in results)
    band = next(mark for mark in differences.marks if isinstance(mark, Band))
    assert (band.low[0], band.high[0]) == (-0.01, 0.01)


def test_arms_with_other_data_are_not_drawn_beside_the_first(comparison):
    data = {"baseline": ("a",), "warm": ("b",), "hot": ("a",)}
    chart = draw_pairs(compare_arms(replace(comparison, design=replace(comparison.design, data=data))))
    assert chart.panels[0].x.categories == ("baseline", "hot")


def test_a_refused_comparison_is_said_in_the_note_of_the_dashboard(comparison):
    first = {row.seed: row for row in comparison.trials if row.arm == "baseline"}
    rows = [replace(first[row.seed], trial=row.trial, arm=row.arm, config=row.config) for row in comparison.trials]
    table = replace(comparison, trials=tuple(rows))
    note = render_note(table, summarize(table))
    assert "Refused: warm never arrived: its config differs from that of baseline (learning_rate 0.02 and 0.03)" in note
    assert "| arm | mean | std. dev. | min | max | n |" in note
