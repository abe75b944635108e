"""Owns the warnings about trials: leaks, treatments and seeds that never arrived, lost winners, ties, shortage."""

import math
from collections.abc import Iterator, Sequence

from hpopt.analysis.axes import is_fixed
from hpopt.analysis.insights import Insights
from hpopt.analysis.noise import Noise
from hpopt.analysis.surrogate import MIN_TRIALS
from hpopt.analysis.trials import StudyTable, TrialRow
from hpopt.findings.finding import Finding, list_words
from hpopt.training.leakage import LEAK_ABOVE

# Loeppky, Sacks and Welch 2009 (Technometrics 51): a response surface takes about ten runs for each dimension.
TRIALS_PER_PARAMETER = 10
# In standard deviations of the difference of two means: closer ones are a tie.
TIE_WITHIN = 2.0
# A pruner that loses the best so often does not pay.
OFTEN_LOST = 0.2


def find_leak(table: StudyTable) -> Iterator[Finding]:
    """Find validation text that is trained on."""
    measured = (row.metrics.get("train_val_overlap") for row in table.trials)
    overlap = max((share for share in measured if share is not None and math.isfinite(share)), default=0.0)
    if overlap > LEAK_ABOVE:
        yield Finding(
            code="leak",
            severity="error",
            message=f"{overlap:.0%} of the validation text is trained on too, so {table.metric} rewards memorizing "
            "it: the order of the trials may be the reverse of the truth.",
            evidence={"train_val_overlap": overlap, "allowed": LEAK_ABOVE},
            remedy='Split by documents (`split = "documents"` in [fixed]) and remove near-copies from the data; then '
            "run the study anew.",
        )


def find_ignored_parameters(insights: Insights) -> Iterator[Finding]:
    """Find params that made no difference to the last digit."""
    groups = [group for group in insights.duplicates if group.differ_in]
    if groups:
        names = tuple(dict.fromkeys(name for group in groups for name in group.differ_in))
        told, trials = list_words(names), list_words(groups[0].trials)
        yield Finding(
            code="treatment-not-applied",
            severity="error",
            message=f"Trials {trials} differ in {told} and have the same learning curve to the last digit: {told} "
            "never arrived in the training, or does nothing at these values.",
            evidence={"parameters": list(names), "trials": [list(group.trials) for group in groups]},
            remedy=f"Look at how the objective uses {told}; until then do not call this `no effect`.",
        )


def find_ignored_seeds(insights: Insights) -> Iterator[Finding]:
    """Find seeds that made no difference to the last digit."""
    groups = [group for group in insights.duplicates if len(group.seeds) > 1]
    if groups:
        trials, seeds = list_words(groups[0].trials), list_words(groups[0].seeds)
        yield Finding(
            code="seed-not-applied",
            severity="error",
            message=f"Trials {trials} ran with the seeds {seeds} and have the same learning curve to the last digit: "
            "the seed never arrived, so repeats say nothing about noise.",
            evidence={"trials": [list(group.trials) for group in groups], "seeds": [list(t.seeds) for t in groups]},
            remedy="Let the objective seed its data order and its initial weights from `seed`.",
        )


def find_lost_winners(insights: Insights) -> Iterator[Finding]:
    """Find that the best trial would not have survived pruning."""
    check = insights.pruning
    if check.loses_best is None or check.loses_best < OFTEN_LOST:
        return
    worst = max(check.rungs, key=lambda rung: rung.rank_of_best / rung.n_kept)
    own = "The winner is among the trials that the pruner kept; what it lost is not seen. " if check.n_pruned else ""
    yield Finding(
        code="pruned-too-early",
        severity="warning" if check.n_pruned else "note",
        message=f"Stopping two trials in three early would lose the best one in {check.loses_best:.0%} of cases: at "
        f"{worst.fraction:.0%} of the schedule the eventual best is number {worst.rank_of_best} of {worst.n_trials}, "
        f"and {worst.n_kept} would go on. {own}".strip(),
        evidence={
            "loses_best": check.loses_best,
            "rungs": [
                {"fraction": each.fraction, "rank_of_best": each.rank_of_best, "n_trials": each.n_trials}
                for each in check.rungs
            ],
        },
        remedy='Compare later (`min_fraction` in [pruner]) or not at all (`name = "none"`).',
    )


def find_tie(table: StudyTable, noise: Noise | None) -> Iterator[Finding]:
    """Find configurations that are as good as the best, as far as anybody knows."""
    groups = list(table.replicates().values())
    if len(groups) < 2:  # noqa: PLR2004 - one configuration ties with nobody.
        return
    if noise is None:
        yield Finding(
            code="tie",
            severity="warning",
            message="How much two runs of one configuration differ is unknown, so the best may be the luckiest.",
            evidence={"noise": None},
            remedy="Run the best configurations again with other seeds, three each, and compare their means.",
        )
        return
    best, *others = groups
    rivals = [rows for rows in others if _gap(table, best, rows) < TIE_WITHIN * _gap_std(noise, best, rows)]
    if rivals:
        nearest = min(rivals, key=lambda rows: _gap(table, best, rows))
        gap = _gap(table, best, nearest)
        told = "1 other" if len(rivals) == 1 else f"{len(rivals)} others"
        yield Finding(
            code="tie",
            severity="warning",
            message=f"The best configuration (trial {best[0].trial}) is not proven better than {told}: "
            f"trial {nearest[0].trial} is {_tell_gap(gap)}, and {noise.sentence}.",
            evidence={
                "gap": gap,
                "noise": noise.std,
                "noise_source": noise.source,
                "rivals": [rows[0].trial for rows in rivals],
            },
            remedy="Run them again with other seeds, three each, and compare their means.",
        )


def find_shortage(table: StudyTable) -> Iterator[Finding]:
    """Find that there are few trials for the number of parameters."""
    n_trials = len(table.complete())
    n_parameters = sum(not is_fixed(range_) for range_ in table.search_space.values())
    needed = max(MIN_TRIALS, TRIALS_PER_PARAMETER * n_parameters)
    if n_trials < needed:
        is_hopeless = n_trials < MIN_TRIALS
        n_ended = sum(row.outcome is not None for row in table.trials)
        total = round(needed * n_ended / n_trials) if n_trials else needed
        yield Finding(
            code="too-few-trials",
            severity="warning" if is_hopeless else "note",
            message=f"{n_trials} complete trials are few for {n_parameters} parameters: "
            + ("nothing can be said about them." if is_hopeless else f"about {needed} show them well.")
            + (f" While {n_trials} of {n_ended} complete, that takes {total} in all." if total > needed else ""),
            evidence={"n_complete": n_trials, "n_parameters": n_parameters, "needed": needed},
            remedy="Raise `trials` in [budget] and `hpopt create` the file again, or search fewer parameters.",
        )


def _gap(table: StudyTable, best: Sequence[TrialRow], other: Sequence[TrialRow]) -> float:
    one, two = (sum(table.loss(row.value) for row in rows) / len(rows) for rows in (best, other))
    return two - one


def _gap_std(noise: Noise, best: Sequence[TrialRow], other: Sequence[TrialRow]) -> float:
    return float(noise.std * (1 / len(best) + 1 / len(other)) ** 0.5)


def _tell_gap(gap: float) -> str:
    return f"{gap:.2g} behind" if gap > 0 else f"{-gap:.2g} ahead on average"
