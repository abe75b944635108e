"""Find leaks, ignored parameters and seeds, pruned winners, ties and too few trials."""

import math
from collections.abc import Iterator, Sequence

from hpopt.analysis.answer import Answer, AnswerKind
from hpopt.analysis.axes import is_fixed
from hpopt.analysis.collapse import find_collapse
from hpopt.analysis.duplicates import DuplicateTrials
from hpopt.analysis.insights import Insights
from hpopt.analysis.noise import Noise
from hpopt.analysis.surrogate import MIN_TRIALS, TRIALS_PER_PARAMETER
from hpopt.analysis.trials import StudyTable, TrialRow
from hpopt.findings.finding import Finding
from hpopt.formats import format_count, format_number, format_percent, list_values
from hpopt.training.leakage import LEAK_THRESHOLD

# In standard deviations of the difference of two means: closer ones are a tie.
TIE_WITHIN = 2.0
# A pruner that stops the best trial this often costs more than it saves.
MAX_PRUNED_SHARE = 0.2

# What a confirmation is proposed with.
N_FURTHER_SEEDS = 4
MAX_CONFIRMED = 4


def find_leak(table: StudyTable) -> Iterator[Finding]:
    """Find validation text that is part of the training data."""
    measured = (row.metrics.get("train_val_overlap") for row in table.trials)
    overlap = max((share for share in measured if share is not None and math.isfinite(share)), default=0.0)
    if overlap > LEAK_THRESHOLD:
        yield Finding(
            code="leak",
            severity="error",
            message=f"{format_percent(overlap)} of the validation text is also training text, so {table.metric} "
            "rewards memorization: the true order of the trials may be the reverse.",
            evidence={"train_val_overlap": overlap, "allowed": LEAK_THRESHOLD},
            remedy='Split by documents (`split = "documents"` in [fixed]) and remove near-duplicates from the data; '
            "then run the study again.",
        )


def find_ignored_parameters(duplicates: Sequence[DuplicateTrials]) -> Iterator[Finding]:
    """Find params that differ between trials with identical learning curves."""
    groups = [group for group in duplicates if group.differ_in]
    if groups:
        names = tuple(dict.fromkeys(name for group in groups for name in group.differ_in))
        parameters, trials = list_values(names), list_values(groups[0].trials)
        yield Finding(
            code="treatment-not-applied",
            severity="error",
            message=f"Trials {trials} differ in {parameters} but have the same learning curve to the last digit, and "
            f"no trials show an effect of {parameters} alone: the training ignores {parameters}, or these values have "
            "no effect.",
            evidence={"parameters": list(names), "trials": [list(group.trials) for group in groups]},
            remedy=f"Check how the objective uses {parameters}; until then, do not conclude that there is no effect.",
        )


def find_ignored_seeds(insights: Insights) -> Iterator[Finding]:
    """Find seeds that differ between trials with identical learning curves."""
    groups = [group for group in insights.duplicates if len(group.seeds) > 1]
    if groups:
        trials, seeds = list_values(groups[0].trials), list_values(groups[0].seeds)
        yield Finding(
            code="seed-not-applied",
            severity="error",
            message=f"Trials {trials} ran with the seeds {seeds} but have the same learning curve to the last digit: "
            "the training ignores the seed, so repeated runs do not measure the noise.",
            evidence={
                "trials": [list(group.trials) for group in groups],
                "seeds": [list(group.seeds) for group in groups],
            },
            remedy="Seed the data order and the initial weights from `seed` in the objective.",
        )


def find_collapsed(table: StudyTable) -> Iterator[Finding]:
    """Find trials whose metric ends at one constant value: collapsed, or saturated if no value is better."""
    collapse = find_collapse(table)
    if collapse is None:
        return
    n, n_complete = len(collapse.trials), collapse.n_complete
    state, remedy = (
        ("saturated", "Measure on more or harder data, or search by another metric, such as the loss.")
        if collapse.is_best and n < n_complete
        else ("collapsed", "Look at what these runs have in common; let the objective raise Diverged for them.")
    )
    yield Finding(
        code="collapsed",
        severity="error" if n == n_complete else "warning",
        message=f"{n} of {n_complete} complete trials end at {table.metric} {format_number(collapse.value)} exactly, "
        f"whatever their parameters: the metric is {state if n < n_complete else 'collapsed or saturated'}, and says "
        "nothing about what distinguishes them.",
        evidence={"value": collapse.value, "trials": list(collapse.trials), "is_best": collapse.is_best},
        remedy=remedy if n < n_complete else f"Check what the objective reports as {table.metric}.",
    )


def find_pruned_winners(insights: Insights) -> Iterator[Finding]:
    """Find that pruning would often stop the best trial."""
    check = insights.pruning
    if check.best_pruned_share is None or check.best_pruned_share < MAX_PRUNED_SHARE:
        return
    worst = max(check.rungs, key=lambda rung: rung.rank_of_best / rung.n_kept)
    caveat = " This counts only trials that the pruner kept, not better ones that it may have stopped."
    yield Finding(
        code="pruned-too-early",
        severity="warning" if check.n_pruned else "note",
        message=f"Pruning two trials in three would stop the best one in {format_percent(check.best_pruned_share)} of "
        f"cases: at {format_percent(worst.fraction)} of the schedule, the trial that is best at the end ranks "
        f"{worst.rank_of_best} of {worst.n_trials}, and {worst.n_kept} continue.{caveat if check.n_pruned else ''}",
        evidence={
            "best_pruned_share": check.best_pruned_share,
            "rungs": [
                {"fraction": rung.fraction, "rank_of_best": rung.rank_of_best, "n_trials": rung.n_trials}
                for rung in check.rungs
            ],
        },
        remedy='Prune later (`min_fraction` in [pruner]) or not at all (`name = "none"`).',
    )


def find_tie(table: StudyTable, noise: Noise | None) -> Iterator[Finding]:
    """Find configurations that may be as good as the best one, given the noise."""
    groups = list(table.replicates().values())
    if table.answer is not None:
        yield from _find_confirmed_tie(table, table.answer)
        return
    if len(groups) < 2:  # noqa: PLR2004 - a tie takes two configurations.
        return
    if noise is None:
        yield Finding(
            code="tie",
            severity="warning",
            message="How much two runs of one configuration differ is unknown, so the best may be best by chance.",
            evidence={"noise": None},
            remedy=_confirm(table, 1),
        )
        return
    best, *others = groups
    rivals = [rows for rows in others if _gap(table, best, rows) < TIE_WITHIN * _gap_std(noise, best, rows)]
    if rivals:
        nearest = min(rivals, key=lambda rows: _gap(table, best, rows))
        gap = _gap(table, best, nearest)
        yield Finding(
            code="tie",
            severity="warning",
            message=f"The best configuration (trial {best[0].trial}) is not proven better than "
            f"{format_count(len(rivals), 'other')}: trial {nearest[0].trial} is {_describe_gap(gap)}, and "
            f"{noise.describe()}.",
            evidence={
                "gap": gap,
                "noise": noise.std,
                "noise_source": noise.source,
                "rivals": [rows[0].trial for rows in rivals],
            },
            remedy=_confirm(table, len(rivals)),
        )


def _find_confirmed_tie(table: StudyTable, answer: Answer) -> Iterator[Finding]:
    """Find that a confirmation does not tell the best configurations apart."""
    tied = [one for one in answer.candidates if one.is_tied]
    if answer.kind is not AnswerKind.TIE:
        return
    gap = abs(tied[-1].mean - tied[0].mean)
    n_seeds = len(tied[0].values)
    yield Finding(
        code="tie",
        severity="warning",
        message=f"{n_seeds} seeds each do not tell {format_count(len(tied), 'configuration')} apart (trials "
        f"{list_values([one.trial for one in tied])}): their means are within {format_number(gap, digits=2)}, and runs "
        f"of one configuration differ by a standard deviation of {format_number(answer.noise_std, digits=2)}.",
        evidence={
            "gap": gap,
            "noise": answer.noise_std,
            "noise_source": "replicates",
            "rivals": [one.trial for one in tied if one.trial != answer.trial],
        },
        remedy="Take any of them, or run them with more seeds: "
        f"`hpopt confirm {table.name} --seeds {N_FURTHER_SEEDS}`.",
    )


def find_shortage(table: StudyTable) -> Iterator[Finding]:
    """Find that there are few trials for the number of parameters."""
    if table.base is not None:
        # One factor at a time needs no model of the metric.
        return
    n_complete = len(table.complete())
    n_parameters = sum(not is_fixed(range_) for range_ in table.search_space.values())
    needed = max(MIN_TRIALS, TRIALS_PER_PARAMETER * n_parameters)
    if n_complete >= needed:
        return
    is_unusable = n_complete < MIN_TRIALS
    n_finished = sum(row.outcome is not None for row in table.trials)
    total = round(needed * n_finished / n_complete) if n_complete else needed
    subject = f"{format_count(n_complete, 'complete trial')} {'is' if n_complete == 1 else 'are'}"
    shortage = "too few to analyse" if is_unusable else "few for"
    rate = f" With {n_complete} of {n_finished} trials complete, that takes {total} in total."
    yield Finding(
        code="too-few-trials",
        severity="warning" if is_unusable else "note",
        message=f"{subject} {shortage} {format_count(n_parameters, 'parameter')}: about {needed} are needed."
        f"{rate if total > needed else ''}",
        evidence={"n_complete": n_complete, "n_parameters": n_parameters, "needed": needed},
        remedy="Raise `trials` in [budget] and run `hpopt create` on the file again, or search fewer parameters."
        + _prune_later(table),
    )


def _prune_later(table: StudyTable) -> str:
    """Return how more trials would complete, if a pruner stops most of them at its first rung."""
    rungs = table.rungs
    first = rungs.at_every_evaluation_from or min(rungs.fractions, default=None)
    if first is None or len(table.pruned()) <= len(table.complete()):
        return ""
    return (
        f" Or let more of them complete: the pruner stops trials from {format_percent(first)} of their schedule on; "
        'raise `min_fraction` in [pruner], or set its `name = "none"`.'
    )


def _confirm(table: StudyTable, n_rivals: int) -> str:
    """Return the command that runs the best configurations with further seeds."""
    n_top = min(1 + n_rivals, MAX_CONFIRMED)
    command = f"`hpopt confirm {table.name} --top {n_top} --seeds {N_FURTHER_SEEDS}`"
    return f"Compare their means over the same fresh seeds: {command}, then run workers again."


def _gap(table: StudyTable, best: Sequence[TrialRow], other: Sequence[TrialRow]) -> float:
    """Return the difference of the mean losses of two configurations: positive if `best` is better on average."""
    mean_best, mean_other = (sum(table.loss(row.value) for row in rows) / len(rows) for rows in (best, other))
    return mean_other - mean_best


def _gap_std(noise: Noise, best: Sequence[TrialRow], other: Sequence[TrialRow]) -> float:
    return float(noise.std * (1 / len(best) + 1 / len(other)) ** 0.5)


def _describe_gap(gap: float) -> str:
    if gap == 0:
        return "equal on average"
    size = format_number(abs(gap), digits=2)
    return f"{size} behind" if gap > 0 else f"{size} ahead on average"
