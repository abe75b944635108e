"""Render where studies stand for a terminal, and describe their state in one line."""

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hpopt.formats import format_count, format_duration, format_metric, format_number, join_words, one_line
from hpopt.reporting.confirmation import describe_kind
from hpopt.storage.progress import Enqueued, FinishedTrial, Progress, StudyState, WorkerRow
from hpopt.storage.studies import Study
from hpopt.terminal.answer import TableOrLines, describe_missing, format_finished

_BAR_WIDTH = 40
_STATE_WIDTH = 44
_STYLES = {"pruned": "dim", "diverged": "yellow", "failed": "red"}


def render_status(progress: Progress, finished: list[FinishedTrial], seconds_left: float | None) -> RenderableType:
    """Render where a study stands: its state, budget, best trial and workers, and the given finished trials."""
    parts: list[RenderableType] = [_budget_line(progress, seconds_left)]
    if progress.planned_trials:
        completed = min(progress.usage.n_finished, progress.planned_trials)
        # A bar alone does not end its line.
        bar = Table.grid()
        bar.add_row(ProgressBar(total=progress.planned_trials, completed=completed, width=_BAR_WIDTH))
        parts.append(bar)
    if progress.usage.state == "paused":
        since = f"since {progress.state_since.astimezone():%Y-%m-%d %H:%M}"
        line = describe_pause(progress.name, progress.usage.state_reason, n_failed=progress.n_failed)
        parts.append(Text(f"{line} ({since})", style="bold yellow"))
    if progress.best is not None or progress.is_comparison or not progress.n_by_outcome.get("complete"):
        parts.append(_best_line(progress))
    if progress.confirmation is not None:
        parts.append(_confirmation_line(progress.confirmation))
    external = progress.external.describe()
    if external:
        parts.append(Text(external, style="yellow"))
    if progress.workers and not progress.finished_reason:
        parts.append(_fleet(progress))
    parts += [Text(format_finished(row, progress.metric), style=_STYLES.get(row.outcome, "")) for row in finished]
    return Group(*parts)


def render_overview(studies: list[Progress]) -> RenderableType:
    """Render one line for each study, or several on a narrow console."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("study")
    for title in ("trials", "running", "waiting", "best", "device time"):
        table.add_column(title, justify="right")
    table.add_column("state", max_width=_STATE_WIDTH)
    lines: list[RenderableType] = []
    for study in studies:
        best = "-" if study.best is None else f"{study.metric} {format_metric(study.best.value)}"
        state = Text(_state(study), style="bold yellow" if study.usage.state == "paused" else "")
        hours = format_duration(study.usage.device_hours * 3600)
        n_running, n_waiting, name = study.usage.n_running, study.usage.n_waiting, one_line(study.name)
        table.add_row(name, _trials(study), str(n_running), str(n_waiting), best, hours, state)
        counts = f"{_trials(study)} trials, {n_running} running, {n_waiting} waiting"
        spent = f"{counts}, best {best}, device time {hours}"
        lines += [Text(name, style="bold", overflow="fold"), Padding(Group(spent, state), (0, 0, 0, 2))]
    return TableOrLines(table, lines)


def describe_state(name: str, now: StudyState) -> str:
    """Describe the state of a study in one line, after it was changed."""
    n_running = now.n_running
    retried = f"; `hpopt resume {name}` retries {format_count(now.n_pending_retry, 'trial')}"
    waiting = retried if now.n_pending_retry else ""
    if now.state == "paused":
        one = {0: "no trial is running", 1: "its running trial returns to the queue with its checkpoint"}
        many = f"{n_running} running trials return to the queue with their checkpoints"
        return f"{name} is paused; {one.get(n_running, many)}, workers wait{waiting}"
    if now.state == "stopped":
        many = f"{n_running} running trials end at their next evaluation"
        end = {0: "no trial is running", 1: "its running trial ends at its next evaluation"}.get(n_running, many)
        return f"{name} is stopped; {end}, workers exit{waiting}"
    running = {0: "no trial is running", 1: "1 trial is running"}.get(n_running, f"{n_running} trials are running")
    waiting = f", {format_count(now.n_pending_retry, 'trial')} to be retried first" if now.n_pending_retry else ""
    failed = f"; `hpopt retry {name} --failed` runs {format_count(now.n_failed, 'failed trial')} again"
    return f"{name} is open; {running}{waiting}" + (failed if now.n_failed else "")


def describe_pause(name: str, reason: str | None, *, n_failed: int = 0) -> str:
    """Return a line that a study is paused, why, and the commands that retry its failed trials and resume it."""
    retry = f"`hpopt retry {name} --failed` requeues {format_count(n_failed, 'failed trial')}, " if n_failed else ""
    return f"study '{name}' is paused: {one_line(str(reason))}; {retry}`hpopt resume {name}` resumes it"


def describe_enqueued(name: str, state: str, sampled: Sequence[str], added: Enqueued) -> str:
    """Return a line on when an enqueued configuration is tried, and which of its parameters are sampled."""
    is_one = len(added.trials) == 1
    trials = f"{'trial' if is_one else 'trials'} {join_words([str(trial) for trial in added.trials])}"
    if not added.is_new:
        return f"already enqueued or tried as {trials}"
    seeds = (
        f" with seed{'' if is_one else 's'} {join_words([str(seed) for seed in added.seeds])}" if added.seeds else ""
    )
    what = f"{trials} {'is' if is_one else 'are'} enqueued{seeds}"
    ends = added.blocked_by or ("the study is stopped" if state == "stopped" else None)
    if ends is not None:
        remedies = ["change the budget in the study file and run `hpopt create FILE`"] if added.blocked_by else []
        remedies += [f"run `hpopt resume {name}`"] if state != "open" else []
        which = "will not run" if is_one or state == "stopped" else "not all of them will run"
        return f"{what}, but {which}: {ends}; {', and '.join(remedies)}"
    ahead = f"after {format_count(added.n_ahead, 'waiting trial')}" if added.n_ahead else "next"
    rest = f"; sampled: {', '.join(sampled)}" if sampled else ""
    paused = "" if state == "open" else f"; {name} is {state}: `hpopt resume {name}`"
    return f"{what}; {'it is' if is_one else 'they are'} tried {ahead}{rest}{paused}"


def describe_confirmation(name: str, confirmation: Study, n_seeds: int) -> str:
    """Return a line on the runs that a confirmation was given, and what runs them."""
    n = confirmation.n_candidates
    runs = f"{format_count(n, 'configuration')} with {format_count(n_seeds, 'fresh seed')} each"
    return f"{confirmation.name}: {runs}, {n * n_seeds} runs, are enqueued; workers of {name} run them next"


def _state(progress: Progress) -> str:
    if progress.finished_reason:
        return one_line(progress.finished_reason)
    if progress.confirmation is not None:
        return f"confirmation: {_trials(progress.confirmation)} runs, {_state(progress.confirmation)}"
    if progress.usage.state != "open":
        return one_line(f"{progress.usage.state}: {progress.usage.state_reason}")
    n_stale = sum(worker.is_stale for worker in progress.workers)
    stale = f", {n_stale} of {len(progress.workers)} heartbeats expired" if n_stale else ""
    return ("running" if progress.workers else "waiting for workers") + stale


def _trials(progress: Progress) -> str:
    return f"{progress.usage.n_finished}" + (f"/{progress.planned_trials}" if progress.planned_trials else "")


def _budget_line(progress: Progress, seconds_left: float | None) -> Text:
    n_waiting = progress.usage.n_waiting
    parts = [
        f"{_trials(progress)} trials" + (f", {n_waiting} waiting" if n_waiting else ""),
        f"wall time {format_duration(progress.usage.wall_hours * 3600)}",
        f"device time {format_duration(progress.usage.device_hours * 3600)}",
        *([f"{progress.tokens / 1e6:.1f}M tokens"] if progress.tokens else []),
    ]
    if progress.finished_reason:
        parts.append(one_line(progress.finished_reason))
    elif progress.usage.state == "open" and seconds_left is not None:
        parts.append(f"about {format_duration(seconds_left)} left")
    elif progress.usage.state == "stopped":
        parts.append(
            f"stopped: {one_line(str(progress.usage.state_reason))}; running trials end at their next evaluation"
        )
    return Text.assemble((progress.name, "bold"), "  ", "  ".join(parts))


def _best_line(progress: Progress) -> Text:
    if progress.best is None:
        return Text(describe_missing(progress), style="dim")
    params = "  ".join(f"{format_number(name)}={format_number(value)}" for name, value in progress.best.params.items())
    if progress.best.confirmed is not None:
        kind = describe_kind(progress.best.confirmed, progress.metric)
        return Text.assemble((kind, "bold green"), f", trial {progress.best.trial}: {params}")
    arm = "" if progress.best.arm is None else f" of {progress.best.arm} ({progress.best.answer})"
    return Text.assemble(
        f"best {progress.metric} ",
        (f"{format_metric(progress.best.value)}", "bold green"),
        f"{arm or f' in trial {progress.best.trial}'}: {params}",
    )


def _confirmation_line(confirmation: Progress) -> Text:
    state = (confirmation.finished_reason and "finished") or _state(confirmation)
    return Text.assemble((confirmation.name, "bold"), f"  {_trials(confirmation)} runs  {state}")


def _fleet(progress: Progress) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    has_jobs = any(worker.job for worker in progress.workers)
    jobs = ("job",) if has_jobs else ()
    for title in ("worker", *jobs, "device", "trial", "step", progress.metric, "tokens/s", "for", "device time"):
        table.add_column(title, justify="left" if title in {"worker", "job", "device"} else "right")
    lines = []
    for worker in progress.workers:
        style = "red" if worker.is_stale else ""
        cells = _worker_cells(worker)
        if not has_jobs:
            del cells["job"]
        table.add_row(*cells.values(), style=style)
        before = {"value": f"{progress.metric} ", "step": "step ", "speed": "", "trial": "trial "}
        before |= {"for": "" if worker.is_stale else "for ", "device time": "device time "}
        after = {"speed": " tokens/s"}
        parts = [
            f"{before[name]}{cell}{after.get(name, '')}"
            for name, cell in cells.items()
            if name in before and cell not in {"", "-"}
        ]
        title = " ".join(cells[name] for name in ("worker", "job", "device") if cells.get(name))
        lines.append(Text(f"{title}: {', '.join(parts) or 'between trials'}", style=style, overflow="fold"))
    return TableOrLines(table, lines)


def _worker_cells(worker: WorkerRow) -> dict[str, str]:
    """Return the cells of a worker by column; with the age of the heartbeat if it has expired."""
    attempt = f" (attempt {worker.attempt_number})" if (worker.attempt_number or 1) > 1 else ""
    duration = "" if worker.seconds is None else format_duration(worker.seconds)
    return {
        "worker": f"{worker.worker_id}@{worker.host}",
        "job": f"{worker.engine} {worker.job}" if worker.job else worker.engine,
        "device": worker.device,
        "trial": "-" if worker.trial is None else f"{worker.trial}{attempt}",
        "step": "" if worker.step is None else str(worker.step),
        "value": "" if worker.value is None else format_metric(worker.value),
        "speed": "" if worker.tokens_per_second is None or worker.is_stale else f"{worker.tokens_per_second:,.0f}",
        "for": f"no heartbeat for {format_duration(worker.seconds_since_heartbeat)}" if worker.is_stale else duration,
        "device time": "" if worker.trial_device_seconds is None else format_duration(worker.trial_device_seconds),
    }
