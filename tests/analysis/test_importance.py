import math
import random
from collections.abc import Callable
from typing import Any

import optuna
import pytest

from hpopt.analysis.importance import measure_importance
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


def test_both_measures_name_the_only_parameter_that_matters():
    for measure in measure_importance(make_table(60, bowl)):
        assert measure.shares is not None
        assert next(iter(measure.shares)) == "learning_rate"
        assert measure.shares["learning_rate"] > 0.8
        assert sum(measure.shares.values()) == pytest.approx(1)


def test_fanova_splits_an_additive_function_by_its_variances():
    """Reference by hand: x over 1..9 has variance 60/9, a coin of 0 or c has c^2/4; c = 2 sqrt(60/9) makes halves."""
    coin = 2 * math.sqrt(60 / 9)
    table = make_table(300, lambda params: params["ns_steps"] + coin * (params["schedule"] == "linear"))
    _, fanova = measure_importance(table)
    assert fanova.shares is not None
    assert fanova.shares["ns_steps"] == pytest.approx(0.5, abs=0.07)
    assert fanova.shares["schedule"] == pytest.approx(0.5, abs=0.07)


def test_the_direction_decides_which_trials_are_the_best():
    """PED-ANOVA looks at the best tenth: with the sign turned around it is the same question."""
    lowest = measure_importance(make_table(60, bowl))[0]
    highest = measure_importance(make_table(60, lambda params: -bowl(params), direction=Direction.MAXIMIZE))[0]
    assert highest.shares == lowest.shares


def test_under_ten_complete_trials_there_is_no_answer_but_a_reason():
    for measure in measure_importance(make_table(9, bowl)):
        assert measure.shares is None
        assert measure.reason == "not enough data: 10 complete trials are needed, there are 9"
    assert all(measure.shares for measure in measure_importance(make_table(10, bowl)))


def test_trials_that_all_have_one_value_give_a_reason():
    for measure in measure_importance(make_table(20, lambda _: 1.0)):
        assert measure.shares is None
        assert measure.reason == "all complete trials have the same value"


def test_a_study_that_searches_nothing_gives_a_reason():
    for measure in measure_importance(make_table(20, bowl, search_space={})):
        assert measure.reason == "the study searches no parameter"


def test_trials_outside_of_the_ranges_count():
    """Known configurations are enqueued, and those of a derived study had other ranges."""
    narrow = {
        "learning_rate": Float(low=1e-3, high=0.1, log=True),
        "ns_steps": Int(low=4, high=5),
        "schedule": Categorical(choices=("cosine",)),
    }
    for measure in measure_importance(make_table(60, bowl, search_space=narrow)):
        assert measure.shares is not None
        assert measure.shares["learning_rate"] > 0.8


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]):
    """Standard output belongs to what a program reads."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    measure_importance(make_table(20, bowl))
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
    optuna.logging.set_verbosity(before)


def test_intervals_hold_the_shares_and_shrink_with_trials():
    """90 trials know more than 15."""
    widths = []
    for n_trials in (15, 90):
        for measure in measure_importance(make_table(n_trials, bowl)):
            assert measure.intervals is not None
            assert measure.shares is not None
            for name, (low, high) in measure.intervals.items():
                assert 0 <= low <= measure.shares[name] <= high <= 1
            widths.append(measure.intervals["learning_rate"][1] - measure.intervals["learning_rate"][0])
    assert widths[2] < widths[0]
    assert widths[3] < widths[1]


def test_a_parameter_that_may_be_chance_has_an_interval_from_zero():
    for measure in measure_importance(make_table(60, bowl)):
        assert measure.intervals is not None
        assert measure.matters == ("learning_rate",)
        assert measure.intervals["schedule"][0] == 0


def test_the_planted_shares_lie_in_their_intervals():
    """Reference by hand: variances 60/9 and 1/4 of (ns_steps) and of a coin of 1; noise of 0.3."""
    rng = random.Random(1)  # noqa: S311 - no secret.
    table = make_table(60, lambda params: params["ns_steps"] + 2 * (params["schedule"] == "linear") + rng.gauss(0, 0.3))
    _, fanova = measure_importance(table)
    assert fanova.intervals is not None
    low, high = fanova.intervals["schedule"]
    assert low <= 1 / (1 + 60 / 9) <= high


def test_many_trials_are_thinned_and_that_is_told():
    ped_anova, fanova = measure_importance(make_table(600, bowl))
    assert (ped_anova.n_trials, ped_anova.n_used, fanova.n_trials, fanova.n_used) == (600, 300, 600, 500)
