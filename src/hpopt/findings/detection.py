"""Detect all findings about a study."""

from hpopt.analysis.insights import Insights
from hpopt.analysis.trials import StudyTable
from hpopt.findings import parameters, trials
from hpopt.findings.finding import SEVERITIES, Finding


def detect_findings(table: StudyTable, insights: Insights) -> tuple[Finding, ...]:
    """Return all findings about a study, most severe first."""
    findings = [
        *trials.find_leak(table),
        *trials.find_ignored_parameters(insights.duplicates),
        *trials.find_ignored_seeds(insights),
        *trials.find_collapsed(table),
        *parameters.find_edges(table, insights),
        *parameters.find_budget_dependence(insights),
        *trials.find_pruned_winners(insights),
        # A comparison has a verdict of its own.
        *(trials.find_tie(table, insights.noise) if table.design is None else ()),
        *parameters.find_divergence(insights),
        *(trials.find_shortage(table) if table.design is None else ()),
        *parameters.find_interactions(insights),
        *parameters.find_bias(insights),
    ]
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))
