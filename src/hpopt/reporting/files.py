"""Owns the parts of a report that programs read: trials.csv, summary_table.csv and insights.json.

What is in insights.json is told by docs/insights.md; numbers that are not finite are null there, and keys are sorted.
"""

import csv
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hpopt.analysis.trials import StudyTable, TrialRow
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


def write_trials(table: StudyTable, path: Path) -> None:
    """Write a row for each trial; the columns of the parameters are called `params_NAME`, as Optuna calls them."""
    names = _parameter_names(table.trials)
    header = [*TRIAL_COLUMNS, *(f"params_{name}" for name in names)]
    _write_csv(path, header, ([*_trial_cells(row), *(row.params.get(name) for name in names)] for row in table.trials))


def write_summary_table(summary: Summary, path: Path) -> None:
    """Write a row for each configuration that has a complete run, the best first."""
    names = list(dict.fromkeys(name for configuration in summary.configurations for name in configuration.params))
    numbers = ["trials", "n_runs", "n_seeds", "mean", "std", "min", "max"]
    rows = (
        [
            rank,
            " ".join(map(str, configuration.trials)),
            *_run_numbers(configuration).values(),
            *(configuration.params.get(name) for name in names),
        ]
        for rank, configuration in enumerate(summary.configurations, start=1)
    )
    _write_csv(path, ["rank", *numbers, *(f"params_{name}" for name in names)], rows)


def write_insights(table: StudyTable, summary: Summary, path: Path) -> None:
    """Write everything that was computed, for programs."""
    insights = asdict(summary.insights)
    measures = {measure.pop("method"): measure for measure in insights.pop("importance")}
    told = {
        "study": table.name,
        "metric": table.metric,
        "direction": table.direction,
        "objective": table.objective,
        "n_trials": dict(table.count_states()) | {"total": len(table.trials)},
        "best": _best(summary),
        "confirmed": summary.is_confirmed(),
        "findings": [asdict(finding) for finding in summary.findings],
        "importance": measures,
        **insights,
    }
    path.write_text(json.dumps(_plain(told), indent=2, sort_keys=True, allow_nan=False) + "\n")


def _trials_of(configuration: Configuration) -> str:
    return " ".join(map(str, configuration.trials))


def _best(summary: Summary) -> dict[str, Any] | None:
    best = summary.best
    if best is None:
        return None
    own = {"trial": best.trial, "value": best.value, "seed": best.seed, "params": dict(best.params)}
    return own | _run_numbers(summary.configurations[0])


def _run_numbers(configuration: Configuration) -> dict[str, Any]:
    return {
        "n_runs": len(configuration.trials),
        "n_seeds": configuration.n_seeds,
        "mean": configuration.mean,
        "std": configuration.std,
        "min": configuration.min,
        "max": configuration.max,
    }


def _parameter_names(rows: Iterable[TrialRow]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.params))


def _trial_cells(row: TrialRow) -> list[object]:
    cells = {name: getattr(row, name) for name in TRIAL_COLUMNS}
    for name in ("started_at", "finished_at"):
        cells[name] = cells[name].isoformat() if cells[name] else None
    return list(cells.values())


def _write_csv(path: Path, header: list[str], rows: Iterable[list[object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _plain(value: Any) -> Any:  # noqa: ANN401 - anything that JSON can hold, and ranges.
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_defaults=True)
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
