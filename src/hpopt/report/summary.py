"""Owns what a report says: the numbers, once, and the sentences about them. Leaves page and files to the others."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, stdev

from hpopt.analysis.cost import Cost
from hpopt.analysis.importance import Importance
from hpopt.analysis.insights import gather
from hpopt.analysis.trials import StudyTable, TrialRow
from hpopt.findings.detection import find
from hpopt.findings.finding import Finding
from hpopt.hyperparameters import Scalar
from hpopt.report.selection import format_number

# Below this many replicates a standard deviation says more about chance than about the runs.
MIN_REPLICATES = 3
STATE_WORDS = {"FAIL": "failed"}


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
    configurations: tuple[Configuration, ...]
    importance: tuple[Importance, ...]
    cost: Cost
    findings: tuple[Finding, ...]

    def is_confirmed(self) -> bool:
        """Say whether the best params ran with enough seeds to know how much runs differ."""
        return bool(self.configurations) and self.configurations[0].n_seeds >= MIN_REPLICATES


def summarize(table: StudyTable) -> Summary:
    """Compute all numbers of the report."""
    insights = gather(table)
    return Summary(
        best=table.best(),
        configurations=tuple(_configuration(rows) for rows in table.replicates().values()),
        importance=insights.importance,
        cost=insights.cost,
        findings=find(table, insights),
    )


def tell_answer(table: StudyTable, summary: Summary) -> str:
    """Say what the best is, or why there is none."""
    counts = ", ".join(
        f"{n} {STATE_WORDS.get(state, state.lower())}" for state, n in sorted(table.count_states().items())
    )
    if summary.best is None:
        return (
            f"There is no answer yet: of {_trials(len(table.trials))} none is complete ({counts or 'none is there'})."
        )
    goal = "lowest" if table.direction == "minimize" else "highest"
    return (
        f"Trial {summary.best.trial} reached the {goal} {table.metric}, {format_number(summary.best.value)}, "
        f"among {_trials(len(table.trials))} ({counts})."
    )


def tell_confidence(table: StudyTable, summary: Summary) -> list[str]:
    """Say how far the answer can be trusted."""
    if not summary.configurations:
        return ["Nothing can be said before a trial is complete."]
    best, *others = summary.configurations
    sentences = [_tell_replicates(table, best)]
    if others:
        gap = abs((best.min if table.direction == "minimize" else best.max) - _best_value(table, others[0]))
        sentences.append(
            f"The next best configuration (trial {others[0].trials[0]}) is {format_number(gap)} behind in its best run."
        )
        known = [
            configuration.std for configuration in summary.configurations if configuration.n_seeds >= MIN_REPLICATES
        ]
        if not any(known):
            sentences.append("How much two runs of one configuration differ has not been measured: it may be more.")
    else:
        sentences.append("No other configuration is complete, so there is nothing to compare it with.")
    return sentences


def tell_cost(table: StudyTable, cost: Cost) -> list[str]:
    """Say what the study took and what pruning spared."""
    parts = {"complete trials": cost.complete_hours, "pruned ones": cost.pruned_hours, "others": cost.other_hours}
    told = ", ".join(f"{format_hours(hours)} in {name}" for name, hours in parts.items() if hours > 0)
    sentences = [f"{format_hours(cost.device_hours)} on devices in all{f': {told}' if told else ''}."]
    if table.pruned() and cost.saved_hours is None:
        sentences.append("What pruning saved cannot be estimated: no complete trial shows the length of a whole run.")
    elif table.pruned():
        sentences.append(
            f"Stopping {_trials(len(table.pruned()))} early saved about {format_hours(cost.saved_hours or 0.0)} "
            "(the missing steps of each at its own speed)."
        )
    else:
        sentences.append("No trial was stopped early.")
    return sentences


def format_hours(hours: float) -> str:
    """Write device hours, short ones in minutes or seconds."""
    seconds = hours * 3600
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def _tell_replicates(table: StudyTable, best: Configuration) -> str:
    n_runs = len(best.trials)
    if n_runs == 1:
        return "Not confirmed: the best configuration ran once. The best of many single runs is partly luck."
    spread = (
        f"{table.metric} from {format_number(best.min)} to {format_number(best.max)}, mean {format_number(best.mean)}"
    )
    if best.n_seeds < n_runs:
        return f"Its params ran {n_runs} times with only {best.n_seeds} different seeds: {spread}. Not confirmed."
    return f"Its params ran with {n_runs} seeds: {spread}."


def _trials(n: int) -> str:
    return "1 trial" if n == 1 else f"{n} trials"


def _best_value(table: StudyTable, configuration: Configuration) -> float:
    return configuration.min if table.direction == "minimize" else configuration.max


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
