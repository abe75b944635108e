"""Render the plan of a fixed design, and the effects that one factor at a time shows, for a terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hpopt.formats import format_count, format_number
from hpopt.search.conditions import active_params
from hpopt.study.file import StudyFile
from hpopt.study.plan import base_params, defaults, design_points

if TYPE_CHECKING:
    from hpopt.analysis.one_factor import OneFactor
    from hpopt.analysis.trials import StudyTable


def render_one_factor(table: "StudyTable", result: "OneFactor") -> RenderableType:
    """Render what each parameter does to the metric, and the mean of each of its values."""
    from hpopt.reporting.one_factor import (  # noqa: PLC0415 - `hpopt check` renders a plan without numpy.
        FACTOR_COLUMNS,
        describe_one_factor,
        tabulate_factors,
        tabulate_values,
    )

    tables = [_table(*tabulate_values(table, result, factor)) for factor in result.factors]
    lines = (Text(line) for line in describe_one_factor(table, result))
    title = Text("one factor at a time", style="bold")
    return Group(title, _table(FACTOR_COLUMNS, tabulate_factors(result)), *tables, *lines)


def describe_design(file: StudyFile) -> list[str]:
    """Return lines on what a study file runs: the trials of a fixed design, and those of a confirmation."""
    lines: list[str] = []
    if file.arms:
        return lines
    if file.is_fixed_design:
        n_points = sum(1 for _ in design_points(file))
        seeds = f" x {format_count(file.seeds, 'seed')}" if file.seeds > 1 else ""
        points = f"grid of {format_count(n_points, 'point')}"
        if file.sampler.name == "one_at_a_time":
            base = active_params(file.search_space, base_params(file, defaults(file)))
            points = f"one at a time: base and {format_count(n_points - 1, 'change')}"
            lines.append(f"base: {', '.join(f'{name} = {format_number(value)}' for name, value in base.items())}")
            left_out = [name for name in file.search_space if name not in base]
            lines += [f"{name} is inactive in the base: its values are not tested" for name in left_out]
        lines.insert(0, f"{points}{seeds}: {format_count(n_points * file.seeds, 'trial')}")
    if file.confirm is not None:
        n_runs = file.confirm.top * file.confirm.seeds
        top = f"confirmation of the best {file.confirm.top} with {file.confirm.seeds} seeds"
        lines.append(f"{top}: at most {n_runs} runs more")
    n_seeds = file.confirm.seeds if file.confirm is not None else file.seeds
    if n_seeds > 1:
        from hpopt.analysis.comparison import detectable_effect  # noqa: PLC0415 - scipy takes a second.

        effect = 2**0.5 * detectable_effect(n_seeds)
        lines.append(
            f"{n_seeds} seeds show a difference of {format_number(effect, digits=2)} run-to-run standard deviations"
            " with 80% power"
        )
    return lines


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(Text(name), justify="right" if i else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
