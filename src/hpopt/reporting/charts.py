"""Choose the charts of a study."""

from hpopt.analysis.insights import Insights
from hpopt.analysis.trials import StudyTable
from hpopt.reporting.chart import Chart
from hpopt.reporting.parameter_charts import (
    draw_budget,
    draw_correlations,
    draw_importance,
    draw_interactions,
    draw_sensitivity,
)
from hpopt.reporting.trial_charts import draw_curves, draw_history, draw_parallel

CHART_NAMES = (
    "history",
    "importance",
    "sensitivity",
    "interactions",
    "budget",
    "parallel",
    "correlations",
    "curves",
)


def draw_charts(table: StudyTable, insights: Insights) -> dict[str, Chart]:
    """Return the charts that have something to show, by name, in the order of CHART_NAMES."""
    charts = (
        draw_history(table),
        draw_importance(insights),
        draw_sensitivity(table, insights),
        draw_interactions(insights.interactions),
        draw_budget(table, insights.budget),
        draw_parallel(table),
        draw_correlations(insights.correlations),
        draw_curves(table),
    )
    return {chart.name: chart for chart in charts if chart is not None}
