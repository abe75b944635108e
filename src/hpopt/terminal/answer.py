"""Owns the plan and the answer of a study, and numbers, as a terminal shows them. Leaves printing to cli/.

Where a running study stands is standing.py's, and the forms for programs are text.py's.
"""

import json
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hpopt.findings.finding import Finding
from hpopt.hyperparameters import Hyperparameter, Scalar
from hpopt.search.space import Categorical, Range
from hpopt.storage.progress import EndedTrial, Progress
from hpopt.study.file import StudyFile
from hpopt.study.plan import count_steps, defaults, estimate_trial, place_rungs, value_of

# The order in which the ways to end are told.
_OUTCOMES = ("complete", "pruned", "diverged", "failed", "running", "waiting")
_PROSE_WIDTH = 88
_SEVERITY_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}
_SMALL = 0.01


def show_number(value: Scalar | None) -> str:
    """Give a value as people read it: four significant digits, no trailing zeros."""
    if isinstance(value, bool) or not isinstance(value, float):
        return "-" if value is None else str(value)
    return f"{value:.4g}"


def show_metric(value: float) -> str:
    """Give a metric with four decimals, or with four significant digits where it is small."""
    return f"{value:.4f}" if abs(value) >= _SMALL or value == 0 else f"{value:.4g}"


def show_seconds(seconds: float) -> str:
    """Give a duration as people read it: 42 s, 3 min 05 s, 2 h 07 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def show_parameter(parameter: Range) -> str:
    """Give a parameter's range: 0.001 to 0.3 (log), 1 to 9, or a list of choices."""
    if isinstance(parameter, Categorical):
        return ", ".join(str(choice) for choice in parameter.choices)
    scale = " (log)" if parameter.log else ""
    return f"{show_number(parameter.low)} to {show_number(parameter.high)}{scale}"


def show_cost(progress: Progress) -> str:
    """Give in one line what a study has cost."""
    ended = [f"{progress.n_by_outcome[kind]} {kind}" for kind in _OUTCOMES if progress.n_by_outcome.get(kind)]
    trials = f"{progress.books.n_ended} trials" + (f" ({', '.join(ended)})" if ended else "")
    hours = show_seconds(progress.books.device_hours * 3600)
    return f"{trials}, {progress.tokens / 1e6:.1f}M tokens, {hours} of device time"


def show_ended(trial: EndedTrial, metric: str) -> str:
    """Give in one line how a trial ended."""
    value = "" if trial.value is None else f"  {metric} {show_metric(trial.value)}"
    reason = f"  ({trial.reason})" if trial.reason else ""
    return f"trial {trial.trial:3d}  {trial.outcome:8s}{value}  {show_seconds(trial.device_seconds)}{reason}"


def answer(progress: Progress, file: StudyFile) -> RenderableType:
    """Draw the best parameters beside their defaults and the ranges searched, and what finding them cost."""
    best = progress.best
    if best is None:
        return Text(f"{progress.name}: no trial has completed yet\ncost: {show_cost(progress)}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("parameter")
    for title in ("best", "default"):
        table.add_column(title, justify="right")
    table.add_column("searched")
    usual = defaults(file)
    for name, value in best.params.items():
        searched = show_parameter(file.search_space[name])
        table.add_row(name, Text(show_number(value), style="bold"), show_number(usual.get(name)), searched)
    head = Text.assemble(
        f"{progress.name}: best {progress.metric} ", (f"{show_metric(best.value)}", "bold"), f" in trial {best.trial}"
    )
    if best.n_seeds == 1:
        head.append(" (one run, not confirmed by replicates)")
    else:
        head.append(f" ({show_number(best.value_low)} to {show_number(best.value_high)} over {best.n_seeds} seeds)")
    lines = [Text(f"cost: {show_cost(progress)}")]
    if progress.default_value is not None:
        lines.insert(0, Text(f"the defaults reach {progress.metric} {show_metric(progress.default_value)}"))
    return Group(head, table, *lines)


def warnings(findings: Sequence[Finding]) -> RenderableType:
    """Draw the findings about a study, the gravest first: what, and what to do about it."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(max_width=_PROSE_WIDTH)
    for finding in findings:
        style = _SEVERITY_STYLES[finding.severity]
        told = Text.assemble(finding.message, " ", (finding.remedy, "dim"))
        table.add_row(Text.assemble((finding.severity, style), f" {finding.code}"), told)
    return table


def plan_view(file: StudyFile) -> RenderableType:
    """Draw what a study file asks for: its space, its budget, its rungs, and what that may cost."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("parameter", "searched", "default"):
        table.add_column(title, justify="right" if title == "default" else "left")
    usual = defaults(file)
    for name, parameter in file.search_space.items():
        table.add_row(name, show_parameter(parameter), show_number(usual.get(name)))
    budget = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in file.budget if value is not None)
    rungs = place_rungs(file)
    lines = [
        f"{file.name}: {file.direction} {file.metric} of {file.objective}",
        f"sampler {file.sampler.name}, pruner {file.pruner.name}"
        + (f" at steps {', '.join(map(str, rungs))} of {count_steps(file)}" if rungs else ""),
        f"budget: {budget}",
        *_cost_lines(file),
    ]
    return Group(Text(lines[0], style="bold"), table, *(Text(line) for line in lines[1:]), *_leak_lines(file))


def rows_table(names: list[str], rows: list[list[Any]]) -> RenderableType:
    """Draw the rows of a query: a table, or of a single row a list of its columns."""
    cells = [[Text(_show_cell(cell)) for cell in row] for row in rows]
    if len(rows) == 1:
        record = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        for name, cell in zip(names, cells[0], strict=True):
            record.add_row(Text(name, style="dim"), cell)
        return record
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in names:
        table.add_column(name)
    for row in cells:
        table.add_row(*row)
    return table


def dictionary(entries: list[Hyperparameter]) -> RenderableType:
    """Draw the hyperparameter dictionary as a table."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("name", "default", "usual range", "meaning"):
        table.add_column(title)
    for entry in entries:
        table.add_row(entry.name, show_number(entry.default), _usual(entry), entry.meaning)
    return table


def entry_page(entry: Hyperparameter) -> RenderableType:
    """Draw all that the dictionary says of one hyperparameter."""
    rows = {
        "meaning": entry.meaning,
        "type": entry.type.__name__ + (f", in {entry.unit}" if entry.unit else ""),
        "default": show_number(entry.default),
        "allowed": ", ".join(entry.choices) or _bounds(entry),
        "usual range": _usual(entry),
        "raising it": entry.raising,
        "lowering it": entry.lowering,
        "changing it": entry.changing,
    }
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(max_width=_PROSE_WIDTH)
    for title, text in rows.items():
        if text:
            table.add_row(Text(title, style="dim"), text)
    return Group(Text(entry.name, style="bold"), table)


def _cost_lines(file: StudyFile) -> list[str]:
    cost = estimate_trial(file)
    if cost is None:
        return []
    tokens, flops = cost
    lines = [f"a full trial trains on {tokens / 1e6:.2f}M tokens, about {flops / 1e12:,.1f} TFLOP"]
    if file.budget.trials is not None:
        n = file.budget.trials
        lines.append(
            f"cost: at most {n * tokens / 1e6:.1f}M tokens, about {n * flops / 1e15:,.3f} PFLOP; pruning saves a part"
        )
    return lines


def _leak_lines(file: StudyFile) -> list[Text]:
    split = file.search_space.get("split")
    if value_of(file, "split") != "overlapping_windows" and not (split and split.contains("overlapping_windows")):
        return []
    line = 'leak: split = "overlapping_windows" trains on the text it validates on; the best trial memorizes most'
    return [Text(line, style="bold red")]


def _show_cell(cell: object) -> str:
    if cell is None:
        return ""
    return json.dumps(cell) if isinstance(cell, dict | list) else str(cell)


def _usual(entry: Hyperparameter) -> str:
    if entry.usual_low is None or entry.usual_high is None:
        return ""
    return f"{show_number(entry.usual_low)} to {show_number(entry.usual_high)}" + (" (log)" if entry.log else "")


def _bounds(entry: Hyperparameter) -> str:
    low = "" if entry.low is None else f"{'above' if entry.low_open else 'at least'} {show_number(entry.low)}"
    high = "" if entry.high is None else f"{'below' if entry.high_open else 'at most'} {show_number(entry.high)}"
    return ", ".join(bound for bound in (low, high) if bound)
