"""Render Markdown: report.md, and the notes of a study and of its best trials in the dashboard."""

import re
from collections.abc import Iterator, Mapping, Sequence
from shlex import quote

from hpopt.analysis.arms import ArmsComparison
from hpopt.analysis.one_factor import OneFactor
from hpopt.analysis.trials import StudyTable
from hpopt.formats import format_metric, format_number
from hpopt.reporting.chart import Chart
from hpopt.reporting.comparison import (
    SIDE_COLUMNS,
    describe_basis,
    describe_changes,
    describe_comparison,
    tabulate_sides,
)
from hpopt.reporting.confirmation import CANDIDATE_COLUMNS, tabulate_candidates
from hpopt.reporting.one_factor import FACTOR_COLUMNS, describe_one_factor, tabulate_factors, tabulate_values
from hpopt.reporting.sentences import (
    PARAMETER_COLUMNS,
    describe_answer,
    describe_budget,
    describe_confidence,
    describe_cost,
    describe_importance,
    describe_interactions,
    describe_measures,
    describe_objective,
    describe_pruning,
    tabulate_best,
    tabulate_configurations,
    tabulate_parameters,
)
from hpopt.reporting.summary import Summary

_N_TRIAL_NOTES = 5
# What begins a tag of HTML within Markdown; `<1%` does not.
_TAG = re.compile(r"<(?=[A-Za-z/!?])")


def render_text(table: StudyTable, summary: Summary, charts: Mapping[str, Chart]) -> str:
    """Return the report as Markdown; its pictures are NAME.png in the same folder."""
    insights = summary.insights
    lines = [f"# {table.name}", "", f"{describe_objective(table)}.", ""]
    if insights.comparison is None:
        lines += _search_sections(table, summary, charts)
    else:
        lines += ["## Comparison", "", *_comparison(insights.comparison), *_pictures(charts, "comparison")]
        lines += ["## Warnings", "", *(_warnings(summary) or ["None."]), ""]
    pruning = [describe_pruning(insights.pruning)] if insights.comparison is None else []
    lines += ["## Cost", "", *_paragraph([*describe_cost(table, insights.cost), *pruning])]
    lines += [*_pictures(charts, "curves"), "## Method", ""]
    lines += [*(f"- {name}: {value}" for name, value in table.origin.items()), ""]
    return "\n".join([*map(_without_html, lines), *_study_file(table), ""])


def _search_sections(table: StudyTable, summary: Summary, charts: Mapping[str, Chart]) -> list[str]:
    insights = summary.insights
    lines = ["## Answer", "", describe_answer(table, summary), "", *_best_params(table, summary)]
    lines += ["## Warnings", "", *(_warnings(summary) or ["None."]), ""]
    lines += ["## Confidence", "", *_paragraph(describe_confidence(table, summary))]
    if table.answer is not None:
        lines += [*_table(CANDIDATE_COLUMNS, tabulate_candidates(table.answer)), ""]
    header, configurations = tabulate_configurations(table, summary)
    lines += [*_table(header, configurations), ""] if configurations else []
    lines += _pictures(charts, "history")
    lines += _one_factor(table, insights.one_factor, charts)
    lines += ["## Parameter importance", "", *_paragraph(describe_importance(table, insights))]
    rows = tabulate_parameters(insights)
    lines += [*_table(PARAMETER_COLUMNS, rows), ""] if rows else []
    lines += [f"- {sentence}" for sentence in describe_measures(insights)]
    lines += [f"- Interactions: {describe_interactions(insights)}", f"- Training length: {describe_budget(insights)}"]
    lines += ["", *_pictures(charts, "importance", "sensitivity", "interactions", "budget", "parallel", "correlations")]
    return lines


def _comparison(compared: ArmsComparison) -> list[str]:
    """Return what each arm shows against the first, the table of the arms, and what each changes."""
    texts = [line for text in describe_comparison(compared) for line in (text, "")]
    details = [f"- {text}" for one in compared.comparisons for text in (describe_changes(one), describe_basis(one))]
    return [*texts, *_table(SIDE_COLUMNS, tabulate_sides(compared)), "", *details, ""]


def _one_factor(table: StudyTable, result: OneFactor | None, charts: Mapping[str, Chart]) -> Iterator[str]:
    if result is None:
        return
    yield from ("## One factor at a time", "", *_paragraph(describe_one_factor(table, result)))
    yield from (*_table(FACTOR_COLUMNS, tabulate_factors(result)), "", *_pictures(charts, "one_factor"))
    for factor in result.factors:
        yield from (*_table(*tabulate_values(table, result, factor)), "")


def render_note(table: StudyTable, summary: Summary) -> str:
    """Return the note of a study: objective, best params, confidence, importance, warnings and study file."""
    lines = [f"hpopt study `{table.name}`. {describe_objective(table)}.", ""]
    if summary.insights.comparison is not None:
        lines += _comparison(summary.insights.comparison)
    else:
        lines += [describe_answer(table, summary), "", *_best_params(table, summary)]
        lines += _paragraph(describe_confidence(table, summary)[:1])
        lines += _paragraph(describe_importance(table, summary.insights))
    lines += ["### Warnings", "", *(_warnings(summary) or ["None."]), ""]
    last = ["", "*Written by `hpopt dashboard`. Saving a note replaces it.*"]
    return "\n".join([*map(_without_html, [*lines, "### Study file", ""]), *_study_file(table), *last])


def render_trial_notes(table: StudyTable) -> dict[int, str]:
    """Return the notes of the best trials by number: rank, value and distance from the best."""
    ranked = table.ranked()
    notes = {}
    for rank, row in enumerate(ranked[:_N_TRIAL_NOTES], start=1):
        title = f"**{'The best' if rank == 1 else f'Number {rank}'} of {len(ranked)} complete trials**"
        gap = table.loss(row.value) - table.loss(ranked[0].value)
        distance = f", {format_number(gap, digits=3)} worse than the best" if gap else ""
        usage = f"\n\n{_usage(table)}" if rank == 1 else ""
        notes[row.trial] = _without_html(f"{title}: {table.metric} {format_metric(row.value or 0.0)}{distance}.{usage}")
    return notes


def _best_params(table: StudyTable, summary: Summary) -> list[str]:
    header, rows = tabulate_best(summary)
    return [*_table(header, rows), "", _usage(table), ""] if rows else []


def _usage(table: StudyTable) -> str:
    return f"As arguments of a training job: `hpopt best {quote(table.name)} --format args`"


def _warnings(summary: Summary) -> list[str]:
    return [
        f"- **{finding.code}** ({finding.severity}): {finding.message} {finding.remedy}" for finding in summary.findings
    ]


def _study_file(table: StudyTable) -> Iterator[str]:
    # The file may contain fences.
    longest = max(map(len, re.findall("`+", table.file_text)), default=0)
    fence = "`" * max(3, longest + 1)
    yield from (f"{fence}toml", table.file_text.rstrip(), fence)


def _without_html(text: str) -> str:
    """Return Markdown in which no name of anybody's is an element of the page."""
    return _TAG.sub("&lt;", text)


def _paragraph(sentences: Sequence[str]) -> list[str]:
    return [" ".join(sentences), ""]


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
