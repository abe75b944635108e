"""Render index.html, the page of a report, as one file without external resources.

page.css has its style; page.js draws the figures, in light or dark colors as the reader's system prefers.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import count
from pathlib import Path
from shlex import quote

from plotly.offline import get_plotlyjs

from hpopt.analysis.answer import AnswerKind
from hpopt.analysis.arms import ArmsComparison
from hpopt.analysis.one_factor import OneFactor
from hpopt.analysis.trials import StudyTable
from hpopt.formats import format_metric, format_number
from hpopt.reporting import interactive
from hpopt.reporting.chart import Chart, Style
from hpopt.reporting.comparison import (
    SIDE_COLUMNS,
    describe_basis,
    describe_changes,
    describe_comparison,
    tabulate_sides,
)
from hpopt.reporting.confirmation import CANDIDATE_COLUMNS, tabulate_candidates
from hpopt.reporting.one_factor import FACTOR_COLUMNS, describe_one_factor, tabulate_factors, tabulate_values
from hpopt.reporting.selection import DARK_COLORS
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
    format_hours,
    tabulate_best,
    tabulate_configurations,
    tabulate_parameters,
)
from hpopt.reporting.summary import Summary
from hpopt.search.conditions import describe_condition
from hpopt.search.space import Range

_SYMBOLS = {"circle": "●", "cross": "✕", "star": "★", "line": "▬", "area": "■"}


def render_page(table: StudyTable, summary: Summary, charts: Mapping[str, Chart]) -> str:
    """Return the page as HTML."""
    figures = _Figures(charts)
    compared = summary.insights.comparison
    if compared is not None:
        sections = [_comparison(compared, figures), _warnings(summary)]
    else:
        sections = [
            _answer(table, summary),
            _warnings(summary),
            _confidence(table, summary, figures),
            _one_factor(table, summary.insights.one_factor, figures),
            _importance(table, summary, figures),
        ]
    sections += [_cost(table, summary, figures), _method(table)]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(table.name)} - hpopt</title>
<style>{_palette()}{Path(__file__).with_name("page.css").read_text()}</style>
</head>
<body>
<main>
<h1>{escape(table.name)}</h1>
<p class="soft">{escape(describe_objective(table))}</p>
{"".join(sections)}
</main>
<script>{get_plotlyjs()}</script>
<script>{_dark_colors()}{Path(__file__).with_name("page.js").read_text()}</script>
</body>
</html>
"""


def _palette() -> str:
    """Return CSS variables for the colors of the charts, in light and dark mode, named by the light color."""
    light = " ".join(f"--{color[1:]}: {color};" for color in DARK_COLORS)
    dark = " ".join(f"--{color[1:]}: {dark_color};" for color, dark_color in DARK_COLORS.items())
    return f":root {{ {light} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"


def _dark_colors() -> str:
    return "const DARK_COLORS = {" + ", ".join(f'"{light}": "{dark}"' for light, dark in DARK_COLORS.items()) + "};"


def _answer(table: StudyTable, summary: Summary) -> str:
    sentence = f"<p>{escape(describe_answer(table, summary))}</p>"
    if summary.best is None:
        return _section("Answer", sentence)
    value = format_metric(summary.best.value or 0.0 if table.answer is None else table.answer.chosen.mean)
    value = f'<div><div class="value">{value}</div>{escape(table.metric)}</div>'
    command = f"<code>hpopt best {escape(quote(table.name))} --format args</code>"
    usage = f"<p class='soft'>As arguments of a training job: {command}</p>"
    return _section("Answer", f'<div class="answer">{value}{_table(*tabulate_best(summary))}</div>{sentence}{usage}')


def _comparison(compared: ArmsComparison, figures: "_Figures") -> str:
    """Return the arms, what each changes, and what it shows against the first."""
    style = ' class="warn"' if compared.fault else ""
    verdicts = "".join(f"<p{style}>{escape(text)}</p>" for text in describe_comparison(compared))
    details = [text for one in compared.comparisons for text in (describe_changes(one), describe_basis(one))]
    soft = "".join(f'<p class="soft">{escape(text)}</p>' for text in details)
    return _section(
        "Comparison", f"{verdicts}{_table(SIDE_COLUMNS, tabulate_sides(compared))}{soft}{figures.whole('comparison')}"
    )


def _confidence(table: StudyTable, summary: Summary, figures: "_Figures") -> str:
    first, *others = describe_confidence(table, summary)
    is_confirmed = table.answer is not None and table.answer.kind is AnswerKind.CONFIRMED
    style = "" if is_confirmed else ' class="warn"'
    text = f"<p{style}>{escape(first)}</p>{_paragraphs(others)}"
    if table.answer is not None:
        text += f"<h3>Confirmation</h3>{_table(CANDIDATE_COLUMNS, tabulate_candidates(table.answer))}"
    header, rows = tabulate_configurations(table, summary)
    configurations = f"<h3>Best configurations</h3>{_table(header, rows)}" if rows else ""
    return _section("Confidence", text + configurations + figures.whole("history"))


def _one_factor(table: StudyTable, result: OneFactor | None, figures: "_Figures") -> str:
    if result is None:
        return ""
    tables = "".join(_table(*tabulate_values(table, result, factor), css_class="dense") for factor in result.factors)
    parts = [
        _paragraphs(describe_one_factor(table, result)),
        _table(FACTOR_COLUMNS, tabulate_factors(result), css_class="dense"),
        figures.grid("one_factor"),
        f"<h3>Values of each parameter</h3>{tables}",
    ]
    return _section("One factor at a time", "".join(parts))


def _importance(table: StudyTable, summary: Summary, figures: "_Figures") -> str:
    insights = summary.insights
    rows = tabulate_parameters(insights)
    parts = [
        _paragraphs(describe_importance(table, insights)),
        _table(PARAMETER_COLUMNS, rows, css_class="dense") if rows else "",
        figures.whole("importance"),
        *(f'<p class="soft">{escape(sentence)}</p>' for sentence in describe_measures(insights)),
        figures.grid("sensitivity"),
        f"<h3>Interactions</h3>{_paragraphs([describe_interactions(insights)])}",
        figures.whole("interactions", has_heading=False),
        f"<h3>Optimum by training length</h3>{_paragraphs([describe_budget(insights)])}",
        figures.grid("budget", has_heading=False),
        figures.whole("parallel"),
        figures.whole("correlations"),
    ]
    return _section("Parameter importance", "".join(parts))


def _warnings(summary: Summary) -> str:
    """Return the findings, each with its remedy; nothing if there are none."""
    boxes = [
        f'<div class="finding {finding.severity}"><p><b>{escape(finding.code)}</b> {escape(finding.message)}</p>'
        f'<p class="soft">{_with_code(finding.remedy)}</p></div>'
        for finding in summary.findings
    ]
    return _section("Warnings", "".join(boxes)) if boxes else ""


def _with_code(sentence: str) -> str:
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(sentence))


def _cost(table: StudyTable, summary: Summary, figures: "_Figures") -> str:
    cost = summary.insights.cost
    tiles = {"device time": format_hours(cost.device_hours), "in pruned trials": format_hours(cost.pruned_hours)}
    if table.pruned() and cost.saved_hours is not None:
        tiles["saved by pruning (est.)"] = format_hours(cost.saved_hours)
    if cost.tokens:
        tiles["tokens"] = f"{format_number(cost.tokens / 1e6, digits=3)} M"
    boxes = "".join(
        f'<div class="tile"><b>{value}</b><span class="soft">{name}</span></div>' for name, value in tiles.items()
    )
    pruning = [describe_pruning(summary.insights.pruning)] if table.design is None else []
    text = _paragraphs([*describe_cost(table, cost), *pruning])
    return _section("Cost", f'<div class="tiles">{boxes}</div>{text}{figures.whole("curves")}')


def _method(table: StudyTable) -> str:
    space = _table(
        ["parameter", "search space"],
        [[name, _describe_range(range_)] for name, range_ in table.search_space.items()],
    )
    origin = [[name, value] for name, value in table.origin.items()]
    environment = f"<h3>Environment</h3>{_table(['name', 'value'], origin)}" if origin else ""
    failed = [[str(row.trial), row.reason or "no reason recorded"] for row in table.trials if row.state == "FAIL"]
    failures = f"<h3>Failed trials</h3>{_table(['trial', 'reason'], failed)}" if failed else ""
    file = f"<h3>Study file</h3><pre>{escape(table.file_text)}</pre>"
    return _section("Method", f"{space}{environment}{failures}{file}")


def _describe_range(range_: Range) -> str:
    scale = ", log scale" if getattr(range_, "log", False) else ""
    where = f", where {describe_condition(range_.when)}" if range_.when else ""
    return f"{range_.describe()}{scale}{where}"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>\n"


def _paragraphs(sentences: Iterable[str]) -> str:
    return "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)


class _Figures:
    """Figures as HTML: heading, data, and the element that page.js draws them into."""

    def __init__(self, charts: Mapping[str, Chart]) -> None:
        self._charts = charts
        self._numbers = count()

    def whole(self, name: str, *, has_heading: bool = True) -> str:
        """Return a chart as one figure; nothing if there is no such chart."""
        chart = self._charts.get(name)
        return "" if chart is None else _heading(chart, has_heading=has_heading) + self._figure(chart)

    def grid(self, name: str, *, has_heading: bool = True) -> str:
        """Return each panel of a chart as a figure of its own, side by side where they fit."""
        chart = self._charts.get(name)
        if chart is None:
            return ""
        panels = [
            f"<div><h4>{escape(panel.title)}</h4>"
            + (f'<p class="soft small">{escape(panel.caption)}</p>' if panel.caption else "")
            + f"{self._figure(Chart(name=name, title=panel.title, panels=(panel,)), has_legend=False)}</div>"
            for panel in chart.panels
        ]
        return f'{_heading(chart, has_heading=has_heading)}{_legend(chart)}<div class="grid">{"".join(panels)}</div>'

    def _figure(self, chart: Chart, *, has_legend: bool = True) -> str:
        figure = interactive.draw(chart)
        if not has_legend:
            figure.update_layout(showlegend=False, margin_t=6)
        name = f"figure-{next(self._numbers)}"
        # plotly writes < as \\u003c, so that no name can end the script element.
        data = f'<script type="application/json" id="{name}">{figure.to_json()}</script>'
        return f'{data}<div data-figure="{name}" role="img" aria-label="{escape(chart.title)}"></div>'


def _heading(chart: Chart, *, has_heading: bool) -> str:
    heading = f"<h3>{escape(chart.title)}</h3>" if has_heading else ""
    return f'{heading}<p class="soft small">{escape(chart.caption)}</p>'


def _legend(chart: Chart) -> str:
    """Return one legend for all panels."""
    by_label: dict[str, tuple[Style, str]] = {}
    for style, symbol in (entry for panel in chart.panels for entry in panel.legend_entries()):
        by_label.setdefault(style.label, (style, symbol))
    spans = [
        f'<span><b style="color: var(--{style.color[1:]}); opacity: {min(1, 2 * style.opacity)}">'
        f"{_SYMBOLS[symbol]}</b> {escape(label)}</span>"
        for label, (style, symbol) in by_label.items()
        if label
    ]
    return f'<p class="legend small">{"".join(spans)}</p>'


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], css_class: str = "") -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="{css_class}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )
