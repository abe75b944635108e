"""Render the plan and the answer of a study for a terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from hpopt.analysis.answer import Answer
from hpopt.findings.finding import Finding
from hpopt.formats import (
    format_amount,
    format_count,
    format_duration,
    format_metric,
    format_number,
    format_percent,
    join_words,
    one_line,
    to_json,
)
from hpopt.hyperparameters import Hyperparameter
from hpopt.reporting.confirmation import CANDIDATE_COLUMNS, describe_confirmation, describe_kind, tabulate_candidates
from hpopt.search.conditions import describe_condition
from hpopt.search.space import Categorical, Range
from hpopt.storage.progress import FinishedTrial, Progress
from hpopt.study.conditions import describe_unused
from hpopt.study.file import StudyFile
from hpopt.study.plan import (
    count_runs,
    count_steps,
    defaults,
    estimate_trial,
    place_rungs,
    rungs_of,
    searched_lengths,
    searched_warmups,
    value_of,
)
from hpopt.terminal.design import describe_design

if TYPE_CHECKING:
    # `hpopt check` renders a plan without importing optuna and SQLAlchemy.
    from hpopt.storage.studies import Study

# The order in which outcomes are listed: those of finished trials, and of others.
_FINISHED = ("complete", "pruned", "diverged", "failed")
_UNFINISHED = ("running", "waiting")
_PROSE_WIDTH = 88
_SEVERITY_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


@dataclass(frozen=True)
class TableOrLines:
    """A table if it fits the console, else its content in lines that wrap."""

    table: Table
    lines: Sequence[RenderableType]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        unbounded = options.update(width=10_000)
        fits = console.measure(self.table, options=unbounded).maximum <= options.max_width
        yield self.table if fits else Group(*self.lines)


def format_range(parameter: Range) -> str:
    """Format a range: 0.001 to 0.3 (log), 1 to 9, or a list of choices, and where the parameter is active."""
    where = f", where {describe_condition(parameter.when)}" if parameter.when else ""
    if isinstance(parameter, Categorical):
        return ", ".join(str(choice) for choice in parameter.choices) + where
    scale = " (log)" if parameter.log else ""
    return f"{format_number(parameter.low)} to {format_number(parameter.high)}{scale}{where}"


def format_cost(progress: Progress) -> str:
    """Format what a study and its confirmation have cost: trials by outcome, tokens and device time."""
    finished, others = (
        [f"{progress.n_by_outcome[kind]} {kind}" for kind in kinds if progress.n_by_outcome.get(kind)]
        for kinds in (_FINISHED, _UNFINISHED)
    )
    n_finished = sum(progress.n_by_outcome.get(kind, 0) for kind in _FINISHED)
    parts = [format_count(n_finished, "trial") + (f" ({', '.join(finished)})" if finished else ""), *others]
    tokens = progress.tokens
    if progress.confirmation is not None:
        parts.append(f"{format_count(progress.confirmation.usage.n_finished, 'run')} of the confirmation")
        tokens += progress.confirmation.tokens
    parts += [f"{format_amount(tokens)} tokens"] if tokens else []
    return ", ".join([*parts, f"{format_duration(progress.usage.family_hours * 3600)} of device time"])


def format_finished(trial: FinishedTrial, metric: str) -> str:
    """Format the outcome of a trial as one line."""
    value = "" if trial.value is None else f"  {metric} {format_metric(trial.value)}"
    reason = f"  ({one_line(trial.reason)})" if trial.reason else ""
    return f"trial {trial.trial:3d}  {trial.outcome:8s}{value}  {format_duration(trial.device_seconds)}{reason}"


def describe_missing(progress: Progress) -> str:
    """Return why a study has no answer: without a complete trial, or a comparison before its end."""
    if not progress.is_comparison or not progress.n_by_outcome.get("complete"):
        return "no trial has completed yet"
    return f"no verdict; `hpopt compare {progress.name}` shows the runs"


def render_answer(progress: Progress, study: "Study") -> RenderableType:
    """Render the best parameters with their defaults and ranges, and the cost of the study."""
    best = progress.best
    if best is None:
        return Text(f"{progress.name}: {describe_missing(progress)}\ncost: {format_cost(progress)}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("parameter")
    for title in ("best", "default"):
        table.add_column(title, justify="right")
    table.add_column("searched")
    for name, value in best.params.items():
        searched = study.file.search_space.get(name)
        source = study.file.derived.get(name, "") if searched is None else format_range(searched)
        cells = format_number(study.defaults.get(name)), source
        table.add_row(format_number(name), Text(format_number(value), style="bold"), *cells)
    head = Text.assemble(f"{progress.name}: best {progress.metric} ", (f"{format_metric(best.value)}", "bold"))
    if best.confirmed is not None:
        kind = describe_kind(best.confirmed, progress.metric)
        head = Text.assemble(f"{progress.name}: ", (kind, "bold"), f", the configuration of trial {best.trial}")
    elif best.trial in (*progress.external.used, *progress.external.left_out):
        head.append(f" in trial {best.trial}, which was added outside of hpopt")
    elif best.value_low is None or best.value_high is None:
        head.append(f" in trial {best.trial} (one run, not confirmed by replicates)")
    else:
        values = f"{format_metric(best.value_low)} to {format_metric(best.value_high)}"
        head.append(f", the mean of {best.n_seeds} seeds ({values}, best in trial {best.trial}), not confirmed")
    lines = [Text(f"cost: {format_cost(progress)}")]
    if best.folder is not None:
        lines.append(Text(f"files of trial {best.trial}: {best.host}:{best.folder}", overflow="fold"))
    external = progress.external.describe()
    if external:
        lines.append(Text(external, style="yellow"))
    if progress.default_value is not None:
        lines.insert(0, Text(f"the defaults reach {progress.metric} {format_metric(progress.default_value)}"))
    return Group(head, table, *(() if best.confirmed is None else _confirmation(best.confirmed, progress)), *lines)


def _confirmation(answer: Answer, progress: Progress) -> tuple[RenderableType, ...]:
    """Return the table of the configurations that were confirmed, and what it shows."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in CANDIDATE_COLUMNS:
        table.add_column(title, justify="left" if title == "answer" else "right")
    for row in tabulate_candidates(answer):
        table.add_row(*row)
    _, _, *sentences = describe_confirmation(answer, progress.metric)
    return table, *map(Text, sentences)


def render_findings(findings: Sequence[Finding]) -> RenderableType:
    """Render findings, the most severe first, each with its remedy."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(max_width=_PROSE_WIDTH)
    for finding in findings:
        style = _SEVERITY_STYLES[finding.severity]
        message = Text.assemble(finding.message, " ", (finding.remedy, "dim"))
        table.add_row(Text.assemble((finding.severity, style), f" {finding.code}"), message)
    return table


def render_plan(file: StudyFile) -> RenderableType:
    """Render the plan of a study file: its space, budget and rungs, and its cost at most."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("parameter", "searched", "default"):
        table.add_column(title, justify="right" if title == "default" else "left")
    default_values = defaults(file)
    for name, parameter in file.search_space.items():
        table.add_row(name, format_range(parameter), format_number(default_values.get(name)))
    for name, text in file.derived.items():
        table.add_row(name, text, format_number(default_values.get(name)))
    budget = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in file.budget if value is not None)
    lines = [
        f"{file.name}: {file.direction} {file.metric} (objective: {file.objective})",
        f"sampler {file.sampler.name}, pruner {file.pruner.name}{_describe_rungs(file)}",
        *_length_lines(file),
        *describe_unused(file),
        *describe_design(file),
        *([f"budget: {budget}"] if budget else []),
        *describe_cost(file),
    ]
    return Group(Text(lines[0], style="bold"), table, *(Text(line) for line in lines[1:]), *_leak_lines(file))


def render_rows(names: list[str], rows: list[list[Any]]) -> RenderableType:
    """Render the rows of a query as a table, or as lists of their columns: a single row, or rows too wide for one."""
    cells = [[Text(_format_cell(cell)) for cell in row] for row in rows]
    if len(rows) == 1:
        return _record(names, cells[0])
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in names:
        table.add_column(name)
    records: list[RenderableType] = []
    for number, row in enumerate(cells, start=1):
        table.add_row(*row)
        records += [Text(f"-[ record {number} ]-", style="dim"), _record(names, row)]
    return TableOrLines(table, records)


def render_dictionary(entries: list[Hyperparameter]) -> RenderableType:
    """Render the hyperparameter dictionary as a table."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("name", "default", "usual range", "meaning"):
        table.add_column(title)
    for entry in entries:
        table.add_row(entry.name, format_number(entry.default), _usual(entry), entry.meaning)
    return table


def render_entry(entry: Hyperparameter) -> RenderableType:
    """Render the entry of one hyperparameter."""
    rows = {
        "meaning": entry.meaning,
        "type": entry.type.__name__ + (f", in {entry.unit}" if entry.unit else ""),
        "default": format_number(entry.default),
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


def _record(names: list[str], cells: list[Text]) -> Table:
    record = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    record.add_column()
    record.add_column(overflow="fold")
    for name, cell in zip(names, cells, strict=True):
        record.add_row(Text(name, style="dim"), cell)
    return record


def _describe_rungs(file: StudyFile) -> str:
    """Return where the pruner compares trials: at steps, or at fractions of them where the evaluations are unknown."""
    rungs, steps, first = rungs_of(file), place_rungs(file), rungs_of(file).at_every_evaluation_from
    if steps:
        where = ", ".join(map(str, steps))
        return f" at {'each evaluation from step' if first else 'steps'} {where} of {count_steps(file)}"
    if first:
        return f" at each evaluation from {format_percent(first)} of a trial's steps on"
    shares = join_words([format_percent(fraction) for fraction in rungs.fractions])
    return f" at the first evaluation from {shares} of a trial's steps on" if shares else ""


def describe_cost(file: StudyFile) -> list[str]:
    """Describe what a complete trial and the whole study cost, in lines."""
    n, less = count_runs(file), "" if file.pruner.name == "none" else "; less with pruning"
    cost = estimate_trial(file)
    if cost is None:
        n_steps = count_steps(file)
        of = "" if n_steps is None else f" of {format_count(n_steps, 'step')}"
        return [] if n is None else [f"cost: at most {format_count(n, 'trial')}{of}{less}"]
    tokens, flops = cost
    lines = [f"a complete trial trains on {_describe_training(tokens, flops)}"]
    return lines if n is None else [*lines, f"cost: at most {_describe_training(n * tokens, n * flops)}{less}"]


def _describe_training(tokens: int, flops: float) -> str:
    return f"{format_amount(tokens)} tokens, about {format_amount(flops, separator=' ')}FLOP"


def _length_lines(file: StudyFile) -> list[str]:
    """Return a line each where a pruner compares trials of unlike length, and where it waits for the warmup."""
    if file.pruner.name == "none":
        return []
    names, lines = searched_lengths(file), []
    if names:
        line = f"{join_words(names)} changes the length of a trial: the pruner compares trials at the same fractions"
        lines.append(f'{line} of unlike schedules; fix {names[0]}, or set pruner.name = "none"')
    warmups = [f"{name} up to {value:g}" for name, value in searched_warmups(file).items()]
    if warmups:
        rungs = place_rungs(file)
        first = f"the first rung is step {rungs[0]}, not within" if rungs else "no trials are compared within"
        lines.append(f"warmup is searched: {first} the longest ({join_words(warmups)})")
    return lines


def _leak_lines(file: StudyFile) -> list[Text]:
    split = file.search_space.get("split")
    if value_of(file, "split") != "overlapping_windows" and not (split and split.contains("overlapping_windows")):
        return []
    line = 'leak: split = "overlapping_windows" trains on its validation text, so the best trial memorizes most'
    return [Text(line, style="bold red")]


def _format_cell(cell: object) -> str:
    if cell is None:
        return ""
    if isinstance(cell, memoryview):
        return f"\\x{cell.hex()}"
    return to_json(cell) if isinstance(cell, dict | list) else str(cell)


def _usual(entry: Hyperparameter) -> str:
    if entry.usual_low is None or entry.usual_high is None:
        return ""
    return f"{format_number(entry.usual_low)} to {format_number(entry.usual_high)}" + (" (log)" if entry.log else "")


def _bounds(entry: Hyperparameter) -> str:
    low = "" if entry.low is None else f"{'above' if entry.low_open else 'at least'} {format_number(entry.low)}"
    high = "" if entry.high is None else f"{'below' if entry.high_open else 'at most'} {format_number(entry.high)}"
    return ", ".join(bound for bound in (low, high) if bound)
