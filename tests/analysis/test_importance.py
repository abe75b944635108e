import math
import random
from collections.abc import Callable
from typing import Any

import optuna
import pytest

from hpopt.analysis.importance import estimate_importance
from hpopt.analysis.trials import StudyTable, TrialRow
from hpopt.search.direction import Direction
from hpopt.search.space import Categorical, Float, Int

SPACE = {
    "learning_rate": Float(low=1e-4, high=1.0, log=True),
    "ns_steps": Int(low=1, high=9),
    "schedule": Categorical(choices=("cosine", "linear")),
}


def make_table(n_trials: int, value: Callable[[dict[str, Any]], float], **changes: Any) -> StudyTable:
    rng = random.Random(7)  # noqa: S311 - no secret.
    rows = []
    for trial in range(n_trials):
        params: dict[str, Any] = {
            "learning_rate": 10 ** rng.uniform(-4, 0),
            "ns_steps": rng.randint(1, 9),
            "schedule": rng.choice(["cosine", "linear"]),
        }
        rows.append(TrialRow(trial=trial, state="COMPLETE", value=value(params), params=params))
    table: dict[str, Any] = {"name": "s", "metric": "loss", "direction": Direction.MINIMIZE, "objective": "pretrain"}
    return StudyTable(**{**table, "file_text": "", "search_space": SPACE, "trials": tuple(rows), **changes})


def bowl(params: dict[str, Any]) -> float:
    """Best at a learning rate of 0.01, whatever the others are."""
    return (math.log10(params["learning_rate"]) + 2) ** 2


def test_both_methods_find_the_only_parameter_with_an_effect():
    for importance in estimate_importance(make_table(60, bowl)):
        assert importance.shares is not None
        assert next(iter(importance.shares)) == "learning_rate"
        assert importance.shares["learning_rate"] > 0.8
        assert sum(importance.shares.values()) == pytest.approx(1)


def test_fanova_splits_an_additive_function_by_its_variances():
    """The values 1..9 have variance 60/9, a coin of 0 or c has c^2/4; with c = 2 sqrt(60/9) the shares are equal."""
    coin = 2 * math.sqrt(60 / 9)
    table = make_table(300, lambda params: params["ns_steps"] + coin * (params["schedule"] == "linear"))
    _, fanova = estimate_importance(table)
    assert fanova.shares is not None
    assert fanova.shares["ns_steps"] == pytest.approx(0.5, abs=0.07)
    assert fanova.shares["schedule"] == pytest.approx(0.5, abs=0.07)


def test_the_direction_decides_which_trials_are_the_best():
    """Maximizing the negative metric has the same best trials."""
    lowest = estimate_importance(make_table(60, bowl))[0]
    highest = estimate_importance(make_table(60, lambda params: -bowl(params), direction=Direction.MAXIMIZE))[0]
    assert highest.shares == lowest.shares


def test_fewer_than_ten_complete_trials_give_a_reason():
    for importance in estimate_importance(make_table(9, bowl)):
        assert importance.shares is None
        assert importance.reason == "not enough data: 10 complete trials are needed, there are 9"
    assert all(importance.shares for importance in estimate_importance(make_table(10, bowl)))


def test_trials_that_all_have_one_value_give_a_reason():
    for importance in estimate_importance(make_table(20, lambda _: 1.0)):
        assert importance.shares is None
        assert importance.reason == "all complete trials have the same value"


def test_a_study_that_searches_nothing_gives_a_reason():
    for importance in estimate_importance(make_table(20, bowl, search_space={})):
        assert importance.reason == "the study searches no parameter"


def test_trials_outside_of_the_ranges_count():
    """Enqueued configurations may lie outside of the search space."""
    narrow = {
        "learning_rate": Float(low=1e-3, high=0.1, log=True),
        "ns_steps": Int(low=4, high=5),
        "schedule": Categorical(choices=("cosine",)),
    }
    for importance in estimate_importance(make_table(60, bowl, search_space=narrow)):
        assert importance.shares is not None
        assert importance.shares["learning_rate"] > 0.8


def test_ped_anova_takes_values_off_the_grid_of_a_range():
    """Other tools may enqueue values that the search itself would not try."""
    stepped = SPACE | {"ns_steps": Int(low=1, high=9, step=4)}
    (on_grid, _), (off_grid, _) = (
        estimate_importance(make_table(60, bowl, search_space=space)) for space in (SPACE, stepped)
    )
    assert off_grid.shares == on_grid.shares


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]):
    """The standard output must stay machine-readable."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    estimate_importance(make_table(20, bowl))
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
    optuna.logging.set_verbosity(before)


def test_intervals_hold_the_shares_and_shrink_with_trials():
    widths = []
    for n_trials in (15, 90):
        for importance in estimate_importance(make_table(n_trials, bowl)):
            assert importance.intervals is not None
            assert importance.shares is not None
            for name, (low, high) in importance.intervals.items():
                assert 0 <= low <= importance.shares[name] <= high <= 1
            widths.append(importance.intervals["learning_rate"][1] - importance.intervals["learning_rate"][0])
    assert widths[2] < widths[0]
    assert widths[3] < widths[1]


def test_the_interval_of_a_parameter_that_is_not_significant_starts_at_zero():
    for importance in estimate_importance(make_table(60, bowl)):
        assert importance.intervals is not None
        assert importance.significant == ("learning_rate",)
        assert importance.intervals["schedule"][0] == 0


def test_the_planted_shares_lie_in_their_intervals():
    """The variance of ns_steps is 60/9, that of the schedule 1 (2 or 0); the standard deviation of the noise is 0.3."""
    rng = random.Random(1)  # noqa: S311 - no secret.
    table = make_table(60, lambda params: params["ns_steps"] + 2 * (params["schedule"] == "linear") + rng.gauss(0, 0.3))
    _, fanova = estimate_importance(table)
    assert fanova.intervals is not None
    low, high = fanova.intervals["schedule"]
    assert low <= 1 / (1 + 60 / 9) <= high


def test_many_trials_are_subsampled_and_both_numbers_reported():
    ped_anova, fanova = estimate_importance(make_table(600, bowl))
    assert (ped_anova.n_trials, ped_anova.n_used, fanova.n_trials, fanova.n_used) == (600, 300, 600, 500)
