"""Render the plan and the result of a comparison for a terminal, and the result as JSON."""

from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hpopt.analysis.arms import ArmsComparison
from hpopt.analysis.comparison import detectable_effect
from hpopt.formats import format_count, format_number, join_words, to_json
from hpopt.reporting.comparison import (
    SIDE_COLUMNS,
    describe_basis,
    describe_changes,
    describe_comparison,
    describe_one,
    show_value,
    tabulate_sides,
)
from hpopt.study.arms import data_by_arm, equal_arms
from hpopt.study.file import StudyFile
from hpopt.study.plan import defaults
from hpopt.terminal.answer import describe_cost


def render_comparison(name: str, compared: ArmsComparison) -> RenderableType:
    """Render the table of arms, what they change, and what each shows against the first."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in SIDE_COLUMNS:
        table.add_column(title, justify="left" if title == "arm" else "right")
    for row in tabulate_sides(compared):
        table.add_row(*map(Text, row))
    lines = [Text(f"{name}: {compared.direction} {compared.metric}")]
    for one in compared.comparisons:
        verdict, *details = describe_one(compared, one)
        lines.append(Text(verdict, style="bold red" if one.is_fault else "bold"))
        lines += [Text(text) for text in details]
        lines += [Text(text, style="dim") for text in (describe_changes(one), describe_basis(one))]
    return Group(lines[0], table, *lines[1:])


def render_arms(file: StudyFile) -> RenderableType:
    """Render the plan of a comparison: what each arm sets, its runs, what they can show, and their cost."""
    default_values = defaults(file)
    by_arm = file.arm_values(default_values)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("parameter")
    for arm in by_arm:
        table.add_column(arm, justify="right")
    names = dict.fromkeys(name for values in by_arm.values() for name in values)
    for name in names:
        table.add_row(name, *(show_value(values.get(name)) for values in by_arm.values()))
    head = Text(f"{file.name}: {file.direction} {file.metric} (objective: {file.objective})", style="bold")
    lines = [*_design_lines(file), *describe_cost(file)]
    return Group(head, table, *map(Text, lines), *(Text(line, style="yellow") for line in _doubts(file)))


def _design_lines(file: StudyFile) -> Iterator[str]:
    n_arms, first, data = len(file.arms), next(iter(file.arms)), data_by_arm(file, defaults(file))
    yield f"{n_arms} arms x {format_count(file.seeds, 'seed')} = {n_arms * file.seeds} runs"
    compared = [arm for arm in file.arms if arm != first and data[arm] == data[first]]
    unlike = [arm for arm in file.arms if data[arm] != data[first]]
    if compared:
        effect = detectable_effect(file.seeds, n_comparisons=len(compared))
        yield (
            f"{join_words(compared)} against {first} in pairs of one seed; the smallest difference that they show with "
            f"80% power is {format_number(effect, digits=2)} standard deviations of the differences"
        )
    if unlike:
        yield f"{join_words(unlike)} beside {first}, without a comparison: their data differ"


def _doubts(file: StudyFile) -> Iterator[str]:
    for one, other in equal_arms(file):
        yield f"{one} and {other} resolve to one config, so that there is nothing to compare"


def comparison_as_json(name: str, compared: ArmsComparison) -> str:
    """Return a comparison as JSON, with the sentences that the terminal prints."""
    fields = {"name": name, **vars(compared), "fault": compared.fault, "text": describe_comparison(compared)}
    return to_json(fields, indent=2)
