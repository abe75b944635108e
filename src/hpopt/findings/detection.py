"""Owns which warnings a study gets, and their order. Leaves each of them to trials.py and parameters.py."""

from collections.abc import Sequence

from hpopt.analysis.insights import Insights
from hpopt.analysis.trials import StudyTable
from hpopt.findings import parameters, trials
from hpopt.findings.finding import Finding, Severity

_GRAVITY: Sequence[Severity] = ("error", "warning", "note")


def find(table: StudyTable, insights: Insights) -> tuple[Finding, ...]:
    """Give all findings about a study, the gravest first."""
    found = [
        *trials.find_leak(table),
        *trials.find_ignored_parameters(insights),
        *trials.find_ignored_seeds(insights),
        *parameters.find_edges(table, insights),
        *parameters.find_drift(insights),
        *trials.find_lost_winners(insights),
        *trials.find_tie(table, insights.noise),
        *parameters.find_divergence(insights),
        *trials.find_shortage(table),
        *parameters.find_interactions(insights),
        *parameters.find_bias(insights),
    ]
    return tuple(sorted(found, key=lambda finding: _GRAVITY.index(finding.severity)))
