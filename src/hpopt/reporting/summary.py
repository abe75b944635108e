"""Compute the numbers of a report."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, stdev

from hpopt.analysis.insights import Insights, compute_insights
from hpopt.analysis.trials import StudyTable, TrialRow
from hpopt.findings.detection import detect_findings
from hpopt.findings.finding import Finding
from hpopt.hyperparameters import Scalar


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """The complete trials that share their params, the best first.

    `std` is the sample standard deviation; None for a single run.
    """

    params: Mapping[str, Scalar]
    trials: tuple[int, ...]
    n_seeds: int
    mean: float
    std: float | None
    min: float
    max: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The numbers of a report.

    `best` is the trial of the answer, `default` the best one with the objective's defaults. `configurations` are the
    best first, `findings` most severe first.
    """

    best: TrialRow | None
    default: TrialRow | None
    configurations: tuple[Configuration, ...]
    insights: Insights
    findings: tuple[Finding, ...]


def summarize(table: StudyTable) -> Summary:
    """Compute all numbers of the report."""
    insights = compute_insights(table)
    return Summary(
        best=table.best(),
        default=next((row for row in table.ranked() if row.is_default), None),
        configurations=tuple(_summarize_replicates(rows) for rows in table.replicates().values()),
        insights=insights,
        findings=detect_findings(table, insights),
    )


def _summarize_replicates(rows: tuple[TrialRow, ...]) -> Configuration:
    values = [row.value for row in rows if row.value is not None]
    return Configuration(
        params=rows[0].params,
        trials=tuple(row.trial for row in rows),
        # Trials without a seed count as one: they may be the same run.
        n_seeds=len({row.seed for row in rows}),
        mean=mean(values),
        std=stdev(values) if len(values) > 1 else None,
        min=min(values),
        max=max(values),
    )
