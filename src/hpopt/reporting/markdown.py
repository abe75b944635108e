"""Owns what hpopt says in Markdown: report.md, and the notes of a study and of its best trials in the dashboard."""

from collections.abc import Iterator, Mapping, Sequence
from shlex import quote

from hpopt.analysis.trials import StudyTable
from hpopt.reporting.chart import Chart
from hpopt.reporting.selection import format_number
from hpopt.reporting.sentences import (
    PARAMETER_COLUMNS,
    configuration_rows,
    parameter_rows,
    tell_answer,
    tell_budget,
    tell_confidence,
    tell_cost,
    tell_interactions,
    tell_measures,
    tell_pruning,
    tell_what_matters,
)
from hpopt.reporting.summary import Summary

_N_NOTED = 5


def render_text(table: StudyTable, summary: Summary, charts: Mapping[str, Chart]) -> str:
    """Give the report: answer, how sure, what matters, warnings, cost, method; pictures are NAME.png beside it."""
    insights = summary.insights
    lines = [f"# {table.name}", "", "## Answer", "", tell_answer(table, summary), "", *_best_params(table, summary)]
    lines += ["## How sure", "", *_paragraphs(tell_confidence(table, summary))]
    header, ranked = configuration_rows(table, summary)
    lines += [*_table(header, ranked), ""] if ranked else []
    lines += _pictures(charts, "history")
    lines += ["## What matters", "", *_paragraphs(tell_what_matters(table, insights))]
    rows = parameter_rows(insights)
    lines += [*_table(PARAMETER_COLUMNS, rows), ""] if rows else []
    lines += [f"- {sentence}" for sentence in tell_measures(insights)]
    lines += [f"- Interactions: {tell_interactions(insights)}", f"- Training budget: {tell_budget(insights)}"]
    lines += ["", *_pictures(charts, "importance", "sensitivity", "interactions", "budget", "parallel", "correlations")]
    lines += ["## Warnings", "", *(_warnings(summary) or ["None."]), ""]
    lines += ["## Cost", "", *_paragraphs([*tell_cost(table, insights.cost), tell_pruning(insights.pruning)])]
    lines += [*_pictures(charts, "curves"), "## Method", "", _method(table), ""]
    lines += [*(f"- {name}: {value}" for name, value in table.origin.items()), "", *_study_file(table), ""]
    return "\n".join(lines)


def render_note(table: StudyTable, summary: Summary) -> str:
    """Give the note of a study: what it is, the best parameters, how sure, warnings, the study file."""
    lines = [_method(table), "", tell_answer(table, summary), "", *_best_params(table, summary)]
    lines += _paragraphs(tell_confidence(table, summary)[:1])
    lines += _paragraphs(tell_what_matters(table, summary.insights))
    lines += ["### Warnings", "", *(_warnings(summary) or ["None."]), ""]
    lines += ["### The study file", "", *_study_file(table), ""]
    lines += ["*Written by `hpopt dashboard`. A note that is saved here takes its place.*"]
    return "\n".join(lines)


def render_trial_notes(table: StudyTable) -> dict[int, str]:
    """Give the notes of the best trials by trial: their place, and what they share with the best."""
    ranked = table.ranked()
    notes = {}
    for place, row in enumerate(ranked[:_N_NOTED], start=1):
        behind = table.loss(row.value) - table.loss(ranked[0].value)
        told = f"**{'The best' if place == 1 else f'Number {place}'} of {len(ranked)} complete trials**"
        gap = "" if place == 1 else f", {format_number(behind)} behind the best"
        use = f"\n\nFor a training job: `hpopt best {quote(table.name)} --format args`" if place == 1 else ""
        notes[row.trial] = f"{told}: {table.metric} {format_number(row.value)}{gap}.{use}"
    return notes


def _best_params(table: StudyTable, summary: Summary) -> list[str]:
    if summary.best is None:
        return []
    names, default = list(summary.best.params), summary.default
    rows = [[name, _cell(summary.best.params[name])] for name in names]
    if default is not None:
        rows = [[*row, _cell(default.params.get(row[0]))] for row in rows]
    header = ("parameter", "best", "default")[: len(rows[0]) if rows else 2]
    use = f"For a training job: `hpopt best {quote(table.name)} --format args`"
    return [*_table(header, rows), "", use, ""] if rows else []


def _warnings(summary: Summary) -> list[str]:
    return [f"- **{each.code}** ({each.severity}): {each.message} {each.remedy}" for each in summary.findings]


def _method(table: StudyTable) -> str:
    return f"hpopt study `{table.name}`: {table.direction} `{table.metric}` of `{table.objective}`."


def _study_file(table: StudyTable) -> Iterator[str]:
    # A file may have a fence of three in its comments.
    yield from ("`````toml", table.file_text.rstrip(), "`````")


def _paragraphs(sentences: Sequence[str]) -> list[str]:
    return [" ".join(sentence for sentence in sentences if sentence), ""]


def _pictures(charts: Mapping[str, Chart], *names: str) -> Iterator[str]:
    for name in names:
        if name in charts:
            yield from (f"![{charts[name].caption}]({name}.png)", "")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield _row(header)
    yield f"|---{'|---:' * (len(header) - 1)}|"
    yield from map(_row, rows)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _cell(value: object) -> str:
    return format_number(value) if isinstance(value, float) else str(value)
