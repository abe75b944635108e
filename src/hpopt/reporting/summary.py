"""Owns the numbers of a report, once. Leaves the words about them to sentences.py, page and files to the others."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, stdev

from hpopt.analysis.insights import Insights, compute_insights
from hpopt.analysis.trials import StudyTable, TrialRow
from hpopt.findings.detection import detect_findings
from hpopt.findings.finding import Finding
from hpopt.hyperparameters import Scalar

# Below this many replicates a standard deviation says more about chance than about the runs.
MIN_REPLICATES = 3


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """The complete trials that share their params. `std` is that of a sample; None for a single run."""

    params: Mapping[str, Scalar]
    trials: tuple[int, ...]
    n_seeds: int
    mean: float
    std: float | None
    min: float
    max: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What the report knows. `configurations` are in the order of their best run."""

    best: TrialRow | None
    default: TrialRow | None
    configurations: tuple[Configuration, ...]
    insights: Insights
    findings: tuple[Finding, ...]

    def is_confirmed(self) -> bool:
        """Say whether the best params ran with enough seeds to know how much runs differ."""
        return bool(self.configurations) and self.configurations[0].n_seeds >= MIN_REPLICATES


def summarize(table: StudyTable) -> Summary:
    """Compute all numbers of the report."""
    insights = compute_insights(table)
    return Summary(
        best=table.best(),
        default=next((row for row in table.ranked() if row.is_default), None),
        configurations=tuple(_configuration(rows) for rows in table.replicates().values()),
        insights=insights,
        findings=detect_findings(table, insights),
    )


def _configuration(rows: tuple[TrialRow, ...]) -> Configuration:
    values = [row.value for row in rows if row.value is not None]
    return Configuration(
        params=rows[0].params,
        trials=tuple(row.trial for row in rows),
        # Trials without a seed cannot be told apart, so they count as one.
        n_seeds=len({row.seed for row in rows}),
        mean=mean(values),
        std=stdev(values) if len(values) > 1 else None,
        min=min(values),
        max=max(values),
    )
