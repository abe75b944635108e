"""Describe and draw the effects of a study that changes one parameter at a time, for page, report and terminal."""

from hpopt.analysis.one_factor import Estimate, FactorEffect, OneFactor, TestedValue
from hpopt.analysis.trials import StudyTable
from hpopt.formats import format_count, format_duration, format_metric, format_number, join_words
from hpopt.reporting.chart import Axis, Chart, Coordinate, Line, Panel, Points, Style
from hpopt.reporting.selection import BEST, COMPLETE, find_metric_unit
from hpopt.search.space import Categorical

FACTOR_COLUMNS = ("parameter", "best value", "as good", "worst - best", "ratio")
_LINE = Style(color=COMPLETE, width=1.5)
_MEAN = Style(color=COMPLETE, label="mean", size=9)
_BASE = Style(color=BEST, label="mean of the base", symbol="star", size=12)


def describe_one_factor(table: StudyTable, result: OneFactor) -> list[str]:
    """Describe the ranking of the parameters, the noise, and what the design does not show."""
    shown = [factor.name for factor in result.factors if factor.is_shown]
    others = [factor.name for factor in result.factors if not factor.is_shown]
    ranking = join_words([f"{factor.name} ({_format_estimate(factor.cost)})" for factor in result.factors])
    sentences = [f"Cost of the worst instead of the best tested value, in {table.metric}: {ranking}."]
    if result.noise_std is None:
        sentences.append(
            "The noise is unknown, since no seed was repeated: which of these differences are luck is not known."
            if result.n_seeds <= 1
            else "The noise is unknown: the runs of all seeds agree to the last digit."
        )
    else:
        if shown:
            sentences.append(f"Effect shown (95%): {join_words(shown)}.")
        if others:
            sentences.append(f"Effect not shown by these runs: {join_words(others)}.")
        sentences.append(
            f"Two runs of one seed differ by a standard deviation of {format_number(result.noise_std, digits=2)} times"
            f" sqrt(2) ({format_count(result.n_seeds, 'seed')}, {result.degrees_of_freedom} degrees of freedom)."
        )
    for factor in result.factors:
        edge = _edge(factor)
        if edge is not None and factor.is_shown:
            further = "larger" if edge == "largest" else "smaller"
            sentences.append(f"The best tested value of {factor.name} is the {edge} one: test {further} ones.")
    base = ", ".join(f"{name} = {format_number(value)}" for name, value in result.base.items())
    sentences.append(
        f"All other parameters are as in the base ({base}): a design of one factor at a time cannot see interactions,"
        " so that the best values together need not be the best configuration."
    )
    return sentences


def tabulate_factors(result: OneFactor) -> list[list[str]]:
    """Return the rows of the table of parameters (FACTOR_COLUMNS), the largest effect first."""
    return [
        [
            factor.name,
            format_number(factor.best, digits=4),
            ", ".join(format_number(value, digits=4) for value in factor.as_good) or "unknown",
            _format_estimate(factor.cost),
            "-" if factor.ratio is None else _format_estimate(factor.ratio),
        ]
        for factor in result.factors
    ]


def tabulate_values(table: StudyTable, result: OneFactor, factor: FactorEffect) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the table of the values of a parameter."""
    metrics = list(dict.fromkeys(name for row in factor.values for name in row.metrics if name != table.metric))
    header = [factor.name, "n", table.metric, "std", "95% interval", *metrics, "time"]
    rows = []
    for row in factor.values:
        marks = [mark for mark, is_so in _marks(row, result, factor).items() if is_so]
        rows.append(
            [
                format_number(row.value) + (f" ({', '.join(marks)})" if marks else ""),
                f"{row.n}",
                "-" if row.mean is None else format_metric(row.mean.value),
                "-" if row.std is None else format_number(row.std, digits=2),
                "-" if row.mean is None else _format_interval(row.mean),
                *(format_metric(row.metrics[name]) if name in row.metrics else "-" for name in metrics),
                format_duration(row.device_seconds),
            ]
        )
    return header, rows


def draw_one_factor(table: StudyTable, result: OneFactor | None) -> Chart | None:
    """Draw the metric over the tested values of each parameter, with the 95% intervals of the means."""
    if result is None:
        return None
    whiskers = " Whiskers: 95% intervals of the means." if result.noise_std is not None else ""
    return Chart(
        name="one_factor",
        title="One factor at a time",
        panels=tuple(_panel(table, result, factor) for factor in result.factors),
        caption=f"Means over {format_count(result.n_seeds, 'seed')}, the other parameters as in the base.{whiskers}",
    )


def _panel(table: StudyTable, result: OneFactor, factor: FactorEffect) -> Panel:
    searched = table.search_space[factor.name]
    is_choice = isinstance(searched, Categorical)
    rows = [row for row in factor.values if row.mean is not None]

    def locate(row: TestedValue) -> Coordinate:
        return format_number(row.value) if isinstance(row.value, str | bool) or is_choice else float(row.value)

    x = tuple(locate(row) for row in rows)
    means = [row.mean for row in rows if row.mean is not None]
    y = tuple(mean.value for mean in means)
    intervals = tuple((mean.low, mean.high) for mean in means if mean.low is not None and mean.high is not None)
    base = [i for i, row in enumerate(rows) if row.value == result.base.get(factor.name)]
    axis = Axis(
        title=factor.name,
        is_log=getattr(searched, "log", False),
        categories=tuple(map(str, x)) if is_choice else (),
    )
    return Panel(
        x=axis,
        y=Axis(title=table.metric, unit=find_metric_unit(table)),
        marks=(
            *(() if is_choice else (Line(x=x, y=y, style=_LINE),)),
            Points(x=x, y=y, intervals=intervals, style=_MEAN),
            Points(x=tuple(x[i] for i in base), y=tuple(y[i] for i in base), style=_BASE),
        ),
        title=factor.name,
    )


def _edge(factor: FactorEffect) -> str | None:
    """Return at which end of the tested values the best one is; values without an order have no ends."""
    if isinstance(factor.best, str | bool) or any(isinstance(row.value, str) for row in factor.values):
        return None
    tested = [row.value for row in factor.values]
    return {min(tested): "smallest", max(tested): "largest"}.get(factor.best)


def _marks(row: TestedValue, result: OneFactor, factor: FactorEffect) -> dict[str, bool]:
    return {
        "base": row.value == result.base.get(factor.name),
        "best": row.value == factor.best,
        f"{row.n_failed} failed": row.n_failed > 0,
    }


def _format_estimate(estimate: Estimate) -> str:
    value = format_number(estimate.value, digits=3)
    return value if estimate.low is None else f"{value}, {_format_interval(estimate)}"


def _format_interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return "-"
    return f"{format_number(estimate.low, digits=3)} to {format_number(estimate.high, digits=3)}"
