import pytest
from scipy.stats import spearmanr

from hpopt.analysis.pruning import check_pruning
from hpopt.analysis.trials import CurvePoint, TrialRow


def runs(early, final, **changes):
    """Trials of 90 steps with a value at step 10, which is the rung at a ninth, at step 30 and at the end."""
    return [
        TrialRow(
            trial=i,
            state="COMPLETE",
            value=last,
            params={},
            curve=tuple(
                CurvePoint(step=step, tokens=step, seconds=1.0, value=value)
                for step, value in ((10, first), (30, first), (90, last))
            ),
            **changes,
        )
        for i, (first, last) in enumerate(zip(early, final, strict=True))
    ]


def test_a_winner_that_starts_slowly_would_be_pruned(make_table):
    """Of 12 trials 4 are kept, and the best at the end ranks 12th at the rung."""
    early, final = list(range(12)), [*range(20, 31), 0]
    check = check_pruning(make_table(runs(early, final)))
    first = check.rungs[0]
    assert (first.fraction, first.n_trials, first.n_kept, first.rank_of_best) == (pytest.approx(1 / 9), 12, 4, 12)
    assert first.rank_correlation == pytest.approx(spearmanr(early, final).statistic)
    assert check.best_pruned_share > 0.5


def test_the_best_is_kept_if_early_ranks_equal_final_ranks(make_table):
    check = check_pruning(make_table(runs(range(12), range(12))))
    assert (check.best_pruned_share, check.rungs[0].rank_correlation) == (0.0, pytest.approx(1.0))


def test_the_direction_decides_which_trial_is_better(make_table):
    values = [-i for i in range(12)]
    assert check_pruning(make_table(runs(values, values), direction="maximize")).best_pruned_share == 0.0


def test_pruned_trials_count_at_the_rungs_that_they_reached(make_table):
    """The winner is compared with all that reached the rung, not only with those that were kept."""
    pruned = [
        TrialRow(
            trial=12 + i,
            state="PRUNED",
            value=-1.0,
            params={},
            curve=(CurvePoint(step=10, tokens=1, seconds=1, value=-1.0),),
        )
        for i in range(12)
    ]
    check = check_pruning(make_table([*runs(range(12), range(12)), *pruned]))
    assert (check.rungs[0].n_trials, check.rungs[0].rank_of_best, check.rungs[1].n_trials) == (24, 13, 12)
    assert check.n_pruned == 12


def test_without_common_evaluations_there_is_a_reason(make_table):
    rows = [TrialRow(trial=i, state="COMPLETE", value=float(i), params={}) for i in range(12)]
    assert (
        check_pruning(make_table(rows)).reason == "the trials have no evaluations at common fractions of their schedule"
    )
