"""Choose the charts of a study."""

from hpopt.analysis.insights import Insights
from hpopt.analysis.trials import StudyTable
from hpopt.reporting.chart import Chart
from hpopt.reporting.comparison import draw_pairs
from hpopt.reporting.one_factor import draw_one_factor
from hpopt.reporting.parameter_charts import (
    draw_budget,
    draw_correlations,
    draw_importance,
    draw_interactions,
    draw_sensitivity,
)
from hpopt.reporting.selection import find_metric_unit
from hpopt.reporting.trial_charts import draw_arm_curves, draw_curves, draw_history, draw_parallel

CHART_NAMES = (
    "comparison",
    "history",
    "one_factor",
    "importance",
    "sensitivity",
    "interactions",
    "budget",
    "parallel",
    "correlations",
    "curves",
)


def draw_charts(table: StudyTable, insights: Insights) -> dict[str, Chart]:
    """Return the charts that have something to show, by name, in the order of CHART_NAMES.

    A comparison has its own and the learning curves: nothing is searched in it.
    """
    if insights.comparison is not None:
        drawn = (draw_pairs(insights.comparison, find_metric_unit(table)), draw_arm_curves(table))
        return {chart.name: chart for chart in drawn if chart is not None}
    charts = (
        draw_history(table),
        draw_one_factor(table, insights.one_factor),
        draw_importance(insights),
        draw_sensitivity(table, insights),
        draw_interactions(insights.interactions),
        draw_budget(table, insights.budget),
        draw_parallel(table),
        draw_correlations(insights.correlations),
        draw_curves(table),
    )
    return {chart.name: chart for chart in charts if chart is not None}
