"""Owns the same figures as PNG: matplotlib, for papers, slides and Markdown. Leaves what is shown to selection.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from hpopt.analysis.importance import Importance
from hpopt.analysis.trials import StudyTable, TrialRow
from hpopt.report import selection
from hpopt.report.selection import BEST, COMPLETE, GRID, MUTED, TEXT, Window
from hpopt.search_space import Categorical

DPI = 160
COLUMNS = 2


def write_pictures(table: StudyTable, measures: Sequence[Importance], folder: Path) -> list[Path]:
    """Write history.png, parameters.png, curves.png and importance.png, those that have something to show."""
    pictures = {
        "history.png": _draw_history(table),
        "parameters.png": _draw_parameters(table),
        "curves.png": _draw_curves(table),
        "importance.png": _draw_importance(measures),
    }
    written = []
    for name, picture in pictures.items():
        path = folder / name
        if picture is None:
            # An older report may have left one that is no longer true.
            path.unlink(missing_ok=True)
            continue
        # Without the version of matplotlib in it, the same study gives the same file.
        picture.savefig(path, dpi=DPI, metadata={"Software": None})
        written.append(path)
    return written


def _draw_history(table: StudyTable) -> Figure | None:
    complete, pruned = selection.with_value(table.complete()), selection.with_value(table.pruned())
    window = selection.choose_window(table, [row.value for row in complete + pruned])
    if window is None:
        return None
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes = figure.subplots()
    _style(axes, "trial", table.metric, window)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _add_trials(axes, [row.trial for row in pruned], pruned, _pruned_marks())
    _add_trials(axes, [row.trial for row in complete], complete, _complete_marks())
    steps = list(selection.best_so_far(table))
    if steps:
        steps.append((max(row.trial for row in table.trials), steps[-1][1]))
        x, y = zip(*steps, strict=True)
        axes.step(x, y, where="post", color=BEST, linewidth=1.8, label="best so far")
    _add_legend(axes)
    return figure


def _draw_parameters(table: StudyTable) -> Figure | None:
    window = selection.choose_window(table, [row.value for row in table.complete() + table.pruned()])
    names = [name for name in table.search_space if any(name in row.params for row in table.trials)]
    if window is None or not names:
        return None
    n_rows = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(7, 2.9 * n_rows), layout="constrained")
    all_axes = figure.subplots(n_rows, COLUMNS, squeeze=False).ravel()
    for axes, name in zip(all_axes, names, strict=False):
        _style(axes, name, table.metric, window)
        _add_parameter(axes, table, name)
    for axes in all_axes[len(names) :]:
        axes.set_visible(False)
    figure.legend(
        *all_axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False, fontsize=9
    )
    return figure


def _add_parameter(axes: Axes, table: StudyTable, name: str) -> None:
    range_ = table.search_space[name]
    places = {str(choice): i for i, choice in enumerate(range_.choices)} if isinstance(range_, Categorical) else {}
    if isinstance(range_, Categorical):
        axes.set_xticks(list(places.values()), list(places))
        axes.set_xlim(-0.5, len(places) - 0.5)
    elif range_.log:
        axes.set_xscale("log")
    best = list(table.ranked()[:1])
    rest = [row for row in table.complete() if row not in best]
    for rows, marks in ((table.pruned(), _pruned_marks()), (rest, _complete_marks()), (best, _best_marks())):
        shown = [row for row in selection.with_value(rows) if name in row.params]
        values = [row.params[name] for row in shown]
        _add_trials(axes, [places.get(str(v), len(places)) if places else v for v in values], shown, marks)


def _draw_curves(table: StudyTable) -> Figure | None:
    best, pruned = selection.choose_curves(table)
    window = selection.choose_window(
        table, [point.value for row in best + pruned for point in selection.finite_points(row)]
    )
    if window is None:
        return None
    by_tokens = selection.counts_tokens(best + pruned)
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes = figure.subplots()
    _style(axes, "tokens" if by_tokens else "step", table.metric, window)
    if by_tokens:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    styles: list[tuple[TrialRow, dict[str, Any]]] = [
        *((row, {"color": MUTED, "linewidth": 0.9, "linestyle": ":", "label": "pruned"}) for row in pruned),
        *((row, {"color": COMPLETE, "linewidth": 1.2, "label": "next best"}) for row in reversed(best[1:])),
        *((row, {"color": BEST, "linewidth": 2.4, "label": "best"}) for row in best[:1]),
    ]
    for row, style in styles:
        curve = selection.finite_points(row)
        marks: dict[str, Any] = {"marker": "o", "markersize": 4} if len(curve) == 1 else {}
        if style["label"] == "pruned":
            marks = {"marker": "x", "markevery": [-1], "markersize": 5}
        x = [point.tokens if by_tokens else point.step for point in curve]
        axes.plot(x, [point.value or 0.0 for point in curve], **style, **marks)
    _add_legend(axes)
    return figure


def _draw_importance(measures: Sequence[Importance]) -> Figure | None:
    drawn = [measure for measure in measures if measure.shares]
    if not drawn:
        return None
    names = list(drawn[0].shares or {})
    figure = Figure(figsize=(7, 1.2 + 0.55 * len(names)), layout="constrained")
    axes = figure.subplots()
    _style(axes, "share", "", None)
    axes.grid(visible=False, axis="y")
    for i, (measure, color, hatch) in enumerate(zip(drawn, (COMPLETE, BEST), ("", "////"), strict=False)):
        places = [place + 0.38 * (i - (len(drawn) - 1) / 2) for place in range(len(names))]
        shares = [(measure.shares or {}).get(name, 0.0) for name in names]
        bars = axes.barh(places, shares, 0.34, color=color, hatch=hatch, edgecolor="white", label=measure.measure)
        axes.bar_label(bars, [f"{share:.0%}" for share in shares], padding=3, fontsize=8, color=TEXT)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08)
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    _add_legend(axes)
    return figure


def _style(axes: Axes, x_title: str, y_title: str, window: Window | None) -> None:
    axes.set_xlabel(x_title, color=TEXT)
    axes.set_ylabel(y_title, color=TEXT)
    axes.grid(visible=True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=TEXT, labelsize=9, length=0)
    axes.spines[:].set_visible(False)
    if window is not None:
        axes.set_ylim(window.low, window.high)
        axes.text(1, 1, window.note(), transform=axes.transAxes, ha="right", va="bottom", fontsize=8, color=MUTED)


def _add_trials(axes: Axes, x: Sequence[Any], rows: Sequence[TrialRow], marks: dict[str, Any]) -> None:
    if rows:
        axes.scatter(x, [row.value or 0.0 for row in rows], **marks)


def _add_legend(axes: Axes) -> None:
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(handles.values(), handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=9)


def _complete_marks() -> dict[str, Any]:
    return {"label": "complete", "marker": "o", "s": 26, "color": COMPLETE, "alpha": 0.85, "linewidths": 0}


def _pruned_marks() -> dict[str, Any]:
    return {"label": "pruned", "marker": "x", "s": 20, "color": MUTED, "linewidths": 1.1}


def _best_marks() -> dict[str, Any]:
    return {"label": "best", "marker": "*", "s": 150, "color": BEST, "linewidths": 0, "zorder": 3}
