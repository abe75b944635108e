"""Owns the folder that `hpopt report` writes, and report.md in it. Leaves each file's content to its module."""

from pathlib import Path

from hpopt.analysis.trials import StudyTable
from hpopt.errors import InputError
from hpopt.report.files import write_insights, write_summary_table, write_trials
from hpopt.report.page import render_page
from hpopt.report.pictures import write_pictures
from hpopt.report.selection import format_number
from hpopt.report.summary import Summary, tell_answer, tell_confidence, tell_cost

CAPTIONS = {
    "history.png": "Trial by trial, and the best so far.",
    "parameters.png": "Each parameter against the metric.",
    "curves.png": "Learning curves of the best trials against the pruned ones.",
    "importance.png": "How much each parameter matters.",
}


def write_report(table: StudyTable, summary: Summary, folder: Path) -> list[Path]:
    """Write page, text, figures and tables, and give their paths, the page first.

    Raises InputError if the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pictures = write_pictures(table, summary.importance, folder)
        names = ("index.html", "report.md", "trials.csv", "summary_table.csv", "insights.json")
        page, text, trials, configurations, insights = (folder / name for name in names)
        page.write_text(render_page(table, summary), encoding="utf-8")
        text.write_text(render_text(table, summary, [path.name for path in pictures]), encoding="utf-8")
        write_trials(table, trials)
        write_summary_table(summary, configurations)
        write_insights(table, summary, insights)
    except OSError as error:
        raise InputError(f"{error.filename or folder}: {error.strerror}: no report can be written there") from error
    return [page, text, *pictures, trials, configurations, insights]


def render_text(table: StudyTable, summary: Summary, pictures: list[str]) -> str:
    """Give the report in Markdown."""
    lines = [f"# {table.name}", "", "## Answer", "", tell_answer(table, summary), ""]
    if summary.best is not None:
        lines += ["| parameter | value |", "|---|---|"]
        lines += [f"| {name} | {_cell(value)} |" for name, value in summary.best.params.items()]
        lines.append("")
    lines += ["## How sure", "", *tell_confidence(table, summary), ""]
    lines += _pictures(pictures, "history.png")
    lines += ["## What matters", ""]
    for measure in summary.importance:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in (measure.shares or {}).items())
        lines.append(f"- {measure.measure} ({measure.meaning}): {shares or measure.reason}.")
    lines += ["", *_pictures(pictures, "importance.png"), *_pictures(pictures, "parameters.png")]
    if summary.findings:
        lines += ["## Warnings", ""]
        lines += [f"- **{each.code}** ({each.severity}): {each.sentence} {each.remedy}" for each in summary.findings]
        lines.append("")
    lines += ["## Cost", "", *tell_cost(table, summary.cost), "", *_pictures(pictures, "curves.png")]
    lines += [
        "## Method",
        "",
        f"Objective `{table.objective}`, {table.direction} `{table.metric}`. The study file:",
        "",
    ]
    return "\n".join([*lines, "```toml", table.file_text.rstrip(), "```", ""])


def _pictures(written: list[str], name: str) -> list[str]:
    return [f"![{CAPTIONS[name]}]({name})", ""] if name in written else []


def _cell(value: object) -> str:
    return format_number(value) if isinstance(value, float) else str(value)
