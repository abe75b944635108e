"""Owns where studies stand, as drawn on a terminal and in sentences. Leaves the answer of one to terminal.py."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hpopt.storage.progress import EndedTrial, Progress, WorkerRow
from hpopt.terminal.answer import show_ended, show_metric, show_number, show_seconds

_BAR_WIDTH = 40
_STATE_WIDTH = 44
_STYLES = {"pruned": "dim", "diverged": "yellow", "failed": "red"}


@dataclass(frozen=True)
class _WhatFits:
    """A table where the console is wide enough for all of it, else the same in lines that wrap."""

    table: Table
    lines: Sequence[RenderableType]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        unbounded = options.update(width=10_000)
        fits = console.measure(self.table, options=unbounded).maximum <= options.max_width
        yield self.table if fits else Group(*self.lines)


def standing(progress: Progress, ended: list[EndedTrial], seconds_left: float | None) -> RenderableType:
    """Draw where a study stands: its state, its budget, its best, its workers and the trials that ended last."""
    parts: list[RenderableType] = [_budget_line(progress, seconds_left)]
    if progress.planned_trials:
        done = min(progress.books.n_ended, progress.planned_trials)
        # A bar alone does not end its line.
        bar = Table.grid()
        bar.add_row(ProgressBar(total=progress.planned_trials, completed=done, width=_BAR_WIDTH))
        parts.append(bar)
    if progress.books.state == "paused":
        since = f"since {progress.state_since.astimezone():%Y-%m-%d %H:%M}"
        line = paused_line(progress.name, progress.books.state_reason)
        parts.append(Text(f"{line} ({since})", style="bold yellow"))
    parts.append(_best_line(progress))
    if progress.workers and not progress.over:
        parts.append(_fleet(progress))
    parts += [Text(show_ended(trial, progress.metric), style=_STYLES.get(trial.outcome, "")) for trial in ended]
    return Group(*parts)


def overview(studies: list[Progress]) -> RenderableType:
    """Draw a line for each study, or a few where the console is too narrow for one."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("study")
    for title in ("trials", "running", "best", "device time"):
        table.add_column(title, justify="right")
    table.add_column("state", max_width=_STATE_WIDTH)
    lines: list[RenderableType] = []
    for study in studies:
        best = "-" if study.best is None else f"{study.metric} {show_metric(study.best.value)}"
        state = Text(_state(study), style="bold yellow" if study.books.state == "paused" else "")
        hours = show_seconds(study.books.device_hours * 3600)
        table.add_row(study.name, _trials(study), str(study.books.n_held), best, hours, state)
        spent = f"{_trials(study)} trials, {study.books.n_held} running, best {best}, device time {hours}"
        lines += [Text(study.name, style="bold", overflow="fold"), Padding(Group(spent, state), (0, 0, 0, 2))]
    return _WhatFits(table, lines)


def state_line(name: str, state: str, *, n_running: int, n_to_retry: int) -> str:
    """Say in one line what holds for a study, for whoever has just changed it."""
    if state == "paused":
        handed = {0: "no trial is running", 1: "its running trial is handed back with its checkpoint"}
        many = f"{n_running} running trials are handed back with their checkpoints"
        return f"{name} is paused; {handed.get(n_running, many)}, workers wait"
    if state == "stopped":
        many = f"{n_running} running trials end at their next evaluation"
        end = {0: "no trial is running", 1: "its running trial ends at its next evaluation"}.get(n_running, many)
        return f"{name} is stopped; {end}, workers leave"
    running = {0: "no trial is running", 1: "1 trial is running"}.get(n_running, f"{n_running} trials are running")
    return f"{name} is open; {running}" + (f", {n_to_retry} handed back earlier go on first" if n_to_retry else "")


def paused_line(name: str, reason: str | None) -> str:
    """Say in one line that a study is paused, why, and what lets it go on."""
    return f"study '{name}' is paused: {reason}; `hpopt resume {name}` lets it go on"


def enqueued_line(name: str, state: str, sampled: Sequence[str], *, n_ahead: int, ends_before: str | None) -> str:
    """Say in one line when a configuration is tried that was enqueued just now, and what of it is sampled."""
    if ends_before is not None:
        return f"enqueued; {ends_before}: raise it in the file and `hpopt create` it again"
    place = {0: "it is tried next", 1: "it is tried after 1 other that waits"}
    when = place.get(n_ahead, f"it is tried after {n_ahead} others that wait")
    rest = f"; sampled: {', '.join(sampled)}" if sampled else ""
    return f"enqueued; {when}{rest}" + ("" if state == "open" else f"; {name} is {state}: `hpopt resume {name}`")


def _state(progress: Progress) -> str:
    if progress.over:
        return progress.over
    if progress.books.state != "open":
        return f"{progress.books.state}: {progress.books.state_reason}"
    n_silent = sum(worker.is_silent for worker in progress.workers)
    silent = f", {n_silent} of {len(progress.workers)} workers silent" if n_silent else ""
    return ("running" if progress.workers else "waiting for workers") + silent


def _trials(progress: Progress) -> str:
    return f"{progress.books.n_ended}" + (f"/{progress.planned_trials}" if progress.planned_trials else "")


def _budget_line(progress: Progress, seconds_left: float | None) -> Text:
    parts = [
        f"{_trials(progress)} trials",
        f"{show_seconds(progress.books.active_hours * 3600)}",
        f"device time {show_seconds(progress.books.device_hours * 3600)}",
    ]
    if progress.over:
        parts.append(progress.over)
    elif progress.books.state == "open" and seconds_left is not None:
        parts.append(f"about {show_seconds(seconds_left)} left")
    elif progress.books.state == "stopped":
        parts.append(f"stopped: {progress.books.state_reason}; running trials end at their next evaluation")
    return Text.assemble((progress.name, "bold"), "  ", "  ".join(parts))


def _best_line(progress: Progress) -> Text:
    if progress.best is None:
        return Text("no trial has completed yet", style="dim")
    params = "  ".join(f"{name}={show_number(value)}" for name, value in progress.best.params.items())
    return Text.assemble(
        f"best {progress.metric} ",
        (f"{show_metric(progress.best.value)}", "bold green"),
        f" in trial {progress.best.trial}: {params}",
    )


def _fleet(progress: Progress) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    has_jobs = any(worker.job for worker in progress.workers)
    jobs = ("job",) if has_jobs else ()
    for title in ("worker", *jobs, "device", "trial", "step", progress.metric, "tokens/s", "for", "device time"):
        table.add_column(title, justify="left" if title in {"worker", "job", "device"} else "right")
    lines = []
    for worker in progress.workers:
        style = "red" if worker.is_silent else ""
        cells = _worker_cells(worker)
        if not has_jobs:
            del cells["job"]
        table.add_row(*cells.values(), style=style)
        named = {"value": f"{progress.metric} {{}}", "step": "step {}", "speed": "{} tokens/s", "trial": "trial {}"}
        named |= {"for": "{}" if worker.is_silent else "for {}", "device time": "device time {}"}
        told = [named[name].format(cell) for name, cell in cells.items() if name in named and cell not in {"", "-"}]
        place = " ".join(cells[name] for name in ("worker", "job", "device") if cells.get(name))
        lines.append(Text(f"{place}: {', '.join(told) or 'between trials'}", style=style, overflow="fold"))
    return _WhatFits(table, lines)


def _worker_cells(worker: WorkerRow) -> dict[str, str]:
    """Give what is shown of a worker by column; of one that is silent, for how long it has been."""
    go = f" (go {worker.go})" if (worker.go or 1) > 1 else ""
    lasted = "" if worker.seconds is None else show_seconds(worker.seconds)
    return {
        "worker": f"{worker.worker_id}@{worker.host}",
        "job": f"{worker.engine} {worker.job}" if worker.job else worker.engine,
        "device": worker.device,
        "trial": "-" if worker.trial is None else f"{worker.trial}{go}",
        "step": "" if worker.step is None else str(worker.step),
        "value": "" if worker.value is None else show_metric(worker.value),
        "speed": "" if worker.tokens_per_second is None or worker.is_silent else f"{worker.tokens_per_second:,.0f}",
        "for": f"silent for {show_seconds(worker.silent_seconds)}" if worker.is_silent else lasted,
        "device time": "" if worker.trial_device_seconds is None else show_seconds(worker.trial_device_seconds),
    }
