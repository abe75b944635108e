"""Owns index.html: one file that needs nothing else; answer, how sure, what matters, warnings, cost, method.

Looks are in page.css; page.js draws the figures, in the colors of the reader's light or dark background.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import count
from pathlib import Path
from shlex import quote

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from hpopt.analysis.trials import StudyTable
from hpopt.report import figures
from hpopt.report.selection import DARK_TWINS, format_number
from hpopt.report.summary import Summary, format_hours, tell_answer, tell_confidence, tell_cost

N_RANKED = 10


def render_page(table: StudyTable, summary: Summary) -> str:
    """Give the page as HTML."""
    numbers = count()
    sections = [
        _answer(table, summary),
        _confidence(table, summary, numbers),
        _what_matters(table, summary, numbers),
        _warnings(summary),
        _cost(table, summary, numbers),
        _method(table),
    ]
    twins = "const TWINS = {" + ", ".join(f'"{light}": "{dark}"' for light, dark in DARK_TWINS.items()) + "};"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(table.name)} - hpopt</title>
<style>{Path(__file__).with_name("page.css").read_text()}</style>
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
    params = _table(["parameter", "value"], [[name, _cell(value)] for name, value in summary.best.params.items()])
    value = f'<div><div class="value">{format_number(summary.best.value)}</div>{escape(table.metric)}</div>'
    use = f"<p class='soft'>For a training job: <code>hpopt best {escape(quote(table.name))} --format args</code></p>"
    return _section("Answer", f'<div class="answer">{value}{params}</div>{sentence}{use}')


def _confidence(table: StudyTable, summary: Summary, numbers: Iterator[int]) -> str:
    first, *others = tell_confidence(table, summary)
    tone = "" if summary.is_confirmed() else ' class="warn"'
    text = f"<p{tone}>{escape(first)}</p>" + "".join(f"<p>{escape(sentence)}</p>" for sentence in others)
    names = list(dict.fromkeys(name for best in summary.configurations[:N_RANKED] for name in best.params))
    rows = [
        [
            str(configuration.trials[0]),
            format_number(configuration.mean),
            str(len(configuration.trials)),
            *(_cell(configuration.params.get(name)) for name in names),
        ]
        for configuration in summary.configurations[:N_RANKED]
    ]
    ranked = _table(["trial", table.metric, "runs", *names], rows) if rows else ""
    parts = [text, "<h3>The best configurations</h3>" * bool(rows), ranked]
    parts += _figure("Trial by trial", figures.draw_history(table), numbers)
    return _section("How sure", "".join(parts))


def _what_matters(table: StudyTable, summary: Summary, numbers: Iterator[int]) -> str:
    parts = []
    for measure in summary.importance:
        told = f"{measure.measure}: {measure.meaning}."
        parts.append(f"<p>{escape(told if measure.reason is None else f'{told} {measure.reason.capitalize()}.')}</p>")
    parts += _figure("Importance", figures.draw_importance(summary.importance), numbers)
    slices = [
        "".join(_figure(name, figures.draw_parameter(table, name), numbers, level="div")) for name in table.search_space
    ]
    if any(slices):
        parts.append(f'<h3>Each parameter against {escape(table.metric)}</h3><div class="grid">')
        parts += [f"<div>{drawn}</div>" for drawn in slices if drawn]
        parts.append("</div>")
    return _section("What matters", "".join(parts))


def _warnings(summary: Summary) -> str:
    """Give the findings, each with what to do about it; nothing where there are none."""
    boxes = [
        f'<div class="finding {each.severity}"><p><b>{escape(each.code)}</b> {escape(each.sentence)}</p>'
        f'<p class="soft">{_with_code(each.remedy)}</p></div>'
        for each in summary.findings
    ]
    return _section("Warnings", "".join(boxes)) if boxes else ""


def _with_code(sentence: str) -> str:
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(sentence))


def _cost(table: StudyTable, summary: Summary, numbers: Iterator[int]) -> str:
    cost = summary.cost
    tiles = {"device time": format_hours(cost.device_hours), "in pruned trials": format_hours(cost.pruned_hours)}
    if table.pruned() and cost.saved_hours is not None:
        tiles["saved by pruning, about"] = format_hours(cost.saved_hours)
    if cost.tokens:
        tiles["tokens"] = f"{cost.tokens / 1e6:,.3g} M"
    boxes = "".join(
        f'<div class="tile"><b>{value}</b><span class="soft">{name}</span></div>' for name, value in tiles.items()
    )
    told = "".join(f"<p>{escape(sentence)}</p>" for sentence in tell_cost(table, cost))
    curves = _figure("Learning curves: the best against the pruned", figures.draw_curves(table), numbers)
    return _section("Cost", f'<div class="tiles">{boxes}</div>{told}{"".join(curves)}')


def _method(table: StudyTable) -> str:
    space = _table(
        ["parameter", "searched"],
        [
            [name, range_.describe() + (", log scale" if getattr(range_, "log", False) else "")]
            for name, range_ in table.search_space.items()
        ],
    )
    failed = [[str(row.trial), row.reason or "no reason on record"] for row in table.trials if row.state == "FAIL"]
    failures = f"<h3>Failed trials</h3>{_table(['trial', 'reason'], failed)}" if failed else ""
    return _section("Method", f"{space}{failures}<h3>The study file</h3><pre>{escape(table.file_text)}</pre>")


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>\n"


def _figure(title: str, figure: go.Figure | None, numbers: Iterator[int], level: str = "h3") -> list[str]:
    """Give the heading, the figure's data and the box that it is drawn into."""
    if figure is None:
        return []
    name = f"figure-{next(numbers)}"
    heading = f"<h3>{escape(title)}</h3>" if level == "h3" else ""
    # plotly writes < as \u003c, so that no name can end the script element.
    data = figure.to_json()
    box = f'<div data-figure="{name}" role="img" aria-label="{escape(title)}"></div>'
    return [heading, f'<script type="application/json" id="{name}">{data}</script>', box]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: object) -> str:
    if isinstance(value, float):
        return format_number(value)
    return "" if value is None else str(value)
