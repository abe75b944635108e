"""Owns index.html: one file that needs nothing else; answer, how sure, what matters, warnings, cost, method.

Looks are in page.css; page.js draws the figures, in the colors of the reader's light or dark background.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import count
from pathlib import Path
from shlex import quote

from plotly.offline import get_plotlyjs

from hpopt.analysis.trials import StudyTable
from hpopt.reporting import interactive
from hpopt.reporting.chart import Chart
from hpopt.reporting.selection import DARK_TWINS, format_number
from hpopt.reporting.sentences import (
    PARAMETER_COLUMNS,
    configuration_rows,
    format_hours,
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

_SYMBOLS = {"circle": "●", "cross": "✕", "star": "★", "line": "▬", "area": "■"}


def render_page(table: StudyTable, summary: Summary, charts: Mapping[str, Chart]) -> str:
    """Give the page as HTML."""
    drawn = _Figures(charts)
    sections = [
        _answer(table, summary),
        _confidence(table, summary, drawn),
        _what_matters(table, summary, drawn),
        _warnings(summary),
        _cost(table, summary, drawn),
        _method(table),
    ]
    colors, dark_colors = (
        " ".join(f"--{light[1:]}: {color};" for light, color in pairs)
        for pairs in (zip(DARK_TWINS, DARK_TWINS, strict=True), DARK_TWINS.items())
    )
    palette = f":root {{ {colors} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark_colors} }} }}"
    twins = "const TWINS = {" + ", ".join(f'"{light}": "{dark}"' for light, dark in DARK_TWINS.items()) + "};"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(table.name)} - hpopt</title>
<style>{palette}{Path(__file__).with_name("page.css").read_text()}</style>
</head>
<body>
<main>
<h1>{escape(table.name)}</h1>
<p class="soft">{escape(table.direction)} {escape(table.metric)} of {escape(table.objective)}</p>
{"".join(sections)}
</main>
<script>{get_plotlyjs()}</script>
<script>{twins}{Path(__file__).with_name("page.js").read_text()}</script>
</body>
</html>
"""


def _answer(table: StudyTable, summary: Summary) -> str:
    sentence = f"<p>{escape(tell_answer(table, summary))}</p>"
    if summary.best is None:
        return _section("Answer", sentence)
    default = summary.default.params if summary.default else {}
    rows = [[name, _cell(value), _cell(default.get(name))] for name, value in summary.best.params.items()]
    params = _table(["parameter", "best", "default"], rows if default else [row[:2] for row in rows])
    value = f'<div><div class="value">{format_number(summary.best.value)}</div>{escape(table.metric)}</div>'
    use = f"<p class='soft'>For a training job: <code>hpopt best {escape(quote(table.name))} --format args</code></p>"
    return _section("Answer", f'<div class="answer">{value}{params}</div>{sentence}{use}')


def _confidence(table: StudyTable, summary: Summary, drawn: "_Figures") -> str:
    first, *others = tell_confidence(table, summary)
    tone = "" if summary.is_confirmed() else ' class="warn"'
    text = f"<p{tone}>{escape(first)}</p>" + "".join(f"<p>{escape(sentence)}</p>" for sentence in others)
    header, rows = configuration_rows(table, summary)
    ranked = f"<h3>The best configurations</h3>{_table(header, rows)}" if rows else ""
    return _section("How sure", text + ranked + drawn.whole("history"))


def _what_matters(table: StudyTable, summary: Summary, drawn: "_Figures") -> str:
    insights = summary.insights
    parts = [f"<p>{escape(sentence)}</p>" for sentence in tell_what_matters(table, insights)]
    rows = parameter_rows(insights)
    parts.append(_table(PARAMETER_COLUMNS, rows, look="dense") if rows else "")
    parts.append(drawn.whole("importance"))
    parts += [f'<p class="soft">{escape(sentence)}</p>' for sentence in tell_measures(insights)]
    parts += [drawn.grid("sensitivity")]
    parts += [f"<h3>Interactions</h3><p>{escape(tell_interactions(insights))}</p>"]
    parts.append(drawn.whole("interactions", has_heading=False))
    parts.append(f"<h3>Training budget</h3><p>{escape(tell_budget(insights))}</p>")
    parts += [drawn.grid("budget", has_heading=False), drawn.whole("parallel"), drawn.whole("correlations")]
    return _section("What matters", "".join(parts))


def _warnings(summary: Summary) -> str:
    """Give the findings, each with what to do about it; nothing where there are none."""
    boxes = [
        f'<div class="finding {each.severity}"><p><b>{escape(each.code)}</b> {escape(each.message)}</p>'
        f'<p class="soft">{_with_code(each.remedy)}</p></div>'
        for each in summary.findings
    ]
    return _section("Warnings", "".join(boxes)) if boxes else ""


def _with_code(sentence: str) -> str:
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(sentence))


def _cost(table: StudyTable, summary: Summary, drawn: "_Figures") -> str:
    cost = summary.insights.cost
    tiles = {"device time": format_hours(cost.device_hours), "in pruned trials": format_hours(cost.pruned_hours)}
    if table.pruned() and cost.saved_hours is not None:
        tiles["saved by pruning, about"] = format_hours(cost.saved_hours)
    if cost.tokens:
        tiles["tokens"] = f"{cost.tokens / 1e6:,.3g} M"
    boxes = "".join(
        f'<div class="tile"><b>{value}</b><span class="soft">{name}</span></div>' for name, value in tiles.items()
    )
    told = "".join(
        f"<p>{escape(sentence)}</p>" for sentence in (*tell_cost(table, cost), tell_pruning(summary.insights.pruning))
    )
    return _section("Cost", f'<div class="tiles">{boxes}</div>{told}{drawn.whole("curves")}')


def _method(table: StudyTable) -> str:
    space = _table(
        ["parameter", "searched"],
        [
            [name, range_.describe() + (", log scale" if getattr(range_, "log", False) else "")]
            for name, range_ in table.search_space.items()
        ],
    )
    origin = _table(["made with", ""], [[name, value] for name, value in table.origin.items()]) if table.origin else ""
    failed = [[str(row.trial), row.reason or "no reason on record"] for row in table.trials if row.state == "FAIL"]
    failures = f"<h3>Failed trials</h3>{_table(['trial', 'reason'], failed)}" if failed else ""
    return _section("Method", f"{space}{origin}{failures}<h3>The study file</h3><pre>{escape(table.file_text)}</pre>")


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>\n"


class _Figures:
    """Figures as HTML: heading, data, and the box that page.js draws them into."""

    def __init__(self, charts: Mapping[str, Chart]) -> None:
        self._charts = charts
        self._numbers = count()

    def whole(self, name: str, *, has_heading: bool = True) -> str:
        """Give a chart as one figure; nothing where there is no such chart."""
        chart = self._charts.get(name)
        return "" if chart is None else _heading(chart, has_heading=has_heading) + self._figure(chart)

    def grid(self, name: str, *, has_heading: bool = True) -> str:
        """Give each panel of a chart as a figure of its own, as many beside each other as there is room for."""
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
    """Give the legend of all panels once."""
    looks = (look for panel in chart.panels for look in panel.looks())
    entries = {style.label: (style, symbol) for style, symbol in looks if style.label}
    told = [
        f'<span><b style="color: var(--{style.color[1:]}); opacity: {min(1, 2 * style.opacity)}">'
        f"{_SYMBOLS[symbol]}</b> {escape(label)}</span>"
        for label, (style, symbol) in entries.items()
    ]
    return f'<p class="legend small">{"".join(told)}</p>'


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], look: str = "") -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="{look}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _cell(value: object) -> str:
    if isinstance(value, float):
        return format_number(value)
    return "" if value is None else str(value)
