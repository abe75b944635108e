"""Write the files of a report that programs read: trials.csv, summary_table.csv and insights.json.

docs/insights.md documents the keys of insights.json.
"""

import csv
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpopt.analysis.answer import AnswerKind
from hpopt.analysis.trials import StudyTable, TrialRow
from hpopt.formats import to_json
from hpopt.reporting.summary import Configuration, Summary

TRIAL_COLUMNS = (
    "trial",
    "state",
    "value",
    "seed",
    "n_attempts",
    "started_at",
    "finished_at",
    "device_seconds",
    "tokens",
    "reason",
)
RUN_COLUMNS = ("n_runs", "n_seeds", "mean", "std", "min", "max")


def write_trials(table: StudyTable, path: Path) -> None:
    """Write a row for each trial; the columns of parameters are called `params_NAME`, as Optuna calls them."""
    names = list(dict.fromkeys(name for row in table.trials for name in row.params))
    header = [*TRIAL_COLUMNS, *(f"params_{name}" for name in names)]
    _write_csv(path, header, ([*_trial_cells(row), *(row.params.get(name) for name in names)] for row in table.trials))


def write_summary_table(summary: Summary, path: Path) -> None:
    """Write a row for each configuration that has a complete run, the best first."""
    names = list(dict.fromkeys(name for configuration in summary.configurations for name in configuration.params))
    rows = (
        [
            rank,
            " ".join(map(str, configuration.trials)),
            *_describe_runs(configuration).values(),
            *(configuration.params.get(name) for name in names),
        ]
        for rank, configuration in enumerate(summary.configurations, start=1)
    )
    _write_csv(path, ["rank", "trials", *RUN_COLUMNS, *(f"params_{name}" for name in names)], rows)


def write_insights(table: StudyTable, summary: Summary, path: Path) -> None:
    """Write all numbers of the report as JSON; numbers that are not finite are null."""
    insights = asdict(summary.insights)
    importance = _by_method(insights.pop("importance"))
    insights["conditional"] = [
        part | {"importance": _by_method(part["importance"])} for part in insights["conditional"]
    ]
    document = {
        "study": table.name,
        "metric": table.metric,
        "direction": table.direction,
        "objective": table.objective,
        "n_trials": dict(table.count_states()) | {"total": len(table.trials)},
        "best": _describe_best(summary),
        "answer": AnswerKind.UNCONFIRMED if table.answer is None else table.answer.kind,
        "confirmation": table.answer,
        "findings": summary.findings,
        "importance": importance,
        **insights,
    }
    path.write_text(to_json(document, indent=2) + "\n")


def _by_method(measures: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return {measure["method"]: {key: measure[key] for key in measure if key != "method"} for measure in measures}


def _describe_best(summary: Summary) -> dict[str, Any] | None:
    best = summary.best
    if best is None:
        return None
    run = {"trial": best.trial, "value": best.value, "seed": best.seed, "params": best.params}
    return run | _describe_runs(next(one for one in summary.configurations if best.trial in one.trials))


def _describe_runs(configuration: Configuration) -> dict[str, Any]:
    numbers = {"n_runs": len(configuration.trials)} | vars(configuration)
    return {name: numbers[name] for name in RUN_COLUMNS}


def _trial_cells(row: TrialRow) -> list[object]:
    cells = {name: getattr(row, name) for name in TRIAL_COLUMNS}
    for name in ("started_at", "finished_at"):
        cells[name] = cells[name].isoformat() if cells[name] else None
    return list(cells.values())


def _write_csv(path: Path, header: list[str], rows: Iterable[list[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
