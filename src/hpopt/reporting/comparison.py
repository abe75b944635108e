"""Describe and draw a comparison of arms: a table, sentences, and the pairs of runs with one seed.

The terminal, the page, report.md and the notes of the dashboard show these.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from hpopt.analysis.arms import ArmsComparison, SideComparison, SideSummary
from hpopt.analysis.comparison import MAX_SEEDS, Comparison, Verdict
from hpopt.formats import format_count, format_metric, format_number, join_words, list_values, to_json
from hpopt.reporting.chart import Annotations, Axis, Band, Chart, Line, Mark, Panel, Points, Style
from hpopt.reporting.selection import BEST, COMPLETE, MUTED

SIDE_COLUMNS = ("arm", "mean", "std. dev.", "min", "max", "n")
# A smaller difference is shown with significant digits instead of decimals.
_SMALL = 0.01
_NO_NOISE = "all differences are equal, so that the noise is unknown"


def tabulate_sides(compared: ArmsComparison) -> list[list[str]]:
    """Return the rows of the table of arms (SIDE_COLUMNS)."""
    return [
        [
            side.name,
            *("-" if number is None else format_metric(number) for number in (side.mean, side.std, side.min, side.max)),
            str(side.n),
        ]
        for side in compared.sides
    ]


def describe_comparison(compared: ArmsComparison) -> list[str]:
    """Describe what each arm shows against the first, the verdict first; one text for each arm."""
    n_results = sum(one.result is not None for one in compared.comparisons)
    corrected = [f"Intervals and p-values are corrected for {n_results} comparisons (Bonferroni)."]
    texts = [" ".join(describe_one(compared, one)) for one in compared.comparisons]
    return [*texts, *(corrected if n_results > 1 else [])]


def describe_one(compared: ArmsComparison, one: SideComparison) -> list[str]:
    """Describe what one arm shows against the first: the verdict, and what it rests on."""
    return list(_describe(compared, one))


def describe_changes(one: SideComparison) -> str:
    """Describe in which keys two configs differ."""
    changed = [f"{name} {show_value(a)} -> {show_value(b)}" for name, (a, b) in one.changed.items()]
    return f"{one.treatment}: {', '.join(changed) or 'the config of ' + one.baseline}"


def describe_basis(one: SideComparison) -> str:
    """Describe what two sides have in common."""
    seeds = list_values([str(seed) for seed in one.seeds]) or "none"
    return f"{one.baseline} and {one.treatment} share {join_words(list(one.shared)) or 'nothing known'}; seeds: {seeds}"


def show_value(value: Any) -> str:  # noqa: ANN401 - a value of an objective's config.
    """Return a value of a config as text."""
    return format_number(value) if value is None or isinstance(value, bool | int | float | str) else to_json(value)


def draw_pairs(compared: ArmsComparison | None, unit: str = "") -> Chart | None:
    """Draw the runs of each seed as a line from arm to arm, and the differences of the means with their intervals."""
    if compared is None:
        return None
    unlike = {one.treatment for one in compared.comparisons if one.is_unlike}
    sides = [side for side in compared.sides if side.name not in unlike]
    if len(sides) < 2 or not any(side.n for side in sides):  # noqa: PLR2004 - one arm is no comparison.
        return None
    results = {one.treatment: one.result for one in compared.comparisons if one.result is not None}
    panels = [_values_panel(compared, sides, unit)]
    if results:
        panels.append(_differences_panel(compared, results, unit))
    return Chart(
        name="comparison",
        title="Comparison of the arms",
        panels=tuple(panels),
        caption="Each line joins the runs with one seed."
        + (f" Right: difference to {sides[0].name} with its 95% interval." if results else ""),
    )


def _describe(compared: ArmsComparison, one: SideComparison) -> Iterator[str]:
    result = one.result
    if result is None:
        yield f"{'Refused: ' if one.is_fault else 'No verdict: '}{one.reason}."
    else:
        yield _verdict(compared, one, result)
        if result.low is not None and result.high is not None:
            yield f"{_difference(compared, one, result)}."
        if result.detectable is not None:
            yield (
                f"The smallest difference that {result.n} pairs show with 80% power at this noise is "
                f"{_size(result.detectable)}."
            )
    yield from (f"{note[:1].upper()}{note[1:]}." for note in one.notes)


def _verdict(compared: ArmsComparison, one: SideComparison, result: Comparison) -> str:
    if result.verdict is Verdict.EQUIVALENT:
        return (
            f"{one.treatment} and {one.baseline} are equivalent: their {compared.metric} differs by less than "
            f"{_size(compared.indifference or 0.0)}."
        )
    if result.verdict is not Verdict.UNDECIDED:
        return f"{one.treatment} is {result.verdict} than {one.baseline}."
    undecided = f"Undecided whether {one.treatment} is better than {one.baseline}"
    if result.low is None:
        return f"{undecided}: {_NO_NOISE}."
    needed = result.needed
    if needed is None:
        return f"{undecided}."
    effect = "a difference of this size" if compared.indifference is None else f"a difference of {_size(needed.effect)}"
    return (
        f"{undecided}: about {_count(needed.n)} seeds per arm (90% range {_count(needed.low)} to "
        f"{_count(needed.high)}) would show {effect} with 80% power."
    )


def _difference(compared: ArmsComparison, one: SideComparison, result: Comparison) -> str:
    low, high, difference = (_signed(number) for number in (result.low, result.high, result.difference))
    tests = [f"p = {format_number(result.p_value, digits=2)}"]
    if result.permutation_p_value is not None:
        tests.append(f"permutation test {format_number(result.permutation_p_value, digits=2)}")
    seeds = format_count(result.n, "pair")
    return (
        f"Difference of the means, {one.treatment} minus {one.baseline}: {difference} {compared.metric} "
        f"(95% interval {low} to {high}, {', '.join(tests)}, {seeds})"
    )


def _values_panel(compared: ArmsComparison, sides: list[SideSummary], unit: str) -> Panel:
    names = tuple(side.name for side in sides)
    seeds = sorted({seed for side in sides for seed in side.values})
    marks: list[Mark] = []
    for seed in seeds:
        points = [(side.name, side.values[seed]) for side in sides if seed in side.values]
        x, y = zip(*points, strict=True)
        style = Style(color=COMPLETE, label="runs with one seed", width=1.5, opacity=0.7)
        marks.append(Line(x=x, y=y, style=style, hover=f"seed {seed}"))
        hover = tuple(f"{name}, seed {seed}\n{compared.metric} {format_metric(value)}" for name, value in points)
        marks.append(Points(x=x, y=y, style=Style(color=COMPLETE, size=6, opacity=0.85), hover=hover))
    means = [(side.name, side.mean) for side in sides if side.mean is not None]
    style = Style(color=BEST, label="mean", size=11)
    hover = tuple(f"{name}\nmean {format_metric(value)}" for name, value in means)
    marks.append(
        Points(x=tuple(name for name, _ in means), y=tuple(mean for _, mean in means), style=style, hover=hover)
    )
    return Panel(x=Axis(categories=names), y=Axis(title=compared.metric, unit=unit), marks=tuple(marks), title="Runs")


def _differences_panel(compared: ArmsComparison, results: Mapping[str, Comparison], unit: str) -> Panel:
    ends, positions = (-0.5, len(results) - 0.5), tuple(float(i) for i in range(len(results)))
    middles = tuple(result.difference for result in results.values())
    intervals = tuple(
        (
            result.difference if result.low is None else result.low,
            result.difference if result.high is None else result.high,
        )
        for result in results.values()
    )
    marks: list[Mark] = []
    if compared.indifference is not None:
        low, high = (-compared.indifference,) * 2, (compared.indifference,) * 2
        marks.append(Band(x=ends, low=low, high=high, style=Style(color=MUTED, label="indifference", opacity=0.2)))
    marks.append(Line(x=ends, y=(0.0, 0.0), style=Style(color=MUTED, width=1, dash="dot")))
    hover = tuple(
        f"{name}\n{_signed(result.difference)} ({_signed(result.low)} to {_signed(result.high)})"
        for name, result in results.items()
    )
    style = Style(color=BEST, label="difference, 95% interval", size=9)
    marks.append(Points(x=positions, y=middles, style=style, intervals=intervals, hover=hover))
    if len(results) > 1:
        tops = tuple(high for _, high in intervals)
        marks.append(Annotations(x=positions, y=tops, texts=tuple(results), position="above"))
    title = f"{next(iter(results))} minus {compared.sides[0].name}" if len(results) == 1 else ""
    return Panel(
        x=Axis(title=title or f"minus {compared.sides[0].name}", limits=ends, format="none"),
        y=Axis(title="difference", unit=unit),
        marks=tuple(marks),
        title="Differences",
    )


def _count(n: int) -> str:
    return f"at least {n:,}" if n >= MAX_SEEDS else f"{n:,}"


def _size(number: float) -> str:
    return format_number(number, digits=2)


def _signed(number: float | None) -> str:
    return "-" if number is None else f"{number:+.2g}" if abs(number) < _SMALL else f"{number:+.4f}"
